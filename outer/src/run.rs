//! A training run on disk: progress, metrics, checkpoints, and a stop that can be resumed. [`train`] runs whatever is
//! [`Trainable`]; [`meta_train`] a learner of learned optimizers.

use crate::checkpoint::{self, Kind};
use crate::health::Warning;
use crate::interrupt::Interrupt;
use crate::learner::{GradientLearner, LearnerState, StepReport};
use crate::metrics::{CsvWriter, MetricWriter, TensorBoardWriter};
use crate::progress::Progress;
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};
use serde::{de::DeserializeOwned, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What [`train`] runs: steps that change nothing but one state.
///
/// Invariants: `start` and `advance` are pure functions of their arguments, whatever the number of workers; `check`
/// refuses a state that another configuration made. So a run that was killed and resumed ends with the same bytes.
pub trait Trainable {
    /// Everything that changes.
    type State: Serialize + DeserializeOwned;
    /// What a checkpoint of the state is marked with.
    const KIND: Kind;
    /// What [`StepSummary::loss`] is called.
    const LOSS: &'static str;

    /// Planned steps.
    fn num_steps(&self) -> u64;

    /// The state before the first step.
    ///
    /// # Errors
    /// Settings that cannot work.
    fn start(&self, key: Key, workers: &Workers) -> Result<Self::State>;

    /// Errors unless this configuration made the state.
    ///
    /// # Errors
    /// Where the configurations begin to differ.
    fn check(&self, state: &Self::State) -> Result<()>;

    /// Steps that a state has behind it.
    fn steps_done(&self, state: &Self::State) -> u64;

    /// One step.
    fn advance(&self, state: &mut Self::State, workers: &Workers) -> StepSummary;

    /// Signs that the run so far learns nothing; each is shown once. Default: none.
    fn warnings(&self, state: &Self::State) -> Vec<Warning> {
        let _ = state;
        Vec::new()
    }
}

/// What a step tells the run.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSummary {
    /// Named numbers, the same names in every step but for some that may be missing: a function of the run alone, so
    /// that a resumed run writes the same file.
    pub row: Vec<(&'static str, f64)>,
    /// The loss to show.
    pub loss: f64,
    /// Inner steps computed.
    pub inner_steps: u64,
    /// What the step would have made NaN or infinite, was put back, and ends the run.
    pub lost: Option<&'static str>,
}

impl Trainable for GradientLearner {
    type State = LearnerState;
    const KIND: Kind = Kind(*b"LRNR");
    const LOSS: &'static str = "meta-loss";

    fn num_steps(&self) -> u64 {
        self.num_steps()
    }
    fn start(&self, key: Key, workers: &Workers) -> Result<LearnerState> {
        self.init(key, workers)
    }
    fn check(&self, state: &LearnerState) -> Result<()> {
        self.check(state)
    }
    fn steps_done(&self, state: &LearnerState) -> u64 {
        state.outer_step
    }
    fn advance(&self, state: &mut LearnerState, workers: &Workers) -> StepSummary {
        let report = self.step(state, workers);
        StepSummary {
            row: row(&report, state),
            loss: report.mean_loss,
            inner_steps: report.inner_steps,
            lost: report.undone.then_some("theta"),
        }
    }
    fn warnings(&self, state: &LearnerState) -> Vec<Warning> {
        state.warnings()
    }
}

const HOLDS_RUN: &str = "holds a run already; resume it, or choose another directory";

/// The directory of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory at `path`; created by [`Self::create`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir(path.into())
    }

    /// Makes the directory. Errors if it holds a run already.
    pub fn create(&self) -> Result<()> {
        if self.checkpoint().exists() {
            return Err(Error::invalid(format!("run directory {}", self.0.display()), HOLDS_RUN));
        }
        std::fs::create_dir_all(&self.0).map_err(|e| Error::io(&self.0, e))
    }

    /// Errors unless a run can begin here: the directory does not exist yet, or holds nothing but files of
    /// the names `leftovers` (what a run that never came to its first checkpoint may leave behind).
    pub fn check_free(&self, leftovers: &[&str]) -> Result<()> {
        let here = || format!("run directory {}", self.0.display());
        let entries = match std::fs::read_dir(&self.0) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| Error::io(&self.0, e))?,
        };
        let mut foreign = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.0, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path() == self.checkpoint() || RunDir::new(entry.path()).checkpoint().exists() {
                return Err(Error::invalid(here(), HOLDS_RUN));
            }
            if !leftovers.contains(&name.as_str()) && !outerloop_core::atomic::is_temp(&name) {
                foreign.push(name);
            }
        }
        // The first by name: the order of a directory is anybody's guess.
        foreign.sort();
        let Some(name) = foreign.first() else { return Ok(()) };
        let why = format!("is in use: it holds `{name}`, which no run left there; choose another directory");
        Err(Error::invalid(here(), why))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    /// The learner's state.
    pub fn checkpoint(&self) -> PathBuf {
        self.file("learner.ckpt")
    }
    /// One row of numbers per outer step.
    pub fn metrics(&self) -> PathBuf {
        self.file("metrics.csv")
    }

    /// Saves a learner's state, atomically.
    pub fn save(&self, state: &LearnerState) -> Result<()> {
        self.save_state::<GradientLearner>(state)
    }
    /// Loads a learner's state and checks that `learner` made it.
    pub fn load(&self, learner: &GradientLearner) -> Result<LearnerState> {
        self.load_state(learner)
    }

    /// Saves the state of a run, atomically.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn save_state<T: Trainable>(&self, state: &T::State) -> Result<()> {
        checkpoint::save(self.checkpoint(), T::KIND, state)
    }
    /// Loads the state of a run and checks that `trained` made it.
    ///
    /// # Errors
    /// If there is none, or another configuration made it.
    pub fn load_state<T: Trainable>(&self, trained: &T) -> Result<T::State> {
        let state = checkpoint::load(self.checkpoint(), T::KIND)?;
        trained.check(&state)?;
        Ok(state)
    }
}

