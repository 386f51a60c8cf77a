//! Adam's kin: AdaBelief, Yogi, RAdam, and their ancestor AdaGrad.

use super::{At, Elementwise, Initial, Schedule};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Interval, Result};
use serde::{Deserialize, Serialize};

/// `[lr/(1−β₁ᵗ), β₁, 1−β₁, β₂, 1−β₂, 1/(1−β₂ᵗ), ε, ε_root]`
fn coeffs(lr: f64, [b1, b2]: [f64; 2], [eps, eps_root]: [f64; 2], at: At) -> [f64; 8] {
    let (scale, v_scale) = (lr / (1.0 - b1.powf(at.t())), 1.0 / (1.0 - b2.powf(at.t())));
    [scale, b1, 1.0 - b1, b2, 1.0 - b2, v_scale, eps, eps_root]
}

/// AdaBelief: Adam whose second moment is that of the gradient's deviation from its mean:
/// `s ← β₂ s + (1−β₂)(g−m)² + ε_root`, `p ← p − lr m̂/(√ŝ + ε)`.
///
/// Reference: Zhuang et al. 2020, arXiv:2010.07468; ε_root is stored in s at every step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaBelief {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-16.
    pub epsilon: f64,
    /// Added to s; default 1e-16.
    pub epsilon_root: f64,
}

impl Default for AdaBelief {
    fn default() -> Self {
        AdaBelief {
            learning_rate: 0.01.into(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-16,
            epsilon_root: 1e-16,
        }
    }
}

impl Elementwise for AdaBelief {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 8];
    const SLOTS: &'static [&'static str] = &["m", "s"];

    fn name(&self) -> String {
        "adabelief".into()
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
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 8] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        coeffs(lr, [self.beta1, self.beta2], [self.epsilon, self.epsilon_root], at).map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[scale, b1, rest1, b2, rest2, s_scale, eps, eps_root]: &[S; 8],
        p: S,
        [m, s]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = g.limited();
        let m = b1 * m + rest1 * g;
        let s = b2 * s + rest2 * (g - m).square() + eps_root;
        (p - (scale * m).over((s * s_scale).sqrt() + eps), [m, s])
    }
}
crate::elementwise_optimizer!(AdaBelief);

/// Yogi: Adam whose second moment moves by a bounded amount:
/// `v ← v − (1−β₂) sign(v − g²) g²`, `p ← p − lr m̂/(√v̂ + ε)`; m and v start at 1e-6.
///
/// Reference: Zaheer et al. 2018 (NeurIPS); in the form of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Yogi {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// ε; default 1e-3.
    pub epsilon: f64,
}

impl Default for Yogi {
    fn default() -> Self {
        Yogi { learning_rate: 0.01.into(), beta1: 0.9, beta2: 0.999, epsilon: 1e-3 }
    }
}

impl Elementwise for Yogi {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 8];
    const SLOTS: &'static [&'static str] = &["m", "v"];

    fn name(&self) -> String {
        "yogi".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn initial(&self, _: usize) -> Initial {
        Initial::Constant(1e-6)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 8] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        coeffs(lr, [self.beta1, self.beta2], [self.epsilon, 0.0], at).map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[scale, b1, rest1, _, rest2, v_scale, eps, _]: &[S; 8],
        p: S,
        [m, v]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = g.limited();
        let (m, g2) = (b1 * m + rest1 * g, g.square());
        let v = v - rest2 * (v - g2).sign() * g2;
        (p - (scale * m).over((v * v_scale).sqrt() + eps), [m, v])
    }
}
crate::elementwise_optimizer!(Yogi);

/// Rectified Adam: with `ρ∞ = 2/(1−β₂) − 1` and `ρ = ρ∞ − 2 t β₂ᵗ/(1−β₂ᵗ)`, Adam's step times
/// `√((ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ))` once ρ reaches the threshold, and `lr m̂` before.
///
/// Reference: Liu et al. 2019, arXiv:1908.03265.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RAdam {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-8.
    pub epsilon: f64,
    /// Added inside the root; default 0.
    pub epsilon_root: f64,
    /// Least ρ of a rectified step, at least 4; default 5.
    pub threshold: f64,
}

