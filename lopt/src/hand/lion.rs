//! Lion.

use super::{At, Elementwise, Schedule};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Interval, Result};
use serde::{Deserialize, Serialize};

/// Lion: `p ← p − lr (sign(β₁ m + (1−β₁) g) + λ p)`, then `m ← β₂ m + (1−β₂) g`.
///
/// The derivative of the sign is 0. NaN has no sign and ∞ would keep its own in m for good, whatever comes
/// after: both turn the parameter into NaN.
/// Reference: Chen et al. 2023, arXiv:2302.06675.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lion {
    /// Default 1e-4.
    pub learning_rate: Schedule,
    /// Weight of the old mean in the step; default 0.9.
    pub beta1: f64,
    /// Decay of the mean; default 0.99.
    pub beta2: f64,
    /// λ; default 1e-3.
    pub weight_decay: f64,
}

impl Default for Lion {
    fn default() -> Self {
        Lion { learning_rate: 1e-4.into(), beta1: 0.9, beta2: 0.99, weight_decay: 1e-3 }
    }
}

impl Elementwise for Lion {
    type Slots<T> = [T; 1];
    type Coeffs<T> = [T; 6];
    const SLOTS: &'static [&'static str] = &["m"];

    fn name(&self) -> String {
        "lion".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 6] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let (b1, b2) = (self.beta1, self.beta2);
        [lr, b1, 1.0 - b1, b2, 1.0 - b2, lr * self.weight_decay].map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[lr, b1, rest1, b2, rest2, decay]: &[S; 6],
        p: S,
        [m]: [S; 1],
        g: S,
    ) -> (S, [S; 1]) {
        let mean = b1 * m + rest1 * g;
        // 0, or NaN where the mean is not finite.
        let direction = mean.sign() + mean * S::of(0.0);
        (p - lr * direction - decay * p, [b2 * m + rest2 * g])
    }
}
crate::elementwise_optimizer!(Lion);
