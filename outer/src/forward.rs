//! Directional derivatives of an unroll, by tangents that walk along with it.
//!
//! With `u` a direction of theta, and ṡ, ṗ how the optimizer's state and its parameters move along it, a step is
//! `ġ = H(p) ṗ`, `l̇ = g · ṗ`, then `ṡ ← UpdateJvp(ṡ, ġ, l̇, u)`; exact to second order, in the memory of one state for
//! each direction. The counterpart of [`crate::adjoint`], whose cost does not depend on the number of meta-parameters
//! but whose memory grows with the length.
//!
//! Reference: Williams and Zipser 1989, doi:10.1162/neco.1989.1.2.270 (real-time recurrent learning); Franceschi et al.
//! 2017, arXiv:1703.01785 (forward-mode hyperparameter gradients).

use crate::implicit::vector::dot;
use crate::unroll::{LaneRun, StepOutcome, TruncatedStep, Window};
use crate::workers::Worker;
use outerloop_core::{Error, Float, OptState, Optimizer, Result, UpdateJvp, UpdateTangent};

/// A run to be differentiated along directions of theta.
pub(crate) struct Forward<'a, E: Float> {
    rules: &'a TruncatedStep<E>,
    opt: &'a dyn Optimizer<E>,
    jvp: &'a dyn UpdateJvp<E>,
    /// Each `[theta]`.
    directions: &'a [Vec<E>],
}

impl<'a, E: Float> Forward<'a, E> {
    /// `opt`: the optimizer at the theta in question. Errors if it has no derivative in forward mode.
    pub fn new(
        rules: &'a TruncatedStep<E>,
        opt: &'a dyn Optimizer<E>,
        directions: &'a [Vec<E>],
    ) -> Result<Self> {
        let jvp = opt.update_jvp().ok_or_else(|| {
            let why =
                "its update has no derivative in forward mode; implement `Optimizer::update_jvp`, or use \
                       backpropagation or an ES estimator";
            Error::invalid(format!("optimizer {}", opt.name()), why)
        })?;
        Ok(Forward { rules, opt, jvp, directions })
    }

    /// Trains a fresh run for `steps` steps, at most its length. Returns what happened and, for every direction, the
    /// derivative of the mean over steps of the meta-objective.
    pub fn run(
        &self,
        run: &mut LaneRun<'_, E, 1>,
        steps: usize,
        worker: &mut Worker<E>,
    ) -> (Window, Vec<f64>) {
        let start = &run.trajectories[0].opt;
        let mut tangents: Vec<OptState<E>> =
            self.directions.iter().map(|u| self.jvp.init_jvp(start, u)).collect();
        let mut slopes = vec![0.0; tangents.len()];
        let mut window = Window::with_capacity(steps);
        for _ in 0..steps {
            let along = self.step(run, &mut tangents, &mut window, worker);
            slopes.iter_mut().zip(along).for_each(|(slope, along)| *slope += along / steps as f64);
        }
        (window, slopes)
    }

    /// One step; returns the derivatives of its part of the meta-objective.
    fn step(
        &self,
        run: &mut LaneRun<'_, E, 1>,
        tangents: &mut [OptState<E>],
        window: &mut Window,
        worker: &mut Worker<E>,
    ) -> Vec<f64> {
        let (rules, opt) = (self.rules, self.opt);
        let (at, key) = (run.episode.batch(run.clock), run.episode.keys.opt);
        let before = run.trajectories[0].clone();
        let trained = rules.train_linearized(opt, run, worker);
        let (loss, mut linearization) = trained.expect("a fresh run of at least this length");
        let grad = worker.grad.clone();
        let [meta] = rules.meta_losses([opt], [loss], at, run, worker);
        let (task, objective) = (run.episode.task.clone(), rules.objective_of(run.episode));
        window.push(objective, &*task, run.clock, StepOutcome::Trained { loss, meta });
        let emphasis = objective.emphasis.weight(run.clock.inner_step - 1, run.clock.length);
        let slope = emphasis * objective.slope(&*task, meta.f64());
        let (evaluator, scratch) = worker.evaluator(&task);
        let after = &run.trajectories[0];
        let meta_grad = rules.meta_loss.batch(at).map(|at| {
            let mut g = vec![E::of(0.0); grad.len()];
            evaluator.loss_and_grad(&after.opt.params, &mut after.model_state.clone(), at, &mut g);
            g
        });
        let along = tangents.iter_mut().zip(self.directions).map(|(tangent, theta)| {
            let mut hv = vec![E::of(0.0); grad.len()];
            match &mut linearization {
                Some(linearization) => linearization.hvp(&tangent.params, &mut hv),
                None => {
                    let (params, state) = (&before.opt.params, &before.model_state);
                    evaluator.loss_grad_hvp(params, state, at, &tangent.params, scratch, &mut hv);
                }
            }
            let moved = dot(&grad, &tangent.params);
            let moves = UpdateTangent { state: tangent, grad: &hv, loss: E::of(moved), theta };
            *tangent = self.jvp.jvp(&before.opt, &grad, loss, key, moves);
            let meta_moved = meta_grad.as_ref().map_or(moved, |g| dot(g, &tangent.params));
            // A step at an end of the objective's scale says nothing, whatever became of its tangent.
            if slope == 0.0 {
                0.0
            } else {
                slope * meta_moved
            }
        });
        along.collect()
    }
}
