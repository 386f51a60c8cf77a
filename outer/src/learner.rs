//! The outer update: estimates averaged, one step of any [`Optimizer`] on theta.

use crate::estimator::{Estimate, EstimatorState, GradientEstimator};
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
    /// Outer updates left out because the estimate was not finite.
    pub skipped: u64,
    /// One state per estimator.
    pub estimators: Vec<EstimatorState>,
    /// What validation found, if the learner has one.
    pub validated: Option<Validated>,
}

/// What one outer step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The objective (by default the normalized loss), averaged over estimators.
    pub mean_loss: f64,
    /// 2-norm of the averaged estimate.
    pub grad_norm: f64,
    /// Inner steps computed in this step.
    pub inner_steps: u64,
    /// Lanes that diverged and were reset.
    pub diverged: usize,
    /// Lanes left out of the estimate.
    pub masked: usize,
    /// The estimate was not finite, and theta was left alone.
    pub skipped: bool,
    /// The new theta's score, if the step ended with a validation.
    pub validation: Option<f64>,
}

impl GradientLearner {
    /// A learner for `num_steps` outer steps. Errors if there is no estimator.
    pub fn new(
        lopt: Arc<dyn LearnedOptimizer>,
        estimators: Vec<Box<dyn GradientEstimator>>,
        theta_opt: Box<dyn Optimizer>,
        num_steps: u64,
    ) -> Result<Self> {
        if estimators.is_empty() {
            return Err(Error::invalid("estimators", "need at least one"));
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
    /// theta counts.
    #[must_use]
    pub fn with_validation(mut self, validation: Validation) -> Self {
        self.validation = Some(validation);
        self
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
            self.lopt.architecture(),
            self.theta_opt.name(),
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

    /// [`Self::init`] from a given theta.
    pub fn init_from(&self, theta: Vec<f32>, key: Key, workers: &Workers) -> Result<LearnerState> {
        let theta = Params::new(self.lopt.theta_layout(), theta)?;
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
            estimators,
            validated: None,
            theta: self.theta_opt.init(&theta, Some(self.num_steps), key.named("outer")),
        })
    }

    /// Errors unless this learner made the state; call it after loading one.
    pub fn check(&self, state: &LearnerState) -> Result<()> {
        let mine = self.fingerprint();
        if mine == state.fingerprint {
            Ok(())
        } else {
            Err(Error::mismatch("saved run", mine, &state.fingerprint))
        }
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
        let mean_loss = estimates.iter().map(|e| e.mean_loss).sum::<f64>() / f64::from(n);
        let grad_norm = grad.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
        let skipped = !grad_norm.is_finite();
        if !skipped {
            self.theta_opt.update(&mut state.theta, &grad, mean_loss as f32, state.key.named("outer"));
        }
        let mut report = StepReport {
            mean_loss,
            grad_norm,
            inner_steps: estimates.iter().map(|e| e.inner_steps).sum(),
            diverged: estimates.iter().map(|e| e.diverged).sum(),
            masked: estimates.iter().map(|e| e.masked).sum(),
            skipped,
            validation: None,
        };
        state.outer_step += 1;
        state.inner_steps += report.inner_steps;
        state.skipped += u64::from(skipped);
        if let Some(v) = self.validation.as_ref().filter(|v| v.is_due(state.outer_step, self.num_steps)) {
            let theta = self.theta_opt.evaluation_params(&state.theta);
            let score = v.score(&*self.lopt.opt_fn(&theta), workers);
            v.update(&mut state.validated, score, state.outer_step, &theta);
            report.validation = Some(score);
        }
        report
    }
}
