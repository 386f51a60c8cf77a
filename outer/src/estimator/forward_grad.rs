//! Forward gradients of whole runs.

use super::truncated_grad::knows_where_it_is_evaluated;
use super::{
    at_least_one, masked_mean, over_lanes, whole_length, Contribution, Estimate, EstimateInputs,
    EstimatorState, GradientEstimator, Scale,
};
use crate::episode::Episode;
use crate::forward::Forward;
use crate::truncation::TruncationSchedule;
use crate::unroll::{LaneRun, TruncatedStep};
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};

/// Directional derivatives of whole runs along random directions, in constant memory.
///
/// `g = 1/(N D) Σᵢ Σ_d (∇θ Lᵢ · u) u`, `u ~ N(0, I)` drawn anew for every lane i and direction d; `Lᵢ` the mean
/// meta-objective over a whole run from fresh parameters, its length drawn once per estimate. The derivative along u is
/// exact: a tangent of parameters and slots walks along with training.
///
/// Bias: none. Variance: that of [`super::FullGrad`], and `(P + 1)/D |∇L|²` of the directions for P meta-parameters,
/// against which only averaging helps; it explodes with the horizon where training is chaotic, as that of all exact
/// derivatives. Cost: per inner step one gradient, D Hessian-vector products and D update derivatives. Memory: D states,
/// whatever the length.
///
/// Shapes: `theta` and every direction `[P]`.
/// Reference: Baydin et al. 2022, arXiv:2202.08587; Silver et al. 2022, arXiv:2108.08298 (DODGE).
#[derive(Debug)]
pub struct ForwardGrad {
    step: TruncatedStep,
    num_tasks: usize,
    directions: usize,
}

impl ForwardGrad {
    /// `num_tasks` runs per estimate, each with so many directions. Errors if either is 0, runs never end, or the
    /// update rule has no derivative in forward mode.
    pub fn new(step: TruncatedStep, num_tasks: usize, directions: usize) -> Result<Self> {
        step.validate()?;
        at_least_one("num_tasks", num_tasks)?;
        at_least_one("directions", directions)?;
        if step.schedule == TruncationSchedule::NeverEnding {
            return Err(Error::invalid("schedule of forward gradients", "runs must end"));
        }
        let opt = step.lopt.opt_fn(&step.lopt.init(Key::new(0)));
        Forward::new(&step, &*opt, &[])?;
        knows_where_it_is_evaluated(&step, &*opt)?;
        Ok(ForwardGrad { step, num_tasks, directions })
    }
}

impl GradientEstimator for ForwardGrad {
    fn name(&self) -> String {
        "forward-grad".into()
    }

    fn describe(&self) -> String {
        let ForwardGrad { step, num_tasks, directions } = self;
        format!("forward-grad(num_tasks={num_tasks}, directions={directions}, {})", step.describe())
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
            let noise = inputs.noise(i).key;
            let directions: Vec<Vec<f32>> = (0..self.directions)
                .map(|d| {
                    let mut u = vec![0.0; theta.len()];
                    noise.fold_in(d as u64).fill_normal(&mut u);
                    u
                })
                .collect();
            let mut episode = Episode::new(&self.step.family, inputs.lane(i), outer_step);
            let opt = self.step.lopt.opt_fn(theta);
            let (mut clock, [mut trajectory]) = self.step.start_of_length(&episode, [&*opt], Some(length));
            let (clock, trajectories) = (&mut clock, [&mut trajectory]);
            let mut run = LaneRun { episode: &mut episode, clock, trajectories, outer_step };
            let forward =
                Forward::new(&self.step, &*opt, &directions).expect("the constructor checked the rule");
            let (window, slopes) = forward.run(&mut run, length as usize, worker);
            let scale = 1.0 / self.directions as f64;
            Contribution {
                mean_loss: masked_mean(&window),
                inner_steps: length,
                saturated: window.saturated,
                diverged: window.diverged,
                terms: slopes.iter().map(|slope| slope * scale).zip(directions).collect(),
                ..Contribution::default()
            }
        })
    }
}
