//! NAdamW.

use super::{At, Elementwise, MomentumKind, Schedule};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Interval, Result};
use serde::{Deserialize, Serialize};

/// Adam with Nesterov momentum, decoupled and L2 weight decay; ε outside the bias correction:
/// `g ← g + λ₂ p`, Adam's m and v, `lrₜ = lr √(1−β₂ᵗ)/(1−β₁ᵗ)`,
/// `p ← p − lrₜ (n/(√v + ε) + λ p)`, with `n = β₁ m + (1−β₁) g` (Nesterov) or `n = m` (Polyak).
///
/// Reference: Metz et al. 2020, arXiv:2002.11887 (the family of the ordered list of 1000
/// hyperparameter settings).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct NAdamW {
    /// Default 1e-4.
    pub learning_rate: Schedule,
    /// Decay of the mean of the gradient; default 0.9.
    pub beta1: f64,
    /// Decay of the mean of its square; default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-8.
    pub epsilon: f64,
    /// λ; default 0.
    pub weight_decay: f64,
    /// λ₂; default 0.
    pub l2: f64,
    /// Default proper.
    pub l2_sign: L2Sign,
    /// Default Nesterov.
    pub kind: MomentumKind,
}

/// The sign of [`NAdamW::l2`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum L2Sign {
    /// `g + λ₂ p`: the gradient of `λ₂ p²/2`, which shrinks parameters.
    #[default]
    Proper,
    /// `g − λ₂ p`: learned_optimization's sign, which grows them.
    Reference,
}

impl Default for NAdamW {
    fn default() -> Self {
        NAdamW {
            learning_rate: 1e-4.into(),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            l2: 0.0,
            l2_sign: L2Sign::Proper,
            kind: MomentumKind::Nesterov,
        }
    }
}

impl Elementwise for NAdamW {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 8];
    const SLOTS: &'static [&'static str] = &["m", "v"];

    fn name(&self) -> String {
        "nadamw".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("l2", self.l2, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 8] {
        let (b1, b2) = (self.beta1, self.beta2);
        let lr = self.learning_rate.at(at.step, at.num_steps) * (1.0 - b2.powf(at.t())).sqrt()
            / (1.0 - b1.powf(at.t()));
        let l2 = match self.l2_sign {
            L2Sign::Proper => self.l2,
            L2Sign::Reference => -self.l2,
        };
        [lr, b1, 1.0 - b1, b2, 1.0 - b2, self.epsilon, lr * self.weight_decay, l2].map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[lr, b1, rest1, b2, rest2, eps, decay, l2]: &[S; 8],
        p: S,
        [m, v]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = (g + l2 * p).limited();
        let m = b1 * m + rest1 * g;
        let v = b2 * v + rest2 * g.square();
        let numerator = match self.kind {
            MomentumKind::Polyak => m,
            MomentumKind::Nesterov => b1 * m + rest1 * g,
        };
        (p - (lr * numerator).over(v.sqrt() + eps) - decay * p, [m, v])
    }
}
crate::elementwise_optimizer!(NAdamW);
