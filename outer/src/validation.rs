//! Which theta of a run to keep: measured on tasks that stay the same.

use crate::episode::EpisodeKeys;
use crate::eval::{training_curve, EvalConfig};
use crate::fingerprint;
use crate::objective::Objective;
use crate::unroll::MetaLoss;
use crate::workers::Workers;
use outerloop_core::{Error, FlatFamily, Key, Optimizer, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Places of a run, at most, where losses on a split are measured.
const PLACES: u64 = 64;
/// Batches per place.
const BATCHES: u64 = 4;

/// Whole inner runs with theta itself, not perturbed, on tasks, initial parameters and batches that are
/// the same every time, so that thetas of one run, or of several, can be compared.
///
/// Meta-training moves theta by noisy estimates: the last theta need not be the best, and runs that
/// differ in their seed end with different quality. The score of the chosen theta is optimistic, as the
/// minimum of several measurements; measure it again on other tasks.
#[derive(Clone)]
pub struct Validation {
    /// Where the tasks come from.
    pub family: Arc<dyn FlatFamily>,
    /// The loss that counts, as in meta-training. One on a split is measured at up to 64 places of a run, on
    /// the same 4 batches.
    pub meta_loss: MetaLoss,
    /// What their losses count.
    pub objective: Objective,
    /// Tasks: the draws `0, ..., num_tasks − 1` of `key`; at least 1.
    pub num_tasks: u64,
    /// Length of the runs, also told to the optimizer; at least 1.
    pub num_steps: u64,
    /// Root of the tasks' randomness; one that meta-training does not use.
    pub key: Key,
    /// Outer steps from one measurement to the next, at least 1; the last outer step is measured, too.
    pub every: u64,
}

/// The best theta of a run so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validated {
    /// The lowest score.
    pub score: f64,
    /// Outer steps after which it was measured.
    pub outer_step: u64,
    /// The theta that has it.
    pub theta: Vec<f32>,
}

impl Validation {
    /// Errors on numbers out of range.
    pub fn validate(&self) -> Result<()> {
        self.objective.validate()?;
        for (what, got) in [
            ("validation: num_tasks", self.num_tasks),
            ("validation: num_steps", self.num_steps),
            ("validation: every", self.every),
        ] {
            if got == 0 {
                return Err(Error::invalid(what, "expected at least 1, got 0"));
            }
        }
        Ok(())
    }

    /// The objective of the meta-loss, averaged over steps and tasks: lower is better. Not finite
    /// losses on an objective without ceiling make it infinite.
    pub fn score(&self, opt: &dyn Optimizer, workers: &Workers) -> f64 {
        let config = EvalConfig {
            num_steps: self.num_steps,
            eval_every: self.num_steps.div_ceil(PLACES),
            eval_batches: BATCHES,
            splits: match self.meta_loss {
                MetaLoss::Fresh(split) => vec![split],
                MetaLoss::Train | MetaLoss::SameBatch => Vec::new(),
            },
            ..EvalConfig::default()
        };
        let mut runs: Vec<Key> = (0..self.num_tasks).map(|i| self.key.fold_in(i)).collect();
        let scores = workers.map(&mut runs, |worker, _, key| {
            let task = self.family.sample_task(EpisodeKeys::new(*key, 0).task);
            let curve = training_curve(&*self.family, opt, &config, *key, worker);
            let objective = self.objective.fitted(&*task, f64::from(curve.train[0]));
            let count = |(step, loss): (u64, f32)| {
                let weight = objective.emphasis.weight(step, Some(self.num_steps));
                weight * objective.scaled(&*task, f64::from(loss))
            };
            let losses: Vec<(u64, f32)> = match self.meta_loss {
                // Before updates 0, 1, ...; the loss after an update counts for its step.
                MetaLoss::Train => (0..self.num_steps).zip(curve.train).collect(),
                MetaLoss::SameBatch => (0..self.num_steps).zip(curve.train.into_iter().skip(1)).collect(),
                MetaLoss::Fresh(_) => {
                    let after = curve.evals.iter().filter(|e| e.step > 0);
                    after.map(|e| (e.step - 1, e.loss)).collect()
                }
            };
            let count_all = losses.len() as f64;
            losses.into_iter().map(count).sum::<f64>() / count_all
        });
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        if mean.is_finite() {
            mean
        } else {
            f64::INFINITY
        }
    }

