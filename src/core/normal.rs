//! Normal numbers, each of a fixed number of ChaCha8 words: what [`Key`](crate::Key) draws.
//!
//! Sixteen numbers are made of one ChaCha8 block of sixteen words, by Box and Muller's transform.
//! Words 0 to 7 of block `b` give radii, words 8 to 15 angles; number `16 b + j` is `r cos φ` of the pair
//! `j`, number `16 b + 8 + j` is `r sin φ`. So a number depends on its place alone, and any part of a
//! stream can be drawn without what comes before it.
//!
//! Everything is `+ − × ÷ √` in f64 and integer operations on u32 and u64, without fused multiply-add:
//! the same bits with every [`Path`], on every CPU. The loops are plain; the compiler vectorizes them.
//!
//! References: Box, Muller 1958, doi:10.1214/aoms/1177706645; Wichura 1988, doi:10.2307/2347330 (AS241).

use crate::simd::{Path, Simd, WithSimd};
use crate::Float;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_PI_2, LN_2};

/// Words of a ChaCha block.
const BLOCK: usize = 16;
/// Blocks per call of the generator.
const BLOCKS: usize = 32;
/// 2⁵²: put over an integer below 2⁵², it makes the bits of the f64 `2⁵² + integer`.
const TWO_52: f64 = 4_503_599_627_370_496.0;
/// 2⁻³².
const UNIT: f64 = 1.0 / 4_294_967_296.0;

/// Standard normal numbers `first`, `first + 1`, ... of the stream of a seed.
pub(crate) fn fill<E: Float>(path: Path, seed: [u8; 32], first: u64, out: &mut [E]) {
    struct Fill<'a, E> {
        rng: ChaCha8Rng,
        skip: usize,
        out: &'a mut [E],
    }
    impl<E: Float> WithSimd for Fill<'_, E> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(mut self, _: S) {
            let mut words = [[0; BLOCK]; BLOCKS];
            let mut out = self.out;
            while !out.is_empty() {
                let blocks = (self.skip + out.len()).div_ceil(BLOCK).min(BLOCKS);
                self.rng.fill(words[..blocks].as_flattened_mut());
                for block in &words[..blocks] {
                    let z = pairs(block);
                    if self.skip == 0 && out.len() >= BLOCK {
                        let (head, rest) = out.split_at_mut(BLOCK);
                        for (x, z) in head.iter_mut().zip(z) {
                            *x = E::of(z);
                        }
                        out = rest;
                    } else {
                        let (head, rest) = out.split_at_mut(out.len().min(BLOCK - self.skip));
                        for (x, z) in head.iter_mut().zip(&z[self.skip..]) {
                            *x = E::of(*z);
                        }
                        (out, self.skip) = (rest, 0);
                    }
                }
            }
        }
    }
    let mut rng = ChaCha8Rng::from_seed(seed);
    rng.set_word_pos(u128::from(first / BLOCK as u64) * BLOCK as u128);
    path.run(Fill { rng, skip: first as usize % BLOCK, out });
}

/// Normal numbers of standard deviation `sigma`, truncated at `2 sigma`: number `i` is the quantile
/// function at word `i`.
pub(crate) fn fill_truncated<E: Float>(seed: [u8; 32], sigma: f64, out: &mut [E]) {
    let mut rng = ChaCha8Rng::from_seed(seed);
    for x in out {
        *x = E::of(sigma * truncated(rng.gen()));
    }
}

/// Box-Muller of the eight pairs of a block: the cosines, then the sines.
#[inline(always)]
fn pairs(words: &[u32; BLOCK]) -> [f64; BLOCK] {
    let mut z = [0.0; BLOCK];
    for j in 0..BLOCK / 2 {
        let (x, y) = pair(words[j], words[j + BLOCK / 2]);
        (z[j], z[j + BLOCK / 2]) = (x, y);
    }
    z
}

