//! Golden cases B (hand-designed optimizers, schedules) and C (learned optimizers with fixed theta)
//! of google/learned_optimization (Apache-2.0), read from `outer/tests/golden/cases`. Numbers under `*_f64` are
//! met to 1e-9 of the tensor's largest magnitude, numbers under `*_f32` to ten times the
//! reference's own f32 error.

use outerloop_core::{Error, Float, Key, Layout, Optimizer, Params};
use outerloop_lopt::registry;
use serde_json::Value;
use std::path::PathBuf;
use std::sync::Arc;

/// Cases where the library itself rounds to f32 inside, so that even its f64 run holds less.
const ROUNDED: [(&str, f64); 4] =
    [("adafactor", 1e-6), ("nadamw_cosine", 1e-6), ("adam_sqrt_decay", 1e-6), ("opt_list", 1e-5)];

fn cases(prefix: &str) -> Vec<(String, Value)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../outer/tests/golden/cases");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    paths.sort();
    let name = |p: &PathBuf| p.file_stem().unwrap().to_string_lossy().into_owned();
    let read = |p: &PathBuf| serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap();
    paths.iter().filter(|p| name(p).starts_with(prefix)).map(|p| (name(p), read(p))).collect()
}

/// The cases whose class the registry has.
fn built(
    cases: Vec<(String, Value)>,
    make: impl Fn(&str, &Value) -> Result<(), Error>,
) -> Vec<(String, Value)> {
    let is_built = |(_, case): &(String, Value)| {
        let made = make(case["library_class"].as_str().unwrap(), &case["hyperparameters"]);
        !matches!(made, Err(Error::Unknown { .. }))
    };
    cases.into_iter().filter(is_built).collect()
}

/// All numbers of nested lists, in order.
fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().unwrap_or_else(|| panic!("{v} is not a number"))],
    }
}

/// A tree as one buffer, leaves in sorted order. Inputs are f32 numbers: rounded before widening.
fn tree(v: &Value, layout: &Layout) -> Vec<f64> {
    layout.entries().iter().flat_map(|e| numbers(&v[&e.name])).collect()
}

fn inputs<E: Float>(v: &Value, layout: &Layout) -> Vec<E> {
    tree(v, layout).into_iter().map(|x| E::of(f64::from(x as f32))).collect()
}

fn layout(shapes: &Value) -> Arc<Layout> {
    let shape = |s: &Value| numbers(s).iter().map(|d| *d as usize).collect::<Vec<_>>();
    Arc::new(Layout::new(shapes.as_object().unwrap().iter().map(|(name, s)| (name.clone(), shape(s)))))
}

/// The parameters after every update.
fn trajectory<E: Float>(opt: &dyn Optimizer<E>, case: &Value, layout: &Arc<Layout>) -> Vec<Vec<f64>> {
    let params = Params::new(layout.clone(), inputs(&case["params0"], layout)).unwrap();
    let mut state = opt.init(&params, case["num_steps"].as_u64(), Key::new(0));
    let losses = numbers(&case["losses"]);
    let grads = case["grads"].as_array().unwrap();
    let step = |(t, (g, l)): (usize, (&Value, f64))| {
        let loss = E::of(f64::from(l as f32));
        match case["is_valid"][t].as_bool() {
            Some(true) => opt.observe_validation(&mut state, loss),
            _ => opt.update(&mut state, &inputs(g, layout), loss, Key::new(0)),
        }
        state.params.iter().map(|p| p.f64()).collect()
    };
    grads.iter().zip(losses).enumerate().map(step).collect()
}

/// Largest error in f64 relative to its tensor's largest magnitude, asserted.
fn check_f64(name: &str, got: &[Vec<f64>], want: &Value, layout: &Layout) {
    let tolerance = ROUNDED.iter().find(|(n, _)| name.contains(n)).map_or(1e-9, |(_, t)| *t);
    for (t, (got, want)) in got.iter().zip(want.as_array().unwrap()).enumerate() {
        let want = tree(want, layout);
        for e in layout.entries() {
            let max = want[e.range()].iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (a, b) in got[e.range()].iter().zip(&want[e.range()]) {
                assert!((a - b).abs() <= tolerance * max, "{name} f64, update {t}, {}: {a} for {b}", e.name);
            }
        }
    }
}

