//! Gates.

use super::vectorized;
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode};

/// Inputs: gate, first, second, all of one length.
struct Mix;

impl<E: Float> RawOp<E> for Mix {
    fn forward(&mut self, x: &[&[E]], out: &mut [E]) {
        vectorized(
            #[inline(always)]
            || {
                for (((o, s), x), y) in out.iter_mut().zip(x[0]).zip(x[1]).zip(x[2]) {
                    *o = *y + *s * (*x - *y);
                }
            },
        );
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let one = E::of(1.0);
        let &[gate, first, second] = x else { unreachable!("three inputs") };
        let [d_gate, d_first, d_second] = dx else { unreachable!("three inputs") };
        vectorized(
            #[inline(always)]
            || {
                if let Some(d) = d_gate {
                    for (((d, x), y), dy) in d.iter_mut().zip(first).zip(second).zip(dy) {
                        *d += (*x - *y) * *dy;
                    }
                }
                if let Some(d) = d_first {
                    for ((d, s), dy) in d.iter_mut().zip(gate).zip(dy) {
                        *d += *s * *dy;
                    }
                }
                if let Some(d) = d_second {
                    for ((d, s), dy) in d.iter_mut().zip(gate).zip(dy) {
                        *d += (one - *s) * *dy;
                    }
                }
            },
        );
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        for (i, ty) in ty.iter_mut().enumerate() {
            let t = |input: usize| tx[input].map_or(E::of(0.0), |t| t[i]);
            *ty += t(0) * (x[1][i] - x[2][i]) + x[0][i] * t(1) + (E::of(1.0) - x[0][i]) * t(2);
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        for i in 0..p.dy.len() {
            let moved = |input: usize| t.tx[input].map_or(E::of(0.0), |t| t[i]);
            let parts = [moved(1) - moved(2), moved(0), -moved(0)];
            for (d, part) in ddx.iter_mut().zip(parts) {
                if let Some(d) = d {
                    d[i] += part * p.dy[i];
                }
            }
        }
    }
    fn reads_tangents(&self) -> [bool; 2] {
        [true, false]
    }
}

/// `s x + (1 − s) y`, all `[N, D]`.
///
/// # Panics
/// If the shapes differ.
#[track_caller]
pub fn mix<E: Float, B: Backend<E>, M: Mode<E, B>>(
    s: Rows<E, B, M>,
    x: &Rows<E, B, M>,
    y: &Rows<E, B, M>,
) -> Rows<E, B, M> {
    let shape = *s.shape();
    assert_eq!([shape; 2], [*x.shape(), *y.shape()], "mix: shapes");
    apply(Mix, vec![handle(&s), handle(x), handle(y)], shape, M::default())
}
