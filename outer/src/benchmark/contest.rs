//! Who runs on what, and the running.

use crate::eval::{training_curve, Curve, EvalConfig, ToldSteps};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::workers::Workers;
use outerloop_core::{Error, FlatFamily, Key, Optimizer, Result, Split};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// A task with its name, or a family of which every seed draws one.
#[derive(Clone)]
pub struct ContestTask {
    /// Short name, unique in the contest.
    pub name: String,
    /// Where its tasks come from.
    pub family: Arc<dyn FlatFamily>,
}

/// What a contestant is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Meta-trained; shown as what is judged, and also run at the other horizons.
    Learned,
    /// Everything else.
    Baseline,
}

/// What distinguishes a contestant's variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sweep {
    /// There is one only.
    None,
    /// Their learning rates.
    LearningRate,
    /// Their places in a list, from 1: the order in which one would try them.
    List,
}

/// One optimizer of a sweep.
pub struct Variant {
    /// Short name within the sweep, e.g. `1e-3` or `#4`; empty for a contestant without a sweep.
    pub label: String,
    /// Where it stands in the sweep: its learning rate, or its place in the list; 1 without a sweep.
    pub position: f64,
    /// The optimizer.
    pub optimizer: Box<dyn Optimizer>,
}

/// An optimizer with its sweep.
pub struct Contestant {
    /// Short name, unique in the contest.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// What its variants are.
    pub sweep: Sweep,
    /// At least one.
    pub variants: Vec<Variant>,
}

impl Contestant {
    /// A contestant without a sweep.
    pub fn single(name: impl Into<String>, role: Role, optimizer: Box<dyn Optimizer>) -> Self {
        let variant = Variant { label: String::new(), position: 1.0, optimizer };
        Contestant { name: name.into(), role, sweep: Sweep::None, variants: vec![variant] }
    }

    /// A hand-designed optimizer swept over learning rates, which must differ. Their labels have the fewest
    /// digits that tell them apart.
    pub fn swept(
        name: impl Into<String>,
        learning_rates: &[f64],
        make: impl Fn(f64) -> Box<dyn Optimizer>,
    ) -> Self {
        let labels = |digits: usize| learning_rates.iter().map(move |lr| format!("{lr:.digits$e}"));
        // 17 digits tell any two numbers apart.
        let digits = (0..16).find(|d| distinct(labels(*d))).unwrap_or(16);
        let variants = labels(digits)
            .zip(learning_rates)
            .map(|(label, &lr)| Variant { label, position: lr, optimizer: make(lr) })
            .collect();
        Contestant { name: name.into(), role: Role::Baseline, sweep: Sweep::LearningRate, variants }
    }

    /// Optimizers in the order in which one would try them.
    pub fn listed(name: impl Into<String>, optimizers: Vec<Box<dyn Optimizer>>) -> Self {
        let variant =
            |(i, optimizer)| Variant { label: format!("#{}", i + 1), position: (i + 1) as f64, optimizer };
        let variants = optimizers.into_iter().enumerate().map(variant).collect();
        Contestant { name: name.into(), role: Role::Baseline, sweep: Sweep::List, variants }
    }

    /// Optimizers with a label each, in the order in which one would try them.
    pub fn labelled(
        name: impl Into<String>,
        optimizers: impl IntoIterator<Item = (String, Box<dyn Optimizer>)>,
    ) -> Self {
        let variant = |(i, (label, optimizer))| Variant { label, position: (i + 1) as f64, optimizer };
        let variants = optimizers.into_iter().enumerate().map(variant).collect();
        Contestant { name: name.into(), role: Role::Baseline, sweep: Sweep::List, variants }
    }

    /// Name and variant.
    pub fn variant_name(&self, variant: usize) -> String {
        match self.variants.get(variant) {
            Some(v) if !v.label.is_empty() => format!("{} {}", self.name, v.label),
            _ => self.name.clone(),
        }
    }
}

/// Whether no item comes twice.
fn distinct<T: Ord>(items: impl Iterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    items.into_iter().all(|item| seen.insert(item))
}

/// All losses of all runs are kept: more steps or seeds are a mistake.
const MAX_STEPS: u64 = 1_000_000_000;
const MAX_SEEDS: u64 = 100_000;

