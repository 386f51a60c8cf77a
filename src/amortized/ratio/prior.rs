//! Priors: what parameters are drawn from, and where they may lie.

use outerloop_core::{Error, Key, Result};
use rand::Rng;

/// A distribution over parameters `theta` with a density.
///
/// Invariants: [`Self::sample`] is a pure function of its key and stays in [`Self::bounds`];
/// [`Self::log_density`] is `−∞` outside of them and integrates to one.
pub trait Prior: Send + Sync {
    /// Number of parameters.
    fn dim(&self) -> usize;
    /// One draw into `theta`, `[dim]`.
    fn sample(&self, key: Key, theta: &mut [f64]);
    /// `ln p(theta)` in nats; `−∞` outside the support.
    fn log_density(&self, theta: &[f64]) -> f64;
    /// Adds the gradient of `ln p` at a point of the support to `grad`, `[dim]`.
    fn add_score(&self, theta: &[f64], grad: &mut [f64]);
    /// Lowest and highest value of each parameter; infinite where there is no bound.
    fn bounds(&self) -> Vec<(f64, f64)>;
    /// A range per parameter that holds nearly all of the mass: the axes of plots.
    fn ranges(&self) -> Vec<(f64, f64)> {
        self.bounds()
    }
    /// The whole configuration: a saved run is recognized by it.
    fn describe(&self) -> String;
}

/// Whether the upper edge of a [`UniformBox`] belongs to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Edge {
    /// `low ≤ theta ≤ high`.
    #[default]
    Closed,
    /// `low ≤ theta < high`: the convention of torch's `Uniform`, whose density at `high` is 0.
    HalfOpen,
}

/// Independent uniform parameters: `ln p = −Σ ln (highᵢ − lowᵢ)` inside the box.
#[derive(Clone, Debug, PartialEq)]
pub struct UniformBox {
    low: Vec<f64>,
    high: Vec<f64>,
    edge: Edge,
    log_density: f64,
}

impl UniformBox {
    /// The closed box from `low` to `high`.
    ///
    /// # Errors
    /// If the lengths differ or are 0, or an edge is not finite or not above the lower one.
    pub fn new(low: Vec<f64>, high: Vec<f64>) -> Result<Self> {
        if low.len() != high.len() || low.is_empty() {
            return Err(Error::mismatch(
                "uniform prior: number of upper edges",
                low.len().max(1),
                high.len(),
            ));
        }
        for (i, (l, h)) in low.iter().zip(&high).enumerate() {
            if !(l.is_finite() && h.is_finite() && l < h) {
                let why = format!("expected finite edges, low < high, got [{l}, {h}]");
                return Err(Error::invalid(format!("uniform prior: parameter {i}"), why));
            }
        }
        let log_density = -low.iter().zip(&high).map(|(l, h)| (h - l).ln()).sum::<f64>();
        Ok(UniformBox { low, high, edge: Edge::Closed, log_density })
    }

    /// The same edges for `dim` parameters.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn cube(dim: usize, low: f64, high: f64) -> Result<Self> {
        Self::new(vec![low; dim], vec![high; dim])
    }

    /// With this convention for the upper edge; closed by default.
    #[must_use]
    pub fn with_edge(mut self, edge: Edge) -> Self {
        self.edge = edge;
        self
    }
}