impl Default for RAdam {
    fn default() -> Self {
        RAdam {
            learning_rate: 0.01.into(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            epsilon_root: 0.0,
            threshold: 5.0,
        }
    }
}

impl RAdam {
    /// The factor of Adam's step; `None` while the variance of the step is unbounded.
    fn rectification(&self, t: f64) -> Option<f64> {
        let power = self.beta2.powf(t);
        let limit = 2.0 / (1.0 - self.beta2) - 1.0;
        let rho = limit - 2.0 * t * power / (1.0 - power);
        let ratio = (rho - 4.0) * (rho - 2.0) * limit / ((limit - 4.0) * (limit - 2.0) * rho);
        (rho >= self.threshold).then(|| ratio.sqrt())
    }
}

impl Elementwise for RAdam {
    type Slots<T> = [T; 2];
    /// The last one: 1 for a rectified step, 0 for a plain one.
    type Coeffs<T> = [T; 9];
    const SLOTS: &'static [&'static str] = &["m", "v"];

    fn name(&self) -> String {
        "radam".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("epsilon_root", self.epsilon_root, Interval::NOT_NEGATIVE),
            ("threshold", self.threshold, Interval::at_least(4.0)),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 9] {
        let factor = self.rectification(at.t());
        let lr = self.learning_rate.at(at.step, at.num_steps) * factor.unwrap_or(1.0);
        let [scale, b1, rest1, b2, rest2, v_scale, eps, eps_root] =
            coeffs(lr, [self.beta1, self.beta2], [self.epsilon, self.epsilon_root], at);
        let rectified = if factor.is_some() { 1.0 } else { 0.0 };
        [scale, b1, rest1, b2, rest2, v_scale, eps, eps_root, rectified].map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[scale, b1, rest1, b2, rest2, v_scale, eps, eps_root, rectified]: &[S; 9],
        p: S,
        [m, v]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = g.limited();
        let m = b1 * m + rest1 * g;
        let v = b2 * v + rest2 * g.square();
        let root = (v * v_scale + eps_root).sqrt() + eps;
        let denominator = S::select(rectified >= S::of(0.5), root, S::of(1.0));
        (p - (scale * m).over(denominator), [m, v])
    }
}
crate::elementwise_optimizer!(RAdam);

/// AdaGrad: `s ← s + g²`, `p ← p − lr g/√(s + ε)`.
///
/// Reference: Duchi, Hazan, Singer 2011; defaults of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdaGrad {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// s at the start; default 0.1.
    pub initial_accumulator: f64,
    /// ε; default 1e-7.
    pub epsilon: f64,
}

impl Default for AdaGrad {
    fn default() -> Self {
        AdaGrad { learning_rate: 0.01.into(), initial_accumulator: 0.1, epsilon: 1e-7 }
    }
}

impl Elementwise for AdaGrad {
    type Slots<T> = [T; 1];
    type Coeffs<T> = [T; 2];
    const SLOTS: &'static [&'static str] = &["s"];

    fn name(&self) -> String {
        "adagrad".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("initial_accumulator", self.initial_accumulator, Interval::NOT_NEGATIVE),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn initial(&self, _: usize) -> Initial {
        Initial::Constant(self.initial_accumulator)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 2] {
        [S::of(self.learning_rate.at(at.step, at.num_steps)), S::of(self.epsilon)]
    }
    #[inline(always)]
    fn step<S: Scalar>(&self, &[lr, eps]: &[S; 2], p: S, [s]: [S; 1], g: S) -> (S, [S; 1]) {
        let g = g.limited();
        let s = s + g.square();
        let zero = S::of(0.0);
        // 0/0 where nothing has come yet and ε = 0.
        (p - S::select(zero >= s, zero, lr * g / (s + eps).sqrt()), [s])
    }
}
crate::elementwise_optimizer!(AdaGrad);
