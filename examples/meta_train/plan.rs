//! Everything that a run needs until its end, made and checked before anything is written.

use crate::contest::contest;
use crate::options::Options;
use crate::settings::{At, Parts, Settings, FILE};
use outerloop::outer::lab::Choice;
use outerloop::prelude::*;

/// The file of what the estimator `auto` was chosen by.
pub const CHOICE: &str = "choice.csv";

/// A run that can begin, or go on.
pub struct Plan {
    pub dir: RunDir,
    pub settings: Settings,
    pub parts: Parts,
    pub learner: GradientLearner,
    pub resume: bool,
    /// How the estimator was chosen, if it was measured.
    pub choice: Option<Choice>,
    /// Saved states that the settings were changed for, with their directories.
    adopted: Vec<(RunDir, LearnerState)>,
}

impl Plan {
    /// From the command line or, on resume, from the run directory. Writes nothing.
    pub fn new(options: &Options) -> Result<Self> {
        let dir = options.run_dir();
        let plan = if options.resume { Self::resume(options, dir)? } else { Self::fresh(options, dir)? };
        // The learned optimizer is not there yet; any theta stands in for it.
        let key = Key::new(plan.settings.config.seed);
        contest(&plan, key, &plan.parts.lopt.init(key)).check()?;
        Ok(plan)
    }

    fn fresh(options: &Options, dir: RunDir) -> Result<Self> {
        dir.check_free(&[FILE, CHOICE])?;
        let mut settings = Settings { config: options.config.clone(), overrides: Vec::new() };
        settings.config.check()?;
        let parts = settings.config.parts()?;
        let choice = settings.config.choose(&parts, &Workers::new(options.threads)?)?;
        let learner = settings.learner(&parts)?;
        Ok(Plan { dir, settings, parts, learner, resume: false, choice, adopted: Vec::new() })
    }

    fn resume(options: &Options, dir: RunDir) -> Result<Self> {
        let saved = Settings::load(&dir)?;
        options.check_against(&saved.config)?;
        // Refuses names and values before the saved states are asked where they stand.
        saved.overridden(&options.overrides, Vec::new())?.config.check()?;
        let parts = saved.config.parts()?;
        let mut states = Vec::new();
        for (seed, own) in saved.config.runs(&dir) {
            if own.checkpoint().exists() {
                let state = state_under(&saved, &parts, seed, &own)?;
                states.push((seed, own, state));
            }
        }
        let at = states.iter().map(|(seed, _, s)| At { seed: *seed, outer_step: s.outer_step }).collect();
        let settings = saved.overridden(&options.overrides, at)?;
        let (learner, before) = (settings.learner(&parts)?, saved.learner(&parts)?);
        let mut adopted = Vec::new();
        for (_, own, state) in states {
            let state = if settings == saved { state } else { learner.adopt(&before, state)? };
            adopted.push((own, state));
        }
        Ok(Plan { dir, settings, parts, learner, resume: true, choice: None, adopted })
    }

    /// The first to write: the run directory, its settings, and states that go on under changed ones.
    pub fn begin(&self) -> Result<()> {
        if !self.resume {
            self.dir.create()?;
        }
        if let Some(choice) = &self.choice {
            write_atomic(self.dir.file(CHOICE), choice.csv().as_bytes())?;
        }
        write_atomic(self.dir.file(FILE), self.settings.to_toml()?.as_bytes())?;
        // Killed here, the next resume finds the change in the settings and makes up for it: `state_under`.
        self.adopted.iter().try_for_each(|(dir, state)| dir.save(state))
    }
}

/// The saved state of a run under the settings. If the process was killed after it had written an override to
/// the settings and before the state, the state is of the settings before; it is taken over here.
fn state_under(settings: &Settings, parts: &Parts, seed: u64, dir: &RunDir) -> Result<LearnerState> {
    let learner = settings.learner(parts)?;
    let mismatch = match dir.load(&learner) {
        Err(e @ Error::Mismatch { .. }) => e,
        other => return other,
    };
    let Some((before, at)) = settings.before()? else { return Err(mismatch) };
    match state_under(&before, parts, seed, dir) {
        Ok(state) if at.contains(&At { seed, outer_step: state.outer_step }) => {
            learner.adopt(&before.learner(parts)?, state)
        }
        Ok(_) | Err(Error::Mismatch { .. }) => Err(mismatch),
        Err(other) => Err(other),
    }
}
