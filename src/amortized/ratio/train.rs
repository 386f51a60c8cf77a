//! Training of one task by any optimizer: best parameters kept, stop and exact resume, files of a run.

use outerloop_core::{BatchKey, Error, FlatTask, Key, Optimizer, Result, Split};
use outerloop_outer::checkpoint::{self, Kind};
use outerloop_outer::episode::{fresh, train_step, EpisodeKeys, Trajectory};
use outerloop_outer::interrupt::Interrupt;
use outerloop_outer::metrics::{CsvWriter, MetricWriter, TensorBoardWriter};
use outerloop_outer::progress::Progress;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// When training ends before its planned number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stop {
    /// Never.
    Never,
    /// After so many evaluations without a better validation loss.
    Patience(u64),
    /// After so many evaluations in each of which the mean training loss was not below the best one minus
    /// `tolerance`: scikit-learn's rule.
    Plateau {
        /// Evaluations.
        patience: u64,
        /// Nats.
        tolerance: f64,
    },
}

/// How long to train, and when to look.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainConfig {
    /// Updates at most; told to the optimizer.
    pub steps: u64,
    /// Updates between evaluations, at least 1. Default 100.
    pub eval_every: u64,
    /// Batches per evaluation; 0: there is no validation, and the last parameters count. Default 10.
    pub eval_batches: u64,
    /// Default [`Stop::Never`].
    pub stop: Stop,
    /// What a resumed run must match, beside the optimizer and these numbers.
    pub note: String,
    /// Where metrics and checkpoints go; `None`: nowhere. Default `None`.
    pub dir: Option<PathBuf>,
    /// Continue what lies in `dir`.
    pub resume: bool,
    /// Show progress on stderr. Default false.
    pub progress: bool,
}

impl TrainConfig {
    /// The defaults, for this many steps.
    pub fn new(steps: u64) -> Self {
        TrainConfig {
            steps,
            eval_every: 100,
            eval_batches: 10,
            stop: Stop::Never,
            note: String::new(),
            dir: None,
            resume: false,
            progress: false,
        }
    }
}

/// One look at a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainPoint {
    /// Updates done.
    pub step: u64,
    /// Mean training loss since the last look.
    pub train: f64,
    /// Mean validation loss; NaN where there is none.
    pub valid: f64,
}

/// All that changes in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    fingerprint: String,
    trajectory: Trajectory,
    curve: Vec<TrainPoint>,
    /// Validation loss and parameters of the best evaluation.
    best: Option<(f64, u64, Vec<f32>)>,
    /// Sum of training losses since the last look.
    sum: f64,
    /// Evaluations without improvement, and the best training loss.
    waited: (u64, f64),
    is_done: bool,
}

/// A finished run.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    /// The best parameters by validation, or else the last.
    pub params: Vec<f32>,
    /// Updates done, and those after which `params` were found.
    pub steps: [u64; 2],
    /// Looks, in time order.
    pub curve: Vec<TrainPoint>,
    /// Why it ended, in words.
    pub ended: String,
}

const FILE: &str = "training.ckpt";

/// Trains from `key`, which fixes initial parameters and batches, to the planned steps or an early stop.
///
/// Killed at any point and resumed, it ends with the same bytes as an uninterrupted run.
///
/// # Errors
/// Settings out of range; a directory that holds a run already, or on resume none of this task, optimizer and
/// settings; parameters that become NaN; [`Error::Interrupted`] after Ctrl-C, with everything saved.
pub fn train(task: &dyn FlatTask, opt: &dyn Optimizer, config: &TrainConfig, key: Key) -> Result<Trained> {
    opt.validate()?;
    if config.eval_every == 0 || config.steps == 0 {
        let got = format!("must be at least 1, got {} and {}", config.steps, config.eval_every);
        return Err(Error::invalid("training: steps and eval_every", got));
    }
    let run = Run::new(task, opt, config, key);
    let mut state = run.start()?;
    let mut files = Files::open(config, &state)?;
    let mut evaluator = task.evaluator();
    let mut grad = vec![0.0; state.trajectory.opt.params.len()];
    while !state.is_done {
        let at = BatchKey::train(state.trajectory.opt.step, run.keys.data);
        let loss = train_step(&mut *evaluator, opt, &mut state.trajectory, at, run.keys.opt, &mut grad);
        state.sum += f64::from(loss);
        let step = state.trajectory.opt.step;
        if step % config.eval_every == 0 || step == config.steps {
            run.look(&mut state, &mut *evaluator)?;
            files.look(&state)?;
        }
    }
    files.finish();
    let ended = match state.trajectory.opt.step {
        s if s == config.steps => format!("all {s} steps done"),
        s => format!("stopped early after {s} of {} steps", config.steps),
    };
    let last = state.trajectory.opt.step;
    let (at, params) = match state.best {
        Some((_, at, params)) => (at, params),
        None => (last, opt.evaluation_params(&state.trajectory.opt).into_owned()),
    };
    Ok(Trained { params, steps: [last, at], curve: state.curve, ended })
}

