//! End to end on a model whose posterior is known: simulate, train, sample, calibrate.

use super::sample::{Sampler, Smc};
use super::simulators::{GaussianLinear, Slcp};
use super::train::{train, Stop, TrainConfig};
use super::*;
use outerloop_core::contract::check_task;
use outerloop_core::{FlatTask, Key, Typed};
use outerloop_lopt::hand::{Adam, Cosine};
use outerloop_outer::Workers;
use std::sync::Arc;

/// SLCP that fails for a tenth of its draws, or another share.
pub(super) struct Fails(Slcp, f64);

impl Default for Fails {
    fn default() -> Self {
        Fails(Slcp::seed(), 0.1)
    }
}

impl Simulator for Fails {
    fn name(&self) -> String {
        "fails".into()
    }
    fn prior(&self) -> &dyn Prior {
        self.0.prior()
    }
    fn data_dim(&self) -> usize {
        8
    }
    fn simulate(&self, theta: &[f64], key: Key, x: &mut [f64]) {
        self.0.simulate(theta, key, x);
        if key.named("fails").uniform() < self.1 {
            x[3] = f64::NAN;
        }
    }
}

/// Pairs of a linear Gaussian model in two dimensions.
fn task(loss: RatioLoss, pairs: Pairs, contrast: Contrast, simulations: &Simulations) -> RatioTask {
    let features = Features::fit(simulations, FeatureConfig::default()).unwrap();
    let architecture = Architecture::Mlp { hidden: vec![32, 32] };
    let net = RatioNet::new(architecture, Nonlinearity::Silu, features.inputs()).unwrap();
    let config = RatioTaskConfig { net, loss, features, pairs, contrast, batch_size: 128 };
    RatioTask::new(config).unwrap()
}

fn gaussian(n: usize) -> (GaussianLinear, Arc<Simulations>) {
    let g = GaussianLinear::new(2).unwrap();
    let s = Simulations::draw(&g, n, Key::new(1), Invalid::Refuse, &Workers::new(1).unwrap()).unwrap();
    (g, Arc::new(s))
}

fn prior(g: &GaussianLinear) -> NormalPrior {
    let (mean, std) = (vec![0.0; 2], vec![0.1f64.sqrt(); 2]);
    let prior = NormalPrior::new(mean, std).unwrap();
    assert_eq!(prior.log_density(&[0.1, 0.2]), g.prior().log_density(&[0.1, 0.2]));
    prior
}

#[test]
fn every_loss_on_every_kind_of_pairs_is_a_task() {
    let (g, simulations) = gaussian(1300);
    let fixed = || Pairs::Fixed { simulations: simulations.clone(), valid: 0.1 };
    let fresh = || Pairs::Fresh(Arc::new(GaussianLinear::new(2).unwrap()));
    let from_prior = || Contrast::Prior(Arc::new(prior(&g)));
    for (loss, pairs, contrast) in [
        (RatioLoss::NreA, fixed(), from_prior()),
        (RatioLoss::NreA, fresh(), from_prior()),
        (RatioLoss::NreB { atoms: 5 }, fixed(), Contrast::Shuffle),
        (RatioLoss::NreC { classes: 3, gamma: 2.0 }, fixed(), from_prior()),
        (RatioLoss::Balanced { lambda: 10.0 }, fixed(), Contrast::Shuffle),
        (RatioLoss::NreA, fresh(), Contrast::Batch),
        (RatioLoss::NreC { classes: 3, gamma: 2.0 }, fixed(), Contrast::Batch),
    ] {
        let t = || Typed::new(task(loss, pairs.clone(), contrast.clone(), &simulations));
        check_task(&t(), &t()).expect("the contract");
    }
}

#[test]
fn parts_that_do_not_fit_are_refused() {
    let (_, simulations) = gaussian(1000);
    let features = Features::fit(&simulations, FeatureConfig::default()).unwrap();
    let net =
        |inputs| RatioNet::new(Architecture::Mlp { hidden: vec![4] }, Nonlinearity::Selu, inputs).unwrap();
    let config = RatioTaskConfig {
        net: net([2, 2]),
        loss: RatioLoss::NreA,
        features,
        pairs: Pairs::Fixed { simulations: simulations.clone(), valid: 0.1 },
        contrast: Contrast::Shuffle,
        batch_size: 64,
    };
    let error = |config| RatioTask::new(config).err().unwrap().to_string();
    let text = error(RatioTaskConfig { batch_size: 101, ..config.clone() });
    assert!(text.contains("expected 1 to 100 (900 simulations to train on, 100 for validation)"), "{text}");
    let text = error(RatioTaskConfig { net: net([2, 3]), ..config.clone() });
    assert!(text.contains("expected [2, 2], got [2, 3]"), "{text}");
    let text = error(RatioTaskConfig { loss: RatioLoss::NreB { atoms: 1 }, ..config.clone() });
    assert!(text.contains("atoms"), "{text}");
    let text = error(RatioTaskConfig { pairs: Pairs::Fresh(Arc::new(Slcp::seed())), ..config });
    assert!(text.contains("expected [2, 2], got [5, 8]"), "{text}");
}

