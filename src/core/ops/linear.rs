//! `act(x w + b)` as one operation.

use super::gemm::{add_matmul, matmul, product, Mat, Reused};
use super::raw::{apply_built, built, flat, Primal, RawOp, Tangent};
use super::KnownOp;
use crate::activation::Activation;
use crate::math::vectorize;
use crate::tensor::{Backend, Buffer, Dim, Float, Mode, Tensor};
use dfdx::prelude::HasShape;
use std::ops::Deref;

/// Compiles a loop once per activation, so that it has no branches and vectorizes.
macro_rules! each {
    ($act:expr, $A:ident => $body:expr) => {
        match $act {
            Activation::Identity => each!(@ Identity, $A => $body),
            Activation::Relu => each!(@ Relu, $A => $body),
            Activation::Tanh => each!(@ Tanh, $A => $body),
            Activation::Sigmoid => each!(@ Sigmoid, $A => $body),
        }
    };
    (@ $variant:ident, $A:ident => $body:expr) => {{
        const $A: Activation = Activation::$variant;
        vectorize(#[inline(always)] || $body)
    }};
}

impl Activation {
    /// `act(z)` in place.
    fn activate<E: Float>(self, z: &mut [E]) {
        if self == Activation::Identity {
            return;
        }
        each!(self, ACT => for z in z {
            *z = ACT.value(*z);
        });
    }

    /// `act'(z) d`, from the values `y`.
    fn chain<'a, E: Float>(self, d: &'a [E], y: &[E]) -> Chained<'a, E> {
        if self == Activation::Identity {
            return Chained::Same(d);
        }
        Chained::Scaled(Buffer::mapped(d, |at, z| {
            each!(self, ACT => for (z, y) in z.iter_mut().zip(&y[at]) {
                *z *= ACT.d1(*y);
            });
        }))
    }

    /// The tangent of [`Self::chain`] along `ẏ`, with `ḋ`: `act' ḋ + act'' ż d`, where `act' ż = ẏ`.
    fn chain_tangent<'a, E: Float>(self, [d, td]: [&'a [E]; 2], y: &[E], ty: &[E]) -> Chained<'a, E> {
        if !matches!(self, Activation::Tanh | Activation::Sigmoid) {
            return self.chain(td, y);
        }
        Chained::Scaled(Buffer::mapped(td, |at, z| {
            let parts = y[at.clone()].iter().zip(&d[at.clone()]).zip(&ty[at]);
            each!(self, ACT => for (z, ((y, d), ty)) in z.iter_mut().zip(parts) {
                *z = *z * ACT.d1(*y) + *d * ACT.ratio(*y) * *ty;
            });
        }))
    }
}

/// What [`Activation::chain`] gives.
enum Chained<'a, E: 'static> {
    Same(&'a [E]),
    Scaled(Buffer<E>),
}

impl<E: 'static> Deref for Chained<'_, E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        match self {
            Chained::Same(d) => d,
            Chained::Scaled(d) => d,
        }
    }
}

struct Linear {
    n: usize,
    i: usize,
    o: usize,
    act: Activation,
    /// The inputs, for products with tangents of the weight.
    inputs: Reused,
}

impl Linear {
    /// Adds the column sums of `[n, o]` to `[o]`.
    fn add_rows<E: Float>(&self, d: &[E], out: &mut [E]) {
        vectorize(
            #[inline(always)]
            || {
                for row in d.chunks_exact(self.o.max(1)) {
                    for (a, v) in out.iter_mut().zip(row) {
                        *a += *v;
                    }
                }
            },
        );
    }
}

