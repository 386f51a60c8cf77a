//! The sphere's functions: values, gradients, optima, and the statistics of training.

use crate::amortized::{check_f32, check_f64, close, put, rows, Named};
use crate::fixture::{array, get, inputs, magnitude, number, numbers, Case, Errors, Outcome};
use outerloop_amortized::model::Full;
use outerloop_amortized::problem::Problem;
use outerloop_amortized::problems::sphere::{project, project_vjp, Form, SoftMin, Sphere, SphereValue};
use outerloop_amortized::task::{AmortizedTask, Training};
use outerloop_amortized::train::{task_learner, train_task};
use outerloop_core::{BatchKey, Float, Key, Split, Typed};
use outerloop_outer::Workers;
use serde_json::Value;
use std::sync::Arc;

fn form(name: &str) -> Form {
    if name.starts_with("code") {
        Form::Code
    } else {
        Form::Text
    }
}

/// The fields of a block at points, as far as the block has them.
fn block<E: Float>(f: &SoftMin<E>, x: &[Vec<E>], want: &Value, prefix: &str) -> Named<E> {
    let at: Vec<SphereValue<E>> = x.iter().map(|x| f.at(x)).collect();
    let all = |g: &dyn Fn(&SphereValue<E>) -> Vec<E>| at.iter().flat_map(g).collect::<Vec<E>>();
    let fields = [
        ("distance", all(&|p| p.distance.clone())),
        ("grad_alpha", all(&|p| p.weights.clone())),
        ("weights", all(&|p| p.weights.clone())),
        ("grad_x_through_projection", all(&|p| p.through_projection.clone())),
        ("grad_y_euclidean", all(&|p| p.euclidean.clone())),
        ("grad_y_riemannian", all(&|p| p.riemannian.clone())),
        ("value", all(&|p| vec![p.value])),
    ];
    let known = fields.into_iter().filter(|(name, _)| want.get(name).is_some());
    known.map(|(name, v)| (format!("{prefix}{name}"), v)).collect()
}

/// 1e-9, and what the last bits of the inputs change where a function is steep: near a component and its antipode the
/// distance has an infinite slope.
fn check_conditioned(errors: &mut Errors, got: &Named<f64>, moved: &[Named<f64>], want: &Value) {
    for (i, (path, got)) in got.iter().enumerate() {
        let want = numbers(crate::amortized::at(want, path));
        let scale = 1e-9 * magnitude(&want).max(1e-30);
        for (j, (g, w)) in got.iter().zip(&want).enumerate() {
            let slack = moved.iter().map(|m| (m[i].1[j] - g).abs()).fold(0.0, f64::max);
            errors.check(&format!("{path}[{j}]"), *g, *w, scale + 4.0 * slack);
        }
    }
}

fn jittered(x: &[Vec<f64>], seed: u64) -> Vec<Vec<f64>> {
    let mut noise = vec![0.0; 3 * x.len()];
    Key::new(seed).fill_normal(&mut noise);
    let one = |(x, e): (&Vec<f64>, &[f64])| x.iter().zip(e).map(|(x, e)| x * (1.0 + 2e-16 * e)).collect();
    x.iter().zip(noise.chunks(3)).map(one).collect()
}

