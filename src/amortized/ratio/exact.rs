//! The exact posterior of SLCP by quadrature: the oracle of estimators and samplers.
//!
//! Given `(θ₃, θ₄, θ₅)` the likelihood is a normal density in `(θ₁, θ₂)` with mean `x̄` and covariance `Σ/4`, cut off
//! by the prior's box. So `θ₂` is integrated in closed form, `θ₁` by Gauss and Legendre's rule, and the other three
//! by its composite form. Evidence and moments of ordinary observations are good to 1e-6.

use super::metrics::special::{normal_cdf, normal_pdf};
use super::simulators::{Slcp, SlcpMoments};
use crate::quadrature::gauss_legendre;
use outerloop_outer::Workers;
use std::f64::consts::PI;

/// Half the width of the prior.
const EDGE: f64 = 3.0;
/// Points of a simulation.
const POINTS: f64 = 4.0;

/// What the quadrature finds.
#[derive(Clone, Debug, PartialEq)]
pub struct ExactPosterior {
    /// `ln p(x)`, nats.
    pub log_evidence: f64,
    /// Means of `θ₁, θ₂, |θ₃|, |θ₄|, θ₅`; those of the signed `θ₃`, `θ₄` are 0.
    pub mean: [f64; 5],
    /// Their covariances.
    pub cov: [[f64; 5]; 5],
}

impl ExactPosterior {
    /// Means and covariances of the signed parameters: all four combinations of signs weigh the same.
    pub fn signed(&self) -> ([f64; 5], [[f64; 5]; 5]) {
        let (mut mean, mut cov) = (self.mean, self.cov);
        for k in [2, 3] {
            cov[k].fill(0.0);
            cov.iter_mut().for_each(|row| row[k] = 0.0);
            cov[k][k] = self.cov[k][k] + self.mean[k] * self.mean[k];
            mean[k] = 0.0;
        }
        (mean, cov)
    }
}

/// How fine the quadrature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Intervals per axis for `θ₃, θ₄, θ₅`; each has [`Self::nodes`]. Those of `θ₃` and `θ₄` divide the part of the
    /// prior where the likelihood is not negligible.
    pub panels: usize,
    /// Nodes per interval.
    pub nodes: usize,
}

impl Default for Resolution {
    /// 10 intervals of 8 nodes.
    fn default() -> Self {
        Resolution { panels: 10, nodes: 8 }
    }
}

/// Nodes whose logarithm lies so far below the largest do not count: e⁻³⁰ of the peak's density.
const NEGLIGIBLE: f64 = 30.0;

/// The rule on `panels` equal parts of `[low, high]`.
fn composite(low: f64, high: f64, r: Resolution) -> Vec<(f64, f64)> {
    let (rule, width) = (gauss_legendre(r.nodes), (high - low) / r.panels as f64);
    let panel = |k: usize| {
        let middle = low + (k as f64 + 0.5) * width;
        rule.iter().map(move |(x, w)| (middle + 0.5 * width * x, 0.5 * width * w)).collect::<Vec<_>>()
    };
    (0..r.panels).flat_map(panel).collect()
}

/// What the data says of the mean: `[x̄, ȳ]` and the sums of squares around it `[xx, xy, yy]`.
struct Summary {
    mean: [f64; 2],
    scatter: [f64; 3],
}

impl Summary {
    fn of(x: &[f64]) -> Self {
        let n = (x.len() / 2) as f64;
        let mean: [f64; 2] = std::array::from_fn(|k| x.iter().skip(k).step_by(2).sum::<f64>() / n);
        let mut scatter = [0.0; 3];
        for p in x.chunks_exact(2) {
            let (a, b) = (p[0] - mean[0], p[1] - mean[1]);
            scatter[0] += a * a;
            scatter[1] += a * b;
            scatter[2] += b * b;
        }
        Summary { mean, scatter }
    }
}

/// Mass and moments of a normal distribution in the box `[−3, 3]²`.
#[derive(Clone, Copy, Debug, Default)]
struct Boxed {
    mass: f64,
    first: [f64; 2],
    /// `[11, 12, 22]`
    second: [f64; 3],
}