/// What a run needs beside its learner.
#[derive(Clone, Debug, PartialEq)]
pub struct RunConfig {
    /// Root of all randomness.
    pub seed: u64,
    /// Outer steps between checkpoints, at least 1; one is also written at the start, the end and on
    /// Ctrl-C. Default 100.
    pub checkpoint_every: u64,
    /// Continue the saved run instead of starting one.
    pub resume: bool,
    /// Show progress on stderr. Default true.
    pub progress: bool,
    /// Markdown shown in TensorBoard; empty for none.
    pub description: String,
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            seed: 0,
            checkpoint_every: 100,
            resume: false,
            progress: true,
            description: String::new(),
        }
    }
}

/// Meta-trains to the learner's number of outer steps, writing metrics (CSV and TensorBoard) and
/// checkpoints into `dir`. Returns the final state, or [`Error::Interrupted`] after Ctrl-C, with
/// everything saved. Signs that nothing is learned ([`LearnerState::warnings`]) are shown once. An outer
/// update that makes theta non-finite ends the run with [`Error::NonFinite`], the theta before it saved.
///
/// Killed at any point and resumed, it ends with the same bytes as an uninterrupted run.
///
/// # Errors
/// Settings out of range, before anything is written; a directory that holds a run already, or on resume
/// holds none of this learner.
pub fn meta_train(
    learner: &GradientLearner,
    workers: &Workers,
    dir: &RunDir,
    config: &RunConfig,
) -> Result<LearnerState> {
    train(learner, workers, dir, config)
}

