//! The small network inside learned optimizers: dense layers, ReLU between them, none at the end.

use super::{Theta, Var};
use outerloop_core::{Float, Key, Layout};

/// The shape of a network and the names of its tensors in theta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlpShape {
    sizes: Vec<usize>,
    names: Vec<(String, String)>,
}

impl MlpShape {
    /// `inputs → hidden_size × hidden_layers → outputs`; `name(i)` gives the names of layer i's
    /// weight `[in, out]` and bias `[out]`.
    pub fn new(
        inputs: usize,
        hidden_size: usize,
        hidden_layers: usize,
        outputs: usize,
        name: impl Fn(usize) -> (String, String),
    ) -> Self {
        let mut sizes = vec![inputs];
        sizes.extend(std::iter::repeat_n(hidden_size, hidden_layers));
        sizes.push(outputs);
        MlpShape { names: (0..=hidden_layers).map(name).collect(), sizes }
    }

    /// The layers in order: inputs, outputs, name of the weight, name of the bias.
    pub fn layers(&self) -> impl Iterator<Item = (usize, usize, &str, &str)> {
        self.names.iter().zip(self.sizes.windows(2)).map(|((w, b), s)| (s[0], s[1], &w[..], &b[..]))
    }

    /// Names and shapes of all weights and biases.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        self.layers()
            .flat_map(|(i, o, w, b)| [(w.to_string(), vec![i, o]), (b.to_string(), vec![o])])
            .collect()
    }

    /// Writes initial weights into a theta of `layout`: truncated normal at 2σ with σ = 1/√inputs;
    /// biases 0.
    ///
    /// # Panics
    /// If `layout` lacks a tensor of this network.
    pub fn init<E: Float>(&self, layout: &Layout, theta: &mut [E], key: Key) {
        for (i, (inputs, _, w, b)) in self.layers().enumerate() {
            let range = |name| layout.get(name).expect("theta holds the network").range();
            let std = 1.0 / (inputs as f64).sqrt();
            key.fold_in(i as u64).fill_truncated_normal(&mut theta[range(w)], std);
            theta[range(b)].fill(E::of(0.0));
        }
    }

    /// The outputs `[outputs, n]` for columns `x` `[inputs, n]`.
    pub fn forward<E: Float>(&self, theta: &Theta<E>, x: Var<E>) -> Var<E> {
        let n = x.len() / self.sizes[0];
        let last = self.names.len() - 1;
        self.layers().enumerate().fold(x, |x, (i, (_, o, w, b))| {
            let y = x.linear(&theta.get(w), o) + theta.get(b).expand_axis([o, n, 1]);
            if i < last {
                y.relu()
            } else {
                y
            }
        })
    }
}

/// One dense layer `y = Wᵀ x + b` from theta's tensors `{name}/w` `[in, out]` and `{name}/b` `[out]`;
/// `x` `[in, n]`.
pub(crate) fn dense<E: Float>(theta: &Theta<E>, name: &str, x: &Var<E>) -> Var<E> {
    let b = theta.get(&format!("{name}/b"));
    let inputs = theta.get(&format!("{name}/w")).len() / b.len();
    x.linear(&theta.get(&format!("{name}/w")), b.len()) + b.expand_axis([b.len(), x.len() / inputs, 1])
}

/// Names and shapes of a [`dense`] layer.
pub(crate) fn dense_tensors(name: &str, inputs: usize, outputs: usize) -> [(String, Vec<usize>); 2] {
    [(format!("{name}/w"), vec![inputs, outputs]), (format!("{name}/b"), vec![outputs])]
}

/// Initial theta of [`dense`] layers and other tensors: tensors named `.../w` are truncated normal
/// with σ = 1/√inputs, all others 0.
pub(crate) fn init_dense<E: Float>(layout: &Layout, key: Key) -> Vec<E> {
    let mut theta = vec![E::of(0.0); layout.len()];
    for entry in layout.entries().iter().filter(|e| e.name.ends_with("/w")) {
        let std = 1.0 / (entry.shape[0] as f64).sqrt();
        key.named(&entry.name).fill_truncated_normal(&mut theta[entry.range()], std);
    }
    theta
}

/// A layout of these tensors in the order of their names.
pub fn sorted_layout(mut tensors: Vec<(String, Vec<usize>)>) -> Layout {
    tensors.sort();
    Layout::new(tensors)
}
