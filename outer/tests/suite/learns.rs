//! Meta-training works: in some seconds, PES makes an optimizer that beats its own
//! start and Adam at default settings on seeds that it never saw. And every kind of task and of learned
//! optimizer of `examples/meta_train` improves on its start with the objective that is the default there.

use outerloop_core::tensor::{Backend, Mode, Rank0, Rank1, Tensor};
use outerloop_core::{BatchKey, FlatFamily, Float, Key, LearnedOptimizer, Optimizer, SingleTask, Task};
use outerloop_lopt::hand::{Adam, Cosine};
use outerloop_lopt::{AdafacMlp, ControlledAdam, LearnableAdam, LearnableSgd, LearnableSgdm, MlpLopt};
use outerloop_outer::estimator::Antithetic;
use outerloop_outer::eval::{training_curves, EvalConfig};
use outerloop_outer::{
    Emphasis, GradientLearner, InitialOffset, LossScale, MetaLoss, Objective, TruncatedPes, TruncatedStep,
    TruncationSchedule, Validation, Workers,
};
use outerloop_tasks::data::Splits;
use outerloop_tasks::image::{ImageMlp, ImageMlpFamily};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use outerloop_tasks::suite::Training;
use std::sync::Arc;

/// Length of a run, in steps.
const HORIZON: u64 = 100;
/// Fresh starts per optimizer.
const SEEDS: u64 = 10;

#[test]
fn a_short_meta_training_beats_the_start_and_untuned_adam() {
    let family: Arc<dyn FlatFamily> = Arc::new(SingleTask::new(ImageMlp::digits()));
    // It starts as Adam with the default learning rate of 1e-3.
    let lopt = Arc::new(ControlledAdam { step_mult: 1e-3, ..ControlledAdam::default() });
    let outer_steps = 120;
    let schedule = TruncationSchedule::Scheduled {
        knots: vec![(0, 30.0), (outer_steps / 2, HORIZON as f64)],
        std: 3.0,
        min_length: 10,
    };
    let step = TruncatedStep::new(family.clone(), lopt.clone(), schedule)
        .and_then(|s| {
            s.with_objective(Objective {
                scale: LossScale::Power { power: 0.25, floor: 1e-5, ceiling: 10.0 },
                emphasis: Emphasis::Power(1.0),
            })
        })
        .expect("valid settings")
        .with_offset(InitialOffset::BurnIn(30));
    let common = Antithetic { num_tasks: 8, trunc_length: 20, ..Antithetic::default() };
    let pes = TruncatedPes::new(step, common).expect("valid settings");
    let lr = Cosine { peak: 1e-2, min_mult: 0.1, constant_fraction: 0.0, ..Cosine::default() };
    let learner =
        GradientLearner::new(lopt.clone(), vec![Box::new(pes)], Box::new(Adam::new(lr)), outer_steps)
            .expect("one estimator");
    let workers = Workers::new(1).expect("one thread");
    let mut state = learner.init(Key::new(0), &workers).expect("theta fits");
    let start = state.theta.params.clone();
    while state.outer_step < outer_steps {
        learner.step(&mut state, &workers);
    }

    // ln of the final loss on each seed; the same starts and batches for all.
    let finals = |opt: &dyn Optimizer| -> Vec<f64> {
        let config = EvalConfig { num_steps: HORIZON, ..EvalConfig::default() };
        let key = Key::new(0).named("held-out seeds");
        let curves = training_curves(&*family, opt, &config, key, SEEDS, &workers);
        curves.iter().map(|c| f64::from(c.final_train(10)).ln()).collect()
    };
    let learned = finals(&*lopt.opt_fn(&state.theta.params));
    for (name, baseline) in
        [("its own start", finals(&*lopt.opt_fn(&start))), ("Adam, 1e-3", finals(&Adam::new(1e-3)))]
    {
        let gains: Vec<f64> = baseline.iter().zip(&learned).map(|(b, l)| b - l).collect();
        let mean = gains.iter().sum::<f64>() / gains.len() as f64;
        let spread =
            (gains.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / (gains.len() - 1) as f64).sqrt();
        println!("against {name}: ln of the loss ratio {mean:.2}, standard deviation over seeds {spread:.2}");
        // A third of the loss at least, and six standard deviations of single seeds.
        assert!(mean > 3f64.ln() && mean > 6.0 * spread, "{name}: {mean} with spread {spread}");
    }
}

