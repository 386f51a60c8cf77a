//! Meta-gradient estimators behind one trait, one file each. Each states its equation, bias,
//! variance and cost, and is tested against an exact expectation.
//!
//! Shared notation: N lanes (tasks), antithetic perturbations `ε ~ N(0, σ²I)` of theta per lane,
//! `L⁺` and `L⁻` the losses at `θ + ε` and `θ − ε`, with every key shared between the two.

mod final_pes;
mod forward_grad;
mod full_es;
mod full_grad;
mod generalized_pes;
mod guided_es;
mod measure_valued;
mod mixed;
mod noise_reuse_es;
mod pairs;
mod persistent;
mod pes;
mod pes_analytic;
mod reduce;
mod truncated_es;
mod truncated_grad;

pub use final_pes::FinalPes;
pub use forward_grad::ForwardGrad;
pub use full_es::{FullEs, FullLoss};
pub use full_grad::FullGrad;
pub use generalized_pes::GeneralizedPes;
pub use guided_es::{Guide, GuidedEs};
pub use measure_valued::MeasureValued;
pub use mixed::Mixed;
pub use noise_reuse_es::NoiseReuseEs;
pub use persistent::{NextAccumulator, PesTerms, TerminalWeight};
pub use pes::TruncatedPes;
pub use pes_analytic::PesAnalytic;
pub use truncated_es::TruncatedEs;
pub use truncated_grad::TruncatedGrad;

use crate::episode::{Clock, Trajectory};
use crate::health::Saturated;
use crate::unroll::{LaneRun, TruncatedStep, Window};
use crate::workers::{Worker, Workers};
use guided_es::Subspace;
use outerloop_core::{Error, Key, LearnedOptimizer, Optimizer, Result};
use reduce::{over_lanes, Contribution, Scale};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// An estimator of the meta-gradient. Stateless: everything that persists between estimates lives in
/// [`EstimatorState`], so saving it resumes exactly.
pub trait GradientEstimator: Send + Sync {
    /// Short name for reports.
    fn name(&self) -> String;

    /// Everything that a resumed run must have in common with the saved one.
    fn describe(&self) -> String;

    /// The state before the first estimate.
    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState;

    /// One estimate at `theta`, advancing the state. A pure function of its arguments, whatever the
    /// number of workers. `outer_step` counts estimates.
    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate;
}

/// A meta-gradient estimate with what a progress display needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Estimated gradient of the meta-loss, `[theta]`.
    pub grad: Vec<f32>,
    /// The objective ([`crate::objective`]; by default the normalized loss), averaged over steps, signs and healthy lanes; NaN if there is none.
    pub mean_loss: f64,
    /// Inner steps (loss, gradient and update) that were computed.
    pub inner_steps: u64,
    /// Steps among them whose loss lay at an end of the objective's scale.
    pub saturated: Saturated,
    /// Lanes that took part.
    pub lanes: usize,
    /// Lanes whose raw loss became non-finite in this window; they were reset.
    pub diverged: usize,
    /// Lanes left out of `grad` because even their objective was non-finite.
    pub masked: usize,
}

/// What an estimator keeps between estimates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimatorState {
    /// Root of all its keys.
    pub key: Key,
    /// One entry per task; empty for estimators that start anew each time.
    pub lanes: Vec<Lane>,
    /// The last estimates, newest first, as far as the estimator needs them ([`GuidedEs`]).
    pub past: Vec<Vec<f32>>,
}

/// One task in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lane {
    /// Shared by the trajectories.
    pub clock: Clock,
    /// One trajectory, or an antithetic pair (positive first) and, for a control variate, its mean.
    pub trajectories: Vec<Trajectory>,
    /// Sum of the perturbations that acted on the current run before the one in use (PES); empty elsewhere.
    pub accumulator: Vec<f32>,
    /// The loss difference of the pair at the last step so far of its run, 0 before the first ([`FinalPes`]; 0
    /// elsewhere).
    pub difference: f64,
    /// The outer step whose perturbation goes on acting in the next window; `None`: another one is drawn.
    pub held: Option<u64>,
}

impl EstimatorState {
    /// That of an estimator that keeps nothing.
    pub fn new(key: Key) -> Self {
        EstimatorState { key, lanes: Vec::new(), past: Vec::new() }
    }

    /// The root key of a lane: its runs are `key.fold_in(episode)`.
    pub fn lane_key(&self, lane: usize) -> Key {
        self.lanes_key().fold_in(lane as u64)
    }

    fn lanes_key(&self) -> Key {
        self.key.named("lane")
    }

    /// Every lane with so many copies of its trajectory, and a zero accumulator for a theta.
    fn persistent(mut self, trajectories: usize, theta: &[f32]) -> Self {
        for lane in &mut self.lanes {
            let start = lane.trajectories[0].clone();
            lane.trajectories.resize(trajectories, start);
            lane.accumulator = vec![0.0; theta.len()];
        }
        self
    }
}

