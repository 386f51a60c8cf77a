//! Stored parameters that are the task's divided by random scales.

use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{BatchKey, Error, Evaluator, FlatTask, Float, Key, Layout, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What shares one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ReparamLevel {
    /// All parameters.
    Global,
    /// Each tensor has its own.
    Tensor,
    /// Each parameter has its own.
    Parameter,
}

/// Parameters `p` with the task's `w = s ⊙ p`: initial `p = w₀ / s`, loss `L(s ⊙ p)`, gradient
/// `s ⊙ ∇L`, Hessian `s ⊙ H (s ⊙ v)`. Losses along the task's own path are unchanged, but what step
/// size is right is not.
#[derive(Clone, Debug)]
pub struct ReparamWeights {
    level: ReparamLevel,
    range: RangeInclusive<f64>,
}

impl ReparamWeights {
    /// Scales log-uniform in `range` (reference: 0.01 to 100), which must be positive and finite.
    pub fn new(level: ReparamLevel, range: RangeInclusive<f64>) -> Result<Self> {
        if !(0.0 < *range.start() && range.start() <= range.end() && range.end().is_finite()) {
            return Err(Error::invalid("reparam weights: range", "must be positive and finite"));
        }
        Ok(ReparamWeights { level, range })
    }

    /// The task with the given scales, one per parameter.
    pub fn with_scales<E: Float>(task: Arc<dyn FlatTask<E>>, scales: Vec<E>) -> Result<Arc<dyn FlatTask<E>>> {
        task.layout().check_len("reparam weights: scales", scales.len())?;
        if !scales.iter().all(|s| s.f64() > 0.0 && s.f64().is_finite()) {
            return Err(Error::invalid("reparam weights: scales", "must be positive and finite"));
        }
        Ok(Self::wrap(task, scales))
    }

    fn wrap<E: Float>(task: Arc<dyn FlatTask<E>>, scales: Vec<E>) -> Arc<dyn FlatTask<E>> {
        Arc::new(Wrapped { task, augmentation: "reparam".into(), wrapper: Scales(scales.into()) })
    }

    /// One scale per parameter.
    fn sample<E: Float>(&self, layout: &Layout, key: Key) -> Vec<E> {
        let mut rng = key.rng();
        let (low, high) = (self.range.start().ln(), self.range.end().ln());
        let mut draw = || E::of(rng.gen_range(low..=high).exp());
        match self.level {
            ReparamLevel::Global => vec![draw(); layout.len()],
            ReparamLevel::Tensor => {
                layout.entries().iter().flat_map(|e| std::iter::repeat_n(draw(), e.numel())).collect()
            }
            ReparamLevel::Parameter => (0..layout.len()).map(|_| draw()).collect(),
        }
    }
}

impl<E: Float> Augmentation<E> for ReparamWeights {
    fn name(&self) -> String {
        "reparam".into()
    }
    fn apply(&self, task: Arc<dyn FlatTask<E>>, key: Key) -> Arc<dyn FlatTask<E>> {
        let scales = self.sample(&task.layout(), key);
        Self::wrap(task, scales)
    }
}

struct Scales<E>(Arc<[E]>);

impl<E: Float> Wrapper<E> for Scales<E> {
    fn init(&self, params: &mut [E]) {
        params.iter_mut().zip(&*self.0).for_each(|(p, s)| *p /= *s);
    }
    fn evaluator(&self, inner: Box<dyn Evaluator<E>>) -> Box<dyn Evaluator<E>> {
        Box::new(Scaled { inner, scales: self.0.clone(), params: Vec::new(), v: Vec::new() })
    }
}

struct Scaled<E> {
    inner: Box<dyn Evaluator<E>>,
    scales: Arc<[E]>,
    params: Vec<E>,
    v: Vec<E>,
}

/// `out = s ⊙ x`
fn scaled<E: Float>(scales: &[E], x: &[E], out: &mut Vec<E>) {
    out.clear();
    out.extend(x.iter().zip(scales).map(|(x, s)| *x * *s));
}

impl<E: Float> Scaled<E> {
    /// `x ← s ⊙ x`
    fn scale(&self, x: &mut [E]) {
        x.iter_mut().zip(&*self.scales).for_each(|(x, s)| *x *= *s);
    }
}

impl<E: Float> Evaluator<E> for Scaled<E> {
    fn loss(&mut self, params: &[E], state: &[E], at: BatchKey) -> E {
        scaled(&self.scales, params, &mut self.params);
        self.inner.loss(&self.params, state, at)
    }
    fn loss_and_grad(&mut self, params: &[E], state: &mut [E], at: BatchKey, grad: &mut [E]) -> E {
        scaled(&self.scales, params, &mut self.params);
        let loss = self.inner.loss_and_grad(&self.params, state, at, grad);
        self.scale(grad);
        loss
    }
    fn loss_grad_hvp(
        &mut self,
        params: &[E],
        state: &[E],
        at: BatchKey,
        v: &[E],
        grad: &mut [E],
        hvp: &mut [E],
    ) -> E {
        scaled(&self.scales, params, &mut self.params);
        scaled(&self.scales, v, &mut self.v);
        let loss = self.inner.loss_grad_hvp(&self.params, state, at, &self.v, grad, hvp);
        self.scale(grad);
        self.scale(hvp);
        loss
    }
}
