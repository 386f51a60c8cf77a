//! Inner steps per second of whole outer steps: PES on digits and on quadratics, and backpropagation
//! through truncated unrolls, on 1, 2 and all threads.

mod report;

use criterion::Criterion;
use outerloop::core::BatchKey;
use outerloop::lopt::AdafacMlp;
use outerloop::outer::estimator::{Guide, GuidedEs, MeasureValued};
use outerloop::prelude::*;
use report::{thread_counts, Group, Timing, Work};
use std::hint::black_box;
use std::sync::Arc;

/// Multiply-adds of the 64-32-10 network per image, its output layer's, and its parameters.
const TASK: [f64; 3] = [64.0 * 32.0 + 32.0 * 10.0, 32.0 * 10.0, 2410.0];
/// Loss and gradient of the task at batch 128.
const GRADIENT: f64 = 2.0 * 128.0 * (2.0 * TASK[0] + TASK[1]);
/// What its Hessian-vector product needs on top.
const HVP: f64 = 2.0 * 128.0 * (2.0 * TASK[0] + 4.0 * TASK[1]);
/// Flops of `MlpLopt`'s network per parameter, time features folded.
const NETWORK: f64 = 2.0 * (8.0 * 32.0 + 32.0 * 32.0 + 32.0 * 2.0);
/// The same of `AdafacMlp`'s 28-4-4-2 network; its accumulators and features are more work than that.
const ADAFAC: f64 = 2.0 * (28.0 * 4.0 + 4.0 * 4.0 + 4.0 * 2.0);
/// Flops of the quadratic's loss and gradient are not worth counting.
const NONE: f64 = 0.0;

/// A learned optimizer, its flops per inner step and the reference's inner steps per second.
type Entry = (Arc<dyn LearnedOptimizer>, f64, f64);

fn both(adam: (f64, f64), mlp: (f64, f64)) -> Vec<Entry> {
    vec![(Arc::new(LearnableAdam::default()), adam.0, adam.1), (Arc::new(MlpLopt::default()), mlp.0, mlp.1)]
}

/// Benchmarks outer steps of `estimator` with every optimizer and number of threads; returns the time of one
/// inner step on one of the threads, by the optimizer's name and that number.
fn sweep(
    group: &mut Group<'_>,
    entries: Vec<Entry>,
    family: &Arc<dyn FlatFamily>,
    estimator: impl Fn(TruncatedStep) -> Result<Box<dyn GradientEstimator>>,
) -> Result<Vec<(String, usize, Timing)>> {
    let mut times = Vec::new();
    for (lopt, flops, jax) in entries {
        let schedule = TruncationSchedule::LogUniform { min: 100, max: 500 };
        let step = TruncatedStep::new(family.clone(), lopt.clone(), schedule)?;
        let estimator = estimator(step)?;
        let theta = lopt.init(Key::new(0));
        for threads in thread_counts() {
            let workers = Workers::new(threads)?;
            let mut state = estimator.init(&theta, Key::new(1), &workers);
            let mut outer_step = 0;
            let name = format!("{}, threads: {threads}", lopt.name());
            let time = group.bench(&name, threads, Work { flops, jax, ..Work::default() }, || {
                let estimate = estimator.estimate(&theta, &mut state, outer_step, &workers);
                outer_step += 1;
                estimate.inner_steps
            });
            times.extend(time.map(|t| (lopt.name(), threads, t * threads as f64)));
        }
    }
    Ok(times)
}

/// The two kernels of an inner step, alone on one thread: the task's loss and gradient on a new batch, and
/// one `MlpLopt` update.
fn kernels(group: &mut Group<'_>) -> Option<Timing> {
    let task = Typed::new(ImageMlp::digits());
    let task: &dyn FlatTask = &task;
    let (params, key) = (task.init(Key::new(0)), Key::new(2));
    let mut evaluator = task.evaluator();
    let mut grad = vec![0.0; params.data.len()];
    let mut step = 0;
    let flops = |flops| Work { flops, ..Work::default() };
    let gradient = group.bench("loss and gradient alone", 1, flops(GRADIENT), || {
        let at = BatchKey::train(step, key);
        step += 1;
        black_box(evaluator.loss_and_grad(black_box(&params.data), &mut [], at, &mut grad));
        1
    });
    let lopt: &dyn LearnedOptimizer = &MlpLopt::default();
    let opt = lopt.opt_fn(&lopt.init(key));
    let mut state = opt.init(&params, None, key);
    let update = group.bench("MlpLopt update alone", 1, flops(NETWORK * TASK[2]), || {
        opt.update(black_box(&mut state), &grad, 0.0, key);
        1
    });
    Some(gradient? + update?)
}

fn pes(num_tasks: usize) -> impl Fn(TruncatedStep) -> Result<Box<dyn GradientEstimator>> {
    move |step| {
        let common = Antithetic { num_tasks, trunc_length: 50, ..Antithetic::default() };
        Ok(Box::new(TruncatedPes::new(step, common)?))
    }
}

fn digits_family() -> Arc<dyn FlatFamily> {
    Arc::new(SingleTask::new(ImageMlp::digits()))
}