/// Which perturbation is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoiseIndex {
    /// The estimate.
    pub outer_step: u64,
    /// The lane.
    pub lane: usize,
    /// Its key.
    pub key: Key,
}

/// Writes the perturbation of an index.
pub type NoiseFn = dyn Fn(NoiseIndex, &mut [f32]) + Send + Sync;

/// Where perturbations of theta come from: Gaussian in use, given ones in tests.
#[derive(Clone)]
pub enum Noise {
    /// `ε ~ N(0, σ² I)`.
    Gaussian,
    /// Writes the perturbation of the given index.
    Given(Arc<NoiseFn>),
}

impl std::fmt::Debug for Noise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Noise::Gaussian => "Gaussian",
            Noise::Given(_) => "Given",
        })
    }
}

impl Noise {
    fn draw(&self, std: f32, index: NoiseIndex, eps: &mut [f32]) {
        match self {
            Noise::Gaussian => {
                index.key.fill_normal(eps);
                eps.iter_mut().for_each(|e| *e *= std);
            }
            Noise::Given(f) => f(index, eps),
        }
    }
}

/// How a window's losses become one number per lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowLoss {
    /// `Σ mask·loss / Σ mask`: the reference library's convention. A window that contains a reset
    /// has one step less, so its steps weigh slightly more.
    #[default]
    Mean,
    /// `Σ mask·loss`: the paper's convention; every step weighs the same.
    Sum,
}

impl WindowLoss {
    fn divisor(self, mask: &[bool]) -> f64 {
        match self {
            WindowLoss::Sum => 1.0,
            WindowLoss::Mean => mask.iter().filter(|m| **m).count().max(1) as f64,
        }
    }
}

/// What becomes of the lanes' loss differences before they weigh perturbations. All but `None` make the
/// estimate biased: it is no longer the gradient of a mean loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shaping {
    /// Nothing: unbiased.
    #[default]
    None,
    /// Every loss is replaced by its rank among the losses of all lanes and signs, from −½ (smallest) to ½; equal
    /// losses share their mean rank. Free of the loss scale and of outliers; the expectation is the gradient of a mean
    /// rank. Only for estimators that weigh one difference per lane (truncated and full ES).
    /// Reference: Salimans et al. 2017, arXiv:1703.03864, section 2.1.
    Ranks,
    /// Differences are divided by the standard deviation of the losses of all lanes and signs: free of the loss scale,
    /// with a random factor that shares its noise with what it divides.
    /// Reference: Li et al. 2023, arXiv:2304.12180, its implementation's option.
    Deviation,
}

/// What the persistent antithetic estimators have in common.
#[derive(Clone, Debug)]
pub struct Antithetic {
    /// Number of lanes N.
    pub num_tasks: usize,
    /// Inner steps per estimate.
    pub trunc_length: usize,
    /// Standard deviation σ of the perturbations.
    pub std: f32,
    /// Mean or sum over the window.
    pub window_loss: WindowLoss,
    /// `Some(c)`: every loss difference is replaced by `c` times the sign of its mean, which makes
    /// the estimate independent of the loss scale (and biased).
    pub sign: Option<f64>,
    /// What else becomes of loss differences (biased). Not together with `sign`.
    pub shaping: Shaping,
    /// Source of perturbations.
    pub noise: Noise,
}

impl Default for Antithetic {
    /// 16 tasks, 50 steps, σ = 0.01, mean loss, no sign, no shaping, Gaussian.
    fn default() -> Self {
        Antithetic {
            num_tasks: 16,
            trunc_length: 50,
            std: 0.01,
            window_loss: WindowLoss::Mean,
            sign: None,
            shaping: Shaping::None,
            noise: Noise::Gaussian,
        }
    }
}

impl Antithetic {
    /// Errors on numbers out of range, these and those of the runs.
    fn validate(&self, step: &TruncatedStep) -> Result<()> {
        step.validate()?;
        at_least_one("num_tasks", self.num_tasks)?;
        at_least_one("trunc_length", self.trunc_length)?;
        positive("std", f64::from(self.std))?;
        if self.sign.is_some() && self.shaping != Shaping::None {
            return Err(Error::invalid("shaping", "expected none beside `sign`: signs have no scale"));
        }
        self.sign.map_or(Ok(()), |c| positive("sign", c))
    }

    /// Errors on what needs one difference per lane.
    fn validate_persistent(&self) -> Result<()> {
        match self.shaping {
            Shaping::Ranks => {
                let why = "ranks need one loss per lane and sign; a window with a reset has two";
                Err(Error::invalid("shaping", why))
            }
            _ => Ok(()),
        }
    }

    /// From the lanes' sum to the estimate.
    fn scale(&self) -> Scale {
        Scale { factor: self.factor(), shaping: self.shaping }
    }

    /// `1 / (2 σ²)`: what turns loss differences times perturbations into a gradient.
    fn factor(&self) -> f64 {
        let std = f64::from(self.std);
        1.0 / (2.0 * std * std)
    }

