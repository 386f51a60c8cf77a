use super::elbo::{elbo, Likelihood};
use super::iterative::{Encoding, Flow, Iterative, Share};
use super::update::UpdateNet;
use super::vae::{importance_weighted, IterativeTask, Pixels, Vae};
use crate::model::Full;
use crate::net::{Act, Init, Mlp};
use crate::problem::{ContextTask, Problem, Rows};
use crate::task::{AmortizedTask, Training};
use crate::train::{task_learner, train_task};
use outerloop_core::contract::check_task;
use outerloop_core::tensor::{host_data, Cpu, TensorFromVec};
use outerloop_core::{BatchKey, Key, Typed};
use outerloop_lopt::hand::Adam;
use outerloop_outer::Workers;
use outerloop_tasks::data::digits;
use std::sync::Arc;

fn rows(data: Vec<f64>, cols: usize) -> Rows<f64, Cpu> {
    let n = data.len() / cols;
    Cpu::default().tensor_from_vec(data, (n, cols))
}

#[test]
fn discretized_logistic_masses_sum_to_one() {
    for (o, log_scale) in [(0.3, -2.0), (0.98, -4.0), (0.5, 0.5), (-0.4, -1.0)] {
        let x = rows((0..256).map(|i| f64::from(i) / 255.0).collect(), 1);
        let d = Likelihood::DiscretizedLogistic(log_scale).log_density(&x, rows(vec![o; 256], 1));
        let mass: f64 = host_data(&d).iter().map(|d| d.exp()).sum();
        assert!((mass - 1.0).abs() < 1e-10, "{o} {log_scale}: {mass}");
    }
}

#[test]
fn likelihoods_are_finite_at_the_ends() {
    let x = rows(vec![0.0, 1.0, 0.0, 1.0], 4);
    for o in [-800.0, 0.0, 800.0] {
        for l in [Likelihood::Bernoulli, Likelihood::Gaussian(-1.0), Likelihood::DiscretizedLogistic(-3.0)] {
            let d = host_data(&l.log_density(&x, rows(vec![o; 4], 4)))[0];
            assert!(d.is_finite(), "{l:?} at {o}: {d}");
        }
    }
}

#[test]
fn a_learned_variance_is_that_of_a_gaussian() {
    let x = rows(vec![0.3, -1.2, 0.5, 2.0], 2);
    let (o, v) = ([0.1, -0.7, 1.5, 2.5], [-0.4, 0.8, 25.0, -25.0]);
    let outputs = rows(vec![o[0], o[1], v[0], v[1], o[2], o[3], v[2], v[3]], 4);
    let likelihood = Likelihood::LearnedGaussian;
    let got = host_data(&likelihood.log_density(&x, outputs.clone())).to_vec();
    let by_hand = |i: usize| {
        let (x, v): (f64, f64) = ([0.3, -1.2, 0.5, 2.0][i], v[i].clamp(-10.0, 10.0));
        -0.5 * ((2.0 * std::f64::consts::PI).ln() + v + (x - o[i]).powi(2) * (-v).exp())
    };
    assert!((got[0] - by_hand(0) - by_hand(1)).abs() < 1e-12);
    assert!((got[1] - by_hand(2) - by_hand(3)).abs() < 1e-9 * got[1].abs());
    assert_eq!(host_data(&likelihood.mean(outputs)).to_vec(), o);
    assert_eq!((likelihood.outputs(3), Likelihood::Bernoulli.outputs(3)), (6, 3));
}

#[test]
fn pictures_are_decoded_at_the_posteriors_means() {
    let vae = small();
    let mut own = vec![0.0; vae.own_layout().len()];
    vae.own_init(Key::new(1), &mut own);
    let own: Vec<f32> = own.iter().map(|x| *x as f32).collect();
    let lambda: Vec<f32> = (0..16).map(|i| 0.1 * i as f32).collect();
    let z = [&lambda[..4], &lambda[8..12]].concat();
    let pixels = vae.reconstructed(&own, &lambda);
    assert_eq!(pixels, vae.decoded(&own, &z));
    assert_eq!((pixels.len(), vae.shape()), (128, [8, 8, 1]));
    assert!(pixels.iter().all(|p| (0.0..=1.0).contains(p)));
    let drawn = vae.samples(&own, 3, Key::new(2));
    assert!(drawn.len() == 192 && drawn != vae.samples(&own, 3, Key::new(3)));
}

fn small() -> Vae {
    let decoder = Mlp { widths: vec![4, 24, 64], act: Act::Elu, init: Init::Glorot };
    Vae::new(&digits(), 1500, decoder).expect("digits")
}