struct Run<'a> {
    task: &'a dyn FlatTask,
    opt: &'a dyn Optimizer,
    config: &'a TrainConfig,
    keys: EpisodeKeys,
    fingerprint: String,
}

impl<'a> Run<'a> {
    fn new(task: &'a dyn FlatTask, opt: &'a dyn Optimizer, config: &'a TrainConfig, key: Key) -> Self {
        let TrainConfig { steps, eval_every, eval_batches, stop, note, .. } = config;
        let fingerprint = format!(
            "task={} {note}; key={key:?}; {steps} steps, {eval_batches} batches every {eval_every}, {stop:?}; {}",
            task.name(),
            opt.describe()
        );
        Run { task, opt, config, keys: EpisodeKeys::new(key, 0), fingerprint }
    }

    fn start(&self) -> Result<TrainState> {
        let path = self.config.dir.as_ref().map(|d| d.join(FILE));
        match path {
            Some(path) if self.config.resume => {
                let state: TrainState = checkpoint::load(&path, Kind::INNER)?;
                if state.fingerprint != self.fingerprint {
                    let first = state.fingerprint.chars().zip(self.fingerprint.chars());
                    let same = first.take_while(|(a, b)| a == b).count().saturating_sub(20);
                    let part = |s: &str| s.chars().skip(same).take(80).collect::<String>();
                    return Err(Error::mismatch(
                        "saved training",
                        part(&self.fingerprint),
                        part(&state.fingerprint),
                    ));
                }
                Ok(state)
            }
            Some(path) if path.exists() => {
                let what = format!(
                    "run directory {}",
                    self.config.dir.as_ref().map_or("".into(), |d| d.display().to_string())
                );
                Err(Error::invalid(what, "holds a run already; resume it, or choose another directory"))
            }
            _ => Ok(TrainState {
                fingerprint: self.fingerprint.clone(),
                trajectory: fresh(self.task, self.opt, self.keys, Some(self.config.steps)),
                curve: Vec::new(),
                best: None,
                sum: 0.0,
                waited: (0, f64::INFINITY),
                is_done: false,
            }),
        }
    }

    /// Evaluates, keeps the best, and decides whether to go on.
    fn look(&self, state: &mut TrainState, evaluator: &mut dyn outerloop_core::Evaluator) -> Result<()> {
        let step = state.trajectory.opt.step;
        if state.trajectory.opt.params.iter().any(|p| !p.is_finite()) {
            let why = "try a smaller learning rate, or clip gradients".into();
            return Err(Error::NonFinite { what: format!("parameters after {step} steps"), why });
        }
        let batches = self.config.eval_batches;
        let params = self.opt.evaluation_params(&state.trajectory.opt).into_owned();
        let key = self.keys.data.named("eval");
        let at = |i| BatchKey { split: Split::OuterValid, step: i, key };
        let losses =
            (0..batches).map(|i| f64::from(evaluator.loss(&params, &state.trajectory.model_state, at(i))));
        let valid = losses.sum::<f64>() / batches as f64;
        let seen = step - state.curve.last().map_or(0, |p| p.step);
        let train = state.sum / seen as f64;
        state.sum = 0.0;
        state.curve.push(TrainPoint { step, train, valid });
        let is_best = batches > 0 && state.best.as_ref().is_none_or(|b| valid < b.0);
        if is_best {
            state.best = Some((valid, step, params));
        }
        let (waited, best) = &mut state.waited;
        let (is_better, patience) = match self.config.stop {
            Stop::Never => (true, u64::MAX),
            Stop::Patience(patience) => (is_best, patience),
            Stop::Plateau { patience, tolerance } => (train < *best - tolerance, patience),
        };
        *best = best.min(train);
        *waited = if is_better { 0 } else { *waited + 1 };
        state.is_done = step == self.config.steps || *waited >= patience;
        Ok(())
    }
}

