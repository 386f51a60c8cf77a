//! [`RnnMlp`]: an LSTM per tensor that talks to a small network per parameter, both ways.

use crate::features::stats::{log_magnitude, mean_and_variance};
use crate::features::{adafac, averages, normalize, time};
use crate::learned_optimizer;
use crate::rule::lstm::{columns, Lstm};
use crate::rule::mlp::{dense, dense_tensors, init_dense, sorted_layout, MlpShape};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, OptState, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Per tensor an LSTM reads statistics, loss features and messages; per parameter an MLP reads
/// normalized accumulators, time, sizes and the LSTM's message. Outputs direction a, magnitude b and
/// the message back to the LSTM (their mean over the tensor);
/// `p ← p − step_multiplier · a · exp(magnitude_rate · b)`.
///
/// Gradients are clipped to ten times a running average of their root mean square. Losses enter
/// normalized by their running mean and variance, which skip losses that are no numbers. A validation loss
/// ([`Optimizer::observe_validation`](outerloop_core::Optimizer::observe_validation)) counts as a step
/// that changes nothing but its average.
///
/// Theta: LSTM, MLP and two linear maps between them, the initial messages and LSTM state.
/// State: slots `momentum`, `rms` `[decays, n]`, `from_mlp` `[from_mlp_size, tensors]`, `from_lstm`,
/// `lstm_hidden`, `lstm_cell` `[hidden, tensors]`, `train_loss`, `valid_loss` (mean, variance,
/// count), `clip` (count from 1, average).
/// Reference: Metz et al. 2020, arXiv:2009.11243; `RNNMLPLOpt` of google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RnnMlp {
    /// Factor of the whole step. Default 1e-3.
    pub step_multiplier: f64,
    /// Factor inside the exponential. Default 1e-3.
    pub magnitude_rate: f64,
    /// Units per hidden layer of the MLP, at least 1. Default 32.
    pub hidden_size: usize,
    /// Hidden layers of the MLP. Default 2.
    pub hidden_layer: usize,
    /// Length of the message from MLP to LSTM. Default 16.
    pub from_mlp_size: usize,
    /// Length of the message from all LSTMs to each. Default 18.
    pub from_lstm_size: usize,
    /// Length of the message from LSTM to MLP. Default 17.
    pub lstm_to_ff: usize,
    /// Units of the LSTM, at least 1. Default 64.
    pub lstm_hidden_size: usize,
    /// Decays of momenta and RMS averages. Default 0.5, 0.9, 0.99, 0.999, 0.9999.
    pub decays: Vec<f64>,
}

impl Default for RnnMlp {
    fn default() -> Self {
        RnnMlp {
            step_multiplier: 1e-3,
            magnitude_rate: 1e-3,
            hidden_size: 32,
            hidden_layer: 2,
            from_mlp_size: 16,
            from_lstm_size: 18,
            lstm_to_ff: 17,
            lstm_hidden_size: 64,
            decays: vec![0.5, 0.9, 0.99, 0.999, 0.9999],
        }
    }
}

/// Statistics per tensor, messages excluded.
const STATISTICS: usize = 18;

/// Dimensions that the LSTM is told.
const SHAPE: usize = 4;

const TRAIN_DECAY: f64 = 0.9;
const VALID_DECAY: f64 = 0.95;
const CLIP_DECAY: f64 = 0.99;
/// Gradients are clipped to this many times their average root mean square.
const CLIP: f64 = 10.0;

const TO_LSTM: &str = "rnn_to_in_params/rnn_to_in";
const TO_MLP: &str = "rnn_to_ff_params/rnn_to_ff";

/// Running mean and variance of a loss: `(mean, variance, count)`.
struct LossAverage<E>([Var<E>; 3]);

