//! Settings out of range are refused by the constructors, with the range; edges that make sense work.

use crate::support::{step, Rule};
use outerloop_core::{Key, Result, Split};
use outerloop_lopt::ControlledAdam;
use outerloop_outer::adjoint::{Memory, StepWeights, SweepConfig};
use outerloop_outer::estimator::{Antithetic, FullLoss, WindowLoss};
use outerloop_outer::objective::{Emphasis, LossScale, Objective};
use outerloop_outer::{
    FullEs, FullGrad, GradientEstimator, InitialOffset, MetaLoss, PesAnalytic, TruncatedEs, TruncatedGrad,
    TruncatedPes, TruncatedStep, TruncationSchedule, Workers,
};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::Arc;

fn runs() -> TruncatedStep {
    step(Rule::Sgd, -2.0, TruncationSchedule::Constant(6))
}

fn common() -> Antithetic {
    Antithetic { num_tasks: 2, trunc_length: 3, ..Antithetic::default() }
}

type Made = Result<Box<dyn GradientEstimator>>;

/// Every estimator with these settings, as far as it takes them.
fn all(
    runs: impl Fn() -> TruncatedStep,
    common: Antithetic,
    sweep: SweepConfig,
) -> Vec<(&'static str, Made)> {
    let (n, k) = (common.num_tasks, common.trunc_length);
    fn boxed(made: Result<impl GradientEstimator + 'static>) -> Made {
        made.map(|e| Box::new(e) as _)
    }
    vec![
        ("es", boxed(TruncatedEs::new(runs(), common.clone()))),
        ("pes", boxed(TruncatedPes::new(runs(), common.clone()))),
        ("pes-analytic", boxed(PesAnalytic::new(runs(), common.clone(), sweep.memory))),
        ("full-es", boxed(FullEs::new(runs(), common, FullLoss::Mean))),
        ("grad", boxed(TruncatedGrad::new(runs(), n, k, sweep.clone()))),
        ("full-grad", boxed(FullGrad::new(runs(), n, sweep))),
    ]
}