/// What a run writes and shows.
struct Files {
    checkpoint: Option<PathBuf>,
    writers: Vec<Box<dyn MetricWriter>>,
    progress: Progress,
    interrupt: Option<Interrupt>,
}

impl Files {
    fn open(config: &TrainConfig, state: &TrainState) -> Result<Self> {
        let (steps, done) = (config.steps, state.trajectory.opt.step);
        let mut writers: Vec<Box<dyn MetricWriter>> = Vec::new();
        let mut interrupt = None;
        if let Some(dir) = &config.dir {
            std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
            interrupt = Some(Interrupt::install()?);
            outerloop_core::atomic::sweep_temp(dir)?;
            writers.push(Box::new(CsvWriter::resume(dir.join("training.csv"), done + 1)?));
            writers.push(Box::new(TensorBoardWriter::create(dir)?));
        }
        let progress =
            if config.progress { Progress::new(steps, done) } else { Progress::silent(steps, done) };
        Ok(Files { checkpoint: config.dir.as_ref().map(|d| d.join(FILE)), writers, progress, interrupt })
    }

    fn look(&mut self, state: &TrainState) -> Result<()> {
        let Some(p) = state.curve.last() else { return Ok(()) };
        self.progress.status(p.step, || format!("loss {:.4}  validation {:.4}", p.train, p.valid));
        if let Some(path) = &self.checkpoint {
            self.writers.row(p.step, &[("train_loss", p.train), ("valid_loss", p.valid)])?;
            self.writers.flush()?;
            checkpoint::save(path, Kind::INNER, state)?;
        }
        if self.interrupt.is_some_and(Interrupt::requested) && !state.is_done {
            return Err(Error::Interrupted);
        }
        Ok(())
    }

    fn finish(self) {
        self.progress.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::Typed;
    use outerloop_lopt::hand::Adam;
    use outerloop_tasks::quadratics::QuadraticTask;

    #[test]
    fn a_resumed_run_ends_with_the_same_bytes() {
        let (task, opt) = (Typed::new(QuadraticTask::new(4)), Adam::new(0.1));
        let dir = tempfile::tempdir().unwrap();
        let whole = TrainConfig { eval_every: 7, ..TrainConfig::new(50) };
        let want = train(&task, &opt, &whole, Key::new(1)).unwrap();
        assert_eq!((want.steps, want.curve.len()), ([50, 50], 8));
        // A run that is cut off: its checkpoint is that of an earlier look.
        let in_dir = TrainConfig { dir: Some(dir.path().into()), ..whole.clone() };
        train(&task, &opt, &in_dir, Key::new(1)).unwrap();
        let run = Run::new(&task, &opt, &whole, Key::new(1));
        let mut state = run.start().unwrap();
        let (mut e, mut grad) = (outerloop_core::FlatTask::<f32>::evaluator(&task), vec![0.0; 4]);
        for step in 0..21 {
            let at = BatchKey::train(step, run.keys.data);
            state.sum +=
                f64::from(train_step(&mut *e, &opt, &mut state.trajectory, at, run.keys.opt, &mut grad));
            if (step + 1) % 7 == 0 {
                run.look(&mut state, &mut *e).unwrap();
            }
        }
        checkpoint::save(dir.path().join(FILE), Kind::INNER, &state).unwrap();
        let resume = TrainConfig { resume: true, ..in_dir.clone() };
        assert_eq!(train(&task, &opt, &resume, Key::new(1)).unwrap(), want);
        let error =
            |c: &TrainConfig, lr| train(&task, &Adam::new(lr), c, Key::new(1)).unwrap_err().to_string();
        assert!(error(&in_dir, 0.1).contains("holds a run already"));
        assert!(error(&resume, 0.2).contains("Constant(0.2)"), "{}", error(&resume, 0.2));
    }

    #[test]
    fn training_stops_when_nothing_gets_better() {
        let (task, opt) = (Typed::new(QuadraticTask::new(4)), Adam::new(1e-9));
        let config = TrainConfig {
            eval_every: 5,
            stop: Stop::Plateau { patience: 3, tolerance: 0.01 },
            ..TrainConfig::new(1000)
        };
        let run = train(&task, &opt, &config, Key::new(1)).unwrap();
        assert_eq!(run.steps[0], 20);
        assert!(run.ended.contains("stopped early after 20 of 1000"), "{}", run.ended);
        let error = train(&task, &Adam::new(f64::NAN), &config, Key::new(1)).unwrap_err().to_string();
        assert!(error.contains("learning_rate"), "{error}");
    }
}
