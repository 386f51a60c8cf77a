//! Products with few columns: at ten classes, general kernels take half as long again. Where their rows are long, sums
//! along the rows have the columns in one or two vectors; fewer columns than half a vector are scalar products instead.
//! Sums over the rows have vectors along the long side, and nothing is wasted.
//!
//! The same bits on every path: the scalar products have the order that [`crate::simd`] prescribes, other sums that of
//! the terms.

// Counted loops over constants vanish, and sums stay in registers.
#![allow(clippy::needless_range_loop)]

use super::aligned::Aligned;
use super::tile::{Left, Matrix, Product, Start};
use crate::simd::{load, parts, store, total, Path, LANES, MAX_PARTS};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The most columns that this is faster for.
pub(super) const WIDEST: usize = 12;
/// The shortest long side that it is used for.
pub(super) const SHORTEST: usize = 512;
/// Rows that stay in the second-level cache while all columns pass over them.
const BLOCK: usize = 64;

/// Columns from which on they lie along vectors.
pub(super) const ALONG_VECTORS: usize = 5;

/// `out += a b`: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`, row-major; sums along the rows of `a`.
pub(super) fn add_rows_times(out: &mut [f32], a: &[f32], b: &[f32], shape: [usize; 3]) {
    rows_times(Path::best(), out, a, b, shape);
}

fn rows_times(path: Path, out: &mut [f32], a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) {
    if n < ALONG_VECTORS {
        let stride = k.next_multiple_of(LANES);
        let mut columns = vec![0.0; n * stride];
        for (i, row) in b.chunks_exact(n).enumerate() {
            row.iter().enumerate().for_each(|(o, b)| columns[o * stride + i] = *b);
        }
        return path.run(RowsTimes { a, columns: &columns, out, shape: [m, k, n], stride });
    }
    let stride = n.next_multiple_of(path.lanes());
    let (mut padded, mut c) = (Aligned::zeros(k * stride), Aligned::zeros(BLOCK * stride));
    for (to, from) in padded.chunks_exact_mut(stride).zip(b.chunks_exact(n)) {
        to[..n].copy_from_slice(from);
    }
    for (out, a) in out.chunks_mut(BLOCK * n).zip(a.chunks(BLOCK * k)) {
        let rows = a.len() / k;
        path.run(Product {
            start: Start::Zero,
            left: Left::Rows(Matrix::Strided(a, k)),
            b: &padded,
            c: &mut c[..rows * stride],
            shape: [rows, k, stride],
            times: &[],
        });
        for (out, c) in out.chunks_exact_mut(n).zip(c.chunks_exact(stride)) {
            out.iter_mut().zip(c).for_each(|(out, c)| *out += *c);
        }
    }
}

/// `out += aᵀ b`: `a` `[k, m]`, `b` `[k, n]`, `out` `[m, n]`, row-major; sums over the rows of `a` in order.
pub(super) fn add_columns_times(out: &mut [f32], a: &[f32], b: &[f32], shape: [usize; 3]) {
    columns_times(Path::best(), out, a, b, shape);
}

fn columns_times(path: Path, out: &mut [f32], a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) {
    let stride = m.next_multiple_of(LANES);
    let mut columns = vec![0.0; n * stride];
    for rows in 0..k.div_ceil(BLOCK) {
        let (first, last) = (rows * BLOCK, (rows * BLOCK + BLOCK).min(k));
        let (a, b) = (&a[first * m..last * m], &b[first * n..last * n]);
        path.run(ColumnsTimes { a, b, columns: &mut columns, m, n, stride });
    }
    for (i, row) in out.chunks_exact_mut(n).enumerate() {
        row.iter_mut().enumerate().for_each(|(o, out)| *out += columns[o * stride + i]);
    }
}

/// A long matrix whose rows lie along vectors, `[panels, k, width]` with two vectors of rows per panel: for many products
/// by [`add_rows_times`], to the same bits in half the time. Packing takes as long as one or two.
pub(super) struct Panels {
    path: Path,
    width: usize,
    data: Aligned,
}

