//! Measure-valued derivatives, for few meta-parameters.

use super::full_es::RunPair;
use super::{
    over_lanes, whole_length, Antithetic, Contribution, Estimate, EstimateInputs, EstimatorState, FullEs,
    FullLoss, GradientEstimator, Scale, Shaping,
};
use crate::unroll::TruncatedStep;
use crate::workers::{LaneBuffers, Workers};
use outerloop_core::{Error, Key, Result};

/// Measure-valued derivatives of the σ-smoothed loss of whole runs: one pair of runs per meta-parameter.
///
/// `∂/∂θⱼ E L(θ + σz) = 1/(σ√(2π)) E [L(θ + σz⁺ʲ) − L(θ + σz⁻ʲ)]`: `z ~ N(0, I)` with element j replaced by `±w`,
/// `w ≥ 0` with density `w exp(−w²/2)` (the difference of the two halves of the derivative of a normal density); both
/// runs share z, w and all keys. The estimate is the mean over N lanes.
///
/// Bias: none with respect to the σ-smoothed loss. Variance: does not grow with the number of meta-parameters, since an
/// element's difference is caused by it alone; that of [`FullEs`] does. Cost: 2 N P T inner steps, so it is for a handful
/// of meta-parameters.
///
/// Shapes: `theta` `[P]`.
/// Reference: Pflug 1989, doi:10.1080/17442508908833568; Mohamed et al. 2020, arXiv:1906.10652, section 6.
pub struct MeasureValued {
    es: FullEs,
}

/// More pairs of runs per lane than this are a mistake.
const MAX_PARAMS: usize = 64;

impl MeasureValued {
    /// Settings as of [`FullEs`], without sign and shaping. Errors on settings out of range and on more than 64
    /// meta-parameters.
    pub fn new(step: TruncatedStep, common: Antithetic, loss: FullLoss) -> Result<Self> {
        let params = step.lopt.theta_layout().len();
        if params > MAX_PARAMS {
            let why = format!("expected at most {MAX_PARAMS}, each takes two runs of its own; got {params}");
            return Err(Error::invalid("meta-parameters of measure-valued derivatives", why));
        }
        if common.sign.is_some() || common.shaping != Shaping::None {
            return Err(Error::invalid(
                "sign",
                "measure-valued derivatives need the loss differences themselves",
            ));
        }
        Ok(MeasureValued { es: FullEs::new(step, common, loss)? })
    }
}

/// A draw with density `w exp(−w²/2)`, by the inverse of its distribution function.
fn rayleigh(key: Key) -> f64 {
    (-2.0 * (1.0 - key.uniform()).ln()).sqrt()
}

impl GradientEstimator for MeasureValued {
    fn name(&self) -> String {
        "measure-valued".into()
    }

    fn describe(&self) -> String {
        format!("measure-valued({})", self.es.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        self.es.init(theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let (c, step) = (self.es.common(), self.es.step());
        let length = whole_length(step, state.key, outer_step);
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        let mut lanes: Vec<usize> = (0..c.num_tasks).collect();
        let std = f64::from(c.std);
        let factor = 1.0 / (std * (2.0 * std::f64::consts::PI).sqrt());
        over_lanes(inputs, &mut lanes, Scale::ONE, |worker, _, &mut i, buffers| {
            let LaneBuffers { eps, episode, .. } = buffers;
            let index = inputs.noise(i);
            c.draw(inputs, index, eps);
            let (mut whole, mut grad) = (Contribution::default(), vec![0.0; theta.len()]);
            let mut is_finite = true;
            for (j, slope) in grad.iter_mut().enumerate() {
                let w = std * rayleigh(index.key.named("measure").fold_in(j as u64));
                let opts = [w, -w].map(|replaced| {
                    worker.theta.clear();
                    worker.theta.extend(theta.iter().zip(&*eps).map(|(t, e)| t + e));
                    worker.theta[j] = theta[j] + replaced as f32;
                    step.lopt.opt_fn(&worker.theta)
                });
                let RunPair { losses, windows } =
                    self.es.run_pair(inputs, (i, length), &opts, episode, worker);
                let difference = losses[0] - losses[1];
                is_finite &= difference.is_finite();
                *slope = (factor * difference) as f32;
                let own = Contribution::of_windows(&windows);
                whole.mean_loss += (losses[0] + losses[1]) / 2.0 / theta.len() as f64;
                whole.inner_steps += own.inner_steps;
                whole.saturated = whole.saturated + own.saturated;
                whole.diverged |= own.diverged;
            }
            whole.terms = vec![(if is_finite { 1.0 } else { f64::NAN }, grad)];
            whole
        })
    }
}
