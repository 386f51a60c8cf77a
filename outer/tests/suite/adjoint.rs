//! The adjoint sweep against differences of the unroll itself, and against itself.

use crate::support;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{BatchKey, FlatFamily, Float, HyperProblem, Key, LearnedOptimizer, Split, Task};
use outerloop_lopt::hand::Sgd;
use outerloop_lopt::{LearnableAdam, LearnableSgd, LearnableSgdm, MlpLopt};
use outerloop_outer::adjoint::{Memory, StepWeights, Sweep, SweepConfig};
use outerloop_outer::estimator::Antithetic;
use outerloop_outer::implicit::{HyperEvaluator, Unrolled};
use outerloop_outer::unroll::LaneRun;
use outerloop_outer::workers::Worker;
use outerloop_outer::{
    Emphasis, FullGrad, GradientEstimator, LossScale, MetaLoss, Objective, TruncatedGrad, TruncatedPes,
    TruncatedStep, TruncationSchedule, Workers,
};
use outerloop_tasks::data::Splits;
use outerloop_tasks::image::{ImageLoss, MlpConfig, MlpTask, Nonlinearity, Norm};
use outerloop_tasks::quadratics::{LogQuadraticTask, NoisyQuadraticFamily, QuadraticTask};
use proptest::{prelude::*, test_runner::RngSeed};
use std::sync::Arc;

fn mlp(nonlinearity: Nonlinearity, norm: Norm) -> MlpTask {
    let config = MlpConfig {
        hidden: vec![5],
        nonlinearity,
        norm,
        loss: ImageLoss::CrossEntropy,
        init_scale: 1.0,
        batch_size: 12,
    };
    MlpTask::new(Splits::digits(), config).unwrap()
}

fn single<E: Float, T: Task<E, Cpu> + Task<f64, Cpu>>(task: T) -> Arc<dyn FlatFamily<E>>
where
    Cpu: Host<E>,
{
    Arc::new(outerloop_core::SingleTask::new(task))
}

/// Small smooth problems: a kink within the difference's reach would blame the wrong side.
fn family(i: usize) -> Arc<dyn FlatFamily<f64>> {
    match i {
        0 => single(QuadraticTask::new(4)),
        1 => Arc::new(NoisyQuadraticFamily { dim: 3, cov: 0.0 }),
        2 => single(LogQuadraticTask::new(3)),
        3 => single(mlp(Nonlinearity::Tanh, Norm::None)),
        _ => single(mlp(Nonlinearity::Silu, Norm::Layer)),
    }
}

fn lopt(i: usize) -> Arc<dyn LearnedOptimizer<f64>> {
    match i {
        0 => Arc::new(LearnableSgd { initial_lr: 1e-4 }),
        1 => Arc::new(LearnableSgdm { initial_lr: 1e-4, ..LearnableSgdm::default() }),
        2 => Arc::new(LearnableAdam { initial_lr: 0.02, initial_epsilon: 1e-3, ..LearnableAdam::default() }),
        _ => Arc::new(MlpLopt { hidden_size: 4, hidden_layers: 1, step_mult: 0.02, exp_mult: 0.1 }),
    }
}

