//! corpus → batch → teacher signal → student forward → loss → step → checkpoint and metrics → eval and report
//!
//! `distill` trains a small language model (the student, q) to imitate a large one (the teacher, p).
//! The modules follow that sentence; ARCHITECTURE.md has the map and the rules.

pub mod checkpoint;
pub mod corpus;
pub mod error;
pub mod metrics;
pub mod units;

pub use error::{Error, Result};
