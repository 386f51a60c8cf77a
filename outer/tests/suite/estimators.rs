//! Every estimator against its exact expectation.

use crate::support::{bowl_loss, slope, step, Rule};
use outerloop_core::Key;
use outerloop_outer::adjoint::Memory;
use outerloop_outer::estimator::{Antithetic, FullLoss, Noise, TerminalWeight, WindowLoss};
use outerloop_outer::{
    FinalPes, FullEs, GeneralizedPes, GradientEstimator, NoiseReuseEs, PesAnalytic, TruncatedEs,
    TruncatedPes, TruncatedStep, TruncationSchedule, Workers,
};
use std::sync::Arc;

pub const STD: f32 = 0.25;

/// Perturbations `±σ` by the bits of `pattern`, one bit per window. The estimates are products of two
/// perturbations, so averaging over all patterns gives the Gaussian expectation exactly.
fn signs(pattern: u32) -> Noise {
    Noise::Given(Arc::new(move |at, eps| {
        eps.fill(if pattern >> at.outer_step & 1 == 1 { STD } else { -STD });
    }))
}

pub fn settings(noise: Noise, num_tasks: usize, trunc_length: usize) -> Antithetic {
    let window_loss = WindowLoss::Sum;
    Antithetic { num_tasks, trunc_length, std: STD, window_loss, noise, ..Antithetic::default() }
}

/// Expected sum of the estimates of the first `windows` windows on the toy `s ← s + θ, loss = s`.
fn expectation(length: u64, window: usize, windows: u32, terminal: TerminalWeight) -> f64 {
    expectation_of(length, window, windows, |toy, settings| {
        Box::new(TruncatedPes::new(toy, settings).unwrap().with_terminal_weight(terminal))
    })
}

fn expectation_of(
    length: u64,
    window: usize,
    windows: u32,
    make: impl Fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>,
) -> f64 {
    let workers = Workers::new(1).unwrap();
    let patterns = 1u32 << windows;
    let total: f64 = (0..patterns)
        .map(|pattern| {
            let toy = step(Rule::Shift, 0.3, TruncationSchedule::Constant(length));
            let pes = make(toy, settings(signs(pattern), 1, window));
            let mut state = pes.init(&[0.3], Key::new(0), &workers);
            let estimates = (0..windows)
                .map(|t| f64::from(pes.estimate(&[0.3], &mut state, u64::from(t), &workers).grad[0]));
            estimates.sum::<f64>()
        })
        .sum();
    total / f64::from(patterns)
}

#[test]
fn pes_is_unbiased_on_the_linear_toy() {
    // The losses of one run are 0, θ, ..., (T−1)θ.
    for (length, window) in [(4, 2), (8, 2), (10, 5), (6, 6), (9, 3)] {
        let truth = (length * (length - 1) / 2) as f64;
        let got = expectation(length as u64, window, (length / window) as u32, TerminalWeight::Full);
        assert!((got - truth).abs() < 1e-4 * truth, "T={length} K={window}: {got}, truth {truth}");
    }
}

#[test]
fn pes_stays_unbiased_across_resets_that_do_not_align_with_windows() {
    // Calls per run: T trained and one masked reset. Windows of 4 calls over runs of 5 steps:
    // calls 0..20 hold runs 0..5, reset, 0..5, reset, 0..5, reset, 0, 1.
    let run = 10.0;
    let truth = 3.0 * run + 1.0;
    let got = expectation(5, 4, 5, TerminalWeight::Full);
    assert!((got - truth).abs() < 1e-4 * truth, "{got}, truth {truth}");
}

#[test]
fn the_reference_convention_has_its_known_bias() {
    for (length, truth) in [(4, 4.0), (8, 22.0)] {
        let got = expectation(length, 2, length as u32 / 2, TerminalWeight::CurrentWindow);
        assert!((got - truth).abs() < 1e-3, "T={length}: {got}, known {truth}");
    }
}

/// Every place of resets relative to windows, every length of reuse.
#[test]
fn reusing_perturbations_stays_unbiased_on_the_linear_toy() {
    for (length, window, windows, truth) in
        [(4, 2, 2, 6.0), (8, 2, 4, 28.0), (10, 5, 2, 45.0), (9, 3, 3, 36.0), (5, 4, 5, 31.0), (6, 4, 7, 60.0)]
    {
        for every in [1, 2, 3] {
            let got = expectation_of(length, window, windows, |toy, settings| {
                Box::new(GeneralizedPes::new(toy, settings, every).unwrap())
            });
            assert!(
                (got - truth).abs() < 1e-4 * truth,
                "T={length} K={window} every {every}: {got}, {truth}"
            );
        }
        let got = expectation_of(length, window, windows, |toy, settings| {
            Box::new(NoiseReuseEs::new(toy, settings).unwrap())
        });
        assert!((got - truth).abs() < 1e-4 * truth, "T={length} K={window} one per run: {got}, {truth}");
    }
}

