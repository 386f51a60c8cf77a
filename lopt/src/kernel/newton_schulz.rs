//! Newton-Schulz orthogonalization of matrices in f32, by products in register tiles.
//!
//! A matrix X is held wide, `[k, l]` with `k ≤ l`, which takes the fewest multiply-adds. Rows are padded
//! with zeros to whole vectors. One iteration: `A = X Xᵀ`, `B = c₃ A + c₅ A²`, `X ← c₁ X + B X`.

use super::net::MAX_LANES;
use outerloop_core::simd::{parts, totals, with_scratch, Path, MAX_PARTS};
use pulp::{Simd, WithSimd};

/// Coefficients of x, x³ and x⁵ in a Newton-Schulz iteration.
pub(crate) const NEWTON_SCHULZ: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Extents of a wide matrix.
#[derive(Clone, Copy)]
pub(crate) struct Wide {
    pub(crate) k: usize,
    pub(crate) l: usize,
    is_transposed: bool,
}

impl Wide {
    /// Of a matrix `[rows, cols]`.
    pub(crate) fn new([rows, cols]: [usize; 2]) -> Self {
        Wide { k: rows.min(cols), l: rows.max(cols), is_transposed: rows > cols }
    }

    /// Numbers of a padded matrix `[k, l]` and of one `[k, k]`, for vectors of this length.
    pub(crate) fn lens(self, lanes: usize) -> [usize; 2] {
        [self.l, self.k].map(|cols| self.k * cols.next_multiple_of(lanes))
    }

    /// From `x` `[rows, cols]` to a padded matrix.
    pub(crate) fn read(self, x: &[f32], to: &mut [f32]) {
        let stride = to.len() / self.k;
        if !self.is_transposed {
            for (to, x) in to.chunks_exact_mut(stride).zip(x.chunks_exact(self.l)) {
                to[..self.l].copy_from_slice(x);
                to[self.l..].fill(0.0);
            }
            return;
        }
        for (i, to) in to.chunks_exact_mut(stride).enumerate() {
            let column = x[i..].iter().step_by(self.k);
            to[..self.l].iter_mut().zip(column).for_each(|(to, x)| *to = *x);
            to[self.l..].fill(0.0);
        }
    }

    /// Back from a padded matrix.
    pub(crate) fn write(self, from: &[f32], x: &mut [f32]) {
        let rows = from.chunks_exact(from.len() / self.k);
        if !self.is_transposed {
            x.chunks_exact_mut(self.l).zip(rows).for_each(|(x, row)| x.copy_from_slice(&row[..self.l]));
            return;
        }
        for (i, row) in rows.enumerate() {
            let column = x[i..].iter_mut().step_by(self.k);
            column.zip(row).for_each(|(x, from)| *x = *from);
        }
    }
}

/// Length of [`orthogonalize`]'s scratch.
pub(crate) fn scratch(extents: [usize; 2]) -> usize {
    2 * Wide::new(extents).lens(MAX_LANES).iter().sum::<usize>()
}

/// Moves the singular values of a matrix `x` `[rows, cols]` of norm 1 towards 1. `scratch`: at least
/// [`scratch`] numbers.
#[inline(always)]
pub(crate) fn orthogonalize<S: Simd>(
    s: S,
    x: &mut [f32],
    extents: [usize; 2],
    iterations: usize,
    scratch: &mut [f32],
) {
    let wide = Wide::new(extents);
    let [matrix, square] = wide.lens(S::F32_LANES);
    let (mut from, scratch) = scratch.split_at_mut(matrix);
    let (mut to, scratch) = scratch.split_at_mut(matrix);
    let (a, b) = scratch[..2 * square].split_at_mut(square);
    wide.read(x, from);
    for _ in 0..iterations {
        iterate(s, wide.k, from, to, [&mut *a, &mut *b]);
        std::mem::swap(&mut from, &mut to);
    }
    wide.write(from, x);
}

