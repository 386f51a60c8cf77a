//! Persistent evolution strategies.

use super::{
    start_lanes, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, GradientEstimator, Lane,
    WindowLoss,
};
use crate::unroll::{TruncatedStep, Window};
use crate::workers::{LaneBuffers, Workers};
use outerloop_core::{Key, Result};
use serde::{Deserialize, Serialize};

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
pub struct TruncatedPes {
    step: TruncatedStep,
    common: Antithetic,
    terminal: TerminalWeight,
}

/// Which perturbations weigh the loss of the last step of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TerminalWeight {
    /// All that acted on the run: unbiased.
    #[default]
    Full,
    /// Only the current window's, and the accumulator becomes `ε` even if the run ended with the
    /// window. This is what google/learned_optimization computes; it is biased (the expectation of
    /// the toy `s ← s + θ, loss = s` is 0.86 of the truth at length 10, window 5) and exists to
    /// reproduce its numbers.
    CurrentWindow,
}

/// One lane's scalars: the loss difference summed over steps before and after a reset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PesTerms {
    /// Belongs to the run that was in progress at the start of the window; weighs `ξ + ε`.
    pub before: f64,
    /// Belongs to runs that started in this window; weighs `ε`.
    pub after: f64,
    /// What becomes of the accumulator.
    pub next: NextAccumulator,
}

/// The accumulator after a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextAccumulator {
    /// `ξ ← ξ + ε`: the run goes on.
    Add,
    /// `ξ ← ε`: a new run started in this window.
    Replace,
    /// `ξ ← 0`: the run ended with the window.
    Zero,
}

impl NextAccumulator {
    /// Leaves `ξ + ε` in the buffers and moves the accumulator on. A diverged run is over, whatever the
    /// window says.
    pub(super) fn apply(self, lane: &mut Lane, buffers: &mut LaneBuffers<f32>, diverged: bool) {
        let (accumulator, LaneBuffers { eps, sum, .. }) = (&mut lane.accumulator, buffers);
        sum.clear();
        sum.extend(accumulator.iter().zip(&*eps).map(|(a, e)| a + e));
        match self {
            _ if diverged => accumulator.fill(0.0),
            NextAccumulator::Add => accumulator.copy_from_slice(sum),
            NextAccumulator::Replace => accumulator.copy_from_slice(eps),
            NextAccumulator::Zero => accumulator.fill(0.0),
        }
    }
}

impl PesTerms {
    /// The terms of one lane's window pair. Mask and resets are those of the positive run.
    pub fn new(
        pos: &Window,
        neg: &Window,
        window_loss: WindowLoss,
        sign: Option<f64>,
        terminal: TerminalWeight,
    ) -> Self {
        let n = window_loss.divisor(&pos.mask);
        let diff = |t: usize| if pos.mask[t] { pos.loss[t] - neg.loss[t] } else { 0.0 };
        let steps = pos.loss.len();
        let signed = sign.map(|c| {
            let mean = (0..steps).map(diff).sum::<f64>() / steps as f64;
            c * sign_of(mean)
        });
        let (mut before, mut after, mut finished) = (0.0, 0.0, false);
        for t in 0..steps {
            if terminal == TerminalWeight::CurrentWindow {
                finished |= pos.is_done[t];
            }
            let d = match signed {
                Some(s) if pos.mask[t] => s,
                Some(_) => 0.0,
                None => diff(t),
            };
            *(if finished { &mut after } else { &mut before }) += d;
            finished |= pos.is_done[t];
        }
        let next = match (finished, terminal) {
            (false, _) => NextAccumulator::Add,
            (true, TerminalWeight::Full) if pos.is_done.last() == Some(&true) => NextAccumulator::Zero,
            (true, _) => NextAccumulator::Replace,
        };
        PesTerms { before: before / n, after: after / n, next }
    }
}

/// `sign(0) = 0`, NaN stays NaN.
pub(super) fn sign_of(x: f64) -> f64 {
    if x == 0.0 {
        0.0
    } else {
        x.signum()
    }
}

impl TruncatedPes {
    /// PES over the runs that `step` describes. Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        common.validate(&step)?;
        Ok(TruncatedPes { step, common, terminal: TerminalWeight::default() })
    }

    /// Chooses the weight of the last step of a run.
    #[must_use]
    pub fn with_terminal_weight(mut self, terminal: TerminalWeight) -> Self {
        self.terminal = terminal;
        self
    }

    /// What a lane's windows say; moves its accumulator on.
    fn contribution(
        &self,
        lane: &mut Lane,
        buffers: &mut LaneBuffers<f32>,
        windows: &[Window; 2],
    ) -> Contribution {
        let [pos, neg] = windows;
        let t = PesTerms::new(pos, neg, self.common.window_loss, self.common.sign, self.terminal);
        // ξ + ε weighs what belongs to the run that was in progress, ε what started here.
        let contribution = Contribution { sum: t.before, eps: t.after, ..Contribution::of_windows(windows) };
        t.next.apply(lane, buffers, contribution.diverged);
        contribution
    }
}

impl GradientEstimator for TruncatedPes {
    fn name(&self) -> String {
        "pes".into()
    }

    fn describe(&self) -> String {
        format!("pes({:?}, terminal={:?}, {})", self.common, self.terminal, self.step.describe())
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
            self.contribution(lane, buffers, windows)
        })
    }
}
