//! The fused kernel against the same network differentiated operation by operation in f64.

use outerloop_core::{tensor::Cpu, Split};
use outerloop_core::{BatchKey, FlatTask, Key, Task, Typed};
use outerloop_tasks::data::Splits;
use outerloop_tasks::image::{
    AutoencoderConfig, AutoencoderTask, ImageLoss, ImageMlp, MlpConfig, MlpTask, Nonlinearity,
};

/// Largest difference relative to the largest number.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let size = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(gap.is_finite());
    if gap == 0.0 {
        0.0
    } else {
        gap / size
    }
}

fn check<T: Task<f32, Cpu> + Task<f64, Cpu>>(make: impl Fn() -> T) {
    let (fused, twin) = (Typed::new(make()), Typed::new(make()));
    let name = FlatTask::<f32>::name(&fused);
    assert!(Task::<f32, Cpu>::evaluator(&make()).is_some(), "{name} is fused");
    assert!(Task::<f64, Cpu>::evaluator(&make()).is_none(), "{name} has a twin");
    let mut evaluator = FlatTask::<f32>::evaluator(&fused);
    let mut reference = FlatTask::<f64>::evaluator(&twin);
    let start = FlatTask::<f32>::init(&fused, Key::new(1)).data;
    let n = start.len();
    for seed in 0..3 {
        // Biases are 0 at the start.
        let mut noise = vec![0.0f32; n];
        Key::new(seed).fill_normal(&mut noise);
        let params: Vec<f32> = start.iter().zip(&noise).map(|(p, z)| p + 0.1 * z).collect();
        let v: Vec<f32> = noise.iter().rev().copied().collect();
        let f64s = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
        let at = BatchKey { split: Split::Train, step: seed, key: Key::new(5) };
        let (mut grad, mut hvp) = (vec![1.0; n], vec![1.0; n]);
        let (mut grad64, mut hvp64) = (vec![0.0; n], vec![0.0; n]);
        let want = reference.loss_grad_hvp(&f64s(&params), &[], at, &f64s(&v), &mut grad64, &mut hvp64);
        let loss = evaluator.loss(&params, &[], at);
        assert!((f64::from(loss) - want).abs() < 2e-6 * want.abs().max(1.0), "{name}: {loss} != {want}");
        // The same work in the same order: equal to the bit.
        assert_eq!(evaluator.loss_and_grad(&params, &mut [], at, &mut grad), loss, "{name}");
        assert!(distance(&grad, &grad64) < 1e-5, "{name}: gradient off by {}", distance(&grad, &grad64));
        let again = grad.clone();
        assert_eq!(evaluator.loss_grad_hvp(&params, &[], at, &v, &mut grad, &mut hvp), loss, "{name}");
        assert_eq!(grad, again, "{name}");
        assert!(distance(&hvp, &hvp64) < 3e-5, "{name}: H v off by {}", distance(&hvp, &hvp64));
    }
}

#[test]
fn the_typed_mlp() {
    check(ImageMlp::digits);
}

#[test]
fn mlps_of_all_nonlinearities_and_shapes() {
    for (i, nonlinearity) in Nonlinearity::ALL.into_iter().enumerate() {
        // Widths around the vector length, batches that are no multiple of a block.
        let hidden = [vec![], vec![1], vec![33], vec![8, 17], vec![16, 40, 5]][i % 5].clone();
        let batch_size = [1, 7, 31, 32, 100][(i + i / 5) % 5];
        for loss in [ImageLoss::CrossEntropy, ImageLoss::MeanSquaredError] {
            let config = MlpConfig {
                hidden: hidden.clone(),
                nonlinearity,
                loss,
                batch_size,
                init_scale: 1.3,
                ..MlpConfig::default()
            };
            check(|| MlpTask::new(Splits::digits(), config.clone()).unwrap());
        }
    }
}

#[test]
fn autoencoders() {
    for (hidden, nonlinearity, batch_size) in [
        (vec![32, 8, 32], Nonlinearity::Relu, 128),
        (vec![3], Nonlinearity::Gelu, 9),
        (vec![], Nonlinearity::Tanh, 40),
    ] {
        let config = AutoencoderConfig { hidden, nonlinearity, batch_size, init_scale: 1.0 };
        check(|| AutoencoderTask::new(Splits::digits(), config.clone()).unwrap());
    }
}
