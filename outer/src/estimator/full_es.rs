//! Evolution strategies over whole runs.

use super::guided_es::Subspace;
use super::pairs::{fills, lanes_per_chunk};
use super::reduce::over_lane_chunks;
use super::{
    moved, persistent::sign_of, run_pair, whole_length, Antithetic, Contribution, Estimate, EstimateInputs,
    EstimatorState, GradientEstimator,
};
use crate::episode::{Clock, Episode, Trajectory};
use crate::truncation::TruncationSchedule;
use crate::unroll::{LaneRun, TruncatedStep, Window};
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{BatchKey, Error, Key, Layout, Optimizer, Result, Split};
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
        common.validate(&step)?;
        if step.schedule == TruncationSchedule::NeverEnding {
            return Err(Error::invalid("schedule of full ES", "runs must end"));
        }
        if matches!(loss, FullLoss::LastRecomputed { batches: 0, .. }) {
            return Err(Error::invalid("batches of the recomputed loss", "expected at least 1, got 0"));
        }
        Ok(FullEs { step, common, loss, clip: None })
    }

    /// Clips loss differences to ±`clip` (before the sign option). Errors unless it is positive; it may be
    /// infinite.
    pub fn with_clip(mut self, clip: f64) -> Result<Self> {
        if clip.is_nan() || clip <= 0.0 {
            return Err(Error::invalid("clip of loss differences", format!("expected above 0, got {clip}")));
        }
        self.clip = Some(clip);
        Ok(self)
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

    fn recomputed(&self, opt: &dyn Optimizer, t: &Trajectory, episode: &Episode, worker: &mut Worker) -> f64 {
        let FullLoss::LastRecomputed { batches, split } = self.loss else {
            return f64::NAN;
        };
        let key = episode.keys.data.named("recompute");
        let objective = self.step.objective_of(episode);
        let (evaluator, _) = worker.evaluator(&episode.task);
        let params = opt.evaluation_params(&t.opt);
        let mut one = |step: u64| {
            let l = evaluator.loss(&params, &t.model_state, BatchKey { split, step, key });
            objective.scaled(&*episode.task, f64::from(l))
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
        EstimatorState::new(key)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        self.estimate_guided(theta, state, outer_step, workers, None)
    }
}

/// What a pair of whole runs gave.
pub(super) struct RunPair {
    /// The runs' losses, positive first.
    pub losses: [f64; 2],
    /// Their steps.
    pub windows: [Window; 2],
}

impl FullEs {
    /// The settings.
    pub(super) fn common(&self) -> &Antithetic {
        &self.common
    }

    /// Its learned optimizer.
    pub(super) fn step(&self) -> &TruncatedStep {
        &self.step
    }

    /// Runs number `outer_step` of a lane with these optimizers, from their common start to their end.
    pub(super) fn run_pair(
        &self,
        inputs: EstimateInputs<'_>,
        (lane, length): (usize, u64),
        opts: &[Box<dyn Optimizer>; 2],
        kept: &mut Option<Episode>,
        worker: &mut Worker,
    ) -> RunPair {
        // Each estimate is a run of its own, numbered by the outer step.
        let outer_step = inputs.outer_step;
        let episode = Episode::kept(kept, &self.step.family, inputs.lane(lane), outer_step);
        let (mut clock, [mut plus, mut minus]) =
            self.step.start_of_length(episode, opts.each_ref().map(|o| &**o), Some(length));
        let trajectories = [&mut plus, &mut minus];
        let mut pair = LaneRun { episode, clock: &mut clock, trajectories, outer_step };
        let windows = run_pair(&self.step, opts, &mut pair, length as usize, worker);
        let losses = [(&windows[0], &opts[0], &plus), (&windows[1], &opts[1], &minus)].map(|(w, opt, t)| {
            self.loss.of_steps(&w.loss).unwrap_or_else(|| self.recomputed(&**opt, t, episode, worker))
        });
        RunPair { losses, windows }
    }

    /// One estimate with perturbations of the given shape.
    pub(super) fn estimate_guided(
        &self,
        theta: &[f32],
        state: &EstimatorState,
        outer_step: u64,
        workers: &Workers,
        guide: Option<&Subspace>,
    ) -> Estimate {
        let c = &self.common;
        let length = whole_length(&self.step, state.key, outer_step);
        let mut lanes: Vec<usize> = (0..c.num_tasks).collect();
        let inputs = EstimateInputs { guide, ..EstimateInputs::new(theta, state, outer_step, workers) };
        let layout = Episode::new(&self.step.family, inputs.lane(0), outer_step).task.layout();
        let chunk = lanes_per_chunk(&*self.step.lopt, Some(&layout), c.num_tasks, workers.threads());
        over_lane_chunks(inputs, &mut lanes, chunk, c.scale(), |worker, _, lanes, buffers| {
            let runs = self.run_pairs(inputs, (lanes, length), buffers, worker);
            let contribution = |RunPair { losses: [pos, neg], windows }: RunPair| Contribution {
                eps: Self::difference(pos, neg, self.clip, c.sign),
                losses: [pos, neg],
                mean_loss: (pos + neg) / 2.0,
                ..Contribution::of_windows(&windows)
            };
            runs.into_iter().map(contribution).collect()
        })
    }

    /// [`Self::run_pair`] of neighbouring lanes, each at its perturbation, which it leaves in the buffers; as one group
    /// of optimizers where that is faster.
    fn run_pairs(
        &self,
        inputs: EstimateInputs<'_>,
        (lanes, length): (&[usize], u64),
        buffers: &mut [LaneBuffers<f32>],
        worker: &mut Worker,
    ) -> Vec<RunPair> {
        let (step, outer_step) = (&self.step, inputs.outer_step);
        let numbered = lanes.iter().zip(&mut *buffers);
        let layouts = numbered.map(|(&lane, buffers)| {
            Episode::kept(&mut buffers.episode, &step.family, inputs.lane(lane), outer_step).task.layout()
        });
        let layouts: Vec<Arc<Layout>> = layouts.collect();
        let is_group = fills(lanes.len(), step.lopt.group_size(&layouts[0]))
            && layouts.iter().all(|layout| *layout == layouts[0])
            && !matches!(self.loss, FullLoss::LastRecomputed { .. });
        let numbered = lanes.iter().zip(&mut *buffers);
        if !is_group {
            let alone = numbered.map(|(&lane, LaneBuffers { eps, episode, .. })| {
                let opts = self.common.perturbed(&*step.lopt, inputs, inputs.noise(lane), eps, worker);
                self.run_pair(inputs, (lane, length), &opts, episode, worker)
            });
            return alone.collect();
        }
        let thetas = numbered.flat_map(|(&lane, LaneBuffers { eps, .. })| {
            self.common.draw(inputs, inputs.noise(lane), eps);
            [1.0, -1.0].map(|sign| moved(inputs.theta, sign, eps).collect::<Vec<f32>>())
        });
        let group = step.lopt.group(thetas.collect());
        let mut episodes: Vec<&mut Episode> = buffers.iter_mut().flat_map(|b| &mut b.episode).collect();
        let starts = episodes.iter().enumerate().map(|(i, episode)| {
            let opts = [group.member(2 * i), group.member(2 * i + 1)];
            step.start_of_length(episode, opts, Some(length))
        });
        let mut starts: Vec<(Clock, [Trajectory; 2])> = starts.collect();
        let runs = episodes.iter_mut().zip(&mut starts);
        let runs = runs.map(|(episode, (clock, [plus, minus]))| LaneRun {
            episode,
            clock,
            trajectories: [plus, minus],
            outer_step,
        });
        let mut runs: Vec<LaneRun<'_, f32, 2>> = runs.collect();
        let windows = step.windows_grouped(&*group, &mut runs, length as usize);
        let losses = |w: &Window| self.loss.of_steps(&w.loss).expect("not recomputed");
        windows.into_iter().map(|w| RunPair { losses: [&w[0], &w[1]].map(losses), windows: w }).collect()
    }
}
