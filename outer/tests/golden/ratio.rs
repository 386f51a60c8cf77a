//! Kind L: amortized ratio estimation. Simulator, exact posterior, network, losses, training, Metropolis steps,
//! metrics.

use crate::fixture::{
    array, get, inputs, number, numbers, params, shape, tree_inputs, tree_layout, Case, Errors, Outcome,
};
use outerloop_amortized::ratio::exact::{slcp_posterior, Resolution};
use outerloop_amortized::ratio::metrics::chains::{
    autocorrelation, effective_sample_size, importance_weights, split_rhat,
};
use outerloop_amortized::ratio::metrics::{c2st, calibration, special, two_sample};
use outerloop_amortized::ratio::sample::{accepts, kept_rows, seed_metropolis, Sampler, Samples, Smc};
use outerloop_amortized::ratio::simulators::Slcp;
use outerloop_amortized::ratio::*;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{Float, Key, Layout, Optimizer, Params};
use outerloop_lopt::hand::Adam;
use outerloop_outer::Workers;
use serde_json::Value;
use std::sync::Arc;
use two_sample::{auc, mmd2, Bandwidth, TwoSample};

fn workers() -> Workers {
    Workers::new(0).expect("threads start")
}

/// The gap that the case gives for a quantity; 0 if there is none.
fn gap(v: &Value, key: &str) -> f64 {
    v.get("f32_vs_f64_gap").and_then(|g| g.get(key)).and_then(|g| g.get("max_abs")).map_or(0.0, number)
}

