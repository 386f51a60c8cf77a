//! Kind F: estimator functions, and estimators end to end from explicit parameters, batches and
//! perturbations.

use crate::fixture::{
    array, f32_tolerance, flatten, get, inputs, number, numbers, tree_lane, Case, Errors, Outcome,
};
use crate::optimizers::learned_optimizer;
use crate::tasks::{GoldenProblem, GoldenTask, Place};
use outerloop_core::tensor::{Cpu, Host};
use outerloop_core::{BatchKey, FlatFamily, FlatTask, Float, Key, Layout, LearnedOptimizer, Split};
use outerloop_outer::episode::EpisodeKeys;
use outerloop_outer::estimator::{
    Antithetic, EstimatorState, FullLoss, NextAccumulator, Noise, PesTerms, TerminalWeight, WindowLoss,
};
use outerloop_outer::unroll::Window;
use outerloop_outer::{
    Estimate, FullEs, GradientEstimator, MetaLoss, TruncatedEs, TruncatedPes, TruncatedStep,
    TruncationSchedule, Workers,
};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// `[steps, tasks]` input numbers, one task.
fn column(v: &Value, task: usize) -> Vec<f64> {
    array(v).iter().map(|row| f64::from(number(&array(row)[task]) as f32)).collect()
}

fn flags(v: &Value, task: usize) -> Vec<bool> {
    let flag =
        |row: &Value| array(row)[task].as_bool().unwrap_or_else(|| panic!("expected true or false in {row}"));
    array(v).iter().map(flag).collect()
}

fn window(case: &Value, loss: &str, task: usize) -> Window {
    let loss = column(get(case, loss), task);
    let steps = loss.len();
    let flags_or = |key: &str, default: bool| case.get(key).map_or(vec![default; steps], |v| flags(v, task));
    Window { mask: flags_or("mask", true), is_done: flags_or("is_done", false), loss, ..Window::default() }
}

fn option(case: &Value, key: &str) -> Option<f64> {
    case.get(key).filter(|v| !v.is_null()).map(number)
}

/// `Σᵢ Σₖ cᵢₖ dᵢₖ / (2 σ² N)`, written out again for the test.
fn weighted(std: f64, terms: &[(f64, Vec<f64>)], tasks: usize) -> Vec<f64> {
    let mut grad = vec![0.0; terms[0].1.len()];
    for (c, d) in terms {
        for (g, d) in grad.iter_mut().zip(d) {
            *g += c * d / (2.0 * std * std * tasks as f64);
        }
    }
    grad
}

