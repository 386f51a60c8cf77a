//! Kinds E and F_grad: exact gradients of unrolls, in f64 and in f32.

use crate::estimators::{family, RUN_KEY};
use crate::fixture::{
    array, f32_tolerance, flatten, get, inputs, number, numbers, params, tree_inputs, Case, Errors, Outcome,
};
use crate::optimizers::learned_optimizer;
use crate::tasks::{GoldenMlp, Loss};
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{
    BatchKey, Evaluator, FlatTask, Float, Key, Layout, LearnedOptimizer, Params, SingleTask, Split, Task,
    Typed,
};
use outerloop_outer::adjoint::{Memory, StepWeights, Sweep, SweepConfig};
use outerloop_outer::episode::Episode;
use outerloop_outer::estimator::EstimatorState;
use outerloop_outer::unroll::LaneRun;
use outerloop_outer::workers::Worker;
use outerloop_outer::{MetaLoss, TruncatedStep, TruncationSchedule};
use std::sync::Arc;

/// A task that starts from given parameters.
struct From<E: Float>(Params<E>, Typed<GoldenMlp>);

impl<E: Float> FlatTask<E> for From<E>
where
    Cpu: Host<E>,
    GoldenMlp: Task<E, Cpu>,
{
    fn name(&self) -> String {
        "golden".into()
    }
    fn layout(&self) -> Arc<Layout> {
        self.0.layout.clone()
    }
    fn init(&self, _: Key) -> Params<E> {
        self.0.clone()
    }
    fn init_state(&self) -> Vec<E> {
        Vec::new()
    }
    fn evaluator(&self) -> Box<dyn Evaluator<E>> {
        self.1.evaluator()
    }
    fn normalizer(&self, loss: f64) -> f64 {
        FlatTask::<E>::normalizer(&self.1, loss)
    }
}

/// One unroll of a kind E case.
fn unroll<E: Float>(case: &Case, lopt: Box<dyn LearnedOptimizer<E>>, memory: Memory) -> (Sweep<E>, Vec<E>)
where
    Cpu: Host<E>,
{
    let batches: Vec<Vec<usize>> = array(case.get("batch_index"))
        .iter()
        .map(|b| numbers(b).into_iter().map(|x| x as usize).collect())
        .collect();
    let rows = Arc::new(move |at: BatchKey| {
        let last = batches.len() - 1;
        batches[if at.split == Split::OuterValid { last } else { (at.step as usize).min(last) }].clone()
    });
    let start = params::<E>(case.get("params0"));
    let squared = case.get("task").as_str().is_some_and(|t| t.contains("onehot"));
    let loss = if squared { Loss::SquaredError } else { Loss::CrossEntropy };
    let task = GoldenMlp { layout: start.layout.clone(), batches: rows, loss, clip: None };
    let is_final = case.get("meta_loss_kind") == "final";
    let theta: Vec<E> = tree_inputs(case.get("theta"), &lopt.theta_layout());
    let num_steps = number(case.get("num_steps")) as u64;
    let family = SingleTask(Arc::new(From(start, Typed::new(task))) as Arc<dyn FlatTask<E>>);
    let step = TruncatedStep::new(Arc::new(family), lopt.into(), TruncationSchedule::Constant(num_steps))
        .expect("a valid schedule")
        .with_meta_loss(if is_final { MetaLoss::Fresh(Split::OuterValid) } else { MetaLoss::Train });
    let weights = if is_final { StepWeights::Final } else { StepWeights::Mean };
    let config = SweepConfig { weights, memory, clip: None };
    let opt = step.lopt.opt_fn(&theta);
    let (mut episode, mut clock, mut trajectory) = step.start(&*opt, Key::new(0), 0, 0);
    let (episode, clock, trajectories) = (&mut episode, &mut clock, [&mut trajectory]);
    let mut run = LaneRun { episode, clock, trajectories, outer_step: 0 };
    let steps = number(case.get("T")) as usize;
    let sweep = step
        .window_and_grad(&theta, &mut run, steps, &config, &mut Worker::default())
        .expect("the update has a derivative");
    (sweep, trajectory.opt.params)
}

