//! Vector instructions for kernels: which ones a process uses, and elementary functions on them.
//!
//! Kernels are written once, over [`pulp::Simd`], and compiled for every [`Path`]. One path is
//! chosen per process, at run time: the widest that the CPU has, or the one that the environment
//! variable `OUTERLOOP_KERNEL` names (`avx512`, `avx2`, `neon`, `scalar`).
//!
//! # The same bits on every path
//!
//! - What is done to each number by itself does not depend on the length of a vector. Every path rounds alike:
//!   `mul_add_e` is fused on all of them; on the scalar path the C library does it, slowly.
//! - A sum along vectors has [`LANES`] = 16 partial sums, whatever the length of a vector: number `i` of a
//!   row or tensor goes to partial sum `i % 16`, and [`total`] adds their halves to each other. One vector of
//!   AVX-512 holds them, [`parts`] shorter vectors elsewhere. Kernels that have no registers for so many sums
//!   take every second (AVX2) or every fourth (NEON) vector of a block first, then the others: the same
//!   instructions in another order. Eight partial sums would be as good on AVX2, but cost AVX-512 half its
//!   width in the products that make theta's adjoint, a third of a derivative.
//! - The blocks after which partial sums are totalled have a length in numbers, not in vectors, and begin
//!   anew with every tensor.
//!
//! Tests hold every kernel to this on all paths of the CPU that they run on.
//!
//! Two things are outside of it. Matrix products of tasks that are written with tensor operations
//! ([`crate::ops`], dfdx) are made by the `gemm` crate, which chooses instructions by the CPU and not by the
//! path: they differ between CPUs for a single row or column, for more than 512 terms (unless the product is in f32 and
//! has at most 12 columns), and where there is no fused multiply-add. [`crate::ops::DenseNet`] and whatever has a closed form do not use it. And `exp`, `ln`,
//! `powf` of single numbers are the C library's, which may differ between systems, not between paths.

mod math;

pub use math::{exp, ln, tanh};
pub use pulp::{Simd, WithSimd};

use pulp::Scalar128b;
use std::{cell::RefCell, sync::OnceLock};

/// Partial sums of a sum over numbers that lie along vectors.
pub const LANES: usize = 16;

/// The most vectors that [`LANES`] numbers fill on any path.
pub const MAX_PARTS: usize = 4;

/// The instructions that a kernel is run with.
#[derive(Clone, Copy, Debug)]
pub struct Path(Instructions);

#[derive(Clone, Copy, Debug)]
enum Instructions {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
}

impl Path {
    /// What this CPU can do, the widest first, last the portable baseline: four numbers at a time without
    /// vector instructions.
    pub fn available() -> Vec<Path> {
        let mut paths = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            paths.extend(pulp::x86::V4::try_new().map(|s| Path(Instructions::Avx512(s))));
            paths.extend(pulp::x86::V3::try_new().map(|s| Path(Instructions::Avx2(s))));
        }
        #[cfg(target_arch = "aarch64")]
        paths.extend(pulp::aarch64::Neon::try_new().map(|s| Path(Instructions::Neon(s))));
        paths.push(Path(Instructions::Scalar));
        paths
    }

    /// The path of this process's kernels, chosen at the first call.
    ///
    /// # Panics
    /// If `OUTERLOOP_KERNEL` names a path that this CPU does not have.
    pub fn best() -> Self {
        static BEST: OnceLock<Path> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Path::available();
            let Ok(wanted) = std::env::var("OUTERLOOP_KERNEL") else { return available[0] };
            let names: Vec<&str> = available.iter().map(|p| p.name()).collect();
            match names.iter().position(|n| *n == wanted) {
                Some(i) => available[i],
                None => panic!("OUTERLOOP_KERNEL: expected one of {names:?} on this CPU, got {wanted:?}"),
            }
        })
    }

    /// `"avx512"`, `"avx2"`, `"neon"` or `"scalar"`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Instructions::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(_) => "neon",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(_) => "avx512",
        }
    }

    /// f32 numbers per vector.
    pub fn lanes(self) -> usize {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        self.run(Lanes)
    }

    /// Runs `work` with these instructions.
    pub fn run<W: WithSimd>(self, work: W) -> W::Output {
        match self.0 {
            Instructions::Scalar => Simd::vectorize(Scalar128b, work),
            #[cfg(target_arch = "aarch64")]
            Instructions::Neon(s) => Simd::vectorize(s, work),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx2(s) => Simd::vectorize(s, work),
            #[cfg(target_arch = "x86_64")]
            Instructions::Avx512(s) => Simd::vectorize(s, work),
        }
    }
}