fn sweep<E: Float>(
    step: &TruncatedStep<E>,
    theta: &[E],
    skip: usize,
    steps: usize,
    config: &SweepConfig,
) -> Sweep<E> {
    let (lane, mut worker) = (Key::new(5), Worker::default());
    // The state at the start is a constant: the same for every theta that is tried.
    let base = step.lopt.init(Key::new(1));
    let opt = step.lopt.opt_fn(&base);
    let (mut episode, mut clock, mut trajectory) = step.start(&*opt, lane, 0, 0);
    let (episode, clock, trajectories) = (&mut episode, &mut clock, [&mut trajectory]);
    let mut run = LaneRun { episode, clock, trajectories, outer_step: 0 };
    step.windows([&*opt], &mut run, skip, &mut worker);
    step.window_and_grad(theta, &mut run, steps, config, &mut worker).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_central_differences(
        task in 0usize..5,
        rule in 0usize..4,
        length in 1u64..9,
        steps in 1usize..14,
        skip in 0usize..3,
        meta in 0usize..3,
        weighting in 0usize..3,
        every in 1usize..6,
        scale in 0usize..4,
        power in 0usize..2,
    ) {
        let meta_loss = [MetaLoss::Train, MetaLoss::SameBatch, MetaLoss::Fresh(Split::OuterValid)][meta];
        let weights = match weighting {
            0 => StepWeights::Mean,
            1 => StepWeights::Final,
            _ => StepWeights::Given((0..steps).map(|t| 0.3 + 0.1 * t as f64).collect()),
        };
        let step = TruncatedStep::new(family(task), lopt(rule), TruncationSchedule::Constant(length))
            .unwrap()
            .with_meta_loss(meta_loss)
            .with_objective(Objective {
                scale: [
                    LossScale::Linear,
                    LossScale::Log { floor: 1e-3, ceiling: 1e6 },
                    // Runs start below √(1e-3 · 1e6): floor and ceiling are moved.
                    LossScale::FittedLog { floor: 1e-3, ceiling: 1e6 },
                    LossScale::Power { power: 0.25, floor: 1e-3, ceiling: 1e6 },
                ][scale],
                emphasis: [Emphasis::Uniform, Emphasis::Power(1.5)][power],
            })
            .unwrap();
        let config = SweepConfig { weights, memory: Memory::Every(every), clip: None };
        let theta = step.lopt.init(Key::new(1));
        let got = sweep(&step, &theta, skip, steps, &config);
        prop_assume!(got.loss.is_finite());
        let mut v = vec![0.0; theta.len()];
        Key::new(2).fill_normal(&mut v);
        let at = |c: f64| {
            let moved: Vec<f64> = theta.iter().zip(&v).map(|(t, v)| t + c * v).collect();
            sweep(&step, &moved, skip, steps, &config).loss
        };
        // Small against the distance to the next kink of MlpLopt's ReLUs, large against rounding.
        let h = 1e-6;
        let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
        let dot: f64 = got.grad.iter().zip(&v).map(|(g, v)| g * v).sum();
        let size = got.grad.iter().zip(&v).map(|(g, v)| (g * v).abs()).sum::<f64>() + 1e-3 * got.loss.abs();
        prop_assert!((slope - dot).abs() <= 2e-6 * size, "slope {slope:e}, gradient {dot:e}, size {size:e}");
    }
}

fn digits_step<E: Float>(lopt: Arc<dyn LearnedOptimizer<E>>, length: u64) -> TruncatedStep<E>
where
    Cpu: Host<E>,
{
    let task = outerloop_tasks::image::ImageMlp::digits();
    TruncatedStep::new(single(task), lopt, TruncationSchedule::Constant(length)).unwrap()
}

#[test]
fn checkpointing_gives_the_same_bits_as_storing_everything() {
    let step = digits_step::<f32>(Arc::new(MlpLopt { step_mult: 0.01, ..MlpLopt::default() }), 40);
    let theta = step.lopt.init(Key::new(0));
    let with = |memory| sweep(&step, &theta, 0, 50, &SweepConfig { memory, ..SweepConfig::default() });
    let all = with(Memory::All);
    for memory in
        [Memory::SquareRoot, Memory::Every(1), Memory::Every(7), Memory::Bytes(1 << 20), Memory::Bytes(0)]
    {
        let got = with(memory);
        assert_eq!(got.grad, all.grad, "{memory:?}");
        assert_eq!(got.window, all.window, "{memory:?}");
    }
    assert!(all.grad.iter().any(|g| *g != 0.0));
}

const CHILD: &str = "OUTERLOOP_PEAK_MEMORY_TEST";