/// A tenth of the simulations fails: fresh batches replace them, calibration leaves them out, both count.
#[test]
fn failing_simulations_are_replaced_or_left_out_and_counted() {
    let workers = Workers::new(1).unwrap();
    let kept = Simulations::draw(&Fails::default(), 300, Key::new(1), Invalid::Drop, &workers).unwrap();
    let features = Features::fit(&kept, FeatureConfig::default()).unwrap();
    let architecture = Architecture::Separable { points: 4, hidden: vec![4], rank: 3 };
    let net = RatioNet::new(architecture, Nonlinearity::Silu, [5, 8]).unwrap();
    let config = RatioTaskConfig {
        net: net.clone(),
        loss: RatioLoss::NreA,
        features: features.clone(),
        pairs: Pairs::Fresh(Arc::new(Fails::default())),
        contrast: Contrast::Batch,
        batch_size: 200,
    };
    let task = Arc::new(RatioTask::new(config).unwrap());
    let (flat, mut x) = (net.init::<f32>(Key::new(2)), vec![0.0; 1600]);
    task.fill(outerloop_core::BatchKey::train(0, Key::new(3)), &mut [0.0; 1000], &mut x);
    assert!(x.iter().all(|x| x.is_finite()));
    assert!((8..40).contains(&task.redrawn()), "{}", task.redrawn());
    let estimator = RatioEstimator::new(net, features, vec![flat], true).unwrap();
    let smc = Smc { particles: 32, populations: 2, moves: 1, final_moves: 1, thinning: 1, ..Smc::default() };
    let runs = |observations| Runs { observations, draws: 32 };
    let c = calibrate(&estimator, &Fails::default(), &smc, runs(40), Key::new(4), &workers).unwrap();
    assert!(c.invalid > 0 && c.credibilities.len() + c.invalid == 40, "{}", c.invalid);
    let none = Fails(Slcp::seed(), 1.0);
    let error = calibrate(&estimator, &none, &smc, runs(3), Key::new(4), &workers).unwrap_err().to_string();
    assert!(error.contains("got none in 3 simulations"), "{error}");
    // A simulator that never works ends in a refusal, not in a loop.
    let error = Simulations::draw(&none, 300, Key::new(1), Invalid::Drop, &workers).unwrap_err().to_string();
    assert!(error.contains("got 0 (and 300 invalid ones)"), "{error}");
}

#[test]
fn a_trained_ratio_is_the_exact_one_and_calibrated() {
    let (g, simulations) = gaussian(20_000);
    let workers = Workers::new(2).unwrap();
    let prior = prior(&g);
    let pairs = Pairs::Fixed { simulations: simulations.clone(), valid: 0.1 };
    let task = task(RatioLoss::NreA, pairs, Contrast::Prior(Arc::new(prior.clone())), &simulations);
    let RatioTaskConfig { net, features, .. } = task.config().clone();
    let config =
        TrainConfig { eval_every: 200, eval_batches: 15, stop: Stop::Patience(10), ..TrainConfig::new(3000) };
    let adam = Adam::new(Cosine { peak: 5e-3, constant_fraction: 0.2, ..Cosine::default() });
    let typed = Typed::new(task);
    assert!(FlatTask::<f32>::name(&typed) == "ratio_nre_a");
    let trained = train(&typed, &adam, &config, Key::new(2)).unwrap();
    let estimator = RatioEstimator::new(net, features, vec![trained.params], true).unwrap();

    // Point by point, over the joint distribution.
    let joint = simulate(&g, Key::new(3), 0, 200, &workers);
    let mut errors = Vec::new();
    for (theta, x) in joint.theta.chunks_exact(2).zip(joint.x.chunks_exact(2)) {
        let exact = g.log_likelihood(theta, x).unwrap() - g.log_evidence(x);
        errors.push(estimator.posterior(x, &prior).unwrap().log_ratio(theta)[0] - exact);
    }
    let mean_square = errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64;
    assert!(mean_square.sqrt() < 0.12, "{}", mean_square.sqrt());

    let x = [0.4, -0.2];
    let posterior = estimator.posterior(&x, &prior).unwrap();
    let s = Smc::default().sample(&posterior, 2000, Key::new(4), &workers).unwrap();
    for (k, mean) in g.posterior_mean(&x).iter().enumerate() {
        assert!((s.mean()[k] - mean).abs() < 0.2 * g.posterior_std(), "{:?}", s.mean());
        assert!((s.std()[k] / g.posterior_std() - 1.0).abs() < 0.15, "{:?}", s.std());
    }
    assert!(s.report.log_evidence.unwrap().abs() < 0.15, "{:?}", s.report);

    let smc = Smc { particles: 128, populations: 2, moves: 2, final_moves: 10, ..Smc::default() };
    let runs = Runs { observations: 60, draws: 128 };
    let c = calibrate(&estimator, &g, &smc, runs, Key::new(5), &workers).unwrap();
    for p in c.coverage(&[0.5, 0.8]) {
        assert!((p.coverage - p.level).abs() < 4.0 * p.standard_error, "{p:?}");
    }
    assert!(c.uniformity.iter().all(|u| u.ks_p_value > 1e-3), "{:?}", c.uniformity);
    let area = roc_test(&estimator, &g, &[0.3, 0.1], 400, Key::new(6), &workers).unwrap();
    assert!((area - 0.5).abs() < 0.08, "{area}");
    // A ratio that says nothing leaves data from everywhere.
    let silent = RatioEstimator::new(
        RatioNet::new(Architecture::Mlp { hidden: vec![2] }, Nonlinearity::Relu, [2, 2]).unwrap(),
        Features::identity([2, 2]),
        vec![vec![0.0; 13]],
        true,
    )
    .unwrap();
    let area = roc_test(&silent, &g, &[0.6, -0.6], 400, Key::new(6), &workers).unwrap();
    assert!(area > 0.75, "{area}");
}
