//! Augmented tasks: contracts, exactness of values and derivatives.

use outerloop_core::contract::check_task;
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{BatchKey, FlatFamily, FlatTask, Float, Key, SingleTask, Task, TaskFamily, Typed};
use outerloop_tasks::augment::*;
use outerloop_tasks::data::Splits;
use outerloop_tasks::image::{ImageMlpFamily, MlpConfig, MlpTask, Nonlinearity, Norm};
use outerloop_tasks::quadratics::QuadraticTask;
use std::sync::Arc;

fn digits(norm: Norm) -> MlpTask {
    let config = MlpConfig {
        hidden: vec![4],
        nonlinearity: Nonlinearity::Tanh,
        norm,
        batch_size: 12,
        ..MlpConfig::default()
    };
    MlpTask::new(Splits::digits(), config).unwrap()
}

fn flat<E: Float, T: Task<E, Cpu> + Task<f64, Cpu>>(task: T) -> Arc<dyn FlatTask<E>>
where
    Cpu: Host<E>,
{
    Arc::new(Typed::new(task))
}

/// With batch norm, so that there is model state to pass through.
fn mlp<E: Float>() -> Arc<dyn FlatTask<E>>
where
    Cpu: Host<E>,
    MlpTask: Task<E, Cpu>,
{
    flat(digits(Norm::Batch))
}

fn at(step: u64) -> BatchKey {
    BatchKey::train(step, Key::new(6))
}

fn normals(n: usize, seed: u64) -> Vec<f64> {
    let mut v = vec![0.0; n];
    Key::new(seed).fill_normal(&mut v);
    v
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn gradient(task: &dyn FlatTask<f64>, params: &[f64], at: BatchKey) -> (f64, Vec<f64>) {
    let mut grad = vec![f64::NAN; params.len()];
    let loss = task.evaluator().loss_and_grad(params, &mut task.init_state(), at, &mut grad);
    (loss, grad)
}

fn near(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{i}: {a} and {b}");
    }
}

fn everything<E: Float>() -> Vec<Box<dyn Augmentation<E>>> {
    let reparam = |level| Box::new(ReparamWeights::new(level, 0.2..=5.0).unwrap());
    vec![
        reparam(ReparamLevel::Global),
        reparam(ReparamLevel::Tensor),
        reparam(ReparamLevel::Parameter),
        Box::new(DelayedGradients { delay: 0 }),
        Box::new(DelayedGradients { delay: 3 }),
        Box::new(ModifyGradient(NormalizeGradient)),
        Box::new(ModifyGradient(NoisyGradient::new(0.5).unwrap())),
        Box::new(ModifyGradient(SubsampleDirections::new(3).unwrap())),
        Box::new(ModifyGradient(SubsampleDirections::signs(2).unwrap())),
        Box::new(EsGradient::default()),
    ]
}

#[test]
fn where_gradients_are_slopes_the_contract_holds() {
    for (a, b) in everything::<f32>().iter().zip(&everything::<f64>()).take(5) {
        check_task(&*a.apply(mlp(), Key::new(3)), &*b.apply(mlp(), Key::new(3))).unwrap();
    }
    for fraction in [0.01, 0.4, 1.0] {
        let make = || Typed::new(ReducedBatchsize::new(digits(Norm::Batch), fraction).unwrap());
        check_task(&make(), &make()).unwrap();
    }
}

