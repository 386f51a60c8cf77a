//! Quadratics without sampled parameters: with unused data, under a logarithm, of a sum.

use super::{normal_params, vector_layout};
use dfdx::prelude::SumTo;
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, Key, Layout, Task};
use std::sync::Arc;

/// Dimension of these tasks in the reference.
const DIM: usize = 10;

/// `(Σ x², ·)`, with `grad = c x` where `c` is a function of the sum.
fn sum_of_squares<E: Float>(x: &[E], scale: impl Fn(E) -> E, grad: Option<&mut [E]>) -> E {
    let sum: E = x.iter().map(|x| *x * *x).sum();
    if let Some(grad) = grad {
        let c = scale(sum);
        for (g, x) in grad.iter_mut().zip(x) {
            *g = c * *x;
        }
    }
    sum
}

/// `Σ x²` with a batch of data, noise `[4, 2]`, that the loss ignores; `x` `[10]`, `x₀ ~ N(0, I)`.
/// It exercises the data path of a trainer.
#[derive(Clone, Debug)]
pub struct BatchQuadraticTask {
    layout: Arc<Layout>,
}

impl Default for BatchQuadraticTask {
    fn default() -> Self {
        BatchQuadraticTask { layout: vector_layout(DIM) }
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for BatchQuadraticTask {
    type Params = DynParams<E, B>;
    /// Standard normal noise, `[4, 2]`.
    type Batch = [[E; 2]; 4];

    fn name(&self) -> String {
        "batch_quadratic".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 1.0, key)
    }
    fn batch(&self, _: &B, at: BatchKey) -> Self::Batch {
        let mut z = [[E::of(0.0); 2]; 4];
        at.noise().fill_normal(z.as_flattened_mut());
        z
    }
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, _: &Self::Batch, m: M) -> Tensor<Rank0, E, B, M> {
        params.traced(0, (DIM,), m).square().sum()
    }
    fn closed_form(&self, params: &[E], _: &Self::Batch, grad: Option<&mut [E]>) -> Option<E> {
        Some(sum_of_squares(params, |_| E::of(2.0), grad))
    }
    fn hvp(&self, _: &[E], _: &Self::Batch, v: &[E], out: &mut [E]) -> bool {
        for (h, v) in out.iter_mut().zip(v) {
            *h = *v + *v;
        }
        true
    }
}

/// `ln Σ x²`; `x` `[dim]`, `x₀ ~ N(0, I)`. Unbounded below.
#[derive(Clone, Debug)]
pub struct LogQuadraticTask {
    layout: Arc<Layout>,
}

impl LogQuadraticTask {
    /// In `dim` dimensions.
    pub fn new(dim: usize) -> Self {
        LogQuadraticTask { layout: vector_layout(dim) }
    }
}

impl Default for LogQuadraticTask {
    /// 10 dimensions.
    fn default() -> Self {
        Self::new(DIM)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for LogQuadraticTask {
    type Params = DynParams<E, B>;
    type Batch = ();

    fn name(&self) -> String {
        format!("log_quadratic{}", self.layout.len())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 1.0, key)
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        params.traced(0, (self.layout.len(),), m).square().sum().ln()
    }
    fn closed_form(&self, params: &[E], _: &(), grad: Option<&mut [E]>) -> Option<E> {
        Some(num_traits::Float::ln(sum_of_squares(params, |s| E::of(2.0) / s, grad)))
    }
    fn hvp(&self, params: &[E], _: &(), v: &[E], out: &mut [E]) -> bool {
        // H v = 2 v / s − 4 x (x·v) / s²
        let s: E = params.iter().map(|x| *x * *x).sum();
        let dot: E = params.iter().zip(v).map(|(x, v)| *x * *v).sum();
        let (a, b) = (E::of(2.0) / s, E::of(4.0) * dot / (s * s));
        for ((h, x), v) in out.iter_mut().zip(params).zip(v) {
            *h = a * *v - b * *x;
        }
        true
    }
}

/// `Σ (a + b)²`; `a`, `b` `[dim]`, both start as `N(0, I)`. Only the sum matters: the Hessian is singular.
#[derive(Clone, Debug)]
pub struct SumQuadraticTask {
    dim: usize,
    layout: Arc<Layout>,
}

impl SumQuadraticTask {
    /// With two vectors of `dim` elements.
    pub fn new(dim: usize) -> Self {
        SumQuadraticTask { dim, layout: Arc::new(Layout::new([("a", vec![dim]), ("b", vec![dim])])) }
    }
}

impl Default for SumQuadraticTask {
    /// 10 dimensions.
    fn default() -> Self {
        Self::new(DIM)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for SumQuadraticTask {
    type Params = DynParams<E, B>;
    type Batch = ();

    fn name(&self) -> String {
        format!("sum_quadratic{}", self.dim)
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 1.0, key)
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        let (a, b) = (params.traced(0, (self.dim,), m), params.traced(1, (self.dim,), m));
        (a + b).square().sum()
    }
    fn closed_form(&self, params: &[E], _: &(), grad: Option<&mut [E]>) -> Option<E> {
        let (a, b) = params.split_at(self.dim);
        if let Some(grad) = grad {
            twice_sum(params, self.dim, grad);
        }
        Some(a.iter().zip(b).map(|(a, b)| (*a + *b) * (*a + *b)).sum())
    }
    fn hvp(&self, _: &[E], _: &(), v: &[E], out: &mut [E]) -> bool {
        twice_sum(v, self.dim, out);
        true
    }
}

/// `out = (2 (a + b), 2 (a + b))` for `x = (a, b)`: the gradient at `x`, and the Hessian times `x`.
fn twice_sum<E: Float>(x: &[E], dim: usize, out: &mut [E]) {
    for i in 0..dim {
        let s = x[i] + x[dim + i];
        (out[i], out[dim + i]) = (s + s, s + s);
    }
}
