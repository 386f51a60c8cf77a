//! Kinds B and C: fixed gradient sequences through hand-designed and learned optimizers.

use crate::fixture::{
    array, f32_tolerance, flatten, get, inputs, magnitude, number, numbers, params, tree_inputs, tree_layout,
    Case, Errors, Outcome,
};
use outerloop_core::{Error, Float, Key, LearnedOptimizer, Optimizer};
use outerloop_lopt::{registry, theta};
use serde_json::Value;
use std::path::Path;

/// Parameters after every update of a case.
fn trajectory<E: Float>(case: &Case, opt: &dyn Optimizer<E>) -> Vec<Vec<E>> {
    let start = params::<E>(case.get("params0"));
    let key = Key::new(0);
    let num_steps = case.json.get("num_steps").and_then(Value::as_u64);
    let mut state = opt.init(&start, num_steps, key);
    let losses: Vec<E> = inputs(case.get("losses"));
    let valid = case.json.get("is_valid");
    let step = |(t, g): (usize, &Value)| {
        let grad: Vec<E> = tree_inputs(g, &start.layout);
        let is_valid = valid.is_some_and(|v| array(v)[t] == true);
        if is_valid {
            opt.observe_validation(&mut state, losses[t]);
        } else {
            opt.update(&mut state, &grad, losses[t], key);
        }
        state.params.clone()
    };
    array(case.get("grads")).iter().enumerate().map(step).collect()
}

/// Relative tolerances of a case's f64 and f32 runs; the f32 run has at least that of its case's gap.
struct Tolerance {
    f64s: f64,
    f32s: f64,
}

fn compare(
    case: &Case,
    f32s: &dyn Optimizer<f32>,
    f64s: &dyn Optimizer<f64>,
    relative: Tolerance,
) -> Outcome {
    let mut errors = Errors::default();
    let layout = tree_layout(case.get("params0"), 0);
    let exact = case.json.get("params_f64").filter(|v| !v.is_null());
    if let Some(want) = exact {
        for (t, (got, want)) in trajectory(case, f64s).iter().zip(array(want)).enumerate() {
            errors.check_tree(&format!("f64 step {t}"), got, &flatten(want, &layout), &layout, relative.f64s);
        }
    }
    // Where the library has no f64 run, its f32 run is the reference, to 1e-5.
    let truth = exact.unwrap_or_else(|| case.get("params_f32"));
    let gap = if exact.is_some() { case.gap("") } else { 1e-6 };
    for (t, (got, want)) in trajectory(case, f32s).iter().zip(array(truth)).enumerate() {
        let want = flatten(want, &layout);
        let tolerance = f32_tolerance(gap, &want).max(relative.f32s * magnitude(&want));
        errors.check_all(&format!("f32 step {t}"), got, &want, tolerance);
    }
    errors.done()
}

fn class(case: &Case) -> &str {
    case.get("library_class").as_str().expect("library_class is a name")
}

pub fn hand_designed(case: &Case) -> Outcome {
    let (class, hyper) = (class(case), case.get("hyperparameters"));
    let made = registry::hand_designed::<f32>(class, hyper)
        .and_then(|a| Ok((a, registry::hand_designed::<f64>(class, hyper)?)));
    match made {
        Ok((f32s, f64s)) => {
            // The library itself rounds to f32 inside these.
            let rounds = class.starts_with("Adafactor")
                || class == "AdamSqrtDecayLR"
                || hyper.to_string().contains("Cosine");
            // Shampoo has an f32 run only, whose roots come from a coupled Newton iteration in f32; the
            // eigenvalue roots it approximates differ from it by as much as its own rounding.
            let newton = class.starts_with("Shampoo");
            let tolerance =
                Tolerance { f64s: if rounds { 1e-6 } else { 1e-9 }, f32s: if newton { 1e-4 } else { 0.0 } };
            compare(case, &*f32s, &*f64s, tolerance)
        }
        Err(e @ Error::Unknown { .. }) => Outcome::skip(&e.to_string()),
        Err(e) => Outcome::fail(e),
    }
}

