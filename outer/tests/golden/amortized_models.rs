//! Sparse coding, MAML and perturbed optimizers.

use crate::amortized::{at, check_both, check_f32, check_f64, close, matrix, put, rows, setting, Named};
use crate::fixture::{array, get, inputs, number, tree_inputs, Case, Errors, Outcome};
use outerloop_amortized::perturbed::{oracle, Draws, Kind, Noise, Oracle, Perturbed, Variance};
use outerloop_amortized::problem::Rows;
use outerloop_amortized::problems::maml::{FlatNet, Order, SinusoidMaml};
use outerloop_amortized::problems::sparse::{energies, lista, psd, Dictionary};
use outerloop_core::ops::{self, Activation, Through};
use outerloop_core::tensor::{
    host_data, record, Backend, Cpu, DynParams, DynTree, Host, NoneTape, ParamTree, PutTape, Rank0, Rec,
    Tensor,
};
use outerloop_core::{Float, Layout};
use serde_json::Value;
use std::sync::Arc;

/// A loss of the layers' outputs.
type LossOf<'a, E> = &'a dyn Fn(Vec<Rows<E, Cpu, Rec>>) -> Tensor<Rank0, E, Cpu, Rec>;

/// A scalar of parameters on the tape, and its gradient leaf by leaf.
pub fn differentiate<E: Float>(
    layout: &Layout,
    values: &[E],
    f: impl FnOnce(&DynParams<E, Cpu>, Rec) -> Tensor<Rank0, E, Cpu, Rec>,
) -> (E, Vec<E>)
where
    Cpu: Host<E>,
{
    let dev = Cpu::default();
    let p = DynParams::<E, Cpu>::new(&dev, Arc::new(layout.clone()), values);
    let mut r = record(&p.ids(), |m| f(&p, m));
    let mut grad = vec![E::of(0.0); values.len()];
    p.read_grads(&dev, &mut r.grads, &mut grad);
    (host_data(&r.value)[0], grad)
}

/// Leaves of a flat buffer under a prefix.
pub fn put_tree<E: Float>(out: &mut Named<E>, prefix: &str, layout: &Layout, flat: &[E]) {
    for e in layout.entries() {
        put(out, format!("{prefix}/{}", e.name), flat[e.range()].to_vec());
    }
}

/// Rows of a case as a tensor.
pub fn tensor<E: Float>(v: &Value) -> Rows<E, Cpu>
where
    Cpu: Host<E>,
{
    let m = matrix::<E>(v);
    Backend::<E>::filled(&Cpu::default(), (m.rows, m.cols), |out| out.copy_from_slice(&m.data))
}

pub fn sparse(case: &Case) -> Outcome {
    fn iterates<E: Float>(case: &Case) -> Named<E> {
        let number = |key: &str| setting::<E>(case.get(key));
        let d = Dictionary { d: matrix(case.get("D")), alpha: number("alpha"), lipschitz: number("L") };
        let signals: Vec<Vec<E>> = rows(case.get("x"));
        let steps = array(at(case.get("results_f64"), "ista")).len() - 1;
        let mut out = Vec::new();
        for (name, fast) in [("ista", false), ("fista", true)] {
            let run = |x: &Vec<E>| if fast { d.fista(x, steps) } else { d.ista(x, steps) };
            let paths: Vec<Vec<Vec<E>>> = signals.iter().map(run).collect();
            let in_order = |t: usize| paths.iter().map(move |p| p[t].clone());
            put(&mut out, name, (0..=steps).flat_map(in_order).collect::<Vec<_>>().concat());
            let energy = |t: usize| paths.iter().zip(&signals).map(move |(p, x)| (x, p[t].clone()));
            let all = (0..=steps).flat_map(energy).map(|(x, y)| d.energy(x, &y));
            put(&mut out, format!("{name}_energy"), all.collect::<Vec<E>>());
        }
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &iterates(case), &iterates(case), &case.json);
    let number64 = |key: &str| setting::<f64>(case.get(key));
    let d = Dictionary { d: matrix(case.get("D")), alpha: number64("alpha"), lipschitz: number64("L") };
    let radius = d.d.mul(&d.d.t()).spectral_radius();
    close(&mut errors, "largest eigenvalue", &[radius], case.get("largest_eigenvalue_f64"), 1e-9);
    let best: Vec<_> = rows::<f64>(case.get("x")).iter().map(|x| (x.clone(), d.optimum(x))).collect();
    let want = case.get("optimum_f64");
    let y: Vec<f64> = best.iter().flat_map(|b| b.1.y.clone()).collect();
    close(&mut errors, "optimum", &y, get(want, "y"), 1e-9);
    close(
        &mut errors,
        "energy",
        &best.iter().map(|b| b.1.value).collect::<Vec<_>>(),
        get(want, "energy"),
        1e-9,
    );
    for (x, b) in &best {
        errors.check("optimality conditions", d.kkt_residual(x, &b.y), 0.0, 1e-12);
    }
    let part = case.get("lista");
    check_both(&mut errors, &learned(case, part), &learned(case, part), part);
    errors.done()
}