pub fn functions(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let (std, tasks) = (number(case.get("std")), number(case.get("num_tasks")) as usize);
    let shapes = case.get("theta_shapes").as_object().expect("theta_shapes is a tree");
    let dims = |v: &Value| numbers(v).into_iter().map(|x| x as usize).collect::<Vec<usize>>();
    let layout = Layout::new(
        shapes.iter().map(|(k, v)| (k.clone(), if *v == Value::Array(vec![]) { vec![] } else { dims(v) })),
    );
    let cases = |kind: &str| get(&case.json, kind).as_object().expect("cases by name").clone();

    for (name, c) in cases("pes") {
        let sign = option(&c, "sign_delta_loss_scalar");
        let want = get(&c, "f64");
        let mut terms = Vec::new();
        for i in 0..tasks {
            let (pos, neg) = (window(&c, "p_loss", i), window(&c, "n_loss", i));
            let t = PesTerms::new(&pos, &neg, WindowLoss::Mean, sign, TerminalWeight::CurrentWindow);
            let eps: Vec<f64> = tree_lane(get(&c, "vec_pos"), &layout, i);
            let acc: Vec<f64> = tree_lane(get(&c, "accumulator"), &layout, i);
            let sum: Vec<f64> = acc.iter().zip(&eps).map(|(a, e)| a + e).collect();
            let next = match t.next {
                NextAccumulator::Add => &sum,
                NextAccumulator::Replace => &eps,
                NextAccumulator::Zero => unreachable!("the reference never zeroes"),
            };
            let want_next: Vec<f64> = layout
                .entries()
                .iter()
                .flat_map(|e| numbers(&array(get(get(want, "new_accumulator"), &e.name))[i]))
                .collect();
            errors.check_tree(&format!("pes {name} new_accumulator"), next, &want_next, &layout, 1e-9);
            terms.extend([(t.before, sum), (t.after, eps)]);
        }
        let got = weighted(std, &terms, tasks);
        errors.check_tree(&format!("pes {name}"), &got, &flatten(get(want, "grad"), &layout), &layout, 1e-9);
    }
    for (name, c) in cases("es") {
        let sign = option(&c, "sign_delta_loss_scalar");
        let lane = |i| {
            let (pos, neg) = (window(&c, "p_loss", i), window(&c, "n_loss", i));
            (
                TruncatedEs::difference(&pos, &neg, WindowLoss::Mean, sign),
                tree_lane(get(&c, "vec_pos"), &layout, i),
            )
        };
        let got = weighted(std, &(0..tasks).map(lane).collect::<Vec<_>>(), tasks);
        errors.check_tree(
            &format!("es {name}"),
            &got,
            &flatten(get(get(&c, "f64"), "grad"), &layout),
            &layout,
            1e-9,
        );
    }
    for (name, c) in cases("full_es") {
        let loss = full_loss(&c);
        let (clip, sign) = (option(&c, "clip_loss_diff"), option(&c, "sign_delta_loss_scalar"));
        let lane = |i| {
            let of = |key| loss.of_steps(&column(get(&c, key), i)).expect("a loss of the steps");
            (
                FullEs::difference(of("p_loss"), of("n_loss"), clip, sign),
                tree_lane(get(&c, "vec_pos"), &layout, i),
            )
        };
        let got = weighted(std, &(0..tasks).map(lane).collect::<Vec<_>>(), tasks);
        errors.check_tree(
            &format!("full_es {name}"),
            &got,
            &flatten(get(get(&c, "f64"), "grad"), &layout),
            &layout,
            1e-9,
        );
    }
    if let Some(c) = case.json.get("full_es_nonfinite_losses") {
        let (pos, neg) = (numbers(get(c, "pos_loss")), numbers(get(c, "neg_loss")));
        // A non-finite difference is NaN for us, and masks its lane: it counts as 0.
        let lane = |i: usize| {
            let d = FullEs::difference(pos[i], neg[i], None, None);
            (if d.is_nan() { 0.0 } else { d }, tree_lane(get(c, "vec_pos"), &layout, i))
        };
        let got = weighted(std, &(0..pos.len()).map(lane).collect::<Vec<_>>(), pos.len());
        errors.check_tree("full_es nonfinite", &got, &flatten(get(c, "grad_f32"), &layout), &layout, 1e-4);
    }
    errors.done()
}

fn full_loss(case: &Value) -> FullLoss {
    match get(case, "loss_type").as_str() {
        Some("avg") => FullLoss::Mean,
        Some("min") => FullLoss::Min,
        Some("last") => FullLoss::Last,
        Some("last_recompute") => {
            let batches = number(get(case, "recompute_samples")) as usize;
            FullLoss::LastRecomputed { batches, split: Split::OuterValid }
        }
        other => panic!("unknown loss_type {other:?}"),
    }
}

/// The case's problems: which one a key asks for follows from the keys that our estimators derive.
pub struct GoldenFamily<E: Float> {
    tasks: HashMap<Key, Arc<dyn FlatTask<E>>>,
}

impl<E: Float> FlatFamily<E> for GoldenFamily<E> {
    fn name(&self) -> String {
        "golden".into()
    }
    fn sample_task(&self, key: Key) -> Arc<dyn FlatTask<E>> {
        self.tasks[&key].clone()
    }
}

pub const RUN_KEY: u64 = 0;
const EPISODES: u64 = 8;

