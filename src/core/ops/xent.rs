//! Softmax cross entropy against integer labels as one operation.

use super::{apply, flat, Primal, RawOp, Tangent};
use crate::tensor::{Cpu, Dim, Float, Host, Mode, Rank0, Tensor};
use dfdx::prelude::HasShape;

struct Xent<E> {
    classes: usize,
    labels: Vec<u32>,
    /// Softmax probabilities, `[n, classes]`; filled by `forward`.
    probs: Vec<E>,
}

impl<E: Float> RawOp<E> for Xent<E> {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.probs.extend_from_slice(x[0]);
        let mut loss = E::of(0.0);
        for (row, &label) in self.probs.chunks_exact_mut(self.classes).zip(&self.labels) {
            let max = row.iter().fold(row[0], |a, &b| if b > a { b } else { a });
            let own = row[label as usize];
            let mut sum = E::of(0.0);
            for v in row.iter_mut() {
                *v = (*v - max).exp();
                sum += *v;
            }
            // −ln softmax = ln Σ e^(z−max) + max − z_label
            loss += sum.ln() + max - own;
            let inv = E::of(1.0) / sum;
            row.iter_mut().for_each(|v| *v *= inv);
        }
        y[0] = loss / E::of(self.labels.len() as f64);
    }

    fn vjp(&self, _: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let Some(dx) = &mut dx[0] else { return };
        let c = dy[0] / E::of(self.labels.len() as f64);
        let rows = dx.chunks_exact_mut(self.classes).zip(self.probs.chunks_exact(self.classes));
        for ((dx, p), &label) in rows.zip(&self.labels) {
            // dz = (p − onehot) dy / n
            for (d, p) in dx.iter_mut().zip(p) {
                *d += c * *p;
            }
            dx[label as usize] -= c;
        }
    }

    fn jvp(&self, _: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let Some(tx) = tx[0] else { return };
        let mut sum = E::of(0.0);
        let rows = tx.chunks_exact(self.classes).zip(self.probs.chunks_exact(self.classes));
        for ((t, p), &label) in rows.zip(&self.labels) {
            for (t, p) in t.iter().zip(p) {
                sum += *t * *p;
            }
            sum -= t[label as usize];
        }
        ty[0] = sum / E::of(self.labels.len() as f64);
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        let (Some(ddx), Some(tx)) = (&mut ddx[0], t.tx[0]) else { return };
        let c = p.dy[0] / E::of(self.labels.len() as f64);
        let rows = ddx.chunks_exact_mut(self.classes).zip(tx.chunks_exact(self.classes));
        for ((dd, t), p) in rows.zip(self.probs.chunks_exact(self.classes)) {
            // ṗ = p ⊙ (ż − p·ż)
            let dot: E = p.iter().zip(t).map(|(p, t)| *p * *t).sum();
            for ((d, p), t) in dd.iter_mut().zip(p).zip(t) {
                *d += c * *p * (*t - dot);
            }
        }
    }
}

pub(crate) fn cpu_softmax_cross_entropy<E: Float, N: Dim, C: Dim, M: Mode<E, Cpu>>(
    logits: Tensor<(N, C), E, Cpu, M>,
    labels: &[u32],
) -> Tensor<Rank0, E, Cpu, M>
where
    Cpu: Host<E>,
{
    let (n, c) = (logits.shape().0.size(), logits.shape().1.size());
    assert_eq!(n, labels.len(), "softmax_cross_entropy: one label per row");
    assert!(
        labels.iter().all(|&l| (l as usize) < c),
        "softmax_cross_entropy: labels must be below {c}, got {:?}",
        labels.iter().max()
    );
    let op = Xent { classes: c, labels: labels.to_vec(), probs: Vec::with_capacity(n * c) };
    apply(op, vec![flat(logits)], (), M::default())
}
