//! A diagonal matrix plus a few directions.

use super::exact::{cholesky, pivoted};
use super::vector::{dot, norm, products, sum_by};
use super::{InverseHessian, LinearOperator, Solution, Status};
use outerloop_core::{Error, Float, Interval, Key, Result};

/// Woodbury's formula: with few examples and a decay per weight, the curvature is a diagonal `D` plus a matrix `K` of low
/// rank, and the system is as large as that rank.
///
/// `K = A − D` is found from its products with r random vectors Ω: `Y = K Ω`, `K ≈ Y (Ωᵀ Y)⁻¹ Yᵀ` (Nyström), and then
///
/// `q = D⁻¹ b − D⁻¹ Y (Ωᵀ Y + Yᵀ D⁻¹ Y)⁻¹ Yᵀ D⁻¹ b`.
///
/// Exact up to rounding if the rank of `K` is r or less: that of the Gauss-Newton matrix of n examples with C outputs is
/// at most `n C` (`n (C − 1)` of a softmax), and for models linear in `w` that matrix is the Hessian. With a smaller r
/// it is biased: what the random vectors miss counts as if only `D` were there. For `K` not semidefinite (the Hessian of
/// a network) use [`MinRes`](super::MinRes). One right-hand side alone has
/// [conjugate gradients preconditioned by `D`](super::Preconditioner::Decay) at its solution after r + 1 products, too;
/// this one's error does not depend on their rounding. f32 products limit it to about `1e-7 ‖K‖/min D` relative.
///
/// Needs [`LinearOperator::diagonal`]. Cost: r products, `2 r² P` operations, a Cholesky factorization of r rows. Memory:
/// r vectors of P weights, and 16 more while `K` is multiplied.
///
/// Reference: Woodbury 1950; Williams, Seeger 2000 (Nyström).
#[derive(Clone, Debug, PartialEq)]
pub struct Woodbury {
    /// r, at most the number of weights; default 100.
    pub rank: usize,
    /// Of the random vectors.
    pub key: Key,
}

impl Default for Woodbury {
    fn default() -> Self {
        Woodbury { rank: 100, key: Key::new(0) }
    }
}

impl Woodbury {
    fn probe<E: Float>(&self, i: usize, out: &mut [E]) {
        self.key.fold_in(i as u64).fill_normal(out);
    }
}

impl<E: Float> InverseHessian<E> for Woodbury {
    fn name(&self) -> String {
        format!("woodbury {}", self.rank)
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
    fn validate(&self, dim: usize) -> Result<()> {
        Interval::COUNT.check("woodbury: rank", self.rank as f64)?;
        if self.rank > dim {
            return Err(Error::mismatch("woodbury: rank", 1..=dim, self.rank));
        }
        Ok(())
    }
    fn needs_diagonal(&self) -> bool {
        true
    }
    fn solve(&self, a: &mut dyn LinearOperator<E>, b: &[E], _: Option<Vec<E>>) -> Solution<E> {
        let (n, r) = (b.len(), self.rank);
        let zero = || vec![E::of(0.0); n];
        let failed =
            |products| Solution { q: zero(), products, history: Vec::new(), status: Status::NonFinite };
        let Some(d) = a.diagonal() else { return failed(0) };
        let mut y: Vec<Vec<E>> = Vec::with_capacity(r);
        products(
            a,
            r,
            |i, probe| self.probe(i, probe),
            |_, probe, column| {
                let parts = column.iter().zip(probe.iter().zip(&d));
                y.push(parts.map(|(y, (z, d))| *y - E::of(z.f64() * d)).collect());
            },
        );
        // M = Ωᵀ Y + Yᵀ D⁻¹ Y
        let mut m = vec![0.0; r * r];
        let mut probe = zero();
        let mut scaled = vec![0.0; n];
        for i in 0..r {
            self.probe(i, &mut probe);
            let by_d = scaled.iter_mut().zip(y[i].iter().zip(&d));
            by_d.for_each(|(s, (y, d))| *s = y.f64() / d);
            for j in 0..r {
                m[i * r + j] += 0.5 * dot(&probe, &y[j]);
                m[j * r + i] += 0.5 * dot(&probe, &y[j]);
                m[i * r + j] += sum_by(&scaled, &y[j], |s, y| s * y.f64());
            }
        }
        // Where the rank is below r, the columns of Y depend on each other, and any solution will do.
        let ridge =
            (0..r).map(|i| m[i * r + i]).fold(0.0, f64::max) * if size_of::<E>() == 4 { 1e-9 } else { 1e-14 };
        (0..r).for_each(|i| m[i * r + i] += ridge);
        let mut x: Vec<f64> = y.iter().map(|y| sum_by3(y, b, &d)).collect();
        let is_solved = ridge == 0.0 || cholesky(m.clone(), &mut x) || pivoted(m, &mut x);
        if !is_solved || !ridge.is_finite() {
            return failed(r);
        }
        let mut rest: Vec<f64> = b.iter().map(|b| b.f64()).collect();
        for (y, x) in y.iter().zip(&x) {
            rest.iter_mut().zip(y).for_each(|(s, y)| *s -= x * y.f64());
        }
        let q: Vec<E> = rest.iter().zip(&d).map(|(s, d)| E::of(s / d)).collect();
        match norm(&q).is_finite() {
            true => Solution { q, products: r, history: Vec::new(), status: Status::Converged },
            false => failed(r),
        }
    }
}

/// `Σ aᵢ bᵢ / dᵢ`.
fn sum_by3<E: Float>(a: &[E], b: &[E], d: &[f64]) -> f64 {
    a.iter().zip(b).zip(d).map(|((a, b), d)| a.f64() * b.f64() / d).sum()
}