/// `∫∫ N(μ; mean, [[v₁, c], [c, v₂]]) (1, μ, μμᵀ) dμ` over the box.
fn boxed(mean: [f64; 2], [v1, c, v2]: [f64; 3], rule: &[(f64, f64)]) -> Boxed {
    let s1 = v1.sqrt();
    let s2 = v2.sqrt();
    if mean[0].abs() + 8.5 * s1 < EDGE && mean[1].abs() + 8.5 * s2 < EDGE {
        // Nothing is cut off.
        let second = [v1 + mean[0] * mean[0], c + mean[0] * mean[1], v2 + mean[1] * mean[1]];
        return Boxed { mass: 1.0, first: mean, second };
    }
    let rest = (v2 - c * c / v1).max(0.0).sqrt();
    // Beyond 9 deviations lies 1e-19 of the mass.
    let (low, high) = ((mean[0] - 9.0 * s1).max(-EDGE), (mean[0] + 9.0 * s1).min(EDGE));
    let mut out = Boxed::default();
    if low >= high || rest == 0.0 {
        return out;
    }
    // Cuts of the interval: the deviations of the first coordinate, and where the second comes to an edge of the
    // box, which may be within a small part of a deviation.
    let mut cuts = [low, mean[0] - 3.0 * s1, mean[0], mean[0] + 3.0 * s1, high, low, low, low, low, low, low];
    if c != 0.0 {
        let width = 5.0 * rest * v1 / c.abs();
        for (k, edge) in [-EDGE, EDGE].into_iter().enumerate() {
            let at = mean[0] + (edge - mean[1]) * v1 / c;
            cuts[5 + 3 * k..8 + 3 * k].copy_from_slice(&[at - width, at, at + width]);
        }
    }
    cuts.iter_mut().for_each(|x| *x = x.clamp(low, high));
    cuts.sort_by(f64::total_cmp);
    for part in cuts.windows(2).filter(|p| p[0] < p[1]) {
        for (u, w) in rule {
            let m1 = 0.5 * (part[0] + part[1]) + 0.5 * (part[1] - part[0]) * u;
            let density = normal_pdf((m1 - mean[0]) / s1) / s1 * 0.5 * (part[1] - part[0]) * w;
            out.add(density, m1, mean[1] + c / v1 * (m1 - mean[0]), rest);
        }
    }
    out
}

impl Boxed {
    /// Adds the line at `m1`, where the second coordinate has this mean and deviation.
    fn add(&mut self, density: f64, m1: f64, centre: f64, rest: f64) {
        let (a, b) = ((-EDGE - centre) / rest, (EDGE - centre) / rest);
        // Between both edges; from the nearer tail, so that small masses keep their digits.
        let mass = if a > 0.0 { normal_cdf(-a) - normal_cdf(-b) } else { normal_cdf(b) - normal_cdf(a) };
        let (pa, pb) = (normal_pdf(a), normal_pdf(b));
        let first = centre * mass + rest * (pa - pb);
        let second = (centre * centre + rest * rest) * mass
            + rest * (2.0 * centre * (pa - pb) + rest * (a * pa - b * pb));
        self.mass += density * mass;
        self.first[0] += density * m1 * mass;
        self.first[1] += density * first;
        self.second[0] += density * m1 * m1 * mass;
        self.second[1] += density * m1 * first;
        self.second[2] += density * second;
    }
}

/// The likelihood of `(θ₃, θ₄, θ₅)` with `θ₁, θ₂` integrated over the plane, without the mass in the box:
/// `(2π)⁻³ |Σ|^{−3/2}/4 e^{−½ tr Σ⁻¹ S}`.
struct Marginal {
    slcp: Slcp,
    data: Summary,
}

impl Marginal {
    fn log_factor(&self, m: &SlcpMoments) -> f64 {
        let [xx, xy, yy] = self.data.scatter;
        let q = m.cov[2] * xx - 2.0 * m.cov[1] * xy + m.cov[0] * yy;
        -0.5 * q / m.det - 1.5 * m.det.ln() - 3.0 * (2.0 * PI).ln() - POINTS.ln()
    }

