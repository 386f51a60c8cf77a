//! Training weights and hyperparameters together, and the two jobs that weigh: weights by decays, examples by weights.

use crate::problem::{unreachable_parts, Classifier, Set, Tuned};
use crate::{percent, Options, Table};
use outerloop::lopt::hand::Momentum;
use outerloop::outer::implicit::{Constraint, HyperEvaluator, HyperState};
use outerloop::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a job does beside its problem.
pub struct Plan {
    /// Trains the weights.
    pub inner: Momentum,
    pub implicit: Implicit,
    pub hyper: Box<dyn Optimizer>,
    /// Where all hyperparameters lie.
    pub range: Constraint,
    pub steps: u64,
    pub inner_steps: u64,
    pub warm_up: u64,
}

/// A finished run.
pub struct Done {
    pub learner: HyperLearner,
    pub task: Arc<Classifier>,
    pub state: HyperState,
    dir: RunDir,
    inner: Momentum,
}

pub fn tune(options: &Options, dir: PathBuf, task: Arc<Classifier>, plan: Plan) -> Result<Done> {
    let problem = Arc::new(HyperProblem::of(&task)?);
    let tensors = problem.hyper.entries().iter();
    let config = HyperConfig {
        hyper_steps: options.steps.unwrap_or(plan.steps),
        inner_steps: plan.inner_steps,
        warm_up: plan.warm_up,
        constraints: tensors.map(|e| (e.name.clone(), plan.range)).collect(),
        ..HyperConfig::default()
    };
    println!(
        "{}: {} weights, {} hyperparameters, {} hyper steps",
        dir.display(),
        problem.params.len(),
        problem.hyper.len(),
        config.hyper_steps
    );
    let inner = Box::new(plan.inner.clone());
    let learner = HyperLearner::new(problem, inner, plan.hyper, plan.implicit, config)?;
    let dir = RunDir::new(dir);
    let config = RunConfig { seed: options.seed, resume: options.resume, ..RunConfig::default() };
    let state = train(&learner, &Workers::new(1)?, &dir, &config)?;
    Ok(Done { learner, task, state, dir, inner: plan.inner })
}

/// The weights after so many steps from the start, with these hyperparameters.
fn trained(problem: &Arc<HyperProblem>, hyper: &[f32], inner: &Momentum, steps: u64) -> Result<Vec<f32>> {
    let mut evaluator = HyperEvaluator::new(problem.clone());
    let (w, _) = problem.init(Key::new(1));
    let inner: &dyn Optimizer = inner;
    let mut state = inner.init(&w, Some(steps), Key::new(2));
    let mut grad = vec![0.0; w.data.len()];
    let mut joint = [&w.data[..], hyper].concat();
    for step in 0..steps {
        let loss = evaluator.loss_and_grad(&joint, BatchKey::train(step, Key::new(2)), &mut grad)?;
        inner.update(&mut state, &grad, loss, Key::new(2));
        joint[..grad.len()].copy_from_slice(&state.params);
    }
    Ok(state.params)
}

impl Done {
    /// `[w, λ]` at the end.
    pub fn joint(&self) -> Vec<f32> {
        self.learner.joint(&self.state.lanes[0])
    }

    /// The weights after so many steps from the start, with these hyperparameters.
    pub fn retrained(&self, hyper: &[f32], steps: u64) -> Result<Vec<f32>> {
        trained(self.learner.problem(), hyper, &self.inner, steps)
    }

    /// The weights after so many steps from the start on these images as they are.
    pub fn trained_on(&self, set: Set, steps: u64) -> Result<Vec<f32>> {
        let equal = vec![0.0; set.y.len()];
        let Classifier { widths, decay, .. } = &*self.task;
        let sets = [set, Set::default(), Set::default()];
        let (widths, tuned) = (widths.clone(), Tuned::Weights);
        let task = Classifier { widths, tuned, decay: *decay, sets, batch: usize::MAX };
        trained(&Arc::new(HyperProblem::new(task)?), &equal, &self.inner, steps)
    }

