use super::*;
use crate::episode::{fresh, train_step, EpisodeKeys};
use crate::eval::{training_curve, EvalConfig};
use crate::workers::{Worker, Workers};
use outerloop_core::contract::check_optimizer;
use outerloop_core::{BatchKey, FlatFamily, SingleTask};
use outerloop_lopt::hand::{Adam, Momentum, Sgd};
use outerloop_lopt::wrap::ParamsEma;
use outerloop_tasks::image::{ImageMlp, MlpConfig, MlpTask};
use outerloop_tasks::quadratics::QuadraticTask;

fn digits() -> SingleTask {
    SingleTask::new(ImageMlp::digits())
}

/// Those of the first run of [`input_ranges`] with the key 1.
fn keys() -> EpisodeKeys {
    EpisodeKeys::new(Key::new(1).fold_in(0), 0)
}

/// Trains, and gives the report and the final state.
fn train(
    family: &dyn FlatFamily,
    opt: &Guarded,
    planned: Option<u64>,
    steps: u64,
) -> (GuardReport, OptState) {
    let keys = keys();
    let task = family.sample_task(keys.task);
    let mut t = fresh(&*task, opt, keys, planned);
    let mut worker = Worker::default();
    let (evaluator, grad) = worker.evaluator(&task);
    for step in 0..steps {
        train_step(evaluator, opt, &mut t, BatchKey::train(step, keys.data), keys.opt, grad);
    }
    (opt.report(&t.opt), t.opt)
}

fn losses(family: &dyn FlatFamily, opt: &dyn Optimizer, num_steps: u64) -> Vec<f32> {
    let config = EvalConfig { num_steps, ..EvalConfig::default() };
    training_curve(family, opt, &config, Key::new(1), &mut Worker::default()).train
}

fn guarded(inner: impl Optimizer + 'static) -> Guarded {
    Guarded::new(Box::new(inner), GuardConfig::default())
}

#[test]
fn guarded_optimizers_keep_the_contract() {
    check_optimizer(&guarded(Momentum::new(0.1, 0.9))).unwrap();
    check_optimizer(&guarded(Sgd::new(0.1)).with_fallback(Box::new(Adam::new(0.1)))).unwrap();
}

#[test]
fn a_healthy_run_is_left_alone() {
    let opt = guarded(Adam::new(1e-2)).with_fallback(Box::new(Sgd::new(1.0)));
    assert_eq!(losses(&digits(), &opt, 200), losses(&digits(), &Adam::new(1e-2), 200));
    // Small batches, noisy losses: still no alarm.
    let small = MlpConfig { batch_size: 4, ..MlpConfig::default() };
    let noisy = SingleTask::new(MlpTask::new(outerloop_tasks::data::Splits::digits(), small).unwrap());
    for family in [&digits(), &noisy] {
        let (report, _) = train(family, &opt, Some(200), 200);
        let nothing = GuardReport {
            unusual_horizon: false,
            diverged_at: None,
            unusual_gradients: 0,
            unusual_parameters: 0,
            unusual_losses: 0,
        };
        assert_eq!(report, nothing);
    }
}

#[test]
fn a_diverging_run_goes_back_to_its_best_parameters_and_the_fallback_goes_on() {
    let family = SingleTask::new(QuadraticTask::new(5));
    // x ← x − 1.5 · 2x = −2x: the loss is quadrupled in every step.
    let (report, state) = train(&family, &guarded(Sgd::new(1.5)), Some(100), 100);
    // No loss counts for more than 4 · 0.5 above the average: 1, then 1 + 0.2, 1.4, 1.6 of the first.
    assert_eq!(report.diverged_at, Some(3));
    assert!(!state.params.iter().all(|p| p.is_finite() && p.abs() < 1e10));

    let opt = guarded(Sgd::new(1.5)).with_fallback(Box::new(Sgd::new(0.25)));
    let (report, state) = train(&family, &opt, Some(100), 100);
    assert_eq!((report.diverged_at, state.step), (Some(3), 100));
    // From the start, which was the best, x ← x/2 in the 96 updates left.
    assert!(state.params.iter().all(|p| p.abs() < 1e-20), "{:?}", state.params);
    // The step of the alarm only goes back.
    let start = family.0.init(keys().init).data;
    assert_eq!(train(&family, &opt, Some(100), 4).1.params, start);
    let halved: Vec<f32> = start.iter().map(|x| 0.5 * x).collect();
    assert_eq!(train(&family, &opt, Some(100), 5).1.params, halved);
}

