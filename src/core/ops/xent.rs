//! Softmax cross entropy against integer labels as one operation.

use super::dual::{ByDuals, Scalar, ScalarOp};
use super::raw::{apply_built, built, flat, Primal, RawOp, Tangent};
use super::KnownOp;
use crate::math::vectorize;
use crate::nan;
use crate::tensor::{Backend, Dim, Float, Mode, Rank0, Tensor};
use dfdx::prelude::HasShape;

/// `Σᵢ wᵢ (−ln softmax(zᵢ)[labelᵢ])`, with weights that sum to 1.
struct Xent<E> {
    classes: usize,
    labels: Vec<u32>,
    weights: Vec<E>,
    /// Softmax probabilities, `[n, classes]`; filled by `forward`.
    probs: Vec<E>,
}

impl<E: Float> Xent<E> {
    /// Rows of probabilities with their label and weight.
    fn rows(&self) -> impl Iterator<Item = (&[E], usize, E)> {
        let labels = self.labels.iter().zip(&self.weights);
        self.probs.chunks_exact(self.classes.max(1)).zip(labels).map(|(p, (&l, &w))| (p, l as usize, w))
    }
}

impl<E: Float> RawOp<E> for Xent<E> {
    fn known(&self) -> Option<KnownOp<'_, E>> {
        let Xent { classes, labels, weights, .. } = self;
        Some(KnownOp::SoftmaxCrossEntropy { classes: *classes, labels, weights })
    }
    fn is_loss(&self) -> bool {
        true
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.probs.extend_from_slice(x[0]);
        let c = self.classes.max(1);
        let mut loss = E::of(0.0);
        for ((row, &label), &w) in self.probs.chunks_exact_mut(c).zip(&self.labels).zip(&self.weights) {
            // −ln softmax = max − z_label + ln Σ e^(z−max); the logarithm follows below.
            let max = row.iter().copied().fold(row[0], nan::max);
            row.iter_mut().for_each(|v| *v -= max);
            loss -= w * row[label as usize];
        }
        let probs = &mut self.probs;
        vectorize(
            #[inline(always)]
            || {
                for v in probs {
                    *v = v.fast_exp();
                }
            },
        );
        for (row, &w) in self.probs.chunks_exact_mut(c).zip(&self.weights) {
            let sum: E = row.iter().copied().sum();
            loss += w * num_traits::Float::ln(sum);
            let inv = E::of(1.0) / sum;
            row.iter_mut().for_each(|v| *v *= inv);
        }
        y[0] = loss;
    }

    fn vjp(&self, _: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        for (dx, (p, label, w)) in dx.chunks_exact_mut(self.classes.max(1)).zip(self.rows()) {
            // dz = w (p − onehot) dy
            let c = w * dy[0];
            dx.iter_mut().zip(p).for_each(|(d, p)| *d += c * *p);
            dx[label] -= c;
        }
    }

    fn jvp(&self, _: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        for (t, (p, label, w)) in tx.chunks_exact(self.classes.max(1)).zip(self.rows()) {
            let dot: E = p.iter().zip(t).map(|(p, t)| *p * *t).sum();
            ty[0] += w * (dot - t[label]);
        }
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (Some(ddx), Some(tx)) = (&mut ddx[0], t.tx[0]) else { return };
        let c = self.classes.max(1);
        for ((dd, t), (probs, _, w)) in ddx.chunks_exact_mut(c).zip(tx.chunks_exact(c)).zip(self.rows()) {
            // ṗ = p ⊙ (ż − p·ż)
            let dot: E = probs.iter().zip(t).map(|(p, t)| *p * *t).sum();
            let c = w * p.dy[0];
            for ((d, p), t) in dd.iter_mut().zip(probs).zip(t) {
                *d += c * *p * (*t - dot);
            }
        }
    }
}

/// [`super::softmax_cross_entropy`] by our kernels, weighted; the weights sum to 1.
#[track_caller]
pub(super) fn raw_softmax_cross_entropy<E: Float, B: Backend<E>, N: Dim, C: Dim, M: Mode<E, B>>(
    logits: Tensor<(N, C), E, B, M>,
    labels: &[u32],
    weights: Vec<E>,
) -> Tensor<Rank0, E, B, M> {
    let (n, c) = (logits.shape().0.size(), logits.shape().1.size());
    assert_eq!(n, labels.len(), "softmax_cross_entropy: one label per row");
    assert!(
        labels.iter().all(|&l| (l as usize) < c),
        "softmax_cross_entropy: labels must be below {c}, got {:?}",
        labels.iter().max()
    );
    let op = Xent { classes: c, labels: labels.to_vec(), weights, probs: Vec::with_capacity(n * c) };
    apply_built(built!(op, Xent<f32>, Xent<f64>), vec![flat(logits)], (), M::default())
}

