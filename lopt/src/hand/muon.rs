//! Muon.

use super::adam::{adam_coeffs, adam_on_graph};
use super::graph::{map, Graph, Var};
use super::tensorwise::zeros;
use super::{At, MomentumKind, Schedule, Tensorwise};
use crate::kernel::{self, f32s_mut, is_f32};
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// Muon: momentum whose matrix is orthogonalized by five steps of a quintic Newton-Schulz iteration
/// and scaled by `√max(1, rows/columns)`. A tensor of rank above 2 is seen as the matrix
/// `[all but the last dimension, last dimension]`; scalars and vectors get [`AdamW`](super::AdamW).
///
/// `v ← μ v + g`, `X = (g + μ v)/|g + μ v|`, five times `X ← a X + (b A + c A²) X` with `A = X Xᵀ` and
/// (a, b, c) = (3.4445, −4.775, 2.0315), `p ← p − lr (scale X + λ p)`.
/// Reference: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Muon {
    /// Of matrices; default 0.02.
    pub learning_rate: Schedule,
    /// μ; default 0.95.
    pub momentum: f64,
    /// Default Nesterov.
    pub kind: MomentumKind,
    /// Newton-Schulz steps; default 5.
    pub iterations: usize,
    /// λ, of all tensors; default 0.
    pub weight_decay: f64,
    /// Of scalars and vectors; default 3e-4.
    pub adam_learning_rate: Schedule,
    /// β₁ and β₂ of scalars and vectors; default 0.9, 0.95.
    pub adam_betas: (f64, f64),
    /// ε of scalars and vectors; default 1e-10.
    pub adam_epsilon: f64,
}

impl Default for Muon {
    fn default() -> Self {
        Muon {
            learning_rate: 0.02.into(),
            momentum: 0.95,
            kind: MomentumKind::Nesterov,
            iterations: 5,
            weight_decay: 0.0,
            adam_learning_rate: 3e-4.into(),
            adam_betas: (0.9, 0.95),
            adam_epsilon: 1e-10,
        }
    }
}

/// Rows and columns, if a tensor counts as a matrix.
fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    match shape {
        [rows @ .., columns] if !rows.is_empty() => Some([rows.iter().product(), *columns]),
        _ => None,
    }
}

/// `x` `[rows, columns]` with its singular values moved close to 1.
pub(crate) fn newton_schulz<E: Float>(
    graph: &mut Graph<E>,
    x: Var,
    [rows, columns]: [usize; 2],
    iterations: usize,
) -> Var {
    if rows > columns {
        // Fewer products the other way round.
        let turned = graph.transpose(x, [rows, columns]);
        let y = newton_schulz(graph, turned, [columns, rows], iterations);
        return graph.transpose(y, [columns, rows]);
    }
    let norm = graph.norm(x);
    let mut x = map!(graph, [x, norm], |k; x, n| x / (n + k(1e-7)));
    for _ in 0..iterations {
        let a = graph.matmul_t(x, x, [rows, rows, columns]);
        let a2 = graph.matmul_t(a, a, [rows, rows, rows]);
        let b = map!(graph, [a, a2], |k; a, a2| k(-4.775) * a + k(2.0315) * a2);
        let turned = graph.transpose(x, [rows, columns]);
        let bx = graph.matmul_t(b, turned, [rows, columns, rows]);
        x = map!(graph, [x, bx], |k; x, bx| k(3.4445) * x + bx);
    }
    x
}

/// [`newton_schulz`], in f32 and without a derivative by a kernel.
fn orthogonalized<E: Float>(graph: &mut Graph<E>, x: Var, dims: [usize; 2], iterations: usize) -> Var {
    if !graph.is_plain() || dims.contains(&0) || const { !is_f32::<E>() } {
        return newton_schulz(graph, x, dims, iterations);
    }
    let norm = graph.norm(x);
    let scaled = map!(graph, [x, norm], |k; x, n| x / (n + k(1e-7)));
    let mut values = graph.value(scaled).to_vec();
    if let Some([values]) = f32s_mut([&mut values[..]]) {
        kernel::newton_schulz::orthogonalized(values, dims, iterations);
    }
    graph.input(&values)
}

