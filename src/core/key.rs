//! Randomness as a value: a [`Key`] names a stream, and nothing has hidden state.
//!
//! Every random function takes a `Key`. Children come from [`Key::fold_in`]; numbers come from
//! [`Key::rng`]. Work cut into keyed items gives the same result in any order and on any number
//! of threads, and a resumed run needs no generator state. Changing a stream is a breaking change.

use crate::{normal, simd::Path};
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Child keys are read from this block of the ChaCha8 stream, numbers from block 0: the two never
/// overlap for fewer than 2^66 words drawn.
const CHILD_WORD_POS: u128 = 1 << 67;

/// A pure, splittable random key of 256 bits.
///
/// ```
/// use outerloop_core::Key;
/// let run = Key::new(42);
/// let lane = run.fold_in(3);
/// assert_eq!(lane, Key::new(42).fold_in(3));
/// assert_ne!(lane, run.fold_in(4));
/// let mut noise = [0.0f32; 4];
/// lane.fill_normal(&mut noise);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key([u8; 32]);

impl Key {
    /// The root key of a seed.
    pub fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(b"outrloop");
        Key(bytes)
    }

    /// The child key number `data`; children with different numbers are independent.
    pub fn fold_in(self, data: u64) -> Self {
        let mut rng = ChaCha8Rng::from_seed(self.0);
        rng.set_stream(data);
        rng.set_word_pos(CHILD_WORD_POS);
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Key(bytes)
    }

    /// The child key of a purpose, e.g. `key.named("init")`.
    pub fn named(self, purpose: &str) -> Self {
        // FNV-1a: stable, and purposes are few literals.
        let hash = purpose
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
        self.fold_in(hash)
    }

    /// `N` independent child keys: `fold_in(0)`, `fold_in(1)`, ...
    pub fn split<const N: usize>(self) -> [Self; N] {
        std::array::from_fn(|i| self.fold_in(i as u64))
    }

    /// The generator of this key, at its start.
    pub fn rng(self) -> ChaCha8Rng {
        ChaCha8Rng::from_seed(self.0)
    }

    /// 64 random bits; cheaper than a generator where one number is enough.
    pub fn bits(self) -> u64 {
        self.rng().next_u64()
    }

    /// A uniform number in `[0, 1)`.
    pub fn uniform(self) -> f64 {
        self.rng().gen()
    }

    /// Independent standard normal numbers: f32 and f64 buffers get the same values up to rounding.
    ///
    /// Each is made of a fixed number of words, see [`Self::fill_normal_from`].
    pub fn fill_normal<E: crate::Float>(self, out: &mut [E]) {
        self.fill_normal_from(0, out);
    }

    /// The numbers `first`, `first + 1`, ... of what [`Self::fill_normal`] writes, at the price of
    /// these alone.
    pub fn fill_normal_from<E: crate::Float>(self, first: u64, out: &mut [E]) {
        normal::fill(Path::best(), self.0, first, out);
    }

    /// Independent normal numbers of standard deviation `sigma`, truncated at `2 sigma`: haiku's
    /// `TruncatedNormal`. Their own standard deviation is `0.8796 sigma`. One word each.
    pub fn fill_truncated_normal<E: crate::Float>(self, out: &mut [E], sigma: f64) {
        normal::fill_truncated(self.0, sigma, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_stable() {
        // A change here breaks every saved run. The words come from an independent ChaCha8.
        assert_eq!(Key::new(0).bits(), PINNED[0]);
        assert_eq!(Key::new(0).fold_in(1).bits(), PINNED[1]);
        assert_eq!(Key::new(7).named("init").fold_in(u64::MAX).bits(), PINNED[2]);
    }
    const PINNED: [u64; 3] = [0xae43_2d2c_2ff2_7c55, 0xffc8_6d84_a6b2_774e, 0x26ce_71f0_a036_031a];

    #[test]
    fn children_differ_and_do_not_depend_on_order() {
        let k = Key::new(5);
        let kids: Vec<Key> = (0..100).map(|i| k.fold_in(i)).collect();
        let distinct: std::collections::HashSet<Key> = kids.iter().copied().collect();
        assert_eq!(distinct.len(), 100);
        assert!(!distinct.contains(&k));
        assert_eq!(k.split::<3>().to_vec(), kids[..3].to_vec());
    }

    #[test]
    fn truncated_normals_have_the_right_moments() {
        let mut z = vec![0.0f64; 100_000];
        Key::new(2).fill_truncated_normal(&mut z, 3.0);
        let n = z.len() as f64;
        assert!(z.iter().all(|z| z.abs() <= 6.0) && z.iter().any(|z| z.abs() > 5.9));
        // var = 1 − 4 φ(2) / (2 Φ(2) − 1) = 0.7737
        let var = z.iter().map(|x| x * x / 9.0).sum::<f64>() / n;
        assert!((var - 0.773_741).abs() < 0.01, "{var}");
        assert!((z.iter().sum::<f64>() / n).abs() < 4.0 * 3.0 * 0.88 / n.sqrt());
    }
}
