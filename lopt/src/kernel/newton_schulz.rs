//! Newton-Schulz orthogonalization of one matrix in f32, by products in register tiles.

use crate::celo2::NEWTON_SCHULZ;
use outerloop_core::simd::{load, store};
use pulp::Simd;

/// Vectors per tile of [`product`].
const COLUMNS: usize = 2;

/// Length of [`orthogonalize`]'s scratch.
pub(super) fn scratch(rows: usize, cols: usize) -> usize {
    let small = rows.min(cols);
    2 * rows * cols + 2 * small * small
}

/// Moves the singular values of a matrix `x` `[rows, cols]` of norm 1 towards 1. `scratch`: at least
/// [`scratch`] numbers.
#[inline(always)]
pub(super) fn orthogonalize<S: Simd>(
    s: S,
    x: &mut [f32],
    [rows, cols]: [usize; 2],
    iterations: usize,
    scratch: &mut [f32],
) {
    let [c1, c3, c5] = NEWTON_SCHULZ.map(|c| c as f32);
    let (k, l) = (rows.min(cols), rows.max(cols));
    let (mut from, scratch) = scratch.split_at_mut(k * l);
    let (mut to, scratch) = scratch.split_at_mut(k * l);
    let (a, scratch) = scratch.split_at_mut(k * k);
    let b = &mut scratch[..k * k];
    // Wide: fewer products.
    if rows > cols {
        transpose(x, from, cols);
    } else {
        from.copy_from_slice(x);
    }
    for _ in 0..iterations {
        // A = X Xᵀ, B = c₃ A + c₅ A², X ← c₁ X + B X
        gram(s, from, a, l);
        b.copy_from_slice(a);
        product(s, b, a, a, k, [c3, c5]);
        to.copy_from_slice(from);
        product(s, to, b, from, l, [c1, 1.0]);
        std::mem::swap(&mut from, &mut to);
    }
    if rows > cols {
        transpose(from, x, rows);
    } else {
        x.copy_from_slice(from);
    }
}

/// `to` ← the transpose of `x` `[.., cols]`.
fn transpose(x: &[f32], to: &mut [f32], cols: usize) {
    let rows = x.len() / cols;
    for (i, row) in x.chunks_exact(cols).enumerate() {
        for (x, to) in row.iter().zip(to[i..].iter_mut().step_by(rows)) {
            *to = *x;
        }
    }
}

/// `out ← X Xᵀ` for `x` `[.., cols]`.
#[inline(always)]
fn gram<S: Simd>(s: S, x: &[f32], out: &mut [f32], cols: usize) {
    let rows = x.len() / cols;
    for (i, x_i) in x.chunks(4 * cols).enumerate() {
        let i = 4 * i;
        let out = &mut out[i * rows..];
        // Up to the diagonal.
        for (j, x_j) in x.chunks(2 * cols).enumerate().take(i / 2 + 2) {
            if x_i.len() == 4 * cols && x_j.len() == 2 * cols {
                gram_tile::<S, 4, 2>(s, x_i, x_j, cols, &mut out[2 * j..], rows);
                continue;
            }
            for (x_i, out) in x_i.chunks_exact(cols).zip(out.chunks_exact_mut(rows)) {
                for (j, x_j) in (2 * j..).zip(x_j.chunks_exact(cols)) {
                    gram_tile::<S, 1, 1>(s, x_i, x_j, cols, &mut out[j..], rows);
                }
            }
        }
    }
    for i in 0..rows {
        for j in i + 1..rows {
            out[i * rows + j] = out[j * rows + i];
        }
    }
}

/// The products of I rows with J rows; rows of `out` are `stride` apart.
#[inline(always)]
fn gram_tile<S: Simd, const I: usize, const J: usize>(
    s: S,
    x: &[f32],
    y: &[f32],
    cols: usize,
    out: &mut [f32],
    stride: usize,
) {
    let mut sums = [[s.splat_f32s(0.0); J]; I];
    for c in (0..cols).step_by(S::F32_LANES) {
        let mut ys = [s.splat_f32s(0.0); J];
        for (j, to) in ys.iter_mut().enumerate() {
            *to = load(s, &y[j * cols..(j + 1) * cols][c..]);
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let x = load(s, &x[i * cols..(i + 1) * cols][c..]);
            for (sum, y) in sums.iter_mut().zip(ys) {
                *sum = s.mul_add_e_f32s(x, y, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        for (to, sum) in out[i * stride..].iter_mut().zip(sums) {
            *to = s.reduce_sum_f32s(*sum);
        }
    }
}

/// `out ← keep · out + factor · a b` for `b` `[k, cols]`, `a` `[rows, k]`.
#[inline(always)]
fn product<S: Simd>(s: S, out: &mut [f32], a: &[f32], b: &[f32], cols: usize, by: [f32; 2]) {
    let k = b.len() / cols;
    for (a, out) in a.chunks(4 * k).zip(out.chunks_mut(4 * cols)) {
        if a.len() == 4 * k {
            product_rows::<S, 4>(s, out, a, b, cols, by);
            continue;
        }
        for (a, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(cols)) {
            product_rows::<S, 1>(s, out, a, b, cols, by);
        }
    }
}

/// I rows of [`product`].
#[inline(always)]
fn product_rows<S: Simd, const I: usize>(
    s: S,
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    cols: usize,
    by: [f32; 2],
) {
    let mut from = 0;
    while from < cols {
        if from + COLUMNS * S::F32_LANES <= cols {
            product_tile::<S, I, COLUMNS>(s, out, a, b, [cols, from], by);
            from += COLUMNS * S::F32_LANES;
        } else {
            product_tile::<S, I, 1>(s, out, a, b, [cols, from], by);
            from += S::F32_LANES;
        }
    }
}

/// I rows and V vectors of columns of [`product`].
#[inline(always)]
fn product_tile<S: Simd, const I: usize, const V: usize>(
    s: S,
    out: &mut [f32],
    a: &[f32],
    b: &[f32],
    [cols, from]: [usize; 2],
    [keep, factor]: [f32; 2],
) {
    let end = cols.min(from + V * S::F32_LANES);
    let k = b.len() / cols;
    let mut sums = [[s.splat_f32s(0.0); V]; I];
    for (j, b) in b.chunks_exact(cols).enumerate() {
        let b = &b[from..end];
        let mut vectors = [s.splat_f32s(0.0); V];
        for (v, to) in vectors.iter_mut().enumerate() {
            *to = load(s, &b[v * S::F32_LANES..]);
        }
        for (i, sums) in sums.iter_mut().enumerate() {
            let a = s.splat_f32s(a[i * k + j]);
            for (sum, b) in sums.iter_mut().zip(vectors) {
                *sum = s.mul_add_e_f32s(a, b, *sum);
            }
        }
    }
    let (keep, factor) = (s.splat_f32s(keep), s.splat_f32s(factor));
    for (out, sums) in out.chunks_exact_mut(cols).zip(&sums) {
        for (to, sum) in out[from..end].chunks_mut(S::F32_LANES).zip(sums) {
            let next = s.mul_add_e_f32s(factor, *sum, s.mul_f32s(keep, load(s, to)));
            store(s, to, next);
        }
    }
}
