//! Learned optimizers whose theta is the hyperparameters of a hand-designed one, and
//! [`HandAsLearned`], any optimizer as a learned one without theta.

use crate::hand::{adam_coeffs, adam_direction, At, Elementwise, MomentumKind};
use crate::kernel::Fused;
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, Key, Layout, LearnedOptimizer, Optimizer, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The [`LearnedOptimizer`] of this class whose theta is scalars of these names and whose optimizer is
/// `$rule { theta, config }`.
macro_rules! learnable {
    ($config:ty, $rule:ident, $name:literal, $class:literal, $theta:expr) => {
        impl<E: Float> LearnedOptimizer<E> for $config {
            fn name(&self) -> String {
                $name.into()
            }
            fn architecture(&self) -> String {
                crate::rule::architecture($class, self)
            }
            fn validate(&self) -> Result<()> {
                check_settings($class, self.settings())
            }
            fn theta_layout(&self) -> Arc<Layout> {
                Arc::new(Layout::new($theta.map(|name| (name, vec![]))))
            }
            fn init(&self, _key: Key) -> Vec<E> {
                self.initial_theta().map(<E as Float>::of).to_vec()
            }
            fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
                assert_eq!(theta.len(), $theta.len(), "opt_fn: length of theta");
                Box::new($rule::new(std::array::from_fn(|i| theta[i].f64()), self.clone()))
            }
        }
        crate::elementwise_optimizer!($rule);
    };
}

/// [`Sgd`](crate::hand::Sgd) with a learned rate. Theta: `log_lr`, `lr = exp(log_lr)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnableSgd {
    /// Default 0.01.
    pub initial_lr: f64,
}

impl Default for LearnableSgd {
    fn default() -> Self {
        LearnableSgd { initial_lr: 0.01 }
    }
}

impl LearnableSgd {
    fn settings(&self) -> [(&'static str, f64, Interval); 1] {
        [("initial_lr", self.initial_lr, Interval::POSITIVE)]
    }
    fn initial_theta(&self) -> [f64; 1] {
        [self.initial_lr.ln()]
    }
}

#[derive(Debug)]
struct LearnedSgd {
    theta: [f64; 1],
    config: LearnableSgd,
}

impl LearnedSgd {
    fn new(theta: [f64; 1], config: LearnableSgd) -> Self {
        LearnedSgd { theta, config }
    }
}

impl Elementwise for LearnedSgd {
    type Slots<T> = [T; 0];
    type Coeffs<T> = [T; 1];
    const SLOTS: &'static [&'static str] = &[];
    const FUSED: Option<Fused> = Some(Fused::Sgd);

    fn name(&self) -> String {
        LearnedOptimizer::<f64>::name(&self.config)
    }
    fn theta(&self) -> &[f64] {
        &self.theta
    }
    fn coeffs<S: Scalar>(&self, theta: &[S], _: At) -> [S; 1] {
        [theta[0].exp()]
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, &[lr]: &[S; 1], p: S, slots: [S; 0], g: S) -> (S, [S; 0]) {
        (p - lr * g, slots)
    }
}
learnable!(LearnableSgd, LearnedSgd, "learnable_sgd", "LearnableSGD", ["log_lr"]);

/// [`Momentum`](crate::hand::Momentum) (Polyak) with learned rate and decay. Theta: `log_lr`,
/// `one_minus_momentum`; `μ = 1 − exp(one_minus_momentum)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnableSgdm {
    /// Default 0.01.
    pub initial_lr: f64,
    /// Default 0.9.
    pub initial_momentum: f64,
}

impl Default for LearnableSgdm {
    fn default() -> Self {
        LearnableSgdm { initial_lr: 0.01, initial_momentum: 0.9 }
    }
}

impl LearnableSgdm {
    fn settings(&self) -> [(&'static str, f64, Interval); 2] {
        [
            ("initial_lr", self.initial_lr, Interval::POSITIVE),
            ("initial_momentum", self.initial_momentum, Interval::DECAY),
        ]
    }
    fn initial_theta(&self) -> [f64; 2] {
        [self.initial_lr.ln(), (1.0 - self.initial_momentum).ln()]
    }
}

#[derive(Debug)]
struct LearnedSgdm {
    theta: [f64; 2],
    config: LearnableSgdm,
}

impl LearnedSgdm {
    fn new(theta: [f64; 2], config: LearnableSgdm) -> Self {
        LearnedSgdm { theta, config }
    }
}

impl Elementwise for LearnedSgdm {
    type Slots<T> = [T; 1];
    type Coeffs<T> = [T; 2];
    const SLOTS: &'static [&'static str] = &["momentum"];
    const FUSED: Option<Fused> = Some(Fused::Momentum);

