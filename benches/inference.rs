//! Amortized inference on digits, one thread: epochs of the direct encoder and of iterative inference, a step of Adam on
//! posteriors, and the encoder that replaces thousands of them.

mod report;

use criterion::Criterion;
use outerloop::amortized::inference::iterative::{Encoding, Flow, Iterative, Share};
use outerloop::amortized::inference::update::UpdateNet;
use outerloop::amortized::inference::vae::{IterativeTask, Pixels, Vae};
use outerloop::amortized::model::Full;
use outerloop::amortized::net::{Act, Init, Mlp};
use outerloop::amortized::problem::{ContextTask, Problem};
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::prelude::*;
use report::{against, products, Group, Trainer, Work};
use std::hint::black_box;
use std::sync::Arc;

/// Images in an epoch, and in a batch.
const EPOCH: usize = 1500;
const BATCH: usize = 64;
/// Iterations of iterative inference.
const ITERATIONS: usize = 5;
/// Posteriors inferred at once.
const POSTERIORS: usize = 1024;
/// Milliseconds of torch 2.15 on one thread of another machine: see the README.
const TORCH: [(&str, f64); 5] = [
    ("epoch, direct encoder", 85.0),
    ("epoch, gradient encoding", 390.0),
    ("epoch, error encoding", 410.0),
    ("Adam step on 1024 posteriors", 3.99),
    ("encoder, 1024 images", 0.73),
];

fn elu(widths: &[usize]) -> Mlp {
    Mlp { widths: widths.to_vec(), act: Act::Elu, init: Init::Glorot }
}

/// An epoch's steps as one call, and torch's time for it.
fn epoch(group: &mut Group<'_>, (name, torch): (&str, f64), task: Arc<dyn FlatTask>, flops: f64) {
    let (mut trainer, steps) = (Trainer::new(&task, 1e-3), EPOCH / BATCH);
    let work = Work { flops: flops * steps as f64, ..Work::default() };
    let time = group.bench(name, 1, work, || {
        (0..steps).for_each(|_| trainer.step());
        1
    });
    against(group, name, time, torch);
}

fn training(group: &mut Group<'_>) -> Result<()> {
    let rows = BATCH as f64;
    let vae = Vae { pixels: Pixels::Binarized, ..Vae::new(&digits(), EPOCH, elu(&[16, 128, 64]))? };
    let decoder = products(&[16, 128, 64]);
    let encoder = products(&[64, 128, 128, 32]);
    let full = Full { hidden: vec![128, 128], act: Act::Elu, init: Init::Glorot };
    let training = Training { batch_size: BATCH, ..Training::default() };
    let direct = AmortizedTask::new(vae.clone(), full, training)?;
    // Forwards, and backwards to weights and units; nobody needs the gradient of the images.
    let flops = 2.0 * rows * (3.0 * (decoder + encoder) - 64.0 * 128.0);
    epoch(group, TORCH[0], Arc::new(Typed::new(direct)), flops);
    for (torch, encoding) in [(TORCH[1], Encoding::Gradient), (TORCH[2], Encoding::Error)] {
        let inputs = encoding.len(64, 16);
        let net = UpdateNet::new(inputs, 128, 16);
        let (share, flow) = (Share::PerExample, Flow::Horizon1);
        let inference = Iterative { net, encoding, share, flow, likelihood: vae.likelihood };
        let task = IterativeTask::new(vae.clone(), inference, ITERATIONS, BATCH);
        // Per iteration: three layers on the encoding, which is a constant, two of 128 x 128, four heads of 128 x 16; the
        // bound, backwards to its λ; for gradients the bound again. The last bound trains the decoder, too.
        let first = (3 * inputs * 128) as f64;
        let rest = (2 * 128 * 128 + 4 * 128 * 16) as f64;
        let bounds = 2.0 * decoder * if encoding == Encoding::Gradient { 2.0 } else { 1.0 };
        let each = 2.0 * first + 3.0 * rest + bounds;
        let flops = 2.0 * rows * (ITERATIONS as f64 * each + 2.0 * decoder);
        epoch(group, torch, Arc::new(Typed::new(task)), flops);
    }
    Ok(())
}

fn posteriors(group: &mut Group<'_>) -> Result<()> {
    let rows = POSTERIORS as f64;
    let vae = Vae::new(&digits(), 1527, Mlp::new([10, 128, 128, 64]))?;
    let mut x = vec![0.0; POSTERIORS * 64];
    vae.contexts(BatchKey::train(0, Key::new(3)), &mut x);
    let mut own = vec![0.0; vae.own_layout().len()];
    vae.own_init(Key::new(4), &mut own);
    let images = ContextTask { problem: vae.clone(), contexts: x.clone(), own, start: Vec::new() };
    let task: Arc<dyn FlatTask> = Arc::new(Typed::new(images));
    let mut trainer = Trainer::new(&task, 5e-3);
    let work = Work { flops: 4.0 * rows * products(&[10, 128, 128, 64]), ..Work::default() };
    let step = group.bench(TORCH[3].0, 1, work, || {
        trainer.step();
        1
    });
    against(group, TORCH[3].0, step, TORCH[3].1);
    let direct = AmortizedTask::new(vae, Full::default(), Training::default())?;
    let theta = FlatTask::<f32>::init(&Typed::new(direct.clone()), Key::new(5)).data;
    let work = Work { flops: 2.0 * rows * products(&[64, 128, 128, 20]), ..Work::default() };
    let once = group.bench(TORCH[4].0, 1, work, || {
        black_box(direct.predict::<f32>(black_box(&theta), &x, Key::new(0)));
        1
    });
    against(group, TORCH[4].0, once, TORCH[4].1);
    if let Some((step, once)) = step.zip(once) {
        group.ratio("2000 steps of Adam / encoder", step * 2000.0, once);
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut c: Criterion = report::criterion();
    let mut group = Group::new(&mut c, "amortized inference");
    training(&mut group)?;
    posteriors(&mut group)?;
    group.finish();
    c.final_summary();
    Ok(())
}
