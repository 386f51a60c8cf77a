//! In the steady state an inner step allocates nothing, and a hyper step few buffers of the size of the weights.

use crate::support::{Wide, WIDE};
use outerloop_core::{FlatFamily, HyperProblem, Key, LearnedOptimizer, SingleTask};
use outerloop_lopt::hand::{RmsProp, Sgd};
use outerloop_lopt::{LearnableAdam, MlpLopt};
use outerloop_outer::estimator::Antithetic;
use outerloop_outer::implicit::{HyperConfig, HyperLearner, Implicit, Neumann};
use outerloop_outer::{
    GradientEstimator, TruncatedEs, TruncatedPes, TruncatedStep, TruncationSchedule, Workers,
};
use outerloop_tasks::image::ImageMlp;
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::Arc;

type Make = fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>;

/// Allocations of one estimate with windows of `trunc_length` steps, after two estimates.
fn allocations(
    family: &Arc<dyn FlatFamily>,
    lopt: &Arc<dyn LearnedOptimizer>,
    make: Make,
    trunc_length: usize,
) -> u64 {
    let step =
        TruncatedStep::new(family.clone(), lopt.clone(), TruncationSchedule::NeverEnding).expect("valid");
    let estimator = make(step, Antithetic { num_tasks: 3, trunc_length, ..Antithetic::default() });
    // One thread: allocations are counted on the caller's.
    let workers = Workers::new(1).expect("one thread");
    let theta = lopt.init(Key::new(1));
    let mut state = estimator.init(&theta, Key::new(2), &workers);
    let mut estimate = |t| drop(estimator.estimate(&theta, &mut state, t, &workers));
    estimate(0);
    estimate(1);
    allocation_counter::measure(|| estimate(2)).count_total
}

#[test]
fn inner_steps_allocate_nothing() {
    let families: [Arc<dyn FlatFamily>; 2] =
        [Arc::new(FixedDimQuadraticFamily { dim: 10 }), Arc::new(SingleTask::new(ImageMlp::digits()))];
    let optimizers: [Arc<dyn LearnedOptimizer>; 2] =
        [Arc::new(LearnableAdam::default()), Arc::new(MlpLopt::default())];
    let estimators: [Make; 2] = [
        |step, common| Box::new(TruncatedPes::new(step, common).expect("valid")),
        |step, common| Box::new(TruncatedEs::new(step, common).expect("valid")),
    ];
    for family in &families {
        for lopt in &optimizers {
            for make in estimators {
                let [short, long] = [5, 20].map(|steps| allocations(family, lopt, make, steps));
                assert!(short > 0, "the counter counts");
                assert_eq!(short, long, "{} with {}", family.name(), lopt.name());
            }
        }
    }
}

#[test]
fn as_many_hyperparameters_as_weights_take_few_buffers_of_their_size() {
    let problem = Arc::new(HyperProblem::new(Wide).expect("valid"));
    let workers = Workers::new(1).expect("one thread");
    let run = || {
        let config = HyperConfig { hyper_steps: 5, inner_steps: 2, ..HyperConfig::default() };
        let implicit = Implicit::new(Neumann::new(4, 0.01));
        let (inner, hyper) = (Box::new(Sgd::new(0.01)), Box::new(RmsProp::default()));
        let learner = HyperLearner::new(problem.clone(), inner, hyper, implicit, config).expect("valid");
        let mut state = learner.init(Key::new(1)).expect("valid");
        for _ in 0..5 {
            let report = learner.step(&mut state, &workers);
            assert!(report[0].grad_norm.is_finite());
        }
        assert!(state.lanes[0].q.len() == WIDE * WIDE && state.lanes[0].skipped == 0);
    };
    // All that the run has at a time: weights, hyperparameters, what their optimizers keep, and scratch.
    let most = allocation_counter::measure(run).bytes_max as f64 / (size_of::<f32>() * WIDE * WIDE) as f64;
    assert!((5.0..=14.5).contains(&most), "{most:.2} buffers of the size of w");
}
