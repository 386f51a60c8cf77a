//! Likelihood-free inference by amortized ratio estimation: simulate, train, sample, corner plot, coverage.
//!
//! `cargo run --release --example ratio` does it for SLCP, the benchmark of the method's paper;
//! `--simulations 1000000 --fresh` is the seed's budget.

mod options;
mod report;

use clap::Parser;
use options::Options;
use outerloop::amortized::ratio::train::{train, Stop, TrainConfig, Trained};
use outerloop::amortized::ratio::{
    files, fit_sharpness, sample, Architecture, Contrast, DataScale, FeatureConfig, Features, Invalid,
    Nonlinearity, Pairs, RatioEstimator, RatioLoss, RatioNet, RatioTask, RatioTaskConfig, Simulations,
    Simulator,
};
use outerloop::lopt::wrap::ParamsEma;
use outerloop::prelude::*;
use report::{Clock, Observed};
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(o: &Options) -> Result<()> {
    let (simulator, truth) = o.simulator()?;
    let workers = Workers::new(o.threads)?;
    let loss = o.loss()?;
    let sampler = sample::named(&o.sampler)?;
    let key = Key::new(o.seed);
    if !o.reference.is_empty() && o.reference.len() != o.observation.len() {
        let what = "references, one for each observation";
        return Err(Error::mismatch(what, o.observation.len(), o.reference.len()));
    }
    let mut observations = Vec::new();
    for path in &o.observation {
        observations.push(Observed { x: files::table(path)?.0, truth: None });
    }
    if observations.is_empty() {
        let mut x = vec![0.0; simulator.data_dim()];
        simulator.simulate(&truth, key.named("observation"), &mut x);
        observations.push(Observed { x, truth: Some(truth) });
    }

    let mut clock = Clock::new();
    let data = simulations(o, &*simulator, key, &workers)?;
    let count = if o.fresh { o.simulations } else { data.len() + data.dropped() };
    for warning in data.warnings() {
        println!("warning: {warning}");
    }
    data.check_prior(simulator.prior())?;
    println!("{}", clock.lap("simulations"));
    let data = Arc::new(data);
    let (estimator, task) = fit(o, &simulator, data.clone(), loss, key)?;
    println!("{}", clock.lap(&format!("training on {count} simulations")));
    let untempered = estimator.clone();
    let rows = &task.held_out()[..task.held_out().len().min(o.calibrate)];
    let estimator = match rows {
        [] => estimator,
        rows => {
            let (sampler, key) = (report::quick_smc(), key.named("sharpness"));
            let s =
                fit_sharpness(&estimator, (&data, rows), simulator.prior(), (&sampler, 400), key, &workers)?;
            println!("{} held-out simulations are covered with the ratio to the power {s:.2}", rows.len());
            println!("{}", clock.lap("calibration"));
            estimator.tempered(s)?
        }
    };
    estimator.save(o.out.join("ratio.bin"))?;
    for (i, observed) in observations.iter().enumerate() {
        report::posterior(o, &estimator, &*simulator, &*sampler, (i, observed), &workers)?;
    }
    println!("{}", clock.lap("posteriors and their tests"));
    if o.excess > 0 && o.is_slcp() && untempered.is_normalized() {
        report::excess(o, &untempered, &workers)?;
        println!("{}", clock.lap("excess loss"));
    }
    match (&o.data, o.coverage) {
        (_, 0) => Ok(()),
        (Some(_), _) => {
            println!("no coverage: it takes a simulator that can be run");
            Ok(())
        }
        (None, _) => {
            report::coverage(o, &estimator, &*simulator, &workers)?;
            println!("{}", clock.lap("coverage"));
            Ok(())
        }
    }
}

/// The data to train on; of fresh simulations a few for the scaling.
fn simulations(o: &Options, simulator: &dyn Simulator, key: Key, workers: &Workers) -> Result<Simulations> {
    let invalid = if o.drop_invalid { Invalid::Drop } else { Invalid::Refuse };
    match (&o.parameters, &o.data) {
        (Some(theta), Some(x)) => Simulations::read(theta, x, invalid),
        _ => {
            let n = if o.fresh { o.simulations.min(10_000) } else { o.simulations };
            Simulations::draw(simulator, n, key.named("simulations"), invalid, workers)
        }
    }
}