/// Lengths and seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestConfig {
    /// Updates per run: the horizon that optimizers are told and judged at, at least 1. Default 500.
    pub num_steps: u64,
    /// The reference runs this many times longer, so that speed-ups up to this can be measured: at least 1,
    /// and at most 1e9 in all. Default 4.
    pub reference_factor: u64,
    /// Runs per optimizer and task: initial parameters and order of batches. 1 to 100 000, default 3.
    pub seeds: u64,
    /// Root of all randomness. Default 0.
    pub seed: u64,
    /// Horizons at which learned optimizers are run besides, at most `num_steps reference_factor`.
    /// Default: none.
    pub other_horizons: Vec<u64>,
    /// What learned optimizers are told about the length of their runs. Default: the truth.
    pub told: ToldSteps,
    /// Evaluations on the validation data per run, evenly spread; at least 1. Default 10.
    pub evaluations: u64,
    /// Batches per evaluation, at least 1. Default 5.
    pub eval_batches: u64,
    /// Data of the validation loss, by which variants are chosen for the validation table. Default
    /// [`Split::OuterValid`].
    pub validation: Split,
    /// Data that nothing is chosen by: the variants chosen by validation are measured on it. Default: none.
    pub test: Option<Split>,
    /// Resamplings for intervals. Default 2000.
    pub resamples: u64,
}

impl Default for ContestConfig {
    fn default() -> Self {
        ContestConfig {
            num_steps: 500,
            reference_factor: 4,
            seeds: 3,
            seed: 0,
            other_horizons: Vec::new(),
            told: ToldSteps::Exact,
            evaluations: 10,
            eval_batches: 5,
            validation: Split::OuterValid,
            test: None,
            resamples: 2000,
        }
    }
}

impl ContestConfig {
    /// Errors on settings out of range.
    pub fn validate(&self) -> Result<()> {
        let longest = self.num_steps.saturating_mul(self.reference_factor);
        let counts = [
            ("num_steps", self.num_steps, MAX_STEPS),
            ("reference_factor", self.reference_factor, MAX_STEPS),
            ("num_steps x reference_factor", longest, MAX_STEPS),
            ("seeds", self.seeds, MAX_SEEDS),
            ("evaluations", self.evaluations, u64::MAX),
            ("eval_batches", self.eval_batches, u64::MAX),
        ];
        for (name, got, most) in counts {
            if !(1..=most).contains(&got) {
                return Err(Error::invalid(
                    format!("{name} of a contest"),
                    format!("must be 1 to {most}, got {got}"),
                ));
            }
        }
        if self.other_horizons.iter().any(|h| !(1..=longest).contains(h)) {
            let why = format!(
                "must be 1 to {longest} (the reference runs no longer), got {:?}",
                self.other_horizons
            );
            return Err(Error::invalid("other horizons of a contest", why));
        }
        Ok(())
    }

    /// Steps between evaluations: a divisor of the horizon, so that longer runs are evaluated there too.
    fn eval_every(&self) -> u64 {
        let at_least = (self.num_steps / self.evaluations).max(1);
        (at_least..=self.num_steps).find(|n| self.num_steps % n == 0).unwrap_or(1)
    }
}

/// Everything that takes part.
pub struct Contest {
    /// Lengths and seeds.
    pub config: ContestConfig,
    /// What is trained.
    pub tasks: Vec<ContestTask>,
    /// Who trains.
    pub contestants: Vec<Contestant>,
    /// Index of the contestant that speed-ups are measured against. Its updates must not depend on
    /// the planned number of steps, since its runs are longer.
    pub reference: usize,
    /// Initial parameters and batches of seed `i` on any task come from `key.fold_in(i)`: the same for
    /// all optimizers.
    pub key: Key,
}

/// One training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Index of the task.
    pub task: usize,
    /// Index of the contestant.
    pub contestant: usize,
    /// Index of the variant.
    pub variant: usize,
    /// Number of the seed.
    pub seed: u64,
    /// Updates, as told to the optimizer.
    pub num_steps: u64,
    /// Losses.
    pub curve: Curve,
}

/// All runs, in a fixed order.
pub struct Results {
    /// By task, contestant, variant, number of steps, seed.
    pub runs: Vec<Run>,
    /// Optimizer state beside the parameters, bytes, `[task][contestant]`.
    pub state_bytes: Vec<Vec<usize>>,
    /// Parameters per task (of the first seed's).
    pub parameters: Vec<usize>,
    reference: usize,
    horizon: u64,
    longest: u64,
}

impl Contest {
    /// Errors unless there is something to compare.
    pub fn check(&self) -> Result<()> {
        let bad = |why: &str| Err(Error::invalid("contest", why));
        self.config.validate()?;
        if self.tasks.is_empty() || self.contestants.iter().any(|c| c.variants.is_empty()) {
            return bad("expected at least one task, and at least one variant of every contestant");
        }
        if self.reference >= self.contestants.len() {
            return bad("the reference must be one of the contestants");
        }
        if !distinct(self.tasks.iter().map(|t| &t.name))
            || !distinct(self.contestants.iter().map(|c| &c.name))
        {
            return bad("names of tasks and of contestants must differ");
        }
        let variants = |c: &Contestant| (0..c.variants.len()).map(|v| c.variant_name(v)).collect::<Vec<_>>();
        if !distinct(self.contestants.iter().flat_map(variants)) {
            return bad("the variants of all contestants must differ in their names: no learning rate twice");
        }
        Ok(())
    }

