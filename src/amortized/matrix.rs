//! Small dense matrices, for oracles: Riccati equations, Kalman filters, closed forms.

use outerloop_core::Float;

/// A small row-major matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix<E = f64> {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The elements, row by row.
    pub data: Vec<E>,
}

impl<E: Float> Matrix<E> {
    /// A matrix of the given elements, row by row.
    ///
    /// # Panics
    /// If there are not `rows * cols` of them.
    #[track_caller]
    pub fn new(rows: usize, cols: usize, data: Vec<E>) -> Self {
        assert_eq!(rows * cols, data.len(), "matrix: number of elements");
        Matrix { rows, cols, data }
    }
    /// All zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Matrix { rows, cols, data: vec![E::of(0.0); rows * cols] }
    }
    /// The identity.
    pub fn identity(n: usize) -> Self {
        Self::diagonal(&vec![E::of(1.0); n])
    }
    /// A diagonal matrix.
    pub fn diagonal(d: &[E]) -> Self {
        let mut m = Self::zeros(d.len(), d.len());
        d.iter().enumerate().for_each(|(i, x)| m.data[i * d.len() + i] = *x);
        m
    }
    /// A column.
    pub fn column(v: &[E]) -> Self {
        Matrix::new(v.len(), 1, v.to_vec())
    }
    /// Element in row `i`, column `j`.
    pub fn at(&self, i: usize, j: usize) -> E {
        self.data[i * self.cols + j]
    }
    /// The transpose.
    #[must_use]
    pub fn t(&self) -> Self {
        let data = (0..self.cols).flat_map(|j| (0..self.rows).map(move |i| self.at(i, j))).collect();
        Matrix::new(self.cols, self.rows, data)
    }
    /// The product with another matrix.
    #[track_caller]
    pub fn mul(&self, b: &Self) -> Self {
        assert_eq!(self.cols, b.rows, "matrix product: inner dimensions");
        let mut y = Self::zeros(self.rows, b.cols);
        for i in 0..self.rows {
            for j in 0..b.cols {
                y.data[i * b.cols + j] = (0..self.cols).map(|k| self.at(i, k) * b.at(k, j)).sum();
            }
        }
        y
    }
    /// The product with a vector.
    #[track_caller]
    pub fn apply(&self, x: &[E]) -> Vec<E> {
        assert_eq!(self.cols, x.len(), "matrix times vector: dimensions");
        (0..self.rows).map(|i| dot(&self.data[i * self.cols..][..self.cols], x)).collect()
    }
    /// The sum with `c` times another matrix.
    #[must_use]
    pub fn plus(&self, c: f64, b: &Self) -> Self {
        let data = self.data.iter().zip(&b.data).map(|(a, b)| *a + E::of(c) * *b).collect();
        Matrix { data, ..*self }
    }
    /// Times a number.
    #[must_use]
    pub fn scaled(&self, c: f64) -> Self {
        Matrix { data: self.data.iter().map(|a| E::of(c) * *a).collect(), ..*self }
    }
    /// `a b aᵀ` with this matrix as `b`.
    #[must_use]
    pub fn congruent(&self, a: &Self) -> Self {
        a.mul(self).mul(&a.t())
    }
    /// The mean of the matrix and its transpose.
    #[must_use]
    pub fn symmetric(&self) -> Self {
        self.plus(1.0, &self.t()).scaled(0.5)
    }
    /// The sum of the diagonal.
    pub fn trace(&self) -> E {
        (0..self.rows).map(|i| self.at(i, i)).sum()
    }
    /// `xᵀ A y`.
    pub fn form(&self, x: &[E], y: &[E]) -> E {
        dot(x, &self.apply(y))
    }

    /// The solution of `A X = b`, and `ln |det A|`, by elimination with partial pivoting.
    #[track_caller]
    pub fn solve(&self, b: &Self) -> (Self, E) {
        assert_eq!([self.rows, self.rows], [self.cols, b.rows], "solve: a square matrix and as many rows");
        let (n, m) = (self.rows, b.cols);
        let (mut a, mut x, mut log_det) = (self.clone(), b.clone(), E::of(0.0));
        for k in 0..n {
            let size = |i: usize, a: &Self| a.at(i, k).abs();
            let pivot = (k..n).fold(k, |best, i| if size(i, &a) > size(best, &a) { i } else { best });
            for j in 0..n {
                a.data.swap(k * n + j, pivot * n + j);
            }
            for j in 0..m {
                x.data.swap(k * m + j, pivot * m + j);
            }
            log_det += a.at(k, k).abs().ln();
            for i in k + 1..n {
                let f = a.at(i, k) / a.at(k, k);
                for j in k..n {
                    a.data[i * n + j] = a.at(i, j) - f * a.at(k, j);
                }
                for j in 0..m {
                    x.data[i * m + j] = x.at(i, j) - f * x.at(k, j);
                }
            }
        }
        for i in (0..n).rev() {
            for j in 0..m {
                let known: E = (i + 1..n).map(|k| a.at(i, k) * x.at(k, j)).sum();
                x.data[i * m + j] = (x.at(i, j) - known) / a.at(i, i);
            }
        }
        (x, log_det)
    }
    /// The inverse.
    #[must_use]
    pub fn inverse(&self) -> Self {
        self.solve(&Self::identity(self.rows)).0
    }
    /// `ln |det A|`.
    pub fn log_det(&self) -> E {
        self.solve(&Self::zeros(self.rows, 0)).1
    }
    /// The lower triangular `L` of a positive definite `A = L Lᵀ`.
    pub fn cholesky(&self) -> Self {
        let n = self.rows;
        let mut l = Self::zeros(n, n);
        for i in 0..n {
            for j in 0..=i {
                let known: E = (0..j).map(|k| l.at(i, k) * l.at(j, k)).sum();
                let rest = self.at(i, j) - known;
                l.data[i * n + j] = if i == j { rest.sqrt() } else { rest / l.at(j, j) };
            }
        }
        l
    }
    /// The largest absolute eigenvalue, by Gelfand's formula `‖A^k‖^(1/k)` with k = 2^40, squaring.
    pub fn spectral_radius(&self) -> f64 {
        let (mut a, mut log, mut k) = (self.clone(), 0.0, 1.0);
        for _ in 0..40 {
            let norm = a.data.iter().map(|x| x.f64() * x.f64()).sum::<f64>().sqrt();
            if norm == 0.0 {
                return 0.0;
            }
            log += norm.ln() / k;
            k *= 2.0;
            let unit = a.scaled(1.0 / norm);
            a = unit.mul(&unit);
        }
        log.exp()
    }
}

