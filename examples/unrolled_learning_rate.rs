//! Learns Adam's hyperparameters by backpropagation through training.
//!
//! The meta-loss is the loss after 4 steps of LearnableAdam on one batch of digits, at fresh random
//! parameters; its exact gradient by the four hyperparameters (second-order terms included) trains
//! them with an outer Adam. Prints the first meta-gradient and plots learning rate and meta-loss.
//!
//! `cargo run --release --example unrolled_learning_rate`

use clap::Parser;
use outerloop::prelude::*;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Learn Adam's hyperparameters by unrolled gradients.
#[derive(Parser)]
struct Options {
    /// Outer steps.
    #[arg(long, default_value_t = 500)]
    outer_steps: u64,
    /// Inner steps per outer step.
    #[arg(long, default_value_t = 4)]
    inner_steps: u64,
    /// Learning rate of the outer Adam.
    #[arg(long, default_value_t = 1e-2)]
    outer_lr: f64,
    /// Root of all randomness.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the pictures go.
    #[arg(long, default_value = "runs/unrolled_learning_rate")]
    out: PathBuf,
}

impl Options {
    /// Errors on what nothing below refuses.
    fn check(&self) -> Result<()> {
        if !(1..=100_000).contains(&self.inner_steps) {
            return Err(Error::invalid(
                format!("--inner-steps {}", self.inner_steps),
                "expected 1 to 100000",
            ));
        }
        if !(self.outer_lr > 0.0 && self.outer_lr.is_finite()) {
            return Err(Error::invalid(
                format!("--outer-lr {}", self.outer_lr),
                "expected a positive number",
            ));
        }
        Ok(())
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
    options.check()?;
    let lopt: Arc<dyn LearnedOptimizer> = Arc::new(LearnableAdam::default());
    let task = OneBatch(ImageMlp::<64, 32, 10>::new(Splits::undivided(digits()), 128, Activation::Relu)?);
    let schedule = TruncationSchedule::Constant(options.inner_steps);
    // The loss that counts: of the same batch, after the last update.
    let family: Arc<dyn FlatFamily> = Arc::new(SingleTask::new(task));
    let estimator = || {
        let step = TruncatedStep::new(family.clone(), lopt.clone(), schedule.clone())?
            .with_meta_loss(MetaLoss::SameBatch);
        let sweep = SweepConfig { weights: StepWeights::Final, ..SweepConfig::default() };
        FullGrad::new(step, 1, sweep)
    };
    let outer = Box::new(Adam::new(options.outer_lr));
    let learner =
        GradientLearner::new(lopt.clone(), vec![Box::new(estimator()?)], outer, options.outer_steps)?;
    // Nothing is refused from here on.
    std::fs::create_dir_all(&options.out).map_err(|e| Error::io(&options.out, e))?;
    let estimator = estimator()?;
    let workers = Workers::new(1)?;
    let key = Key::new(options.seed);

    let names = lopt.theta_layout();
    let theta = lopt.init(key);
    let mut state = estimator.init(&theta, key.named("first"), &workers);
    let first = estimator.estimate(&theta, &mut state, 0, &workers);
    println!("meta-loss {:.4} after {} steps; its gradient:", first.mean_loss, options.inner_steps);
    for (name, g) in names.entries().iter().zip(&first.grad) {
        println!("  {:<16} {g:>12.4e}", name.name);
    }

    let mut state = learner.init(key, &workers)?;
    let log_lr = names.entry("log_lr")?.offset;
    let (mut rates, mut losses) = (Vec::new(), Vec::new());
    println!("\n{:>10} {:>14} {:>10}", "outer step", "learning rate", "meta-loss");
    for t in 0..options.outer_steps {
        rates.push((t as f64, f64::from(state.theta.params[log_lr].exp())));
        let report = learner.step(&mut state, &workers);
        losses.push((t as f64, report.mean_loss));
        if t % (options.outer_steps / 10).max(1) == 0 {
            println!("{t:>10} {:>14.5} {:>10.4}", rates[t as usize].1, report.mean_loss);
        }
    }
    println!("\nlog_lr {:.4} (started at {:.4})", state.theta.params[log_lr], theta[log_lr]);

    let plot = |title: &str, y_label: &str, points: Vec<(f64, f64)>, file: &str| -> Result<()> {
        let path = options.out.join(file);
        Plot {
            title: title.into(),
            x_label: "outer step".into(),
            y_label: y_label.into(),
            y_scale: Scale::Log,
            series: vec![Series::line(y_label, points)],
            ..Plot::default()
        }
        .save(&path)?;
        println!("wrote {}", path.display());
        Ok(())
    };
    plot("Learning rate of LearnableAdam", "learning rate", rates, "learning_rate.svg")?;
    plot("Loss after the last inner step", "meta-loss", losses, "meta_loss.svg")
}

/// A task whose runs see one batch, again and again.
struct OneBatch<T>(T);

impl<E: Float, B: Backend<E>, T: Task<E, B>> Task<E, B> for OneBatch<T> {
    type Params = T::Params;
    type Batch = T::Batch;
    fn name(&self) -> String {
        format!("{}, one batch", self.0.name())
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
