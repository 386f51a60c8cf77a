//! In the steady state an inner step allocates nothing.

use outerloop_core::{FlatFamily, Key, LearnedOptimizer, SingleTask};
use outerloop_lopt::{LearnableAdam, MlpLopt};
use outerloop_outer::estimator::Antithetic;
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
