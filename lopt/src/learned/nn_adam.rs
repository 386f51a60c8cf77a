//! [`NnAdam`]: Adam whose hyperparameters an LSTM steers, tensor by tensor.

use crate::features::averages;
use crate::features::stats::{log_magnitude, mean_and_variance};
use crate::learned_optimizer;
use crate::rule::lstm::{columns, Lstm};
use crate::rule::mlp::{dense, dense_tensors, init_dense, sorted_layout};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Adam with a learning rate, β₁, β₂ and ε per tensor that an LSTM moves at every step.
///
/// `m, v` are averages without bias correction; `p ← p − lr (1 + ε) m / (ε + √(v + 1e-10))`, so that a
/// large ε gives momentum descent without a large learning rate. Hyperparameters are kept as
/// `h = 0.1 ln lr, 0.1 ln(1 − β), 0.1 ln ε`; after the step `h ← h + output_scale · linear(lstm(stats))`,
/// drawn back to theta's initial value by `decay_strength`, within fixed limits.
/// Gradients are clipped to ±1000.
///
/// Theta: the LSTM and its initial state, the linear map (0 at first), the four initial h.
/// State: slots `m`, `v` `[n]`, `hyper` `[4, tensors]`, `lstm_hidden`, `lstm_cell`
/// `[hidden, tensors]`, over the tensors that have elements.
/// Reference: `NNAdam` of google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NnAdam {
    /// Factor of the LSTM's changes. Default 0.01.
    pub output_scale: f64,
    /// Units of the LSTM, at least 1. Default 32.
    pub lstm_hidden_size: usize,
    /// Share of the way back to the initial hyperparameters per step. Default 0.
    pub decay_strength: f64,
    /// Learning rate at the initial theta. Default 1e-4.
    pub initial_learning_rate: f64,
    /// β₁ at the initial theta. Default 0.9.
    pub initial_beta1: f64,
    /// β₂ at the initial theta. Default 0.999.
    pub initial_beta2: f64,
    /// ε at the initial theta. Default 1e-8.
    pub initial_epsilon: f64,
}

impl Default for NnAdam {
    fn default() -> Self {
        NnAdam {
            output_scale: 0.01,
            lstm_hidden_size: 32,
            decay_strength: 0.0,
            initial_learning_rate: 1e-4,
            initial_beta1: 0.9,
            initial_beta2: 0.999,
            initial_epsilon: 1e-8,
        }
    }
}

/// Theta's names of the initial hyperparameters, in the order of the LSTM's outputs.
const HYPER: [&str; 4] = ["per_layer_lr", "per_layer_beta1", "per_layer_beta2", "per_layer_epsilon"];

/// Statistics per tensor.
const FEATURES: usize = 19;

const CONTROLS: &str = "rnn_to_controls_params/rnn_to_controls";

impl NnAdam {
    fn lstm(&self) -> Lstm {
        Lstm { name: "rnn_params/rnn", inputs: FEATURES, hidden: self.lstm_hidden_size }
    }

    /// Limits of the kept hyperparameters: of the learning rate 1e-8 to 1e3, of 1 − β e⁻¹⁰ to 1, of ε
    /// 1e-11 to 1e4.
    fn limits() -> [[f64; 2]; 4] {
        let log = |lo: f64, hi: f64| [0.1 * lo.ln(), 0.1 * hi.ln()];
        [log(1e-8, 1e3), [-1.0, 0.0], [-1.0, 0.0], log(1e-11, 1e4)]
    }

    /// The 19 statistics of one tensor, in the order of their names in the reference.
    fn features<E: Float>(
        shape: &[usize],
        p: &Var<E>,
        g: &Var<E>,
        mv: [&Var<E>; 2],
        hyper: &[Var<E>],
    ) -> Var<E> {
        let mag = |x: &Var<E>| log_magnitude(x).scale(0.5);
        let is = |yes: bool| Var::scalar(if yes { 1.0 } else { -1.0 });
        let squash = |h: &Var<E>| h.clip(-5.0, 5.0).scale(0.2);
        let [mean_m, var_m] = mean_and_variance(mv[0]);
        let [mean_v, var_v] = mean_and_variance(mv[1]);
        let [mean_p, var_p] = mean_and_variance(p);
        let [mean_g, var_g] = mean_and_variance(g);
        Var::concat(&[
            squash(&hyper[1]),
            squash(&hyper[2]),
            squash(&hyper[3]),
            is(shape.len() == 1),
            is(shape.is_empty()),
            squash(&hyper[0]),
            mag(&mean_g),
            mean_g.sign(),
            mag(&g.abs().mean()),
            mag(&mean_m),
            mean_m.sign(),
            mag(&mean_p),
            mean_p.sign(),
            mag(&mean_v),
            mean_v.sign(),
            mag(&var_g),
            mag(&var_m),
            mag(&var_p),
            mag(&var_v),
        ])
    }
}

impl UpdateRule for NnAdam {
    fn name(&self) -> String {
        "NnAdam".into()
    }

