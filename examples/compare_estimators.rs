//! Meta-gradient estimators at equal compute: truncated ES, PES, unrolled gradients, their mix, and PES with an
//! analytic control variate meta-train the same learned optimizer on the same tasks.
//!
//! Before that the lab measures them at the first theta: bias and cosine against a long measurement of noise-reuse ES,
//! variance, and signal to noise per inner step and per second; and how variance grows with the length of runs. The last
//! row is what `lab::choose` takes at the first theta, by this machine's seconds: the only one that may change from
//! machine to machine.
//!
//! Compute is counted in gradient equivalents, the cost of one loss and gradient of the task: an inner
//! step of an ES-type estimator is one; a step of an unrolled window is one forward and, by the timing of
//! this machine, about two for loss, gradient and Hessian-vector product backward. Updates of the
//! optimizer are not counted; the seconds in the table include everything.
//!
//! `cargo run --release --example compare_estimators` takes a few minutes on 2 cores.

use clap::Parser;
use outerloop::outer::lab::{candidates, choose, Comparison, Experiment, Kind, Truth};
use outerloop::outer::{Emphasis, LossScale, Mixed, Objective, PesAnalytic};
use outerloop::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Meta-train with several estimators at equal compute.
#[derive(Parser)]
struct Options {
    /// Gradient equivalents per estimator and seed.
    #[arg(long, default_value_t = 400_000)]
    budget: u64,
    /// Meta-training runs per estimator.
    #[arg(long, default_value_t = 2)]
    seeds: u64,
    /// Length of inner runs, in steps.
    #[arg(long, default_value_t = 200)]
    length: u64,
    /// Inner steps per estimate.
    #[arg(long, default_value_t = 20)]
    trunc_length: usize,
    /// Tasks trained side by side.
    #[arg(long, default_value_t = 8)]
    num_tasks: usize,
    /// Standard deviation of the perturbations of theta.
    #[arg(long, default_value_t = 0.01)]
    std: f32,
    /// Learning rate of the outer Adam.
    #[arg(long, default_value_t = 3e-3)]
    outer_lr: f64,
    /// Samples of the lab per estimator, each a run long; 0: no lab.
    #[arg(long, default_value_t = 16)]
    lab_samples: u64,
    /// Worker threads; 0: one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Where `compare_estimators.svg` and `.csv` are written.
    #[arg(long, default_value = "runs/compare_estimators")]
    out: PathBuf,
}

/// Evaluations per run.
const LOOKS: u64 = 10;
/// Fresh starts per evaluation.
const STARTS: u64 = 4;
/// Gradient equivalents of one unrolled step: forward one, backward loss, gradient and H v.
const UNROLLED: f64 = 1.0 + 2.1;

/// An estimator at work.
struct Entry {
    name: &'static str,
    /// Gradient equivalents per task and step of a window.
    cost: f64,
    learner: GradientLearner,
    /// The same once more, for the lab.
    estimator: Box<dyn GradientEstimator>,
}

/// What theta is worth on starts that meta-training never sees, the same at every look and for every estimator.
struct Look {
    /// Gradient equivalents so far.
    at: f64,
    objective: f64,
    /// Training loss, mean of the last 20 steps.
    train: f64,
    /// Loss on the validation split after the last step.
    valid: f64,
}

struct Run {
    looks: Vec<Look>,
    outer_steps: u64,
    seconds: f64,
}

fn family() -> Arc<dyn FlatFamily> {
    Arc::new(SingleTask::new(ImageMlp::digits()))
}

fn lopt() -> Arc<dyn LearnedOptimizer> {
    Arc::new(MlpLopt { hidden_size: 16, exp_mult: 0.1, ..MlpLopt::default() })
}

