//! [`Velo`]: an LSTM per tensor that mixes the weights of a small network per parameter.

use crate::features::adafac::{self, Adafac};
use crate::features::{averages, loss, stats, time};
use crate::learned::mixed_net::MixedNet;
use crate::learned_optimizer;
use crate::rule::lstm::{columns, Lstm};
use crate::rule::mlp::{dense, dense_tensors, init_dense, sorted_layout};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The architecture of VeLO (`HyperV2`): per tensor an LSTM reads statistics, time left and loss
/// features and gives mixing weights `c` and a step size `l`; per parameter an MLP with weights
/// `100 · mean_i(c_i W_i)` reads 30 normalized accumulator features and gives direction a and
/// magnitude b; `p ← p − l · a · exp(exp_mult · b) · step_mult · √(mean p² + 1e-9)`.
///
/// Gradients are clipped to ±1000. The defaults are the constructor's of the reference; the released
/// VeLO uses `lstm_hidden_size` 512, `param_inits` 256 and `use_bugged_loss_features` off.
///
/// Theta: haiku's names of the reference. State: [`adafac::slots`], `lstm_hidden` and `lstm_cell`
/// `[hidden, tensors]`, `loss_means` and `loss_min` `[10]`.
///
/// Needs the number of steps: an unknown one is a panic of `init`.
/// Reference: Metz et al. 2022, arXiv:2211.09760; `HyperV2` of google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Velo {
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
    /// Whether tensors see each other: the LSTM's input is a linear map of the tensor's own features
    /// plus the maximum over tensors of a ReLU layer. Default on.
    pub mix_layers: bool,
    /// Factor inside the exponential. Default 1e-3.
    pub exp_mult: f64,
    /// Factor of the whole step. Default 1e-3.
    pub step_mult: f64,
    /// Value of the validation feature. Default off.
    pub validation_mode: bool,
    /// Whether the LSTM has a validation feature. Default off.
    pub with_validation_feature_dim: bool,
    /// Whether the step is multiplied by the tensor's root mean square. Default on.
    pub param_scale_mult: bool,
    /// Quirk of old checkpoints: the LSTM's state stays what it was. Default off.
    pub use_bugged_next_lstm_state: bool,
    /// Quirk of the constructor: the loss features reckon with 10 steps. Default on.
    pub use_bugged_loss_features: bool,
    /// Divides the step by the root of the last RMS average. Default off.
    pub precondition_output: bool,
    /// Share of the LSTM's state that is lost per step. Default 0.
    pub rnn_state_decay: f64,
    /// Replaces the loss by 1. Default off.
    pub constant_loss: bool,
    /// Limits the tensor's root mean square to this times √elements. Default none.
    pub clip_param_scale_amount: Option<f64>,
}

impl Default for Velo {
    fn default() -> Self {
        Velo {
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
            param_scale_mult: true,
            use_bugged_next_lstm_state: false,
            use_bugged_loss_features: true,
            precondition_output: false,
            rnn_state_decay: 0.0,
            constant_loss: false,
            clip_param_scale_amount: None,
        }
    }
}

/// Classes of a tensor's rank (dimensions larger than 1).
const RANKS: usize = 5;

/// Names of the two layers of the mixing; the reference has a third, `linear`, without effect.
pub(crate) const MIX: [&str; 3] = ["rnn_params/linear", "rnn_params/linear_1", "rnn_params/linear_2"];

pub(crate) const CONTROLS: &str = "rnn_params/rnn_to_controls";
pub(crate) const STEP_SIZE: &str = "rnn_params/step_size";

impl Velo {
    fn decays(&self) -> [&[f64]; 3] {
        [&self.initial_momentum_decays, &self.initial_rms_decays, &self.initial_adafactor_decays]
    }

    fn net(&self) -> MixedNet {
        MixedNet {
            decays: self.decays().map(<[f64]>::len),
            hidden_size: self.ff_hidden_size,
            hidden_layers: self.ff_hidden_layers,
            sets: self.param_inits,
        }
    }

    fn stat_count(&self) -> usize {
        let [m, r, _] = self.decays().map(<[f64]>::len);
        time::FRACTIONS.len()
            + loss::COUNT
            + r
            + RANKS
            + m
            + m.max(r)
            + usize::from(self.with_validation_feature_dim)
    }

    fn lstm(&self) -> Lstm {
        let inputs = if self.mix_layers { self.lstm_hidden_size } else { self.stat_count() };
        Lstm { name: "rnn_params/rnn", inputs, hidden: self.lstm_hidden_size }
    }

