//! Operations of ours made of dfdx's, which run on any device: values and gradients of what [`RawOp::known`] names.
//!
//! Second derivatives are none of these: where a recording wants them, the operation runs on the host, by the same
//! code as on the CPU. Three things of dfdx's kernels are avoided. Reductions and broadcasts add with atomics, in an
//! order that changes from run to run: here both are matrix products with constants, by the device's BLAS. `relu`
//! turns NaN into 0 on a GPU, where a diverged run must stay visible: here it is a choice. Operands that are one
//! tensor make a panic in the sweep back: such operations run on the host.

use super::raw::Flat;
use super::{Activation, KnownMap, KnownOp, KnownPair, RawOp};
use crate::tensor::{unique_id, with_recording, Backend, Float, Quiet, Shape, Tape, Tensor};
use dfdx::prelude::{
    Axes2, Axes3, Axis, ChooseFrom, HasShape, MaxTo, Merge, NoneTape, PermuteTo, PutTape, ReshapeTo,
    SplitTape, TryLe, TryMatMul,
};

/// Tapes that these operations are recorded by.
trait Tracing<E: Float, B: Backend<E>>: Tape<E, B> + Merge<Self> + Merge<NoneTape> + Copy {}
impl<E: Float, B: Backend<E>> Tracing<E, B> for NoneTape {}
impl<E: Float, B: Backend<E>> Tracing<E, B> for Quiet {}

type Matrix<E, B, T> = Tensor<(usize, usize), E, B, T>;
type Vector<E, B, T> = Tensor<(usize,), E, B, T>;

/// The result of an operation on the inputs' device, recorded if `records`. `None` if that is for the host: it has no
/// name, its tangents are asked for, two of its inputs are one tensor, or an input has no elements.
pub(crate) fn run<E: Float, B: Backend<E>>(
    op: &dyn RawOp<E>,
    inputs: &[Flat<E, B>],
    len: usize,
    records: bool,
) -> Option<Flat<E, B>> {
    let known = op.known()?;
    let ids: Vec<_> = inputs.iter().map(unique_id).collect();
    let is_repeated = |i: usize| ids[..i].contains(&ids[i]);
    if len == 0 || (0..ids.len()).any(|i| is_repeated(i) || inputs[i].shape().0 == 0) {
        return None;
    }
    let is_traced = records && {
        let (is_host, is_active) = with_recording::<E, B, _>(|r| {
            (r.tangents.is_some() || r.nodes.is_some(), ids.iter().any(|&id| r.is_active(id)))
        });
        if is_host {
            return None;
        }
        is_active
    };
    if !is_traced {
        return value::<E, B, NoneTape>(known, inputs, NoneTape);
    }
    let y = value::<E, B, Quiet>(known, inputs, Quiet::default())?.split_tape().0;
    let id = unique_id(&y);
    with_recording::<E, B, _>(|r| r.made(id, len));
    Some(y)
}

/// A matrix of one number.
fn filled<E: Float, B: Backend<E>>(dev: &B, [rows, cols]: [usize; 2], c: E) -> Matrix<E, B, NoneTape> {
    dev.tensor_from_vec(vec![c; rows * cols], (rows, cols))
}

/// `n` copies of a row, `[1, c]` to `[n, c]`.
fn rows<E: Float, B: Backend<E>, T: Tracing<E, B>>(
    row: Matrix<E, B, NoneTape>,
    n: usize,
    tape: T,
) -> Matrix<E, B, T> {
    let ones = filled(row.device(), [n, 1], E::of(1.0));
    ones.put_tape(tape).matmul(row)
}

fn flat<E: Float, B: Backend<E>, T: Tracing<E, B>>(x: Matrix<E, B, T>) -> Vector<E, B, T> {
    let n = x.shape().num_elements();
    x.reshape_like(&(n,))
}