/// `r (cos φ, sin φ)` with `r = √(−2 ln u)`, `u = (radius + ½) 2⁻³²`. The low 30 bits of `angle` place φ
/// in (−π/4, π/4); the highest bit mirrors it at the diagonal, the next one at the origin.
#[inline(always)]
fn pair(radius: u32, angle: u32) -> (f64, f64) {
    // 2 radius + 1, exactly
    let odd = f64::from_bits(TWO_52.to_bits() | (u64::from(radius) << 1 | 1)) - TWO_52;
    let r = (-2.0 * ln(odd)).sqrt();
    let phi = f64::from(((angle << 2) | 2) as i32) * (FRAC_PI_2 * UNIT);
    let (cos, sin) = (poly(&COS, phi * phi), phi * poly(&SIN, phi * phi));
    let (x, y) = if angle >> 31 == 0 { (cos, sin) } else { (sin, cos) };
    // The sign bit of r.
    let r = f64::from_bits(r.to_bits() | (u64::from(angle & 1 << 30) << 33));
    (r * x, r * y)
}

/// `ln(x 2⁻³³)` for `x` in [1, 2³³], within 1e-13 relative.
#[inline(always)]
fn ln(x: f64) -> f64 {
    // x = 2ᵏ m with m in [√½, √2); ln m = 2 artanh s with s = (m − 1) / (m + 1).
    let bits = x.to_bits();
    let k = (bits - FRAC_1_SQRT_2.to_bits()) >> 52;
    let m = f64::from_bits(bits - (k << 52));
    let k = f64::from_bits(TWO_52.to_bits() | k) - TWO_52;
    let s = (m - 1.0) / (m + 1.0);
    (k - 33.0) * LN_2 + 2.0 * s * poly(&ARTANH, s * s)
}

/// `c₀ + c₁ x + … + c₅ x⁵`: even and odd powers apart, because Horner's rule waits for every sum.
#[inline(always)]
fn poly(c: &[f64; 6], x: f64) -> f64 {
    let x2 = x * x;
    let (even, odd) = (c[4] * x2 + c[2], c[5] * x2 + c[3]);
    (even * x2 + c[0]) + (odd * x2 + c[1]) * x
}

/// `cos √x` for 0 ≤ x ≤ (π/4)², interpolated at Chebyshev's nodes: within 8e-14, relative.
const COS: [f64; 6] = [
    0.9999999999999444,
    -0.49999999999351113,
    0.04166666654391119,
    -0.0013888880393776424,
    2.4798928755323667e-05,
    -2.717342984102282e-07,
];

/// `sin √x / √x`, likewise: within 5e-15.
const SIN: [f64; 6] = [
    0.9999999999999957,
    -0.16666666666616686,
    0.00833333332387815,
    -0.0001984126329839051,
    2.7555271893389817e-06,
    -2.475655877198039e-08,
];

/// `artanh √x / √x` for 0 ≤ √x ≤ (√2 − 1) / (√2 + 1), likewise: within 3e-14.
const ARTANH: [f64; 6] = [
    0.9999999999999736,
    0.3333333333978963,
    0.1999999744591619,
    0.14286083072937864,
    0.11087124955038745,
    0.09804047819876527,
];

/// The quantile of the standard normal, truncated at ±2, at `(word + ½) 2⁻³²`.
fn truncated(word: u32) -> f64 {
    /// Φ(2) − Φ(−2).
    const INSIDE: f64 = 0.954_499_736_103_641_6;
    quantile(INSIDE * ((f64::from(word) + 0.5) * UNIT - 0.5))
}

/// `Φ⁻¹(½ + q)` for `½ − |q| ≥ 2⁻³³`, by AS241, within 1e-13.
fn quantile(q: f64) -> f64 {
    let ratio = |[top, bottom]: &[[f64; 8]; 2], r: f64| {
        let poly = |c: &[f64; 8]| c.iter().rev().fold(0.0, |sum, c| sum * r + c);
        poly(top) / poly(bottom)
    };
    if q.abs() <= 0.425 {
        return q * ratio(&CENTRE, 0.180625 - q * q);
    }
    let r = (-ln((0.5 - q.abs()) / (0.5 * UNIT))).sqrt();
    ratio(&MIDDLE, r - 1.6).copysign(q)
}

/// AS241, |q| ≤ 0.425: numerator and denominator.
const CENTRE: [[f64; 8]; 2] = [
    [
        3.3871328727963665,
        133.14166789178438,
        1971.5909503065513,
        13731.69376550946,
        45921.95393154987,
        67265.7709270087,
        33430.57558358813,
        2509.0809287301227,
    ],
    [
        1.0,
        42.31333070160091,
        687.1870074920579,
        5394.196021424751,
        21213.794301586597,
        39307.89580009271,
        28729.085735721943,
        5226.495278852854,
    ],
];

