//! [`Celo`]: VeLO's network per parameter under a learned learning-rate schedule; [`CeloAdam`]: the schedule alone,
//! for Adam.

mod adam;
mod layer;
mod packed;
pub(crate) mod scheduler;
mod step;
mod vjp;

pub use adam::CeloAdam;
pub use step::CeloKernel;

use crate::features::adafac::{self, Adafac};
use crate::features::averages;
use crate::kernel;
use crate::learned::mixed_net::MixedNet;
use crate::learned::velo::CONTROLS;
use crate::learned_optimizer;
use crate::rule::mlp::{dense, dense_tensors, init_dense, sorted_layout};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Taped, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Optimizer, Result};
use scheduler::Scheduler;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An LSTM reads time left and loss features once per step and gives a learning rate `l` and mixing weights
/// `c = softmax(..)`; per parameter an MLP with weights `mean_i(c_i W_i)` reads 30 normalized accumulator
/// features and gives direction a and magnitude b; `p ← p − l · a · exp(exp_mult · b) · step_mult · √(mean p² + 1e-9)`.
///
/// It is meta-trained in two phases: `train_phase` 1 learns the MLP with `l = 1`, 2 the LSTM with the MLP
/// frozen. Gradients are clipped to ±1000. The defaults are the constructor's of the reference; the published
/// weights are of [`Celo::published`].
///
/// Theta: haiku's names of the reference (the MLPs in `ff_mod_stack`, the schedule in `rnn_params` and
/// `lstm_init_state`). State: [`adafac::slots`], `lstm_hidden` and `lstm_cell` `[hidden]`, `loss_means` and
/// `loss_min` `[10]`. In f32 and for one set W the update and its derivative are fused kernels.
///
/// Needs the number of steps, at least 1: an unknown one is a panic of `init`.
/// Reference: Moudgil et al. 2025, arXiv:2501.12670; amoudgl/celo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Celo {
    /// Units of the LSTM, at least 1. Default 128.
    pub lstm_hidden_size: usize,
    /// Units per hidden layer of the MLP, at least 1. Default 4.
    pub ff_hidden_size: usize,
    /// Hidden layers of the MLP. Default 2.
    pub ff_hidden_layers: usize,
    /// Decays of the momenta. Default 0.9, 0.99, 0.999.
    pub initial_momentum_decays: Vec<f64>,
    /// Decays of the squared gradients. Default 0.999.
    pub initial_rms_decays: Vec<f64>,
    /// Decays of the factored second moments. Default 0.9, 0.99, 0.999.
    pub initial_adafactor_decays: Vec<f64>,
    /// Number of weight sets W. Default 64.
    pub param_inits: usize,
    /// Whether the LSTM reads its input through two layers. Default on.
    pub mix_layers: bool,
    /// Factor inside the exponential. Default 1e-3.
    pub exp_mult: f64,
    /// Factor of the whole step. Default 1e-3.
    pub step_mult: f64,
    /// Value of the validation feature. Default off.
    pub validation_mode: bool,
    /// Whether the LSTM has a validation feature. Default off.
    pub with_validation_feature_dim: bool,
    /// 1: the learning rate is not used; 2: it is. Default 1.
    pub train_phase: u8,
    /// Whether the step is multiplied by the tensor's root mean square. Default on.
    pub param_scale_mult: bool,
    /// Divides the step by the root of the last RMS average. Default off.
    pub precondition_output: bool,
    /// Share of the LSTM's state that is lost per step. Default 0.
    pub rnn_state_decay: f64,
    /// Replaces the loss by 1. Default off.
    pub constant_loss: bool,
    /// Limits the tensor's root mean square to this times √elements. Default none.
    pub clip_param_scale_amount: Option<f64>,
}

impl Default for Celo {
    fn default() -> Self {
        Celo {
            lstm_hidden_size: 128,
            ff_hidden_size: 4,
            ff_hidden_layers: 2,
            initial_momentum_decays: vec![0.9, 0.99, 0.999],
            initial_rms_decays: vec![0.999],
            initial_adafactor_decays: vec![0.9, 0.99, 0.999],
            param_inits: 64,
            mix_layers: true,
            exp_mult: 1e-3,
            step_mult: 1e-3,
            validation_mode: false,
            with_validation_feature_dim: false,
            train_phase: 1,
            param_scale_mult: true,
            precondition_output: false,
            rnn_state_decay: 0.0,
            constant_loss: false,
            clip_param_scale_amount: None,
        }
    }
}