impl Options {
    /// The estimators, all of them checked before the first one runs.
    fn entries(&self) -> Result<Vec<Entry>> {
        let common = self.antithetic();
        let (n, k) = (self.num_tasks, self.trunc_length);
        // Every state is kept: windows are short.
        let sweep = SweepConfig { memory: Memory::All, ..SweepConfig::default() };
        Ok(vec![
            self.entry("truncated ES", 2.0, |s| Ok(Box::new(TruncatedEs::new(s, common.clone())?)))?,
            self.entry("PES", 2.0, |s| Ok(Box::new(TruncatedPes::new(s, common.clone())?)))?,
            self.entry("noise-reuse ES", 2.0, |s| Ok(Box::new(NoiseReuseEs::new(s, common.clone())?)))?,
            self.entry("unrolled gradient", UNROLLED, |s| {
                Ok(Box::new(TruncatedGrad::new(s, n, k, sweep.clone())?))
            })?,
            self.entry("mixed", 2.0 * UNROLLED, |s| {
                Ok(Box::new(Mixed::new(s, common.clone(), sweep.clone())?))
            })?,
            self.entry("PES + analytic", 2.0 + UNROLLED, |s| {
                Ok(Box::new(PesAnalytic::new(s, common.clone(), Memory::All)?))
            })?,
        ])
    }

    fn entry(
        &self,
        name: &'static str,
        cost: f64,
        make: impl Fn(TruncatedStep) -> Result<Box<dyn GradientEstimator>>,
    ) -> Result<Entry> {
        let step = self.runs(self.length)?.with_offset(InitialOffset::BurnIn(self.length));
        let (estimator, again) = (make(step.clone())?, make(step)?);
        let outer_steps = (self.budget as f64 / self.per_step(cost)) as u64;
        if outer_steps == 0 {
            let why = format!("one outer step of {name} costs {}", self.per_step(cost));
            return Err(Error::invalid(format!("--budget {}", self.budget), why));
        }
        let outer = Clip::new(ClipRule::Value(3.0), Box::new(Adam::new(self.outer_lr)));
        let learner = GradientLearner::new(lopt(), vec![estimator], Box::new(outer), outer_steps)?;
        Ok(Entry { name, cost, learner, estimator: again })
    }

    fn antithetic(&self) -> Antithetic {
        Antithetic {
            num_tasks: self.num_tasks,
            trunc_length: self.trunc_length,
            std: self.std,
            ..Antithetic::default()
        }
    }

    /// What the lab chooses at the first theta, among settings around these.
    fn auto(&self, workers: &Workers) -> Result<Entry> {
        let common = self.antithetic();
        let step = self.runs(self.length)?.with_offset(InitialOffset::BurnIn(self.length));
        let (theta, key) = (lopt().init(Key::new(0)), Key::new(0).named("choice"));
        let at = Experiment { theta: &theta, key, samples: 8, warmup: 0, estimates: 4, workers };
        let settings = choose(&candidates(&step, &common)?, &at)?.settings();
        let cost = match settings.kind {
            Kind::Grad => UNROLLED,
            Kind::Mixed => 2.0 * UNROLLED,
            Kind::Es | Kind::Pes | Kind::NoiseReuse => 2.0,
        };
        println!("auto: {settings}");
        self.entry("auto", cost, |step| settings.estimator(&step, &common))
    }

    /// Runs of this length.
    fn runs(&self, length: u64) -> Result<TruncatedStep> {
        TruncatedStep::new(family(), lopt(), TruncationSchedule::Constant(length))?
            .with_objective(self.objective())
    }

    /// Measures all entries at the first theta, and variances over the length of runs.
    fn lab(&self, entries: &[Entry], workers: &Workers) -> Result<()> {
        let theta = lopt().init(Key::new(0));
        let estimates = self.length.div_ceil(self.trunc_length as u64);
        let (samples, key) = (self.lab_samples, Key::new(0).named("lab"));
        // Lanes begin within a run, whose earlier steps nothing perturbed: the first run is left out.
        let warmup = estimates;
        let at = Experiment { theta: &theta, key, samples, warmup, estimates, workers };
        let base = self.antithetic();
        let long = NoiseReuseEs::new(self.runs(self.length)?, base.clone())?;
        let long = Experiment { key: key.named("truth"), samples: 4 * samples, ..at }.measure(&long)?;
        let truth = Truth::from(&long);
        println!("at the first theta, {samples} samples of {estimates} estimates; error: one standard error");
        println!(
            "{:<18} {:>16} {:>16} {:>10} {:>13} {:>10}",
            "estimator", "bias along truth", "cosine", "variance", "S/N per 10^6", "S/N per s"
        );
        let mut csv = String::from(
            "estimator,bias,bias_error,cosine,cosine_error,across,variance,per_inner_step,per_second\n",
        );
        for entry in entries {
            let c = at.measure(&*entry.estimator)?.against(&truth)?;
            println!(
                "{:<18} {:>9.3} ±{:>5.3} {:>9.3} ±{:>5.3} {:>10.3} {:>13.3} {:>10.3}",
                entry.name,
                c.bias.value,
                c.bias.error,
                c.cosine.value,
                c.cosine.error,
                c.variance,
                1e6 * c.per_inner_step,
                c.per_second
            );
            let Comparison { bias, cosine, across, variance, per_inner_step, per_second, .. } = c;
            csv += &format!(
                "{},{},{},{},{},{across},{variance},{per_inner_step},{per_second}\n",
                entry.name, bias.value, bias.error, cosine.value, cosine.error
            );
        }
        write_atomic(self.out.join("lab.csv"), csv.as_bytes())?;
        self.variances(&at, &base)
    }

