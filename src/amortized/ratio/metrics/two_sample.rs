//! Are two sets of samples from one distribution?
//!
//! A classifier two-sample test (C2ST) is the held-out accuracy of a classifier between them: 0.5 if it cannot
//! tell. Both sets are standardized with mean and deviation (of `n − 1`) of the first; the accuracy is averaged
//! over folds. At a finite number of samples it scatters around 0.5, and approaches the Bayes accuracy from
//! below.
//! Reference: Lopez-Paz, Oquab 2017, arXiv:1610.06545.

use outerloop_core::{Error, Result};

/// Two sets of points with their folds, standardized.
#[derive(Clone, Debug)]
pub struct TwoSample {
    /// First the one set, then the other, `[n, dim]`.
    pub(super) rows: Vec<f64>,
    /// `false` for the first set.
    pub(super) labels: Vec<bool>,
    pub(super) folds: Vec<usize>,
    pub(super) dim: usize,
}

/// Accuracies of a test.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Per fold.
    pub folds: Vec<f64>,
    /// Their mean.
    pub mean: f64,
}

impl Accuracy {
    pub(super) fn new(folds: Vec<f64>) -> Self {
        let mean = folds.iter().sum::<f64>() / folds.len() as f64;
        Accuracy { folds, mean }
    }
}

impl TwoSample {
    /// Standardizes `x` and `y`, both `[.., dim]`. `folds`: number of the fold of each point of `x`, then of `y`.
    ///
    /// # Errors
    /// Sets with fewer than two points, sizes that do not fit, numbers that are not finite.
    pub fn new(x: &[f64], y: &[f64], dim: usize, folds: Vec<usize>) -> Result<Self> {
        let n = x.len() / dim.max(1);
        if dim == 0 || x.len() % dim != 0 || y.len() % dim != 0 || n < 2 || y.len() < 2 * dim {
            let what = "two-sample test: numbers in both sets";
            return Err(Error::mismatch(what, format!("at least 2 rows of {dim}"), (x.len(), y.len())));
        }
        if folds.len() != n + y.len() / dim {
            return Err(Error::mismatch("two-sample test: folds", n + y.len() / dim, folds.len()));
        }
        if let Some(bad) = x.iter().chain(y).find(|v| !v.is_finite()) {
            return Err(Error::invalid("two-sample test", format!("expected finite numbers, got {bad}")));
        }
        let mut rows: Vec<f64> = x.iter().chain(y).copied().collect();
        for c in 0..dim {
            let column = || x.iter().skip(c).step_by(dim);
            let mean = column().sum::<f64>() / n as f64;
            let var = column().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            let std = if var > 0.0 { var.sqrt() } else { 1.0 };
            rows.iter_mut().skip(c).step_by(dim).for_each(|v| *v = (*v - mean) / std);
        }
        let labels = (0..folds.len()).map(|i| i >= n).collect();
        Ok(TwoSample { rows, labels, folds, dim })
    }

    pub(super) fn row(&self, i: usize) -> &[f64] {
        &self.rows[i * self.dim..][..self.dim]
    }
    pub(super) fn num_folds(&self) -> usize {
        self.folds.iter().max().map_or(0, |f| f + 1)
    }
    /// The points inside a fold, or outside of it.
    pub(super) fn members(&self, fold: usize, is_inside: bool) -> Vec<usize> {
        (0..self.folds.len()).filter(|&i| (self.folds[i] == fold) == is_inside).collect()
    }
    /// The share of a fold's points that `predict` labels right.
    pub(super) fn score(&self, fold: usize, mut predict: impl FnMut(usize) -> bool) -> f64 {
        let inside = self.members(fold, true);
        let right = inside.iter().filter(|&&i| predict(i) == self.labels[i]).count();
        right as f64 / inside.len() as f64
    }

    /// C2ST by the majority of the `k` nearest points of the other folds; `k` odd.
    pub fn nearest_neighbours(&self, k: usize) -> Accuracy {
        let folds = (0..self.num_folds()).map(|fold| {
            let train = self.members(fold, false);
            self.score(fold, |i| {
                let distance = |j: usize| -> f64 {
                    self.row(i).iter().zip(self.row(j)).map(|(a, b)| (a - b) * (a - b)).sum()
                };
                let mut near: Vec<(f64, bool)> =
                    train.iter().map(|&j| (distance(j), self.labels[j])).collect();
                let k = k.min(near.len());
                near.select_nth_unstable_by(k - 1, |a, b| a.0.total_cmp(&b.0));
                2 * near[..k].iter().filter(|n| n.1).count() > k
            })
        });
        Accuracy::new(folds.collect())
    }

