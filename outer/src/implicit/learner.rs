//! Joint training of weights and hyperparameters, warm-started.

use super::constraint::Constraint;
use super::hypergradient::{
    check_diagonal, hypergradient, known_diagonal, HyperBatches, Hypergradient, Implicit,
};
use super::vector::norm;
use super::Status;
use crate::checkpoint::Kind;
use crate::fingerprint;
use crate::run::{StepSummary, Trainable};
use crate::workers::{Worker, Workers};
use outerloop_core::tensor::Curvature;
use outerloop_core::{
    BatchKey, Error, HyperProblem, Interval, Key, Layout, OptState, Optimizer, Params, Result, Split,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// Trains `w` and λ together: some steps of any [`Optimizer`] on `w`, then one step of any [`Optimizer`] on λ along the
/// hypergradient, again and again. `w` and the optimizers' states are kept throughout, so that `w` stays near `w*(λ)`.
///
/// Lanes are independent runs of other seeds or other initial λ, spread over worker threads; results do not depend on
/// the number of threads. NaN is a value: a hypergradient that is not finite, or whose solve diverged, is counted and its
/// step left out; weights that are not finite are counted and begin anew.
///
/// Biased by the distance of `w` from `w*(λ)` and by the solve; both are in the metrics. Where λ moves faster than `w`
/// follows, it is tuned to the lag: the validation loss falls, and weights trained anew do not have it. A large
/// `inner_grad_norm` beside a `hypergrad_norm` that does not fall tells; more inner steps, momentum in them and a falling
/// hyper rate cure it. Stateless: all that changes is in
/// [`HyperState`]. A [`Trainable`]: [`train`](crate::run::train) runs it on disk.
///
/// Reference: Lorraine, Vicol, Duvenaud 2020, arXiv:1911.02590, Algorithm 1.
pub struct HyperLearner {
    problem: Arc<HyperProblem>,
    inner: Box<dyn Optimizer>,
    hyper: Box<dyn Optimizer>,
    implicit: Implicit,
    config: HyperConfig,
    /// Of elements of λ; the others are free.
    constraints: Vec<(Range<usize>, Constraint)>,
    /// The largest log decay.
    limit: f32,
    fingerprint: String,
}

/// Settings of a [`HyperLearner`].
#[derive(Clone, Debug, PartialEq)]
pub struct HyperConfig {
    /// Steps on λ; default 100.
    pub hyper_steps: u64,
    /// Steps on `w` before each of them; default 5.
    pub inner_steps: u64,
    /// Further steps on `w` before the first; default 0.
    pub warm_up: u64,
    /// Independent runs; default 1.
    pub lanes: usize,
    /// Initial λ, for the lanes in turn; empty (the default): the task's own.
    pub candidates: Vec<Vec<f32>>,
    /// Ranges of tensors of λ by name; the others are free. Default: none.
    pub constraints: Vec<(String, Constraint)>,
    /// The stability limit of log decays; default measured.
    pub decay_limit: DecayLimit,
    /// Where each solve starts; default at the last solution.
    pub solve_from: SolveFrom,
}

impl Default for HyperConfig {
    fn default() -> Self {
        HyperConfig {
            hyper_steps: 100,
            inner_steps: 5,
            warm_up: 0,
            lanes: 1,
            candidates: Vec::new(),
            constraints: Vec::new(),
            decay_limit: DecayLimit::Measured,
            solve_from: SolveFrom::LastSolution,
        }
    }
}

/// How log decays ([`HyperTask::log_decays`](outerloop_core::HyperTask::log_decays)) are kept below `ln(1/η)`, the rate η
/// being that of the training of `w`: a decay adds `e^λ` to the curvature, and steps of size η diverge where it exceeds
/// `2/η`. λ is clipped after every hyper step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DecayLimit {
    /// η is the largest step that the inner optimizer takes from a fresh state along a gradient of 1, over the run's
    /// schedule: the learning rate of SGD, momentum, and Adam.
    Measured,
    /// A given η.
    Rate(f64),
    /// No limit.
    Off,
}

