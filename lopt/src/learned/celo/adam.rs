//! [`CeloAdam`]: Adam whose learning rate an LSTM plans.

use super::check_num_steps;
use super::scheduler::{Scheduler, SLOTS};
use crate::features::averages;
use crate::learned_optimizer;
use crate::rule::mlp::{init_dense, sorted_layout};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Adam with the learned schedule of [`super::Celo`]: `m` and `v` are averages of the gradient, clipped to ±1000, and
/// of its square, `m̂ = m/(1 − β₁ᵗ)`, `v̂ = v/(1 − β₂ᵗ)`, `p ← p − step_mult · 0.1 exp(s) · m̂ / (ε + √(v̂ + 1e-10))`,
/// where s is what the LSTM gives for time left and losses, once per step.
///
/// The defaults are the constructor's of the reference and those of the published weights.
///
/// Theta: haiku's names of the reference, `rnn_params` and `lstm_init_state`. State: `momentum` and `rms` `[n]`,
/// `lstm_hidden` and `lstm_cell` `[hidden]`, `loss_means` and `loss_min` `[10]`.
///
/// Needs the number of steps, at least 1: an unknown one is a panic of `init`.
/// Reference: class `Celo` in `celo_adam.py` of amoudgl/celo; Moudgil et al. 2025, arXiv:2501.12670.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CeloAdam {
    /// Units of the LSTM, at least 1. Default 64.
    pub lstm_hidden_size: usize,
    /// Decay of the momentum; of several the last is used, and corrected as if it were the first. Default 0.9.
    pub initial_momentum_decays: Vec<f64>,
    /// Decay of the squared gradient; several as above. Default 0.999.
    pub initial_rms_decays: Vec<f64>,
    /// ε. Default 1e-8.
    pub initial_epsilon: f64,
    /// Factor of the whole step. Default 1e-3.
    pub step_mult: f64,
    /// Whether the LSTM reads its input through two layers. Default on.
    pub mix_layers: bool,
    /// Value of the validation feature. Default off.
    pub validation_mode: bool,
    /// Whether the LSTM has a validation feature. Default off.
    pub with_validation_feature_dim: bool,
    /// Whether the averages are corrected for their start from 0; the reference's name. Default on.
    pub mom_decay: bool,
    /// Whether the step is multiplied by the tensor's root mean square. Default off.
    pub param_scale_mult: bool,
    /// Share of the LSTM's state that is lost per step. Default 0.
    pub rnn_state_decay: f64,
    /// Replaces the loss by 1. Default off.
    pub constant_loss: bool,
}

impl Default for CeloAdam {
    fn default() -> Self {
        CeloAdam {
            lstm_hidden_size: 64,
            initial_momentum_decays: vec![0.9],
            initial_rms_decays: vec![0.999],
            initial_epsilon: 1e-8,
            step_mult: 1e-3,
            mix_layers: true,
            validation_mode: false,
            with_validation_feature_dim: false,
            mom_decay: true,
            param_scale_mult: false,
            rnn_state_decay: 0.0,
            constant_loss: false,
        }
    }
}

/// Added under the root.
const ROOT_EPSILON: f64 = 1e-10;

impl CeloAdam {
    /// Arguments of the reference's constructor that have no effect there.
    pub(crate) const IDLE: [&'static str; 9] = [
        "ff_hidden_size",
        "ff_hidden_layers",
        "initial_adafactor_decays",
        "param_inits",
        "exp_mult",
        "precondition_output",
        "reparam_decay",
        "clip_param_scale_amount",
        "adafactor_accumulator",
    ];

    fn scheduler(&self) -> Scheduler {
        Scheduler {
            hidden: self.lstm_hidden_size,
            validation: self.with_validation_feature_dim.then_some(self.validation_mode),
            mix_layers: self.mix_layers,
            state_decay: self.rnn_state_decay,
            constant_loss: self.constant_loss,
        }
    }
}

impl UpdateRule for CeloAdam {
    fn name(&self) -> String {
        "CeloAdam".into()
    }

