//! Every task of the crate passes the contract of `outerloop_core::contract`.

use outerloop_core::tensor::{record, Cpu, ParamTree};
use outerloop_core::{
    contract::check_task, AnyDevice, BatchKey, Device, FlatTask, Key, Task, TaskFamily, Typed,
};
use outerloop_tasks::data::{digits, ImageData, Splits};
use outerloop_tasks::image::*;
use outerloop_tasks::quadratics::*;
use outerloop_tasks::regression::{RegressionConfig, RegressionTask};

/// Runs the contract on a task and names it on failure.
fn check<T>(make: impl Fn() -> T)
where
    T: Task<f32, Cpu> + Task<f64, Cpu> + AnyDevice<f32>,
{
    if let Err(e) = check_task(&Typed::new(make()), &Typed::new(make())) {
        panic!("{e}");
    }
    if let Some(device) = other_device() {
        let task = Typed::on(make(), device).unwrap_or_else(|e| panic!("{e}"));
        check_task(&*task, &Typed::new(make())).unwrap_or_else(|e| panic!("on {device}: {e}"));
    }
}

/// Where every task is checked beside the CPU, f32 there against f64 on the CPU: what `OUTERLOOP_DEVICE` says.
fn other_device() -> Option<Device> {
    let name = std::env::var("OUTERLOOP_DEVICE").ok()?;
    let device: Device = name.parse().unwrap_or_else(|e| panic!("OUTERLOOP_DEVICE: {e}"));
    (!device.is_cpu()).then_some(device)
}

