//! Evolution strategies and unrolled gradients, mixed by their variances.

use super::reduce::reduce;
use super::truncated_grad::check;
use super::{
    start_lanes, trained_steps, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState,
    GradientEstimator, Lane, Shaping, TruncatedEs,
};
use crate::adjoint::{StepWeights, Sweep, SweepConfig};
use crate::episode::Episode;
use crate::unroll::{LaneRun, TruncatedStep};
use crate::workers::{LaneBuffers, Worker, Workers};
use outerloop_core::{Error, Key, Result};

/// Two estimates of the gradient of one smoothed window, mixed per meta-parameter by their variances.
///
/// Each lane runs its window at `θ ± εᵢ` from a shared inner state, as [`TruncatedEs`], and differentiates both runs:
/// `aᵢ = (∇L(θ + εᵢ) + ∇L(θ − εᵢ))/2` and `bᵢ = εᵢ (Lᵢ⁺ − Lᵢ⁻)/(2σ²)` have the same expectation. With their means and
/// their empirical variances over lanes, for every meta-parameter j
/// `gⱼ = (āⱼ/v(aⱼ) + b̄ⱼ/v(bⱼ)) / (1/v(aⱼ) + 1/v(bⱼ))`.
/// The lane goes on from the positive trajectory.
///
/// Bias: truncation bias as [`TruncatedEs`]; none else in each part, and of order 1/N in the mix, whose weights share
/// the parts' noise. Variance: about the smaller of the two: where unrolled gradients explode, ES takes over; a lane whose gradient
/// is not finite leaves the whole estimate to ES. Cost: 2 N K inner steps and as many of the adjoint sweep.
///
/// Shapes: `theta` `[P]`, parts `[N, P]`.
/// Reference: Metz et al. 2019, arXiv:1810.10180, section 4.
pub struct Mixed {
    step: TruncatedStep,
    common: Antithetic,
    sweep: SweepConfig,
}

impl Mixed {
    /// At least two lanes; `sweep` as of [`super::TruncatedGrad`], its weights by `common.window_loss`. Errors on
    /// settings out of range, an update rule without derivative, and sign or shaping, which leave the two parts
    /// without a common expectation.
    pub fn new(step: TruncatedStep, common: Antithetic, sweep: SweepConfig) -> Result<Self> {
        common.validate(&step)?;
        check(&step, common.num_tasks, &sweep)?;
        if common.num_tasks < 2 {
            return Err(Error::invalid(
                "num_tasks",
                "expected at least 2, whose variance can be measured, got 1",
            ));
        }
        if common.sign.is_some() || common.shaping != Shaping::None {
            return Err(Error::invalid("sign", "the mix needs the loss differences themselves"));
        }
        if sweep.weights != StepWeights::Mean {
            return Err(Error::invalid(
                "step weights",
                "expected the default: the mix weighs as `window_loss` says",
            ));
        }
        Ok(Mixed { step, common, sweep })
    }

    /// Runs and differentiates a lane's window at `θ ± ε`: what ES takes of it, and the mean unrolled gradient.
    fn parts(
        &self,
        inputs: EstimateInputs<'_>,
        i: usize,
        lane: &mut Lane,
        buffers: &mut LaneBuffers<f32>,
        worker: &mut Worker,
    ) -> (Contribution, Vec<f32>) {
        let (c, step) = (&self.common, &self.step);
        c.draw(inputs, inputs.noise(i), &mut buffers.eps);
        let start = (lane.clock.clone(), lane.trajectories[0].clone());
        let [minus, plus] = [-1.0, 1.0].map(|sign| {
            (lane.clock, lane.trajectories[0]) = start.clone();
            let mut episode = Episode::new(&step.family, inputs.lane(i), lane.clock.episode);
            let trajectories = [&mut lane.trajectories[0]];
            let outer_step = inputs.outer_step;
            let mut run = LaneRun { episode: &mut episode, clock: &mut lane.clock, trajectories, outer_step };
            let theta: Vec<f32> = super::moved(inputs.theta, sign, &buffers.eps).collect();
            let sweep = step.window_and_grad(&theta, &mut run, c.trunc_length, &self.sweep, worker);
            sweep.expect("the constructor checked the settings")
        });
        let windows = [plus.window.clone(), minus.window.clone()];
        // The sweep's objective is the mean over the window.
        let steps = trained_steps(&plus.window).max(1) as f64;
        let scale = (steps / c.window_loss.divisor(&plus.window.mask) / 2.0) as f32;
        let unrolled = |plus: &Sweep<f32>, minus: &Sweep<f32>| {
            plus.grad.iter().zip(&minus.grad).map(|(a, b)| scale * (a + b)).collect()
        };
        let eps = TruncatedEs::difference(&windows[0], &windows[1], c.window_loss, None);
        let of_pair = Contribution { eps, ..Contribution::of_windows(&windows) };
        lane.clock.is_done |= of_pair.diverged;
        (of_pair, unrolled(&plus, &minus))
    }

