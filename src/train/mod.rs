//! Training: the step, its optimizer and schedule, and the loop around them.

mod clip;
mod optim;
mod schedule;
mod step;

pub use optim::{AdamW, AdamWConfig, Moments};
pub use schedule::{Decay, Schedule};
pub use step::{StepReport, Stepper};
