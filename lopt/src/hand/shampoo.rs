//! Shampoo.

use super::eigen::InverseRoot;
use super::graph::{map, Around, Graph, Var};
use super::tensorwise::zeros;
use super::{At, MomentumKind, Schedule, Tensorwise};
use outerloop_core::{check_settings, Float, Interval, Result};
use serde::{Deserialize, Serialize};

/// Shampoo with SGD grafting. Small dimensions of a tensor are merged and large ones cut into
/// blocks; every axis i of a block keeps `Sᵢ ← β₂ Sᵢ + (1−β₂) GᵢGᵢᵀ` of its unfolded gradient, and
/// the gradient is multiplied along every axis by `(Sᵢ + ε λ_max I)^(−1/(2·rank))`, then rescaled to
/// its norm. Two momenta run, of the gradient and of the preconditioned one; the second drives from
/// `start_preconditioning_step` on.
///
/// Inverse roots come from an eigendecomposition in f64, where the reference iterates Newton's
/// method in f32.
/// Reference: Gupta, Koren, Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018; in
/// the form and with the defaults of optax-shampoo 0.0.6 as learned_optimization wraps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shampoo {
    /// Default 0.01.
    pub learning_rate: Schedule,
    /// Largest axis of a block; default 128.
    pub block_size: usize,
    /// Decay of the momenta; default 0.9.
    pub beta1: f64,
    /// Decay of the statistics (1: sums); default 0.999.
    pub beta2: f64,
    /// ε, and the statistics' initial diagonal; default 1e-6.
    pub matrix_epsilon: f64,
    /// Times p, added to the direction; default 0.
    pub weight_decay: f64,
    /// Updates done before the preconditioner is used; default 5.
    pub start_preconditioning_step: u64,
    /// Updates between computations of the inverse roots; default 1.
    pub preconditioning_compute_steps: u64,
    /// Default Nesterov.
    pub kind: MomentumKind,
    /// Dimensions are merged while their product is at most this; default 4096.
    pub merge_up_to: usize,
    /// Tensors with a larger dimension are not preconditioned; default 4096.
    pub skip_dim_above: usize,
}

impl Default for Shampoo {
    fn default() -> Self {
        Shampoo {
            learning_rate: 0.01.into(),
            block_size: 128,
            beta1: 0.9,
            beta2: 0.999,
            matrix_epsilon: 1e-6,
            weight_decay: 0.0,
            start_preconditioning_step: 5,
            preconditioning_compute_steps: 1,
            kind: MomentumKind::Nesterov,
            merge_up_to: 4096,
            skip_dim_above: 4096,
        }
    }
}

/// A block of a tensor: its shape and where its elements lie.
struct Block {
    shape: Vec<usize>,
    elements: Vec<usize>,
}

impl Shampoo {
    /// Neighbouring dimensions joined while their product stays small.
    fn merged(&self, shape: &[usize]) -> Vec<usize> {
        if !shape.is_empty() && shape.iter().all(|d| *d == 1) {
            return vec![1];
        }
        let mut merged = Vec::new();
        let mut product = 1;
        for d in shape {
            if product * d <= self.merge_up_to {
                product *= d;
                continue;
            }
            merged.extend((product > 1).then_some(product));
            product = *d;
        }
        merged.extend((product > 1).then_some(product));
        merged
    }

    /// The blocks of a tensor; one without axes if it is not preconditioned.
    fn blocks(&self, shape: &[usize]) -> Vec<Block> {
        let n = shape.iter().product();
        if shape.iter().any(|d| *d > self.skip_dim_above) {
            return vec![Block { shape: Vec::new(), elements: (0..n).collect() }];
        }
        let mut blocks = vec![Block { shape: Vec::new(), elements: vec![0] }];
        for d in self.merged(shape) {
            let cut = |b: &Block| {
                let longer = |start: usize| {
                    let range = start..(start + self.block_size).min(d);
                    let shape = b.shape.iter().copied().chain([range.len()]).collect();
                    let elements = b.elements.iter().flat_map(|e| range.clone().map(move |i| e * d + i));
                    Block { shape, elements: elements.collect() }
                };
                (0..d).step_by(self.block_size).map(longer).collect::<Vec<_>>()
            };
            blocks = blocks.iter().flat_map(cut).collect();
        }
        blocks
    }

