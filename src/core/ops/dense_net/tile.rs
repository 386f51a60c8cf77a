//! Products of small row-major matrices, in register tiles.

use pulp::{Simd, WithSimd};

/// A matrix that is read number by number.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `[m, k]` in rows of this many numbers.
    Rows(&'a [f32], usize),
    /// The transpose of `[k, m]` in rows of this many numbers.
    Columns(&'a [f32], usize),
}

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// 0
    Zero,
    /// The same row everywhere.
    Row(&'a [f32]),
    /// What is there.
    Sum,
}

/// `c = start + left · b`. `left` `[m, k]`; `b` `[k, n]` and `c` `[m, n]`, where `n` is a multiple of the
/// vector length. Sums over `k` run in order.
pub(super) struct Product<'a> {
    pub(super) start: Start<'a>,
    pub(super) left: Left<'a>,
    pub(super) b: &'a [f32],
    pub(super) c: &'a mut [f32],
    /// `[m, k, n]`
    pub(super) shape: [usize; 3],
}

impl WithSimd for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let [m, k, n] = self.shape;
        let vectors = n / S::F32_LANES;
        let b = &S::as_simd_f32s(self.b).0[..k * vectors];
        let c = &mut S::as_mut_simd_f32s(self.c).0[..m * vectors];
        let start = match self.start {
            Start::Row(row) => row,
            Start::Zero | Start::Sum => &[],
        };
        let start = &S::as_simd_f32s(start).0;
        let is_sum = matches!(self.start, Start::Sum);
        let mut from = 0;
        while from < vectors {
            let panel = Panel { s, start, is_sum, left: self.left, b, vectors, k, from };
            // Rows and vectors of a tile are such that the sums, the vectors of `b` and a number
            // of `left` fill the 16 registers of AVX2.
            from += match vectors - from {
                1 => {
                    let at = panel.rows::<8, 1>(c, 0);
                    let at = panel.rows::<4, 1>(c, at);
                    panel.rows::<1, 1>(c, at);
                    1
                }
                2 => {
                    let at = panel.rows::<6, 2>(c, 0);
                    let at = panel.rows::<2, 2>(c, at);
                    panel.rows::<1, 2>(c, at);
                    2
                }
                3 | 5 | 6 => {
                    let at = panel.rows::<4, 3>(c, 0);
                    let at = panel.rows::<2, 3>(c, at);
                    panel.rows::<1, 3>(c, at);
                    3
                }
                _ => {
                    let at = panel.rows::<3, 4>(c, 0);
                    let at = panel.rows::<2, 4>(c, at);
                    panel.rows::<1, 4>(c, at);
                    4
                }
            };
        }
    }
}

/// Some vectors of every row of `b` and `c`, from vector `from` on.
#[derive(Clone, Copy)]
struct Panel<'a, S: Simd> {
    s: S,
    /// The row that sums start from; empty: 0.
    start: &'a [S::f32s],
    /// Sums start from what is there.
    is_sum: bool,
    left: Left<'a>,
    b: &'a [S::f32s],
    /// Vectors per row.
    vectors: usize,
    k: usize,
    from: usize,
}

impl<S: Simd> Panel<'_, S> {
    /// Tiles of R rows and V vectors, from row `at` on; returns the first row that is left.
    #[inline(always)]
    fn rows<const R: usize, const V: usize>(self, c: &mut [S::f32s], mut at: usize) -> usize {
        let rows = c.len() / self.vectors;
        while at + R <= rows {
            self.tile::<R, V>(&mut c[at * self.vectors..(at + R) * self.vectors], at);
            at += R;
        }
        at
    }

    #[inline(always)]
    fn tile<const R: usize, const V: usize>(self, c: &mut [S::f32s], at: usize) {
        let Panel { s, start, is_sum, left, b, vectors, k, from } = self;
        let mut sums = [[s.splat_f32s(0.0); V]; R];
        for (sum, c) in sums.iter_mut().zip(c.chunks_exact(vectors)) {
            if is_sum {
                sum.copy_from_slice(&c[from..from + V]);
            } else if !start.is_empty() {
                sum.copy_from_slice(&start[from..from + V]);
            }
        }
        match left {
            Left::Rows(a, stride) => {
                let a: [&[f32]; R] = std::array::from_fn(|r| &a[(at + r) * stride..][..k]);
                for (i, b) in b.chunks_exact(vectors).enumerate() {
                    // SAFETY: every row has k numbers, and `b` has k rows.
                    let a = std::array::from_fn(|r| unsafe { *a[r].get_unchecked(i) });
                    step(s, a, &b[from..from + V], &mut sums);
                }
            }
            Left::Columns(a, stride) => {
                for (a, b) in a.chunks(stride).zip(b.chunks_exact(vectors)) {
                    let a = &a[at..at + R];
                    step(s, std::array::from_fn(|r| a[r]), &b[from..from + V], &mut sums);
                }
            }
        }
        for (c, sum) in c.chunks_exact_mut(vectors).zip(&sums) {
            c[from..from + V].copy_from_slice(sum);
        }
    }
}

/// `sums += a bᵀ`. The smaller side is kept in registers, the other comes one at a time.
#[inline(always)]
fn step<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: [f32; R],
    b: &[S::f32s],
    sums: &mut [[S::f32s; V]; R],
) {
    if R < V {
        let a = a.map(|a| s.splat_f32s(a));
        for v in 0..V {
            for r in 0..R {
                sums[r][v] = s.mul_add_e_f32s(a[r], b[v], sums[r][v]);
            }
        }
    } else {
        for r in 0..R {
            let a = s.splat_f32s(a[r]);
            for v in 0..V {
                sums[r][v] = s.mul_add_e_f32s(a, b[v], sums[r][v]);
            }
        }
    }
}

/// `c += Σ rows of b`: `b` `[.., n]`, `c` `[n]`.
pub(super) struct AddRows<'a> {
    pub(super) b: &'a [f32],
    pub(super) c: &'a mut [f32],
}

impl WithSimd for AddRows<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.b.chunks_exact(self.c.len()) {
            for (c, b) in self.c.iter_mut().zip(row) {
                *c += *b;
            }
        }
    }
}
