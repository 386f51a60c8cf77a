//! Backpropagation through whole runs.

use super::truncated_grad::{check, contribution};
use super::{over_lanes, whole_length, Estimate, EstimateInputs, EstimatorState, GradientEstimator, Scale};
use crate::adjoint::{StepWeights, SweepConfig};
use crate::episode::Episode;
use crate::truncation::TruncationSchedule;
use crate::unroll::{LaneRun, TruncatedStep};
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};

/// Exact gradients of whole runs from fresh parameters, by an adjoint sweep.
///
/// `g = 1/N Σᵢ ∇θ Lᵢ`, `Lᵢ` the meta-objective over a whole run; the length is drawn once per
/// estimate from `step.schedule`.
///
/// Bias: none. Variance: that of tasks, starts and batches only, but exploding where inner training
/// is chaotic. Cost: as [`super::TruncatedGrad`], over the whole run.
///
/// Reference: Andrychowicz et al. 2016, arXiv:1606.04474; Maclaurin et al. 2015, arXiv:1502.03492.
pub struct FullGrad {
    step: TruncatedStep,
    num_tasks: usize,
    sweep: SweepConfig,
}

impl FullGrad {
    /// `num_tasks` runs per estimate. Errors if runs never end, step weights are given for a length that
    /// varies, or the update rule has no derivative.
    pub fn new(step: TruncatedStep, num_tasks: usize, sweep: SweepConfig) -> Result<Self> {
        check(&step, num_tasks, &sweep)?;
        match (&step.schedule, &sweep.weights) {
            (TruncationSchedule::NeverEnding, _) => {
                Err(Error::invalid("schedule of full gradients", "runs must end"))
            }
            (TruncationSchedule::Constant(n), StepWeights::Given(w)) if w.len() as u64 == *n => Ok(()),
            (schedule, StepWeights::Given(w)) => {
                Err(Error::mismatch("step weights", format!("as many as steps, {schedule:?}"), w.len()))
            }
            _ => Ok(()),
        }?;
        Ok(FullGrad { step, num_tasks, sweep })
    }
}

impl GradientEstimator for FullGrad {
    fn name(&self) -> String {
        "full-grad".into()
    }

    fn describe(&self) -> String {
        format!("full-grad(num_tasks={}, {:?}, {})", self.num_tasks, self.sweep, self.step.describe())
    }

    fn init(&self, _: &[f32], key: Key, _: &Workers) -> EstimatorState {
        EstimatorState::new(key)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let length = whole_length(&self.step, state.key, outer_step);
        let mut lanes: Vec<usize> = (0..self.num_tasks).collect();
        let inputs = EstimateInputs::new(theta, state, outer_step, workers);
        over_lanes(inputs, &mut lanes, Scale::ONE, |worker, _, &mut i, _| {
            // Each estimate is a run of its own, numbered by the outer step.
            let mut episode = Episode::new(&self.step.family, inputs.lane(i), outer_step);
            let opt = self.step.lopt.opt_fn(theta);
            let (mut clock, [mut trajectory]) = self.step.start_of_length(&episode, [&*opt], Some(length));
            let (clock, trajectories) = (&mut clock, [&mut trajectory]);
            let mut run = LaneRun { episode: &mut episode, clock, trajectories, outer_step };
            let sweep = self.step.window_and_grad(theta, &mut run, length as usize, &self.sweep, worker);
            contribution(sweep.expect("the constructor checked the settings"))
        })
    }
}