impl Panels {
    /// `a` `[m, k]`.
    pub(super) fn new(a: &[f32], k: usize) -> Self {
        Self::with_path(Path::best(), a, k)
    }

    fn with_path(path: Path, a: &[f32], k: usize) -> Self {
        // Few columns at a time: their lines stay in the first-level cache until all of their numbers are taken.
        const COLUMNS: usize = 16;
        let width = 2 * path.lanes();
        let mut data = Aligned::zeros((a.len() / k).div_ceil(width) * width * k);
        for (panel, rows) in data.chunks_exact_mut(width * k).zip(a.chunks(width * k)) {
            for (part, first) in panel.chunks_mut(COLUMNS * width).zip((0..k).step_by(COLUMNS)) {
                for (r, row) in rows.chunks_exact(k).enumerate() {
                    let to = part.iter_mut().skip(r).step_by(width);
                    to.zip(&row[first..]).for_each(|(to, from)| *to = *from);
                }
            }
        }
        Panels { path, width, data }
    }

    /// `out += a b`: `b` `[k, n]`, `out` `[m, n]`, row-major; n from [`ALONG_VECTORS`] to [`WIDEST`].
    pub(super) fn add_times(&self, out: &mut [f32], b: &[f32], [k, n]: [usize; 2]) {
        let mut sums = Aligned::zeros(n * self.width);
        let panels = self.data.chunks_exact(self.width * k).zip(out.chunks_mut(self.width * n));
        for (panel, out) in panels {
            self.path.run(PanelTimes { panel, b, sums: &mut sums, n });
            for (r, row) in out.chunks_exact_mut(n).enumerate() {
                let of_row = sums.iter().skip(r).step_by(self.width);
                row.iter_mut().zip(of_row).for_each(|(out, sum)| *out += *sum);
            }
        }
    }
}

struct PanelTimes<'a> {
    /// `[k, width]`
    panel: &'a [f32],
    /// `[k, n]`
    b: &'a [f32],
    /// `[n, width]`
    sums: &'a mut [f32],
    n: usize,
}

impl WithSimd for PanelTimes<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let mut from = 0;
        while from < self.n {
            // As for `ColumnsTimes`.
            from += match self.n - from {
                1 => self.tile::<S, 1>(s, from),
                2 => self.tile::<S, 2>(s, from),
                3 | 6 => self.tile::<S, 3>(s, from),
                4 | 7 | 8 => self.tile::<S, 4>(s, from),
                _ => self.tile::<S, 5>(s, from),
            };
        }
    }
}

impl PanelTimes<'_> {
    /// N columns; returns N.
    #[inline(always)]
    fn tile<S: Simd, const N: usize>(&mut self, s: S, from: usize) -> usize {
        let mut sums = [[s.splat_f32s(0.0); 2]; N];
        let rows = S::as_simd_f32s(self.panel).0.chunks_exact(2);
        for (a, b) in rows.zip(self.b.chunks_exact(self.n)) {
            let b = &b[from..from + N];
            for o in 0..N {
                let b = s.splat_f32s(b[o]);
                for v in 0..2 {
                    sums[o][v] = s.mul_add_e_f32s(a[v], b, sums[o][v]);
                }
            }
        }
        let out = S::as_mut_simd_f32s(self.sums).0[2 * from..].chunks_exact_mut(2);
        out.zip(&sums).for_each(|(out, sums)| out.copy_from_slice(sums));
        N
    }
}

struct RowsTimes<'a> {
    a: &'a [f32],
    /// `bᵀ`, `[n, stride]`, with zeros behind the k numbers of a row.
    columns: &'a [f32],
    out: &'a mut [f32],
    shape: [usize; 3],
    stride: usize,
}

