//! Evolution strategies that keep a perturbation for several windows: generalized PES, and noise-reuse ES.

use super::{
    start_lanes, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, GradientEstimator, Lane,
    NextAccumulator, PesTerms, TerminalWeight,
};
use crate::unroll::{TruncatedStep, Window};
use crate::workers::{LaneBuffers, Workers};
use outerloop_core::{Error, Key, Result};

/// Generalized persistent evolution strategies: a perturbation acts on `every` windows of a run, then another one.
///
/// `g = 1/(2σ²N) Σᵢ Σₜ wᵢₜ (Lᵢₜ⁺ − Lᵢₜ⁻)`, where the weight `wᵢₜ` of step `t` is the sum of the *different*
/// perturbations that acted on task `i`'s current run up to that step. With `every` 1 this is
/// [`TruncatedPes`](super::TruncatedPes), to the bit; with `every` above the number of windows of a run,
/// [`NoiseReuseEs`].
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
pub struct GeneralizedPes {
    step: TruncatedStep,
    common: Antithetic,
    every: u64,
}

/// Noise-reuse evolution strategies (NRES; ES-Single): one perturbation per run, window by window.
///
/// `g = 1/(2σ²N) Σᵢ εᵢ Σₜ (Lᵢₜ⁺ − Lᵢₜ⁻)` over the steps of a window, `εᵢ` the perturbation of task `i`'s current run:
/// [`GeneralizedPes`] without end, to the bit, and what is said there holds.
///
/// Bias: none with respect to the σ-smoothed meta-loss, apart from theta moving between windows, if lanes begin at
/// all places of a run ([`InitialOffset::BurnIn`](crate::InitialOffset::BurnIn)). Variance: the lowest of the
/// persistent family; it does not grow with the number of windows. Cost: 2 N K inner steps per estimate.
///
/// Reference: Li et al. 2023, arXiv:2304.12180; Vicol 2023 (ES-Single), arXiv:2304.11153.
#[derive(Debug)]
pub struct NoiseReuseEs(GeneralizedPes);

impl GeneralizedPes {
    /// A perturbation for every `every` windows of the runs that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic, every: u64) -> Result<Self> {
        common.validate(&step)?;
        if every == 0 {
            return Err(Error::invalid("every", "expected at least 1, got 0"));
        }
        Ok(GeneralizedPes { step, common, every })
    }

    /// What a lane's windows say; moves its accumulator on and decides whether its perturbation is kept.
    fn contribution(
        &self,
        outer_step: u64,
        lane: &mut Lane,
        buffers: &mut LaneBuffers<f32>,
        windows: &[Window; 2],
    ) -> Contribution {
        let [pos, neg] = windows;
        let t = PesTerms::new(pos, neg, self.common.window_loss, self.common.sign, TerminalWeight::Full);
        let contribution = Contribution { sum: t.before, eps: t.after, ..Contribution::of_windows(windows) };
        let drawn = lane.held.unwrap_or(outer_step);
        let goes_on = t.next == NextAccumulator::Add && !contribution.diverged;
        if goes_on && outer_step + 1 - drawn < self.every {
            // ξ + ε weighs this window; ε is not yet in ξ.
            lane.held = Some(drawn);
            buffers.sum.clear();
            buffers.sum.extend(lane.accumulator.iter().zip(&buffers.eps).map(|(a, e)| a + e));
        } else {
            lane.held = None;
            t.next.apply(lane, buffers, contribution.diverged);
        }
        contribution
    }
}

impl GradientEstimator for GeneralizedPes {
    fn name(&self) -> String {
        format!("gpes-{}", self.every)
    }

    fn describe(&self) -> String {
        format!("gpes(every={}, {:?}, {})", self.every, self.common, self.step.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        start_lanes(&self.step, self.common.num_tasks, theta, key, workers).persistent(2, theta)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        self.common.estimate_pairs(&self.step, inputs, &mut state.lanes, |lane, buffers, windows| {
            self.contribution(outer_step, lane, buffers, windows)
        })
    }
}

impl NoiseReuseEs {
    /// One perturbation per run that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        GeneralizedPes::new(step, common, u64::MAX).map(NoiseReuseEs)
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
        self.0.init(theta, key, workers)
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