impl Prior for UniformBox {
    fn dim(&self) -> usize {
        self.low.len()
    }
    fn sample(&self, key: Key, theta: &mut [f64]) {
        let mut rng = key.rng();
        for ((t, l), h) in theta.iter_mut().zip(&self.low).zip(&self.high) {
            *t = l + (h - l) * rng.gen::<f64>();
        }
    }
    fn log_density(&self, theta: &[f64]) -> f64 {
        let is_inside = theta.iter().zip(&self.low).zip(&self.high).all(|((t, l), h)| {
            let below = if self.edge == Edge::Closed { t <= h } else { t < h };
            l <= t && below
        });
        if is_inside {
            self.log_density
        } else {
            f64::NEG_INFINITY
        }
    }
    fn add_score(&self, _: &[f64], _: &mut [f64]) {}
    fn bounds(&self) -> Vec<(f64, f64)> {
        self.low.iter().copied().zip(self.high.iter().copied()).collect()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

/// Independent normal parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct NormalPrior {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl NormalPrior {
    /// Means and standard deviations.
    ///
    /// # Errors
    /// If the lengths differ or are 0, a mean is not finite, or a standard deviation not positive.
    pub fn new(mean: Vec<f64>, std: Vec<f64>) -> Result<Self> {
        if mean.len() != std.len() || mean.is_empty() {
            let what = "normal prior: number of standard deviations";
            return Err(Error::mismatch(what, mean.len().max(1), std.len()));
        }
        for (i, (m, s)) in mean.iter().zip(&std).enumerate() {
            if !(m.is_finite() && s.is_finite() && *s > 0.0) {
                let why = format!("expected a finite mean and a positive deviation, got {m}, {s}");
                return Err(Error::invalid(format!("normal prior: parameter {i}"), why));
            }
        }
        Ok(NormalPrior { mean, std })
    }
}

/// `ln √(2π)`.
pub(crate) const LN_SQRT_2PI: f64 = 0.918_938_533_204_672_8;

impl Prior for NormalPrior {
    fn dim(&self) -> usize {
        self.mean.len()
    }
    fn sample(&self, key: Key, theta: &mut [f64]) {
        key.fill_normal(theta);
        for ((t, m), s) in theta.iter_mut().zip(&self.mean).zip(&self.std) {
            *t = m + s * *t;
        }
    }
    fn log_density(&self, theta: &[f64]) -> f64 {
        let terms = theta.iter().zip(&self.mean).zip(&self.std).map(|((t, m), s)| {
            let z = (t - m) / s;
            -0.5 * z * z - s.ln() - LN_SQRT_2PI
        });
        let sum: f64 = terms.sum();
        if sum.is_nan() {
            f64::NEG_INFINITY
        } else {
            sum
        }
    }
    fn add_score(&self, theta: &[f64], grad: &mut [f64]) {
        for (((g, t), m), s) in grad.iter_mut().zip(theta).zip(&self.mean).zip(&self.std) {
            *g -= (t - m) / (s * s);
        }
    }
    fn bounds(&self) -> Vec<(f64, f64)> {
        vec![(f64::NEG_INFINITY, f64::INFINITY); self.dim()]
    }
    fn ranges(&self) -> Vec<(f64, f64)> {
        self.mean.iter().zip(&self.std).map(|(m, s)| (m - 3.5 * s, m + 3.5 * s)).collect()
    }
    fn describe(&self) -> String {
        format!("{self:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edge_of_a_box_belongs_to_it_or_not() {
        let closed = UniformBox::cube(2, -3.0, 3.0).unwrap();
        let half = closed.clone().with_edge(Edge::HalfOpen);
        let inside = -2.0 * 6f64.ln();
        let edges = [[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0001], [f64::NAN, 0.0]];
        let none = f64::NEG_INFINITY;
        assert_eq!(edges.map(|t| closed.log_density(&t)), [inside, inside, none, none]);
        assert_eq!(edges.map(|t| half.log_density(&t)), [none, inside, none, none]);
        let error = UniformBox::new(vec![0.0], vec![0.0]).unwrap_err().to_string();
        assert!(error.contains("low < high, got [0, 0]"), "{error}");
    }

    #[test]
    fn normal_scores_are_slopes() {
        let prior = NormalPrior::new(vec![1.0, -2.0], vec![0.5, 2.0]).unwrap();
        let (t, h) = ([0.3, 1.0], 1e-6);
        let mut grad = vec![0.0; 2];
        prior.add_score(&t, &mut grad);
        for i in 0..2 {
            let at = |s: f64| {
                let mut t = t;
                t[i] += s * h;
                prior.log_density(&t)
            };
            assert!((grad[i] - (at(1.0) - at(-1.0)) / (2.0 * h)).abs() < 1e-7);
        }
        assert!(NormalPrior::new(vec![0.0], vec![0.0]).is_err());
    }
}
