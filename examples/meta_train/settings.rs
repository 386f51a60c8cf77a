//! What `config.toml` holds: a configuration, and the deliberate changes that led to it.

use crate::config::Config;
use outerloop::lopt::wrap::Frozen;
use outerloop::prelude::*;
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::sync::Arc;

/// The file of a run's settings.
pub const FILE: &str = "config.toml";

/// What may change while a meta-training runs: nothing that its state or its kept theta depends on.
const CHANGEABLE: [&str; 8] = [
    "outer_lr",
    "outer_lr_end",
    "outer_steps",
    "clip",
    "validation_every",
    "checkpoint_every",
    "eval_steps",
    "eval_seeds",
];

/// A configuration and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub config: Config,
    /// In the order in which they were made.
    pub overrides: Vec<Override>,
}

/// A deliberate change of a run in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Where it took effect; a restart that had not begun has it from its start.
    pub at: Vec<At>,
    /// The settings that changed, as they were.
    from: toml::Table,
    /// And as they are since.
    to: toml::Table,
}

/// Where a run stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct At {
    pub seed: u64,
    pub outer_step: u64,
}

/// What stays the same when settings are overridden; takes time to make.
pub struct Parts {
    pub lopt: Arc<dyn LearnedOptimizer>,
    /// The tasks, for meta-training and for the final comparison (which uses other keys).
    pub family: Arc<dyn FlatFamily>,
    /// `lopt`, if it begins at a given theta or a part of its theta stays as it is.
    pub frozen: Option<Arc<Frozen>>,
}

/// The changes as they stand in the file.
#[derive(Default, Serialize)]
struct History<'a> {
    overrides: &'a [Override],
}

/// A setting's name on the command line.
pub fn flag(name: &str) -> String {
    name.replace('_', "-")
}

pub fn is_changeable(name: &str) -> bool {
    CHANGEABLE.contains(&name)
}

impl Settings {
    /// Those of a run.
    pub fn load(dir: &RunDir) -> Result<Self> {
        let file = dir.file(FILE);
        let bad = |e: toml::de::Error| Error::format(&file, e.to_string());
        let text = std::fs::read_to_string(&file).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                let why = format!("holds no run to resume: it has no {FILE}");
                Error::invalid(format!("run directory {}", dir.path().display()), why)
            }
            _ => Error::io(&file, e),
        })?;
        let mut table: toml::Table = toml::from_str(&text).map_err(bad)?;
        let overrides = match table.remove("overrides") {
            Some(overrides) => overrides.try_into().map_err(bad)?,
            None => Vec::new(),
        };
        Ok(Settings { config: table.try_into().map_err(bad)?, overrides })
    }

    pub fn to_toml(&self) -> Result<String> {
        let bad = |e: toml::ser::Error| Error::invalid("configuration", e.to_string());
        let mut text = toml::to_string_pretty(&self.config).map_err(bad)?;
        if !self.overrides.is_empty() {
            text += "\n";
            text += &toml::to_string_pretty(&History { overrides: &self.overrides }).map_err(bad)?;
        }
        Ok(text)
    }

    /// The learner of these settings. Its states remember how the settings came about.
    pub fn learner(&self, parts: &Parts) -> Result<GradientLearner> {
        let mut note = format!("{:?}; kernel={}", self.config, kernel::path());
        if !self.overrides.is_empty() {
            note += &format!("; {:?}", self.overrides);
        }
        Ok(self.config.learner(parts)?.with_note(note))
    }

    /// The settings before the last change, and where that took effect.
    pub fn before(&self) -> Result<Option<(Settings, &[At])>> {
        let Some((last, earlier)) = self.overrides.split_last() else { return Ok(None) };
        let mut table = self.config.to_table()?;
        table.retain(|name, _| !last.to.contains_key(name));
        table.extend(last.from.clone());
        let config = table.try_into().map_err(|e| refused("overrides of the saved configuration", e))?;
        Ok(Some((Settings { config, overrides: earlier.to_vec() }, &last.at)))
    }

    /// These settings with the changes `name=value`, made at `at`; the same if they are so already.
    pub fn overridden(&self, changes: &[String], at: Vec<At>) -> Result<Settings> {
        let old = self.config.to_table()?;
        let mut new = old.clone();
        let mut seen = Vec::new();
        for change in changes {
            let what = || format!("--override {change}");
            let Some((name, value)) = change.split_once('=') else {
                return Err(Error::invalid(what(), "expected NAME=VALUE"));
            };
            let name = name.trim().replace('-', "_");
            if !is_changeable(&name) {
                let names = CHANGEABLE.map(flag).join(", ");
                return Err(Error::invalid(
                    what(),
                    format!("a running meta-training may change only {names}"),
                ));
            }
            if seen.contains(&name) {
                return Err(Error::invalid(what(), "the setting stands there twice"));
            }
            let value: toml::Value = value.trim().parse().map_err(|e| refused(&what(), e))?;
            new.insert(name.clone(), value);
            // One by one, so that the message can name the culprit.
            new = new.try_into::<Config>().map_err(|e| refused(&what(), e))?.to_table()?;
            seen.push(name);
        }
        let differ = |name: &String| old.get(name) != new.get(name);
        let pick = |table: &toml::Table| -> toml::Table {
            table.iter().filter(|(name, _)| differ(name)).map(|(n, v)| (n.clone(), v.clone())).collect()
        };
        let (from, to) = (pick(&old), pick(&new));
        let mut settings = self.clone();
        if !to.is_empty() {
            settings.config = new.try_into().map_err(|e| refused("overridden configuration", e))?;
            settings.overrides.push(Override { at, from, to });
        }
        Ok(settings)
    }
}

impl std::fmt::Display for Override {
    /// One line, for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = |table: &toml::Table, name| table.get(name).map_or("none".into(), ToString::to_string);
        let changes: Vec<String> = self
            .to
            .keys()
            .map(|name| format!("{} {} -> {}", flag(name), value(&self.from, name), value(&self.to, name)))
            .collect();
        let at: Vec<String> =
            self.at.iter().map(|at| format!("outer step {} of seed {}", at.outer_step, at.seed)).collect();
        let at = if at.is_empty() { "the start".into() } else { at.join(", ") };
        write!(f, "override at {at}: {}", changes.join(", "))
    }
}

fn refused(what: &str, e: toml::de::Error) -> Error {
    Error::invalid(what, e.message())
}