/// Loss and gradient of `loss_grad_hvp` are those of `loss_and_grad`, and `vᵀ (G' u)` by differences of
/// the gradient equals `uᵀ` times what it gives for `v`.
#[test]
fn second_derivatives_are_those_of_the_gradient_that_is_given() {
    for augmentation in everything::<f64>() {
        let task = augmentation.apply(mlp(), Key::new(1));
        let params = task.init(Key::new(2)).data;
        let n = params.len();
        let (u, v) = (normals(n, 3), normals(n, 4));
        let (mut grad, mut hvp) = (vec![f64::NAN; n], vec![f64::NAN; n]);
        let state = task.init_state();
        let loss = task.evaluator().loss_grad_hvp(&params, &state, at(5), &v, &mut grad, &mut hvp);
        let (plain_loss, plain) = gradient(&*task, &params, at(5));
        assert_eq!(loss, plain_loss, "{}", task.name());
        near(&grad, &plain, 1e-13);
        assert_eq!(loss, task.evaluator().loss(&params, &state, at(5)), "{}", task.name());
        let h = 1e-5;
        let along = |c: f64| {
            let moved: Vec<f64> = params.iter().zip(&u).map(|(p, u)| p + c * u).collect();
            dot(&v, &gradient(&*task, &moved, at(5)).1)
        };
        let (got, want) = (dot(&u, &hvp), (along(h) - along(-h)) / (2.0 * h));
        // Central differences of smooth functions: h² and 1e-16/h.
        assert!((got - want).abs() < 1e-6 * (1.0 + want.abs()), "{}: {got} and {want}", task.name());
    }
}

#[test]
fn evaluation_leaves_the_state_alone_and_training_moves_it() {
    for augmentation in everything::<f32>() {
        let (task, plain) = (augmentation.apply(mlp(), Key::new(1)), mlp::<f32>());
        let params = task.init(Key::new(2)).data;
        let mut state = task.init_state();
        let own = plain.init_state().len();
        let mut grad = vec![0.0; params.len()];
        task.evaluator().loss_and_grad(&params, &mut state, at(0), &mut grad);
        assert_eq!(state[0], 1.0, "{}: one batch was seen", task.name());
        assert!(state[1..own].iter().any(|x| *x != 0.0));
    }
}

#[test]
fn reparametrized_tasks_have_the_same_losses() {
    let plain = mlp::<f64>();
    for level in [ReparamLevel::Global, ReparamLevel::Tensor, ReparamLevel::Parameter] {
        let range = 1e-2..=1e2;
        let task = ReparamWeights::new(level, range.clone()).unwrap().apply(mlp(), Key::new(1));
        let (w, p) = (plain.init(Key::new(2)), task.init(Key::new(2)));
        let scales: Vec<f64> =
            w.data.iter().zip(&p.data).filter(|(_, p)| **p != 0.0).map(|(w, p)| w / p).collect();
        assert!(scales.iter().all(|s| (0.0099..101.0).contains(s)));
        let mut distinct: Vec<i64> = scales.iter().map(|s| (s * 1e9).round() as i64).collect();
        distinct.sort_unstable();
        distinct.dedup();
        // Two weight matrices and one scale vector are not zero at the start.
        match level {
            ReparamLevel::Global => assert_eq!(distinct.len(), 1),
            ReparamLevel::Tensor => assert_eq!(distinct.len(), 3),
            ReparamLevel::Parameter => assert!(distinct.len() > 290),
        }
        let (a, b) = (gradient(&*plain, &w.data, at(0)), gradient(&*task, &p.data, at(0)));
        assert!((a.0 - b.0).abs() < 1e-12);
    }
    // With given scales: ∂L/∂p = s ∂L/∂w.
    let n = plain.layout().len();
    let scales: Vec<f64> = (0..n).map(|i| 0.5 + (i % 7) as f64).collect();
    let task = ReparamWeights::with_scales(mlp(), scales.clone()).unwrap();
    let w = plain.init(Key::new(2)).data;
    let (_, grad) = gradient(&*plain, &w, at(1));
    let want: Vec<f64> = grad.iter().zip(&scales).map(|(g, s)| g * s).collect();
    near(&gradient(&*task, &task.init(Key::new(2)).data, at(1)).1, &want, 1e-12);
    assert!(ReparamWeights::with_scales(mlp::<f64>(), vec![1.0]).is_err());
    assert!(ReparamWeights::new(ReparamLevel::Global, 0.0..=1.0).is_err());
}

