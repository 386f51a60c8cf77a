//! Kind J: hypergradients by every method, of one task that reads its model from the case.

use crate::fixture::{array, get, inputs, magnitude, number, numbers, Case, Errors, Outcome};
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, Cpu, Curvature, DynParams, DynTree, Host, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, HyperProblem, HyperTask, Key, Layout};
use outerloop_lopt::hand::Sgd;
use outerloop_outer::implicit::*;
use outerloop_tasks::data::digits;
use serde_json::Value;
use std::sync::Arc;

/// The layout that a case lists.
pub fn layout(v: &Value) -> Arc<Layout> {
    let entry = |e: &Value| {
        let shape: Vec<usize> = array(get(e, "shape")).iter().map(|d| number(d) as usize).collect();
        (get(e, "name").as_str().expect("a name").to_string(), shape)
    };
    Arc::new(Layout::new(array(v).iter().map(entry)))
}

/// Rows of inputs with what is expected there: labels or numbers.
struct Data {
    x: Vec<f64>,
    rows: usize,
    y: Vec<f64>,
}

impl Data {
    /// Listed in the case, or images of the digits by index.
    fn of(case: &Case, names: [&str; 3]) -> Self {
        let [x, y, index] = names;
        if case.json.get(x).is_some() {
            let rows = array(case.get(x)).len();
            return Data { x: inputs::<f64>(case.get(x)), rows, y: inputs::<f64>(case.get(y)) };
        }
        if case.json.get(index).is_none() {
            let y = inputs::<f64>(case.get(y));
            return Data { x: Vec::new(), rows: y.len(), y };
        }
        let digits = digits();
        let index: Vec<usize> = numbers(case.get(index)).iter().map(|i| *i as usize).collect();
        let image = |i: &usize| digits.image(*i).iter().map(|p| f64::from(*p));
        Data {
            x: index.iter().flat_map(image).collect(),
            rows: index.len(),
            y: index.iter().map(|i| f64::from(digits.labels[*i])).collect(),
        }
    }

    fn tensor<E: Float, B: Backend<E>>(dev: &B, x: &[f64], rows: usize) -> Tensor<(usize, usize), E, B> {
        let columns = x.len().checked_div(rows).unwrap_or(0);
        dev.filled((rows, columns), |out| out.iter_mut().zip(x).for_each(|(o, x)| *o = E::of(*x)))
    }

    fn inputs<E: Float, B: Backend<E>>(&self, dev: &B) -> Tensor<(usize, usize), E, B> {
        Self::tensor(dev, &self.x, self.rows)
    }

    fn labels(&self) -> Vec<u32> {
        self.y.iter().map(|y| *y as u32).collect()
    }
}

enum Kind {
    Ridge {
        rho: f64,
    },
    /// A log decay per weight.
    PerWeight,
    /// One per tensor.
    PerLayer,
    Reweighting {
        decay: f64,
    },
    Distillation {
        decay: f64,
    },
    Augmentation {
        decay: f64,
        rho: f64,
        noise: [Vec<f64>; 2],
    },
}

struct GoldenTask {
    kind: Kind,
    params: Arc<Layout>,
    hyper: Arc<Layout>,
    train: Data,
    valid: Data,
}

impl GoldenTask {
    fn of(case: &Case) -> Option<Self> {
        let setting = |name: &str| number(case.get(name));
        let kind = match case.get("kind").as_str().expect("a kind") {
            "ridge" => Kind::Ridge { rho: setting("rho") },
            "logistic_per_weight_decay" | "mlp_tanh_per_weight_decay" => Kind::PerWeight,
            "mlp_tanh_per_layer_decay" | "logistic_per_layer_decay" => Kind::PerLayer,
            "reweighting" => Kind::Reweighting { decay: setting("decay") },
            "distillation" => Kind::Distillation { decay: setting("decay") },
            "augmentation" => Kind::Augmentation {
                decay: setting("decay"),
                rho: setting("rho"),
                noise: [inputs(case.get("e")), inputs(case.get("ev"))],
            },
            _ => return None,
        };
        Some(GoldenTask {
            kind,
            params: layout(case.get("layout_w")),
            hyper: layout(case.get("layout_lambda")),
            train: Data::of(case, ["X", "y", "train_index"]),
            valid: Data::of(case, ["Xv", "yv", "valid_index"]),
        })
    }
}

