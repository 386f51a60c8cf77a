//! Elementwise arithmetic of two tensors, the second broadcast along leading axes where it lacks them.

use super::dual::{ByDuals, Scalar, ScalarOp};
use super::raw::{apply_built, built, flat};
use super::{KnownOp, KnownPair};
use crate::tensor::{Backend, Float, Mode, Shape, Tensor};
use dfdx::prelude::{HasShape, Merge};

/// One pair of elements.
trait Pair: 'static {
    const KNOWN: KnownPair;
    fn value<T: Scalar>(a: T, b: T) -> T;
    /// Adjoints of `a` and `b`.
    fn adjoint<T: Scalar>(a: T, b: T, y: T, dy: T) -> [T; 2];
}

struct Binary<P>(std::marker::PhantomData<P>);

impl<P: Pair> ScalarOp for Binary<P> {
    const READS_TANGENTS: bool = !matches!(P::KNOWN, KnownPair::Add | KnownPair::Sub);
    fn known<E: Float>(&self) -> Option<KnownOp<'_, E>> {
        Some(KnownOp::Pair(P::KNOWN))
    }
    fn value<T: Scalar>(&self, x: &[&[T]], y: &mut [T]) {
        let (a, b) = (x[0], x[1]);
        if let &[b] = b {
            y.iter_mut().zip(a).for_each(|(y, a)| *y = P::value(*a, b));
            return;
        }
        let n = b.len().max(1);
        for (y, a) in y.chunks_exact_mut(n).zip(a.chunks_exact(n)) {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = P::value(*a, *b);
            }
        }
    }
    fn adjoint<T: Scalar>(&self, x: &[&[T]], y: &[T], dy: &[T], dx: &mut [Option<&mut [T]>]) {
        let (a, b) = (x[0], x[1]);
        let n = b.len().max(1);
        if let Some(da) = &mut dx[0] {
            let chunks = da.chunks_exact_mut(n).zip(a.chunks_exact(n)).zip(y.chunks_exact(n));
            for (((da, a), y), dy) in chunks.zip(dy.chunks_exact(n)) {
                for i in 0..n {
                    da[i] += P::adjoint(a[i], b[i], y[i], dy[i])[0];
                }
            }
        }
        if let Some(db) = &mut dx[1] {
            let chunks = a.chunks_exact(n).zip(y.chunks_exact(n)).zip(dy.chunks_exact(n));
            for ((a, y), dy) in chunks {
                for i in 0..n {
                    db[i] += P::adjoint(a[i], b[i], y[i], dy[i])[1];
                }
            }
        }
    }
}

macro_rules! binary {
    ($($(#[$m:meta])* $name:ident, $op:ident: $value:expr, $adjoint:expr;)+) => {$(
        struct $op;
        impl Pair for $op {
            const KNOWN: KnownPair = KnownPair::$op;
            #[inline(always)]
            fn value<T: Scalar>(a: T, b: T) -> T {
                let f: fn(T, T) -> T = $value;
                f(a, b)
            }
            #[inline(always)]
            fn adjoint<T: Scalar>(a: T, b: T, y: T, dy: T) -> [T; 2] {
                let f: fn(T, T, T, T) -> [T; 2] = $adjoint;
                f(a, b, y, dy)
            }
        }
        $(#[$m])*
        ///
        /// `b` has the shape of `a`, or its last axes (a row of a matrix, say), or is a scalar.
        ///
        /// # Panics
        /// If the shapes do not fit.
        #[track_caller]
        pub fn $name<S: Shape, Z: Shape, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
            a: Tensor<S, E, B, M>,
            b: &Tensor<Z, E, B, R>,
        ) -> Tensor<S, E, B, M> {
            check_suffix(stringify!($name), a.shape(), b.shape());
            let shape = *a.shape();
            let op = built!(ByDuals(Binary::<$op>(std::marker::PhantomData)), ByDuals<Binary<$op>>);
            apply_built(op, vec![flat(a), flat(b.clone())], shape, M::default())
        }
    )+};
}

binary! {
    /// `a + b`.
    add, Add: |a, b| a + b, |_, _, _, dy| [dy, dy];
    /// `a − b`.
    sub, Sub: |a, b| a - b, |_, _, _, dy| [dy, -dy];
    /// `a b`.
    mul, Mul: |a, b| a * b, |a, b, _, dy| [dy * b, dy * a];
    /// `a / b`.
    div, Div: |a, b| a / b, |_, b, y, dy| [dy / b, -(y * dy / b)];
}

/// # Panics
/// If the axes of `b` are not the last axes of `a`.
#[track_caller]
fn check_suffix(name: &str, a: &impl Shape, b: &impl Shape) {
    let a: Vec<usize> = a.concrete().into_iter().collect();
    let b: Vec<usize> = b.concrete().into_iter().collect();
    assert!(a.ends_with(&b), "{name}: {b:?} must be the last axes of {a:?}");
}
