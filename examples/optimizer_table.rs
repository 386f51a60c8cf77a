//! What every optimizer costs: weights of theta, state per parameter, time per parameter and step, and of the step's
//! derivative, on the 64-32-10 digits MLP. Prints a table and writes it as markdown.
//!
//! `cargo run --release --example optimizer_table -- --out lopt/OPTIMIZERS.md` makes the table in lopt's docs.

use clap::Parser;
use outerloop::prelude::*;
use outerloop::pretrained::{FAST, SMALL};
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Measure every optimizer.
#[derive(Parser)]
struct Options {
    /// The markdown file to write.
    #[arg(long, default_value = "runs/OPTIMIZERS.md")]
    out: PathBuf,
    /// Widths of the MLP's hidden layers.
    #[arg(long, value_delimiter = ',', default_values_t = [32])]
    hidden: Vec<usize>,
    /// Only optimizers whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Milliseconds per measurement.
    #[arg(long, default_value_t = 50)]
    millis: u64,
    /// The machine's name [default: the processor's model].
    #[arg(long)]
    machine: Option<String>,
}

/// Measurements per optimizer; the fastest counts.
const REPEATS: usize = 5;

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
    if options.out.is_dir() {
        return Err(Error::invalid(
            format!("--out {}", options.out.display()),
            "is a directory, expected a file",
        ));
    }
    if let Some(dir) = options.out.parent() {
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
    }
    let model = MlpConfig { hidden: options.hidden.clone(), ..MlpConfig::default() };
    let task: Arc<dyn FlatTask> = Arc::new(Typed::new(MlpTask::new(Splits::digits(), model)?));
    let params = task.init(Key::new(1));
    let mut grad = vec![0.0; params.data.len()];
    let at = BatchKey::train(0, Key::new(2));
    let loss = task.evaluator().loss_and_grad(&params.data, &mut task.init_state(), at, &mut grad);

    let machine = options.machine.clone().unwrap_or_else(processor);
    let build = if cfg!(debug_assertions) { "development build" } else { "release build" };
    let mut table = format!(
        "# What the optimizers cost\n\nMeasured on one thread of {machine} ({} kernels, {build}) with the {} parameters of the \
         64-{}-10 digits MLP; the fastest of {REPEATS} measurements. Bytes are of f32 slots.\n\n\
         | optimizer | weights of theta | state, bytes per parameter | ns per parameter and step | of its derivative |\n\
         |---|---:|---:|---:|---:|\n",
        kernel::path(),
        params.data.len(),
        options.hidden.iter().map(usize::to_string).collect::<Vec<_>>().join("-"),
    );
    let n = params.data.len() as f64;
    let is_wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|part| name.contains(part));
    let mut row = |name: &str, weights: usize, opt: &dyn Optimizer| {
        if !is_wanted(name) {
            return;
        }
        let bytes = opt.init(&params, Some(1000), Key::new(0)).slot_bytes() as f64 / n;
        let nanos = nanos_per_step(opt, &params, &grad, loss, options.millis) / n;
        let of_vjp = nanos_per_vjp(opt, &params, &grad, (loss, weights), options.millis);
        let of_vjp = of_vjp.map_or("-".into(), |nanos| format!("{:.2}", nanos / n));
        println!("{name:<22} {weights:>8} {bytes:>8.1} {nanos:>10.2} {of_vjp:>10}");
        let written = writeln!(table, "| `{name}` | {weights} | {bytes:.1} | {nanos:.2} | {of_vjp} |");
        written.expect("a string takes everything");
    };
    println!("{:<22} {:>8} {:>8} {:>10} {:>10}", "optimizer", "weights", "bytes", "ns", "vjp ns");
    for class in registry::HAND_DESIGNED {
        row(class, 0, &*registry::hand_designed(class, &registry::example_hyperparameters(class))?);
    }
    let small_fc = json!({"hidden_size": 32});
    let published = json!({"lstm_hidden_size": 64, "param_inits": 1, "train_phase": 2});
    let released = json!({"lstm_hidden_size": 512, "param_inits": 256, "use_bugged_loss_features": false});
    let learned = registry::LEARNED.map(|class| (class, class, json!({})));
    let sizes = [
        ("AdafacMLPLOpt, 32 units", "AdafacMLPLOpt", small_fc),
        ("Celo, as published", "Celo", published),
        ("HyperV2, as released", "HyperV2", released),
    ];
    for (name, class, hyper) in learned.into_iter().chain(sizes) {
        let lopt = registry::learned::<f32>(class, &hyper)?;
        let theta = lopt.init(Key::new(3));
        row(name, theta.len(), &*lopt.opt_fn(&theta));
    }
    for pretrained in [SMALL, FAST] {
        let (lopt, theta) = pretrained.learned()?;
        row(&format!("pretrained {}", pretrained.name), theta.len(), &*lopt.opt_fn(&theta));
    }
    write_atomic(&options.out, table.as_bytes())?;
    println!("wrote {}", options.out.display());
    Ok(())
}

/// Every measurement starts from a fresh state, whose step and values do not matter for the time.
fn nanos_per_step(opt: &dyn Optimizer, params: &Params, grad: &[f32], loss: f32, millis: u64) -> f64 {
    let fresh = || {
        let mut state = opt.init(params, Some(1_000_000), Key::new(0));
        opt.update(&mut state, grad, loss, Key::new(0));
        state
    };
    fastest(millis, fresh, |state| opt.update(state, grad, loss, Key::new(0)))
}

/// The same of the update's derivative, if it has one; `weights`: the length of theta.
fn nanos_per_vjp(
    opt: &dyn Optimizer,
    params: &Params,
    grad: &[f32],
    (loss, weights): (f32, usize),
    millis: u64,
) -> Option<f64> {
    let vjp = opt.update_vjp()?;
    let fresh = || {
        let mut state = opt.init(params, Some(1_000_000), Key::new(0));
        opt.update(&mut state, grad, loss, Key::new(0));
        let mut after: OptState = state.zeros_like();
        Key::new(1).fill_normal(&mut after.params);
        (state, after, vec![0.0; weights])
    };
    Some(fastest(millis, fresh, |(state, after, theta)| {
        std::hint::black_box(vjp.vjp(state, grad, loss, Key::new(0), after, theta));
    }))
}

/// Nanoseconds of a call: the fastest of [`REPEATS`] measurements of about `millis` each.
fn fastest<T>(millis: u64, fresh: impl Fn() -> T, mut call: impl FnMut(&mut T)) -> f64 {
    let mut measure = || {
        let mut state = fresh();
        let (start, mut calls) = (Instant::now(), 0u32);
        while calls == 0 || start.elapsed().as_millis() < u128::from(millis) {
            call(&mut state);
            calls += 1;
        }
        start.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    (0..REPEATS).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

/// The processor's model, as far as the system tells.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| std::env::consts::ARCH.into(), |(_, name)| name.trim().to_string())
}
