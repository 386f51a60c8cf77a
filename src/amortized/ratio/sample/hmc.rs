//! Hamiltonian Monte Carlo.

use super::metropolis::{accepts, lanes, starts};
use super::{check_count, gather, LaneTrace, Sampler, Samples};
use crate::ratio::density::{Density, Target};
use outerloop_core::{check_settings, Error, Interval, Key, Result};
use outerloop_outer::Workers;
use rand::Rng;

/// Hamiltonian Monte Carlo with the density's gradient. Bounded parameters are stretched over the real line by a
/// logit, so that no trajectory leaves the prior. In the warm-up the step size of a lane is adapted to an
/// acceptance of 0.8 by dual averaging, and the mass to the deviations of its chains; the number of steps of a
/// trajectory varies, so that none returns to its start.
///
/// Modes are hardly ever crossed: their weights are those of the starts, prior draws resampled by the density.
/// Reference: Neal 2011, arXiv:1206.1901; Hoffman, Gelman 2014, arXiv:1111.4246.
#[derive(Clone, Debug, PartialEq)]
pub struct Hmc {
    /// Chains; default 128.
    pub chains: usize,
    /// Trajectories of the warm-up; default 150.
    pub warmup: usize,
    /// Trajectories after it; default 150.
    pub steps: usize,
    /// Steps per trajectory at most; default 16.
    pub leapfrogs: usize,
}

impl Default for Hmc {
    fn default() -> Self {
        Hmc { chains: 128, warmup: 150, steps: 150, leapfrogs: 16 }
    }
}

/// Acceptance that the step size is adapted to.
const WANTED: f64 = 0.8;

/// Parameters on the real line: `y = logit((theta − low)/(high − low))` where there are bounds.
struct Stretch(Vec<(f64, f64)>);

impl Stretch {
    fn forward(&self, theta: &[f64]) -> Vec<f64> {
        let d = self.0.len();
        let y = |(i, t): (usize, &f64)| match self.0[i % d] {
            (l, h) if (h - l).is_finite() => {
                // A start on the very edge would lie at infinity.
                let u = ((t - l) / (h - l)).clamp(1e-9, 1.0 - 1e-9);
                (u / (1.0 - u)).ln()
            }
            _ => *t,
        };
        theta.iter().enumerate().map(y).collect()
    }
    fn back(&self, y: &[f64]) -> Vec<f64> {
        let d = self.0.len();
        let t = |(i, y): (usize, &f64)| match self.0[i % d] {
            (l, h) if (h - l).is_finite() => l + (h - l) / (1.0 + (-y).exp()),
            _ => *y,
        };
        y.iter().enumerate().map(t).collect()
    }
    /// Log density and gradient of `y`: adds `ln |dtheta/dy|`, and turns gradients.
    fn density(&self, target: &mut Target<'_>, y: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let d = self.0.len();
        let (mut value, mut grad) = (vec![0.0; y.len() / d], vec![0.0; y.len()]);
        target.gradient(&self.back(y), &mut value, &mut grad);
        for (i, (g, y)) in grad.iter_mut().zip(y).enumerate() {
            let (l, h) = self.0[i % d];
            if (h - l).is_finite() {
                let u = 1.0 / (1.0 + (-y).exp());
                let slope = (h - l) * u * (1.0 - u);
                value[i / d] += slope.max(f64::MIN_POSITIVE).ln();
                *g = *g * slope + 1.0 - 2.0 * u;
            }
        }
        (value, grad)
    }
}

/// Dual averaging of the logarithm of the step size.
struct StepSize {
    log: f64,
    average: f64,
    error: f64,
    centre: f64,
    t: f64,
}

impl StepSize {
    fn new(step: f64) -> Self {
        StepSize { log: step.ln(), average: step.ln(), error: 0.0, centre: (10.0 * step).ln(), t: 0.0 }
    }
    fn adapt(&mut self, acceptance: f64) {
        self.t += 1.0;
        let w = 1.0 / (self.t + 10.0);
        self.error = (1.0 - w) * self.error + w * (WANTED - acceptance);
        self.log = self.centre - self.t.sqrt() / 0.05 * self.error;
        let w = self.t.powf(-0.75);
        self.average = w * self.log + (1.0 - w) * self.average;
    }
}

