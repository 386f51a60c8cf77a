//! Estimators for special means, against their exact expectations: guided ES, measure-valued derivatives, the mix of
//! ES and unrolled gradients; and shaped differences.

use crate::estimators::{assert_agrees, settings, statistics, STD, THETA};
use crate::support::{bowl_loss, slope, step, Rule};
use outerloop_core::Key;
use outerloop_lopt::LearnableSgdm;
use outerloop_outer::adjoint::SweepConfig;
use outerloop_outer::estimator::{Antithetic, FullLoss, Guide, Noise, Shaping, WindowLoss};
use outerloop_outer::{
    FullEs, GradientEstimator, GuidedEs, MeasureValued, Mixed, TruncatedEs, TruncatedStep,
    TruncationSchedule, Workers,
};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::Arc;

fn bowl(length: u64) -> TruncatedStep {
    step(Rule::Sgd, THETA, TruncationSchedule::Constant(length))
}

#[test]
fn guided_es_agrees_with_the_smoothed_gradient_where_the_subspace_is_everything() {
    // One meta-parameter: any guess spans all directions, and no bias is left.
    let truth = slope(|t| bowl_loss(t, f64::from(STD), 6, 0..6), THETA) / 6.0;
    for guide in [Guide::Past(2), Guide::Unrolled { count: 1, steps: 3 }] {
        let es =
            GuidedEs::new(bowl(6), settings(Noise::Gaussian, 50, 1), FullLoss::Mean, guide, 0.3).unwrap();
        assert_agrees("guided ES", statistics(&es, THETA as f32, 3, 60), 3.0 * truth);
    }
}

fn momentum_runs() -> TruncatedStep {
    let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
    TruncatedStep::new(family, Arc::new(LearnableSgdm::default()), TruncationSchedule::Constant(6)).unwrap()
}

#[test]
fn guided_es_is_full_es_without_a_guess_and_keeps_what_it_needs() {
    let workers = Workers::new(2).unwrap();
    let common = || Antithetic { num_tasks: 5, std: 0.1, ..Antithetic::default() };
    let theta = outerloop_core::LearnedOptimizer::<f32>::init(&LearnableSgdm::default(), Key::new(0));
    let full = FullEs::new(momentum_runs(), common(), FullLoss::Mean).unwrap();
    let run = |es: &dyn GradientEstimator| {
        let mut state = es.init(&theta, Key::new(3), &workers);
        let grads: Vec<Vec<f32>> =
            (0..3).map(|t| es.estimate(&theta, &mut state, t, &workers).grad).collect();
        (grads, state.past)
    };
    let (plain, nothing) = run(&full);
    assert!(nothing.is_empty());
    let guided =
        |alpha, guide| GuidedEs::new(momentum_runs(), common(), FullLoss::Mean, guide, alpha).unwrap();
    assert_eq!(run(&guided(1.0, Guide::Past(1))).0, plain);
    let (half, past) = run(&guided(0.5, Guide::Past(2)));
    // The first has no guess yet; the second differs in the direction of the first.
    assert_eq!(half[0], plain[0]);
    assert_ne!(half[1], plain[1]);
    assert_eq!(past, [half[2].clone(), half[1].clone()]);
    for (alpha, guide) in [(1.5, Guide::Past(1)), (0.0, Guide::Past(1)), (0.5, Guide::Past(0))] {
        assert!(GuidedEs::new(momentum_runs(), common(), FullLoss::Mean, guide, alpha).is_err());
    }
    // With nothing outside, estimates lie along the one guess.
    let along =
        GuidedEs::new(momentum_runs(), common(), FullLoss::Mean, Guide::Unrolled { count: 1, steps: 6 }, 0.0)
            .unwrap();
    let grads = run(&along).0;
    let guess = outerloop_outer::FullGrad::new(momentum_runs(), 1, SweepConfig::default()).unwrap();
    for (t, grad) in grads.iter().enumerate() {
        let key = Key::new(3).named("guess").fold_in(0);
        let mut state = outerloop_outer::EstimatorState::new(key);
        let guess = guess.estimate(&theta, &mut state, t as u64, &workers).grad;
        let cross = grad[0] * guess[1] - grad[1] * guess[0];
        assert!(
            cross.abs() < 1e-4 * (grad[0].hypot(grad[1]) * guess[0].hypot(guess[1])),
            "{grad:?} {guess:?}"
        );
    }
}

