//! The inputs that an optimizer saw in meta-training.

use crate::episode::{fresh, train_step, EpisodeKeys};
use crate::workers::Workers;
use outerloop_core::{BatchKey, FlatFamily, Float, Key, Layout, Optimizer};
use serde::{Deserialize, Serialize};

/// A closed range of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// The lowest seen.
    pub low: f64,
    /// The highest seen.
    pub high: f64,
}

impl Range {
    /// Contains nothing.
    pub const EMPTY: Range = Range { low: f64::INFINITY, high: f64::NEG_INFINITY };

    /// Whether `x` lies inside; NaN never does.
    pub fn contains(&self, x: f64) -> bool {
        self.low <= x && x <= self.high
    }
    fn include(&mut self, x: f64) {
        if x.is_finite() {
            *self = Range { low: self.low.min(x), high: self.high.max(x) };
        }
    }
    fn union(self, other: Self) -> Self {
        Range { low: self.low.min(other.low), high: self.high.max(other.high) }
    }
}

/// What all features of learned optimizers are made of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputRanges {
    /// Root mean square of a tensor's gradient.
    pub gradient: Range,
    /// Root mean square of a tensor's parameters.
    pub parameter: Range,
    /// The loss.
    pub loss: Range,
}

impl InputRanges {
    /// Nothing was seen.
    pub const EMPTY: InputRanges =
        InputRanges { gradient: Range::EMPTY, parameter: Range::EMPTY, loss: Range::EMPTY };

    fn include<E: Float>(&mut self, layout: &Layout, params: &[E], grad: &[E], loss: E) {
        for entry in layout.entries() {
            self.gradient.include(rms(&grad[entry.range()]));
            self.parameter.include(rms(&params[entry.range()]));
        }
        self.loss.include(loss.f64());
    }

    fn union(self, other: Self) -> Self {
        InputRanges {
            gradient: self.gradient.union(other.gradient),
            parameter: self.parameter.union(other.parameter),
            loss: self.loss.union(other.loss),
        }
    }
}

/// `√(mean x²)`
pub(super) fn rms<E: Float>(x: &[E]) -> f64 {
    let sum: f64 = x.iter().map(|x| x.f64() * x.f64()).sum();
    (sum / x.len().max(1) as f64).sqrt()
}

/// The ranges over `runs` training runs of an optimizer on tasks of a family: run it on the family of
/// meta-training, with the learned theta. Run `i` has the key `key.fold_in(i)`.
pub fn input_ranges(
    family: &dyn FlatFamily,
    opt: &dyn Optimizer,
    num_steps: u64,
    runs: u64,
    key: Key,
    workers: &Workers,
) -> InputRanges {
    let mut keys: Vec<Key> = (0..runs).map(|i| key.fold_in(i)).collect();
    let of_run = |worker: &mut crate::workers::Worker, _: usize, key: &mut Key| {
        let keys = EpisodeKeys::new(*key, 0);
        let task = family.sample_task(keys.task);
        let mut t = fresh(&*task, opt, keys, Some(num_steps));
        let (evaluator, grad) = worker.evaluator(&task);
        let mut seen = InputRanges::EMPTY;
        let mut before = t.opt.params.clone();
        for step in 0..num_steps {
            before.copy_from_slice(&t.opt.params);
            let loss = train_step(evaluator, opt, &mut t, BatchKey::train(step, keys.data), keys.opt, grad);
            seen.include(&t.opt.layout, &before, grad, loss);
        }
        seen
    };
    workers.map(&mut keys, of_run).into_iter().fold(InputRanges::EMPTY, InputRanges::union)
}
