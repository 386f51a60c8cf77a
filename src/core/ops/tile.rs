//! Products of small row-major matrices, in register tiles.

use pulp::{Simd, WithSimd};

/// A matrix that is read number by number.
#[derive(Clone, Copy)]
pub(super) enum Left<'a> {
    /// `[m, k]`
    Rows(Matrix<'a>),
    /// The transpose of `[k, m]`.
    Columns(Matrix<'a>),
}

/// Rows of a matrix.
#[derive(Clone, Copy)]
pub(super) enum Matrix<'a> {
    /// One behind the other, this many numbers apart.
    Strided(&'a [f32], usize),
    /// Anywhere.
    Listed(&'a [&'a [f32]]),
}

impl<'a> Matrix<'a> {
    #[inline(always)]
    fn row(self, r: usize) -> &'a [f32] {
        match self {
            Matrix::Strided(a, stride) => &a[r * stride..],
            Matrix::Listed(rows) => rows[r],
        }
    }
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

/// `c = (start + left · b) ⊙ times`. `left` `[m, k]`; `b` `[k, n]` and `c` `[m, n]`, where `n` is a multiple of the
/// vector length. Sums over `k` run in order.
pub(super) struct Product<'a> {
    pub(super) start: Start<'a>,
    pub(super) left: Left<'a>,
    pub(super) b: &'a [f32],
    pub(super) c: &'a mut [f32],
    /// `[m, k, n]`
    pub(super) shape: [usize; 3],
    /// `[m, n]`; empty: 1.
    pub(super) times: &'a [f32],
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
        let times = S::as_simd_f32s(self.times).0;
        let mut from = 0;
        while from < vectors {
            let panel = Panel { s, start, is_sum, left: self.left, b, vectors, k, from, times };
            // Rows and vectors of a tile are such that the sums, the vectors of `b` and a number
            // of `left` fill the 16 registers of AVX2. Fewer than eight sums would wait for each
            // other, so that 4 = 2 + 2 rows beat 3 + 1.
            from += match vectors - from {
                1 => {
                    let at = panel.rows::<8, 1>(c, 0, 0);
                    let at = panel.rows::<4, 1>(c, at, 0);
                    panel.rows::<1, 1>(c, at, 0);
                    1
                }
                2 => {
                    let at = panel.rows::<6, 2>(c, 0, 8);
                    let at = panel.rows::<4, 2>(c, at, 0);
                    let at = panel.rows::<2, 2>(c, at, 0);
                    panel.rows::<1, 2>(c, at, 0);
                    2
                }
                3 | 5 | 6 => {
                    let at = panel.rows::<4, 3>(c, 0, 0);
                    let at = panel.rows::<2, 3>(c, at, 0);
                    panel.rows::<1, 3>(c, at, 0);
                    3
                }
                _ => {
                    let at = panel.rows::<3, 4>(c, 0, 4);
                    let at = panel.rows::<2, 4>(c, at, 0);
                    panel.rows::<1, 4>(c, at, 0);
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
    /// What the sums are multiplied with; empty: nothing.
    times: &'a [S::f32s],
}

impl<S: Simd> Panel<'_, S> {
    /// Tiles of R rows and V vectors, from row `at` on, until fewer than R or just `spare` rows are
    /// left; returns the first of these.
    #[inline(always)]
    fn rows<const R: usize, const V: usize>(self, c: &mut [S::f32s], mut at: usize, spare: usize) -> usize {
        let rows = c.len() / self.vectors;
        while at + R <= rows && at + spare != rows {
            self.tile::<R, V>(&mut c[at * self.vectors..(at + R) * self.vectors], at);
            at += R;
        }
        at
    }

    #[inline(always)]
    fn tile<const R: usize, const V: usize>(self, c: &mut [S::f32s], at: usize) {
        let Panel { s, start, is_sum, left, b, vectors, k, from, times } = self;
        let mut sums = [[s.splat_f32s(0.0); V]; R];
        for (sum, c) in sums.iter_mut().zip(c.chunks_exact(vectors)) {
            if is_sum {
                sum.copy_from_slice(&c[from..from + V]);
            } else if !start.is_empty() {
                sum.copy_from_slice(&start[from..from + V]);
            }
        }
        match left {
            Left::Rows(a) => {
                let mut rows: [&[f32]; R] = [&[]; R];
                for (r, row) in rows.iter_mut().enumerate() {
                    *row = &a.row(at + r)[..k];
                }
                for (i, b) in b.chunks_exact(vectors).enumerate() {
                    let mut a = [0.0; R];
                    for (a, row) in a.iter_mut().zip(&rows) {
                        // SAFETY: every row has k numbers, and `b` has k rows.
                        *a = unsafe { *row.get_unchecked(i) };
                    }
                    step(s, &a, &b[from..from + V], &mut sums);
                }
            }
            Left::Columns(Matrix::Strided(a, stride)) => {
                for (a, b) in a.chunks_exact(stride).zip(b.chunks_exact(vectors)) {
                    let a = a[at..].first_chunk().expect("R rows from `at` on");
                    step(s, a, &b[from..from + V], &mut sums);
                }
            }
            Left::Columns(Matrix::Listed(rows)) => {
                for (a, b) in rows.iter().zip(b.chunks_exact(vectors)) {
                    let a = a[at..].first_chunk().expect("R rows from `at` on");
                    step(s, a, &b[from..from + V], &mut sums);
                }
            }
        }
        if !times.is_empty() {
            for (sum, times) in sums.iter_mut().zip(times[at * vectors..].chunks_exact(vectors)) {
                for (sum, times) in sum.iter_mut().zip(&times[from..from + V]) {
                    *sum = s.mul_f32s(*sum, *times);
                }
            }
        }
        for (c, sum) in c.chunks_exact_mut(vectors).zip(&sums) {
            c[from..from + V].copy_from_slice(sum);
        }
    }
}

/// `sums += a bᵀ`. The smaller side is kept in registers, the other comes one at a time. Loops instead of closures: where
/// those are not inlined they are not compiled for the path's instructions.
#[inline(always)]
fn step<S: Simd, const R: usize, const V: usize>(
    s: S,
    a: &[f32; R],
    b: &[S::f32s],
    sums: &mut [[S::f32s; V]; R],
) {
    if R < V {
        let mut splat = [s.splat_f32s(0.0); R];
        for r in 0..R {
            splat[r] = s.splat_f32s(a[r]);
        }
        for v in 0..V {
            for r in 0..R {
                sums[r][v] = s.mul_add_e_f32s(splat[r], b[v], sums[r][v]);
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

/// `c += Σ rows of b`: `b` `[.., n]`, `c` `[n]`, where `n` is a multiple of the vector length.
pub(super) struct AddRows<'a> {
    pub(super) b: &'a [f32],
    pub(super) c: &'a mut [f32],
}

impl WithSimd for AddRows<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let (b, c) = (S::as_simd_f32s(self.b).0, S::as_mut_simd_f32s(self.c).0);
        let vectors = c.len();
        let mut from = 0;
        while from < vectors {
            from += match vectors - from {
                1 => add_rows::<S, 1>(s, b, c, from),
                2 | 3 => add_rows::<S, 2>(s, b, c, from),
                _ => add_rows::<S, 4>(s, b, c, from),
            };
        }
    }
}

/// [`AddRows`] for V vectors of each row, in registers; returns V.
#[inline(always)]
fn add_rows<S: Simd, const V: usize>(s: S, b: &[S::f32s], c: &mut [S::f32s], from: usize) -> usize {
    let mut sums = [s.splat_f32s(0.0); V];
    sums.copy_from_slice(&c[from..from + V]);
    for row in b.chunks_exact(c.len()) {
        for (sum, b) in sums.iter_mut().zip(&row[from..from + V]) {
            *sum = s.add_f32s(*sum, *b);
        }
    }
    c[from..from + V].copy_from_slice(&sums);
    V
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Path;
    use crate::Key;

    fn draw(n: usize, name: &str) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Key::new(1).named(name).fill_normal(&mut x);
        x
    }

    /// Whole numbers: their products and sums are exact, whatever the order.
    fn whole(n: usize, name: &str) -> Vec<f32> {
        draw(n, name).iter().map(|x| (4.0 * x).round()).collect()
    }

    #[test]
    fn products_of_every_shape_are_exact_on_whole_numbers() {
        for path in Path::available() {
            let shapes = [1, 2, 3, 4, 5, 8, 14, 33].into_iter().flat_map(|m| (1..8).map(move |v| (m, v)));
            for (m, vectors) in shapes {
                let (k, n) = (m % 6, vectors * path.lanes());
                let (left, b) = (whole(m * k, "left"), whole(k * n, "b"));
                let (row, c, times) = (whole(n, "row"), whole(m * n, "c"), whole(m * n, "times"));
                let transposed: Vec<f32> = (0..m * k).map(|i| left[i % m * k + i / m]).collect();
                let lists: [Vec<&[f32]>; 2] = [
                    (0..m).map(|r| &left[r * k..][..k]).collect(),
                    (0..k).map(|r| &transposed[r * m..][..m]).collect(),
                ];
                let lefts = [
                    Left::Rows(Matrix::Strided(&left, k)),
                    Left::Rows(Matrix::Listed(&lists[0])),
                    Left::Columns(Matrix::Strided(&transposed, m)),
                    Left::Columns(Matrix::Listed(&lists[1])),
                ];
                for (start, times) in [(Start::Zero, &[][..]), (Start::Row(&row), &times), (Start::Sum, &[])]
                {
                    let want: Vec<f32> = (0..m * n)
                        .map(|i| {
                            let from = match start {
                                Start::Zero => 0.0,
                                Start::Row(row) => row[i % n],
                                Start::Sum => c[i],
                            };
                            let product: f32 = (0..k).map(|j| left[i / n * k + j] * b[j * n + i % n]).sum();
                            (from + product) * times.get(i).unwrap_or(&1.0)
                        })
                        .collect();
                    for left in lefts {
                        let mut got = c.clone();
                        path.run(Product { start, left, b: &b, c: &mut got, shape: [m, k, n], times });
                        assert_eq!(got, want, "{} {m} {k} {n}", path.name());
                    }
                }
            }
        }
    }

    #[test]
    fn rows_are_added_in_order() {
        for path in Path::available() {
            for vectors in 1..8 {
                let n = vectors * path.lanes();
                let (b, c) = (draw(5 * n, "b"), draw(n, "c"));
                let mut got = c.clone();
                path.run(AddRows { b: &b, c: &mut got });
                let want: Vec<f32> =
                    (0..n).map(|i| b[i..].iter().step_by(n).fold(c[i], |c, b| c + b)).collect();
                assert_eq!(got, want);
            }
        }
    }
}
