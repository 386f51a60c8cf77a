//! Checks of the traits' invariants, called by every implementor's tests.

use crate::tensor::{Cpu, Curvature};
use crate::{
    BatchKey, Error, FlatTask, Float, HyperProblem, HyperTask, Key, Layout, LearnedOptimizer, MemberUpdate,
    OptState, Optimizer, Params, Result, Split, UpdateTangent,
};
use std::sync::Arc;

fn broken(subject: &str, why: impl Into<String>) -> Error {
    Error::Contract { subject: subject.into(), why: why.into() }
}

/// Bits of a float buffer, so that NaN equals itself.
fn bits<E: Float>(x: &[E]) -> Vec<u64> {
    x.iter().map(|x| x.f64().to_bits()).collect()
}

/// Checks a task, given as f32 and f64 (wrap the same value in two [`crate::Typed`]): initial
/// parameters and batches depend on the key only, the two dtypes agree, and the f64 gradient is the
/// slope of the loss (central differences along random directions, 1e-5 relative).
pub fn check_task(f32s: &dyn FlatTask<f32>, f64s: &dyn FlatTask<f64>) -> Result<()> {
    let name = f32s.name();
    let layout = f32s.layout();
    if *layout != *f64s.layout() {
        return Err(broken(&name, "f32 and f64 have different layouts"));
    }
    let key = Key::new(11);
    let mut p32 = f32s.init(key);
    if bits(&p32.data) != bits(&f32s.init(key).data) {
        return Err(broken(&name, "init is not a pure function of its key"));
    }
    layout.check_len(&format!("{name}: init"), p32.data.len())?;
    for (a, b) in p32.data.iter().zip(&f64s.init(key).data) {
        if (a.f64() - b).abs() > 1e-6 * (1.0 + b.abs()) {
            return Err(broken(&name, format!("init: f32 gives {a}, f64 gives {b}")));
        }
    }
    // Biases start at 0, where blank inputs meet the kink of ReLU exactly: step aside.
    let mut aside = vec![0.0f32; p32.data.len()];
    key.named("aside").fill_normal(&mut aside);
    p32.data.iter_mut().zip(&aside).for_each(|(p, z)| *p += 0.01 * z);
    let p: Vec<f64> = p32.data.iter().map(|x| x.f64()).collect();
    let (mut e32, mut e64) = (f32s.evaluator(), f64s.evaluator());
    for split in Split::ALL {
        let at = BatchKey { split, step: 3, key: key.named("data") };
        let mut g32 = vec![f32::NAN; p.len()];
        let mut s32 = f32s.init_state();
        let l32 = e32.loss_and_grad(&p32.data, &mut s32, at, &mut g32);
        let mut again = vec![0.0; p.len()];
        let l_again = f32s.evaluator().loss_and_grad(&p32.data, &mut f32s.init_state(), at, &mut again);
        if l32.to_bits() != l_again.to_bits() || bits(&g32) != bits(&again) {
            return Err(broken(&name, "loss or gradient differ between two evaluators"));
        }
        let mut g = vec![f64::NAN; p.len()];
        let mut state = f64s.init_state();
        let l = e64.loss_and_grad(&p, &mut state, at, &mut g);
        if (l32.f64() - l).abs() > 1e-4 * (1.0 + l.abs()) {
            return Err(broken(&name, format!("loss on {split:?}: f32 gives {l32}, f64 gives {l}")));
        }
        let scale = g.iter().fold(1e-3, |a: f64, x| a.max(x.abs()));
        for (i, (a, b)) in g32.iter().zip(&g).enumerate() {
            // NaN must fail too.
            if (a.f64() - b).abs().partial_cmp(&(2e-3 * scale)) != Some(std::cmp::Ordering::Less) {
                return Err(broken(
                    &name,
                    format!("gradient[{i}] on {split:?}: f32 gives {a}, f64 gives {b}"),
                ));
            }
        }
        let state = f64s.init_state();
        let plain = e64.loss(&p, &state, at);
        if (plain - l).abs() > 1e-12 * (1.0 + l.abs()) {
            return Err(broken(&name, format!("`loss` gives {plain}, `loss_and_grad` gives {l}")));
        }
        // Slope along random directions; the median of five keeps a ReLU kink from deciding.
        let mut errors: Vec<f64> = (0..5)
            .map(|i| {
                let mut v = vec![0.0f64; p.len()];
                key.named("direction").fold_in(i).fill_normal(&mut v);
                let h = 1e-6;
                let mut at_h = |c: f64| {
                    let q: Vec<f64> = p.iter().zip(&v).map(|(p, v)| p + c * v).collect();
                    e64.loss(&q, &state, at)
                };
                let slope = (at_h(h) - at_h(-h)) / (2.0 * h);
                let dot: f64 = g.iter().zip(&v).map(|(g, v)| g * v).sum();
                (slope - dot).abs() / (1.0 + dot.abs())
            })
            .collect();
        errors.sort_by(f64::total_cmp);
        if errors[2].partial_cmp(&1e-5) != Some(std::cmp::Ordering::Less) {
            return Err(broken(
                &name,
                format!("gradient and slope of the loss differ by {:e} relative", errors[2]),
            ));
        }
    }
    Ok(())
}

