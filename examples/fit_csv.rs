//! From a table of your own to a trained classifier, with the optimizer in the box and nothing to tune:
//!
//! `cargo run --release --example fit_csv -- table.csv --target species`
//!
//! Without a file it writes one to try, two spirals, and trains on that. Columns other than the target must be
//! numbers; they are standardized. The parameters are written as safetensors.

use clap::Parser;
use outerloop::prelude::*;
use outerloop::tasks::data::spirals;
use outerloop::tasks::image::{MlpConfig, MlpTask};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Train a classifier on a CSV file.
#[derive(Parser)]
struct Options {
    /// A CSV file with a header [default: two spirals, written to runs/fit_csv/spirals.csv].
    table: Option<PathBuf>,
    /// The column to predict.
    #[arg(long, default_value = "arm")]
    target: String,
    /// Widths of the hidden layers.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 64])]
    hidden: Vec<usize>,
    /// Rows per batch.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// Updates.
    #[arg(long, default_value_t = 1000)]
    steps: u64,
    /// Fixes initial parameters and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where the trained parameters go.
    #[arg(long, default_value = "runs/fit_csv/params.safetensors")]
    out: PathBuf,
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
    let path = match &options.table {
        Some(path) => path.clone(),
        None => demo()?,
    };
    let (data, names) = read(&path, &options.target)?;
    println!(
        "{}: {} rows, {} columns, {} values of `{}`",
        path.display(),
        data.len(),
        data.features(),
        names.len(),
        options.target
    );
    // 20 % of the rows for the test, of the rest 80 % for training.
    let data = Splits::new(data)?;
    let model =
        MlpConfig { hidden: options.hidden.clone(), batch_size: options.batch_size, ..MlpConfig::default() };
    let task: Arc<dyn FlatTask> = Arc::new(Typed::new(MlpTask::new(data, model)?));
    let config = EvalConfig {
        num_steps: options.steps,
        eval_every: (options.steps / 10).max(1),
        eval_batches: 10,
        splits: vec![Split::OuterValid, Split::Test],
        ..EvalConfig::default()
    };
    let fit = fit(&task, &*outerloop::pretrained::small()?, &config, Key::new(options.seed));
    println!("{:>8} {:>12} {:>12} {:>12}", "step", "valid loss", "test loss", "test errors");
    for pair in fit.curve.evals.chunks_exact(2) {
        let errors = pair[1].metric(Metric::ERROR_RATE).unwrap_or(f64::NAN);
        println!(
            "{:>8} {:>12.4} {:>12.4} {:>11.1}%",
            pair[0].step,
            pair[0].loss,
            pair[1].loss,
            100.0 * errors
        );
    }
    theta::save_params(&options.out, &fit.params)?;
    println!("wrote {}", options.out.display());
    Ok(())
}

/// A file to try.
fn demo() -> Result<PathBuf> {
    let data = spirals(600, 0.03, Key::new(0))?;
    let mut text = "x,y,arm\n".to_string();
    for (point, label) in data.data().images.chunks_exact(2).zip(data.data().labels.iter()) {
        text += &format!("{},{},{}\n", point[0], point[1], ["left", "right"][*label as usize]);
    }
    let path = PathBuf::from("runs/fit_csv/spirals.csv");
    std::fs::create_dir_all("runs/fit_csv").map_err(|e| Error::io(&path, e))?;
    write_atomic(&path, text.as_bytes())?;
    Ok(path)
}

/// The table, its columns standardized, and the values of the target.
fn read(path: &Path, target: &str) -> Result<(ImageData, Vec<String>)> {
    let bad = |why: String| Error::format(path, why);
    let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
    let headers = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
    let column = headers.iter().position(|h| h == target).ok_or_else(|| {
        let allowed = headers.iter().map(String::from).collect();
        Error::Unknown { what: "target column", got: target.into(), allowed }
    })?;
    let (mut x, mut targets) = (Vec::new(), Vec::new());
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(|e| bad(e.to_string()))?;
        for (i, cell) in record.iter().enumerate() {
            if i == column {
                targets.push(cell.to_string());
                continue;
            }
            match cell.trim().parse::<f32>() {
                Ok(number) if number.is_finite() => x.push(number),
                _ => {
                    let name = headers.get(i).unwrap_or_default();
                    // The header is line 1.
                    let why = format!("line {}, column `{name}`: expected a number, got `{cell}`", row + 2);
                    return Err(bad(why));
                }
            }
        }
    }
    let columns = headers.len() - 1;
    for c in 0..columns {
        let n = targets.len() as f32;
        let mean = x.iter().skip(c).step_by(columns).sum::<f32>() / n;
        let variance = x.iter().skip(c).step_by(columns).map(|v| (v - mean).powi(2)).sum::<f32>() / n;
        // A constant column says nothing; it becomes 0.
        let scale = if variance > 0.0 { variance.sqrt() } else { 1.0 };
        x.iter_mut().skip(c).step_by(columns).for_each(|v| *v = (*v - mean) / scale);
    }
    let names: Vec<String> = targets.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let labels: Vec<u32> =
        targets.iter().map(|t| names.iter().position(|n| n == t).unwrap_or(0) as u32).collect();
    let name = path.file_stem().map_or_else(|| "table".into(), |s| s.to_string_lossy().into_owned());
    Ok((ImageData::new(name, x, labels, [1, 1, columns], names.len())?, names))
}
