//! The outer update: estimates averaged, one step of any [`Optimizer`] on theta.

use crate::diagnostics::{Diagnostics, Lanes};
use crate::estimator::{Estimate, EstimatorState, GradientEstimator};
use crate::fingerprint;
use crate::health::{Health, Warning};
use crate::validation::{Validated, Validation};
use crate::workers::Workers;
use outerloop_core::{Error, Key, LearnedOptimizer, OptState, Optimizer, Params, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Arc;

/// Meta-trains a learned optimizer: several estimators averaged, any optimizer on theta.
///
/// Clipping and outer schedules are optimizers too (wrap `theta_opt`). Stateless: all that changes
/// is in [`LearnerState`], which can be saved at any step and continued to the same bytes.
pub struct GradientLearner {
    lopt: Arc<dyn LearnedOptimizer>,
    estimators: Vec<Box<dyn GradientEstimator>>,
    theta_opt: Box<dyn Optimizer>,
    num_steps: u64,
    validation: Option<Validation>,
    note: String,
}

/// Everything about a meta-training run that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnerState {
    /// What made this state: a learner with another description refuses it.
    pub fingerprint: String,
    /// Root of all keys.
    pub key: Key,
    /// Theta and the outer optimizer's slots.
    pub theta: OptState,
    /// Outer steps done.
    pub outer_step: u64,
    /// Inner steps done, all lanes and signs.
    pub inner_steps: u64,
    /// Outer updates left out because the estimate, or theta after it, was not finite.
    pub skipped: u64,
    /// Counts of steps that taught nothing.
    pub health: Health,
    /// Noise of the meta-gradients, and when lanes began their runs.
    pub diagnostics: Diagnostics,
    /// One state per estimator.
    pub estimators: Vec<EstimatorState>,
    /// What validation found, if the learner has one.
    pub validated: Option<Validated>,
}

impl LearnerState {
    /// Signs that the run so far learns nothing, or not what was asked for, with what to do about it.
    pub fn warnings(&self) -> Vec<Warning> {
        self.health.warnings(self.outer_step, self.skipped, self.inner_steps)
    }
}

/// What one outer step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The objective (by default the normalized loss), averaged over estimators.
    pub mean_loss: f64,
    /// 2-norm of the averaged estimate.
    pub grad_norm: f64,
    /// Running signal-to-noise ratio of the averaged estimate ([`Diagnostics`]); none in the first step.
    pub signal_to_noise: Option<f64>,
    /// Share of its elements that the outer optimizer clipped.
    pub clipped: f64,
    /// The lanes after this step, where they go on from step to step.
    pub runs: Option<Lanes>,
    /// Inner steps computed in this step.
    pub inner_steps: u64,
    /// Lanes that diverged and were reset.
    pub diverged: usize,
    /// Lanes left out of the estimate.
    pub masked: usize,
    /// The estimate was not finite, and theta was left alone.
    pub skipped: bool,
    /// The outer update made theta non-finite, and theta and the outer optimizer's slots were put back. It
    /// counts as skipped, too.
    pub undone: bool,
    /// The new theta's score, if the step ended with a validation.
    pub validation: Option<f64>,
}

impl GradientLearner {
    /// A learner for `num_steps` outer steps, at least 1. Errors if there is none, or no estimator.
    pub fn new(
        lopt: Arc<dyn LearnedOptimizer>,
        estimators: Vec<Box<dyn GradientEstimator>>,
        theta_opt: Box<dyn Optimizer>,
        num_steps: u64,
    ) -> Result<Self> {
        if estimators.is_empty() {
            return Err(Error::invalid("estimators", "need at least one"));
        }
        if num_steps == 0 {
            return Err(Error::invalid("number of outer steps", "must be at least 1, got 0"));
        }
        let (validation, note) = (None, String::new());
        Ok(GradientLearner { lopt, estimators, theta_opt, num_steps, validation, note })
    }

    /// Adds to the description that a resumed run must match, e.g. data set and kernel path.
    #[must_use]
    pub fn with_note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Measures theta now and then and keeps the best: [`Self::chosen_theta`]. Default: the last
    /// theta counts. Errors on numbers out of range.
    pub fn with_validation(mut self, validation: Validation) -> Result<Self> {
        validation.validate()?;
        self.validation = Some(validation);
        Ok(self)
    }