impl<E: Float> RawOp<E> for Linear {
    fn reads_tangents(&self) -> [bool; 2] {
        [true, matches!(self.act, Activation::Tanh | Activation::Sigmoid)]
    }
    fn known(&self) -> Option<KnownOp<'_, E>> {
        let Linear { n, i, o, act, .. } = *self;
        Some(KnownOp::Linear { n, i, o, act })
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        let &[x, w, b] = x else { unreachable!("linear has three inputs") };
        for row in y.chunks_exact_mut(self.o.max(1)) {
            row.copy_from_slice(b);
        }
        add_matmul(y, Mat::new(x, self.n, self.i), Mat::new(w, self.i, self.o));
        self.act.activate(y);
    }

    fn vjp(&self, x: &[&[E]], y: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        let &[x, w, _] = x else { unreachable!("linear has three inputs") };
        // dz = act'(z) dy
        let dz = self.act.chain(dy, y);
        let dz_m = Mat::new(&dz, self.n, self.o);
        if let Some(dx) = &mut dx[0] {
            add_matmul(dx, dz_m, Mat::new(w, self.i, self.o).t());
        }
        if let Some(dw) = &mut dx[1] {
            add_matmul(dw, Mat::new(x, self.n, self.i).t(), dz_m);
        }
        if let Some(db) = &mut dx[2] {
            self.add_rows(&dz, db);
        }
    }

    fn jvp(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        if let Some(tw) = tx[1] {
            self.inputs.matmul(ty, Mat::new(x[0], self.n, self.i), Mat::new(tw, self.i, self.o));
        }
        self.push_rest(x, y, tx, ty);
    }

    fn jvps(&self, x: &[&[E]], y: &[E], tx: &[Vec<Option<&[E]>>], ty: &mut [&mut [E]]) {
        let weights: Option<Vec<&[E]>> = tx.iter().map(|tx| tx[1]).collect();
        match weights.filter(|w| self.is_narrow(w.len())) {
            Some(tw) => {
                let columns = tw.len() * self.o;
                let mut wide = Buffer::zeros(self.n * columns);
                let tw = side_by_side(&tw, self.o);
                matmul(&mut wide, Mat::new(x[0], self.n, self.i), Mat::new(&tw, self.i, columns));
                add_parts(&wide, ty, self.o);
                tx.iter().zip(ty).for_each(|(tx, ty)| self.push_rest(x, y, tx, ty));
            }
            None => tx.iter().zip(ty).for_each(|(tx, ty)| self.jvp(x, y, tx, ty)),
        }
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let ddz = self.act.chain_tangent([p.dy, t.ddy], p.y, t.ty);
        if let Some(ddw) = &mut ddx[1] {
            let x = Mat::new(p.x[0], self.n, self.i);
            product(ddw, x.t(), Mat::new(&ddz, self.n, self.o), !t.fresh[1]);
        }
        self.pull_rest(p, t, &ddz, ddx);
    }

    fn vjp_tangents(&self, p: Primal<'_, E>, t: &[Tangent<'_, E>], ddx: &mut [Vec<Option<&mut [E]>>]) {
        if !self.is_narrow(t.len()) || ddx.iter().any(|ddx| ddx[1].is_none()) {
            t.iter().zip(ddx).for_each(|(t, ddx)| self.vjp_tangent(p, *t, ddx));
            return;
        }
        let ddz: Vec<_> = t.iter().map(|t| self.act.chain_tangent([p.dy, t.ddy], p.y, t.ty)).collect();
        let columns = t.len() * self.o;
        let mut wide = Buffer::zeros(self.i * columns);
        let all = side_by_side(&ddz.iter().map(|ddz| &ddz[..]).collect::<Vec<_>>(), self.o);
        matmul(&mut wide, Mat::new(p.x[0], self.n, self.i).t(), Mat::new(&all, self.n, columns));
        let mut ddw: Vec<&mut [E]> = ddx.iter_mut().filter_map(|ddx| ddx[1].as_deref_mut()).collect();
        add_parts(&wide, &mut ddw, self.o);
        for ((t, ddz), ddx) in t.iter().zip(&ddz).zip(ddx) {
            self.pull_rest(p, *t, ddz, ddx);
        }
    }
}

impl Linear {
    /// Whether so many products with the inputs are faster side by side: each alone has few columns.
    fn is_narrow(&self, products: usize) -> bool {
        const FEW: usize = 16;
        products > 1 && self.o <= FEW
    }

    /// What is left of [`RawOp::jvp`] after `x ẇ`: `ẏ = act'(z) (x ẇ + ẋ w + ḃ)`.
    fn push_rest<E: Float>(&self, x: &[&[E]], y: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        if let Some(tx) = tx[0] {
            add_matmul(ty, Mat::new(tx, self.n, self.i), Mat::new(x[1], self.i, self.o));
        }
        let width = self.o.max(1);
        let rows = ty.chunks_exact_mut(width).zip(y.chunks_exact(width));
        match tx[2] {
            Some(tb) => each!(self.act, ACT => for (t, y) in rows {
                for ((t, y), tb) in t.iter_mut().zip(y).zip(tb) {
                    *t = (*t + *tb) * ACT.d1(*y);
                }
            }),
            None if self.act != Activation::Identity => each!(self.act, ACT => for (t, y) in rows {
                for (t, y) in t.iter_mut().zip(y) {
                    *t *= ACT.d1(*y);
                }
            }),
            None => {}
        }
    }

