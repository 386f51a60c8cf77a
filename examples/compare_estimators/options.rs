//! The command line, and the estimators that it asks for.

use clap::{Parser, ValueEnum};
use outerloop::outer::lab::{candidates, choose, Choice, Experiment, Kind};
use outerloop::outer::{Emphasis, LossScale, Mixed, Objective, PesAnalytic};
use outerloop::prelude::*;
use std::path::PathBuf;
use std::sync::Arc;

/// Meta-train with several estimators at equal compute.
#[derive(Parser)]
pub struct Options {
    /// Effort per estimator and seed.
    #[arg(long, default_value_t = 400_000)]
    pub budget: u64,
    /// What the budget counts.
    #[arg(long, value_enum, default_value = "gradients")]
    pub equal: Effort,
    /// Meta-training runs per estimator.
    #[arg(long, default_value_t = 2)]
    pub seeds: u64,
    /// Length of inner runs, in steps.
    #[arg(long, default_value_t = 200)]
    pub length: u64,
    /// Inner steps per estimate.
    #[arg(long, default_value_t = 20)]
    pub trunc_length: usize,
    /// Tasks trained side by side.
    #[arg(long, default_value_t = 8)]
    pub num_tasks: usize,
    /// Standard deviation of the perturbations of theta.
    #[arg(long, default_value_t = 0.01)]
    pub std: f32,
    /// Learning rate of the outer Adam.
    #[arg(long, default_value_t = 3e-3)]
    pub outer_lr: f64,
    /// Samples of the lab per estimator, each a run long; 0: no lab.
    #[arg(long, default_value_t = 16)]
    pub lab_samples: u64,
    /// Points per side of the slice through the meta-loss; 0: no slice.
    #[arg(long, default_value_t = 13)]
    pub slice_points: usize,
    /// Worker threads; 0: one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where the report, its pictures and its tables are written.
    #[arg(long, default_value = "runs/compare_estimators")]
    pub out: PathBuf,
}

/// What is the same for all estimators.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// Gradient equivalents: an inner step of an unrolled window costs 3.1.
    Gradients,
    /// Inner steps, whatever is differentiated.
    InnerSteps,
}

impl std::fmt::Display for Effort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Effort::Gradients => "gradient equivalents",
            Effort::InnerSteps => "inner steps",
        })
    }
}

/// Of one step of a window, per task.
#[derive(Clone, Copy)]
pub struct Cost {
    pub gradients: f64,
    pub inner_steps: f64,
}

/// An antithetic pair.
const PAIR: Cost = Cost { gradients: 2.0, inner_steps: 2.0 };
/// An unrolled step: forward one, backward loss, gradient and H v.
const UNROLLED: Cost = Cost { gradients: 1.0 + 2.1, inner_steps: 1.0 };
/// Both of a pair unrolled.
const MIXED: Cost = Cost { gradients: 2.0 * UNROLLED.gradients, inner_steps: 2.0 };
/// A pair, and its middle unrolled.
const ANALYTIC: Cost = Cost { gradients: PAIR.gradients + UNROLLED.gradients, inner_steps: 3.0 };

/// An estimator at work.
pub struct Entry {
    pub name: &'static str,
    pub cost: Cost,
    pub learner: GradientLearner,
    /// The same once more, for the lab.
    pub estimator: Box<dyn GradientEstimator>,
}

pub fn family() -> Arc<dyn FlatFamily> {
    Arc::new(SingleTask::new(ImageMlp::digits()))
}

pub fn lopt() -> Arc<dyn LearnedOptimizer> {
    Arc::new(MlpLopt { hidden_size: 16, exp_mult: 0.1, ..MlpLopt::default() })
}

impl Options {
    /// Errors on numbers that cannot work.
    pub fn validate(&self) -> Result<()> {
        let what = |name: &str, got: &dyn std::fmt::Display| format!("--{name} {got}");
        if !(1..=10_000).contains(&self.seeds) {
            return Err(Error::invalid(what("seeds", &self.seeds), "expected 1 to 10000"));
        }
        if self.lab_samples == 1 {
            return Err(Error::invalid("--lab-samples 1", "expected at least 2, or 0 for no lab"));
        }
        if self.slice_points == 1 || self.slice_points > 1000 {
            let why = "expected 2 to 1000 points per side, or 0 for no slice";
            return Err(Error::invalid(what("slice-points", &self.slice_points), why));
        }
        if !(self.outer_lr > 0.0 && self.outer_lr.is_finite()) {
            return Err(Error::invalid(what("outer-lr", &self.outer_lr), "expected a positive number"));
        }
        Ok(())
    }