    /// The theta to use: the best by validation, or else the last, as the outer optimizer means it
    /// ([`Optimizer::evaluation_params`]).
    pub fn chosen_theta<'a>(&self, state: &'a LearnerState) -> Cow<'a, [f32]> {
        match &state.validated {
            Some(v) => Cow::Borrowed(&v.theta),
            None => self.theta_opt.evaluation_params(&state.theta),
        }
    }

    /// Planned outer steps.
    pub fn num_steps(&self) -> u64 {
        self.num_steps
    }

    fn fingerprint(&self) -> String {
        let mut parts: Vec<String> = self.estimators.iter().map(|e| e.describe()).collect();
        parts.extend(self.validation.as_ref().map(Validation::describe));
        format!(
            "lopt={}; outer={} for {} steps; {}; {}",
            fingerprint::of_lopt(&*self.lopt),
            fingerprint::short(self.theta_opt.describe()),
            self.num_steps,
            parts.join("; "),
            self.note
        )
    }

    /// The state before the first outer step.
    pub fn init(&self, key: Key, workers: &Workers) -> Result<LearnerState> {
        let theta = self.lopt.init(key.named("theta"));
        self.init_from(theta, key, workers)
    }

    /// [`Self::init`] from a given theta. Errors if it has another length or is not finite.
    pub fn init_from(&self, theta: Vec<f32>, key: Key, workers: &Workers) -> Result<LearnerState> {
        let theta = Params::new(self.lopt.theta_layout(), theta)?;
        if !is_finite(&theta.data) {
            return Err(Error::invalid("initial theta", "expected finite numbers"));
        }
        let estimators = self.estimators.iter().enumerate();
        let estimators = estimators
            .map(|(i, e)| e.init(&theta.data, key.named("estimator").fold_in(i as u64), workers))
            .collect();
        Ok(LearnerState {
            fingerprint: self.fingerprint(),
            key,
            outer_step: 0,
            inner_steps: 0,
            skipped: 0,
            health: Health::default(),
            diagnostics: Diagnostics::default(),
            estimators,
            validated: None,
            theta: self.theta_opt.init(&theta, Some(self.num_steps), key.named("outer")),
        })
    }

    /// Errors unless this learner made the state; call it after loading one.
    pub fn check(&self, state: &LearnerState) -> Result<()> {
        let mine = self.fingerprint();
        if mine == state.fingerprint {
            return Ok(());
        }
        let [mine, saved] = fingerprint::first_difference(&mine, &state.fingerprint);
        Err(Error::mismatch("saved run", mine, saved))
    }

    /// Takes over a state of `before`: a deliberate change of a run in progress. Only the settings of the
    /// outer optimizer, the number of outer steps, how often theta is validated, and the note may differ.
    /// The result is what this learner continues; the checks refuse it to `before`.
    ///
    /// # Errors
    /// If `before` did not make the state, if anything else differs (the slots of the outer optimizer, too),
    /// or if another number of outer steps leaves none to do.
    pub fn adopt(&self, before: &GradientLearner, mut state: LearnerState) -> Result<LearnerState> {
        before.check(&state)?;
        let (mine, theirs) = (self.fixed(), before.fixed());
        if mine != theirs {
            return Err(Error::mismatch("what a running meta-training keeps", theirs, mine));
        }
        let theta = Params::new(state.theta.layout.clone(), state.theta.params.clone())?;
        let fresh = self.theta_opt.init(&theta, Some(self.num_steps), state.key.named("outer"));
        let shapes =
            |s: &OptState| s.slots.iter().map(|s| (s.name.clone(), s.data.len())).collect::<Vec<_>>();
        if shapes(&fresh) != shapes(&state.theta) {
            return Err(Error::mismatch("outer optimizer's slots", shapes(&state.theta), shapes(&fresh)));
        }
        // The last step is validated: it has to be one that is still to come.
        if self.num_steps != before.num_steps && self.num_steps <= state.outer_step {
            let why = format!("{} are done already, got {}", state.outer_step, self.num_steps);
            return Err(Error::invalid("number of outer steps", why));
        }
        state.theta.num_steps = Some(self.num_steps);
        state.fingerprint = self.fingerprint();
        Ok(state)
    }

    /// The part of the fingerprint that [`Self::adopt`] does not let change.
    fn fixed(&self) -> Vec<String> {
        let estimators = self.estimators.iter().map(|e| e.describe());
        let validation = self.validation.iter().map(|v| Validation { every: 1, ..v.clone() }.describe());
        std::iter::once(fingerprint::of_lopt(&*self.lopt)).chain(estimators).chain(validation).collect()
    }

    /// One outer step. A pure function of the state, whatever the number of workers.
    pub fn step(&self, state: &mut LearnerState, workers: &Workers) -> StepReport {
        let n = self.estimators.len() as f32;
        let mut grad = vec![0.0f32; state.theta.params.len()];
        let mut estimates: Vec<Estimate> = Vec::with_capacity(self.estimators.len());
        for (estimator, s) in self.estimators.iter().zip(&mut state.estimators) {
            let e = estimator.estimate(&state.theta.params, s, state.outer_step, workers);
            for (g, e) in grad.iter_mut().zip(&e.grad) {
                *g += e / n;
            }
            estimates.push(e);
        }
        let losses = || estimates.iter().map(|e| e.mean_loss).filter(|loss| !loss.is_nan());
        let mean_loss = losses().sum::<f64>() / losses().count() as f64;
        let square = grad.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        let grad_norm = square.sqrt();
        state.diagnostics.signal_to_noise.observe_with(&grad, square);
        let mut report = StepReport {
            mean_loss,
            grad_norm,
            signal_to_noise: state.diagnostics.signal_to_noise.ratio(),
            clipped: self.theta_opt.clipped(&grad),
            runs: state.diagnostics.observe_lanes(&state.estimators, state.outer_step),
            inner_steps: estimates.iter().map(|e| e.inner_steps).sum(),
            diverged: estimates.iter().map(|e| e.diverged).sum(),
            masked: estimates.iter().map(|e| e.masked).sum(),
            skipped: !grad_norm.is_finite(),
            undone: false,
            validation: None,
        };
        if !report.skipped {
            report.undone = !self.update_theta(state, &grad, mean_loss);
            report.skipped = report.undone;
        }
        state.outer_step += 1;
        state.inner_steps += report.inner_steps;
        state.skipped += u64::from(report.skipped);
        state.health.zero += u64::from(grad_norm == 0.0);
        state.health.clipped += u64::from(report.clipped >= 0.5);
        for e in &estimates {
            state.health.saturated = state.health.saturated + e.saturated;
        }
        if let Some(v) = self.validation.as_ref().filter(|v| v.is_due(state.outer_step, self.num_steps)) {
            let theta = self.theta_opt.evaluation_params(&state.theta);
            let score = v.score(&*self.lopt.opt_fn(&theta), workers);
            v.update(&mut state.validated, score, state.outer_step, &theta);
            report.validation = Some(score);
        }
        report
    }

    /// The outer update; `false` if it would make theta non-finite, and then nothing has changed.
    fn update_theta(&self, state: &mut LearnerState, grad: &[f32], mean_loss: f64) -> bool {
        let before = state.theta.clone();
        self.theta_opt.update(&mut state.theta, grad, mean_loss as f32, state.key.named("outer"));
        let is_good =
            is_finite(&state.theta.params) && is_finite(&self.theta_opt.evaluation_params(&state.theta));
        if !is_good {
            state.theta = before;
        }
        is_good
    }
}

