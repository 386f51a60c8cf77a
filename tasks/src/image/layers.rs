//! What lies between the linear layers, and the squared error.

use outerloop_core::ops::{self, Activation};
use outerloop_core::tensor::{Backend, HasShape, Mode, Rank0, Shape, Tensor};
use outerloop_core::Float;
use serde::{Deserialize, Serialize};

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
    pub(super) fn fused(self) -> Option<Activation> {
        match self {
            Self::Relu => Some(Activation::Relu),
            Self::Tanh => Some(Activation::Tanh),
            Self::Sigmoid => Some(Activation::Sigmoid),
            _ => None,
        }
    }

    /// Applies it element by element.
    pub(super) fn apply<S: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
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