/// Where a solve starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SolveFrom {
    /// At zero.
    Zero,
    /// At the last hyper step's solution; at zero where that leaves more than nothing would.
    LastSolution,
}

/// Everything about a run that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HyperState {
    /// What made this state: a learner with another description refuses it.
    pub fingerprint: String,
    /// Root of all keys.
    pub key: Key,
    /// Hyper steps done.
    pub hyper_step: u64,
    /// The independent runs.
    pub lanes: Vec<HyperLane>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HyperLane {
    /// `w` and its optimizer's slots.
    pub inner: OptState,
    /// `u` with `λ = T(u)`, and its optimizer's slots.
    pub hyper: OptState,
    /// The last solution; empty if there is none.
    pub q: Vec<f32>,
    /// Hyper steps left out.
    pub skipped: u64,
    /// Times that `w` left the finite numbers and began anew.
    pub resets: u64,
    /// Solves that met negative curvature.
    pub indefinite: u64,
}

/// What one hyper step of a lane did; means over lanes are the metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct HyperReport {
    /// The validation loss before the step.
    pub valid_loss: f64,
    /// The training loss there.
    pub train_loss: f64,
    /// `‖∂L_T/∂w‖`: 0 where the theorem is exact.
    pub inner_grad_norm: f64,
    /// Norm of the hypergradient.
    pub grad_norm: f64,
    /// Relative residual of the solve.
    pub residual: f64,
    /// Products with the curvature.
    pub products: usize,
    /// Steps on `w`.
    pub inner_steps: u64,
}

impl HyperLearner {
    /// A learner.
    ///
    /// # Errors
    /// Settings out of range; names of tensors that λ does not have; initial λ of another length or out of its range.
    pub fn new(
        problem: Arc<HyperProblem>,
        inner: Box<dyn Optimizer>,
        hyper: Box<dyn Optimizer>,
        implicit: Implicit,
        config: HyperConfig,
    ) -> Result<Self> {
        inner.validate()?;
        hyper.validate()?;
        implicit.validate(problem.params.len())?;
        for (what, x) in [
            ("hyper steps", config.hyper_steps),
            ("inner steps", config.inner_steps),
            ("lanes", config.lanes as u64),
        ] {
            Interval::COUNT.check(what, x as f64)?;
        }
        let mut constraints: Vec<(Range<usize>, Constraint)> = Vec::new();
        for (name, constraint) in &config.constraints {
            constraint.validate()?;
            let range = problem.hyper.entry(name)?.range();
            // The last one counts.
            constraints.retain(|(other, _)| *other != range);
            if *constraint != Constraint::Free {
                constraints.push((range, *constraint));
            }
        }
        for candidate in &config.candidates {
            problem.hyper.check_len("initial hyperparameters", candidate.len())?;
        }
        if let DecayLimit::Rate(rate) = config.decay_limit {
            Interval::POSITIVE.check("decay limit: rate", rate)?;
        }
        if implicit.curvature == Curvature::GaussNewton {
            // Refused here, where it is an error and not the middle of a run.
            let (w, lambda) = problem.init(Key::new(0));
            let mut grad = vec![0.0; w.data.len()];
            let at = BatchKey::train(0, Key::new(0));
            let joint = [w.data, lambda.data].concat();
            if problem.joint.evaluator().linearize(&joint, &mut [], at, &mut grad).1.is_none() {
                let why = "the Gauss-Newton matrix needs losses made of `outerloop_core::ops` alone";
                return Err(Error::invalid(problem.name(), why));
            }
        }
        if implicit.solver.needs_diagonal() {
            let lambda = problem.init(Key::new(0)).1.data;
            check_diagonal(&problem, &known_diagonal(&problem, &lambda, implicit.damping))?;
        }
        let mut learner = HyperLearner {
            problem,
            inner,
            hyper,
            implicit,
            config,
            constraints,
            limit: f32::INFINITY,
            fingerprint: String::new(),
        };
        learner.limit = match learner.config.decay_limit {
            DecayLimit::Off => f32::INFINITY,
            DecayLimit::Rate(rate) => -rate.ln() as f32,
            DecayLimit::Measured => -learner.largest_step().ln(),
        };
        learner.fingerprint = learner.describe();
        Ok(learner)
    }