impl WithSimd for RowsTimes<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let [m, _, n] = self.shape;
        for first in (0..m).step_by(BLOCK) {
            let rows = first..m.min(first + BLOCK);
            let mut from = 0;
            while from < n {
                // Twelve sums of two vectors each fill the registers of AVX2. Few columns at a time: they stay in the
                // first-level cache while the rows pass over them.
                from += match n - from {
                    1 => self.tiles::<S, 1>(s, rows.clone(), from),
                    2 | 4 => self.tiles::<S, 2>(s, rows.clone(), from),
                    _ => self.tiles::<S, 3>(s, rows.clone(), from),
                };
            }
        }
    }
}

impl RowsTimes<'_> {
    /// Some rows times N columns; returns N.
    #[inline(always)]
    fn tiles<S: Simd, const N: usize>(&mut self, s: S, rows: Range<usize>, from: usize) -> usize {
        for row in rows.clone().step_by(2) {
            if row + 1 < rows.end {
                self.tile::<S, 2, N>(s, row, from);
            } else {
                self.tile::<S, 1, N>(s, row, from);
            }
        }
        N
    }

    /// R rows times N columns.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(&mut self, s: S, row: usize, from: usize) {
        let [_, k, n] = self.shape;
        let a: [&[f32]; R] = std::array::from_fn(|r| &self.a[(row + r) * k..][..k]);
        let b: [&[f32]; N] =
            std::array::from_fn(|o| &self.columns[(from + o) * self.stride..][..self.stride]);
        let mut sums = [[[s.splat_f32s(0.0); MAX_PARTS]; N]; R];
        let whole = k / LANES;
        let vectors = a.map(|a| S::as_simd_f32s(&a[..whole * LANES]).0);
        let b = b.map(|b| S::as_simd_f32s(b).0);
        for i in 0..whole {
            for part in 0..parts::<S>() {
                let v = i * parts::<S>() + part;
                for r in 0..R {
                    for o in 0..N {
                        // SAFETY: `vectors` have whole * parts elements, `b` at least as many.
                        let (a, b) = unsafe { (*vectors[r].get_unchecked(v), *b[o].get_unchecked(v)) };
                        sums[r][o][part] = s.mul_add_e_f32s(a, b, sums[r][o][part]);
                    }
                }
            }
        }
        for (part, start) in (whole * LANES..k).step_by(S::F32_LANES).enumerate() {
            for r in 0..R {
                let a = load(s, &a[r][start..]);
                for o in 0..N {
                    let b = b[o][whole * parts::<S>() + part];
                    sums[r][o][part] = s.mul_add_e_f32s(a, b, sums[r][o][part]);
                }
            }
        }
        for r in 0..R {
            for o in 0..N {
                self.out[(row + r) * n + from + o] += total(s, &sums[r][o]);
            }
        }
    }
}

struct ColumnsTimes<'a> {
    /// `[rows, m]`
    a: &'a [f32],
    /// `[rows, n]`
    b: &'a [f32],
    /// `outᵀ`, `[n, stride]`.
    columns: &'a mut [f32],
    m: usize,
    n: usize,
    stride: usize,
}

impl WithSimd for ColumnsTimes<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let wide = 2 * S::F32_LANES;
        let whole = self.m / wide * wide;
        for at in (0..whole).step_by(wide) {
            self.chunk::<S, 2>(s, at);
        }
        for at in (whole..self.m).step_by(S::F32_LANES) {
            self.chunk::<S, 1>(s, at);
        }
    }
}