fn learned<E: Float>(case: &Case, part: &Value) -> Named<E>
where
    Cpu: Host<E>,
{
    let (theta, layers) = (get(part, "theta"), number(get(part, "K")) as usize);
    let n = array(get(theta, "beta")).len();
    let p = array(array(case.get("x")).first().expect("signals")).len();
    let layout = Layout::new([("F", vec![n, p]), ("G", vec![n, n]), ("beta", vec![n])]);
    let values: Vec<E> = tree_inputs(theta, &layout);
    let (x, target) = (tensor::<E>(case.get("x")), tensor::<E>(get(part, "ystar")));
    let dictionary = tensor::<E>(case.get("D"));
    let alpha = setting(case.get("alpha"));
    let outputs = |q: &DynParams<E, Cpu>, m: Rec| {
        let (f, g) = (q.traced(0, (n, p), m), q.traced(1, (n, n), m));
        lista(x.clone().put_tape(m), [&f, &g], &q.get(2, (n,)), layers)
    };
    let mut out = Vec::new();
    let apart = |y: Rows<E, Cpu, Rec>| ops::mean(ops::sum_axis1(ops::square(ops::sub(y, &target))));
    let mut add = |name: &str, f: LossOf<'_, E>| {
        let (loss, grad) = differentiate(&layout, &values, |q, m| f(outputs(q, m)));
        put(&mut out, format!("loss_{name}"), vec![loss]);
        put_tree(&mut out, &format!("grad_{name}"), &layout, &grad);
    };
    let last = |mut y: Vec<Rows<E, Cpu, Rec>>| y.pop().expect("at least one layer");
    add("reg", &|y| apart(last(y)));
    add("obj", &|y| ops::mean(energies(&x, last(y), &dictionary, alpha)));
    add("reg_summed", &|y| {
        y.into_iter().map(apart).reduce(|a, b| ops::add(a, &b)).expect("at least one layer")
    });
    let mut seen = Vec::new();
    differentiate(&layout, &values, |q, m| {
        let y = outputs(q, m);
        seen = y.iter().flat_map(|y| host_data(y).to_vec()).collect();
        ops::sum(last(y))
    });
    put(&mut out, "outputs", seen);
    let layout = Layout::new([("D", vec![n, n]), ("F", vec![n, p])]);
    let values: Vec<E> = tree_inputs(get(part, "psd"), &layout);
    let (loss, grad) = differentiate(&layout, &values, |q, m| {
        let (d, f) = (q.traced(0, (n, n), m), q.traced(1, (n, p), m));
        apart(psd(x.clone().put_tape(m), &f, &d))
    });
    put(&mut out, "psd_loss_reg", vec![loss]);
    put_tree(&mut out, "psd_grad_reg", &layout, &grad);
    out
}