fn check_f32(name: &str, got: &[Vec<f64>], case: &Value, layout: &Layout) {
    let want: Vec<Vec<f64>> =
        case["params_f32"].as_array().unwrap().iter().map(|p| tree(p, layout)).collect();
    let max = want.iter().flatten().fold(0.0f64, |m, x| m.max(x.abs()));
    let tolerance = match case["f32_vs_f64_gap"]["max_abs"].as_f64() {
        Some(gap) => (10.0 * gap).max(2e-6 * max),
        // The reference finds inverse roots of singular matrices by Newton's method in f32: another
        // order of its sums moves its own parameters by 1e-4.
        None if name.contains("shampoo") => 1e-4,
        None => 1e-5,
    };
    for (t, (got, want)) in got.iter().zip(&want).enumerate() {
        for (a, b) in got.iter().zip(want) {
            assert!((a - b).abs() <= tolerance, "{name} f32, update {t}: {a} for {b}");
        }
    }
}

#[test]
fn hand_designed_optimizers() {
    let cases = built(cases("B_opt_"), |class, hyper| registry::hand_designed::<f32>(class, hyper).map(drop));
    assert!(cases.len() >= 17);
    for (name, case) in &cases {
        let (class, hyper) = (case["library_class"].as_str().unwrap(), &case["hyperparameters"]);
        let layout = layout(&case["shapes"]);
        let opt = registry::hand_designed::<f32>(class, hyper).unwrap();
        check_f32(name, &trajectory(&*opt, case, &layout), case, &layout);
        if case["params_f64"].is_array() {
            let opt = registry::hand_designed::<f64>(class, hyper).unwrap();
            check_f64(name, &trajectory(&*opt, case, &layout), &case["params_f64"], &layout);
        }
    }
}

#[test]
fn learned_optimizers() {
    let cases: Vec<_> =
        cases("C_lopt_").into_iter().filter(|(name, _)| name != "C_lopt_init_theta_simple").collect();
    let cases = built(cases, |class, hyper| registry::learned::<f32>(class, hyper).map(drop));
    assert!(cases.len() >= 3);
    for (name, case) in &cases {
        let (class, hyper) = (case["library_class"].as_str().unwrap(), &case["hyperparameters"]);
        let layout = layout(&case["shapes"]);
        let lopt = registry::learned::<f32>(class, hyper).unwrap();
        let opt = lopt.opt_fn(&inputs(&case["theta"], &lopt.theta_layout()));
        check_f32(name, &trajectory(&*opt, case, &layout), case, &layout);
        let lopt = registry::learned::<f64>(class, hyper).unwrap();
        let opt = lopt.opt_fn(&inputs(&case["theta"], &lopt.theta_layout()));
        check_f64(name, &trajectory(&*opt, case, &layout), &case["params_f64"], &layout);
    }
}

#[test]
fn initial_theta() {
    let (_, case) = cases("C_lopt_init_theta_simple").remove(0);
    for (class, want) in case["init_f64"].as_object().unwrap() {
        let lopt = registry::learned::<f64>(class, &serde_json::json!({})).unwrap();
        let (got, want) = (lopt.init(Key::new(0)), tree(want, &lopt.theta_layout()));
        for (a, b) in got.iter().zip(&want) {
            assert!((a - b).abs() < 1e-9 * b.abs(), "{class}: {a} for {b}");
        }
    }
}

#[test]
fn schedules() {
    let (_, cases) = cases("B_schedules").remove(0);
    for (name, case) in cases.as_object().unwrap() {
        let class = match case["class"].as_str().unwrap() {
            "optax_opts.piecewise_linear (function)" => "PiecewiseLinear",
            class => class,
        };
        let schedule = registry::schedule(class, &case["hyperparameters"]).unwrap();
        // f32 powers of a number close to 1 lose digits.
        let tolerance = if class == "ExponentialDecay" { 1e-4 } else { 1e-6 };
        let steps = numbers(&case["steps"]);
        let values = [("values_f64", 1e-6), ("values_f32", tolerance)];
        for (key, tolerance) in values.into_iter().filter(|(key, _)| case[key].is_array()) {
            let want = numbers(&case[key]);
            let max = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            for (s, want) in steps.iter().zip(&want) {
                let got = schedule.at(*s as u64, case["max_steps"].as_u64());
                assert!((got - want).abs() <= tolerance * max, "{name} at {s}: {got} for {want}");
            }
        }
    }
}
