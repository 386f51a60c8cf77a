//! [`NominalMlp`]: a learned step beside a hand-designed one.

use crate::learned::adafac_mlp::AdafacNet;
use crate::learned_optimizer;
use crate::rule::taped::Slots;
use crate::rule::{StepVars, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The hand-designed direction of [`NominalMlp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NominalGradient {
    /// The gradient.
    #[serde(rename = "SGD")]
    Sgd,
    /// The slowest momentum.
    #[serde(rename = "SGDM")]
    Sgdm,
    /// The mean of all momenta.
    AggMo,
    /// The slowest momentum over the root of the RMS average.
    Adam,
    /// The mean of all momenta, each over the root of the RMS average.
    AdamAggMo,
}

/// The network of [`crate::AdafacMlp`] with four outputs: direction a, magnitude b, nominal magnitude
/// c and regularizer r.
///
/// `p ← (1 − weight_decay · exp(ε₂ r)) p − step_mult · a · exp(ε₀ b) − nominal_stepsize · exp(ε₁ c) · G`
/// with `ε = exp_mult` and `G` the [`NominalGradient`]. Without its controller, c counts as 1 and r
/// as 0.
///
/// Theta and state as [`crate::AdafacMlp`]; 207 numbers by default.
/// Reference: Harrison, Metz, Sohl-Dickstein 2022, arXiv:2209.11208; `MLPNomLOpt` of
/// google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NominalMlp {
    /// Factors inside the exponentials of b, c and r. Default 1e-3 each.
    pub exp_mult: [f64; 3],
    /// Factor of the learned step. Default 1e-3.
    pub step_mult: f64,
    /// Units per hidden layer, at least 1. Default 4.
    pub hidden_size: usize,
    /// Number of hidden layers. Default 2.
    pub hidden_layers: usize,
    /// As in [`crate::AdafacMlp`]. Default 0.9, 0.99, 0.999.
    pub initial_momentum_decays: Vec<f64>,
    /// As in [`crate::AdafacMlp`]. Default 0.999.
    pub initial_rms_decays: Vec<f64>,
    /// As in [`crate::AdafacMlp`]. Default 0.9, 0.99, 0.999.
    pub initial_adafactor_decays: Vec<f64>,
    /// Factor of the nominal step. Default 0.
    pub nominal_stepsize: f64,
    /// Decay of the parameters per update. Default 0.
    pub weight_decay: f64,
    /// Whether the network scales the nominal step. Default off.
    pub nominal_controller: bool,
    /// Whether the network scales the weight decay. Default off.
    pub regularization_controller: bool,
    /// Direction of the nominal step. Default AdamAggMo.
    pub nominal_grad_estimator: NominalGradient,
    /// Replaces b by its mean over the tensor. Default off.
    pub aggregate_magnitude: bool,
    /// Replaces c by its mean over the tensor. Default off.
    pub aggregate_nom_magnitude: bool,
    /// Replaces r by its mean over the tensor. Default off.
    pub aggregate_reg_magnitude: bool,
    /// Divides the learned step by the root of the first RMS average. Default off.
    pub normalize_blackbox: bool,
    /// Multiplies the learned step by the tensor's mean gradient. Default off.
    pub selfnormalize_blackbox: bool,
}

impl Default for NominalMlp {
    fn default() -> Self {
        NominalMlp {
            exp_mult: [1e-3; 3],
            step_mult: 1e-3,
            hidden_size: 4,
            hidden_layers: 2,
            initial_momentum_decays: vec![0.9, 0.99, 0.999],
            initial_rms_decays: vec![0.999],
            initial_adafactor_decays: vec![0.9, 0.99, 0.999],
            nominal_stepsize: 0.0,
            weight_decay: 0.0,
            nominal_controller: false,
            regularization_controller: false,
            nominal_grad_estimator: NominalGradient::AdamAggMo,
            aggregate_magnitude: false,
            aggregate_nom_magnitude: false,
            aggregate_reg_magnitude: false,
            normalize_blackbox: false,
            selfnormalize_blackbox: false,
        }
    }
}

impl NominalMlp {
    fn net(&self) -> AdafacNet<'_> {
        AdafacNet {
            hidden_size: self.hidden_size,
            hidden_layers: self.hidden_layers,
            outputs: 4,
            decays: [&self.initial_momentum_decays, &self.initial_rms_decays, &self.initial_adafactor_decays],
        }
    }
}

/// The mean of arrays of the same length.
fn mean_of<E: Float>(arrays: &[Var<E>]) -> Var<E> {
    let n = arrays[0].len();
    Var::concat(arrays).mean_axis([1, arrays.len(), n])
}

impl UpdateRule for NominalMlp {
    fn name(&self) -> String {
        "NominalMlp".into()
    }
    fn validate(&self) -> Result<()> {
        self.net().validate("NominalMlp")?;
        let settings = [
            ("exp_mult[0]", self.exp_mult[0], Interval::FINITE),
            ("exp_mult[1]", self.exp_mult[1], Interval::FINITE),
            ("exp_mult[2]", self.exp_mult[2], Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("nominal_stepsize", self.nominal_stepsize, Interval::NOT_NEGATIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
        ];
        check_settings("NominalMlp", settings)
    }
    fn theta_layout(&self) -> Arc<Layout> {
        self.net().theta_layout()
    }
    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        self.net().init_theta(key)
    }
    fn init_slots<E: Float>(&self, _: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        self.net().init_slots(layout)
    }
    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let (tensors, slots) = self.net().run(theta, &now);
        let next = tensors.iter().map(|(t, out)| {
            let n = t.param.len();
            // exp(exp_mult · output), the output averaged over the tensor on request.
            let factor = |output: Var<E>, aggregate: bool, exp_mult: f64| {
                let output = if aggregate { output.mean() } else { output };
                output.scale(exp_mult).exp()
            };
            let constant =
                |on: bool, row: usize, off: f64| if on { out.row(row, n) } else { Var::scalar(off) };
            let magnitude = factor(out.row(1, n), self.aggregate_magnitude, self.exp_mult[0]);
            let nominal = factor(
                constant(self.nominal_controller, 2, 1.0),
                self.aggregate_nom_magnitude,
                self.exp_mult[1],
            );
            let regularizer = factor(
                constant(self.regularization_controller, 3, 0.0),
                self.aggregate_reg_magnitude,
                self.exp_mult[2],
            );
            let mut step = (out.row(0, n) * magnitude).scale(self.step_mult);
            if self.normalize_blackbox {
                step = step * &t.rsqrt[0];
            }
            if self.selfnormalize_blackbox {
                step = step * t.grad.mean();
            }
            let slowest = t.momenta.len() - 1;
            let direction = match self.nominal_grad_estimator {
                NominalGradient::Sgd => t.grad.clone(),
                NominalGradient::Sgdm => t.momenta[slowest].clone(),
                NominalGradient::AggMo => mean_of(&t.momenta),
                NominalGradient::Adam => t.adam()[slowest].clone(),
                NominalGradient::AdamAggMo => mean_of(&t.adam()),
            };
            let kept = &t.param * regularizer.scale(-self.weight_decay).shift(1.0);
            kept - step - nominal.scale(self.nominal_stepsize) * direction
        });
        (Var::concat(&next.collect::<Vec<_>>()), slots)
    }
}

learned_optimizer!(NominalMlp);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    const CASES: [&str; 6] =
        ["default", "sgd_noctrl", "sgdm_agg", "aggmo_normbb", "adam_selfnorm", "adamaggmo_ctrl"];

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&NominalMlp::default()).unwrap();
        check_learned_optimizer::<f64>(&NominalMlp::default()).unwrap();
    }

    #[test]
    fn golden_runs() {
        for case in CASES {
            let golden = Golden::load(&format!("mlp_nominal_{case}"));
            let config: NominalMlp = golden.config();
            golden.check(&config, &config);
        }
    }

    #[test]
    fn derivative_agrees_with_differences() {
        for case in CASES {
            let mut l: NominalMlp = Golden::load(&format!("mlp_nominal_{case}")).config();
            l.aggregate_reg_magnitude = case == "adamaggmo_ctrl";
            let theta = noisy_theta(&l, 0.02);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{case}: {gap:e}");
        }
    }
}
