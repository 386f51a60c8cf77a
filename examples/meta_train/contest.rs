//! The final comparison: learned against hand-designed optimizers on fresh tasks.

use crate::plan::Plan;
use crate::settings::Parts;
use outerloop::lopt::baselines::nadamw_decays;
use outerloop::outer::benchmark::{
    time_steps, Contest, ContestConfig, ContestTask, Contestant, Receipt, Report, Results, Role,
};
use outerloop::outer::eval::EvalPoint;
use outerloop::prelude::*;

/// Steps that a final loss is averaged over: batch losses are noisy.
const TAIL: usize = 20;

/// Batches per evaluation: of 128, all test digits once.
const EVAL_BATCHES: u64 = 3;

/// Peak rates of the schedule with weight decay.
const PEAKS: [f64; 5] = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1];

fn boxed((label, optimizer): (String, NAdamW)) -> (String, Box<dyn Optimizer>) {
    (label, Box::new(optimizer))
}

/// The learning rates that hand-designed optimizers are swept over: half decades from 1e-4 to 3.
fn learning_rates() -> Vec<f64> {
    (-8..=1).map(|i| 10f64.powf(f64::from(i) / 2.0)).collect()
}

/// The comparison of theta with its start and with hand-designed optimizers, on fresh tasks. `key`: the
/// run's.
pub fn contest(plan: &Plan, key: Key, theta: &[f32]) -> Contest {
    let (config, Parts { lopt, family, .. }) = (&plan.settings.config, &plan.parts);
    let learned = lopt.opt_fn(theta);
    let untrained = lopt.opt_fn(&lopt.init(key.named("theta")));
    let rates = learning_rates();
    Contest {
        config: ContestConfig {
            num_steps: config.eval_steps,
            seeds: config.eval_seeds,
            seed: config.seed,
            eval_batches: EVAL_BATCHES,
            validation: Split::OuterValid,
            test: Some(Split::Test),
            ..ContestConfig::default()
        },
        tasks: vec![ContestTask { name: family.name(), family: family.clone() }],
        contestants: vec![
            Contestant::single(format!("{} (learned)", lopt.name()), Role::Learned, learned),
            Contestant::single(format!("{} (untrained)", lopt.name()), Role::Baseline, untrained),
            Contestant::swept("SGD", &rates, |lr| Box::new(Sgd::new(lr))),
            Contestant::swept("Adam", &rates, |lr| Box::new(Adam::new(lr))),
            Contestant::single("Adam, default lr 1e-3", Role::Baseline, Box::new(Adam::new(1e-3))),
            Contestant::labelled("NAdamW cosine decay", nadamw_decays(&PEAKS).into_iter().map(boxed)),
        ],
        reference: 3,
        // Keys that meta-training never used.
        key: Key::new(config.seed).named("comparison"),
    }
}

/// Trains fresh tasks with every contestant, prints the table and writes the report, which shows `training`, too.
pub fn compare(plan: &Plan, state: &LearnerState, training: Vec<Plot>, workers: &Workers) -> Result<()> {
    let theta = plan.learner.chosen_theta(state);
    let contest = contest(plan, state.key, &theta);
    let results = contest.run(workers)?;
    let mut report = Report::new("Meta-trained against hand-designed optimizers", &contest, &results);
    let theta: Vec<u8> = theta.iter().flat_map(|x| x.to_le_bytes()).collect();
    report.receipt = Receipt::new()
        .with("kernels", kernel::path())
        .with("learned optimizer", plan.parts.lopt.architecture())
        .with_hash("theta", &theta)
        .with("configuration", plan.settings.to_toml()?);
    for change in &plan.settings.overrides {
        report.receipt = report.receipt.with("changed on the way", change.to_string());
    }
    for warning in state.warnings() {
        report.receipt = report.receipt.with("warning", warning.to_string());
    }
    report.times = time_steps(&contest);
    report.training = training;
    table(&contest, &results, &report);
    let files = plan.dir.file("report");
    std::fs::create_dir_all(&files).map_err(|e| Error::io(&files, e))?;
    println!("wrote {}", report.save(&files)?.display());
    for warning in state.warnings() {
        println!("warning: {warning}");
    }
    Ok(())
}

/// Every contestant: training losses along the run of the variant chosen by them, and what the variant chosen
/// by validation does on images that nothing was chosen by.
fn table(contest: &Contest, results: &Results, report: &Report) {
    let ContestConfig { num_steps: steps, seeds, .. } = contest.config;
    let half = steps / 2;
    println!(
        "\n{seeds} fresh runs of {steps} steps. Training loss: mean of {TAIL} batches, learning rates chosen by it. \
         Test loss\n(± its standard error over the runs) and error rate: learning rates chosen by validation."
    );
    println!(
        "{:<28} {:>10} {:>10} {:>9}  {:>18} {:>7}  chosen by training / validation",
        "optimizer",
        format!("step {half}"),
        "end",
        "valid",
        "test",
        "wrong"
    );
    for (i, c) in contest.contestants.iter().enumerate() {
        let score = &report.scores.tasks[0][i];
        let curves: Vec<&Curve> = results.of(0, i, score.best).map(|r| &r.curve).collect();
        let mean = |step: u64| {
            let (end, n) = (step as usize + 1, curves.len() as f32);
            let tail = |c: &&Curve| {
                let window = &c.train[end.saturating_sub(TAIL)..end];
                window.iter().sum::<f32>() / window.len() as f32
            };
            curves.iter().map(tail).sum::<f32>() / n
        };
        let chosen = match c.variants.len() {
            1 => String::new(),
            _ => {
                let label = |v: usize| &c.variants[v].label;
                format!("{} / {}", label(score.best), label(score.best_by_validation))
            }
        };
        let wrong = match score.error_rate.is_nan() {
            true => "-".to_string(),
            false => format!("{:.1} %", 100.0 * score.error_rate),
        };
        let test = results.of(0, i, score.best_by_validation).flat_map(|r| {
            let at_end = |e: &&EvalPoint| e.split == Split::Test && e.step == steps;
            r.curve.evals.iter().find(at_end).map(|e| f64::from(e.loss))
        });
        let error = standard_error(&test.collect::<Vec<f64>>());
        let test = format!("{} ± {}", short(score.test as f32), short(error as f32));
        let [a, b, valid] = [mean(half), mean(steps), score.validation as f32].map(short);
        println!("{:<28} {a:>10} {b:>10} {valid:>9}  {test:>18} {wrong:>7}  {chosen}", c.name);
    }
}

/// Of the mean; 0 for a single number.
fn standard_error(x: &[f64]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let squares = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    (squares / (n - 1.0).max(1.0) / n).sqrt()
}

/// Three digits or more, in ten columns.
fn short(loss: f32) -> String {
    if (1e-3..1e5).contains(&loss.abs()) {
        format!("{loss:.4}")
    } else {
        format!("{loss:.2e}")
    }
}
