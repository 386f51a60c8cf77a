//! `Σ (c − x)²`, its families, and its variant with data.

use super::{constant, normal_params, normals, vector_layout};
use dfdx::prelude::SumTo;
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, Key, Layout, Task, TaskFamily};
use std::sync::Arc;

/// `Σ (c − x)²` with `x₀ ~ N(0, I)`; parameter `x` `[dim]`.
#[derive(Clone, Debug)]
pub struct QuadraticTask {
    center: Vec<f64>,
    layout: Arc<Layout>,
}

impl QuadraticTask {
    /// `Σ x²` in `dim` dimensions (the reference's default is 10).
    pub fn new(dim: usize) -> Self {
        Self::with_center(vec![0.0; dim])
    }
    /// The minimum lies at `center` `[dim]`.
    pub fn with_center(center: Vec<f64>) -> Self {
        QuadraticTask { layout: vector_layout(center.len()), center }
    }
    /// The minimum, `[dim]`.
    pub fn center(&self) -> &[f64] {
        &self.center
    }

    fn traced<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let x = params.traced(0, (self.center.len(),), m);
        let center = constant(x.device(), &self.center);
        (x - center).square().sum()
    }

    /// `Σ (x − c)²`, gradient `2 (x − c)`.
    fn closed<E: Float>(&self, params: &[E], grad: Option<&mut [E]>) -> E {
        let diffs = params.iter().zip(&self.center).map(|(x, c)| *x - E::of(*c));
        if let Some(grad) = grad {
            for (g, d) in grad.iter_mut().zip(diffs.clone()) {
                *g = d + d;
            }
        }
        diffs.map(|d| d * d).sum()
    }
}

/// `H v = 2 v`
fn twice<E: Float>(v: &[E], out: &mut [E]) -> bool {
    for (h, v) in out.iter_mut().zip(v) {
        *h = *v + *v;
    }
    true
}

impl<E: Float, B: Backend<E>> Task<E, B> for QuadraticTask {
    type Params = DynParams<E, B>;
    type Batch = ();

    fn name(&self) -> String {
        format!("quadratic{}", self.center.len())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 1.0, key)
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        self.traced(params, m)
    }
    fn closed_form(&self, params: &[E], _: &(), grad: Option<&mut [E]>) -> Option<E> {
        Some(self.closed(params, grad))
    }
    fn hvp(&self, _: &[E], _: &(), v: &[E], out: &mut [E]) -> bool {
        twice(v, out)
    }
}

/// [`QuadraticTask`]s with centers `c ~ N(0, I)`.
#[derive(Clone, Copy, Debug)]
pub struct FixedDimQuadraticFamily {
    /// Number of parameters (the reference uses 10).
    pub dim: usize,
}

impl TaskFamily for FixedDimQuadraticFamily {
    type Config = Vec<f64>;
    type Task = QuadraticTask;

    fn name(&self) -> String {
        format!("fixed_dim_quadratic{}", self.dim)
    }
    fn sample(&self, key: Key) -> Vec<f64> {
        normals(self.dim, key)
    }
    fn task(&self, center: &Vec<f64>) -> QuadraticTask {
        QuadraticTask::with_center(center.clone())
    }
}

/// `Σ (c − x)² + data` with scalar `data ~ N(0, 1)` per batch: noise that no gradient sees. Losses
/// are clipped to `[0, 1000]` for meta-training (NaN stays NaN, as in the reference).
#[derive(Clone, Debug)]
pub struct DataQuadraticTask(QuadraticTask);

impl DataQuadraticTask {
    /// The minimum lies at `center` `[dim]`.
    pub fn new(center: Vec<f64>) -> Self {
        DataQuadraticTask(QuadraticTask::with_center(center))
    }

    /// The reference's auxiliary numbers: mean of `x²`, mean of `|x|`.
    pub fn aux<E: Float>(params: &[E]) -> (E, E) {
        let n = E::of(params.len() as f64);
        let l2: E = params.iter().map(|x| *x * *x).sum();
        let l1: E = params.iter().map(|x| num_traits::Float::abs(*x)).sum();
        (l2 / n, l1 / n)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for DataQuadraticTask {
    type Params = DynParams<E, B>;
    /// The number added to the loss.
    type Batch = E;

    fn name(&self) -> String {
        format!("data_quadratic{}", self.0.center.len())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.0.layout, 1.0, key)
    }
    fn batch(&self, _: &B, at: BatchKey) -> E {
        let mut z = [E::of(0.0)];
        at.noise().fill_normal(&mut z);
        z[0]
    }
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, data: &E, m: M) -> Tensor<Rank0, E, B, M> {
        self.0.traced(params, m) + *data
    }
    fn closed_form(&self, params: &[E], data: &E, grad: Option<&mut [E]>) -> Option<E> {
        Some(self.0.closed(params, grad) + *data)
    }
    fn hvp(&self, _: &[E], _: &E, v: &[E], out: &mut [E]) -> bool {
        twice(v, out)
    }
    fn normalizer(&self, loss: f64) -> f64 {
        loss.clamp(0.0, 1000.0)
    }
}

/// [`DataQuadraticTask`]s with centers `c ~ N(0, I)`.
#[derive(Clone, Copy, Debug)]
pub struct FixedDimQuadraticFamilyData {
    /// Number of parameters (the reference uses 10).
    pub dim: usize,
}

impl TaskFamily for FixedDimQuadraticFamilyData {
    type Config = Vec<f64>;
    type Task = DataQuadraticTask;

    fn name(&self) -> String {
        format!("fixed_dim_quadratic_data{}", self.dim)
    }
    fn sample(&self, key: Key) -> Vec<f64> {
        normals(self.dim, key)
    }
    fn task(&self, center: &Vec<f64>) -> DataQuadraticTask {
        DataQuadraticTask::new(center.clone())
    }
}
