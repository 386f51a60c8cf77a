//! Tests' harness: golden runs of learned optimizers (the cases of `outer/tests/golden`, made with
//! google/learned_optimization 32186aa in f32 and f64; Apache-2.0) and a check of derivatives.

use outerloop_core::contract::awkward_params;
use outerloop_core::{Float, Key, Layout, LearnedOptimizer, OptState, Params};
use serde_json::Value;
use std::sync::Arc;

/// One golden run: fixed theta, gradients and losses, the parameters after every update.
pub(crate) struct Golden {
    json: Value,
    pub(crate) layout: Arc<Layout>,
}

/// Numbers of a nested list or tree, in order; inputs are f32 numbers printed with nine digits.
fn numbers(v: &Value, out: &mut Vec<f64>) {
    match v {
        Value::Array(a) => a.iter().for_each(|v| numbers(v, out)),
        Value::Object(o) => o.values().for_each(|v| numbers(v, out)),
        Value::Number(x) => out.push(x.as_f64().unwrap()),
        other => panic!("not a number: {other}"),
    }
}

impl Golden {
    pub(crate) fn load(case: &str) -> Self {
        let path = format!("{}/../outer/tests/golden/cases/C_lopt_{case}.json", env!("CARGO_MANIFEST_DIR"));
        let json: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let layout = Golden::tree_layout(&json["shapes"]);
        Golden { json, layout }
    }

    fn tree_layout(shapes: &Value) -> Arc<Layout> {
        let shape = |v: &Value| serde_json::from_value::<Vec<usize>>(v.clone()).unwrap();
        Arc::new(Layout::new(shapes.as_object().unwrap().iter().map(|(n, s)| (n.clone(), shape(s)))))
    }

    /// The case's hyperparameters as a configuration.
    pub(crate) fn config<C: serde::de::DeserializeOwned>(&self) -> C {
        serde_json::from_value(self.json["hyperparameters"].clone()).unwrap()
    }

    /// The numbers under a path of keys and indices, `a/b/0`.
    pub(crate) fn at(&self, pointer: &str) -> Vec<f64> {
        let mut out = Vec::new();
        numbers(self.json.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}")), &mut out);
        out
    }

    fn tree(&self, pointer: &str, layout: &Layout) -> Vec<f64> {
        let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
        layout.entries().iter().flat_map(|e| self.at(&format!("{pointer}/{}", escape(&e.name)))).collect()
    }

    fn input<E: Float>(values: Vec<f64>) -> Vec<E> {
        values.into_iter().map(|x| E::of(f64::from(x as f32))).collect()
    }

    pub(crate) fn num_updates(&self) -> usize {
        self.json["grads"].as_array().unwrap().len()
    }
    pub(crate) fn theta<E: Float>(&self) -> Vec<E> {
        Self::input(self.tree("/theta", &Self::tree_layout(&self.json["theta_shapes"])))
    }
    pub(crate) fn grad<E: Float>(&self, t: usize) -> Vec<E> {
        Self::input(self.tree(&format!("/grads/{t}"), &self.layout))
    }

    /// The state before update `t`, and the parameters after every update up to then.
    pub(crate) fn run<E: Float>(
        &self,
        l: &dyn LearnedOptimizer<E>,
        t: usize,
    ) -> (OptState<E>, Vec<Vec<f64>>) {
        self.run_with_validation(l, t, &|_, _| panic!("this case has no validation steps"))
    }

    /// The same where some steps are on validation data: `valid` does those.
    pub(crate) fn run_with_validation<E: Float>(
        &self,
        l: &dyn LearnedOptimizer<E>,
        t: usize,
        valid: &dyn Fn(&mut OptState<E>, E),
    ) -> (OptState<E>, Vec<Vec<f64>>) {
        assert_eq!(*l.theta_layout(), *Self::tree_layout(&self.json["theta_shapes"]));
        let opt = l.opt_fn(&self.theta());
        let params0 = Self::input(self.tree("/params0", &self.layout));
        let params = Params::new(self.layout.clone(), params0).unwrap();
        let losses: Vec<E> = Self::input(self.at("/losses"));
        let mut state = opt.init(&params, self.json["num_steps"].as_u64(), Key::new(0));
        let mut curve = Vec::new();
        for (t, loss) in losses.into_iter().enumerate().take(t) {
            if self.json["is_valid"][t].as_bool() == Some(true) {
                valid(&mut state, loss);
            } else {
                opt.update(&mut state, &self.grad(t), loss, Key::new(0));
            }
            curve.push(state.params.iter().map(|p| p.f64()).collect());
        }
        (state, curve)
    }