fn flag(v: &Value) -> bool {
    v.as_bool().unwrap_or_else(|| number(v) != 0.0)
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
    let coarse = Resolution { panels: 10, nodes: 6 };
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

/// The network of a tree `linear_i/w`, `linear_i/b`, and its weights in the network's order.
fn network<E: Float>(tree: &Value, d: usize) -> (RatioNet, Vec<E>) {
    let layout = tree_layout(tree, 0);
    let entry = |i: usize, part: &str| layout.get(&format!("linear_{i}/{part}"));
    let layers: Vec<Vec<usize>> = (0..).map_while(|i| entry(i, "w").map(|e| e.shape.clone())).collect();
    let hidden = layers[..layers.len() - 1].iter().map(|l| l[1]).collect();
    let net = RatioNet::new(Architecture::Mlp { hidden }, Nonlinearity::Selu, [d, layers[0][0] - d]);
    let net = net.expect("the case's shapes make a network");
    let weights = reordered(&tree_inputs(tree, &layout), &layout, &net.layout());
    (net, weights)
}

/// A buffer of one layout in the order of another with the same names.
fn reordered<E: Float>(flat: &[E], from: &Layout, to: &Layout) -> Vec<E> {
    let tensor = |e: &outerloop_core::Entry| {
        let source = from.entry(&e.name).expect("both have the same tensors");
        flat[source.range()].to_vec()
    };
    to.entries().iter().flat_map(tensor).collect()
}

/// Own and contrasting rows side by side, as the network's task has them.
fn pairs<E: Float>(own: &[E], other: &[E], d: usize) -> Vec<E> {
    own.chunks_exact(d).zip(other.chunks_exact(d)).flat_map(|(a, b)| a.iter().chain(b).copied()).collect()
}

fn log_ratios<E: Float>(e: &mut NetEvaluator<E>, theta: &[E], x: &[E], d: usize) -> Vec<E>
where
    Cpu: Host<E>,
{
    let n = theta.len() / d;
    let p = x.len() / n;
    (0..n).flat_map(|i| e.log_ratio(&theta[i * d..(i + 1) * d], &x[i * p..(i + 1) * p])).collect()
}

/// Relative to the largest magnitude: 1e-12 in f64; in f32 ten gaps, at least 2e-6.
fn tolerance<E: Float>(want: &[f64], gap: f64) -> f64 {
    let largest = crate::fixture::magnitude(want).max(1e-30);
    if E::of(1.0 / 3.0).f64() == 1.0 / 3.0 {
        1e-12 * largest
    } else {
        (10.0 * gap).max(2e-6 * largest)
    }
}

fn mlp_in<E: Float>(case: &Case, e: &mut Errors, what: &str)
where
    Cpu: Host<E>,
{
    let d = shape(case.get("theta"))[1];
    let [own, other, x] = ["theta", "theta_prime", "x"].map(|k| inputs::<E>(case.get(k)));
    let (net, weights) = network::<E>(case.get("params"), d);
    let mut check = |case: &Value, weights: &[E]| {
        let mut eval = NetEvaluator::new(&net, weights);
        let want = numbers(get(case, "log_ratio_f64"));
        let got: Vec<E> = [&own, &other].iter().flat_map(|t| log_ratios(&mut eval, t, &x, d)).collect();
        e.check_all(&format!("{what} log ratio"), &got, &want, tolerance::<E>(&want, gap(case, "log_ratio")));
        let mut grad = weights.to_vec();
        let loss = eval.loss_and_grad(RatioLoss::NreA, &pairs(&own, &other, d), &x, &mut grad);
        let want = number(get(case, "loss_f64"));
        e.check(&format!("{what} loss"), loss.f64(), want, tolerance::<E>(&[want], gap(case, "loss")));
        let tree = tree_layout(get(case, "grad_f64"), 0);
        let grad = reordered(&grad, &net.layout(), &tree);
        let want = crate::fixture::flatten(get(case, "grad_f64"), &tree);
        for entry in tree.entries() {
            let (got, want) = (&grad[entry.range()], &want[entry.range()]);
            let bound = tolerance::<E>(want, gap(case, "grad"));
            e.check_all(&format!("{what} gradient {}", entry.name), got, want, bound);
        }
        eval
    };
    let mut eval = check(&case.json, &weights);
    let scaled = case.get("scaled_last_layer");
    let mut large = weights.clone();
    let layout = net.layout();
    let last = layout.entries().len() / 2 - 1;
    for part in ["w", "b"] {
        let entry = layout.entry(&format!("linear_{last}/{part}")).expect("the last layer");
        large[entry.range()].copy_from_slice(&inputs::<E>(get(scaled, &format!("linear_{last}_{part}"))));
    }
    check(scaled, &large);
    let want = numbers(case.get("grad_theta_log_ratio_f64"));
    let p = x.len() / (own.len() / d);
    let mut got = Vec::new();
    for (t, x) in own.chunks_exact(d).zip(x.chunks_exact(p)) {
        let mut grad = vec![E::of(0.0); d];
        eval.log_ratio_grad(t, x, &mut grad);
        got.extend(grad);
    }
    let bound = tolerance::<E>(&want, case.gap("grad_theta"));
    e.check_all(&format!("{what} gradient by theta"), &got, &want, bound);
    for (i, c) in array(case.get("single_logits")).iter().enumerate() {
        // The other logit of the pair costs ln 2 and has gradient ½ (before the mean).
        let (logit, label) = (inputs::<f64>(get(c, "logit"))[0], number(get(c, "label")));
        let (own, pair) = if label == 1.0 { (0, [logit, 0.0]) } else { (1, [0.0, logit]) };
        let (loss, grad) = loss_and_grad(RatioLoss::NreA, &pair.map(E::of));
        let want = number(get(c, "loss_stable_f64"));
        let got = 2.0 * loss.f64() - 2f64.ln();
        let bound = 1e-15 + tolerance::<E>(&[want.abs().max(1.0)], 0.0);
        e.check(&format!("{what} logit {i} loss"), got, want, bound);
        let want = number(get(c, "grad_stable_f64"));
        e.check(
            &format!("{what} logit {i} gradient"),
            2.0 * grad[own].f64(),
            want,
            tolerance::<E>(&[1.0], 0.0),
        );
    }
}

/// A SELU network: log ratios, loss and gradients, also at logits where literal forms fail.
pub fn mlp(case: &Case) -> Outcome {
    let mut e = Errors::default();
    mlp_in::<f64>(case, &mut e, "f64");
    mlp_in::<f32>(case, &mut e, "f32");
    e.done()
}

fn losses_in<E: Float>(case: &Case, e: &mut Errors, what: &str)
where
    Cpu: Host<E>,
{
    for c in array(case.get("cases")) {
        let name = c.get("name").and_then(Value::as_str).unwrap_or("?");
        let list = |key: &str| inputs::<E>(get(c, key));
        let columns = |key: &str| shape(get(c, key))[1];
        // Columns of one x side by side.
        let beside = |a: &[E], b: &[E], k: usize| -> Vec<E> {
            a.chunks_exact(k).zip(b.chunks_exact(k)).flat_map(|(a, b)| a.iter().chain(b).copied()).collect()
        };
        for (key, want) in c.as_object().expect("a case has entries") {
            let Some(want_grad) = want.get("grad_f64").map(numbers) else { continue };
            let digits = || key.trim_start_matches(|c: char| !c.is_ascii_digit()).parse::<f64>();
            let (loss, grad) = if key == "nre_a" {
                loss_and_grad(RatioLoss::NreA, &list("logits_pair"))
            } else if key == "balance_term" {
                // With weight 1, less the loss that it is added to.
                let logits = list("logits_pair");
                let (plain, g) = loss_and_grad(RatioLoss::NreA, &logits);
                let (both, h) = loss_and_grad(RatioLoss::Balanced { lambda: 1.0 }, &logits);
                (both - plain, h.iter().zip(&g).map(|(h, g)| *h - *g).collect())
            } else if key.starts_with("bnre_lambda") {
                let lambda = digits().expect("the name ends with λ");
                loss_and_grad(RatioLoss::Balanced { lambda }, &list("logits_pair"))
            } else if key == "nre_b" {
                loss_and_grad(RatioLoss::NreB { atoms: columns("logits_b") }, &list("logits_b"))
            } else if key.starts_with("nre_c_gamma") {
                let (gamma, k) = (digits().expect("the name ends with γ"), columns("logits_joint"));
                let logits = beside(&list("logits_joint"), &list("logits_marginal"), k);
                let (loss, grad) = loss_and_grad(RatioLoss::NreC { classes: k, gamma }, &logits);
                // The case lists those of the independent columns first.
                let part =
                    |from: usize| grad.chunks_exact(2 * k).flat_map(move |g| g[from..from + k].to_vec());
                (loss, part(k).chain(part(0)).collect())
            } else {
                continue;
            };
            let want_loss = number(get(want, "loss_f64"));
            // A difference of losses has their rounding. And the reference's softplus is linear beyond 20, which
            // leaves out e⁻²⁰ of a logit's loss and gradient.
            let scale = want_loss.abs().max(if key == "balance_term" { 1.0 } else { 0.0 });
            let is_pair = key == "nre_a" || key.starts_with("bnre");
            let cut = is_pair && numbers(get(c, "logits_pair")).iter().any(|z| z.abs() > 20.0);
            let cut = if cut { (-20f64).exp() } else { 0.0 };
            let bound = tolerance::<E>(&[scale], gap(want, "loss")) + cut;
            e.check(&format!("{what} {name} {key}"), loss.f64(), want_loss, bound);
            let scale: Vec<f64> =
                want_grad.iter().copied().chain((key == "balance_term").then_some(1.0)).collect();
            let bound = tolerance::<E>(&scale, gap(want, "grad")) + cut * crate::fixture::magnitude(&scale);
            e.check_all(&format!("{what} {name} {key} gradient"), &grad, &want_grad, bound);
        }
    }
}

/// NRE-A, NRE-B, NRE-C and the balanced loss on explicit logits.
pub fn losses(case: &Case) -> Outcome {
    let mut e = Errors::default();
    losses_in::<f64>(case, &mut e, "f64");
    losses_in::<f32>(case, &mut e, "f32");
    e.done()
}

fn train_in<E: Float>(case: &Case, e: &mut Errors, what: &str)
where
    Cpu: Host<E>,
{
    let batches = array(case.get("batches"));
    let d = shape(get(&batches[0], "theta"))[1];
    let start = params::<E>(case.get("params0"));
    let (net, weights) = network::<E>(case.get("params0"), d);
    for result in array(case.get("results")) {
        let name = result.get("optimizer").and_then(Value::as_str).unwrap_or("?");
        let opt: Box<dyn Optimizer<E>> = match name {
            "Adam" => Box::new(Adam { epsilon_root: 0.0, ..Adam::new(0.01) }),
            "AMSGrad" => Box::new(AmsGrad { learning_rate: 0.01.into(), ..AmsGrad::default() }),
            other => panic!("no optimizer `{other}`"),
        };
        let flat = Params { layout: Arc::new(net.layout()), data: weights.clone() };
        let mut state = opt.init(&flat, Some(batches.len() as u64), Key::new(0));
        let want = numbers(get(result, "losses_f64"));
        let loose = |bound: f64| if what == "f64" { 10.0 * bound } else { bound };
        for (t, b) in batches.iter().enumerate() {
            let [own, other, x] = ["theta", "theta_prime", "x"].map(|k| inputs::<E>(get(b, k)));
            let mut grad = vec![E::of(0.0); weights.len()];
            let mut eval = NetEvaluator::new(&net, &state.params);
            let loss = eval.loss_and_grad(RatioLoss::NreA, &pairs(&own, &other, d), &x, &mut grad);
            let bound = loose(tolerance::<E>(&want[t..=t], gap(result, "losses")));
            e.check(&format!("{what} {name} loss {t}"), loss.f64(), want[t], bound);
            opt.update(&mut state, &grad, loss, Key::new(0));
        }
        let got = reordered(&state.params, &net.layout(), &start.layout);
        let want = crate::fixture::flatten(get(result, "params_f64"), &start.layout);
        let bound = loose(tolerance::<E>(&want, gap(result, "params")));
        e.check_all(&format!("{what} {name} parameters"), &got, &want, bound);
    }
}

/// A few updates by Adam and AMSGrad.
pub fn train(case: &Case) -> Outcome {
    let mut e = Errors::default();
    train_in::<f64>(case, &mut e, "f64");
    train_in::<f32>(case, &mut e, "f32");
    e.done()
}

/// A network's log ratio on the closed box, in f64.
struct NetDensity {
    prior: UniformBox,
    net: RatioNet,
    weights: Vec<f64>,
    x: Vec<f64>,
}

impl Density for NetDensity {
    fn prior(&self) -> &dyn Prior {
        &self.prior
    }
    fn evaluator(&self) -> Box<dyn DensityEvaluator + '_> {
        struct Rows<'a>(NetEvaluator<f64>, &'a [f64]);
        impl DensityEvaluator for Rows<'_> {
            fn log_factor(&mut self, theta: &[f64], out: &mut [f64]) {
                out.copy_from_slice(&self.0.log_ratio(theta, self.1));
            }
        }
        Box::new(Rows(NetEvaluator::new(&self.net, &self.weights), &self.x))
    }
}

