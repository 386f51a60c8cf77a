//! [`AdafacMlp`]: a small network per parameter on momenta and Adafactor's second moments.

pub(crate) mod accumulators;
pub(crate) mod average;
pub(crate) mod backward;
pub(crate) mod clipped;
pub(crate) mod factored;
pub(crate) mod factored_vjp;
pub(crate) mod features;
pub(crate) mod step;
pub(crate) mod tensor_vjp;
pub(crate) mod vjp;
pub(crate) mod walk;

pub use step::AdafacKernel;

use crate::features::{adafac, adafac::Adafac, averages, time};
use crate::kernel;
use crate::learned_optimizer;
use crate::rule::mlp::{sorted_layout, MlpShape};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Taped, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Error, Float, Interval, Key, Layout, Optimizer, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Per-parameter network on 28 normalized accumulator features and 11 time features, with learned
/// decays: `small_fc_lopt`.
///
/// `(a, b) = mlp(norm(g, p, m, rms, m·r, r, ĝ, row, col, row^-½, col^-½, m̂), time)`, where
/// `r = (rms + 1e-6)^-½` and hats divide by Adafactor's second moment ([`adafac`]);
/// `p ← p − step_mult · a · exp(exp_mult · b)`. Gradients are limited to ±1e15, whose squares are finite.
///
/// Theta: `nn/~/w{i}` `[in, out]`, `nn/~/b{i}` `[out]`, and one offset per decay in
/// `momentum_decays`, `rms_decays`, `adafactor_decays`: a decay is `1 − (1 − d₀) exp(10 θ)`. 197
/// numbers by default. State: [`adafac::slots`]. In f32 the update and its derivative are fused kernels
/// ([`crate::kernel`]).
/// Reference: Metz et al. 2022, arXiv:2203.11860; `AdafacMLPLOpt` of google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdafacMlp {
    /// Factor inside the exponential. Default 1e-3.
    pub exp_mult: f64,
    /// Factor of the whole step. Default 1e-3.
    pub step_mult: f64,
    /// Units per hidden layer, at least 1. Default 4.
    pub hidden_size: usize,
    /// Number of hidden layers. Default 2.
    pub hidden_layers: usize,
    /// Decays of the momenta at theta 0. Default 0.9, 0.99, 0.999.
    pub initial_momentum_decays: Vec<f64>,
    /// Decays of the squared gradients at theta 0: one, or as many as momenta. Default 0.999.
    pub initial_rms_decays: Vec<f64>,
    /// Decays of the factored second moments at theta 0: one, or as many as momenta. Default 0.9,
    /// 0.99, 0.999.
    pub initial_adafactor_decays: Vec<f64>,
}

impl Default for AdafacMlp {
    fn default() -> Self {
        AdafacMlp {
            exp_mult: 1e-3,
            step_mult: 1e-3,
            hidden_size: 4,
            hidden_layers: 2,
            initial_momentum_decays: vec![0.9, 0.99, 0.999],
            initial_rms_decays: vec![0.999],
            initial_adafactor_decays: vec![0.9, 0.99, 0.999],
        }
    }
}

/// The accumulators and the network of [`AdafacMlp`] and [`crate::NominalMlp`].
pub(crate) struct AdafacNet<'a> {
    pub(crate) hidden_size: usize,
    pub(crate) hidden_layers: usize,
    pub(crate) outputs: usize,
    /// Of momenta, RMS averages and factored second moments.
    pub(crate) decays: [&'a [f64]; 3],
}

/// A tensor's features and the network's outputs `[outputs, n]` for it.
pub(crate) type TensorOutput<E> = (adafac::TensorFeatures<E>, Var<E>);

/// Theta's names of the decays, in the order of [`AdafacNet::decays`].
pub(crate) const DECAY_NAMES: [&str; 3] = ["momentum_decays", "rms_decays", "adafactor_decays"];

impl AdafacNet<'_> {
    /// Sizes and decays of the rule `name` in their ranges.
    pub(crate) fn validate(&self, name: &str) -> Result<()> {
        let momenta = self.decays[0].len();
        for (what, decays) in DECAY_NAMES.iter().zip(self.decays) {
            let what = format!("{name}: initial_{what}");
            Interval::DECAY.check_all(&what, decays)?;
            // Momentum k is divided by average k, or all by the only one.
            if decays.len() != momenta && decays.len() != 1 {
                let (expected, got) = (format!("1 or {momenta} decays"), decays.len().to_string());
                return Err(Error::Mismatch { what, expected, got });
            }
        }
        Interval::COUNT.check(&format!("{name}: hidden_size"), self.hidden_size as f64)
    }

    pub(crate) fn network(&self) -> MlpShape {
        let inputs = adafac::column_count(self.decays.map(<[f64]>::len)) + time::COUNT;
        let name = |i| (format!("nn/~/w{i}"), format!("nn/~/b{i}"));
        MlpShape::new(inputs, self.hidden_size, self.hidden_layers, self.outputs, name)
    }

    pub(crate) fn theta_layout(&self) -> Arc<Layout> {
        let mut tensors = self.network().tensors();
        tensors
            .extend(DECAY_NAMES.iter().zip(self.decays).map(|(name, d)| (name.to_string(), vec![d.len()])));
        Arc::new(sorted_layout(tensors))
    }

    pub(crate) fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = vec![E::of(0.0); layout.len()];
        self.network().init(&layout, &mut theta, key);
        theta
    }

    pub(crate) fn init_slots<E: Float>(&self, layout: &Layout) -> Slots<E> {
        zero_slots(adafac::slots(layout, self.decays.map(<[f64]>::len)))
    }

    /// Updates the accumulators: the tensors' features, and the next slots.
    pub(crate) fn features<E: Float>(
        &self,
        theta: &Theta<E>,
        now: &StepVars<E>,
    ) -> (Vec<adafac::TensorFeatures<E>>, Vec<Var<E>>) {
        let rates = |i: usize| averages::learned_rates(theta, DECAY_NAMES[i], self.decays[i]);
        let accumulators = Adafac {
            momentum: rates(0),
            rms: rates(1),
            factored: rates(2),
            rms_epsilon: 1e-6,
            vector_epsilon: 1e-6,
        };
        accumulators.update(now, &now.slots, &now.grad.limited())
    }

    /// Updates the accumulators and runs the network: what it gives per tensor, and the next
    /// slots.
    pub(crate) fn run<E: Float>(
        &self,
        theta: &Theta<E>,
        now: &StepVars<E>,
    ) -> (Vec<TensorOutput<E>>, Vec<Var<E>>) {
        let (tensors, slots) = self.features(theta, now);
        let (network, time) = (self.network(), time::features(now.step));
        let run = |t: adafac::TensorFeatures<E>| {
            let out = network.forward(theta, t.normalized_with(&time));
            (t, out)
        };
        (tensors.into_iter().map(run).collect(), slots)
    }
}

