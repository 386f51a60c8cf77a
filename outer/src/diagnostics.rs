//! Numbers that say how meta-training fares: the noise of its meta-gradients, the length of the runs that they look at,
//! and how old what they build on is.

use crate::estimator::EstimatorState;
use serde::{Deserialize, Serialize};

/// Weight that the past keeps per outer step: about the last 100 steps count.
const DECAY: f64 = 0.98;

/// The running signal-to-noise ratio of a sequence of gradients: `‖μ‖² / tr Σ`, from exponentially weighted means of the
/// gradients and of their squared norms.
///
/// With the weights normalized, of sum 1 and sum of squares `r`, `E‖m‖² = ‖μ‖² + r tr Σ` and `E q = ‖μ‖² + tr Σ` for
/// independent gradients of one mean. So `tr Σ` is estimated without bias by `(q − ‖m‖²) / (1 − r)`. Where theta moves on
/// during the last 100 steps, or where neighbouring estimates share their noise (PES), the ratio is only a sign.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SignalToNoise {
    /// Weighted sum of the gradients, `[P]`; empty before the first.
    sum: Vec<f32>,
    /// Weighted sum of their squared norms.
    squares: f64,
    /// Sum of the weights, and of their squares.
    weights: [f64; 2],
}

impl SignalToNoise {
    /// Takes one more gradient; one that is not finite says nothing.
    pub fn observe(&mut self, grad: &[f32]) {
        let square: f64 = grad.iter().map(|g| f64::from(*g) * f64::from(*g)).sum();
        self.observe_with(grad, square);
    }

    /// [`Self::observe`] with a squared norm that is known.
    pub(crate) fn observe_with(&mut self, grad: &[f32], square: f64) {
        if !square.is_finite() {
            return;
        }
        self.sum.resize(grad.len(), 0.0);
        let (keep, new) = (DECAY as f32, (1.0 - DECAY) as f32);
        self.sum.iter_mut().zip(grad).for_each(|(m, g)| *m = keep * *m + new * g);
        self.squares = DECAY * self.squares + (1.0 - DECAY) * square;
        let [sum, squares] = self.weights;
        self.weights = [DECAY * sum + (1.0 - DECAY), DECAY * DECAY * squares + (1.0 - DECAY).powi(2)];
    }

    /// The ratio for one gradient; 0 where there is no signal beyond the noise. None before the second gradient.
    pub fn ratio(&self) -> Option<f64> {
        let [sum, squares] = self.weights;
        let spread = 1.0 - squares / (sum * sum);
        if spread.is_nan() || spread < 1e-9 {
            return None;
        }
        let mean = self.sum.iter().map(|m| f64::from(*m) * f64::from(*m)).sum::<f64>() / (sum * sum);
        let square = self.squares / sum;
        let noise = (square - mean).max(0.0) / spread;
        Some(match (square - noise).max(0.0) {
            0.0 => 0.0,
            signal => signal / noise,
        })
    }
}

/// What is kept of a run for its diagnostics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// Of the averaged estimates.
    pub signal_to_noise: SignalToNoise,
    /// For every lane of every estimator the number of its current run and the outer step in which that began.
    begun: Vec<(u64, u64)>,
}

/// What is seen of lanes that go on from estimate to estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lanes {
    /// Mean length of their current runs, inner steps; endless ones are left out.
    pub horizon: Option<f64>,
    /// Mean number of outer steps since their current runs began: so many thetas ago the oldest part of their inner
    /// states and accumulators was made.
    pub staleness: f64,
}