/// The message of every estimator that `applies` contains `why`.
fn refused(made: Vec<(&'static str, Made)>, applies: impl Fn(&str) -> bool, why: &str) {
    for (name, made) in made {
        match made {
            Err(e) => assert!(e.to_string().contains(why), "{name}: {e}"),
            Ok(_) => assert!(!applies(name), "{name} accepts what others refuse: {why}"),
        }
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let given = |common| all(runs, common, SweepConfig::default());
    let is_es = |name: &str| name.contains("es");
    refused(given(Antithetic { num_tasks: 0, ..common() }), |_| true, "num_tasks: expected at least 1");
    let windows = |name: &str| !name.contains("full-grad");
    refused(given(Antithetic { trunc_length: 0, ..common() }), windows, "trunc_length: expected at least 1");
    for std in [0.0, -0.1, f32::NAN, f32::INFINITY] {
        let why = format!("std: expected a positive finite number, got {std}");
        refused(given(Antithetic { std, ..common() }), is_es, &why);
    }
    for sign in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        refused(given(Antithetic { sign: Some(sign), ..common() }), is_es, "sign");
    }
    let sweep = |sweep| all(runs, common(), sweep);
    let is_grad = |name: &str| name.contains("grad");
    for clip in [0.0, -1.0, f64::NAN] {
        let config = SweepConfig { clip: Some(clip), ..SweepConfig::default() };
        refused(sweep(config), is_grad, &format!("expected a positive finite number, got {clip}"));
    }
    let weights = StepWeights::Given(vec![1.0, f64::NAN, 1.0]);
    refused(sweep(SweepConfig { weights, ..SweepConfig::default() }), is_grad, "finite numbers, got NaN");
}

/// The fields of `TruncatedStep` are public: what was changed behind its constructor is found, too.
#[test]
fn runs_out_of_range_are_refused() {
    let changed = |change: fn(&mut TruncatedStep)| {
        let runs = || {
            let mut runs = runs();
            change(&mut runs);
            runs
        };
        all(runs, common(), SweepConfig::default())
    };
    refused(changed(|r| r.schedule = TruncationSchedule::Constant(0)), |_| true, "at least 1");
    refused(changed(|r| r.objective.emphasis = Emphasis::Power(-1.0)), |_| true, "not negative");
    let scale =
        |floor, ceiling| Objective { scale: LossScale::FittedLog { floor, ceiling }, ..Objective::default() };
    assert!(
        runs().with_objective(scale(0.0, 1.0)).is_err() && runs().with_objective(scale(1.0, 0.5)).is_err()
    );
}

#[test]
fn losses_of_whole_runs_out_of_range_are_refused() {
    let recomputed = |batches| FullLoss::LastRecomputed { batches, split: Split::Train };
    let error = FullEs::new(runs(), common(), recomputed(0)).err().expect("no batch").to_string();
    assert!(error.contains("expected at least 1, got 0"), "{error}");
    for clip in [0.0, -1.0, f64::NAN] {
        let es = FullEs::new(runs(), common(), recomputed(1)).expect("valid settings");
        let error = es.with_clip(clip).err().expect("no range").to_string();
        assert!(error.contains(&format!("got {clip}")), "{error}");
    }
}

#[test]
fn edges_that_make_sense_work() {
    let workers = Workers::new(1).unwrap();
    let works = |made: Vec<(&'static str, Made)>| {
        for (name, made) in made {
            let e = made.unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut state = e.init(&[-2.0], Key::new(0), &workers);
            let estimate = e.estimate(&[-2.0], &mut state, 0, &workers);
            assert!(estimate.grad[0].is_finite() && estimate.grad[0] != 0.0, "{name}: {estimate:?}");
        }
    };
    // One lane, windows longer than runs.
    let one = Antithetic { num_tasks: 1, trunc_length: 20, window_loss: WindowLoss::Sum, ..common() };
    works(all(runs, one, SweepConfig { memory: Memory::Every(0), ..SweepConfig::default() }));
    for offset in [InitialOffset::Counter(0), InitialOffset::BurnIn(0)] {
        works(all(|| runs().with_offset(offset), common(), SweepConfig::default()));
    }
    // Runs of one step, every other one a reset; and counters that start behind the end of their run.
    let short = || step(Rule::Sgd, -2.0, TruncationSchedule::Constant(1));
    let behind = || runs().with_offset(InitialOffset::Counter(1000));
    let made = [all(short, common(), SweepConfig::default()), all(behind, common(), SweepConfig::default())];
    for (name, made) in made.into_iter().flatten() {
        let e = made.unwrap();
        let mut state = e.init(&[-2.0], Key::new(0), &workers);
        assert!(e.estimate(&[-2.0], &mut state, 0, &workers).mean_loss.is_finite(), "{name}");
    }
    let infinite = FullEs::new(runs(), common(), FullLoss::Mean).unwrap().with_clip(f64::INFINITY);
    assert!(infinite.is_ok());
}

/// [`outerloop_outer::Estimate::mean_loss`]: "NaN if there is none".
#[test]
fn a_window_of_resets_has_no_mean_loss() {
    let workers = Workers::new(1).unwrap();
    let common = Antithetic { num_tasks: 2, trunc_length: 1, ..Antithetic::default() };
    let pes = TruncatedPes::new(step(Rule::Sgd, -2.0, TruncationSchedule::Constant(3)), common).unwrap();
    let mut state = pes.init(&[-2.0], Key::new(0), &workers);
    let all: Vec<_> = (0..4).map(|i| pes.estimate(&[-2.0], &mut state, i, &workers)).collect();
    assert_eq!(all[3].inner_steps, 0);
    for e in &all {
        assert_eq!(e.inner_steps == 0, e.mean_loss.is_nan(), "{e:?}");
    }
}

/// Unrolled gradients know the plain parameters only; the training loss is there, other losses are not.
#[test]
fn unrolled_gradients_refuse_losses_at_averages() {
    let step = |meta_loss| {
        let lopt = Arc::new(ControlledAdam { average: Some(1.0), ..ControlledAdam::default() });
        let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
        let step = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(6)).unwrap();
        step.with_meta_loss(meta_loss)
    };
    let sweep = SweepConfig::default;
    assert!(TruncatedGrad::new(step(MetaLoss::Train), 2, 3, sweep()).is_ok());
    let error = TruncatedGrad::new(step(MetaLoss::SameBatch), 2, 3, sweep()).err().unwrap().to_string();
    assert!(error.contains("averages its parameters"), "{error}");
    let valid = MetaLoss::Fresh(Split::OuterValid);
    assert!(PesAnalytic::new(step(valid), common(), sweep().memory).is_err());
    assert!(FullGrad::new(step(valid), 2, sweep()).is_err());
    assert!(TruncatedPes::new(step(valid), common()).is_ok());
}
