//! Metropolis and Hastings' rule: the seed's chain, and one that adapts its proposals.

use super::{check_count, gather, Chains, LaneTrace, Sampler, Samples};
use crate::ratio::density::{Density, Target};
use outerloop_core::{check_settings, Interval, Key, Result};
use outerloop_outer::Workers;
use rand::Rng;

/// Whether a proposal is accepted: `ln u < ln α`, in log space. NaN is refused.
pub fn accepts(log_alpha: f64, u: f64) -> bool {
    u.ln() < log_alpha
}

/// Decides on proposals, one per chain, for the density `p e^{β f}`; `ln α` of every chain goes to `log_alpha`.
pub(super) fn decide(
    chains: &mut Chains,
    proposals: &Chains,
    beta: f64,
    u: impl FnMut() -> f64,
    mut log_alpha: impl FnMut(usize, f64, bool),
) {
    let (d, mut u) = (chains.theta.len() / chains.prior.len(), u);
    for i in 0..chains.prior.len() {
        let at = |c: &Chains| c.prior[i] + if beta == 0.0 { 0.0 } else { beta * c.factor[i] };
        let difference = at(proposals) - at(chains);
        let is_accepted = accepts(difference, u());
        if is_accepted {
            chains.theta[i * d..(i + 1) * d].copy_from_slice(&proposals.theta[i * d..(i + 1) * d]);
            chains.prior[i] = proposals.prior[i];
            chains.factor[i] = proposals.factor[i];
        }
        log_alpha(i, difference, is_accepted);
    }
}

/// All that happened in [`seed_metropolis`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeedTrace {
    /// Before the first transition and after each: `[transitions + 1, chains, dim]`.
    pub states: Vec<f64>,
    /// `[transitions, chains, dim]`
    pub proposals: Vec<f64>,
    /// `[transitions, chains]`
    pub log_alpha: Vec<f64>,
    /// `[transitions, chains]`
    pub accepted: Vec<bool>,
}

/// The seed's chain with given noise, in log space: `theta' = theta + step z`, accepted if `ln u < ln α`. The
/// density at the current state is kept, not computed again.
///
/// `start` `[chains, dim]`, `z` `[transitions, chains, dim]` standard normal, `u` `[transitions, chains]` uniform.
/// A documented baseline: with a step of 1 it accepts 0.2 to 4.6 % on SLCP and does not cross modes.
pub fn seed_metropolis(density: &dyn Density, start: &[f64], step: f64, z: &[f64], u: &[f64]) -> SeedTrace {
    let mut target = Target::new(density);
    let mut chains = Chains::at(start.to_vec(), &mut target);
    let n = chains.prior.len();
    let mut trace = SeedTrace { states: start.to_vec(), ..SeedTrace::default() };
    for (z, u) in z.chunks_exact(start.len()).zip(u.chunks_exact(n)) {
        let theta: Vec<f64> = chains.theta.iter().zip(z).map(|(t, z)| t + step * z).collect();
        trace.proposals.extend_from_slice(&theta);
        let proposals = Chains::at(theta, &mut target);
        let mut u = u.iter().copied();
        decide(
            &mut chains,
            &proposals,
            1.0,
            || u.next().expect("one number per chain"),
            |_, log_alpha, is_accepted| {
                trace.log_alpha.push(log_alpha);
                trace.accepted.push(is_accepted);
            },
        );
        trace.states.extend_from_slice(&chains.theta);
    }
    trace
}

/// The transitions that the seed keeps of `kept` times `thinning` rows: `0, thinning, 2 thinning, ...`. The first is
/// the start, a draw from the prior; there is no warm-up.
pub fn kept_rows(kept: usize, thinning: usize) -> Vec<usize> {
    (0..kept).map(|i| i * thinning).collect()
}

/// Random-walk Metropolis with many chains. Starts are prior draws resampled by the density. In the warm-up the
/// proposal takes the covariance of the lane's chains, and its scale is adapted to an acceptance of 0.3; after it
/// both are fixed. Proposals outside of the prior are refused.
///
/// Exact in the limit; modes are hardly ever crossed, so their weights are those of the starts.
/// Reference: Metropolis et al. 1953; Haario, Saksman, Tamminen 2001; Roberts, Gelman, Gilks 1997.
#[derive(Clone, Debug, PartialEq)]
pub struct Metropolis {
    /// Chains; default 256.
    pub chains: usize,
    /// Steps of the warm-up; default 500.
    pub warmup: usize,
    /// Steps after it; default 1000.
    pub steps: usize,
    /// Every so many steps a state is kept; default 5.
    pub thinning: usize,
}

