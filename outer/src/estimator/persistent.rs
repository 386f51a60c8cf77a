//! The driver of all persistent antithetic estimators: who weighs which loss, and what becomes of a lane's
//! perturbations.

use super::{
    start_lanes, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, Lane, WindowLoss,
};
use crate::unroll::{TruncatedStep, Window};
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{Error, Key, Result};
use serde::{Deserialize, Serialize};

/// Antithetic pairs that go on from window to window; a perturbation acts on `every` windows of a run, then another
/// one is added to it.
#[derive(Debug)]
pub(super) struct Persistent {
    pub step: TruncatedStep,
    pub common: Antithetic,
    pub terminal: TerminalWeight,
    /// Windows per perturbation; `u64::MAX`: all of a run.
    pub every: u64,
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

impl Persistent {
    /// Errors on settings out of range.
    pub fn new(step: TruncatedStep, common: Antithetic, every: u64) -> Result<Self> {
        common.validate(&step)?;
        common.validate_persistent()?;
        if every == 0 {
            return Err(Error::invalid("every", "expected at least 1, got 0"));
        }
        Ok(Persistent { step, common, terminal: TerminalWeight::Full, every })
    }

    /// Lanes of `trajectories` trajectories: a pair, and what the estimator has beside it.
    pub fn start(&self, theta: &[f32], key: Key, workers: &Workers, trajectories: usize) -> EstimatorState {
        let state = start_lanes(&self.step, self.common.num_tasks, theta, key, workers);
        state.persistent(trajectories, theta)
    }

    /// What a lane's pair of windows says: `ξ + ε` weighs what belongs to the run that was in progress, `ε` what
    /// started in the window.
    fn contribution(&self, windows: &[Window; 2]) -> (Contribution, NextAccumulator) {
        let [pos, neg] = windows;
        let t = PesTerms::new(pos, neg, self.common.window_loss, self.common.sign, self.terminal);
        (Contribution { sum: t.before, eps: t.after, ..Contribution::of_windows(windows) }, t.next)
    }

    /// Leaves `ξ + ε` in the buffers, moves the accumulator on and decides whether the perturbation goes on acting.
    fn settle(
        &self,
        outer_step: u64,
        lane: &mut Lane,
        buffers: &mut LaneBuffers<f32>,
        next: NextAccumulator,
        diverged: bool,
    ) {
        let drawn = lane.held.unwrap_or(outer_step);
        let goes_on = next == NextAccumulator::Add && !diverged;
        lane.held = (goes_on && outer_step + 1 - drawn < self.every).then_some(drawn);
        let LaneBuffers { eps, sum, .. } = buffers;
        sum.clear();
        sum.extend(lane.accumulator.iter().zip(&*eps).map(|(a, e)| a + e));
        match next {
            // ε is not yet in ξ.
            _ if lane.held.is_some() => {}
            _ if diverged => lane.accumulator.fill(0.0),
            NextAccumulator::Add => lane.accumulator.copy_from_slice(sum),
            NextAccumulator::Replace => lane.accumulator.copy_from_slice(eps),
            NextAccumulator::Zero => lane.accumulator.fill(0.0),
        }
    }

    /// One estimate from the pairs alone.
    pub fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        self.estimate_with(inputs, &mut state.lanes, |_, _, _, _| (), |_, _, _, ((), c)| c)
    }

    /// One estimate of which the pairs are a part. `before` does what else there is to do with a lane while it stands
    /// where its pair does; `add` adds that to the pair's contribution, with the perturbation in the buffers, before the
    /// accumulator moves on.
    pub fn estimate_with<T: Send>(
        &self,
        inputs: EstimateInputs<'_>,
        lanes: &mut [Lane],
        before: impl Fn(usize, &mut Lane, &mut LaneBuffers<f32>, &mut Worker) -> T + Sync,
        add: impl Fn(&mut Lane, &LaneBuffers<f32>, &[Window; 2], (T, Contribution)) -> Contribution + Sync,
    ) -> Estimate {
        self.common.estimate_pairs(&self.step, inputs, lanes, before, |lane, buffers, windows, extra| {
            let (contribution, next) = self.contribution(windows);
            let contribution = add(lane, buffers, windows, (extra, contribution));
            lane.clock.is_done |= contribution.diverged;
            self.settle(inputs.outer_step, lane, buffers, next, contribution.diverged);
            contribution
        })
    }
}
