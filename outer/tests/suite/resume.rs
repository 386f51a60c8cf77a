//! A stopped or killed run continues to the same bytes.

use crate::support::Wide;
use outerloop_core::{Error, HyperProblem, Key, LearnedOptimizer, OptState, Optimizer, Params, Result};
use outerloop_lopt::hand::{Adam, Momentum, Sgd};
use outerloop_lopt::{LearnableAdam, MlpLopt};
use outerloop_outer::adjoint::SweepConfig;
use outerloop_outer::estimator::{Antithetic, FullLoss};
use outerloop_outer::implicit::{HyperConfig, HyperLearner, Implicit, Neumann};
use outerloop_outer::run::{meta_train, train, RunConfig, RunDir};
use outerloop_outer::{
    FullEs, GradientEstimator, GradientLearner, InitialOffset, MetaLoss, Objective, TruncatedEs,
    TruncatedGrad, TruncatedPes, TruncatedStep, TruncationSchedule, Validation, Workers,
};
use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
use proptest::{prelude::*, test_runner::RngSeed};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Every estimator at once, so that all their states are in the checkpoint.
fn learner(num_steps: u64) -> GradientLearner {
    changed(num_steps, 1e-2, 3)
}

/// The same with settings that may change while a run is in progress: the outer learning rate, and how often
/// theta is validated.
fn changed(num_steps: u64, outer_lr: f64, every: u64) -> GradientLearner {
    let lopt = Arc::new(MlpLopt { hidden_size: 4, hidden_layers: 1, step_mult: 0.02, ..MlpLopt::default() });
    let step = || {
        let schedule = TruncationSchedule::LogUniform { min: 5, max: 20 };
        TruncatedStep::new(Arc::new(FixedDimQuadraticFamily { dim: 3 }), lopt.clone(), schedule)
            .unwrap()
            .with_offset(InitialOffset::BurnIn(20))
    };
    let common = || Antithetic { num_tasks: 3, trunc_length: 4, ..Antithetic::default() };
    let estimators: Vec<Box<dyn GradientEstimator>> = vec![
        Box::new(TruncatedPes::new(step(), common()).unwrap()),
        Box::new(TruncatedEs::new(step(), common()).unwrap()),
        Box::new(FullEs::new(step(), common(), FullLoss::Mean).unwrap()),
        Box::new(TruncatedGrad::new(step(), 2, 4, SweepConfig::default()).unwrap()),
    ];
    let learner = GradientLearner::new(lopt, estimators, Box::new(Adam::new(outer_lr)), num_steps).unwrap();
    learner.with_validation(validation(2, every)).unwrap()
}

fn validation(num_tasks: u64, every: u64) -> Validation {
    Validation {
        family: Arc::new(FixedDimQuadraticFamily { dim: 3 }),
        meta_loss: MetaLoss::Train,
        objective: Objective::default(),
        num_tasks,
        num_steps: 20,
        key: Key::new(1),
        every,
    }
}

fn config(resume: bool) -> RunConfig {
    RunConfig { seed: 7, checkpoint_every: 1, resume, progress: false, ..RunConfig::default() }
}

fn run(dir: &RunDir, steps: u64, resume: bool, threads: usize) {
    meta_train(&learner(steps), &Workers::new(threads).unwrap(), dir, &config(resume)).unwrap();
}

/// What a run leaves behind: the checkpoint and the metrics.
fn bytes(dir: &RunDir) -> (Vec<u8>, String) {
    (std::fs::read(dir.checkpoint()).unwrap(), std::fs::read_to_string(dir.metrics()).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() })]
    #[test]
    fn saved_and_loaded_anywhere_it_ends_the_same(cut in 0u64..12, threads in 1usize..4) {
        let (total, dir) = (12, tempfile::tempdir().unwrap());
        let dir = RunDir::new(dir.path());
        let (learner, one, many) = (learner(total), Workers::new(1).unwrap(), Workers::new(threads).unwrap());
        let mut straight = learner.init(Key::new(3), &one).unwrap();
        let mut state = learner.init(Key::new(3), &many).unwrap();
        for t in 0..total {
            if t == cut {
                std::fs::create_dir_all(dir.path()).unwrap();
                dir.save(&state).unwrap();
                state = dir.load(&learner).unwrap();
            }
            prop_assert_eq!(learner.step(&mut straight, &one), learner.step(&mut state, &many));
        }
        prop_assert_eq!(straight, state);
    }
}