#[test]
fn a_vae_is_a_problem_and_its_encoder_a_task() {
    let vae = Vae { beta: 1.5, free_nats: 0.1, samples: 2, ..small() };
    let training = Training { batch_size: 3, ..Training::default() };
    let model = Full { hidden: vec![6], act: Act::Tanh, ..Full::default() };
    let task = AmortizedTask::new(vae, model, training).expect("valid settings");
    check_task(&Typed::new(task.clone()), &Typed::new(task)).unwrap_or_else(|e| panic!("{e}"));
    assert!(Vae::new(&digits(), 0, Mlp::new([4, 64])).is_err());
    assert!(Vae::new(&digits(), 9, Mlp::new([4, 63])).is_err());
}

#[test]
fn beta_and_free_nats_have_their_meaning() {
    let vae = Vae { samples: 3, ..small() };
    let mut own = vec![0.0; vae.own_layout().len()];
    vae.own_init(Key::new(1), &mut own);
    let mut x = vec![0.0; 2 * 64];
    vae.contexts(BatchKey::train(0, Key::new(2)), &mut x);
    let mut y = vec![0.0f64; 2 * 8];
    Key::new(3).fill_normal(&mut y);
    let value = |problem: Vae| {
        let task = ContextTask { problem, contexts: x.clone(), own: own.clone(), start: Vec::new() };
        task.values(&y, Key::new(4))
    };
    let plain = value(vae.clone());
    let doubled = value(Vae { beta: 2.0, ..vae.clone() });
    let free = value(Vae { free_nats: 1e3, ..vae.clone() });
    for i in 0..2 {
        let row = &y[8 * i..][..8];
        let kl: f64 = (0..4).map(|k| 0.5 * (row[k].powi(2) + row[4 + k].exp() - 1.0 - row[4 + k])).sum();
        assert!((doubled[i] - plain[i] - kl).abs() < 1e-10);
        assert!((free[i] - plain[i] + kl - 4e3).abs() < 1e-9);
    }
}

#[test]
fn more_samples_tighten_the_bound() {
    let vae = small();
    let mut own = vec![0.0; vae.own_layout().len()];
    vae.own_init(Key::new(1), &mut own);
    let x = vae.test_set(1);
    let lambda = vec![0.3; 8 * x.len() / 64];
    let bound = |k| importance_weighted(&vae, &own, &x, &lambda, k, Key::new(2));
    let (one, five, fifty) = (bound(1), bound(5), bound(50));
    assert!(one < five && five < fifty, "{one} {five} {fifty}");
    // At one sample its mean is the bound itself.
    let eps = rows(
        {
            let mut e = vec![0.0; x.len() / 64 * 4];
            Key::new(5).fill_normal(&mut e);
            e
        },
        4,
    );
    let params = outerloop_core::tensor::DynTree::new(&Cpu::default(), Arc::new(vae.own_layout()), &own);
    let decode = |z| vae.decoder.forward(&params, 0, z);
    let direct = elbo(&rows(x.clone(), 64), &rows(lambda.clone(), 8), &eps, decode, |x, o| {
        vae.likelihood.log_density(x, o)
    });
    assert!((host_data(&direct.mean())[0] - one).abs() < 0.5);
}

#[test]
fn iterations_improve_the_bound_on_unseen_digits() {
    for (encoding, flow) in [(Encoding::Gradient, Flow::Horizon1), (Encoding::Error, Flow::Full)] {
        let net = UpdateNet::new(0, 24, 4);
        let vae = Vae { pixels: Pixels::Binarized, ..small() };
        let inference =
            Iterative { net, encoding, share: Share::PerExample, flow, likelihood: vae.likelihood };
        let task = IterativeTask::new(vae.clone(), inference, 3, 32);
        let flat = Arc::new(Typed::new(task.clone()));
        let opt = Box::new(Adam { epsilon_root: 0.0, ..Adam::new(3e-3) });
        let learner = task_learner(flat, opt, 250, 1).expect("valid settings");
        let state = train_task(&learner, Key::new(1), &Workers::new(1).expect("a thread"), |_, _| ());
        let theta = state.expect("a run").theta.params;
        let bounds = task.bounds(&theta, &vae.test_set(1), 6, Key::new(3));
        assert!(bounds[3] > bounds[0] + 1.0, "{encoding:?}: {bounds:?}");
        assert!(bounds[6] > bounds[3] - 0.5, "twice as many iterations diverge: {bounds:?}");
        assert_eq!(task.own(&theta).len(), vae.own_layout().len());
        let inferred = task.infer(&theta, &vae.test_set(1), 1, Key::new(3));
        assert!(
            inferred[0].lambda.iter().all(|l| *l == 0.0)
                && inferred[1].lambda[..8] != inferred[0].lambda[..8]
        );
        assert_eq!(inferred[1].bounds.len(), vae.len()[1]);
    }
}