fn dims(layout: &Layout, i: usize) -> (usize, usize) {
    let shape = &layout.entries()[i].shape;
    (shape[0], shape.get(1).copied().unwrap_or(1))
}

/// A linear model, or one with a hidden layer of tanh units: weights and biases in turn.
pub fn model<E: Float, B: Backend<E>, M: Mode<E, B>>(
    w: &DynParams<E, B>,
    layout: &Layout,
    mut x: Tensor<(usize, usize), E, B, M>,
) -> Tensor<(usize, usize), E, B, M> {
    let last = layout.entries().len() - 2;
    for i in (0..=last).step_by(2) {
        let (weight, bias) = (w.get(i, dims(layout, i)), w.get(i + 1, (dims(layout, i).1,)));
        x = ops::linear(x, &weight, &bias, if i < last { Activation::Tanh } else { Activation::Identity });
    }
    x
}

impl GoldenTask {
    fn w_squared<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        w: &DynParams<E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let squares = self
            .params
            .entries()
            .iter()
            .enumerate()
            .map(|(i, e)| ops::sum(ops::square(w.traced(i, (e.numel(),), m))));
        squares.reduce(|a, b| ops::add(a, &b)).expect("a model has weights")
    }

    fn decays<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        w: &DynParams<E, B>,
        hyper: &DynParams<E, B>,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let of_tensor = |(i, e): (usize, &outerloop_core::Entry)| {
            let weights = w.traced(i, (e.numel(),), m);
            if matches!(self.kind, Kind::PerLayer) {
                let all = hyper.traced(0, (1, self.hyper.len()), m);
                ops::weight_decay(weights, &ops::columns(all, i, 1usize))
            } else {
                ops::weight_decay(weights, &hyper.get(i, (e.numel(),)))
            }
        };
        let decays = self.params.entries().iter().enumerate().map(of_tensor);
        decays.reduce(|a, b| ops::add(a, &b)).expect("a model has weights")
    }

    /// `A(x, e) = x + tanh(tanh([x, e] U + a) V + c)`.
    fn augment<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        hyper: &DynParams<E, B>,
        data: &Data,
        noise: &[f64],
        (dev, m): (&B, M),
    ) -> Tensor<(usize, usize), E, B, M> {
        let x = data.inputs(dev).put_tape(m);
        let noisy = ops::concat(x.clone(), &Data::tensor(dev, noise, data.rows));
        ops::add(x, &ops::tanh(model(hyper, &self.hyper, noisy)))
    }

    fn squared_error<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        w: &DynParams<E, B>,
        data: &Data,
        (dev, m): (&B, M),
    ) -> Tensor<Rank0, E, B, M> {
        let got = ops::matmul(data.inputs(dev).put_tape(m), &w.get(0, (self.params.len(), 1)));
        ops::scale(ops::mse(got, &Data::tensor(dev, &data.y, data.rows)), 0.5)
    }
}

use dfdx::prelude::PutTape;