    fn name(&self) -> String {
        LearnedOptimizer::<f64>::name(&self.config)
    }
    fn theta(&self) -> &[f64] {
        &self.theta
    }
    fn coeffs<S: Scalar>(&self, theta: &[S], _: At) -> [S; 2] {
        [theta[0].exp(), S::of(1.0) - theta[1].exp()]
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, &[lr, mu]: &[S; 2], p: S, [v]: [S; 1], g: S) -> (S, [S; 1]) {
        let (step, v) = MomentumKind::Polyak.trace(mu, v, g);
        (p - lr * step, [v])
    }
}
learnable!(LearnableSgdm, LearnedSgdm, "learnable_sgdm", "LearnableSGDM", ["log_lr", "one_minus_momentum"]);

/// [`Adam`](crate::hand::Adam) with learned hyperparameters. Theta: `log_epsilon`, `log_lr`,
/// `one_minus_beta1`, `one_minus_beta2`; `βᵢ = 1 − exp(one_minus_betaᵢ)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LearnableAdam {
    /// Default 1e-3.
    pub initial_lr: f64,
    /// Default 0.9.
    pub initial_beta1: f64,
    /// Default 0.999.
    pub initial_beta2: f64,
    /// Default 1e-8.
    pub initial_epsilon: f64,
    /// Added inside the root, not learned; default 1e-8.
    pub epsilon_root: f64,
}

impl Default for LearnableAdam {
    fn default() -> Self {
        LearnableAdam {
            initial_lr: 1e-3,
            initial_beta1: 0.9,
            initial_beta2: 0.999,
            initial_epsilon: 1e-8,
            epsilon_root: 1e-8,
        }
    }
}

impl LearnableAdam {
    fn settings(&self) -> [(&'static str, f64, Interval); 5] {
        [
            ("initial_lr", self.initial_lr, Interval::POSITIVE),
            ("initial_beta1", self.initial_beta1, Interval::DECAY),
            ("initial_beta2", self.initial_beta2, Interval::DECAY),
            ("initial_epsilon", self.initial_epsilon, Interval::POSITIVE),
            ("epsilon_root", self.epsilon_root, Interval::NOT_NEGATIVE),
        ]
    }
    fn initial_theta(&self) -> [f64; 4] {
        let one_minus = [1.0 - self.initial_beta1, 1.0 - self.initial_beta2];
        [self.initial_epsilon, self.initial_lr, one_minus[0], one_minus[1]].map(f64::ln)
    }

    /// `[lr, β₁, β₂, ε, ε_root, 0]`
    fn hyper<S: Scalar>(&self, theta: &[S]) -> [S; 6] {
        let one = S::of(1.0);
        let [eps, lr, rest1, rest2] = [0, 1, 2, 3].map(|i| theta[i].exp());
        [lr, one - rest1, one - rest2, eps, S::of(self.epsilon_root), S::of(0.0)]
    }
}

#[derive(Debug)]
struct LearnedAdam {
    theta: [f64; 4],
    config: LearnableAdam,
    /// What [`adam_coeffs`] takes.
    hyper: [f64; 6],
}

impl LearnedAdam {
    fn new(theta: [f64; 4], config: LearnableAdam) -> Self {
        LearnedAdam { theta, hyper: config.hyper(&theta), config }
    }
}

impl Elementwise for LearnedAdam {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 9];
    const SLOTS: &'static [&'static str] = &["m", "v"];
    const FUSED: Option<Fused> = Some(Fused::Adam);

    fn name(&self) -> String {
        LearnedOptimizer::<f64>::name(&self.config)
    }
    fn theta(&self) -> &[f64] {
        &self.theta
    }
    fn coeffs<S: Scalar>(&self, theta: &[S], at: At) -> [S; 9] {
        adam_coeffs(self.config.hyper(theta), at)
    }
    fn values(&self, at: At) -> [f64; 9] {
        adam_coeffs(self.hyper, at)
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, c: &[S; 9], p: S, slots: [S; 2], g: S) -> (S, [S; 2]) {
        let (u, slots) = adam_direction(c, slots, g);
        (p - u, slots)
    }
}
learnable!(
    LearnableAdam,
    LearnedAdam,
    "learnable_adam",
    "LearnableAdam",
    ["log_epsilon", "log_lr", "one_minus_beta1", "one_minus_beta2"]
);