    /// The estimators, all of them checked before the first one runs.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let common = self.antithetic();
        let (n, k) = (self.num_tasks, self.trunc_length);
        // Every state is kept: windows are short.
        let sweep = SweepConfig { memory: Memory::All, ..SweepConfig::default() };
        Ok(vec![
            self.entry("truncated ES", PAIR, |s| Ok(Box::new(TruncatedEs::new(s, common.clone())?)))?,
            self.entry("PES", PAIR, |s| Ok(Box::new(TruncatedPes::new(s, common.clone())?)))?,
            self.entry("noise-reuse ES", PAIR, |s| Ok(Box::new(NoiseReuseEs::new(s, common.clone())?)))?,
            self.entry("unrolled gradient", UNROLLED, |s| {
                Ok(Box::new(TruncatedGrad::new(s, n, k, sweep.clone())?))
            })?,
            self.entry("mixed", MIXED, |s| Ok(Box::new(Mixed::new(s, common.clone(), sweep.clone())?)))?,
            self.entry("PES + analytic", ANALYTIC, |s| {
                Ok(Box::new(PesAnalytic::new(s, common.clone(), Memory::All)?))
            })?,
        ])
    }

    fn entry(
        &self,
        name: &'static str,
        cost: Cost,
        make: impl Fn(TruncatedStep) -> Result<Box<dyn GradientEstimator>>,
    ) -> Result<Entry> {
        let step = self.runs(self.length)?.with_offset(InitialOffset::BurnIn(self.length));
        let (estimator, again) = (make(step.clone())?, make(step)?);
        let per_step = match self.equal {
            Effort::Gradients => cost.gradients,
            Effort::InnerSteps => cost.inner_steps,
        };
        let per_step = per_step * self.window_steps();
        let outer_steps = (self.budget as f64 / per_step) as u64;
        if outer_steps == 0 {
            let why = format!("one outer step of {name} takes {per_step} {}", self.equal);
            return Err(Error::invalid(format!("--budget {}", self.budget), why));
        }
        let outer = Clip::new(ClipRule::Value(3.0), Box::new(Adam::new(self.outer_lr)));
        let learner = GradientLearner::new(lopt(), vec![estimator], Box::new(outer), outer_steps)?;
        Ok(Entry { name, cost, learner, estimator: again })
    }

    pub fn antithetic(&self) -> Antithetic {
        Antithetic {
            num_tasks: self.num_tasks,
            trunc_length: self.trunc_length,
            std: self.std,
            ..Antithetic::default()
        }
    }

    /// What the lab chooses at the first theta, among settings around these.
    pub fn auto(&self, workers: &Workers) -> Result<(Entry, Choice)> {
        let common = self.antithetic();
        let step = self.runs(self.length)?.with_offset(InitialOffset::BurnIn(self.length));
        let (theta, key) = (lopt().init(Key::new(0)), Key::new(0).named("choice"));
        let at = Experiment { theta: &theta, key, samples: 8, warmup: 0, estimates: 4, workers };
        let choice = choose(&candidates(&step, &common)?, &at)?;
        let settings = choice.settings();
        let cost = match settings.kind {
            Kind::Grad => UNROLLED,
            Kind::Mixed => MIXED,
            Kind::Es | Kind::Pes | Kind::NoiseReuse => PAIR,
        };
        println!("auto: {settings}");
        let entry = self.entry("auto", cost, |step| settings.estimator(&step, &common))?;
        Ok((entry, choice))
    }

    /// Runs of this length.
    pub fn runs(&self, length: u64) -> Result<TruncatedStep> {
        TruncatedStep::new(family(), lopt(), TruncationSchedule::Constant(length))?
            .with_objective(self.objective())
    }

    /// Windows' steps of an outer step.
    pub fn window_steps(&self) -> f64 {
        self.num_tasks as f64 * self.trunc_length as f64
    }

    pub fn objective(&self) -> Objective {
        Objective { scale: LossScale::Log { floor: 1e-4, ceiling: 10.0 }, emphasis: Emphasis::Power(1.0) }
    }
}
