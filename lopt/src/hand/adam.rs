//! Adam and AdamW.

use super::graph::{map, Graph, Var};
use super::{At, Elementwise, Schedule};
use crate::kernel::Fused;
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// Adam: `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`,
/// `p ← p − lr m̂/(√(v̂ + ε_root) + ε)` with `m̂ = m/(1−β₁ᵗ)`, `v̂ = v/(1−β₂ᵗ)`.
///
/// `ε_root > 0` keeps the derivative of the root finite where the gradient is 0; with `ε_root = 0`
/// that derivative is defined as 0.
/// Reference: Kingma, Ba 2014, arXiv:1412.6980; defaults of learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Adam {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Decay of the mean of the gradient; default 0.9.
    pub beta1: f64,
    /// Decay of the mean of its square; default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-8.
    pub epsilon: f64,
    /// Added inside the root; default 1e-8.
    pub epsilon_root: f64,
}

impl Default for Adam {
    fn default() -> Self {
        Adam { learning_rate: 0.01.into(), beta1: 0.9, beta2: 0.999, epsilon: 1e-8, epsilon_root: 1e-8 }
    }
}

impl Adam {
    /// The defaults with this learning rate.
    pub fn new(learning_rate: impl Into<Schedule>) -> Self {
        Adam { learning_rate: learning_rate.into(), ..Adam::default() }
    }
}

impl Elementwise for Adam {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 9];
    const SLOTS: &'static [&'static str] = &["m", "v"];
    const FUSED: Option<Fused> = Some(Fused::Adam);

    fn name(&self) -> String {
        "adam".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("epsilon_root", self.epsilon_root, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 9] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let constants = [lr, self.beta1, self.beta2, self.epsilon, self.epsilon_root, 0.0];
        adam_coeffs(constants.map(S::of), at)
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, c: &[S; 9], p: S, slots: [S; 2], g: S) -> (S, [S; 2]) {
        let (u, slots) = adam_direction(c, slots, g);
        (p - u, slots)
    }
}
crate::elementwise_optimizer!(Adam);

/// Adam with decoupled weight decay: [`Adam`]'s step plus `lr λ p`.
///
/// Reference: Loshchilov, Hutter 2017, arXiv:1711.05101; defaults of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamW {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Decay of the mean of the gradient; default 0.9.
    pub beta1: f64,
    /// Decay of the mean of its square; default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-8.
    pub epsilon: f64,
    /// Added inside the root; default 0.
    pub epsilon_root: f64,
    /// λ; default 1e-4.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW {
            learning_rate: 0.01.into(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            epsilon_root: 0.0,
            weight_decay: 1e-4,
        }
    }
}

impl AdamW {
    /// The defaults with this learning rate and weight decay.
    pub fn new(learning_rate: impl Into<Schedule>, weight_decay: f64) -> Self {
        AdamW { learning_rate: learning_rate.into(), weight_decay, ..AdamW::default() }
    }
}

impl Elementwise for AdamW {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 9];
    const SLOTS: &'static [&'static str] = &["m", "v"];
    const FUSED: Option<Fused> = Some(Fused::AdamW);

    fn name(&self) -> String {
        "adamw".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("epsilon_root", self.epsilon_root, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 9] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let constants = [lr, self.beta1, self.beta2, self.epsilon, self.epsilon_root, self.weight_decay];
        adam_coeffs(constants.map(S::of), at)
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, c: &[S; 9], p: S, slots: [S; 2], g: S) -> (S, [S; 2]) {
        let (u, slots) = adam_direction(c, slots, g);
        (p - u - c[8] * p, slots)
    }
}
crate::elementwise_optimizer!(AdamW);

/// `[lr/(1−β₁ᵗ), β₁, 1−β₁, β₂, 1−β₂, 1/(1−β₂ᵗ), ε, ε_root, lr λ]` from `[lr, β₁, β₂, ε, ε_root, λ]`.
pub(crate) fn adam_coeffs<S: Scalar>([lr, b1, b2, eps, eps_root, decay]: [S; 6], at: At) -> [S; 9] {
    let one = S::of(1.0);
    let (scale, v_scale) = (lr / (one - b1.powf(at.t())), one / (one - b2.powf(at.t())));
    [scale, b1, one - b1, b2, one - b2, v_scale, eps, eps_root, lr * decay]
}

/// Adam's step, with the learning rate, and the new moments; of a [limited](Scalar::limited) gradient.
#[inline(always)]
pub(crate) fn adam_direction<S: Scalar>(
    &[scale, b1, rest1, b2, rest2, v_scale, eps, eps_root, _]: &[S; 9],
    [m, v]: [S; 2],
    g: S,
) -> (S, [S; 2]) {
    let g = g.limited();
    let m = b1 * m + rest1 * g;
    let v = b2 * v + rest2 * g.square();
    ((scale * m).over((v * v_scale + eps_root).sqrt() + eps), [m, v])
}

/// [`adam_direction`] of a tensor.
pub(crate) fn adam_on_graph<E: Float>(
    graph: &mut Graph<E>,
    c: [f64; 9],
    [m, v]: [Var; 2],
    g: Var,
) -> (Var, [Var; 2]) {
    let u = map!(graph, [m, v, g], |k; m, v, g| adam_direction(&c.map(k), [m, v], g).0);
    let new_m = map!(graph, [m, g], |k; m, g| k(c[1]) * m + k(c[2]) * g);
    let new_v = map!(graph, [v, g], |k; v, g| k(c[3]) * v + k(c[4]) * g.square());
    (u, [new_m, new_v])
}
