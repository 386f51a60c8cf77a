//! Fused f32 kernels, with a readable twin each ([`crate::Taped`] on the same rule) that tests hold
//! them against.
//!
//! Instructions are chosen at run time, once per process: the widest that the CPU has. Results are
//! the same to the bit on any thread; another path ([`path`]) differs in the last bits, because
//! only some have fused multiply-add.

mod adafac_features;
mod adafac_step;
mod dense;
mod exp;
mod mlp_features;
mod mlp_step;
mod mlp_vjp;
mod net;
mod outer;

pub use adafac_step::AdafacKernel;
pub use mlp_step::MlpKernel;

use outerloop_core::{Float, Optimizer};
use pulp::{Arch, Scalar, Simd, WithSimd};
use std::{any::Any, cell::RefCell};

/// Which instructions a kernel uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// One element at a time, without fused multiply-add: the portable baseline.
    Scalar,
    /// The widest instructions of this CPU.
    Simd,
}

impl Path {
    /// The path that optimizers use.
    pub fn best() -> Self {
        Path::Simd
    }

    fn run<W: WithSimd>(self, work: W) -> W::Output {
        match self {
            Path::Scalar => Simd::vectorize(Scalar::new(), work),
            Path::Simd => Arch::new().dispatch(work),
        }
    }
}

/// The instructions of this process's kernels: `"avx512"`, `"avx2"`, `"neon"` or `"scalar"`.
pub fn path() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if pulp::x86::V4::is_available() {
            return "avx512";
        }
        if pulp::x86::V3::is_available() {
            return "avx2";
        }
    }
    #[cfg(target_arch = "aarch64")]
    if pulp::aarch64::Neon::is_available() {
        return "neon";
    }
    "scalar"
}

/// The f32 optimizer that `make` builds, if `E` is f32.
pub(crate) fn in_f32<E: Float, O: Optimizer<f32> + 'static>(
    theta: &[E],
    make: impl FnOnce(&[f32]) -> O,
) -> Option<Box<dyn Optimizer<E>>> {
    let theta: Box<dyn Any> = Box::new(theta.to_vec());
    let optimizer: Box<dyn Optimizer<f32>> = Box::new(make(theta.downcast_ref::<Vec<f32>>()?));
    let optimizer: Box<dyn Any> = Box::new(optimizer);
    optimizer.downcast::<Box<dyn Optimizer<E>>>().ok().map(|o| *o)
}

/// Calls `f` with this thread's scratch of `len` numbers, aligned to a cache line; the contents are
/// arbitrary. Grows to the largest request and is kept.
fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
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
fn load<S: Simd>(s: S, x: &[f32]) -> S::f32s {
    match S::as_simd_f32s(x).0.first() {
        Some(full) => *full,
        None => s.partial_load_f32s(x),
    }
}

/// Writes a vector to the first elements of `x`; what does not fit is dropped.
#[inline(always)]
fn store<S: Simd>(s: S, x: &mut [f32], value: S::f32s) {
    match S::as_mut_simd_f32s(x) {
        ([first, ..], _) => *first = value,
        (_, rest) => s.partial_store_f32s(rest, value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_named() {
        struct Lanes;
        impl WithSimd for Lanes {
            type Output = usize;
            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }
        let lanes = Path::Simd.run(Lanes);
        let named = [("avx512", 16), ("avx2", 8), ("neon", 4), ("scalar", 1)];
        assert!(named.contains(&(path(), lanes)), "{} has {lanes} lanes", path());
    }
}