impl<E: Float> LossAverage<E> {
    fn new(slot: &Var<E>) -> Self {
        LossAverage([0, 1, 2].map(|i| slot.slice(i..i + 1)))
    }
    fn slot(&self) -> Var<E> {
        Var::concat(&self.0)
    }
    /// After one more loss; one that is no number does not count.
    fn next(&self, loss: &Var<E>, decay: f64) -> Self {
        if !is_finite(loss) {
            return LossAverage(self.0.clone());
        }
        let [mean, variance, count] = &self.0;
        let loss = &loss.limited();
        let rate = Var::scalar(1.0 - decay);
        let mean = averages::step(mean, loss, &rate);
        let variance = averages::step(variance, &loss.spread(&mean), &rate);
        LossAverage([mean, variance, count.shift(1.0)])
    }
    fn correction(&self, decay: f64) -> Var<E> {
        self.0[2].bias_correction(decay, 1e-8)
    }
    fn mean(&self, decay: f64) -> Var<E> {
        &self.0[0] * self.correction(decay)
    }
    /// A loss in standard deviations from the mean, limited to ±5; 0 of one that is no number.
    fn normalize(&self, loss: &Var<E>, decay: f64) -> Var<E> {
        if !is_finite(loss) {
            return Var::scalar(0.0);
        }
        let deviation = (&self.0[1] * self.correction(decay)).shift(1e-8).rsqrt();
        ((loss - self.mean(decay)) * deviation).clip(-5.0, 5.0)
    }
}

fn is_finite<E: Float>(loss: &Var<E>) -> bool {
    num_traits::Float::is_finite(loss.data()[0])
}

impl RnnMlp {
    fn lstm(&self) -> Lstm {
        let inputs = STATISTICS + self.from_lstm_size + self.from_mlp_size;
        Lstm { name: "rnn_params/rnn", inputs, hidden: self.lstm_hidden_size }
    }

    fn network(&self) -> MlpShape {
        let inputs = 3 + 4 * self.decays.len() + time::COUNT + 3 + self.lstm_to_ff;
        let name =
            |i| (format!("ffmod_params/mlp/~/linear_{i}/w"), format!("ffmod_params/mlp/~/linear_{i}/b"));
        MlpShape::new(inputs, self.hidden_size, self.hidden_layer, 2 + self.from_mlp_size, name)
    }

    /// Clips the gradient; the next `clip` slot.
    fn clip<E: Float>(now: &StepVars<E>, slot: &Var<E>) -> [Var<E>; 2] {
        let (count, average) = (slot.slice(0..1), slot.slice(1..2));
        let limit = average.scale(CLIP) * count.bias_correction(CLIP_DECAY, 0.0);
        let grad = now.grad.max(&-&limit).min(&limit);
        let squares: Vec<Var<E>> = now.tensors().map(|(_, r)| grad.slice(r).square().mean()).collect();
        let root = Var::concat(&squares).mean().shift(1e-8).sqrt();
        let average = averages::step(&average, &root, &Var::scalar(1.0 - CLIP_DECAY));
        [grad, Var::concat(&[count.shift(1.0), average])]
    }

    /// One tensor's input of the LSTM, in the order of the features' names in the reference.
    fn statistics<E: Float>(
        shape: &[usize],
        [m, v, g, p]: [&Var<E>; 4],
        [from_lstm, from_mlp]: [&Var<E>; 2],
        [train_loss, valid_loss]: [&Var<E>; 2],
    ) -> Var<E> {
        let [mean_m, var_m] = mean_and_variance(m);
        let [mean_v, var_v] = mean_and_variance(v);
        let [mean_p, var_p] = mean_and_variance(p);
        let dim = |i: usize| Var::scalar((shape.get(i).copied().unwrap_or(1) as f64).ln() - 1.0);
        let mut all = vec![
            from_lstm.clone(),
            from_mlp.clone(),
            log_magnitude(&g.norm()),
            Var::scalar(if shape.is_empty() { 1.0 } else { -1.0 }),
            log_magnitude(&mean_m),
            mean_m.sign(),
            log_magnitude(&mean_v),
            mean_v.sign(),
            log_magnitude(&mean_p),
            mean_p.sign(),
            log_magnitude(&p.norm()),
        ];
        all.extend((0..SHAPE).map(dim));
        all.extend([train_loss.clone(), valid_loss.clone()]);
        all.extend([&var_m, &var_v, &var_p].map(log_magnitude));
        Var::concat(&all)
    }

