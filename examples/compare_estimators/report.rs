//! Everything on one page, with its tables and pictures as files.

use crate::measure::Lab;
use crate::options::{family, lopt, Options};
use crate::training::{Axis, Look, Runs};
use outerloop::outer::benchmark::Receipt;
use outerloop::outer::lab::{Choice, Comparison, Evidence, Uncertain};
use outerloop::outer::page::{escape, number, Page};
use outerloop::prelude::*;
use std::path::PathBuf;

/// Above the lines of [`line`].
pub const HEADER: &str =
    "estimator          cost/step outer steps  seconds    objective ± error   train loss ± error   valid loss ± error";

/// The scales that runs are drawn over: file, name.
const AXES: [(&str, &str, Axis); 3] = [
    ("compare_estimators.svg", "gradient equivalents", |l| l.gradients),
    ("inner_steps.svg", "inner steps", |l| l.inner_steps),
    ("seconds.svg", "seconds of meta-training", |l| l.seconds),
];

/// What all runs have in common.
pub fn setting(o: &Options) -> String {
    format!(
        "{} {} each, {} seeds, {} tasks x {} of {} steps:",
        o.budget, o.equal, o.seeds, o.num_tasks, o.trunc_length, o.length
    )
}

/// A row for the terminal.
pub fn line(runs: &Runs) -> String {
    format!(
        "{:<18} {:>9.1} {:>11} {:>8.1} {:>20} {:>20} {:>20}",
        runs.name,
        runs.cost.gradients,
        runs.seeds[0].outer_steps,
        runs.seeds.iter().map(|r| r.seconds).sum::<f64>() / runs.seeds.len() as f64,
        runs.last(|l| l.objective),
        runs.last(|l| l.train),
        runs.last(|l| l.valid)
    )
}

/// Writes the report; returns the page's path.
pub fn save(o: &Options, lab: Option<&Lab>, choice: &Choice, all: &[Runs]) -> Result<PathBuf> {
    let file = |name: &str| o.out.join(name);
    let lead = format!(
        "{} on {}. All estimators meta-train it from the same thetas on the same tasks; it is judged on starts that none of \
         them sees.",
        escape(&lopt().name()),
        escape(&family().name())
    );
    let mut page = Page::new("Meta-gradient estimators compared", &lead);
    if let Some(lab) = lab {
        measured(&mut page, o, lab)?;
    }
    trained(&mut page, o, all)?;
    chosen(&mut page, choice);
    let header = "estimator,seed,gradient_equivalents,inner_steps,seconds,objective,train_loss,valid_loss\n";
    let mut csv = String::from(header);
    // What another run repeats: all but seconds, and what was chosen by them.
    let mut repeated = String::new();
    for runs in all {
        for (seed, run) in runs.seeds.iter().enumerate() {
            for Look { gradients, inner_steps, seconds, objective, train, valid } in &run.looks {
                let name = runs.name;
                csv += &format!(
                    "{name},{seed},{gradients},{inner_steps},{seconds},{objective},{train},{valid}\n"
                );
                if name != "auto" {
                    repeated +=
                        &format!("{name},{seed},{gradients},{inner_steps},{objective},{train},{valid}\n");
                }
            }
        }
    }
    write_atomic(file("compare_estimators.csv"), csv.as_bytes())?;
    write_atomic(file("choice.csv"), choice.csv().as_bytes())?;
    let theta: Vec<u8> = lopt().init(Key::new(0)).iter().flat_map(|x| x.to_le_bytes()).collect();
    let receipt = Receipt::new()
        .with("kernels", kernel::path())
        .with("learned optimizer", lopt().architecture())
        .with_hash("first theta of seed 0", &theta)
        .with_hash("results of all runs but auto, without seconds", repeated.as_bytes());
    page.receipt(&receipt, &[]);
    page.source("the same inputs on the same kernels give the same hashes, for any number of threads");
    page.save(file("report.html"))?;
    Ok(file("report.html"))
}

fn uncertain(u: Uncertain) -> String {
    format!("{:.3} <small>± {:.3}</small>", u.value, u.error)
}