impl Default for Metropolis {
    fn default() -> Self {
        Metropolis { chains: 256, warmup: 500, steps: 1000, thinning: 5 }
    }
}

/// Chains per lane at most.
pub(super) const LANE: usize = 128;
/// Acceptance that the scale is adapted to.
const WANTED: f64 = 0.3;
/// Prior draws per chain among which starts are resampled.
const STARTS: usize = 16;

/// Numbers of chains of lanes.
pub(super) fn lanes(chains: usize) -> Vec<usize> {
    let lanes = chains.div_ceil(LANE).max(1);
    (0..lanes).map(|i| chains / lanes + usize::from(i < chains % lanes)).collect()
}

/// Chains at prior draws, resampled by their density.
pub(super) fn starts(n: usize, key: Key, target: &mut Target<'_>, density: &dyn Density) -> Chains {
    let d = target.dim();
    let pool = Chains::from_prior(STARTS * n, key.named("starts"), target, density.prior());
    let index = super::smc::resample(&pool.factor, n, key.named("resample").uniform());
    pool.picked(&index, d)
}

impl Metropolis {
    /// One lane: kept states.
    fn lane(&self, density: &dyn Density, n: usize, key: Key) -> LaneTrace {
        let mut target = Target::new(density);
        let d = target.dim();
        let mut chains = starts(n, key, &mut target, density);
        let mut walk = Walk::new(d, &density.prior().ranges());
        let mut trace = LaneTrace { chains: n, ..LaneTrace::default() };
        let mut moved = vec![false; n];
        let mut z = vec![0.0; n * d];
        for step in 0..self.warmup + self.steps {
            let key = key.fold_in(step as u64);
            key.fill_normal(&mut z);
            let mut rng = key.named("accept").rng();
            let proposals = Chains::at(walk.propose(&chains.theta, &z), &mut target);
            let (is_warm, mut accepted) = (step >= self.warmup, 0);
            decide(
                &mut chains,
                &proposals,
                1.0,
                || rng.gen(),
                |i, _, yes| {
                    accepted += u64::from(yes);
                    moved[i] |= yes && is_warm;
                },
            );
            if !is_warm {
                walk.adapt(&chains.theta, accepted as f64 / n as f64, step);
                continue;
            }
            trace.accepted += accepted;
            trace.proposed += n as u64;
            if (step + 1 - self.warmup) % self.thinning == 0 {
                trace.states.extend_from_slice(&chains.theta);
            }
        }
        trace.stuck = moved.iter().filter(|m| !**m).count();
        (trace.evaluations, trace.invalid) = (target.evaluations, target.invalid);
        trace
    }
}

/// A normal proposal: its factor and scale.
struct Walk {
    d: usize,
    /// Lower triangular, `[d, d]`.
    factor: Vec<f64>,
    log_scale: f64,
    /// Sum of weights, mean and scatter of the states seen.
    seen: (f64, Vec<f64>, Vec<f64>),
}

impl Walk {
    fn new(d: usize, ranges: &[(f64, f64)]) -> Self {
        let mut factor = vec![0.0; d * d];
        ranges.iter().enumerate().for_each(|(k, (l, h))| factor[k * d + k] = 0.1 * (h - l));
        Walk {
            d,
            factor,
            log_scale: (2.38 / (d as f64).sqrt()).ln(),
            seen: (0.0, vec![0.0; d], vec![0.0; d * d]),
        }
    }

    /// `theta + s L z`
    fn propose(&self, theta: &[f64], z: &[f64]) -> Vec<f64> {
        let (d, s) = (self.d, self.log_scale.exp());
        let mut out = theta.to_vec();
        for (t, z) in out.chunks_exact_mut(d).zip(z.chunks_exact(d)) {
            // The factor is lower triangular.
            for (k, (t, row)) in t.iter_mut().zip(self.factor.chunks_exact(d)).enumerate() {
                *t += s * row[..=k].iter().zip(z).map(|(l, z)| l * z).sum::<f64>();
            }
        }
        out
    }