/// Weights and their decays, trained together.
fn tune(dir: &RunDir, resume: bool, threads: usize) {
    let problem = Arc::new(HyperProblem::new(Wide).unwrap());
    let config = HyperConfig { hyper_steps: STEPS / 4, inner_steps: 2, lanes: 2, ..HyperConfig::default() };
    let implicit = Implicit::new(Neumann::new(3, 0.01));
    let (inner, hyper) = (Box::new(Momentum::new(0.01, 0.9)), Box::new(Adam::new(0.1)));
    let learner = HyperLearner::new(problem, inner, hyper, implicit, config).unwrap();
    train(&learner, &Workers::new(threads).unwrap(), dir, &self::config(resume)).unwrap();
}

const CHILD: &str = "OUTERLOOP_RESUME_TEST_DIR";
const TUNED: &str = "OUTERLOOP_RESUME_TEST_TUNED";
const STEPS: u64 = 60;

/// Not a test of its own: the process that [`killed_again_and_again_it_ends_with_the_same_bytes`] kills.
#[test]
fn child() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = RunDir::new(dir);
        let resume = dir.checkpoint().exists();
        if std::env::var_os(TUNED).is_some() {
            tune(&dir, resume, 2);
        } else {
            run(&dir, STEPS, resume, 2);
        }
    }
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    kill_again_and_again("", |dir| run(dir, STEPS, false, 1));
}

#[test]
fn killed_again_and_again_tuning_ends_with_the_same_bytes() {
    kill_again_and_again(TUNED, |dir| tune(dir, false, 1));
}

/// `tuned`: the variable that tells the child what to run; empty: none.
fn kill_again_and_again(tuned: &str, straight_run: impl Fn(&RunDir)) {
    let root = tempfile::tempdir().unwrap();
    let straight = RunDir::new(root.path().join("straight"));
    straight_run(&straight);
    let killed = RunDir::new(root.path().join("killed"));
    let spawn = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["resume::child", "--exact"])
            .env(CHILD, killed.path())
            .envs((!tuned.is_empty()).then_some((tuned, "1")))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // Growing delays hit the start, the first steps and the middle; SIGKILL leaves no time to tidy up.
    for millis in [5, 15, 25, 40, 60, 80] {
        let mut process = spawn();
        std::thread::sleep(Duration::from_millis(millis));
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert!(spawn().wait().unwrap().success());
    assert_eq!(bytes(&killed), bytes(&straight));
}

#[test]
fn another_configuration_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = RunDir::new(root.path());
    run(&dir, 2, false, 1);
    let workers = Workers::new(1).unwrap();
    let error = meta_train(&learner(3), &workers, &dir, &config(true)).unwrap_err();
    assert!(
        error.to_string().contains("for 3 steps") && error.to_string().contains("for 2 steps"),
        "{error}"
    );
    let error = meta_train(&learner(2), &workers, &dir, &config(false)).unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
    let missing = RunDir::new(root.path().join("missing"));
    let error = meta_train(&learner(2), &workers, &missing, &config(true)).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("missing"), "{error}");
}

/// Adam whose learning rate is NaN from the fourth step on.
#[derive(Debug)]
struct Breaks;
impl Optimizer for Breaks {
    fn name(&self) -> String {
        "breaks".into()
    }
    fn init(&self, params: &Params, num_steps: Option<u64>, key: Key) -> OptState {
        Adam::new(1e-2).init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState, grad: &[f32], loss: f32, key: Key) {
        Adam::new(1e-2).update(state, grad, loss, key);
        if state.step > 3 {
            state.params[0] = f32::NAN;
        }
    }
}

