//! Sequential Monte Carlo: from the prior to the posterior in steps.

use super::metropolis::decide;
use super::{check_count, Chains, SampleReport, Sampler, Samples};
use crate::ratio::density::{Density, Target};
use crate::ratio::metrics::chains::{effective_sample_size, importance_weights, split_rhat};
use outerloop_core::{check_settings, Interval, Key, Result};
use outerloop_outer::Workers;
use rand::Rng;

/// Tempered sequential Monte Carlo: particles drawn from the prior follow `p(theta) e^{β f(theta)}` as β rises
/// from 0 to 1. Every step of β leaves a given share of effective particles; they are resampled, and moved by
/// Metropolis steps whose proposals come from the particles themselves:
///
/// - differential evolution, `theta + γ (a − b)` with two particles of the other half of the population, in some of
///   the coordinates; now and then `γ = 1`, which jumps between modes. Coordinates whose flips are mostly accepted
///   are folded at the centre of the prior: what counts is how far `a` and `b` are from it, so that particles of
///   mirrored modes help each other;
/// - a flip of one coordinate at the centre of the prior, which crosses symmetric modes; coordinates where flips
///   were accepted are tried more often.
///
/// Finds all modes that the prior draws reach, and gives the evidence: `Π mean e^{Δβ f}`, unbiased but for the
/// adaption. At β = 1 moves go on, and their states are the draws. The populations are independent: R-hat
/// compares them, so that it also sees what chains of one population have in common.
///
/// Cost: `particles (steps of β · moves + final_moves)` rows. Proposals outside of the prior are refused (a
/// reflection would not be symmetric where coordinates move together).
/// Reference: Del Moral, Doucet, Jasra 2006; ter Braak, Vrugt 2008 (differential evolution).
#[derive(Clone, Debug, PartialEq)]
pub struct Smc {
    /// Particles of all populations together; default 2000.
    pub particles: usize,
    /// Independent populations; default 4.
    pub populations: usize,
    /// Effective share of particles after a step of β, in (0, 1); default 0.5.
    pub ess: f64,
    /// Moves per step of β; default 4.
    pub moves: usize,
    /// Moves at β = 1; default 20.
    pub final_moves: usize,
    /// Every so many of the final moves, states are kept; default 5.
    pub thinning: usize,
}

impl Default for Smc {
    fn default() -> Self {
        Smc { particles: 2000, populations: 4, ess: 0.5, moves: 4, final_moves: 20, thinning: 5 }
    }
}

/// Share of proposals that flip a coordinate, and of the others that have γ = 1.
const FLIPS: f64 = 0.25;
const JUMPS: f64 = 0.1;
/// Least particles of a population: differential evolution needs other particles.
const LEAST: usize = 16;

/// Indices of `n` draws from the weights `e^w`, by one uniform number: systematic resampling. Where all weights
/// are 0, all count alike.
pub fn resample(log_weights: &[f64], n: usize, u: f64) -> Vec<usize> {
    let mut weights = importance_weights(log_weights).normalized;
    if weights.iter().any(|w| w.is_nan()) {
        weights = vec![1.0 / log_weights.len() as f64; log_weights.len()];
    }
    let (mut out, mut sum, mut i) = (Vec::with_capacity(n), weights[0], 0);
    for k in 0..n {
        let at = (k as f64 + u) / n as f64;
        while sum < at && i + 1 < weights.len() {
            i += 1;
            sum += weights[i];
        }
        out.push(i);
    }
    out
}

/// The largest β up to 1 whose weights `e^{(β' − β) f}` leave `share` of the particles effective.
fn next_beta(factor: &[f64], beta: f64, share: f64) -> f64 {
    let effective = |next: f64| {
        // 0 · ∞ has no value: what has no mass stays without.
        let w: Vec<f64> =
            factor.iter().map(|f| if *f == f64::NEG_INFINITY { *f } else { (next - beta) * f }).collect();
        importance_weights(&w).ess / factor.len() as f64
    };
    if effective(1.0) >= share {
        return 1.0;
    }
    let (mut low, mut high) = (beta, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if effective(middle) >= share {
            low = middle;
        } else {
            high = middle;
        }
    }
    // At least a little, where particles without mass already leave too few.
    low.max(beta + 1e-9).min(1.0)
}

