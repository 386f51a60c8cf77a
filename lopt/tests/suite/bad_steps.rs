//! What every optimizer of the registry does with one bad step: a gradient that is NaN or far out of range, a
//! loss that is no number.

use outerloop_core::{Key, Layout, OptState, Optimizer, Params, UpdateAdjoint};
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

fn assert_finite(what: &str, state: &OptState) {
    let slots = state.slots.iter().map(|s| (&s.name[..], &s.data));
    for (name, data) in std::iter::once(("parameters", &state.params)).chain(slots) {
        let bad = data.iter().position(|x| !x.is_finite());
        assert!(bad.is_none(), "{what}: {name}[{}] = {}", bad.unwrap(), data[bad.unwrap()]);
    }
}

/// The square of 1e20 is infinite in f32.
#[test]
fn one_huge_gradient_leaves_all_numbers_finite() {
    for rule in rules() {
        for bad in STARTS {
            for g in [1e20, -1e20, 3e38] {
                let state = run(&*rule.opt, Some((bad, g)), 1.0);
                assert_finite(&format!("{} after {g:e} in {bad}", rule.name), &state);
            }
        }
    }
}

#[test]
fn one_loss_that_is_no_number_leaves_all_numbers_finite() {
    for rule in rules() {
        for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20, 3e38] {
            assert_finite(&format!("{} after the loss {loss}", rule.name), &run(&*rule.opt, None, loss));
        }
    }
}

/// The derivative of an update where rows, columns and whole tensors have no gradient, and with one of 1e20.
#[test]
fn derivatives_are_finite_where_the_update_is() {
    let layout = layout();
    let n = layout.len();
    for rule in rules() {
        let Some(vjp) = rule.opt.update_vjp() else { continue };
        for huge in [1.0, 1e20] {
            let mut state =
                rule.opt.init(&Params::new(layout.clone(), vec![1.0; n]).unwrap(), Some(20), Key::new(0));
            for t in 0..3 {
                // Of w the first row and the first column are 0, of v everything.
                let is_zero = |i: usize| i < 4 || i % 4 == 0 || i >= STARTS[2];
                let mut grad: Vec<f32> =
                    (0..n).map(|i| if is_zero(i) { 0.0 } else { 0.1 * i as f32 }).collect();
                if t == 1 {
                    grad[5] *= huge;
                }
                let mut after = state.zeros_like();
                after.params.fill(1.0);
                let mut theta = vec![0.0; theta_len(&rule)];
                let UpdateAdjoint { state: before, grad: of_grad, loss } =
                    vjp.vjp(&state, &grad, 1.0, Key::new(0), &after, &mut theta);
                rule.opt.update(&mut state, &grad, 1.0, Key::new(0));
                let what = format!("{}, update {t}, {huge:e}", rule.name);
                assert_finite(&what, &state);
                assert_finite(&format!("adjoint of {what}"), &before);
                assert!(of_grad.iter().all(|x| x.is_finite()), "{what}: {of_grad:?}");
                assert!(loss.is_finite() && theta.iter().all(|x| x.is_finite()), "{what}: {loss} {theta:?}");
            }
        }
    }
}

/// The length of theta that a rule's derivative adds to.
fn theta_len(rule: &Rule) -> usize {
    if !LEARNED.contains(&&rule.name[..]) {
        return 0;
    }
    learned::<f32>(&rule.name, &json!({})).unwrap().theta_layout().len()
}

