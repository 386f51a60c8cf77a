//! Kind K: fixed points of maps, and proximal inner problems.

use crate::fixture::{
    array, flatten, get, inputs, number, numbers, shape, tree_inputs, Case, Errors, Outcome,
};
use crate::implicit::{layout, model, Check};
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, DynParams, DynTree, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, HyperProblem, HyperTask, Key, Layout};
use outerloop_core::{Float, Split};
use outerloop_lopt::hand::Sgd;
use outerloop_outer::implicit::*;
use serde_json::Value;
use std::sync::Arc;

use dfdx::prelude::PutTape;

/// Tolerances of the conventions.
const PLAIN: f64 = 1e-10;
const KRYLOV: f64 = 1e-8;

/// `Σ_{j ≤ k} (Jᵀ)^j c`, whatever its terms do.
fn partial_sum(k: usize) -> Neumann {
    Neumann { patience: k, ..Neumann::new(k, 1.0) }
}

fn tensor<E: Float, B: Backend<E>>(dev: &B, x: &[f64], columns: usize) -> Tensor<(usize, usize), E, B> {
    let rows = x.len() / columns;
    dev.filled((rows, columns), |out| out.iter_mut().zip(x).for_each(|(o, x)| *o = E::of(*x)))
}

/// What is differentiated: `train` and `valid` as scalars.
enum Kind {
    /// `⟨tanh(W z + U x + b), u⟩`, row by row.
    Deq,
    /// `⟨momentum step of f, u⟩` of the state `(z, v)`.
    Momentum { eta: f64, mu: f64 },
    /// `f` of a regularized logistic regression; judged by `⟨c, z⟩`, or by itself.
    Logistic { judge: Option<Vec<f64>> },
    /// `f(y) + λ/2 ‖y − y₀‖²`, judged by `f` on other data.
    Proximal { is_sinusoid: bool, valid: [Vec<f64>; 2] },
}

struct Golden {
    kind: Kind,
    x: Vec<f64>,
    y: Vec<f64>,
    /// Columns of `x`.
    width: usize,
    params: Arc<Layout>,
    hyper: Arc<Layout>,
}

