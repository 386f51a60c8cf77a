//! Layers that are made of dfdx operations: nonlinearities, norms, the squared error.

use dfdx::prelude::{leakyrelu, BroadcastTo, MeanTo, PutTape};
use outerloop_core::ops::Activation;
use outerloop_core::tensor::{Axis, Backend, HasShape, Mode, Rank0, Tensor};
use outerloop_core::Float;
use serde::{Deserialize, Serialize};

/// Activations and their batch, `[N, C]`.
pub(super) type Rows<E, B, M> = Tensor<(usize, usize), E, B, M>;

/// The epsilon of both norms: haiku's default.
const NORM_EPS: f64 = 1e-5;

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
    pub(super) fn apply<E: Float, B: Backend<E>, M: Mode<E, B>>(self, z: Rows<E, B, M>) -> Rows<E, B, M> {
        match self {
            Self::Relu => z.relu(),
            Self::Relu6 => z.clamp(0.0, 6.0),
            Self::Selu => {
                let (lambda, alpha) = (1.0507009873554805, 1.6732632423543772);
                let below = (z.clone().clamp(f64::NEG_INFINITY, 0.0).exp() - E::of(1.0)) * E::of(alpha);
                (z.relu() + below) * E::of(lambda)
            }
            Self::Tanh => z.tanh(),
            Self::Cos => z.cos(),
            Self::Sin => z.sin(),
            Self::Sigmoid => z.sigmoid(),
            Self::Silu => z.clone().sigmoid() * z,
            Self::Gelu => z.fast_gelu(),
            Self::LeakyRelu => leakyrelu(z, E::of(-0.5)),
        }
    }
}

/// `y scale + offset`, row by row; `scale` and `offset` `[C]`.
fn affine<E: Float, B: Backend<E>, M: Mode<E, B>>(
    y: Rows<E, B, M>,
    scale: &Tensor<(usize,), E, B>,
    offset: &Tensor<(usize,), E, B>,
) -> Rows<E, B, M> {
    let shape = *y.shape();
    let rows =
        |t: &Tensor<(usize,), E, B>| t.clone().put_tape(M::default()).broadcast_like::<_, Axis<0>>(&shape);
    y * rows(scale) + rows(offset)
}

/// Layer norm over the last axis: `(x − mean) / sqrt(var + eps) · scale + offset`.
pub(super) fn layer_norm<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    scale: &Tensor<(usize,), E, B>,
    offset: &Tensor<(usize,), E, B>,
) -> Rows<E, B, M> {
    affine(x.normalize::<Axis<1>>(NORM_EPS), scale, offset)
}

/// Batch norm with the batch's own statistics; also returns its means and biased variances `[C]`.
pub(super) fn batch_norm<E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Rows<E, B, M>,
    scale: &Tensor<(usize,), E, B>,
    offset: &Tensor<(usize,), E, B>,
) -> (Rows<E, B, M>, Vec<E>, Vec<E>) {
    let (rows, cols) = *x.shape();
    let (mut mean, mut var) = (vec![E::of(0.0); cols], vec![E::of(0.0); cols]);
    let values = x.as_vec();
    let n = E::of(rows as f64);
    let each = |out: &mut [E], f: &dyn Fn(usize, E) -> E| {
        for row in values.chunks_exact(cols.max(1)) {
            row.iter().enumerate().for_each(|(j, v)| out[j] += f(j, *v) / n);
        }
    };
    each(&mut mean, &|_, v| v);
    each(&mut var, &|j, v| (v - mean[j]) * (v - mean[j]));
    (affine(x.normalize::<Axis<0>>(NORM_EPS), scale, offset), mean, var)
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
    (logits - target).square().mean()
}
