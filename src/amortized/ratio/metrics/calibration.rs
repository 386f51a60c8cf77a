//! Is a posterior calibrated? Ranks, coverage, TARP: one row per simulated data set whose parameters are known.

use super::special::kolmogorov_p_value;

/// The rank of each true parameter among posterior draws: `ranks[k]` is the number of draws strictly below it.
/// `samples` `[L, dim]`, `theta` `[dim]`. Calibrated: uniform on `0..=L`.
/// Reference: Talts et al. 2018, arXiv:1804.06788.
pub fn sbc_ranks(samples: &[f64], theta: &[f64]) -> Vec<usize> {
    let d = theta.len();
    (0..d).map(|k| samples.iter().skip(k).step_by(d).filter(|s| **s < theta[k]).count()).collect()
}

/// A test of ranks against the uniform distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Uniformity {
    /// Kolmogorov's statistic of `rank/L` against the uniform distribution on [0, 1].
    pub ks: f64,
    /// Its p-value for a continuous distribution: for ranks it is approximate.
    pub ks_p_value: f64,
    /// Runs per rank, `[L + 1]`.
    pub histogram: Vec<usize>,
    /// `Σ (runs − expected)²/expected` over ranks.
    pub chi2: f64,
}

/// Tests ranks among `draws` posterior draws.
pub fn uniformity(ranks: &[usize], draws: usize) -> Uniformity {
    let mut histogram = vec![0; draws + 1];
    ranks.iter().for_each(|r| histogram[*r] += 1);
    let n = ranks.len() as f64;
    let expected = n / (draws + 1) as f64;
    let chi2 = histogram.iter().map(|h| (*h as f64 - expected).powi(2) / expected).sum();
    let mut u: Vec<f64> = ranks.iter().map(|r| *r as f64 / draws as f64).collect();
    u.sort_by(f64::total_cmp);
    let gap = |(i, u): (usize, &f64)| ((i + 1) as f64 / n - u).max(u - i as f64 / n);
    let ks = u.iter().enumerate().map(gap).fold(0.0, f64::max);
    Uniformity { ks, ks_p_value: kolmogorov_p_value(ks, ranks.len()), histogram, chi2 }
}

/// The credibility of the smallest highest-density region that holds the truth: the share of draws whose density
/// is strictly above that of the true parameters.
pub fn credibility(log_q_samples: &[f64], log_q_true: f64) -> f64 {
    let above = log_q_samples.iter().filter(|q| **q > log_q_true).count();
    above as f64 / log_q_samples.len() as f64
}

/// The share of draws nearer to a reference point than the truth is.
/// Reference: Lemos et al. 2023, arXiv:2302.03026 (TARP).
pub fn distance_fraction(samples: &[f64], theta: &[f64], reference: &[f64]) -> f64 {
    let d = theta.len();
    let distance = |a: &[f64]| a.iter().zip(reference).map(|(a, r)| (a - r) * (a - r)).sum::<f64>();
    let mine = distance(theta);
    let nearer = samples.chunks_exact(d).filter(|s| distance(s) < mine).count();
    nearer as f64 / (samples.len() / d) as f64
}

/// The share of runs with a credibility of at most `level`: calibrated if it is `level`, overconfident if it is
/// less.
pub fn coverage(credibilities: &[f64], level: f64) -> f64 {
    let inside = credibilities.iter().filter(|c| **c <= level).count();
    inside as f64 / credibilities.len() as f64
}

/// Expected coverage at one level, with the scatter that a calibrated posterior would have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoveragePoint {
    /// Nominal coverage.
    pub level: f64,
    /// Empirical coverage.
    pub coverage: f64,
    /// `√(level (1 − level)/runs)`.
    pub standard_error: f64,
}

/// Coverage at these levels. Reference: Hermans et al. 2021, arXiv:2110.06581.
pub fn expected_coverage(credibilities: &[f64], levels: &[f64]) -> Vec<CoveragePoint> {
    let point = |&level: &f64| CoveragePoint {
        level,
        coverage: coverage(credibilities, level),
        standard_error: (level * (1.0 - level) / credibilities.len() as f64).sqrt(),
    };
    levels.iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    #[test]
    fn a_right_posterior_is_calibrated_and_a_narrow_one_is_not() {
        // θ ~ N(0, 1), x ~ N(θ, 1): posterior N(x/2, ½).
        let run = |scale: f64| {
            let (mut credibilities, mut ranks) = (Vec::new(), Vec::new());
            for i in 0..400 {
                let mut z = vec![0.0f64; 51];
                Key::new(i).fill_normal(&mut z);
                let (theta, x) = (z[0], z[0] + z[1]);
                let draws: Vec<f64> = z[2..].iter().map(|z| 0.5 * x + scale * 0.5f64.sqrt() * z).collect();
                let log_q = |t: f64| -(t - 0.5 * x).powi(2);
                let q: Vec<f64> = draws.iter().map(|t| log_q(*t)).collect();
                credibilities.push(credibility(&q, log_q(theta)));
                ranks.push(sbc_ranks(&draws, &[theta])[0]);
            }
            (expected_coverage(&credibilities, &[0.5])[0], uniformity(&ranks, 49).ks_p_value)
        };
        let (right, p) = run(1.0);
        assert!((right.coverage - 0.5).abs() < 4.0 * right.standard_error && p > 1e-3, "{right:?} {p}");
        let (narrow, p) = run(0.5);
        assert!(narrow.coverage < 0.5 - 4.0 * narrow.standard_error && p < 1e-6, "{narrow:?} {p}");
    }
}