pub fn maml(case: &Case) -> Outcome {
    fn run<E: Float>(case: &Case) -> Named<E>
    where
        Cpu: Host<E>,
    {
        let theta = case.get("theta");
        let layers = theta.as_object().expect("weights by name").len() / 2;
        let shapes: Vec<Vec<usize>> =
            (1..=layers).map(|i| crate::fixture::shape(get(theta, &format!("w{i}")))).collect();
        let mut widths = vec![shapes[0][0]];
        widths.extend(shapes.iter().map(|s| s[1]));
        let is_relu = case.get("definition").as_str().is_some_and(|d| d.contains(" relu"));
        let activation = if is_relu { Activation::Relu } else { Activation::Tanh };
        let net = FlatNet { widths, activation };
        let layout = net.layout();
        let weights: Vec<E> = tree_inputs(theta, &layout);
        let list = |key: &str| array(case.get(key)).iter().map(tensor::<E>).collect::<Vec<_>>();
        let sets = |name: &str| -> Vec<(Rows<E, Cpu>, Rows<E, Cpu>)> {
            list(&format!("x_{name}")).into_iter().zip(list(&format!("y_{name}"))).collect()
        };
        let (support, query) = (sets("support"), sets("query"));
        let episodes: Vec<_> = support.into_iter().zip(query).map(|(s, q)| [s, q]).collect();
        let inner_lr = setting(case.get("inner_lr"));
        let inner_steps = number(case.get("inner_steps")) as usize;
        let task =
            |order| SinusoidMaml { net: net.clone(), inner_lr, inner_steps, order, ..Default::default() };
        let mut out = Vec::new();
        let orders = [
            (Order::Second, "meta_grad_second_order"),
            (Order::First, "meta_grad_first_order"),
            (Order::Reptile, "reptile_direction"),
        ];
        for (order, name) in orders {
            let task = task(order);
            let (loss, grad) =
                differentiate(&layout, &weights, |p, m| task.meta_loss(&task.flat(p, m), &episodes));
            put_tree(&mut out, name, &layout, &grad);
            if order == Order::Second {
                put(&mut out, "meta_loss", vec![loss]);
            }
        }
        let flat: Tensor<(usize,), E, Cpu> = Backend::<E>::filled(&Cpu::default(), (weights.len(),), |w| {
            w.copy_from_slice(&weights);
        });
        let task = task(Order::Second);
        let adapted: Vec<_> = episodes
            .iter()
            .map(|[s, _]| task.adapt::<E, Cpu, NoneTape>(flat.clone(), s, Through::Stopped))
            .collect();
        put_tree(&mut out, "adapted_task0", &layout, host_data(&adapted[0]));
        let loss = |w: &Tensor<(usize,), E, Cpu>, set| host_data(&net.mse(w, set))[0];
        let each = |f: &dyn Fn(usize) -> E| (0..episodes.len()).map(f).collect::<Vec<E>>();
        put(&mut out, "support_loss_before", each(&|i| loss(&flat, &episodes[i][0])));
        put(&mut out, "query_loss_before", each(&|i| loss(&flat, &episodes[i][1])));
        put(&mut out, "query_loss_after", each(&|i| loss(&adapted[i], &episodes[i][1])));
        out
    }
    let mut errors = Errors::default();
    check_both(&mut errors, &run(case), &run(case), &case.json);
    errors.done()
}

pub fn perturbed(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    for (name, part) in case.get("cases").as_object().expect("cases by name") {
        let solver = if name.starts_with("ranking") { oracle::ranking() } else { oracle::argmax() };
        let got = draws_of(part, &solver);
        check_f64(&mut errors, &got, get(part, "f64"));
        // The samples are drawn in f64 whatever the dtype of the tape: only outputs are rounded.
        let single: Named<f32> =
            got.into_iter().map(|(n, v)| (n, v.into_iter().map(|x| x as f32).collect())).collect();
        check_f32(&mut errors, &single, get(part, "f64"), &Value::Null);
    }
    let plain = case.get("unperturbed");
    let values: Vec<f64> = inputs(get(plain, "values"));
    close(&mut errors, "argmax", &oracle::argmax()(&values), get(plain, "argmax_one_hot"), 1e-12);
    close(&mut errors, "ranking", &oracle::ranking()(&values), get(plain, "ranking"), 1e-12);
    limits(&mut errors, case.get("limits"));
    errors.done()
}