#[test]
fn one_odd_batch_is_no_divergence_and_three_are() {
    let opt = guarded(Sgd::new(0.0)).with_fallback(Box::new(Sgd::new(0.5)));
    let params = SingleTask::<f32>::new(QuadraticTask::new(2)).0.init(Key::new(0));
    let alarm = |odd: &[u64]| {
        let mut state = opt.init(&params, Some(20), Key::new(0));
        for t in 0..20 {
            let loss = if odd.contains(&t) { 1e6 } else { 1.0 };
            opt.update(&mut state, &[1.0, 1.0], loss, Key::new(0));
        }
        (opt.report(&state).diverged_at, opt.remarks(&state))
    };
    assert_eq!(alarm(&[3, 13]), (None, Vec::new()));
    let (at, remarks) = alarm(&[3, 4, 5]);
    assert_eq!(at, Some(5));
    assert!(remarks.len() == 1 && remarks[0].contains("sgd diverged at step 5; sgd went on"), "{remarks:?}");
}

#[test]
fn the_fallback_has_its_own_slots_and_steps() {
    let family = SingleTask::new(QuadraticTask::new(5));
    let opt = guarded(Momentum::new(3.0, 0.9)).with_fallback(Box::new(Adam::new(0.1)));
    let (report, state) = train(&family, &opt, Some(100), 50);
    let alarm = report.diverged_at.unwrap();
    let start = state.slot("guard/best_params").unwrap().to_vec();
    let mut adam = Adam::new(0.1).init(
        &Params { layout: state.layout.clone(), data: start },
        Some(100 - alarm),
        Key::new(0),
    );
    for _ in alarm + 1..50 {
        let grad: Vec<f32> = adam.params.iter().map(|x| x + x).collect();
        Adam::new(0.1).update(&mut adam, &grad, 0.0, Key::new(0));
    }
    assert_eq!(state.params, adam.params);
}

/// Of the inner optimizer, and after a divergence of the fallback.
#[test]
fn guards_mean_what_the_guarded_optimizer_means() {
    let family = SingleTask::new(QuadraticTask::new(5));
    let averaged = |lr| Box::new(ParamsEma::new(0.9, Box::new(Sgd::new(lr))).unwrap());
    let fine = Guarded::new(averaged(0.1), GuardConfig::default()).with_fallback(averaged(0.2));
    let (_, state) = train(&family, &fine, Some(20), 20);
    assert_eq!(*fine.evaluation_params(&state), *state.slot("params_ema").unwrap());
    assert_ne!(*fine.evaluation_params(&state), state.params);

    let opt = guarded(Sgd::new(1.5)).with_fallback(averaged(0.25));
    let (report, state) = train(&family, &opt, Some(20), 20);
    assert!(report.diverged_at.is_some());
    let average = state.slots.last().unwrap();
    assert!(average.name.ends_with("params_ema"), "{}", average.name);
    assert_eq!(*opt.evaluation_params(&state), average.data);
    assert_ne!(average.data, state.params);
}

