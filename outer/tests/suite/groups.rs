//! Who steps together with whom changes nothing but the time.

use outerloop_core::{
    FlatFamily, FlatTask, Key, Layout, LearnedOptimizer, Optimizer, OptimizerGroup, SingleTask, Split,
};
use outerloop_lopt::MlpLopt;
use outerloop_outer::estimator::{Antithetic, Estimate, EstimatorState, FullEs, FullLoss};
use outerloop_outer::{
    GradientEstimator, InitialOffset, MetaLoss, TruncatedEs, TruncatedPes, TruncatedStep, TruncationSchedule,
    Workers,
};
use outerloop_tasks::image::ImageMlp;
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// `MlpLopt`, whose groups are counted, or which has none.
struct Counted {
    rule: MlpLopt,
    has_groups: bool,
    members: AtomicU64,
}

impl LearnedOptimizer for Counted {
    fn name(&self) -> String {
        LearnedOptimizer::<f32>::name(&self.rule)
    }
    fn theta_layout(&self) -> Arc<Layout> {
        LearnedOptimizer::<f32>::theta_layout(&self.rule)
    }
    fn init(&self, key: Key) -> Vec<f32> {
        LearnedOptimizer::<f32>::init(&self.rule, key)
    }
    fn opt_fn(&self, theta: &[f32]) -> Box<dyn Optimizer> {
        self.rule.opt_fn(theta)
    }
    fn group_size(&self, layout: &Layout) -> usize {
        if self.has_groups {
            LearnedOptimizer::<f32>::group_size(&self.rule, layout)
        } else {
            1
        }
    }
    fn group(&self, thetas: Vec<Vec<f32>>) -> Box<dyn OptimizerGroup> {
        self.members.fetch_add(thetas.len() as u64, Ordering::Relaxed);
        LearnedOptimizer::<f32>::group(&self.rule, thetas)
    }
}

/// Quadratics of dimensions 4 and 5 and, now and then, something large.
struct Mixed;
impl FlatFamily for Mixed {
    fn name(&self) -> String {
        "mixed".into()
    }
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask> {
        match (key.named("kind").uniform() * 8.0) as u64 {
            0 => SingleTask::new(ImageMlp::digits()).sample_task(key),
            k => FlatFamily::sample_task(&FixedDimQuadraticFamily { dim: 4 + usize::from(k > 5) }, key),
        }
    }
}

type Make = fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>;

/// Four estimates from the start, and how many optimizers were in groups.
fn run(
    has_groups: bool,
    family: &Arc<dyn FlatFamily>,
    make: Make,
    meta_loss: MetaLoss,
    threads: usize,
) -> (Vec<Estimate>, EstimatorState, u64) {
    // Steps of very different lengths, so that some runs diverge.
    let rule = MlpLopt { exp_mult: 8.0, ..MlpLopt::default() };
    let lopt = Arc::new(Counted { rule, has_groups, members: AtomicU64::new(0) });
    let schedule = TruncationSchedule::Constant(7);
    let step = TruncatedStep::new(family.clone(), lopt.clone(), schedule)
        .expect("valid")
        .with_meta_loss(meta_loss)
        .with_offset(InitialOffset::BurnIn(7));
    let estimator =
        make(step, Antithetic { num_tasks: 11, trunc_length: 5, std: 0.3, ..Antithetic::default() });
    let workers = Workers::new(threads).expect("threads");
    let theta = lopt.init(Key::new(1));
    let mut state = estimator.init(&theta, Key::new(2), &workers);
    let estimates = (0..4).map(|t| estimator.estimate(&theta, &mut state, t, &workers)).collect();
    (estimates, state, lopt.members.load(Ordering::Relaxed))
}

#[test]
fn groups_change_no_bit() {
    let families: [Arc<dyn FlatFamily>; 2] = [Arc::new(FixedDimQuadraticFamily { dim: 10 }), Arc::new(Mixed)];
    let estimators: [Make; 3] = [
        |step, common| Box::new(TruncatedPes::new(step, common).expect("valid")),
        |step, common| Box::new(TruncatedEs::new(step, common).expect("valid")),
        |step, common| Box::new(FullEs::new(step, common, FullLoss::Mean).expect("valid")),
    ];
    let width = outerloop_core::simd::Path::best().lanes();
    for (f, family) in families.iter().enumerate() {
        for make in estimators {
            for meta_loss in [MetaLoss::Train, MetaLoss::Fresh(Split::Train)] {
                let (alone, alone_state, none) = run(false, family, make, meta_loss, 1);
                assert_eq!(none, 0);
                assert!(alone.iter().all(|e| e.grad.iter().any(|g| *g != 0.0)));
                let diverged: usize = alone.iter().map(|e| e.diverged).sum();
                let lanes: usize = alone.iter().map(|e| e.lanes).sum();
                assert!(0 < diverged && diverged < lanes, "{diverged} of {lanes} windows diverged");
                for threads in [1, 2, 3, 16] {
                    let (together, state, members) = run(true, family, make, meta_loss, threads);
                    // As text, in which NaN is itself and every other number different.
                    let text = |x: &dyn std::fmt::Debug| format!("{x:?}");
                    let case = format!("{} with {threads} threads", family.name());
                    assert_eq!(text(&alone), text(&together), "{case}");
                    assert!(text(&alone_state) == text(&state), "{case}: states");
                    // Eleven lanes fill groups of this width on one thread, and none on sixteen; of the mixed
                    // ones, groups of eight.
                    let has_groups = if f == 0 { (4..=16).contains(&width) } else { width == 8 };
                    assert!(members > 0 || threads > 1 || !has_groups, "{case}");
                    assert!(members == 0 || threads < 16);
                }
            }
        }
    }
}
