//! Rows of length 1.

use super::{sum, width};
use crate::problem::Rows;
use outerloop_core::ops::{apply, handle, Primal, RawOp, Tangent};
use outerloop_core::tensor::{Backend, Float, HasShape, Mode};

/// Input and output `[N, D]`.
struct Unit {
    rows: usize,
}

/// `Σ a b`
fn dot<E: Float>(a: &[E], b: &[E]) -> E {
    sum(a, b, |a, b| a * b)
}

impl Unit {
    /// Calls `f(row, 1/|x|)`.
    fn each<E: Float>(&self, x: &[E], mut f: impl FnMut(std::ops::Range<usize>, E)) {
        let d = width(x.len(), self.rows);
        for i in 0..x.len() / d {
            let row = i * d..(i + 1) * d;
            let square = dot(&x[row.clone()], &x[row.clone()]);
            f(row, E::of(1.0) / square.sqrt());
        }
    }
    /// `out += (a − y (y·a))/|x|`: the Jacobian, which is symmetric, times `a`.
    fn times<E: Float>(&self, x: &[E], y: &[E], a: &[E], out: &mut [E]) {
        self.each(x, |row, inverse| {
            let (y, a) = (&y[row.clone()], &a[row.clone()]);
            let along = dot(y, a);
            for ((o, y), a) in out[row].iter_mut().zip(y).zip(a) {
                *o += (*a - *y * along) * inverse;
            }
        });
    }
}

impl<E: Float> RawOp<E> for Unit {
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.each(x[0], |row, inverse| {
            y[row.clone()].iter_mut().zip(&x[0][row]).for_each(|(y, x)| *y = *x * inverse);
        });
    }
    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        if let Some(dx) = &mut dx[0] {
            self.times(x[0], y, dy, dx);
        }
    }
    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        if let Some(tx) = tx[0] {
            self.times(x[0], y, tx, ty);
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let Some(ddx) = &mut ddx[0] else { return };
        self.times(p.x[0], p.y, t.ddy, ddx);
        let Some(tx) = t.tx[0] else { return };
        // The Jacobian's change: −(ẏ yᵀ + y ẏᵀ)/|x| − (I − y yᵀ) (y·ẋ)/|x|²
        self.each(p.x[0], |row, inverse| {
            let [y, ty, tx, dy] = [p.y, t.ty, tx, p.dy].map(|v| &v[row.clone()]);
            let (along, turned, longer) = (dot(y, dy), dot(ty, dy), dot(y, tx) * inverse);
            for (k, d) in ddx[row].iter_mut().enumerate() {
                let moved = -ty[k] * along - y[k] * turned - (dy[k] - y[k] * along) * longer;
                *d += moved * inverse;
            }
        });
    }
}

/// `x/|x|` row by row; not a number for a row of zeros.
pub fn unit<E: Float, B: Backend<E>, M: Mode<E, B>>(x: Rows<E, B, M>) -> Rows<E, B, M> {
    let shape = *x.shape();
    apply(Unit { rows: shape.0 }, vec![handle(&x)], shape, M::default())
}
