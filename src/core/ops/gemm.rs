//! Single-threaded matrix products on slices: narrow ones by kernels of ours, the others by the `gemm` crate.

use super::narrow;
use crate::Float;
use std::any::TypeId;
use std::cell::{Cell, OnceCell};

/// A matrix view: a slice with row and column strides.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, E> {
    pub data: &'a [E],
    pub rows: usize,
    pub cols: usize,
    rs: usize,
    cs: usize,
}

impl<'a, E> Mat<'a, E> {
    /// Row-major `[rows, cols]`.
    pub fn new(data: &'a [E], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "matrix [{rows}, {cols}]");
        Mat { data, rows, cols, rs: cols, cs: 1 }
    }
    /// The transpose, without copying.
    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, rs: self.cs, cs: self.rs, ..self }
    }
}

/// `out += a b`, row-major `out` `[a.rows, b.cols]`.
pub(crate) fn add_matmul<E: Float>(out: &mut [E], a: Mat<'_, E>, b: Mat<'_, E>) {
    product(out, a, b, true);
}

/// `out = a b`, where `out` holds zeros: what is there is not read, which saves a tenth of the time.
pub(crate) fn matmul<E: Float>(out: &mut [E], a: Mat<'_, E>, b: Mat<'_, E>) {
    product(out, a, b, false);
}

/// [`add_matmul`], or [`matmul`].
pub(crate) fn product<E: Float>(out: &mut [E], a: Mat<'_, E>, b: Mat<'_, E>, is_sum: bool) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "matmul: [{m}, {k}] times [{}, {n}]", b.rows);
    assert_eq!(out.len(), m * n, "matmul: result [{m}, {n}]");
    if m == 0 || n == 0 || k == 0 || add_narrow(out, a, b) {
        return;
    }
    // SAFETY: `Mat` guarantees that its strides stay inside its slice, `out` has m*n elements, and
    // `out` is borrowed mutably, so it overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            is_sum,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            E::of(1.0),
            E::of(1.0),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// [`add_matmul`] of a long f32 matrix with a few columns; `false` if the product is another.
fn add_narrow<E: Float>(out: &mut [E], a: Mat<'_, E>, b: Mat<'_, E>) -> bool {
    let is_row_major = |x: Mat<'_, E>| x.cs == 1 && x.rs == x.cols;
    let (by_rows, by_columns) = (is_row_major(a), is_row_major(a.t()));
    let (long, short) = if by_rows { (a.cols, a.rows) } else { (a.rows, a.cols) };
    if b.cols > narrow::WIDEST
        || long < narrow::SHORTEST
        || short < 8
        || !is_row_major(b)
        || !(by_rows || by_columns)
    {
        return false;
    }
    let (Some(a_data), Some(b_data)) = (as_f32(a.data), as_f32(b.data)) else { return false };
    let out = as_f32_mut(out);
    let shape = [a.rows, a.cols, b.cols];
    if by_rows {
        narrow::add_rows_times(out, a_data, b_data, shape);
    } else {
        narrow::add_columns_times(out, a_data, b_data, shape);
    }
    true
}

/// Makes products of one matrix with others, and packs it when it turns out that there are many.
#[derive(Default)]
pub(crate) struct Reused {
    products: Cell<usize>,
    panels: OnceCell<narrow::Panels>,
}

impl Reused {
    /// [`matmul`] of row-major matrices, with the same `a` in every call.
    pub fn matmul<E: Float>(&self, out: &mut [E], a: Mat<'_, E>, b: Mat<'_, E>) {
        // After so many, packing has paid for itself if as many follow.
        const MANY: usize = 3;
        let is_packable = as_f32(a.data).is_some()
            && (narrow::ALONG_VECTORS..=narrow::WIDEST).contains(&b.cols)
            && a.cols >= narrow::SHORTEST
            && a.rows >= 8;
        self.products.set(self.products.get() + usize::from(is_packable));
        if self.products.get() <= MANY {
            return matmul(out, a, b);
        }
        let (Some(a_data), Some(b_data)) = (as_f32(a.data), as_f32(b.data)) else {
            return matmul(out, a, b);
        };
        let panels = self.panels.get_or_init(|| narrow::Panels::new(a_data, a.cols));
        panels.add_times(as_f32_mut(out), b_data, [a.cols, b.cols]);
    }
}

/// f32 numbers under their own name.
fn as_f32_mut<E: Float>(x: &mut [E]) -> &mut [f32] {
    assert_eq!(TypeId::of::<E>(), TypeId::of::<f32>());
    // SAFETY: the types are the same.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast::<f32>(), x.len()) }
}

/// The numbers, if they are f32.
fn as_f32<E: Float>(x: &[E]) -> Option<&[f32]> {
    // SAFETY: the types are the same.
    (TypeId::of::<E>() == TypeId::of::<f32>())
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<f32>(), x.len()) })
}