    /// The mix per meta-parameter, from the lanes' pairs and unrolled gradients; `es`: the mean of ES.
    fn mix(
        &self,
        pairs: &[Contribution],
        unrolled: &[Vec<f32>],
        buffers: &[LaneBuffers<f32>],
        es: &[f32],
    ) -> Vec<f32> {
        let factor = self.common.factor();
        // Per lane: the unrolled gradient, the perturbation and its weight.
        let lanes = pairs.iter().zip(unrolled).zip(buffers).filter(|((pair, _), _)| pair.eps.is_finite());
        let lanes: Vec<(&[f32], &[f32], f64)> =
            lanes.map(|((pair, a), b)| (&a[..], &b.eps[..], factor * pair.eps)).collect();
        if lanes.len() < 2 || lanes.iter().any(|(a, _, _)| a.iter().any(|a| !a.is_finite())) {
            return es.to_vec();
        }
        let n = lanes.len() as f64;
        // Masked lanes count as zeros in the mean of ES; here they do not count.
        let es_scale = pairs.len() as f64 / n;
        let mixed = |(j, es): (usize, &f32)| {
            let means =
                [lanes.iter().map(|(a, _, _)| f64::from(a[j])).sum::<f64>() / n, f64::from(*es) * es_scale];
            let mut squares = [0.0; 2];
            for (a, eps, weight) in &lanes {
                squares[0] += (f64::from(a[j]) - means[0]).powi(2);
                squares[1] += (weight * f64::from(eps[j]) - means[1]).powi(2);
            }
            inverse_variance_mean(means, squares) as f32
        };
        es.iter().enumerate().map(mixed).collect()
    }
}

/// `(a/u + b/v) / (1/u + 1/v)`; the plain mean of two that are exact.
fn inverse_variance_mean([a, b]: [f64; 2], [u, v]: [f64; 2]) -> f64 {
    match u + v {
        0.0 => (a + b) / 2.0,
        // The larger may be infinite.
        sum if sum.is_infinite() => {
            if u < v {
                a
            } else {
                b
            }
        }
        sum => (a * v + b * u) / sum,
    }
}

impl GradientEstimator for Mixed {
    fn name(&self) -> String {
        "mixed".into()
    }

    fn describe(&self) -> String {
        format!("mixed({:?}, {:?}, {})", self.common, self.sweep, self.step.describe())
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
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        workers.with_lane_buffers(state.lanes.len(), |buffers| {
            let mut items: Vec<_> = state.lanes.iter_mut().zip(&mut *buffers).collect();
            let parts = workers
                .map(&mut items, |worker, i, (lane, buffers)| self.parts(inputs, i, lane, buffers, worker));
            let (pairs, unrolled): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            let es = reduce(workers, theta.len(), self.common.factor(), &pairs, buffers);
            Estimate { grad: self.mix(&pairs, &unrolled, buffers, &es.grad), ..es }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::inverse_variance_mean;

    #[test]
    fn the_smaller_variance_weighs_more() {
        assert_eq!(inverse_variance_mean([1.0, 4.0], [1.0, 2.0]), 2.0);
        assert_eq!(inverse_variance_mean([1.0, 4.0], [0.0, 2.0]), 1.0);
        assert_eq!(inverse_variance_mean([1.0, 4.0], [f64::INFINITY, 2.0]), 4.0);
        assert_eq!(inverse_variance_mean([1.0, 4.0], [0.0, 0.0]), 2.5);
    }
}
