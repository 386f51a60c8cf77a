//! [`ControlledAdam`]: Adam with several momenta, whose step and mixture a small network sets per tensor.

mod fused;
mod progress;

use crate::features::averages;
use crate::kernel;
use crate::learned_optimizer;
use crate::rule::mlp::{sorted_layout, MlpShape};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Taped, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Optimizer, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Added under the root of the second moment.
const EPSILON: f64 = 1e-16;

/// Learned rates are kept in this range.
const RATES: [f64; 2] = [1e-5, 0.999];

/// Features of a tensor beside those of its directions.
const TENSOR_FEATURES: usize = 9;

/// Adam whose learning rate and mixture of momenta come, per tensor and step, from a network that sees
/// where the run stands and how noisy the tensor's gradients are.
///
/// `mₖ ← dₖ mₖ + (1 − dₖ) g`, `v ← d v + (1 − d) g²`, hats divide by `1 − dᵗ`;
/// directions `u₀ = g/√v̂`, `uₖ = m̂ₖ/√v̂`; per tensor `(a, b₀..ₖ) = mlp(features)`;
/// `p ← p − step_mult · (1.01 − f)^decay · exp(a) · (b₀ u₀ + Σₖ (1/K + bₖ) uₖ)` with the fraction `f` of the
/// run that is done, 0 if its length is unknown. Gradients are limited to ±1e15, whose squares are finite.
///
/// With a weight decay, the network has one more output c, and `ρ weight_decay exp(c) p` with the step's
/// length `ρ = step_mult (1.01 − f)^decay exp(a)` is subtracted too, `p` the parameters before the update
/// (decoupled, as AdamW's). With an average of power q, the parameters to evaluate are
/// `a ← a + (q + 1)/(t + q) (p − a)` after update `t` from 1 on: an average of the iterates with weights that
/// grow as `t^q` (Shamir and Zhang 2013, arXiv:1212.1824), which does the work of a falling step without
/// knowing when the run will end.
///
/// Features of a tensor: `½ ln(mean uₖ² + 1e-6)` of each direction, which falls with the noise of the
/// gradients; `0.15 ln(mean p² + 1e-8)`; `f`, `0.3 ln(1.01 − f)` and `0.2 ln(1 + t)`; 1 for tensors with
/// two axes or more; `0.5 ln n − 1.5` of the last axis and of the product of the others; `ln N − 1.5` of
/// the number of tensors; and the tensor's place among them, from 0 for the first to 1 for the last.
///
/// With `progress`, two more that all tensors share: `0.3 ln` of the loss's average over 10 steps relative to the
/// highest it has been, and `ln` of it relative to the average over 100 steps; zeros where losses are not positive.
/// They tell a net that has fitted its data from one that cannot.
///
/// Few numbers are computed per tensor and two multiply-adds per direction and parameter, so an update
/// costs about as much as two of Adam's. The network's last layer starts at 0: initially the rule is Adam
/// with the mean of the momenta and a learning rate that falls from `step_mult`.
///
/// [`Horizon::Unplanned`] hides the length of the run: `f` is 0 always, and what `num_steps` says changes
/// nothing.
///
/// Theta: `mlp/w{i}` `[in, out]`, `mlp/b{i}` `[out]`, and one offset per decay in `momentum_decays` and
/// `square_decay`: a decay is `1 − (1 − d₀) exp(10 θ)`. 161 numbers by default. State: slots `momentum`
/// `[K, n]` and `square` `[n]`, `average` `[n]` where there is one, and
/// `losses` `[3]` with `progress`. Without reference: the momenta are those of AggMo (Lucas et al. 2018,
/// arXiv:1804.00325), the network per tensor is in the spirit of VeLO (Metz et al. 2022,
/// arXiv:2211.09760).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlledAdam {
    /// Learning rate at the initial theta and the start of a run. Default 0.01.
    pub step_mult: f64,
    /// Power of the schedule that theta changes; 0: none. Default 1, a linear one.
    pub decay: f64,
    /// Units per hidden layer. Default 8.
    pub hidden_size: usize,
    /// Number of hidden layers. Default 1.
    pub hidden_layers: usize,
    /// Decays of the momenta at theta 0, at least one. Default 0.5, 0.9, 0.99.
    pub initial_momentum_decays: Vec<f64>,
    /// Decay of the squared gradients at theta 0. Default 0.98.
    pub initial_square_decay: f64,
    /// Decoupled weight decay, in units of the learning rate, at the initial theta; 0 (the default): none,
    /// and no output of the network for it.
    #[serde(skip_serializing_if = "is_zero")]
    pub weight_decay: f64,
    /// Power of the average of the iterates; `None` (the default): the last iterate is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
    /// Whether the network sees how far the training loss has come. Default off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub progress: bool,
    /// What the rule makes of the length of its run. Default [`Horizon::Planned`].
    #[serde(skip_serializing_if = "Horizon::is_planned")]
    pub horizon: Horizon,
}

