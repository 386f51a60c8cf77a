//! [`MixedNet`]: VeLO's network per parameter, whose weights are a mixture of several sets.

use crate::features::adafac::{self, TensorFeatures};
use crate::features::normalize;
use crate::rule::{Theta, Var};
use outerloop_core::{Float, Key, Layout};

/// A network on the features of [`TensorFeatures::velo_columns`] with three outputs: direction, magnitude,
/// and one that nothing reads. ReLU between the layers, none at the end.
///
/// Theta: `ff_mod_stack/~/w0__j` `[sets, inputs of group j, units]` (14 blocks of the first layer), `w{i}`
/// `[sets, in, out]`, `b{i}` `[sets, out]`.
pub(crate) struct MixedNet {
    /// Numbers of decays: momenta, RMS averages, factored second moments.
    pub(crate) decays: [usize; 3],
    /// Units per hidden layer.
    pub(crate) hidden_size: usize,
    pub(crate) hidden_layers: usize,
    /// Number of weight sets.
    pub(crate) sets: usize,
}

/// A tensor's name in theta.
pub(crate) fn name(tensor: impl std::fmt::Display) -> String {
    format!("ff_mod_stack/~/{tensor}")
}

impl MixedNet {
    /// Sizes of the input blocks, in order.
    pub(crate) fn blocks(&self) -> [usize; 14] {
        adafac::velo_groups(self.decays)
    }

    /// Units of the layers, inputs first.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let mut sizes = vec![self.blocks().iter().sum()];
        sizes.extend(std::iter::repeat_n(self.hidden_size, self.hidden_layers));
        sizes.push(3);
        sizes
    }

    /// Names and shapes of the weights of all sets.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (sizes, p) = (self.sizes(), self.sets);
        let mut all = Vec::new();
        for (j, inputs) in self.blocks().into_iter().enumerate() {
            all.push((name(format_args!("w0__{j}")), vec![p, inputs, sizes[1]]));
        }
        for (i, s) in sizes.windows(2).enumerate() {
            if i > 0 {
                all.push((name(format_args!("w{i}")), vec![p, s[0], s[1]]));
            }
            all.push((name(format_args!("b{i}")), vec![p, s[1]]));
        }
        all
    }

    /// Writes initial weights into a theta of `layout`: truncated normal with σ = 1/√inputs.
    pub(crate) fn init<E: Float>(&self, layout: &Layout, theta: &mut [E], key: Key) {
        for (name, shape) in self.tensors().iter().filter(|(_, shape)| shape.len() == 3) {
            // The blocks of the first layer share its number of inputs.
            let inputs = if name.contains("w0__") { self.sizes()[0] } else { shape[1] };
            let range = layout.get(name).expect("its own name").range();
            key.named(name).fill_truncated_normal(&mut theta[range], 1.0 / (inputs as f64).sqrt());
        }
    }

    /// The inputs, normalized over the whole tensor, `[inputs, n]`.
    pub(crate) fn inputs<E: Float>(t: &TensorFeatures<E>) -> Var<E> {
        Var::concat(&t.velo_columns().iter().map(normalize::second_moment).collect::<Vec<_>>())
    }

    /// The outputs `[3, n]` for columns `x` `[inputs, n]`, with the weights `factor · Σᵢ mixture_i W_i`.
    pub(crate) fn forward<E: Float>(
        &self,
        theta: &Theta<E>,
        (mixture, factor): (&Var<E>, f64),
        x: &Var<E>,
    ) -> Var<E> {
        let mixed =
            |tensor: std::fmt::Arguments<'_>| theta.get(&name(tensor)).linear(mixture, 1).scale(factor);
        let sizes = self.sizes();
        let n = x.len() / sizes[0];
        let layers = sizes.len() - 1;
        (0..layers).fold(x.clone(), |x, i| {
            let w = match i {
                0 => {
                    let blocks = 0..self.blocks().len();
                    Var::concat(&blocks.map(|j| mixed(format_args!("w0__{j}"))).collect::<Vec<_>>())
                }
                _ => mixed(format_args!("w{i}")),
            };
            let out = sizes[i + 1];
            let y = x.linear(&w, out) + mixed(format_args!("b{i}")).expand_axis([out, n, 1]);
            if i + 1 < layers {
                y.relu()
            } else {
                y
            }
        })
    }
}