    /// The gradient of a block times its preconditioners, and the new statistics and preconditioners.
    fn precondition<E: Float>(
        &self,
        graph: &mut Graph<E>,
        at: At,
        block: &Block,
        g: Var,
        old: &[[Var; 2]],
    ) -> (Var, Vec<[Var; 2]>) {
        let rank = block.shape.len();
        let rest = if self.beta2 == 1.0 { 1.0 } else { 1.0 - self.beta2 };
        let mut new = Vec::with_capacity(rank);
        for (axis, [statistic, root]) in old.iter().enumerate() {
            let a = Around::axis(&block.shape, axis);
            let rows = a.dim;
            let unfolded = graph.gather(g, a.unfold());
            let gram = graph.matmul_t(unfolded, unfolded, [rows, rows, a.outer * a.inner]);
            let statistic = map!(graph, [*statistic, gram], |k; s, x| k(self.beta2) * s + k(rest) * x);
            let root = match at.step % self.preconditioning_compute_steps {
                0 => inverse_root(graph, statistic, rows, 2.0 * rank as f64, self.matrix_epsilon),
                _ => *root,
            };
            new.push([statistic, root]);
        }
        // Multiply along the first axis and move it to the end; after all axes the order is back.
        let n: usize = block.shape.iter().product();
        let mut u = g;
        for (rows, [_, root]) in block.shape.iter().zip(&new) {
            let turned = graph.transpose(u, [*rows, n / rows]);
            u = graph.matmul_t(turned, *root, [n / rows, *rows, *rows]);
        }
        (u, new)
    }
}

/// See [`InverseRoot`].
fn inverse_root<E: Float>(graph: &mut Graph<E>, a: Var, n: usize, order: f64, ridge: f64) -> Var {
    let wide = |x: &[E]| x.iter().map(|x| x.f64()).collect::<Vec<f64>>();
    let root = InverseRoot::new(&wide(graph.value(a)), n, order, ridge);
    let value = root.value().into_iter().map(E::of).collect();
    graph.custom(a, value, move |adjoint, to| {
        to.iter_mut().zip(root.vjp(&wide(adjoint))).for_each(|(to, x)| *to += E::of(x));
    })
}

impl Tensorwise for Shampoo {
    fn name(&self) -> String {
        "shampoo".into()
    }
    fn validate(&self) -> Result<()> {
        self.learning_rate.validate(&format!("{}: learning_rate", self.name()))?;
        let settings = [
            ("block_size", self.block_size as f64, Interval::COUNT),
            ("beta1", self.beta1, Interval::DECAY),
            ("beta2", self.beta2, Interval::FRACTION),
            ("matrix_epsilon", self.matrix_epsilon, Interval::POSITIVE),
            ("weight_decay", self.weight_decay, Interval::NOT_NEGATIVE),
            ("preconditioning_compute_steps", self.preconditioning_compute_steps as f64, Interval::COUNT),
        ];
        check_settings(&self.name(), settings)
    }
    fn slots(&self, shape: &[usize]) -> Vec<(&'static str, Vec<f64>)> {
        let sizes: Vec<usize> = self.blocks(shape).into_iter().flat_map(|b| b.shape).collect();
        let diagonal = |x: f64| -> Vec<f64> {
            let square =
                |n: &usize| (0..n * n).map(|i| if i / n == i % n { x } else { 0.0 }).collect::<Vec<_>>();
            sizes.iter().flat_map(square).collect()
        };
        vec![
            ("statistics", diagonal(self.matrix_epsilon)),
            ("preconditioners", diagonal(1.0)),
            zeros("momentum", shape),
            zeros("grafted_momentum", shape),
        ]
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
        let blocks = self.blocks(shape);
        let mut start = 0;
        let (mut parts, mut matrices) = (Vec::new(), [Vec::new(), Vec::new()]);
        for block in &blocks {
            let old: Vec<[Var; 2]> = block
                .shape
                .iter()
                .map(|n| {
                    let range = start..start + n * n;
                    start = range.end;
                    [slots[0], slots[1]].map(|slot| graph.gather(slot, range.clone().collect()))
                })
                .collect();
            let part = graph.gather(g, block.elements.clone());
            let (u, new) = self.precondition(graph, at, block, part, &old);
            parts.push(u);
            for [statistic, root] in new {
                matrices[0].push(statistic);
                matrices[1].push(root);
            }
        }
        // Where each element of the tensor lies among the blocks.
        let mut position = vec![0; shape.iter().product()];
        blocks.iter().flat_map(|b| &b.elements).enumerate().for_each(|(i, e)| position[*e] = i);
        let u = graph.concat(&parts);
        let u = graph.gather(u, position);
        let (g_norm, u_norm) = (graph.norm(g), graph.norm(u));
        let u = map!(graph, [u, g_norm, u_norm], |k; u, g, n| u * (g / (n + k(1e-16))));
        let (decay, beta1) = (self.weight_decay, self.beta1);
        let [grafted, direction] = [g, u].map(|u| map!(graph, [u, p], |k; u, p| u + k(decay) * p));
        let shampoo = map!(graph, [slots[2], direction], |k; w, u| self.kind.trace(k(beta1), w, u).1);
        let sgd = map!(graph, [slots[3], grafted], |k; w, u| self.kind.trace(k(beta1), w, u).1);
        let (old, u) = match at.step >= self.start_preconditioning_step {
            true => (slots[2], direction),
            false => (slots[3], grafted),
        };
        let p = map!(graph, [p, old, u], |k; p, w, u| p - k(lr) * self.kind.trace(k(beta1), w, u).0);
        let [statistics, roots] = matrices.map(|m| graph.concat(&m));
        (p, vec![statistics, roots, shampoo, sgd])
    }
}
crate::tensorwise_optimizer!(Shampoo);