/// Settings that files from before them do not have are not written at their defaults, so that an
/// architecture's text stays the same.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Horizon {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    fn is_planned(&self) -> bool {
        *self == Horizon::Planned
    }
}

/// What a rule makes of the planned number of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Horizon {
    /// It plans for it, where it is told.
    #[default]
    Planned,
    /// It does not look at it: the same run whatever it is told.
    Unplanned,
}

impl Default for ControlledAdam {
    fn default() -> Self {
        ControlledAdam {
            step_mult: 0.01,
            decay: 1.0,
            hidden_size: 8,
            hidden_layers: 1,
            initial_momentum_decays: vec![0.5, 0.9, 0.99],
            initial_square_decay: 0.98,
            weight_decay: 0.0,
            average: None,
            progress: false,
            horizon: Horizon::Planned,
        }
    }
}

/// The fraction of the run that is done.
fn done(step: u64, num_steps: Option<u64>) -> f64 {
    num_steps.map_or(0.0, |n| (step as f64 / n.max(1) as f64).min(1.0))
}

/// What the network sees that no gradient changes: the time, and shape and place of a tensor.
fn constant_features(
    shape: &[usize],
    place: [usize; 2],
    step: u64,
    num_steps: Option<u64>,
) -> [f64; TENSOR_FEATURES - 1] {
    let done = done(step, num_steps);
    let last = shape.last().copied().unwrap_or(1) as f64;
    let others = shape.iter().product::<usize>() as f64 / last;
    let [index, count] = place.map(|n| n as f64);
    [
        done,
        0.3 * (1.01 - done).ln(),
        0.2 * ((1 + step) as f64).ln(),
        f64::from(u8::from(shape.len() > 1)),
        0.5 * (last.ln() - 3.0),
        0.5 * (others.ln() - 3.0),
        count.ln() - 1.5,
        index / (count - 1.0).max(1.0),
    ]
}

impl ControlledAdam {
    fn network(&self) -> MlpShape {
        let directions = self.initial_momentum_decays.len() + 1;
        let name = |i| (format!("mlp/w{i}"), format!("mlp/b{i}"));
        let inputs = directions + TENSOR_FEATURES + if self.progress { progress::COUNT } else { 0 };
        let outputs = 1 + directions + usize::from(self.weight_decay > 0.0);
        MlpShape::new(inputs, self.hidden_size, self.hidden_layers, outputs, name)
    }

    /// What the rule knows of the planned number of steps.
    fn planned(&self, num_steps: Option<u64>) -> Option<u64> {
        num_steps.filter(|_| self.horizon == Horizon::Planned)
    }

    /// The weight of the parameters after update `t`, from 1 on, in the average.
    fn average_weight(power: f64, t: u64) -> f64 {
        (power + 1.0) / (t as f64 + power)
    }

    /// The step's length that theta changes.
    fn rate(&self, step: u64, planned: Option<u64>) -> f64 {
        self.step_mult * (1.01 - done(step, planned)).powf(self.decay)
    }

    /// Rates of the momenta and of the square.
    fn rates<E: Float>(&self, theta: &Theta<E>) -> (Vec<Var<E>>, Var<E>) {
        let rates = |name, decays: &[f64]| -> Vec<Var<E>> {
            let rates = averages::learned_rates(theta, name, decays);
            rates.iter().map(|r| r.clip(RATES[0], RATES[1])).collect()
        };
        let square = rates("square_decay", &[self.initial_square_decay]).remove(0);
        (rates("momentum_decays", &self.initial_momentum_decays), square)
    }
}

