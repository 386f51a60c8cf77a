//! [`MlpLopt`]: a small network per parameter, on gradient, parameter, six momenta and the time.

mod features;
mod group;
mod jvp;
mod step;
mod vjp;

pub use group::MlpGroup;
pub use step::MlpKernel;

use crate::features::{adafac, averages, normalize, time};
use crate::kernel;
use crate::learned_optimizer;
use crate::rule::mlp::{sorted_layout, MlpShape};
use crate::rule::taped::{zero_slots, Slots};
use crate::rule::{StepVars, Taped, Theta, UpdateRule, Var};
use outerloop_core::{check_settings, Float, Interval, Key, Layout, Optimizer, OptimizerGroup, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Decays of the momenta.
pub(crate) const DECAYS: [f64; 6] = [0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];

/// Features that are normalized per tensor: gradient, parameter, momenta.
pub(crate) const TENSOR_FEATURES: usize = 2 + DECAYS.len();

/// Per-parameter network that sees gradient, parameter, six momenta and eleven time features.
///
/// `mₖ ← dₖ mₖ + (1 − dₖ) g`; `(a, b) = mlp(norm(g), norm(p), norm(m₁..₆), time)`;
/// `p ← p − step_mult · a · exp(exp_mult · b)`. `norm` divides by the feature's root mean square
/// over the tensor ([`normalize`]).
///
/// Theta: `mlp/~/linear_i/w` `[in, out]` and `.../b` `[out]`, 1762 numbers by default.
/// State: slot `momentum` `[6, n]`. In f32 the update and its derivative are fused kernels
/// ([`crate::kernel`]).
/// Reference: Metz et al. 2019, arXiv:1810.10180; `MLPLOpt` of google/learned_optimization.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlpLopt {
    /// Factor inside the exponential. Default 1e-3.
    pub exp_mult: f64,
    /// Factor of the whole step. Default 1e-3.
    pub step_mult: f64,
    /// Units per hidden layer. Default 32.
    pub hidden_size: usize,
    /// Number of hidden layers. Default 2.
    pub hidden_layers: usize,
}

impl Default for MlpLopt {
    fn default() -> Self {
        MlpLopt { exp_mult: 1e-3, step_mult: 1e-3, hidden_size: 32, hidden_layers: 2 }
    }
}

impl MlpLopt {
    pub(crate) fn network(&self) -> MlpShape {
        let inputs = TENSOR_FEATURES + time::COUNT;
        let name = |i| (format!("mlp/~/linear_{i}/w"), format!("mlp/~/linear_{i}/b"));
        MlpShape::new(inputs, self.hidden_size, self.hidden_layers, 2, name)
    }

    /// The network's inputs `[19, n]` for one tensor of `n` elements.
    fn inputs<E: Float>(tensor_features: &[Var<E>], step: u64) -> Var<E> {
        let n = tensor_features[0].len();
        let mut rows: Vec<Var<E>> = tensor_features.iter().map(normalize::second_moment).collect();
        rows.extend(time::features(step).map(|t| Var::constant(vec![E::of(t); n])));
        Var::concat(&rows)
    }
}

impl UpdateRule for MlpLopt {
    fn name(&self) -> String {
        "MlpLopt".into()
    }

    fn validate(&self) -> Result<()> {
        let settings = [
            ("exp_mult", self.exp_mult, Interval::FINITE),
            ("step_mult", self.step_mult, Interval::NOT_NEGATIVE),
            ("hidden_size", self.hidden_size as f64, Interval::COUNT),
        ];
        check_settings("MlpLopt", settings)
    }

    fn theta_layout(&self) -> Arc<Layout> {
        Arc::new(sorted_layout(self.network().tensors()))
    }

    fn init_theta<E: Float>(&self, key: Key) -> Vec<E> {
        let layout = self.theta_layout();
        let mut theta = vec![E::of(0.0); layout.len()];
        self.network().init(&layout, &mut theta, key);
        theta
    }

    fn init_slots<E: Float>(&self, _: &Theta<E>, layout: &Layout, _: Option<u64>) -> Slots<E> {
        zero_slots([("momentum", DECAYS.len() * layout.len())])
    }