/// In which call of the whole sequence step `step` of run `episode` happens: the inverse of the rule
/// that a run of `length` steps is followed by one call that resets.
fn call_index(initial: u64, length: u64, episode: u64, step: u64) -> u64 {
    if episode == 0 {
        return step - initial;
    }
    let first = length.saturating_sub(initial).max(1);
    first + (episode - 1) * (length + 1) + 1 + step
}

pub fn family<E: Float>(case: &Case, initial: &[u64], length: u64, window: usize) -> GoldenFamily<E>
where
    Cpu: Host<E>,
{
    let problem = Arc::new(GoldenProblem::of_estimator_case(&case.json));
    let state = EstimatorState::new(Key::new(RUN_KEY));
    let mut map: HashMap<Key, Arc<dyn FlatTask<E>>> = HashMap::new();
    for (lane, &start) in initial.iter().enumerate() {
        for episode in 0..EPISODES {
            let keys = EpisodeKeys::new(state.lane_key(lane), episode);
            let recompute = keys.data.named("recompute");
            let place = move |at: BatchKey| {
                if at.key == recompute {
                    return Place { outer: true, window: None, step: at.step as usize, lane };
                }
                let call = call_index(start, length, episode, at.step) as usize;
                let outer = at.split == Split::OuterValid;
                Place {
                    outer,
                    window: (window > 0).then(|| call / window),
                    step: if window > 0 { call % window } else { call },
                    lane,
                }
            };
            let task = GoldenTask::<E>::new(problem.clone(), lane, episode > 0, Arc::new(place));
            map.insert(keys.task, Arc::new(task));
        }
    }
    GoldenFamily { tasks: map }
}

fn given(case: &Value, per_truncation: bool, layout: &Arc<Layout>) -> Noise {
    let key = if per_truncation { "vec_pos_per_truncation" } else { "vec_pos" };
    let (values, layout) = (get(case, key).clone(), layout.clone());
    Noise::Given(Arc::new(move |at, eps| {
        let tree = if per_truncation { &array(&values)[at.outer_step as usize] } else { &values };
        eps.copy_from_slice(&tree_lane::<f32>(tree, &layout, at.lane));
    }))
}

fn antithetic(case: &Case, noise: Noise, trunc_length: usize) -> Antithetic {
    Antithetic {
        num_tasks: number(case.get("num_tasks")) as usize,
        trunc_length,
        std: number(case.get("std")) as f32,
        window_loss: WindowLoss::Mean,
        sign: option(&case.json, "sign_delta_loss_scalar"),
        noise,
        ..Antithetic::default()
    }
}

fn compare(errors: &mut Errors, case: &Case, what: &str, got: &Estimate, want: &Value, layout: &Layout) {
    let grad = flatten(get(want, "grad"), layout);
    errors.check_all(&format!("{what} grad"), &got.grad, &grad, f32_tolerance(case.gap("grad"), &grad));
    let loss = number(get(want, "mean_loss"));
    errors.check(&format!("{what} mean_loss"), got.mean_loss, loss, 1e-5 * loss.abs().max(1e-3));
}