    fn loss_decays(&self, num_steps: u64) -> [f64; loss::AVERAGES] {
        loss::decays(if self.use_bugged_loss_features { 10 } else { num_steps })
    }

    /// One tensor's input of the LSTM: statistics of parameters and of the accumulators before the
    /// update, all scaled by the tensor's root mean square.
    fn statistics<E: Float>(
        &self,
        shape: &[usize],
        p: &Var<E>,
        [momenta, rms]: [&[Var<E>]; 2],
        shared: [&Var<E>; 2],
    ) -> Var<E> {
        let scale = p.square().mean().clip(1e-9, f64::INFINITY).rsqrt();
        let mag = |x: &Var<E>| stats::log_magnitude(&x.scale(10.0)).scale(0.5);
        let momenta: Vec<_> = momenta.iter().map(|m| m * &scale).collect();
        let rms: Vec<_> = rms.iter().map(|v| v * &scale).collect();
        let means: Vec<_> = momenta.iter().map(Var::mean).collect();
        let rank = shape.iter().filter(|d| **d > 1).count();
        let mut all = vec![shared[0].clone(), shared[1].clone()];
        all.extend(rms.iter().map(|v| mag(&v.mean())));
        all.extend((0..RANKS).map(|r| Var::scalar(f64::from(u8::from(r == rank)))));
        all.extend(momenta.iter().zip(&means).map(|(m, mean)| mag(&m.spread(mean))));
        // The reference measures the spread of rms around the mean of m.
        let pairs = momenta.len().max(rms.len());
        all.extend(
            (0..pairs).map(|i| mag(&rms[i.min(rms.len() - 1)].spread(&means[i.min(means.len() - 1)]))),
        );
        if self.with_validation_feature_dim {
            all.push(Var::scalar(f64::from(u8::from(self.validation_mode))));
        }
        Var::concat(&all)
    }

    /// Runs the LSTM on `x` `[statistics, tensors]`: per tensor the mixing weights and the step size,
    /// and the next hidden and cell.
    fn control<E: Float>(
        &self,
        theta: &Theta<E>,
        x: Var<E>,
        state: [&Var<E>; 2],
        count: usize,
    ) -> ([Var<E>; 2], [Var<E>; 2]) {
        let x = if self.mix_layers {
            let shared = dense(theta, MIX[1], &x).relu();
            let units = 0..self.lstm_hidden_size;
            let largest = Var::concat(&units.map(|u| shared.row(u, count).largest()).collect::<Vec<_>>());
            dense(theta, MIX[2], &x) + largest.expand_axis([self.lstm_hidden_size, count, 1])
        } else {
            x
        };
        let next = self.lstm().step(theta, &x, state);
        let controls = dense(theta, CONTROLS, &next[0]).transpose(self.param_inits, count);
        ([controls, dense(theta, STEP_SIZE, &next[0])], next)
    }
}

impl UpdateRule for Velo {
    fn name(&self) -> String {
        "Velo".into()
    }

