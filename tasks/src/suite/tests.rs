use super::*;
use crate::augment::ReparamLevel;
use crate::image::Nonlinearity;
use outerloop_core::{BatchKey, FlatFamily, FlatTask, Key};
use std::collections::BTreeSet;

fn samples(mixture: &Training, n: u64) -> Vec<TaskConfig> {
    (0..n).map(|i| mixture.sample(Key::new(17).fold_in(i))).collect()
}

#[test]
fn training_never_samples_what_is_held_out() {
    // Also where nearly everything that is drawn is held out.
    let narrow = Training {
        width: [23, 41],
        nonlinearities: vec![Nonlinearity::Tanh, Nonlinearity::Relu],
        ..training()
    };
    let deep = Training { layers: [0, 5], autoencoder_layers: [0, 5], reparam_spread: 100.0, ..training() };
    let noisy = Training { gradient_noise: 10.0, noise_fraction: 1.0, dimension: [19, 61], ..training() };
    for mixture in [training(), narrow, deep, noisy] {
        mixture.check().unwrap();
        for config in samples(&mixture, 2000) {
            assert!(!is_held_out(&config), "{config:?}");
        }
    }
}

#[test]
fn every_task_of_the_suite_is_held_out_and_runs() {
    let tasks: Vec<HeldOutTask> = held_out().into_iter().chain(foreign()).collect();
    let names: BTreeSet<_> = tasks.iter().map(|t| t.name.clone()).collect();
    assert_eq!(names.len(), tasks.len());
    for t in &tasks {
        assert!(is_held_out(&t.config), "{}", t.name);
        let task = t.task::<f32>().unwrap();
        let params = task.init(evaluation_key(0)).data;
        let mut grad = vec![f32::NAN; params.len()];
        let at = BatchKey::train(0, evaluation_key(0).named("data"));
        let loss = task.evaluator().loss_and_grad(&params, &mut task.init_state(), at, &mut grad);
        assert!(loss > 0.0 && grad.iter().all(|g| g.is_finite()), "{}", t.name);
        assert!(grad.iter().any(|g| *g != 0.0), "{}", t.name);
    }
}

/// One reason each, next to a neighbour that is not held out.
#[test]
fn each_region_is_held_out_for_its_own_reason() {
    let mlp = |hidden: &[usize], nonlinearity| {
        let hidden = hidden.to_vec();
        TaskConfig::from(Problem::Mlp(crate::image::MlpConfig { hidden, nonlinearity, ..Default::default() }))
    };
    let autoencoder = |hidden: &[usize]| {
        let hidden = hidden.to_vec();
        TaskConfig::from(Problem::Autoencoder(crate::image::AutoencoderConfig {
            hidden,
            ..Default::default()
        }))
    };
    let quadratic =
        |dim| TaskConfig::from(Problem::Quadratic(QuadraticConfig { dim, condition: 1.0, noise: 0.0 }));
    let reparam = |spread| TaskConfig {
        reparam: Some(Reparam { level: ReparamLevel::Tensor, spread }),
        ..mlp(&[64], Nonlinearity::Relu)
    };
    let noisy = |gradient_noise| TaskConfig { gradient_noise, ..mlp(&[64], Nonlinearity::Relu) };
    use Nonlinearity::{Gelu, Relu, Tanh};
    let conv = TaskConfig::from(Problem::Conv(Default::default()));
    let out = [
        mlp(&[64], Tanh),
        mlp(&[64], Gelu),
        mlp(&[64, 64, 64], Relu),
        mlp(&[24], Relu),
        mlp(&[64, 40], Relu),
        autoencoder(&[12]),
        autoencoder(&[64, 8]),
        autoencoder(&[64, 16, 64]),
        quadratic(20),
        quadratic(60),
        reparam(10.0),
        noisy(1.0),
        conv,
    ];
    let inside = [
        mlp(&[], Relu),
        mlp(&[23], Relu),
        mlp(&[41, 128], Relu),
        mlp(&[8; 4], Relu),
        autoencoder(&[]),
        autoencoder(&[13]),
        autoencoder(&[7, 12]),
        quadratic(19),
        quadratic(61),
        reparam(9.9),
        noisy(0.99),
    ];
    out.iter().for_each(|c| assert!(is_held_out(c), "{c:?}"));
    inside.iter().for_each(|c| assert!(!is_held_out(c), "{c:?}"));
}

