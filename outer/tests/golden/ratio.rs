//! Kind L, what is exact: SLCP's simulator and likelihood, its posterior by quadrature and by a sampler, the lowest loss.

use crate::fixture::{array, get, inputs, number, numbers, shape, Case, Errors, Outcome};
use outerloop_amortized::ratio::exact::{slcp_posterior, Resolution};
use outerloop_amortized::ratio::sample::{Sampler, Samples, Smc};
use outerloop_amortized::ratio::simulators::Slcp;
use outerloop_amortized::ratio::*;
use outerloop_core::Key;
use outerloop_outer::Workers;

pub fn workers() -> Workers {
    Workers::new(0).expect("threads start")
}

/// Moments, likelihoods with gradients, prior and posterior densities, evidence, simulations.
pub fn slcp_likelihood(case: &Case) -> Outcome {
    let mut e = Errors::default();
    let simulators = [("seed", Slcp::seed()), ("sbibm", Slcp::sbibm())];
    let closed = Slcp::seed().prior().bounds();
    let (low, high): (Vec<f64>, Vec<f64>) = closed.into_iter().unzip();
    let closed = UniformBox::new(low, high).expect("edges are in order");
    let half_open = closed.clone().with_edge(Edge::HalfOpen);
    // The evidence of an observation is found once.
    let mut evidence: Vec<(Vec<f64>, f64)> = Vec::new();
    for (i, c) in array(case.get("cases")).iter().enumerate() {
        let (theta, x): (Vec<f64>, Vec<f64>) = (inputs(get(c, "theta")), inputs(get(c, "x")));
        let relative = |want: f64| 1e-9 * want.abs().max(1.0);
        let near = |e: &mut Errors, key: &str, got: f64| {
            let want = number(get(c, key));
            e.check(&format!("case {i} {key}"), got, want, relative(want));
        };
        for (name, slcp) in &simulators {
            let m = slcp.moments(&theta);
            let cov = [m.cov[0], m.cov[1], m.cov[1], m.cov[2]];
            let want = numbers(get(c, &format!("cov_{name}_f64")));
            e.check_all(&format!("case {i} covariance {name}"), &cov, &want, 1e-12);
            if let Some(want) = c.get(format!("chol_{name}_f64")).map(numbers) {
                let chol = [m.chol[0], 0.0, m.chol[1], m.chol[2]];
                if want.iter().all(|w| w.is_finite()) {
                    e.check_all(&format!("case {i} factor {name}"), &chol, &want, 1e-12);
                }
            }
            e.check_all(&format!("case {i} mean"), &m.mean, &numbers(get(c, "mean")), 1e-15);
            let mut grad = [0.0; 5];
            let log_lik = slcp.log_lik_grad(&theta, &x, &mut grad);
            near(&mut e, &format!("log_lik_{name}_f64"), log_lik);
            near(&mut e, &format!("log_lik_{name}_f64"), slcp.log_lik(&theta, &x));
            for (k, want) in numbers(get(c, &format!("grad_log_lik_{name}_f64"))).into_iter().enumerate() {
                e.check(&format!("case {i} gradient {name} {k}"), grad[k], want, relative(want));
            }
            near(&mut e, &format!("log_post_unnorm_{name}_f64"), log_lik + closed.log_density(&theta));
        }
        near(&mut e, "log_prior_closed_f64", closed.log_density(&theta));
        near(&mut e, "log_prior_half_open_f64", half_open.log_density(&theta));
        if let Some(want) = c.get("log_evidence_seed_f64").map(number) {
            if !evidence.iter().any(|(known, _)| *known == x) {
                let p = slcp_posterior(&x, Resolution::default(), &workers());
                evidence.push((x.clone(), p.log_evidence));
            }
            let got = evidence.iter().find(|(known, _)| *known == x).map_or(f64::NAN, |e| e.1);
            e.check(&format!("case {i} evidence"), got, want, 1e-5);
            let ratio = Slcp::seed().log_lik(&theta, &x) - got;
            let want = number(get(c, "log_ratio_exact_seed_f64"));
            e.check(&format!("case {i} exact log ratio"), ratio, want, 1e-5 + relative(want));
        }
    }
    for (i, c) in array(case.get("simulations")).iter().enumerate() {
        let (theta, z): (Vec<f64>, Vec<f64>) = (inputs(get(c, "theta")), inputs(get(c, "z")));
        for (name, slcp) in &simulators {
            let mut x = vec![0.0; z.len()];
            slcp.from_noise(&theta, &z, &mut x);
            let want = numbers(get(c, &format!("x_{name}_f64")));
            e.check_all(
                &format!("simulation {i} {name}"),
                &x,
                &want,
                1e-9 * crate::fixture::magnitude(&want).max(1.0),
            );
        }
    }
    e.done()
}

