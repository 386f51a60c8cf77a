//! Training curves of any optimizer on any task.

use crate::episode::{fresh, train_step, EpisodeKeys};
use crate::workers::{Worker, Workers};
use outerloop_core::{BatchKey, FlatFamily, Key, Optimizer, Split};
use serde::{Deserialize, Serialize};

/// What to train and when to look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// Updates per run; also told to the optimizer. Default 1000.
    pub num_steps: u64,
    /// Evaluate on `splits` every this many steps, and after the last. Default 100.
    pub eval_every: u64,
    /// Batches averaged per evaluation. Default 5.
    pub eval_batches: u64,
    /// Splits to evaluate on; the training loss is recorded at every step anyway. Default: none.
    pub splits: Vec<Split>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig { num_steps: 1000, eval_every: 100, eval_batches: 5, splits: Vec::new() }
    }
}

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Batch loss at the parameters before update `t`, for `t = 0, ..., num_steps - 1`, and once more after
    /// the last update: `num_steps + 1` numbers, raw (not normalized).
    pub train: Vec<f32>,
    /// Evaluations, in time order.
    pub evals: Vec<EvalPoint>,
}

/// One evaluation on one split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// Updates done.
    pub step: u64,
    /// The data.
    pub split: Split,
    /// Mean loss.
    pub loss: f32,
}

impl Curve {
    /// Mean training loss of the last `n` steps; NaN if any of them is.
    pub fn final_train(&self, n: usize) -> f32 {
        let tail = &self.train[self.train.len().saturating_sub(n)..];
        tail.iter().sum::<f32>() / tail.len() as f32
    }
}

/// Trains once from `key`: it fixes task, initial parameters and batches, so the same key compares
/// optimizers on the same problem.
pub fn training_curve(
    family: &dyn FlatFamily,
    opt: &dyn Optimizer,
    config: &EvalConfig,
    key: Key,
    worker: &mut Worker,
) -> Curve {
    let keys = EpisodeKeys::new(key, 0);
    let task = family.sample_task(keys.task);
    let mut t = fresh(&*task, opt, keys, Some(config.num_steps));
    let (evaluator, grad) = worker.evaluator(&task);
    let mut curve = Curve { train: Vec::with_capacity(config.num_steps as usize + 1), evals: Vec::new() };
    for step in 0..=config.num_steps {
        if step % config.eval_every.max(1) == 0 || step == config.num_steps {
            for &split in &config.splits {
                let at = |i| BatchKey { split, step: i, key: keys.data.named("eval") };
                let sum: f32 = (0..config.eval_batches)
                    .map(|i| evaluator.loss(&t.opt.params, &t.model_state, at(i)))
                    .sum();
                curve.evals.push(EvalPoint { step, split, loss: sum / config.eval_batches as f32 });
            }
        }
        let at = BatchKey::train(step, keys.data);
        curve.train.push(if step < config.num_steps {
            train_step(evaluator, opt, &mut t, at, keys.opt, grad)
        } else {
            evaluator.loss(&t.opt.params, &t.model_state, at)
        });
    }
    curve
}

/// [`training_curve`] for `key.fold_in(0)`, ..., `key.fold_in(seeds - 1)`, in parallel.
pub fn training_curves(
    family: &dyn FlatFamily,
    opt: &dyn Optimizer,
    config: &EvalConfig,
    key: Key,
    seeds: u64,
    workers: &Workers,
) -> Vec<Curve> {
    let mut keys: Vec<Key> = (0..seeds).map(|i| key.fold_in(i)).collect();
    workers.map(&mut keys, |worker, _, key| training_curve(family, opt, config, *key, worker))
}