/// Checks a hyper task: both losses over `[w, λ]` pass [`check_task`], the product with the joint Hessian is the
/// derivative of the gradient (central differences in f64, 1e-6 relative), and a linearization gives the same
/// products, whole or of the leading block.
pub fn check_hyper_task<T: HyperTask<f32, Cpu> + HyperTask<f64, Cpu>>(task: &Arc<T>) -> Result<()> {
    let (f32s, f64s) = (HyperProblem::<f32>::of(task)?, HyperProblem::<f64>::of(task)?);
    check_task(&*f32s.joint, &*f64s.joint)?;
    let (name, key) = (f64s.name(), Key::new(17));
    let (w, hyper) = f64s.init(key);
    let mut x: Vec<f64> = [w.data, hyper.data].concat();
    let (n, k) = (x.len(), f64s.params.len());
    let draw = |purpose: &str, n: usize| {
        let mut z = vec![0.0f64; n];
        key.named(purpose).fill_normal(&mut z);
        z
    };
    // Biases start at 0, where blank inputs meet the kink of ReLU exactly: step aside.
    x.iter_mut().zip(draw("aside", n)).for_each(|(x, z)| *x += 0.01 * z);
    let v = draw("v", n);
    let mut evaluator = f64s.joint.evaluator();
    for split in [Split::Train, Split::OuterValid] {
        let at = BatchKey { split, step: 1, key };
        let (mut grad, mut hvp) = (vec![0.0; n], vec![0.0; n]);
        let loss = evaluator.loss_grad_hvp(&x, &[], at, &v, &mut grad, &mut hvp);
        let want = crate::flat::hvp_by_differences(&mut *evaluator, &x, &[], at, &v);
        let scale = want.iter().fold(1e-3, |a: f64, x| a.max(x.abs()));
        for (i, (a, b)) in hvp.iter().zip(&want).enumerate() {
            if (a - b).abs().partial_cmp(&(1e-6 * scale)) != Some(std::cmp::Ordering::Less) {
                return Err(broken(&name, format!("joint H v[{i}] on {split:?}: {a}, differences give {b}")));
            }
        }
        let mut used = Vec::new();
        evaluator.loss_and_used_grad(&x, &mut [], at, &mut used);
        let rest = grad.get(used.len()..).unwrap_or_default();
        if !grad.starts_with(&used) || rest.iter().any(|g| *g != 0.0) {
            return Err(broken(&name, format!("gradient without unused parameters on {split:?} differs")));
        }
        let mut leading = vec![0.0; k];
        let (again, kept) = evaluator.linearize(&x, &mut [], at, &mut leading);
        let Some(mut kept) = kept else { continue };
        if again.to_bits() != loss.to_bits() || bits(&leading) != bits(&grad[..k]) {
            return Err(broken(&name, format!("loss or gradient of the linearization on {split:?} differ")));
        }
        let mut product = vec![0.0; n];
        kept.hvp(&v, &mut product);
        if bits(&product) != bits(&hvp) {
            return Err(broken(&name, format!("H v of the linearization on {split:?} differs")));
        }
        let padded: Vec<f64> = v[..k].iter().copied().chain(std::iter::repeat_n(0.0, n - k)).collect();
        evaluator.loss_grad_hvp(&x, &[], at, &padded, &mut grad, &mut hvp);
        kept.hvp(&v[..k], &mut product);
        kept.hvp(&v[..k], &mut leading);
        let scale = hvp.iter().fold(1e-30, |a: f64, x| a.max(x.abs()));
        let near = |a: &[f64]| a.iter().zip(&hvp).all(|(a, b)| (a - b).abs() <= 1e-13 * scale);
        if !near(&product) || !near(&leading) {
            return Err(broken(&name, format!("H (v, 0) of the linearization on {split:?} differs")));
        }
        let other = draw("other", k);
        let (mut together, mut alone) = ([vec![0.0; n], vec![0.0; n]], vec![0.0; n]);
        kept.products(
            Curvature::Hessian,
            &[&v[..k], &other],
            &mut together.each_mut().map(|out| &mut out[..]),
        );
        kept.hvp(&other, &mut alone);
        for (together, alone) in together.iter().zip([&product, &alone]) {
            let scale = alone.iter().fold(1e-30, |a: f64, x| a.max(x.abs()));
            if together.iter().zip(alone).any(|(a, b)| (a - b).abs() > 1e-13 * scale) {
                return Err(broken(&name, format!("two products together on {split:?} differ")));
            }
        }
    }
    Ok(())
}