/// Zeros that mean "none" are no error, and give numbers where nothing has a gradient.
#[test]
fn edge_values_work() {
    let inner = json!({"SGD": {"learning_rate": 0.0}});
    for (class, hyper) in [
        ("SGD", json!({"learning_rate": 0.0})),
        ("SGD", json!({"learning_rate": {"LinearRampupSqrtDecay": {"warmup_steps": 0.0}}})),
        ("SGD", json!({"learning_rate": {"ExponentialDecay": {"decay_amount": 0.0}}})),
        ("SGD", json!({"learning_rate": {"CosineLearningRateSchedule": {"warmup_fraction": 0.0}}})),
        ("SGD", json!({"learning_rate": {"PiecewiseLinear": {"times": [3.0], "vals": [0.1]}}})),
        ("SGDM", json!({"momentum": 0.0})),
        ("Adam", json!({"beta1": 0.0, "beta2": 0.0, "epsilon": 0.0, "epsilon_root": 0.0})),
        ("AdamW", json!({"b1": 0.0, "b2": 0.0, "eps": 0.0, "weight_decay": 0.0})),
        ("NAdamW", json!({"epsilon": 0.0, "beta1": 0.0, "beta2": 0.0})),
        ("RMSProp", json!({"epsilon": 0.0, "decay": 0.0})),
        ("AdaBelief", json!({"eps": 0.0, "eps_root": 0.0, "b1": 0.0, "b2": 0.0})),
        ("Yogi", json!({"eps": 0.0})),
        ("RAdam", json!({"eps": 0.0, "b2": 0.0})),
        ("RAdam", json!({"eps": 0.0, "b2": 0.5, "threshold": 4.0})),
        ("AdaGrad", json!({"eps": 0.0, "initial_accumulator_value": 0.0})),
        ("Lamb", json!({"eps": 0.0})),
        ("Lars", json!({"eps": 0.0, "momentum": 0.0, "trust_coefficient": 0.0})),
        ("Fromage", json!({"min_norm": 0.0})),
        ("Lion", json!({"beta1": 0.0, "beta2": 0.0, "weight_decay": 0.0})),
        ("SM3", json!({"b2": 0.0, "momentum": 0.0})),
        ("Adafactor", json!({"eps": 0.0, "min_dim_size_to_factor": 0, "decay_rate": 0.0})),
        ("Adafactor", json!({"eps": 0.0, "factored": false, "decay_offset": 1.0, "momentum": 0.0})),
        ("Adafactor", json!({"decay_offset": 3.5})),
        ("Shampoo", json!({"start_preconditioning_step": 0, "skip_preconditioning_dim_size_gt": 0})),
        ("Muon", json!({"momentum": 0.0, "iterations": 1})),
        ("ScheduleFreeAdamW", json!({"warmup_steps": 0, "epsilon": 0.0})),
        ("GradientAccumulator", json!({"num_average": 1, "inner": inner})),
        ("WeightDecayWrapper", json!({"weight_decay": 0.0, "inner": inner})),
    ] {
        let opt = hand_designed::<f32>(class, &hyper).unwrap();
        let layout = layout();
        let n = layout.len();
        let mut state = opt.init(&Params::zeros(layout), Some(20), Key::new(0));
        for t in 0..4 {
            // The first update has no gradient at all, the others have some.
            let grad: Vec<f32> = (0..n).map(|i| if t == 0 || i % 3 == 0 { 0.0 } else { 0.1 }).collect();
            opt.update(&mut state, &grad, 1.0, Key::new(0));
            assert_finite(&format!("{class} {hyper}, update {t}"), &state);
        }
    }
    for (class, hyper) in [
        ("MlpLopt", json!({"hidden_layers": 0, "step_mult": 0.0})),
        (
            "AdafacMlp",
            json!({"hidden_layers": 0, "initial_momentum_decays": [0.0], "initial_adafactor_decays": [0.9]}),
        ),
        ("NominalMlp", json!({"hidden_layers": 0})),
        ("Velo", json!({"ff_hidden_layers": 0, "param_inits": 1, "lstm_hidden_size": 1})),
        ("RnnMlp", json!({"hidden_layer": 0, "lstm_hidden_size": 1, "from_mlp_size": 1, "decays": [0.5]})),
        ("NnAdam", json!({"output_scale": 0.0, "lstm_hidden_size": 1, "decay_strength": 1.0})),
        ("Celo2", json!({"hidden_layers": 0, "peak_lr": 0.0, "warmup_fraction": 0.0})),
        ("Celo2", json!({"warmup_fraction": 1.0, "orthogonalize": {"NewtonSchulz": 1}})),
        ("ControlledAdam", json!({"hidden_layers": 0, "decay": 0.0, "step_mult": 0.0})),
    ] {
        let lopt = learned::<f32>(class, &hyper).unwrap();
        let opt = lopt.opt_fn(&lopt.init(Key::new(0)));
        assert_finite(&format!("{class} {hyper}"), &run(&*opt, None, 1.0));
    }
}