fn pes_digits(c: &mut Criterion) -> Result<()> {
    let mut group = Group::new(c, "pes, 16 tasks x 50 steps, digits 64-32-10");
    let mut entries = both((GRADIENT, 12.7e3), (GRADIENT + NETWORK * TASK[2], 3.8e3));
    entries.push((Arc::new(AdafacMlp::default()), GRADIENT + ADAFAC * TASK[2], 4.7e3));
    let times = sweep(&mut group, entries, &digits_family(), pes(16))?;
    if let Some(parts) = kernels(&mut group) {
        for (_, threads, time) in times.into_iter().filter(|(lopt, ..)| lopt == "MlpLopt") {
            let name = format!("one MlpLopt inner step over its two kernels, threads: {threads}");
            group.ratio(&name, time, parts);
        }
    }
    group.finish();
    Ok(())
}

fn pes_quadratics(c: &mut Criterion) -> Result<()> {
    let family: Arc<dyn FlatFamily> = Arc::new(FixedDimQuadraticFamily { dim: 10 });
    let mut group = Group::new(c, "pes, 128 tasks x 50 steps, quadratics of dimension 10");
    let entries = both((NONE, 0.73e6), (NETWORK * 10.0, 0.35e6));
    sweep(&mut group, entries, &family, pes(128))?;
    group.finish();
    Ok(())
}

fn grad_digits(c: &mut Criterion) -> Result<()> {
    let mut group = Group::new(c, "grad, 16 tasks x 20 steps, digits 64-32-10");
    // Forwards: gradient and update. Backwards: Hessian-vector product, and the update's derivative,
    // which is three networks.
    let flops = GRADIENT + HVP;
    let entries = both((flops, 4.5e3), (flops + 4.0 * NETWORK * TASK[2], 0.8e3));
    sweep(&mut group, entries, &digits_family(), |step| {
        let config = SweepConfig { memory: Memory::All, ..SweepConfig::default() };
        Ok(Box::new(TruncatedGrad::new(step, 16, 20, config)?))
    })?;
    group.finish();
    Ok(())
}

/// Every estimator by evolution strategies beside PES, with the same inner steps: what an estimator costs beyond them.
/// And forward gradients, whose inner step is another: a gradient, a product with the Hessian, a derivative of the update.
fn beside_pes(c: &mut Criterion) -> Result<()> {
    type Make = fn(TruncatedStep, Antithetic) -> Result<Box<dyn GradientEstimator>>;
    // With the length of runs.
    let kinds: [(&str, u64, Make); 9] = [
        ("pes", 200, |s, c| Ok(Box::new(TruncatedPes::new(s, c)?))),
        ("truncated-es", 200, |s, c| Ok(Box::new(TruncatedEs::new(s, c)?))),
        ("noise-reuse", 200, |s, c| Ok(Box::new(NoiseReuseEs::new(s, c)?))),
        ("generalized-pes, every 4", 200, |s, c| Ok(Box::new(GeneralizedPes::new(s, c, 4)?))),
        ("final-pes", 200, |s, c| Ok(Box::new(FinalPes::new(s, c)?))),
        ("full-es", 50, |s, c| Ok(Box::new(FullEs::new(s, c, FullLoss::Mean)?))),
        ("guided-es", 50, |s, c| Ok(Box::new(GuidedEs::new(s, c, FullLoss::Mean, Guide::Past(4), 0.5)?))),
        ("measure-valued", 50, |s, c| Ok(Box::new(MeasureValued::new(s, c, FullLoss::Mean)?))),
        ("forward-grad", 50, |s, c| Ok(Box::new(ForwardGrad::new(s, 2 * c.num_tasks, 1)?))),
    ];
    let mut group = Group::new(c, "ES estimators, 16 tasks x 50 steps, digits 64-32-10");
    for lopt in
        [Arc::new(LearnableAdam::default()) as Arc<dyn LearnedOptimizer>, Arc::new(MlpLopt::default())]
    {
        let theta = lopt.init(Key::new(0));
        let mut first = None;
        for (name, length, make) in kinds {
            // It runs pairs for every meta-parameter.
            if name == "measure-valued" && theta.len() > 64 {
                continue;
            }
            let schedule = TruncationSchedule::Constant(length);
            let step = TruncatedStep::new(digits_family(), lopt.clone(), schedule)?;
            let common = Antithetic { num_tasks: 16, trunc_length: 50, ..Antithetic::default() };
            let estimator = make(step, common)?;
            let workers = Workers::new(1)?;
            let mut state = estimator.init(&theta, Key::new(1), &workers);
            let mut outer_step = 0;
            let name = format!("{}, {name}", lopt.name());
            let time = group.bench(&name, 1, Work::default(), || {
                let estimate = estimator.estimate(&theta, &mut state, outer_step, &workers);
                outer_step += 1;
                estimate.inner_steps
            });
            let Some(time) = time else { continue };
            let pes = *first.get_or_insert(time);
            group.ratio(&format!("{name} over pes"), time, pes);
        }
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut c = report::criterion();
    pes_digits(&mut c)?;
    pes_quadratics(&mut c)?;
    grad_digits(&mut c)?;
    beside_pes(&mut c)?;
    c.final_summary();
    Ok(())
}