/// One population.
struct Population<'a> {
    target: Target<'a>,
    chains: Chains,
    d: usize,
    centre: Vec<f64>,
    /// Accepted and tried flips per coordinate.
    flips: Vec<[f64; 2]>,
    /// How often a coordinate is chosen to be flipped; fixed during a step of β.
    flip_weight: Vec<f64>,
    accepted: u64,
    proposed: u64,
}

impl Population<'_> {
    /// One Metropolis step for each particle: the first half with differences of the second, then the other way.
    fn sweep(&mut self, beta: f64, key: Key) {
        let n = self.chains.prior.len();
        let mut rng = key.rng();
        for half in [0..n / 2, n / 2..n] {
            let other = if half.start == 0 { n / 2..n } else { 0..n / 2 };
            let index: Vec<usize> = half.clone().collect();
            let mut flipped = vec![None; index.len()];
            let mut theta = Vec::with_capacity(index.len() * self.d);
            for (i, flipped) in index.iter().zip(&mut flipped) {
                let row = &self.chains.theta[i * self.d..(i + 1) * self.d];
                if rng.gen::<f64>() < FLIPS {
                    let k = self.flip_coordinate(rng.gen());
                    *flipped = Some(k);
                    let mirrored = |(j, t): (usize, &f64)| if j == k { 2.0 * self.centre[k] - t } else { *t };
                    theta.extend(row.iter().enumerate().map(mirrored));
                } else {
                    self.differential(row, other.clone(), &mut rng, &mut theta);
                }
            }
            let proposals = Chains::at(theta, &mut self.target);
            let mut mine = self.chains.picked(&index, self.d);
            let (flips, accepted) = (&mut self.flips, &mut self.accepted);
            decide(
                &mut mine,
                &proposals,
                beta,
                || rng.gen(),
                |i, _, yes| {
                    let yes = u64::from(yes);
                    *accepted += yes;
                    if let Some(k) = flipped[i] {
                        flips[k][0] += yes as f64;
                        flips[k][1] += 1.0;
                    }
                },
            );
            self.proposed += index.len() as u64;
            self.chains.theta[half.start * self.d..half.end * self.d].copy_from_slice(&mine.theta);
            self.chains.prior[half.clone()].copy_from_slice(&mine.prior);
            self.chains.factor[half].copy_from_slice(&mine.factor);
        }
    }

    /// A coordinate, in proportion to how often its flips were accepted.
    fn flip_coordinate(&self, u: f64) -> usize {
        let mut left = u * self.flip_weight.iter().sum::<f64>();
        for (k, w) in self.flip_weight.iter().enumerate() {
            left -= w;
            if left < 0.0 {
                return k;
            }
        }
        self.d - 1
    }

    /// `theta + γ (a − b)` in a random part of the coordinates.
    fn differential(
        &self,
        row: &[f64],
        other: std::ops::Range<usize>,
        rng: &mut impl Rng,
        out: &mut Vec<f64>,
    ) {
        let d = self.d;
        let a = rng.gen_range(other.clone());
        let mut b = rng.gen_range(other.start..other.end - 1);
        b += usize::from(b >= a);
        let share = [1.0 / 3.0, 2.0 / 3.0, 1.0][rng.gen_range(0..3)];
        let always = rng.gen_range(0..d);
        let start = out.len();
        let mut moved = 0;
        for (k, own) in row.iter().enumerate().take(d) {
            let is_moved = k == always || rng.gen::<f64>() < share;
            let [at_a, at_b] = [a, b].map(|i| self.chains.theta[i * d + k] - self.centre[k]);
            let difference = if self.folded(k) {
                (at_a.abs() - at_b.abs()) * (own - self.centre[k]).signum()
            } else {
                at_a - at_b
            };
            moved += usize::from(is_moved);
            out.push(if is_moved { difference } else { 0.0 });
        }
        // A spread of scales: what is best for a normal target is rarely best for both ends of a banana.
        let gamma = if rng.gen::<f64>() < JUMPS {
            1.0
        } else {
            2.38 / (2.0 * moved as f64).sqrt() * (0.3 + rng.gen::<f64>())
        };
        for (k, (o, t)) in out[start..].iter_mut().zip(row).enumerate() {
            *o = t + gamma * *o;
            // A folded coordinate that changes its side has no way back by the same difference: refused.
            if self.folded(k) && (*o - self.centre[k]) * (t - self.centre[k]) < 0.0 {
                *o = f64::NAN;
            }
        }
    }

    /// Whether most flips of a coordinate were accepted, up to the last step of β.
    fn folded(&self, k: usize) -> bool {
        self.flip_weight[k] > 0.5
    }
}

