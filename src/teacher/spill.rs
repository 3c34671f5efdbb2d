//! Hidden states on disk: what memory has no room for, and is cheaper to read than to compute again.
//!
//! The file has no name once it is open, so that it goes with the process however that ends. It only saves time: a disk that
//! is full or fails is given back and not asked again, and the states are computed as if there were none.

use std::fs::{File, remove_file};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use candle_core::{Device, Shape, Tensor};

use crate::kernels::with_f32;

/// Its name for the moment between being created and losing it; a run's folder has one writer.
const NAME: &str = ".held-out-states";

/// One unnamed file in a folder, made when it is first needed.
pub struct Spill {
    folder: PathBuf,
    file: Option<File>,
    /// Bytes in the file.
    end: u64,
    /// Bytes that may still be added; 0 for good once the disk has failed.
    room: u64,
}

/// Where a tensor lies in the file.
pub struct Extent {
    offset: u64,
    shape: Shape,
}

impl Spill {
    /// Writes at most `bytes`, in `folder`.
    pub fn new(folder: impl Into<PathBuf>, bytes: u64) -> Self {
        Self { folder: folder.into(), file: None, end: 0, room: bytes }
    }

    /// Writes `states`, f32. None: there is no room, or the disk failed.
    pub(super) fn keep(&mut self, states: &Tensor) -> Option<Extent> {
        let size = states.elem_count() as u64 * size_of::<f32>() as u64;
        if size > self.room {
            return None;
        }
        let bytes: Vec<u8> = with_f32(states, |v| v.iter().flat_map(|v| v.to_le_bytes()).collect()).ok()?;
        if self.write(&bytes).is_err() {
            self.give_up();
            return None;
        }
        let extent = Extent { offset: self.end, shape: states.shape().clone() };
        self.end += size;
        self.room -= size;
        Some(extent)
    }

    /// The very bits that were written. None: the disk failed, now or before.
    pub(super) fn read(&mut self, extent: &Extent) -> Option<Tensor> {
        let mut bytes = vec![0; extent.shape.elem_count() * size_of::<f32>()];
        if self.file.as_ref()?.read_exact_at(&mut bytes, extent.offset).is_err() {
            self.give_up();
            return None;
        }
        let values: Vec<f32> = bytes.as_chunks().0.iter().map(|&v| f32::from_le_bytes(v)).collect();
        Tensor::from_vec(values, extent.shape.clone(), &Device::Cpu).ok()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.create()?,
        };
        self.file.insert(file).write_all_at(bytes, self.end)
    }

    fn create(&self) -> io::Result<File> {
        let path = self.folder.join(NAME);
        // One that was killed within that moment left an empty file.
        let _ = remove_file(&path);
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        remove_file(&path)?;
        Ok(file)
    }

    /// Gives the space back at once: a checkpoint needs it more.
    fn give_up(&mut self) {
        (self.file, self.room) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(first: u32) -> Tensor {
        // Zeros of both signs, a subnormal, infinity and a NaN with a payload.
        let bits = [first, 0, 0x8000_0000, 1, 0x7f80_0000, 0x7fc0_1234];
        Tensor::from_vec(bits.map(f32::from_bits).to_vec(), (2, 3), &Device::Cpu).unwrap()
    }

    fn bits(states: &Tensor) -> Vec<u32> {
        with_f32(states, |v| v.iter().map(|v| v.to_bits()).collect()).unwrap()
    }

    #[test]
    fn states_come_back_bit_for_bit_in_any_order_from_a_file_without_a_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(NAME), "of one that was killed").unwrap();
        let mut spill = Spill::new(dir.path(), 3 * 24 + 23);
        let kept: Vec<Extent> = (7..10).map(|first| spill.keep(&states(first)).unwrap()).collect();
        assert!(spill.keep(&states(10)).is_none(), "beyond the bound");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        for (extent, first) in kept.iter().zip(7..10).rev() {
            let read = spill.read(extent).unwrap();
            assert_eq!((read.dims(), bits(&read)), (&[2, 3][..], bits(&states(first))));
        }
    }

    #[test]
    fn a_disk_that_fails_is_given_back_and_not_asked_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut nowhere = Spill::new(dir.path().join("missing"), 1000);
        assert!(nowhere.keep(&states(1)).is_none() && nowhere.room == 0);

        let mut full = Spill::new(dir.path(), 1000);
        let before = full.keep(&states(1)).unwrap();
        std::fs::write(dir.path().join("read-only"), "").unwrap();
        full.file = Some(File::open(dir.path().join("read-only")).unwrap());
        assert!(full.keep(&states(2)).is_none() && full.file.is_none());
        assert!(full.read(&before).is_none() && full.keep(&states(3)).is_none());

        let mut short = Spill::new(dir.path(), 1000);
        let extent = short.keep(&states(1)).unwrap();
        short.file.as_ref().unwrap().set_len(20).unwrap();
        assert!(short.read(&extent).is_none() && short.file.is_none());
    }
}
