//! The lab on oracles with known answers: a valley of two curvatures, and the Lorenz system.

use crate::support::{gaussian_mean, slope, OneTheta, Rule};
use outerloop_core::tensor::{Backend, Mode, Rank0, Rank1, Tensor};
use outerloop_core::{BatchKey, Float, Key, LearnedOptimizer, SingleTask, Task};
use outerloop_lopt::LearnableSgdm;
use outerloop_outer::estimator::{Antithetic, Estimate, EstimatorState};
use outerloop_outer::lab::{
    candidates, choose, Candidate, Experiment, Kind, Lorenz, LorenzRule, Measurement, Settings, Truth,
};
use outerloop_outer::{
    GeneralizedPes, GradientEstimator, InitialOffset, NoiseReuseEs, TruncatedEs, TruncatedPes, TruncatedStep,
    TruncationSchedule, Workers,
};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use std::sync::Arc;

/// `Σ h x²` with curvatures a hundred apart, from (1, 1).
struct Valley;
const CURVATURES: [f64; 2] = [1.0, 0.01];

impl<E: Float, B: Backend<E>> Task<E, B> for Valley {
    type Params = Tensor<Rank1<2>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "valley".into()
    }
    fn init(&self, dev: &B, _: Key) -> Self::Params {
        dev.tensor_from_vec(vec![E::of(1.0); 2], Default::default())
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, x: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::{PutTape, SumTo};
        // √h x, squared.
        let h: Tensor<Rank1<2>, E, B> =
            x.device().tensor_from_vec(CURVATURES.map(|h| E::of(h.sqrt())).to_vec(), Default::default());
        (x.clone().put_tape(m) * h).square().sum()
    }
}

fn valley(length: u64) -> TruncatedStep {
    let rule = Arc::new(OneTheta { rule: Rule::Sgd, init: THETA });
    TruncatedStep::new(Arc::new(SingleTask::new(Valley)), rule, TruncationSchedule::Constant(length)).unwrap()
}

/// ln of the learning rate.
const THETA: f64 = -0.9;
const STD: f64 = 0.1;
const LENGTH: usize = 40;

/// The mean loss of a run whose perturbation stays: step t multiplies x by `1 − 2 h exp(θ + σz)`.
fn mean_loss(theta: f64) -> f64 {
    let total = gaussian_mean(|z| {
        let rate = (theta + STD * z).exp();
        let of = |h: f64| (0..LENGTH as i32).map(|t| h * (1.0 - 2.0 * h * rate).powi(2 * t)).sum::<f64>();
        CURVATURES.iter().map(|h| of(*h)).sum()
    });
    total / LENGTH as f64
}

#[test]
fn the_lab_sees_no_bias_where_there_is_none_and_the_short_sight_of_truncated_es() {
    let workers = Workers::new(0).unwrap();
    let truth = Truth::exact(vec![slope(mean_loss, THETA)]);
    let common = || Antithetic { num_tasks: 20, trunc_length: 4, std: STD as f32, ..Antithetic::default() };
    // A row is a run: 10 windows of 4 steps.
    let theta = [THETA as f32];
    let at = Experiment {
        theta: &theta,
        key: Key::new(5),
        samples: 60,
        warmup: 0,
        estimates: 10,
        workers: &workers,
    };
    let reuse = at.measure(&NoiseReuseEs::new(valley(LENGTH as u64), common()).unwrap()).unwrap();
    let c = reuse.against(&truth).unwrap();
    assert!(c.bias.allows(0.0, 4.0) && c.bias.error < 0.1, "{c:?}");
    assert_eq!(reuse.inner_steps, 20.0 * 2.0 * LENGTH as f64);
    let short = at.measure(&TruncatedEs::new(valley(LENGTH as u64), common()).unwrap()).unwrap();
    let c = short.against(&truth).unwrap();
    assert!(!c.bias.allows(0.0, 4.0), "{c:?}");
    assert!(c.cosine.interval()[0] <= c.cosine.value && c.signal_to_noise > 0.0);
    // Errors say what is missing.
    assert!(Experiment { samples: 1, ..at }
        .measure(&NoiseReuseEs::new(valley(9), common()).unwrap())
        .is_err());
    assert!(reuse.against(&Truth::exact(vec![0.0])).is_err());
    assert!(reuse.against(&Truth::exact(vec![1.0, 1.0])).is_err());
}