impl Golden {
    fn logistic<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        z: Tensor<(usize,), E, B, M>,
        hyper: &DynParams<E, B>,
        dev: &B,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let d = self.width;
        // log(1 + exp(−y x·z))
        let signed: Vec<f64> =
            self.x.chunks(d).zip(&self.y).flat_map(|(x, y)| x.iter().map(move |x| -y * x)).collect();
        let scores = ops::matmul(tensor(dev, &signed, d).put_tape(m), &ops::reshape(z.clone(), (d, 1)));
        let loss = ops::mean(ops::softplus(scores));
        let decay = ops::weight_decay(z.clone(), &hyper.get(0, (d,)));
        let linear = ops::sum(ops::mul(z, &hyper.get(1, (d,))));
        ops::sub(ops::add(loss, &decay), &linear)
    }

    /// The gradient of [`Self::logistic`] by `z`, in operations.
    fn logistic_grad<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        z: Tensor<(usize,), E, B, M>,
        hyper: &DynParams<E, B>,
        dev: &B,
        m: M,
    ) -> Tensor<(usize,), E, B, M> {
        let (d, n) = (self.width, self.y.len());
        let signed: Vec<f64> =
            self.x.chunks(d).zip(&self.y).flat_map(|(x, y)| x.iter().map(move |x| -y * x)).collect();
        let x = tensor(dev, &signed, d).put_tape(m);
        let scores = ops::matmul(x.clone(), &ops::reshape(z.clone(), (d, 1)));
        let slopes = ops::reshape(ops::scale(ops::sigmoid(scores), 1.0 / n as f64), (1, n));
        let data = ops::reshape(ops::matmul(slopes, &x), (d,));
        let decay = ops::mul(z, &ops::exp(hyper.traced(0, (d,), m)));
        ops::sub(ops::add(data, &decay), &hyper.get(1, (d,)))
    }

    fn fit<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: &DynParams<E, B>,
        (inputs, targets): (&[f64], &[f64]),
        is_sinusoid: bool,
        (dev, m): (&B, M),
    ) -> Tensor<Rank0, E, B, M> {
        let got = model(y, &self.params, tensor(dev, inputs, self.width).put_tape(m));
        if is_sinusoid {
            return ops::scale(ops::mse(got, &tensor(dev, targets, 1)), 0.5);
        }
        let labels: Vec<u32> = targets.iter().map(|t| *t as u32).collect();
        ops::softmax_cross_entropy(got, &labels)
    }
}

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Golden {
    type Params = DynParams<E, B>;
    type Hyper = DynParams<E, B>;
    type Batch = B;
    fn name(&self) -> String {
        "golden fixed point".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        DynTree::new(dev, self.params.clone(), &vec![E::of(0.0); self.params.len()])
    }
    fn init_hyper(&self, dev: &B, _: Key) -> Self::Hyper {
        DynTree::new(dev, self.hyper.clone(), &vec![E::of(0.0); self.hyper.len()])
    }
    fn batch(&self, dev: &B, _: BatchKey) -> B {
        dev.clone()
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        z: &Self::Params,
        hyper: &Self::Hyper,
        dev: &B,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let dims = |layout: &Layout, i: usize| {
            let shape = &layout.entries()[i].shape;
            (shape[0], shape[1])
        };
        match &self.kind {
            Kind::Deq => {
                let weight = |i| ops::transpose(hyper.traced(i, dims(&self.hyper, i), m));
                let inner = ops::matmul(z.traced(0, dims(&self.params, 0), m), &weight(0));
                let outer = ops::matmul(hyper.traced(3, dims(&self.hyper, 3), m), &weight(1));
                let bias = hyper.get(2, (dims(&self.params, 0).1,));
                let next = ops::tanh(ops::add(ops::add(inner, &outer), &bias));
                ops::sum(ops::mul(next, &hyper.get(4, dims(&self.params, 0))))
            }
            Kind::Momentum { eta, mu } => {
                let d = (self.width,);
                let grad = self.logistic_grad(z.traced(0, d, m), hyper, dev, m);
                let v = ops::add(ops::scale(z.traced(1, d, m), *mu), &grad);
                let z = ops::sub(z.traced(0, d, m), &ops::scale(v.clone(), *eta));
                let z = ops::sum(ops::mul(z, &hyper.get(2, d)));
                ops::add(z, &ops::sum(ops::mul(v, &hyper.get(3, d))))
            }
            Kind::Logistic { .. } => self.logistic(z.traced(0, (self.width,), m), hyper, dev, m),
            Kind::Proximal { is_sinusoid, .. } => {
                let fit = self.fit(z, (&self.x, &self.y), *is_sinusoid, (dev, m));
                let last = self.params.entries().len();
                let lam = hyper.get(last, ());
                let distances = self.params.entries().iter().enumerate().map(|(i, e)| {
                    let n = (e.numel(),);
                    ops::sum(ops::square(ops::sub(z.traced(i, n, m), &hyper.get(i, n))))
                });
                let distance = distances.reduce(|a, b| ops::add(a, &b)).expect("a model has weights");
                ops::add(fit, &ops::scale(ops::mul(distance, &lam), 0.5))
            }
        }
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        z: &Self::Params,
        hyper: &Self::Hyper,
        dev: &B,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        match &self.kind {
            Kind::Logistic { judge: Some(c) } => {
                let c = ops::reshape(tensor(dev, c, c.len()), (c.len(),));
                ops::sum(ops::mul(z.traced(0, (self.width,), m), &c))
            }
            Kind::Proximal { is_sinusoid, valid: [x, y] } => self.fit(z, (x, y), *is_sinusoid, (dev, m)),
            _ => HyperTask::<E, B>::train_loss(self, z, hyper, dev, m),
        }
    }
}

fn problem(golden: Golden) -> Arc<HyperProblem<f64>> {
    Arc::new(HyperProblem::new(golden).expect("no names to look up"))
}

/// A layout of tensors that a case lists by name, with `u` of the shapes of `z` at the end.
fn map_layouts(case: &Case, theta: &[&str], z: &[(&str, Vec<usize>)]) -> [Arc<Layout>; 2] {
    let theta = theta.iter().map(|name| (name.to_string(), shape(case.get(name))));
    let u = z.iter().map(|(name, shape)| (format!("u_{name}"), shape.clone()));
    let hyper = Layout::new(theta.chain(u));
    let z = Layout::new(z.iter().map(|(name, shape)| (name.to_string(), shape.clone())));
    [Arc::new(z), Arc::new(hyper)]
}

fn train() -> BatchKey {
    BatchKey::train(0, Key::new(0))
}

