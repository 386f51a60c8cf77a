//! The choice of an estimator and its settings by measurement.

use super::{Experiment, Measurement, Truth, Uncertain};
use crate::adjoint::SweepConfig;
use crate::estimator::{Antithetic, GradientEstimator, Mixed};
use crate::unroll::TruncatedStep;
use crate::{NoiseReuseEs, TruncatedEs, TruncatedGrad, TruncatedPes};
use outerloop_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Estimators among which is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`TruncatedPes`].
    Pes,
    /// [`NoiseReuseEs`].
    NoiseReuse,
    /// [`TruncatedEs`].
    Es,
    /// [`TruncatedGrad`].
    Grad,
    /// [`Mixed`].
    Mixed,
}

/// An estimator with the numbers that matter for its noise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Which one.
    pub kind: Kind,
    /// Standard deviation σ of the perturbations.
    pub std: f32,
    /// Inner steps per estimate and lane.
    pub trunc_length: usize,
    /// Lanes N.
    pub num_tasks: usize,
}

impl Kind {
    /// Whether it knows no truncation bias.
    fn is_unbiased(self) -> bool {
        matches!(self, Kind::Pes | Kind::NoiseReuse)
    }
}

impl Settings {
    /// The estimator over the runs that `step` describes; all else as in `base`. Errors on settings out of range, or
    /// on an update rule without the derivative that is needed.
    pub fn estimator(&self, step: &TruncatedStep, base: &Antithetic) -> Result<Box<dyn GradientEstimator>> {
        let Settings { kind, std, trunc_length, num_tasks } = *self;
        let (step, common) = (step.clone(), Antithetic { std, trunc_length, num_tasks, ..base.clone() });
        let sweep = SweepConfig::default;
        Ok(match kind {
            Kind::Pes => Box::new(TruncatedPes::new(step, common)?),
            Kind::NoiseReuse => Box::new(NoiseReuseEs::new(step, common)?),
            Kind::Es => Box::new(TruncatedEs::new(step, common)?),
            Kind::Grad => Box::new(TruncatedGrad::new(step, num_tasks, trunc_length, sweep())?),
            Kind::Mixed => Box::new(Mixed::new(step, common, sweep())?),
        })
    }
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Settings { kind, std, trunc_length, num_tasks } = self;
        match kind {
            Kind::Grad => write!(f, "{kind:?}, {num_tasks} x {trunc_length} steps"),
            _ => write!(f, "{kind:?}, std {std}, {num_tasks} x {trunc_length} steps"),
        }
    }
}

/// Settings that can be chosen.
pub struct Candidate {
    /// The settings.
    pub settings: Settings,
    /// The estimator that they make.
    pub estimator: Box<dyn GradientEstimator>,
}