/// Metropolis-Hastings with explicit noise: every decision, every state.
pub fn metropolis(case: &Case) -> Outcome {
    let mut e = Errors::default();
    let slcp = Slcp::seed();
    for c in array(case.get("cases")) {
        let name = c.get("name").and_then(Value::as_str).unwrap_or("?");
        let list = |key: &str| inputs::<f64>(get(c, key));
        let count = |key: &str| number(get(c, key)) as usize;
        let (x, start) = (list("x"), list("start"));
        let d = shape(get(c, "start"))[1];
        let step = number(get(c, "step_std"));
        let trace = match c.get("mlp") {
            Some(tree) => {
                let (net, weights) = network::<f64>(tree, d);
                let (low, high) = slcp.prior().bounds()[0];
                let prior = UniformBox::cube(d, low, high).expect("edges are in order");
                let density = NetDensity { prior, net, weights, x };
                seed_metropolis(&density, &start, step, &list("z"), &list("u"))
            }
            None => {
                let density = ExactDensity::new(&slcp, &x).expect("the likelihood is known");
                seed_metropolis(&density, &start, step, &list("z"), &list("u"))
            }
        };
        let accepted: Vec<f64> = trace.accepted.iter().map(|a| f64::from(u8::from(*a))).collect();
        let want: Vec<f64> = flat_flags(get(c, "accept"));
        e.check_all(&format!("{name} decisions"), &accepted, &want, 1e-9);
        for (i, (got, want)) in trace.log_alpha.iter().zip(numbers(get(c, "log_alpha_f64"))).enumerate() {
            e.check(&format!("{name} log alpha {i}"), *got, want, 1e-9 * want.abs().max(1.0));
        }
        e.check_all(&format!("{name} proposals"), &trace.proposals, &numbers(get(c, "proposals_f64")), 1e-12);
        e.check_all(&format!("{name} states"), &trace.states, &numbers(get(c, "states_f64")), 1e-12);
        let rows = kept_rows(count("T"), count("thinning"));
        let as_f64: Vec<f64> = rows.iter().map(|r| *r as f64).collect();
        e.check_all(&format!("{name} kept rows"), &as_f64, &numbers(get(c, "kept_times")), 1e-9);
        let width = start.len();
        let kept: Vec<f64> =
            rows.iter().flat_map(|r| trace.states[r * width..(r + 1) * width].to_vec()).collect();
        e.check_all(&format!("{name} kept states"), &kept, &numbers(get(c, "kept_seed_flat_f64")), 1e-12);
        let rate = accepted.iter().sum::<f64>() / accepted.len() as f64;
        e.check(&format!("{name} acceptance"), rate, number(get(c, "acceptance_rate")), 1e-12);
    }
    for (i, c) in array(case.get("edge_cases")).iter().enumerate() {
        let got = accepts(number(get(c, "log_alpha")), number(get(c, "u")));
        let want = flag(get(c, "accept_log_space"));
        e.check(&format!("edge case {i}"), f64::from(u8::from(got)), f64::from(u8::from(want)), 1e-9);
    }
    e.done()
}