/// With `--nocapture` it says where the tests of this file run.
#[test]
fn the_device_is_there_or_said_not_to_be() {
    match other_device() {
        Some(device) => {
            device.check_memory(1 << 20).unwrap_or_else(|e| panic!("{e}"));
            println!("tasks are checked on {device}, too");
        }
        None => println!("SKIPPED: tasks on a card, since OUTERLOOP_DEVICE names none (cuda:0, say)"),
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

/// A small MLP on the digits.
fn mlp(change: impl Fn(&mut MlpConfig)) -> MlpTask {
    let mut config = MlpConfig { hidden: vec![7, 5], batch_size: 16, ..MlpConfig::default() };
    change(&mut config);
    MlpTask::new(Splits::digits(), config).unwrap()
}

#[test]
fn image_mlps() {
    check(ImageMlp::digits);
    for norm in [Norm::None, Norm::Layer, Norm::Batch] {
        for nonlinearity in Nonlinearity::ALL {
            check(|| mlp(|c| (c.norm, c.nonlinearity) = (norm, nonlinearity)));
        }
        check(|| mlp(|c| (c.norm, c.loss) = (norm, ImageLoss::MeanSquaredError)));
    }
    check(|| mlp(|c| c.hidden = vec![]));
}

#[test]
fn image_mlp_family_members() {
    let mut family = ImageMlpFamily::new(Splits::digits());
    family.datasets.push(Splits::undivided(digits().resized(5, 4).unwrap()));
    let configs: Vec<_> = (0..200).map(|i| family.sample(Key::new(i))).collect();
    for (dataset, config) in &configs[..12] {
        check(|| family.task(&(*dataset, config.clone())));
    }
    assert_eq!(configs[3], family.sample(Key::new(3)));
    for (_, c) in &configs {
        assert!(c.hidden.len() <= 4 && c.hidden.iter().all(|w| (8..=128).contains(w) && *w == c.hidden[0]));
        assert!((4..=512).contains(&c.batch_size) && (0.5..=2.0).contains(&c.init_scale));
    }
    // Log-uniform: half of the batch sizes lie below sqrt(4 · 512) = 45; 4 standard errors of 200 draws.
    let small = configs.iter().filter(|(_, c)| c.batch_size <= 45).count() as f64;
    assert!((small - 100.0).abs() < 4.0 * 50f64.sqrt(), "{small}");
    for depth in 0..=4 {
        assert!(configs.iter().any(|(_, c)| c.hidden.len() == depth));
    }
}

fn conv(change: impl Fn(&mut ConvConfig)) -> ConvTask {
    let mut config = ConvConfig { channels: vec![3, 4], batch_size: 6, ..ConvConfig::default() };
    change(&mut config);
    ConvTask::new(Splits::digits(), config).unwrap()
}

#[test]
fn convolutions() {
    for pooling in [Pooling::Mean, Pooling::Max] {
        for nonlinearity in [Nonlinearity::Relu, Nonlinearity::Tanh, Nonlinearity::Gelu] {
            check(|| conv(|c| (c.pooling, c.nonlinearity) = (pooling, nonlinearity)));
        }
    }
    check(|| conv(|c| c.channels = vec![]));
    // Several channels, sides that the stride does not divide.
    let color = ImageData::new("color", vec![0.5; 20 * 5 * 7 * 3], vec![1; 20], [5, 7, 3], 4).unwrap();
    let task = ConvTask::new(
        Splits::new(color).unwrap(),
        ConvConfig { channels: vec![2], ..conv(|_| {}).config().clone() },
    );
    let task = task.unwrap();
    let shapes: Vec<_> = FlatTask::<f32>::layout(&Typed::new(task.clone()))
        .entries()
        .iter()
        .map(|e| e.shape.clone())
        .collect();
    assert_eq!(shapes, [vec![3, 3, 3, 2], vec![2], vec![2, 4], vec![4]]);
    check(|| task.clone());
    assert_eq!(Task::<f32, Cpu>::name(&conv(|c| c.pooling = Pooling::Max)), "digits_conv3x4_relu_max");
}

#[test]
fn regressions() {
    for hidden in [vec![], vec![6]] {
        let config = RegressionConfig { hidden, batch_size: 9, ..RegressionConfig::default() };
        check(|| RegressionTask::new(config.clone(), Key::new(0)).unwrap());
    }
}

#[test]
fn autoencoders() {
    let make = |hidden: &[usize], nonlinearity| {
        let config = AutoencoderConfig {
            hidden: hidden.to_vec(),
            nonlinearity,
            batch_size: 9,
            ..AutoencoderConfig::default()
        };
        AutoencoderTask::new(Splits::digits(), config).unwrap()
    };
    for nonlinearity in Nonlinearity::ALL {
        check(|| make(&[7, 3, 6], nonlinearity));
    }
    check(|| make(&[], Nonlinearity::Relu));
    let family = AutoencoderFamily::new(Splits::digits());
    let configs: Vec<_> = (0..200).map(|i| family.sample(Key::new(i))).collect();
    assert_eq!(configs[7], family.sample(Key::new(7)));
    for config in &configs[..6] {
        check(|| family.task(config));
    }
    for depth in 0..=4 {
        assert!(configs.iter().any(|(_, c)| c.hidden.len() == depth));
    }
    let empty = AutoencoderFamily { nonlinearities: vec![], ..family };
    assert!(empty.check().is_err());
}

#[test]
fn typed_and_run_time_shapes_are_the_same_task() {
    let (typed, dynamic) = (
        Typed::new(ImageMlp::digits()),
        Typed::new(MlpTask::new(Splits::digits(), MlpConfig::default()).unwrap()),
    );
    let (typed, dynamic): (&dyn FlatTask<f32>, &dyn FlatTask<f32>) = (&typed, &dynamic);
    assert_eq!(typed.name(), dynamic.name());
    assert_eq!(typed.layout(), dynamic.layout());
    let names: Vec<_> = typed.layout().entries().iter().map(|e| (e.name.clone(), e.shape.clone())).collect();
    let expected = [("w0", vec![64, 32]), ("b0", vec![32]), ("w1", vec![32, 10]), ("b1", vec![10])];
    assert_eq!(names, expected.map(|(n, s)| (n.to_string(), s)));
    let p = typed.init(Key::new(8)).data;
    assert_eq!(p, dynamic.init(Key::new(8)).data);
    let (mut a, mut b) = (vec![0.0; p.len()], vec![0.0; p.len()]);
    for step in [0, 9, 10] {
        let at = BatchKey::train(step, Key::new(1));
        let la = typed.evaluator().loss_and_grad(&p, &mut [], at, &mut a);
        let lb = dynamic.evaluator().loss_and_grad(&p, &mut [], at, &mut b);
        assert_eq!((la.to_bits(), &a), (lb.to_bits(), &b));
    }
}

#[test]
fn initial_weights_are_truncated_normals() {
    // Golden facts G: sigma = 1/sqrt(fan_in), cut at 2 sigma, std 0.8796 sigma, biases 0.
    let task = Typed::new(mlp(|c| (c.hidden, c.norm, c.init_scale) = (vec![500], Norm::Layer, 1.5)));
    let p = FlatTask::<f64>::init(&task, Key::new(0));
    let w = p.tensor("w0").unwrap();
    let sigma = 1.5 / 8.0;
    assert!(w.iter().all(|x| x.abs() <= 2.0 * sigma));
    let n = w.len() as f64;
    let (mean, square) = (w.iter().sum::<f64>() / n, w.iter().map(|x| x * x).sum::<f64>() / n);
    let std = 0.87962566 * sigma;
    assert!(mean.abs() < 4.0 * std / n.sqrt(), "{mean}");
    // Var(z²) of the cut normal is below 1: 4 standard errors are at most 4 sigma²/sqrt(n).
    assert!((square - std * std).abs() < 4.0 * sigma * sigma / n.sqrt(), "{}", square.sqrt());
    assert!(p.tensor("b0").unwrap().iter().all(|b| *b == 0.0));
    assert!(p.tensor("scale0").unwrap().iter().all(|s| *s == 1.0));
    assert!(p.tensor("offset0").unwrap().iter().all(|s| *s == 0.0));
}

#[test]
fn batch_norm_keeps_debiased_running_averages() {
    let task = mlp(|c| (c.norm, c.hidden) = (Norm::Batch, vec![3, 2]));
    let flat = Typed::new(task.clone());
    let flat: &dyn FlatTask<f64> = &flat;
    let p = flat.init(Key::new(0));
    let (mut state, mut grad) = (flat.init_state(), vec![0.0; p.data.len()]);
    let mut e = flat.evaluator();
    // The first layer's inputs do not depend on the norm: its statistics can be computed by hand.
    let (w, b) = (p.tensor("w0").unwrap(), p.tensor("b0").unwrap());
    let (mut sums, mut weight) = ([0.0; 6], 0.0);
    for step in 0..3 {
        let at = BatchKey::train(step, Key::new(1));
        let before = state.clone();
        let plain = e.loss(&p.data, &state, at);
        assert_eq!(before, state, "evaluation leaves the state alone");
        let loss = e.loss_and_grad(&p.data, &mut state, at, &mut grad);
        assert_eq!(plain, loss, "training and evaluation use the batch's own statistics");
        let rows: Vec<Vec<f64>> = task
            .data()
            .indices(at, 16)
            .iter()
            .map(|&i| {
                let x = task.data().data().image(i as usize);
                (0..3)
                    .map(|j| {
                        b[j] + x.iter().enumerate().map(|(k, x)| f64::from(*x) * w[k * 3 + j]).sum::<f64>()
                    })
                    .collect()
            })
            .collect();
        weight = 0.9 * weight + 0.1;
        for j in 0..3 {
            let mean = rows.iter().map(|r| r[j]).sum::<f64>() / 16.0;
            let var = rows.iter().map(|r| (r[j] - mean).powi(2)).sum::<f64>() / 16.0;
            sums[j] = 0.9 * sums[j] + 0.1 * mean;
            sums[3 + j] = 0.9 * sums[3 + j] + 0.1 * var;
        }
    }
    let averages = task.batch_norm_averages(&state);
    assert_eq!((averages.len(), averages[1].mean.len()), (2, 2));
    for j in 0..3 {
        assert!((averages[0].mean[j] - sums[j] / weight).abs() < 1e-12);
        assert!((averages[0].var[j] - sums[3 + j] / weight).abs() < 1e-12);
    }
    assert!(averages[1].var.iter().all(|v| *v > 0.0));
}

#[test]
fn configurations_that_cannot_work_are_refused() {
    let make = |config| MlpTask::new(Splits::digits(), config).map(drop).unwrap_err().to_string();
    assert_eq!(
        make(MlpConfig { batch_size: 0, ..MlpConfig::default() }),
        "batch size: must be at least 1, got 0"
    );
    assert!(make(MlpConfig { hidden: vec![3, 0], ..MlpConfig::default() }).contains("at least 1"));
    assert!(make(MlpConfig { init_scale: f64::NAN, ..MlpConfig::default() }).contains("init_scale"));
    let wrong = ImageMlp::<63, 4, 10>::new(Splits::digits(), 8, outerloop_core::ops::Activation::Tanh);
    assert_eq!(
        wrong.unwrap_err().to_string(),
        "image mlp: features and classes: expected [63, 10], got [64, 10]"
    );
}

#[test]
fn evaluations_with_kept_buffers_repeat_to_the_bit() {
    let config = ConvConfig { channels: vec![4, 8], batch_size: 64, ..ConvConfig::default() };
    let task = Typed::new(ConvTask::new(Splits::digits(), config).unwrap());
    let task: &dyn FlatTask<f32> = &task;
    let params = task.init(Key::new(0)).data;
    let n = params.len();
    let (mut v, mut grad, mut hvp) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    Key::new(1).fill_normal(&mut v);
    let mut kept = task.evaluator();
    let mut first: Vec<Vec<u32>> = Vec::new();
    // The buffers are given back every now and then.
    for call in 0..60u64 {
        let at = BatchKey::train(call % 2, Key::new(2));
        kept.loss_grad_hvp(&params, &[], at, &v, &mut grad, &mut hvp);
        let got: Vec<u32> = grad.iter().chain(&hvp).map(|x| x.to_bits()).collect();
        kept.loss_and_grad(&params, &mut [], at, &mut grad);
        assert!(grad.iter().zip(&got).all(|(g, bits)| g.to_bits() == *bits), "call {call}");
        match first.get((call % 2) as usize) {
            Some(want) => assert_eq!(got, *want, "call {call}"),
            None => first.push(got),
        }
    }
    assert_ne!(first[0], first[1]);
}
