//! Instructions of the hottest kernels, counted by valgrind: a guard against regressions that needs no
//! quiet machine.
//!
//!     cargo bench --bench instructions                # compare with benches/instructions.json
//!     cargo bench --bench instructions -- --update    # write it
//!
//! This program runs itself under valgrind, with each kernel called a few times and then more often; the
//! difference is the kernel's. Counts depend on the compiler and on the kernels' path, so the file
//! names both, and other ones are shown, not compared.

use clap::Parser;
use outerloop::core::{simd, BatchKey, Key};
use outerloop::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::{Command, ExitCode};

#[derive(Parser)]
struct Options {
    /// Writes the counts as the new reference.
    #[arg(long)]
    update: bool,
    /// Calls the kernel this often and ends.
    #[arg(long, hide = true, num_args = 2)]
    run: Option<Vec<String>>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Counts under which conditions.
#[derive(Default, PartialEq, Serialize, Deserialize)]
struct Reference {
    kernels: String,
    compiler: String,
    instructions: BTreeMap<String, u64>,
}

const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// Growth that is a regression.
const TOLERANCE: f64 = 1.03;
const KERNELS: [&str; 5] =
    ["loss_and_grad", "mlp_lopt_update", "mlp_lopt_vjp", "learnable_adam_update", "fill_normal"];

/// Calls a kernel on the 64-32-10 task.
fn call(kernel: &str, times: u64) {
    let task = Typed::new(ImageMlp::digits());
    let params = FlatTask::<f32>::init(&task, Key::new(0));
    let (key, n) = (Key::new(1), params.data.len());
    let mut grad = vec![0.0f32; n];
    key.fill_normal(&mut grad);
    let lopt: Box<dyn LearnedOptimizer> = match kernel {
        "learnable_adam_update" => Box::new(LearnableAdam::default()),
        _ => Box::new(MlpLopt::default()),
    };
    let theta = lopt.init(key);
    let opt = lopt.opt_fn(&theta);
    let mut state = opt.init(&params, None, key);
    match kernel {
        "loss_and_grad" => {
            let mut evaluator = FlatTask::<f32>::evaluator(&task);
            for _ in 0..times {
                black_box(evaluator.loss_and_grad(&params.data, &mut [], BatchKey::train(0, key), &mut grad));
            }
        }
        "mlp_lopt_vjp" => {
            let after = state.zeros_like();
            let mut adjoint = vec![0.0; theta.len()];
            for _ in 0..times {
                black_box(opt.update_vjp().map(|d| d.vjp(&state, &grad, 0.0, key, &after, &mut adjoint)));
            }
        }
        "fill_normal" => (0..times).for_each(|i| Key::new(i).fill_normal(black_box(&mut grad))),
        _ => (0..times).for_each(|_| opt.update(black_box(&mut state), &grad, 0.0, key)),
    }
}

/// Instructions of this program calling a kernel `times` times; `None` if valgrind cannot tell.
fn count(kernel: &str, times: u64) -> Option<u64> {
    let me = std::env::current_exe().ok()?;
    let log = Command::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(me)
        .args(["--run", kernel, &times.to_string()])
        // Valgrind knows no AVX-512.
        .env("OUTERLOOP_KERNEL", path())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&log.stderr);
    let line = text.lines().find(|l| l.contains("I ") && l.contains("refs:"))?;
    line.rsplit(':').next()?.trim().replace(',', "").parse().ok()
}

/// The path under valgrind.
fn path() -> &'static str {
    match simd::path() {
        "avx512" => "avx2",
        other => other,
    }
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output();
    version.map_or_else(|_| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().into())
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some([kernel, times]) = options.run.as_deref() {
        call(kernel, times.parse().unwrap_or(0));
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("instruction counts: skipped, valgrind is not installed");
        return ExitCode::SUCCESS;
    }
    let mut now = Reference { kernels: path().into(), compiler: compiler(), ..Reference::default() };
    let text = std::fs::read_to_string(REFERENCE).unwrap_or_default();
    let want: Reference = serde_json::from_str(&text).unwrap_or_default();
    let same = (&want.kernels, &want.compiler) == (&now.kernels, &now.compiler);
    println!("| kernel, {} | instructions | reference ({}) |\n|---|---|---|", now.kernels, want.kernels);
    let mut failed = false;
    for kernel in KERNELS {
        let [few, many] = [2, 12].map(|times| count(kernel, times));
        let (Some(few), Some(many)) = (few, many) else {
            println!("instruction counts: valgrind cannot run `{kernel}`");
            return ExitCode::FAILURE;
        };
        let per_call = (many - few) / 10;
        let reference = want.instructions.get(kernel).copied();
        let worse = same && reference.is_some_and(|r| per_call as f64 > TOLERANCE * r as f64);
        failed |= worse;
        let shown = reference.map_or("none".into(), |r| r.to_string());
        println!("| {kernel} | {per_call} | {shown}{} |", if worse { ": REGRESSION" } else { "" });
        now.instructions.insert(kernel.into(), per_call);
    }
    if options.update {
        let text = serde_json::to_string_pretty(&now).expect("plain values") + "\n";
        if let Err(e) = std::fs::write(REFERENCE, text) {
            println!("{REFERENCE}: {e}");
            return ExitCode::FAILURE;
        }
    } else if !same {
        println!("Not compared: the reference is of {} kernels and {}.", want.kernels, want.compiler);
    }
    ExitCode::from(u8::from(failed && !options.update))
}
