//! Quadratics whose minimum or gradient is noisy.

use super::{constant, normal_params, normals, vector_layout};
use dfdx::prelude::{SumTo, TryMatMul};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Error, Float, Key, Layout, Result, Task, TaskFamily};
use rand::Rng;
use std::sync::Arc;

/// `(x − n)ᵀ H (x − n)` with `n ~ N(0, std² I)` per batch; `x` `[dim, 1]`, `x₀ ~ N(0, 100 I)`.
#[derive(Clone, Debug)]
pub struct NoisyMeanQuadraticTask {
    dim: usize,
    /// Row major `[dim, dim]`.
    hessian: Vec<f64>,
    noise_std: f64,
    layout: Arc<Layout>,
}

impl NoisyMeanQuadraticTask {
    /// `H = A Aᵀ` with a fixed standard normal `A` `[dim, dim]` (reference: dim 2, noise 1; its `A`
    /// comes from another generator).
    pub fn new(dim: usize, noise_std: f64) -> Self {
        let a = normals(dim * dim, Key::new(7).named("noisy mean quadratic"));
        let row = |i: usize| &a[i * dim..(i + 1) * dim];
        let dot = |i, j| row(i).iter().zip(row(j)).map(|(x, y)| x * y).sum();
        let hessian = (0..dim * dim).map(|k| dot(k / dim, k % dim)).collect();
        Self::build(dim, hessian, noise_std)
    }

    /// With a given `H`, row major `[dim, dim]`, not necessarily symmetric.
    pub fn with_hessian(dim: usize, hessian: Vec<f64>, noise_std: f64) -> Result<Self> {
        if hessian.len() != dim * dim {
            return Err(Error::mismatch("hessian: number of elements", dim * dim, hessian.len()));
        }
        Ok(Self::build(dim, hessian, noise_std))
    }

    fn build(dim: usize, hessian: Vec<f64>, noise_std: f64) -> Self {
        let layout = Arc::new(Layout::new([("x", vec![dim, 1])]));
        NoisyMeanQuadraticTask { dim, hessian, noise_std, layout }
    }

    /// `H`, row major `[dim, dim]`.
    pub fn hessian(&self) -> &[f64] {
        &self.hessian
    }

    /// `out = (H + Hᵀ) d`; returns `dᵀ H d`.
    fn apply<E: Float>(&self, d: impl Fn(usize) -> E, mut out: Option<&mut [E]>) -> E {
        let mut form = E::of(0.0);
        for i in 0..self.dim {
            let mut sum = E::of(0.0);
            for j in 0..self.dim {
                let (h, ht) = (self.hessian[i * self.dim + j], self.hessian[j * self.dim + i]);
                sum += E::of(h + ht) * d(j);
            }
            form += d(i) * sum;
            if let Some(out) = &mut out {
                out[i] = sum;
            }
        }
        form * E::of(0.5)
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for NoisyMeanQuadraticTask {
    type Params = DynParams<E, B>;
    /// `n`, `[dim]`.
    type Batch = Vec<E>;

    fn name(&self) -> String {
        format!("noisy_mean_quadratic{}", self.dim)
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 10.0, key)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Vec<E> {
        let mut noise = vec![E::of(0.0); self.dim];
        Task::<E, B>::refill(self, dev, at, &mut noise);
        noise
    }
    fn refill(&self, _: &B, at: BatchKey, noise: &mut Vec<E>) {
        fill_noise(self.noise_std, at, noise);
    }
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, noise: &Vec<E>, m: M) -> Tensor<Rank0, E, B, M> {
        let x = params.traced(0, (1, self.dim), m);
        let noise = x.device().tensor_from_vec(noise.clone(), (1, self.dim));
        let h: Vec<E> = self.hessian.iter().map(|&h| E::of(h)).collect();
        let h = x.device().tensor_from_vec(h, (self.dim, self.dim));
        let d = x - noise;
        (d.clone().matmul(h) * d).sum()
    }
    fn closed_form(&self, params: &[E], noise: &Vec<E>, grad: Option<&mut [E]>) -> Option<E> {
        Some(self.apply(|i| params[i] - noise[i], grad))
    }
    fn hvp(&self, _: &[E], _: &Vec<E>, v: &[E], out: &mut [E]) -> bool {
        self.apply(|i| v[i], Some(out));
        true
    }
}

/// `noise ~ N(0, std² I)`, the batch that `at` names; draws nothing if `std` is 0.
fn fill_noise<E: Float>(std: f64, at: BatchKey, noise: &mut [E]) {
    if std == 0.0 {
        return noise.fill(E::of(0.0));
    }
    at.noise().fill_normal(noise);
    noise.iter_mut().for_each(|n| *n *= E::of(std));
}

/// `Σ (s (c − x))²` with noise `cov ξ`, `ξ ~ N(0, I)` per batch, in the gradient but not in the
/// loss: a stand-in for minibatch noise of known size. `x` `[dim]`, `x₀ ~ N(0, I)`.
///
/// The loss carries the term `Σ (n − stop_gradient(n))`, `n = cov ξ x`, which is 0 and has the
/// gradient `cov ξ`. So for `cov` other than 0 the gradient is, by design, not the loss's slope.
#[derive(Clone, Debug)]
pub struct NoisyQuadraticTask {
    center: Vec<f64>,
    scale: Vec<f64>,
    cov: f64,
    layout: Arc<Layout>,
}

impl NoisyQuadraticTask {
    /// From `center` and `scale`, both `[dim]`, and the size of the gradient noise.
    pub fn new(center: Vec<f64>, scale: Vec<f64>, cov: f64) -> Result<Self> {
        if center.len() != scale.len() {
            return Err(Error::mismatch("noisy quadratic: length of scale", center.len(), scale.len()));
        }
        Ok(NoisyQuadraticTask { layout: vector_layout(center.len()), center, scale, cov })
    }
}

impl<E: Float, B: Backend<E>> Task<E, B> for NoisyQuadraticTask {
    type Params = DynParams<E, B>;
    /// `cov ξ`, `[dim]`.
    type Batch = Vec<E>;