/// A layout with every kind of tensor: scalar, vector, wide and tall matrix, square, rank 4, empty.
pub fn awkward_layout() -> Arc<Layout> {
    Arc::new(Layout::new([
        ("b", vec![5]),
        ("conv", vec![3, 2, 2, 4]),
        ("none", vec![0, 3]),
        ("s", vec![]),
        ("square", vec![3, 3]),
        ("tall", vec![7, 2]),
        ("wide", vec![2, 6]),
    ]))
}

/// Random parameters on [`awkward_layout`].
pub fn awkward_params<E: Float>(key: Key) -> Params<E> {
    let mut p = Params::zeros(awkward_layout());
    key.fill_normal(&mut p.data);
    p
}

/// Checks an optimizer on [`awkward_params`]: `init` keeps the parameters and starts at step 0;
/// `update` adds 1 to the step, keeps the slots' number, names and lengths, is deterministic, and
/// survives a non-finite gradient without panic; `evaluation_params` starts at the parameters, stays finite
/// and is deterministic.
pub fn check_optimizer<E: Float>(opt: &dyn Optimizer<E>) -> Result<()> {
    let name = opt.name();
    let key = Key::new(5);
    let params = awkward_params::<E>(key.named("params"));
    let start = opt.init(&params, Some(50), key);
    if bits(&start.params) != bits(&params.data) || start.step != 0 || start.num_steps != Some(50) {
        return Err(broken(&name, "init must keep the parameters and num_steps and start at step 0"));
    }
    let shape = |s: &OptState<E>| s.slots.iter().map(|s| (s.name.clone(), s.data.len())).collect::<Vec<_>>();
    let run = || {
        let mut s = start.clone();
        let mut grad = vec![E::of(0.0); params.data.len()];
        for t in 0..5 {
            key.named("grad").fold_in(t).fill_normal(&mut grad);
            grad[0] = E::of(0.0);
            opt.update(&mut s, &grad, E::of(1.0 / (1.0 + t as f64)), key);
        }
        s
    };
    let (a, b) = (run(), run());
    if a.step != 5 {
        return Err(broken(&name, format!("5 updates must give step 5, got {}", a.step)));
    }
    if shape(&a) != shape(&start) {
        return Err(broken(&name, "update changed the number, names or lengths of the slots"));
    }
    let same = bits(&a.params) == bits(&b.params)
        && a.slots.iter().zip(&b.slots).all(|(x, y)| bits(&x.data) == bits(&y.data));
    if !same {
        return Err(broken(&name, "two runs with the same arguments differ"));
    }
    if bits(&opt.evaluation_params(&start)) != bits(&params.data) {
        return Err(broken(&name, "before the first update, evaluation_params must be the parameters"));
    }
    let means = opt.evaluation_params(&a);
    params.layout.check_len(&format!("{name}: evaluation_params"), means.len())?;
    if bits(&means) != bits(&opt.evaluation_params(&b)) {
        return Err(broken(&name, "evaluation_params of equal states differ"));
    }
    if !a.params.iter().chain(&*means).all(|p| num_traits::Float::is_finite(*p)) {
        return Err(broken(&name, "finite gradients gave non-finite parameters"));
    }
    let mut s = start.clone();
    let mut grad = vec![E::of(1.0); params.data.len()];
    grad[1] = E::of(f64::NAN);
    grad[7] = E::of(f64::INFINITY);
    opt.update(&mut s, &grad, E::of(f64::NAN), key);
    Ok(())
}