/// What a population leaves.
struct Finished {
    /// `[kept, particles, dim]`
    states: Vec<f64>,
    particles: usize,
    log_evidence: f64,
    accepted: u64,
    proposed: u64,
    stuck: usize,
    evaluations: u64,
    invalid: u64,
}

impl Smc {
    fn population(&self, density: &dyn Density, n: usize, key: Key) -> Finished {
        let mut target = Target::new(density);
        let d = target.dim();
        let centre = density.prior().ranges().iter().map(|(l, h)| 0.5 * (l + h)).collect();
        let chains = Chains::from_prior(n, key.named("prior"), &mut target, density.prior());
        let (flips, flip_weight) = (vec![[0.0; 2]; d], vec![0.5; d]);
        let mut p = Population { target, chains, d, centre, flips, flip_weight, accepted: 0, proposed: 0 };
        let (mut beta, mut log_evidence, mut step) = (0.0, 0.0, 0);
        while beta < 1.0 {
            let next = next_beta(&p.chains.factor, beta, self.ess);
            let weight = |f: &f64| if *f == f64::NEG_INFINITY { *f } else { (next - beta) * f };
            let weights: Vec<f64> = p.chains.factor.iter().map(weight).collect();
            log_evidence += importance_weights(&weights).log_mean;
            if log_evidence.is_nan() || log_evidence == f64::NEG_INFINITY {
                break;
            }
            let key = key.named("temper").fold_in(step);
            p.chains = p.chains.picked(&resample(&weights, n, key.uniform()), d);
            // Halves must not be copies of each other.
            p.chains = p.chains.picked(&shuffled(n, key.named("halves")), d);
            beta = next;
            p.flip_weight = p.flips.iter().map(|f| (f[0] + 1.0) / (f[1] + 2.0)).collect();
            p.flips.fill([0.0; 2]);
            for m in 0..self.moves {
                p.sweep(beta, key.named("move").fold_in(m as u64));
            }
            step += 1;
        }
        // What follows is a fixed kernel.
        (p.accepted, p.proposed) = (0, 0);
        let before = p.chains.theta.clone();
        let mut states = Vec::new();
        for m in 0..self.final_moves {
            p.sweep(1.0, key.named("final").fold_in(m as u64));
            if (m + 1) % self.thinning == 0 {
                states.extend_from_slice(&p.chains.theta);
            }
        }
        let moved = before.chunks_exact(d).zip(p.chains.theta.chunks_exact(d));
        Finished {
            states,
            particles: n,
            log_evidence,
            accepted: p.accepted,
            proposed: p.proposed,
            stuck: moved.filter(|(a, b)| a == b).count(),
            evaluations: p.target.evaluations,
            invalid: p.target.invalid,
        }
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("populations", self.populations),
            ("moves", self.moves),
            ("thinning", self.thinning),
            ("final_moves", self.final_moves),
        ];
        check_settings("smc", counts.map(|(k, v)| (k, v as f64, Interval::COUNT)))?;
        Interval::at_least((LEAST * self.populations) as f64)
            .check("smc: particles", self.particles as f64)?;
        Interval::at_least(self.thinning as f64).check("smc: final_moves", self.final_moves as f64)?;
        if !(self.ess > 0.0 && self.ess < 1.0) {
            let why = format!("expected a share in (0, 1), got {}", self.ess);
            return Err(outerloop_core::Error::invalid("smc: ess", why));
        }
        Ok(())
    }
}

/// `0..n` in a keyed order.
fn shuffled(n: usize, key: Key) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut rng = key.rng();
    for i in (1..n).rev() {
        order.swap(i, rng.gen_range(0..=i));
    }
    order
}