    fn validate(&self) -> Result<()> {
        Interval::DECAY.check_all("Velo: initial_momentum_decays", &self.initial_momentum_decays)?;
        Interval::DECAY.check_all("Velo: initial_rms_decays", &self.initial_rms_decays)?;
        Interval::DECAY.check_all("Velo: initial_adafactor_decays", &self.initial_adafactor_decays)?;
        let settings = [
            ("lstm_hidden_size", self.lstm_hidden_size as f64, Interval::COUNT),
            ("ff_hidden_size", self.ff_hidden_size as f64, Interval::COUNT),
            ("param_inits", self.param_inits as f64, Interval::COUNT),
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("rnn_state_decay", self.rnn_state_decay, Interval::FRACTION),
            ("clip_param_scale_amount", self.clip_param_scale_amount.unwrap_or(1.0), Interval::POSITIVE),
        ];
        check_settings("Velo", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.net().tensors();
        tensors.extend(self.lstm().tensors());
        tensors.extend(dense_tensors(CONTROLS, self.lstm_hidden_size, self.param_inits));
        tensors.extend(dense_tensors(STEP_SIZE, self.lstm_hidden_size, 1));
        if self.mix_layers {
            tensors
                .extend(MIX.iter().flat_map(|m| dense_tensors(m, self.stat_count(), self.lstm_hidden_size)));
        }
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = init_dense(&layout, key);
        self.net().init(&layout, &mut theta, key);
        theta
    }

    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, num_steps: Option<u64>) -> Slots<E> {
        assert!(num_steps.is_some(), "Velo: init needs num_steps, the planned number of updates");
        let mut slots = zero_slots(adafac::slots(layout, self.decays().map(<[f64]>::len)));
        let [hidden, cell] = self.lstm().init(theta, columns(layout));
        slots.extend([("lstm_hidden", hidden), ("lstm_cell", cell)]);
        slots.extend(zero_slots([("loss_means", loss::AVERAGES)]));
        slots.push(("loss_min", Var::constant(vec![E::of(loss::NO_MINIMUM); loss::AVERAGES])));
        slots
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let (accumulators, rest) = now.slots.split_at(4);
        let [hidden, cell, means, lowest] = rest else { unreachable!("eight slots") };
        let num_steps = now.num_steps.unwrap_or(1);
        let decays = self.loss_decays(num_steps);
        let loss = if self.constant_loss { Var::scalar(1.0) } else { now.loss.clone() };
        let [means, lowest] = loss::update([means, lowest], &decays, &loss, now.step);
        let loss_features = loss::features([&means, &lowest], &decays, now.step + 1);
        let done = now.step as f64 / num_steps as f64;
        let time = Var::constant(time::of_fraction(done).map(E::of).to_vec());

        let count = columns(&now.layout);
        let statistics = now.tensors().map(|(shape, range)| {
            let old = [0, 1].map(|i| adafac::tensor_rows(&accumulators[i], self.decays()[i].len(), &range));
            let p = now.params.slice(range);
            self.statistics(shape, &p, [&old[0], &old[1]], [&time, &loss_features])
        });
        let x = Var::concat(&statistics.collect::<Vec<_>>()).transpose(count, self.stat_count());
        let ([controls, step_size], next) = self.control(theta, x, [hidden, cell], count);
        let kept = if self.use_bugged_next_lstm_state { [hidden.clone(), cell.clone()] } else { next };
        let [hidden, cell] = kept.map(|s| s.scale(1.0 - self.rnn_state_decay));

        let [momentum, rms, factored] = self.decays().map(averages::fixed_rates);
        let rates = Adafac { momentum, rms, factored, rms_epsilon: 1e-6, vector_epsilon: 0.0 };
        let (tensors, mut slots) = rates.update(&now, accumulators, &now.grad.clip(-1000.0, 1000.0));
        let params = tensors.iter().enumerate().map(|(i, t)| {
            let n = t.param.len();
            let mixture = (&controls.row(i, self.param_inits), 100.0 / self.param_inits as f64);
            let out = self.net().forward(theta, mixture, &MixedNet::inputs(t));
            let mut scale = step_size.slice(i..i + 1).scale(self.step_mult);
            if self.param_scale_mult {
                let mut size = t.param.square().mean().shift(1e-9).sqrt();
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
        slots.extend([hidden, cell, means, lowest]);
        (params, slots)
    }
}

learned_optimizer!(Velo);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    const CASES: [&str; 4] = ["default", "bigstep", "old_ckpt_flags", "veloflags"];

    #[test]
    fn keeps_its_contract() {
        let small = Velo { lstm_hidden_size: 8, param_inits: 4, ..Default::default() };
        check_learned_optimizer::<f32>(&small).unwrap();
        check_learned_optimizer::<f64>(&small).unwrap();
        // The released model: 2.3 million weights.
        let released = Velo { lstm_hidden_size: 512, param_inits: 256, ..Default::default() };
        assert_eq!(released.theta_layout().len() / 100_000, 23);
    }

    #[test]
    fn golden_runs_with_states() {
        for case in CASES {
            let golden = Golden::load(&format!("hyper_v2_{case}"));
            let config: Velo = golden.config();
            golden.check(&config, &config);
            for t in 0..golden.num_updates() {
                let (state, _) = golden.run::<f64>(&config, t + 1);
                let by_tensor = |slot: &str| {
                    let s = Var::constant(state.slot(slot).unwrap().to_vec());
                    s.transpose(config.lstm_hidden_size, 4).data().to_vec()
                };
                let at = |name: &str| format!("/state_f64/{t}/{name}");
                golden.assert_close(&at("loss_means"), state.slot("loss_means").unwrap());
                golden.assert_close(&at("loss_running_min"), state.slot("loss_min").unwrap());
                golden.assert_close(&at("lstm_hidden"), &by_tensor("lstm_hidden"));
                golden.assert_close(&at("lstm_cell"), &by_tensor("lstm_cell"));
            }
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        for case in CASES {
            let mut l: Velo = Golden::load(&format!("hyper_v2_{case}")).config();
            l.step_mult = 0.1;
            let theta = noisy_theta(&l, 0.01);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{case}: {gap:e}");
            let gap = init_vjp_gap(&l, &theta);
            assert!(gap < 1e-6, "{case}: {gap:e}");
        }
    }
}
