//! Evolution strategies with one perturbation per run.

use super::persistent::Persistent;
use super::{Antithetic, Estimate, EstimatorState, GradientEstimator};
use crate::unroll::TruncatedStep;
use crate::workers::Workers;
use outerloop_core::{Key, Result};

/// Noise-reuse evolution strategies (NRES; ES-Single): one perturbation per run, window by window.
///
/// `g = 1/(2σ²N) Σᵢ εᵢ Σₜ (Lᵢₜ⁺ − Lᵢₜ⁻)` over the steps of a window, `εᵢ` the perturbation of task `i`'s current run:
/// [`GeneralizedPes`](super::GeneralizedPes) without end, to the bit, and what is said there holds.
///
/// Bias: none with respect to the σ-smoothed meta-loss, apart from theta moving between windows, if lanes begin at
/// all places of a run ([`InitialOffset::BurnIn`](crate::InitialOffset::BurnIn)). Variance: the lowest of the
/// persistent family; it does not grow with the number of windows. Cost: 2 N K inner steps per estimate.
///
/// Reference: Li et al. 2023, arXiv:2304.12180; Vicol 2023 (ES-Single), arXiv:2304.11153.
#[derive(Debug)]
pub struct NoiseReuseEs(Persistent);

impl NoiseReuseEs {
    /// One perturbation per run that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        Persistent::new(step, common, u64::MAX).map(NoiseReuseEs)
    }
}

impl GradientEstimator for NoiseReuseEs {
    fn name(&self) -> String {
        "noise-reuse-es".into()
    }

    fn describe(&self) -> String {
        format!("noise-reuse-es({:?}, {})", self.0.common, self.0.step.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        self.0.start(theta, key, workers, 2)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        self.0.estimate(theta, state, outer_step, workers)
    }
}
