//! Persistent evolution strategies.

use super::persistent::Persistent;
use super::{Antithetic, Estimate, EstimatorState, GradientEstimator, TerminalWeight};
use crate::unroll::TruncatedStep;
use crate::workers::Workers;
use outerloop_core::{Key, Result};

/// Persistent evolution strategies: truncated unrolls without truncation bias.
///
/// `g = 1/(2σ²N) Σᵢ Σₜ wᵢₜ (Lᵢₜ⁺ − Lᵢₜ⁻)`, where the weight `wᵢₜ` of step `t` is the sum of the
/// perturbations that acted on task `i`'s current run up to and including that step: the
/// accumulator `ξᵢ` plus this window's `εᵢ` before a reset, `εᵢ` alone after it. The last step of a
/// run belongs to the run: it is weighted with the full `ξᵢ + εᵢ`. The accumulator is zero at the
/// start of a run. Each sign carries its own inner state from window to window.
///
/// Bias: none with respect to the σ-smoothed meta-loss, apart from theta moving between windows.
/// Variance: grows with the number of windows per run. Cost: 2 N K inner steps per estimate.
///
/// Shapes: `theta` `[P]`, accumulator `ξ` `[N, P]`, losses `[K, N]`.
/// Reference: Vicol, Metz, Sohl-Dickstein 2021, arXiv:2112.13835.
#[derive(Debug)]
pub struct TruncatedPes(Persistent);

impl TruncatedPes {
    /// PES over the runs that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        Persistent::new(step, common, 1).map(TruncatedPes)
    }

    /// Chooses the weight of the last step of a run.
    #[must_use]
    pub fn with_terminal_weight(mut self, terminal: TerminalWeight) -> Self {
        self.0.terminal = terminal;
        self
    }
}

impl GradientEstimator for TruncatedPes {
    fn name(&self) -> String {
        "pes".into()
    }

    fn describe(&self) -> String {
        let Persistent { step, common, terminal, .. } = &self.0;
        format!("pes({common:?}, terminal={terminal:?}, {})", step.describe())
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
