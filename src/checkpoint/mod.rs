//! Checkpoints: written so that a kill at any moment loses nothing, verified before they are trusted.
//!
//! [`Store`] writes them under the run's lock, [`latest_valid`] and [`Checkpoint::open`] find one to go on from.
//! What the files mean is for those who write them; here they are names, sizes and digests.

pub mod atomic;
mod disk;
pub mod find;
pub mod layout;
mod lock;
pub mod manifest;
pub mod provenance;
mod store;
pub mod tensors;

pub use atomic::Unsynced;
pub use find::{Checkpoint, Found, latest_valid};
pub use lock::RunLock;
pub use manifest::{Damage, FileEntry, Manifest, hash_file, verify};
pub use provenance::Provenance;
pub use store::{Retained, Retention, Staged, Store};
pub use tensors::{Arrays, Dtype, Entry, Values, read_safetensors_f32, write_safetensors};