/// A 2000-step unroll of MlpLopt on the 64-32-10 task.
fn long_unroll(memory: Memory) -> Sweep<f32> {
    let step = digits_step::<f32>(Arc::new(MlpLopt::default()), 2000);
    let theta = step.lopt.init(Key::new(0));
    sweep(&step, &theta, 0, 2000, &SweepConfig { memory, ..SweepConfig::default() })
}

/// Not a test of its own: the process whose peak memory is measured. Prints the gradient's bits.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_some() {
        let memory = |name| {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status.lines().find(|l| l.starts_with(name)).unwrap().to_string()
        };
        println!("{}", memory("VmRSS"));
        let bits: Vec<String> =
            long_unroll(Memory::SquareRoot).grad.iter().map(|g| g.to_bits().to_string()).collect();
        println!("bits {}", bits.join(" "));
        println!("{}", memory("VmHWM"));
    }
}

/// The peak is the operating system's count of a whole process, less what it has before it begins: a build for other
/// devices holds their libraries.
#[test]
#[cfg(target_os = "linux")]
fn a_long_unroll_needs_little_memory() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let out = child.args(["adjoint::child", "--exact", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    let field =
        |name: &str| text.lines().find_map(|l| l.split_once(name)).unwrap_or_else(|| panic!("{text}")).1;
    let kib = |name| field(name).trim().trim_end_matches(" kB").parse::<u64>().unwrap();
    let (start, peak) = (kib("VmRSS:"), kib("VmHWM:"));
    assert!(peak - start < 90_000, "memory {start} kB before, {peak} kB at the peak");
    let bits: Vec<u32> = field("bits ").split(' ').map(|b| b.parse().unwrap()).collect();
    let stored: Vec<u32> = long_unroll(Memory::All).grad.iter().map(|g| g.to_bits()).collect();
    assert_eq!(bits, stored);
}

#[test]
fn memory_limits_choose_the_distance_between_states() {
    assert_eq!(Memory::SquareRoot.every(2000, 1), 45);
    assert_eq!(Memory::All.every(2000, 1), 2000);
    assert_eq!(Memory::Every(0).every(10, 1), 1);
    assert_eq!(Memory::Bytes(usize::MAX).every(2000, 100), 2000);
    let every = Memory::Bytes(50_000).every(2000, 100);
    assert!((every + 2000usize.div_ceil(every)) * 100 <= 50_000, "{every}");
    assert!(every > 45, "a loose limit should need less recomputation: {every}");
    assert_eq!(Memory::Bytes(1).every(2000, 100), 45);
}

#[test]
fn clipping_bounds_the_gradient_and_is_off_by_default() {
    let step = digits_step::<f32>(Arc::new(LearnableSgd { initial_lr: 0.5 }), 30);
    let theta = step.lopt.init(Key::new(0));
    let run = |clip| sweep(&step, &theta, 0, 30, &SweepConfig { clip, ..SweepConfig::default() }).grad[0];
    assert_eq!(run(None), run(Some(1e9)));
    assert!(run(Some(1e-3)).abs() < run(None).abs());
}

#[test]
fn estimators_average_sweeps_and_do_not_depend_on_threads() {
    let make = || -> Vec<Box<dyn GradientEstimator>> {
        let step = || digits_step::<f32>(Arc::new(LearnableAdam::default()), 12);
        vec![
            Box::new(TruncatedGrad::new(step(), 5, 8, SweepConfig::default()).unwrap()),
            Box::new(FullGrad::new(step(), 5, SweepConfig::default()).unwrap()),
        ]
    };
    let theta: Vec<f32> = LearnedOptimizer::<f32>::init(&LearnableAdam::default(), Key::new(0));
    let run = |threads| {
        let workers = Workers::new(threads).unwrap();
        let one = |e: Box<dyn GradientEstimator>| {
            let mut state = e.init(&theta, Key::new(1), &workers);
            (0..3).map(|t| e.estimate(&theta, &mut state, t, &workers)).collect::<Vec<_>>()
        };
        make().into_iter().map(one).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(run(3), one);
    // The tutorial's optimizer starts far too careful: a larger log_lr must lower the loss.
    assert!(one.iter().flatten().all(|e| e.grad[1] < 0.0 && e.masked == 0), "{:?}", one[0]);
}

#[test]
fn an_optimizer_without_derivative_is_refused_with_the_remedy() {
    let step = support::step(support::Rule::Opaque, -2.0, TruncationSchedule::Constant(5));
    let error = TruncatedGrad::new(step, 1, 5, SweepConfig::default()).err().unwrap().to_string();
    assert!(error.contains("update_vjp") && error.contains("ES"), "{error}");
}

#[test]
fn step_weights_must_fit() {
    let step = || digits_step::<f32>(Arc::new(LearnableSgd::default()), 5);
    let given =
        |n: usize| SweepConfig { weights: StepWeights::Given(vec![1.0; n]), ..SweepConfig::default() };
    assert!(FullGrad::new(step(), 1, given(5)).is_ok());
    assert!(FullGrad::new(step(), 1, given(4)).is_err());
    assert!(TruncatedGrad::new(step(), 1, 5, given(4)).is_err());
}

#[test]
fn pes_and_exact_gradient_agree_on_a_smooth_problem() {
    // One window per run and a small σ: PES estimates the very gradient that the sweep computes.
    let make = || {
        let lopt: Arc<dyn LearnedOptimizer> = Arc::new(LearnableSgd { initial_lr: 0.05 });
        TruncatedStep::new(single(QuadraticTask::new(6)), lopt, TruncationSchedule::Constant(5)).unwrap()
    };
    let workers = Workers::new(0).unwrap();
    let theta = make().lopt.init(Key::new(0));
    let common = Antithetic { num_tasks: 400, trunc_length: 5, std: 0.01, ..Antithetic::default() };
    let pes = TruncatedPes::new(make(), common).unwrap();
    let exact = TruncatedGrad::new(make(), 400, 5, SweepConfig::default()).unwrap();
    let first = |e: &dyn GradientEstimator| {
        let mut state = e.init(&theta, Key::new(3), &workers);
        f64::from(e.estimate(&theta, &mut state, 0, &workers).grad[0])
    };
    let (a, b) = (first(&pes), first(&exact));
    // ε²/σ² has mean 1 and variance 2: standard error 7 % of the gradient over 400 lanes.
    assert!((a - b).abs() < 0.3 * b.abs(), "PES {a}, exact {b}");
}

#[test]
fn a_sweep_by_a_learned_rate_is_an_unrolled_hypergradient_by_that_rate() {
    let (log_rate, steps) = (-3.0, 9);
    let lopt = Arc::new(support::OneTheta { rule: support::Rule::Sgd, init: log_rate });
    let step = TruncatedStep::new(single(support::Valley), lopt, TruncationSchedule::Constant(20))
        .unwrap()
        .with_meta_loss(MetaLoss::Fresh(Split::OuterValid));
    let config = SweepConfig { weights: StepWeights::Final, ..SweepConfig::default() };
    let swept = sweep::<f64>(&step, &[log_rate], 0, steps, &config);

    let problem = Arc::new(HyperProblem::<f64>::new(support::Valley).unwrap());
    let joint = [&support::BOWL_START[..], &[log_rate]].concat();
    let valid = BatchKey { split: Split::OuterValid, step: 0, key: Key::new(0) };
    let unrolled = Unrolled::new(Sgd::new(1.0), steps);
    let unrolled =
        HyperEvaluator::new(problem).unrolled_hypergradient(&unrolled, Key::new(0), valid, &joint).unwrap();
    assert!(swept.grad[0].abs() > 1e-3);
    approx::assert_relative_eq!(unrolled.valid_loss, swept.loss, max_relative = 1e-13);
    approx::assert_relative_eq!(unrolled.grad[0], swept.grad[0], max_relative = 1e-10);
}
