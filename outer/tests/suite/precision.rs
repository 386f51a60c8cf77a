//! The f32 sweep through the kernels against the f64 one.

use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{
    Float, Key, Layout, LearnedOptimizer, OptState, Optimizer, Params, SingleTask, UpdateAdjoint, UpdateVjp,
};
use outerloop_lopt::MlpLopt;
use outerloop_outer::adjoint::SweepConfig;
use outerloop_outer::unroll::LaneRun;
use outerloop_outer::workers::Worker;
use outerloop_outer::{TruncatedStep, TruncationSchedule};
use outerloop_tasks::image::ImageMlp;
use std::sync::{Arc, Mutex};

const STEPS: usize = 50;

/// The adjoints of the inner gradients, from the last step to the first.
type Log = Arc<Mutex<Vec<Vec<f64>>>>;

/// An optimizer that logs what its derivative returns.
#[derive(Debug)]
struct Logged<O: ?Sized>(Log, Box<O>);

impl<E: Float> LearnedOptimizer<E> for Logged<dyn LearnedOptimizer<E>> {
    fn name(&self) -> String {
        self.1.name()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        self.1.theta_layout()
    }
    fn init(&self, key: Key) -> Vec<E> {
        self.1.init(key)
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        Box::new(Logged::<dyn Optimizer<E>>(self.0.clone(), self.1.opt_fn(theta)))
    }
}

impl<E: Float> Optimizer<E> for Logged<dyn Optimizer<E>> {
    fn name(&self) -> String {
        self.1.name()
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, key: Key) -> OptState<E> {
        self.1.init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState<E>, grad: &[E], loss: E, key: Key) {
        self.1.update(state, grad, loss, key);
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<E>> {
        Some(self)
    }
}

impl<E: Float> UpdateVjp<E> for Logged<dyn Optimizer<E>> {
    fn vjp(
        &self,
        before: &OptState<E>,
        grad: &[E],
        loss: E,
        key: Key,
        after: &OptState<E>,
        theta: &mut [E],
    ) -> UpdateAdjoint<E> {
        let vjp = self.1.update_vjp().expect("MlpLopt has a derivative");
        let adjoint = vjp.vjp(before, grad, loss, key, after, theta);
        self.0.lock().unwrap().push(adjoint.grad.iter().map(|g| g.f64()).collect());
        adjoint
    }
}

/// The gradient of 50 steps on the 64-32-10 task, and the log.
fn unroll<E: Float>(theta: &[f32], lane: Key) -> (Vec<f64>, Vec<Vec<f64>>)
where
    Cpu: Host<E>,
{
    let log = Log::default();
    let lopt = Arc::new(Logged::<dyn LearnedOptimizer<E>>(log.clone(), Box::new(MlpLopt::default())));
    let family = Arc::new(SingleTask::new(ImageMlp::digits()));
    let step = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(STEPS as u64)).unwrap();
    let theta: Vec<E> = theta.iter().map(|t| E::of(f64::from(*t))).collect();
    let opt = step.lopt.opt_fn(&theta);
    // f64 starts from the same f32 numbers: tasks draw in f64 and round.
    let (mut episode, mut clock, mut trajectory) = step.start(&*opt, lane, 0, 0);
    let (episode, clock, trajectories) = (&mut episode, &mut clock, [&mut trajectory]);
    let mut run = LaneRun { episode, clock, trajectories, outer_step: 0 };
    let sweep =
        step.window_and_grad(&theta, &mut run, STEPS, &SweepConfig::default(), &mut Worker::default());
    let log = std::mem::take(&mut *log.lock().unwrap());
    (sweep.unwrap().grad.iter().map(|g| g.f64()).collect(), log)
}

/// `|a − b|` relative to `|b|`, and the largest share of one element in `|a − b|²`.
fn gap(a: &[f64], b: &[f64]) -> (f64, f64) {
    let squares: Vec<f64> = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).collect();
    let (total, largest) = (squares.iter().sum::<f64>(), squares.iter().copied().fold(0.0, f64::max));
    let size: f64 = b.iter().map(|b| b * b).sum();
    ((total / size).sqrt(), largest / total)
}

/// A run evaluates 7.7 million ReLUs of the optimizer's network, and the gradient jumps where one of them
/// changes its sign. Now and then rounding moves one across: then, at the last step where the sweeps
/// differ, they differ in a single one of 2410 parameters. All other runs agree within 1e-6.
#[test]
fn f32_agrees_with_f64() {
    let runs = 3;
    let mut kinks = 0;
    for k in 0..runs {
        let theta: Vec<f32> = LearnedOptimizer::<f32>::init(&MlpLopt::default(), Key::new(k));
        let lane = Key::new(5 + k);
        let ((got, narrow), (want, wide)) = (unroll::<f32>(&theta, lane), unroll::<f64>(&theta, lane));
        let relative = gap(&got, &want).0;
        if relative < 1e-6 {
            continue;
        }
        kinks += 1;
        let mut steps = narrow.iter().zip(&wide).map(|(a, b)| gap(a, b));
        let (first, share) = steps.find(|(gap, _)| *gap > 1e-6).expect("the sweeps differ somewhere");
        assert!(share > 0.9, "run {k}: {relative:e}, at first {first:e}, one parameter has {share}");
        assert!(relative < 1e-4, "run {k}: {relative:e} is too much for one ReLU");
    }
    assert!(kinks <= 1, "{kinks} of {runs} runs");
}