/// A truth that is measured is longer than what it measures, by its noise: here as much again.
#[test]
fn noise_of_the_truth_is_no_bias_of_the_estimator() {
    let sample = |key: Key| {
        let mut noise = vec![0.0; 4000];
        key.fill_normal(&mut noise);
        noise.iter().map(|z: &f64| 0.1 + 0.4 * z).collect()
    };
    let measure = |key: Key, n: u64| Measurement {
        name: "unbiased".into(),
        samples: (0..n).map(|i| sample(key.fold_in(i))).collect(),
        inner_steps: 1.0,
        seconds: 1.0,
        masked: 0.0,
    };
    let [estimator, truth] = Key::new(8).split();
    let truth = Truth::from(&measure(truth, 16));
    let c = measure(estimator, 200).against(&truth).unwrap();
    assert!(c.bias.allows(0.0, 4.0) && c.bias.error < 0.06, "{c:?}");
    assert!(!c.bias.allows(-0.5, 4.0), "{c:?}");
    let noise = Truth { grad: vec![1.0; 4000], variance: vec![1.0; 4000] };
    assert!(measure(estimator, 2).against(&noise).is_err());
}

fn lorenz(length: u64) -> TruncatedStep {
    let family = Arc::new(SingleTask(Arc::new(Lorenz)));
    TruncatedStep::new(family, Arc::new(LorenzRule::default()), TruncationSchedule::Constant(length)).unwrap()
}

type Make<'a> = &'a dyn Fn(TruncatedStep, Antithetic) -> Box<dyn GradientEstimator>;

/// Total variance of the estimate in a run's last window on the Lorenz system, windows of 100 steps, σ 0.04.
fn chaos(length: u64, make: Make<'_>) -> outerloop_outer::lab::Uncertain {
    let workers = Workers::new(0).unwrap();
    let theta = LearnedOptimizer::<f32>::init(&LorenzRule::default(), Key::new(0));
    let common = Antithetic { num_tasks: 4, trunc_length: 100, std: 0.04, ..Antithetic::default() };
    let warmup = length / 100 - 1;
    let at =
        Experiment { theta: &theta, key: Key::new(1), samples: 50, warmup, estimates: 1, workers: &workers };
    at.measure(&*make(lorenz(length), common)).unwrap().total_variance()
}

/// The published order: one perturbation per run least, PES most. After the horizon of the chaos a loss difference is
/// noise of a fixed size, weighed with 1, 4 and 20 perturbations here; so the first does not grow with the run.
#[test]
fn variances_on_the_lorenz_system_have_the_published_order() {
    let pes: Make<'_> = &|s, c| Box::new(TruncatedPes::new(s, c).unwrap());
    let between: Make<'_> = &|s, c| Box::new(GeneralizedPes::new(s, c, 5).unwrap());
    let reuse: Make<'_> = &|s, c| Box::new(NoiseReuseEs::new(s, c).unwrap());
    let long = [reuse, between, pes].map(|make| chaos(2000, make));
    let short = [reuse, pes].map(|make| chaos(500, make));
    println!("reuse, every 5, PES at 2000: {long:?}; reuse, PES at 500: {short:?}");
    let apart = |a: outerloop_outer::lab::Uncertain, b: outerloop_outer::lab::Uncertain| {
        b.value - a.value > 2.0 * (a.error.powi(2) + b.error.powi(2)).sqrt()
    };
    assert!(apart(long[0], long[1]) && apart(long[1], long[2]), "{long:?}");
    assert!(apart(short[1], long[2]), "{short:?} {long:?}");
    assert!(long[0].value < 3.0 * short[0].value, "{short:?} {long:?}");
}

