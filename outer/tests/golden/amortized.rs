//! Amortized optimization, kinds M: what its checks share, and the figures and closed forms.

use crate::fixture::{array, f32_tolerance, get, inputs, magnitude, number, numbers, Case, Errors, Outcome};
use outerloop_amortized::figures::{self, maxent, Cubic, GaussianPolicy, MainExample};
use outerloop_amortized::loss::quadratic::{Baseline, QuadraticLosses};
use outerloop_amortized::matrix::Matrix;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::Float;
use serde_json::Value;

/// Results by path, parts joined with `/`.
pub type Named<E> = Vec<(String, Vec<E>)>;

/// Adds a result.
pub fn put<E: Float>(out: &mut Named<E>, path: impl Into<String>, values: impl Into<Vec<E>>) {
    out.push((path.into(), values.into()));
}

/// The value at a path.
pub fn at<'a>(v: &'a Value, path: &str) -> &'a Value {
    path.split('/').fold(v, |v, part| match part.parse::<usize>() {
        Ok(i) if v.is_array() => &array(v)[i],
        _ => get(v, part),
    })
}

/// The observed f32 error of a path, or of the whole list where entries are numbered apart.
fn gap_of(gaps: &Value, path: &str) -> f64 {
    gaps.get(path).and_then(|g| g.get("max_abs")).map_or(0.0, number)
}

/// f64 results to 1e-9 of the largest magnitude.
pub fn check_f64(errors: &mut Errors, got: &Named<f64>, want: &Value) {
    for (path, got) in got {
        let want = numbers(at(want, path));
        errors.check_all(path, got, &want, 1e-9 * magnitude(&want).max(1e-30));
    }
}

/// f32 results against the f64 truth, by the observed gaps.
pub fn check_f32(errors: &mut Errors, got: &Named<f32>, want: &Value, gaps: &Value) {
    for (path, got) in got {
        let want = numbers(at(want, path));
        let tolerance = f32_tolerance(gap_of(gaps, path), &want).max(1e-30);
        errors.check_all(&format!("f32 {path}"), got, &want, tolerance);
    }
}

/// Both, against `results_f64` and `f32_vs_f64_gap` of a part of a file.
pub fn check_both(errors: &mut Errors, wide: &Named<f64>, single: &Named<f32>, part: &Value) {
    let want = get(part, "results_f64");
    check_f64(errors, wide, want);
    check_f32(errors, single, want, get(part, "f32_vs_f64_gap"));
}

/// A scalar setting: an f32 number if it is printed as one (9 digits), else the decimal itself.
pub fn setting<E: Float>(v: &Value) -> E {
    let x = number(v);
    let single = f64::from(x as f32);
    // Nine digits are within 5e-9; a decimal that is no f32 number is further off.
    E::of(if (x - single).abs() <= 6e-9 * x.abs() { single } else { x })
}

/// Rows of a list of lists.
pub fn rows<E: Float>(v: &Value) -> Vec<Vec<E>> {
    array(v).iter().map(inputs).collect()
}

/// A matrix of a list of lists.
pub fn matrix<E: Float>(v: &Value) -> Matrix<E> {
    let rows: Vec<Vec<E>> = rows(v);
    Matrix::new(rows.len(), rows.first().map_or(0, Vec::len), rows.concat())
}

/// `|got − want|` relative to the largest of `want`.
pub fn close(errors: &mut Errors, what: &str, got: &[f64], want: &Value, relative: f64) {
    let want = numbers(want);
    errors.check_all(what, got, &want, relative * magnitude(&want).max(1e-30));
}