impl Sampler for Smc {
    fn name(&self) -> String {
        "smc".into()
    }
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples> {
        check_count(n)?;
        self.validate()?;
        let (d, populations) = (density.prior().dim(), self.populations);
        let size = |i: usize| self.particles / populations + usize::from(i < self.particles % populations);
        let mut sizes: Vec<usize> = (0..populations).map(size).collect();
        let done = workers.map(&mut sizes, |_, i, n| self.population(density, *n, key.fold_in(i as u64)));
        let kept = self.final_moves / self.thinning;
        // Latest states first, one population after the other.
        let mut rows: Vec<&[f64]> = Vec::new();
        for s in (0..kept).rev() {
            for p in &done {
                rows.extend(p.states[s * p.particles * d..(s + 1) * p.particles * d].chunks_exact(d));
            }
        }
        // Fewer draws than particles come evenly from all populations.
        let stride = if n <= self.particles { self.particles as f64 / n as f64 } else { 1.0 };
        let pick = |i: usize| rows[(i as f64 * stride) as usize % rows.len()];
        let draws = (0..n).flat_map(|i| pick(i).iter().copied()).collect();
        let (mut rhat, mut ess) = (Vec::new(), Vec::new());
        for k in 0..d {
            // Particles of a population in a row: as a chain they have no order to speak of.
            let shortest = done.iter().map(|p| p.states.len() / d).min().unwrap_or(0);
            let whole: Vec<Vec<f64>> = done
                .iter()
                .map(|p| p.states.iter().skip(k).step_by(d).take(shortest).copied().collect())
                .collect();
            rhat.push(split_rhat(&whole.iter().map(|c| &c[..]).collect::<Vec<_>>()));
            let tracks: Vec<Vec<f64>> = done
                .iter()
                .flat_map(|p| {
                    (0..p.particles)
                        .map(move |c| (0..kept).map(|s| p.states[(s * p.particles + c) * d + k]).collect())
                })
                .collect();
            ess.push(effective_sample_size(&tracks.iter().map(|c| &c[..]).collect::<Vec<_>>()));
        }
        let sum = |f: fn(&Finished) -> u64| done.iter().map(f).sum::<u64>();
        let logs: Vec<f64> = done.iter().map(|p| p.log_evidence).collect();
        let stuck: usize = done.iter().map(|p| p.stuck).sum();
        let report = SampleReport {
            sampler: self.name(),
            evaluations: sum(|p| p.evaluations),
            invalid: sum(|p| p.invalid),
            acceptance: sum(|p| p.accepted) as f64 / sum(|p| p.proposed).max(1) as f64,
            rhat: if populations > 1 { rhat } else { Vec::new() },
            ess: if kept >= 4 { ess } else { Vec::new() },
            stuck: if stuck > self.particles / 10 { stuck } else { 0 },
            chains: self.particles,
            log_evidence: Some(importance_weights(&logs).log_mean),
        };
        Ok(Samples { dim: d, draws, report })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::exact::{slcp_posterior, Resolution};
    use crate::ratio::sample::seed_metropolis;
    use crate::ratio::simulators::{GaussianLinear, Slcp};
    use crate::ratio::{ExactDensity, Simulator};

    /// Data of the seed's parameters.
    fn observation() -> [f64; 8] {
        let mut x = [0.0; 8];
        Slcp::seed().simulate(&[0.7, -2.9, -1.0, -0.9, 0.6], Key::new(7), &mut x);
        x
    }

    /// Shares of the draws with `(θ₃ > 0, θ₄ > 0)`.
    fn modes(draws: &[f64]) -> [f64; 4] {
        let mut modes = [0.0; 4];
        for t in draws.chunks_exact(5) {
            modes[2 * usize::from(t[2] > 0.0) + usize::from(t[3] > 0.0)] += 5.0 / draws.len() as f64;
        }
        modes
    }

    #[test]
    fn all_modes_of_the_exact_likelihood_have_their_weights_and_moments() {
        let (slcp, x, workers) = (Slcp::seed(), observation(), Workers::new(2).unwrap());
        let exact = slcp_posterior(&x, Resolution { panels: 6, nodes: 6 }, &workers);
        let density = ExactDensity::new(&slcp, &x).unwrap();
        let smc = Smc { particles: 600, populations: 4, final_moves: 1500, thinning: 3, ..Smc::default() };
        let s = smc.sample(&density, 600_000, Key::new(1), &workers).unwrap();
        let r = &s.report;
        assert!(r.rhat.iter().all(|r| *r < 1.01) && r.warnings().is_empty(), "{r:?}");
        let effective = r.ess[2].min(r.ess[3]);
        for weight in modes(&s.draws) {
            assert!(
                (weight - 0.25).abs() < 3.0 * (0.1875 / effective).sqrt(),
                "{:?} {effective}",
                modes(&s.draws)
            );
        }
        let (mean, cov) = exact.signed();
        for k in 0..5 {
            let se = (cov[k][k] / r.ess[k]).sqrt();
            assert!((s.mean()[k] - mean[k]).abs() < 3.0 * se, "{k}: {:?} {mean:?} {se}", s.mean());
            let folded: Vec<f64> =
                s.column(k).iter().map(|t| if k == 2 || k == 3 { t.abs() } else { *t }).collect();
            let mean = folded.iter().sum::<f64>() / folded.len() as f64;
            // Absolute values forget faster or slower than the signs: the slowest parameter bounds them.
            let least = r.ess.iter().copied().fold(f64::INFINITY, f64::min);
            let se = (exact.cov[k][k] / least).sqrt();
            assert!((mean - exact.mean[k]).abs() < 3.0 * se, "{k}: {mean} {:?} {se}", exact.mean);
        }
        // The evidence takes many particles, and moves enough for each step of β.
        let smc = Smc { particles: 8000, moves: 12, ..Smc::default() };
        let s = smc.sample(&density, 100, Key::new(1), &workers).unwrap();
        let evidence = s.report.log_evidence.unwrap();
        assert!((evidence - exact.log_evidence).abs() < 0.5, "{evidence} {}", exact.log_evidence);
    }

    #[test]
    fn the_seeds_chain_fails_on_the_same_density() {
        let (slcp, x) = (Slcp::seed(), observation());
        let density = ExactDensity::new(&slcp, &x).unwrap();
        let (n, steps) = (10, 2000);
        let (mut z, mut start) = (vec![0.0; n * steps * 5], vec![0.0; n * 5]);
        Key::new(1).fill_normal(&mut z);
        start.chunks_exact_mut(5).enumerate().for_each(|(i, t)| slcp.prior().sample(Key::new(i as u64), t));
        let mut rng = Key::new(2).rng();
        let u: Vec<f64> = (0..n * steps).map(|_| rng.gen()).collect();
        let trace = seed_metropolis(&density, &start, 1.0, &z, &u);
        let rate = trace.accepted.iter().filter(|a| **a).count() as f64 / (n * steps) as f64;
        let chains: Vec<Vec<f64>> =
            (0..n).map(|c| trace.states.iter().skip(5 * c + 1).step_by(5 * n).copied().collect()).collect();
        let rhat = split_rhat(&chains.iter().map(|c| &c[..]).collect::<Vec<_>>());
        assert!(rate < 0.05 && (rhat > 1.05 || rhat.is_nan()), "{rate} {rhat}");
    }

    #[test]
    fn a_gaussian_posterior_has_its_moments_and_evidence_on_any_threads() {
        let g = GaussianLinear::new(4).unwrap();
        let x = [0.5, -0.3, 0.1, 1.0];
        let density = ExactDensity::new(&g, &x).unwrap();
        let smc = Smc { final_moves: 200, ..Smc::default() };
        let s = smc.sample(&density, 2000, Key::new(3), &Workers::new(3).unwrap()).unwrap();
        assert_eq!(s, smc.sample(&density, 2000, Key::new(3), &Workers::new(1).unwrap()).unwrap());
        // Particles that share an ancestor count once: a factor of 2 on the standard error.
        let se = 2.0 * g.posterior_std() / 2000f64.sqrt();
        for (k, mean) in g.posterior_mean(&x).iter().enumerate() {
            assert!((s.mean()[k] - mean).abs() < 4.0 * se, "{:?}", s.mean());
            assert!((s.std()[k] / g.posterior_std() - 1.0).abs() < 0.1, "{:?}", s.std());
        }
        let evidence = s.report.log_evidence.unwrap();
        assert!((evidence - g.log_evidence(&x)).abs() < 0.3, "{evidence} {}", g.log_evidence(&x));
    }

    #[test]
    fn resampling_keeps_weights() {
        let logs = [0.1f64.ln(), f64::NEG_INFINITY, 0.7f64.ln(), 0.2f64.ln()];
        let index = resample(&logs, 1000, 0.5);
        let count = |i| index.iter().filter(|k| **k == i).count();
        assert_eq!([count(0), count(1), count(2), count(3)], [100, 0, 700, 200]);
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let error = |smc: Smc| smc.validate().unwrap_err().to_string();
        assert!(error(Smc { particles: 10, ..Smc::default() }).contains("expected a number in [64"));
        assert!(error(Smc { ess: 1.0, ..Smc::default() }).contains("share in (0, 1), got 1"));
    }
}