/// A learned optimizer by its reference name, or the outcome that says why not.
pub fn learned_optimizer<E: Float>(
    class: &Value,
    hyper: &Value,
) -> Result<Box<dyn LearnedOptimizer<E>>, Outcome> {
    let class = class.as_str().expect("a class name");
    registry::learned(class, hyper).map_err(|e| match e {
        Error::Unknown { .. } => Outcome::skip(&e.to_string()),
        e => Outcome::fail(e),
    })
}

pub fn learned(case: &Case) -> Outcome {
    let (class, hyper) = (case.get("library_class"), case.get("hyperparameters"));
    let run = || -> Result<Outcome, Outcome> {
        let (f32s, f64s) = (learned_optimizer::<f32>(class, hyper)?, learned_optimizer::<f64>(class, hyper)?);
        let layout = LearnedOptimizer::<f64>::theta_layout(&*f64s);
        let names: Vec<&str> = layout.entries().iter().map(|e| e.name.as_str()).collect();
        let theirs = tree_layout(case.get("theta"), 0);
        if names != theirs.entries().iter().map(|e| e.name.as_str()).collect::<Vec<_>>() {
            return Err(Outcome::fail(format!("theta is named {names:?}, expected {theirs:?}")));
        }
        let theta = tree_inputs::<f32>(case.get("theta"), &layout);
        if let Some(file) = case.json.get("theta_file").and_then(Value::as_str) {
            let bits = |theta: &[f32]| theta.iter().map(|t| t.to_bits()).collect::<Vec<_>>();
            if bits(&published_theta(file, &*f32s)?) != bits(&theta) {
                return Err(Outcome::fail(format!("theta of {file} has other bits than that of the case")));
            }
        }
        let opt32 = f32s.opt_fn(&theta);
        let opt64 = f64s.opt_fn(&tree_inputs::<f64>(case.get("theta"), &layout));
        Ok(compare(case, &*opt32, &*opt64, Tolerance { f64s: 1e-9, f32s: 0.0 }))
    };
    run().unwrap_or_else(|outcome| outcome)
}

/// Theta of a published file that a case names: of the copies that are shipped.
pub fn published_theta(file: &str, lopt: &dyn LearnedOptimizer<f32>) -> Result<Vec<f32>, Outcome> {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/pretrained");
    let name = Path::new(file).file_name().expect("a file's name");
    theta::import(shipped.join(name), lopt).map_err(Outcome::fail)
}

pub fn initial_theta(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    for (class, want) in case.get("init_f64").as_object().expect("classes") {
        let lopt = match learned_optimizer::<f64>(&Value::String(class.clone()), &serde_json::json!({})) {
            Ok(l) => l,
            Err(outcome) => return outcome,
        };
        let layout = lopt.theta_layout();
        errors.check_tree(class, &lopt.init(Key::new(0)), &flatten(want, &layout), &layout, 1e-9);
    }
    errors.done()
}

pub fn schedules(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    for (name, c) in case.json.as_object().expect("schedules by name") {
        let (class, hyper) = (get(c, "class").as_str().expect("a class name"), get(c, "hyperparameters"));
        // A function of the library that computes the same as its class.
        let class = if class.contains("piecewise_linear") { "PiecewiseLinear" } else { class };
        let schedule = match registry::schedule(class, hyper) {
            Ok(s) => s,
            Err(e) => return Outcome::fail(e),
        };
        let max_steps = c.get("max_steps").and_then(Value::as_u64);
        let exact = c.get("values_f64").filter(|v| !v.is_null());
        let values = numbers(exact.unwrap_or_else(|| get(c, "values_f32")));
        for (step, want) in array(get(c, "steps")).iter().zip(&values) {
            let got = schedule.at(number(step) as u64, max_steps);
            // The library rounds to f32 inside schedules.
            errors.check(&format!("{name} at {step}"), got, *want, 1e-6 * magnitude(&values));
        }
    }
    errors.done()
}