/// The final losses: of every finished run `(T − 1) θ`, and of the one in progress what it has reached.
#[test]
fn final_pes_telescopes_to_the_final_loss_on_the_linear_toy() {
    for (length, window, windows, truth) in [
        (4, 2, 2, 3.0),
        (8, 2, 4, 7.0),
        (10, 5, 2, 9.0),
        (9, 3, 3, 8.0),
        (5, 4, 5, 13.0),
        (6, 4, 7, 20.0),
        (3, 8, 2, 8.0),
    ] {
        let got = expectation_of(length, window, windows, |toy, settings| {
            Box::new(FinalPes::new(toy, settings).unwrap())
        });
        assert!((got - truth).abs() < 1e-4 * truth, "T={length} K={window}: {got}, {truth}");
    }
}

#[test]
fn reuse_is_pes_at_one_end_and_noise_reuse_at_the_other() {
    let workers = Workers::new(2).unwrap();
    let run = |make: &dyn Fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>| {
        let bowl = step(Rule::Sgd, THETA, TruncationSchedule::LogUniform { min: 3, max: 17 });
        let estimator = make(bowl, settings(Noise::Gaussian, 5, 4));
        let mut state = estimator.init(&[THETA as f32], Key::new(4), &workers);
        (0..12)
            .map(|t| estimator.estimate(&[THETA as f32], &mut state, t, &workers).grad[0].to_bits())
            .collect()
    };
    let every = |n| move |s, c| Box::new(GeneralizedPes::new(s, c, n).unwrap()) as Box<dyn GradientEstimator>;
    let pes: Vec<u32> = run(&|s, c| Box::new(TruncatedPes::new(s, c).unwrap()));
    assert_eq!(pes, run(&every(1)));
    let reuse: Vec<u32> = run(&|s, c| Box::new(NoiseReuseEs::new(s, c).unwrap()));
    // No run has more than 5 windows.
    assert_eq!(reuse, run(&every(6)));
    assert_ne!(pes, reuse);
    assert!(GeneralizedPes::new(
        step(Rule::Sgd, THETA, TruncationSchedule::Constant(4)),
        settings(Noise::Gaussian, 5, 4),
        0
    )
    .is_err());
}

/// Where only the last update matters, every older perturbation is noise to PES. With `p ← θ` and windows of 4, the sixth
/// window's loss difference is `2(ε₅ + 3ε₆)`, weighed with `Σ ε`: variance 10 · 6 + 4² = 76 per lane. One perturbation
/// for all windows gives `8ε`, weighed with ε: 4 · 4 + 4² = 32.
#[test]
fn reusing_perturbations_has_the_mean_of_pes_and_less_variance() {
    let workers = Workers::new(1).unwrap();
    let sixth = |make: &dyn Fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>| {
        let estimates: Vec<f64> = (0..400)
            .map(|seed| {
                let runs = step(Rule::Set, 0.3, TruncationSchedule::Constant(100));
                let estimator = make(runs, settings(Noise::Gaussian, 20, 4));
                let mut state = estimator.init(&[0.3], Key::new(seed), &workers);
                (0..6)
                    .map(|t| f64::from(estimator.estimate(&[0.3], &mut state, t, &workers).grad[0]))
                    .last()
                    .unwrap()
            })
            .collect();
        let mean = estimates.iter().sum::<f64>() / 400.0;
        let variance = estimates.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 399.0;
        (mean, 20.0 * variance)
    };
    let (pes, pes_variance) = sixth(&|s, c| Box::new(TruncatedPes::new(s, c).unwrap()));
    let (reuse, reuse_variance) = sixth(&|s, c| Box::new(NoiseReuseEs::new(s, c).unwrap()));
    // Four standard errors of means over 8000 lanes are 0.39 and 0.25, of the variances less than a third.
    assert!((pes - 4.0).abs() < 0.39 && (reuse - 4.0).abs() < 0.25, "{pes} {reuse}");
    assert!((pes_variance / 76.0 - 1.0).abs() < 0.33, "{pes_variance}");
    assert!((reuse_variance / 32.0 - 1.0).abs() < 0.33, "{reuse_variance}");
}

