//! The order of an epoch's records: a pure function of (seed, epoch, number of records), the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::units::hex;

/// The permutation of `0..records` for `epoch`: Fisher-Yates from the last place down, each draw 32 bits of ChaCha8 scaled to
/// `0..=i` by multiply-and-shift with rejection (Lemire 2019, arXiv:1805.10941). The key is the seed, the epoch
/// (little-endian) and `distill epoch 1\0`. Changing any of this breaks resuming: it would take another tag.
pub fn shuffled(seed: u64, epoch: u64, records: u32) -> Vec<u32> {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"distill epoch 1\0");
    let mut rng = ChaCha8Rng::from_seed(key);
    let mut order: Vec<u32> = (0..records).collect();
    for i in (1..records).rev() {
        let j = below(&mut rng, i + 1);
        order.swap(i as usize, j as usize);
    }
    order
}

/// A uniform number below `n` > 0.
fn below(rng: &mut ChaCha8Rng, n: u32) -> u32 {
    let threshold = n.wrapping_neg() % n;
    loop {
        let product = rng.next_u32() as u64 * n as u64;
        if product as u32 >= threshold {
            return (product >> 32) as u32;
        }
    }
}

/// What the rows of one step add to the commitment to all steps before: a SHA-256 chain, in hexadecimal digits.
///
/// Each link is the digest of `distill order 1\0`, the link before as text (empty before the first step), the epoch, and of
/// every row the number of its record in the corpus and its own within that, with [`ITEM_END`] twice behind each item (a row
/// or a pack). Numbers are little-endian; the epoch has 8 bytes, the others 4.
#[derive(Debug, Default)]
pub(super) struct Taken(Vec<u8>);

/// No record's number: a corpus has fewer.
const ITEM_END: u32 = u32::MAX;

impl Taken {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn row(&mut self, record: u32, row: u32) {
        self.0.extend(record.to_le_bytes());
        self.0.extend(row.to_le_bytes());
    }

    pub fn end_item(&mut self) {
        self.row(ITEM_END, ITEM_END);
    }

    /// The link that follows `before`.
    pub fn link(&self, before: &str, epoch: u64) -> String {
        let mut hasher = Sha256::new();
        hasher.update(b"distill order 1\0");
        hasher.update(before);
        hasher.update(epoch.to_le_bytes());
        hasher.update(&self.0);
        hex(&hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() {
        let order = shuffled(42, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort();
        assert!(sorted.into_iter().eq(0..1000));
        assert_eq!(order, shuffled(42, 0, 1000));
        assert_ne!(order, shuffled(42, 1, 1000));
        assert_ne!(order, shuffled(43, 0, 1000));
        assert!(shuffled(1, 1, 0).is_empty());
    }

    #[test]
    fn a_link_tells_rows_items_epochs_and_what_came_before_apart_and_never_changes() {
        let link = |items: &[&[(u32, u32)]], before: &str, epoch| {
            let mut taken = Taken::default();
            for item in items {
                item.iter().for_each(|&(record, row)| taken.row(record, row));
                taken.end_item();
            }
            taken.link(before, epoch)
        };
        let first = link(&[&[(3, 0)], &[(1, 0)]], "", 0);
        // printf 'distill order 1\0' and the numbers, by sha256sum.
        assert_eq!(first, "c792206cada8606768ffb04d30f84a4b9fbd1bbfe909f66924bce0c88a1f91e9");
        let others = [
            link(&[&[(1, 0)], &[(3, 0)]], "", 0),
            link(&[&[(3, 0), (1, 0)]], "", 0),
            link(&[&[(3, 1)], &[(1, 0)]], "", 0),
            link(&[&[(3, 0)], &[(1, 0)]], "", 1),
            link(&[&[(3, 0)], &[(1, 0)]], &first, 0),
        ];
        for (i, other) in others.iter().enumerate() {
            assert!(*other != first && !others[..i].contains(other), "{i}");
        }
    }

    #[test]
    fn the_order_never_changes_between_releases() {
        assert_eq!(shuffled(42, 3, 10), [4, 7, 6, 3, 9, 2, 8, 5, 0, 1]);
    }
}