    /// Steps on `w` in the whole run.
    fn all_inner_steps(&self) -> u64 {
        self.config.warm_up + self.config.hyper_steps * self.config.inner_steps
    }

    /// See [`DecayLimit::Measured`].
    fn largest_step(&self) -> f32 {
        let probe = Params::zeros(Arc::new(Layout::new([("probe", vec![1])])));
        let total = self.all_inner_steps();
        let step = |i: u64| {
            let mut state = self.inner.init(&probe, Some(total), Key::new(0));
            state.step = i * (total - 1) / 16;
            self.inner.update(&mut state, &[1.0], 1.0, Key::new(0));
            state.params[0].abs()
        };
        (0..=16).map(step).filter(|s| s.is_finite()).fold(0.0, f32::max)
    }

    fn describe(&self) -> String {
        let HyperConfig { candidates, .. } = &self.config;
        let config = HyperConfig { candidates: Vec::new(), ..self.config.clone() };
        format!(
            "problem={} {:?} {:?} {}; inner={}; hyper={}; {}; {config:?}; candidates={}",
            self.problem.name(),
            fingerprint::short(format!("{:?}", self.problem.params)),
            fingerprint::short(format!("{:?}", self.problem.hyper)),
            fingerprint::of_task(&*self.problem.joint),
            fingerprint::short(self.inner.describe()),
            fingerprint::short(self.hyper.describe()),
            self.implicit.describe(),
            fingerprint::short(format!("{candidates:?}")),
        )
    }

    /// The problem.
    pub fn problem(&self) -> &Arc<HyperProblem> {
        &self.problem
    }

    /// The largest log decay that a hyper step leaves.
    pub fn decay_limit(&self) -> f32 {
        self.limit
    }

    /// A lane's hyperparameters λ.
    pub fn hyper(&self, lane: &HyperLane) -> Vec<f32> {
        self.transformed(&self.hyper.evaluation_params(&lane.hyper))
    }

    /// `T(u)`.
    fn transformed(&self, u: &[f32]) -> Vec<f32> {
        let mut lambda = u.to_vec();
        for (range, constraint) in &self.constraints {
            lambda[range.clone()].iter_mut().for_each(|l| *l = constraint.apply(*l).0);
        }
        lambda
    }

    /// The constraint of an element of λ.
    fn constraint(&self, place: usize) -> Constraint {
        let of_place = self.constraints.iter().find(|(range, _)| range.contains(&place));
        of_place.map_or(Constraint::Free, |(_, constraint)| *constraint)
    }

    /// A lane's `[w, λ]`.
    pub fn joint(&self, lane: &HyperLane) -> Vec<f32> {
        [&*self.inner.evaluation_params(&lane.inner), &self.hyper(lane)].concat()
    }

    /// The state before the first hyper step.
    ///
    /// # Errors
    /// If an initial λ is not finite or lies out of its range.
    pub fn init(&self, key: Key) -> Result<HyperState> {
        let lane = |i: usize| {
            let key = key.named("lane").fold_in(i as u64);
            let (w, mut hyper) = self.problem.init(key.named("init"));
            if !self.config.candidates.is_empty() {
                hyper.data.clone_from(&self.config.candidates[i % self.config.candidates.len()]);
            }
            self.limit_decays(&mut hyper.data);
            for (range, constraint) in &self.constraints {
                hyper.data[range.clone()].iter_mut().for_each(|l| *l = constraint.invert(*l));
            }
            if let Some(place) = hyper.data.iter().position(|u| !u.is_finite()) {
                let why = format!("element {place} is not inside of {:?}", self.constraint(place));
                return Err(Error::invalid("initial hyperparameters", why));
            }
            Ok(HyperLane {
                inner: self.inner.init(&w, Some(self.all_inner_steps()), key.named("inner")),
                hyper: self.hyper.init(&hyper, Some(self.config.hyper_steps), key.named("hyper")),
                q: Vec::new(),
                skipped: 0,
                resets: 0,
                indefinite: 0,
            })
        };
        let lanes = (0..self.config.lanes).map(lane).collect::<Result<Vec<_>>>()?;
        Ok(HyperState { fingerprint: self.fingerprint.clone(), key, hyper_step: 0, lanes })
    }