    fn name(&self) -> String {
        format!("noisy_quadratic{}", self.center.len())
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        normal_params(dev, &self.layout, 1.0, key)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Vec<E> {
        let mut noise = vec![E::of(0.0); self.center.len()];
        Task::<E, B>::refill(self, dev, at, &mut noise);
        noise
    }
    fn refill(&self, _: &B, at: BatchKey, noise: &mut Vec<E>) {
        fill_noise(self.cov, at, noise);
    }
    fn loss<M: Mode<E, B>>(&self, params: &Self::Params, noise: &Vec<E>, m: M) -> Tensor<Rank0, E, B, M> {
        let shape = (self.center.len(),);
        let x = params.traced(0, shape, m);
        let noise = x.device().tensor_from_vec(noise.clone(), shape);
        let (center, scale) = (constant(x.device(), &self.center), constant(x.device(), &self.scale));
        let n = (params.traced(0, shape, m) * noise).sum();
        let value = n.as_vec()[0];
        let zero = n - value;
        ((x - center) * scale).square().sum() + zero
    }
    fn closed_form(&self, params: &[E], noise: &Vec<E>, mut grad: Option<&mut [E]>) -> Option<E> {
        let mut loss = E::of(0.0);
        for (i, x) in params.iter().enumerate() {
            let s = E::of(self.scale[i]);
            let d = s * (*x - E::of(self.center[i]));
            loss += d * d;
            if let Some(grad) = &mut grad {
                grad[i] = E::of(2.0) * s * d + noise[i];
            }
        }
        Some(loss)
    }
    fn hvp(&self, _: &[E], _: &Vec<E>, v: &[E], out: &mut [E]) -> bool {
        for ((h, v), s) in out.iter_mut().zip(v).zip(&self.scale) {
            *h = E::of(2.0 * s * s) * *v;
        }
        true
    }
}

/// [`NoisyQuadraticTask`]s with `c ~ N(0, I)` and `s ~ U(0, 25)`.
#[derive(Clone, Copy, Debug)]
pub struct NoisyQuadraticFamily {
    /// Number of parameters.
    pub dim: usize,
    /// Standard deviation of the gradient noise, per element.
    pub cov: f64,
}

impl TaskFamily for NoisyQuadraticFamily {
    /// `(center, scale)`
    type Config = (Vec<f64>, Vec<f64>);
    type Task = NoisyQuadraticTask;

    fn name(&self) -> String {
        format!("noisy_quadratic{}_cov{}", self.dim, self.cov)
    }
    fn sample(&self, key: Key) -> Self::Config {
        let mut rng = key.named("scale").rng();
        let scale = (0..self.dim).map(|_| rng.gen_range(0.0..25.0)).collect();
        (normals(self.dim, key.named("center")), scale)
    }
    fn task(&self, (center, scale): &Self::Config) -> NoisyQuadraticTask {
        NoisyQuadraticTask::new(center.clone(), scale.clone(), self.cov).expect("sample gives equal lengths")
    }
}