    /// One tensor's inputs of the MLP, `[features, n]`.
    fn inputs<E: Float>(
        [g, p]: [&Var<E>; 2],
        [momenta, rms]: [&[Var<E>]; 2],
        now: &StepVars<E>,
        from_lstm: &Var<E>,
    ) -> Var<E> {
        let n = p.len();
        let roots: Vec<Var<E>> = rms.iter().map(|v| v.shift(1e-6).rsqrt()).collect();
        let scaled: Vec<Var<E>> = momenta.iter().zip(&roots).map(|(m, r)| m * r).collect();
        let mut rows = vec![g.clone(), p.clone(), p.abs().shift(1e-8).ln()];
        for group in [momenta, rms, &scaled, &roots] {
            rows.extend_from_slice(group);
        }
        let mut rows: Vec<Var<E>> = rows.iter().map(normalize::second_moment).collect();
        let step = now.step as f64;
        let mut shared: Vec<Var<E>> =
            time::SCALES.iter().map(|c| Var::scalar((step / (c * std::f64::consts::PI)).sin())).collect();
        shared.push(Var::scalar((columns(&now.layout) as f64).ln() - 1.0));
        shared.push(p.norm().shift(1e-8).ln());
        shared.push(Var::scalar((n as f64).ln()));
        shared.push(from_lstm.clone());
        let shared = Var::concat(&shared);
        rows.push(shared.expand_axis([shared.len(), n, 1]));
        Var::concat(&rows)
    }
}

impl UpdateRule for RnnMlp {
    fn name(&self) -> String {
        "RnnMlp".into()
    }

    fn validate(&self) -> Result<()> {
        Interval::DECAY.check_all("RnnMlp: decays", &self.decays)?;
        let settings = [
            ("step_multiplier", self.step_multiplier, Interval::NOT_NEGATIVE),
            ("magnitude_rate", self.magnitude_rate, Interval::FINITE),
            ("hidden_size", self.hidden_size as f64, Interval::COUNT),
            ("from_mlp_size", self.from_mlp_size as f64, Interval::COUNT),
            ("from_lstm_size", self.from_lstm_size as f64, Interval::COUNT),
            ("lstm_to_ff", self.lstm_to_ff as f64, Interval::COUNT),
            ("lstm_hidden_size", self.lstm_hidden_size as f64, Interval::COUNT),
        ];
        check_settings("RnnMlp", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.lstm().tensors();
        tensors.extend(self.network().tensors());
        tensors.extend(dense_tensors(TO_LSTM, self.lstm_hidden_size, self.from_lstm_size));
        tensors.extend(dense_tensors(TO_MLP, self.lstm_hidden_size, self.lstm_to_ff));
        tensors.push(("initial_from_lstm".into(), vec![self.from_lstm_size]));
        tensors.push(("initial_from_mlp".into(), vec![self.from_mlp_size]));
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        /// Standard deviation of a standard normal cut at ±2.
        const CUT_STD: f64 = 0.879_625_661_034_239_8;
        let layout = self.theta_layout();
        let mut theta = init_dense(&layout, key);
        for name in ["initial_from_lstm", "initial_from_mlp"] {
            let range = layout.get(name).expect("its own name").range();
            let std = 1.0 / (range.len() as f64).sqrt() / CUT_STD;
            key.named(name).fill_truncated_normal(&mut theta[range], std);
        }
        theta
    }

    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        let (n, count) = (layout.len(), columns(layout));
        let mut slots = zero_slots(["momentum", "rms"].map(|name| (name, self.decays.len() * n)));
        let from_mlp = theta.get("initial_from_mlp").expand_axis([self.from_mlp_size, count, 1]);
        let [hidden, cell] = self.lstm().init(theta, count);
        slots.extend([
            ("from_mlp", from_mlp),
            ("from_lstm", theta.get("initial_from_lstm")),
            ("lstm_hidden", hidden),
            ("lstm_cell", cell),
        ]);
        slots.extend(zero_slots([("train_loss", 3), ("valid_loss", 3)]));
        slots.push(("clip", Var::constant([1.0, 1.0 - CLIP_DECAY].map(E::of).to_vec())));
        slots
    }