/// Trains the networks, one after the other.
fn fit(
    o: &Options,
    simulator: &Arc<dyn Simulator>,
    data: Arc<Simulations>,
    loss: RatioLoss,
    key: Key,
) -> Result<(RatioEstimator, RatioTask)> {
    let is_symmetric = o.symmetries || o.net == "iid";
    if is_symmetric && !o.simulator.starts_with("slcp") {
        return Err(Error::mismatch(
            "--symmetries, --net iid: simulator",
            "slcp or slcp_sbibm",
            &o.simulator,
        ));
    }
    let even = if is_symmetric { vec![2, 3] } else { Vec::new() };
    let features = Features::fit(&data, FeatureConfig { even, data: DataScale::Both })?;
    let net = RatioNet::new(architecture(o)?, nonlinearity(o)?, features.inputs())?;
    let pairs = match o.fresh {
        true => Pairs::Fresh(simulator.clone()),
        false => Pairs::Fixed { simulations: data.clone(), valid: 0.1 },
    };
    let contrast = match o.contrast.as_str() {
        "batch" => Contrast::Batch,
        "shuffle" => Contrast::Shuffle,
        "prior" => Contrast::Prior(Arc::new(OfSimulator(simulator.clone()))),
        name => {
            let allowed = ["batch", "prior", "shuffle"].map(String::from).to_vec();
            return Err(Error::Unknown { what: "contrast", got: name.into(), allowed });
        }
    };
    let config = RatioTaskConfig {
        net: net.clone(),
        loss,
        features: features.clone(),
        pairs,
        contrast,
        batch_size: o.batch_size,
    };
    let task = RatioTask::new(config)?;
    let epoch = task.epoch().unwrap_or((o.simulations / o.batch_size) as u64).max(1);
    let passes = if o.fresh { 1 } else { o.passes };
    let steps = if o.steps > 0 { o.steps } else { passes * epoch };
    let opt = optimizer(o, steps)?;
    let config = TrainConfig {
        eval_every: epoch.min(500).min(steps),
        eval_batches: task.valid_batches().unwrap_or(20).min(40),
        stop: if o.fresh { Stop::Never } else { Stop::Patience(o.patience) },
        note: task.describe(),
        progress: true,
        resume: o.resume,
        ..TrainConfig::new(steps)
    };
    let flat = Typed::new(task.clone());
    let mut members = Vec::new();
    let mut curves: Vec<Trained> = Vec::new();
    for i in 0..o.ensemble.max(1) {
        let dir = o.out.join(format!("member{i}"));
        // A run that was cut off may not have come to its later members.
        let resume = o.resume && dir.exists();
        let config = TrainConfig { dir: Some(dir), resume, ..config.clone() };
        let trained = train(&flat, &*opt, &config, key.named("train").fold_in(i as u64))?;
        let best = trained.curve.iter().map(|p| p.valid).fold(f64::INFINITY, f64::min);
        println!("network {i}: validation loss {best:.4}, {} ", trained.ended);
        members.push(trained.params.clone());
        curves.push(trained);
    }
    if task.redrawn() > 0 {
        println!(
            "warning: {} fresh simulations were invalid and replaced: the target is the posterior given that the \
             simulation is valid",
            task.redrawn()
        );
    }
    report::losses(o, &curves)?;
    Ok((RatioEstimator::new(net, features, members, loss.is_normalized())?, task))
}

fn architecture(o: &Options) -> Result<Architecture> {
    let hidden = o.hidden.clone();
    match o.net.as_str() {
        "mlp" => Ok(Architecture::Mlp { hidden }),
        "residual" => {
            Ok(Architecture::Residual { width: hidden.first().copied().unwrap_or(0), blocks: hidden.len() })
        }
        "iid" => {
            let context = vec![hidden.first().copied().unwrap_or(0); 2];
            Ok(Architecture::Iid { points: 4, hidden, context })
        }
        "separable" => {
            Ok(Architecture::Separable { points: if o.symmetries { 4 } else { 1 }, hidden, rank: o.rank })
        }
        _ => Err(Error::Unknown {
            what: "network",
            got: o.net.clone(),
            allowed: ["separable", "mlp", "residual", "iid"].map(String::from).to_vec(),
        }),
    }
}

fn nonlinearity(o: &Options) -> Result<Nonlinearity> {
    match o.activation.as_str() {
        "selu" => Ok(Nonlinearity::Selu),
        "relu" => Ok(Nonlinearity::Relu),
        "silu" => Ok(Nonlinearity::Silu),
        name => Err(Error::Unknown {
            what: "activation",
            got: name.into(),
            allowed: ["selu", "relu", "silu"].map(String::from).to_vec(),
        }),
    }
}

fn optimizer(o: &Options, steps: u64) -> Result<Box<dyn Optimizer>> {
    if let Some(path) = &o.theta {
        let file = theta::load(path)?;
        let lopt = registry::from_architecture::<f32>(&file.architecture)?;
        return Ok(lopt.opt_fn(file.theta_for(&*lopt)?));
    }
    let cosine = Cosine { peak: o.learning_rate, constant_fraction: 0.1, ..Cosine::default() };
    let adam = AdamW { learning_rate: cosine.into(), weight_decay: o.weight_decay, ..AdamW::default() };
    let clipped = Clip::new(ClipRule::GlobalNorm(5.0), Box::new(adam));
    // Averages over a twentieth of the run: a longer average lags, and validation would see overfitting too late.
    let decay = (1.0 - 20.0 / steps as f64).clamp(0.0, 0.999);
    Ok(Box::new(ParamsEma::new(decay, Box::new(clipped))?))
}

/// A simulator's prior, to be shared.
struct OfSimulator(Arc<dyn Simulator>);

impl outerloop::amortized::ratio::Prior for OfSimulator {
    fn dim(&self) -> usize {
        self.0.prior().dim()
    }
    fn sample(&self, key: Key, theta: &mut [f64]) {
        self.0.prior().sample(key, theta);
    }
    fn log_density(&self, theta: &[f64]) -> f64 {
        self.0.prior().log_density(theta)
    }
    fn add_score(&self, theta: &[f64], grad: &mut [f64]) {
        self.0.prior().add_score(theta, grad);
    }
    fn bounds(&self) -> Vec<(f64, f64)> {
        self.0.prior().bounds()
    }
    fn describe(&self) -> String {
        self.0.prior().describe()
    }
}
