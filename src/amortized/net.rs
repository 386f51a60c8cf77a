//! Fully connected networks on a buffer of parameters.

use crate::problem::Rows;
use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, DynParams, DynTree, Float, HasShape, Mode};
use outerloop_core::{Key, Layout};

/// The activation of hidden layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Act {
    /// `max(x, 0)`
    #[default]
    Relu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `x`, or `e^x − 1` below 0
    Elu,
    /// `x · sigmoid(x)`
    Silu,
    /// `x`
    Identity,
}

impl Act {
    /// `act(x w + b)`.
    pub fn linear<E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        x: Rows<E, B, M>,
        w: &Rows<E, B>,
        b: &outerloop_core::tensor::Tensor<(usize,), E, B>,
    ) -> Rows<E, B, M> {
        let fused = |act| ops::linear(x.clone(), w, b, act);
        match self {
            Act::Relu => fused(Activation::Relu),
            Act::Tanh => fused(Activation::Tanh),
            Act::Sigmoid => fused(Activation::Sigmoid),
            Act::Identity => fused(Activation::Identity),
            Act::Elu => ops::elu(fused(Activation::Identity)),
            Act::Silu => ops::silu(fused(Activation::Identity)),
        }
    }
}

/// How initial weights are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Init {
    /// Weights and biases uniform on `±1/√fan_in`: torch's default for linear layers.
    #[default]
    Torch,
    /// Weights uniform on `±√(6/(fan_in + fan_out))`, biases 0.
    Glorot,
}

impl Init {
    /// Writes one layer's weights and biases.
    pub fn fill(self, [inputs, outputs]: [usize; 2], key: Key, w: &mut [f64], b: &mut [f64]) {
        let mut rng = key.rng();
        let mut uniform = |x: &mut [f64], bound: f64| {
            x.iter_mut().for_each(|x| *x = bound * (2.0 * rand::Rng::gen::<f64>(&mut rng) - 1.0));
        };
        match self {
            Init::Torch => {
                let bound = 1.0 / (inputs as f64).sqrt();
                uniform(w, bound);
                uniform(b, bound);
            }
            Init::Glorot => {
                uniform(w, (6.0 / (inputs + outputs) as f64).sqrt());
                b.fill(0.0);
            }
        }
    }
}

/// A fully connected network: widths from input to output, an activation between the layers.
///
/// Parameters: `w1` `[I, H]`, `b1` `[H]`, `w2`, ..., two per layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// Widths, at least two.
    pub widths: Vec<usize>,
    /// Of the hidden layers; default ReLU.
    pub act: Act,
    /// Default: torch's.
    pub init: Init,
}

impl Mlp {
    /// A ReLU network with torch's initial weights.
    pub fn new(widths: impl Into<Vec<usize>>) -> Self {
        Mlp { widths: widths.into(), act: Act::Relu, init: Init::Torch }
    }
    /// The same with another activation.
    #[must_use]
    pub fn with_act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }
    /// Appends the parameters, names after a prefix.
    pub fn push(&self, layout: &mut Layout, prefix: &str) {
        for (i, w) in self.widths.windows(2).enumerate() {
            layout.push(format!("{prefix}w{}", i + 1), vec![w[0], w[1]]);
            layout.push(format!("{prefix}b{}", i + 1), vec![w[1]]);
        }
    }
    /// Number of parameter tensors.
    pub fn tensors(&self) -> usize {
        2 * (self.widths.len() - 1)
    }
    /// Number of parameters.
    pub fn len(&self) -> usize {
        self.widths.windows(2).map(|w| (w[0] + 1) * w[1]).sum()
    }
    /// Whether it has no layer.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Writes initial values, [`Self::len`] of them.
    pub fn fill(&self, key: Key, out: &mut [f64]) {
        let mut rest = out;
        for (i, w) in self.widths.windows(2).enumerate() {
            let (weights, tail) = rest.split_at_mut(w[0] * w[1]);
            let (bias, tail) = tail.split_at_mut(w[1]);
            self.init.fill([w[0], w[1]], key.fold_in(i as u64), weights, bias);
            rest = tail;
        }
    }
    /// The outputs `[N, O]` for rows of inputs `[N, I]`; `first` is the position of `w1`.
    pub fn forward<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        params: &DynParams<E, B>,
        first: usize,
        x: Rows<E, B, M>,
    ) -> Rows<E, B, M> {
        let layers = self.widths.len() - 1;
        let mut h = x;
        for (i, w) in self.widths.windows(2).enumerate() {
            let act = if i + 1 == layers { Act::Identity } else { self.act };
            h = linear(params, first + 2 * i, h, w[1], act);
        }
        h
    }
}

/// One layer: weights at `index` of the buffer, biases behind them.
pub fn linear<E: Float, B: Backend<E>, M: Mode<E, B>>(
    params: &DynParams<E, B>,
    index: usize,
    x: Rows<E, B, M>,
    outputs: usize,
    act: Act,
) -> Rows<E, B, M> {
    let inputs = x.shape().1;
    act.linear(x, &params.get(index, (inputs, outputs)), &params.get(index + 1, (outputs,)))
}