pub fn main_example(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E> {
        let (x, y): (Vec<E>, Vec<E>) = (inputs(case.get("x")), inputs(case.get("y")));
        let mut out = Vec::new();
        for (name, f) in [("contour", MainExample::Contour), ("arrow", MainExample::Arrow)] {
            let points: Vec<_> = x.iter().zip(&y).map(|(x, y)| f.at(*x, *y)).collect();
            let mut add = |field: &str, values: Vec<E>| put(&mut out, format!("{name}/{field}"), values);
            add("value", points.iter().map(|p| p.value).collect());
            add("grad_x", points.iter().map(|p| p.grad_x).collect());
            add("grad_y", points.iter().map(|p| p.grad_y).collect());
            add("hess_yy", points.iter().map(|p| p.hess_yy).collect());
        }
        let best: Vec<E> = x.iter().map(|x| MainExample::optimum(*x)).collect();
        let drawn: Vec<E> = x.iter().map(|x| MainExample::drawn_model(*x)).collect();
        let at = |f: MainExample, y: &[E]| -> Vec<_> { x.iter().zip(y).map(|(x, y)| f.at(*x, *y)).collect() };
        let mean = |v: &[E]| v.iter().copied().sum::<E>() / E::of(v.len() as f64);
        let values = |p: Vec<figures::Point<E>>| p.iter().map(|p| p.value).collect::<Vec<E>>();
        let slopes = |p: Vec<figures::Point<E>>| p.iter().map(|p| p.grad_y).collect::<Vec<E>>();
        put(&mut out, "f_at_y_star", values(at(MainExample::Contour, &best)));
        put(&mut out, "grad_y_of_arrow_at_y_hat", slopes(at(MainExample::Arrow, &drawn)));
        put(&mut out, "grad_y_of_contour_at_y_hat", slopes(at(MainExample::Contour, &drawn)));
        put(&mut out, "loss_obj_mean", vec![mean(&values(at(MainExample::Contour, &drawn)))]);
        let gaps: Vec<E> = best.iter().zip(&drawn).map(|(a, b)| (*a - *b) * (*a - *b)).collect();
        put(&mut out, "loss_reg_mean", vec![mean(&gaps)]);
        put(&mut out, "y_star", best);
        put(&mut out, "y_hat", drawn);
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    errors.done()
}

pub fn fixed_point(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E> {
        let y: Vec<E> = inputs(case.get("y"));
        let map = |f: &dyn Fn(E) -> E| y.iter().map(|y| f(*y)).collect::<Vec<E>>();
        let mut out = Vec::new();
        put(&mut out, "g", map(&|y| figures::fixed_point_map(y)[0]));
        put(&mut out, "dg", map(&|y| figures::fixed_point_map(y)[1]));
        put(&mut out, "residual_norm2", map(&|y| figures::fixed_point_residual(y)[0]));
        put(&mut out, "grad_residual_norm2", map(&|y| figures::fixed_point_residual(y)[1]));
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    let found = figures::fixed_points();
    let slopes: Vec<f64> = found.iter().map(|y| figures::fixed_point_map(*y)[1]).collect();
    close(&mut errors, "fixed points", &found, case.get("fixed_points_f64"), 1e-9);
    close(&mut errors, "slopes there", &slopes, case.get("derivative_at_fixed_points_f64"), 1e-9);
    close(&mut errors, "marker", &[figures::marked_fixed_point()], case.get("code_marker_f64"), 1e-9);
    let start = |v: &Value| (numbers(v)[0], array(v).len() - 1);
    let (iterates, newton) =
        (case.get("fixed_point_iteration_from_3_f64"), case.get("newton_on_residual_from_3_f64"));
    let ((a, n), (b, m)) = (start(iterates), start(newton));
    close(&mut errors, "iteration", &figures::iterate(a, n), iterates, 1e-9);
    close(&mut errors, "Newton", &figures::newton(b, m), newton, 1e-9);
    errors.done()
}

pub fn imaml(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let y0 = number(case.get("y0_f64"));
    for row in array(case.get("rows")) {
        let cubic = Cubic { lambda: number(get(row, "lam_f64")), y0 };
        let mut check = |key: &str, got: f64| match row.get(key) {
            Some(want) => close(&mut errors, key, &[got], want, 1e-9),
            None => errors.check(key, 0.0, 1.0, 0.1),
        };
        check("discriminant_f64", cubic.discriminant());
        let (y, f) = cubic.best_on_box(400_000);
        check("argmin_on_box_f64", y);
        check("min_on_box_f64", f);
        if let Some([low, high]) = cubic.stationary() {
            check("local_min_f64", low);
            check("local_max_f64", high);
            check("value_f64", cubic.value(low));
            check("dy_dy0_f64", cubic.sensitivity(low));
        }
    }
    let part = case.get("quadratic");
    fn quadratic<E: Float>(part: &Value) -> Named<E> {
        let lam = number(get(part, "lam"));
        let a: Matrix<E> = matrix(get(part, "A"));
        let vector = |key: &str| -> Vec<E> { inputs(get(part, key)) };
        let (b, y0, t) = (vector("b"), vector("y0"), vector("t"));
        // The penalized quadratic's minimum, and the adjoint solve for its sensitivity.
        let penalized = a.plus(lam, &Matrix::identity(a.rows));
        let right: Vec<E> = b.iter().zip(&y0).map(|(b, y)| *b + E::of(lam) * *y).collect();
        let y = penalized.solve(&Matrix::column(&right)).0.data;
        let gap: Vec<E> = y.iter().zip(&t).map(|(y, t)| *y - *t).collect();
        let grad = penalized.t().solve(&Matrix::column(&gap)).0.scaled(lam).data;
        let outer = E::of(0.5) * gap.iter().map(|g| *g * *g).sum::<E>();
        vec![("y".into(), y), ("grad_y0".into(), grad), ("outer_loss".into(), vec![outer])]
    }
    check_f64(&mut errors, &quadratic(part), get(part, "results_f64"));
    errors.done()
}

pub fn smoothed_loss(case: &Case) -> Outcome {
    fn run<E: Float>(x: &[E], sigma: f64) -> Named<E> {
        let at: Vec<[E; 3]> = x.iter().map(|x| figures::smoothed(*x, sigma)).collect();
        let field = |i: usize| at.iter().map(|p| p[i]).collect::<Vec<E>>();
        vec![("value".into(), field(0)), ("grad".into(), field(1)), ("grad_sigma".into(), field(2))]
    }
    let mut errors = Errors::default();
    let x: Vec<f64> = inputs(case.get("x"));
    for part in array(case.get("sigmas")) {
        let sigma = setting(get(part, "sigma"));
        check_both(&mut errors, &run(&x, sigma), &run(&inputs::<f32>(case.get("x")), sigma), part);
        let variances: Vec<[f64; 2]> = x.iter().map(|x| figures::smoothed_variances(*x, sigma)).collect();
        let field = |i: usize| variances.iter().map(|v| v[i]).collect::<Vec<f64>>();
        close(&mut errors, "one draw", &field(0), get(part, "score_function_variance_1_sample_f64"), 1e-8);
        close(&mut errors, "pair", &field(1), get(part, "antithetic_pair_variance_f64"), 1e-8);
    }
    errors.done()
}

pub fn loss_comparison(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E> {
        let y: Vec<Vec<E>> = rows(case.get("y"));
        let at: Vec<_> = y.iter().map(|y| figures::loss_comparison([y[0], y[1]])).collect();
        vec![
            ("objective".into(), at.iter().map(|p| p.0).collect()),
            ("grad_objective".into(), at.iter().flat_map(|p| p.1).collect()),
            ("regression".into(), at.iter().map(|p| p.2).collect()),
            ("grad_regression".into(), at.iter().flat_map(|p| p.3).collect()),
        ]
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    let pair = case.get("equal_regression_pair");
    let leg = number(get(pair, "radius")) / 2f64.sqrt();
    let value = |s: f64| figures::loss_comparison([leg, s * leg]).0;
    close(&mut errors, "along (1, 1)", &[value(1.0)], get(pair, "objective_along_11_f64"), 1e-9);
    close(&mut errors, "along (1, -1)", &[value(-1.0)], get(pair, "objective_along_1m1_f64"), 1e-9);
    errors.done()
}

pub fn control(case: &Case) -> Outcome {
    fn actions<E: Float>(case: &Case) -> Named<E> {
        let at: Vec<[E; 2]> = inputs::<E>(case.get("u")).into_iter().map(figures::control_q).collect();
        vec![
            ("Q".into(), at.iter().map(|q| q[0]).collect()),
            ("dQ".into(), at.iter().map(|q| q[1]).collect()),
        ]
    }
    fn policies<E: Float>(part: &Value, alpha: f64, kl: &str) -> Named<E> {
        let (mu, sigma): (Vec<E>, Vec<E>) = (inputs(get(part, "mu")), inputs(get(part, "sigma")));
        let policies = mu.into_iter().zip(sigma).map(|(mu, sigma)| GaussianPolicy { mu, sigma });
        let at: Vec<_> = policies.map(|p| p.evaluate(alpha)).collect();
        vec![
            ("entropy".into(), at.iter().map(|p| p.entropy).collect()),
            ("expected_Q".into(), at.iter().map(|p| p.expected_q).collect()),
            ("grad_mu".into(), at.iter().map(|p| p.grad[0]).collect()),
            ("grad_sigma".into(), at.iter().map(|p| p.grad[1]).collect()),
            (kl.into(), at.iter().map(|p| p.kl).collect()),
            ("kl_grad_mu".into(), at.iter().map(|p| p.kl_grad[0]).collect()),
            ("kl_grad_sigma".into(), at.iter().map(|p| p.kl_grad[1]).collect()),
        ]
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &actions(case), &actions(case), &case.json);
    let points = figures::control_stationary();
    let values: Vec<f64> = points.iter().map(|u| figures::control_q(*u)[0]).collect();
    let best = (0..points.len()).fold(0, |b, i| if values[i] > values[b] { i } else { b });
    close(&mut errors, "stationary points", &points, case.get("stationary_points_f64"), 1e-9);
    close(&mut errors, "Q there", &values, case.get("Q_at_stationary_f64"), 1e-9);
    close(&mut errors, "u*", &[points[best]], case.get("u_star_f64"), 1e-9);
    close(&mut errors, "Q*", &[values[best]], case.get("Q_star_f64"), 1e-9);
    let part = case.get("stochastic");
    // The temperature stands in the names: `kl_plus_logZ_alpha_0_5`.
    let results = get(part, "results_f64").as_object().expect("results by name");
    let kl = results.keys().find(|k| k.contains("alpha_")).expect("a temperature");
    let suffix = kl.rsplit("alpha_").next().expect("it was found");
    let alpha: f64 = suffix.replace('_', ".").parse().expect("a temperature");
    check_both(&mut errors, &policies(part, alpha, kl), &policies(part, alpha, kl), part);
    let log_z = figures::control_log_normalizer(alpha);
    close(&mut errors, "log Z", &[log_z], get(part, &format!("log_Z_alpha_{suffix}_f64")), 1e-9);
    let (want, found) = (get(part, &format!("best_gaussian_alpha_{suffix}")), figures::best_gaussian(alpha));
    close(&mut errors, "best mu", &[found.mu], get(want, "mu_f64"), 1e-8);
    close(&mut errors, "best sigma", &[found.sigma], get(want, "sigma_f64"), 1e-8);
    errors.check("best KL", found.evaluate(alpha).kl + log_z, number(get(want, "kl_f64")), 1e-9);
    errors.done()
}

pub fn maximum_entropy(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> (Named<E>, Vec<E>)
    where
        Cpu: Host<E>,
    {
        let phi: Vec<E> = inputs(case.get("phi0"));
        // An exact decimal, not an f32 number.
        let step = number(case.get("step_size"));
        let updates = number(case.get("num_updates")) as usize;
        let (entropy, path) = maxent::ascend(&phi, step, updates, maxent::Jacobian::Full);
        let (clean, clean_path) = maxent::ascend(&phi, step, updates, maxent::Jacobian::Clean);
        let last = path[updates].clone();
        let out = vec![
            ("entropy".into(), entropy),
            ("entropy_clean".into(), clean),
            // The file has the gradient of the negative entropy.
            (
                "grad_phi_step0".into(),
                maxent::entropy(&phi, maxent::Jacobian::Full).1.iter().map(|g| -*g).collect(),
            ),
            ("phi".into(), path.concat()),
            ("phi_clean_final".into(), clean_path[updates].clone()),
        ];
        (out, last)
    }
    let mut errors = Errors::default();
    let ((wide, last), (single, _)) = (run::<f64>(case), run::<f32>(case));
    let (want, gaps) = (case.get("results_f64"), case.get("f32_vs_f64_gap"));
    for (path, got) in &wide {
        close(&mut errors, path, got, at(want, path), 1e-8);
    }
    // f32 runs drift apart along the trajectory: ten observed gaps are no bound for another order of sums.
    for (path, got) in &single {
        let want = numbers(at(want, path));
        errors.check_all(
            &format!("f32 {path}"),
            got,
            &want,
            f32_tolerance(gap_of(gaps, path), &want).max(1e-5),
        );
    }
    let phi: Vec<f64> = inputs(case.get("phi0"));
    for (name, phi) in [("initial", &phi), ("final", &last)] {
        let d = maxent::standardized(phi, maxent::Jacobian::Full);
        for (field, got) in [("mass", d.mass), ("mean", d.mean), ("std", d.std)] {
            let want = number(get(want, &format!("{name}_{field}")));
            errors.check(&format!("{name} {field}"), got, want, 1e-8);
        }
    }
    close(
        &mut errors,
        "continuous",
        &[maxent::continuous_entropy(&phi)],
        case.get("continuous_entropy_at_phi0_f64"),
        1e-8,
    );
    let end = case.get("continuous_entropy_at_final_phi_f64");
    close(&mut errors, "continuous, end", &[maxent::continuous_entropy(&last)], end, 1e-8);
    errors.done()
}

pub fn losses_quadratic(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E> {
        let of = |key: &str| -> Matrix<E> { matrix(case.get(key)) };
        let q = QuadraticLosses { h: of("H"), m: of("M"), w: of("W") };
        let sigma = setting(case.get("sigma"));
        let x: Vec<E> = inputs(case.get("x"));
        let mut out = Vec::new();
        let mut loss = |part: &str, name: &str, (value, grad): (E, Matrix<E>)| {
            put(&mut out, format!("{part}/loss_{name}"), vec![value]);
            put(&mut out, format!("{part}/grad_W_{name}"), grad.data);
        };
        let [objective, regression] = q.on_batch(&rows(case.get("X")));
        loss("batch", "obj", objective);
        loss("batch", "reg", regression);
        loss("population", "obj", q.objective());
        loss("population", "reg", q.regression());
        loss("population", "smoothed", q.smoothed(sigma));
        let (y, f, grad) = q.at(&x);
        let by_weights = Matrix::column(&grad).mul(&Matrix::new(1, x.len(), x.clone())).data;
        let mut point = |name: &str, values: Vec<E>| put(&mut out, format!("point/{name}"), values);
        point("y", y);
        point("f", vec![f]);
        point("score_mean_y", grad.clone());
        point("grad_y", grad);
        point("score_mean_W", by_weights);
        point("smoothed_f", vec![q.smoothed_at(&x, sigma)]);
        point("score_variance_y_no_baseline", q.score_variance(&x, sigma, Baseline::None));
        point("score_variance_y_baseline_f", q.score_variance(&x, sigma, Baseline::Value));
        point("score_variance_y_baseline_smoothed", q.score_variance(&x, sigma, Baseline::Smoothed));
        point("antithetic_pair_variance_y", q.antithetic_variance(&x));
        point("optimal_baseline_per_component", q.best_baseline(&x, sigma));
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    let of = |key: &str| -> Matrix { matrix(case.get(key)) };
    let q = QuadraticLosses { h: of("H"), m: of("M"), w: of("W") };
    let want = case.get("descent_lr_0_1_objective_value_f64");
    for (name, regression) in [("objective_based", false), ("regression_based", true)] {
        let want = get(want, name);
        close(&mut errors, name, &q.descend(0.1, array(want).len() - 1, regression), want, 1e-9);
    }
    errors.done()
}