    fn validate(&self) -> Result<()> {
        let settings = [
            ("output_scale", self.output_scale, Interval::FINITE),
            ("lstm_hidden_size", self.lstm_hidden_size as f64, Interval::COUNT),
            ("decay_strength", self.decay_strength, Interval::FRACTION),
            ("initial_learning_rate", self.initial_learning_rate, Interval::POSITIVE),
            ("initial_beta1", self.initial_beta1, Interval::DECAY),
            ("initial_beta2", self.initial_beta2, Interval::DECAY),
            ("initial_epsilon", self.initial_epsilon, Interval::POSITIVE),
        ];
        check_settings("NnAdam", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.lstm().tensors();
        tensors.extend(dense_tensors(CONTROLS, self.lstm_hidden_size, HYPER.len()));
        tensors.extend(HYPER.map(|name| (name.to_string(), vec![])));
        Arc::new(sorted_layout(tensors))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = init_dense(&layout, key);
        let mut set = |name: &str, value: f64| {
            let range = layout.get(name).expect("its own name").range();
            theta[range].fill(E::of(value));
        };
        set(&format!("{CONTROLS}/w"), 0.0);
        set(HYPER[0], 0.1 * self.initial_learning_rate.ln());
        set(HYPER[1], 0.1 * (1.0 - self.initial_beta1).ln());
        set(HYPER[2], 0.1 * (1.0 - self.initial_beta2).ln());
        set(HYPER[3], 0.1 * self.initial_epsilon.ln());
        theta
    }

    fn init_slots<E: Float>(&self, theta: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        let t = columns(layout);
        let mut slots = zero_slots([("m", layout.len()), ("v", layout.len())]);
        slots.push(("hyper", Var::concat(&HYPER.map(|name| theta.get(name).expand_axis([1, t, 1])))));
        let [hidden, cell] = self.lstm().init(theta, t);
        slots.extend([("lstm_hidden", hidden), ("lstm_cell", cell)]);
        slots
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let [m, v, hyper, hidden, cell] = &now.slots[..] else { unreachable!("five slots") };
        let count = columns(&now.layout);
        let grad = now.grad.clip(-1000.0, 1000.0);
        let limits = Self::limits();
        let (mut params, mut ms, mut vs, mut features) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (t, (shape, range)) in now.tensors().enumerate() {
            let kept: Vec<Var<E>> = (0..4).map(|h| hyper.slice(h * count + t..h * count + t + 1)).collect();
            // 10 h is the logarithm of lr, 1 − β₁, 1 − β₂, ε.
            let value = |h: usize| kept[h].clip(limits[h][0], limits[h][1]).scale(10.0).exp();
            let (lr, epsilon) = (value(0), value(3));
            let (p, g) = (now.params.slice(range.clone()), grad.slice(range.clone()));
            let m = averages::step(&m.slice(range.clone()), &g, &value(1));
            let v = averages::step(&v.slice(range), &g.square(), &value(2));
            let rate = lr * epsilon.shift(1.0) / (epsilon + v.shift(1e-10).sqrt());
            features.push(Self::features(shape, &p, &g, [&m, &v], &kept));
            params.push(p - rate * &m);
            ms.push(m);
            vs.push(v);
        }
        let x = Var::concat(&features).transpose(count, FEATURES);
        let [hidden, cell] = self.lstm().step(theta, &x, [hidden, cell]);
        let deltas = dense(theta, CONTROLS, &hidden).scale(self.output_scale);
        let moved = (0..4).map(|h| {
            let next = hyper.row(h, count) + deltas.row(h, count);
            let home = theta.get(HYPER[h]).scale(self.decay_strength);
            (next.scale(1.0 - self.decay_strength) + home).clip(limits[h][0], limits[h][1])
        });
        let hyper = Var::concat(&moved.collect::<Vec<_>>());
        (Var::concat(&params), vec![Var::concat(&ms), Var::concat(&vs), hyper, hidden, cell])
    }
}

learned_optimizer!(NnAdam);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{init_vjp_gap, noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&NnAdam::default()).unwrap();
        check_learned_optimizer::<f64>(&NnAdam::default()).unwrap();
    }

    #[test]
    fn golden_runs_with_states() {
        for case in ["nn_adam_a", "nn_adam_b"] {
            let golden = Golden::load(case);
            let config: NnAdam = golden.config();
            golden.check(&config, &config);
            for t in 0..golden.num_updates() {
                let (state, _) = golden.run::<f64>(&config, t + 1);
                let hyper = state.slot("hyper").unwrap();
                let by_tensor = |slot: &str| {
                    let s = Var::constant(state.slot(slot).unwrap().to_vec());
                    s.transpose(config.lstm_hidden_size, 4).data().to_vec()
                };
                for (h, name) in HYPER.iter().enumerate() {
                    golden.assert_close(&format!("/state_f64/{t}/{name}"), &hyper[h * 4..][..4]);
                }
                golden.assert_close(&format!("/state_f64/{t}/lstm_hidden"), &by_tensor("lstm_hidden"));
                golden.assert_close(&format!("/state_f64/{t}/lstm_cell"), &by_tensor("lstm_cell"));
            }
        }
    }

    #[test]
    fn derivatives_agree_with_differences() {
        let l = NnAdam { lstm_hidden_size: 5, output_scale: 0.1, decay_strength: 0.1, ..Default::default() };
        let theta = noisy_theta(&l, 0.05);
        let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
        assert!(gap < 1e-6, "{gap:e}");
        let gap = init_vjp_gap(&l, &theta);
        assert!(gap < 1e-6, "{gap:e}");
    }
}