    /// Asserts that `got` are the numbers under `pointer`, to 1e-9 of the largest.
    pub(crate) fn assert_close(&self, pointer: &str, got: &[f64]) {
        let want = self.at(pointer);
        assert_eq!(want.len(), got.len(), "{pointer}");
        let size = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-9 * size, "{pointer}: {got}, not {want}");
        }
    }

    /// f64 within 1e-9 of each tensor's largest change, f32 within ten times the reference's own
    /// gap between f32 and f64 (at least 2e-6 of the largest magnitude, and 1e-3 of the change).
    pub(crate) fn check(&self, f64s: &dyn LearnedOptimizer<f64>, f32s: &dyn LearnedOptimizer<f32>) {
        self.check_with_validation(f64s, f32s, &|_, _| panic!("no validation"), &|_, _| {
            panic!("no validation")
        });
    }

    /// The same with validation steps.
    pub(crate) fn check_with_validation(
        &self,
        f64s: &dyn LearnedOptimizer<f64>,
        f32s: &dyn LearnedOptimizer<f32>,
        valid64: &dyn Fn(&mut OptState<f64>, f64),
        valid32: &dyn Fn(&mut OptState<f32>, f32),
    ) {
        let start: Vec<f64> = Self::input(self.tree("/params0", &self.layout));
        let (_, got64) = self.run_with_validation(f64s, usize::MAX, valid64);
        let (_, got32) = self.run_with_validation(f32s, usize::MAX, valid32);
        let gap = self.at("/f32_vs_f64_gap/max_abs")[0];
        assert_eq!(got64.len(), self.num_updates());
        for (t, (got64, got32)) in got64.iter().zip(&got32).enumerate() {
            let want = self.tree(&format!("/params_f64/{t}"), &self.layout);
            let largest = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
            for e in self.layout.entries() {
                let change = e.range().map(|i| (want[i] - start[i]).abs()).fold(0.0, f64::max);
                let size = e.range().map(|i| want[i].abs()).fold(0.0, f64::max);
                for i in e.range() {
                    let error = (got64[i] - want[i]).abs();
                    // Parameters carry 1e-16 of their size; changes must be right relative to themselves.
                    assert!(
                        error <= 1e-9 * change.min(size) + 4e-16 * size,
                        "step {t} {} f64: {error:e}",
                        e.name
                    );
                    let error = (got32[i] - want[i]).abs();
                    let tolerance = (10.0 * gap).max(2e-6 * largest);
                    assert!(error <= tolerance, "step {t} {} f32: {error:e}", e.name);
                }
            }
        }
    }
}