fn flat_flags(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(a) => a.iter().flat_map(flat_flags).collect(),
        v => vec![f64::from(u8::from(flag(v)))],
    }
}

/// Two-sample tests, calibration, chains, weights.
pub fn metrics(case: &Case) -> Outcome {
    let mut e = Errors::default();
    for c in array(case.get("two_sample")) {
        two_sample_case(&mut e, c);
    }
    for c in array(case.get("c2st_limits")) {
        let shift = number(get(c, "shift"));
        e.check(
            "Bayes accuracy",
            special::normal_cdf(0.5 * shift),
            number(get(c, "bayes_accuracy_f64")),
            1e-10,
        );
        e.check(
            "Bayes AUC",
            special::normal_cdf(shift / 2f64.sqrt()),
            number(get(c, "bayes_auc_f64")),
            1e-10,
        );
        shifted_gaussians(&mut e, shift, number(get(c, "bayes_accuracy_f64")));
    }
    let ties = case.get("auc_ties");
    let labels: Vec<bool> = array(get(ties, "labels")).iter().map(flag).collect();
    e.check(
        "AUC with ties",
        auc(&inputs::<f64>(get(ties, "scores")), &labels),
        number(get(ties, "auc_f64")),
        1e-10,
    );
    calibration_case(&mut e, case);

    let chains = array(get(case.get("chains"), "chains"));
    let chains: Vec<Vec<f64>> = chains.iter().map(inputs).collect();
    let views: Vec<&[f64]> = chains.iter().map(|c| &c[..]).collect();
    let want = |key: &str| number(get(case.get("chains"), key));
    e.check("split R-hat", split_rhat(&views), want("split_rhat_f64"), 1e-10);
    e.check("effective sample size", effective_sample_size(&views), want("ess_f64"), 1e-8);
    let want = numbers(get(case.get("chains"), "autocorrelation_combined_first8_f64"));
    let got: Vec<f64> = autocorrelation(&views, want.len())
        .iter()
        .enumerate()
        .map(|(t, r)| if t == 0 { 1.0 } else { *r })
        .collect();
    e.check_all("autocorrelation", &got, &want, 1e-10);

    let w = case.get("importance");
    let got = importance_weights(&inputs::<f64>(get(w, "log_weights")));
    e.check("effective weights", got.ess, number(get(w, "ess_f64")), 1e-10);
    e.check("log mean weight", got.log_mean, number(get(w, "log_mean_weight_f64")), 1e-10);
    e.check_all("weights", &got.normalized, &numbers(get(w, "normalised_weights_f64")), 1e-10);
    e.done()
}