pub fn functions(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let (z, alpha, x): (Vec<Vec<f64>>, Vec<f64>, Vec<Vec<f64>>) =
        (rows(case.get("z")), inputs(case.get("alpha")), rows(case.get("x")));
    let want = case.get("results_f64");
    for (name, part) in want.as_object().expect("blocks by name") {
        let gamma: f64 = name.rsplit('_').next().and_then(|g| g.parse().ok()).expect("a smoothing");
        let f = SoftMin::new(&z, &alpha, gamma, form(name));
        let moved: Vec<_> = (0..6).map(|s| block(&f, &jittered(&x, s), part, "")).collect();
        check_conditioned(&mut errors, &block(&f, &x, part, ""), &moved, part);
        let single =
            SoftMin::new(&rows::<f32>(case.get("z")), &inputs::<f32>(case.get("alpha")), gamma, form(name));
        let got = block(&single, &rows(case.get("x")), part, &format!("{name}/"));
        // Points at and near a component are beyond f32.
        let regular = |(path, v): (String, Vec<f32>)| {
            let per = v.len() / x.len();
            (path, v[..8 * per].to_vec())
        };
        let gaps = get(case.get("f32_vs_f64_gap"), "regular");
        for (path, got) in got.into_iter().map(regular) {
            let want = numbers(crate::amortized::at(want, &path));
            let gap = gaps.get(&path).map_or(0.0, |g| number(get(g, "max_abs")));
            let tolerance = (10.0 * gap).max(2e-6 * magnitude(&want[..got.len()])).max(1e-30);
            errors.check_all(&format!("f32 {path}"), &got, &want[..got.len()], tolerance);
        }
    }
    let axis = case.get("axis");
    let (z, alpha, x): (Vec<Vec<f64>>, Vec<f64>, Vec<Vec<f64>>) =
        (rows(get(axis, "z")), inputs(get(axis, "alpha")), rows(get(axis, "x")));
    let gamma = number(get(axis, "gamma"));
    for (name, part) in get(axis, "results_f64").as_object().expect("blocks by name") {
        let f = SoftMin::new(&z, &alpha, gamma, form(name));
        let moved: Vec<_> = (0..6).map(|s| block(&f, &jittered(&x, s), part, "")).collect();
        check_conditioned(&mut errors, &block(&f, &x, part, ""), &moved, part);
    }
    fn projections<E: Float>(part: &Value) -> Named<E> {
        let (x, v): (Vec<Vec<E>>, Vec<Vec<E>>) = (rows(get(part, "x")), rows(get(part, "cotangent")));
        let mut out = Vec::new();
        put(&mut out, "projection", x.iter().flat_map(|x| project(x)).collect::<Vec<E>>());
        put(&mut out, "vjp", x.iter().zip(&v).flat_map(|(x, v)| project_vjp(x, v)).collect::<Vec<E>>());
        out
    }
    let part = case.get("projection");
    check_f64(&mut errors, &projections(part), get(part, "results_f64"));
    check_f32(&mut errors, &projections(part), get(part, "results_f64"), &Value::Null);
    for entry in array(case.get("global_optimum")) {
        let name = get(entry, "form").as_str().expect("a form");
        let (z, alpha): (Vec<Vec<f64>>, Vec<f64>) = (rows(case.get("z")), inputs(case.get("alpha")));
        optimum(&mut errors, &SoftMin::new(&z, &alpha, number(get(entry, "gamma")), form(name)), entry);
    }
    errors.done()
}

fn optimum(errors: &mut Errors, f: &SoftMin, want: &Value) {
    let found = f.optimum();
    // On the tip of a cone the independent search stopped a little above.
    let value = number(get(want, "value_f64"));
    let tolerance = if found.value > value { 1e-9 * value.abs() } else { 1e-8 };
    errors.check("optimum", found.value, value, tolerance);
    // The value is flat at the optimum: the place is known to the root of its accuracy.
    close(errors, "place of the optimum", &found.y, get(want, "y_star_f64"), 1e-6);
}

pub fn tutorial_functions(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let gamma = crate::amortized::setting(case.get("gamma"));
    let mut sum = 0.0;
    let functions = array(case.get("z")).iter().zip(array(case.get("alpha")));
    for ((z, alpha), want) in functions.zip(array(case.get("global_optimum"))) {
        let f = SoftMin::new(&rows::<f64>(z), &inputs(alpha), gamma, Form::Code);
        optimum(&mut errors, &f, want);
        sum += f.optimum().value;
    }
    close(&mut errors, "sum of optima", &[sum], case.get("sum_of_optima_f64"), 1e-9);
    errors.done()
}

