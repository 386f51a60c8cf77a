//! The estimator lab: bias, variance and direction of meta-gradient estimators, measured at one theta, per inner step
//! and per second; the choice of one by its signal-to-noise ratio; and slices through the meta-loss itself.
//!
//! An estimator is run from independent keys, `estimates` times in a row each: the mean of a row is one sample. Means
//! of rows make persistent estimators comparable with those over whole runs, whose every estimate sees a whole run: a
//! row should be as long as a run, or begin at random places of it ([`crate::InitialOffset::BurnIn`]).
//!
//! Reference: Vicol et al. 2021, arXiv:2112.13835, section 5; Li et al. 2023, arXiv:2304.12180, section 5.

mod choice;
mod lorenz;
mod slice;

pub use choice::{candidates, choose, Candidate, Choice, Evidence, Kind, Settings};
pub use lorenz::{Lorenz, LorenzRule};
pub use slice::Slice;

use crate::estimator::GradientEstimator;
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};
use std::time::Instant;

/// Where and how often is measured.
#[derive(Clone, Copy)]
pub struct Experiment<'a> {
    /// The meta-parameters at which gradients are estimated, `[P]`.
    pub theta: &'a [f32],
    /// Root of all randomness.
    pub key: Key,
    /// Independent samples, at least 2.
    pub samples: u64,
    /// Estimates before each row that do not count: a persistent estimator's accumulators fill.
    pub warmup: u64,
    /// Estimates in a row whose mean is one sample, at least 1.
    pub estimates: u64,
    /// Threads; samples do not depend on their number, seconds do.
    pub workers: &'a Workers,
}

/// Samples of an estimator.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The estimator's name.
    pub name: String,
    /// `[samples, P]`
    pub samples: Vec<Vec<f64>>,
    /// Inner steps of one sample, on average; those before its first estimate (burn-in) do not count.
    pub inner_steps: f64,
    /// Seconds of one sample, on average.
    pub seconds: f64,
    /// Share of lanes that were left out because their loss was no number.
    pub masked: f64,
}

/// A gradient to hold estimates against.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// `[P]`
    pub grad: Vec<f64>,
    /// Variance of its elements, `[P]`; 0 where it is exact.
    pub variance: Vec<f64>,
}

/// A number with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Uncertain {
    /// The estimate.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
}

impl Uncertain {
    /// The 95 % interval of the normal approximation.
    pub fn interval(self) -> [f64; 2] {
        [-1.96, 1.96].map(|z| self.value + z * self.error)
    }
    /// Whether the value may be `x`, up to so many standard errors.
    pub fn allows(self, x: f64, errors: f64) -> bool {
        (self.value - x).abs() <= errors * self.error
    }
}

/// An estimator beside the truth `t`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// `(ḡ·t)/(t·t) − 1`: 0 if the mean has the truth's length along it, −1 if nothing is left of it.
    pub bias: Uncertain,
    /// Mean cosine of a sample with t.
    pub cosine: Uncertain,
    /// `‖ḡ⊥‖² / ‖ḡ∥‖²`, the mean's part across t against that along it, less what noise alone makes of it; may be
    /// negative where there is none.
    pub across: f64,
    /// Sum of the elements' variances in one sample over `t·t`.
    pub variance: f64,
    /// `‖ḡ∥‖²` less its noise, over the sum of the variances: of one sample.
    pub signal_to_noise: f64,
    /// The same per inner step.
    pub per_inner_step: f64,
    /// The same per second.
    pub per_second: f64,
}

impl Experiment<'_> {
    /// Measures an estimator. Errors on fewer than 2 samples or no estimates.
    pub fn measure(&self, estimator: &dyn GradientEstimator) -> Result<Measurement> {
        let at = self;
        if at.samples < 2 || at.estimates == 0 {
            let got = format!("{} samples of {} estimates", at.samples, at.estimates);
            return Err(Error::invalid(
                "lab",
                format!("expected at least 2 samples of at least 1 estimate, got {got}"),
            ));
        }
        let (mut samples, mut inner_steps, mut seconds) = (Vec::new(), 0, 0.0);
        let (mut masked, mut lanes) = (0, 0);
        for sample in 0..at.samples {
            let mut state = estimator.init(at.theta, at.key.fold_in(sample), at.workers);
            for t in 0..at.warmup {
                estimator.estimate(at.theta, &mut state, t, at.workers);
            }
            let began = Instant::now();
            let mut mean = vec![0.0; at.theta.len()];
            for t in at.warmup..at.warmup + at.estimates {
                let estimate = estimator.estimate(at.theta, &mut state, t, at.workers);
                mean.iter_mut()
                    .zip(&estimate.grad)
                    .for_each(|(m, g)| *m += f64::from(*g) / at.estimates as f64);
                inner_steps += estimate.inner_steps;
                masked += estimate.masked;
                lanes += estimate.lanes;
            }
            seconds += began.elapsed().as_secs_f64();
            samples.push(mean);
        }
        let n = at.samples as f64;
        Ok(Measurement {
            name: estimator.name(),
            samples,
            inner_steps: inner_steps as f64 / n,
            seconds: seconds / n,
            masked: masked as f64 / lanes.max(1) as f64,
        })
    }
}