    fn adapt(&mut self, theta: &[f64], acceptance: f64, step: usize) {
        let d = self.d;
        self.log_scale += (acceptance - WANTED) / (1.0 + step as f64).powf(0.6);
        let (n, mean, scatter) = &mut self.seen;
        // Old states count less and less.
        let n0 = *n * 0.98;
        scatter.iter_mut().for_each(|s| *s *= 0.98);
        *n = n0;
        for t in theta.chunks_exact(d) {
            *n += 1.0;
            let before: Vec<f64> = t.iter().zip(&*mean).map(|(t, m)| t - m).collect();
            mean.iter_mut().zip(&before).for_each(|(m, b)| *m += b / *n);
            for i in 0..d {
                for j in 0..d {
                    scatter[i * d + j] += before[i] * (t[j] - mean[j]);
                }
            }
        }
        if step % 20 == 19 {
            let cov: Vec<f64> = scatter.iter().map(|s| s / *n).collect();
            if let Some(factor) = cholesky(&cov, d) {
                self.factor = factor;
            }
        }
    }
}

/// The lower factor of a positive definite matrix, if it is one.
fn cholesky(a: &[f64], d: usize) -> Option<Vec<f64>> {
    let mut l = vec![0.0; d * d];
    for i in 0..d {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i * d + k] * l[j * d + k]).sum();
            if i == j {
                let pivot = a[i * d + i] - sum;
                if pivot.is_nan() || pivot <= 1e-14 * a[i * d + i] {
                    return None;
                }
                l[i * d + i] = pivot.sqrt();
            } else {
                l[i * d + j] = (a[i * d + j] - sum) / l[j * d + j];
            }
        }
    }
    Some(l)
}

impl Sampler for Metropolis {
    fn name(&self) -> String {
        "mh".into()
    }
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples> {
        check_count(n)?;
        let counts = [("chains", self.chains), ("steps", self.steps), ("thinning", self.thinning)];
        check_settings("metropolis", counts.map(|(k, v)| (k, v as f64, Interval::COUNT)))?;
        Interval::at_least(4.0 * self.thinning as f64).check("metropolis: steps", self.steps as f64)?;
        let mut jobs = lanes(self.chains);
        let lanes = workers.map(&mut jobs, |_, i, n| self.lane(density, *n, key.fold_in(i as u64)));
        Ok(gather(&self.name(), density.prior().dim(), &lanes, n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{FnDensity, UniformBox};

    /// A correlated normal in a wide box.
    fn target() -> FnDensity<impl Fn(&[f64], &mut [f64]) -> f64 + Send + Sync> {
        let prior = UniformBox::cube(2, -10.0, 10.0).unwrap();
        // Precision [[2, −1.2], [−1.2, 1]]: covariance [[1, 1.2], [1.2, 2]]/0.56.
        FnDensity::new(prior, |t: &[f64], g: &mut [f64]| {
            let (a, b) = (t[0] - 1.0, t[1] + 2.0);
            g[0] = -(2.0 * a - 1.2 * b);
            g[1] = -(b - 1.2 * a);
            0.5 * (g[0] * a + g[1] * b)
        })
    }

    #[test]
    fn adapted_chains_have_the_moments() {
        let (density, mh) = (target(), Metropolis { chains: 140, ..Metropolis::default() });
        let s = mh.sample(&density, 1000, Key::new(1), &Workers::new(2).unwrap()).unwrap();
        assert_eq!(s, mh.sample(&density, 1000, Key::new(1), &Workers::new(1).unwrap()).unwrap());
        let r = &s.report;
        assert!(r.warnings().is_empty() && r.rhat.iter().all(|r| *r < 1.02), "{r:?}");
        assert!((0.2..0.45).contains(&r.acceptance), "{r:?}");
        // Over the 1000 draws that were asked for; they are of at least 140 chains.
        for (k, (mean, var)) in [(1.0, 1.0 / 0.56), (-2.0, 2.0 / 0.56f64)].into_iter().enumerate() {
            let se = (var / 140.0f64).sqrt();
            assert!((s.mean()[k] - mean).abs() < 4.0 * se, "{:?}", s.mean());
            assert!((s.std()[k] / var.sqrt() - 1.0).abs() < 4.0 / (2.0 * 140.0f64).sqrt(), "{:?}", s.std());
        }
    }

    #[test]
    fn a_density_without_mass_leaves_stuck_chains() {
        let prior = UniformBox::cube(1, 0.0, 1.0).unwrap();
        let density = FnDensity::new(prior, |_: &[f64], _: &mut [f64]| f64::NAN);
        let mh = Metropolis { chains: 3, warmup: 5, steps: 20, thinning: 1 };
        let s = mh.sample(&density, 10, Key::new(1), &Workers::new(1).unwrap()).unwrap();
        let said = s.report.warnings().join("\n");
        assert!(
            said.contains("3 of 3 chains are stuck") && said.contains("the density was NaN at"),
            "{said}"
        );
    }
}