fn two_sample_case(e: &mut Errors, c: &Value) {
    let name = c.get("name").and_then(Value::as_str).unwrap_or("?");
    let (x, y): (Vec<f64>, Vec<f64>) = (inputs(get(c, "X")), inputs(get(c, "Y")));
    let d = shape(get(c, "X"))[1];
    let folds: Vec<usize> = numbers(get(c, "folds")).iter().map(|f| *f as usize).collect();
    let test = TwoSample::new(&x, &y, d, folds).expect("the case's sets are valid");
    for (key, want) in c.as_object().expect("a case has entries") {
        let k = key.strip_prefix("c2st_").and_then(|k| k.strip_suffix("nn")).and_then(|k| k.parse().ok());
        let Some(k) = k else { continue };
        let got = test.nearest_neighbours(k);
        e.check(&format!("{name} {key}"), got.mean, number(want), 1e-10);
        e.check_all(
            &format!("{name} {key} folds"),
            &got.folds,
            &numbers(get(c, &format!("{key}_per_fold"))),
            1e-10,
        );
    }
    let got = test.logistic();
    e.check(&format!("{name} logistic"), got.accuracy.mean, number(get(c, "c2st_logreg")), 1e-10);
    let want = numbers(get(c, "c2st_logreg_per_fold"));
    e.check_all(&format!("{name} logistic folds"), &got.accuracy.folds, &want, 1e-10);
    e.check_all(&format!("{name} logits"), &got.logits, &numbers(get(c, "logreg_heldout_logits_f64")), 1e-8);
    e.check_all(
        &format!("{name} weights"),
        &got.weights.concat(),
        &numbers(get(c, "logreg_weights_f64")),
        1e-8,
    );
    let labels: Vec<bool> = (0..got.logits.len()).map(|i| i >= x.len() / d).collect();
    e.check(&format!("{name} AUC"), auc(&got.logits, &labels), number(get(c, "auc_logreg_f64")), 1e-10);
    for (key, want) in get(c, "mmd").as_object().expect("bandwidths have names") {
        let bandwidth = match key.strip_prefix("bandwidth_") {
            Some("X") => Bandwidth::MedianOfFirst,
            Some("XY") => Bandwidth::MedianOfBoth,
            _ => Bandwidth::Fixed(number(get(want, "sigma"))),
        };
        let got = mmd2(&x, &y, d, bandwidth);
        for (what, got) in
            [("sigma", got.sigma), ("mmd2_unbiased_f64", got.unbiased), ("mmd2_biased_f64", got.biased)]
        {
            e.check(&format!("{name} {key} {what}"), got, number(get(want, what)), 1e-10);
        }
    }
    // Another program's perceptron: means of a few seeds, within their scatter and a point in a hundred.
    let seeds = 8;
    let mean = (0..seeds)
        .map(|s| c2st::c2st(&x, &y, d, Key::new(s), &workers()).expect("the case's sets are valid").mean)
        .sum::<f64>()
        / seeds as f64;
    let std = number(get(c, "c2st_sklearn_mlp_std"));
    let want = number(get(c, "c2st_sklearn_mlp_mean_8_seeds"));
    e.check(&format!("{name} perceptron"), mean, want, 4.0 * std * (2.0 / seeds as f64).sqrt() + 0.01);
}

