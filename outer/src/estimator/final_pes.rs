//! Persistent evolution strategies for the final loss.

use super::persistent::Persistent;
use super::{Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, GradientEstimator, Shaping};
use crate::unroll::{TruncatedStep, Window};
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};

/// Persistent evolution strategies for the loss of a run's last step, by telescoping: every window says by how much it
/// changed the loss.
///
/// `g = 1/(2σ²N) Σᵢ [Δᵢ (ξᵢ + εᵢ) − Δᵢ′ ξᵢ]`, where `Δᵢ = Lᵢ⁺ − Lᵢ⁻` is the difference at the last step of the window, or of
/// the run if that ends before, `Δᵢ′` the one before the window (0 at the start of a run), and `ξᵢ`, `εᵢ` are those of
/// [`super::TruncatedPes`]; runs that start in the window add theirs with `εᵢ` alone. Over the windows of a run this sums
/// up to the final loss's own estimate: an estimate is one window's share of the gradient of the final loss.
///
/// Bias: none with respect to the σ-smoothed final loss, apart from theta moving between windows. Variance: grows with
/// the number of windows per run, as that of PES, from the two loss differences of each window only. Cost: 2 N K inner
/// steps per estimate.
///
/// Shapes: `theta` `[P]`, accumulator `ξ` `[N, P]`.
/// Reference: Vicol, Metz, Sohl-Dickstein 2021, arXiv:2112.13835, appendix (telescoping sums).
#[derive(Debug)]
pub struct FinalPes(Persistent);

impl FinalPes {
    /// Over the runs that `step` describes. Errors on settings out of range, and on signs and shaping: a telescoping sum
    /// needs the differences themselves. `common.window_loss` has no meaning here.
    pub fn new(step: TruncatedStep, common: Antithetic) -> Result<Self> {
        if common.sign.is_some() || common.shaping != Shaping::None {
            let why = "a telescoping sum needs the loss differences themselves";
            return Err(Error::invalid("sign and shaping of PES for the final loss", why));
        }
        Persistent::new(step, common, 1).map(FinalPes)
    }
}

/// The loss differences at the ends of a window's runs.
#[derive(Debug, PartialEq)]
struct Ends {
    /// At the last step of the run that was in progress.
    before: f64,
    /// Summed over the runs that started in the window.
    after: f64,
    /// At the last step so far of the run that goes on; 0 if none does.
    open: f64,
}

impl Ends {
    /// Of a pair of windows; `difference`: before them.
    fn of([pos, neg]: &[Window; 2], difference: f64) -> Self {
        let mut ends = Ends { before: 0.0, after: 0.0, open: difference };
        let mut first = true;
        for t in (0..pos.loss.len()).filter(|t| pos.mask[*t]) {
            ends.open = pos.loss[t] - neg.loss[t];
            if pos.is_done[t] {
                ends.close(first);
                first = false;
            }
        }
        let open = ends.open;
        ends.close(first);
        Ends { open, ..ends }
    }

    fn close(&mut self, is_first: bool) {
        *(if is_first { &mut self.before } else { &mut self.after }) += std::mem::take(&mut self.open);
    }
}

impl GradientEstimator for FinalPes {
    fn name(&self) -> String {
        "final-pes".into()
    }

    fn describe(&self) -> String {
        format!("final-pes({:?}, {})", self.0.common, self.0.step.describe())
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
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        self.0.estimate_with(
            inputs,
            &mut state.lanes,
            |_, _, _, _| (),
            |lane, _, windows, ((), of_pair)| {
                let Ends { before, after, open } = Ends::of(windows, lane.difference);
                let telescoped = vec![(-lane.difference, lane.accumulator.clone())];
                lane.difference = if of_pair.diverged { 0.0 } else { open };
                Contribution { sum: before, eps: after, terms: telescoped, ..of_pair }
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_split_into_its_runs() {
        let window = |loss: &[f64], done: &[usize], masked: &[usize]| Window {
            loss: loss.to_vec(),
            mask: (0..loss.len()).map(|t| !masked.contains(&t)).collect(),
            is_done: (0..loss.len()).map(|t| done.contains(&t)).collect(),
            ..Window::default()
        };
        let zeros = |n| window(&vec![0.0; n], &[], &[]);
        let of = |pos: Window, difference| {
            let neg = zeros(pos.loss.len());
            Ends::of(&[pos, neg], difference)
        };
        assert_eq!(of(window(&[1.0, 2.0], &[], &[]), 7.0), Ends { before: 2.0, after: 0.0, open: 2.0 });
        assert_eq!(of(window(&[1.0, 2.0], &[1], &[]), 7.0), Ends { before: 2.0, after: 0.0, open: 0.0 });
        let three = window(&[1.0, 0.0, 2.0, 0.0, 3.0], &[0, 2], &[1, 3]);
        assert_eq!(of(three, 7.0), Ends { before: 1.0, after: 5.0, open: 3.0 });
        // Only a reset: the run before it is over.
        assert_eq!(of(window(&[0.0], &[], &[0]), 0.0), Ends { before: 0.0, after: 0.0, open: 0.0 });
    }
}