impl Tensorwise for Muon {
    fn name(&self) -> String {
        "muon".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        self.adam_learning_rate.validate(&format!("{}: adam_learning_rate", self.name()))?;
        let settings = [
            ("momentum", self.momentum, Interval::DECAY),
            ("iterations", self.iterations as f64, Interval::COUNT),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("adam_betas.0", self.adam_betas.0, Interval::DECAY),
            ("adam_betas.1", self.adam_betas.1, Interval::DECAY),
            ("adam_epsilon", self.adam_epsilon, Interval::NOT_NEGATIVE),
        ];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        let v = match matrix(shape) {
            Some(_) => ("v", Vec::new()),
            None => zeros("v", shape),
        };
        vec![zeros("momentum", shape), v]
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
        let decay = self.weight_decay;
        let Some(dims) = matrix(shape) else {
            let lr = self.adam_learning_rate.at(at.step, at.num_steps);
            let (beta1, beta2) = self.adam_betas;
            let c = adam_coeffs([lr, beta1, beta2, self.adam_epsilon, 0.0, decay], at);
            let (u, moments) = adam_on_graph(graph, c, [slots[0], slots[1]], g);
            return (map!(graph, [p, u], |k; p, u| p - u - k(c[8]) * p), moments.to_vec());
        };
        let lr = self.learning_rate.at(at.step, at.num_steps);
        let mu = self.momentum;
        let v = map!(graph, [slots[0], g], |k; v, g| self.kind.trace(k(mu), v, g).1);
        let u = map!(graph, [slots[0], g], |k; v, g| self.kind.trace(k(mu), v, g).0);
        let u = orthogonalized(graph, u, dims, self.iterations);
        let scale = (dims[0] as f64 / dims[1] as f64).max(1.0).sqrt();
        (map!(graph, [p, u], |k; p, u| p - k(lr) * (k(scale) * u + k(decay) * p)), vec![v, slots[1]])
    }
}
crate::tensorwise_optimizer!(Muon);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hand::eigen::symmetric_eigen;
    use outerloop_core::Key;

    #[test]
    fn the_kernel_does_as_the_rule() {
        for dims in [[4, 9], [9, 4], [17, 33], [1, 6]] {
            let mut x = vec![0.0f32; dims[0] * dims[1]];
            Key::new(2).fill_normal(&mut x);
            let (mut plain, mut recording) = (Graph::plain(), Graph::recording());
            let [a, b] = [&mut plain, &mut recording].map(|graph| {
                let x = graph.input(&x);
                let y = orthogonalized(graph, x, dims, 5);
                graph.value(y).to_vec()
            });
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() < 1e-4, "{a}, not {b}");
            }
        }
    }

    #[test]
    fn newton_schulz_moves_singular_values_close_to_one() {
        for [rows, columns] in [[4, 9], [9, 4], [5, 5]] {
            let mut x = vec![0.0f64; rows * columns];
            Key::new(1).fill_normal(&mut x);
            let mut graph = Graph::plain();
            let x = graph.input(&x);
            let y = newton_schulz(&mut graph, x, [rows, columns], 5);
            let y = if rows > columns { graph.transpose(y, [rows, columns]) } else { y };
            let (m, n) = (rows.min(columns), rows.max(columns));
            let gram = graph.matmul_t(y, y, [m, m, n]);
            for value in symmetric_eigen(graph.value(gram).to_vec(), m).0 {
                // The published polynomial keeps singular values between about 0.7 and 1.2.
                assert!((0.6..1.3).contains(&value.sqrt()), "{value}");
            }
        }
    }
}
