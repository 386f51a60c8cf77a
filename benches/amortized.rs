//! Training of amortization models, one thread: the tutorial's eight functions on the sphere, fresh functions every step, and
//! learned ISTA.

mod report;

use criterion::Criterion;
use outerloop::amortized::model::{Full, Weights};
use outerloop::amortized::problems::sparse::{Lista, SparseCoding};
use outerloop::amortized::problems::sphere::Sphere;
use outerloop::amortized::problems::sphere_tutorial::tutorial;
use outerloop::amortized::task::{AmortizedTask, Training};
use outerloop::prelude::*;
use report::{against, trained_products, Group, Trainer, Work};
use std::sync::Arc;

/// Iterations of the tutorial's training.
const ITERATIONS: usize = 100;
/// Layers of learned ISTA, length of signals and codes.
const LAYERS: usize = 16;
const SIGNAL: usize = 20;
const CODE: usize = 40;
/// Milliseconds of torch 2.15 on one thread of another machine, where they are known: see the README.
const TORCH: [(&str, f64); 2] =
    [("tutorial's sphere, 100 iterations", 110.0), ("fresh functions, one step", 0.59)];

fn sphere(problem: Sphere, batch_size: usize) -> Result<Arc<dyn FlatTask>> {
    let training = Training { batch_size, ..Training::default() };
    Ok(Arc::new(Typed::new(AmortizedTask::new(problem, Full::default(), training)?)))
}

/// Bytes that Adam reads and writes for so many weights, and those of the gradient.
fn adam_bytes(weights: usize) -> f64 {
    32.0 * weights as f64
}

fn spheres(group: &mut Group<'_>) -> Result<()> {
    let widths = [16, 128, 128, 3];
    let eight = tutorial();
    let task = sphere(eight.clone(), eight.fixed.len())?;
    let flops = |rows: usize| 2.0 * rows as f64 * trained_products(&widths);
    let bytes = adam_bytes(task.layout().len());
    let (many, rows) = (ITERATIONS as f64, eight.fixed.len());
    let mut trainer = Trainer::new(&task, 5e-4);
    let work = Work { flops: many * flops(rows), bytes: many * bytes, ..Work::default() };
    let time = group.bench(TORCH[0].0, 1, work, || {
        (0..ITERATIONS).for_each(|_| trainer.step());
        1
    });
    against(group, TORCH[0].0, time, TORCH[0].1);
    let rows = 128;
    let mut trainer = Trainer::new(&sphere(Sphere::default(), rows)?, 5e-4);
    let time = group.bench(TORCH[1].0, 1, Work { flops: flops(rows), bytes, ..Work::default() }, || {
        trainer.step();
        1
    });
    against(group, TORCH[1].0, time, TORCH[1].1);
    Ok(())
}

fn learned_ista(group: &mut Group<'_>, name: &str, weights: Weights) -> Result<()> {
    let problem = SparseCoding::random(SIGNAL, CODE, 0.1, Key::new(0).named("dictionary"));
    let model = Lista { layers: LAYERS, dictionary: problem.dictionary.clone(), weights };
    let training = Training::default();
    let rows = training.batch_size as f64;
    let task: Arc<dyn FlatTask> = Arc::new(Typed::new(AmortizedTask::new(problem, model, training)?));
    // F x of every set of weights, forwards and backwards to F; G y of all layers but the first, forwards and backwards to
    // both; the energy, forwards and backwards to y.
    let sets = if weights == Weights::Shared { 1 } else { LAYERS };
    let counts = [2 * sets * SIGNAL * CODE, 3 * (LAYERS - 1) * CODE * CODE, 2 * SIGNAL * CODE];
    let flops = 2.0 * rows * counts.iter().sum::<usize>() as f64;
    let bytes = adam_bytes(task.layout().len());
    let mut trainer = Trainer::new(&task, 1e-3);
    group.bench(name, 1, Work { flops, bytes, ..Work::default() }, || {
        trainer.step();
        1
    });
    Ok(())
}

fn main() -> Result<()> {
    let mut c: Criterion = report::criterion();
    let mut group = Group::new(&mut c, "amortized optimization");
    spheres(&mut group)?;
    learned_ista(&mut group, "learned ISTA, 16 layers, one step", Weights::Shared)?;
    learned_ista(&mut group, "the same, weights per layer", Weights::PerStep)?;
    group.finish();
    c.final_summary();
    Ok(())
}
