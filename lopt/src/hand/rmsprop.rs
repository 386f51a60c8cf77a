//! RMSProp.

use super::{At, Elementwise, MomentumKind, Schedule};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Interval, Result};
use serde::{Deserialize, Serialize};

/// RMSProp: `v ← d v + (1−d) g²`, `u = lr g/√(v + ε)`, then momentum on the steps:
/// `w ← μ w + u` and `p ← p − w` (Polyak) or `p ← p − (u + μ w)` (Nesterov).
///
/// With ε = 0 the derivative of the root at v = 0 is defined as 0.
/// Reference: Tieleman, Hinton 2012, in the form of optax (ε inside the root).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RmsProp {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// d; default 0.9.
    pub decay: f64,
    /// ε; default 1e-8.
    pub epsilon: f64,
    /// μ; default 0.
    pub momentum: f64,
    /// Default Polyak.
    pub kind: MomentumKind,
}

impl Default for RmsProp {
    fn default() -> Self {
        RmsProp {
            learning_rate: 0.01.into(),
            decay: 0.9,
            epsilon: 1e-8,
            momentum: 0.0,
            kind: MomentumKind::Polyak,
        }
    }
}

impl Elementwise for RmsProp {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 5];
    const SLOTS: &'static [&'static str] = &["v", "momentum"];

    fn name(&self) -> String {
        "rmsprop".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("decay", self.decay, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("momentum", self.momentum, Interval::DECAY),
        ];
        check_settings(&self.name(), settings)
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 5] {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        [lr, self.decay, 1.0 - self.decay, self.epsilon, self.momentum].map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[lr, decay, rest, eps, mu]: &[S; 5],
        p: S,
        [v, w]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = g.limited();
        let v = decay * v + rest * g.square();
        let (step, w) = self.kind.trace(mu, w, (lr * g).over((v + eps).sqrt()));
        (p - step, [v, w])
    }
}
crate::elementwise_optimizer!(RmsProp);