    /// C2ST by logistic regression, minimizing `Σ log loss + ½ |w|²` with a free intercept.
    pub fn logistic(&self) -> LogisticTest {
        let mut test = LogisticTest {
            accuracy: Accuracy { folds: Vec::new(), mean: 0.0 },
            weights: Vec::new(),
            logits: vec![0.0; self.folds.len()],
        };
        let mut accuracies = Vec::new();
        for fold in 0..self.num_folds() {
            let w = self.regression(&self.members(fold, false));
            let logit = |i: usize| affine(self.row(i), &w);
            accuracies.push(self.score(fold, |i| logit(i) > 0.0));
            for i in self.members(fold, true) {
                test.logits[i] = logit(i);
            }
            test.weights.push(w);
        }
        test.accuracy = Accuracy::new(accuracies);
        test
    }

    /// Weights, intercept last, by Newton's method.
    fn regression(&self, train: &[usize]) -> Vec<f64> {
        let d = self.dim + 1;
        let mut w = vec![0.0; d];
        for _ in 0..100 {
            let (mut grad, mut hessian) = (w.clone(), vec![0.0; d * d]);
            grad[d - 1] = 0.0;
            (0..d - 1).for_each(|i| hessian[i * d + i] = 1.0);
            for &i in train {
                let p = 1.0 / (1.0 + (-affine(self.row(i), &w)).exp());
                let x = |k: usize| if k + 1 == d { 1.0 } else { self.row(i)[k] };
                let error = p - f64::from(u8::from(self.labels[i]));
                for a in 0..d {
                    grad[a] += error * x(a);
                    for b in 0..d {
                        hessian[a * d + b] += p * (1.0 - p) * x(a) * x(b);
                    }
                }
            }
            let step = solve(hessian, grad);
            w.iter_mut().zip(&step).for_each(|(w, s)| *w -= s);
            if step.iter().all(|s| s.abs() < 1e-12) {
                break;
            }
        }
        w
    }
}

/// A test by logistic regression.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticTest {
    /// Per fold and mean.
    pub accuracy: Accuracy,
    /// Per fold, intercept last.
    pub weights: Vec<Vec<f64>>,
    /// Of every point, by the regression that did not see it.
    pub logits: Vec<f64>,
}

fn affine(x: &[f64], w: &[f64]) -> f64 {
    x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() + w[x.len()]
}

/// The solution of `a x = b` for a positive definite `a`, by Gauss's elimination.
pub(crate) fn solve(mut a: Vec<f64>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        for r in i + 1..n {
            let c = a[r * n + i] / a[i * n + i];
            for k in i..n {
                a[r * n + k] -= c * a[i * n + k];
            }
            b[r] -= c * b[i];
        }
    }
    for i in (0..n).rev() {
        let sum: f64 = (i + 1..n).map(|k| a[i * n + k] * b[k]).sum();
        b[i] = (b[i] - sum) / a[i * n + i];
    }
    b
}

/// The probability that a positive scores above a negative; ties count a half. The area under the ROC curve.
pub fn auc(scores: &[f64], labels: &[bool]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut below, mut sum, mut at) = (0.0, 0.0, 0);
    while at < order.len() {
        // A run of ties.
        let end = at + order[at..].iter().take_while(|i| scores[**i] == scores[order[at]]).count();
        let positives = order[at..end].iter().filter(|i| labels[**i]).count() as f64;
        let negatives = (end - at) as f64 - positives;
        sum += positives * (below + 0.5 * negatives);
        below += negatives;
        at = end;
    }
    let positives = labels.iter().filter(|l| **l).count() as f64;
    sum / (positives * below)
}

/// The width of a Gaussian kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bandwidth {
    /// The lower median of the distances within the first set: the benchmark's choice. With modes far apart it
    /// is the distance between modes, and MMD is nearly blind to the shape of a mode.
    MedianOfFirst,
    /// The lower median of the distances within both sets together.
    MedianOfBoth,
    /// This number.
    Fixed(f64),
}

