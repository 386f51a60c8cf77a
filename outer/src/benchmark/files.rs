//! The report as files: CSV, JSON, one HTML page.

use super::html;
use super::receipt::{hash, Receipt};
use super::report::Report;
use super::tables;
use crate::fingerprint;
use outerloop_core::{atomic::write_atomic, Error, Result};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `report.json`.
#[derive(Serialize)]
struct Json<'a> {
    receipt: &'a Receipt,
    results_hash: String,
    config: &'a super::ContestConfig,
    reference: &'a str,
    tasks: Vec<&'a str>,
    contestants: Vec<JsonContestant<'a>>,
    scores: JsonScores<'a>,
}

#[derive(Serialize)]
struct JsonContestant<'a> {
    name: &'a str,
    role: super::Role,
    sweep: super::Sweep,
    variants: Vec<&'a str>,
    /// What each variant is, settings and theta included.
    optimizers: Vec<String>,
}

#[derive(Serialize)]
struct JsonScores<'a> {
    contestants: &'a [super::ContestantScore],
    horizons: &'a [super::HorizonScore],
    tasks: &'a [Vec<super::TaskScore>],
}

impl Report<'_> {
    fn json(&self, results_hash: String) -> Result<String> {
        let contestants = self.contest.contestants.iter().map(|c| JsonContestant {
            name: &c.name,
            role: c.role,
            sweep: c.sweep,
            variants: c.variants.iter().map(|v| v.label.as_str()).collect(),
            optimizers: c.variants.iter().map(|v| fingerprint::short(v.optimizer.describe())).collect(),
        });
        let json = Json {
            receipt: &self.receipt,
            results_hash,
            config: &self.contest.config,
            reference: &self.contest.contestants[self.contest.reference].name,
            tasks: self.contest.tasks.iter().map(|t| t.name.as_str()).collect(),
            contestants: contestants.collect(),
            scores: JsonScores {
                contestants: &self.scores.contestants,
                horizons: &self.scores.horizons,
                tasks: &self.scores.tasks,
            },
        };
        serde_json::to_string_pretty(&json).map_err(|e| Error::invalid("report.json", e.to_string()))
    }

    /// Writes everything into `dir`, which must exist, each file atomically; returns the page's path.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = dir.as_ref();
        let write = |name: &str, text: &str| write_atomic(dir.join(name), text.as_bytes());
        let mut all = String::new();
        for table in self.tables() {
            let csv = table.csv()?;
            write(table.name, &csv)?;
            all.push_str(&csv);
        }
        let results_hash = hash(all.as_bytes());
        if !self.times.is_empty() {
            let timing = tables::timing(self.contest, &self.times);
            write(timing.name, &timing.csv()?)?;
        }
        write("report.json", &self.json(results_hash.clone())?)?;
        write("report.html", &html::page(self, &results_hash)?)?;
        Ok(dir.join("report.html"))
    }
}
