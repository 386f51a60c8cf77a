//! Meta-training works: in about half a minute on one core, PES makes an optimizer that beats its own
//! start and Adam at default settings on seeds that it never saw.

use outerloop_core::{FlatFamily, Key, LearnedOptimizer, Optimizer, SingleTask};
use outerloop_lopt::hand::{Adam, Cosine};
use outerloop_lopt::ControlledAdam;
use outerloop_outer::estimator::Antithetic;
use outerloop_outer::eval::{training_curves, EvalConfig};
use outerloop_outer::{
    Emphasis, GradientLearner, InitialOffset, LossScale, Objective, TruncatedPes, TruncatedStep,
    TruncationSchedule, Workers,
};
use outerloop_tasks::image::ImageMlp;
use std::sync::Arc;

/// Length of a run, in steps.
const HORIZON: u64 = 100;
/// Fresh starts per optimizer.
const SEEDS: u64 = 10;

#[test]
fn a_minute_of_meta_training_beats_the_start_and_untuned_adam() {
    let family: Arc<dyn FlatFamily> = Arc::new(SingleTask::new(ImageMlp::digits()));
    // It starts as Adam with the default learning rate of 1e-3.
    let lopt = Arc::new(ControlledAdam { step_mult: 1e-3, ..ControlledAdam::default() });
    let outer_steps = 200;
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
    let common = Antithetic { num_tasks: 16, trunc_length: 20, ..Antithetic::default() };
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
