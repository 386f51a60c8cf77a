//! Wall-clock time per step.

use super::contest::Contest;
use crate::episode::{fresh, EpisodeKeys};
use crate::workers::Worker;
use outerloop_core::BatchKey;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Steps before the clock starts, and steps per sample.
const STEPS: u64 = 10;
/// The fastest sample counts: anything slower is the machine's other work.
const SAMPLES: usize = 5;

/// Seconds per step on one thread.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Batch, loss and gradient.
    pub gradient: f64,
    /// The optimizer's update.
    pub update: f64,
}

/// Times every contestant on every task, `[task][contestant]`, one after the other on this thread: the
/// fastest of a few samples of some steps each. Uses the first variant of a sweep.
pub fn time_steps(contest: &Contest) -> Vec<Vec<StepTime>> {
    let mut worker = Worker::default();
    let keys = EpisodeKeys::new(contest.key.named("timing"), 0);
    let of = |task: &super::ContestTask| {
        let task = task.family.sample_task(keys.task);
        let mut time = |contestant: &super::Contestant| {
            let optimizer = &*contestant.variants[0].optimizer;
            let mut t = fresh(&*task, optimizer, keys, Some(contest.config.num_steps));
            let (evaluator, grad) = worker.evaluator(&task);
            let mut best = StepTime { gradient: f64::INFINITY, update: f64::INFINITY };
            for sample in 0..=SAMPLES {
                let (mut gradient, mut update) = (0.0, 0.0);
                for _ in 0..STEPS {
                    let at = BatchKey::train(t.opt.step, keys.data);
                    let start = Instant::now();
                    let loss = evaluator.loss_and_grad(&t.opt.params, &mut t.model_state, at, grad);
                    let middle = Instant::now();
                    optimizer.update(&mut t.opt, grad, loss, keys.opt);
                    gradient += (middle - start).as_secs_f64();
                    update += middle.elapsed().as_secs_f64();
                }
                if sample > 0 {
                    best.gradient = best.gradient.min(gradient / STEPS as f64);
                    best.update = best.update.min(update / STEPS as f64);
                }
            }
            best
        };
        contest.contestants.iter().map(&mut time).collect()
    };
    contest.tasks.iter().map(of).collect()
}