pub fn end_to_end(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let lopt: Arc<dyn LearnedOptimizer> =
        match learned_optimizer(case.get("learned_optimizer"), case.get("hyperparameters")) {
            Ok(l) => l.into(),
            Err(skip) => return skip,
        };
    let layout = lopt.theta_layout();
    let window = number(case.get("trunc_length")) as usize;
    let length = number(get(case.get("truncation_schedule"), "ConstantTruncationSchedule")) as u64;
    let initial: Vec<u64> = numbers(case.get("initial_inner_step")).into_iter().map(|x| x as u64).collect();
    let meta_loss = match case.get("meta_loss_split").as_str() {
        None => MetaLoss::Train,
        Some("same_data") => MetaLoss::SameBatch,
        Some("outer_valid") => MetaLoss::Fresh(Split::OuterValid),
        Some(other) => return Outcome::fail(format!("unknown meta_loss_split {other}")),
    };
    let family = Arc::new(family(case, &initial, length, window));
    let step = TruncatedStep::new(family, lopt, TruncationSchedule::Constant(length))
        .expect("a valid schedule")
        .with_meta_loss(meta_loss);
    let common = antithetic(case, given(&case.json, true, &layout), window);
    let pes = case.get("estimator") == "TruncatedPES";
    let estimator: Box<dyn GradientEstimator> = if pes {
        let pes = TruncatedPes::new(step, common).expect("valid settings");
        Box::new(pes.with_terminal_weight(TerminalWeight::CurrentWindow))
    } else {
        Box::new(TruncatedEs::new(step, common).expect("valid settings"))
    };
    let workers = Workers::new(2).expect("two threads");
    let thetas = array(case.get("theta_per_truncation"));
    let theta = |t: usize| -> Vec<f32> {
        layout.entries().iter().flat_map(|e| inputs(get(&thetas[t], &e.name))).collect()
    };
    let mut state = estimator.init(&theta(0), Key::new(RUN_KEY), &workers);
    for (lane, start) in state.lanes.iter_mut().zip(&initial) {
        lane.clock.inner_step = *start;
    }
    for (t, want) in array(case.get("results_f64")).iter().enumerate() {
        let got = estimator.estimate(&theta(t), &mut state, t as u64, &workers);
        let what = format!("truncation {t}");
        compare(&mut errors, case, &what, &got, want, &layout);
        for (i, lane) in state.lanes.iter().enumerate() {
            let last = column(get(get(want, "pos"), "inner_step"), i).pop().unwrap_or(f64::NAN);
            errors.check(&format!("{what} inner_step[{i}]"), lane.clock.inner_step as f64, last, 0.5);
            if pes {
                let acc: Vec<f64> = layout
                    .entries()
                    .iter()
                    .flat_map(|e| numbers(&array(get(get(want, "new_accumulator"), &e.name))[i]))
                    .collect();
                errors.check_tree(
                    &format!("{what} accumulator[{i}]"),
                    &lane.accumulator,
                    &acc,
                    &layout,
                    1e-5,
                );
            }
            for (sign, trajectory) in ["pos", "neg"].iter().zip(&lane.trajectories) {
                let Some(after) = want.get("params_after").and_then(|p| p.get(sign)) else { continue };
                let x = numbers(&array(after)[i]);
                let tolerance = 2e-5 * crate::fixture::magnitude(&x);
                errors.check_all(
                    &format!("{what} params {sign}[{i}]"),
                    &trajectory.opt.params,
                    &x,
                    tolerance,
                );
            }
        }
    }
    errors.done()
}

pub fn full(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let lopt: Arc<dyn LearnedOptimizer> =
        match learned_optimizer(case.get("learned_optimizer"), case.get("hyperparameters")) {
            Ok(l) => l.into(),
            Err(skip) => return skip,
        };
    let layout = lopt.theta_layout();
    let length = number(case.get("length")) as u64;
    let tasks = number(case.get("num_tasks")) as usize;
    let family = Arc::new(family(case, &vec![0; tasks], length, 0));
    let step =
        TruncatedStep::new(family, lopt, TruncationSchedule::Constant(length)).expect("a valid schedule");
    let common = antithetic(case, given(&case.json, false, &layout), 1);
    let mut es = FullEs::new(step, common, full_loss(&case.json)).expect("valid settings");
    if let Some(clip) = option(&case.json, "clip_loss_diff") {
        es = es.with_clip(clip).expect("a positive clip");
    }
    let workers = Workers::new(2).expect("two threads");
    let theta: Vec<f32> =
        layout.entries().iter().flat_map(|e| inputs(get(case.get("theta"), &e.name))).collect();
    let mut state = es.init(&theta, Key::new(RUN_KEY), &workers);
    let got = es.estimate(&theta, &mut state, 0, &workers);
    compare(&mut errors, case, "", &got, case.get("results_f64"), &layout);
    errors.done()
}