impl UpdateRule for ControlledAdam {
    fn name(&self) -> String {
        "ControlledAdam".into()
    }
    fn validate(&self) -> Result<()> {
        Interval::DECAY
            .check_all("ControlledAdam: initial_momentum_decays", &self.initial_momentum_decays)?;
        let settings = [
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("decay", self.decay, Interval::NOT_NEGATIVE),
            ("hidden_size", self.hidden_size as f64, Interval::COUNT),
            ("initial_square_decay", self.initial_square_decay, Interval::DECAY),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("average", self.average.unwrap_or(0.0), Interval::NOT_NEGATIVE),
        ];
        check_settings("ControlledAdam", settings)
    }
    fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.network().tensors();
        tensors.push(("momentum_decays".into(), vec![self.initial_momentum_decays.len()]));
        tensors.push(("square_decay".into(), vec![1]));
        Arc::new(sorted_layout(tensors))
    }
    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = UpdateRule::theta_layout(self);
        let mut theta = vec![E::of(0.0); layout.len()];
        let network = self.network();
        network.init(&layout, &mut theta, key);
        if let Some(entry) = network.layers().last().and_then(|(_, _, w, _)| layout.get(w)) {
            theta[entry.range()].fill(E::of(0.0));
        }
        theta
    }
    fn init_slots<E: Float>(&self, _: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        let n = layout.len();
        let average = self.average.map(|_| ("average", n));
        let losses = self.progress.then_some(("losses", progress::MEMORY));
        let both = [("momentum", self.initial_momentum_decays.len() * n), ("square", n)];
        zero_slots(both.into_iter().chain(average).chain(losses))
    }
    fn average_slot(&self) -> Option<&'static str> {
        self.average.map(|_| "average")
    }
    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let (momentum_rates, square_rate) = self.rates(theta);
        let grad = now.grad.limited();
        let momentum = averages::update(&now.slots[0], &grad, &momentum_rates);
        let square = averages::step(&now.slots[1], &grad.square(), &square_rate);
        // 1 − dᵗ
        let correction = |rate: &Var<E>| {
            let kept = (Var::scalar(1.0) - rate).ln().scale((now.step + 1) as f64).exp();
            Var::scalar(1.0) - kept
        };
        let n = now.params.len();
        let rsqrt = (&square / correction(&square_rate)).shift(EPSILON).rsqrt();
        let mut directions = vec![&grad * &rsqrt];
        for (k, rate) in momentum_rates.iter().enumerate() {
            directions.push(momentum.row(k, n) / correction(rate) * &rsqrt);
        }
        let network = self.network();
        let share = 1.0 / momentum_rates.len() as f64;
        let count = now.tensors().count();
        let num_steps = self.planned(now.num_steps);
        let (losses, seen) = match now.slots.last().filter(|_| self.progress) {
            Some(losses) => progress::next(losses, &now.loss, now.step),
            None => (Var::scalar(0.0), Vec::new()),
        };
        let next = now.tensors().enumerate().map(|(index, (shape, at))| {
            let mean_log = |x: &Var<E>, epsilon| x.square().mean().shift(epsilon).ln();
            let param = now.params.slice(at.clone());
            let directions: Vec<Var<E>> = directions.iter().map(|d| d.slice(at.clone())).collect();
            let mut features: Vec<Var<E>> = directions.iter().map(|d| mean_log(d, 1e-6).scale(0.5)).collect();
            features.push(mean_log(&param, 1e-8).scale(0.15));
            let constant = constant_features(shape, [index, count], now.step, num_steps);
            features.extend(constant.map(Var::scalar));
            features.extend(seen.iter().cloned());
            let out = network.forward(theta, Var::concat(&features));
            let mut step = &directions[0] * out.row(1, 1);
            for (k, d) in directions.iter().enumerate().skip(1) {
                step = step + d * out.row(1 + k, 1).shift(share);
            }
            if self.weight_decay > 0.0 {
                let decay = out.row(1 + directions.len(), 1).exp().scale(self.weight_decay);
                step = step + &param * decay;
            }
            param - step * out.row(0, 1).exp().scale(self.rate(now.step, num_steps))
        });
        let params = Var::concat(&next.collect::<Vec<_>>());
        let mut slots = vec![momentum, square];
        if let Some(power) = self.average {
            let w = Self::average_weight(power, now.step + 1);
            let average = &now.slots[2];
            slots.push(average.scale(1.0 - w) + params.scale(w));
        }
        if self.progress {
            slots.push(losses);
        }
        (params, slots)
    }
    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        kernel::in_f32(theta, |theta| fused::Fused::new(self.clone(), theta))
            .unwrap_or_else(|| Box::new(Taped::new(self.clone(), theta)))
    }
}

