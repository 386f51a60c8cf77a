//! Gradient descent, plain and with momentum.

use super::{At, Elementwise, Schedule};
use crate::kernel::Fused;
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Interval, Result};
use serde::{Deserialize, Serialize};

/// Gradient descent: `p ← p − lr g`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sgd {
    /// Default 0.01.
    pub learning_rate: Schedule,
}

impl Default for Sgd {
    fn default() -> Self {
        Sgd::new(0.01)
    }
}

impl Sgd {
    /// With this learning rate.
    pub fn new(learning_rate: impl Into<Schedule>) -> Self {
        Sgd { learning_rate: learning_rate.into() }
    }
}

impl Elementwise for Sgd {
    type Slots<T> = [T; 0];
    type Coeffs<T> = [T; 1];
    const SLOTS: &'static [&'static str] = &[];
    const FUSED: Option<Fused> = Some(Fused::Sgd);

    fn name(&self) -> String {
        "sgd".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 1] {
        [S::of(self.learning_rate.at(at.step, at.num_steps))]
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, &[lr]: &[S; 1], p: S, slots: [S; 0], g: S) -> (S, [S; 0]) {
        (p - lr * g, slots)
    }
}
crate::elementwise_optimizer!(Sgd);

/// Gradient descent with momentum, without dampening: `v ← μ v + g`, then `p ← p − lr v`
/// ([`MomentumKind::Polyak`]) or `p ← p − lr (g + μ v)` ([`MomentumKind::Nesterov`]).
///
/// Reference: Sutskever et al. 2013, in the form of optax and PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Momentum {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// μ; default 0.9.
    pub momentum: f64,
    /// Default Polyak.
    pub kind: MomentumKind,
}

/// Where the momentum acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentumKind {
    /// The step is the momentum.
    #[default]
    Polyak,
    /// The step looks one decay ahead: the update plus μ times the new momentum.
    Nesterov,
}

impl Default for Momentum {
    fn default() -> Self {
        Momentum::new(0.01, 0.9)
    }
}

impl Momentum {
    /// Polyak momentum.
    pub fn new(learning_rate: impl Into<Schedule>, momentum: f64) -> Self {
        Momentum { learning_rate: learning_rate.into(), momentum, kind: MomentumKind::Polyak }
    }
    /// Nesterov momentum.
    pub fn nesterov(learning_rate: impl Into<Schedule>, momentum: f64) -> Self {
        Momentum { kind: MomentumKind::Nesterov, ..Momentum::new(learning_rate, momentum) }
    }
}

impl Elementwise for Momentum {
    type Slots<T> = [T; 1];
    type Coeffs<T> = [T; 2];
    const SLOTS: &'static [&'static str] = &["momentum"];

    fn name(&self) -> String {
        match self.kind {
            MomentumKind::Polyak => "momentum".into(),
            MomentumKind::Nesterov => "nesterov".into(),
        }
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [("momentum", self.momentum, Interval::DECAY)];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 2] {
        [S::of(self.learning_rate.at(at.step, at.num_steps)), S::of(self.momentum)]
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, &[lr, mu]: &[S; 2], p: S, [v]: [S; 1], g: S) -> (S, [S; 1]) {
        let (step, v) = self.kind.trace(mu, v, g);
        (p - lr * step, [v])
    }
}
crate::elementwise_optimizer!(Momentum);

impl MomentumKind {
    /// The step and the new momentum from update `u` and momentum `v`.
    #[inline(always)]
    pub(crate) fn trace<S: Scalar>(self, mu: S, v: S, u: S) -> (S, S) {
        let v = mu * v + u;
        match self {
            MomentumKind::Polyak => (v, v),
            MomentumKind::Nesterov => (u + mu * v, v),
        }
    }
}
