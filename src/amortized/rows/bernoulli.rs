//! Bernoulli log densities from logits.

use super::{sum, vectorized, width};
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode, Tensor};

/// `ln(1 + t)` for `t` on `[0, 1]`: in f32 by the series of `2 artanh(t / (2 + t))`, which vectorizes, within 2 units in the
/// last place; in f64 libm's.
#[inline(always)]
fn ln_1p<E: Float>(t: E) -> E {
    if size_of::<E>() > size_of::<f32>() {
        return t.ln_1p();
    }
    let s = t / (E::of(2.0) + t);
    let q = s * s; // at most 1/9
    let mut p = E::of(1.0 / 15.0);
    for c in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0] {
        p = p.mul_add(q, E::of(c));
    }
    (s + s).mul_add(p * q, s + s)
}

/// `ln(1 + e^o)`
#[inline(always)]
fn softplus<E: Float>(o: E) -> E {
    let positive = if o > E::of(0.0) { o } else { E::of(0.0) };
    positive + ln_1p((-o.abs()).fast_exp())
}

/// Inputs: logits and data, `[N, P]` each; output `[N]`.
struct Bernoulli;

impl<E: Float> RawOp<E> for Bernoulli {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let (o, x, p) = (x[0], x[1], width(x[0].len(), y.len()));
        vectorized(
            #[inline(always)]
            || {
                for ((y, o), x) in y.iter_mut().zip(o.chunks_exact(p)).zip(x.chunks_exact(p)) {
                    *y = sum(o, x, |o, x| x * o - softplus(o));
                }
            },
        );
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let (o, x, p) = (x[0], x[1], width(x[0].len(), y.len()));
        let [logits, data] = dx else { unreachable!("two inputs") };
        if let Some(d) = logits {
            vectorized(
                #[inline(always)]
                || {
                    let rows = d.chunks_exact_mut(p).zip(o.chunks_exact(p)).zip(x.chunks_exact(p));
                    for (((d, o), x), dy) in rows.zip(dy) {
                        for ((d, o), x) in d.iter_mut().zip(o).zip(x) {
                            *d += *dy * (*x - o.fast_sigmoid());
                        }
                    }
                },
            );
        }
        if let Some(d) = data {
            for ((d, o), dy) in d.chunks_exact_mut(p).zip(o.chunks_exact(p)).zip(dy) {
                d.iter_mut().zip(o).for_each(|(d, o)| *d += *dy * *o);
            }
        }
    }
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        let (o, x, p) = (x[0], x[1], width(x[0].len(), y.len()));
        for (i, ty) in ty.iter_mut().enumerate() {
            let row = |v: &'_ [E]| v[i * p..][..p].to_vec();
            if let Some(t) = tx[0] {
                let slopes = row(o).iter().zip(row(x)).map(|(o, x)| x - o.fast_sigmoid()).collect::<Vec<E>>();
                *ty += sum(&slopes, &t[i * p..][..p], |s, t| s * t);
            }
            if let Some(t) = tx[1] {
                *ty += sum(&o[i * p..][..p], &t[i * p..][..p], |o, t| o * t);
            }
        }
    }
    fn vjp_tangent(&self, at: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(at.x, at.y, t.ddy, ddx);
        let (o, p) = (at.x[0], width(at.x[0].len(), at.y.len()));
        let [logits, data] = ddx else { unreachable!("two inputs") };
        if let (Some(d), Some(to)) = (logits.as_deref_mut(), t.tx[0]) {
            vectorized(
                #[inline(always)]
                || {
                    let rows = d.chunks_exact_mut(p).zip(o.chunks_exact(p)).zip(to.chunks_exact(p));
                    for (((d, o), to), dy) in rows.zip(at.dy) {
                        for ((d, o), to) in d.iter_mut().zip(o).zip(to) {
                            let s = o.fast_sigmoid();
                            *d += -*dy * s * (E::of(1.0) - s) * *to;
                        }
                    }
                },
            );
        }
        // The second derivative by logit and data is 1.
        let cross = |d: &mut Option<&mut [E]>, other: Option<&[E]>| {
            if let (Some(d), Some(other)) = (d, other) {
                for ((d, t), dy) in d.chunks_exact_mut(p).zip(other.chunks_exact(p)).zip(at.dy) {
                    d.iter_mut().zip(t).for_each(|(d, t)| *d += *dy * *t);
                }
            }
        };
        cross(logits, t.tx[1]);
        cross(data, t.tx[0]);
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
}

/// `Σ x o − ln(1 + e^o)` of every row, `[N]`: the log density of data `x` `[N, P]` (also of grey values) with logits `o`
/// `[N, P]`. Finite for every finite logit.
///
/// # Panics
/// If the shapes differ.
#[track_caller]
pub fn bernoulli<E: Float, B: Backend<E>, M: Mode<E, B>>(
    o: Rows<E, B, M>,
    x: &Rows<E, B>,
) -> Tensor<(usize,), E, B, M> {
    assert_eq!(o.shape(), x.shape(), "bernoulli: shapes of logits and data");
    let n = o.shape().0;
    apply(Bernoulli, vec![handle(&o), handle(x)], (n,), M::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_series_is_accurate_where_it_is_used() {
        let worst = (0..=100_000).map(|i| {
            let t = i as f32 / 1e5;
            (f64::from(ln_1p(t)) - f64::from(t).ln_1p()).abs() / f64::from(t).ln_1p().max(1e-30)
        });
        let worst = worst.fold(0.0, f64::max);
        assert!(worst < 2.5e-7, "{worst:e}");
        for o in [-1e30f32, -200.0, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 100.0, 1e30] {
            let want = f64::from(o).max(0.0) + (-f64::from(o).abs()).exp().ln_1p();
            assert!((f64::from(softplus(o)) - want).abs() <= 3e-7 * want + 1e-38, "{o}");
        }
        assert!(softplus(f32::NAN).is_nan());
    }
}