    fn observe_validation<E: Float>(&self, state: &mut OptState<E>, loss: E) {
        for slot in state.slots.iter_mut().filter(|s| s.name == "valid_loss") {
            let average = LossAverage::new(&Var::constant(slot.data.clone()));
            let next = average.next(&Var::constant(vec![loss]), VALID_DECAY).slot();
            slot.data.copy_from_slice(next.data());
        }
        state.step += 1;
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let [momentum, rms, from_mlp, from_lstm, hidden, cell, train, valid, clip] = &now.slots[..] else {
            unreachable!("nine slots")
        };
        let train = LossAverage::new(train).next(&now.loss, TRAIN_DECAY);
        let train_loss = train.normalize(&now.loss, TRAIN_DECAY);
        let valid_loss = train.normalize(&LossAverage::new(valid).mean(VALID_DECAY), TRAIN_DECAY);
        let [grad, clip] = Self::clip(&now, clip);
        let rates = averages::fixed_rates(&self.decays);
        let momentum = averages::update(momentum, &grad, &rates);
        let rms = averages::update(rms, &grad.square(), &rates);

        let count = columns(&now.layout);
        let messages = from_mlp.transpose(self.from_mlp_size, count);
        let per_tensor =
            |slot: &Var<E>, r: &std::ops::Range<usize>| adafac::tensor_rows(slot, self.decays.len(), r);
        let statistics = now.tensors().enumerate().map(|(t, (shape, range))| {
            let (m, v) =
                (Var::concat(&per_tensor(&momentum, &range)), Var::concat(&per_tensor(&rms, &range)));
            let (g, p) = (grad.slice(range.clone()), now.params.slice(range));
            let message = messages.row(t, self.from_mlp_size);
            Self::statistics(shape, [&m, &v, &g, &p], [from_lstm, &message], [&train_loss, &valid_loss])
        });
        let lstm = self.lstm();
        let x = Var::concat(&statistics.collect::<Vec<_>>()).transpose(count, lstm.inputs);
        let [hidden, cell] = lstm.step(theta, &x, [hidden, cell]);
        let from_lstm = dense(theta, TO_LSTM, &hidden).mean_axis([self.from_lstm_size, count, 1]);
        let to_mlp = dense(theta, TO_MLP, &hidden).transpose(self.lstm_to_ff, count);

        let (mut params, mut from_mlp) = (Vec::new(), Vec::new());
        for (t, (_, range)) in now.tensors().enumerate() {
            let (m, v) = (per_tensor(&momentum, &range), per_tensor(&rms, &range));
            let (g, p) = (grad.slice(range.clone()), now.params.slice(range));
            let n = p.len();
            let x = Self::inputs([&g, &p], [&m, &v], &now, &to_mlp.row(t, self.lstm_to_ff));
            let out = self.network().forward(theta, x);
            let step = out.row(0, n) * out.row(1, n).scale(self.magnitude_rate).exp();
            params.push(p - step.scale(self.step_multiplier));
            from_mlp.push(out.slice(2 * n..out.len()).mean_axis([self.from_mlp_size, n, 1]));
        }
        let from_mlp = Var::concat(&from_mlp).transpose(count, self.from_mlp_size);
        let valid = valid.clone();
        let slots = vec![momentum, rms, from_mlp, from_lstm, hidden, cell, train.slot(), valid, clip];
        (Var::concat(&params), slots)
    }
}

learned_optimizer!(RnnMlp);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&RnnMlp::default()).unwrap();
        check_learned_optimizer::<f64>(&RnnMlp::default()).unwrap();
    }

    #[test]
    fn golden_runs_with_states() {
        for case in ["rnn_mlp_train_only", "rnn_mlp_bigstep_with_valid"] {
            let golden = Golden::load(case);
            let config: RnnMlp = golden.config();
            let valid64 = |s: &mut OptState<f64>, loss| config.observe_validation(s, loss);
            let valid32 = |s: &mut OptState<f32>, loss| config.observe_validation(s, loss);
            golden.check_with_validation(&config, &config, &valid64, &valid32);
            for t in 0..golden.num_updates() {
                let (state, _) = golden.run_with_validation(&config, t + 1, &valid64);
                let slot = |name: &str| state.slot(name).unwrap();
                let messages = Var::constant(slot("from_mlp").to_vec()).transpose(config.from_mlp_size, 4);
                let at = |name: &str| format!("/state_f64/{t}/{name}");
                golden.assert_close(&at("from_mlp"), messages.data());
                golden.assert_close(&at("from_lstm"), slot("from_lstm"));
                for (name, slot) in
                    [("train_loss_accum", slot("train_loss")), ("valid_loss_accum", slot("valid_loss"))]
                {
                    for (field, value) in ["mean", "var", "updates"].iter().zip(slot) {
                        golden.assert_close(&at(&format!("{name}/{field}")), &[*value]);
                    }
                }
                golden.assert_close(&at("dynamic_clip"), slot("clip"));
            }
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        let l: RnnMlp = Golden::load("rnn_mlp_bigstep_with_valid").config();
        let theta = noisy_theta(&l, 0.05);
        let mut state = warm_state(&l, &theta);
        l.observe_validation(&mut state, 0.8);
        let gap = vjp_gap(&l, &theta, &state);
        assert!(gap < 1e-6, "{gap:e}");
        let gap = init_vjp_gap(&l, &theta);
        assert!(gap < 1e-6, "{gap:e}");
    }
}
