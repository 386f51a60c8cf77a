use super::*;
use crate::quadrature::erf;
use outerloop_core::ops;
use outerloop_core::tensor::{
    host_data, record, Cpu, ParamTree, PutTape, Rank2, Recorded, TensorFrom, TensorFromVec,
};

const THETA: [f64; 4] = [0.3, -0.2, 0.5, 0.1];

fn softmax(theta: &[f64], sigma: f64) -> Vec<f64> {
    let e: Vec<f64> = theta.iter().map(|t| (t / sigma).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.iter().map(|e| e / sum).collect()
}

/// The mean of `n` estimates agrees with the truth within 4 standard errors of each component, which are not 0.
fn agrees(n: u64, truth: &[f64], estimate: impl Fn(Key) -> Vec<f64>) {
    let (mut sum, mut square) = (vec![0.0; truth.len()], vec![0.0; truth.len()]);
    for i in 0..n {
        for (j, x) in estimate(Key::new(7).fold_in(i)).into_iter().enumerate() {
            sum[j] += x;
            square[j] += x * x;
        }
    }
    for (j, t) in truth.iter().enumerate() {
        let mean = sum[j] / n as f64;
        let error = ((square[j] / n as f64 - mean * mean) / n as f64).sqrt();
        assert!(error > 0.0 && (mean - t).abs() < 4.0 * error, "{j}: {mean}, not {t}, error {error}");
    }
}

#[test]
fn gumbel_argmax_is_softmax_with_its_jacobian() {
    let sigma = 0.5;
    let p = softmax(&THETA, sigma);
    let v = [1.0, -2.0, 0.5, 3.0];
    let pv: f64 = dot(&p, &v);
    // Jᵀv = (p ⊙ v − p (p·v))/σ
    let jv: Vec<f64> = p.iter().zip(v).map(|(p, v)| p * (v - pv) / sigma).collect();
    for variance in [Variance::None, Variance::Baseline, Variance::LeaveOneOut] {
        let settings = Perturbed { noise: Noise::Gumbel, sigma, samples: 8, variance, ..Default::default() };
        let draw = |key| settings.draw(&THETA, &settings.noise(4, key), &oracle::argmax());
        agrees(4000, &p, |key| draw(key).mean());
        agrees(4000, &jv, |key| draw(key).vjp(&v));
        let log_sum = sigma * THETA.iter().map(|t| (t / sigma).exp()).sum::<f64>().ln();
        agrees(4000, &[log_sum + sigma * 0.577_215_664_901_532_9], |key| vec![draw(key).max()]);
    }
}

#[test]
fn normal_noise_of_two_classes_is_the_error_function() {
    let (theta, s) = ([0.4, 0.1], 0.3);
    let p = 0.5 * (1.0 + erf(0.3 / (s * 2f64.sqrt()) / 2f64.sqrt()));
    for variance in [Variance::None, Variance::Antithetic] {
        let settings = Perturbed { sigma: s, samples: 6, variance, ..Default::default() };
        let draw = |key| settings.draw(&theta, &settings.noise(2, key), &oracle::argmax());
        agrees(4000, &[p, 1.0 - p], |key| draw(key).mean());
    }
    // Multiplicative: P = Φ((ln θ₁ − ln θ₂)/(ε√2)); the mean of the identity is θ, its Jacobian 1.
    let settings = Perturbed { sigma: s, samples: 6, kind: Kind::Multiplicative, ..Default::default() };
    let p = 0.5 * (1.0 + erf(4f64.ln() / (s * 2f64.sqrt()) / 2f64.sqrt()));
    let draw = |key, o: &Oracle| settings.draw(&theta, &settings.noise(2, key), o);
    agrees(6000, &[p], |key| vec![draw(key, &oracle::argmax()).mean()[0]]);
    let identity: Oracle = std::sync::Arc::new(<[f64]>::to_vec);
    agrees(4000, &theta, |key| draw(key, &identity).mean());
    agrees(8000, &[1.0, 0.0], |key| draw(key, &identity).vjp(&[1.0, 0.0]));
}

#[test]
fn operations_use_the_same_noise_forward_and_backward() {
    let dev = Cpu::default();
    let theta: Tensor<Rank2<2, 4>, f64, Cpu> = dev.tensor([THETA, [1.0, 0.0, -1.0, 0.2]]);
    let settings = Perturbed { samples: 50, sigma: 0.4, ..Default::default() };
    let (key, oracle) = (Key::new(3), oracle::ranking());
    let rows = |m| ops::reshape(theta.clone().put_tape(m), (2usize, 4usize));
    let weights = dev.normal_like((2usize, 4usize), Key::new(1));
    let w = host_data(&weights).to_vec();
    let out = record(&theta.ids(), |m| ops::sum(ops::mul(settings.output(rows(m), &oracle, key), &weights)));
    let max = record(&theta.ids(), |m| ops::sum(settings.max(rows(m), &oracle, key)));
    let target = dev.tensor_from_vec(vec![3.0, 2.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0], (2usize, 4usize));
    let young = record(&theta.ids(), |m| settings.fenchel_young(rows(m), &target, &oracle, key));
    let grad = |r: &Recorded<f64, Cpu>| r.grads.get(&theta).as_vec();
    for (i, t) in [THETA, [1.0, 0.0, -1.0, 0.2]].iter().enumerate() {
        let draws = settings.draw(t, &settings.noise(4, key.fold_in(i as u64)), &oracle);
        assert_eq!(grad(&out)[4 * i..][..4], draws.vjp(&w[4 * i..][..4]));
        assert_eq!(grad(&max)[4 * i..][..4], draws.mean());
        for j in 0..4 {
            let want = (draws.mean()[j] - host_data(&target)[4 * i + j]) / 2.0;
            assert!((grad(&young)[4 * i + j] - want).abs() < 1e-14);
        }
    }
    // The maximum is convex in θ: its slope along the gradient is that of differences with common noise.
    let at = |h: f64| {
        let moved: Vec<f64> = theta.as_vec().iter().zip(&w).map(|(t, w)| t + h * w).collect();
        let rows = dev.tensor_from_vec(moved, (2usize, 4usize));
        host_data(&settings.max(rows, &oracle, key)).iter().sum::<f64>()
    };
    let slope: f64 = grad(&max).iter().zip(&w).map(|(g, w)| g * w).sum();
    assert!((at(1e-7) - at(-1e-7) - 2e-7 * slope).abs() < 1e-13);
}

#[test]
fn oracles_answer() {
    assert_eq!(oracle::argmax()(&[1.0, 3.0, 3.0]), [0.0, 1.0, 0.0]);
    assert_eq!(oracle::top(2)(&[1.0, 3.0, 2.0]), [0.0, 1.0, 1.0]);
    assert_eq!(oracle::ranking()(&[0.5, -1.0, 2.0]), [1.0, 0.0, 2.0]);
    let costs = [1.0, 9.0, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0, 1.0].map(|c: f64| -c);
    // Down, then diagonally.
    assert_eq!(oracle::shortest_path(3, 3)(&costs), [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0]);
    assert_eq!(oracle::function(|x| x[0] * x[1])(&[2.0, 3.0]), [6.0]);
}

#[test]
fn settings_out_of_range_are_refused() {
    let bad = |p: Perturbed| p.validate().expect_err("refused").to_string();
    assert!(bad(Perturbed { sigma: 0.0, ..Default::default() }).contains("sigma"));
    assert!(bad(Perturbed { samples: 0, ..Default::default() }).contains("samples"));
    let gumbel = Perturbed { noise: Noise::Gumbel, ..Default::default() };
    assert!(bad(Perturbed { kind: Kind::Multiplicative, ..gumbel }).contains("normal"));
    assert!(bad(Perturbed { variance: Variance::Antithetic, ..gumbel }).contains("pairs"));
    assert!(
        bad(Perturbed { variance: Variance::LeaveOneOut, samples: 1, ..Default::default() }).contains("2")
    );
}
