//! A million weights with a weight decay each.

use crate::problem::{Classifier, Set, Tuned};
use crate::{Options, Table};
use outerloop::prelude::*;
use std::sync::Arc;
use std::time::Instant;

/// Memory of this process in bytes, where the system tells it: `VmRSS:`, what it has now, or `VmHWM:`, the most since
/// [`forget_peak`].
fn memory(what: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with(what))?;
    Some(1024.0 * line.split_whitespace().nth(1)?.parse::<f64>().ok()?)
}

/// Lets the largest memory be that of now.
fn forget_peak() {
    // Where that is not possible, the peak includes what came before.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Memory and time per hyper step.
pub fn million(options: &Options) -> Result<()> {
    let dir = options.out.join("million");
    std::fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
    let parts = Set::parts([1000, 256], Key::new(options.seed).named("digits"));
    let sets = <[Set; 3]>::try_from(parts).map_err(|_| Error::invalid("digits", "expected three parts"))?;
    let widths = vec![64, 960, 980, 10];
    let task = Classifier { widths, tuned: Tuned::Decays(-8.0), decay: 0.0, sets, batch: 128 };
    let problem = Arc::new(HyperProblem::new(task)?);
    let (weights, decays) = (problem.params.len(), problem.hyper.len());
    let steps = options.steps.unwrap_or(20);
    let config = HyperConfig { hyper_steps: steps, inner_steps: 5, warm_up: 20, ..HyperConfig::default() };
    let implicit = Implicit::new(Neumann::new(5, 0.05));
    let hyper = Box::new(RmsProp { learning_rate: 0.1f64.into(), ..RmsProp::default() });
    forget_peak();
    let before = memory("VmRSS:");
    let (mut times, mut losses) = (Vec::new(), Vec::new());
    let run = || -> Result<()> {
        let learner = HyperLearner::new(problem, Box::new(Sgd::new(0.05)), hyper, implicit, config)?;
        let (workers, mut state) = (Workers::new(1)?, learner.init(Key::new(options.seed))?);
        for step in 0..steps {
            let began = Instant::now();
            let report = learner.step(&mut state, &workers).remove(0);
            times.push(began.elapsed().as_secs_f64());
            losses.push((step as f64, report.valid_loss));
        }
        Ok(())
    };
    let mut done = Ok(());
    // One worker: its allocations are this thread's.
    let allocated = allocation_counter::measure(|| done = run()).bytes_max as f64;
    done?;
    times.sort_by(f64::total_cmp);
    let mut table = Table::new("A weight decay for each of a million weights", &["what", "how much"]);
    let mut row = |what: &str, how_much: String| table.row([what.to_string(), how_much]);
    row("weights", weights.to_string());
    row("hyperparameters", decays.to_string());
    row("hyper step: 5 training steps, 5 Neumann terms", format!("{:.0} ms", 1e3 * times[times.len() / 2]));
    let buffers = |bytes: f64| format!("{:.1}", bytes / (4.0 * weights as f64));
    row("most memory allocated at a time, in buffers of the size of w", buffers(allocated));
    if let Some((before, after)) = before.zip(memory("VmHWM:")) {
        row("growth of the process, holes of the allocator included, likewise", buffers(after - before));
        row("largest memory of the process", format!("{:.0} MB", after / 1e6));
    }
    let [first, last] = [losses[0].1, losses[losses.len() - 1].1];
    row("validation loss, first and last step", format!("{first:.4}, {last:.4}"));
    let plot = Plot {
        title: "A million weight decays".into(),
        x_label: "hyper step".into(),
        y_label: "validation loss (nats)".into(),
        y_scale: Scale::Log,
        series: vec![Series::line("validation loss", losses)],
        ..Plot::default()
    };
    plot.save(dir.join("loss.svg"))?;
    table.save(&dir)
}