#[test]
fn measure_valued_derivatives_agree_with_the_smoothed_gradient() {
    for (loss, from, divisor) in [(FullLoss::Mean, 0, 6.0), (FullLoss::Last, 5, 1.0)] {
        let mvd = MeasureValued::new(bowl(6), settings(Noise::Gaussian, 50, 1), loss).unwrap();
        let truth = slope(|t| bowl_loss(t, f64::from(STD), 6, from..6), THETA) / divisor;
        assert_agrees("measure-valued", statistics(&mvd, THETA as f32, 1, 60), truth);
    }
}

/// On a loss that is linear in theta the estimate is `√(2/π) w` times the slope: mean 1 (`E w = √(π/2)`), variance
/// `4/π − 1`; that of ES is `z²`: variance 2. The mean loss of 3 steps of `s ← s + θ` has slope 1.
#[test]
fn measure_valued_derivatives_have_their_exact_mean_and_variance_on_a_line() {
    let toy = || step(Rule::Shift, 0.3, TruncationSchedule::Constant(3));
    let moments = |estimator: &dyn GradientEstimator| {
        let (mean, error) = statistics(estimator, 0.3, 1, 2000);
        (mean, error * error * 2000.0, error)
    };
    let common = || settings(Noise::Gaussian, 1, 1);
    let (mean, variance, error) = moments(&MeasureValued::new(toy(), common(), FullLoss::Mean).unwrap());
    assert!((mean - 1.0).abs() < 4.0 * error, "{mean} ± {error}");
    // Four standard errors of these variances, from their fourth moments, are below a seventh and two fifths.
    assert!((variance / (4.0 / std::f64::consts::PI - 1.0) - 1.0).abs() < 0.15, "{variance}");
    let (mean, variance, error) = moments(&FullEs::new(toy(), common(), FullLoss::Mean).unwrap());
    assert!((mean - 1.0).abs() < 4.0 * error && (variance / 2.0 - 1.0).abs() < 0.4, "{mean} {variance}");
}

#[test]
fn measure_valued_derivatives_are_for_few_parameters_and_plain_differences() {
    let mlp = outerloop_lopt::MlpLopt { hidden_size: 4, ..Default::default() };
    let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
    let runs = TruncatedStep::new(family, Arc::new(mlp), TruncationSchedule::Constant(6)).unwrap();
    let error = MeasureValued::new(runs, Antithetic::default(), FullLoss::Mean).err().unwrap().to_string();
    assert!(error.contains("at most 64"), "{error}");
    let shaped = Antithetic { shaping: Shaping::Deviation, ..Antithetic::default() };
    assert!(MeasureValued::new(bowl(6), shaped, FullLoss::Mean).is_err());
}

fn mixed(runs: TruncatedStep, common: Antithetic) -> Mixed {
    Mixed::new(runs, common, SweepConfig::default()).unwrap()
}

#[test]
fn the_mix_is_exact_where_one_part_has_no_variance() {
    // s ← s + θ: the window's unrolled gradient is 0 + 1 + 2 + 3 for every perturbation.
    let workers = Workers::new(1).unwrap();
    let toy = step(Rule::Shift, 0.3, TruncationSchedule::Constant(8));
    let mix = mixed(toy, settings(Noise::Gaussian, 3, 4));
    let mut state = mix.init(&[0.3], Key::new(1), &workers);
    for t in 0..2 {
        let e = mix.estimate(&[0.3], &mut state, t, &workers);
        assert!((e.grad[0] - 6.0).abs() < 1e-5, "{:?}", e.grad);
        assert_eq!(e.inner_steps, 3 * 2 * 4);
    }
}