fn momentum() -> TruncatedStep {
    let family = Arc::new(FixedDimQuadraticFamily { dim: 5 });
    let lopt = Arc::new(LearnableSgdm::default());
    let runs = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(20)).unwrap();
    runs.with_offset(InitialOffset::BurnIn(20))
}

#[test]
fn a_choice_is_made_by_evidence_that_does_not_depend_on_threads() {
    let theta = LearnedOptimizer::<f32>::init(&LearnableSgdm::default(), Key::new(0));
    let base = Antithetic { num_tasks: 4, trunc_length: 4, std: 0.03, ..Antithetic::default() };
    let run = |threads| {
        let workers = Workers::new(threads).unwrap();
        let at = Experiment {
            theta: &theta,
            key: Key::new(3),
            samples: 12,
            warmup: 0,
            estimates: 5,
            workers: &workers,
        };
        let all = candidates(&momentum(), &base).unwrap();
        let choice = choose(&all, &at).unwrap();
        assert_eq!(choice.evidence.len(), all.len());
        let lines = choice.csv();
        assert!(lines.lines().filter(|l| l.starts_with("true,")).count() == 1, "{lines}");
        let best = &choice.evidence[choice.best];
        let no_better = |e: &&outerloop_outer::lab::Evidence| e.is_eligible && e.per_second > best.per_second;
        assert!(best.is_eligible && !choice.evidence.iter().any(|e| no_better(&e)));
        assert_eq!(choice.settings(), all[choice.best].settings);
        choice.evidence.iter().map(|e| (e.settings, e.cosine, e.across, e.per_inner_step)).collect::<Vec<_>>()
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert!(one.iter().any(|e| e.0.kind == Kind::Mixed));
    // Nothing to hold the others against.
    let settings = Settings { kind: Kind::Es, std: 0.03, trunc_length: 4, num_tasks: 4 };
    let estimator = settings.estimator(&momentum(), &base).unwrap();
    let workers = Workers::new(1).unwrap();
    let at = Experiment {
        theta: &theta,
        key: Key::new(3),
        samples: 2,
        warmup: 0,
        estimates: 1,
        workers: &workers,
    };
    assert!(choose(&[Candidate { settings, estimator }], &at).is_err());
}

/// Estimates without any signal.
struct PureNoise;

impl GradientEstimator for PureNoise {
    fn name(&self) -> String {
        "pure noise".into()
    }
    fn describe(&self) -> String {
        self.name()
    }
    fn init(&self, _: &[f32], key: Key, _: &Workers) -> EstimatorState {
        EstimatorState::new(key)
    }
    fn estimate(&self, theta: &[f32], state: &mut EstimatorState, outer_step: u64, _: &Workers) -> Estimate {
        let mut grad = vec![0.0; theta.len()];
        state.key.fold_in(outer_step).fill_normal(&mut grad);
        let saturated = Default::default();
        Estimate { grad, mean_loss: 1.0, inner_steps: 1, saturated, lanes: 1, diverged: 0, masked: 0 }
    }
}

/// Half of all references made of noise are shorter than their own noise.
#[test]
fn a_choice_is_made_where_the_reference_drowns_in_its_noise() {
    let workers = Workers::new(1).unwrap();
    let settings = Settings { kind: Kind::Pes, std: 0.03, trunc_length: 4, num_tasks: 4 };
    let mut drowned = 0;
    for seed in 0..12 {
        let key = Key::new(seed);
        let at = Experiment { theta: &[0.0; 3], key, samples: 8, warmup: 0, estimates: 1, workers: &workers };
        let alone = at.measure(&PureNoise).unwrap();
        drowned += usize::from(alone.against(&Truth::from(&alone)).is_err());
        let candidates = [Candidate { settings, estimator: Box::new(PureNoise) }];
        let choice = choose(&candidates, &at).unwrap();
        assert!(choice.evidence[choice.best].is_eligible);
    }
    assert!((2..12).contains(&drowned), "the test is blind: {drowned} of 12");
}
