//! Training curves of any optimizer on any task.
//!
//! Losses are measured at the parameters that the optimizer means
//! ([`Optimizer::evaluation_params`]): for most those where it takes gradients, for some an average.

use crate::episode::{fresh, train_step, EpisodeKeys, Trajectory};
use crate::workers::{Worker, Workers};
use outerloop_core::{BatchKey, FlatFamily, FlatTask, Key, Metric, OptState, Optimizer, Params, Split};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How long to train and when to look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalConfig {
    /// Updates per run. Default 1000.
    pub num_steps: u64,
    /// What the optimizer is told about it. Default: the truth.
    pub told: ToldSteps,
    /// Evaluate on `splits` every this many steps (0 counts as 1), and after the last. Default 100.
    pub eval_every: u64,
    /// Batches averaged per evaluation (0 counts as 1). Default 5.
    pub eval_batches: u64,
    /// Splits to evaluate on; the training loss is recorded at every step anyway. Default: none.
    pub splits: Vec<Split>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        EvalConfig {
            num_steps: 1000,
            told: ToldSteps::Exact,
            eval_every: 100,
            eval_batches: 5,
            splits: Vec::new(),
        }
    }
}

/// What an optimizer is told about the number of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToldSteps {
    /// The truth.
    #[default]
    Exact,
    /// Nothing.
    Unknown,
    /// This number, true or not.
    Steps(u64),
}

impl std::str::FromStr for ToldSteps {
    type Err = String;
    /// `exact`, `unknown`, or a number of steps.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "exact" => Ok(ToldSteps::Exact),
            "unknown" => Ok(ToldSteps::Unknown),
            _ => match text.parse() {
                Ok(n) if n > 0 => Ok(ToldSteps::Steps(n)),
                _ => Err(format!("expected exact, unknown or a number of steps from 1 on, got `{text}`")),
            },
        }
    }
}

impl ToldSteps {
    fn of(self, num_steps: u64) -> Option<u64> {
        match self {
            ToldSteps::Exact => Some(num_steps),
            ToldSteps::Unknown => None,
            ToldSteps::Steps(told) => Some(told),
        }
    }
}

/// A trained task.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// The parameters that the optimizer means at the end.
    pub params: Params,
    /// The task's model state.
    pub model_state: Vec<f32>,
    /// The optimizer's state, to go on from.
    pub state: OptState,
    /// Losses and metrics on the way.
    pub curve: Curve,
    /// What the optimizer wants to be known about the run ([`Optimizer::remarks`]).
    pub remarks: Vec<String>,
}

/// One training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Batch loss before update `t`, for `t = 0, ..., num_steps - 1`, and once more after the last update:
    /// `num_steps + 1` numbers, raw (not normalized).
    pub train: Vec<f32>,
    /// Evaluations, in time order.
    pub evals: Vec<EvalPoint>,
}

/// One evaluation on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvalPoint {
    /// Updates done.
    pub step: u64,
    /// The data.
    pub split: Split,
    /// Mean loss.
    pub loss: f32,
    /// Means of the numbers that the task has beside its loss ([`outerloop_core::Task::metrics`]).
    pub metrics: Vec<Metric>,
}

impl EvalPoint {
    /// The metric of this name, if the task has it.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|m| m.name == name).map(|m| m.value)
    }
}

