//! What every optimizer of the registry does with one bad step: a gradient that is NaN or far out of range, a
//! loss that is no number.

use outerloop_core::{Key, Layout, OptState, Optimizer, Params};
use outerloop_lopt::registry::{example_hyperparameters, hand_designed, learned, HAND_DESIGNED, LEARNED};
use serde_json::{json, Value};
use std::sync::Arc;

/// Whether one tensor's gradient may move another tensor.
#[derive(Clone, Copy, PartialEq)]
enum Sees {
    OwnTensor,
    AllTensors,
}

/// A rule to try: its name in messages, and how it is built.
struct Rule {
    name: String,
    opt: Box<dyn Optimizer>,
    sees: Sees,
}

/// All optimizers of the registry, hand-designed and learned (at their initial theta), and settings of rules that
/// have more than one way.
fn rules() -> Vec<Rule> {
    let mut all = Vec::new();
    let mut hand = |class: &str, hyper: Value| {
        // The length of a grafted step is that of the whole gradient's.
        let sees = if class == "GraftedOptimizer" { Sees::AllTensors } else { Sees::OwnTensor };
        let opt = hand_designed(class, &hyper).unwrap();
        all.push(Rule { name: format!("{class} {hyper}"), opt, sees });
    };
    for class in HAND_DESIGNED {
        hand(class, example_hyperparameters(class));
    }
    hand("Adafactor", json!({"min_dim_size_to_factor": 1, "momentum": 0.9, "weight_decay_rate": 0.01}));
    hand(
        "Adafactor",
        json!({"factored": false, "multiply_by_parameter_scale": false, "clipping_threshold": null}),
    );
    hand("Lars", json!({"nesterov": true, "weight_decay": 0.1}));
    hand("RMSProp", json!({"momentum": 0.9}));
    hand("SM3", json!({"b2": 0.9}));
    hand("Shampoo", json!({"start_preconditioning_step": 0, "block_size": 2, "nesterov": false}));
    for class in LEARNED {
        // Recurrent rules exchange messages between tensors.
        let sees =
            if ["HyperV2", "RNNMLPLOpt"].contains(&class) { Sees::AllTensors } else { Sees::OwnTensor };
        let lopt = learned::<f32>(class, &json!({})).unwrap();
        let theta = lopt.init(Key::new(3));
        all.push(Rule { name: class.into(), opt: lopt.opt_fn(&theta), sees });
    }
    all
}

/// The tensors of [`layout`] with elements begin here.
const STARTS: [usize; 3] = [0, 12, 15];

fn layout() -> Arc<Layout> {
    Arc::new(Layout::new([("w", vec![3, 4]), ("b", vec![3]), ("v", vec![4, 2])]))
}

/// Twelve updates from parameters 1 with gradients 1, but `bad` element and loss in the first update.
fn run(opt: &dyn Optimizer, bad: Option<(usize, f32)>, first_loss: f32) -> OptState {
    let layout = layout();
    let n = layout.len();
    let mut state = opt.init(&Params::new(layout, vec![1.0; n]).unwrap(), Some(20), Key::new(0));
    for t in 0..12 {
        let mut grad = vec![1.0; n];
        if let (0, Some((i, g))) = (t, bad) {
            grad[i] = g;
        }
        opt.update(&mut state, &grad, if t == 0 { first_loss } else { 1.0 }, Key::new(0));
    }
    state
}

/// A parameter whose gradient was once NaN is NaN, or was left alone in that step: it never walks against its
/// gradient. Tensors that the rule treats apart do what they do without it.
#[test]
fn a_nan_gradient_stays_visible() {
    for rule in rules() {
        let clean = run(&*rule.opt, None, 1.0);
        for bad in STARTS {
            let state = run(&*rule.opt, Some((bad, f32::NAN)), 1.0);
            let p = state.params[bad];
            assert!(p.is_nan(), "{}: parameter {bad} goes from 1 to {p}", rule.name);
            let entry = state.layout.entries().iter().find(|e| e.range().contains(&bad)).unwrap().range();
            let others =
                (0..state.params.len()).filter(|i| rule.sees == Sees::OwnTensor && !entry.contains(i));
            for i in others {
                let (got, want) = (state.params[i], clean.params[i]);
                assert_eq!(got, want, "{}: parameter {i} beside NaN in {bad}", rule.name);
            }
        }
    }
}

/// An infinite gradient has a direction but no length: rules that look at the direction alone must not keep it.
#[test]
fn lion_shows_an_infinite_gradient() {
    let lion = hand_designed("Lion", &json!({})).unwrap();
    for g in [f32::INFINITY, f32::NEG_INFINITY] {
        assert!(run(&*lion, Some((0, g)), 1.0).params[0].is_nan());
    }
}
