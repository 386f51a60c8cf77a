//! Matrix products of two variable matrices, single and batched.

use super::gemm::{add_matmul, Mat};
use super::raw::{apply_built, built, flat, Primal, RawOp, Tangent};
use super::KnownOp;
use crate::tensor::{Backend, Dim, Float, Mode, Tensor};
use dfdx::prelude::{HasShape, Merge};

/// `yᵢ = aᵢ bᵢ`, or `aᵢ bᵢᵀ` if `b` is stored transposed: `a` `[batch, m, k]`, `y` `[batch, m, n]`.
struct MatMul {
    batch: usize,
    m: usize,
    k: usize,
    n: usize,
    transposed: bool,
}

impl MatMul {
    fn a<'a, E: Float>(&self, a: &'a [E], i: usize) -> Mat<'a, E> {
        let len = self.m * self.k;
        Mat::new(&a[i * len..][..len], self.m, self.k)
    }
    fn b<'a, E: Float>(&self, b: &'a [E], i: usize) -> Mat<'a, E> {
        let len = self.k * self.n;
        let b = &b[i * len..][..len];
        if self.transposed {
            Mat::new(b, self.n, self.k).t()
        } else {
            Mat::new(b, self.k, self.n)
        }
    }
    fn y<'a, E: Float>(&self, y: &'a [E], i: usize) -> Mat<'a, E> {
        let len = self.m * self.n;
        Mat::new(&y[i * len..][..len], self.m, self.n)
    }
    fn add<E: Float>(&self, a: &[E], b: &[E], y: &mut [E]) {
        let len = self.m * self.n;
        for i in 0..self.batch {
            add_matmul(&mut y[i * len..][..len], self.a(a, i), self.b(b, i));
        }
    }
    /// `da += dy bᵀ`
    fn adjoint_a<E: Float>(&self, b: &[E], dy: &[E], da: &mut [E]) {
        let len = self.m * self.k;
        for i in 0..self.batch {
            add_matmul(&mut da[i * len..][..len], self.y(dy, i), self.b(b, i).t());
        }
    }
    /// `db += aᵀ dy`, transposed where `b` is.
    fn adjoint_b<E: Float>(&self, a: &[E], dy: &[E], db: &mut [E]) {
        let len = self.k * self.n;
        for i in 0..self.batch {
            let (a, dy, db) = (self.a(a, i), self.y(dy, i), &mut db[i * len..][..len]);
            if self.transposed {
                add_matmul(db, dy.t(), a);
            } else {
                add_matmul(db, a.t(), dy);
            }
        }
    }
}

impl<E: Float> RawOp<E> for MatMul {
    fn known(&self) -> Option<KnownOp<'_, E>> {
        let MatMul { batch, m, k, n, transposed } = *self;
        Some(KnownOp::MatMul { batch, m, k, n, transposed })
    }
    fn forward(&mut self, x: &[&[E]], y: &mut [E]) {
        self.add(x[0], x[1], y);
    }
    fn vjp(&self, x: &[&[E]], _: &[E], dy: &[E], dx: &mut [Option<&mut [E]>]) {
        if let Some(da) = &mut dx[0] {
            self.adjoint_a(x[1], dy, da);
        }
        if let Some(db) = &mut dx[1] {
            self.adjoint_b(x[0], dy, db);
        }
    }
    fn jvp(&self, x: &[&[E]], _: &[E], tx: &[Option<&[E]>], ty: &mut [E]) {
        if let Some(ta) = tx[0] {
            self.add(ta, x[1], ty);
        }
        if let Some(tb) = tx[1] {
            self.add(x[0], tb, ty);
        }
    }
    fn vjp_tangent(&self, p: Primal<'_, E>, t: Tangent<'_, E>, ddx: &mut [Option<&mut [E]>]) {
        self.vjp(p.x, p.y, t.ddy, ddx);
        if let (Some(dda), Some(tb)) = (&mut ddx[0], t.tx[1]) {
            self.adjoint_a(tb, p.dy, dda);
        }
        if let (Some(ddb), Some(ta)) = (&mut ddx[1], t.tx[0]) {
            self.adjoint_b(ta, p.dy, ddb);
        }
    }
}

/// Matrix product. Shapes: `a` `[I, K]`, `b` `[K, J]`, result `[I, J]`.
#[track_caller]
pub fn matmul<I: Dim, K: Dim, J: Dim, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    a: Tensor<(I, K), E, B, M>,
    b: &Tensor<(K, J), E, B, R>,
) -> Tensor<(I, J), E, B, M> {
    let ((m, k), (k2, n)) = (*a.shape(), *b.shape());
    assert_eq!(k.size(), k2.size(), "matmul: inner dimensions");
    let op = MatMul { batch: 1, m: m.size(), k: k.size(), n: n.size(), transposed: false };
    apply_built(built!(op, MatMul), vec![flat(a), flat(b.clone())], (m, n), M::default())
}

/// One product per batch entry. Shapes: `a` `[N, I, K]`, `b` `[N, K, J]`, result `[N, I, J]`.
#[track_caller]
pub fn batch_matmul<
    N: Dim,
    I: Dim,
    K: Dim,
    J: Dim,
    E: Float,
    B: Backend<E>,
    M: Mode<E, B> + Merge<R>,
    R: Mode<E, B>,
>(
    a: Tensor<(N, I, K), E, B, M>,
    b: &Tensor<(N, K, J), E, B, R>,
) -> Tensor<(N, I, J), E, B, M> {
    let ((d, m, k), (d2, k2, n)) = (*a.shape(), *b.shape());
    assert_eq!([d.size(), k.size()], [d2.size(), k2.size()], "batch_matmul: batch and inner dimensions");
    let op = MatMul { batch: d.size(), m: m.size(), k: k.size(), n: n.size(), transposed: false };
    apply_built(built!(op, MatMul), vec![flat(a), flat(b.clone())], (d, m, n), M::default())
}

/// One product `a bᵀ` per batch entry, as in attention's `q kᵀ`. Shapes: `a` `[N, I, K]`, `b`
/// `[N, J, K]`, result `[N, I, J]`.
#[track_caller]
pub fn batch_matmul_transposed<
    N: Dim,
    I: Dim,
    K: Dim,
    J: Dim,
    E: Float,
    B: Backend<E>,
    M: Mode<E, B> + Merge<R>,
    R: Mode<E, B>,
>(
    a: Tensor<(N, I, K), E, B, M>,
    b: &Tensor<(N, J, K), E, B, R>,
) -> Tensor<(N, I, J), E, B, M> {
    let ((d, m, k), (d2, n, k2)) = (*a.shape(), *b.shape());
    assert_eq!(
        [d.size(), k.size()],
        [d2.size(), k2.size()],
        "batch_matmul_transposed: batch and inner dimensions"
    );
    let op = MatMul { batch: d.size(), m: m.size(), k: k.size(), n: n.size(), transposed: true };
    apply_built(built!(op, MatMul), vec![flat(a), flat(b.clone())], (d, m, n), M::default())
}
