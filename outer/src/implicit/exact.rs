//! The solution itself.

use super::vector::products;
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Error, Float, Result};

/// The matrix written out column by column and factored in f64: the oracle of the other methods, and usable up to some
/// thousand weights.
///
/// A Cholesky factorization, which finds out whether the matrix is positive definite; if it is not, a factorization with
/// pivots, and [`Status::Indefinite`]: then `w` is no minimum, and the hypergradient is the derivative of nothing that
/// training does.
///
/// Cost: as many products as weights n, and `n³/3` operations. Memory: `8 n²` bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    /// The largest number of weights that is not refused; default 5000.
    pub max_dim: usize,
}

impl Default for Exact {
    fn default() -> Self {
        Exact { max_dim: 5000 }
    }
}

impl<E: Float> InverseHessian<E> for Exact {
    fn name(&self) -> String {
        "exact".into()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, dim: usize) -> Result<()> {
        if dim <= self.max_dim {
            return Ok(());
        }
        let why =
            format!("its matrix of {dim} rows is larger than {} rows, see `Exact::max_dim`", self.max_dim);
        Err(Error::invalid("exact solve", why))
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], _: Option<Vec<E>>) -> Solution<E> {
        let n = b.len();
        let mut matrix = vec![0.0; n * n];
        let unit = |j: usize, v: &mut [E]| {
            v.fill(E::of(0.0));
            v[j] = E::of(1.0);
        };
        products(a, n, unit, |j, _, column| {
            column.iter().enumerate().for_each(|(i, x)| matrix[i * n + j] = x.f64());
        });
        let mut q: Vec<f64> = b.iter().map(|b| b.f64()).collect();
        let status = match cholesky(matrix.clone(), &mut q) {
            true => Status::Converged,
            false if pivoted(matrix, &mut q) => Status::Indefinite(n),
            false => {
                q.fill(0.0);
                Status::NonFinite
            }
        };
        let q = q.into_iter().map(E::of).collect();
        Solution { q, products: n, history: Vec::new(), status }
    }
}

/// Solves a symmetric positive definite system in place; `false`, with `x` as it was, if it is neither.
pub(super) fn cholesky(mut a: Vec<f64>, x: &mut [f64]) -> bool {
    let n = x.len();
    let asymmetry = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
    let scale = a.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    if asymmetry.into_iter().any(|(i, j)| (a[i * n + j] - a[j * n + i]).abs() > 1e-4 * scale) {
        return false;
    }
    for i in 0..n {
        for j in 0..=i {
            let (upper, lower) = a.split_at(i * n);
            let row_j = if i == j { lower } else { &upper[j * n..] };
            let dot: f64 = lower[..j].iter().zip(&row_j[..j]).map(|(x, y)| x * y).sum();
            // Rounding leaves the products a little asymmetric: their mean.
            let mean = if i == j { lower[i] } else { 0.5 * (lower[j] + upper[j * n + i]) };
            let rest = mean - dot;
            if i == j {
                if !(rest > 0.0 && rest.is_finite()) {
                    return false;
                }
                a[i * n + i] = rest.sqrt();
            } else {
                a[i * n + j] = rest / a[j * n + j];
            }
        }
    }
    for i in 0..n {
        let dot: f64 = (0..i).map(|j| a[i * n + j] * x[j]).sum();
        x[i] = (x[i] - dot) / a[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| a[j * n + i] * x[j]).sum();
        x[i] = (x[i] - dot) / a[i * n + i];
    }
    true
}

/// Solves any invertible system in place, by Gauss with row pivots; `false` if it is singular or not finite.
pub(super) fn pivoted(mut a: Vec<f64>, x: &mut [f64]) -> bool {
    let n = x.len();
    for k in 0..n {
        let pivot = (k..n).max_by(|&i, &j| a[i * n + k].abs().total_cmp(&a[j * n + k].abs()));
        let Some(pivot) = pivot.filter(|&p| a[p * n + k] != 0.0 && a[p * n + k].is_finite()) else {
            return false;
        };
        if pivot != k {
            x.swap(pivot, k);
            (0..n).for_each(|j| a.swap(pivot * n + j, k * n + j));
        }
        let (top, below) = a.split_at_mut((k + 1) * n);
        let top = &top[k * n..];
        for (i, row) in below.chunks_exact_mut(n).enumerate() {
            let factor = row[k] / top[k];
            if factor != 0.0 {
                row[k..].iter_mut().zip(&top[k..]).for_each(|(r, t)| *r -= factor * t);
                x[k + 1 + i] -= factor * x[k];
            }
        }
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|j| a[i * n + j] * x[j]).sum();
        x[i] = (x[i] - dot) / a[i * n + i];
    }
    x.iter().all(|x| x.is_finite())
}
