//! `act(x w + b)` as one operation.

use super::gemm::{add_matmul, Mat};
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
        let Linear { n, i, o, act } = *self;
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
        let &[x, w, _] = x else { unreachable!("linear has three inputs") };
        // ż = ẋ w + x ẇ + ḃ
        if let Some(tb) = tx[2] {
            for row in ty.chunks_exact_mut(self.o.max(1)) {
                row.copy_from_slice(tb);
            }
        }
        if let Some(tw) = tx[1] {
            add_matmul(ty, Mat::new(x, self.n, self.i), Mat::new(tw, self.i, self.o));
        }
        if let Some(tx) = tx[0] {
            add_matmul(ty, Mat::new(tx, self.n, self.i), Mat::new(w, self.i, self.o));
        }
        if self.act != Activation::Identity {
            each!(self.act, ACT => for (t, y) in ty.iter_mut().zip(y) {
                *t *= ACT.d1(*y);
            });
        }
    }

    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        let &[x, w, _] = p.x else { unreachable!("linear has three inputs") };
        let ddz = self.act.chain_tangent([p.dy, t.ddy], p.y, t.ty);
        let ddz_m = Mat::new(&ddz, self.n, self.o);
        // dz, where it is multiplied by something.
        let is_used = (ddx[0].is_some() && t.tx[1].is_some()) || (ddx[1].is_some() && t.tx[0].is_some());
        let dz = is_used.then(|| self.act.chain(p.dy, p.y));
        let dz_m = dz.as_deref().map(|dz| Mat::new(dz, self.n, self.o));
        if let Some(ddx) = &mut ddx[0] {
            add_matmul(ddx, ddz_m, Mat::new(w, self.i, self.o).t());
            if let Some((dz, tw)) = dz_m.zip(t.tx[1]) {
                add_matmul(ddx, dz, Mat::new(tw, self.i, self.o).t());
            }
        }
        if let Some(ddw) = &mut ddx[1] {
            add_matmul(ddw, Mat::new(x, self.n, self.i).t(), ddz_m);
            if let Some((dz, tx)) = dz_m.zip(t.tx[0]) {
                add_matmul(ddw, Mat::new(tx, self.n, self.i).t(), dz);
            }
        }
        if let Some(ddb) = &mut ddx[2] {
            self.add_rows(&ddz, ddb);
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
    let op = Linear { n: n.size(), i: i.size(), o: o.size(), act };
    apply_built(built!(op, Linear), vec![flat(x), flat(w.clone()), flat(b.clone())], (n, o), M::default())
}