impl Hmc {
    fn lane(&self, density: &dyn Density, n: usize, key: Key) -> LaneTrace {
        let mut target = Target::new(density);
        let (d, stretch) = (target.dim(), Stretch(density.prior().bounds()));
        let mut y = stretch.forward(&starts(n, key, &mut target, density).theta);
        let (mut value, mut grad) = stretch.density(&mut target, &y);
        let mut scale = deviations(&y, d);
        let mut size = StepSize::new(0.1);
        let mut trace = LaneTrace { chains: n, ..LaneTrace::default() };
        let mut moved = vec![false; n];
        let mut p = vec![0.0; n * d];
        for step in 0..self.warmup + self.steps {
            let key = key.fold_in(step as u64);
            let is_warm = step >= self.warmup;
            let mut rng = key.named("accept").rng();
            let h = if is_warm { size.average } else { size.log }.exp();
            let leapfrogs = rng.gen_range(1..=self.leapfrogs);
            key.fill_normal(&mut p);
            let kinetic = |p: &[f64]| p.iter().map(|p| 0.5 * p * p).sum::<f64>();
            let start: Vec<f64> = p.chunks_exact(d).map(kinetic).collect();
            let (mut q, mut v, mut g) = (y.clone(), value.clone(), grad.clone());
            // In units of the deviations the mass is 1.
            let kick = |p: &mut [f64], g: &[f64], c: f64| {
                for (i, (p, g)) in p.iter_mut().zip(g).enumerate() {
                    *p += c * h * g * scale[i % d];
                }
            };
            for _ in 0..leapfrogs {
                kick(&mut p, &g, 0.5);
                for (i, (q, p)) in q.iter_mut().zip(&p).enumerate() {
                    *q += h * p * scale[i % d];
                }
                (v, g) = stretch.density(&mut target, &q);
                kick(&mut p, &g, 0.5);
            }
            let mut acceptance = 0.0;
            for i in 0..n {
                let row = i * d..(i + 1) * d;
                let log_alpha = v[i] - kinetic(&p[row.clone()]) - (value[i] - start[i]);
                let yes = accepts(log_alpha, rng.gen());
                acceptance += if log_alpha.is_nan() { 0.0 } else { log_alpha.min(0.0).exp() / n as f64 };
                if yes {
                    y[row.clone()].copy_from_slice(&q[row.clone()]);
                    grad[row.clone()].copy_from_slice(&g[row]);
                    value[i] = v[i];
                }
                moved[i] |= yes && is_warm;
                trace.accepted += u64::from(yes && is_warm);
                trace.proposed += u64::from(is_warm);
            }
            if is_warm {
                trace.states.extend(stretch.back(&y));
            } else {
                size.adapt(acceptance);
                if step == self.warmup / 3 || step == 2 * self.warmup / 3 {
                    scale = deviations(&y, d);
                    size = StepSize::new(size.average.exp());
                }
            }
        }
        trace.stuck = moved.iter().filter(|m| !**m).count();
        (trace.evaluations, trace.invalid) = (target.evaluations, target.invalid);
        trace
    }
}

/// Standard deviations of the coordinates of rows; 1 where there is none.
fn deviations(y: &[f64], d: usize) -> Vec<f64> {
    let n = (y.len() / d) as f64;
    let deviation = |k: usize| {
        let column = || y.iter().skip(k).step_by(d);
        let mean = column().sum::<f64>() / n;
        let std = (column().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        if std > 1e-12 && std.is_finite() {
            std
        } else {
            1.0
        }
    };
    (0..d).map(deviation).collect()
}

impl Sampler for Hmc {
    fn name(&self) -> String {
        "hmc".into()
    }
    fn sample(&self, density: &dyn Density, n: usize, key: Key, workers: &Workers) -> Result<Samples> {
        check_count(n)?;
        if !density.has_gradient() {
            return Err(Error::invalid("hmc", "the density has no gradient; use smc or mh"));
        }
        check_settings(
            "hmc",
            [
                ("chains", self.chains as f64, Interval::COUNT),
                ("steps", self.steps as f64, Interval::at_least(4.0)),
                ("leapfrogs", self.leapfrogs as f64, Interval::COUNT),
            ],
        )?;
        let mut jobs = lanes(self.chains);
        let lanes = workers.map(&mut jobs, |_, i, n| self.lane(density, *n, key.fold_in(i as u64)));
        Ok(gather(&self.name(), density.prior().dim(), &lanes, n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::{FnDensity, UniformBox};

    #[test]
    fn trajectories_have_the_moments_up_to_the_edge() {
        // exp(−5 θ₁) on [0, 1], and N(0.2, 0.1²) on [−1, 1].
        let prior = UniformBox::new(vec![0.0, -1.0], vec![1.0, 1.0]).unwrap();
        let density = FnDensity::new(prior, |t: &[f64], g: &mut [f64]| {
            let z = (t[1] - 0.2) / 0.1;
            (g[0], g[1]) = (-5.0, -z / 0.1);
            -5.0 * t[0] - 0.5 * z * z
        });
        let hmc = Hmc { chains: 140, warmup: 60, steps: 100, leapfrogs: 8 };
        let s = hmc.sample(&density, 14000, Key::new(1), &Workers::new(2).unwrap()).unwrap();
        assert_eq!(s, hmc.sample(&density, 14000, Key::new(1), &Workers::new(1).unwrap()).unwrap());
        let r = &s.report;
        assert!(r.rhat.iter().all(|r| *r < 1.02) && r.acceptance > 0.6, "{r:?}");
        // Mean of the cut exponential: 1/5 − 1/(e⁵ − 1).
        let mean = [0.2 - 1.0 / (5f64.exp() - 1.0), 0.2];
        for k in 0..2 {
            let se = s.std()[k] / r.ess[k].sqrt();
            assert!((s.mean()[k] - mean[k]).abs() < 4.0 * se, "{k}: {:?} {mean:?} {se}", s.mean());
        }
        assert!((s.std()[1] / 0.1 - 1.0).abs() < 4.0 / (2.0 * r.ess[1]).sqrt());
    }

    #[test]
    fn a_density_without_gradient_is_refused() {
        let slcp = crate::ratio::simulators::Slcp::seed();
        let density = crate::ratio::ExactDensity::new(&slcp, &[0.0; 8]).unwrap();
        let error = Hmc::default().sample(&density, 1, Key::new(0), &Workers::new(1).unwrap()).unwrap_err();
        assert!(error.to_string().contains("no gradient"));
    }
}