/// Mean and standard deviation.
fn moments(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    (mean, (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt())
}

/// Trains the tutorial's network and looks at theta after some steps.
fn trained(problem: &Sphere, batch_size: usize, looks: &[u64], seed: u64, mut look: impl FnMut(u64, &[f32])) {
    let training = Training { batch_size, ..Training::default() };
    let task = AmortizedTask::new(problem.clone(), Full::default(), training).expect("valid settings");
    let opt = Box::new(crate::amortized_control::torch_adam(5e-4));
    let steps = looks.iter().copied().max().unwrap_or(1);
    let learner = task_learner(Arc::new(Typed::new(task)), opt, steps, 1).expect("valid settings");
    let workers = Workers::new(1).expect("one thread");
    train_task(&learner, Key::new(seed), &workers, |state, _| {
        if looks.contains(&state.outer_step) {
            look(state.outer_step, &state.theta.params);
        }
    })
    .expect("a finite start");
}

/// Regrets of the network's predictions on functions, with their optima.
fn regrets(problem: &Sphere, theta: &[f32], x: &[f64], best: &[f64]) -> Vec<f64> {
    let task =
        AmortizedTask::new(problem.clone(), Full::default(), Training::default()).expect("valid settings");
    let y = task.predict::<f32>(theta, x, Key::new(0)).pop().expect("a prediction");
    let rows = x.chunks(problem.context_dim()).zip(y.chunks(3)).zip(best);
    rows.map(|((x, y), b)| {
        let y: Vec<f64> = y.iter().map(|y| f64::from(*y)).collect();
        problem.function(x).value(&y) - b
    })
    .collect()
}

/// Statistics of training, with our own random numbers: within 4 standard errors of the difference of two means.
pub fn training(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let all = case.get("statistics");
    let siblings = case.path.with_file_name("M_sphere_tutorial_functions.json");
    if siblings.exists() {
        tutorial(&mut errors, get(all, "tutorial"), &Case::open(&siblings));
    }
    let problem = Sphere::default();
    let c = problem.context_dim();
    let n = 300;
    let mut x = vec![0.0; n * c];
    problem.contexts(BatchKey { split: Split::Test, step: 0, key: Key::new(21) }, &mut x);
    let best: Vec<f64> = x.chunks(c).map(|x| problem.optimum(x).expect("it is searched for").value).collect();
    let baselines = get(all, "baselines_same_1000_functions");
    let mut component = |key: &str, pick: &dyn Fn(&[f64], &[f64]) -> usize| {
        let rows = x.chunks(c).zip(&best).map(|(x, b)| {
            let (z, alpha) = x.split_at(3 * problem.components);
            let values: Vec<f64> = z.chunks(3).map(|z| problem.function(x).value(z)).collect();
            values[pick(&values, alpha)] - b
        });
        let (mean, std) = moments(&rows.collect::<Vec<f64>>());
        // 1000 functions there, n here.
        let error = std * (1.0 / n as f64 + 1e-3).sqrt();
        errors.check(key, mean, number(get(baselines, key)), 4.0 * error);
    };
    let least = |v: &[f64]| (0..v.len()).fold(0, |b, i| if v[i] < v[b] { i } else { b });
    component("component_of_smallest_alpha", &|_, alpha| least(alpha));
    component("best_component", &|values, _| least(values));
    let want = get(get(all, "generalising"), "regret_at_step");
    let looks = [100, 300, 1000];
    let models = 3;
    let mut found = vec![Vec::new(); looks.len()];
    let mut spread = vec![0.0; looks.len()];
    for seed in 0..models {
        trained(&problem, 128, &looks, seed, |step, theta| {
            let i = looks.iter().position(|l| *l == step).expect("it was asked for");
            let (mean, std) = moments(&regrets(&problem, theta, &x, &best));
            found[i].push(mean);
            spread[i] = std;
        });
    }
    for (i, step) in looks.iter().enumerate() {
        let want = get(want, &step.to_string());
        let of_models = number(get(want, "std")) * (1.0 / models as f64 + 0.1).sqrt();
        let of_functions = spread[i] * (1.0 / n as f64 + 1e-3).sqrt();
        let error = of_models.hypot(of_functions);
        errors.check(
            &format!("regret after {step}"),
            moments(&found[i]).0,
            number(get(want, "mean")),
            4.0 * error,
        );
    }
    errors.done()
}

fn tutorial(errors: &mut Errors, want: &Value, functions: &Case) {
    let (z, alpha) = (array(functions.get("z")), array(functions.get("alpha")));
    let fixed: Vec<Vec<f64>> =
        z.iter().zip(alpha).map(|(z, a)| [inputs::<f64>(z), inputs::<f64>(a)].concat()).collect();
    let problem = Sphere { components: array(&alpha[0]).len(), gamma: number(functions.get("gamma")), fixed };
    let best: Vec<f64> =
        array(functions.get("global_optimum")).iter().map(|o| number(get(o, "value_f64"))).collect();
    let (x, n) = (problem.fixed.concat(), best.len());
    let sums = get(want, "sum_loss_at_iteration");
    let looks = [10, 25, 50, 100];
    let seeds = 10;
    let mut found = vec![Vec::new(); looks.len()];
    // The loss is the sum there, the mean here: Adam sees no difference but in its epsilon.
    for seed in 0..seeds {
        trained(&problem, n, &looks, seed, |step, theta| {
            let i = looks.iter().position(|l| *l == step).expect("it was asked for");
            found[i].push(regrets(&problem, theta, &x, &best).iter().sum::<f64>() + best.iter().sum::<f64>());
        });
    }
    for (i, step) in looks.iter().enumerate() {
        let want = get(sums, &step.to_string());
        let error = number(get(want, "std")) * (0.1 + 1.0 / seeds as f64).sqrt();
        errors.check(
            &format!("sum after {step}"),
            moments(&found[i]).0,
            number(get(want, "mean")),
            4.0 * error,
        );
    }
    let regret: Vec<f64> =
        found[looks.len() - 1].iter().map(|s| (s - best.iter().sum::<f64>()) / n as f64).collect();
    let end = get(want, "mean_regret_after_100");
    let error = number(get(end, "std")) * (0.1 + 1.0 / seeds as f64).sqrt();
    errors.check("mean regret", moments(&regret).0, number(get(end, "mean")), 4.0 * error);
    errors.check("finite", f64::from(u8::from(regret.iter().all(|r| r.is_finite()))), 1.0, 0.1);
}
