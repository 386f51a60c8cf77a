//! SM3.

use super::graph::{map, Around, Graph, Var};
use super::{At, Schedule, Tensorwise};
use crate::rule::dual::Scalar;
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// SM3: AdaGrad with one accumulator per row of every axis. `a = c g² + β₂ min over axes(acc)` with
/// `c = 1−β₂` (1 if β₂ = 1), `acc of an axis = max over the others(a)`, `u = g/√(a + 1e-8)` (0 where
/// a = 0), `n ← μ n + (1−μ) u`, `p ← p − lr n`. A scalar counts as a vector of one.
///
/// Reference: Anil et al. 2019, arXiv:1901.11150; in the form of optax.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sm3 {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// μ; default 0.9.
    pub momentum: f64,
    /// β₂; default 1.
    pub beta2: f64,
}

impl Default for Sm3 {
    fn default() -> Self {
        Sm3 { learning_rate: 0.01.into(), momentum: 0.9, beta2: 1.0 }
    }
}

/// The axes of a tensor; a scalar has one of size 1.
fn axes(shape: &[usize]) -> Vec<Around> {
    match shape {
        [] => vec![Around { outer: 1, dim: 1, inner: 1 }],
        _ => (0..shape.len()).map(|i| Around::axis(shape, i)).collect(),
    }
}

/// How an axis of size dim is reached from `[outer, dim, inner]`: over inner, then over outer.
fn steps(a: Around) -> [Around; 2] {
    let over_inner = Around { outer: a.outer * a.dim, dim: a.inner, inner: 1 };
    [over_inner, Around { outer: 1, dim: a.outer, inner: a.dim }]
}

impl Tensorwise for Sm3 {
    fn name(&self) -> String {
        "sm3".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings =
            [("momentum", self.momentum, Interval::DECAY), ("beta2", self.beta2, Interval::FRACTION)];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        let rows = axes(shape).iter().map(|a| a.dim).sum();
        vec![("accumulators", vec![0.0; rows]), ("momentum", vec![0.0; shape.iter().product()])]
    }
    fn step<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        shape: &[usize],
        p: Var,
        slots: &[Var],
        g: Var,
    ) -> (Var, Vec<Var>) {
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let axes = axes(shape);
        let mut start = 0;
        let mut least: Option<Var> = None;
        for &axis in &axes {
            let acc = graph.gather(slots[0], (start..start + axis.dim).collect());
            start += axis.dim;
            let [over_inner, over_outer] = steps(axis);
            let rows = graph.repeat_axis(acc, over_outer);
            let full = graph.repeat_axis(rows, over_inner);
            least = Some(match least {
                None => full,
                Some(least) => map!(graph, [least, full], |a, b| Scalar::min(a, b)),
            });
        }
        let least = least.expect("every tensor has an axis");
        let c = if self.beta2 == 1.0 { 1.0 } else { 1.0 - self.beta2 };
        let a = map!(graph, [least, g], |k; a, g| k(self.beta2) * a + k(c) * g.square());
        let n = map!(graph, [slots[1], a, g], |k; n, a, g| {
            let u = Scalar::select(k(0.0) >= a, k(0.0), g / Scalar::sqrt(a + k(1e-8)));
            k(self.momentum) * n + k(1.0 - self.momentum) * u
        });
        let accumulators: Vec<Var> = axes
            .iter()
            .map(|&axis| steps(axis).into_iter().fold(a, |a, over| graph.max_axis(a, over)))
            .collect();
        let p = map!(graph, [p, n], |k; p, n| p - k(lr) * n);
        (p, vec![graph.concat(&accumulators), n])
    }
}
crate::tensorwise_optimizer!(Sm3);

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::contract::awkward_params;
    use outerloop_core::{Key, Optimizer, UpdateVjp};

    /// The accumulators of a tensor's largest element tie on all axes, so they are moved together:
    /// by the gradient of the update before.
    #[test]
    fn derivative_over_two_updates_agrees_with_differences() {
        for beta2 in [1.0, 0.9] {
            let opt = Sm3 { beta2, ..Sm3::default() };
            let key = Key::new(2);
            let params = awkward_params::<f64>(key);
            let n = params.data.len();
            let draw = |name: &str| {
                let mut x = vec![0.0; n];
                key.named(name).fill_normal(&mut x);
                x
            };
            let (g1, g2, direction) = (draw("g1"), draw("g2"), draw("direction"));
            let start = opt.init(&params, None, key);
            let run = |h: f64| {
                let g1: Vec<f64> = g1.iter().zip(&direction).map(|(g, d)| g + h * g * d).collect();
                let mut states = [start.clone(), start.clone()];
                opt.update(&mut states[0], &g1, 0.0, key);
                states[1] = states[0].clone();
                opt.update(&mut states[1], &g2, 0.0, key);
                states
            };
            let mut after = start.zeros_like();
            after.params = draw("adjoint");
            let second = opt.vjp(&run(0.0)[0], &g2, 0.0, key, &after, &mut []).state;
            let first = opt.vjp(&start, &g1, 0.0, key, &second, &mut []);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let value = |h: f64| dot(&after.params, &run(h)[1].params);
            let slope = (value(1e-5) - value(-1e-5)) / 2e-5;
            let moved: Vec<f64> = g1.iter().zip(&direction).map(|(g, d)| g * d).collect();
            let got = dot(&first.grad, &moved);
            assert!((got - slope).abs() < 1e-7 * (1.0 + slope.abs()), "{got} for {slope}");
            assert!(slope.abs() > 1e-4);
        }
    }
}
