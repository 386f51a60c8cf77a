//! Where theta begins, and what of it stays as it is.

use crate::settings::Parts;
use outerloop::lopt::wrap::Frozen;
use outerloop::prelude::*;
use outerloop::pretrained::{Named, NAMES};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Theta to begin from: a pretrained optimizer's by its name, or a file in any known format.
fn given(text: &str, lopt: &dyn LearnedOptimizer) -> Result<Vec<f32>> {
    if !NAMES.contains(&text) {
        return theta::import(text, lopt);
    }
    let Named { lopt: theirs, theta, .. } = Named::load(text)?;
    if *theirs.theta_layout() != *lopt.theta_layout() {
        let what = format!("init_theta = {text}: learned optimizer");
        return Err(Error::Mismatch { what, expected: lopt.architecture(), got: theirs.architecture() });
    }
    Ok(theta)
}

/// The learned optimizer that begins at `init` and of which the tensors `frozen` stay; none if neither is asked for.
pub fn started(
    lopt: &Arc<dyn LearnedOptimizer>,
    init: Option<&str>,
    frozen: &[String],
    key: Key,
) -> Result<Option<Arc<Frozen>>> {
    if init.is_none() && frozen.is_empty() {
        return Ok(None);
    }
    let names: Vec<&str> = frozen.iter().map(String::as_str).collect();
    let made = match init {
        Some(text) => Frozen::new(lopt.clone(), &names, given(text, &**lopt)?)?,
        None => Frozen::new(lopt.clone(), &names, lopt.init(key))?.with_fresh_start(),
    };
    Ok(Some(Arc::new(made)))
}

impl Parts {
    /// Saves theta with all that is frozen, as a theta of the whole learned optimizer.
    pub fn save_theta(
        &self,
        path: impl AsRef<Path>,
        theta: &[f32],
        provenance: BTreeMap<String, String>,
    ) -> Result<()> {
        match &self.frozen {
            Some(frozen) => theta::save(path, frozen.inner(), &frozen.whole(theta), provenance),
            None => theta::save(path, &*self.lopt, theta, provenance),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::run;
    use crate::tests::{end, options, refused, stopped};
    use outerloop::prelude::*;
    use std::path::{Path, PathBuf};

    const COMMON: &str = r#"
        lopt = "celo"
        hidden_size = 3
        lstm_hidden_size = 2
        step_mult = 0.1
        task = "quadratics"
        num_tasks = 2
        trunc_length = 5
        min_length = 5
        max_length = 20
        outer_steps = 6
        validation_tasks = 2
        validation_every = 3
        eval_steps = 10
        eval_seeds = 2
    "#;

    /// A recipe with these settings besides.
    fn recipe(root: &Path, name: &str, more: &str) -> String {
        let path = root.join(name);
        std::fs::write(&path, format!("{COMMON}\n{more}")).unwrap();
        format!("--recipe {}", path.display())
    }

    /// A run of both phases; the second is stopped and continued if `stops`.
    fn two_phases(root: &Path, stops: bool) -> [PathBuf; 2] {
        let dirs = ["first", "second"].map(|name| root.join(name));
        let schedule = r#"frozen = ["rnn_params", "lstm_init_state"]"#;
        let first = recipe(root, "first.toml", &format!("train_phase = 1\n{schedule}"));
        run(options(&dirs[0], &first)).unwrap();
        let theta = dirs[0].join("theta.safetensors");
        let start = format!("init_theta = {:?}\nfrozen = [\"ff_mod_stack\"]", theta.display().to_string());
        let second = recipe(root, "second.toml", &start);
        if stops {
            stopped(&dirs[1], &second, 4);
            run(options(&dirs[1], "--resume")).unwrap();
        } else {
            run(options(&dirs[1], &second)).unwrap();
        }
        dirs
    }

    fn tensors(dir: &Path, below: &str) -> Vec<f32> {
        let file = theta::load(dir.join("theta.safetensors")).unwrap();
        let entries = file.layout.entries().iter().filter(|e| e.name.starts_with(below));
        entries.flat_map(|e| file.theta[e.range()].to_vec()).collect()
    }

    #[test]
    fn two_phases_learn_one_part_each_and_resume_to_the_same_bytes() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = two_phases(root.path(), false);
        let start = |dir: &Path| theta::load(dir.join("theta.safetensors")).unwrap();
        // Whole thetas, of learned optimizers that differ in their phase.
        assert!(registry::from_architecture::<f32>(&start(&dirs[0]).architecture).is_ok());
        assert!(start(&dirs[1]).architecture.contains("\"train_phase\":2"));
        let [first, second] = [0, 1].map(|i: usize| tensors(&dirs[i], "ff_mod_stack"));
        assert_eq!(first, second);
        let [first, second] = [0, 1].map(|i: usize| tensors(&dirs[i], "rnn_params"));
        assert_ne!(first, second);

        // The same in another place, stopped in between: the file's place is part of the settings, theta is not.
        let again = two_phases(other.path(), true);
        assert_eq!(start(&again[1]).theta, start(&dirs[1]).theta);
        // A resumed run is held to what was frozen.
        let text = std::fs::read(again[0].join("theta.safetensors")).unwrap();
        let changed = start(&dirs[1]);
        theta::ThetaFile { theta: changed.theta.iter().map(|t| t + 1.0).collect(), ..changed }
            .save(again[0].join("theta.safetensors"))
            .unwrap();
        let before = end(&again[1]);
        let error = refused(&again[1], "--resume --override outer-steps=9");
        assert!(error.contains("frozen at"), "{error}");
        assert_eq!(end(&again[1]), before);
        std::fs::write(again[0].join("theta.safetensors"), text).unwrap();
        run(options(&again[1], "--resume --override outer-steps=9")).unwrap();
    }

    #[test]
    fn a_start_that_does_not_fit_is_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        for (line, wanted) in [
            ("--lopt celo --init-theta small".to_string(), "init_theta = small"),
            ("--lopt celo --hidden-size 5 --init-theta celo".into(), "init_theta = celo"),
            ("--lopt celo-adam --init-theta /does/not/exist".into(), "/does/not/exist"),
            (recipe(root.path(), "a.toml", "frozen = [\"rnn\"]"), "tensor of theta to freeze"),
            (recipe(root.path(), "b.toml", "train_phase = 0"), "train_phase"),
        ] {
            let got = refused(&dir, &format!("{line} --task quadratics"));
            assert!(got.contains(wanted), "{line}: {got}");
            assert!(!dir.exists(), "{line}");
        }
        let line =
            "--lopt celo --hidden-size 4 --init-theta celo --outer-steps 1 --num-tasks 1 --trunc-length 2 \
                    --max-length 100 --validation-tasks 0 --eval-steps 5 --eval-seeds 1 --task quadratics";
        run(options(&dir, line)).unwrap();
        assert_eq!(tensors(&dir, "").len(), 37_089);
    }
}
