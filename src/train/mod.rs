//! Training: the step, its optimizer and schedule, the loop around them, and the state that resumes it.

mod clip;
mod optim;
mod rollout;
mod run;
mod saver;
mod schedule;
mod state;
mod step;

pub use optim::{AdamW, AdamWConfig, Moments};
pub use rollout::{Mixed, RolloutOptions, RolloutState, Rollouts};
pub use run::{Ending, Evaluated, Pace, Run};
pub use saver::{Saver, Writer};
pub use schedule::{Decay, Schedule};
pub use state::{Best, TrainState};
pub use step::{Phases, StepReport, Stepper};