impl AdafacMlp {
    pub(crate) fn net(&self) -> AdafacNet<'_> {
        AdafacNet {
            hidden_size: self.hidden_size,
            hidden_layers: self.hidden_layers,
            outputs: 2,
            decays: [&self.initial_momentum_decays, &self.initial_rms_decays, &self.initial_adafactor_decays],
        }
    }
}

impl UpdateRule for AdafacMlp {
    fn name(&self) -> String {
        "AdafacMlp".into()
    }
    fn validate(&self) -> Result<()> {
        self.net().validate("AdafacMlp")?;
        let settings = [
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
        ];
        check_settings("AdafacMlp", settings)
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
            let (direction, magnitude) = (out.row(0, n), out.row(1, n));
            &t.param - (direction * magnitude.scale(self.exp_mult).exp()).scale(self.step_mult)
        });
        (Var::concat(&next.collect::<Vec<_>>()), slots)
    }
    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        kernel::in_f32(theta, |theta| AdafacKernel::new(self.clone(), theta, kernel::Path::best()))
            .unwrap_or_else(|| Box::new(Taped::new(self.clone(), theta)))
    }
}

learned_optimizer!(AdafacMlp);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state, Golden};
    use crate::rule::taped::step_vars;
    use outerloop_core::contract::check_learned_optimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&AdafacMlp::default()).unwrap();
        check_learned_optimizer::<f64>(&AdafacMlp::default()).unwrap();
        assert_eq!(AdafacMlp::default().theta_layout().len(), 197);
        let wide = AdafacMlp { hidden_size: 32, ..AdafacMlp::default() };
        let again = crate::registry::from_architecture::<f32>(&wide.architecture()).unwrap();
        assert_eq!(again.architecture(), wide.architecture());
    }

    #[test]
    fn golden_runs() {
        for case in ["adafac_mlp_lopt_default", "adafac_mlp_lopt_bigstep"] {
            let golden = Golden::load(case);
            let config: AdafacMlp = golden.config();
            golden.check(&config, &config);
        }
    }

    #[test]
    fn golden_features() {
        for case in ["adafac_mlp_lopt_default", "adafac_mlp_lopt_bigstep"] {
            let golden = Golden::load(case);
            let config: AdafacMlp = golden.config();
            let theta = Theta::new(config.theta_layout(), Var::constant(golden.theta::<f64>()));
            for t in [0, 4] {
                let (state, _) = golden.run::<f64>(&config, t);
                let now = step_vars(&state, &golden.grad(t), 0.0, |x| Var::constant(x.to_vec()));
                let (tensors, _) = config.net().run(&theta, &now);
                for ((features, out), e) in tensors.iter().zip(golden.layout.entries()) {
                    let n = e.numel();
                    let normalized = features.normalized_with(&[]);
                    let columns = Var::concat(&features.columns());
                    for (name, got) in [
                        ("raw_features", &columns),
                        ("norm_features", &normalized),
                        ("direction", &out.row(0, n)),
                        ("magnitude", &out.row(1, n)),
                    ] {
                        let want = golden.at(&format!("/intermediates_f64/step{t}/{}/{name}", e.name));
                        let count = got.len() / n;
                        assert_eq!(want.len(), got.len());
                        for (i, want) in want.iter().enumerate() {
                            let got = got.data()[i % count * n + i / count];
                            assert!(
                                (got - want).abs() <= 1e-9 * want.abs().max(1e-6),
                                "{name} {i}: {got} {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn derivative_agrees_with_differences() {
        let big = AdafacMlp { exp_mult: 0.1, step_mult: 0.05, ..Default::default() };
        let two_rms = AdafacMlp {
            initial_momentum_decays: vec![0.5, 0.9],
            initial_rms_decays: vec![0.9, 0.95],
            initial_adafactor_decays: vec![0.8, 0.9],
            hidden_size: 6,
            hidden_layers: 1,
            ..big.clone()
        };
        for l in [big, two_rms] {
            let theta = noisy_theta(&l, 0.02);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{gap:e}");
        }
    }
}
