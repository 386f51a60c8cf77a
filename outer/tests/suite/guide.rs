//! The guide's learned optimizer, meta-trained for a few steps.

include!("../../../lopt/guide/gated_momentum.rs");

use outerloop_core::{LearnedOptimizer, SingleTask};
use outerloop_lopt::hand::Adam;
use outerloop_outer::adjoint::{StepWeights, SweepConfig};
use outerloop_outer::{FullGrad, GradientLearner, TruncatedStep, TruncationSchedule, Workers};
use outerloop_tasks::image::ImageMlp;

#[test]
fn meta_training_the_guides_optimizer_lowers_its_meta_loss() {
    const STEPS: u64 = 17;
    let lopt: Arc<dyn LearnedOptimizer> = Arc::new(GatedMomentum { learning_rate: 0.3, hidden_size: 4 });
    let family = Arc::new(SingleTask::new(ImageMlp::digits()));
    let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(10)).unwrap();
    let sweep = SweepConfig { weights: StepWeights::Final, ..SweepConfig::default() };
    let estimator = FullGrad::new(step, 2, sweep).unwrap();
    let workers = Workers::new(1).unwrap();
    let outer = Box::new(Adam::new(0.05));
    let learner = GradientLearner::new(lopt, vec![Box::new(estimator)], outer, STEPS).unwrap();
    let mut state = learner.init(Key::new(0), &workers).unwrap();
    let losses: Vec<f64> = (0..STEPS).map(|_| learner.step(&mut state, &workers).mean_loss).collect();
    // The mean over fresh initial parameters and batches, so neighbours differ by chance.
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    let (first, last) = (mean(&losses[..3]), mean(&losses[STEPS as usize - 3..]));
    assert!(last < 0.9 * first, "{losses:?}");
}
