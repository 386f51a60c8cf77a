//! Kinds G and I: distributions and learning curves, which our own random numbers must reproduce
//! statistically.

use crate::fixture::{array, get, number, numbers, Case, Errors, Outcome};
use crate::images::nonlinearity;
use crate::optimizers::learned_optimizer;
use outerloop_core::tensor::{Backend, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, Float, Key, LearnedOptimizer, SingleTask, Task};
use outerloop_lopt::{hand::Adam, registry};
use outerloop_outer::adjoint::{StepWeights, SweepConfig};
use outerloop_outer::estimator::Antithetic;
use outerloop_outer::eval::{training_curves, EvalConfig};
use outerloop_outer::{
    FullGrad, GradientLearner, MetaLoss, TruncatedPes, TruncatedStep, TruncationSchedule, Workers,
};
use outerloop_tasks::data::{digits, Splits};
use outerloop_tasks::image::{MlpConfig, MlpTask};
use serde_json::Value;
use std::sync::Arc;

/// The MLP on all digits that a case's `task` describes, e.g. `image MLP 64-32-10 relu on digits, batch 128`.
fn digits_mlp(case: &Case) -> Result<MlpTask, Outcome> {
    MlpTask::new(Splits::undivided(digits()), mlp_config(case)?).map_err(Outcome::fail)
}

/// Its sizes.
pub fn mlp_config(case: &Case) -> Result<MlpConfig, Outcome> {
    let text = case.get("task").as_str().unwrap_or("");
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || ",;:=()".contains(c)).collect();
    let sizes = |w: &&str| w.split('-').map(|n| n.parse().ok()).collect::<Option<Vec<usize>>>();
    let sizes = words.iter().filter_map(sizes).find(|s| s.len() > 1);
    let batch = words.iter().position(|w| w.starts_with("batch"));
    let after_batch = batch.and_then(|i| words[i..].iter().take(3).find_map(|w| w.parse().ok()));
    match (sizes.as_deref(), after_batch) {
        (Some([64, hidden @ .., 10]), Some(batch_size)) => {
            let (hidden, nonlinearity) = (hidden.to_vec(), nonlinearity(text));
            Ok(MlpConfig { hidden, nonlinearity, batch_size, ..MlpConfig::default() })
        }
        _ => Err(Outcome::fail(format!("task: expected `64-...-10` and `batch N`, got `{text}`"))),
    }
}

pub fn inner_curves(case: &Case) -> Outcome {
    run_inner_curves(case).unwrap_or_else(|outcome| outcome)
}

fn run_inner_curves(case: &Case) -> Result<Outcome, Outcome> {
    let mut errors = Errors::default();
    let family = SingleTask::<f32>::new(digits_mlp(case)?);
    let workers = Workers::new(0).expect("threads");
    let seeds = number(case.get("seeds")) as u64;
    let config = EvalConfig { num_steps: number(case.get("num_steps")) as u64, ..EvalConfig::default() };
    let steps: Vec<usize> = numbers(case.get("steps")).into_iter().map(|x| x as usize).collect();
    for (name, c) in case.json.as_object().expect("optimizers by name") {
        let optimizer = c.get("optimizer").and_then(Value::as_object).and_then(|o| o.iter().next());
        let Some((class, hyper)) = optimizer else { continue };
        let opt = registry::hand_designed::<f32>(class, hyper).map_err(Outcome::fail)?;
        let curves = training_curves(&family, &*opt, &config, Key::new(1), seeds, &workers);
        let band = get(c, "window_batch_loss");
        let (mean, std) = (numbers(get(band, "mean")), numbers(get(band, "std")));
        // Batch losses averaged over ten steps; at step 0 the loss of the first batch.
        for (i, &t) in steps.iter().enumerate() {
            let from = if t < 10 { t } else { t - 9 };
            let of = |c: &outerloop_outer::eval::Curve| {
                c.train[from..=t].iter().map(|x| f64::from(*x)).sum::<f64>() / (t - from + 1) as f64
            };
            let got = curves.iter().map(of).sum::<f64>() / seeds as f64;
            let (mean, std) = if t < 10 {
                let batch = get(c, "batch_loss");
                (numbers(get(batch, "mean"))[i], numbers(get(batch, "std"))[i])
            } else {
                (mean[i], std[i])
            };
            // Both sides are means of as many seeds: their difference has √2 of one mean's error.
            let error = std * (2.0 / seeds as f64).sqrt();
            errors.check(&format!("{name} at {t}"), got, mean, 4.0 * error);
        }
    }
    Ok(errors.done())
}

