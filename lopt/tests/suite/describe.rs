//! Descriptions forget nothing: whatever is changed about an optimizer changes its description.

use outerloop_core::{Error, Key, Layout, Optimizer};
use outerloop_lopt::hand::{
    Accumulate, Adam, Clip, ClipRule, Cosine, Graft, L2Sign, LossTerm, Muon, NAdamW, Schedule, Sgd, Shampoo,
    WarmUp, WeightDecay,
};
use outerloop_lopt::registry::{example_hyperparameters, hand_designed, learned, HAND_DESIGNED, LEARNED};
use outerloop_lopt::wrap::{GroupRule, Grouped, SumOptimizer, WidthScaled};
use serde_json::{json, Value};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Hyperparameters that are read and change nothing.
const IGNORED: [(&str, &str); 3] =
    [("NAdamW", "use_bias_correction"), ("NAdamW", "num_steps"), ("OptList", "num_steps")];

/// The hyperparameters that a class knows, from the error that lists them.
fn keys(class: &str) -> Vec<String> {
    let mut hyper = example_hyperparameters(class);
    hyper["no such key"] = json!(0);
    match hand_designed::<f32>(class, &hyper) {
        Err(Error::Unknown { allowed, .. }) => allowed,
        other => panic!("{class}: {:?}", other.map(|o| o.name())),
    }
}

/// Values of every kind that a hyperparameter may have.
fn values() -> Vec<Value> {
    vec![
        json!(0.0123),
        json!(0.57),
        json!(6.5),
        json!(7),
        json!(true),
        json!(false),
        json!([11.0, 42.0]),
        json!({"LinearRampupSqrtDecay": {}}),
        json!({"SM3": {}}),
        json!({"learning_rate": 2e-3}),
    ]
}

#[test]
fn every_hyperparameter_of_the_registry_shows() {
    for class in HAND_DESIGNED {
        let example = example_hyperparameters(class);
        let start = hand_designed::<f32>(class, &example).unwrap().describe();
        assert_eq!(hand_designed::<f32>(class, &example).unwrap().describe(), start);
        for key in keys(class).iter().filter(|key| !IGNORED.contains(&(class, key))) {
            let shows = |value: Value| {
                let mut hyper = example.clone();
                hyper[key] = value;
                hand_designed::<f32>(class, &hyper).is_ok_and(|opt| opt.describe() != start)
            };
            assert!(values().into_iter().any(shows), "{class}: {key} does not show in {start}");
        }
    }
}

#[test]
fn every_hyperparameter_of_a_learned_optimizer_and_its_theta_show() {
    for class in LEARNED {
        // VeLO's theta is large.
        let small = json!({"lstm_hidden_size": 4, "param_inits": 2});
        let base = if class == "HyperV2" { small } else { json!({}) };
        let lopt = learned::<f32>(class, &base).unwrap();
        let theta = lopt.init(Key::new(0));
        let start = lopt.opt_fn(&theta).describe();
        assert_eq!(lopt.opt_fn(&theta).describe(), start, "{class}");
        let mut other = theta.clone();
        *other.last_mut().unwrap() += 1e-3;
        assert_ne!(lopt.opt_fn(&other).describe(), start, "{class}");
        // Configurations are serialized whole; those with the same theta layout must show, too.
        let text = lopt.architecture();
        let config: Value = serde_json::from_str(text.split_once(' ').unwrap().1).unwrap();
        for (key, value) in config.as_object().unwrap() {
            let changed = match value {
                Value::Number(n) if n.is_u64() => json!(n.as_u64().unwrap() + 1),
                Value::Number(n) => json!(n.as_f64().unwrap() * 0.8 + 1e-5),
                Value::Bool(b) => json!(!b),
                _ => continue,
            };
            let mut hyper = base.clone();
            hyper[key] = changed;
            let Ok(other) = learned::<f32>(class, &hyper) else { continue };
            let theta = other.init(Key::new(0));
            assert_ne!(other.opt_fn(&theta).describe(), start, "{class}: {key}");
        }
    }
}

/// Fields that the registry does not set, and wrappers with what is inside.
#[test]
fn fields_and_inner_optimizers_show() {
    let adam = |schedule: Schedule| -> Box<dyn Optimizer> { Box::new(Adam::new(schedule)) };
    let sgd = |lr: f64| -> Box<dyn Optimizer> { Box::new(Sgd::new(lr)) };
    let base = |width| Arc::new(Layout::new([("w", vec![width, width])]));
    let grouped = |rule, lr| Grouped::new(rule, vec![sgd(lr), sgd(1.0)]).unwrap();
    let cosine = Cosine::default;
    let all: Vec<Box<dyn Optimizer>> = vec![
        adam(cosine().into()),
        adam(Cosine { warmup: WarmUp::Reference, ..cosine() }.into()),
        adam(Cosine { min_mult: 0.3, ..cosine() }.into()),
        adam(Schedule::PiecewiseLinear(vec![(0.0, 0.1), (9.0, 0.2)])),
        adam(Schedule::PiecewiseLinear(vec![(0.0, 0.1), (9.0, 0.3)])),
        Box::new(NAdamW::default()),
        Box::new(NAdamW { l2_sign: L2Sign::Reference, ..NAdamW::default() }),
        Box::new(Muon::default()),
        Box::new(Muon { adam_betas: (0.9, 0.96), ..Muon::default() }),
        Box::new(Muon { adam_epsilon: 1e-9, ..Muon::default() }),
        Box::new(Shampoo::default()),
        Box::new(Clip::new(ClipRule::Value(1.0), sgd(0.1))),
        Box::new(Clip::new(ClipRule::Value(2.0), sgd(0.1))),
        Box::new(Clip::new(ClipRule::GlobalNorm(1.0), sgd(0.1))),
        Box::new(Clip::new(ClipRule::Value(1.0), sgd(0.2))),
        Box::new(Accumulate::new(2, sgd(0.1))),
        Box::new(Accumulate::new(3, sgd(0.1))),
        Box::new(Accumulate::new(2, sgd(0.2))),
        Box::new(WeightDecay::new(0.1, LossTerm::None, sgd(0.1))),
        Box::new(WeightDecay::new(0.2, LossTerm::None, sgd(0.1))),
        Box::new(WeightDecay::new(0.1, LossTerm::Reference, sgd(0.1))),
        Box::new(WeightDecay::new(0.1, LossTerm::None, sgd(0.2))),
        Box::new(Graft::new(sgd(0.1), sgd(0.2))),
        Box::new(Graft::new(sgd(0.2), sgd(0.1))),
        Box::new(SumOptimizer::new(vec![sgd(0.1)])),
        Box::new(SumOptimizer::new(vec![sgd(0.1), sgd(0.1)])),
        Box::new(WidthScaled::new(sgd(0.1), base(4))),
        Box::new(WidthScaled::new(sgd(0.1), base(5))),
        Box::new(grouped(GroupRule::matrices_and_vectors(), 0.1)),
        Box::new(grouped(GroupRule::matrices_and_vectors(), 0.2)),
        Box::new(grouped(GroupRule::new("mine", 2, |_| 0), 0.1)),
    ];
    let texts: BTreeSet<String> = all.iter().map(|opt| opt.describe()).collect();
    assert_eq!(texts.len(), all.len(), "{texts:#?}");
}
