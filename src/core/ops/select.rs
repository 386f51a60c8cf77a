//! Moving elements: rows by index, columns, transposes, concatenation, image patches.

use super::raw::{apply_built, built, flat, Affine, AffineOp};
use crate::math::vectorize;
use crate::tensor::{Backend, Dim, Float, Mode, Shape, Tensor};
use dfdx::prelude::{HasShape, Merge};

/// Marks an output block that has no source.
pub(crate) const NONE: u32 = u32::MAX;

/// Output block `k` is input block `index[k]`, blocks being `width` elements long.
struct Select<E> {
    index: Vec<u32>,
    width: usize,
    /// What blocks without source hold.
    fill: E,
}

impl<E: Float> Select<E> {
    /// Calls `f(start in the input, start in the output)` per block with a source.
    #[inline(always)]
    fn blocks(&self, mut f: impl FnMut(usize, usize)) {
        for (k, &i) in self.index.iter().enumerate() {
            if i != NONE {
                f(i as usize * self.width, k * self.width);
            }
        }
    }
}

/// `y += x`, for short rows.
#[inline(always)]
fn add_row<E: Float>(y: &mut [E], x: &[E]) {
    const WIDTH: usize = 8;
    let (mut wide, mut x_wide) = (y.chunks_exact_mut(WIDTH), x.chunks_exact(WIDTH));
    for (y, x) in wide.by_ref().zip(x_wide.by_ref()) {
        for k in 0..WIDTH {
            y[k] += x[k];
        }
    }
    for (y, x) in wide.into_remainder().iter_mut().zip(x_wide.remainder()) {
        *y += *x;
    }
}

impl<E: Float> AffineOp<E> for Select<E> {
    fn value(&mut self, x: &[&[E]], y: &mut [E]) {
        y.fill(self.fill);
        let w = self.width;
        self.blocks(|i, k| y[k..k + w].copy_from_slice(&x[0][i..i + w]));
    }
    fn add(&self, _: usize, x: &[E], y: &mut [E]) {
        let w = self.width;
        vectorize(
            #[inline(always)]
            || self.blocks(|i, k| add_row(&mut y[k..k + w], &x[i..i + w])),
        );
    }
    fn add_adjoint(&self, _: usize, dy: &[E], dx: &mut [E]) {
        let w = self.width;
        vectorize(
            #[inline(always)]
            || self.blocks(|i, k| add_row(&mut dx[i..i + w], &dy[k..k + w])),
        );
    }
}

/// Blocks of `width` elements by index; [`NONE`] gives `fill`.
pub(crate) fn select<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    index: Vec<u32>,
    width: usize,
    fill: f64,
    shape: D,
) -> Tensor<D, E, B, M> {
    debug_assert_eq!(index.len() * width, shape.num_elements(), "select: one index per block");
    let op = Affine(Select { index, width, fill: E::of(fill) });
    apply_built(built!(op, Affine<Select<f32>>, Affine<Select<f64>>), vec![flat(x)], shape, M::default())
}

/// Rows of a table by index: embedding. Shapes: `table` `[V, D]`, result `[ids, D]`.
///
/// # Panics
/// If an id is `V` or more.
#[track_caller]
pub fn embedding<V: Dim, D: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    table: Tensor<(V, D), E, B, M>,
    ids: &[u32],
) -> Tensor<(usize, D), E, B, M> {
    let (v, d) = *table.shape();
    assert!(
        ids.iter().all(|&i| (i as usize) < v.size()),
        "embedding: ids must be below {}, got {:?}",
        v.size(),
        ids.iter().max()
    );
    select(table, ids.to_vec(), d.size(), 0.0, (ids.len(), d))
}

/// `n` copies of a row. Shapes: `row` `[D]`, result `[n, D]`.
pub fn repeat_row<D: Dim, N: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    row: Tensor<(D,), E, B, M>,
    n: N,
) -> Tensor<(N, D), E, B, M> {
    let (d,) = *row.shape();
    select(row, vec![0; n.size()], d.size(), 0.0, (n, d))
}

/// `width` columns from column `start`. Shapes: `x` `[N, C]`, result `[N, W]`; `width` is a `usize`
/// or a `Const`.
///
/// # Panics
/// If they reach beyond `C`.
#[track_caller]
pub fn columns<N: Dim, C: Dim, W: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<(N, C), E, B, M>,
    start: usize,
    width: W,
) -> Tensor<(N, W), E, B, M> {
    let (n, c) = *x.shape();
    let (c, w) = (c.size(), width.size());
    assert!(start + w <= c, "columns: {start}..{} of {c}", start + w);
    let index = (0..n.size()).flat_map(|r| (0..w).map(move |j| (r * c + start + j) as u32)).collect();
    select(x, index, 1, 0.0, (n, width))
}