    /// Steps of the reference's runs.
    pub(super) fn longest(&self) -> u64 {
        self.config.num_steps * self.config.reference_factor
    }

    /// The run lengths of a contestant.
    pub(super) fn lengths(&self, contestant: usize) -> Vec<u64> {
        let c = &self.config;
        if contestant == self.reference {
            return vec![self.longest()];
        }
        let mut lengths = vec![c.num_steps];
        if self.contestants[contestant].role == Role::Learned {
            lengths.extend(&c.other_horizons);
        }
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    }

    fn plan(&self) -> Vec<(usize, usize, usize, u64, u64)> {
        let mut plan = Vec::new();
        for task in 0..self.tasks.len() {
            for (contestant, c) in self.contestants.iter().enumerate() {
                for variant in 0..c.variants.len() {
                    for num_steps in self.lengths(contestant) {
                        plan.extend(
                            (0..self.config.seeds).map(|s| (task, contestant, variant, num_steps, s)),
                        );
                    }
                }
            }
        }
        plan
    }

    /// Trains everything, with progress on stderr. The results do not depend on the number of threads.
    ///
    /// # Errors
    /// Those of [`Self::check`]; [`Error::Interrupted`] after Ctrl-C.
    pub fn run(&self, workers: &Workers) -> Result<Results> {
        self.check()?;
        let interrupt = Interrupt::install()?;
        let mut plan = self.plan();
        let total: u64 = plan.iter().map(|p| p.3).sum();
        let progress = Mutex::new((Progress::new(total, 0), 0));
        let runs = workers.map(&mut plan, |worker, _, &mut (task, contestant, variant, num_steps, seed)| {
            if interrupt.requested() {
                return None;
            }
            let c = &self.contestants[contestant];
            let told = if c.role == Role::Learned { self.config.told } else { ToldSteps::Exact };
            let eval = EvalConfig {
                num_steps,
                told,
                eval_every: self.config.eval_every(),
                eval_batches: self.config.eval_batches,
                splits: [self.config.validation].into_iter().chain(self.config.test).collect(),
            };
            let optimizer = &*c.variants[variant].optimizer;
            let key = self.key.fold_in(seed);
            let curve = training_curve(&*self.tasks[task].family, optimizer, &eval, key, worker);
            let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
            let (progress, done) = &mut *progress;
            *done += num_steps;
            progress.status(*done, || format!("{} by {}", self.tasks[task].name, c.variant_name(variant)));
            Some(Run { task, contestant, variant, seed, num_steps, curve })
        });
        progress.into_inner().unwrap_or_else(PoisonError::into_inner).0.finish();
        let runs = runs.into_iter().collect::<Option<Vec<Run>>>().ok_or(Error::Interrupted)?;
        Ok(Results::new(self, runs))
    }

    /// Parameters per task, and bytes of state `[task][contestant]`.
    fn sizes(&self) -> (Vec<usize>, Vec<Vec<usize>>) {
        let sizes = self.tasks.iter().map(|t| {
            let params = t.family.sample_task(self.key.fold_in(0)).init(self.key);
            let bytes = |c: &Contestant| {
                let optimizer = &*c.variants[0].optimizer;
                optimizer.init(&params, Some(self.config.num_steps), self.key).slot_bytes()
            };
            (params.data.len(), self.contestants.iter().map(bytes).collect())
        });
        sizes.unzip()
    }
}

impl Results {
    /// The runs of a contest, in the order of its plan.
    pub(super) fn new(contest: &Contest, runs: Vec<Run>) -> Self {
        let (parameters, state_bytes) = contest.sizes();
        let (reference, horizon) = (contest.reference, contest.config.num_steps);
        Results { runs, state_bytes, parameters, reference, horizon, longest: contest.longest() }
    }

    /// The runs by which one variant is judged on one task at the contest's horizon, by seed (the
    /// reference's are longer).
    pub fn of(&self, task: usize, contestant: usize, variant: usize) -> impl Iterator<Item = &Run> {
        let planned = if contestant == self.reference { self.longest } else { self.horizon };
        self.of_length(task, contestant, variant, planned)
    }

    /// The runs of one variant on one task that were planned for `num_steps`, by seed.
    pub fn of_length(
        &self,
        task: usize,
        contestant: usize,
        variant: usize,
        num_steps: u64,
    ) -> impl Iterator<Item = &Run> {
        let wanted = (task, contestant, variant, num_steps);
        self.runs.iter().filter(move |r| (r.task, r.contestant, r.variant, r.num_steps) == wanted)
    }
}
