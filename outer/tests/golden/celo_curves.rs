//! Kind I, `I_celo_curves`: published learned optimizers and Adam train the digits MLP as the reference's do.

use crate::curves::mlp_config;
use crate::fixture::{get, number, numbers, Case, Errors, Outcome};
use crate::optimizers::{learned_optimizer, published_theta};
use outerloop_core::{Key, Optimizer, SingleTask, Split};
use outerloop_lopt::registry;
use outerloop_outer::eval::{training_curve, Curve, EvalConfig};
use outerloop_outer::Workers;
use outerloop_tasks::data::{digits, Splits};
use outerloop_tasks::image::MlpTask;
use serde_json::Value;

/// A loss of a curve at a step.
type OfCurve<'a> = &'a dyn Fn(&Curve, u64) -> f64;

pub fn celo_curves(case: &Case) -> Outcome {
    run(case).unwrap_or_else(|outcome| outcome)
}

/// The case's task for one seed: like the reference it trains on batches drawn with replacement. The test split's
/// batches hold the whole batches of the data in order.
fn seed_task(case: &Case, seed: u64, num_steps: u64) -> Result<SingleTask, Outcome> {
    let (config, data) = (mlp_config(case)?, digits());
    let (size, images) = (config.batch_size, data.len());
    let key = Key::new(2).fold_in(seed);
    let image = |key: Key| (key.uniform() * images as f64) as u32;
    let batch = |t| (0..size as u64).map(|i| image(key.fold_in(t).fold_in(i))).collect::<Vec<u32>>();
    let drawn: Vec<Vec<u32>> = (0..=num_steps).map(batch).collect();
    let all: Vec<u32> = (0..images as u32).collect();
    let whole: Vec<Vec<u32>> = all.chunks_exact(size).map(<[u32]>::to_vec).collect();
    let lists = [drawn, whole.clone(), whole.clone(), whole];
    let task = Splits::listed(data, lists).and_then(|splits| MlpTask::new(splits, config));
    task.map(SingleTask::new).map_err(Outcome::fail)
}

/// The entry's optimizer: one with a published theta, or a hand-designed one.
fn optimizer(entry: &Value) -> Result<Option<Box<dyn Optimizer>>, Outcome> {
    let named = entry.get("optimizer").and_then(Value::as_object).and_then(|o| o.iter().next());
    let Some((class, hyper)) = named else { return Ok(None) };
    let Some(file) = entry.get("theta_file").and_then(Value::as_str) else {
        return registry::hand_designed::<f32>(class, hyper).map(Some).map_err(Outcome::fail);
    };
    let lopt = learned_optimizer::<f32>(&Value::String(class.clone()), hyper)?;
    let theta = published_theta(file, &*lopt)?;
    Ok(Some(lopt.opt_fn(&theta)))
}

fn run(case: &Case) -> Result<Outcome, Outcome> {
    let mut errors = Errors::default();
    let workers = Workers::<f32>::new(0).expect("threads");
    let (seeds, num_steps) = (number(case.get("seeds")) as u64, number(case.get("num_steps")) as u64);
    let tasks: Vec<SingleTask> =
        (0..seeds).map(|i| seed_task(case, i, num_steps)).collect::<Result<_, _>>()?;
    let batch_size = mlp_config(case)?.batch_size;
    let steps: Vec<u64> = numbers(case.get("steps")).into_iter().map(|t| t as u64).collect();
    let config = EvalConfig {
        num_steps,
        // Every step of the list is among the evaluated ones.
        eval_every: steps.iter().copied().fold(0, divisor),
        eval_batches: (digits().len() / batch_size) as u64,
        splits: vec![Split::Test],
        ..EvalConfig::default()
    };
    for (name, entry) in case.json.as_object().expect("optimizers by name") {
        let Some(opt) = optimizer(entry)? else { continue };
        let mut numbered: Vec<u64> = (0..seeds).collect();
        let curves = workers.map(&mut numbered, |worker, _, seed| {
            let key = Key::new(1).fold_in(*seed);
            training_curve(&tasks[*seed as usize], &*opt, &config, key, worker)
        });
        let batch = |c: &Curve, t: u64| f64::from(c.train[t as usize]);
        let full =
            |c: &Curve, t: u64| c.evals.iter().find(|e| e.step == t).map_or(f64::NAN, |e| f64::from(e.loss));
        let of: [(&str, OfCurve<'_>); 2] = [("batch_loss", &batch), ("full_loss", &full)];
        for (kind, of) in of {
            let band = get(entry, kind);
            let (mean, std) = (numbers(get(band, "mean")), numbers(get(band, "std")));
            for ((&t, &mean), &std) in steps.iter().zip(&mean).zip(&std) {
                let got = curves.iter().map(|c| of(c, t)).sum::<f64>() / seeds as f64;
                // Both sides are means of as many seeds: their difference has √2 of one mean's error.
                let error = std * (2.0 / seeds as f64).sqrt();
                errors.check(&format!("{name}, {kind} at {t}"), got, mean, 4.0 * error);
            }
        }
    }
    Ok(errors.done())
}

/// The greatest common divisor.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        divisor(b, a % b)
    }
}