/// Swaps the two middle axes of `[a, b, c, d]`.
fn swap<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    [a, b, c, d]: [usize; 4],
    shape: D,
) -> Tensor<D, E, B, M> {
    let block = move |i: usize, k: usize, j: usize| ((i * b + j) * c + k) as u32;
    let index = (0..a).flat_map(|i| (0..c).flat_map(move |k| (0..b).map(move |j| block(i, k, j)))).collect();
    select(x, index, d, 0.0, shape)
}

/// Transpose. Shapes: `[R, C]` to `[C, R]`.
pub fn transpose<R: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<(R, C), E, B, M>,
) -> Tensor<(C, R), E, B, M> {
    let (r, c) = *x.shape();
    swap(x, [1, r.size(), c.size(), 1], (c, r))
}

/// Swaps the middle axes, as attention does to bring heads forward. Shapes: `[N, T, H, D]` to
/// `[N, H, T, D]`.
pub fn swap_middle<N: Dim, T: Dim, H: Dim, D: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<(N, T, H, D), E, B, M>,
) -> Tensor<(N, H, T, D), E, B, M> {
    let (n, t, h, d) = *x.shape();
    swap(x, [n.size(), t.size(), h.size(), d.size()], (n, h, t, d))
}

/// The same elements in another shape, without copying.
///
/// # Panics
/// If the number of elements differs.
#[track_caller]
pub fn reshape<S: Shape, D: Shape, E: Float, B: Backend<E>, M: Mode<E, B>>(
    x: Tensor<S, E, B, M>,
    shape: D,
) -> Tensor<D, E, B, M> {
    let (from, to) = (x.shape().concrete(), shape.concrete());
    assert_eq!(x.shape().num_elements(), shape.num_elements(), "reshape: {from:?} to {to:?}");
    super::raw::reshape(x, shape)
}

/// Row `r` of input `i`, `widths[i]` elements, goes to row `r` of the output, behind input `i - 1`.
struct Concat {
    rows: usize,
    widths: Vec<usize>,
}

impl Concat {
    /// Calls `f(start in input i, start in the output)` per row.
    fn rows(&self, i: usize, mut f: impl FnMut(usize, usize)) {
        let (before, total) = (self.widths[..i].iter().sum::<usize>(), self.widths.iter().sum::<usize>());
        (0..self.rows).for_each(|r| f(r * self.widths[i], r * total + before));
    }
}

impl<E: Float> AffineOp<E> for Concat {
    fn add(&self, i: usize, x: &[E], y: &mut [E]) {
        let w = self.widths[i];
        self.rows(i, |a, b| y[b..b + w].iter_mut().zip(&x[a..a + w]).for_each(|(y, x)| *y += *x));
    }
    fn add_adjoint(&self, i: usize, dy: &[E], dx: &mut [E]) {
        let w = self.widths[i];
        self.rows(i, |a, b| dx[a..a + w].iter_mut().zip(&dy[b..b + w]).for_each(|(d, y)| *d += *y));
    }
}

/// Two matrices side by side. Shapes: `a` `[N, C]`, `b` `[N, D]`, result `[N, C + D]`.
#[track_caller]
pub fn concat<N: Dim, C: Dim, D: Dim, E: Float, B: Backend<E>, M: Mode<E, B> + Merge<R>, R: Mode<E, B>>(
    a: Tensor<(N, C), E, B, M>,
    b: &Tensor<(N, D), E, B, R>,
) -> Tensor<(N, usize), E, B, M> {
    let ((n, c), (n2, d)) = (*a.shape(), *b.shape());
    assert_eq!(n.size(), n2.size(), "concat: numbers of rows");
    let widths = vec![c.size(), d.size()];
    let shape = (n, c.size() + d.size());
    let op = built!(Affine(Concat { rows: n.size(), widths }), Affine<Concat>);
    apply_built(op, vec![flat(a), flat(b.clone())], shape, M::default())
}

/// Matrices on top of each other. Shapes: each `[N, C]` with its own `N`, result `[sum of N, C]`.
///
/// # Panics
/// If there are none, or their `C` differ.
#[track_caller]
pub fn concat_rows<N: Dim, C: Dim, E: Float, B: Backend<E>, M: Mode<E, B>>(
    parts: Vec<Tensor<(N, C), E, B, M>>,
) -> Tensor<(usize, C), E, B, M> {
    let c = parts.first().expect("concat_rows: at least one part").shape().1;
    assert!(parts.iter().all(|p| p.shape().1.size() == c.size()), "concat_rows: numbers of columns");
    let rows = parts.iter().map(|p| p.shape().0.size()).sum();
    let widths = parts.iter().map(|p| p.shape().num_elements()).collect();
    let op = built!(Affine(Concat { rows: 1, widths }), Affine<Concat>);
    apply_built(op, parts.into_iter().map(flat).collect(), (rows, c), M::default())
}
