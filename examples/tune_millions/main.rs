//! Hyperparameters by the thousand and by the million, tuned by implicit differentiation.
//!
//! ```sh
//! cargo run --release --example tune_millions -- overfit     # a weight decay per weight fits 50 digits perfectly
//! cargo run --release --example tune_millions -- distill     # ten images that teach what digits are
//! cargo run --release --example tune_millions -- reweight    # wrong labels lose their weight
//! cargo run --release --example tune_millions -- augment     # a network that augments, every weight of it tuned
//! cargo run --release --example tune_millions -- accuracy    # every method against the exact hypergradient
//! cargo run --release --example tune_millions -- million     # a million weights, a million weight decays
//! ```
//!
//! Each prints a table, and writes it with a picture and the run's metrics below `runs/tune_millions`.

mod accuracy;
mod images;
mod jobs;
mod million;
mod problem;

use clap::{Parser, Subcommand};
use outerloop::prelude::*;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tune hyperparameters by implicit differentiation.
#[derive(Parser)]
pub struct Options {
    #[command(subcommand)]
    job: Job,
    /// Directory for results; each job makes one of its own in it.
    #[arg(long, global = true, default_value = "runs/tune_millions")]
    out: PathBuf,
    /// Root of all randomness.
    #[arg(long, global = true, default_value_t = 0)]
    seed: u64,
    /// Hyper steps [default: the job's own].
    #[arg(long, global = true)]
    steps: Option<u64>,
    /// Continue what was interrupted.
    #[arg(long, global = true)]
    resume: bool,
}

/// What is tuned.
#[derive(Subcommand, Clone, Copy)]
enum Job {
    /// A weight decay per weight, to fit a validation set of 50 digits.
    Overfit,
    /// One training image per class.
    Distill,
    /// A weight per training example, where 30 % of the labels are wrong.
    Reweight,
    /// A network that augments the training images.
    Augment,
    /// Nothing: the error of every method over its number of products.
    Accuracy,
    /// A weight decay for each of a million weights.
    Million,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Interrupted) => {
            eprintln!("interrupted; everything is saved, continue with --resume");
            ExitCode::from(130)
        }
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
    }
}

fn run(options: &Options) -> Result<()> {
    match options.job {
        Job::Overfit => jobs::overfit(options),
        Job::Distill => images::distill(options),
        Job::Reweight => jobs::reweight(options),
        Job::Augment => images::augment(options),
        Job::Accuracy => accuracy::accuracy(options),
        Job::Million => million::million(options),
    }
}

/// A table that is printed, and written as markdown.
struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: impl Into<String>, head: &[&str]) -> Self {
        Table { title: title.into(), rows: vec![head.iter().map(|h| h.to_string()).collect()] }
    }

    fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let columns = self.rows[0].len();
        let width = |c: usize| self.rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} "));
            format!("|{}|\n", cells.collect::<Vec<_>>().join("|"))
        };
        let rule = widths.iter().map(|w| "-".repeat(w + 2)).collect::<Vec<_>>().join("|");
        let body: String = self.rows[1..].iter().map(line).collect();
        let text = format!("# {}\n\n{}|{rule}|\n{body}", self.title, line(&self.rows[0]));
        println!("{text}");
        write_atomic(dir.join("table.md"), text.as_bytes())?;
        println!("written to {}", dir.display());
        Ok(())
    }
}

/// A share as per cent.
fn percent(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}
