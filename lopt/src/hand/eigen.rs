//! Eigenvalues of small symmetric matrices, and inverse roots with their derivative.

/// Eigenvalues and eigenvectors (the columns of a row-major matrix `[n, n]`) of a symmetric matrix,
/// by Jacobi's cyclic rotations. A non-finite matrix gives non-finite results.
pub(crate) fn symmetric_eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let total: f64 = a.iter().map(|x| x * x).sum();
    if !total.is_finite() {
        return (vec![f64::NAN; n], vec![f64::NAN; n * n]);
    }
    // Convergence is quadratic: 30 sweeps are far more than are ever needed.
    for _ in 0..30 {
        let off: f64 = (0..n * n).filter(|i| i / n != i % n).map(|i| a[i] * a[i]).sum();
        if off <= 1e-32 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] != 0.0 {
                    rotate(&mut a, &mut v, n, p, q);
                }
            }
        }
    }
    ((0..n).map(|i| a[i * n + i]).collect(), v)
}

/// Zeroes `a[p, q]` by a rotation in the plane (p, q), `|angle| ≤ π/4`.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for i in 0..n {
        for m in [&mut *a, &mut *v] {
            let (x, y) = (m[i * n + p], m[i * n + q]);
            (m[i * n + p], m[i * n + q]) = (c * x - s * y, s * x + c * y);
        }
    }
    for i in 0..n {
        let (x, y) = (a[p * n + i], a[q * n + i]);
        (a[p * n + i], a[q * n + i]) = (c * x - s * y, s * x + c * y);
    }
}

/// `(A + r I)^(−1/order)` with `r = ridge · max(λ_max, 1e-6)`, of the symmetric part of `a`
/// `[n, n]`.
pub(crate) struct InverseRoot {
    n: usize,
    order: f64,
    ridge: f64,
    values: Vec<f64>,
    vectors: Vec<f64>,
}

impl InverseRoot {
    pub fn new(a: &[f64], n: usize, order: f64, ridge: f64) -> Self {
        let symmetric = (0..n * n).map(|i| (a[i] + a[i % n * n + i / n]) / 2.0).collect();
        let (values, vectors) = symmetric_eigen(symmetric, n);
        InverseRoot { n, order, ridge, values, vectors }
    }

    fn largest(&self) -> f64 {
        self.values.iter().fold(f64::MIN, |m, x| m.max(*x))
    }

    /// The damped eigenvalues.
    fn damped(&self) -> Vec<f64> {
        let r = self.ridge * self.largest().max(1e-6);
        self.values.iter().map(|x| x + r).collect()
    }

    /// `V M Vᵀ`, or `Vᵀ M V` if `inverse`.
    fn conjugate(&self, m: &[f64], inverse: bool) -> Vec<f64> {
        let n = self.n;
        let v = |i: usize, k: usize| self.vectors[if inverse { k * n + i } else { i * n + k }];
        let product = |f: &dyn Fn(usize, usize, usize) -> f64| -> Vec<f64> {
            (0..n * n).map(|ij| (0..n).map(|k| f(ij / n, ij % n, k)).sum()).collect()
        };
        let left = product(&|i, j, k| v(i, k) * m[k * n + j]);
        product(&|i, j, k| left[i * n + k] * v(j, k))
    }

    pub fn value(&self) -> Vec<f64> {
        let n = self.n;
        let mut m = vec![0.0; n * n];
        for (i, x) in self.damped().into_iter().enumerate() {
            m[i * n + i] = x.powf(-1.0 / self.order);
        }
        self.conjugate(&m, false)
    }

    /// The adjoint of `a`, from that of the value: `V (K ∘ Vᵀ Ḡ V) Vᵀ` with the divided differences
    /// K of `x^(−1/order)`, and the ridge's share on the largest eigenvalue.
    pub fn vjp(&self, adjoint: &[f64]) -> Vec<f64> {
        let n = self.n;
        let x = self.damped();
        let power = -1.0 / self.order;
        let slope = |x: f64| power * x.powf(power - 1.0);
        let symmetric: Vec<f64> =
            (0..n * n).map(|i| (adjoint[i] + adjoint[i % n * n + i / n]) / 2.0).collect();
        let mut m = self.conjugate(&symmetric, true);
        let of_ridge: f64 = (0..n).map(|i| slope(x[i]) * m[i * n + i]).sum();
        for i in 0..n {
            for j in 0..n {
                let gap = x[i] - x[j];
                let near = gap.abs() <= 1e-6 * (x[i].abs() + x[j].abs());
                m[i * n + j] *= match near {
                    true => slope((x[i] + x[j]) / 2.0),
                    false => (x[i].powf(power) - x[j].powf(power)) / gap,
                };
            }
        }
        if let Some(i) = (0..n).find(|i| self.values[*i] == self.largest() && self.values[*i] > 1e-6) {
            m[i * n + i] += self.ridge * of_ridge;
        }
        self.conjugate(&m, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    #[test]
    fn the_root_inverts_its_matrix() {
        for n in [1, 2, 5, 12] {
            let mut b = vec![0.0f64; n * n];
            Key::new(n as u64).fill_normal(&mut b);
            let dot = |i: usize, j: usize| (0..n).map(|k| b[i * n + k] * b[j * n + k]).sum::<f64>();
            let a: Vec<f64> = (0..n * n).map(|ij| dot(ij / n, ij % n)).collect();
            let root = InverseRoot::new(&a, n, 2.0, 1e-3);
            let (h, r) = (root.value(), 1e-3 * root.largest());
            // H (A + r I) H = I
            let times = |x: &[f64], y: &[f64]| -> Vec<f64> {
                (0..n * n).map(|ij| (0..n).map(|k| x[ij / n * n + k] * y[k * n + ij % n]).sum()).collect()
            };
            let mut damped = a.clone();
            (0..n).for_each(|i| damped[i * n + i] += r);
            for (i, x) in times(&times(&h, &damped), &h).into_iter().enumerate() {
                let want = if i / n == i % n { 1.0 } else { 0.0 };
                assert!((x - want).abs() < 1e-10, "n = {n}: {x} for {want}");
            }
        }
    }

    #[test]
    fn non_finite_matrices_end() {
        assert!(InverseRoot::new(&[f64::NAN, 0.0, 0.0, 1.0], 2, 2.0, 1e-6).value()[0].is_nan());
    }
}