/// `a |x|²` in three dimensions.
struct Bowl(f64);
impl<E: Float, B: Backend<E>> Task<E, B> for Bowl {
    type Params = Tensor<Rank1<3>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "bowl".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        dev.normal(key)
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, x: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::{PutTape, SumTo};
        (x.clone().put_tape(m).square() * E::of(self.0)).sum()
    }
}

/// Meta-trains for a second or so, and asserts that theta became better on tasks that it never saw.
fn improves(family: impl FlatFamily + 'static, lopt: Arc<dyn LearnedOptimizer>) {
    let (family, length, outer_steps) = (Arc::new(family), 30, 60);
    let objective = Objective {
        scale: LossScale::FittedLog { floor: 1e-5, ceiling: 3.0 },
        emphasis: Emphasis::Power(1.0),
    };
    let step = TruncatedStep::new(
        family.clone(),
        lopt.clone(),
        TruncationSchedule::LogUniform { min: 10, max: length },
    )
    .and_then(|s| s.with_objective(objective))
    .expect("valid settings")
    .with_offset(InitialOffset::BurnIn(length));
    let common = Antithetic { num_tasks: 8, trunc_length: 10, ..Antithetic::default() };
    let pes = TruncatedPes::new(step, common).expect("valid settings");
    let outer = Box::new(Adam::new(1e-2));
    let learner = GradientLearner::new(lopt.clone(), vec![Box::new(pes)], outer, outer_steps);
    let (learner, workers) = (learner.expect("one estimator"), Workers::new(1).expect("one thread"));
    let mut state = learner.init(Key::new(0), &workers).expect("theta fits");
    let validation = Validation {
        family: family.clone(),
        meta_loss: MetaLoss::Train,
        objective,
        num_tasks: 8,
        num_steps: length,
        key: Key::new(0).named("held-out tasks"),
        every: 1,
    };
    let score = |theta: &[f32]| validation.score(&*lopt.opt_fn(theta), &workers);
    let untrained = score(&state.theta.params);
    for _ in 0..outer_steps {
        learner.step(&mut state, &workers);
    }
    let learned = score(&state.theta.params);
    let what = format!("{} on {}", lopt.name(), FlatFamily::name(&*family));
    println!("{what}: {untrained} -> {learned}");
    assert!(learned < untrained, "{what}: {untrained} -> {learned}");
    assert_eq!(state.warnings(), [], "{what}");
}

fn adam() -> Arc<dyn LearnedOptimizer> {
    Arc::new(LearnableAdam::default())
}

fn quadratics() -> FixedDimQuadraticFamily {
    FixedDimQuadraticFamily { dim: 10 }
}

#[test]
fn every_kind_of_task_improves_on_its_start() {
    improves(SingleTask::new(ImageMlp::digits()), adam());
    improves(
        ImageMlpFamily { width: 8..=32, layers: 0..=2, ..ImageMlpFamily::new(Splits::digits()) },
        adam(),
    );
    improves(quadratics(), adam());
    improves(Training { width: [8, 32], ..Training::default() }, adam());
}

/// Tasks of one's own: losses of any size, no normalizer.
#[test]
fn losses_of_any_size_teach() {
    // Without terms that are large or small beside the gradient.
    let adam = LearnableAdam { initial_epsilon: 1e-20, epsilon_root: 0.0, ..LearnableAdam::default() };
    for size in [1e-9, 1e-3, 1.0, 1e9] {
        improves(SingleTask::new(Bowl(size)), Arc::new(adam.clone()));
    }
}

#[test]
fn every_kind_of_learned_optimizer_improves_on_its_start() {
    improves(quadratics(), Arc::new(LearnableSgd::default()));
    improves(quadratics(), Arc::new(LearnableSgdm::default()));
    improves(quadratics(), Arc::new(MlpLopt { exp_mult: 0.01, step_mult: 0.01, ..MlpLopt::default() }));
    improves(quadratics(), Arc::new(AdafacMlp { exp_mult: 0.01, step_mult: 0.01, ..AdafacMlp::default() }));
    improves(quadratics(), Arc::new(ControlledAdam { step_mult: 0.01, ..ControlledAdam::default() }));
}