/// The maximum mean discrepancy of two sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mmd {
    /// σ of the kernel `exp(−|a−b|²/(2σ²))`.
    pub sigma: f64,
    /// Without the diagonals; it can be negative.
    pub unbiased: f64,
    /// With them; at least 0.
    pub biased: f64,
}

/// Squared MMD with a Gaussian kernel, of `x` and `y`, both `[.., dim]`, as they are.
/// Reference: Gretton et al. 2012, JMLR 13.
pub fn mmd2(x: &[f64], y: &[f64], dim: usize, bandwidth: Bandwidth) -> Mmd {
    let d2 = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
    let median = |rows: Vec<&[f64]>| {
        let mut all: Vec<f64> = Vec::with_capacity(rows.len() * rows.len() / 2);
        for (i, a) in rows.iter().enumerate() {
            all.extend(rows[..i].iter().map(|b| d2(a, b)));
        }
        let middle = (all.len() - 1) / 2;
        all.select_nth_unstable_by(middle, f64::total_cmp).1.sqrt()
    };
    let sigma = match bandwidth {
        Bandwidth::MedianOfFirst => median(x.chunks_exact(dim).collect()),
        Bandwidth::MedianOfBoth => median(x.chunks_exact(dim).chain(y.chunks_exact(dim)).collect()),
        Bandwidth::Fixed(sigma) => sigma,
    };
    let sum = |a: &[f64], b: &[f64]| -> f64 {
        let row =
            |r: &[f64]| b.chunks_exact(dim).map(|q| (-0.5 * d2(r, q) / (sigma * sigma)).exp()).sum::<f64>();
        a.chunks_exact(dim).map(row).sum()
    };
    let (n, m) = ((x.len() / dim) as f64, (y.len() / dim) as f64);
    let (xx, yy, xy) = (sum(x, x), sum(y, y), sum(x, y));
    let cross = 2.0 * xy / (n * m);
    Mmd {
        sigma,
        unbiased: (xx - n) / (n * (n - 1.0)) + (yy - m) / (m * (m - 1.0)) - cross,
        biased: xx / (n * n) + yy / (m * m) - cross,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::metrics::special::normal_cdf;
    use outerloop_core::Key;

    fn shifted(n: usize, shift: f64) -> TwoSample {
        let (mut x, mut y) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
        Key::new(1).fill_normal(&mut x);
        Key::new(2).fill_normal(&mut y);
        y.iter_mut().step_by(2).for_each(|y| *y += shift);
        TwoSample::new(&x, &y, 2, (0..2 * n).map(|i| i % 5).collect()).unwrap()
    }

    #[test]
    fn accuracy_approaches_bayes() {
        for shift in [0.0, 1.0, 3.0] {
            let (test, n) = (shifted(1000, shift), 2000.0f64);
            let bayes = normal_cdf(0.5 * shift);
            let se = (bayes * (1.0 - bayes) / n).sqrt();
            let got = test.logistic();
            assert!((got.accuracy.mean - bayes).abs() < 4.0 * se, "{shift}: {} {bayes}", got.accuracy.mean);
            let area = normal_cdf(shift / 2f64.sqrt());
            assert!((auc(&got.logits, &test.labels) - area).abs() < 0.05);
            let near = test.nearest_neighbours(5).mean;
            assert!(near < bayes + 4.0 * se && near > 0.45, "{near}");
        }
    }

    #[test]
    fn mmd_of_equal_sets_is_near_zero() {
        let [a, b] = [0.0, 2.0].map(|s| shifted(200, s));
        let of = |t: &TwoSample| mmd2(&t.rows[..400], &t.rows[400..], 2, Bandwidth::MedianOfFirst);
        assert!(of(&a).unbiased.abs() < 0.01 && of(&b).unbiased > 0.1, "{:?} {:?}", of(&a), of(&b));
        let far = mmd2(&[0.0, 0.0], &[100.0, 100.0], 1, Bandwidth::Fixed(1.0));
        assert!((far.biased - 2.0).abs() < 1e-12 && (far.unbiased - 2.0).abs() < 1e-12);
    }
}