fn deq(case: &Case, check: &mut Check<'_>) {
    let names = ["W", "U", "b", "x"];
    let z0: Vec<f64> = inputs(case.get("z0"));
    let [params, hyper] = map_layouts(case, &names, &[("z", shape(case.get("z0")))]);
    let theta_layout = Layout::new(names.map(|n| (n, shape(case.get(n)))));
    let theta: Vec<f64> = names.iter().flat_map(|n| inputs::<f64>(case.get(n))).collect();
    let golden = Golden { kind: Kind::Deq, x: vec![], y: vec![], width: 1, params, hyper };
    let mut map = FixedPointMap::new(problem(golden), train()).expect("u is there");

    let forward = case.get("forward_iterates");
    for (i, k) in numbers(get(forward, "k")).into_iter().enumerate() {
        let config = Iterations { steps: k as usize, tolerance: 0.0 };
        let got = map.iterate(&z0, &theta, config).expect("lengths fit");
        check.vector(&format!("iterate {k}"), &got.z, &numbers(&array(get(forward, "z"))[i]), PLAIN);
    }
    let z = map.iterate(&z0, &theta, Iterations { steps: 1000, tolerance: 1e-16 }).expect("lengths fit").z;
    check.vector("z_star", &z, &numbers(case.get("z_star")), PLAIN);
    let z = numbers(case.get("z_star"));
    let c: Vec<f64> = inputs(case.get("cotangent"));

    let exact = case.get("exact");
    let got = map.vjp(&Exact::default(), &z, &theta, &c).expect("lengths fit");
    check.vector("exact u", &got.solution.q, &numbers(get(exact, "u")), PLAIN);
    let each = |check: &mut Check<'_>, what: &str, got: &[f64], want: &Value, tolerance: f64| {
        for e in theta_layout.entries() {
            let want = numbers(get(want, &e.name));
            check.vector(&format!("{what} {}", e.name), &got[e.range()], &want, tolerance);
        }
    };
    each(check, "exact", &got.grad, get(exact, "grad"), PLAIN);
    let tangent = tree_inputs::<f64>(case.get("tangent"), &theta_layout);
    let got = map.jvp(&Exact::default(), &z, &theta, &tangent).expect("lengths fit");
    check.vector("jvp", &got.q, &numbers(get(exact, "jvp_dz")), PLAIN);

    let sums = case.get("adjoint_partial_sums");
    for (i, k) in numbers(get(sums, "k")).into_iter().enumerate() {
        let got = map.vjp(&partial_sum(k as usize), &z, &theta, &c).expect("lengths fit");
        each(check, &format!("partial sum {k}"), &got.grad, &array(get(sums, "grad"))[i], PLAIN);
    }
    let cg = case.get("normal_cg");
    for (i, steps) in numbers(get(cg, "steps")).into_iter().enumerate() {
        let solver = NormalCg { steps: steps as usize, tolerance: 0.0 };
        let got = map.vjp(&solver, &z, &theta, &c).expect("lengths fit");
        let want = numbers(&array(get(cg, "u"))[i]);
        check.vector(&format!("normal cg {steps}"), &got.solution.q, &want, KRYLOV);
    }
    let unrolled = case.get("unrolled_from_z0");
    for (i, steps) in numbers(get(unrolled, "N")).into_iter().enumerate() {
        let (grad, _, last) = map.unrolled_vjp(&z0, &theta, &c, steps as usize).expect("lengths fit");
        let value: f64 = last.iter().zip(&c).map(|(z, c)| z * c).sum();
        check.number("unrolled value", value, number(&array(get(unrolled, "value"))[i]), PLAIN);
        each(check, &format!("unrolled {steps}"), &grad, &array(get(unrolled, "grad"))[i], PLAIN);
    }
}