    /// Steps on the weights in the run.
    pub fn inner_steps(&self) -> u64 {
        self.state.lanes[0].inner.step
    }

    /// The initial hyperparameters.
    pub fn initial(&self) -> Vec<f32> {
        self.learner.problem().init(self.state.key.named("lane").fold_in(0).named("init")).1.data
    }

    /// Losses on validation and test data.
    pub fn losses(&self, w: &[f32]) -> Result<[f64; 2]> {
        let mut evaluator = HyperEvaluator::new(self.learner.problem().clone());
        let joint = [w, &self.initial()].concat();
        let mut on = |split| {
            let loss = evaluator.loss(&joint, BatchKey { split, step: 0, key: Key::new(0) });
            loss.map(f64::from)
        };
        Ok([on(Split::OuterValid)?, on(Split::Test)?])
    }

    /// A column of the metrics over hyper steps.
    fn metric(&self, name: &str) -> Result<Vec<(f64, f64)>> {
        let text =
            std::fs::read_to_string(self.dir.metrics()).map_err(|e| Error::io(self.dir.metrics(), e))?;
        let mut lines = text.lines().map(|l| l.split(',').collect::<Vec<_>>());
        let head = lines.next().unwrap_or_default();
        let column = head.iter().position(|h| *h == name).unwrap_or(0);
        let number =
            |cells: &Vec<&str>, i: usize| cells.get(i).and_then(|c| c.parse().ok()).unwrap_or(f64::NAN);
        Ok(lines.map(|cells| (number(&cells, 0), number(&cells, column))).collect())
    }
}

/// The validation loss over hyper steps.
pub fn picture(dir: &Path, title: &str, runs: &[(&str, &Done)]) -> Result<()> {
    let line = |(name, done): &(&str, &Done)| -> Result<Series> {
        Ok(Series::line(*name, done.metric("valid_loss")?))
    };
    let plot = Plot {
        title: title.into(),
        x_label: "hyper step".into(),
        y_label: "validation loss (nats)".into(),
        y_scale: Scale::Log,
        series: runs.iter().map(line).collect::<Result<_>>()?,
        ..Plot::default()
    };
    plot.save(dir.join("loss.svg"))
}

/// As many hyperparameters as weights fit a small validation set.
pub fn overfit(options: &Options) -> Result<()> {
    let dir = options.out.join("overfit");
    let parts = Set::parts([50, 50], Key::new(options.seed).named("digits"));
    let head = ["model", "decays", "valid before", "valid after", "valid loss", "test before", "test after"];
    let mut table = Table::new("One weight decay per weight, 50 training and 50 validation digits", &head);
    let mut runs = Vec::new();
    for (name, widths, rate) in [("linear", vec![64, 10], 0.3), ("mlp", vec![64, 32, 10], 0.3)] {
        let sets = [parts[0].clone(), parts[1].clone(), parts[2].clone()];
        let task =
            Arc::new(Classifier { widths, tuned: Tuned::Decays(-4.0), decay: 0.0, sets, batch: usize::MAX });
        let hyper = Box::new(RmsProp { learning_rate: 0.1f64.into(), ..RmsProp::default() });
        let plan = Plan {
            inner: Momentum::new(rate, 0.0),
            implicit: Implicit::new(Neumann::new(20, rate)),
            hyper,
            range: Constraint::Free,
            steps: 300,
            inner_steps: 5,
            warm_up: 200,
        };
        let done = tune(options, dir.join(name), task, plan)?;
        let n = done.learner.problem().params.len();
        let before = done.retrained(&done.initial(), done.inner_steps())?;
        let joint = done.joint();
        let after = &joint[..n];
        let [_, valid, test] = &done.task.sets;
        let share = |w: &[f32], set| percent(done.task.accuracy(w, set));
        table.row([
            name.to_string(),
            done.learner.problem().hyper.len().to_string(),
            share(&before, valid),
            share(after, valid),
            format!("{:.4}", done.losses(after)?[0]),
            share(&before, test),
            share(after, test),
        ]);
        runs.push((name, done));
    }
    let lines: Vec<(&str, &Done)> = runs.iter().map(|(name, done)| (*name, done)).collect();
    picture(&dir, "A validation set of 50 digits is fitted by weight decays", &lines)?;
    table.save(&dir)
}