/// Any optimizer as a learned one with empty theta, so that it can stand wherever a learned
/// optimizer is expected.
///
/// ```
/// use outerloop_core::LearnedOptimizer;
/// use outerloop_lopt::{hand::Adam, HandAsLearned};
///
/// let adam = HandAsLearned::<f32>::new(Adam::default());
/// assert!(adam.theta_layout().is_empty());
/// assert_eq!(adam.opt_fn(&[]).name(), "adam");
/// ```
pub struct HandAsLearned<E: Float = f32>(Arc<dyn Optimizer<E>>);

impl<E: Float> HandAsLearned<E> {
    /// Wraps this optimizer.
    pub fn new(opt: impl Optimizer<E> + 'static) -> Self {
        HandAsLearned(Arc::new(opt))
    }
}

impl<E: Float> From<Box<dyn Optimizer<E>>> for HandAsLearned<E> {
    fn from(opt: Box<dyn Optimizer<E>>) -> Self {
        HandAsLearned(opt.into())
    }
}

impl<E: Float> LearnedOptimizer<E> for HandAsLearned<E> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn validate(&self) -> Result<()> {
        self.0.validate()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        Arc::default()
    }
    fn init(&self, _key: Key) -> Vec<E> {
        Vec::new()
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        assert!(theta.is_empty(), "opt_fn: theta of a hand-designed optimizer must be empty");
        Box::new(Shared(self.0.clone()))
    }
}

/// An optimizer owned together with its [`HandAsLearned`].
#[derive(Debug)]
struct Shared<E: Float>(Arc<dyn Optimizer<E>>);

impl<E: Float> Optimizer<E> for Shared<E> {
    fn name(&self) -> String {
        self.0.name()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn init(
        &self,
        params: &outerloop_core::Params<E>,
        num_steps: Option<u64>,
        key: Key,
    ) -> outerloop_core::OptState<E> {
        self.0.init(params, num_steps, key)
    }
    fn validate(&self) -> Result<()> {
        self.0.validate()
    }
    fn update(&self, state: &mut outerloop_core::OptState<E>, grad: &[E], loss: E, key: Key) {
        self.0.update(state, grad, loss, key)
    }
    fn observe_validation(&self, state: &mut outerloop_core::OptState<E>, loss: E) {
        self.0.observe_validation(state, loss)
    }
    fn evaluation_params<'a>(&self, state: &'a outerloop_core::OptState<E>) -> std::borrow::Cow<'a, [E]> {
        self.0.evaluation_params(state)
    }
    fn update_vjp(&self) -> Option<&dyn outerloop_core::UpdateVjp<E>> {
        self.0.update_vjp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::elementwise::tests::{check_fused_vjp, fifty_steps};

    #[test]
    fn learned_descents_kernels_are_their_rules() {
        let sgd = LearnableSgd { initial_lr: 0.02 };
        let sgd = LearnedSgd::new(sgd.initial_theta(), sgd);
        fifty_steps(&sgd);
        check_fused_vjp(&sgd);
        for initial_momentum in [0.9, 0.3] {
            let config = LearnableSgdm { initial_lr: 0.02, initial_momentum };
            let momentum = LearnedSgdm::new(config.initial_theta(), config);
            fifty_steps(&momentum);
            check_fused_vjp(&momentum);
        }
    }

    #[test]
    fn learned_adams_fused_derivative_is_that_of_dual_numbers() {
        for epsilon_root in [1e-8, 1e-3] {
            let config = LearnableAdam { initial_epsilon: 1e-4, epsilon_root, ..LearnableAdam::default() };
            check_fused_vjp(&LearnedAdam::new(config.initial_theta(), config));
        }
    }
}
