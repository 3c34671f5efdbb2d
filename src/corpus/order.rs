//! The order of an epoch's records: a pure function of (seed, epoch, number of records), the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

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

#[cfg(test)]
mod tests {
    use super::shuffled;

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
    fn the_order_never_changes_between_releases() {
        assert_eq!(shuffled(42, 3, 10), [4, 7, 6, 3, 9, 2, 8, 5, 0, 1]);
    }
}
