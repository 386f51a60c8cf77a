//! Kind L, what is learned: networks, losses at extreme logits, training, Metropolis steps.

use crate::fixture::{
    array, get, inputs, number, numbers, params, shape, tree_inputs, tree_layout, Case, Errors, Outcome,
};
use outerloop_amortized::ratio::sample::{accepts, kept_rows, seed_metropolis};
use outerloop_amortized::ratio::simulators::Slcp;
use outerloop_amortized::ratio::*;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{Float, Key, Layout, Optimizer, Params};
use outerloop_lopt::hand::Adam;
use serde_json::Value;
use std::sync::Arc;

/// The gap that the case gives for a quantity; 0 if there is none.
fn gap(v: &Value, key: &str) -> f64 {
    v.get("f32_vs_f64_gap").and_then(|g| g.get(key)).and_then(|g| g.get("max_abs")).map_or(0.0, number)
}

pub fn flag(v: &Value) -> bool {
    v.as_bool().unwrap_or_else(|| number(v) != 0.0)
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