fn is_finite(theta: &[f32]) -> bool {
    theta.iter().all(|x| x.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimator::Antithetic;
    use crate::objective::{LossScale, Objective};
    use crate::{TruncatedPes, TruncatedStep, TruncationSchedule};
    use outerloop_lopt::hand::{Adam, Clip, ClipRule, Cosine, Sgd};
    use outerloop_lopt::LearnableAdam;
    use outerloop_tasks::quadratics::FixedDimQuadraticFamily;

    fn learner(outer: impl Optimizer + 'static, scale: LossScale) -> GradientLearner {
        let lopt: Arc<dyn LearnedOptimizer> = Arc::new(LearnableAdam::default());
        let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
        let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(20))
            .and_then(|s| s.with_objective(Objective { scale, ..Objective::default() }))
            .unwrap();
        let common = Antithetic { num_tasks: 2, trunc_length: 5, ..Antithetic::default() };
        let pes = TruncatedPes::new(step, common).unwrap();
        GradientLearner::new(lopt, vec![Box::new(pes)], Box::new(outer), 30).unwrap()
    }

    fn run(learner: &GradientLearner) -> LearnerState {
        let workers = Workers::new(1).unwrap();
        let mut state = learner.init(Key::new(0), &workers).unwrap();
        for _ in 0..30 {
            learner.step(&mut state, &workers);
        }
        state
    }

    #[test]
    fn a_state_of_another_outer_optimizer_is_refused() {
        let learner = |outer: Adam| learner(outer, LossScale::Linear);
        let saved = learner(Adam::new(1e-2)).init(Key::new(0), &Workers::new(1).unwrap()).unwrap();
        assert!(learner(Adam::new(1e-2)).check(&saved).is_ok());
        for (what, other) in [
            ("learning_rate: Constant(0.1)", Adam::new(1e-1)),
            ("beta1: 0.5", Adam { beta1: 0.5, ..Adam::new(1e-2) }),
            ("Cosine", Adam::new(Cosine::default())),
        ] {
            let error = learner(other).check(&saved).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    /// Gradient descent whose fourth step fails.
    #[derive(Debug)]
    struct Breaks;
    impl Optimizer for Breaks {
        fn name(&self) -> String {
            "breaks".into()
        }
        fn init(&self, params: &Params, num_steps: Option<u64>, _: Key) -> OptState {
            OptState::new(params, num_steps).with_zeros("spoilt")
        }
        fn update(&self, state: &mut OptState, grad: &[f32], loss: f32, key: Key) {
            Sgd::new(1e-3).update(state, grad, loss, key);
            if state.step == 4 {
                state.params[1] = f32::NEG_INFINITY;
                state.slots[0].data.fill(f32::NAN);
            }
        }
    }

    #[test]
    fn theta_stays_finite() {
        let (learner, workers) = (learner(Breaks, LossScale::Linear), Workers::new(1).unwrap());
        let mut state = learner.init(Key::new(0), &workers).unwrap();
        for t in 0..6 {
            let before = state.theta.clone();
            let report = learner.step(&mut state, &workers);
            // The outer optimizer's own count stays with its state, so that it breaks again.
            assert_eq!((report.undone, report.skipped), (t >= 3, t >= 3));
            assert_eq!(state.theta == before, t >= 3, "{t}");
            assert!(is_finite(&learner.chosen_theta(&state)));
        }
        assert_eq!((state.outer_step, state.skipped), (6, 3));
        let theta = vec![f32::NAN; state.theta.params.len()];
        assert!(learner.init_from(theta, Key::new(0), &workers).is_err());
    }

    #[test]
    fn a_run_above_the_ceiling_says_so_and_a_fitted_one_learns() {
        let [floor, ceiling] = [1e-5, 1e-3];
        let state = run(&learner(Adam::new(1e-2), LossScale::Log { floor, ceiling }));
        assert_eq!((state.health.zero, state.health.saturated.ceiling), (30, state.inner_steps));
        let [first, second] = &state.warnings()[..] else { panic!("{:?}", state.warnings()) };
        assert_eq!(
            [*first, *second],
            [Warning::Ceiling(state.inner_steps, state.inner_steps), Warning::Zero(30, 30)]
        );
        let state = run(&learner(Adam::new(1e-2), LossScale::FittedLog { floor, ceiling: 2.0 }));
        assert_eq!((state.health, state.warnings()), (Health::default(), Vec::new()));
    }

    #[test]
    fn clipped_meta_gradients_are_counted() {
        let clip = |c| Clip::new(ClipRule::Value(c), Box::new(Adam::new(1e-2)));
        assert_eq!(run(&learner(clip(1e-9), LossScale::Linear)).warnings(), [Warning::Clipped(30, 30)]);
        assert_eq!(run(&learner(clip(1e9), LossScale::Linear)).health.clipped, 0);
    }
}