fn measured(page: &mut Page, o: &Options, lab: &Lab) -> Result<()> {
    let text = format!(
        "At the first theta, {} samples of {} estimates each, against a long measurement of noise-reuse ES. Bias along the \
         truth: 0 if the mean has its length, −1 if nothing is left. Variance: of one sample, over the squared length of \
         the truth. Errors: one standard error.",
        o.lab_samples, lab.estimates
    );
    page.section("Bias, direction and noise", &text);
    let header = [
        "estimator",
        "bias along the truth",
        "cosine",
        "variance",
        "signal to noise",
        "per million inner steps",
        "per second",
    ];
    let row = |(name, c): &(&str, Comparison)| {
        vec![
            escape(name),
            uncertain(c.bias),
            uncertain(c.cosine),
            number(c.variance),
            number(c.signal_to_noise),
            number(1e6 * c.per_inner_step),
            number(c.per_second),
        ]
    };
    page.table(&header, &lab.rows.iter().map(row).collect::<Vec<_>>());
    page.source("lab.csv; seconds are this machine's");
    page.section(
        "Variance over the horizon, and the meta-loss",
        "Variance of the mean estimate over one run, with 95 % intervals. The slices are measured with theta itself, on the \
         same runs at every point: what is rough is the meta-loss. An estimator by perturbations sees the smoothed one.",
    );
    let pictures: Vec<(&str, &Plot)> =
        std::iter::once(&lab.variance).chain(&lab.slices).map(|plot| ("", plot)).collect();
    page.pictures(&pictures)?;
    page.source("variance.svg, slice.svg, surface.svg; surface.csv");
    Ok(())
}

fn trained(page: &mut Page, o: &Options, all: &[Runs]) -> Result<()> {
    let text = format!(
        "{}. Mean and standard error over the seeds, on fresh starts. Objective: mean log loss of a run, \
         late steps weighted; lower is better. The columns at equal effort read the curves below at the most that every \
         run has reached.",
        setting(o).trim_end_matches(':')
    );
    page.section("Meta-training", &text);
    let mut header = vec!["estimator", "cost of a step", "outer steps", "objective"];
    header.extend(["at equal gradients", "at equal inner steps", "at equal seconds"]);
    header.extend(["training loss", "validation loss"]);
    let reached: Vec<f64> = AXES
        .iter()
        .map(|(_, _, axis)| all.iter().map(|runs| runs.reached(*axis)).fold(f64::INFINITY, f64::min))
        .collect();
    let row = |runs: &Runs| {
        let mut row =
            vec![escape(runs.name), number(runs.cost.gradients), runs.seeds[0].outer_steps.to_string()];
        row.push(runs.last(|l| l.objective));
        let equal = AXES.iter().zip(&reached);
        row.extend(equal.map(|((_, _, axis), at)| runs.mean(|run| run.objective_at(*axis, *at))));
        row.push(runs.last(|l| l.train));
        row.push(runs.last(|l| l.valid));
        row
    };
    page.table(&header, &all.iter().map(row).collect::<Vec<_>>());
    let ends: Vec<String> =
        AXES.iter().zip(&reached).map(|((_, name, _), at)| format!("{} {name}", number(*at))).collect();
    page.push(format!("<p>Equal effort: {}.</p>\n", ends.join(", ")));
    let mut plots = Vec::new();
    for (file, name, axis) in AXES {
        let plot = Plot {
            title: format!("Meta-training over {name}"),
            x_label: name.into(),
            y_label: "mean log loss on fresh starts, late steps weighted".into(),
            series: all.iter().map(|runs| runs.curve(axis)).collect(),
            ..Plot::default()
        };
        plot.save(o.out.join(file))?;
        plots.push(plot);
    }
    page.pictures(&plots.iter().map(|plot| ("", plot)).collect::<Vec<_>>())?;
    page.source("compare_estimators.csv; bands: range of the seeds");
    Ok(())
}

fn chosen(page: &mut Page, choice: &Choice) {
    page.section(
        "The automatic choice",
        "Candidates at the first theta; of those without truncation bias, or with none that turns their mean aside, the one \
         with the most signal to noise per second (bold) is the row “auto” above.",
    );
    let header = ["settings", "can be chosen", "cosine", "across / along", "signal to noise", "per second"];
    let row = |(i, e): (usize, &Evidence)| {
        let name = escape(&e.settings.to_string());
        vec![
            if i == choice.best { format!("<strong>{name}</strong>") } else { name },
            if e.is_eligible { "yes".into() } else { "no".into() },
            uncertain(e.cosine),
            number(e.across),
            number(e.signal_to_noise),
            number(e.per_second),
        ]
    };
    page.table(&header, &choice.evidence.iter().enumerate().map(row).collect::<Vec<_>>());
    page.source("choice.csv; the only part that another machine may decide otherwise");
}
