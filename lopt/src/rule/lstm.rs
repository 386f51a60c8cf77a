//! The recurrent network that reads one column per tensor.

use super::{Theta, Var};
use crate::rule::mlp::{dense, dense_tensors};
use outerloop_core::{Float, Layout};

/// An LSTM over columns: `z = Wᵀ [x; h] + b`, gates i, g, f, o in this order;
/// `c ← σ(f + 1) c + σ(i) tanh(g)`, `h ← σ(o) tanh(c)`. Its initial state is part of theta.
///
/// Theta: `{name}/linear/w` `[inputs + hidden, 4 hidden]`, `{name}/linear/b`, and
/// `lstm_init_state/hidden`, `lstm_init_state/cell` `[1, hidden]`.
/// Reference: Hochreiter and Schmidhuber 1997, with the forget bias of Jozefowicz et al. 2015.
pub(crate) struct Lstm {
    pub(crate) name: &'static str,
    pub(crate) inputs: usize,
    pub(crate) hidden: usize,
}

impl Lstm {
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all =
            dense_tensors(&format!("{}/linear", self.name), self.inputs + self.hidden, 4 * self.hidden)
                .to_vec();
        all.extend(["hidden", "cell"].map(|n| (format!("lstm_init_state/{n}"), vec![1, self.hidden])));
        all
    }

    /// The initial `[hidden, columns]` state of `columns` tensors: hidden and cell.
    pub(crate) fn init<E: Float>(&self, theta: &Theta<E>, columns: usize) -> [Var<E>; 2] {
        ["hidden", "cell"]
            .map(|n| theta.get(&format!("lstm_init_state/{n}")).expand_axis([self.hidden, columns, 1]))
    }

    /// The next hidden and cell for inputs `x` `[inputs, columns]`.
    pub(crate) fn step<E: Float>(&self, theta: &Theta<E>, x: &Var<E>, [h, c]: [&Var<E>; 2]) -> [Var<E>; 2] {
        let z = dense(theta, &format!("{}/linear", self.name), &Var::concat(&[x.clone(), h.clone()]));
        let [i, g, f, o] = [0, 1, 2, 3].map(|gate| z.row(gate, h.len()));
        let cell = f.shift(1.0).sigmoid() * c + i.sigmoid() * g.tanh();
        [o.sigmoid() * cell.tanh(), cell]
    }
}

/// Number of tensors that have elements: the LSTM's columns.
pub(crate) fn columns(layout: &Layout) -> usize {
    layout.entries().iter().filter(|e| e.numel() > 0).count()
}
