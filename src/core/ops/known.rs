//! Operations that a device may have kernels of its own for, by name: what [`RawOp::known`](super::RawOp::known) says.

use super::Activation;

/// An operation by name. Inputs and output are flat and row-major, as those of [`RawOp`](super::RawOp).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KnownOp<'a, E> {
    /// `act(x w + b)`: inputs `[n, i]`, `[i, o]`, `[o]`, output `[n, o]`.
    Linear {
        /// Rows of `x`.
        n: usize,
        /// Columns of `x`.
        i: usize,
        /// Columns of `w`.
        o: usize,
        /// What follows.
        act: Activation,
    },
    /// One product per batch entry: inputs `[batch, m, k]` and `[batch, k, n]`, output `[batch, m, n]`.
    MatMul {
        /// Number of products.
        batch: usize,
        /// Rows of the result.
        m: usize,
        /// Inner dimension.
        k: usize,
        /// Columns of the result.
        n: usize,
        /// The second input is stored as `[batch, n, k]`.
        transposed: bool,
    },
    /// `Σᵢ wᵢ (−ln softmax(zᵢ)[labelᵢ])`: input `[n, classes]`, output one number.
    SoftmaxCrossEntropy {
        /// Columns of the input.
        classes: usize,
        /// One per row, each below `classes`.
        labels: &'a [u32],
        /// One per row; their sum is 1.
        weights: &'a [E],
    },
    /// Mean of `(a − b)²` over two inputs of the same length, output one number.
    Mse,
    /// `y[o, j] = c Σₖ x[o, k, j]`: input `[outer, n, inner]`, output `[outer, inner]`.
    Sum {
        /// What is summed over.
        n: usize,
        /// Elements behind it.
        inner: usize,
        /// The factor.
        c: E,
    },
    /// An elementwise function.
    Map(KnownMap<E>),
    /// Elementwise arithmetic; the second input is repeated if it is shorter.
    Pair(KnownPair),
}

/// An elementwise function of one input; derivatives as in [`super::scalar`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KnownMap<E> {
    /// `eˣ`
    Exp,
    /// `x²`
    Square,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e⁻ˣ)`
    Sigmoid,
    /// `max(x, 0)`; NaN stays NaN; derivative 0 at 0.
    Relu,
    /// `a x + b`
    Affine(E, E),
    /// `sin x`
    Sin,
    /// `cos x`
    Cos,
}

impl<E: crate::Float> KnownMap<E> {
    /// The function of this name in [`super::scalar`] with constants `c`, if it is one of these.
    pub(super) fn named(name: &str, c: &[f64]) -> Option<Self> {
        Some(match (name, c) {
            ("exp", []) => KnownMap::Exp,
            ("square", []) => KnownMap::Square,
            ("tanh", []) => KnownMap::Tanh,
            ("sigmoid", []) => KnownMap::Sigmoid,
            ("relu", []) => KnownMap::Relu,
            ("sin", []) => KnownMap::Sin,
            ("cos", []) => KnownMap::Cos,
            ("neg", []) => KnownMap::Affine(E::of(-1.0), E::of(0.0)),
            ("affine", [a, b]) => KnownMap::Affine(E::of(*a), E::of(*b)),
            ("scale", [a]) => KnownMap::Affine(E::of(*a), E::of(0.0)),
            ("shift", [b]) => KnownMap::Affine(E::of(1.0), E::of(*b)),
            _ => return None,
        })
    }
}

/// Elementwise arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnownPair {
    /// `a + b`
    Add,
    /// `a − b`
    Sub,
    /// `a b`
    Mul,
    /// `a / b`
    Div,
}