/// [`Path::name`] of [`Path::best`]: what this process's kernels use.
pub fn path() -> &'static str {
    Path::best().name()
}

/// Calls `f` with this thread's scratch of `len` numbers, aligned to a cache line; the contents are
/// arbitrary. Grows to the largest request and is kept. Not to be nested.
///
/// # Panics
/// If `f` calls it.
pub fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    const LINE: usize = 64;
    SCRATCH.with_borrow_mut(|buffer| {
        let want = len + LINE / size_of::<f32>();
        if buffer.len() < want {
            buffer.resize(want, 0.0);
        }
        let start = buffer.as_ptr().align_offset(LINE);
        f(&mut buffer[start..start + len])
    })
}

/// The first elements of `x` as one vector; zeros after the end.
#[inline(always)]
pub fn load<S: Simd>(s: S, x: &[f32]) -> S::f32s {
    match S::as_simd_f32s(x).0.first() {
        Some(full) => *full,
        None => s.partial_load_f32s(x),
    }
}

/// Writes a vector to the first elements of `x`; what does not fit is dropped.
#[inline(always)]
pub fn store<S: Simd>(s: S, x: &mut [f32], value: S::f32s) {
    match S::as_mut_simd_f32s(x) {
        ([first, ..], _) => *first = value,
        (_, rest) => s.partial_store_f32s(rest, value),
    }
}

/// Vectors that hold the [`LANES`] partial sums of a sum: vector `v` of a row belongs to part `v % parts`.
#[inline(always)]
pub const fn parts<S: Simd>() -> usize {
    LANES / S::F32_LANES
}

/// The sum of the [`LANES`] partial sums that the first [`parts`] vectors hold: their second half is added
/// to the first until one number is left.
#[inline(always)]
pub fn total<S: Simd>(s: S, sums: &[S::f32s]) -> f32 {
    let mut width = parts::<S>();
    let mut folded = [s.splat_f32s(0.0); MAX_PARTS];
    folded[..width].copy_from_slice(&sums[..width]);
    while width > 1 {
        width /= 2;
        for i in 0..width {
            folded[i] = s.add_f32s(folded[i], folded[i + width]);
        }
    }
    match pulp::bytemuck::cast_slice::<S::f32s, f32>(&folded[..1]) {
        // NEON's own sum adds neighbours.
        [a, b, c, d] => (a + c) + (b + d),
        _ => s.reduce_sum_f32s(folded[0]),
    }
}

/// [`total`] of K sums side by side, `sums` `[parts, K]`.
#[inline(always)]
pub fn totals<S: Simd, const K: usize>(s: S, sums: &[[S::f32s; K]; MAX_PARTS]) -> [f32; K] {
    let mut out = [0.0; K];
    for (k, out) in out.iter_mut().enumerate() {
        let mut sum = [s.splat_f32s(0.0); MAX_PARTS];
        for part in 0..parts::<S>() {
            sum[part] = sums[part][k];
        }
        *out = total(s, &sum);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_by_their_width() {
        for path in Path::available() {
            let lanes = path.lanes();
            let named = [("avx512", 16), ("avx2", 8), ("neon", 4), ("scalar", 4)];
            assert!(named.contains(&(path.name(), lanes)), "{} has {lanes} lanes", path.name());
        }
    }

    #[test]
    fn sums_have_the_order_of_sixteen_numbers() {
        struct Sum<'a>(&'a [f32; LANES]);
        impl WithSimd for Sum<'_> {
            type Output = [f32; 2];
            #[inline(always)]
            fn with_simd<S: Simd>(self, s: S) -> [f32; 2] {
                let mut sums = [[s.splat_f32s(0.0); 2]; MAX_PARTS];
                for (sums, x) in sums.iter_mut().zip(S::as_simd_f32s(self.0).0) {
                    *sums = [*x, s.neg_f32s(*x)];
                }
                totals(s, &sums)
            }
        }
        // Sizes so far apart that the order decides what is lost.
        let mut x = [0.0f32; LANES];
        crate::Key::new(3).fill_normal(&mut x);
        x.iter_mut().enumerate().for_each(|(i, x)| *x *= 10f32.powi(i as i32 * 5 % 13));
        let mut want = x;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                want[i] += want[i + width];
            }
        }
        for path in Path::available() {
            assert_eq!(path.run(Sum(&x)), [want[0], -want[0]], "{}", path.name());
        }
    }
}