fn optimizer_maps(case: &Case, check: &mut Check<'_>) {
    let (z0, c): (Vec<f64>, Vec<f64>) = (inputs(case.get("z0")), inputs(case.get("cotangent")));
    let d = z0.len();
    let (eta, mu) = (number(case.get("eta")), number(case.get("mu")));
    let theta: Vec<f64> = ["s", "b"].iter().flat_map(|n| inputs::<f64>(case.get(n))).collect();
    let theta_layout = Layout::new([("s", vec![d]), ("b", vec![d])]);
    let golden = |kind, z: &[(&str, Vec<usize>)], is_map: bool| {
        let [params, mut hyper] = map_layouts(case, &["s", "b"], z);
        if !is_map {
            hyper = Arc::new(theta_layout.clone());
        }
        let (x, y) = (inputs(case.get("X")), inputs(case.get("y")));
        problem(Golden { kind, x, y, width: d, params, hyper })
    };
    let state = [("z", vec![d])];
    let at = HyperBatches::at(0, Key::new(0));
    let mut by_itself = HyperEvaluator::new(golden(Kind::Logistic { judge: None }, &state, false));
    let mut judged = HyperEvaluator::new(golden(Kind::Logistic { judge: Some(c.clone()) }, &state, false));

    let mut z = z0.clone();
    let blocks = [("gd_iterates", false), ("newton_iterates", true)];
    for (name, is_newton) in blocks {
        z.copy_from_slice(&z0);
        let block = case.get(name);
        let ks: Vec<usize> = numbers(get(block, "k")).into_iter().map(|k| k as usize).collect();
        for step in 1..=ks.iter().copied().max().unwrap_or(0) {
            let joint = [&z[..], &theta].concat();
            let identity = Implicit::new(Identity { scale: eta });
            let implicit = if is_newton { Implicit::new(Exact::default()) } else { identity };
            let h = by_itself.hypergradient(&implicit, &at, &joint, None).expect("lengths fit");
            z.iter_mut().zip(&h.solution.q).for_each(|(z, q)| *z -= q);
            if let Some(i) = ks.iter().position(|k| *k == step) {
                check.vector(&format!("{name} {step}"), &z, &numbers(&array(get(block, "z"))[i]), PLAIN);
            }
        }
    }
    let z = numbers(case.get("z_star"));
    let joint = [&z[..], &theta].concat();
    let each = |check: &mut Check<'_>, what: &str, got: &[f64], want: &Value| {
        check.vector(what, got, &flatten(want, &theta_layout), PLAIN);
    };
    let exact = case.get("exact");
    let h = judged.hypergradient(&Implicit::new(Exact::default()), &at, &joint, None).expect("lengths fit");
    check.vector("Hinv_c", &h.solution.q, &numbers(get(exact, "Hinv_c")), PLAIN);
    each(check, "exact", &h.grad, get(exact, "grad"));
    let sums = case.get("gd_adjoint_partial_sums");
    for (i, k) in numbers(get(sums, "k")).into_iter().enumerate() {
        let series = Implicit::new(Neumann::new(k as usize, eta));
        let h = judged.hypergradient(&series, &at, &joint, None).expect("lengths fit");
        each(check, &format!("gd partial sum {k}"), &h.grad, &array(get(sums, "grad"))[i]);
    }
    let unrolled = case.get("unrolled_gd_from_z0");
    for (i, steps) in numbers(get(unrolled, "N")).into_iter().enumerate() {
        let by_sgd = Unrolled::new(Sgd::new(eta), steps as usize);
        let start = [&z0[..], &theta].concat();
        let got = judged.unrolled_hypergradient(&by_sgd, Key::new(0), at.valid, &start).expect("valid");
        check.number("unrolled value", got.valid_loss, number(&array(get(unrolled, "value"))[i]), PLAIN);
        each(check, &format!("unrolled gd {steps}"), &got.grad, &array(get(unrolled, "grad"))[i]);
    }

    let state = [("z", vec![d]), ("v", vec![d])];
    let momentum = golden(Kind::Momentum { eta, mu }, &state, true);
    let mut map = FixedPointMap::new(momentum, train()).expect("u is there");
    let at_rest = [&z[..], &vec![0.0; d]].concat();
    let c = [&c[..], &vec![0.0; d]].concat();
    let solver = Exact::default();
    each(
        check,
        "momentum exact",
        &map.vjp(&solver, &at_rest, &theta, &c).expect("fits").grad,
        get(exact, "grad"),
    );
    let tangent = tree_inputs::<f64>(case.get("tangent"), &theta_layout);
    let moved = map.jvp(&solver, &at_rest, &theta, &tangent).expect("lengths fit").q;
    check.vector("jvp", &moved[..d], &numbers(get(exact, "jvp_dz")), PLAIN);
    let sums = case.get("momentum_adjoint_partial_sums");
    for (i, k) in numbers(get(sums, "k")).into_iter().enumerate() {
        let got = map.vjp(&partial_sum(k as usize), &at_rest, &theta, &c).expect("lengths fit");
        each(check, &format!("momentum partial sum {k}"), &got.grad, &array(get(sums, "grad"))[i]);
    }
}