/// Runs all steps of `trained`, writing metrics (CSV and TensorBoard) and checkpoints into `dir`. Returns the final
/// state, or [`Error::Interrupted`] after Ctrl-C, with everything saved.
///
/// Killed at any point and resumed, it ends with the same bytes as an uninterrupted run.
///
/// # Errors
/// As for [`meta_train`].
pub fn train<T: Trainable>(
    trained: &T,
    workers: &Workers,
    dir: &RunDir,
    config: &RunConfig,
) -> Result<T::State> {
    if config.checkpoint_every == 0 {
        return Err(Error::invalid("checkpoint_every", "must be at least 1, got 0"));
    }
    let interrupt = Interrupt::install()?;
    let mut state = if config.resume {
        dir.load_state(trained)?
    } else {
        dir.create()?;
        let state = trained.start(Key::new(config.seed), workers)?;
        dir.save_state::<T>(&state)?;
        state
    };
    let mut done = trained.steps_done(&state);
    outerloop_core::atomic::sweep_temp(dir.path())?;
    let mut tensorboard = TensorBoardWriter::create(dir.path())?;
    if !config.description.is_empty() {
        tensorboard.text(done, "config", &config.description)?;
    }
    let csv = CsvWriter::resume(dir.metrics(), done)?;
    let mut writers: Vec<Box<dyn MetricWriter>> = vec![Box::new(csv), Box::new(tensorboard)];
    let total = trained.num_steps();
    let mut progress =
        if config.progress { Progress::new(total, done) } else { Progress::silent(total, done) };
    let mut speed = Speed::default();
    let mut said: Vec<Warning> = Vec::new();
    while done < total {
        let began = Instant::now();
        let summary = trained.advance(&mut state, workers);
        let rate = speed.update(summary.inner_steps, began.elapsed().as_secs_f64());
        writers.row(done, &summary.row)?;
        done = trained.steps_done(&state);
        progress.update_named(done, rate, (T::LOSS, summary.loss));
        for warning in trained.warnings(&state) {
            if !said.iter().any(|s| s.is_like(&warning)) {
                progress.println(format!("warning: {warning}"));
                said.push(warning);
            }
        }
        if let Some(what) = summary.lost {
            writers.flush()?;
            dir.save_state::<T>(&state)?;
            progress.finish();
            return Err(lost(what, done, dir));
        }
        let stop = interrupt.requested();
        if stop || done % config.checkpoint_every == 0 || done == total {
            writers.flush()?;
            dir.save_state::<T>(&state)?;
        }
        if stop && done < total {
            progress.finish();
            return Err(Error::Interrupted);
        }
    }
    progress.finish();
    Ok(state)
}

/// The error that ends a run whose outer update made `what` non-finite.
fn lost(what: &str, step: u64, dir: &RunDir) -> Error {
    let why = format!(
        "the {what} before it is saved in {}; try a smaller outer learning rate",
        dir.checkpoint().display()
    );
    Error::NonFinite { what: format!("{what} in outer step {step}"), why }
}

/// What is written per outer step: a function of the run alone, so a resumed run writes the same file.
fn row(report: &StepReport, state: &LearnerState) -> Vec<(&'static str, f64)> {
    let mut row = vec![
        ("meta_loss", report.mean_loss),
        ("grad_norm", report.grad_norm),
        ("clipped", report.clipped),
        ("inner_steps", state.inner_steps as f64),
        ("diverged", report.diverged as f64),
        ("masked", report.masked as f64),
        ("skipped", state.skipped as f64),
    ];
    row.extend(report.signal_to_noise.map(|ratio| ("signal_to_noise", ratio)));
    row.extend(report.runs.and_then(|runs| runs.horizon).map(|length| ("horizon", length)));
    row.extend(report.runs.map(|runs| ("staleness", runs.staleness)));
    row.extend(report.validation.map(|score| ("validation", score)));
    row
}

/// Inner steps per second, smoothed over about ten outer steps.
#[derive(Default)]
struct Speed {
    steps: f64,
    seconds: f64,
}

impl Speed {
    fn update(&mut self, steps: u64, seconds: f64) -> f64 {
        self.steps = 0.9 * self.steps + steps as f64;
        self.seconds = 0.9 * self.seconds + seconds;
        self.steps / self.seconds.max(1e-9)
    }
}