fn pes_analytic(step: TruncatedStep, settings: Antithetic) -> Box<dyn GradientEstimator> {
    Box::new(PesAnalytic::new(step, settings, Memory::All).unwrap())
}

#[test]
fn pes_analytic_is_unbiased_on_the_linear_toy_with_and_without_resets() {
    for (length, window, windows, truth) in
        [(4, 2, 2, 6.0), (10, 5, 2, 45.0), (9, 3, 3, 36.0), (5, 4, 5, 31.0)]
    {
        let got = expectation_of(length, window, windows, pes_analytic);
        assert!((got - truth).abs() < 1e-4 * truth, "T={length} K={window}: {got}, truth {truth}");
    }
}

#[test]
fn pes_analytic_has_the_mean_of_pes_and_less_variance() {
    let make = || step(Rule::Sgd, THETA, TruncationSchedule::Constant(12));
    let settings = || Antithetic { std: 0.05, ..settings(Noise::Gaussian, 50, 4) };
    let truth = slope(|t| bowl_loss(t, 0.05, 4, 0..12), THETA);
    let pes = statistics(&TruncatedPes::new(make(), settings()).unwrap(), THETA as f32, 3, 60);
    let analytic = statistics(&*pes_analytic(make(), settings()), THETA as f32, 3, 60);
    assert_agrees("PES", pes, truth);
    assert_agrees("PES with control variate", analytic, truth);
    let ratio = (analytic.1 / pes.1).powi(2);
    assert!(ratio < 0.6, "variance ratio {ratio}");
}

/// Mean and standard error of the sum of `estimates` estimates over `runs` keys.
pub fn statistics(estimator: &dyn GradientEstimator, theta: f32, estimates: u64, runs: u64) -> (f64, f64) {
    let workers = Workers::new(0).unwrap();
    let sums: Vec<f64> = (0..runs)
        .map(|seed| {
            let mut state = estimator.init(&[theta], Key::new(seed), &workers);
            (0..estimates)
                .map(|t| f64::from(estimator.estimate(&[theta], &mut state, t, &workers).grad[0]))
                .sum()
        })
        .collect();
    let n = runs as f64;
    let mean = sums.iter().sum::<f64>() / n;
    let var = sums.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    (mean, (var / n).sqrt())
}

pub fn assert_agrees(name: &str, (mean, error): (f64, f64), truth: f64) {
    assert!((mean - truth).abs() < 4.0 * error, "{name}: {mean} ± {error}, exact {truth}");
    assert!(error < 0.1 * truth.abs(), "{name}: the test is blind, {mean} ± {error}, exact {truth}");
}

pub const THETA: f64 = -2.0;

#[test]
fn full_es_agrees_with_the_smoothed_gradient_on_the_quadratic() {
    let length = 6;
    for (loss, from, divisor) in [(FullLoss::Mean, 0, 6.0), (FullLoss::Last, 5, 1.0)] {
        let bowl = step(Rule::Sgd, THETA, TruncationSchedule::Constant(length as u64));
        let es = FullEs::new(bowl, settings(Noise::Gaussian, 50, 1), loss).unwrap();
        // One perturbation acts on the whole run.
        let truth = slope(|t| bowl_loss(t, f64::from(STD), length, from..length), THETA) / divisor;
        assert_agrees("full ES", statistics(&es, THETA as f32, 1, 60), truth);
    }
}

#[test]
fn truncated_es_agrees_with_the_smoothed_window_gradient_on_the_quadratic() {
    let bowl = step(Rule::Sgd, THETA, TruncationSchedule::Constant(20));
    let es = TruncatedEs::new(bowl, settings(Noise::Gaussian, 50, 4)).unwrap();
    let truth = slope(|t| bowl_loss(t, f64::from(STD), 4, 0..4), THETA);
    assert_agrees("truncated ES", statistics(&es, THETA as f32, 1, 60), truth);
}

#[test]
fn pes_agrees_with_the_smoothed_gradient_of_the_whole_run_on_the_quadratic() {
    let bowl = step(Rule::Sgd, THETA, TruncationSchedule::Constant(12));
    let pes = TruncatedPes::new(bowl, settings(Noise::Gaussian, 50, 4)).unwrap();
    let truth = slope(|t| bowl_loss(t, f64::from(STD), 4, 0..12), THETA);
    assert_agrees("PES", statistics(&pes, THETA as f32, 3, 80), truth);
}