    /// Clips log decays to the stability limit.
    fn limit_decays(&self, lambda: &mut [f32]) {
        for Range { start, end } in self.problem.log_decays.iter().cloned() {
            lambda[start..end].iter_mut().for_each(|l| *l = l.min(self.limit));
        }
    }

    /// One hyper step of all lanes. A pure function of the state, whatever the number of workers.
    pub fn step(&self, state: &mut HyperState, workers: &Workers) -> Vec<HyperReport> {
        let (key, step) = (state.key.named("lane"), state.hyper_step);
        let reports = workers.map(&mut state.lanes, |worker, i, lane| {
            self.step_lane(lane, step, key.fold_in(i as u64), worker)
        });
        state.hyper_step += 1;
        reports
    }

    fn step_lane(&self, lane: &mut HyperLane, step: u64, key: Key, worker: &mut Worker) -> HyperReport {
        let n = self.problem.params.len();
        // Of all buffers as large as w, only those that are needed live at a time.
        let is_free = self.constraints.is_empty();
        let mut joint = match is_free {
            true => [&lane.inner.params[..], &std::mem::take(&mut lane.hyper.params)].concat(),
            false => [&lane.inner.params[..], &self.transformed(&lane.hyper.params)].concat(),
        };
        let evaluator = worker.evaluator_alone(&self.problem.joint);
        let mut grad = vec![0.0; n];
        let inner_steps = self.config.inner_steps + if step == 0 { self.config.warm_up } else { 0 };
        let [data, inner_key] = [key.named("data"), key.named("inner")];
        for _ in 0..inner_steps {
            let at = BatchKey::train(lane.inner.step, data);
            let loss = evaluator.loss_and_leading_grad(&joint, &mut [], at, &mut grad);
            self.inner.update(&mut lane.inner, &grad, loss, inner_key);
            joint[..n].copy_from_slice(&lane.inner.params);
        }
        drop(grad);
        if !is_finite(&lane.inner.params) {
            let (w, _) = self.problem.init(key.named("init"));
            lane.inner = self.inner.init(&w, Some(self.all_inner_steps()), inner_key);
            if is_free {
                lane.hyper.params = joint.split_off(n);
            }
            lane.q.clear();
            lane.resets += 1;
            lane.skipped += 1;
            return HyperReport::lost(inner_steps);
        }
        let is_evaluated = match self.inner.evaluation_params(&lane.inner) {
            Cow::Borrowed(w) => std::ptr::eq(w, &lane.inner.params[..]),
            Cow::Owned(w) => {
                joint[..n].copy_from_slice(&w);
                false
            }
        };
        if is_evaluated {
            // `joint` begins with the same numbers.
            lane.inner.params = Vec::new();
        }
        let curvature = BatchKey::train(step, key.named("curvature"));
        let valid = BatchKey { split: Split::OuterValid, step, key: key.named("valid") };
        let at = HyperBatches { curvature, mixed: curvature, valid };
        let start = Some(std::mem::take(&mut lane.q)).filter(|q| !q.is_empty());
        let h = hypergradient(&self.problem, evaluator, &self.implicit, &at, (&joint, start))
            .expect("settings and lengths were checked by `new`");
        let lambda = joint.split_off(n);
        joint.shrink_to_fit();
        if is_free {
            lane.hyper.params = lambda;
        }
        if is_evaluated {
            lane.inner.params = joint;
        }
        let Hypergradient { grad, solution, .. } = h;
        let report = HyperReport {
            valid_loss: h.valid_loss,
            train_loss: h.train_loss,
            inner_grad_norm: h.inner_grad_norm,
            grad_norm: norm(&grad),
            residual: h.residual,
            products: solution.products,
            inner_steps,
        };
        lane.indefinite += u64::from(matches!(solution.status, Status::Indefinite(_)));
        let is_usable = report.grad_norm.is_finite()
            && report.valid_loss.is_finite()
            && !matches!(solution.status, Status::Diverged(_) | Status::NonFinite);
        if !is_usable || !self.update_hyper(lane, grad, report.valid_loss, key) {
            lane.skipped += 1;
        } else if self.config.solve_from == SolveFrom::LastSolution {
            lane.q = solution.q;
        }
        report
    }