impl Diagnostics {
    /// Looks at the lanes after the estimates of an outer step.
    pub(crate) fn observe_lanes(&mut self, estimators: &[EstimatorState], outer_step: u64) -> Option<Lanes> {
        let lanes = || estimators.iter().flat_map(|e| &e.lanes);
        self.begun.resize(lanes().count(), (0, 0));
        for (begun, lane) in self.begun.iter_mut().zip(lanes()) {
            if begun.0 != lane.clock.episode {
                *begun = (lane.clock.episode, outer_step);
            }
        }
        let mean = |values: &mut dyn Iterator<Item = u64>| {
            let (count, sum) = values.fold((0u64, 0u64), |(n, sum), x| (n + 1, sum.saturating_add(x)));
            (count > 0).then(|| sum as f64 / count as f64)
        };
        Some(Lanes {
            horizon: mean(&mut lanes().filter_map(|l| l.clock.length)),
            staleness: mean(&mut self.begun.iter().map(|b| outer_step - b.1))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimator::{Antithetic, GradientEstimator};
    use crate::{TruncatedPes, TruncatedStep, TruncationSchedule, Workers};
    use outerloop_core::Key;
    use outerloop_lopt::LearnableSgdm;
    use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
    use std::sync::Arc;

    #[test]
    fn the_ratio_is_that_of_mean_and_variance() {
        let (size, mean, std) = (200, 0.1f32, 0.5f32);
        let mut ratios = Vec::new();
        let mut running = SignalToNoise::default();
        for t in 0..4000 {
            let mut grad = vec![0.0; size];
            Key::new(1).fold_in(t).fill_normal(&mut grad);
            grad.iter_mut().for_each(|g| *g = mean + std * *g);
            running.observe(&grad);
            if t >= 500 && t % 200 == 0 {
                ratios.extend(running.ratio());
            }
        }
        let n = ratios.len() as f64;
        let average = ratios.iter().sum::<f64>() / n;
        let deviation = (ratios.iter().map(|r| (r - average).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let want = f64::from(mean * mean / (std * std));
        assert!((average - want).abs() < 4.0 * deviation / n.sqrt(), "{average} {want} {deviation}");
        assert!(deviation < 0.3 * want, "{deviation}");
    }

    #[test]
    fn without_signal_it_is_near_zero_and_without_noise_infinite() {
        let mut noise = SignalToNoise::default();
        assert_eq!(noise.ratio(), None);
        for t in 0..1000 {
            let mut grad = vec![0.0; 100];
            Key::new(2).fold_in(t).fill_normal(&mut grad);
            noise.observe(&grad);
            assert_eq!(noise.ratio().is_none(), t == 0);
        }
        assert!(noise.ratio().unwrap() < 0.01, "{:?}", noise.ratio());
        let mut same = SignalToNoise::default();
        (0..10).for_each(|_| same.observe(&[2.0, 0.0]));
        assert!(same.ratio().unwrap() > 1e6, "{:?}", same.ratio());
        same.observe(&[f32::NAN, 0.0]);
        assert!(same.ratio().unwrap() > 1e6);
        let mut zero = SignalToNoise::default();
        (0..3).for_each(|_| zero.observe(&[0.0]));
        assert_eq!(zero.ratio(), Some(0.0));
    }

    #[test]
    fn staleness_counts_from_the_outer_step_in_which_a_run_began() {
        let family = Arc::new(FixedDimQuadraticFamily { dim: 2 });
        let lopt = Arc::new(LearnableSgdm::default());
        let step = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(12)).unwrap();
        let common = Antithetic { num_tasks: 3, trunc_length: 5, ..Antithetic::default() };
        let (pes, workers) = (TruncatedPes::new(step, common).unwrap(), Workers::new(1).unwrap());
        let theta = [0.0f32; 2];
        let mut states = vec![pes.init(&theta, Key::new(0), &workers)];
        let mut seen = Vec::new();
        let mut diagnostics = Diagnostics::default();
        for t in 0..6 {
            pes.estimate(&theta, &mut states[0], t, &workers);
            let lanes = diagnostics.observe_lanes(&states, t).unwrap();
            assert_eq!(lanes.horizon, Some(12.0));
            seen.push(lanes.staleness);
        }
        // Twelve steps and the reset take thirteen: a run begins in windows 0, 2 and 5.
        assert_eq!(seen, [0.0, 1.0, 0.0, 1.0, 2.0, 0.0]);
        assert_eq!(Diagnostics::default().observe_lanes(&[], 0), None);
    }
}