/// Checks a learned optimizer: theta has its layout's length and is a function of the key, the optimizer
/// of the initial theta passes [`check_optimizer`], and groups pass [`check_group`].
pub fn check_learned_optimizer<E: Float>(lopt: &dyn LearnedOptimizer<E>) -> Result<()> {
    let name = lopt.name();
    let key = Key::new(3);
    let theta = lopt.init(key);
    lopt.theta_layout().check_len(&format!("{name}: theta"), theta.len())?;
    if bits(&theta) != bits(&lopt.init(key)) {
        return Err(broken(&name, "init is not a pure function of its key"));
    }
    check_optimizer(&*lopt.opt_fn(&theta))?;
    check_group(lopt)
}

/// Checks [`LearnedOptimizer::group`]: on few parameters, whose members' updates are sometimes left out,
/// and on [`awkward_params`], a group does to every state what its members do alone.
pub fn check_group<E: Float>(lopt: &dyn LearnedOptimizer<E>) -> Result<()> {
    let key = Key::new(9);
    let mut few = Params::<E>::zeros(Arc::new(Layout::new([("b", vec![3]), ("w", vec![2, 2])])));
    key.fill_normal(&mut few.data);
    for params in [few, awkward_params(key)] {
        let size = lopt.group_size(&params.layout).max(2);
        let thetas: Vec<Vec<E>> = (0..size as u64).map(|i| lopt.init(key.fold_in(i))).collect();
        let group = lopt.group(thetas.clone());
        let alone: Vec<_> = thetas.iter().map(|theta| lopt.opt_fn(theta)).collect();
        let mut want: Vec<_> = alone.iter().map(|opt| opt.init(&params, Some(50), key)).collect();
        let mut got: Vec<_> = (0..size).map(|i| group.member(i).init(&params, Some(50), key)).collect();
        for t in 0..4 {
            let mut updates: Vec<MemberUpdate<'_, E>> = Vec::new();
            for (i, (state, want)) in got.iter_mut().zip(&mut want).enumerate() {
                let mut grad = vec![E::of(0.0); params.data.len()];
                key.named("grad").fold_in(t).fold_in(i as u64).fill_normal(&mut grad);
                let (loss, skip) = (E::of(1.0 / (1.0 + t as f64)), t == 1 && i == 1);
                MemberUpdate { state: want, grad: grad.clone(), loss, key, skip }.apply(&*alone[i]);
                updates.push(MemberUpdate { state, grad, loss, key, skip });
            }
            group.update(&mut updates);
        }
        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
            let is_same = got.step == want.step
                && bits(&got.params) == bits(&want.params)
                && got.slots.len() == want.slots.len()
                && got.slots.iter().zip(&want.slots).all(|(a, b)| bits(&a.data) == bits(&b.data));
            if !is_same {
                let why = format!("member {i} of a group of {size} is not what it is alone");
                return Err(broken(&lopt.name(), why));
            }
        }
    }
    Ok(())
}

/// All inputs of an update that have derivatives.
#[derive(Clone)]
struct Inputs {
    state: OptState<f64>,
    grad: Vec<f64>,
    loss: Vec<f64>,
    theta: Vec<f64>,
}

impl Inputs {
    /// Parameters, slots, gradient, loss, theta.
    fn buffers(&mut self) -> Vec<(String, &mut Vec<f64>)> {
        let mut all = vec![("parameters".to_string(), &mut self.state.params)];
        all.extend(self.state.slots.iter_mut().map(|s| (format!("slot `{}`", s.name), &mut s.data)));
        all.push(("gradient".into(), &mut self.grad));
        all.push(("loss".into(), &mut self.loss));
        all.push(("theta".into(), &mut self.theta));
        all
    }
}

/// The inner product of two states.
fn product(a: &OptState<f64>, b: &OptState<f64>) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let slots = a.slots.iter().zip(&b.slots).map(|(a, b)| dot(&a.data, &b.data));
    dot(&a.params, &b.params) + slots.sum::<f64>()
}

