//! Quadratics: tiny tasks with closed-form loss, gradient and Hessian-vector product.
//!
//! | task | loss |
//! |---|---|
//! | [`QuadraticTask`] | `Σ (c − x)²` |
//! | [`BatchQuadraticTask`] | `Σ x²`, with data that the loss ignores |
//! | [`LogQuadraticTask`] | `ln Σ x²` |
//! | [`SumQuadraticTask`] | `Σ (a + b)²` |
//! | [`DataQuadraticTask`] | `Σ (c − x)² + data` |
//! | [`NoisyMeanQuadraticTask`] | `(x − n)ᵀ H (x − n)`, `n` drawn per batch |
//! | [`NoisyQuadraticTask`] | `Σ (s (c − x))²`, noise in the gradient only |
//!
//! and the families that sample their parameters. They are the tasks of
//! `learned_optimization/tasks/quadratics.py` and its tests.
//!
//! Each loss is written twice: on dfdx tensors (the definition) and in closed form over the flat
//! buffer (what runs; no allocation); a test holds them together.

mod diagonal;
mod noisy;
mod simple;

pub use diagonal::{DataQuadraticTask, FixedDimQuadraticFamily, FixedDimQuadraticFamilyData, QuadraticTask};
pub use noisy::{NoisyMeanQuadraticTask, NoisyQuadraticFamily, NoisyQuadraticTask};
pub use simple::{BatchQuadraticTask, LogQuadraticTask, SumQuadraticTask};

use outerloop_core::tensor::{Backend, DynParams, DynTree, Tensor};
use outerloop_core::{Float, Key, Layout};
use std::sync::Arc;

/// The layout of one vector `x` of `dim` elements.
fn vector_layout(dim: usize) -> Arc<Layout> {
    Arc::new(Layout::new([("x", vec![dim])]))
}

/// Independent normal parameters with standard deviation `std`.
fn normal_params<E: Float, B: Backend<E>>(
    dev: &B,
    layout: &Arc<Layout>,
    std: f64,
    key: Key,
) -> DynParams<E, B> {
    let mut flat = vec![E::of(0.0); layout.len()];
    key.fill_normal(&mut flat);
    flat.iter_mut().for_each(|x| *x *= E::of(std));
    DynParams::<E, B>::new(dev, layout.clone(), &flat)
}

/// `dim` independent standard normal numbers.
fn normals(dim: usize, key: Key) -> Vec<f64> {
    let mut out = vec![0.0; dim];
    key.fill_normal(&mut out);
    out
}

/// A constant vector on the device, `[n]`.
fn constant<E: Float, B: Backend<E>>(dev: &B, values: &[f64]) -> Tensor<(usize,), E, B> {
    dev.tensor_from_vec(values.iter().map(|&v| E::of(v)).collect(), (values.len(),))
}
