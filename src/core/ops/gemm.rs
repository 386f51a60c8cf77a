//! Single-threaded matrix products on slices.

use crate::Float;

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
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "matmul: [{m}, {k}] times [{}, {n}]", b.rows);
    assert_eq!(out.len(), m * n, "matmul: result [{m}, {n}]");
    if m == 0 || n == 0 || k == 0 {
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
            true,
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