#[test]
fn truncated_es_is_biased_where_pes_is_not() {
    // The second window's losses depend on what the first did: truncated ES does not see it.
    let make = || step(Rule::Sgd, THETA, TruncationSchedule::Constant(8));
    let truth = slope(|t| bowl_loss(t, f64::from(STD), 4, 0..8), THETA);
    let es = TruncatedEs::new(make(), settings(Noise::Gaussian, 100, 4)).unwrap();
    let (mean, error) = statistics(&es, THETA as f32, 2, 40);
    assert!((mean - truth).abs() > 10.0 * error, "{mean} ± {error}, whole run {truth}");
}

#[test]
fn estimates_do_not_depend_on_the_number_of_threads() {
    let run = |threads: usize| {
        let workers = Workers::new(threads).unwrap();
        let bowl = step(Rule::Sgd, THETA, TruncationSchedule::LogUniform { min: 3, max: 9 });
        let pes = TruncatedPes::new(bowl, settings(Noise::Gaussian, 13, 4)).unwrap();
        let mut state = pes.init(&[THETA as f32], Key::new(4), &workers);
        let grads: Vec<u32> = (0..6)
            .map(|t| pes.estimate(&[THETA as f32], &mut state, t, &workers).grad[0].to_bits())
            .collect();
        (grads, state)
    };
    let one = run(1);
    for threads in [2, 3, 7] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}

#[test]
fn a_diverged_lane_is_counted_and_reset_and_spoils_nothing() {
    // e^θ = e^5: |1 − 2 e^θ| is about 296, so f32 overflows within 16 steps in every lane but the one
    // whose perturbation brings theta back to e^-2.
    let noise = Noise::Given(Arc::new(|at, eps| eps[0] = if at.lane == 1 { 7.0 } else { 0.01 }));
    let bowl = step(Rule::Sgd, 5.0, TruncationSchedule::Constant(100));
    let workers = Workers::new(1).unwrap();
    let pes = TruncatedPes::new(
        bowl,
        Antithetic { num_tasks: 3, trunc_length: 30, noise, ..Antithetic::default() },
    )
    .unwrap();
    let mut state = pes.init(&[5.0], Key::new(0), &workers);
    let e = pes.estimate(&[5.0], &mut state, 0, &workers);
    assert_eq!((e.diverged, e.masked), (3, 3));
    assert_eq!(e.grad, [0.0]);
    assert!(state.lanes.iter().all(|l| l.clock.is_done && l.accumulator == [0.0]));
    // After the reset, a healthy theta trains all lanes again.
    let noise = Noise::Gaussian;
    let bowl = step(Rule::Sgd, THETA, TruncationSchedule::Constant(100));
    let pes = TruncatedPes::new(
        bowl,
        Antithetic { num_tasks: 3, trunc_length: 30, noise, ..Antithetic::default() },
    )
    .unwrap();
    let e = pes.estimate(&[THETA as f32], &mut state, 1, &workers);
    assert_eq!((e.diverged, e.masked, e.inner_steps), (0, 0, 3 * 2 * 29));
    assert!(e.grad[0].is_finite() && e.mean_loss.is_finite());
}

#[test]
fn one_masked_lane_leaves_the_other_lanes_estimate() {
    let make = |bad: bool| {
        let noise = Noise::Given(Arc::new(move |at, eps| {
            eps[0] = if bad && at.lane == 2 { 9.0 } else { 0.01 * (at.lane as f32 + 1.0) };
        }));
        let bowl = step(Rule::Sgd, THETA, TruncationSchedule::Constant(100));
        TruncatedEs::new(bowl, Antithetic { num_tasks: 3, trunc_length: 30, noise, ..Antithetic::default() })
            .unwrap()
    };
    let workers = Workers::new(2).unwrap();
    let run = |es: TruncatedEs| {
        let mut state = es.init(&[THETA as f32], Key::new(0), &workers);
        es.estimate(&[THETA as f32], &mut state, 0, &workers)
    };
    let (good, bad) = (run(make(false)), run(make(true)));
    assert_eq!((bad.diverged, bad.masked, good.masked), (1, 1, 0));
    assert!(bad.grad[0] != 0.0 && bad.grad[0].is_finite() && bad.mean_loss.is_finite());
}