    /// Draws the perturbation of a lane into `eps` and makes the optimizers at theta plus and minus it.
    fn perturbed(
        &self,
        lopt: &dyn LearnedOptimizer,
        inputs: EstimateInputs<'_>,
        index: NoiseIndex,
        eps: &mut Vec<f32>,
        worker: &mut Worker,
    ) -> [Box<dyn Optimizer>; 2] {
        self.draw(inputs, index, eps);
        [1.0, -1.0].map(|sign| {
            worker.theta.clear();
            worker.theta.extend(moved(inputs.theta, sign, eps));
            lopt.opt_fn(&worker.theta)
        })
    }

    /// Draws the perturbation of a lane.
    fn draw(&self, inputs: EstimateInputs<'_>, index: NoiseIndex, eps: &mut Vec<f32>) {
        eps.resize(inputs.theta.len(), 0.0);
        self.noise.draw(self.std, index, eps);
        if let Some(guide) = inputs.guide {
            guide.shape(self.std, index.key.named("guide"), eps);
        }
    }
}

fn at_least_one(what: &str, got: usize) -> Result<()> {
    match got {
        0 => Err(Error::invalid(what, "expected at least 1, got 0")),
        _ => Ok(()),
    }
}

fn positive(what: &str, got: f64) -> Result<()> {
    if got > 0.0 && got.is_finite() {
        return Ok(());
    }
    Err(Error::invalid(what, format!("expected a positive finite number, got {got}")))
}

/// Theta plus `sign` times a perturbation.
fn moved<'a>(theta: &'a [f32], sign: f32, eps: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    theta.iter().zip(eps).map(move |(t, e)| t + sign * e)
}

/// What one estimate is computed from.
#[derive(Clone, Copy)]
struct EstimateInputs<'a> {
    theta: &'a [f32],
    outer_step: u64,
    workers: &'a Workers,
    lanes: Key,
    noise: Key,
    /// The shape of perturbations, unless they are the same in all directions.
    guide: Option<&'a Subspace>,
}

impl<'a> EstimateInputs<'a> {
    fn new(theta: &'a [f32], state: &EstimatorState, outer_step: u64, workers: &'a Workers) -> Self {
        let noise = state.key.named("noise");
        EstimateInputs { theta, outer_step, workers, lanes: state.lanes_key(), noise, guide: None }
    }
    /// [`EstimatorState::lane_key`].
    fn lane(&self, lane: usize) -> Key {
        self.lanes.fold_in(lane as u64)
    }
    fn noise(&self, lane: usize) -> NoiseIndex {
        self.noise_of(self.outer_step, lane)
    }
    /// The perturbation that a lane drew at an outer step.
    fn noise_of(&self, outer_step: u64, lane: usize) -> NoiseIndex {
        NoiseIndex { outer_step, lane, key: self.noise.fold_in(outer_step).fold_in(lane as u64) }
    }
}

/// The lanes at their start, with one trajectory each.
fn start_lanes(
    step: &TruncatedStep,
    num_tasks: usize,
    theta: &[f32],
    key: Key,
    workers: &Workers,
) -> EstimatorState {
    let mut state = EstimatorState::new(key);
    let mut keys: Vec<Key> = (0..num_tasks).map(|i| state.lane_key(i)).collect();
    state.lanes = workers.map(&mut keys, |worker, _, key| {
        let (clock, t) = step.start_lane(theta, *key, worker);
        Lane { clock, trajectories: vec![t], accumulator: Vec::new(), difference: 0.0, held: None }
    });
    state
}

/// The length of all whole runs of an estimate; `key`: the estimator's root key.
fn whole_length(step: &TruncatedStep, key: Key, outer_step: u64) -> u64 {
    let length = step.schedule.length(outer_step, key.named("length").fold_in(outer_step));
    length.expect("checked by the constructor")
}

/// Masked mean of a window's losses; NaN if there is none.
fn masked_mean(w: &Window) -> f64 {
    let sum: f64 = w.loss.iter().zip(&w.mask).filter(|(_, m)| **m).map(|(l, _)| l).sum();
    sum / trained_steps(w) as f64
}

fn trained_steps(w: &Window) -> u64 {
    w.mask.iter().filter(|m| **m).count() as u64
}

/// Advances an antithetic pair.
fn run_pair(
    step: &TruncatedStep,
    opts: &[Box<dyn Optimizer>; 2],
    pair: &mut LaneRun<'_, f32, 2>,
    steps: usize,
    worker: &mut Worker,
) -> [Window; 2] {
    let windows = step.windows(opts.each_ref().map(|o| &**o), pair, steps, worker);
    end_if_diverged(pair.clock, &windows);
    windows
}

/// A diverged run is over, for both signs: they must stay on the same clock.
fn end_if_diverged(clock: &mut Clock, windows: &[Window; 2]) {
    clock.is_done |= windows.iter().any(|w| w.diverged);
}
