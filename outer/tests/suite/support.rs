//! Small tasks and learned optimizers whose meta-gradients are known in closed form.

use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Mode, Rank0, Rank1, Rank2, Tensor};
use outerloop_core::{
    BatchKey, Float, HyperTask, Key, Layout, LearnedOptimizer, OptState, Optimizer, Params, SingleTask, Task,
    UpdateAdjoint, UpdateVjp,
};
use outerloop_outer::{TruncatedStep, TruncationSchedule};
use std::sync::Arc;

/// One parameter `s`, starting at 0; loss `s`.
pub struct Identity;

impl<E: Float, B: Backend<E>> Task<E, B> for Identity {
    type Params = Tensor<Rank0, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "identity".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.zeros()
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, s: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::PutTape;
        s.clone().put_tape(m)
    }
}

/// `Σ x²` in two dimensions from a fixed start, so that its runs are known exactly.
pub struct Bowl;
pub const BOWL_START: [f64; 2] = [1.5, -0.5];

impl<E: Float, B: Backend<E>> Task<E, B> for Bowl {
    type Params = Tensor<Rank1<2>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "bowl".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.tensor_from_vec(BOWL_START.map(E::of).to_vec(), Default::default())
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, x: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::{PutTape, SumTo};
        x.clone().put_tape(m).square().sum()
    }
}

/// `Σ tanh² x` in two dimensions from a fixed start. As a hyper task it is trained on `e^λ` times that: λ is the
/// logarithm of a learning rate.
pub struct Valley;

impl<E: Float, B: Backend<E>> Task<E, B> for Valley {
    type Params = Tensor<Rank1<2>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "valley".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.tensor_from_vec(BOWL_START.map(E::of).to_vec(), Default::default())
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, x: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::PutTape;
        ops::sum(ops::square(ops::tanh(x.clone().put_tape(m))))
    }
}

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Valley {
    type Params = Tensor<Rank1<2>, E, B>;
    type Hyper = Tensor<Rank0, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "valley".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        Task::<E, B>::init(self, dev, key)
    }
    fn init_hyper(&self, dev: &B, _: Key) -> Self::Hyper {
        dev.zeros()
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn train_loss<M: Mode<E, B>>(
        &self,
        x: &Self::Params,
        lambda: &Self::Hyper,
        (): &(),
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::PutTape;
        let rate = ops::exp(lambda.clone().put_tape(m));
        ops::mul(Task::<E, B>::loss(self, x, &(), m), &rate)
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        x: &Self::Params,
        _: &Self::Hyper,
        (): &(),
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        Task::<E, B>::loss(self, x, &(), m)
    }
}

/// Linear regression with [`WIDE`] squared weights, and as many decays.
pub struct Wide;
pub const WIDE: usize = 200;

impl<E: Float, B: Backend<E>> HyperTask<E, B> for Wide {
    type Params = Tensor<Rank2<WIDE, WIDE>, E, B>;
    type Hyper = Tensor<Rank2<WIDE, WIDE>, E, B>;
    type Batch = Tensor<Rank2<4, WIDE>, E, B>;
    fn name(&self) -> String {
        "wide".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        dev.normal(key)
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        dev.normal(key)
    }
    fn log_decays(&self) -> Vec<String> {
        vec!["params".into()]
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        dev.normal(at.noise())
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        decay: &Self::Hyper,
        x: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::PutTape;
        let fit = HyperTask::<E, B>::valid_loss(self, w, decay, x, m);
        ops::add(fit, &ops::weight_decay(w.clone().put_tape(m), decay))
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        _: &Self::Hyper,
        x: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::PutTape;
        ops::mse(ops::matmul(x.clone().put_tape(m), w), x)
    }
}

/// Rules with one meta-parameter.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// `p ← p + θ`
    Shift,
    /// `p ← θ`, without a derivative.
    Set,
    /// `p ← p − e^θ g`
    Sgd,
    /// As `Sgd`, but without a derivative.
    Opaque,
    /// As `Sgd`, with a derivative that is no number.
    Torn,
}

pub struct OneTheta {
    pub rule: Rule,
    pub init: f64,
}

#[derive(Debug)]
struct OneThetaOpt<E> {
    rule: Rule,
    theta: E,
}

