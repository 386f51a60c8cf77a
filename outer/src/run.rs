//! A meta-training run on disk: progress, metrics, checkpoints, and a stop that can be resumed.

use crate::checkpoint::{self, Kind};
use crate::health::Warning;
use crate::interrupt::Interrupt;
use crate::learner::{GradientLearner, LearnerState, StepReport};
use crate::metrics::{CsvWriter, MetricWriter, TensorBoardWriter};
use crate::progress::Progress;
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

const KIND: Kind = Kind(*b"LRNR");
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
        checkpoint::save(self.checkpoint(), KIND, state)
    }
    /// Loads a learner's state and checks that `learner` made it.
    pub fn load(&self, learner: &GradientLearner) -> Result<LearnerState> {
        let state = checkpoint::load(self.checkpoint(), KIND)?;
        learner.check(&state)?;
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
    if config.checkpoint_every == 0 {
        return Err(Error::invalid("checkpoint_every", "must be at least 1, got 0"));
    }
    let interrupt = Interrupt::install()?;
    let mut state = if config.resume {
        dir.load(learner)?
    } else {
        dir.create()?;
        let state = learner.init(Key::new(config.seed), workers)?;
        dir.save(&state)?;
        state
    };
    outerloop_core::atomic::sweep_temp(dir.path())?;
    let mut tensorboard = TensorBoardWriter::create(dir.path())?;
    if !config.description.is_empty() {
        tensorboard.text(state.outer_step, "config", &config.description)?;
    }
    let csv = CsvWriter::resume(dir.metrics(), state.outer_step)?;
    let mut writers: Vec<Box<dyn MetricWriter>> = vec![Box::new(csv), Box::new(tensorboard)];
    let total = learner.num_steps();
    let mut progress = if config.progress {
        Progress::new(total, state.outer_step)
    } else {
        Progress::silent(total, state.outer_step)
    };
    let mut speed = Speed::default();
    let mut said: Vec<Warning> = Vec::new();
    while state.outer_step < total {
        let began = Instant::now();
        let report = learner.step(&mut state, workers);
        let rate = speed.update(report.inner_steps, began.elapsed().as_secs_f64());
        writers.row(state.outer_step - 1, &row(&report, &state))?;
        progress.update(state.outer_step, rate, report.mean_loss);
        for warning in state.warnings() {
            if !said.iter().any(|s| s.is_like(&warning)) {
                progress.println(format!("warning: {warning}"));
                said.push(warning);
            }
        }
        if report.undone {
            writers.flush()?;
            dir.save(&state)?;
            progress.finish();
            return Err(lost_theta(&state, dir));
        }
        let stop = interrupt.requested();
        if stop || state.outer_step % config.checkpoint_every == 0 || state.outer_step == total {
            writers.flush()?;
            dir.save(&state)?;
        }
        if stop && state.outer_step < total {
            progress.finish();
            return Err(Error::Interrupted);
        }
    }
    progress.finish();
    Ok(state)
}

/// The error that ends a run whose outer update made theta non-finite.
fn lost_theta(state: &LearnerState, dir: &RunDir) -> Error {
    let why = format!(
        "the theta before it is saved in {}; try a smaller outer learning rate",
        dir.checkpoint().display()
    );
    Error::NonFinite { what: format!("theta in outer step {}", state.outer_step), why }
}

/// What is written per outer step: a function of the run alone, so a resumed run writes the same file.
fn row(report: &StepReport, state: &LearnerState) -> Vec<(&'static str, f64)> {
    let mut row = vec![
        ("meta_loss", report.mean_loss),
        ("grad_norm", report.grad_norm),
        ("inner_steps", state.inner_steps as f64),
        ("diverged", report.diverged as f64),
        ("masked", report.masked as f64),
        ("skipped", state.skipped as f64),
    ];
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