    fn validate(&self) -> Result<()> {
        Interval::DECAY.check_all("CeloAdam: initial_momentum_decays", &self.initial_momentum_decays)?;
        Interval::DECAY.check_all("CeloAdam: initial_rms_decays", &self.initial_rms_decays)?;
        let settings = [
            ("lstm_hidden_size", self.lstm_hidden_size as f64, Interval::COUNT),
            ("initial_epsilon", self.initial_epsilon, Interval::NOT_NEGATIVE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("rnn_state_decay", self.rnn_state_decay, Interval::FRACTION),
        ];
        check_settings("CeloAdam", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        Arc::new(sorted_layout(self.scheduler().tensors()))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        init_dense(&self.theta_layout(), key)
    }

    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, num_steps: Option<u64>) -> Slots<E> {
        check_num_steps("CeloAdam", num_steps);
        let mut slots = zero_slots([("momentum", layout.len()), ("rms", layout.len())]);
        slots.extend(self.scheduler().init(theta));
        slots
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let (output, schedule) = self.scheduler().step(theta, &now);
        let rate = Scheduler::rate(theta, &output).scale(self.step_mult);
        let grad = now.grad.clip(-1000.0, 1000.0);
        let decays = [&self.initial_momentum_decays, &self.initial_rms_decays];
        let [m, v] = [(0, &grad), (1, &grad.square())].map(|(i, x)| {
            let decay = decays[i].last().copied().unwrap_or(0.0);
            averages::step(&now.slots[i], x, &Var::scalar(1.0 - decay))
        });
        let corrections = decays.map(|d| match self.mom_decay {
            true => 1.0 / (1.0 - d.first().copied().unwrap_or(0.0).powf((now.step + 1) as f64)),
            false => 1.0,
        });
        let root = v.scale(corrections[1]).shift(ROOT_EPSILON).sqrt().shift(self.initial_epsilon);
        let direction = m.scale(corrections[0]) / root;
        let params = match self.param_scale_mult {
            false => &now.params - direction * &rate,
            true => {
                let next = now.tensors().map(|(_, range)| {
                    let p = now.params.slice(range.clone());
                    let size = p.square().mean().shift(super::SIZE_EPSILON).sqrt();
                    &p - direction.slice(range) * (&rate * size)
                });
                Var::concat(&next.collect::<Vec<_>>())
            }
        };
        let mut slots = vec![m, v];
        slots.extend(schedule);
        debug_assert_eq!(slots.len(), 2 + SLOTS);
        (params, slots)
    }
}

learned_optimizer!(CeloAdam);

#[cfg(test)]
impl CeloAdam {
    pub(crate) fn first_rate(&self, theta: &[f32]) -> f64 {
        self.scheduler().first_rate(self.theta_layout(), theta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&CeloAdam::default()).unwrap();
        check_learned_optimizer::<f64>(&CeloAdam::default()).unwrap();
        let scaled = CeloAdam { lstm_hidden_size: 3, param_scale_mult: true, ..CeloAdam::default() };
        check_learned_optimizer::<f64>(&scaled).unwrap();
        assert_eq!(CeloAdam::default().theta_layout().len(), 36865);
    }

    #[test]
    fn golden_runs() {
        let golden = Golden::load("celo_adam_random");
        let config: CeloAdam = golden.config();
        golden.check(&config, &config);
    }

    #[test]
    fn derivatives_agree_with_differences() {
        let plain: CeloAdam = Golden::load("celo_adam_random").config();
        let flags = CeloAdam {
            param_scale_mult: true,
            mom_decay: false,
            mix_layers: false,
            rnn_state_decay: 0.1,
            with_validation_feature_dim: true,
            ..plain.clone()
        };
        for l in [plain, flags] {
            let theta = noisy_theta(&l, 0.1);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{l:?}: {gap:e}");
            let gap = init_vjp_gap(&l, &theta);
            assert!(gap < 1e-6, "{l:?}: {gap:e}");
        }
    }
}
