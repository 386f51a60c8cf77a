//! Products with few columns: at ten classes, general kernels fill up their register tiles with zeros and take twice as
//! long. Here the vectors lie along the long side, and nothing is wasted.
//!
//! Sums have the order that [`crate::simd`] prescribes: the same bits on every path.

// Counted loops over constants vanish, and sums stay in registers.
#![allow(clippy::needless_range_loop)]

use crate::simd::{load, parts, store, total, Path, LANES, MAX_PARTS};
use pulp::{Simd, WithSimd};

/// The most columns that this is faster for.
pub(super) const WIDEST: usize = 12;
/// The shortest long side that it is used for.
pub(super) const SHORTEST: usize = 512;
/// Rows that stay in the first-level cache while all columns pass over them.
const BLOCK: usize = 32;

/// `out += a b`: `a` `[m, k]`, `b` `[k, n]`, `out` `[m, n]`, row-major; sums along the rows of `a`.
pub(super) fn add_rows_times(out: &mut [f32], a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) {
    let stride = k.next_multiple_of(LANES);
    let mut columns = vec![0.0; n * stride];
    for (i, row) in b.chunks_exact(n).enumerate() {
        row.iter().enumerate().for_each(|(o, b)| columns[o * stride + i] = *b);
    }
    Path::best().run(RowsTimes { a, columns: &columns, out, shape: [m, k, n], stride });
}

/// `out += aᵀ b`: `a` `[k, m]`, `b` `[k, n]`, `out` `[m, n]`, row-major; sums over the rows of `a` in order.
pub(super) fn add_columns_times(out: &mut [f32], a: &[f32], b: &[f32], [m, k, n]: [usize; 3]) {
    let stride = m.next_multiple_of(LANES);
    let mut columns = vec![0.0; n * stride];
    for rows in 0..k.div_ceil(BLOCK) {
        let (first, last) = (rows * BLOCK, (rows * BLOCK + BLOCK).min(k));
        let (a, b) = (&a[first * m..last * m], &b[first * n..last * n]);
        Path::best().run(ColumnsTimes { a, b, columns: &mut columns, m, n, stride });
    }
    for (i, row) in out.chunks_exact_mut(n).enumerate() {
        row.iter_mut().enumerate().for_each(|(o, out)| *out += columns[o * stride + i]);
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
        let mut row = 0;
        while row < m {
            let rows = if row + 1 < m { 2 } else { 1 };
            let mut from = 0;
            while from < n {
                // Twelve sums of two vectors each fill the registers of AVX2.
                from += match (rows, n - from) {
                    (1, _) => self.tile::<S, 1, 1>(s, row, from),
                    (_, 1) => self.tile::<S, 2, 1>(s, row, from),
                    (_, 2 | 4) => self.tile::<S, 2, 2>(s, row, from),
                    _ => self.tile::<S, 2, 3>(s, row, from),
                };
            }
            row += rows;
        }
    }
}

impl RowsTimes<'_> {
    /// R rows times N columns; returns N.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(&mut self, s: S, row: usize, from: usize) -> usize {
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
                        sums[r][o][part] = s.mul_add_e_f32s(vectors[r][v], b[o][v], sums[r][o][part]);
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
        N
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
        for (a, b) in self.a.chunks_exact(self.m).zip(self.b.chunks_exact(self.n)) {
            let b = &b[from..from + N];
            let a: [S::f32s; V] = std::array::from_fn(|v| load(s, &a[at + v * lanes..]));
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
        let (m, k, n) = (37, 75, 10);
        let mut x = vec![0.0f32; (m + n) * k];
        Key::new(5).fill_normal(&mut x);
        let (a, b) = x.split_at(m * k);
        let all = |path: Path| {
            let (mut rows, mut columns) = (vec![0.0; m * n], vec![0.0; n * 48]);
            let stride = k.next_multiple_of(LANES);
            let mut padded = vec![0.0; n * stride];
            (0..n).for_each(|o| padded[o * stride..][..k].copy_from_slice(&b[o * k..][..k]));
            path.run(RowsTimes { a, columns: &padded, out: &mut rows, shape: [m, k, n], stride });
            path.run(ColumnsTimes { a, b, columns: &mut columns, m, n, stride: 48 });
            (rows, columns)
        };
        let want = all(Path::available()[0]);
        for path in Path::available() {
            assert!(all(path) == want, "{}", path.name());
        }
    }
}