impl<E: Float, B: Backend<E>> HyperTask<E, B> for GoldenTask {
    type Params = DynParams<E, B>;
    type Hyper = DynParams<E, B>;
    type Batch = B;
    fn name(&self) -> String {
        "golden".into()
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
        w: &Self::Params,
        hyper: &Self::Hyper,
        dev: &B,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let (train, labels) = (&self.train, self.train.labels());
        let with_decay = |loss, decay: f64| ops::add(loss, &ops::scale(self.w_squared(w, m), 0.5 * decay));
        match &self.kind {
            Kind::Ridge { .. } => ops::add(self.squared_error(w, train, (dev, m)), &self.decays(w, hyper, m)),
            Kind::PerWeight | Kind::PerLayer => {
                let logits = model(w, &self.params, train.inputs(dev).put_tape(m));
                ops::add(ops::softmax_cross_entropy(logits, &labels), &self.decays(w, hyper, m))
            }
            Kind::Reweighting { decay } => {
                let logits = model(w, &self.params, train.inputs(dev).put_tape(m));
                let losses = ops::softmax_cross_entropies(logits, &labels);
                let weights = ops::exp(hyper.traced(0, (train.rows,), m));
                with_decay(ops::mean(ops::mul(losses, &weights)), *decay)
            }
            Kind::Distillation { decay } => {
                let pixels = hyper.traced(0, dims(&self.hyper, 0), m);
                let logits = model(w, &self.params, pixels);
                with_decay(ops::softmax_cross_entropy(logits, &labels), *decay)
            }
            Kind::Augmentation { decay, noise, .. } => {
                let augmented = self.augment(hyper, train, &noise[0], (dev, m));
                let logits = model(w, &self.params, augmented);
                with_decay(ops::softmax_cross_entropy(logits, &labels), *decay)
            }
        }
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        hyper: &Self::Hyper,
        dev: &B,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let valid = &self.valid;
        if let Kind::Ridge { rho } = self.kind {
            let squares = ops::sum(ops::square(hyper.traced(0, (self.hyper.len(),), m)));
            return ops::add(self.squared_error(w, valid, (dev, m)), &ops::scale(squares, 0.5 * rho));
        }
        let logits = model(w, &self.params, valid.inputs(dev).put_tape(m));
        let loss = ops::softmax_cross_entropy(logits, &valid.labels());
        match &self.kind {
            Kind::Augmentation { rho, noise, .. } => {
                let augmented = self.augment(hyper, valid, &noise[1], (dev, m));
                ops::add(loss, &ops::scale(ops::mse(augmented, &valid.inputs(dev)), *rho))
            }
            _ => loss,
        }
    }
}

/// Compares vectors relative to their largest magnitude.
pub struct Check<'a> {
    pub errors: &'a mut Errors,
    pub dtype: &'static str,
}

impl Check<'_> {
    pub fn vector<E: Float>(&mut self, what: &str, got: &[E], want: &[f64], relative: f64) {
        let name = format!("{} {what}", self.dtype);
        self.errors.check_all(&name, got, want, relative * magnitude(want).max(1e-30));
    }
    pub fn number(&mut self, what: &str, got: f64, want: f64, relative: f64) {
        self.vector(what, &[got], &[want], relative);
    }
    pub fn holds(&mut self, what: &str, holds: bool) {
        self.errors.check(&format!("{} {what}", self.dtype), f64::from(u8::from(holds)), 1.0, 1e-3);
    }
}

/// `‖x‖`.
fn norm<E: Float>(x: &[E]) -> f64 {
    x.iter().map(|x| x.f64() * x.f64()).sum::<f64>().sqrt()
}

struct Run<'a, E: Float> {
    case: &'a Case,
    evaluator: HyperEvaluator<E>,
    joint: Vec<E>,
    at: HyperBatches,
    /// `∂L_V/∂w`.
    g: Vec<f64>,
}

