//! corpus → batch → teacher signal → student forward → loss → step → checkpoint and metrics → eval and report
//!
//! `distill` trains a small language model (the student, q) to imitate a large one (the teacher, p).
//! The modules follow that sentence; ARCHITECTURE.md has the map and the rules.

pub mod cache;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod corpus;
pub mod device;
pub mod error;
pub mod eval;
pub mod hub;
pub mod kernels;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod printable;
pub mod report;
pub mod selftest;
pub mod signal;
pub mod student;
pub mod teacher;
pub mod train;
pub mod units;

pub use error::{Error, Result};
