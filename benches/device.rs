//! Devices beside each other: the gradient of a small and of a large network, and PES with `LearnableAdam`.
//!
//!     cargo bench --bench device                                     # the CPU alone
//!     cargo bench --features cuda --bench device -- --devices cpu,cuda:0
//!
//! One thread; the best of the repetitions that fit into a second, after a first one.

use clap::Parser;
use outerloop::prelude::*;
use outerloop::tasks::data::ImageData;
use std::sync::Arc;
use std::time::Instant;

#[derive(Parser)]
struct Options {
    /// Where tasks are computed.
    #[arg(long, value_delimiter = ',', default_value = "cpu")]
    devices: Vec<Device>,
    /// Seconds per number.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The least seconds of a call.
fn best(seconds: f64, mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while best.is_infinite() || start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        f();
        best = best.min(begin.elapsed().as_secs_f64());
    }
    best
}

/// Seconds of the loss and gradient of a task on a new batch.
fn gradient(task: &dyn FlatTask, seconds: f64) -> f64 {
    let params = task.init(Key::new(0)).data;
    let (mut evaluator, mut grad, mut step) = (task.evaluator(), vec![0.0; params.len()], 0);
    best(seconds, || {
        evaluator.loss_and_grad(&params, &mut [], BatchKey::train(step, Key::new(1)), &mut grad);
        step += 1;
    })
}

/// Seconds of an inner step of PES with 16 tasks.
fn pes(task: Arc<dyn FlatTask>, seconds: f64) -> Result<f64> {
    let lopt: Arc<dyn LearnedOptimizer> = Arc::new(LearnableAdam::default());
    let schedule = TruncationSchedule::LogUniform { min: 100, max: 500 };
    let step = TruncatedStep::new(Arc::new(SingleTask(task)), lopt.clone(), schedule)?;
    let pes =
        TruncatedPes::new(step, Antithetic { num_tasks: 16, trunc_length: 10, ..Antithetic::default() })?;
    let (theta, workers) = (lopt.init(Key::new(0)), Workers::new(1)?);
    let (mut state, mut t, mut steps) = (pes.init(&theta, Key::new(1), &workers), 0, 1);
    let time = best(seconds, || {
        steps = pes.estimate(&theta, &mut state, t, &workers).inner_steps;
        t += 1;
    });
    Ok(time / steps as f64)
}

/// 784-1024-1024-10 on noise.
fn large() -> Result<MlpTask> {
    let mut pixels = vec![0.0f32; 2048 * 784];
    Key::new(7).fill_normal(&mut pixels);
    let labels: Vec<u32> = (0..2048).map(|i| i % 10).collect();
    let data = ImageData::new("noise", pixels, labels, [28, 28, 1], 10)?;
    MlpTask::new(Splits::new(data)?, MlpConfig { hidden: vec![1024, 1024], ..MlpConfig::default() })
}

fn main() -> Result<()> {
    let options = Options::parse();
    println!("| device | gradient 64-32-10 | gradient 784-1024-1024-10 | PES inner step, 64-32-10 |\n|---|---|---|---|");
    for device in options.devices {
        device.check()?;
        let small: Arc<dyn FlatTask> = MlpTask::new(Splits::digits(), MlpConfig::default())?.on(device)?;
        let large: Arc<dyn FlatTask> = large()?.on(device)?;
        let us = |seconds: f64| format!("{:.1} us", seconds * 1e6);
        let (a, b) = (gradient(&*small, options.seconds), gradient(&*large, options.seconds));
        println!("| {device} | {} | {} | {} |", us(a), us(b), us(pes(small, options.seconds)?));
    }
    Ok(())
}