pub fn unrolled(case: &Case) -> Outcome {
    let (class, hyper) = (case.get("library_class"), case.get("hyperparameters"));
    let run = || -> Result<Outcome, Outcome> {
        let mut errors = Errors::default();
        let lopt = learned_optimizer::<f64>(class, hyper)?;
        let layout = lopt.theta_layout();
        let (got, end) = unroll::<f64>(case, lopt, Memory::All);
        let loss = number(case.get("meta_loss_f64"));
        errors.check("f64 meta_loss", got.loss, loss, 1e-9 * loss.abs());
        let inner = numbers(case.get("inner_losses_f64"));
        errors.check_all("f64 inner_losses", &got.train_loss[..inner.len()], &inner, 1e-9 * loss.abs());
        let grad = flatten(case.get("meta_grad_f64"), &layout);
        errors.check_tree("f64 meta_grad", &got.grad, &grad, &layout, 1e-9);
        let start = params::<f64>(case.get("params0"));
        for e in start.layout.entries() {
            let norm = end[e.range()].iter().map(|x| x * x).sum::<f64>().sqrt();
            let want = number(get(case.get("params_T_l2norm_f64"), &e.name));
            errors.check(&format!("f64 |{}| at the end", e.name), norm, want, 1e-9 * want.max(1e-3));
        }
        let (got, _) = unroll::<f32>(case, learned_optimizer(class, hyper)?, Memory::SquareRoot);
        let gap = get(case.get("f32_vs_f64_gap"), "meta_grad").get("max_abs").map_or(0.0, number);
        errors.check_all("f32 meta_grad", &got.grad, &grad, f32_tolerance(gap, &grad));
        errors.check("f32 meta_loss", got.loss, loss, 1e-5 * loss.abs());
        Ok(errors.done())
    };
    run().unwrap_or_else(|outcome| outcome)
}

/// `TruncatedGrad` over the truncations of a case; the estimator itself is f32, so this drives what it
/// is made of in either precision: per truncation, the mean over lanes of loss and gradient.
fn truncations<E: Float>(case: &Case, lopt: Box<dyn LearnedOptimizer<E>>) -> Vec<(f64, Vec<f64>)>
where
    Cpu: Host<E>,
{
    let window = number(case.get("trunc_length")) as usize;
    let tasks = number(case.get("num_tasks")) as usize;
    let length = number(get(case.get("truncation_schedule"), "ConstantTruncationSchedule")) as u64;
    let initial: Vec<u64> = numbers(case.get("initial_inner_step")).into_iter().map(|x| x as u64).collect();
    let layout = lopt.theta_layout();
    let family = Arc::new(family::<E>(case, &initial, length, window));
    let step = TruncatedStep::new(family, lopt.into(), TruncationSchedule::Constant(length))
        .expect("a valid schedule");
    let state = EstimatorState::new(Key::new(RUN_KEY));
    let thetas = array(case.get("theta_per_truncation"));
    let theta = |t: usize| -> Vec<E> {
        layout.entries().iter().flat_map(|e| inputs(get(&thetas[t], &e.name))).collect()
    };
    let mut worker = Worker::default();
    let mut lanes: Vec<_> = (0..tasks)
        .map(|i| {
            let (mut clock, run) = step.start_lane(&theta(0), state.lane_key(i), &mut worker);
            clock.inner_step = initial[i];
            (clock, run)
        })
        .collect();
    let config = SweepConfig::default();
    let mut one = |t: usize| {
        let theta = theta(t);
        let (mut loss, mut grad) = (0.0, vec![0.0; layout.len()]);
        for (i, (clock, trajectory)) in lanes.iter_mut().enumerate() {
            let mut episode = Episode::new(&step.family, state.lane_key(i), clock.episode);
            let (episode, trajectories) = (&mut episode, [trajectory]);
            let mut run = LaneRun { episode, clock, trajectories, outer_step: t as u64 };
            let s = step
                .window_and_grad(&theta, &mut run, window, &config, &mut worker)
                .expect("the update has a derivative");
            loss += s.loss / tasks as f64;
            for (g, x) in grad.iter_mut().zip(&s.grad) {
                *g += x.f64() / tasks as f64;
            }
        }
        (loss, grad)
    };
    (0..thetas.len()).map(&mut one).collect()
}

pub fn truncated(case: &Case) -> Outcome {
    let (class, hyper) = (case.get("learned_optimizer"), case.get("hyperparameters"));
    let run = || -> Result<Outcome, Outcome> {
        let mut errors = Errors::default();
        let lopt = learned_optimizer::<f64>(class, hyper)?;
        let layout = lopt.theta_layout();
        let f64s = truncations::<f64>(case, lopt);
        let f32s = truncations::<f32>(case, learned_optimizer(class, hyper)?);
        for (t, want) in array(case.get("results_f64")).iter().enumerate() {
            let grad = flatten(get(want, "grad"), &layout);
            let loss = number(get(want, "mean_loss"));
            errors.check(&format!("f64 mean_loss {t}"), f64s[t].0, loss, 1e-9 * loss.abs());
            errors.check_tree(&format!("f64 grad {t}"), &f64s[t].1, &grad, &layout, 1e-9);
            let tolerance = f32_tolerance(case.gap("grad"), &grad);
            errors.check_all(&format!("f32 grad {t}"), &f32s[t].1, &grad, tolerance);
        }
        Ok(errors.done())
    };
    run().unwrap_or_else(|outcome| outcome)
}
