//! How much of its log ratio an estimator may claim: a power of the ratio fitted to expected coverage.

use super::estimator::RatioEstimator;
use super::metrics::chains::log_sum_exp;
use super::sample::Sampler;
use super::{Prior, Simulations};
use outerloop_core::{check_settings, Interval, Key, Result};
use outerloop_outer::Workers;

/// The lowest power that [`fit_sharpness`] gives.
const LOWEST: f64 = 0.5;
/// Levels at which coverage is compared with its nominal value.
const LEVELS: [f64; 4] = [0.5, 0.8, 0.9, 0.95];

/// The largest power s in `[0.5, 1]` of the ratio (in steps of 0.05) at which the highest density regions of
/// `p(θ) r(θ, x)^s` with 50, 80, 90 and 95 % of the mass hold at least as large a part of the true parameters, over the
/// simulations `rows` of `held_out`; 0.5 where none does. For [`RatioEstimator::tempered`].
///
/// One run of `sampler` per simulation at the lowest power, `draws` each; the other powers by importance weights
/// `r^(s − 0.5)`, self-normalized, so biased of order `1/draws`. The noise of the coverage is binomial in the number of
/// rows, and passes to s. Simulations that were trained on give too large a power. It is temperature scaling, fitted by
/// coverage instead of likelihood. Reference: Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599.
///
/// # Errors
/// Those of the sampler; no rows or draws; a prior of another dimension.
pub fn fit_sharpness(
    estimator: &RatioEstimator,
    (held_out, rows): (&Simulations, &[u32]),
    prior: &dyn Prior,
    (sampler, draws): (&dyn Sampler, usize),
    key: Key,
    workers: &Workers,
) -> Result<f64> {
    let counts = [("rows", rows.len() as f64), ("draws", draws as f64)];
    check_settings("sharpness", counts.map(|(k, v)| (k, v, Interval::COUNT)))?;
    held_out.check_prior(prior)?;
    let ([d, p], wide) = (held_out.dims(), estimator.clone().tempered(LOWEST)?);
    let powers: Vec<f64> = (0..=10).map(|i| 1.0 - f64::from(i) * (1.0 - LOWEST) / 10.0).collect();
    let mut covered = vec![[0usize; LEVELS.len()]; powers.len()];
    for r in rows {
        let at = |v: &[f32], w: usize| -> Vec<f64> {
            v[*r as usize * w..][..w].iter().map(|v| f64::from(*v)).collect()
        };
        let (own, x) = (at(held_out.theta(), d), at(held_out.x(), p));
        let posterior = wide.posterior(&x, prior)?;
        let key = key.fold_in(u64::from(*r));
        let mut theta = sampler.sample(&posterior, draws, key, workers)?.draws;
        theta.extend(own);
        let log_ratio: Vec<f64> = posterior.log_ratio(&theta).into_iter().map(|f| f / LOWEST).collect();
        let log_prior: Vec<f64> = theta.chunks_exact(d).map(|t| prior.log_density(t)).collect();
        for (s, covered) in powers.iter().zip(&mut covered) {
            let credibility = credibility(&log_ratio, &log_prior, *s);
            LEVELS.iter().zip(covered).for_each(|(l, c)| *c += usize::from(credibility <= *l));
        }
    }
    let n = rows.len() as f64;
    let holds = |c: &[usize; 4]| LEVELS.iter().zip(c).all(|(l, c)| *c as f64 >= l * n);
    let best = powers.iter().zip(&covered).find(|(_, c)| holds(c));
    Ok(best.map_or(LOWEST, |(s, _)| *s))
}

/// Mass of `p r^s` above the last row's density, from draws of `p r^LOWEST`, all but the last row.
fn credibility(log_ratio: &[f64], log_prior: &[f64], s: f64) -> f64 {
    let n = log_ratio.len() - 1;
    let log_q = |i: usize| log_prior[i] + s * log_ratio[i];
    let weights: Vec<f64> = log_ratio[..n].iter().map(|f| (s - LOWEST) * f).collect();
    let above: Vec<f64> = (0..n).filter(|i| log_q(*i) > log_q(n)).map(|i| weights[i]).collect();
    (log_sum_exp(&above) - log_sum_exp(&weights)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::sample::Smc;
    use crate::ratio::{Architecture, Features, Invalid, Nonlinearity, RatioNet, Simulations, UniformBox};

    /// `x = θ + σ z` on a wide box, and a network that says the posterior is `1/√k` times as wide:
    /// `f = −k (x − θ)²/2σ²` by relu units is only piecewise linear, so the ratio is `−k |x − θ|/σ` of Laplace noise.
    #[test]
    fn a_too_sharp_ratio_is_found_out() {
        let (sigma, sharp) = (0.1, 1.6);
        let prior = UniformBox::cube(1, -1.0, 1.0).unwrap();
        let (mut theta, mut x) = (vec![0.0; 400], vec![0.0; 400]);
        for (i, (theta, x)) in theta.iter_mut().zip(&mut x).enumerate() {
            let [own, noise] = Key::new(i as u64).split();
            // Away from the edges, so that the posterior is the noise turned around.
            *theta = 1.2 * own.uniform() - 0.6;
            let u = noise.uniform() - 0.5;
            *x = *theta - sigma * u.signum() * (1.0 - 2.0 * u.abs()).ln();
        }
        let data = Simulations::new(&theta, &x, [1, 1], Invalid::Refuse).unwrap();
        let hidden = Architecture::Mlp { hidden: vec![2] };
        let net = RatioNet::new(hidden, Nonlinearity::Relu, [1, 1]).unwrap();
        let k = (sharp / sigma) as f32;
        // relu(θ − x), relu(x − θ); weights [inputs, outputs], then biases.
        let weights = vec![1.0, -1.0, -1.0, 1.0, 0.0, 0.0, -k, -k, 0.0];
        let e = RatioEstimator::new(net, Features::identity([1, 1]), vec![weights], true).unwrap();
        let f = e.posterior(&[0.2], &prior).unwrap().log_ratio(&[0.0])[0];
        assert!((f + sharp * 0.2 / sigma).abs() < 1e-4, "{f}");
        let half = e.clone().tempered(0.5).unwrap();
        assert!((half.posterior(&[0.2], &prior).unwrap().log_ratio(&[0.0])[0] - 0.5 * f).abs() < 1e-6);
        assert!(!half.is_normalized() && e.is_normalized());

        let smc = Smc { particles: 128, populations: 2, moves: 2, final_moves: 10, ..Smc::default() };
        let (rows, workers) = ((0..400).collect::<Vec<u32>>(), Workers::new(2).unwrap());
        let s = fit_sharpness(&e, (&data, &rows), &prior, (&smc, 128), Key::new(1), &workers).unwrap();
        // 1/1.6 = 0.625 is right; the noise of 400 rows, and steps of 0.05.
        assert!((0.5..=0.75).contains(&s), "{s}");
        let error = e.clone().tempered(0.0).unwrap_err().to_string();
        assert!(error.contains("sharpness"), "{error}");
    }
}