    /// Variances of one sample over the length of runs.
    fn variances(&self, at: &Experiment<'_>, base: &Antithetic) -> Result<()> {
        type Make = fn(TruncatedStep, Antithetic) -> Result<Box<dyn GradientEstimator>>;
        let kinds: [(&str, Make); 3] = [
            ("PES", |s, c| Ok(Box::new(TruncatedPes::new(s, c)?))),
            ("new perturbation every 4 windows", |s, c| Ok(Box::new(GeneralizedPes::new(s, c, 4)?))),
            ("noise-reuse ES", |s, c| Ok(Box::new(NoiseReuseEs::new(s, c)?))),
        ];
        let window = self.trunc_length as u64;
        let lengths = [8, 4, 2, 1].map(|part| (self.length / part).max(window));
        let mut series = Vec::new();
        for (name, make) in kinds {
            let mut line = Series::line(name, Vec::new()).with_band(Vec::new());
            for length in lengths {
                let estimator = make(self.runs(length)?, base.clone())?;
                let at = Experiment { estimates: length.div_ceil(window), ..*at };
                let v = at.measure(&*estimator)?.total_variance();
                line.points.push((length as f64, v.value));
                line.band.get_or_insert_default().push((length as f64, v.interval()[0], v.interval()[1]));
            }
            series.push(line);
        }
        let plot = Plot {
            title: "Variance of the mean estimate over one run".into(),
            x_label: "length of runs, inner steps".into(),
            y_label: "sum over meta-parameters, 95 % intervals".into(),
            series,
            ..Plot::default()
        };
        plot.save(self.out.join("variance.svg"))?;
        println!("written: lab.csv, variance.svg in {}\n", self.out.display());
        Ok(())
    }

    /// Gradient equivalents of an outer step.
    fn per_step(&self, cost: f64) -> f64 {
        cost * self.num_tasks as f64 * self.trunc_length as f64
    }

    fn objective(&self) -> Objective {
        Objective { scale: LossScale::Log { floor: 1e-4, ceiling: 10.0 }, emphasis: Emphasis::Power(1.0) }
    }