    /// Whether theta is measured after so many outer steps of all.
    pub(crate) fn is_due(&self, outer_step: u64, num_steps: u64) -> bool {
        outer_step % self.every == 0 || outer_step == num_steps
    }

    /// Keeps theta if it is the best so far; of equals the first stays.
    pub(crate) fn update(&self, best: &mut Option<Validated>, score: f64, outer_step: u64, theta: &[f32]) {
        if best.as_ref().is_none_or(|b| score < b.score) {
            *best = Some(Validated { score, outer_step, theta: theta.to_vec() });
        }
    }

    /// For the description of a run.
    pub(crate) fn describe(&self) -> String {
        let Validation { family, meta_loss, objective, num_tasks, num_steps, key, every } = self;
        let family = fingerprint::of_family(&**family);
        format!(
            "validation={num_tasks} tasks of {family} x {num_steps} every {every} for {meta_loss:?} {objective:?}, {key:?}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::estimator::Antithetic;
    use crate::objective::{Emphasis, LossScale};
    use crate::workers::Worker;
    use crate::{GradientLearner, TruncatedEs, TruncatedStep, TruncationSchedule};
    use outerloop_core::LearnedOptimizer;
    use outerloop_core::{SingleTask, Split};
    use outerloop_lopt::hand::Sgd;
    use outerloop_lopt::wrap::ParamsEma;
    use outerloop_lopt::LearnableSgd;
    use outerloop_tasks::image::ImageMlp;
    use outerloop_tasks::quadratics::FixedDimQuadraticFamily;

    fn validation() -> Validation {
        Validation {
            family: Arc::new(FixedDimQuadraticFamily { dim: 4 }),
            meta_loss: MetaLoss::Train,
            objective: Objective::default(),
            num_tasks: 3,
            num_steps: 5,
            key: Key::new(2),
            every: 2,
        }
    }

    #[test]
    fn the_score_is_the_mean_objective() {
        let scale = LossScale::Power { power: 0.5, floor: 1e-3, ceiling: 50.0 };
        let v = Validation { objective: Objective { scale, emphasis: Emphasis::Power(1.0) }, ..validation() };
        // SGD on Σ (x − c)² shrinks the distance by 1 − 2 lr, the loss by its square.
        let workers = Workers::new(2).unwrap();
        let opt = Sgd::new(0.1);
        let config = EvalConfig { num_steps: 5, ..EvalConfig::default() };
        let first = |i| {
            let curve = training_curve(&*v.family, &opt, &config, v.key.fold_in(i), &mut Default::default());
            f64::from(curve.train[0])
        };
        let want = (0..3).map(|i| {
            let loss = |t: i32| (first(i) * 0.64f64.powi(t)).min(50.0);
            (0..5).map(|t| 2.0 * f64::from(t + 1) / 5.0 * (loss(t) + 1e-3).sqrt()).sum::<f64>() / 5.0
        });
        let (got, want) = (v.score(&opt, &workers), want.sum::<f64>() / 3.0);
        assert!((got - want).abs() < 1e-5 * want, "{got}, not {want}");
        // A run that blows up is the worst, not left out.
        assert_eq!(validation().score(&Sgd::new(1e30), &workers), f64::INFINITY);
    }

    #[test]
    fn impossible_validations_are_refused() {
        assert!(validation().validate().is_ok());
        for bad in [
            Validation { num_tasks: 0, ..validation() },
            Validation { num_steps: 0, ..validation() },
            Validation { every: 0, ..validation() },
        ] {
            let error = bad.validate().unwrap_err().to_string();
            assert!(error.contains("at least 1, got 0"), "{error}");
        }
        let emphasis = Emphasis::Power(-1.0);
        let bad = Validation { objective: Objective { emphasis, ..Objective::default() }, ..validation() };
        assert!(bad.validate().is_err());
    }

    #[test]
    fn a_run_keeps_its_best_theta() {
        let (workers, lopt) = (Workers::new(1).unwrap(), Arc::new(LearnableSgd::default()));
        let family = Arc::new(FixedDimQuadraticFamily { dim: 4 });
        let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(5)).unwrap();
        let common = Antithetic { num_tasks: 2, trunc_length: 5, ..Antithetic::default() };
        let es = Box::new(TruncatedEs::new(step, common).unwrap());
        // Steps so large that theta swings to and fro.
        let v = validation();
        let learner = GradientLearner::new(lopt.clone(), vec![es], Box::new(Sgd::new(0.5)), 11)
            .unwrap()
            .with_validation(v.clone())
            .unwrap();
        let mut state = learner.init(Key::new(0), &workers).unwrap();
        assert_eq!(*learner.chosen_theta(&state), state.theta.params);
        let (mut scores, mut thetas) = (Vec::new(), Vec::new());
        for t in 1..=11 {
            let score = learner.step(&mut state, &workers).validation;
            assert_eq!(score.is_some(), t % 2 == 0 || t == 11, "{t}");
            if let Some(score) = score {
                assert_eq!(score, v.score(&*lopt.opt_fn(&state.theta.params), &workers));
                scores.push(score);
                thetas.push(state.theta.params.clone());
            }
        }
        let best = scores.iter().cloned().fold(f64::INFINITY, f64::min);
        let at = scores.iter().position(|s| *s == best).unwrap();
        assert_eq!(*learner.chosen_theta(&state), thetas[at]);
        assert_eq!(state.validated.unwrap().score, best);
        assert!(scores.iter().any(|s| *s > best), "{scores:?}");
    }
    #[test]
    fn a_meta_loss_on_a_split_is_scored_on_its_batches_at_the_parameters_that_are_meant() {
        let family: Arc<dyn FlatFamily> = Arc::new(SingleTask::new(ImageMlp::digits()));
        let opt = ParamsEma::new(0.5, Box::new(Sgd::new(0.3))).unwrap();
        let workers = Workers::new(1).unwrap();
        let score = |meta_loss| {
            let v =
                Validation { family: family.clone(), meta_loss, num_tasks: 1, num_steps: 6, ..validation() };
            v.score(&opt, &workers)
        };
        let config = EvalConfig {
            num_steps: 6,
            eval_every: 1,
            eval_batches: BATCHES,
            splits: vec![Split::OuterValid],
            ..Default::default()
        };
        let curve =
            training_curve(&*family, &opt, &config, validation().key.fold_in(0), &mut Worker::default());
        let mean = |losses: &[f32]| losses.iter().map(|l| f64::from(*l)).sum::<f64>() / losses.len() as f64;
        let valid: Vec<f32> = curve.evals.iter().filter(|e| e.step > 0).map(|e| e.loss).collect();
        assert_eq!(score(MetaLoss::Fresh(Split::OuterValid)), mean(&valid));
        assert_eq!(score(MetaLoss::Train), mean(&curve.train[..6]));
        assert_eq!(score(MetaLoss::SameBatch), mean(&curve.train[1..]));
    }

    #[test]
    fn an_averaged_theta_is_what_counts() {
        let (workers, lopt) = (Workers::new(1).unwrap(), Arc::new(LearnableSgd::default()));
        let learner = || {
            let family = Arc::new(FixedDimQuadraticFamily { dim: 4 });
            let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(5)).unwrap();
            let common = Antithetic { num_tasks: 2, trunc_length: 5, ..Antithetic::default() };
            let es = Box::new(TruncatedEs::new(step, common).unwrap());
            let averaged = Box::new(ParamsEma::new(0.9, Box::new(Sgd::new(0.5))).unwrap());
            GradientLearner::new(lopt.clone(), vec![es], averaged, 8).unwrap()
        };
        let (plain, validated) =
            (learner(), learner().with_validation(Validation { every: 8, ..validation() }).unwrap());
        let mut state = plain.init(Key::new(0), &workers).unwrap();
        for _ in 0..8 {
            plain.step(&mut state, &workers);
        }
        let average = state.theta.slot("params_ema").unwrap().to_vec();
        assert_ne!(average, state.theta.params);
        assert_eq!(*plain.chosen_theta(&state), average);
        let mut state = validated.init(Key::new(0), &workers).unwrap();
        let reports: Vec<_> = (0..8).map(|_| validated.step(&mut state, &workers)).collect();
        assert_eq!(reports[7].validation, Some(validation().score(&*lopt.opt_fn(&average), &workers)));
        assert_eq!(*validated.chosen_theta(&state), average);
    }
}