/// The candidates around `base`: all kinds that the update rule has a derivative for, with its σ and three times that,
/// and with its window and lanes, or a window of half the length with twice the lanes: all of the same inner steps per
/// estimate. Errors on settings out of range.
pub fn candidates(step: &TruncatedStep, base: &Antithetic) -> Result<Vec<Candidate>> {
    let mut all = Vec::new();
    for kind in [Kind::Pes, Kind::NoiseReuse, Kind::Es, Kind::Mixed, Kind::Grad] {
        for (halves, std) in [(false, 1.0), (false, 3.0), (true, 1.0)] {
            let (mut trunc_length, mut num_tasks) = (base.trunc_length, base.num_tasks);
            if halves {
                (trunc_length, num_tasks) = ((trunc_length / 2).max(1), num_tasks * 2);
            }
            if std != 1.0 && kind == Kind::Grad || halves && base.trunc_length < 2 {
                continue;
            }
            let settings = Settings { kind, std: base.std * std, trunc_length, num_tasks };
            match settings.estimator(step, base) {
                Ok(estimator) => all.push(Candidate { settings, estimator }),
                // Of a rule without derivative.
                Err(_) if matches!(kind, Kind::Grad | Kind::Mixed) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(all)
}

/// What was seen of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    /// The candidate.
    pub settings: Settings,
    /// Whether it has no truncation bias, or none that turns its mean aside, so that it can be chosen.
    pub is_eligible: bool,
    /// Mean cosine of a sample with the reference direction.
    pub cosine: Uncertain,
    /// The mean's part across the reference direction against that along it, squared, less noise.
    pub across: f64,
    /// Signal to noise of a sample.
    pub signal_to_noise: f64,
    /// The same per inner step.
    pub per_inner_step: f64,
    /// The same per second.
    pub per_second: f64,
}

/// Which candidate is the best, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its place in the evidence.
    pub best: usize,
    /// Of all candidates, in their order.
    pub evidence: Vec<Evidence>,
}

/// A mean whose square across the reference direction is more than this share of that along it points elsewhere: 27°.
const ACROSS: f64 = 0.25;

/// Measures all candidates and takes the one with the best signal to noise per second.
///
/// The reference direction is the mean of all samples of the candidates that know no truncation bias
/// ([`Kind::Pes`], [`Kind::NoiseReuse`]), each weighed by its inverse variance. The signal of a candidate is its mean's
/// part along that direction; one with truncation bias whose mean points elsewhere is not eligible, since no number of
/// steps averages a bias out. Seconds are those of this machine, so another machine may choose otherwise: keep the
/// choice ([`Choice::csv`]) with what it was used for.
///
/// Errors if there is no unbiased candidate, if its gradient is zero, if no losses are numbers, or as
/// [`Experiment::measure`].
pub fn choose(candidates: &[Candidate], at: &Experiment<'_>) -> Result<Choice> {
    let measured: Vec<Measurement> =
        candidates.iter().map(|c| at.measure(&*c.estimator)).collect::<Result<_>>()?;
    let reference = reference(candidates, &measured)?;
    let mut evidence = Vec::new();
    for (candidate, m) in candidates.iter().zip(&measured) {
        // A reference that is not longer than its noise still ranks them.
        let c = m.against(&reference).or_else(|_| m.against(&Truth::exact(reference.grad.clone())))?;
        evidence.push(Evidence {
            settings: candidate.settings,
            is_eligible: m.masked < 0.5
                && (candidate.settings.kind.is_unbiased() || c.across < ACROSS && c.cosine.value > 0.0),
            cosine: c.cosine,
            across: c.across,
            signal_to_noise: c.signal_to_noise,
            per_inner_step: c.per_inner_step,
            per_second: c.per_second,
        });
    }
    let eligible = evidence.iter().enumerate().filter(|(_, e)| e.is_eligible);
    // At a tie, where nothing stands out from its noise, the first.
    let best = eligible.reduce(|a, b| if b.1.per_second > a.1.per_second { b } else { a });
    match best {
        Some((best, _)) => Ok(Choice { best, evidence }),
        None => {
            let why = "all estimators' losses are no numbers at this theta";
            Err(Error::invalid("choice of an estimator", why))
        }
    }
}

/// The mean of the unbiased candidates, by inverse total variance.
fn reference(candidates: &[Candidate], measured: &[Measurement]) -> Result<Truth> {
    let unbiased: Vec<(Truth, f64)> = candidates
        .iter()
        .zip(measured)
        .filter(|(c, _)| c.settings.kind.is_unbiased())
        .map(|(_, m)| {
            let truth = Truth::from(m);
            let weight = 1.0 / truth.variance.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            (truth, weight)
        })
        .filter(|(truth, weight)| weight.is_finite() && truth.grad.iter().all(|g| g.is_finite()))
        .collect();
    let total: f64 = unbiased.iter().map(|(_, w)| w).sum();
    let Some((first, _)) = unbiased.first() else {
        return Err(Error::invalid(
            "choice of an estimator",
            "expected an unbiased candidate, PES or noise-reuse ES",
        ));
    };
    let mut reference = Truth::exact(vec![0.0; first.grad.len()]);
    for (truth, weight) in &unbiased {
        let w = weight / total;
        reference.grad.iter_mut().zip(&truth.grad).for_each(|(to, g)| *to += w * g);
        reference.variance.iter_mut().zip(&truth.variance).for_each(|(to, v)| *to += w * w * v);
    }
    Ok(reference)
}

impl Choice {
    /// The chosen settings.
    pub fn settings(&self) -> Settings {
        self.evidence[self.best].settings
    }

    /// The evidence as a table for a file, one candidate per line.
    pub fn csv(&self) -> String {
        let mut out = String::from(
            "chosen,estimator,std,trunc_length,num_tasks,eligible,cosine,cosine_error,across,signal_to_noise,\
             per_inner_step,per_second\n",
        );
        for (i, e) in self.evidence.iter().enumerate() {
            let Settings { kind, std, trunc_length, num_tasks } = e.settings;
            let Evidence { is_eligible, cosine, across, signal_to_noise, per_inner_step, per_second, .. } = e;
            out += &format!(
                "{},{kind:?},{std},{trunc_length},{num_tasks},{is_eligible},{},{},{across},{signal_to_noise},\
                 {per_inner_step},{per_second}\n",
                i == self.best,
                cosine.value,
                cosine.error,
            );
        }
        out
    }
}