#[test]
fn the_mixture_has_its_weights() {
    let n = 2000.0;
    let fraction =
        |all: &[TaskConfig], f: &dyn Fn(&TaskConfig) -> bool| all.iter().filter(|c| f(c)).count() as f64 / n;
    let near = |got: f64, want: f64| {
        let four_sigma = 4.0 * (want * (1.0 - want) / n).sqrt();
        assert!((got - want).abs() <= four_sigma, "{got}, expected {want}");
    };
    let all = samples(&training(), 2000);
    near(fraction(&all, &|c| matches!(c.problem, Problem::Mlp(_))), 0.75);
    near(fraction(&all, &|c| matches!(c.problem, Problem::Autoencoder(_))), 0.15);
    near(fraction(&all, &|c| matches!(c.problem, Problem::Quadratic(_))), 0.1);
    near(fraction(&all, &|c| c.reparam.is_some()), 0.3);
    near(fraction(&all, &|c| c.gradient_noise > 0.0), 0.1);
    let squared = samples(
        &Training {
            squared_error_fraction: 0.3,
            mlp_weight: 1.0,
            autoencoder_weight: 0.0,
            quadratic_weight: 0.0,
            ..training()
        },
        2000,
    );
    near(
        fraction(
            &squared,
            &|c| matches!(&c.problem, Problem::Mlp(m) if m.loss == crate::image::ImageLoss::MeanSquaredError),
        ),
        0.3,
    );
    let only = Training { mlp_weight: 0.0, quadratic_weight: 0.0, ..training() };
    near(fraction(&samples(&only, 2000), &|c| matches!(c.problem, Problem::Autoencoder(_))), 1.0);
}

#[test]
fn a_mixture_that_leaves_nothing_is_refused() {
    let message = |t: Training| t.check().unwrap_err().to_string();
    let tanh = Training { nonlinearities: vec![Nonlinearity::Tanh], ..training() };
    assert!(message(tanh).contains("Mlp: all of it is held out"));
    let quadratics = Training { dimension: [20, 60], ..training() };
    assert!(message(quadratics.clone()).contains("Quadratic"));
    Training { quadratic_weight: 0.0, ..quadratics }.check().unwrap();
    assert!(message(Training { width: [9, 8], ..training() }).contains("width"));
    let none = Training { mlp_weight: 0.0, autoencoder_weight: 0.0, quadratic_weight: 0.0, ..training() };
    assert!(message(none).contains("weights"));
}

#[test]
fn a_sampled_task_is_a_pure_function_of_its_key() {
    let sample = |seed| FlatFamily::<f32>::sample_task(&training(), Key::new(seed));
    for seed in 0..20 {
        let (a, b) = (sample(seed), sample(seed));
        let params = a.init(Key::new(3)).data;
        assert_eq!((a.name(), &params), (b.name(), &b.init(Key::new(3)).data));
        let at = BatchKey::train(1, Key::new(4));
        let loss = |t: &dyn FlatTask| t.evaluator().loss(&params, &t.init_state(), at).to_bits();
        assert_eq!(loss(&*a), loss(&*b));
    }
}

#[test]
fn tables_regressions_and_scarce_tasks_come_as_often_as_said_and_run() {
    let mixture = Training {
        mlp_weight: 0.3,
        autoencoder_weight: 0.0,
        quadratic_weight: 0.0,
        chain_weight: 0.1,
        table_weight: 0.3,
        border_weight: 0.1,
        regression_weight: 0.2,
        scarce_fraction: 0.5,
        resplit_fraction: 1.0,
        ..training()
    };
    mixture.check().unwrap();
    let all = samples(&mixture, 1000);
    let count = |f: &dyn Fn(&TaskConfig) -> bool| all.iter().filter(|c| f(c)).count();
    // Four standard deviations of 400 of 1000 are 62.
    let tables = count(&|c| matches!(c.problem, Problem::Table { .. }));
    let regressions = count(&|c| matches!(c.problem, Problem::Regression(_)));
    let scarce = count(&|c| c.scarce.is_some());
    assert!((338..462).contains(&tables) && (149..251).contains(&regressions), "{tables} {regressions}");
    let chains = count(&|c| matches!(c.problem, Problem::Chain { .. }));
    assert!((105..196).contains(&scarce) && (62..138).contains(&chains), "{scarce} {chains}");
    assert!(all.iter().all(|c| c.resplit == matches!(c.problem, Problem::Mlp(_))));
    for (i, config) in all.iter().take(12).enumerate() {
        let task = config.task::<f32>(Key::new(i as u64)).unwrap();
        let params = task.init(Key::new(1)).data;
        let at = BatchKey::train(0, Key::new(2));
        let loss = task.evaluator().loss(&params, &task.init_state(), at);
        assert!(loss.is_finite() && loss > 0.0, "{config:?}: {loss}");
    }
    for bad in [
        Training { label_noise: 1.5, ..training() },
        Training { scarce_fraction: -0.1, ..training() },
        Training { rows: [0, 4], ..training() },
        Training { border_weight: -0.1, ..training() },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