/// Evidence and moments by quadrature; then a sampler on the exact likelihood against them and the quantiles.
pub fn slcp_posterior_case(case: &Case) -> Outcome {
    let mut e = Errors::default();
    let x: Vec<f64> = inputs(case.get("x"));
    let exact = slcp_posterior(&x, Resolution::default(), &workers());
    e.check("log evidence", exact.log_evidence, number(case.get("log_evidence_f64")), 1e-5);
    let flat = |c: &[[f64; 5]; 5]| c.iter().flatten().copied().collect::<Vec<f64>>();
    e.check_all("mean of |theta|", &exact.mean, &numbers(case.get("mean_abs_f64")), 1e-5);
    e.check_all("covariance of |theta|", &flat(&exact.cov), &numbers(case.get("cov_abs_f64")), 1e-5);
    let (mean, cov) = exact.signed();
    e.check_all("mean", &mean, &numbers(case.get("mean_f64")), 1e-5);
    e.check_all("covariance", &flat(&cov), &numbers(case.get("cov_f64")), 1e-5);

    let slcp = Slcp::seed();
    let samples = numbers(case.get("samples"));
    let log_lik = numbers(case.get("samples_log_lik_first5_f64"));
    let d = shape(case.get("samples"))[1];
    for (i, (theta, want)) in samples.chunks_exact(d).zip(&log_lik).enumerate() {
        // The likelihoods were taken before the samples were printed with six digits.
        e.check(&format!("log likelihood of sample {i}"), slcp.log_lik(theta, &x), *want, 2e-3);
    }
    let truth: Vec<f64> = inputs(case.get("theta_true"));
    let mut made = vec![0.0; x.len()];
    if let Some(z) = case.json.get("z_used") {
        slcp.from_noise(&truth, &inputs::<f64>(z), &mut made);
        e.check_all("the observation", &made, &x, 1e-5);
    }

    let density = ExactDensity::new(&slcp, &x).expect("the likelihood is known");
    let smc = Smc { particles: 500, populations: 2, final_moves: 4000, thinning: 4, ..Smc::default() };
    let s = smc.sample(&density, 500_000, Key::new(0), &workers()).expect("the settings are in range");
    check_samples(&mut e, case, &s);
    e.done()
}

/// Against moments, quantiles and the weights of the modes, in standard errors of the effective number of draws.
fn check_samples(e: &mut Errors, case: &Case, s: &Samples) {
    let columns: Vec<Vec<f64>> = (0..7)
        .map(|k| match k {
            5 | 6 => s.column(k - 3).iter().map(|t| t.abs()).collect(),
            _ => s.column(k),
        })
        .collect();
    let ess =
        |k: usize| s.report.ess[if k > 4 { k - 3 } else { k }].min(s.report.ess[0]).min(s.report.ess[4]);
    let (mean, cov) = (numbers(case.get("mean_f64")), numbers(case.get("cov_f64")));
    for k in 0..5 {
        let se = (cov[6 * k] / ess(k)).sqrt();
        e.check(&format!("sampled mean {k}"), s.mean()[k], mean[k], 4.0 * se);
    }
    let levels = numbers(case.get("quantile_levels"));
    let quantiles = numbers(case.get("quantiles"));
    for (k, column) in columns.iter().enumerate() {
        for (i, level) in levels.iter().enumerate() {
            let at = quantiles[k * levels.len() + i];
            let below = column.iter().filter(|t| **t < at).count() as f64 / column.len() as f64;
            // The quantiles are of 10⁶ draws.
            let se = (level * (1.0 - level) * (1.0 / ess(k) + 1e-6)).sqrt();
            e.check(&format!("parameter {k}: mass below quantile {level}"), below, *level, 4.0 * se);
        }
    }
    let n = s.len() as f64;
    for signs in [[false, false], [false, true], [true, false], [true, true]] {
        let inside = |t: &&[f64]| [t[2] > 0.0, t[3] > 0.0] == signs;
        let share = s.draws.chunks_exact(s.dim).filter(inside).count() as f64 / n;
        let effective = s.report.ess[2].min(s.report.ess[3]);
        e.check(&format!("mode {signs:?}"), share, 0.25, 4.0 * (0.25 * 0.75 / effective).sqrt());
    }
}

/// The lowest possible loss, and the mutual information: Monte Carlo over a few observations.
pub fn slcp_bayes_loss(case: &Case) -> Outcome {
    const OBSERVATIONS: u64 = 40;
    let mut e = Errors::default();
    let (slcp, workers) = (Slcp::seed(), workers());
    let coarse = Resolution { panels: 6, nodes: 6 };
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    let (mut losses, mut information) = (Vec::new(), Vec::new());
    for i in 0..OBSERVATIONS {
        let (mut theta, mut x) = ([0.0; 5], [0.0; 8]);
        simulate_one(&slcp, Key::new(0), i, &mut theta, &mut x);
        let evidence = slcp_posterior(&x, coarse, &workers).log_evidence;
        let log_ratio = |theta: &[f64]| slcp.log_lik(theta, &x) - evidence;
        information.push(log_ratio(&theta));
        let mut marginal = 0.0;
        for k in 0..2000 {
            let mut other = [0.0; 5];
            slcp.prior().sample(Key::new(1).fold_in(i).fold_in(k), &mut other);
            marginal += softplus(log_ratio(&other)) / 2000.0;
        }
        losses.push(0.5 * (softplus(-log_ratio(&theta)) + marginal));
    }
    for (name, got) in [("bayes_bce", losses), ("mutual_information", information)] {
        let n = got.len() as f64;
        let mean = got.iter().sum::<f64>() / n;
        let var = got.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let se = number(case.get(&format!("{name}_standard_error")));
        e.check(name, mean, number(case.get(name)), 4.0 * (var / n + se * se).sqrt());
    }
    let (constant, _) = loss_and_grad(RatioLoss::NreA, &[0.0, 0.0]);
    e.check("constant classifier", constant, number(case.get("loss_of_a_constant_classifier")), 1e-12);
    e.done()
}
