//! A keyed pseudo-random permutation of `0..n`, evaluated one index at a time.

use outerloop_core::Key;

/// Rounds of the Feistel network; even. With 8, permutations of 5 are visibly not equally likely.
const ROUNDS: usize = 12;

/// A permutation of `0..n` chosen by a key: no table, about 10 ns per index.
///
/// `i` is written as `(l, r)` in mixed radix `(a, b)` with `a b >= n`, `b = ceil(sqrt n)`; each round
/// adds a keyed hash of one half to the other, which is invertible. A result of `n` or more is
/// permuted again until it lands inside (cycle walking; fewer than one value in `b` does so).
///
/// Reference: Black, Rogaway 2002, "Ciphers with arbitrary finite domains". The round function is a
/// mixer, not a cipher.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    n: u32,
    a: u32,
    b: u32,
    round_keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..n` that the key names.
    pub fn new(n: u32, key: Key) -> Self {
        let b = (f64::from(n)).sqrt().ceil().max(1.0) as u32;
        let mut rng = key.rng();
        let round_keys = std::array::from_fn(|_| rand::RngCore::next_u64(&mut rng));
        Permutation { n, a: n.div_ceil(b), b, round_keys }
    }

    /// Where `i` goes.
    ///
    /// # Panics
    /// If `i` is not below `n`.
    #[inline]
    #[track_caller]
    pub fn index(&self, i: u32) -> u32 {
        assert!(i < self.n, "permutation of 0..{}: index {i}", self.n);
        let mut x = i;
        loop {
            x = self.permute(x);
            if x < self.n {
                return x;
            }
        }
    }

    /// The Feistel network on `0..a*b`.
    #[inline(always)]
    fn permute(&self, x: u32) -> u32 {
        let (mut l, mut r) = (x / self.b, x % self.b);
        for k in self.round_keys.chunks_exact(2) {
            l = add_mod(l, hash_below(r, k[0], self.a), self.a);
            r = add_mod(r, hash_below(l, k[1], self.b), self.b);
        }
        l * self.b + r
    }
}

#[inline(always)]
fn add_mod(x: u32, y: u32, m: u32) -> u32 {
    let s = x + y;
    if s >= m {
        s - m
    } else {
        s
    }
}

/// A hash of `x` in `0..m`.
#[inline(always)]
fn hash_below(x: u32, key: u64, m: u32) -> u32 {
    let mut h = (u64::from(x) ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    h ^= h >> 32;
    h = h.wrapping_mul(0xd6e8_feb8_6659_fd93);
    (((h >> 32) * u64::from(m)) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_permutation(n in 1u32..3000, seed in 0u64..1000) {
            let p = Permutation::new(n, Key::new(seed));
            let mut seen = vec![false; n as usize];
            for i in 0..n {
                let j = p.index(i) as usize;
                prop_assert!(!seen[j], "{j} is hit twice");
                seen[j] = true;
            }
        }
    }

    #[test]
    fn values_are_stable() {
        // A change here changes every training run.
        let p = Permutation::new(1797, Key::new(0));
        assert_eq!([0, 1, 2, 3, 1796].map(|i| p.index(i)), PINNED);
        assert_eq!(Permutation::new(1, Key::new(0)).index(0), 0);
    }
    const PINNED: [u32; 5] = [15, 695, 215, 1735, 534];

    /// Chi-square statistic of counts against equal probabilities, as a number of standard deviations.
    fn excess(counts: &[u32]) -> f64 {
        let (k, total) = (counts.len() as f64, counts.iter().sum::<u32>() as f64);
        let mean = total / k;
        let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - mean).powi(2) / mean).sum();
        (chi2 - (k - 1.0)) / (2.0 * (k - 1.0)).sqrt()
    }

    #[test]
    fn every_place_and_every_pair_is_equally_likely_over_keys() {
        for n in [5u32, 16, 30] {
            let mut place = vec![0u32; (n * n) as usize];
            let mut neighbours = vec![0u32; (n * n) as usize];
            for seed in 0..40_000 {
                let p = Permutation::new(n, Key::new(seed));
                let (x, y) = (p.index(0), p.index(1));
                place[(p.index(n - 1) * n + p.index(n / 2)) as usize] += 1;
                neighbours[(x * n + y) as usize] += 1;
            }
            for counts in [place, neighbours] {
                let pairs: Vec<u32> =
                    (0..n * n).filter(|i| i / n != i % n).map(|i| counts[i as usize]).collect();
                assert!(excess(&pairs).abs() < 4.0, "n = {n}: {} standard deviations", excess(&pairs));
            }
        }
    }

    #[test]
    fn neighbours_are_scattered() {
        // Mean |p(i+1) − p(i)| of a random permutation is (n+1)/3, with standard error below n/(3 sqrt n).
        let n = 50_000u32;
        let p = Permutation::new(n, Key::new(9));
        let sum: f64 = (0..n - 1).map(|i| (f64::from(p.index(i + 1)) - f64::from(p.index(i))).abs()).sum();
        let mean = sum / f64::from(n - 1);
        let expected = (f64::from(n) + 1.0) / 3.0;
        assert!((mean - expected).abs() < 4.0 * f64::from(n) / (3.0 * f64::from(n).sqrt()), "{mean}");
    }
}
