//! Evolution strategies that keep a perturbation for several windows: generalized PES.

use super::persistent::Persistent;
use super::{Antithetic, Estimate, EstimatorState, GradientEstimator};
use crate::unroll::TruncatedStep;
use crate::workers::Workers;
use outerloop_core::{Key, Result};

/// Generalized persistent evolution strategies: a perturbation acts on `every` windows of a run, then another one.
///
/// `g = 1/(2σ²N) Σᵢ Σₜ wᵢₜ (Lᵢₜ⁺ − Lᵢₜ⁻)`, where the weight `wᵢₜ` of step `t` is the sum of the *different*
/// perturbations that acted on task `i`'s current run up to that step. With `every` 1 this is
/// [`TruncatedPes`](super::TruncatedPes), to the bit; with `every` above the number of windows of a run,
/// [`NoiseReuseEs`](super::NoiseReuseEs).
///
/// A new perturbation is drawn when the old one has acted on `every` windows, and for the window after one in which
/// a run ended: a run that begins within a window has the perturbation of that window, then one of its own.
///
/// Bias: none with respect to the σ-smoothed meta-loss, apart from theta moving between windows. Variance: falls with
/// `every`, since fewer perturbations are summed, as long as the correlation of the run's parts is not negative; the
/// paper's theorem has it lowest for one perturbation per run. Cost: 2 N K inner steps per estimate.
///
/// Shapes: `theta` `[P]`, accumulator `[N, P]`, losses `[K, N]`.
/// Reference: Li et al. 2023, arXiv:2304.12180, section 4 and theorem 8.
#[derive(Debug)]
pub struct GeneralizedPes(Persistent);

impl GeneralizedPes {
    /// A perturbation for every `every` windows of the runs that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic, every: u64) -> Result<Self> {
        Persistent::new(step, common, every).map(GeneralizedPes)
    }
}

impl GradientEstimator for GeneralizedPes {
    fn name(&self) -> String {
        format!("gpes-{}", self.0.every)
    }

    fn describe(&self) -> String {
        let Persistent { step, common, every, .. } = &self.0;
        format!("gpes(every={every}, {common:?}, {})", step.describe())
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