pub fn meta_train_pes(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let workers = Workers::new(0).expect("threads");
    let pes = get(case.get("estimator"), "TruncatedPES");
    let range = numbers(get(case.get("truncation_schedule"), "LogUniformLengthSchedule"));
    let lopt: Arc<dyn LearnedOptimizer> =
        match learned_optimizer(case.get("learned_optimizer"), &serde_json::json!({})) {
            Ok(l) => l.into(),
            Err(outcome) => return outcome,
        };
    let schedule = TruncationSchedule::LogUniform { min: range[0] as u64, max: range[1] as u64 };
    let family = match digits_mlp(case) {
        Ok(task) => Arc::new(SingleTask::new(task)),
        Err(outcome) => return outcome,
    };
    let step = TruncatedStep::new(family, lopt.clone(), schedule).expect("a valid schedule");
    let common = Antithetic {
        num_tasks: number(get(pes, "num_tasks")) as usize,
        trunc_length: number(get(pes, "trunc_length")) as usize,
        std: number(get(pes, "std")) as f32,
        ..Antithetic::default()
    };
    let outer_steps = number(case.get("outer_iterations")) as u64;
    let lr = number(get(get(case.get("outer_optimizer"), "Adam"), "learning_rate"));
    let estimator = Box::new(TruncatedPes::new(step, common).expect("valid settings"));
    let learner = GradientLearner::new(lopt.clone(), vec![estimator], Box::new(Adam::new(lr)), outer_steps)
        .expect("one estimator");
    let mut state = learner.init(Key::new(2), &workers).expect("a fresh state");
    let recorded: Vec<u64> =
        numbers(case.get("recorded_outer_iterations")).into_iter().map(|x| x as u64).collect();
    let at = lopt.theta_layout().entry("log_lr").expect("LearnableAdam has it").offset;
    let band = get(case.get("theta_at_recorded"), "log_lr");
    let (mean, std) = (numbers(get(band, "mean")), numbers(get(band, "std")));
    let mut losses = Vec::new();
    for t in 0..=outer_steps {
        if let Some(i) = recorded.iter().position(|r| *r == t) {
            let got = f64::from(state.theta.params[at]);
            errors.check(&format!("log_lr at {t}"), got, mean[i], (4.0 * std[i]).max(0.6));
        }
        if t < outer_steps {
            losses.push(learner.step(&mut state, &workers).mean_loss);
        }
    }
    let band = case.get("mean_loss_in_window");
    let windows = array(case.get("loss_windows"));
    for ((w, mean), std) in windows.iter().zip(numbers(get(band, "mean"))).zip(numbers(get(band, "std"))) {
        let w = numbers(w);
        let part = &losses[w[0] as usize..w[1] as usize];
        let got = part.iter().sum::<f64>() / part.len() as f64;
        // 0.6 in log_lr is 0.45 in the logarithm of the loss (the reference's own late windows: 0.33
        // in log_lr between losses 0.164 and 0.129).
        errors.check(&format!("mean loss in {w:?}"), got, mean, (4.0 * std).max(0.45 * mean));
    }
    errors.done()
}

/// A task whose runs see one batch, again and again.
struct OneBatch<T>(T);

impl<E: Float, B: Backend<E>, T: Task<E, B>> Task<E, B> for OneBatch<T> {
    type Params = T::Params;
    type Batch = T::Batch;
    fn name(&self) -> String {
        "one batch".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        self.0.init(dev, key)
    }
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        self.0.batch(dev, BatchKey { step: 0, ..at })
    }
    fn loss<M: Mode<E, B>>(
        &self,
        params: &Self::Params,
        batch: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.0.loss(params, batch, m)
    }
}