    fn step<E: Float>(&self, theta: &Theta<E>, now: StepVars<E>) -> (Var<E>, Vec<Var<E>>) {
        let momentum = averages::update(&now.slots[0], &now.grad, &averages::fixed_rates(&DECAYS));
        let network = self.network();
        let next = now.tensors().map(|(_, at)| {
            let n = at.len();
            let mut features = vec![now.grad.slice(at.clone()), now.params.slice(at.clone())];
            features.extend(adafac::tensor_rows(&momentum, DECAYS.len(), &at));
            let out = network.forward(theta, Self::inputs(&features, now.step));
            let (direction, magnitude) = (out.row(0, n), out.row(1, n));
            &features[1] - (direction * magnitude.scale(self.exp_mult).exp()).scale(self.step_mult)
        });
        (Var::concat(&next.collect::<Vec<_>>()), vec![momentum])
    }

    fn optimizer<E: Float>(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        kernel::in_f32(theta, |theta| MlpKernel::new(self.clone(), theta, kernel::Path::best()))
            .unwrap_or_else(|| Box::new(Taped::new(self.clone(), theta)))
    }

    fn group_size(&self, layout: &Layout) -> usize {
        MlpGroup::size(layout.len(), kernel::Path::best())
    }

    fn group<E: Float>(&self, thetas: Vec<Vec<E>>) -> Box<dyn OptimizerGroup<E>> {
        let path = kernel::Path::best();
        kernel::group_in_f32(thetas, |thetas| MlpGroup::new(self.clone(), thetas, path))
            .unwrap_or_else(|thetas| Box::new(thetas.iter().map(|t| self.optimizer(t)).collect::<Vec<_>>()))
    }
}

learned_optimizer!(MlpLopt);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::golden::{noisy_theta, vjp_gap, warm_state, Golden};
    use outerloop_core::contract::check_learned_optimizer;

    #[test]
    fn keeps_its_contract() {
        check_learned_optimizer::<f32>(&MlpLopt::default()).unwrap();
        check_learned_optimizer::<f64>(&MlpLopt::default()).unwrap();
        assert_eq!(UpdateRule::theta_layout(&MlpLopt::default()).len(), 1762);
    }

    #[test]
    fn golden_runs() {
        for case in ["mlp_lopt_default", "mlp_lopt_bigstep"] {
            let golden = Golden::load(case);
            let config: MlpLopt = golden.config();
            golden.check(&config, &config);
        }
    }

    #[test]
    fn golden_network_inputs_and_outputs() {
        for case in ["mlp_lopt_default", "mlp_lopt_bigstep"] {
            let golden = Golden::load(case);
            let config: MlpLopt = golden.config();
            for t in [0, 4] {
                let (state, _) = golden.run::<f64>(&config, t);
                let grad = Var::constant(golden.grad(t));
                let momentum = averages::update(
                    &Var::constant(state.slots[0].data.clone()),
                    &grad,
                    &averages::fixed_rates(&DECAYS),
                );
                let len = state.params.len();
                for e in golden.layout.entries() {
                    let n = e.numel();
                    let mut features =
                        vec![grad.slice(e.range()), Var::constant(state.params[e.range()].to_vec())];
                    features.extend((0..6).map(|k| momentum.row(k, len).slice(e.range())));
                    let x = MlpLopt::inputs(&features, t as u64);
                    let theta = Theta::new(UpdateRule::theta_layout(&config), Var::constant(golden.theta()));
                    let y = config.network().forward(&theta, x.clone());
                    for (name, got, rows) in [("mlp_input", x, 19), ("mlp_output", y, 2)] {
                        let want = golden.at(&format!("/intermediates_f64/step{t}/{}/{name}", e.name));
                        assert_eq!(want.len(), rows * n);
                        for (i, want) in want.iter().enumerate() {
                            let got = got.data()[i % rows * n + i / rows];
                            assert!(
                                (got - want).abs() <= 1e-9 * want.abs().max(1e-3),
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
        for (hidden_size, hidden_layers) in [(6, 1), (32, 2), (3, 0)] {
            let l = MlpLopt { exp_mult: 0.1, step_mult: 0.05, hidden_size, hidden_layers };
            let theta = noisy_theta(&l, 0.1);
            let gap = vjp_gap(&l, &theta, &warm_state(&l, &theta));
            assert!(gap < 1e-6, "{gap:e}");
        }
    }
}
