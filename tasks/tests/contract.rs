//! Every task of the crate passes the contract of `outerloop_core::contract`.

use outerloop_core::tensor::{record, Cpu, ParamTree};
use outerloop_core::{contract::check_task, BatchKey, FlatTask, Key, Task, TaskFamily, Typed};
use outerloop_tasks::quadratics::*;

/// Runs the contract on a task and names it on failure.
fn check<T>(make: impl Fn() -> T)
where
    T: Task<f32, Cpu> + Task<f64, Cpu>,
{
    if let Err(e) = check_task(&Typed::new(make()), &Typed::new(make())) {
        panic!("{e}");
    }
}

/// The closed form of a task is that of its loss on tensors: value, gradient, Hessian times vector.
fn check_closed_form<T: Task<f64, Cpu>>(task: T) {
    let dev = Cpu::default();
    let name = task.name();
    let params = task.init(&dev, Key::new(1));
    let n = params.layout().len();
    let batch = task.batch(&dev, BatchKey::train(5, Key::new(2)));
    let on_tensors = |flat: &[f64]| {
        let mut p = params.clone();
        p.read_flat(flat);
        let mut r = record(&p.ids(), |m| task.loss(&p, &batch, m));
        let mut grad = vec![0.0; n];
        p.read_grads(&dev, &mut r.grads, &mut grad);
        (r.value.as_vec()[0], grad)
    };
    let near = |what: &str, a: &[f64], b: &[f64], tolerance: f64| {
        let scale = b.iter().fold(1e-3, |m: f64, x| m.max(x.abs()));
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= tolerance * scale, "{name}: {what}: {a} and {b}");
        }
    };
    let mut flat = vec![0.0; n];
    params.write_flat(&mut flat);
    let mut grad = vec![f64::NAN; n];
    let loss = task.closed_form(&flat, &batch, Some(&mut grad)).expect("has a closed form");
    let (loss_t, grad_t) = on_tensors(&flat);
    near("loss", &[loss], &[loss_t], 1e-13);
    near("gradient", &grad, &grad_t, 1e-12);
    assert_eq!(task.closed_form(&flat, &batch, None).map(f64::to_bits), Some(loss.to_bits()));

    let (mut v, mut hv) = (vec![0.0; n], vec![f64::NAN; n]);
    Key::new(3).fill_normal(&mut v);
    assert!(task.hvp(&flat, &batch, &v, &mut hv), "{name}: has a Hessian");
    // Quadratics: the difference of gradients is exact up to rounding; the logarithm is smooth.
    let h = 1e-5;
    let moved = |c: f64| on_tensors(&flat.iter().zip(&v).map(|(x, v)| x + c * v).collect::<Vec<_>>()).1;
    let diff: Vec<f64> = moved(h).iter().zip(moved(-h)).map(|(a, b)| (a - b) / (2.0 * h)).collect();
    near("Hessian times vector", &hv, &diff, 1e-8);
}

/// One table: the contract, and the closed form against the tensors.
macro_rules! quadratics {
    ($($name:ident: $task:expr),+ $(,)?) => {$(
        #[test]
        fn $name() {
            check(|| $task);
            check_closed_form($task);
        }
    )+};
}

quadratics! {
    quadratic: QuadraticTask::new(10),
    quadratic_family: { let f = FixedDimQuadraticFamily { dim: 7 }; f.task(&f.sample(Key::new(1))) },
    data_quadratic: { let f = FixedDimQuadraticFamilyData { dim: 7 }; f.task(&f.sample(Key::new(1))) },
    batch_quadratic: BatchQuadraticTask::default(),
    log_quadratic: LogQuadraticTask::default(),
    sum_quadratic: SumQuadraticTask::default(),
    noisy_mean_quadratic: NoisyMeanQuadraticTask::new(3, 1.0),
    skewed_quadratic: NoisyMeanQuadraticTask::with_hessian(2, vec![1.0, 3.0, -1.0, 2.0], 0.5).unwrap(),
    noisy_quadratic_without_noise: { let f = NoisyQuadraticFamily { dim: 6, cov: 0.0 }; f.task(&f.sample(Key::new(1))) },
}

#[test]
fn noisy_quadratic_has_unbiased_gradients_of_the_stated_noise() {
    // With noise the gradient is not the loss's slope, so the contract does not apply.
    let f = NoisyQuadraticFamily { dim: 4, cov: 0.7 };
    let config = f.sample(Key::new(1));
    check_closed_form(f.task(&config));
    let noisy = Typed::new(f.task(&config));
    let clean = Typed::new(NoisyQuadraticTask::new(config.0.clone(), config.1.clone(), 0.0).unwrap());
    let p = FlatTask::<f64>::init(&noisy, Key::new(2)).data;
    let (mut e, mut exact) = (FlatTask::<f64>::evaluator(&noisy), vec![0.0; 4]);
    let loss = FlatTask::<f64>::evaluator(&clean).loss_and_grad(
        &p,
        &mut [],
        BatchKey::train(0, Key::new(3)),
        &mut exact,
    );
    let n = 20_000;
    let (mut mean, mut square) = (0.0, 0.0);
    for step in 0..n {
        let mut g = vec![0.0; 4];
        let l = e.loss_and_grad(&p, &mut [], BatchKey::train(step, Key::new(3)), &mut g);
        assert_eq!(l.to_bits(), loss.to_bits(), "the noise is not in the loss");
        for (g, x) in g.iter().zip(&exact) {
            mean += (g - x) / (4 * n) as f64;
            square += (g - x).powi(2) / (4 * n) as f64;
        }
    }
    let count = (4 * n) as f64;
    assert!(mean.abs() < 4.0 * 0.7 / count.sqrt(), "{mean}");
    assert!((square - 0.49).abs() < 4.0 * 0.49 * (2.0 / count).sqrt(), "{square}");
}

#[test]
fn families_sample_the_stated_distributions() {
    let f = NoisyQuadraticFamily { dim: 20_000, cov: 0.0 };
    let (center, scale) = f.sample(Key::new(4));
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    // Standard errors: 1/sqrt(n) and 25/sqrt(12 n).
    assert!(mean(&center).abs() < 4.0 / 20_000f64.sqrt());
    assert!((mean(&scale) - 12.5).abs() < 4.0 * 25.0 / (12.0 * 20_000f64).sqrt());
    assert!(scale.iter().all(|s| (0.0..25.0).contains(s)));
    let task = Typed::new(NoisyMeanQuadraticTask::new(5, 1.0));
    let x0 = (0..1000).flat_map(|i| FlatTask::<f64>::init(&task, Key::new(i)).data);
    let square = x0.map(|x| x * x).sum::<f64>() / 5000.0;
    assert!((square - 100.0).abs() < 4.0 * 100.0 * (2.0f64 / 5000.0).sqrt(), "{square}");
}