/// [`orthogonalize`] on the best path of the machine.
pub(crate) fn orthogonalized(x: &mut [f32], extents: [usize; 2], iterations: usize) {
    struct Work<'a>(&'a mut [f32], [usize; 2], usize, &'a mut [f32]);
    impl WithSimd for Work<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, s: S) {
            orthogonalize(s, self.0, self.1, self.2, self.3);
        }
    }
    with_scratch(scratch(extents), |room| Path::best().run(Work(x, extents, iterations, room)));
}

/// One iteration from `x` to `to`; leaves A and B in `squares`.
#[inline(always)]
pub(crate) fn iterate<S: Simd>(s: S, k: usize, x: &[f32], to: &mut [f32], [a, b]: [&mut [f32]; 2]) {
    let [c1, c3, c5] = NEWTON_SCHULZ.map(|c| c as f32);
    gram(s, k, [(x, x)], None, [0.0, 1.0], a);
    product(s, k, [(&*a, &*a)], a, [c3, c5], b);
    product(s, k, [(&*b, x)], x, [c1, 1.0], to);
}

/// Two matrices to be multiplied.
type Pair<'a, X, Y> = (&'a [X], &'a [Y]);

/// `out ← keep · more + factor · Σ x yᵀ` over the pairs (x, y), of which the sum is symmetric, `[k, k]`.
#[inline(always)]
pub(crate) fn gram<S: Simd, const N: usize>(
    s: S,
    k: usize,
    pairs: [Pair<'_, f32, f32>; N],
    more: Option<&[f32]>,
    [keep, factor]: [f32; 2],
    out: &mut [f32],
) {
    let pairs = pairs.map(|(x, y)| (S::as_simd_f32s(x).0, S::as_simd_f32s(y).0));
    let stride = out.len() / k;
    let mut i = 0;
    while i < k {
        let rows = if i + 4 <= k { 4 } else { 1 };
        let out = &mut out[i * stride..];
        let mut j = 0;
        // Up to the diagonal.
        while j < i + rows {
            let cols = if rows == 4 && j + 2 <= k { 2 } else { 1 };
            match (rows, cols) {
                (4, 2) => gram_tile::<S, N, 4, 2>(s, k, &pairs, [i, j], &mut out[j..], stride),
                (4, _) => gram_tile::<S, N, 4, 1>(s, k, &pairs, [i, j], &mut out[j..], stride),
                _ => gram_tile::<S, N, 1, 1>(s, k, &pairs, [i, j], &mut out[j..], stride),
            }
            j += cols;
        }
        i += rows;
    }
    for i in 0..k {
        for j in 0..=i {
            let sum = factor * out[i * stride + j];
            let sum = more.map_or(sum, |more| keep * more[i * stride + j] + sum);
            (out[i * stride + j], out[j * stride + i]) = (sum, sum);
        }
        out[i * stride + k..(i + 1) * stride].fill(0.0);
    }
}

/// The products of I rows from row i on with J rows from row j on.
#[inline(always)]
fn gram_tile<S: Simd, const N: usize, const I: usize, const J: usize>(
    s: S,
    k: usize,
    pairs: &[Pair<'_, S::f32s, S::f32s>; N],
    [i, j]: [usize; 2],
    out: &mut [f32],
    stride: usize,
) {
    let mut all = [[[s.splat_f32s(0.0); J]; I]; MAX_PARTS];
    for (part, to) in all.iter_mut().enumerate().take(parts::<S>()) {
        let mut sums = *to;
        for (x, y) in pairs {
            let cols = x.len() / k;
            let (mut xs, mut ys) = ([&x[..0]; I], [&y[..0]; J]);
            for (x, row) in xs.iter_mut().zip(x[i * cols..].chunks_exact(cols)) {
                *x = row;
            }
            for (y, row) in ys.iter_mut().zip(y[j * cols..].chunks_exact(cols)) {
                *y = row;
            }
            let mut c = part;
            while c < cols {
                for (x, sums) in xs.iter().zip(&mut sums) {
                    for (y, sum) in ys.iter().zip(sums) {
                        *sum = s.mul_add_e_f32s(x[c], y[c], *sum);
                    }
                }
                c += parts::<S>();
            }
        }
        *to = sums;
    }
    for i in 0..I {
        let mut row = [[s.splat_f32s(0.0); J]; MAX_PARTS];
        for part in 0..parts::<S>() {
            row[part] = all[part][i];
        }
        out[i * stride..][..J].copy_from_slice(&totals(s, &row));
    }
}

/// `out ← keep · more + factor · Σ a b` over the pairs of a symmetric a `[k, k]` and b `[k, ..]`.
#[inline(always)]
pub(crate) fn product<S: Simd, const N: usize>(
    s: S,
    k: usize,
    pairs: [Pair<'_, f32, f32>; N],
    more: &[f32],
    by: [f32; 2],
    out: &mut [f32],
) {
    let pairs = pairs.map(|(a, b)| (a, S::as_simd_f32s(b).0));
    let (out, more) = (S::as_mut_simd_f32s(out).0, S::as_simd_f32s(more).0);
    let cols = out.len() / k;
    let mut i = 0;
    while i < k {
        let rows = match k - i {
            4.. => 4,
            2.. => 2,
            _ => 1,
        };
        let (more, out) = (&more[i * cols..(i + rows) * cols], &mut out[i * cols..(i + rows) * cols]);
        match rows {
            4 => product_rows::<S, N, 4>(s, k, &pairs, i, more, by, out),
            2 => product_rows::<S, N, 2>(s, k, &pairs, i, more, by, out),
            _ => product_rows::<S, N, 1>(s, k, &pairs, i, more, by, out),
        }
        i += rows;
    }
}

/// I rows of [`product`], from row i on.
#[inline(always)]
fn product_rows<S: Simd, const N: usize, const I: usize>(
    s: S,
    k: usize,
    pairs: &[Pair<'_, f32, S::f32s>; N],
    i: usize,
    more: &[S::f32s],
    by: [f32; 2],
    out: &mut [S::f32s],
) {
    let cols = out.len() / I;
    let mut from = 0;
    while from < cols {
        from += match cols - from {
            4 | 2 => product_tile::<S, N, I, 2>(s, k, pairs, [i, from], more, by, out),
            3.. => product_tile::<S, N, I, 3>(s, k, pairs, [i, from], more, by, out),
            _ => product_tile::<S, N, I, 1>(s, k, pairs, [i, from], more, by, out),
        };
    }
}

/// V vectors of columns of [`product_rows`]; returns V.
#[inline(always)]
fn product_tile<S: Simd, const N: usize, const I: usize, const V: usize>(
    s: S,
    k: usize,
    pairs: &[Pair<'_, f32, S::f32s>; N],
    [i, from]: [usize; 2],
    more: &[S::f32s],
    [keep, factor]: [f32; 2],
    out: &mut [S::f32s],
) -> usize {
    let cols = out.len() / I;
    let mut sums = [[s.splat_f32s(0.0); V]; I];
    for (a, b) in pairs {
        for (a, b) in a.chunks_exact(a.len() / k).zip(b.chunks_exact(cols)) {
            // Of the column, which is the row.
            let a: &[f32; I] = a[i..].first_chunk().expect("a is square");
            let b: &[S::f32s; V] = b[from..].first_chunk().expect("b has these columns");
            for (a, sums) in a.iter().zip(&mut sums) {
                let a = s.splat_f32s(*a);
                for v in 0..V {
                    sums[v] = s.mul_add_e_f32s(a, b[v], sums[v]);
                }
            }
        }
    }
    let (keep, factor) = (s.splat_f32s(keep), s.splat_f32s(factor));
    for ((out, more), sums) in out.chunks_exact_mut(cols).zip(more.chunks_exact(cols)).zip(&sums) {
        for v in 0..V {
            out[from + v] = s.mul_add_e_f32s(factor, sums[v], s.mul_f32s(keep, more[from + v]));
        }
    }
    V
}