    fn run(&self, entry: &Entry, seed: u64, workers: &Workers) -> Result<Run> {
        let (family, lopt, learner) = (family(), lopt(), &entry.learner);
        let (outer_steps, per_step) = (learner.num_steps(), self.per_step(entry.cost));
        let mut state = learner.init(Key::new(seed), workers)?;
        let mut run = Run { looks: Vec::new(), outer_steps, seconds: 0.0 };
        for look in 0..=LOOKS {
            let began = Instant::now();
            while state.outer_step < outer_steps * look / LOOKS {
                learner.step(&mut state, workers);
            }
            run.seconds += began.elapsed().as_secs_f64();
            let opt = lopt.opt_fn(&state.theta.params);
            let config = EvalConfig {
                num_steps: self.length,
                eval_every: self.length,
                splits: vec![Split::OuterValid],
                ..EvalConfig::default()
            };
            let key = Key::new(0).named("comparison");
            let curves = training_curves(&*family, &*opt, &config, key, STARTS, workers);
            let mean = |f: &dyn Fn(&Curve) -> f64| curves.iter().map(f).sum::<f64>() / curves.len() as f64;
            let o = self.objective();
            let objective = mean(&|c| {
                let terms = c
                    .train
                    .iter()
                    .zip(0..self.length)
                    .map(|(l, t)| o.scale.apply(f64::from(*l)) * o.emphasis.weight(t, Some(self.length)));
                terms.sum::<f64>() / self.length as f64
            });
            run.looks.push(Look {
                at: state.outer_step as f64 * per_step,
                objective,
                train: mean(&|c| f64::from(c.final_train(20))),
                valid: mean(&|c| c.evals.last().map_or(f64::NAN, |e| f64::from(e.loss))),
            });
        }
        Ok(run)
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<()> {
    if !(1..=10_000).contains(&options.seeds) {
        return Err(Error::invalid(format!("--seeds {}", options.seeds), "expected 1 to 10000"));
    }
    if options.lab_samples == 1 {
        return Err(Error::invalid("--lab-samples 1", "expected at least 2, or 0 for no lab"));
    }
    if !(options.outer_lr > 0.0 && options.outer_lr.is_finite()) {
        return Err(Error::invalid(format!("--outer-lr {}", options.outer_lr), "expected a positive number"));
    }
    let mut entries = options.entries()?;
    let workers = Workers::new(options.threads)?;
    std::fs::create_dir_all(&options.out).map_err(|e| Error::io(&options.out, e))?;
    if options.lab_samples > 0 {
        options.lab(&entries, &workers)?;
    }
    entries.push(options.auto(&workers)?);
    println!(
        "{} gradient equivalents each, {} seeds, {} tasks x {} of {} steps:\n",
        options.budget, options.seeds, options.num_tasks, options.trunc_length, options.length
    );
    println!(
        "{:<18} {:>9} {:>11} {:>8} {:>20} {:>20} {:>20}",
        "estimator",
        "cost/step",
        "outer steps",
        "seconds",
        "objective ± error",
        "train loss ± error",
        "valid loss ± error"
    );
    let mut csv = String::from("estimator,seed,gradient_equivalents,objective,train_loss,valid_loss\n");
    let mut series = Vec::new();
    for entry in &entries {
        let runs: Vec<Run> =
            (0..options.seeds).map(|seed| options.run(entry, seed, &workers)).collect::<Result<_>>()?;
        for (seed, run) in runs.iter().enumerate() {
            for Look { at, objective, train, valid } in &run.looks {
                csv += &format!("{},{seed},{at},{objective},{train},{valid}\n", entry.name);
            }
        }
        let last = |f: &dyn Fn(&Look) -> f64| {
            let all: Vec<f64> = runs.iter().filter_map(|r| r.looks.last()).map(f).collect();
            let (n, mean) = (all.len() as f64, all.iter().sum::<f64>() / all.len() as f64);
            let square = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
            format!("{mean:.4} ± {:.4}", (square / (n - 1.0).max(1.0) / n).sqrt())
        };
        println!(
            "{:<18} {:>9.1} {:>11} {:>8.1} {:>20} {:>20} {:>20}",
            entry.name,
            entry.cost,
            runs[0].outer_steps,
            runs.iter().map(|r| r.seconds).sum::<f64>() / runs.len() as f64,
            last(&|l| l.objective),
            last(&|l| l.train),
            last(&|l| l.valid)
        );
        let mut line = Series::line(entry.name, Vec::new()).with_band(Vec::new());
        for look in 0..=LOOKS as usize {
            let at = runs[0].looks[look].at;
            let all = || runs.iter().map(|r| r.looks[look].objective);
            line.points.push((at, all().sum::<f64>() / runs.len() as f64));
            let range = (at, all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
            line.band.get_or_insert_default().push(range);
        }
        series.push(line);
    }
    let plot = Plot {
        title: "Estimators at equal compute".into(),
        x_label: "gradient equivalents".into(),
        y_label: "mean log loss on fresh starts, late steps weighted".into(),
        series,
        ..Plot::default()
    };
    let file = |name: &str| options.out.join(name);
    plot.save(file("compare_estimators.svg"))?;
    write_atomic(file("compare_estimators.csv"), csv.as_bytes())?;
    println!("\nwritten: {}", file("compare_estimators.svg").display());
    Ok(())
}
