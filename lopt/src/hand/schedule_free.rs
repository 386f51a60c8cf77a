//! Schedule-Free AdamW.

use super::{At, Elementwise, Initial};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, OptState, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// AdamW that averages iterates instead of decaying its rate. The parameters are y, where gradients
/// are taken: `u = g/(√v̂ + ε) + λ y`, `z ← z − lrₜ u`, `x ← (1−c) x + c z`,
/// `y = (1−β₁) z + β₁ x`, with `c = lrₜ²/Σ lrₛ²` and `lrₜ` rising linearly over the warm-up.
///
/// x, the average, is what to evaluate: [`ScheduleFreeAdamW::average`]. For β₁ = 0, where y is z, the slot `z`
/// holds x.
/// Reference: Defazio et al. 2024, arXiv:2405.15682, and its published code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScheduleFreeAdamW {
    /// Default 0.0025.
    pub learning_rate: f64,
    /// Weight of the average in y, from 0 (Polyak averaging) to 1 (primal averaging); default 0.9.
    pub beta1: f64,
    /// Default 0.999.
    pub beta2: f64,
    /// Default 1e-8.
    pub epsilon: f64,
    /// λ, acting at y; default 0.
    pub weight_decay: f64,
    /// Steps of linear warm-up; default 0.
    pub warmup_steps: u64,
}

impl Default for ScheduleFreeAdamW {
    fn default() -> Self {
        ScheduleFreeAdamW {
            learning_rate: 0.0025,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            warmup_steps: 0,
        }
    }
}

impl ScheduleFreeAdamW {
    /// x, the averaged parameters, of a state: `z + (y − z)/β₁`.
    ///
    /// # Errors
    /// If the state is another optimizer's.
    pub fn average<E: Float>(&self, state: &OptState<E>) -> Result<Vec<E>> {
        let z = state.slot("z")?;
        if self.beta1 == 0.0 {
            return Ok(z.to_vec());
        }
        Ok(state.params.iter().zip(z).map(|(y, z)| *z + (*y - *z) / E::of(self.beta1)).collect())
    }

    /// `lrₜ` and `c` at update number `t`.
    fn rate_and_weight(&self, t: f64) -> (f64, f64) {
        let w = self.warmup_steps as f64;
        let rise = if t < w { t / w } else { 1.0 };
        // Σ of rise² over the updates 1..=t
        let rising = t.min(w);
        let ramp = if w > 0.0 { rising * (rising + 1.0) * (2.0 * rising + 1.0) / (6.0 * w * w) } else { 0.0 };
        (self.learning_rate * rise, rise * rise / (ramp + (t - rising)))
    }
}

impl Elementwise for ScheduleFreeAdamW {
    type Slots<T> = [T; 2];
    type Coeffs<T> = [T; 8];
    const SLOTS: &'static [&'static str] = &["z", "v"];

    fn name(&self) -> String {
        "schedule_free_adamw".into()
    }
    fn validate(&self) -> Result<()> {
        let settings = [
            ("learning_rate", self.learning_rate, Interval::NOT_NEGATIVE),
            ("beta1", self.beta1, Interval::FRACTION),
            ("beta2", self.beta2, Interval::DECAY),
            ("epsilon", self.epsilon, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn initial(&self, slot: usize) -> Initial {
        if slot == 0 {
            Initial::Params
        } else {
            Initial::Constant(0.0)
        }
    }
    fn coeffs<S: Scalar>(&self, _: &[S], at: At) -> [S; 8] {
        let (lr, c) = self.rate_and_weight(at.t());
        let v_scale = 1.0 / (1.0 - self.beta2.powf(at.t()));
        // y moves by lr (β₁ (1−c) − 1) u besides the averaging.
        let y_rate = lr * (1.0 - self.beta1 * (1.0 - c));
        [lr, y_rate, c, self.beta2, 1.0 - self.beta2, v_scale, self.epsilon, self.weight_decay].map(S::of)
    }
    #[inline(always)]
    fn step<S: Scalar>(
        &self,
        &[lr, y_rate, c, b2, rest2, v_scale, eps, decay]: &[S; 8],
        y: S,
        [z, v]: [S; 2],
        g: S,
    ) -> (S, [S; 2]) {
        let g = g.limited();
        let v = b2 * v + rest2 * g.square();
        let u = g.over((v * v_scale).sqrt() + eps) + decay * y;
        if self.beta1 == 0.0 {
            let y = y - lr * u;
            return (y, [z + c * (y - z), v]);
        }
        (y + c * (z - y) - y_rate * u, [z - lr * u, v])
    }
    fn evaluation_params<'a, E: Float>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        Cow::Owned(self.average(state).expect("a state that `init` made has the slot"))
    }
}
crate::elementwise_optimizer!(ScheduleFreeAdamW);

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::{Key, Layout, Optimizer, Params};
    use std::sync::Arc;

    /// The three sequences x, y, z of the paper, with x stored and no shortcut.
    #[test]
    fn equals_the_three_sequences() {
        for beta1 in [0.0, 0.1, 0.9, 1.0] {
            let opt = ScheduleFreeAdamW {
                beta1,
                weight_decay: 0.1,
                warmup_steps: 3,
                ..ScheduleFreeAdamW::default()
            };
            let params = Params::new(Arc::new(Layout::new([("p", vec![1])])), vec![0.7f64]).unwrap();
            let mut state = opt.init(&params, None, Key::new(0));
            let (mut x, mut z, mut v, mut sum) = (0.7, 0.7, 0.0, 0.0);
            for t in 1..=8 {
                let y = (1.0 - beta1) * z + beta1 * x;
                assert!((state.params[0] - y).abs() < 1e-14);
                let g = (1.3 * t as f64).sin() + y;
                v = 0.999 * v + (1.0 - 0.999) * g * g;
                let lr = 0.0025 * (t as f64 / 3.0).min(1.0);
                let v_hat: f64 = v / (1.0 - 0.999f64.powi(t));
                z -= lr * (g / (v_hat.sqrt() + 1e-8) + 0.1 * y);
                sum += lr * lr;
                x += lr * lr / sum * (z - x);
                opt.update(&mut state, &[g], 0.0, Key::new(0));
                assert!((Optimizer::evaluation_params(&opt, &state)[0] - x).abs() < 1e-14, "{beta1}");
            }
        }
    }
}
