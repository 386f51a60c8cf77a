//! Weight decay whose strengths are parameters too, as one operation without large intermediate results.

use super::raw::{apply_built, built, flat, Primal, RawOp, Tangent};
use crate::math::vectorize;
use crate::tensor::{Backend, Float, Mode, Rank0, Shape, Tensor};
use dfdx::prelude::{HasShape, Merge};
use std::ops::Range;

/// `½ Σᵢ e^(λᵢ) wᵢ²`; a single λ serves all weights.
struct Decay;

/// Calls `f` with one range of weights after the other, and their `e^λ`.
#[inline(always)]
fn blocks<E: Float>(n: usize, lambda: &[E], mut f: impl FnMut(Range<usize>, &[E])) {
    // In blocks: a buffer of their size is a lot where there are millions.
    const BLOCK: usize = 256;
    let mut block = [E::of(0.0); BLOCK];
    if let [one] = lambda {
        block.fill(one.fast_exp());
    }
    for start in (0..n).step_by(BLOCK) {
        let range = start..n.min(start + BLOCK);
        let e = &mut block[..range.len()];
        vectorize(
            #[inline(always)]
            || {
                if lambda.len() > 1 {
                    e.copy_from_slice(&lambda[range.clone()]);
                    for e in e.iter_mut() {
                        *e = e.fast_exp();
                    }
                }
                f(range, e);
            },
        );
    }
}

/// Calls `f(i, j, e^(λⱼ))` for every weight `i` and its strength `j`.
#[inline(always)]
fn each<E: Float>(n: usize, lambda: &[E], mut f: impl FnMut(usize, usize, E)) {
    let own = usize::from(lambda.len() > 1);
    blocks(n, lambda, |range, e| range.zip(e).for_each(|(i, e)| f(i, own * i, *e)));
}

/// Terms of a sum, added in blocks to keep rounding in f32 small.
struct Sum<E> {
    total: E,
    block: E,
}

impl<E: Float> Sum<E> {
    fn new() -> Self {
        Sum { total: E::of(0.0), block: E::of(0.0) }
    }
    #[inline(always)]
    fn add(&mut self, i: usize, term: E) {
        if i % 64 == 0 {
            self.total += self.block;
            self.block = E::of(0.0);
        }
        self.block += term;
    }
    fn value(self) -> E {
        self.total + self.block
    }
}

impl<E: Float> RawOp<E> for Decay {
    fn is_loss(&self) -> bool {
        true
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (w, lambda) = (x[0], x[1]);
        let mut sum = Sum::new();
        each(w.len(), lambda, |i, _, e| sum.add(i, e * w[i] * w[i]));
        y[0] = E::of(0.5) * sum.value();
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let (w, lambda) = (x[0], x[1]);
        let [dw, dl] = dx else { unreachable!("weight decay has two inputs") };
        if let Some(dw) = dw {
            blocks(w.len(), lambda, |at, e| {
                let parts = dw[at.clone()].iter_mut().zip(e).zip(&w[at]);
                parts.for_each(|((dw, e), w)| *dw += dy[0] * *e * *w);
            });
        }
        if let Some(dl) = dl {
            let half = E::of(0.5) * dy[0];
            each(w.len(), lambda, |i, j, e| dl[j] += half * e * w[i] * w[i]);
        }
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let (w, lambda) = (x[0], x[1]);
        let mut sum = Sum::new();
        if let Some(tw) = tx[0] {
            each(w.len(), lambda, |i, _, e| sum.add(i, e * w[i] * tw[i]));
        }
        if let Some(tl) = tx[1] {
            let half = E::of(0.5);
            each(w.len(), lambda, |i, j, e| sum.add(i, half * e * w[i] * w[i] * tl[j]));
        }
        ty[0] = sum.value();
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let (w, lambda) = (p.x[0], p.x[1]);
        let (dy, ddy, half, zero) = (p.dy[0], t.ddy[0], E::of(0.5), E::of(0.0));
        let tw = |i: usize| t.tx[0].map_or(zero, |t| t[i]);
        let tl = |j: usize| t.tx[1].map_or(zero, |t| t[j]);
        let [dw, dl] = ddx else { unreachable!("weight decay has two inputs") };
        if let Some(dw) = dw {
            // d(dy e w) = e (ddy w + dy (ẇ + w λ̇))
            match (t.tx[0], t.tx[1]) {
                (Some(tw), None) => blocks(w.len(), lambda, |at, e| {
                    let parts = dw[at.clone()].iter_mut().zip(e).zip(w[at.clone()].iter().zip(&tw[at]));
                    parts.for_each(|((dw, e), (w, tw))| *dw += *e * (ddy * *w + dy * *tw));
                }),
                _ => each(w.len(), lambda, |i, j, e| dw[i] += e * (ddy * w[i] + dy * (tw(i) + w[i] * tl(j)))),
            }
        }
        if let Some(dl) = dl {
            // d(dy e w² / 2) = e w (ddy w / 2 + dy (ẇ + w λ̇ / 2))
            each(w.len(), lambda, |i, j, e| {
                dl[j] += e * w[i] * (half * ddy * w[i] + dy * (tw(i) + half * w[i] * tl(j)));
            });
        }
    }
}

/// `½ Σᵢ e^(λᵢ) wᵢ²`, the weight decay whose logarithmic strengths `log_decay` are hyperparameters: one per
/// weight (the shape of `w`), or a scalar for all. Neither `e^λ` nor `w²` is kept.
///
/// # Panics
/// If `log_decay` has neither one element nor as many as `w`.
#[track_caller]
pub fn weight_decay<S: Shape, Z: Shape, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    w: Tensor<S, E, B, M>,
    log_decay: &Tensor<Z, E, B, R>,
) -> Tensor<Rank0, E, B, M> {
    let (n, k) = (w.shape().num_elements(), log_decay.shape().num_elements());
    assert!(k == 1 || k == n, "weight_decay: expected 1 or {n} strengths, got {k}");
    apply_built(built!(Decay, Decay), vec![flat(w), flat(log_decay.clone())], (), M::default())
}
