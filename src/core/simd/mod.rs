//! Vector instructions for kernels: which ones a process uses, and elementary functions on them.
//!
//! Kernels are written once, over [`pulp::Simd`], and compiled for every [`Path`]. One path is
//! chosen per process, at run time: the widest that the CPU has, or the one that the environment
//! variable `OUTERLOOP_KERNEL` names (`avx512`, `avx2`, `neon`, `scalar`). Results are the same to the
//! bit on any thread; two paths differ in the last bits, because they sum in another order and only
//! some have fused multiply-add. Naming the path therefore repeats a run of another machine.

mod math;

pub use math::{exp, ln, tanh};
pub use pulp::{Simd, WithSimd};

use pulp::Scalar;
use std::{cell::RefCell, sync::OnceLock};

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
    /// What this CPU can do, the widest first, the portable baseline (one element at a time) last.
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
            Instructions::Scalar => Simd::vectorize(Scalar::new(), work),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_by_their_width() {
        for path in Path::available() {
            let lanes = path.lanes();
            let named = [("avx512", 16), ("avx2", 8), ("neon", 4), ("scalar", 1)];
            assert!(named.contains(&(path.name(), lanes)), "{} has {lanes} lanes", path.name());
        }
    }
}
