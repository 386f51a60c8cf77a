//! Meta-training by one estimator, with looks at what it has come to.

use crate::options::{family, lopt, Cost, Entry, Options};
use outerloop::prelude::*;
use std::time::Instant;

/// Evaluations per run.
const LOOKS: u64 = 10;
/// Fresh starts per evaluation.
const STARTS: u64 = 4;

/// What theta is worth on starts that meta-training never sees, the same at every look and for every estimator.
pub struct Look {
    /// Gradient equivalents so far.
    pub gradients: f64,
    /// Inner steps so far: of a pair both, of an unrolled window each once.
    pub inner_steps: f64,
    /// Seconds of meta-training so far.
    pub seconds: f64,
    pub objective: f64,
    /// Training loss, mean of the last 20 steps.
    pub train: f64,
    /// Loss on the validation split after the last step.
    pub valid: f64,
}

pub struct Run {
    pub looks: Vec<Look>,
    pub outer_steps: u64,
    pub seconds: f64,
}

/// All runs of an estimator.
pub struct Runs {
    pub name: &'static str,
    pub cost: Cost,
    pub seeds: Vec<Run>,
}

/// A scale of effort.
pub type Axis = fn(&Look) -> f64;

impl Run {
    /// The objective at an effort, between looks on straight lines; `None` beyond the last.
    pub fn objective_at(&self, axis: Axis, at: f64) -> Option<f64> {
        let next = self.looks.iter().position(|l| axis(l) >= at)?;
        let after = &self.looks[next];
        let Some(before) = next.checked_sub(1).map(|i| &self.looks[i]) else { return Some(after.objective) };
        let part = (at - axis(before)) / (axis(after) - axis(before));
        Some(before.objective + part * (after.objective - before.objective))
    }
}

impl Runs {
    /// `mean ± standard error` over the seeds, of those that have a value.
    pub fn mean(&self, value: impl Fn(&Run) -> Option<f64>) -> String {
        let all: Vec<f64> = self.seeds.iter().filter_map(value).collect();
        let (n, mean) = (all.len() as f64, all.iter().sum::<f64>() / all.len() as f64);
        let square = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        format!("{mean:.4} ± {:.4}", (square / (n - 1.0).max(1.0) / n).sqrt())
    }

    /// The same of the last look.
    pub fn last(&self, value: impl Fn(&Look) -> f64) -> String {
        self.mean(|run| run.looks.last().map(&value))
    }

    /// The effort to which every seed has come.
    pub fn reached(&self, axis: Axis) -> f64 {
        let ends = self.seeds.iter().filter_map(|run| run.looks.last()).map(axis);
        ends.fold(f64::INFINITY, f64::min)
    }

    /// Mean and range of the objective over an effort: one point per look.
    pub fn curve(&self, axis: Axis) -> Series {
        let mut line = Series::line(self.name, Vec::new()).with_band(Vec::new());
        let n = self.seeds.len() as f64;
        for look in 0..=LOOKS as usize {
            let all = || self.seeds.iter().map(|run| &run.looks[look]);
            let at = all().map(axis).sum::<f64>() / n;
            let objectives = || all().map(|l| l.objective);
            line.points.push((at, objectives().sum::<f64>() / n));
            let range = (
                at,
                objectives().fold(f64::INFINITY, f64::min),
                objectives().fold(f64::NEG_INFINITY, f64::max),
            );
            line.band.get_or_insert_default().push(range);
        }
        line
    }
}

impl Options {
    /// One run of every seed.
    pub fn train(&self, entry: &Entry, workers: &Workers) -> Result<Runs> {
        let seeds = (0..self.seeds).map(|seed| self.run(entry, seed, workers)).collect::<Result<_>>()?;
        Ok(Runs { name: entry.name, cost: entry.cost, seeds })
    }

    fn run(&self, entry: &Entry, seed: u64, workers: &Workers) -> Result<Run> {
        let (family, lopt, learner) = (family(), lopt(), &entry.learner);
        let (outer_steps, per_step) = (learner.num_steps(), entry.cost.gradients * self.window_steps());
        let mut state = learner.init(Key::new(seed), workers)?;
        let mut run = Run { looks: Vec::new(), outer_steps, seconds: 0.0 };
        for look in 0..=LOOKS {
            let began = Instant::now();
            while state.outer_step < outer_steps * look / LOOKS {
                learner.step(&mut state, workers);
            }
            run.seconds += began.elapsed().as_secs_f64();
            let opt = lopt.opt_fn(&state.theta.params);
            let config = EvalConfig {
                num_steps: self.length,
                eval_every: self.length,
                splits: vec![Split::OuterValid],
                ..EvalConfig::default()
            };
            let key = Key::new(0).named("comparison");
            let curves = training_curves(&*family, &*opt, &config, key, STARTS, workers);
            let mean = |f: &dyn Fn(&Curve) -> f64| curves.iter().map(f).sum::<f64>() / curves.len() as f64;
            let o = self.objective();
            let objective = mean(&|c| {
                let terms = c
                    .train
                    .iter()
                    .zip(0..self.length)
                    .map(|(l, t)| o.scale.apply(f64::from(*l)) * o.emphasis.weight(t, Some(self.length)));
                terms.sum::<f64>() / self.length as f64
            });
            run.looks.push(Look {
                gradients: state.outer_step as f64 * per_step,
                inner_steps: state.inner_steps as f64,
                seconds: run.seconds,
                objective,
                train: mean(&|c| f64::from(c.final_train(20))),
                valid: mean(&|c| c.evals.last().map_or(f64::NAN, |e| f64::from(e.loss))),
            });
        }
        Ok(run)
    }
}
