//! What image models are made of: dense layers, nonlinearities, initial values, the squared error.

use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, DynParams, DynTree, HasShape, Mode, Rank0, Shape, Tensor};
use outerloop_core::{Float, Key, Layout};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Activations and their batch, `[N, C]`.
pub(super) type Rows<E, B, M> = Tensor<(usize, usize), E, B, M>;

/// The nonlinearities that the reference's families sample from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Nonlinearity {
    /// `max(z, 0)`
    Relu,
    /// `min(max(z, 0), 6)`
    Relu6,
    /// `λ z` above 0, `λ α (e^z − 1)` below (Klambauer et al. 2017)
    Selu,
    /// `tanh z`
    Tanh,
    /// `cos z`
    Cos,
    /// `sin z`
    Sin,
    /// `1 / (1 + e^-z)`
    Sigmoid,
    /// `z sigmoid(z)`, also called swish
    Silu,
    /// `z Φ(z)`, tanh approximation
    Gelu,
    /// `z` above 0, `−z/2` below: the reference's slope, negative indeed
    LeakyRelu,
}

impl Nonlinearity {
    /// All of them.
    pub const ALL: [Nonlinearity; 10] = [
        Self::Relu,
        Self::Relu6,
        Self::Selu,
        Self::Tanh,
        Self::Cos,
        Self::Sin,
        Self::Sigmoid,
        Self::Silu,
        Self::Gelu,
        Self::LeakyRelu,
    ];

    /// What the reference's families draw from: all, ReLU and SiLU (there also as swish) twice.
    pub const REFERENCE: [Nonlinearity; 12] = [
        Self::Relu,
        Self::Relu6,
        Self::Selu,
        Self::Tanh,
        Self::Cos,
        Self::Sin,
        Self::Sigmoid,
        Self::Silu,
        Self::Gelu,
        Self::LeakyRelu,
        Self::Relu,
        Self::Silu,
    ];

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::Relu6 => "relu6",
            Self::Selu => "selu",
            Self::Tanh => "tanh",
            Self::Cos => "cos",
            Self::Sin => "sin",
            Self::Sigmoid => "sigmoid",
            Self::Silu => "silu",
            Self::Gelu => "gelu",
            Self::LeakyRelu => "leaky_relu",
        }
    }

    /// The activation that a linear layer can fuse, where there is one.
    fn fused(self) -> Option<Activation> {
        match self {
            Self::Relu => Some(Activation::Relu),
            Self::Tanh => Some(Activation::Tanh),
            Self::Sigmoid => Some(Activation::Sigmoid),
            _ => None,
        }
    }

    /// Applies it to what `layer` gives, inside the layer where that can fuse it.
    pub(super) fn after<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        layer: impl FnOnce(Activation) -> Tensor<S, E, B, M>,
    ) -> Tensor<S, E, B, M> {
        match self.fused() {
            Some(act) => layer(act),
            None => self.apply(layer(Activation::Identity)),
        }
    }

    /// Applies it element by element.
    pub(crate) fn apply<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
        self,
        z: Tensor<S, E, B, M>,
    ) -> Tensor<S, E, B, M> {
        match self {
            Self::Relu => ops::relu(z),
            Self::Relu6 => ops::relu6(z),
            Self::Selu => ops::selu(z),
            Self::Tanh => ops::tanh(z),
            Self::Cos => ops::cos(z),
            Self::Sin => ops::sin(z),
            Self::Sigmoid => ops::sigmoid(z),
            Self::Silu => ops::silu(z),
            Self::Gelu => ops::gelu(z),
            Self::LeakyRelu => ops::leaky_relu(z, -0.5),
        }
    }
}

/// A linear layer: weights `[inputs, outputs]` at `index` of the layout, biases behind them.
pub(super) fn dense<E: Float, B: Backend<E>, M: Mode<E, B>>(
    params: &DynParams<E, B>,
    index: usize,
    x: Rows<E, B, M>,
    outputs: usize,
    act: Activation,
) -> Rows<E, B, M> {
    let inputs = x.shape().1;
    ops::linear(x, &params.get(index, (inputs, outputs)), &params.get(index + 1, (outputs,)), act)
}

/// Adds the parameters of layer `i`: weights `w{i}` of the given shape, outputs last, and biases
/// `b{i}` `[outputs]`.
pub(super) fn push_layer<const D: usize>(layout: &mut Layout, i: usize, shape: [usize; D]) {
    layout.push(format!("w{i}"), shape);
    layout.push(format!("b{i}"), [shape[D - 1]]);
}

/// Initial parameters: weights (names that begin with `w`) normal with standard deviation
/// `scale / sqrt(fan_in)`, truncated at twice that, as haiku does; names that begin with `scale` 1;
/// others 0.
pub(super) fn initial<E: Float, B: Backend<E>>(
    dev: &B,
    layout: &Arc<Layout>,
    scale: f64,
    key: Key,
) -> DynParams<E, B> {
    let mut flat = vec![E::of(0.0); layout.len()];
    for (i, entry) in layout.entries().iter().enumerate() {
        let out = &mut flat[entry.range()];
        if entry.name.starts_with('w') {
            let (_, inputs) = entry.shape.split_last().expect("weights have axes");
            let fan_in: usize = inputs.iter().product();
            key.fold_in(i as u64).fill_truncated_normal(out, scale / (fan_in as f64).sqrt());
        } else if entry.name.starts_with("scale") {
            out.fill(E::of(1.0));
        }
    }
    DynParams::<E, B>::new(dev, layout.clone(), &flat)
}

/// Mean over rows and classes of `(logit − onehot)²`.
pub(super) fn one_hot_mse<E: Float, B: Backend<E>, M: Mode<E, B>>(
    logits: Rows<E, B, M>,
    labels: &[u32],
) -> Tensor<Rank0, E, B, M> {
    let (rows, classes) = *logits.shape();
    let mut target = vec![E::of(0.0); rows * classes];
    for (row, &label) in target.chunks_exact_mut(classes).zip(labels) {
        row[label as usize] = E::of(1.0);
    }
    let target = logits.device().tensor_from_vec(target, (rows, classes));
    ops::mse(logits, &target)
}