    /// What is left of [`RawOp::vjp_tangent`] after `xᵀ ż̄`, where `ddz` is `ż̄`.
    fn pull_rest<E: Float>(
        &self,
        p: Primal<'_, E>,
        t: Tangent<'_, E>,
        ddz: &[E],
        ddx: &mut [Option<&mut [E]>],
    ) {
        let w = p.x[1];
        // dz, where it is multiplied by something.
        let is_used = (ddx[0].is_some() && t.tx[1].is_some()) || (ddx[1].is_some() && t.tx[0].is_some());
        let dz = is_used.then(|| self.act.chain(p.dy, p.y));
        if let Some(ddx) = &mut ddx[0] {
            match dz.as_deref().zip(t.tx[1]) {
                // One pass over the result, which is wider than all that is multiplied.
                Some((dz, tw)) if 2 * self.o <= self.i => {
                    let o = 2 * self.o;
                    let (left, right) = (side_by_side(&[ddz, dz], self.o), side_by_side(&[w, tw], self.o));
                    let (left, right) = (Mat::new(&left, self.n, o), Mat::new(&right, self.i, o).t());
                    product(ddx, left, right, !t.fresh[0]);
                }
                moved => {
                    let left = Mat::new(ddz, self.n, self.o);
                    product(ddx, left, Mat::new(w, self.i, self.o).t(), !t.fresh[0]);
                    if let Some((dz, tw)) = moved {
                        add_matmul(ddx, Mat::new(dz, self.n, self.o), Mat::new(tw, self.i, self.o).t());
                    }
                }
            }
        }
        if let Some(((ddw, dz), tx)) = ddx[1].as_deref_mut().zip(dz.as_deref()).zip(t.tx[0]) {
            add_matmul(ddw, Mat::new(tx, self.n, self.i).t(), Mat::new(dz, self.n, self.o));
        }
        if let Some(ddb) = &mut ddx[2] {
            self.add_rows(ddz, ddb);
        }
    }
}

/// Rows of all `parts`, `[.., width]` each, as one row.
fn side_by_side<E: Float>(parts: &[&[E]], width: usize) -> Buffer<E> {
    let mut all = Buffer::zeros(parts.iter().map(|part| part.len()).sum());
    for (r, row) in all.chunks_exact_mut((parts.len() * width).max(1)).enumerate() {
        for (to, part) in row.chunks_exact_mut(width).zip(parts) {
            to.copy_from_slice(&part[r * width..][..width]);
        }
    }
    all
}

/// Adds the rows that [`side_by_side`] makes one to those of all `parts`.
fn add_parts<E: Float>(all: &[E], parts: &mut [&mut [E]], width: usize) {
    for (r, row) in all.chunks_exact((parts.len() * width).max(1)).enumerate() {
        for (from, part) in row.chunks_exact(width).zip(&mut *parts) {
            let to = &mut part[r * width..][..width];
            to.iter_mut().zip(from).for_each(|(to, from)| *to += *from);
        }
    }
}

/// [`super::linear`] by our kernels.
pub(super) fn raw_linear<E: Float, B: Backend<E>, N: Dim, I: Dim, O: Dim, M: Mode<E, B>>(
    x: Tensor<(N, I), E, B, M>,
    w: &Tensor<(I, O), E, B>,
    b: &Tensor<(O,), E, B>,
    act: Activation,
) -> Tensor<(N, O), E, B, M> {
    let (n, i) = *x.shape();
    let o = b.shape().0;
    assert_eq!(
        [i.size(), o.size()],
        [w.shape().0.size(), w.shape().1.size()],
        "linear: w must be [inputs of x, length of b]"
    );
    let op = Linear { n: n.size(), i: i.size(), o: o.size(), act, inputs: Reused::default() };
    apply_built(built!(op, Linear), vec![flat(x), flat(w.clone()), flat(b.clone())], (n, o), M::default())
}