fn draws_of(part: &Value, solver: &Oracle) -> Named<f64> {
    let vector = |key: &str| -> Vec<f64> { inputs(get(part, key)) };
    let (values, target, functional) = (vector("values"), vector("target"), vector("linear_functional"));
    let noise: Vec<Vec<f64>> = rows(get(part, "noise_samples"));
    let is_gumbel = get(part, "noise_kind").as_str() == Some("gumbel");
    let with_baseline = get(part, "control_variate").as_bool() == Some(true);
    let settings = Perturbed {
        noise: if is_gumbel { Noise::Gumbel } else { Noise::Normal },
        sigma: setting(get(part, "sigma")),
        samples: noise.len(),
        kind: Kind::Additive,
        variance: if with_baseline { Variance::Baseline } else { Variance::None },
    };
    let draws: Draws = settings.draw(&values, &noise, solver);
    let outputs = draws.mean();
    let unit = |i: usize| (0..outputs.len()).map(|j| f64::from(u8::from(i == j))).collect::<Vec<f64>>();
    let gap: Vec<f64> = outputs.iter().zip(&target).map(|(y, t)| y - t).collect();
    let doubled: Vec<f64> = gap.iter().map(|g| 2.0 * g).collect();
    let solver = solver.clone();
    let squared =
        oracle::function(move |x| solver(x).iter().zip(&target).map(|(y, t)| (y - t).powi(2)).sum());
    let of_function = settings.draw(&values, &noise, &squared);
    vec![
        ("jacobian".into(), (0..outputs.len()).flat_map(|i| draws.vjp(&unit(i))).collect()),
        ("linear_functional_grad".into(), draws.vjp(&functional)),
        ("squared_loss".into(), vec![gap.iter().map(|g| g * g).sum()]),
        ("squared_loss_grad".into(), draws.vjp(&doubled)),
        ("perturbed_max".into(), vec![draws.max()]),
        ("perturbed_max_grad".into(), draws.max_grad(&values, Kind::Additive)),
        ("perturbed_fun_squared_loss".into(), of_function.mean()),
        ("perturbed_fun_squared_loss_grad".into(), of_function.vjp(&[1.0])),
        ("perturbed_output".into(), outputs),
    ]
}

/// Large-sample limits, with our own noise: probabilities and ranks within 4 standard errors.
fn limits(errors: &mut Errors, part: &Value) {
    let values: Vec<f64> = inputs(get(part, "values"));
    let sigma = setting(get(part, "sigma"));
    let samples = 100_000;
    let mut mean = |noise, solver: &Oracle, key: &str| {
        let settings = Perturbed { noise, sigma, samples, ..Default::default() };
        let z = settings.noise(values.len(), outerloop_core::Key::new(11));
        let draws = settings.draw(&values, &z, solver);
        let want = crate::fixture::numbers(get(part, key));
        let second = |i: usize| draws.y.iter().map(|y| y[i] * y[i]).sum::<f64>() / samples as f64;
        for (i, (got, want)) in draws.mean().into_iter().zip(want).enumerate() {
            let error = ((second(i) - got * got) / samples as f64).sqrt();
            errors.check(&format!("{key}[{i}]"), got, want, 4.0 * error.max(1e-5));
        }
    };
    mean(Noise::Gumbel, &oracle::argmax(), "argmax_gumbel_limit_is_softmax_of_values_over_sigma");
    mean(Noise::Gumbel, &oracle::ranking(), "ranking_gumbel_limit");
    mean(Noise::Normal, &oracle::ranking(), "ranking_normal_limit");
}