#[test]
fn a_theta_that_breaks_stops_the_run_and_the_last_good_one_is_saved() {
    let root = tempfile::tempdir().unwrap();
    let lopt = Arc::new(LearnableAdam::default());
    let learner = |outer: Box<dyn Optimizer>| {
        let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
        let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(20)).unwrap();
        let es =
            TruncatedEs::new(step, Antithetic { num_tasks: 2, trunc_length: 4, ..Antithetic::default() });
        GradientLearner::new(lopt.clone(), vec![Box::new(es.unwrap())], outer, 10).unwrap()
    };
    let workers = Workers::new(1).unwrap();
    let breaks = learner(Box::new(Breaks));
    let dir = RunDir::new(root.path().join("breaks"));
    let once = RunConfig { checkpoint_every: 100, ..config(false) };
    let error = meta_train(&breaks, &workers, &dir, &once).unwrap_err();
    assert!(matches!(&error, Error::NonFinite { what, .. } if what.contains("outer step 4")), "{error}");
    let saved = dir.load(&breaks).unwrap();
    let sound = learner(Box::new(Adam::new(1e-2)));
    let mut want = sound.init(Key::new(7), &workers).unwrap();
    for _ in 0..3 {
        sound.step(&mut want, &workers);
    }
    assert_eq!((&saved.theta.params, saved.outer_step, saved.skipped), (&want.theta.params, 4, 1));
    let again = RunConfig { resume: true, ..once };
    assert!(matches!(meta_train(&breaks, &workers, &dir, &again), Err(Error::NonFinite { .. })));
}

#[test]
fn an_adopted_run_stopped_or_not_ends_the_same() {
    let (old, new, workers) = (learner(8), changed(13, 3e-3, 2), Workers::new(2).unwrap());
    let mut state = old.init(Key::new(3), &workers).unwrap();
    for _ in 0..5 {
        old.step(&mut state, &workers);
    }
    assert!(new.check(&state).is_err());
    let mut straight = new.adopt(&old, state.clone()).unwrap();
    assert_eq!((straight.theta.num_steps, straight.outer_step), (Some(13), 5));
    assert!(old.check(&straight).is_err());

    let root = tempfile::tempdir().unwrap();
    let dir = RunDir::new(root.path());
    dir.save(&straight).unwrap();
    let mut stopped = dir.load(&new).unwrap();
    while straight.outer_step < 13 {
        assert_eq!(new.step(&mut straight, &workers), new.step(&mut stopped, &workers));
        dir.save(&stopped).unwrap();
        stopped = dir.load(&new).unwrap();
    }
    assert_eq!(straight, stopped);
    // The new settings did something.
    while state.outer_step < 8 {
        old.step(&mut state, &workers);
    }
    assert_ne!(state.theta.params, straight.theta.params);
}

#[test]
fn what_a_run_keeps_cannot_be_adopted() {
    let (old, workers) = (learner(8), Workers::new(1).unwrap());
    let mut state = old.init(Key::new(3), &workers).unwrap();
    for _ in 0..4 {
        old.step(&mut state, &workers);
    }
    let refused = |new: GradientLearner, before: &GradientLearner| {
        new.adopt(before, state.clone()).map(drop).unwrap_err().to_string()
    };
    assert!(refused(learner(8), &learner(9)).contains("saved run"), "not the learner that made it");
    assert!(refused(learner(3), &old).contains("4 are done already, got 3"));
    // Other tasks to validate on would make scores that cannot be compared.
    assert!(refused(learner(8).with_validation(validation(5, 3)).unwrap(), &old).contains("keeps"));

    let adam = || Box::new(Adam::new(1e-2));
    let old = small(adam(), 0.01, 8).unwrap();
    let state = old.init(Key::new(0), &workers).unwrap();
    let refused = |new: GradientLearner| new.adopt(&old, state.clone()).map(drop).unwrap_err().to_string();
    assert!(refused(small(Box::new(Sgd::new(1e-2)), 0.01, 8).unwrap()).contains("slots"));
    assert!(refused(small(adam(), 0.02, 8).unwrap()).contains("keeps"));
    assert_eq!(small(adam(), 0.01, 8).unwrap().adopt(&old, state.clone()).unwrap(), state);
}

