//! Fused f32 kernels, with a readable twin each ([`crate::Taped`] on the same rule) that tests hold
//! them against.
//!
//! Instructions are chosen at run time, once per process: see [`outerloop_core::simd`].

mod adafac_features;
mod adafac_step;
mod dense;
mod mlp_features;
mod mlp_step;
mod mlp_vjp;
mod net;
mod outer;

pub use adafac_step::AdafacKernel;
pub use mlp_step::MlpKernel;
pub use outerloop_core::simd::{path, Path};

use outerloop_core::{Float, Optimizer};
use std::any::Any;

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