#[test]
fn gradient_noise_has_the_given_size_and_no_bias() {
    let grad = normals(50, 8);
    let norm = dot(&grad, &grad).sqrt();
    let map = NoisyGradient::new(2.0).unwrap();
    let n = 4000;
    let (mut along, mut square) = (0.0, 0.0);
    for i in 0..n {
        let mut noisy = grad.clone();
        map.apply(&mut noisy, Key::new(9).fold_in(i));
        let noise: Vec<f64> = noisy.iter().zip(&grad).map(|(a, b)| a - b).collect();
        along += dot(&noise, &grad) / (norm * norm) / n as f64;
        square += dot(&noise, &noise) / (norm * norm) / n as f64;
    }
    // ξ·ĝ has variance r²/P, ‖noise‖²/‖g‖² mean r² and variance 2 r⁴/P.
    assert!(along.abs() < 4.0 * 2.0 / (50.0 * n as f64).sqrt(), "{along}");
    assert!((square - 4.0).abs() < 4.0 * 4.0 * (2.0 / (50.0 * n as f64)).sqrt(), "{square}");
    assert!(NoisyGradient::new(-1.0).is_err() && NoisyGradient::new(f64::NAN).is_err());
}

#[test]
fn delayed_gradients_are_of_that_many_steps_ago() {
    let plain = flat::<f64, _>(QuadraticTask::new(3));
    for delay in 0..5u32 {
        let task = DelayedGradients { delay }.apply(plain.clone(), Key::new(0));
        let (mut eval, mut state) = (task.evaluator(), task.init_state());
        let mut seen = Vec::new();
        for t in 0..14 {
            // ∇ Σ x² = 2 x names the parameters.
            let params = [f64::from(t), 1.0, 0.0];
            let mut grad = [0.0; 3];
            let before = eval.loss(&params, &state, at(0));
            let loss = eval.loss_and_grad(&params, &mut state, at(0), &mut grad);
            assert_eq!(loss, before);
            assert_eq!(loss, (grad[0] / 2.0).powi(2) + 1.0);
            seen.push((grad[0] / 2.0) as i64);
        }
        let want: Vec<i64> = (0..14).map(|t| (t - i64::from(delay)).max(0)).collect();
        assert_eq!(seen, want, "delay {delay}");
    }
}

#[test]
fn gradient_maps_do_what_they_say() {
    let plain = mlp::<f64>();
    let params = plain.init(Key::new(2)).data;
    let (loss, grad) = gradient(&*plain, &params, at(0));
    let norm = dot(&grad, &grad).sqrt();
    let apply =
        |a: &dyn Augmentation<f64>, step| gradient(&*a.apply(plain.clone(), Key::new(0)), &params, at(step));

    let (l, g) = apply(&ModifyGradient(NormalizeGradient), 0);
    assert_eq!(l, loss);
    near(&g, &grad.iter().map(|g| g / norm).collect::<Vec<_>>(), 1e-14);
    let mut zero = [0.0f32; 4];
    NormalizeGradient.apply(&mut zero, Key::new(0));
    assert_eq!(zero, [0.0; 4]);

    // One direction d: g' = d (d·g), and with signs d: so d = g'' and g' = d (d·g).
    let (_, d) = apply(&ModifyGradient(SubsampleDirections::signs(1).unwrap()), 0);
    assert!((dot(&d, &d) - 1.0).abs() < 1e-12);
    let (_, g) = apply(&ModifyGradient(SubsampleDirections::new(1).unwrap()), 0);
    near(&g, &d.iter().map(|x| x * dot(&d, &grad)).collect::<Vec<_>>(), 1e-12);
    let (_, other) = apply(&ModifyGradient(SubsampleDirections::signs(1).unwrap()), 1);
    assert_ne!(d, other, "every batch has its own directions");
    assert!(SubsampleDirections::new(0).is_err());
}