fn proximal(case: &Case, check: &mut Check<'_>, is_sinusoid: bool) {
    let params = layout(case.get("layout"));
    let n = params.len();
    let centre = params.entries().iter().map(|e| (format!("{}_0", e.name), e.shape.clone()));
    let hyper = Arc::new(Layout::new(centre.chain([("lam".to_string(), vec![])])));
    let valid = [inputs(case.get("Xv")), inputs(case.get("Yv"))];
    let (x, y) = (inputs(case.get("X")), inputs(case.get("Y")));
    let width = shape(case.get("X"))[1];
    let kind = Kind::Proximal { is_sinusoid, valid };
    let mut evaluator = HyperEvaluator::new(problem(Golden { kind, x, y, width, params, hyper }));
    let at = HyperBatches::at(0, Key::new(0));
    let y0: Vec<f64> = inputs(case.get("y0"));
    let lam = number(case.get("lam"));
    let point = |y: &[f64]| [y, &y0, &[lam]].concat();
    let cg = |steps: usize| {
        Implicit::new(ConjugateGradient { steps, tolerance: 0.0, ..ConjugateGradient::default() })
    };
    let mut at_point = |implicit: &Implicit<f64>, y: &[f64]| {
        evaluator.hypergradient(implicit, &at, &point(y), None).expect("lengths fit")
    };
    let star = numbers(case.get("y_star"));
    let exact = Implicit::new(Exact::default());
    let h = at_point(&exact, &star);
    check.number("L", h.valid_loss, number(case.get("L_at_y_star")), PLAIN);
    let block = case.get("exact");
    check.vector("exact dL_dy0", &h.grad[..n], &numbers(get(block, "dL_dy0")), PLAIN);
    check.number("exact dL_dlam", h.grad[n], number(get(block, "dL_dlam")), PLAIN);
    let v = at_point(&Implicit::new(Identity::default()), &star).solution.q;
    check.vector("v", &v, &numbers(case.get("v")), PLAIN);
    let block = case.get("cg");
    for (i, steps) in numbers(get(block, "steps")).into_iter().enumerate() {
        let h = at_point(&cg(steps as usize), &star);
        check.vector(&format!("cg {steps}"), &h.grad[..n], &numbers(&array(get(block, "dL_dy0"))[i]), KRYLOV);
    }
    let block = case.get("approximate_inner_solution");
    let listed = |name: &str, i: usize| numbers(&array(get(block, name))[i]);
    for i in 0..array(get(block, "N")).len() {
        let near = listed("y_N", i);
        let h = at_point(&exact, &near);
        check.vector("exact at y_N", &h.grad[..n], &listed("dL_dy0_implicit_exact_at_yN", i), PLAIN);
        let h = at_point(&cg(5), &near);
        check.vector("cg 5 at y_N", &h.grad[..n], &listed("dL_dy0_cg5_at_yN", i), KRYLOV);
    }
    for (i, steps) in numbers(get(block, "N")).into_iter().enumerate() {
        let unrolled = Unrolled::new(Sgd::new(number(get(block, "eta"))), steps as usize);
        let valid = BatchKey { split: Split::OuterValid, ..train() };
        let got = evaluator.unrolled_hypergradient(&unrolled, Key::new(0), valid, &point(&y0));
        let got = got.expect("valid settings");
        check.vector("y_N", &got.params, &listed("y_N", i), PLAIN);
        check.number("L at y_N", got.valid_loss, listed("L_at_yN", i)[0], PLAIN);
        // The centre is the start, too.
        let initial = got.initial.expect("all steps were swept");
        let by_centre: Vec<f64> = got.grad[..n].iter().zip(&initial).map(|(g, i)| g + i).collect();
        check.vector("unrolled dL_dy0", &by_centre, &listed("dL_dy0_unrolled", i), PLAIN);
        check.number("unrolled dL_dlam", got.grad[n], listed("dL_dlam_unrolled", i)[0], PLAIN);
    }
}

/// Derivatives of fixed points, by every method, in f64.
pub fn fixed_points(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let mut check = Check { errors: &mut errors, dtype: "f64" };
    match case.get("kind").as_str().unwrap_or_default() {
        "deq_tanh" => deq(case, &mut check),
        "optimizer_maps" => optimizer_maps(case, &mut check),
        "imaml_sinusoid" => proximal(case, &mut check, true),
        "imaml_digits" => proximal(case, &mut check, false),
        _ => return Outcome::skip("this kind of fixed point is not built"),
    }
    errors.done()
}