impl ColumnsTimes<'_> {
    /// V vectors of all columns, from number `at` on.
    #[inline(always)]
    fn chunk<S: Simd, const V: usize>(&mut self, s: S, at: usize) {
        let mut from = 0;
        while from < self.n {
            // Ten sums hide the latency of two units, and leave registers for what is multiplied.
            from += match self.n - from {
                1 => self.tile::<S, V, 1>(s, at, from),
                2 => self.tile::<S, V, 2>(s, at, from),
                3 | 6 => self.tile::<S, V, 3>(s, at, from),
                4 | 7 | 8 => self.tile::<S, V, 4>(s, at, from),
                _ => self.tile::<S, V, 5>(s, at, from),
            };
        }
    }

    #[inline(always)]
    fn tile<S: Simd, const V: usize, const N: usize>(&mut self, s: S, at: usize, from: usize) -> usize {
        let lanes = S::F32_LANES;
        let mut sums = [[s.splat_f32s(0.0); V]; N];
        for (o, sums) in sums.iter_mut().enumerate() {
            let column = &self.columns[(from + o) * self.stride + at..][..V * lanes];
            sums.copy_from_slice(&S::as_simd_f32s(column).0[..V]);
        }
        let is_whole = at + V * lanes <= self.m;
        for (a, b) in self.a.chunks_exact(self.m).zip(self.b.chunks_exact(self.n)) {
            let (a, b) = (&a[at..], &b[from..from + N]);
            let a: [S::f32s; V] = match is_whole {
                true => *S::as_simd_f32s(a).0.first_chunk().expect("V vectors from `at` on"),
                false => std::array::from_fn(|v| load(s, &a[v * lanes..])),
            };
            for o in 0..N {
                let b = s.splat_f32s(b[o]);
                for v in 0..V {
                    sums[o][v] = s.mul_add_e_f32s(a[v], b, sums[o][v]);
                }
            }
        }
        for (o, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                store(s, &mut self.columns[(from + o) * self.stride + at + v * lanes..][..lanes], *sum);
            }
        }
        N
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Key;

    #[test]
    fn both_products_are_those_in_f64() {
        for (m, k, n) in
            [(1, 1, 1), (3, 17, 2), (5, 40, 3), (2, 64, 10), (33, 70, 10), (70, 33, 7), (4, 5, 12)]
        {
            let draw = |len: usize, name: &str| {
                let mut x = vec![0.0f32; len];
                Key::new(4).named(name).fill_normal(&mut x);
                x
            };
            let (a, b, c) = (draw(m * k, "a"), draw(k * n, "b"), draw(m * n, "c"));
            let transposed: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
            let want = |i: usize| {
                let terms = (0..k).map(|j| f64::from(a[i / n * k + j]) * f64::from(b[j * n + i % n]));
                f64::from(c[i]) + terms.sum::<f64>()
            };
            let (mut by_rows, mut by_columns) = (c.clone(), c.clone());
            add_rows_times(&mut by_rows, &a, &b, [m, k, n]);
            add_columns_times(&mut by_columns, &transposed, &b, [m, k, n]);
            for got in [by_rows, by_columns] {
                for (i, got) in got.iter().enumerate() {
                    assert!((f64::from(*got) - want(i)).abs() < 1e-5, "{m} {k} {n}: {got} {}", want(i));
                }
            }
        }
    }

    #[test]
    fn every_path_computes_the_same_bits() {
        let (m, k) = (70, 75);
        for n in [3, 5, 6, 7, 8, 9, 10, 11, 12] {
            let mut x = vec![0.0f32; m * k + (m + k) * n];
            Key::new(5).fill_normal(&mut x);
            let (a, rest) = x.split_at(m * k);
            let (b, c) = rest.split_at(k * n);
            let all = |path: Path| {
                let (mut rows, mut columns) = (vec![0.0; m * n], vec![0.0; k * n]);
                rows_times(path, &mut rows, a, b, [m, k, n]);
                columns_times(path, &mut columns, a, c, [k, m, n]);
                if n >= ALONG_VECTORS {
                    let mut by_panels = vec![0.0; m * n];
                    Panels::with_path(path, a, k).add_times(&mut by_panels, b, [k, n]);
                    assert!(by_panels == rows, "{} {n}", path.name());
                }
                (rows, columns)
            };
            let want = all(Path::available()[0]);
            for path in Path::available() {
                assert!(all(path) == want, "{} {n}", path.name());
            }
        }
    }
}