impl<E: Float> LearnedOptimizer<E> for OneTheta {
    fn name(&self) -> String {
        "one-theta".into()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        Arc::new(Layout::new([("theta", vec![])]))
    }
    fn init(&self, _: Key) -> Vec<E> {
        vec![E::of(self.init)]
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        Box::new(OneThetaOpt { rule: self.rule, theta: theta[0] })
    }
}

impl<E: Float> Optimizer<E> for OneThetaOpt<E> {
    fn name(&self) -> String {
        "one-theta".into()
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, _: Key) -> OptState<E> {
        OptState::new(params, num_steps)
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], _: E, _: Key) {
        for (p, g) in state.params.iter_mut().zip(grad) {
            match self.rule {
                Rule::Shift => *p += self.theta,
                Rule::Set => *p = self.theta,
                Rule::Sgd | Rule::Opaque | Rule::Torn => *p -= num_traits::Float::exp(self.theta) * *g,
            }
        }
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        (!matches!(self.rule, Rule::Opaque | Rule::Set)).then_some(self)
    }
}

impl<E: Float> UpdateVjp<E> for OneThetaOpt<E> {
    fn vjp(
        &self,
        _: &OptState<E>,
        grad: &[E],
        _: E,
        _: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let zero = E::of(0.0);
        let lr = num_traits::Float::exp(self.theta);
        let (by_theta, by_grad): (Vec<E>, Vec<E>) = match self.rule {
            Rule::Shift => grad.iter().map(|_| (E::of(1.0), zero)).unzip(),
            Rule::Set => unreachable!("it says that it has no derivative"),
            Rule::Sgd | Rule::Opaque => grad.iter().map(|g| (-lr * *g, -lr)).unzip(),
            Rule::Torn => grad.iter().map(|_| (E::of(f64::NAN), zero)).unzip(),
        };
        theta[0] += after.params.iter().zip(by_theta).map(|(a, d)| *a * d).sum();
        let grad = after.params.iter().zip(by_grad).map(|(a, d)| *a * d).collect();
        UpdateAdjoint { state: after.clone(), grad, loss: zero }
    }
}

/// Runs of `length` steps of one of the closed-form problems.
pub fn step(rule: Rule, init: f64, schedule: TruncationSchedule) -> TruncatedStep {
    let family = match rule {
        Rule::Shift | Rule::Set => SingleTask::new(Identity),
        Rule::Sgd | Rule::Opaque | Rule::Torn => SingleTask::new(Bowl),
    };
    TruncatedStep::new(Arc::new(family), Arc::new(OneTheta { rule, init }), schedule)
        .expect("a valid schedule")
}

/// `E f(z)` for `z ~ N(0, 1)`, by the trapezoidal rule: exact to rounding for smooth `f`.
pub fn gaussian_mean(f: impl Fn(f64) -> f64) -> f64 {
    let h = 0.02;
    let weights: Vec<(f64, f64)> =
        (-500..=500).map(|i| i as f64 * h).map(|z| (z, (-z * z / 2.0).exp())).collect();
    let total: f64 = weights.iter().map(|(_, w)| w).sum();
    weights.iter().map(|(z, w)| w * f(*z)).sum::<f64>() / total
}

/// SGD on [`Bowl`] with an independent perturbation of theta in every window of `window` steps: the
/// expected sum of the losses before updates `from..to`, divided by `per`.
pub fn bowl_loss(theta: f64, std: f64, window: usize, steps: std::ops::Range<usize>) -> f64 {
    let start: f64 = BOWL_START.iter().map(|x| x * x).sum();
    // One step multiplies x by 1 − 2 e^θ; squared and averaged over a window's perturbation:
    let shrink = |k: usize| gaussian_mean(|z| (1.0 - 2.0 * (theta + std * z).exp()).powi(2 * k as i32));
    let whole = shrink(window);
    steps.map(|t| start * whole.powi((t / window) as i32) * shrink(t % window)).sum()
}

pub fn slope(f: impl Fn(f64) -> f64, x: f64) -> f64 {
    let h = 1e-4;
    (f(x + h) - f(x - h)) / (2.0 * h)
}