/// AS241, |q| > 0.425, r ≤ 5.
const MIDDLE: [[f64; 8]; 2] = [
    [
        1.4234371107496835,
        4.630337846156546,
        5.769497221460691,
        3.6478483247632045,
        1.2704582524523684,
        0.2417807251774506,
        0.022723844989269184,
        0.0007745450142783414,
    ],
    [
        1.0,
        2.053191626637759,
        1.6763848301838038,
        0.6897673349851,
        0.14810397642748008,
        0.015198666563616457,
        0.0005475938084995345,
        1.0507500716444169e-09,
    ],
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    fn normals(n: usize) -> Vec<f64> {
        let mut z = vec![0.0; n];
        Key::new(1).fill_normal(&mut z);
        z
    }

    /// `Φ(z) = ½ + φ(z) Σ z²ⁿ⁺¹ / (2n + 1)!!`
    fn cdf(z: f64) -> f64 {
        let (mut term, mut sum) = (z, z);
        for n in 1..200 {
            term *= z * z / f64::from(2 * n + 1);
            sum += term;
        }
        0.5 + sum * (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    /// The numbers of `Key::new(3)`, from another ChaCha8 and 40-digit logarithms, sines and cosines.
    const INDEPENDENT: [f64; 20] = [
        0.00898901177935791,
        0.6510908305940046,
        -1.5748078356998794,
        0.15683428354537662,
        -0.23408032793562092,
        2.021188131930328,
        -0.43750630321350764,
        0.017550718306364697,
        -0.7257785331662931,
        0.7921359546249941,
        0.8972440675289657,
        -1.7442939538142634,
        0.08383341597719042,
        -0.5766392263312583,
        1.4153026107923752,
        1.487952756420381,
        -0.7139428381038395,
        0.22614508081534263,
        1.2802026125319708,
        0.35991207065328934,
    ];

    #[test]
    fn numbers_are_those_of_an_independent_computation() {
        let (mut f64s, mut f32s) = ([0.0f64; 20], [0.0f32; 20]);
        Key::new(3).fill_normal(&mut f64s);
        Key::new(3).fill_normal(&mut f32s);
        for ((want, z), z32) in INDEPENDENT.iter().zip(f64s).zip(f32s) {
            assert!((z - want).abs() < 1e-12, "{z}, not {want}");
            assert_eq!(z32, *want as f32);
        }
    }

    #[test]
    fn every_path_gives_the_same_bits() {
        let seed = [7; 32];
        let draw = |path| {
            let (mut f64s, mut f32s) = (vec![0.0f64; 10_007], vec![0.0f32; 10_007]);
            fill(path, seed, 5, &mut f64s);
            fill(path, seed, 5, &mut f32s);
            assert!(f64s.iter().zip(&f32s).all(|(a, b)| *a as f32 == *b));
            f64s.iter().map(|z| z.to_bits()).collect::<Vec<u64>>()
        };
        let want = draw(Path::best());
        for path in Path::available() {
            assert_eq!(draw(path), want, "{}", path.name());
        }
    }

    #[test]
    fn any_part_can_be_drawn_alone() {
        let whole = normals(2000);
        for first in [0, 1, 15, 16, 17, 511, 512, 1000] {
            for len in [0, 1, 3, 15, 16, 40, 700] {
                let mut part = vec![0.0f64; len];
                Key::new(1).fill_normal_from(first as u64, &mut part);
                assert_eq!(part, whole[first..first + len], "{len} from {first}");
            }
        }
        let mut far = [0.0f64; 2];
        Key::new(1).fill_normal_from(u64::MAX - 1, &mut far);
        assert!(far.iter().all(|z| z.is_finite()));
    }

    #[test]
    fn moments() {
        let z = normals(1_000_000);
        let n = z.len() as f64;
        let mean = |f: &dyn Fn(f64) -> f64| z.iter().map(|z| f(*z)).sum::<f64>() / n;
        // E zᵏ and the variance of zᵏ, (2k − 1)!! − (E zᵏ)².
        for (k, want, var) in
            [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0), (6, 15.0, 10_170.0)]
        {
            let got = mean(&|z| z.powi(k));
            assert!((got - want).abs() < 4.0 * f64::sqrt(var / n), "E z^{k} = {got}, not {want}");
        }
    }

    #[test]
    fn numbers_are_independent_of_their_neighbours_and_of_their_pair() {
        let z = normals(1_000_000);
        for lag in [1, 7, 8, 9, 16] {
            // Of z, and of z² − 1, whose variance is 2.
            let products = |f: &dyn Fn(f64) -> f64| {
                z.iter().zip(&z[lag..]).map(|(a, b)| f(*a) * f(*b)).sum::<f64>() / (z.len() as f64).sqrt()
            };
            let (linear, square) = (products(&|z| z), products(&|z| (z * z - 1.0) / 2.0));
            assert!(linear.abs() < 4.5 && square.abs() < 4.5, "lag {lag}: {linear}, {square}");
        }
    }

    #[test]
    fn distribution_by_kolmogorov_and_smirnov() {
        let mut z = normals(200_000);
        z.sort_by(f64::total_cmp);
        let n = z.len() as f64;
        let gap = |(i, z): (usize, &f64)| (cdf(*z) - (i as f64 + 0.5) / n).abs() + 0.5 / n;
        let gap = z.iter().enumerate().map(gap).fold(0.0, f64::max);
        // Exceeded with probability 1e-4.
        assert!(gap < 2.23 / n.sqrt(), "{gap}");
    }

    #[test]
    fn tails_hold_what_they_should() {
        let mut z = vec![0.0f32; 1 << 23];
        Key::new(2).fill_normal(&mut z);
        for t in [2.0, 3.0, 4.0, 4.5, 5.0] {
            let want = (1.0 - cdf(t)) * z.len() as f64;
            for sign in [1.0, -1.0] {
                let got = z.iter().filter(|z| sign * f64::from(**z) > t).count() as f64;
                assert!((got - want).abs() < 4.5 * want.sqrt(), "beyond {}: {got}, not {want}", sign * t);
            }
        }
        // The largest and smallest radii: √(66 ln 2) and √(2 · 2⁻³³).
        let (x, y) = pair(0, 0);
        assert!((x.hypot(y) - (66.0 * LN_2).sqrt()).abs() < 1e-12, "{x} {y}");
        let (x, y) = pair(u32::MAX, 0);
        assert!((x.hypot(y) * 65_536.0 - 1.0).abs() < 1e-9, "{x} {y}");
    }

    #[test]
    fn pairs_are_those_of_the_standard_library() {
        for i in 0..100_000u32 {
            let (a, b) = (i.wrapping_mul(0x9e37_79b1), i.wrapping_mul(0x85eb_ca6b));
            let r = (-2.0 * ((f64::from(a) + 0.5) * UNIT).ln()).sqrt();
            let phi = (f64::from(((b << 2) | 2) as i32)) * (FRAC_PI_2 * UNIT);
            let phi = if b >> 31 == 0 { phi } else { FRAC_PI_2 - phi };
            let r = if b >> 30 & 1 == 0 { r } else { -r };
            let (x, y) = pair(a, b);
            assert!((x - r * phi.cos()).abs() < 2e-12 && (y - r * phi.sin()).abs() < 2e-12, "{a} {b}");
        }
    }

    #[test]
    fn truncated_numbers_are_quantiles() {
        // Words of `Key::new(3)` and the inverse error function at 40 digits, independent of this code.
        let mut z = [0.0f64; 6];
        Key::new(3).fill_truncated_normal(&mut z, 1.0);
        let want = [
            0.6941556034440038,
            0.21982132721619344,
            -0.8153514921939014,
            -0.7431516635057317,
            1.6276160444258831,
            -1.137909632319687,
        ];
        for (z, want) in z.iter().zip(want) {
            assert!((z - want).abs() < 1e-13, "{z}, not {want}");
        }
        assert!((truncated(u32::MAX) - 2.0).abs() < 1e-8 && truncated(0) == -truncated(u32::MAX));
        for i in 1..1000 {
            let q = f64::from(i) / 2000.0;
            assert!((cdf(quantile(q)) - 0.5 - q).abs() < 1e-13, "{q}");
            assert_eq!(quantile(-q), -quantile(q));
        }
    }
}