fn value<E: Float, B: Backend<E>, T: Tracing<E, B>>(
    known: KnownOp<'_, E>,
    inputs: &[Flat<E, B>],
    tape: T,
) -> Option<Vector<E, B, T>> {
    let dev = inputs[0].device();
    let traced = |i: usize| inputs[i].clone().put_tape(tape);
    Some(match known {
        KnownOp::Linear { n, i, o, act } => {
            let (x, w) = (traced(0).reshape_like(&(n, i)), inputs[1].clone().reshape_like(&(i, o)));
            let z = x.matmul(w) + rows(inputs[2].clone().reshape_like(&(1, o)), n, tape);
            flat(activate(z, act))
        }
        KnownOp::MatMul { batch: 1, m, k, n, transposed } => {
            let a = traced(0).reshape_like(&(m, k));
            let b = inputs[1].clone();
            flat(match transposed {
                true => a.matmul(b.reshape_like(&(n, k)).permute::<_, Axes2<1, 0>>()),
                false => a.matmul(b.reshape_like(&(k, n))),
            })
        }
        KnownOp::MatMul { batch, m, k, n, transposed } => {
            let a = traced(0).reshape_like(&(batch, m, k));
            let b = inputs[1].clone();
            let y = match transposed {
                true => a.matmul(b.reshape_like(&(batch, n, k)).permute::<_, Axes3<0, 2, 1>>()),
                false => a.matmul(b.reshape_like(&(batch, k, n))),
            };
            y.reshape_like(&(batch * m * n,))
        }
        KnownOp::SoftmaxCrossEntropy { classes, labels, weights } => {
            cross_entropy(traced(0).reshape_like(&(labels.len(), classes)), labels, weights)
        }
        KnownOp::Mse => {
            let n = inputs[0].shape().0;
            let d = traced(0) - inputs[1].clone();
            let mean = filled(dev, [n, 1], E::of(1.0 / n as f64));
            flat(d.square().reshape_like(&(1, n)).matmul(mean))
        }
        KnownOp::Sum { n, inner: 1, c } => {
            let outer = inputs[0].shape().0 / n;
            flat(traced(0).reshape_like(&(outer, n)).matmul(filled(dev, [n, 1], c)))
        }
        KnownOp::Sum { n, inner, c } if n * inner == inputs[0].shape().0 => {
            let x = inputs[0].clone().reshape_like(&(n, inner));
            flat(filled(dev, [1, n], c).put_tape(tape).matmul(x))
        }
        KnownOp::Sum { .. } => return None,
        KnownOp::Map(map) => match map {
            KnownMap::Exp => traced(0).exp(),
            KnownMap::Square => traced(0).square(),
            KnownMap::Tanh => traced(0).tanh(),
            KnownMap::Sigmoid => traced(0).sigmoid(),
            KnownMap::Relu => flat(relu(traced(0).reshape_like(&(1, inputs[0].shape().0)))),
            KnownMap::Affine(a, b) => traced(0) * a + b,
            KnownMap::Sin => traced(0).sin(),
            KnownMap::Cos => traced(0).cos(),
        },
        KnownOp::Pair(pair) => {
            let [n, cols] = [inputs[0].shape().0, inputs[1].shape().0];
            let (a, b) = (traced(0).reshape_like(&(n / cols, cols)), inputs[1].clone());
            let b = match n == cols {
                true => b.put_tape(tape).reshape_like(&(1, n)),
                false => rows(b.reshape_like(&(1, cols)), n / cols, tape),
            };
            flat(match pair {
                KnownPair::Add => a + b,
                KnownPair::Sub => a - b,
                KnownPair::Mul => a * b,
                KnownPair::Div => a / b,
            })
        }
    })
}

fn activate<E: Float, B: Backend<E>, T: Tracing<E, B>>(
    z: Matrix<E, B, T>,
    act: Activation,
) -> Matrix<E, B, T> {
    match act {
        Activation::Identity => z,
        Activation::Relu => relu(z),
        Activation::Tanh => z.tanh(),
        Activation::Sigmoid => z.sigmoid(),
    }
}

/// `max(z, 0)`; NaN is not at most 0, and stays.
fn relu<E: Float, B: Backend<E>, T: Tracing<E, B>>(z: Matrix<E, B, T>) -> Matrix<E, B, T> {
    let (z, tape) = z.split_tape();
    let zeros: Matrix<E, B, NoneTape> = z.device().zeros_like(z.shape());
    let is_off = z.le(E::of(0.0));
    is_off.choose(zeros.put_tape(tape), z)
}

/// `Σᵢ wᵢ (ln Σⱼ e^(z′ᵢⱼ) − z′ᵢ[labelᵢ])` with `z′ = z − max z` by row; the maximum is a constant, since the result
/// does not depend on it. The picks are a product, too: a logit of −∞ that is not the label's gives NaN here, where the
/// host's loss is finite.
fn cross_entropy<E: Float, B: Backend<E>, T: Tracing<E, B>>(
    z: Matrix<E, B, T>,
    labels: &[u32],
    weights: &[E],
) -> Vector<E, B, T> {
    let (z, tape) = z.split_tape();
    let (n, c) = *z.shape();
    let dev = z.device().clone();
    let max: Vector<E, B, NoneTape> = z.clone().max::<_, Axis<1>>();
    let max = max.reshape_like(&(n, 1)).matmul(filled(&dev, [1, c], E::of(1.0)));
    let z = z.put_tape(tape) - max;
    let sums = z.clone().exp().matmul(filled(&dev, [c, 1], E::of(1.0)));
    let weight = dev.tensor_from_vec(weights.to_vec(), (n, 1));
    let sums = sums.ln().reshape_like(&(1, n)).matmul(weight);
    let mut picks = vec![E::of(0.0); n * c];
    for (i, (&label, &w)) in labels.iter().zip(weights).enumerate() {
        picks[i * c + label as usize] = w;
    }
    let picked = z.reshape_like(&(1, n * c)).matmul(dev.tensor_from_vec(picks, (n * c, 1)));
    flat(sums - picked)
}
