//! Evolution strategies over whole runs.

use super::{
    over_lanes, pes::sign_of, run_pair, trained_steps, Antithetic, Contribution, Estimate, EstimateKeys,
    EstimatorState, GradientEstimator,
};
use crate::truncation::TruncationSchedule;
use crate::unroll::{fresh, Clock, EpisodeKeys, Trajectory, TruncatedStep};
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{BatchKey, Error, FlatTask, Key, Result, Split};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The loss of a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum FullLoss {
    /// Mean over the steps.
    #[default]
    Mean,
    /// Smallest over the steps.
    Min,
    /// That of the last step.
    Last,
    /// Mean over fresh batches at the final parameters, on the objective's scale.
    LastRecomputed {
        /// Number of batches.
        batches: usize,
        /// Where they come from.
        split: Split,
    },
}

impl FullLoss {
    /// The number that the steps' losses give; `None` if it takes the final parameters.
    pub fn of_steps(self, losses: &[f64]) -> Option<f64> {
        match self {
            FullLoss::Mean => Some(losses.iter().sum::<f64>() / losses.len() as f64),
            // NaN is kept: a diverged run has no smallest loss.
            FullLoss::Min => {
                Some(losses.iter().fold(f64::INFINITY, |a, &b| if a.is_nan() || a < b { a } else { b }))
            }
            FullLoss::Last => losses.last().copied(),
            FullLoss::LastRecomputed { .. } => None,
        }
    }
}

/// Evolution strategies over whole runs: the unbiased yardstick.
///
/// `g = 1/(2σ²N) Σᵢ εᵢ (Lᵢ⁺ − Lᵢ⁻)`, `L` the loss of a whole run from fresh parameters; its length is
/// drawn once per estimate from `step.schedule`. A non-finite difference counts as 0.
///
/// Bias: none with respect to the σ-smoothed loss (clipping and sign add some). Variance: that of
/// one run's loss differences. Cost: 2 N T inner steps for one estimate.
///
/// Reference: Salimans et al. 2017, arXiv:1703.03864; Metz et al. 2022, arXiv:2211.09760.
pub struct FullEs {
    step: TruncatedStep,
    common: Antithetic,
    loss: FullLoss,
    clip: Option<f64>,
}

impl FullEs {
    /// Full ES; `common.trunc_length` and `common.window_loss` are not used. Errors if `step.schedule` never ends.
    pub fn new(step: TruncatedStep, common: Antithetic, loss: FullLoss) -> Result<Self> {
        common.validate()?;
        if step.schedule == TruncationSchedule::NeverEnding {
            return Err(Error::invalid("schedule of full ES", "runs must end"));
        }
        Ok(FullEs { step, common, loss, clip: None })
    }

    /// Clips loss differences to ±`clip` (before the sign option).
    #[must_use]
    pub fn with_clip(mut self, clip: f64) -> Self {
        self.clip = Some(clip);
        self
    }

    /// A lane's loss difference: non-finite becomes NaN (the lane is masked), then clip, then sign.
    pub fn difference(pos: f64, neg: f64, clip: Option<f64>, sign: Option<f64>) -> f64 {
        let d = pos - neg;
        if !d.is_finite() {
            return f64::NAN;
        }
        let d = clip.map_or(d, |c| d.clamp(-c, c));
        sign.map_or(d, |s| s * sign_of(d))
    }

    fn recomputed(
        &self,
        t: &Trajectory,
        task: &Arc<dyn FlatTask>,
        keys: EpisodeKeys,
        worker: &mut Worker,
    ) -> f64 {
        let FullLoss::LastRecomputed { batches, split } = self.loss else {
            return f64::NAN;
        };
        let key = keys.data.named("recompute");
        let (evaluator, _) = worker.evaluator(task);
        let mut one = |step: u64| {
            let l = evaluator.loss(&t.opt.params, &t.model_state, BatchKey { split, step, key });
            self.step.objective.scaled(&**task, f64::from(l))
        };
        (0..batches as u64).map(&mut one).sum::<f64>() / batches as f64
    }
}

impl GradientEstimator for FullEs {
    fn name(&self) -> String {
        "full-es".into()
    }

    fn describe(&self) -> String {
        format!(
            "full-es({:?}, loss={:?}, clip={:?}, {})",
            self.common,
            self.loss,
            self.clip,
            self.step.describe()
        )
    }

    fn init(&self, _: &[f32], key: Key, _: &Workers) -> EstimatorState {
        EstimatorState { key, lanes: Vec::new() }
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let c = &self.common;
        let length = self.step.schedule.length(outer_step, state.key.named("length").fold_in(outer_step));
        let steps = length.expect("checked by the constructor") as usize;
        let mut lanes: Vec<usize> = (0..c.num_tasks).collect();
        let keys = EstimateKeys::new(state, outer_step);
        over_lanes(workers, &mut lanes, theta.len(), c.factor(), |worker, _, &mut i, buffers| {
            let LaneBuffers { eps, place, .. } = buffers;
            let opts = c.perturbed(&*self.step.lopt, theta, keys.noise(i), eps, worker);
            // Each estimate is a run of its own, numbered by the outer step.
            let lane = keys.lane(i);
            let here = self.step.place_kept(place, lane, outer_step);
            let (task, keys) = (here.task.clone(), here.keys);
            let [mut plus, mut minus] = opts.each_ref().map(|opt| fresh(&*task, &**opt, keys, length));
            let mut clock = Clock { episode: outer_step, inner_step: 0, length, is_done: false };
            let pair = [&mut plus, &mut minus];
            let windows =
                run_pair(&self.step, place, &opts, lane, &mut clock, pair, steps, outer_step, worker);
            let [pos, neg] = [(&windows[0], &plus), (&windows[1], &minus)].map(|(w, t)| {
                self.loss.of_steps(&w.loss).unwrap_or_else(|| self.recomputed(t, &task, keys, worker))
            });
            Contribution {
                eps: Self::difference(pos, neg, self.clip, c.sign),
                mean_loss: (pos + neg) / 2.0,
                inner_steps: trained_steps(&windows[0]) + trained_steps(&windows[1]),
                diverged: windows.iter().any(|w| w.diverged),
                ..Contribution::default()
            }
        })
    }
}
