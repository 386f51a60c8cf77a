//! Fused f32 kernels, with a readable twin each ([`crate::Taped`] on the same rule) that tests hold
//! them against.
//!
//! Instructions are chosen at run time, once per process: see [`outerloop_core::simd`].

mod adam;
pub(crate) mod dense;
pub(crate) mod dot;
mod fused;
pub(crate) mod group_net;
pub(crate) mod net;
pub(crate) mod net_vjp;
pub(crate) mod newton_schulz;
pub(crate) mod newton_schulz_vjp;
pub(crate) mod outer;
mod sgd;
pub(crate) mod unit_net;

pub use fused::Fused;
pub use outerloop_core::simd::{path, Path};

use outerloop_core::{same, Float, Optimizer, OptimizerGroup};
use pulp::{Simd, WithSimd};
use std::any::TypeId;

/// Does `work` in a function of its own, so that what many places do stands in the program once per path.
#[inline(always)]
pub(crate) fn apart<S: Simd, W: WithSimd>(s: S, work: W) -> W::Output {
    #[inline(never)]
    fn called<S: Simd, W: WithSimd>(s: S, work: W) -> W::Output {
        work.with_simd(s)
    }
    // Vectors of four numbers need no function of their own to be compiled for: they are in the baseline.
    if const { S::F32_LANES < 8 } {
        called(s, work)
    } else {
        s.vectorize(work)
    }
}

/// Whether `E`, a [`Float`], is f32; at compile time, so that what is for the other one is not compiled.
pub(crate) const fn is_f32<E: Float>() -> bool {
    size_of::<E>() == size_of::<f32>()
}

/// These slices, if `E` is f32.
pub(crate) fn f32s<'a, E: Float, const N: usize>(x: [&'a [E]; N]) -> Option<[&'a [f32]; N]> {
    // SAFETY: `E` is f32, so only the type's name changes.
    let cast = |x: &'a [E]| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) };
    (TypeId::of::<E>() == TypeId::of::<f32>()).then(|| x.map(cast))
}

/// These slices, if `E` is f32.
pub(crate) fn f32s_mut<'a, E: Float, const N: usize>(x: [&'a mut [E]; N]) -> Option<[&'a mut [f32]; N]> {
    // SAFETY: `E` is f32, so only the type's name changes; each borrow goes on under the new one.
    let cast = |x: &'a mut [E]| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) };
    (TypeId::of::<E>() == TypeId::of::<f32>()).then(|| x.map(cast))
}

/// The f32 optimizer that `make` builds, if `E` is f32.
pub(crate) fn in_f32<E: Float, O: Optimizer<f32> + 'static>(
    theta: &[E],
    make: impl FnOnce(&[f32]) -> O,
) -> Option<Box<dyn Optimizer<E>>> {
    let [theta] = f32s([theta])?;
    let optimizer: Box<dyn Optimizer<f32>> = Box::new(make(theta));
    same(optimizer).ok()
}

/// The f32 group that `make` builds; the thetas, if `E` is not f32.
pub(crate) fn group_in_f32<E: Float, G: OptimizerGroup<f32> + 'static>(
    thetas: Vec<Vec<E>>,
    make: impl FnOnce(Vec<Vec<f32>>) -> G,
) -> Result<Box<dyn OptimizerGroup<E>>, Vec<Vec<E>>> {
    let group: Box<dyn OptimizerGroup<f32>> = Box::new(make(same(thetas)?));
    Ok(same(group).unwrap_or_else(|_| unreachable!("the thetas are f32")))
}
