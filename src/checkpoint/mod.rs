//! Checkpoints: written so that a kill at any moment loses nothing, verified before they are trusted.

pub mod atomic;
mod failpoint;
pub mod layout;
mod lock;
pub mod manifest;

pub use lock::RunLock;
pub use manifest::{Damage, Manifest, verify};