/// Softmax cross entropy in nats averaged with weights: `Σ wᵢ lossᵢ / Σ wᵢ`. With weights 0 and 1 it
/// is the masked mean of language models; 0 if all weights are 0. Shapes: `logits` `[N, C]`,
/// `labels` and `weights` `[N]`.
///
/// # Panics
/// If the numbers of labels or weights differ from `N`, or a label is `C` or more.
#[track_caller]
pub fn weighted_softmax_cross_entropy<E: Float, B: Backend<E>, N: Dim, C: Dim, M: Mode<E, B>>(
    logits: Tensor<(N, C), E, B, M>,
    labels: &[u32],
    weights: &[E],
) -> Tensor<Rank0, E, B, M> {
    assert_eq!(logits.shape().0.size(), weights.len(), "weighted_softmax_cross_entropy: one weight per row");
    let sum: E = weights.iter().copied().sum();
    let inv = if sum == E::of(0.0) { sum } else { E::of(1.0) / sum };
    raw_softmax_cross_entropy(logits, labels, weights.iter().map(|w| *w * inv).collect())
}

/// `yᵢ = −ln softmax(zᵢ)[labelᵢ]`.
struct RowXent {
    classes: usize,
    labels: Vec<u32>,
}

impl RowXent {
    /// `Σ e^(z − max)`, calling `f` with every term, and `max`.
    fn sum<T: Scalar>(z: &[T], mut f: impl FnMut(usize, T)) -> (T, T) {
        let max = z.iter().copied().fold(z[0], |m, z| if m.less(z) { z } else { m });
        let mut sum = T::of(0.0);
        for (j, z) in z.iter().enumerate() {
            let e = (*z - max).exp();
            f(j, e);
            sum += e;
        }
        (sum, max)
    }
}

impl ScalarOp for RowXent {
    const IS_LOSS: bool = true;
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        for ((y, z), &label) in y.iter_mut().zip(x[0].chunks_exact(self.classes)).zip(&self.labels) {
            let (sum, max) = Self::sum(z, |_, _| {});
            // The sum is at least 1.
            *y = (sum - T::of(1.0)).ln_1p() + max - z[label as usize];
        }
    }
    fn adjoint<T: Scalar>(&self, x: &[&[T]], _: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let rows = dx.chunks_exact_mut(self.classes).zip(x[0].chunks_exact(self.classes));
        let mut e = vec![T::of(0.0); self.classes];
        for (((dx, z), &label), &dy) in rows.zip(&self.labels).zip(dy) {
            let (sum, _) = Self::sum(z, |j, term| e[j] = term);
            let c = dy / sum;
            dx.iter_mut().zip(&e).for_each(|(d, e)| *d += c * *e);
            dx[label as usize] += -dy;
        }
    }
}

/// [`super::softmax_cross_entropy`] of every row by itself, for losses that weigh examples. Shapes: `logits`
/// `[N, C]`, `labels` `[N]`, each below `C`, result `[N]`.
///
/// # Panics
/// If the number of labels differs from `N`, or a label is `C` or more.
#[track_caller]
pub fn softmax_cross_entropies<E: Float, B: Backend<E>, N: Dim, C: Dim, M: Mode<E, B>>(
    logits: Tensor<(N, C), E, B, M>,
    labels: &[u32],
) -> Tensor<(N,), E, B, M> {
    let (n, c) = *logits.shape();
    assert_eq!(n.size(), labels.len(), "softmax_cross_entropies: one label per row");
    assert!(
        labels.iter().all(|&l| (l as usize) < c.size()),
        "softmax_cross_entropies: labels must be below {}, got {:?}",
        c.size(),
        labels.iter().max()
    );
    let op = ByDuals(RowXent { classes: c.size(), labels: labels.to_vec() });
    apply_built(built!(op, ByDuals<RowXent>), vec![flat(logits)], (n,), M::default())
}
