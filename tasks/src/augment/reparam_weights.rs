//! Stored parameters that are the task's divided by random scales.

use super::{Augmentation, Wrapped, Wrapper};
use outerloop_core::{BatchKey, Error, FlatTask, Float, Key, Layout, Result};
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
            let why = format!("must be positive and finite, got {range:?}");
            return Err(Error::invalid("reparam weights: range", why));
        }
        Ok(ReparamWeights { level, range })
    }

    /// The task with the given scales, one per parameter.
    pub fn with_scales<E: Float>(task: Arc<dyn FlatTask<E>>, scales: Vec<E>) -> Result<Arc<dyn FlatTask<E>>> {
        task.layout().check_len("reparam weights: scales", scales.len())?;
        if let Some(s) = scales.iter().map(|s| s.f64()).find(|s| !(*s > 0.0 && s.is_finite())) {
            let why = format!("must be positive and finite, got {s}");
            return Err(Error::invalid("reparam weights: scales", why));
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

#[derive(Clone)]
struct Scales<E>(Arc<[E]>);

impl<E: Float> Scales<E> {
    /// `s ⊙ x`
    fn scaled<'a>(&self, x: &[E], room: &'a mut Vec<E>) -> &'a [E] {
        room.clear();
        room.extend(x.iter().zip(&*self.0).map(|(x, s)| *x * *s));
        room
    }
    /// `x ← s ⊙ x`
    fn scale(&self, x: &mut [E]) {
        x.iter_mut().zip(&*self.0).for_each(|(x, s)| *x *= *s);
    }
}

impl<E: Float> Wrapper<E> for Scales<E> {
    fn init(&self, params: &mut [E]) {
        params.iter_mut().zip(&*self.0).for_each(|(p, s)| *p /= *s);
    }
    fn seen<'a>(&self, params: &'a [E], _: &'a [E], room: &'a mut Vec<E>) -> &'a [E] {
        self.scaled(params, room)
    }
    fn gradient(&self, grad: &mut [E], _: BatchKey) {
        self.scale(grad);
    }
    fn pull_back<'a>(&self, _: &[E], _: BatchKey, v: &'a [E], room: &'a mut Vec<E>) -> &'a [E] {
        self.scaled(v, room)
    }
    fn product(&self, hvp: &mut [E]) {
        self.scale(hvp);
    }
}