impl Truth {
    /// A gradient that is known.
    pub fn exact(grad: Vec<f64>) -> Self {
        Truth { variance: vec![0.0; grad.len()], grad }
    }
}

impl From<&Measurement> for Truth {
    /// A long measurement of an unbiased estimator.
    fn from(m: &Measurement) -> Self {
        let n = m.samples.len() as f64;
        Truth { grad: m.mean(), variance: m.variances().iter().map(|v| v / n).collect() }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Mean with its standard error.
fn mean_of(x: &[f64]) -> Uncertain {
    let n = x.len() as f64;
    let value = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - value).powi(2)).sum::<f64>() / (n - 1.0);
    Uncertain { value, error: (variance / n).sqrt() }
}

impl Measurement {
    /// The mean of all samples, `[P]`.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.samples.len() as f64;
        let mut mean = vec![0.0; self.samples.first().map_or(0, Vec::len)];
        for sample in &self.samples {
            mean.iter_mut().zip(sample).for_each(|(m, x)| *m += x / n);
        }
        mean
    }

    /// The variance of every element of a sample, `[P]`.
    pub fn variances(&self) -> Vec<f64> {
        let (n, mean) = (self.samples.len() as f64, self.mean());
        let mut variances = vec![0.0; mean.len()];
        for sample in &self.samples {
            let deviations = sample.iter().zip(&mean).map(|(x, m)| (x - m).powi(2) / (n - 1.0));
            variances.iter_mut().zip(deviations).for_each(|(v, d)| *v += d);
        }
        variances
    }

    /// The sum of the elements' variances in one sample, with its standard error over samples.
    pub fn total_variance(&self) -> Uncertain {
        let (n, mean) = (self.samples.len() as f64, self.mean());
        let square =
            |s: &Vec<f64>| s.iter().zip(&mean).map(|(x, m)| (x - m).powi(2)).sum::<f64>() * n / (n - 1.0);
        mean_of(&self.samples.iter().map(square).collect::<Vec<_>>())
    }

    /// This estimator beside the truth, whose squared length is taken without what its own noise adds to it. Errors
    /// if the truth has another length, or no length beyond its noise.
    pub fn against(&self, truth: &Truth) -> Result<Comparison> {
        let (mean, t) = (self.mean(), &truth.grad);
        if mean.len() != t.len() {
            return Err(Error::mismatch("length of the true gradient", mean.len(), t.len()));
        }
        let (n, noise) = (self.samples.len() as f64, truth.variance.iter().sum::<f64>());
        let square = dot(t, t) - noise;
        if !(square > 0.0 && square.is_finite()) {
            let got =
                format!("expected a direction beyond its noise, got norm² {} with noise {noise}", dot(t, t));
            return Err(Error::invalid("true gradient", got));
        }
        let along: Vec<f64> = self.samples.iter().map(|s| dot(s, t) / square).collect();
        let along = mean_of(&along);
        // How far the truth's own noise moves that: linearly, and by its square.
        let own = |(t, v): (&f64, &f64)| (t * t * v + 2.0 * v * v) / (square * square);
        let own: f64 = t.iter().zip(&truth.variance).map(own).sum();
        let bias = Uncertain { value: along.value - 1.0, error: (along.error.powi(2) + own).sqrt() };
        let cosines: Vec<f64> = self
            .samples
            .iter()
            .map(|s| match dot(s, s) {
                0.0 => 0.0,
                norm => dot(s, t) / (norm * square).sqrt(),
            })
            .collect();
        let total = self.total_variance().value;
        let signal = along.value.powi(2) * square;
        let along_noise = along.error.powi(2) * square;
        let across = dot(&mean, &mean) - signal - (total / n - along_noise) - noise * along.value.powi(2);
        let signal = (signal - along_noise).max(0.0);
        let ratio = |x: f64| if x > 0.0 { signal / x } else { f64::INFINITY };
        Ok(Comparison {
            bias,
            cosine: mean_of(&cosines),
            across: if signal > 0.0 { across / signal } else { f64::INFINITY },
            variance: total / square,
            signal_to_noise: ratio(total),
            per_inner_step: ratio(total * self.inner_steps),
            per_second: ratio(total * self.seconds),
        })
    }
}
