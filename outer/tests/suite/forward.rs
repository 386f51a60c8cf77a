//! Forward gradients against backpropagation through the same runs.

use crate::estimators::{assert_agrees, statistics, THETA};
use crate::support::{step, Rule};
use outerloop_core::{Key, LearnedOptimizer};
use outerloop_lopt::hand::Muon;
use outerloop_lopt::learned::{AdafacMlp, ControlledAdam, MlpLopt, RnnMlp};
use outerloop_lopt::{HandAsLearned, LearnableAdam, LearnableSgd};
use outerloop_outer::adjoint::SweepConfig;
use outerloop_outer::{
    ForwardGrad, FullGrad, GradientEstimator, MetaLoss, TruncatedStep, TruncationSchedule, Workers,
};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::Arc;

fn runs(lopt: Arc<dyn LearnedOptimizer>, meta_loss: MetaLoss) -> TruncatedStep {
    let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
    let schedule = TruncationSchedule::LogUniform { min: 3, max: 12 };
    TruncatedStep::new(family, lopt, schedule).unwrap().with_meta_loss(meta_loss)
}

/// One lane, one direction: the estimate is the direction times the exact gradient's part along it.
#[test]
fn an_estimate_is_the_part_of_the_exact_gradient_along_its_direction() {
    let workers = Workers::new(1).unwrap();
    let small = |hidden_size| MlpLopt { hidden_size, step_mult: 0.1, ..MlpLopt::default() };
    // The last one's start depends on theta.
    let lopts: [Arc<dyn LearnedOptimizer>; 6] = [
        Arc::new(LearnableSgd::default()),
        Arc::new(LearnableAdam::default()),
        Arc::new(small(4)),
        Arc::new(AdafacMlp { hidden_size: 4, step_mult: 0.1, ..AdafacMlp::default() }),
        Arc::new(ControlledAdam::default()),
        Arc::new(RnnMlp::default()),
    ];
    for lopt in lopts {
        for meta_loss in [MetaLoss::Train, MetaLoss::SameBatch] {
            let theta = lopt.init(Key::new(5));
            let exact = FullGrad::new(runs(lopt.clone(), meta_loss), 1, SweepConfig::default()).unwrap();
            let forward = ForwardGrad::new(runs(lopt.clone(), meta_loss), 1, 1).unwrap();
            for t in 0..3 {
                let [mut a, mut b] = [&exact as &dyn GradientEstimator, &forward]
                    .map(|estimator| estimator.init(&theta, Key::new(8), &workers));
                let want = exact.estimate(&theta, &mut a, t, &workers);
                let got = forward.estimate(&theta, &mut b, t, &workers);
                assert_eq!((want.mean_loss, want.inner_steps), (got.mean_loss, got.inner_steps));
                let mut u = vec![0.0f32; theta.len()];
                Key::new(8).named("noise").fold_in(t).fold_in(0).fold_in(0).fill_normal(&mut u);
                let parts = want.grad.iter().zip(&u).map(|(g, u)| f64::from(*g) * f64::from(*u));
                let (along, size) = parts.fold((0.0, 0.0), |(s, m), x| (s + x, m + x.abs()));
                assert!(size > 0.0, "{}: the test is blind", lopt.name());
                for (got, u) in got.grad.iter().zip(&u) {
                    let gap = (f64::from(*got) - along * f64::from(*u)).abs();
                    let bound = 1e-3 * size * f64::from(u.abs());
                    assert!(gap <= bound, "{} {meta_loss:?}: {got}, {along} along {u}", lopt.name());
                }
            }
        }
    }
}

/// The loss of `x ← (1 − 2 e^θ) x` without smoothing, at two directions per run.
#[test]
fn its_mean_is_the_gradient() {
    let schedule = TruncationSchedule::Constant(6);
    let lopt = Arc::new(LearnableSgd { initial_lr: THETA.exp() });
    let bowl = step(Rule::Sgd, THETA, schedule.clone());
    let bowl = || TruncatedStep::new(bowl.family.clone(), lopt.clone(), schedule.clone()).unwrap();
    let exact = FullGrad::new(bowl(), 1, SweepConfig::default()).unwrap();
    let truth = statistics(&exact, THETA as f32, 1, 2).0;
    let forward = ForwardGrad::new(bowl(), 4, 2).unwrap();
    assert_agrees("forward gradient", statistics(&forward, THETA as f32, 1, 500), truth);
}

#[test]
fn what_it_cannot_do_is_refused() {
    let refused = |lopt: Arc<dyn LearnedOptimizer>, tasks, directions| {
        let error = ForwardGrad::new(runs(lopt, MetaLoss::Train), tasks, directions).err().unwrap();
        error.to_string()
    };
    let adam = || Arc::new(LearnableAdam::default());
    assert!(refused(adam(), 0, 1).contains("num_tasks"));
    assert!(refused(adam(), 1, 0).contains("directions"));
    let muon = Arc::new(HandAsLearned::<f32>::new(Muon::default()));
    assert!(refused(muon, 1, 1).contains("forward mode"));
    let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
    let endless = TruncatedStep::new(family, adam(), TruncationSchedule::NeverEnding).unwrap();
    assert!(ForwardGrad::new(endless, 1, 1).is_err());
}
