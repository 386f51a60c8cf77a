//! One core: loss and derivatives of the 64-32-10 task, one update and its derivative of learned
//! optimizers over that task's 2410 parameters. Flop counts: see the README beside this file.

mod report;

use criterion::Criterion;
use outerloop::core::{BatchKey, Key, LearnedOptimizer, OptState};
use outerloop::lopt::{AdafacMlp, Celo2, LearnableSgd, LearnableSgdm};
use outerloop::prelude::{FlatTask, ImageMlp, LearnableAdam, MlpLopt, Typed};
use report::{Group, Work};
use std::hint::black_box;

/// Images per batch.
const BATCH: f64 = 128.0;
/// Weights of the layers.
const LAYERS: [f64; 2] = [64.0 * 32.0, 32.0 * 10.0];

/// A product with each layer's weights.
const FORWARD: f64 = 2.0 * BATCH * (LAYERS[0] + LAYERS[1]);
/// Forwards, gradients of the weights, and of the hidden units; that of the images is not needed.
const GRADIENT: f64 = 2.0 * FORWARD + 2.0 * BATCH * LAYERS[1];
/// What the floor of half the peak is stated on: with the gradient of the images, which is not computed.
const NOMINAL_GRADIENT: f64 = 1.84e6;
/// The tangent of all these: of a product of two things that change, two products. The images do
/// not change.
const HVP: f64 = 2.0 * BATCH * (2.0 * LAYERS[0] + 6.0 * LAYERS[1]);

/// Multiply-adds of the 8-32-32-2 network that is left once the 11 time features, equal for all
/// parameters, are added to the first bias.
const NETWORK: f64 = 8.0 * 32.0 + 32.0 * 32.0 + 32.0 * 2.0;

/// The same of `AdafacMlp`'s 28-4-4-2 network. Its accumulators and features are more work than that.
const ADAFAC: f64 = 28.0 * 4.0 + 4.0 * 4.0 + 4.0 * 2.0;

/// The same of `Celo2`'s 30-8-8-3 network, whose third output nothing reads.
const CELO2: f64 = 30.0 * 8.0 + 8.0 * 8.0 + 8.0 * 2.0;

/// Multiply-adds of one orthogonalization of a matrix whose smaller extent is k and larger l: five times
/// a product with its transpose, the square of that, and their product with the matrix.
fn newton_schulz(k: f64, l: f64) -> f64 {
    5.0 * (2.0 * k * k * l + k * k * k)
}

/// The same of its derivative: five times one product with a transpose, one of squares, two with matrices.
fn newton_schulz_back(k: f64, l: f64) -> f64 {
    5.0 * (3.0 * k * k * l + k * k * k)
}

fn flops(flops: f64) -> Work {
    Work { flops, ..Work::default() }
}

fn task(c: &mut Criterion) {
    let task = Typed::new(ImageMlp::digits());
    let task: &dyn FlatTask = &task;
    let params = task.init(Key::new(0)).data;
    let n = params.len();
    let mut evaluator = task.evaluator();
    let (mut grad, mut hvp) = (vec![0.0; n], vec![0.0; n]);
    let mut v = vec![0.0; n];
    Key::new(1).fill_normal(&mut v);
    let mut fresh = (0..).map(|step| BatchKey::train(step, Key::new(2)));
    let fixed = BatchKey::train(0, Key::new(2));

    let gradient = Work { nominal_flops: NOMINAL_GRADIENT, ..flops(GRADIENT) };
    let mut group = Group::new(c, "task");
    group.bench("loss, fixed batch", 1, flops(FORWARD), || {
        black_box(evaluator.loss(black_box(&params), &[], fixed));
        1
    });
    group.bench("loss and gradient, fixed batch", 1, gradient, || {
        black_box(evaluator.loss_and_grad(black_box(&params), &mut [], fixed, &mut grad));
        1
    });
    group.bench("loss and gradient, fresh batches", 1, gradient, || {
        let at = fresh.next().unwrap_or(fixed);
        black_box(evaluator.loss_and_grad(black_box(&params), &mut [], at, &mut grad));
        1
    });
    group.bench("loss, gradient and Hessian product", 1, flops(GRADIENT + HVP), || {
        black_box(evaluator.loss_grad_hvp(black_box(&params), &[], fixed, &v, &mut grad, &mut hvp));
        1
    });
    group.finish();
}

/// Benchmarks the update and its derivative.
fn rule(group: &mut Group<'_>, lopt: &dyn LearnedOptimizer, update: Work, vjp: Work) {
    let task = Typed::new(ImageMlp::digits());
    let params = FlatTask::<f32>::init(&task, Key::new(0));
    let key = Key::new(3);
    let theta = lopt.init(key);
    let opt = lopt.opt_fn(&theta);
    let mut grad = vec![0.0; params.data.len()];
    key.fill_normal(&mut grad);
    let mut state = opt.init(&params, None, key);
    let name = lopt.name();
    group.bench(&format!("{name} update"), 1, update, || {
        opt.update(black_box(&mut state), &grad, 0.0, key);
        1
    });
    let Some(derivative) = opt.update_vjp() else { return };
    let mut after: OptState = state.zeros_like();
    key.named("adjoint").fill_normal(&mut after.params);
    let mut theta_adjoint = vec![0.0; theta.len()];
    group.bench(&format!("{name} update derivative"), 1, vjp, || {
        black_box(derivative.vjp(black_box(&state), &grad, 0.0, key, &after, &mut theta_adjoint));
        1
    });
}

fn optimizers(c: &mut Criterion) {
    let mut group = Group::new(c, "optimizers");
    let n = 2410.0;
    // The derivative runs the network again, then once for theta and once for the features.
    rule(&mut group, &MlpLopt::default(), flops(2.0 * n * NETWORK), flops(6.0 * n * NETWORK));
    rule(&mut group, &AdafacMlp::default(), flops(2.0 * n * ADAFAC), flops(6.0 * n * ADAFAC));
    // Biases go by AdamW.
    let network = (LAYERS[0] + LAYERS[1]) * CELO2;
    let of_matrices = |count: fn(f64, f64) -> f64| count(32.0, 64.0) + count(10.0, 32.0);
    let [products, back] = [newton_schulz, newton_schulz_back].map(of_matrices);
    let vjp = flops(2.0 * (3.0 * network + products + back));
    rule(&mut group, &Celo2::default(), flops(2.0 * (network + products)), vjp);
    // Reads p, m, v, g and writes p, m, v. The derivative reads these and three adjoints, and writes
    // four adjoints.
    let bytes = |bytes| Work { bytes, ..Work::default() };
    rule(&mut group, &LearnableAdam::default(), bytes(28.0 * n), bytes(44.0 * n));
    // p, g; g and p's adjoint to those of p and g. With a slot more.
    rule(&mut group, &LearnableSgd::default(), bytes(12.0 * n), bytes(16.0 * n));
    rule(&mut group, &LearnableSgdm::default(), bytes(20.0 * n), bytes(28.0 * n));
    group.finish();
}

fn main() {
    let mut c = report::criterion();
    task(&mut c);
    optimizers(&mut c);
    c.final_summary();
}