#[test]
fn the_mix_agrees_with_the_smoothed_gradient_of_the_window_with_less_variance_than_es() {
    let truth = slope(|t| bowl_loss(t, f64::from(STD), 4, 0..4), THETA);
    let common = || settings(Noise::Gaussian, 200, 4);
    let mix = statistics(&mixed(bowl(20), common()), THETA as f32, 1, 40);
    assert_agrees("mix", mix, truth);
    let es = statistics(&TruncatedEs::new(bowl(20), common()).unwrap(), THETA as f32, 1, 40);
    assert!(mix.1 < 0.5 * es.1, "{mix:?} {es:?}");
}

#[test]
fn the_mix_goes_on_as_es_does_and_is_es_where_unrolled_gradients_are_no_numbers() {
    let workers = Workers::new(2).unwrap();
    let common = || Antithetic { num_tasks: 4, trunc_length: 6, std: 0.05, ..Antithetic::default() };
    let theta = [THETA as f32];
    for rule in [Rule::Sgd, Rule::Torn] {
        let runs = || step(rule, THETA, TruncationSchedule::Constant(15));
        let (es, mix) = (TruncatedEs::new(runs(), common()).unwrap(), mixed(runs(), common()));
        let mut states = [es.init(&theta, Key::new(2), &workers), mix.init(&theta, Key::new(2), &workers)];
        for t in 0..4 {
            let [a, b] = &mut states;
            let (a, b) = (es.estimate(&theta, a, t, &workers), mix.estimate(&theta, b, t, &workers));
            assert_eq!((a.mean_loss, a.inner_steps), (b.mean_loss, b.inner_steps));
            assert_eq!(a.grad == b.grad, matches!(rule, Rule::Torn), "{:?} {:?}", a.grad, b.grad);
        }
        assert_eq!(states[0], states[1]);
    }
    let refused = |common: Antithetic| Mixed::new(bowl(15), common, SweepConfig::default()).is_err();
    assert!(refused(Antithetic { num_tasks: 1, ..common() }));
    assert!(refused(Antithetic { sign: Some(1.0), ..common() }));
    let opaque = step(Rule::Opaque, THETA, TruncationSchedule::Constant(15));
    assert!(Mixed::new(opaque, common(), SweepConfig::default()).is_err());
}

/// Lane i's perturbation is `(i + 1)/4`; two lanes on the line: losses `(0.3 ± ε)/2`, which are 0.275, 0.025, 0.4, −0.1.
#[test]
fn shaped_differences_are_those_of_ranks_and_of_standardized_losses() {
    let workers = Workers::new(1).unwrap();
    let estimate = |shaping| {
        let noise = Noise::Given(Arc::new(|at, eps| eps[0] = 0.25 * (at.lane + 1) as f32));
        let common = Antithetic { shaping, window_loss: WindowLoss::Mean, ..settings(noise, 2, 2) };
        let es = TruncatedEs::new(step(Rule::Shift, 0.3, TruncationSchedule::Constant(8)), common).unwrap();
        f64::from(es.estimate(&[0.3], &mut es.init(&[0.3], Key::new(0), &workers), 0, &workers).grad[0])
    };
    // 1/(2σ²N) = 4.
    let plain = 4.0 * (0.25 * 0.25 + 0.5 * 0.5);
    assert!((estimate(Shaping::None) - plain).abs() < 1e-5);
    // Ranks −½, −1/6, 1/6, ½.
    assert!((estimate(Shaping::Ranks) - 4.0 * (0.25 / 3.0 + 0.5)).abs() < 1e-5);
    // Deviations from the mean 0.15: ±0.125, ±0.25.
    let deviation = (2.0f64 * (0.125f64.powi(2) + 0.25f64.powi(2)) / 4.0).sqrt();
    assert!((estimate(Shaping::Deviation) - plain / deviation).abs() < 1e-4);
    let pes = |shaping| {
        let common = Antithetic { shaping, ..settings(Noise::Gaussian, 2, 2) };
        outerloop_outer::TruncatedPes::new(bowl(8), common)
    };
    assert!(pes(Shaping::Ranks).is_err() && pes(Shaping::Deviation).is_ok());
    let both = Antithetic { sign: Some(1.0), shaping: Shaping::Deviation, ..Antithetic::default() };
    assert!(TruncatedEs::new(bowl(8), both).is_err());
}