    fn moments(&self, t3: f64, t4: f64, t5: f64) -> SlcpMoments {
        self.slcp.moments(&[0.0, 0.0, t3, t4, t5])
    }

    /// The mass in the box and its moments.
    fn inside(&self, m: &SlcpMoments, rule: &[(f64, f64)]) -> Boxed {
        boxed(self.data.mean, m.cov.map(|c| c / POINTS), rule)
    }

    /// The largest logarithm on a coarse grid and at the likelihood's own peak, with the mass in the box.
    fn peak(&self, rule: &[(f64, f64)]) -> f64 {
        let [xx, xy, yy] = self.data.scatter;
        // Without bounds the peak is at Σ = S/3.
        let root = |v: f64| (v / 3.0).max(1e-12).powf(0.25).min(EDGE);
        let slant = (xy / (xx * yy).max(1e-300).sqrt()).clamp(-1.0 + 1e-12, 1.0 - 1e-12);
        let own = (root(xx), root(yy), slant.atanh().clamp(-EDGE, EDGE));
        let step = |i: i32| EDGE * (f64::from(i) + 0.5) / 12.0;
        let grid = (0..12).flat_map(|i| (0..12).map(move |j| (i, j)));
        let grid = grid.flat_map(|(i, j)| (-12..12).map(move |k| (step(i), step(j), step(k))));
        let mut best = f64::NEG_INFINITY;
        for (t3, t4, t5) in std::iter::once(own).chain(grid) {
            let m = self.moments(t3, t4, t5);
            let log = self.log_factor(&m);
            if log > best {
                best = best.max(log + self.inside(&m, rule).mass.ln());
            }
        }
        best
    }

    /// The part of `[0, 3]` of `θ₃` (axis 0) or `θ₄` (axis 1) outside of which every logarithm is negligible: with one
    /// variance given, the largest over all else is known.
    fn range(&self, axis: usize, peak: f64) -> (f64, f64) {
        let [xx, xy, yy] = self.data.scatter;
        let (own, other) = if axis == 0 { (xx, yy) } else { (yy, xx) };
        // Of the other coordinate given this one: its scatter around the regression.
        let rest = (other - xy * xy / own).max(1e-300) / 3.0;
        let level = -1.5 * (rest.ln() + 1.0) - 3.0 * (2.0 * PI).ln() - POINTS.ln();
        let counts = |t: f64| level - 6.0 * t.ln() - 0.5 * own / t.powi(4) > peak - NEGLIGIBLE;
        // The bound has one maximum, at variance own/3.
        let top = (own / 3.0).powf(0.25).min(EDGE);
        let edge = |mut outside: f64, mut inside: f64| {
            if counts(outside) {
                return outside;
            }
            for _ in 0..50 {
                let middle = 0.5 * (outside + inside);
                if counts(middle) {
                    inside = middle;
                } else {
                    outside = middle;
                }
            }
            outside
        };
        (edge(1e-6 * top, top), edge(EDGE, top))
    }
}

