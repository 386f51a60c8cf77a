use super::*;
use crate::loss::{Iterates, Loss};
use crate::problem::{ContextFamily, Domain, Own};
use crate::task::{AmortizedTask, Pool, Training};
use outerloop_core::contract::check_task;
use outerloop_core::ops::{self, Through};
use outerloop_core::tensor::{HasShape, Tensor};
use outerloop_core::{FlatTask, TaskFamily, Typed};
use std::sync::Arc;

/// `f(y; x) = |tanh(y W) − x|²` with a matrix `W` of the problem's own.
#[derive(Clone)]
struct Decode(Domain);

impl Problem for Decode {
    fn name(&self) -> String {
        "decode".into()
    }
    fn dim(&self) -> usize {
        2
    }
    fn context_dim(&self) -> usize {
        3
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        key.fill_normal(out);
    }
    fn domain(&self) -> Domain {
        self.0
    }
    fn own_layout(&self) -> Layout {
        Layout::new([("w", vec![2, 3])])
    }
    fn own_init(&self, key: Key, out: &mut [f64]) {
        key.fill_normal(out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        own: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let shown = ops::tanh(ops::matmul(y, &own.get(0, (2usize, 3usize))));
        ops::sum_axis1(ops::square(ops::sub(shown, at.x)))
    }
}

fn check<M: Model>(problem: Decode, model: M, training: Training) {
    let task =
        AmortizedTask::new(problem, model, Training { batch_size: 3, ..training }).expect("valid settings");
    check_task(&Typed::new(task.clone()), &Typed::new(task)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn full_models_are_tasks_with_every_loss() {
    let model = Full { hidden: vec![4], act: crate::net::Act::Tanh, ..Full::default() };
    let pool = Pool::solved(&Decode(Domain::Sphere), 5, Key::new(2), |x| vec![x[0], x[1]]);
    let regression = Training { loss: Loss::Regression, pool: Some(Arc::new(pool)), ..Training::default() };
    check(Decode(Domain::Sphere), model.clone(), Training::default());
    check(Decode(Domain::Simplex), model.clone(), Training::default());
    check(Decode(Domain::Sphere), model, regression);
}

#[test]
fn semi_amortized_models_are_tasks_and_differentiate_their_gradients() {
    let start = Full { hidden: vec![3], act: crate::net::Act::Tanh, ..Full::default() };
    let rules = [
        Rule::Gradient { rate: 0.2 },
        Rule::Momentum { rate: 0.1 },
        Rule::Network { hidden: 3, shown: Shown::Raw },
    ];
    let mean = Training { iterates: Iterates::Mean, ..Training::default() };
    for (i, rule) in rules.into_iter().enumerate() {
        let weights = if i == 1 { Weights::PerStep } else { Weights::Shared };
        let start = if i == 0 { Start::Full(start.clone()) } else { Start::Learned };
        let domain = if i == 2 { Domain::Box } else { Domain::Sphere };
        check(Decode(domain), Semi { start, rule, steps: 2, weights, ..Semi::default() }, mean.clone());
    }
}

#[test]
fn a_trained_start_is_where_the_steps_begin() {
    let problem = Decode(Domain::Identity);
    let full = Full { hidden: vec![3], ..Full::default() };
    let alone =
        AmortizedTask::new(problem.clone(), full.clone(), Training::default()).expect("valid settings");
    let init = |task: &dyn FlatTask<f64>| task.init(Key::new(4)).data;
    let theta = init(&Typed::new(alone.clone()));
    // The problem's own parameters stand behind the model's.
    let weights: Arc<[f64]> = theta[..theta.len() - 6].into();
    let semi = |weights| {
        let model = Semi { start: Start::Trained(full.clone(), weights), steps: 1, ..Semi::default() };
        AmortizedTask::new(problem.clone(), model, Training::default())
    };
    let task = semi(weights.clone()).expect("valid settings");
    let begin = init(&Typed::new(task.clone()));
    assert_eq!(begin[..weights.len()], weights[..]);
    let x = [0.3, -0.2, 0.9];
    let prediction = alone.predict(&theta, &x, Key::new(0)).pop().expect("one");
    assert_eq!(task.predict(&begin, &x, Key::new(0))[0], prediction);
    for (bad, part) in
        [(weights[1..].to_vec(), "weights of the trained start"), (vec![f64::NAN; weights.len()], "finite")]
    {
        let Err(error) = semi(bad.into()) else { panic!("{part}: not refused") };
        let error = error.to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Stopped gradients are no gradients of the loss: they are compared with the formula.
#[test]
fn a_stopped_gradient_is_first_order() {
    let problem = Decode(Domain::Identity);
    let grad = |through| {
        let semi = Semi { start: Start::Learned, steps: 1, through, ..Semi::default() };
        let task = AmortizedTask::new(problem.clone(), semi, Training::default()).expect("valid settings");
        let flat: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task));
        let theta = flat.init(Key::new(1)).data;
        let mut g = vec![0.0; theta.len()];
        flat.evaluator().loss_and_grad(
            &theta,
            &mut [],
            outerloop_core::BatchKey::train(0, Key::new(0)),
            &mut g,
        );
        g
    };
    let (exact, stopped) = (grad(Through::Exact), grad(Through::Stopped));
    // The learned rate enters in the same way; start and decoder do not.
    assert!((exact[2] - stopped[2]).abs() < 1e-12);
    assert!((exact[0] - stopped[0]).abs() > 1e-4 && (exact[3] - stopped[3]).abs() > 1e-4);
}

/// `f(y; x) = |y − z|²` with noise `z`: without knowing it, nothing is better than 0, with loss 1.
#[derive(Clone)]
struct Noise;

impl Problem for Noise {
    fn name(&self) -> String {
        "noise".into()
    }
    fn dim(&self) -> usize {
        1
    }
    fn context_dim(&self) -> usize {
        1
    }
    fn context(&self, _: Key, out: &mut [f64]) {
        out.fill(0.0);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let z: Rows<E, B> = at.x.device().normal_like(*at.x.shape(), at.key);
        ops::sum_axis1(ops::square(ops::sub(y, &z)))
    }
}

#[test]
fn steps_cannot_fit_the_noise_that_the_loss_has() {
    let semi = Semi { rule: Rule::Gradient { rate: 0.5 }, steps: 1, ..Semi::default() };
    let task = AmortizedTask::new(Noise, semi, Training { batch_size: 2000, ..Training::default() });
    let flat: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task.expect("valid settings")));
    let theta = flat.init(Key::new(1)).data;
    let at = outerloop_core::BatchKey::train(0, Key::new(0));
    // The step goes to the z that it saw: 1 + 1 from the z of the loss, 0 from its own.
    let loss = flat.evaluator().loss(&theta, &[], at);
    assert!((1.7..2.3).contains(&loss), "{loss}");
}

#[test]
fn score_gradients_agree_with_the_objectives_in_expectation() {
    let problem = Decode(Domain::Identity);
    let model = Full { hidden: Vec::new(), ..Full::default() };
    let gradient = |loss, step: u64| {
        let training = Training { loss, batch_size: 4, pool: None, ..Training::default() };
        let task = AmortizedTask::new(problem.clone(), model.clone(), training).expect("valid settings");
        let flat: Box<dyn FlatTask<f64>> = Box::new(Typed::new(task));
        let theta = flat.init(Key::new(1)).data;
        let mut g = vec![0.0; theta.len()];
        flat.evaluator().loss_and_grad(
            &theta,
            &mut [],
            outerloop_core::BatchKey::train(step, Key::new(0)),
            &mut g,
        );
        g[..8].to_vec()
    };
    // The same contexts in each step: the difference is the estimate's error alone, plus bias of order σ².
    let n = 1500;
    let (mut sum, mut square) = (vec![0.0; 8], vec![0.0; 8]);
    for step in 0..n {
        let exact = gradient(Loss::Objective, step);
        let score = gradient(Loss::Score { sigma: 0.02, pairs: 1 }, step);
        for (i, (a, b)) in score.iter().zip(&exact).enumerate() {
            sum[i] += a - b;
            square[i] += (a - b) * (a - b);
        }
    }
    for i in 0..8 {
        let mean = sum[i] / n as f64;
        let error = ((square[i] / n as f64 - mean * mean) / n as f64).sqrt();
        assert!(error > 0.0 && mean.abs() < 4.0 * error, "{i}: {mean}, error {error}");
    }
}

#[test]
fn contexts_are_tasks_too() {
    let family = ContextFamily { problem: Decode(Domain::Sphere), own: vec![0.3, -1.0, 0.5, 0.8, 0.2, -0.4] };
    let task = family.task(&family.sample(Key::new(3)));
    check_task(&Typed::new(task.clone()), &Typed::new(task)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn settings_without_meaning_are_refused() {
    let bad = |training| {
        let task = AmortizedTask::new(Decode(Domain::Identity), Full::default(), training);
        task.err().expect("refused").to_string()
    };
    assert!(bad(Training { batch_size: 0, ..Training::default() }).contains("batch_size"));
    assert!(bad(Training { loss: Loss::Regression, ..Training::default() }).contains("pool"));
    let score = Loss::Score { sigma: 0.0, pairs: 1 };
    assert!(bad(Training { loss: score, ..Training::default() }).contains("sigma"));
    let pool = Pool { contexts: vec![vec![0.0; 3]], targets: vec![vec![0.0; 3]] };
    assert!(bad(Training { pool: Some(Arc::new(pool)), ..Training::default() }).contains("lengths"));
}