/// At many samples the accuracy approaches the limit.
fn shifted_gaussians(e: &mut Errors, shift: f64, limit: f64) {
    let n = 2000;
    let (mut x, mut y) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
    Key::new(1).fill_normal(&mut x);
    Key::new(2).fill_normal(&mut y);
    y.iter_mut().step_by(2).for_each(|y| *y += shift);
    let test = TwoSample::new(&x, &y, 2, (0..2 * n).map(|i| i % 5).collect()).expect("the sets are valid");
    let se = (limit * (1.0 - limit) / (2 * n) as f64).sqrt();
    e.check(&format!("shift {shift}"), test.logistic().accuracy.mean, limit, 4.0 * se + 1e-3);
}

fn calibration_case(e: &mut Errors, case: &Case) {
    let sbc = case.get("sbc");
    let theta: Vec<Vec<f64>> = array(get(sbc, "theta_true")).iter().map(inputs).collect();
    let samples: Vec<Vec<f64>> = array(get(sbc, "samples")).iter().map(inputs).collect();
    let draws = shape(get(sbc, "samples"))[1];
    let ranks: Vec<Vec<usize>> =
        theta.iter().zip(&samples).map(|(t, s)| calibration::sbc_ranks(s, t)).collect();
    let flat: Vec<f64> = ranks.iter().flatten().map(|r| *r as f64).collect();
    e.check_all("ranks", &flat, &numbers(get(sbc, "ranks")), 1e-9);
    for k in 0..theta[0].len() {
        let column: Vec<usize> = ranks.iter().map(|r| r[k]).collect();
        let got = calibration::uniformity(&column, draws);
        let want = |key: &str| number(&array(get(sbc, key))[k]);
        e.check(&format!("KS {k}"), got.ks, want("ks_statistic_f64"), 1e-10);
        e.check(&format!("KS p-value {k}"), got.ks_p_value, want("ks_pvalue_scipy_f64"), 1e-10);
        e.check(&format!("chi2 {k}"), got.chi2, want("chi2_statistic_f64"), 1e-10);
        let histogram: Vec<f64> = got.histogram.iter().map(|h| *h as f64).collect();
        e.check_all(
            &format!("histogram {k}"),
            &histogram,
            &numbers(&array(get(sbc, "rank_histogram"))[k]),
            1e-9,
        );
    }
    let c = case.get("expected_coverage");
    let (of_samples, of_truth) = (array(get(c, "log_q_samples")), inputs::<f64>(get(c, "log_q_true")));
    let got: Vec<f64> = of_samples
        .iter()
        .zip(&of_truth)
        .map(|(s, t)| calibration::credibility(&inputs::<f64>(s), *t))
        .collect();
    e.check_all("credibility", &got, &numbers(get(c, "credibility_of_true_f64")), 1e-10);
    let levels = numbers(get(c, "levels"));
    let curve: Vec<f64> = calibration::expected_coverage(&got, &levels).iter().map(|p| p.coverage).collect();
    e.check_all("coverage", &curve, &numbers(get(c, "coverage_f64")), 1e-10);
    let bias = curve.iter().zip(&levels).map(|(c, l)| c - l).sum::<f64>() / levels.len() as f64;
    e.check("mean coverage minus level", bias, number(get(c, "mean_coverage_minus_level_f64")), 1e-10);
    let c = case.get("tarp");
    let references: Vec<Vec<f64>> = array(get(c, "references")).iter().map(inputs).collect();
    let got: Vec<f64> = samples
        .iter()
        .zip(&theta)
        .zip(&references)
        .map(|((s, t), r)| calibration::distance_fraction(s, t, r))
        .collect();
    e.check_all("distance fraction", &got, &numbers(get(c, "distance_fraction_f64")), 1e-10);
    let levels = numbers(get(c, "levels"));
    let curve: Vec<f64> = levels.iter().map(|l| calibration::coverage(&got, *l)).collect();
    e.check_all("expected coverage probability", &curve, &numbers(get(c, "ecp_f64")), 1e-10);
}
