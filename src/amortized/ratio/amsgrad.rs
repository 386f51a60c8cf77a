//! AMSGrad: the optimizer of the paper.

use outerloop_core::{check_settings, Interval, Result};
use outerloop_lopt::hand::{At, Elementwise, Schedule};
use outerloop_lopt::rule::dual::Scalar;
use serde::{Deserialize, Serialize};

/// Adam whose second moment never falls: `m ← β₁ m + (1−β₁) g`, `v ← β₂ v + (1−β₂) g²`, `u ← max(u, v)`,
/// `p ← p − lr m/(1−β₁ᵗ) / (√(u/(1−β₂ᵗ)) + ε)`.
///
/// Reference: Reddi, Kale, Kumar 2018, arXiv:1904.09237, with bias corrections as in PyTorch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AmsGrad {
    /// Default 0.001.
    pub learning_rate: Schedule,
    /// Decay of the mean of the gradient; default 0.9.
    pub beta1: f64,
    /// Decay of the mean of its square; default 0.999.
    pub beta2: f64,
    /// Added outside the root; default 1e-8.
    pub epsilon: f64,
}

impl Default for AmsGrad {
    fn default() -> Self {
        AmsGrad { learning_rate: 0.001.into(), beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }
    }
}

impl Elementwise for AmsGrad {
    type Slots<T> = [T; 3];
    type Coeffs<T> = [T; 7];
    const SLOTS: &'static [&'static str] = &["m", "v", "v_max"];

    fn name(&self) -> String {
        "amsgrad".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate("amsgrad: learning_rate")?;
        let settings = [
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings("amsgrad", settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 7] {
        let (b1, b2) = (S::of(self.beta1), S::of(self.beta2));
        let one = S::of(1.0);
        let lr = S::of(self.learning_rate.at(at.step, at.num_steps));
        let (scale, v_scale) = (lr / (one - b1.powf(at.t())), one / (one - b2.powf(at.t())));
        [scale, b1, one - b1, b2, one - b2, v_scale, S::of(self.epsilon)]
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[scale, b1, rest1, b2, rest2, v_scale, eps]: &[S; 7],
        p: S,
        [m, v, most]: [S; 3],
        g: S,
    ) -> (S, [S; 3]) {
        let g = g.limited();
        let m = b1 * m + rest1 * g;
        let v = b2 * v + rest2 * g.square();
        let most = most.max(v);
        (p - (scale * m).over((most * v_scale).sqrt() + eps), [m, v, most])
    }
}
outerloop_lopt::elementwise_optimizer!(AmsGrad);

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::check_optimizer;

    #[test]
    fn it_keeps_the_contract() {
        check_optimizer::<f64>(&AmsGrad::default()).expect("the contract");
    }
}