/// The largest gap between an optimizer's derivative of one update and central differences in f64,
/// relative to the size of each group of adjoints. `state`: any state with the optimizer's slots.
///
/// Along random directions in each argument, at the best of six steps (truncation about `h²`,
/// rounding about `1e-16 / h`).
pub(crate) fn vjp_gap(l: &dyn LearnedOptimizer<f64>, theta: &[f64], state: &OptState<f64>) -> f64 {
    let key = Key::new(77);
    let normal = |name: &str, len: usize| {
        let mut x = vec![0.0; len];
        key.named(name).fill_normal(&mut x);
        x
    };
    let n = state.params.len();
    let grad = normal("grad", n);
    let loss = 0.7;
    let mut after = state.zeros_like();
    after.params = normal("after", n);
    for (i, slot) in after.slots.iter_mut().enumerate() {
        key.named("slot").fold_in(i as u64).fill_normal(&mut slot.data);
    }
    let flat = |s: &OptState<f64>| -> Vec<f64> {
        s.params.iter().chain(s.slots.iter().flat_map(|s| &s.data)).copied().collect()
    };
    let seed = flat(&after);
    // theta, state, grad, loss in one vector.
    let at: Vec<f64> = [theta, &flat(state), &grad, &[loss]].concat();
    let value = |x: &[f64]| {
        let (theta, rest) = x.split_at(theta.len());
        let mut s = state.clone();
        let mut rest = rest.iter().copied();
        s.params.iter_mut().for_each(|p| *p = rest.next().unwrap());
        s.slots.iter_mut().flat_map(|s| &mut s.data).for_each(|p| *p = rest.next().unwrap());
        let grad: Vec<f64> = rest.by_ref().take(n).collect();
        l.opt_fn(theta).update(&mut s, &grad, rest.next().unwrap(), key);
        flat(&s).iter().zip(&seed).map(|(a, b)| a * b).sum::<f64>()
    };
    let opt = l.opt_fn(theta);
    let mut theta_adjoint = vec![0.0; theta.len()];
    let vjp = opt.update_vjp().expect("has a derivative");
    let before = vjp.vjp(state, &grad, loss, key, &after, &mut theta_adjoint);
    let adjoint: Vec<f64> = [theta_adjoint, flat(&before.state), before.grad, vec![before.loss]].concat();
    let groups = [0, theta.len(), theta.len() + n, at.len() - n - 1, at.len() - 1, at.len()];
    let mut worst = 0.0f64;
    for (g, range) in groups.windows(2).enumerate() {
        for d in 0..6 {
            let direction = normal(&format!("direction {g} {d}"), range[1] - range[0]);
            let moved = |c: f64| {
                let mut x = at.clone();
                x[range[0]..range[1]].iter_mut().zip(&direction).for_each(|(x, d)| *x += c * d);
                value(&x)
            };
            let part = &adjoint[range[0]..range[1]];
            let dot: f64 = part.iter().zip(&direction).map(|(a, d)| a * d).sum();
            let size = part.iter().map(|a| a * a).sum::<f64>().sqrt().max(1e-3);
            assert!(size.is_finite(), "the adjoint is {size}");
            // A ReLU kink or a clip between the two points spoils a step, not all of them.
            let gap = |h: f64| ((moved(h) - moved(-h)) / (2.0 * h) - dot).abs() / size;
            worst = worst
                .max([1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8].into_iter().map(gap).fold(f64::INFINITY, f64::min));
        }
    }
    worst
}

/// The same for the derivative of `init` with respect to theta.
pub(crate) fn init_vjp_gap(l: &dyn LearnedOptimizer<f64>, theta: &[f64]) -> f64 {
    let params = awkward_params::<f64>(Key::new(3));
    let init = |theta: &[f64]| l.opt_fn(theta).init(&params, Some(20), Key::new(0));
    let start = init(theta);
    let mut seed = start.zeros_like();
    for (i, slot) in seed.slots.iter_mut().enumerate() {
        Key::new(4).fold_in(i as u64).fill_normal(&mut slot.data);
    }
    let mut adjoint = vec![0.0; theta.len()];
    let opt = l.opt_fn(theta);
    opt.update_vjp().expect("has a derivative").init_vjp(&start, &seed, &mut adjoint);
    let flat = |i: usize, h: f64| -> Vec<f64> {
        let mut theta = theta.to_vec();
        theta[i] += h;
        init(&theta).slots.into_iter().flat_map(|s| s.data).collect()
    };
    let seed: Vec<f64> = seed.slots.into_iter().flat_map(|s| s.data).collect();
    let gap = |i: usize| {
        let differences = flat(i, 1e-6).into_iter().zip(flat(i, -1e-6)).map(|(a, b)| a - b);
        let slope = differences.zip(&seed).map(|(d, s)| d * s).sum::<f64>() / 2e-6;
        (slope - adjoint[i]).abs()
    };
    assert!(adjoint.iter().any(|a| *a != 0.0), "init depends on theta");
    (0..theta.len()).map(gap).fold(0.0, f64::max)
}

/// A state after three updates with random gradients, where no accumulator is zero any more.
pub(crate) fn warm_state(l: &dyn LearnedOptimizer<f64>, theta: &[f64]) -> OptState<f64> {
    let key = Key::new(21);
    let opt = l.opt_fn(theta);
    let params = awkward_params::<f64>(key);
    let mut state = opt.init(&params, Some(20), key);
    for t in 0..3 {
        let mut grad = vec![0.0; params.data.len()];
        key.named("grad").fold_in(t).fill_normal(&mut grad);
        opt.update(&mut state, &grad, 1.0 / (1.0 + t as f64), key);
    }
    state
}

/// Theta at `init` plus noise, so that no bias or decay is exactly zero.
pub(crate) fn noisy_theta(l: &dyn LearnedOptimizer<f64>, std: f64) -> Vec<f64> {
    let mut theta = l.init(Key::new(1));
    let mut noise = vec![0.0; theta.len()];
    Key::new(2).fill_normal(&mut noise);
    theta.iter_mut().zip(&noise).for_each(|(t, e)| *t += std * e);
    theta
}