/// Added to the mean square of a tensor's parameters.
pub(crate) const SIZE_EPSILON: f64 = 1e-9;
/// Added to RMS averages under the root.
pub(crate) const RMS_EPSILON: f64 = 1e-6;

impl Celo {
    /// The settings of the published weights: 64 units in the LSTM, one weight set, second phase.
    pub fn published() -> Self {
        Celo { lstm_hidden_size: 64, param_inits: 1, train_phase: 2, ..Celo::default() }
    }

    pub(crate) fn decays(&self) -> [&[f64]; 3] {
        [&self.initial_momentum_decays, &self.initial_rms_decays, &self.initial_adafactor_decays]
    }

    pub(crate) fn net(&self) -> MixedNet {
        MixedNet {
            decays: self.decays().map(<[f64]>::len),
            hidden_size: self.ff_hidden_size,
            hidden_layers: self.ff_hidden_layers,
            sets: self.param_inits,
        }
    }

    pub(crate) fn scheduler(&self) -> Scheduler {
        Scheduler {
            hidden: self.lstm_hidden_size,
            validation: self.with_validation_feature_dim.then_some(self.validation_mode),
            mix_layers: self.mix_layers,
            state_decay: self.rnn_state_decay,
            constant_loss: self.constant_loss,
        }
    }

    /// The learning rate's factor for the schedule's output, length 1.
    pub(crate) fn rate<E: Float>(&self, theta: &Theta<E>, output: &Var<E>) -> Var<E> {
        match self.train_phase {
            1 => Var::scalar(1.0),
            _ => Scheduler::rate(theta, output),
        }
    }

    /// The mixing weights `[param_inits]`.
    fn mixture<E: Float>(theta: &Theta<E>, output: &Var<E>) -> Var<E> {
        let controls = dense(theta, CONTROLS, output);
        // The largest is subtracted against overflow; it cancels.
        let e = (&controls - controls.largest().detach()).exp();
        &e / e.sum()
    }
}

impl UpdateRule for Celo {
    fn name(&self) -> String {
        "Celo".into()
    }

    fn validate(&self) -> Result<()> {
        Interval::DECAY.check_all("Celo: initial_momentum_decays", &self.initial_momentum_decays)?;
        Interval::DECAY.check_all("Celo: initial_rms_decays", &self.initial_rms_decays)?;
        Interval::DECAY.check_all("Celo: initial_adafactor_decays", &self.initial_adafactor_decays)?;
        let settings = [
            ("lstm_hidden_size", self.lstm_hidden_size as f64, Interval::COUNT),
            ("ff_hidden_size", self.ff_hidden_size as f64, Interval::COUNT),
            ("param_inits", self.param_inits as f64, Interval::COUNT),
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("train_phase", f64::from(self.train_phase), Interval::COUNT),
            ("rnn_state_decay", self.rnn_state_decay, Interval::FRACTION),
            ("clip_param_scale_amount", self.clip_param_scale_amount.unwrap_or(1.0), Interval::POSITIVE),
        ];
        check_settings("Celo", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.net().tensors();
        tensors.extend(self.scheduler().tensors());
        tensors.extend(dense_tensors(CONTROLS, self.lstm_hidden_size, self.param_inits));
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = init_dense(&layout, key);
        self.net().init(&layout, &mut theta, key);
        theta
    }

    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, num_steps: Option<u64>) -> Slots<E> {
        check_num_steps("Celo", num_steps);
        let mut slots = zero_slots(adafac::slots(layout, self.decays().map(<[f64]>::len)));
        slots.extend(self.scheduler().init(theta));
        slots
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let (output, schedule) = self.scheduler().step(theta, &now);
        let rate = self.rate(theta, &output).scale(self.step_mult);
        let mixture = Self::mixture(theta, &output);
        let mixture = (&mixture, 1.0 / self.param_inits as f64);
        let [momentum, rms, factored] = self.decays().map(averages::fixed_rates);
        let rates = Adafac { momentum, rms, factored, rms_epsilon: RMS_EPSILON, vector_epsilon: 0.0 };
        let (tensors, mut slots) = rates.update(&now, &now.slots, &now.grad.clip(-1000.0, 1000.0));
        let params = tensors.iter().map(|t| {
            let n = t.param.len();
            let out = self.net().forward(theta, mixture, &MixedNet::inputs(t));
            let mut scale = rate.clone();
            if self.param_scale_mult {
                let mut size = t.param.square().mean().shift(SIZE_EPSILON).sqrt();
                if let Some(amount) = self.clip_param_scale_amount {
                    size = size.min(&Var::scalar(amount * (n as f64).sqrt()));
                }
                scale = scale * size;
            }
            let mut step = out.row(0, n) * out.row(1, n).scale(self.exp_mult).exp() * scale;
            if self.precondition_output {
                step = step * &t.rsqrt[t.rsqrt.len() - 1];
            }
            &t.param - step
        });
        let params = Var::concat(&params.collect::<Vec<_>>());
        slots.extend(schedule);
        (params, slots)
    }

    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        let kernel = |theta: &[f32]| CeloKernel::new(self.clone(), theta, kernel::Path::best());
        CeloKernel::serves(self)
            .then(|| kernel::in_f32(theta, kernel))
            .flatten()
            .unwrap_or_else(|| Box::new(Taped::new(self.clone(), theta)))
    }
}