pub fn meta_train_unrolled(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let workers = Workers::new(1).expect("one thread");
    let lopt: Arc<dyn LearnedOptimizer> =
        match learned_optimizer(case.get("learned_optimizer"), &serde_json::json!({})) {
            Ok(l) => l.into(),
            Err(outcome) => return outcome,
        };
    let task = match digits_mlp(case) {
        Ok(task) => task,
        Err(outcome) => return outcome,
    };
    let at = lopt.theta_layout().entry("log_lr").expect("LearnableAdam has it").offset;
    let outer_steps = number(case.get("outer_iterations")) as u64;
    let lr = number(get(get(case.get("outer_optimizer"), "Adam"), "learning_rate"));
    let seeds = number(case.get("seeds")) as u64;
    let run = |seed: u64| {
        let step = TruncatedStep::new(
            Arc::new(SingleTask::new(OneBatch(task.clone()))),
            lopt.clone(),
            TruncationSchedule::Constant(4),
        );
        let step = step.expect("a valid schedule").with_meta_loss(MetaLoss::SameBatch);
        let sweep = SweepConfig { weights: StepWeights::Final, ..SweepConfig::default() };
        let grad = Box::new(FullGrad::new(step, 1, sweep).expect("valid settings"));
        let learner = GradientLearner::new(lopt.clone(), vec![grad], Box::new(Adam::new(lr)), outer_steps);
        let learner = learner.expect("one estimator");
        let mut state = learner.init(Key::new(seed), &workers).expect("a fresh state");
        for _ in 0..outer_steps {
            learner.step(&mut state, &workers);
        }
        f64::from(state.theta.params[at])
    };
    let ends: Vec<f64> = (0..seeds).map(run).collect();
    let band = get(case.get("final_theta"), "log_lr");
    let (mean, std) = (number(get(band, "mean")), number(get(band, "std")));
    for (seed, end) in ends.iter().enumerate() {
        errors.check(&format!("final log_lr of seed {seed}"), *end, mean, 4.0 * std);
    }
    let got = ends.iter().sum::<f64>() / seeds as f64;
    errors.check("final log_lr, mean", got, mean, 4.0 * std * (2.0 / seeds as f64).sqrt());
    errors.done()
}

/// Largest distance of a sample's distribution function from given quantiles.
fn check_quantiles(errors: &mut Errors, what: &str, draws: &mut [f64], c: &Value) {
    draws.sort_by(f64::total_cmp);
    let n = draws.len() as f64;
    for (level, q) in numbers(get(c, "quantile_levels")).into_iter().zip(numbers(get(c, "quantiles"))) {
        if level == 0.0 || level == 1.0 {
            continue;
        }
        // Lengths are whole numbers: the level lies between P(x < q) and P(x <= q).
        let below = draws.partition_point(|x| *x < q) as f64 / n;
        let upto = draws.partition_point(|x| *x <= q) as f64 / n;
        let got = level.clamp(below, upto);
        errors.check(&format!("{what}: probability of {q}"), got, level, 4.0 * (2.0 / n).sqrt());
    }
}

pub fn distributions(case: &Case) -> Outcome {
    let mut errors = Errors::default();
    let n = 100_000;
    let lengths = |s: &TruncationSchedule, outer: u64| -> Vec<f64> {
        let draw = |i| s.length(outer, Key::new(9).fold_in(i)).map_or(f64::INFINITY, |l| l as f64);
        (0..n).map(draw).collect()
    };
    for (name, c) in case.json.as_object().expect("distributions by name") {
        match c.get("class").and_then(Value::as_str) {
            Some("LogUniformLengthSchedule") => {
                let bound = |key| number(get(c, key)) as u64;
                let s = TruncationSchedule::LogUniform { min: bound("min_length"), max: bound("max_length") };
                check_quantiles(&mut errors, name, &mut lengths(&s, 0), c);
            }
            Some("ScheduledTruncationSchedule") => {
                let text = get(c, "schedule").as_str().expect("a description");
                let lists: Vec<Vec<f64>> = text
                    .split('[')
                    .skip(1)
                    .map(|l| {
                        l.split(']')
                            .next()
                            .unwrap_or("")
                            .split(',')
                            .filter_map(|x| x.trim().parse().ok())
                            .collect()
                    })
                    .collect();
                let knots = lists[0].iter().zip(&lists[1]).map(|(t, v)| (*t as u64, *v)).collect();
                let std = number(get(c, "noise_std"));
                let min_length = c.get("min_length").map_or(10, |v| number(v) as u64);
                let s = TruncationSchedule::Scheduled { knots, std, min_length };
                let outer = number(get(c, "outer_iteration")) as u64;
                match c.get("length") {
                    Some(length) => errors.check(name, lengths(&s, outer)[0], number(length), 1e-9),
                    None => check_quantiles(&mut errors, name, &mut lengths(&s, outer), c),
                }
            }
            Some("NeverEndingTruncationSchedule") => {
                let ends = TruncationSchedule::NeverEnding.length(0, Key::new(0)).is_some();
                errors.check(name, f64::from(u8::from(ends)), 0.0, 0.5);
            }
            _ => {}
        }
    }
    errors.done()
}
