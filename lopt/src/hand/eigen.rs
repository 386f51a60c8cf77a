//! Eigenvalues of small symmetric matrices, and inverse roots with their derivative.

use super::graph::{product, transposed};
use outerloop_core::nan;

/// Eigenvalues and eigenvectors of a symmetric matrix `[n, n]`; row i of the second is the vector of
/// value i. Householder's reduction to a tridiagonal matrix, then implicit QL; accurate to about
/// 1e-15 of the largest value. A non-finite matrix gives NaN.
///
/// Reference: Bowdler, Martin, Reinsch, Wilkinson 1968 (EISPACK `tred2`, `tql2`).
pub(crate) fn symmetric_eigen(a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    if !a.iter().all(|x| x.is_finite()) {
        return (vec![f64::NAN; n], vec![f64::NAN; n * n]);
    }
    if n == 0 {
        return (Vec::new(), Vec::new());
    }
    let mut v = a;
    let (mut d, mut e) = tridiagonalize(&mut v, n);
    ql(&mut d, &mut e, &mut v, n);
    (d, v)
}

/// Turns `v` into the orthogonal matrix (by rows) that makes it tridiagonal; returns the diagonal
/// and, from index 1 on, what is beside it.
fn tridiagonalize(v: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let at = |j: usize, k: usize| j * n + k;
    let mut d: Vec<f64> = (0..n).map(|j| v[at(j, n - 1)]).collect();
    let mut e = vec![0.0; n];
    for i in (1..n).rev() {
        let scale: f64 = d[..i].iter().map(|x| x.abs()).sum();
        let mut h = 0.0;
        if scale == 0.0 {
            e[i] = d[i - 1];
            for j in 0..i {
                d[j] = v[at(j, i - 1)];
                v[at(j, i)] = 0.0;
                v[at(i, j)] = 0.0;
            }
        } else {
            d[..i].iter_mut().for_each(|x| *x /= scale);
            h = d[..i].iter().map(|x| x * x).sum();
            let f = d[i - 1];
            let g = if f > 0.0 { -f64::sqrt(h) } else { f64::sqrt(h) };
            e[i] = scale * g;
            h -= f * g;
            d[i - 1] = f - g;
            e[..i].fill(0.0);
            for j in 0..i {
                let f = d[j];
                v[at(i, j)] = f;
                let mut g = e[j] + v[at(j, j)] * f;
                for k in j + 1..i {
                    g += v[at(j, k)] * d[k];
                    e[k] += v[at(j, k)] * f;
                }
                e[j] = g;
            }
            e[..i].iter_mut().for_each(|x| *x /= h);
            let f: f64 = e[..i].iter().zip(&d[..i]).map(|(e, d)| e * d).sum();
            let half = f / (h + h);
            e[..i].iter_mut().zip(&d[..i]).for_each(|(e, d)| *e -= half * d);
            for j in 0..i {
                let (f, g) = (d[j], e[j]);
                for k in j..i {
                    v[at(j, k)] -= f * e[k] + g * d[k];
                }
                d[j] = v[at(j, i - 1)];
                v[at(j, i)] = 0.0;
            }
        }
        d[i] = h;
    }
    // The product of the reflections.
    for i in 0..n - 1 {
        v[at(i, n - 1)] = v[at(i, i)];
        v[at(i, i)] = 1.0;
        let h = d[i + 1];
        if h != 0.0 {
            for k in 0..=i {
                d[k] = v[at(i + 1, k)] / h;
            }
            for j in 0..=i {
                let g: f64 = (0..=i).map(|k| v[at(i + 1, k)] * v[at(j, k)]).sum();
                for k in 0..=i {
                    v[at(j, k)] -= g * d[k];
                }
            }
        }
        v[at(i + 1, 0)..=at(i + 1, i)].fill(0.0);
    }
    for j in 0..n {
        d[j] = std::mem::take(&mut v[at(j, n - 1)]);
    }
    v[n * n - 1] = 1.0;
    (d, e)
}