learned_optimizer!(Celo);

/// A run whose length is not known cannot be planned.
#[track_caller]
pub(crate) fn check_num_steps(name: &str, num_steps: Option<u64>) {
    let known = num_steps.is_some_and(|n| n > 0);
    assert!(
        known,
        "{name}: init needs num_steps, the planned number of updates, at least 1; got {num_steps:?}"
    );
}

#[cfg(test)]
impl Celo {
    pub(crate) fn first_rate(&self, theta: &[f32]) -> f64 {
        self.scheduler().first_rate(self.theta_layout(), theta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    const CASES: [&str; 2] = ["celo_random", "celo_random_flags"];

    #[test]
    fn keeps_its_contract() {
        let small = Celo { lstm_hidden_size: 8, param_inits: 4, ..Celo::default() };
        for celo in [Celo { train_phase: 2, ..small.clone() }, small, Celo::published()] {
            check_learned_optimizer::<f32>(&celo).unwrap();
            check_learned_optimizer::<f64>(&celo).unwrap();
        }
        assert_eq!(Celo::published().theta_layout().len(), 37089);
    }

    #[test]
    fn golden_runs_with_states() {
        for case in CASES {
            let golden = Golden::load(case);
            let config: Celo = golden.config();
            golden.check(&config, &config);
            for t in 0..golden.num_updates() {
                let (state, _) = golden.run::<f64>(&config, t + 1);
                let at = |name: &str| format!("/state_f64/{t}/{name}");
                golden.assert_close(&at("loss_means"), state.slot("loss_means").unwrap());
                golden.assert_close(&at("loss_running_min"), state.slot("loss_min").unwrap());
                // All tensors have the same.
                for i in 0..golden.layout.entries().len() {
                    golden.assert_close(&at(&format!("lstm_hidden/{i}")), state.slot("lstm_hidden").unwrap());
                    golden.assert_close(&at(&format!("lstm_cell/{i}")), state.slot("lstm_cell").unwrap());
                }
            }
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        for case in CASES {
            let mut l: Celo = Golden::load(case).config();
            l.step_mult = 0.1;
            let theta = noisy_theta(&l, 0.1);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{case}: {gap:e}");
            let gap = init_vjp_gap(&l, &theta);
            assert!(gap < 1e-6, "{case}: {gap:e}");
        }
    }

    #[test]
    #[should_panic(expected = "init needs num_steps")]
    fn an_unknown_number_of_steps_is_refused() {
        let celo = Celo { lstm_hidden_size: 2, param_inits: 1, ..Celo::default() };
        let theta: Vec<f64> = celo.init_theta(Key::new(0));
        let params = outerloop_core::Params::zeros(Arc::new(Layout::new([("w", vec![2])])));
        celo.optimizer(&theta).init(&params, None, Key::new(0));
    }
}