/// One estimator, any outer optimizer.
fn small(outer: Box<dyn Optimizer>, std: f32, num_steps: u64) -> Result<GradientLearner> {
    let lopt = Arc::new(LearnableAdam::default());
    let family = Arc::new(FixedDimQuadraticFamily { dim: 3 });
    let step = TruncatedStep::new(family, lopt.clone(), TruncationSchedule::Constant(5))?;
    let common = Antithetic { num_tasks: 2, trunc_length: 5, std, ..Antithetic::default() };
    GradientLearner::new(lopt, vec![Box::new(TruncatedEs::new(step, common)?)], outer, num_steps)
}

#[test]
fn a_run_needs_a_step_a_checkpoint_and_a_place() {
    let root = tempfile::tempdir().unwrap();
    let dir = RunDir::new(root.path().join("run"));
    let none = small(Box::new(Adam::new(0.1)), 0.01, 0).map(drop).unwrap_err();
    assert_eq!(none.to_string(), "number of outer steps: must be at least 1, got 0");

    let workers = Workers::new(1).unwrap();
    let never = RunConfig { checkpoint_every: 0, ..config(false) };
    let error = meta_train(&learner(2), &workers, &dir, &never).unwrap_err();
    assert_eq!(error.to_string(), "checkpoint_every: must be at least 1, got 0");
    assert!(!dir.path().exists());

    let free = |dir: &RunDir| dir.check_free(&["config.toml"]).map_err(|e| e.to_string());
    assert_eq!(free(&dir), Ok(()));
    std::fs::create_dir(dir.path()).unwrap();
    std::fs::write(dir.file("config.toml"), "").unwrap();
    std::fs::write(dir.file(".outerloop-x.tmp"), "").unwrap();
    assert_eq!(free(&dir), Ok(()));
    std::fs::write(dir.file("thesis.tex"), "").unwrap();
    assert!(free(&dir).unwrap_err().contains("`thesis.tex`"));
    run(&RunDir::new(dir.file("seed-3")), 1, false, 1);
    assert!(free(&dir).unwrap_err().contains("holds a run already"));
    assert!(free(&RunDir::new(dir.file("thesis.tex"))).is_err());
}

#[test]
fn meta_training_learns_a_better_learning_rate() {
    // LearnableAdam starts at 1e-3, far too small to cross a quadratic in 20 steps.
    let lopt = Arc::new(LearnableAdam::default());
    let schedule = TruncationSchedule::Constant(20);
    let step =
        TruncatedStep::new(Arc::new(FixedDimQuadraticFamily { dim: 10 }), lopt.clone(), schedule).unwrap();
    let common = Antithetic { num_tasks: 16, trunc_length: 10, ..Antithetic::default() };
    let pes = Box::new(TruncatedPes::new(step, common).unwrap());
    let learner = GradientLearner::new(lopt.clone(), vec![pes], Box::new(Adam::new(0.03)), 300).unwrap();
    let workers = Workers::new(0).unwrap();
    let mut state = learner.init(Key::new(0), &workers).unwrap();
    let mut losses = Vec::new();
    for _ in 0..300 {
        losses.push(learner.step(&mut state, &workers).mean_loss);
    }
    let mean = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    let (first, last) = (mean(&losses[..20]), mean(&losses[280..]));
    assert!(last < 0.6 * first, "meta-loss {first} -> {last}");
    let log_lr =
        state.theta.params[LearnedOptimizer::<f32>::theta_layout(&*lopt).entry("log_lr").unwrap().offset];
    assert!(log_lr > -4.0, "log_lr {log_lr}, started at -6.9");
}