#[test]
fn directions_and_evolution_strategies_have_the_stated_expectation() {
    // On a quadratic both are exact in the mean: n/P times the gradient, and the gradient.
    let plain = flat::<f64, _>(QuadraticTask::new(4));
    let params = [1.0, -2.0, 0.5, 0.0];
    let grad: Vec<f64> = params.iter().map(|p| 2.0 * p).collect();
    let cases: [(Box<dyn Augmentation<f64>>, f64); 2] = [
        (Box::new(ModifyGradient(SubsampleDirections::new(2).unwrap())), 0.5),
        (Box::new(EsGradient::new(0.3, 4).unwrap()), 1.0),
    ];
    for (augmentation, factor) in cases {
        let task = augmentation.apply(plain.clone(), Key::new(0));
        let (mut mean, mut square, count) = ([0.0; 4], [0.0; 4], 4000);
        for step in 0..count {
            let (loss, g) = gradient(&*task, &params, at(step));
            assert_eq!(loss, 5.25);
            for i in 0..4 {
                mean[i] += g[i] / count as f64;
                square[i] += g[i] * g[i] / count as f64;
            }
        }
        for i in 0..4 {
            let error = ((square[i] - mean[i] * mean[i]) / count as f64).sqrt();
            let want = factor * grad[i];
            assert!(
                (mean[i] - want).abs() < 4.0 * error,
                "{}[{i}]: {} and {want}",
                augmentation.name(),
                mean[i]
            );
        }
    }
    assert!(EsGradient::new(0.0, 1).is_err() && EsGradient::new(1.0, 0).is_err());
}

#[test]
fn reduced_batches_are_the_first_rows() {
    let dev = Cpu::default();
    let task = digits(Norm::None);
    let full = Task::<f64, _>::batch(&task, &dev, at(3));
    for (fraction, rows) in [(0.3, 3), (0.01, 1), (1.0, 12)] {
        let reduced = ReducedBatchsize::new(task.clone(), fraction).unwrap();
        let mut batch = Task::<f64, _>::batch(&reduced, &dev, at(2));
        Task::<f64, _>::refill(&reduced, &dev, at(3), &mut batch);
        assert_eq!(batch.labels, full.labels[..rows]);
        assert_eq!(batch.images.as_vec(), full.images.as_vec()[..rows * 64]);
    }
    assert!(ReducedBatchsize::new(task, 0.0).is_err());
    let family = ReducedBatchsizeFamily::new(ImageMlpFamily::new(Splits::digits()), 0.5).unwrap();
    let config = family.sample(Key::new(1));
    let batch = Task::<f32, _>::batch(&family.task(&config), &dev, at(0));
    assert_eq!(batch.len(), config.1.batch_size / 2);
}

#[test]
fn augmented_families_draw_task_and_change_from_the_key() {
    let family = AugmentedFamily {
        family: Arc::new(SingleTask(mlp::<f32>())),
        augmentation: Arc::new(ReparamWeights::new(ReparamLevel::Tensor, 0.1..=10.0).unwrap()),
    };
    let init = |seed| family.sample_task(Key::new(seed)).init(Key::new(0)).data;
    assert_eq!(init(1), init(1));
    assert_ne!(init(1), init(2));
    assert_eq!(family.name(), "digits_mlp4_tanh_batchnorm_reparam");
    // Augmentations nest.
    let twice = AugmentedFamily {
        family: Arc::new(family),
        augmentation: Arc::new(ModifyGradient(NormalizeGradient)),
    };
    let task = twice.sample_task(Key::new(1));
    assert_eq!(task.name(), "digits_mlp4_tanh_batchnorm_reparam_normalized");
    let params = task.init(Key::new(0)).data;
    let mut grad = vec![0.0; params.len()];
    task.evaluator().loss_and_grad(&params, &mut task.init_state(), at(0), &mut grad);
    assert!((grad.iter().map(|g| g * g).sum::<f32>() - 1.0).abs() < 1e-5);
}