/// Diagonalizes a tridiagonal matrix by implicit QL steps, turning the rows of `v` along.
fn ql(d: &mut [f64], e: &mut [f64], v: &mut [f64], n: usize) {
    e.rotate_left(1);
    e[n - 1] = 0.0;
    let (mut shift, mut largest) = (0.0, 0.0f64);
    for l in 0..n {
        largest = largest.max(d[l].abs() + e[l].abs());
        let small = f64::EPSILON * largest;
        let m = (l..n).find(|m| e[*m].abs() <= small).unwrap_or(n - 1);
        // A few steps are enough; the bound is for matrices that rounding keeps from converging.
        for _ in 0..if m > l { 60 } else { 0 } {
            let g = d[l];
            let p = (d[l + 1] - g) / (2.0 * e[l]);
            let r = p.hypot(1.0).copysign(p);
            d[l] = e[l] / (p + r);
            d[l + 1] = e[l] * (p + r);
            let next = d[l + 1];
            let h = g - d[l];
            d[l + 2..].iter_mut().for_each(|x| *x -= h);
            shift += h;
            let mut p = d[m];
            let (mut c, mut c2, mut c3) = (1.0, 1.0, 1.0);
            let (mut s, mut s2) = (0.0, 0.0);
            let beside = e[l + 1];
            for i in (l..m).rev() {
                (c3, c2, s2) = (c2, c, s);
                let (g, h) = (c * e[i], c * p);
                let r = p.hypot(e[i]);
                e[i + 1] = s * r;
                (s, c) = (e[i] / r, p / r);
                p = c * d[i] - s * g;
                d[i + 1] = h + s * (c * g + s * d[i]);
                let (low, high) = v[i * n..(i + 2) * n].split_at_mut(n);
                for (x, y) in low.iter_mut().zip(high) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
            let p = -s * s2 * c3 * beside * e[l] / next;
            e[l] = s * p;
            d[l] = c * p;
            if e[l].abs() <= small {
                break;
            }
        }
        d[l] += shift;
        e[l] = 0.0;
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
        self.values.iter().copied().fold(f64::MIN, nan::max)
    }

    /// The damped eigenvalues.
    fn damped(&self) -> Vec<f64> {
        let r = self.ridge * nan::max(self.largest(), 1e-6);
        self.values.iter().map(|x| x + r).collect()
    }

    /// `Vᵀ M V` with the vectors as rows of V: from their basis to the usual one.
    fn to_usual_basis(&self, m: &[f64]) -> Vec<f64> {
        let dims = [self.n; 3];
        let left = product(&transposed(&self.vectors, [self.n; 2]), m, dims);
        product(&left, &self.vectors, dims)
    }

    pub fn value(&self) -> Vec<f64> {
        let n = self.n;
        let mut m = vec![0.0; n * n];
        for (i, x) in self.damped().into_iter().enumerate() {
            m[i * n + i] = x.powf(-1.0 / self.order);
        }
        self.to_usual_basis(&m)
    }

    /// The adjoint of `a`, from that of the value: `Vᵀ (K ∘ V Ḡ Vᵀ) V` with the divided differences
    /// K of `x^(−1/order)`, and the ridge's share on the largest eigenvalue.
    pub fn vjp(&self, adjoint: &[f64]) -> Vec<f64> {
        let n = self.n;
        let x = self.damped();
        let power = -1.0 / self.order;
        let slope = |x: f64| power * x.powf(power - 1.0);
        let symmetric: Vec<f64> =
            (0..n * n).map(|i| (adjoint[i] + adjoint[i % n * n + i / n]) / 2.0).collect();
        let dims = [n; 3];
        let turned = product(&self.vectors, &symmetric, dims);
        let mut m = product(&turned, &transposed(&self.vectors, [n; 2]), dims);
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
        self.to_usual_basis(&m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    #[test]
    fn the_root_inverts_its_matrix() {
        for n in [1, 2, 5, 12, 40] {
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
                assert!((x - want).abs() < 1e-9, "n = {n}: {x} for {want}");
            }
        }
    }

    #[test]
    fn degenerate_matrices_have_their_eigenvalues() {
        let n = 6;
        let sorted = |a: Vec<f64>| {
            let (mut values, vectors) = symmetric_eigen(a, n);
            let gram = product(&vectors, &transposed(&vectors, [n; 2]), [n; 3]);
            assert!((0..n * n).all(|i| (gram[i] - f64::from(u8::from(i / n == i % n))).abs() < 1e-14));
            values.sort_by(f64::total_cmp);
            values
        };
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-13);
        assert!(close(&sorted(vec![0.0; n * n]), &[0.0; 6]));
        assert!(close(&sorted(vec![2.0; n * n]), &[0.0, 0.0, 0.0, 0.0, 0.0, 12.0]));
        let diagonal =
            |f: fn(usize) -> f64| (0..n * n).map(|i| if i / n == i % n { f(i / n) } else { 0.0 }).collect();
        assert!(close(&sorted(diagonal(|_| 1e-6)), &[1e-6; 6]));
        assert!(close(&sorted(diagonal(|i| i as f64)), &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn non_finite_matrices_end() {
        assert!(InverseRoot::new(&[f64::NAN, 0.0, 0.0, 1.0], 2, 2.0, 1e-6).value()[0].is_nan());
    }
}
