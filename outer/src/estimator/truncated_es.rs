//! Truncated evolution strategies.

use super::{
    persistent::sign_of, start_lanes, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState,
    GradientEstimator, WindowLoss,
};
use crate::unroll::{TruncatedStep, Window};
use crate::workers::Workers;
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
        common.validate(&step)?;
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
        start_lanes(&self.step, self.common.num_tasks, theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let c = &self.common;
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        c.estimate_pairs(
            &self.step,
            inputs,
            &mut state.lanes,
            |_, _, _, _| (),
            |_, _, windows, ()| {
                let [pos, neg] = windows;
                let eps = Self::difference(pos, neg, c.window_loss, c.sign);
                Contribution { eps, ..Contribution::of_windows(windows) }
            },
        )
    }
}