#[test]
fn guards_nest() {
    let nested = || guarded(guarded(Sgd::new(1.5)).with_fallback(Box::new(Sgd::new(1.5))));
    check_optimizer(&nested()).unwrap();
    let family = SingleTask::new(QuadraticTask::new(5));
    // Both guards are alarmed at once; the outer one's fallback, guarded itself, goes on.
    let opt =
        nested().with_fallback(Box::new(guarded(Sgd::new(0.25)).with_fallback(Box::new(Adam::new(0.1)))));
    check_optimizer(&opt).unwrap();
    let (report, state) = train(&family, &opt, Some(100), 100);
    assert_eq!(report.diverged_at, Some(3));
    assert!(state.params.iter().all(|p| p.abs() < 1e-20), "{:?}", state.params);
    let mut names: Vec<&str> = state.slots.iter().map(|s| &s.name[..]).collect();
    assert!(names.contains(&"guard/guard/fallback/guard/fallback/m"), "{names:?}");
    names.sort_unstable();
    assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    // Left alone while all is well.
    let calm = guarded(guarded(Adam::new(1e-2)));
    assert_eq!(losses(&digits(), &calm, 50), losses(&digits(), &Adam::new(1e-2), 50));
}

#[test]
#[should_panic(expected = "expected a tolerance >= 0, got NaN")]
fn impossible_tolerances_are_refused() {
    Guarded::<f32>::new(
        Box::new(Sgd::new(0.1)),
        GuardConfig { tolerance: f64::NAN, ..GuardConfig::default() },
    );
}

#[test]
fn non_finite_gradients_are_a_divergence() {
    let opt = guarded(Sgd::new(0.1)).with_fallback(Box::new(Sgd::new(0.1)));
    let layout = QuadraticTask::new(2);
    let params = SingleTask::<f32>::new(layout).0.init(Key::new(0));
    let mut state = opt.init(&params, None, Key::new(0));
    opt.update(&mut state, &[1.0, f32::NAN], 1.0, Key::new(0));
    assert_eq!((opt.report(&state).diverged_at, &state.params), (Some(0), &params.data));
    // And again while the fallback trains: skipped.
    opt.update(&mut state, &[1.0, f32::INFINITY], 1.0, Key::new(0));
    assert_eq!((state.step, &state.params), (2, &params.data));
}

#[test]
fn unusual_horizons_are_flagged() {
    let config = GuardConfig { horizons: 10..=20, ..GuardConfig::default() };
    let opt = Guarded::new(Box::new(Sgd::new(0.01)), config);
    let family = SingleTask::new(QuadraticTask::new(2));
    let flagged = |planned, steps| train(&family, &opt, planned, steps).0.unusual_horizon;
    assert!(!flagged(Some(10), 0) && !flagged(Some(20), 20));
    assert!(flagged(Some(21), 0) && flagged(Some(9), 0) && flagged(None, 0));
    // Longer than planned.
    assert!(flagged(Some(12), 13));
}

#[test]
fn inputs_outside_those_of_meta_training_are_counted() {
    let workers = Workers::new(2).unwrap();
    let adam = Adam::new(1e-2);
    let ranges = |runs| input_ranges(&digits(), &adam, 50, runs, Key::new(1), &workers);
    assert_eq!(ranges(3), input_ranges(&digits(), &adam, 50, 3, Key::new(1), &Workers::new(1).unwrap()));
    assert!(ranges(0).loss.low > ranges(0).loss.high);
    let ranges = input_ranges(&digits(), &adam, 50, 1, Key::new(1), &workers);
    let guard = |inner: Adam| {
        let config = GuardConfig { ranges: Some(ranges), ..GuardConfig::default() };
        Guarded::new(Box::new(inner), config)
    };
    // The very run of which the ranges are.
    let (report, _) = train(&digits(), &guard(Adam::new(1e-2)), Some(50), 50);
    assert_eq!((report.unusual_gradients, report.unusual_parameters, report.unusual_losses), (0, 0, 0));
    // Steps a hundred times as large: parameters grow beyond what was seen.
    let (report, _) = train(&digits(), &guard(Adam::new(1.0)), Some(50), 50);
    assert!(report.unusual_parameters > 100 && report.unusual_losses > 25, "{report:?}");
}
