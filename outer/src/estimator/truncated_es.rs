//! Truncated evolution strategies.

use super::pairs::LanePair;
use super::reduce::over_runs_of_lanes;
use super::{
    pes::sign_of, start_lanes, Antithetic, Contribution, Estimate, EstimateKeys, EstimatorState,
    GradientEstimator, Lane, WindowLoss,
};
use crate::unroll::{Trajectory, TruncatedStep, Window};
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{Key, Result};

/// Truncated evolution strategies: antithetic ES on each window by itself.
///
/// `g = 1/(2σ²N) Σᵢ εᵢ (Lᵢ⁺ − Lᵢ⁻)`, where both signs start from the same inner state and `L` is the
/// window's mean (or sum) loss. The lane goes on from the positive trajectory.
///
/// Bias: truncation bias, since a perturbation is not credited for what it does in later windows:
/// favours short-sighted optimizers. Variance: the lowest of the ES family. Cost: 2 N K inner steps.
///
/// Reference: Metz et al. 2019, arXiv:1810.10180; Vicol et al. 2021, arXiv:2112.13835, section 3.
pub struct TruncatedEs {
    step: TruncatedStep,
    common: Antithetic,
}

impl TruncatedEs {
    /// Truncated ES over the runs that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        common.validate()?;
        Ok(TruncatedEs { step, common })
    }

    /// The loss difference of one lane's window pair, with the sign option applied.
    pub fn difference(pos: &Window, neg: &Window, window_loss: WindowLoss, sign: Option<f64>) -> f64 {
        let sum = |w: &Window| {
            let masked = w.loss.iter().zip(&pos.mask).filter(|(_, m)| **m);
            masked.map(|(l, _)| l).sum::<f64>() / window_loss.divisor(&pos.mask)
        };
        let d = sum(pos) - sum(neg);
        sign.map_or(d, |c| c * sign_of(d))
    }
}

impl GradientEstimator for TruncatedEs {
    fn name(&self) -> String {
        "es".into()
    }

    fn describe(&self) -> String {
        format!("es({:?}, {})", self.common, self.step.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        start_lanes(&self.step, self.common.num_tasks, 1, 0, theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let c = &self.common;
        let mut lanes = std::mem::take(&mut state.lanes);
        let keys = EstimateKeys::new(state, outer_step);
        let together = c.lanes_together(&*self.step.lopt, &lanes, workers.threads());
        let size = theta.len();
        let run =
            |worker: &mut Worker, first: usize, lanes: &mut [Lane], buffers: &mut [LaneBuffers<f32>]| {
                let mut minus: Vec<Trajectory> =
                    lanes.iter().map(|lane| lane.trajectories[0].clone()).collect();
                let pairs = lanes.iter_mut().zip(&mut minus).zip(buffers).map(|((lane, minus), buffers)| {
                    let trajectories = [&mut lane.trajectories[0], minus];
                    LanePair { clock: &mut lane.clock, trajectories, buffers }
                });
                let windows = c.run_pairs(&self.step, theta, keys, first, pairs.collect(), worker);
                let contribution = |[pos, neg]: &[Window; 2]| Contribution {
                    eps: Self::difference(pos, neg, c.window_loss, c.sign),
                    ..Contribution::of_windows(pos, neg)
                };
                windows.iter().map(contribution).collect()
            };
        let estimate = over_runs_of_lanes(workers, &mut lanes, together, size, c.factor(), run);
        state.lanes = lanes;
        estimate
    }
}
