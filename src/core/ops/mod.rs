//! Differentiable operations on dfdx's tape, each with forward, VJP, JVP and the tangent of the VJP.
//!
//! A loss made of these alone has exact Hessian-vector products (forward over reverse, about two
//! gradients' time). Shapes may be const or run-time dims; data that no parameter reaches gets no
//! gradient. Any dfdx operation can be mixed in: it works, only slower and without exact tangents.
//!
//! | file | operations |
//! |---|---|
//! | linear, matmul | [`linear`], [`matmul`], [`batch_matmul`], [`batch_matmul_transposed`] |
//! | map | [`map`] and the elementwise functions [`exp`], [`tanh`], [`relu`], [`gelu`], [`scale`], ... |
//! | binary | [`add`], [`sub`], [`mul`], [`div`], with broadcasting |
//! | reduce | [`sum`], [`mean`], [`sum_axis0`], [`sum_axis1`], [`mean_axis0`], [`mean_axis1`], [`max_axis1`] |
//! | loss, xent | [`mse`], [`sigmoid_cross_entropy`], [`softmax_cross_entropy`], [`weighted_softmax_cross_entropy`], [`softmax_cross_entropies`] |
//! | decay | [`weight_decay`] |
//! | fixed_point | [`fixed_point()`]: equilibrium layers, solvers as layers |
//! | norm | [`softmax`], [`layer_norm`], [`batch_norm`] |
//! | select | [`embedding`], [`repeat_row`], [`columns`], [`transpose`], [`swap_middle`], [`reshape`], [`concat()`], [`concat_rows`] |
//! | gradient | [`gradient()`]: the gradient of a scalar function, inside a loss; [`stop_gradient`] |
//! | conv | [`conv2d`], [`max_pool`], [`avg_pool`], [`global_max_pool`], [`global_avg_pool`] |
//!
//! [`DenseNet`] is a whole network as one kernel, for tasks that are nothing else.
//!
//! A new operation is a [`map`], or a [`RawOp`] given to [`apply`]. A device that has a kernel for it finds it by
//! [`RawOp::known`]; all others it runs on the host.
//!
//! The first operand carries the tape; parameters among the others need none, since the recording
//! knows them (a computed tensor is passed there without its tape, `t.split_tape().0`). At points where a derivative does not exist (ReLU at 0, the root at 0) it is 0.

mod aligned;
mod binary;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod by_dfdx;
mod conv;
mod decay;
mod dense_net;
mod dual;
mod fixed_point;
mod gemm;
mod gradient;
mod known;
mod linear;
mod loss;
mod map;
mod matmul;
mod narrow;
mod norm;
pub(crate) mod raw;
mod reduce;
mod select;
#[cfg(test)]
pub(crate) mod tests;
mod tile;
mod xent;

pub use crate::activation::Activation;
pub use binary::{add, div, mul, sub};
pub use conv::{avg_pool, conv2d, global_avg_pool, global_max_pool, max_pool, Padding};
pub use decay::weight_decay;
pub use dense_net::{DenseLinear, DenseNet, Elementwise, Head, Rows};
pub use fixed_point::{fixed_point, Equilibrium};
pub use gradient::{gradient, handle, stop_gradient, value_and_gradient, Through};
pub use known::{KnownMap, KnownOp, KnownPair};
pub use loss::{mse, sigmoid_cross_entropy};
pub use map::{
    abs, affine, clip, cos, elu, exp, gelu, leaky_relu, ln, map, neg, relu, relu6, scalar, scale, selu,
    shift, sigmoid, silu, sin, softplus, sqrt, square, tanh,
};
pub use matmul::{batch_matmul, batch_matmul_transposed, matmul};
pub use norm::{batch_norm, layer_norm, softmax, NORM_EPS};
pub use raw::{apply, Primal, RawOp, Tangent};
pub use reduce::{max_axis1, mean, mean_axis0, mean_axis1, sum, sum_axis0, sum_axis1};
pub use select::{columns, concat, concat_rows, embedding, repeat_row, reshape, swap_middle, transpose};
pub use xent::{softmax_cross_entropies, weighted_softmax_cross_entropy};

use crate::tensor::{Backend, Dim, Float, Mode, Rank0, Tensor};
use linear::raw_linear;
use xent::raw_softmax_cross_entropy;

/// `act(x w + b)`. Shapes: `x` `[N, I]`, `w` `[I, O]`, `b` `[O]`, result `[N, O]`.
pub fn linear<E: Float, B: Backend<E>, N: Dim, I: Dim, O: Dim, M: Mode<E, B>>(
    x: Tensor<(N, I), E, B, M>,
    w: &Tensor<(I, O), E, B>,
    b: &Tensor<(O,), E, B>,
    act: Activation,
) -> Tensor<(N, O), E, B, M> {
    B::linear(x, w, b, act, raw_linear)
}

/// Mean softmax cross entropy in nats against integer labels. Shapes: `logits` `[N, C]`, `labels`
/// `[N]`, each below `C`.
///
/// # Panics
/// If the number of labels differs from `N`.
pub fn softmax_cross_entropy<E: Float, B: Backend<E>, N: Dim, C: Dim, M: Mode<E, B>>(
    logits: Tensor<(N, C), E, B, M>,
    labels: &[u32],
) -> Tensor<Rank0, E, B, M> {
    B::softmax_cross_entropy(logits, labels, |logits, labels| {
        let n = labels.len();
        raw_softmax_cross_entropy(logits, labels, vec![E::of(1.0 / n as f64); n])
    })
}