learned_optimizer!(ControlledAdam);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state};
    use outerloop_core::contract::{awkward_params, check_learned_optimizer};
    use outerloop_core::LearnedOptimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&ControlledAdam::default()).unwrap();
        check_learned_optimizer::<f64>(&ControlledAdam::default()).unwrap();
        assert_eq!(UpdateRule::theta_layout(&ControlledAdam::default()).len(), 161);
    }

    #[test]
    fn the_derivative_agrees_with_differences() {
        let l = ControlledAdam { hidden_size: 3, ..ControlledAdam::default() };
        let theta = noisy_theta(&l, 0.1);
        let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
        assert!(gap < 1e-6, "{gap:e}");
    }

    #[test]
    fn starts_as_adam_with_one_momentum() {
        // With one momentum of decay 0.9 and squares of decay 0.999, the initial theta is Adam.
        let rule = ControlledAdam {
            step_mult: 0.02,
            decay: 0.0,
            initial_momentum_decays: vec![0.9],
            initial_square_decay: 0.999,
            ..ControlledAdam::default()
        };
        let key = Key::new(3);
        let params = awkward_params::<f64>(key);
        let run = |opt: &dyn Optimizer<f64>| {
            let mut state = opt.init(&params, Some(10), key);
            for t in 0..10 {
                let mut grad = vec![0.0; params.data.len()];
                key.fold_in(t).fill_normal(&mut grad);
                opt.update(&mut state, &grad, 1.0, key);
            }
            state.params
        };
        let adam = crate::hand::Adam { epsilon: 0.0, epsilon_root: 0.0, ..crate::hand::Adam::new(0.02) };
        let got = run(&*rule.opt_fn(&LearnedOptimizer::<f64>::init(&rule, key)));
        for (got, want) in got.iter().zip(run(&adam)) {
            assert!((got - want).abs() < 1e-9, "{got}, not {want}");
        }
    }

    #[test]
    fn the_fused_update_agrees_with_the_rule() {
        let (plain, key) = (ControlledAdam::default(), Key::new(5));
        let all = ControlledAdam {
            weight_decay: 0.1,
            average: Some(3.0),
            progress: true,
            horizon: Horizon::Unplanned,
            initial_momentum_decays: vec![0.9],
            ..plain.clone()
        };
        let params = awkward_params::<f32>(key);
        for (rule, num_steps) in [(&plain, Some(50)), (&plain, None), (&all, Some(50))] {
            let theta: Vec<f32> = noisy_theta(rule, 0.1).iter().map(|x| *x as f32).collect();
            let fused = rule.opt_fn(&theta);
            let exact = Taped::<_, f32>::new(rule.clone(), &theta);
            let mut states = [fused.init(&params, num_steps, key), exact.init(&params, num_steps, key)];
            for t in 0..50 {
                let mut grad = vec![0.0f32; params.data.len()];
                key.fold_in(t).fill_normal(&mut grad);
                if t == 40 {
                    grad[0] = 1e20;
                }
                let loss = 2.0 / (1.0 + t as f32);
                fused.update(&mut states[0], &grad, loss, key);
                exact.update(&mut states[1], &grad, loss, key);
            }
            let all = |i: usize| {
                let s: &outerloop_core::OptState<f32> = &states[i];
                s.params.iter().chain(s.slots.iter().flat_map(|s| &s.data)).copied().collect::<Vec<f32>>()
            };
            for (got, want) in all(0).iter().zip(all(1)) {
                assert!((got - want).abs() < 1e-4 * (0.1 + want.abs()), "{got}, not {want}");
            }
        }
    }

    #[test]
    fn decay_shrinks_and_the_average_trails_the_iterates_whatever_the_length() {
        let rule = ControlledAdam {
            step_mult: 0.01,
            decay: 0.0,
            weight_decay: 0.5,
            average: Some(1.0),
            horizon: Horizon::Unplanned,
            ..ControlledAdam::default()
        };
        let key = Key::new(0);
        let opt = rule.opt_fn(&LearnedOptimizer::<f64>::init(&rule, key));
        let params = awkward_params::<f64>(key);
        let run = |num_steps| {
            let mut state = opt.init(&params, num_steps, key);
            assert_eq!(*opt.evaluation_params(&state), params.data[..]);
            let mut average = vec![0.0; params.data.len()];
            for t in 1..=20u32 {
                // No gradient: nothing but decay.
                opt.update(&mut state, &vec![0.0; params.data.len()], 0.0, key);
                let kept = 0.995f64.powi(t as i32);
                // a_t = Σ s p_s / Σ s
                average.iter_mut().zip(&params.data).for_each(|(a, p)| *a += f64::from(t) * kept * p);
                let sum = f64::from(t * (t + 1) / 2);
                for ((got, a), (p, p0)) in opt
                    .evaluation_params(&state)
                    .iter()
                    .zip(&average)
                    .zip(state.params.iter().zip(&params.data))
                {
                    assert!((p - kept * p0).abs() < 1e-12, "{p}, not {}", kept * p0);
                    assert!((got - a / sum).abs() < 1e-12, "{got}, not {}", a / sum);
                }
            }
            state.params
        };
        assert_eq!(run(None), run(Some(3)));
    }

    #[test]
    fn the_derivative_with_decay_and_average_agrees_with_differences() {
        let l = ControlledAdam {
            hidden_size: 3,
            weight_decay: 0.3,
            average: Some(2.0),
            progress: true,
            ..ControlledAdam::default()
        };
        let theta = noisy_theta(&l, 0.1);
        let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
        assert!(gap < 1e-6, "{gap:e}");
    }
}