/// Evidence and moments of SLCP's posterior (without jitter) for data `x`, `[8]`.
pub fn slcp_posterior(x: &[f64], resolution: Resolution, workers: &Workers) -> ExactPosterior {
    let marginal = Marginal { slcp: Slcp::seed(), data: Summary::of(x) };
    let inner = gauss_legendre(14);
    let best = marginal.peak(&inner);
    let [mut slices, half] = [0, 1].map(|axis| {
        let (low, high) = marginal.range(axis, best);
        composite(low, high, resolution)
    });
    let whole = composite(-EDGE, EDGE, resolution);
    let sums = workers.map(&mut slices, |_, _, (t3, w3)| {
        let mut sum = [0.0; 21];
        for (t4, w4) in &half {
            for (t5, w5) in &whole {
                let m = marginal.moments(*t3, *t4, *t5);
                let log = marginal.log_factor(&m) - best;
                if log < -NEGLIGIBLE {
                    continue;
                }
                let b = marginal.inside(&m, &inner);
                let w = *w3 * w4 * w5 * log.exp();
                let rest = [*t3, *t4, *t5];
                let mut k = 0;
                let mut add = |v: f64| {
                    sum[k] += w * v;
                    k += 1;
                };
                // 1, means, and the upper triangle of products.
                add(b.mass);
                b.first.iter().for_each(|f| add(*f));
                rest.iter().for_each(|r| add(r * b.mass));
                b.second.iter().for_each(|s| add(*s));
                b.first.iter().for_each(|f| rest.iter().for_each(|r| add(f * r)));
                for i in 0..3 {
                    (i..3).for_each(|j| add(rest[i] * rest[j] * b.mass));
                }
            }
        }
        sum
    });
    let mut total = [0.0; 21];
    for s in sums {
        total.iter_mut().zip(s).for_each(|(t, s)| *t += s);
    }
    // Prior densities 1/36 of the mean and 1/3, 1/3, 1/6 of |θ₃|, |θ₄|, θ₅.
    let log_evidence = best + total[0].ln() - (36.0f64 * 54.0).ln();
    let mean: [f64; 5] = std::array::from_fn(|i| total[1 + i] / total[0]);
    let places = [
        [6, 7, 9, 10, 11],
        [7, 8, 12, 13, 14],
        [9, 12, 15, 16, 17],
        [10, 13, 16, 18, 19],
        [11, 14, 17, 19, 20],
    ];
    let cov =
        std::array::from_fn(|i| std::array::from_fn(|j| total[places[i][j]] / total[0] - mean[i] * mean[j]));
    ExactPosterior { log_evidence, mean, cov }
}

/// An observation of the golden files.
#[cfg(test)]
pub(super) const GOLDEN: [f64; 8] =
    [0.701230168, -2.6953392, 0.425862134, -3.62777281, 0.245329201, -3.77535486, 0.760143578, -1.95810008];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_exact_on_polynomials() {
        let rule = gauss_legendre(5);
        // ∫ x⁸ = 2/9, ∫ x⁹ = 0
        let integral = |p: i32| rule.iter().map(|(x, w)| w * x.powi(p)).sum::<f64>();
        assert!((integral(8) - 2.0 / 9.0).abs() < 1e-14 && integral(9).abs() < 1e-14);
    }

    #[test]
    fn a_box_holds_all_of_a_narrow_normal_and_half_of_one_on_its_edge() {
        let inner = gauss_legendre(20);
        let b = boxed([1.0, -0.5], [0.04, 0.012, 0.09], &inner);
        assert!((b.mass - 1.0).abs() < 1e-12 && (b.first[1] + 0.5).abs() < 1e-12);
        assert!((b.second[1] - (-0.5 + 0.012)).abs() < 1e-12 && (b.second[2] - 0.34).abs() < 1e-12);
        let b = boxed([0.0, 3.0], [0.04, 0.0, 0.09], &inner);
        // Half a normal: mean 3 − 0.3 √(2/π).
        assert!((b.mass - 0.5).abs() < 1e-12);
        assert!((b.first[1] / b.mass - (3.0 - 0.3 * (2.0 / PI).sqrt())).abs() < 1e-11);
    }

    /// Against an independent program's quadrature of the same posterior, to its 1e-5.
    #[test]
    fn evidence_and_moments_are_those_of_another_program() {
        let x = GOLDEN;
        let exact = slcp_posterior(
            &x.map(|x: f64| f64::from(x as f32)),
            Resolution::default(),
            &Workers::new(2).unwrap(),
        );
        assert!((exact.log_evidence - -12.388_801_862).abs() < 1e-5, "{}", exact.log_evidence);
        let mean = [0.677859962, -2.410591063, 0.629428274, 1.179803035, 1.612743479];
        let var = [0.044401339, 0.391951883, 0.034358639, 0.110466656, 0.569569924];
        for k in 0..5 {
            assert!((exact.mean[k] - mean[k]).abs() < 1e-5, "{k}: {:?}", exact.mean);
            assert!((exact.cov[k][k] - var[k]).abs() < 1e-5, "{k}: {:?}", exact.cov);
        }
    }
}