/// Checks [`UpdateVjp`](crate::UpdateVjp) against central differences in f64, 1e-6 relative.
///
/// `build(theta)` makes the optimizer; `theta` is empty for a hand-designed one. On
/// [`awkward_params`], after 0 to 4 updates, along random directions in each of: parameters, every
/// slot, gradient, loss, theta. Slots and gradient move in proportion to their value, so zeros
/// (where roots have no derivative) stay zero. [`UpdateJvp`](crate::UpdateJvp), where there is one, has to be its
/// transpose: along all those directions together, to 1e-9 relative.
pub fn check_update_vjp(build: impl Fn(&[f64]) -> Box<dyn Optimizer<f64>>, theta: &[f64]) -> Result<()> {
    let opt = build(theta);
    let name = opt.name();
    let vjp = opt.update_vjp().ok_or_else(|| broken(&name, "has no `update_vjp`"))?;
    let key = Key::new(21);
    let state = opt.init(&awkward_params::<f64>(key.named("params")), Some(20), key);
    let grad = vec![0.0; state.params.len()];
    let mut at = Inputs { state, grad, loss: vec![0.0], theta: theta.to_vec() };
    for t in 0..5 {
        let key = key.fold_in(t);
        key.named("grad").fill_normal(&mut at.grad);
        at.grad[0] = 0.0;
        at.loss[0] = 1.0 / (1.0 + t as f64);
        // A random adjoint of the state after the update.
        let mut after = at.state.zeros_like();
        key.named("adjoint").fill_normal(&mut after.params);
        for (i, s) in after.slots.iter_mut().enumerate() {
            key.named("adjoint").fold_in(i as u64).fill_normal(&mut s.data);
        }
        // The adjoint times the state after the update.
        let value = |x: &Inputs| {
            let mut s = x.state.clone();
            build(&x.theta).update(&mut s, &x.grad, x.loss[0], key);
            product(&after, &s)
        };
        let mut theta_adjoint = vec![0.0; theta.len()];
        let a = vjp.vjp(&at.state, &at.grad, at.loss[0], key, &after, &mut theta_adjoint);
        let mut adjoint = Inputs { state: a.state, grad: a.grad, loss: vec![a.loss], theta: theta_adjoint };
        let (mut tangent, mut total, mut size) = (at.clone(), 0.0, 1e-3);
        for (i, (what, adjoint)) in adjoint.buffers().into_iter().enumerate() {
            let here = at.clone().buffers()[i].1.clone();
            if adjoint.len() != here.len() {
                let why = format!("adjoint of {what}: expected length {}, got {}", here.len(), adjoint.len());
                return Err(broken(&name, why));
            }
            let mut direction = vec![0.0; here.len()];
            key.named("direction").fold_in(i as u64).fill_normal(&mut direction);
            if what.starts_with("slot") || what == "gradient" {
                direction.iter_mut().zip(&here).for_each(|(d, x)| *d *= x);
            }
            // Truncation h² and rounding 1e-16/h are both far below the tolerance.
            let h = 1e-5;
            let moved = |h: f64| {
                let mut x = at.clone();
                x.buffers()[i].1.iter_mut().zip(&direction).for_each(|(x, d)| *x += h * d);
                value(&x)
            };
            let slope = (moved(h) - moved(-h)) / (2.0 * h);
            let parts: Vec<f64> = adjoint.iter().zip(&direction).map(|(a, d)| a * d).collect();
            let (dot, scale) = parts.iter().fold((0.0, 1e-3), |(s, m): (f64, f64), x| (s + x, m + x.abs()));
            // NaN must fail too.
            if (slope - dot).abs().partial_cmp(&(1e-6 * scale)) != Some(std::cmp::Ordering::Less) {
                let why =
                    format!("adjoint of {what} after {t} updates gives slope {dot:e}, differences {slope:e}");
                return Err(broken(&name, why));
            }
            (total, size) = (total + dot, size + scale);
            *tangent.buffers()[i].1 = direction;
        }
        if let Some(jvp) = opt.update_jvp() {
            let Inputs { state, grad, loss, theta } = &tangent;
            let moved = UpdateTangent { state, grad, loss: loss[0], theta };
            let moved = jvp.jvp(&at.state, &at.grad, at.loss[0], key, moved);
            let along = product(&after, &moved);
            if (along - total).abs().partial_cmp(&(1e-9 * size)) != Some(std::cmp::Ordering::Less) {
                let why = format!("`update_jvp` after {t} updates gives {along:e}, `update_vjp` {total:e}");
                return Err(broken(&name, why));
            }
        }
        opt.update(&mut at.state, &at.grad, at.loss[0], key);
    }
    Ok(())
}
