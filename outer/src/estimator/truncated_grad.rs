//! Truncated backpropagation through the unroll.

use super::{
    at_least_one, masked_mean, over_lanes, start_lanes, trained_steps, Contribution, Estimate,
    EstimateInputs, EstimatorState, GradientEstimator, Scale,
};
use crate::adjoint::{StepWeights, Sweep, SweepConfig};
use crate::episode::Episode;
use crate::unroll::{LaneRun, MetaLoss, TruncatedStep};
use crate::workers::Workers;
use outerloop_core::{Error, Key, Layout, Optimizer, Params, Result};

/// Exact gradients of windows of an unroll, by an adjoint sweep.
///
/// `g = 1/N Σᵢ ∇θ Lᵢ`, where `Lᵢ` is lane i's meta-objective over the next K steps and the state at
/// the start of the window is a constant.
///
/// Bias: truncation bias (short-sighted), none within the window. Variance: that of tasks and
/// batches only, but exploding where inner training is chaotic (see [`SweepConfig::clip`]).
/// Cost: per lane K inner steps forward, and backward one Hessian-vector product and one update
/// derivative per step, plus the recomputation that [`crate::adjoint::Memory`] asks for.
///
/// Reference: Werbos 1990, doi:10.1109/5.58337; Metz et al. 2019, arXiv:1810.10180.
pub struct TruncatedGrad {
    step: TruncatedStep,
    num_tasks: usize,
    trunc_length: usize,
    sweep: SweepConfig,
}

impl TruncatedGrad {
    /// `num_tasks` lanes, `trunc_length` steps per estimate. Errors if either is 0 or the update rule
    /// has no derivative.
    pub fn new(
        step: TruncatedStep,
        num_tasks: usize,
        trunc_length: usize,
        sweep: SweepConfig,
    ) -> Result<Self> {
        check(&step, num_tasks, &sweep)?;
        at_least_one("trunc_length", trunc_length)?;
        if let StepWeights::Given(w) = &sweep.weights {
            if w.len() != trunc_length {
                return Err(Error::mismatch("step weights", trunc_length, w.len()));
            }
        }
        Ok(TruncatedGrad { step, num_tasks, trunc_length, sweep })
    }
}

/// What both gradient estimators need.
pub(super) fn check(step: &TruncatedStep, num_tasks: usize, sweep: &SweepConfig) -> Result<()> {
    step.validate()?;
    at_least_one("num_tasks", num_tasks)?;
    sweep.validate()?;
    let opt = step.lopt.opt_fn(&step.lopt.init(Key::new(0)));
    if opt.update_vjp().is_none() {
        let why = "its update has no derivative; implement `Optimizer::update_vjp` or use an ES estimator";
        return Err(Error::invalid(format!("optimizer {}", opt.name()), why));
    }
    knows_where_it_is_evaluated(step, &*opt)
}

/// Errors if the meta-loss is taken at an average of parameters, whose derivative is not known.
pub(super) fn knows_where_it_is_evaluated(step: &TruncatedStep, opt: &dyn Optimizer) -> Result<()> {
    if step.meta_loss != MetaLoss::Train && averages(opt) {
        let why = "it averages its parameters, and exact gradients know the plain ones only; use the \
                   training meta-loss or an ES estimator";
        return Err(Error::invalid(format!("optimizer {}", opt.name()), why));
    }
    Ok(())
}

/// Whether the parameters that the optimizer means are others than those where it takes gradients.
pub(super) fn averages(opt: &dyn Optimizer) -> bool {
    let layout = std::sync::Arc::new(Layout::new([("p", vec![2])]));
    let mut state = opt.init(&Params::zeros(layout), Some(2), Key::new(0));
    for grad in [[1.0, 1.0], [-1.0, 2.0]] {
        opt.update(&mut state, &grad, 1.0, Key::new(0));
    }
    *opt.evaluation_params(&state) != state.params[..]
}

/// One lane's share of a mean of gradients; a non-finite one is masked.
pub(super) fn contribution(sweep: Sweep<f32>) -> Contribution {
    let finite = sweep.loss.is_finite() && sweep.grad.iter().all(|g| g.is_finite());
    Contribution {
        mean_loss: masked_mean(&sweep.window),
        inner_steps: trained_steps(&sweep.window),
        saturated: sweep.window.saturated,
        diverged: sweep.window.diverged,
        terms: vec![(if finite { 1.0 } else { f64::NAN }, sweep.grad)],
        ..Contribution::default()
    }
}

impl GradientEstimator for TruncatedGrad {
    fn name(&self) -> String {
        "grad".into()
    }

    fn describe(&self) -> String {
        format!(
            "grad(num_tasks={}, trunc_length={}, {:?}, {})",
            self.num_tasks,
            self.trunc_length,
            self.sweep,
            self.step.describe()
        )
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        start_lanes(&self.step, self.num_tasks, theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        over_lanes(inputs, &mut state.lanes, Scale::ONE, |worker, i, lane, _| {
            let clock = &mut lane.clock;
            let mut episode = Episode::new(&self.step.family, inputs.lane(i), clock.episode);
            let trajectories = [&mut lane.trajectories[0]];
            let mut run = LaneRun { episode: &mut episode, clock, trajectories, outer_step };
            let sweep = self.step.window_and_grad(theta, &mut run, self.trunc_length, &self.sweep, worker);
            let c = contribution(sweep.expect("the constructor checked the settings"));
            lane.clock.is_done |= c.diverged;
            c
        })
    }
}