    /// The hyper update; `false` if it would make λ non-finite, and then nothing has changed.
    fn update_hyper(&self, lane: &mut HyperLane, mut grad: Vec<f32>, loss: f64, key: Key) -> bool {
        for (range, constraint) in &self.constraints {
            let us = &lane.hyper.params[range.clone()];
            grad[range.clone()].iter_mut().zip(us).for_each(|(g, u)| *g *= constraint.apply(*u).1);
        }
        let before = lane.hyper.clone();
        self.hyper.update(&mut lane.hyper, &grad, loss as f32, key.named("hyper"));
        for range in &self.problem.log_decays {
            let constraint = self.constraint(range.start);
            let highest = constraint.invert(self.limit);
            for u in &mut lane.hyper.params[range.clone()] {
                // NaN stays, to be found below.
                if constraint.apply(*u).0 > self.limit {
                    *u = highest;
                }
            }
        }
        let is_good = is_finite(&lane.hyper.params);
        if !is_good {
            lane.hyper = before;
        }
        is_good
    }
}

impl HyperReport {
    /// Of a lane whose weights were lost.
    fn lost(inner_steps: u64) -> Self {
        let nan = f64::NAN;
        HyperReport {
            valid_loss: nan,
            train_loss: nan,
            inner_grad_norm: nan,
            grad_norm: nan,
            residual: nan,
            products: 0,
            inner_steps,
        }
    }
}

fn is_finite(x: &[f32]) -> bool {
    x.iter().all(|x| x.is_finite())
}

impl Trainable for HyperLearner {
    type State = HyperState;
    const KIND: Kind = Kind(*b"HYPR");
    const LOSS: &'static str = "validation loss";

    fn num_steps(&self) -> u64 {
        self.config.hyper_steps
    }
    fn start(&self, key: Key, _: &Workers) -> Result<HyperState> {
        self.init(key)
    }
    fn check(&self, state: &HyperState) -> Result<()> {
        if self.fingerprint == state.fingerprint {
            return Ok(());
        }
        let [mine, saved] = fingerprint::first_difference(&self.fingerprint, &state.fingerprint);
        Err(Error::mismatch("saved run", mine, saved))
    }
    fn steps_done(&self, state: &HyperState) -> u64 {
        state.hyper_step
    }
    fn advance(&self, state: &mut HyperState, workers: &Workers) -> StepSummary {
        let reports = self.step(state, workers);
        let mean = |f: fn(&HyperReport) -> f64| {
            let finite = || reports.iter().map(f).filter(|x| !x.is_nan());
            finite().sum::<f64>() / finite().count() as f64
        };
        let count = |f: fn(&HyperLane) -> u64| state.lanes.iter().map(f).sum::<u64>() as f64;
        let row = vec![
            ("valid_loss", mean(|r| r.valid_loss)),
            ("train_loss", mean(|r| r.train_loss)),
            ("inner_grad_norm", mean(|r| r.inner_grad_norm)),
            ("hypergrad_norm", mean(|r| r.grad_norm)),
            ("residual", mean(|r| r.residual)),
            ("products", mean(|r| r.products as f64)),
            ("skipped", count(|l| l.skipped)),
            ("resets", count(|l| l.resets)),
            ("indefinite", count(|l| l.indefinite)),
        ];
        let inner_steps = reports.iter().map(|r| r.inner_steps).sum();
        StepSummary { row, loss: mean(|r| r.valid_loss), inner_steps, lost: None }
    }
}