impl<E: Float> Run<'_, E> {
    fn of(&mut self, implicit: &Implicit<E>) -> Hypergradient<E> {
        self.evaluator.hypergradient(implicit, &self.at, &self.joint, None).expect("valid settings")
    }

    /// The tolerance of a quantity: in f64 as the conventions say, in f32 ten times the reference's gap. `None`: the
    /// gap is too large to compare.
    fn tolerance(&self, f64s: f64, gap: &[&str]) -> Option<f64> {
        if size_of::<E>() == 8 {
            return Some(f64s);
        }
        let found = gap.iter().try_fold(self.case.get("f32_gap_rel"), |v, key| v.get(key))?;
        let gap = number(found);
        (gap <= 1e-3).then_some((10.0 * gap).max(2e-6))
    }

    /// A block of iterates: `steps` or `K` with their hypergradients, norms and residuals.
    fn iterates(
        &mut self,
        check: &mut Check<'_>,
        name: &str,
        gap: &[&str],
        implicit: impl Fn(usize, &Value) -> Implicit<E>,
    ) {
        let Some(block) = self.case.json.get(name) else { return };
        let counts = block.get("K").or_else(|| block.get("steps")).expect("K or steps");
        let negative = block.get("first_negative_pAp_step").and_then(Value::as_u64);
        for (i, count) in numbers(counts).into_iter().map(|c| c as usize).enumerate() {
            if negative.is_some_and(|first| count as u64 >= first) {
                continue;
            }
            let h = self.of(&implicit(count, block));
            let is_step = block.get("steps").is_some();
            let loose = is_step && (count >= 10 || name == "cg_undamped_indefinite");
            let key = count.to_string();
            let mut gaps = gap.to_vec();
            if is_step {
                gaps.push(&key);
            }
            let what = format!("{name} {count}");
            let residual = h.residual * norm(&self.g);
            let wanted_residual = number(&array(get(block, "residual_norm"))[i]);
            let Some(tolerance) = self.tolerance(if loose { 1e-6 } else { 1e-9 }, &gaps) else {
                // Too ill-conditioned for f32 (the reference's vectors differ by a tenth, too): the step still
                // leaves less than an earlier one does without rounding.
                let before =
                    if i == 0 { norm(&self.g) } else { number(&array(get(block, "residual_norm"))[i - 1]) };
                check.errors.check(&format!("{} {what} residual", check.dtype), residual, 0.0, before);
                continue;
            };
            check.vector(&what, &h.grad, &numbers(&array(get(block, "hypergrad"))[i]), tolerance);
            if let Some(norms) = block.get("q_norm") {
                let wanted = number(&array(norms)[i]);
                check.number(&format!("{what} norm"), norm(&h.solution.q), wanted, tolerance);
            }
            if name != "normal_cg" {
                // The residual is a difference: relative to what it is a difference of.
                let name = format!("{} {what} residual", check.dtype);
                let scale = norm(&self.g).max(wanted_residual);
                check.errors.check(&name, residual, wanted_residual, tolerance * scale);
            }
            let listed = if is_step { "q_step2" } else { "q_K2" };
            if let Some(q) = block.get(listed).filter(|_| count == 2) {
                check.vector(&format!("{what} q"), &h.solution.q, &numbers(q), tolerance);
            }
        }
    }

    /// A solution in one go.
    fn direct(&mut self, check: &mut Check<'_>, name: &str, tolerance: f64, implicit: &Implicit<E>) {
        let Some(block) = self.case.json.get(name) else { return };
        let gap = if self.case.json.get("damping").is_some() { "exact_damped" } else { "exact" };
        let Some(tolerance) = self.tolerance(tolerance, &[gap]) else { return };
        // The reference measured f32 for one of the systems only.
        if size_of::<E>() == 4 && name != gap {
            return;
        }
        let h = self.of(implicit);
        check.vector(&format!("{name} q"), &h.solution.q, &numbers(get(block, "q")), tolerance);
        check.vector(name, &h.grad, &numbers(get(block, "hypergrad")), tolerance);
    }

    /// Losses, gradients and products.
    fn derivatives(&mut self, check: &mut Check<'_>) {
        let case = self.case;
        let n = self.evaluator.problem.params.len();
        let f32s = size_of::<E>() == 4;
        let plain = if f32s { 2e-6 } else { 1e-9 };
        let h = self.of(&Implicit::new(Identity::default()));
        check.number("L_T", h.train_loss, number(case.get("L_T")), plain);
        check.number("L_V", h.valid_loss, number(case.get("L_V")), plain);
        check.vector("direct", &h.direct, &numbers(case.get("dLV_dlambda_direct")), plain);
        if let Some(tolerance) = self.tolerance(1e-9, &["dLV_dw"]) {
            check.vector("dLV_dw", &h.solution.q, &self.g, tolerance);
            let wanted = numbers(case.get("identity_inverse_hypergrad"));
            check.vector("identity", &h.grad, &wanted, tolerance.max(plain));
        }
        let mut inner = vec![E::of(0.0); n];
        self.evaluator.loss_and_grad(&self.joint, self.at.curvature, &mut inner).expect("lengths fit");
        let wanted = numbers(case.get("dLT_dw"));
        let scale = magnitude(&wanted).max(magnitude(&self.g));
        check.errors.check_all(&format!("{} dLT_dw", check.dtype), &inner, &wanted, plain * scale);

        let block = case.get("hvp_check");
        let v: Vec<E> = inputs(get(block, "v"));
        let joint = self.evaluator.problem.joint.clone();
        let (mut evaluator, mut grad) = (joint.evaluator(), vec![E::of(0.0); n]);
        let (_, kept) = evaluator.linearize(&self.joint, &mut [], self.at.curvature, &mut grad);
        let mut kept = kept.expect("a loss of our operations");
        let mut product = vec![E::of(0.0); self.joint.len()];
        kept.hvp(&v, &mut product);
        for (name, range) in [("Hv", 0..n), ("mixed_v", n..product.len())] {
            let tolerance = self.tolerance(1e-9, &[name]).unwrap_or(1e-3);
            check.vector(name, &product[range], &numbers(get(block, name)), tolerance);
        }
        if let Some(block) = case.json.get("gauss_newton") {
            kept.product(Curvature::GaussNewton, &v, &mut grad);
            check.vector("Gv", &grad, &numbers(get(block, "Gv")), if f32s { 1e-5 } else { 1e-9 });
        }
    }

    fn unrolled(&mut self, check: &mut Check<'_>)
    where
        Sgd: outerloop_core::Optimizer<E>,
    {
        let block = self.case.get("unrolled");
        let n = self.evaluator.problem.params.len();
        let start: Vec<E> = inputs(get(block, "w_start"));
        let joint = [&start, &self.joint[n..]].concat();
        for (i, steps) in numbers(get(block, "N")).into_iter().enumerate() {
            let f64s = if size_of::<E>() == 8 { Some(1e-9) } else { None };
            let gaps = || array(get(self.case.get("f32_gap_rel"), "unrolled"));
            let tolerance = f64s.unwrap_or_else(|| (10.0 * number(&gaps()[i])).max(2e-6));
            let unrolled = Unrolled::new(Sgd::new(number(get(block, "eta"))), steps as usize);
            let got = self.evaluator.unrolled_hypergradient(&unrolled, Key::new(0), self.at.valid, &joint);
            let got = got.expect("valid settings");
            let wanted = numbers(&array(get(block, "grad_lambda"))[i]);
            check.vector(&format!("unrolled {steps}"), &got.grad, &wanted, tolerance);
            check.number("unrolled L_V", got.valid_loss, number(&array(get(block, "L_V"))[i]), tolerance);
            if i == 0 {
                check.vector("unrolled w", &got.params, &numbers(get(block, "w_after_first_N")), tolerance);
            }
        }
    }

    fn all(&mut self, check: &mut Check<'_>)
    where
        Sgd: outerloop_core::Optimizer<E>,
    {
        let case = self.case;
        self.derivatives(check);
        let is_mlp = case.get("kind").as_str().is_some_and(|k| k.starts_with("mlp"));
        let exact = if is_mlp { 1e-7 } else { 1e-9 };
        self.direct(check, "exact", exact, &Implicit::new(Exact::default()));
        self.direct(check, "gauss_newton", exact, &Implicit::new(Exact::default()).gauss_newton());
        let neumann = |k, block: &Value| Implicit::new(Neumann::new(k, number(get(block, "alpha"))));
        let cg = |steps, preconditioner| {
            Implicit::new(ConjugateGradient { steps, tolerance: 0.0, preconditioner })
        };
        // Where the Hessian is indefinite the series itself is still defined; it is told to go on.
        let patient = |k, block: &Value| {
            Implicit::new(Neumann { patience: k, ..Neumann::new(k, number(get(block, "alpha"))) })
        };
        if is_mlp {
            self.iterates(check, "neumann", &["neumann"], patient);
        } else {
            self.iterates(check, "neumann", &["neumann"], neumann);
        }
        self.iterates(check, "cg", &["cg"], |n, _| cg(n, Preconditioner::None));
        if size_of::<E>() == 8 {
            self.iterates(check, "pcg_jacobi", &[], |n, block| {
                cg(n, Preconditioner::Diagonal(numbers(get(block, "M_diag_of_H"))))
            });
            self.iterates(check, "normal_cg", &[], |steps, _| {
                Implicit::new(NormalCg { steps, tolerance: 0.0 })
            });
            self.iterates(check, "cg_undamped_indefinite", &[], |n, _| cg(n, Preconditioner::None));
            self.divergence(check);
            self.indefinite(check, &cg(20, Preconditioner::None));
        }
        if let Some(damping) = case.json.get("damping").map(number) {
            self.direct(check, "exact_damped", exact, &Implicit::new(Exact::default()).damped(damping));
            self.iterates(check, "neumann_damped", &["neumann"], |k, b| neumann(k, b).damped(damping));
            self.iterates(check, "cg_damped", &["cg_damped"], |n, _| {
                cg(n, Preconditioner::None).damped(damping)
            });
        }
        self.unrolled(check);
    }

    /// A series that diverges is noticed as soon as a term has grown; before, it is the sum.
    fn divergence(&mut self, check: &mut Check<'_>) {
        let Some(block) = self.case.json.get("neumann_divergent") else { return };
        let alpha = number(get(block, "alpha"));
        let mut noticed = false;
        for (i, k) in numbers(get(block, "K")).into_iter().map(|k| k as usize).enumerate() {
            let h = self.of(&Implicit::new(Neumann::new(k, alpha)));
            if matches!(h.solution.status, Status::Diverged(_)) {
                noticed = true;
                continue;
            }
            let wanted = numbers(&array(get(block, "hypergrad"))[i]);
            check.vector(&format!("neumann_divergent {k}"), &h.grad, &wanted, 1e-9);
        }
        check.holds("neumann_divergent is noticed", noticed);
    }

    /// Conjugate gradients stop before the first direction of negative curvature.
    fn indefinite(&mut self, check: &mut Check<'_>, cg: &Implicit<E>) {
        let Some(block) = self.case.json.get("cg_undamped_indefinite") else { return };
        let Some(first) = block.get("first_negative_pAp_step").and_then(Value::as_u64) else { return };
        let h = self.of(cg);
        check.holds("negative curvature", h.solution.status == Status::Indefinite(first as usize));
        if let Some(before) = block.get("truncated_before_negative").filter(|b| !b.is_null()) {
            check.vector("truncated cg", &h.grad, &numbers(get(before, "hypergrad")), 1e-6);
            let wanted = number(get(before, "q_norm"));
            check.number("truncated cg norm", norm(&h.solution.q), wanted, 1e-6);
        }
    }
}

fn run<E: Float>(case: &Case, task: &Arc<GoldenTask>, errors: &mut Errors)
where
    Cpu: Host<E>,
    Sgd: outerloop_core::Optimizer<E>,
{
    let problem = HyperProblem::<E>::of(task).expect("no names to look up");
    let joint = [numbers(case.get("w")), numbers(case.get("lambda"))].concat();
    let mut run = Run {
        case,
        evaluator: HyperEvaluator::new(Arc::new(problem)),
        joint: joint.into_iter().map(E::of).collect(),
        at: HyperBatches::at(0, Key::new(0)),
        g: numbers(case.get("dLV_dw")),
    };
    let dtype = if size_of::<E>() == 8 { "f64" } else { "f32" };
    run.all(&mut Check { errors, dtype });
}

/// Hypergradients by every method, in f64 and f32.
pub fn hypergradients(case: &Case) -> Outcome {
    let Some(task) = GoldenTask::of(case).map(Arc::new) else {
        return Outcome::skip("this kind of inner problem is not built");
    };
    let mut errors = Errors::default();
    run::<f64>(case, &task, &mut errors);
    run::<f32>(case, &task, &mut errors);
    errors.done()
}