impl Curve {
    /// Mean training loss of the last `n` steps (0 counts as 1); NaN if any of them is.
    pub fn final_train(&self, n: usize) -> f32 {
        let tail = &self.train[self.train.len().saturating_sub(n.max(1))..];
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
    train(&family.sample_task(keys.task), opt, config, keys, worker).0
}

/// Trains a task: the whole job of an optimizer's user. `key` fixes initial parameters and batches.
///
/// ```
/// use outerloop_core::{Key, Split, Typed};
/// use outerloop_lopt::hand::Adam;
/// use outerloop_outer::eval::{fit, EvalConfig};
/// use outerloop_tasks::image::ImageMlp;
/// use std::sync::Arc;
///
/// let config = EvalConfig { num_steps: 30, splits: vec![Split::Test], ..EvalConfig::default() };
/// let fit = fit(&(Arc::new(Typed::new(ImageMlp::digits())) as _), &Adam::new(0.03), &config, Key::new(0));
/// let end = fit.curve.evals.last().expect("evaluated after the last step");
/// assert!(end.loss < 0.6 && end.metric("error rate").is_some_and(|e| e < 0.2));
/// assert_eq!(fit.params.data.len(), 64 * 32 + 32 + 32 * 10 + 10);
/// ```
pub fn fit(task: &Arc<dyn FlatTask>, opt: &dyn Optimizer, config: &EvalConfig, key: Key) -> Fit {
    let (curve, end) = train(task, opt, config, EpisodeKeys::new(key, 0), &mut Worker::default());
    let data = opt.evaluation_params(&end.opt).into_owned();
    let params = Params { layout: task.layout(), data };
    Fit { params, curve, remarks: opt.remarks(&end.opt), model_state: end.model_state, state: end.opt }
}

fn train(
    task: &Arc<dyn FlatTask>,
    opt: &dyn Optimizer,
    config: &EvalConfig,
    keys: EpisodeKeys,
    worker: &mut Worker,
) -> (Curve, Trajectory) {
    let mut t = fresh(&**task, opt, keys, config.told.of(config.num_steps));
    let (evaluator, grad) = worker.evaluator(task);
    let mut curve = Curve { train: Vec::new(), evals: Vec::new() };
    let batches = config.eval_batches.max(1);
    for step in 0..=config.num_steps {
        if step % config.eval_every.max(1) == 0 || step == config.num_steps {
            for &split in &config.splits {
                let at = |i| BatchKey { split, step: i, key: keys.data.named("eval") };
                let params = opt.evaluation_params(&t.opt);
                let sum: f32 = (0..batches).map(|i| evaluator.loss(&params, &t.model_state, at(i))).sum();
                let metrics =
                    mean_metrics((0..batches).map(|i| task.metrics(&params, &t.model_state, at(i))));
                curve.evals.push(EvalPoint { step, split, loss: sum / batches as f32, metrics });
            }
        }
        let at = BatchKey::train(step, keys.data);
        let (params, is_last) = (opt.evaluation_params(&t.opt), step == config.num_steps);
        // Where gradients are taken, the training step finds the loss anyway.
        let is_apart = !std::ptr::eq(&*params, &t.opt.params[..]) && *params != t.opt.params;
        let measured = (is_last || is_apart).then(|| evaluator.loss(&params, &t.model_state, at));
        drop(params);
        let trained = (!is_last).then(|| train_step(evaluator, opt, &mut t, at, keys.opt, grad));
        curve.train.extend(measured.or(trained));
    }
    (curve, t)
}

/// The means over batches, which name the same metrics.
fn mean_metrics(batches: impl Iterator<Item = Vec<Metric>>) -> Vec<Metric> {
    let (mut means, mut count) = (Vec::<Metric>::new(), 0.0);
    for batch in batches {
        count += 1.0;
        if means.is_empty() {
            means = batch;
        } else {
            means.iter_mut().zip(batch).for_each(|(sum, m)| sum.value += m.value);
        }
    }
    means.iter_mut().for_each(|m| m.value /= count);
    means
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

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::SingleTask;
    use outerloop_lopt::hand::{Adam, Clip, ClipRule, ScheduleFreeAdamW};
    use outerloop_lopt::wrap::ParamsEma;
    use outerloop_tasks::quadratics::QuadraticTask;

    /// The losses of a run, on training and held-out data, at the parameters that `at` picks.
    fn by_hand(opt: &dyn Optimizer, at: impl Fn(&outerloop_core::OptState) -> Vec<f32>) -> Vec<f32> {
        let keys = EpisodeKeys::new(Key::new(0), 0);
        let task = family().sample_task(keys.task);
        let mut t = fresh(&*task, opt, keys, Some(STEPS));
        let mut evaluator = task.evaluator();
        let mut grad = vec![0.0; t.opt.params.len()];
        (0..=STEPS)
            .map(|step| {
                let key = BatchKey::train(step, keys.data);
                let loss = evaluator.loss(&at(&t.opt), &t.model_state, key);
                train_step(&mut *evaluator, opt, &mut t, key, keys.opt, &mut grad);
                loss
            })
            .collect()
    }

    const STEPS: u64 = 30;

    fn family() -> SingleTask {
        SingleTask::new(QuadraticTask::new(5))
    }

    #[test]
    fn averaging_optimizers_are_measured_at_their_average() {
        let free = ScheduleFreeAdamW { learning_rate: 0.3, ..ScheduleFreeAdamW::default() };
        let x = |s: &outerloop_core::OptState| free.average(s).unwrap();
        let ema = |s: &outerloop_core::OptState| s.slot("params_ema").unwrap().to_vec();
        let clipped = Clip::new(ClipRule::Value(10.0), Box::new(free.clone()));
        let averaged = ParamsEma::new(0.9, Box::new(Adam::new(0.3))).unwrap();
        let config = EvalConfig {
            num_steps: STEPS,
            eval_every: 1,
            eval_batches: 1,
            splits: vec![Split::Test],
            ..EvalConfig::default()
        };
        let check = |opt: &dyn Optimizer, want: Vec<f32>| {
            let curve = training_curve(&family(), opt, &config, Key::new(0), &mut Worker::default());
            assert_eq!(curve.train, want, "{}", opt.name());
            // A quadratic has the same loss on all data.
            let evals: Vec<f32> = curve.evals.iter().map(|e| e.loss).collect();
            assert_eq!(evals, want, "{}", opt.name());
        };
        check(&free, by_hand(&free, x));
        check(&clipped, by_hand(&clipped, x));
        check(&averaged, by_hand(&averaged, ema));
        let plain = Adam::new(0.3);
        check(&plain, by_hand(&plain, |s| s.params.clone()));
        assert_ne!(by_hand(&free, x), by_hand(&free, |s| s.params.clone()));
    }
}
