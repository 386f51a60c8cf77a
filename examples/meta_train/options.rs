//! The command line, and what it means for a run that goes on.

use crate::config::Config;
use crate::settings::{flag, is_changeable};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser};
use outerloop::prelude::*;
use std::path::PathBuf;

/// Meta-train a learned optimizer and compare it with hand-designed ones.
#[derive(Parser)]
pub struct Options {
    #[command(flatten)]
    pub config: Config,
    /// Worker threads; 0: one per core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where everything is written [default: the next free runs/meta_train-N].
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Continue the run in --run-dir [default: the newest] with its saved configuration.
    #[arg(long)]
    pub resume: bool,
    /// With --resume, change settings from here on, e.g. `outer-lr=1e-4,outer-steps=3000`; also continues a
    /// run that was finished. The change is recorded in the run's config.toml.
    #[arg(long = "override", value_name = "NAME=VALUE,...", value_delimiter = ',', requires = "resume")]
    pub overrides: Vec<String>,
    /// A TOML file with settings, named as the flags below but with underscores; flags that are given
    /// count more.
    #[arg(long, conflicts_with = "resume")]
    recipe: Option<PathBuf>,
    /// The settings that stand on the command line, with their text there.
    #[arg(skip)]
    given: Vec<(String, String)>,
}

impl Options {
    /// Settings come, in this order, from flags that were given, the recipe, and the defaults.
    pub fn from_matches(matches: &ArgMatches) -> Result<Self> {
        let mut options = Options::from_arg_matches(matches).unwrap_or_else(|e| e.exit());
        let settings = Config::augment_args(Command::new("settings"));
        for name in settings.get_arguments().map(|a| a.get_id().as_str()) {
            if matches.value_source(name) == Some(ValueSource::CommandLine) {
                let text = matches.get_raw(name).into_iter().flatten().map(|t| t.to_string_lossy());
                options.given.push((name.to_string(), text.collect()));
            }
        }
        let Some(path) = &options.recipe else { return Ok(options) };
        let bad = |e: String| Error::format(path, e);
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let recipe: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let flags = options.config.to_table()?;
        let given = |key: &str| options.given.iter().any(|(name, _)| name == key);
        let mut settings = flags.clone();
        settings.extend(recipe);
        settings.extend(flags.into_iter().filter(|(key, _)| given(key)));
        options.config = settings.try_into().map_err(|e: toml::de::Error| bad(e.to_string()))?;
        Ok(options)
    }

    /// From the command line; exits with a message if that is wrong.
    pub fn from_command_line() -> Result<Self> {
        Self::from_matches(&Options::command().get_matches())
    }

    /// Where the run is, or will be.
    pub fn run_dir(&self) -> RunDir {
        let numbered = |n: u32| PathBuf::from(format!("runs/meta_train-{n}"));
        let free = (1..).find(|&n| !numbered(n).exists()).unwrap_or(1);
        RunDir::new(match (&self.run_dir, self.resume) {
            (Some(path), _) => path.clone(),
            (None, true) => numbered(free.max(2) - 1),
            (None, false) => numbered(free),
        })
    }

    /// Errors if a flag says something else than the saved configuration, which is what a resumed run goes by.
    pub fn check_against(&self, saved: &Config) -> Result<()> {
        let (mine, saved) = (self.config.to_table()?, saved.to_table()?);
        for (name, text) in &self.given {
            if mine.get(name) == saved.get(name) {
                continue;
            }
            let flag = flag(name);
            let saved = saved.get(name).map_or("no value".into(), ToString::to_string);
            let way = if is_changeable(name) {
                format!("to change it from here on, use --resume --override {flag}={text}")
            } else {
                "it cannot change in a running meta-training: leave the flag out, or begin another run".into()
            };
            let why = format!("contradicts the saved configuration, which has {saved}; {way}");
            return Err(Error::invalid(format!("--{flag} {text}"), why));
        }
        Ok(())
    }
}
