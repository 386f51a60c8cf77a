//! Pictures of a run's metrics: the meta-loss, and what says how good its gradients were.

use crate::config::Config;
use outerloop::outer::objective::{Emphasis, LossScale};
use outerloop::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Outer steps whose mean is drawn: single estimates jump with the lanes' resets.
const WINDOW: usize = 50;

/// The columns of `metrics.csv`: `(outer step, value)` by name.
type Columns = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws the run from its metrics, the meta-loss into a file of the run, too. Without any row (the file may have been
/// deleted before a resume) there is no picture, and the run is none the worse.
pub fn pictures(dir: &RunDir, path: &Path, config: &Config) -> Result<Vec<Plot>> {
    let columns = read(path)?;
    let Some(losses) = columns.get("meta_loss").filter(|c| !c.is_empty()) else {
        println!("{} holds no outer step: no picture of the meta-loss", path.display());
        return Ok(Vec::new());
    };
    let scale = match config.objective.scale {
        LossScale::Linear => "normalized",
        LossScale::Log { .. } | LossScale::FittedLog { .. } => "ln of the",
        LossScale::Power { .. } => "power of the",
    };
    let loss = config.meta_loss.text();
    let emphasis = match config.objective.emphasis {
        Emphasis::Uniform => "",
        Emphasis::Power(_) => ", weighted towards the end of runs",
    };
    let meta_loss = Plot {
        title: format!("Meta-loss over {} outer steps", config.outer_steps),
        x_label: "outer step".into(),
        y_label: format!("mean {scale} {loss}{emphasis}"),
        y_scale: Scale::for_values(losses.iter().map(|p| p.1)),
        series: vec![
            Series { style: Style::Points, ..Series::line("per outer step", losses.clone()) },
            Series::line(format!("mean of {WINDOW}"), smoothed(losses)),
        ],
        ..Plot::default()
    };
    save(dir, "meta_loss", &meta_loss)?;
    let mut all = vec![meta_loss];
    let others = [
        ("validation", "Validation", "score of theta, lower is better"),
        ("signal_to_noise", "Signal to noise of the meta-gradient", "running ratio, about 100 outer steps"),
        ("clipped", "Elements of the meta-gradient that were clipped", "share"),
        ("horizon", "Horizon", "mean length of the runs in progress, inner steps"),
        ("staleness", "Staleness", "outer steps since the runs in progress began"),
    ];
    for (column, title, label) in others {
        let Some(values) = columns.get(column) else { continue };
        all.push(Plot {
            title: title.into(),
            x_label: "outer step".into(),
            y_label: label.into(),
            series: vec![Series::line("", smoothed(values))],
            ..Plot::default()
        });
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Columns> {
    let bad = |why: String| Error::format(path, why);
    let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
    let headers = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
    let place = |name: &str| headers.iter().position(|h| h == name);
    let mut columns = Columns::new();
    if headers.is_empty() {
        return Ok(columns);
    }
    let missing = |name: &str| bad(format!("not the metrics of a run: expected a column `{name}`"));
    let step = place("step").ok_or_else(|| missing("step"))?;
    place("meta_loss").ok_or_else(|| missing("meta_loss"))?;
    for row in reader.records() {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let number = |i: usize| row.get(i).and_then(|v| v.parse::<f64>().ok());
        let Some(x) = number(step) else { continue };
        for (i, name) in headers.iter().enumerate() {
            columns.entry(name.to_string()).or_default().extend(number(i).map(|y| (x, y)));
        }
    }
    Ok(columns)
}

/// The mean of the last [`WINDOW`] finite values at every point.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let means = points.iter().enumerate().map(|(i, p)| {
        let window = points[i.saturating_sub(WINDOW - 1)..=i].iter().map(|p| p.1).filter(|y| y.is_finite());
        let (count, sum) = window.fold((0.0, 0.0), |(n, sum), y| (n + 1.0, sum + y));
        (p.0, sum / count)
    });
    means.collect()
}

/// SVG always; PNG too where the feature is on.
fn save(dir: &RunDir, name: &str, plot: &Plot) -> Result<()> {
    let path = dir.file(&format!("{name}.svg"));
    plot.save(&path)?;
    println!("wrote {}", path.display());
    if cfg!(feature = "png") {
        plot.save(dir.file(&format!("{name}.png")))?;
    }
    Ok(())
}
