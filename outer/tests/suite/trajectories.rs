//! Every optimizer of the registry trains digits for 50 steps: finite, deterministic, and resumed in
//! the middle from a saved state with the same bits.

use outerloop_core::{
    BatchKey, Evaluator, FlatFamily, FlatTask, Key, LearnedOptimizer, OptState, Optimizer, SingleTask, Typed,
};
use outerloop_lopt::wrap::{Combined, GroupRule, WidthScaled};
use outerloop_lopt::{registry, HandAsLearned};
use outerloop_tasks::data::Splits;
use outerloop_tasks::image::{ImageMlp, MlpConfig, MlpTask};
use serde_json::json;

const STEPS: u64 = 50;

/// Every class of the registry at its defaults (theta at its `init`), and one of every wrapper.
fn table() -> Vec<(String, Box<dyn Optimizer>)> {
    let hand = |class: &str| {
        registry::hand_designed::<f32>(class, &registry::example_hyperparameters(class)).expect(class)
    };
    let learned = |class: &str| registry::learned::<f32>(class, &json!({})).expect(class);
    let at_init = |lopt: &dyn LearnedOptimizer| lopt.opt_fn(&lopt.init(Key::new(1)));
    let mut all: Vec<(String, Box<dyn Optimizer>)> = Vec::new();
    all.extend(registry::HAND_DESIGNED.map(|class| (class.to_string(), hand(class))));
    all.extend(registry::LEARNED.map(|class| (class.to_string(), at_init(&*learned(class)))));
    let correction: Vec<Box<dyn LearnedOptimizer>> =
        vec![Box::new(HandAsLearned::from(hand("Adam"))), learned("AdafacMLPLOpt")];
    all.push(("sum".into(), at_init(&Combined::sum(correction))));
    let rule = GroupRule::matrices_and_vectors();
    let groups = Combined::grouped(rule, vec![learned("HyperV2"), learned("MLPLOpt")]).expect("two groups");
    all.push(("grouped".into(), at_init(&groups)));
    let base = MlpConfig { hidden: vec![16], ..MlpConfig::default() };
    let base = Typed::new(MlpTask::new(Splits::digits(), base).expect("a valid configuration"));
    let scaled = WidthScaled::new(hand("Adam"), FlatTask::<f32>::layout(&base));
    all.push(("width scaled".into(), Box::new(scaled)));
    all
}

/// Trains until step `until`; the losses before every update.
fn train(opt: &dyn Optimizer, task: &mut dyn Evaluator, state: &mut OptState, until: u64) -> Vec<f32> {
    let key = Key::new(2);
    let mut grad = vec![0.0; state.params.len()];
    let mut losses = Vec::new();
    while state.step < until {
        let loss = task.loss_and_grad(&state.params, &mut [], BatchKey::train(state.step, key), &mut grad);
        opt.update(state, &grad, loss, key);
        losses.push(loss);
    }
    losses
}

/// The whole state, NaN equal to itself.
fn bits(state: &OptState) -> Vec<u32> {
    let slots = state.slots.iter().flat_map(|s| &s.data);
    state.params.iter().chain(slots).map(|x| x.to_bits()).collect()
}

#[test]
fn fifty_steps_on_digits_are_finite_deterministic_and_resumable() {
    let task = SingleTask::new(ImageMlp::digits()).sample_task(Key::new(0));
    let start = task.init(Key::new(3));
    let mut evaluator = task.evaluator();
    for (name, opt) in table() {
        let fresh = || opt.init(&start, Some(STEPS), Key::new(4));
        let mut whole = fresh();
        let losses = train(&*opt, &mut *evaluator, &mut whole, STEPS);
        assert_eq!(losses.len(), STEPS as usize);
        assert!(losses.iter().all(|l| l.is_finite()), "{name}: {losses:?}");
        assert!(bits(&whole).iter().all(|b| f32::from_bits(*b).is_finite()), "{name}: not finite");
        assert_ne!(whole.params, start.data, "{name} has not moved");

        // A second run, with evaluators of its own.
        let mut half = fresh();
        let first = train(&*opt, &mut *task.evaluator(), &mut half, STEPS / 2);
        assert_eq!(first, losses[..first.len()], "{name}: another run differs");
        let saved = serde_json::to_string(&half).expect("a state has a JSON form");
        let mut resumed: OptState = serde_json::from_str(&saved).expect("the saved state");
        train(&*opt, &mut *task.evaluator(), &mut resumed, STEPS);
        assert_eq!(bits(&resumed), bits(&whole), "{name}: the resumed run differs");
    }
}
