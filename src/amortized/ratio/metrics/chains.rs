//! Have chains mixed, and how many independent draws are they worth?

/// The halves of all chains; the middle of an odd chain is left out.
fn halves<'a>(chains: &[&'a [f64]]) -> Vec<&'a [f64]> {
    let half = |c: &'a [f64]| {
        let n = c.len() / 2;
        [&c[..n], &c[c.len() - n..]]
    };
    chains.iter().copied().flat_map(half).collect()
}

/// Within-chain variance W and `((n−1)/n) W + B/n`, over split chains.
fn variances(split: &[&[f64]]) -> (f64, f64) {
    let n = split[0].len() as f64;
    let m = split.len() as f64;
    let means: Vec<f64> = split.iter().map(|c| c.iter().sum::<f64>() / n).collect();
    let within = split
        .iter()
        .zip(&means)
        .map(|(c, mean)| c.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0))
        .sum::<f64>()
        / m;
    let grand = means.iter().sum::<f64>() / m;
    let between = means.iter().map(|v| (v - grand).powi(2)).sum::<f64>() / (m - 1.0);
    (within, (n - 1.0) / n * within + between)
}

/// Split R-hat, `√(((n−1)/n W + B/n)/W)` over the halves of all chains: 1 when all agree. NaN for chains shorter
/// than 4; infinite where no chain moves but they differ.
///
/// Reference: Gelman et al., Bayesian Data Analysis, 3rd edition, 11.4.
pub fn split_rhat(chains: &[&[f64]]) -> f64 {
    if chains.is_empty() || chains.iter().any(|c| c.len() < 4) {
        return f64::NAN;
    }
    let (within, all) = variances(&halves(chains));
    (all / within).sqrt()
}

/// Autocorrelations of the split chains together: `ρₜ = 1 − (W − mean autocovariance n/(n−1))/var⁺`.
pub fn autocorrelation(chains: &[&[f64]], lags: usize) -> Vec<f64> {
    let split = halves(chains);
    let (within, all) = variances(&split);
    (0..lags.min(split[0].len())).map(|t| correlation_at(&split, within, all, t)).collect()
}

fn correlation_at(split: &[&[f64]], within: f64, all: f64, t: usize) -> f64 {
    let n = split[0].len();
    let covariance = |c: &&[f64]| {
        let mean = c.iter().sum::<f64>() / n as f64;
        c[..n - t].iter().zip(&c[t..]).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>() / n as f64
    };
    let mean = split.iter().map(covariance).sum::<f64>() / split.len() as f64;
    1.0 - (within - mean * n as f64 / (n as f64 - 1.0)) / all
}

/// Effective sample size `M n/τ`, `τ = −1 + 2 Σ` of Geyer's initial monotone positive sequence of pair sums.
/// NaN for chains shorter than 4 or that do not move.
///
/// Reference: Geyer 1992, doi:10.1214/ss/1177011137; Stan's reference manual, without ranks.
pub fn effective_sample_size(chains: &[&[f64]]) -> f64 {
    if chains.is_empty() || chains.iter().any(|c| c.len() < 4) {
        return f64::NAN;
    }
    let split = halves(chains);
    let (n, m) = (split[0].len(), split.len());
    let (within, all) = variances(&split);
    if all <= 0.0 {
        return f64::NAN;
    }
    let (mut tau, mut last) = (-1.0, f64::INFINITY);
    let mut t = 0;
    while t + 1 < n {
        let at = |t| if t == 0 { 1.0 } else { correlation_at(&split, within, all, t) };
        let pair: f64 = at(t) + at(t + 1);
        if pair <= 0.0 {
            break;
        }
        last = pair.min(last);
        tau += 2.0 * last;
        t += 2;
    }
    (m * n) as f64 / tau
}

/// `ln Σ eˣ`, without overflow; `−∞` of nothing.
pub fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + x.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
}

/// What importance weights are worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// They sum to 1.
    pub normalized: Vec<f64>,
    /// `(Σ w)²/Σ w²`
    pub ess: f64,
    /// `ln (Σ w/n)`: of prior draws weighted by the likelihood, the log evidence.
    pub log_mean: f64,
}

/// From the weights' logarithms.
pub fn importance_weights(log_weights: &[f64]) -> Weights {
    let total = log_sum_exp(log_weights);
    let normalized: Vec<f64> = log_weights.iter().map(|w| (w - total).exp()).collect();
    let ess = 1.0 / normalized.iter().map(|w| w * w).sum::<f64>();
    Weights { normalized, ess, log_mean: total - (log_weights.len() as f64).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Key;

    /// Chains `x ← ρ x + √(1−ρ²) z` around the given means.
    fn chains(rho: f64, means: &[f64], n: usize) -> Vec<Vec<f64>> {
        let chain = |(i, mean): (usize, &f64)| {
            let mut z = vec![0.0; n];
            Key::new(9).fold_in(i as u64).fill_normal(&mut z);
            for t in 1..n {
                z[t] = rho * z[t - 1] + (1.0 - rho * rho).sqrt() * z[t];
            }
            z.iter().map(|z| z + mean).collect()
        };
        means.iter().enumerate().map(chain).collect()
    }

    #[test]
    fn mixed_and_unmixed_chains_are_told_apart() {
        let views = |c: &[Vec<f64>]| -> Vec<Vec<f64>> { c.to_vec() };
        let rhat = |c: Vec<Vec<f64>>| split_rhat(&c.iter().map(|c| &c[..]).collect::<Vec<_>>());
        assert!(rhat(views(&chains(0.0, &[0.0; 4], 1000))) < 1.01);
        assert!(rhat(chains(0.0, &[0.0, 0.0, 0.0, 3.0], 1000)) > 1.3);
        assert!(rhat(vec![vec![1.0; 10], vec![2.0; 10]]).is_infinite());
        assert!(split_rhat(&[&[1.0, 2.0, 3.0]]).is_nan());
    }

    #[test]
    fn correlated_chains_are_worth_less() {
        for rho in [0.0, 0.5, 0.9] {
            let c = chains(rho, &[0.0; 4], 5000);
            let ess = effective_sample_size(&c.iter().map(|c| &c[..]).collect::<Vec<_>>());
            let want = 20000.0 * (1.0 - rho) / (1.0 + rho);
            assert!((ess / want - 1.0).abs() < 0.15, "{rho}: {ess} {want}");
        }
    }
}