/// The inner product.
pub fn dot<E: Float>(a: &[E], b: &[E]) -> E {
    a.iter().zip(b).map(|(a, b)| *a * *b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_and_factors() {
        let a: Matrix<f64> = Matrix::new(3, 3, vec![0.0, 2.0, 1.0, 2.0, 1.0, -1.0, 1.0, -1.0, 3.0]);
        let x = a.solve(&Matrix::column(&[5.0, 1.0, 8.0])).0;
        let back = a.apply(&x.data);
        assert!(back.iter().zip([5.0f64, 1.0, 8.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{back:?}");
        // det = 0(3−1) − 2(6+1) + 1(−2−1) = −17
        assert!((a.log_det() - 17f64.ln()).abs() < 1e-12);
        let spd = Matrix::identity(3).congruent(&a).plus(1.0, &Matrix::identity(3));
        let l = spd.cholesky();
        let gap: Matrix<f64> = l.mul(&l.t()).plus(-1.0, &spd);
        assert!(gap.data.iter().all(|x| x.abs() < 1e-12));
        assert!((2.0 * (0..3).map(|i| l.at(i, i).ln()).sum::<f64>() - spd.log_det()).abs() < 1e-12);
    }

    #[test]
    fn the_spectral_radius_of_a_scaled_rotation_is_its_scale() {
        let (s, c): (f64, f64) = 0.7f64.sin_cos();
        let a = Matrix::new(2, 2, vec![c, -s, s, c]).scaled(0.8);
        assert!((a.spectral_radius() - 0.8).abs() < 1e-12);
        assert!((Matrix::new(2, 2, vec![0.9, 5.0, 0.0, -0.3]).spectral_radius() - 0.9).abs() < 1e-9);
    }
}