/// Wrong labels lose their weight.
pub fn reweight(options: &Options) -> Result<()> {
    let dir = options.out.join("reweight");
    let key = Key::new(options.seed);
    let mut parts = Set::parts([300, 300], key.named("digits"));
    let wrong: Vec<bool> = (0..300).map(|i| key.named("wrong").fold_in(i).uniform() < 0.3).collect();
    for (i, y) in parts[0].y.iter_mut().enumerate().filter(|(i, _)| wrong[*i]) {
        *y = (*y + 1 + (key.named("label").fold_in(i as u64).uniform() * 9.0) as u32) % 10;
    }
    let sets = <[Set; 3]>::try_from(parts).map_err(|_| unreachable_parts())?;
    let rate = 0.05;
    let task = Arc::new(Classifier {
        widths: vec![64, 10],
        tuned: Tuned::Weights,
        decay: 0.01,
        sets,
        batch: usize::MAX,
    });
    let plan = Plan {
        inner: Momentum::new(rate, 0.9),
        implicit: Implicit::new(Neumann::new(20, rate)),
        hyper: Box::new(Adam::new(0.1)),
        // Weights of examples multiply the curvature: unbounded, they outgrow any learning rate.
        range: Constraint::Between { low: -6.0, high: 2f64.ln() },
        steps: 300,
        inner_steps: 10,
        warm_up: 300,
    };
    let done = tune(options, dir.clone(), task, plan)?;
    let weights = done.learner.hyper(&done.state.lanes[0]);
    let n = done.learner.problem().params.len();
    let before = done.retrained(&done.initial(), done.inner_steps())?;
    let mut table = Table::new(
        "A weight per training example, 30 % of 300 labels wrong",
        &["weights", "valid accuracy", "test accuracy", "test loss"],
    );
    for (name, w) in [("equal", &before[..]), ("learned", &done.joint()[..n])] {
        let [_, valid, test] = &done.task.sets;
        let share = |set| percent(done.task.accuracy(w, set));
        table.row([name.to_string(), share(valid), share(test), format!("{:.3}", done.losses(w)?[1])]);
    }
    let of = |is_wrong: bool| -> Vec<f32> {
        weights.iter().zip(&wrong).filter(|(_, w)| **w == is_wrong).map(|(l, _)| *l).collect()
    };
    let (right, wrong) = (of(false), of(true));
    println!(
        "AUC of the weight for \"the label is right\": {:.3}; median weight {:.3} of right labels, {:.3} of wrong ones",
        auc(&right, &wrong),
        median(&right).exp(),
        median(&wrong).exp()
    );
    picture(&dir, "Examples are weighed", &[("learned weights", &done)])?;
    let sorted = |mut x: Vec<f32>| -> Vec<(f64, f64)> {
        x.sort_by(f32::total_cmp);
        let n = x.len() as f64;
        x.into_iter().enumerate().map(|(i, x)| ((i as f64 + 0.5) / n, f64::from(x.exp()))).collect()
    };
    let plot = Plot {
        title: "Learned weights of training examples".into(),
        x_label: "share of examples below".into(),
        y_label: "weight".into(),
        y_scale: Scale::Log,
        series: vec![
            Series::line("right labels", sorted(right)),
            Series::line("wrong labels", sorted(wrong)),
        ],
        ..Plot::default()
    };
    plot.save(dir.join("weights.svg"))?;
    table.save(&dir)
}

/// The probability that one of `high` lies above one of `low`.
fn auc(high: &[f32], low: &[f32]) -> f64 {
    let above = |h: &f32| {
        low.iter().map(|l| if h > l { 1.0 } else { f64::from(u8::from(h == l)) / 2.0 }).sum::<f64>()
    };
    high.iter().map(above).sum::<f64>() / (high.len() * low.len()) as f64
}

fn median(x: &[f32]) -> f32 {
    let mut sorted = x.to_vec();
    sorted.sort_by(f32::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f32::NAN)
}
