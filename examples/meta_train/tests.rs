//! Command lines as people write them, run in this process.

use crate::options::Options;
use crate::plan::Plan;
use crate::run;
use crate::settings::{Settings, FILE};
use clap::CommandFactory;
use outerloop::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

const SMALL: &str = "--task quadratics --lopt learnable-adam --min-length 5 --max-length 20 --num-tasks 2 \
     --trunc-length 5 --validation-tasks 2 --validation-every 3 --eval-steps 10 --eval-seeds 2";

/// The options of a command line for the run directory `dir`.
pub fn options(dir: &Path, line: &str) -> Options {
    let words = ["meta_train", "--run-dir"].map(Into::into).into_iter().chain([dir.into()]);
    let words = words.chain(line.split_whitespace().map(std::ffi::OsString::from));
    Options::from_matches(&Options::command().try_get_matches_from(words).unwrap()).unwrap()
}

pub fn refused(dir: &Path, line: &str) -> String {
    run(options(dir, line)).unwrap_err().to_string()
}

/// All files of a directory.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_file());
    let name = |p: &Path| p.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|p| (name(&p), std::fs::read(&p).unwrap())).collect()
}

/// What a run ends with.
pub fn end(dir: &Path) -> [Vec<u8>; 3] {
    [FILE, "learner.ckpt", "theta.safetensors"].map(|name| std::fs::read(dir.join(name)).unwrap())
}

/// Begins a run, or goes on with one, and stops it after `outer_step` steps, as Ctrl-C does.
pub fn stopped(dir: &Path, line: &str, outer_step: u64) {
    let (plan, workers) = (Plan::new(&options(dir, line)).unwrap(), Workers::new(1).unwrap());
    plan.begin().unwrap();
    let dir = RunDir::new(dir);
    let state = if plan.resume { dir.load(&plan.learner) } else { plan.learner.init(Key::new(0), &workers) };
    let mut state = state.unwrap();
    while state.outer_step < outer_step {
        plan.learner.step(&mut state, &workers);
    }
    dir.save(&state).unwrap();
}

/// A copy of a directory, beside it.
fn copy(dir: &Path, name: &str) -> std::path::PathBuf {
    let to = dir.with_file_name(name);
    std::fs::create_dir(&to).unwrap();
    files(dir).iter().for_each(|(name, bytes)| std::fs::write(to.join(name), bytes).unwrap());
    to
}

#[test]
fn settings_out_of_range_are_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    for (line, wanted) in [
        ("--outer-steps 0", "outer_steps = 0: expected 1 to"),
        // Of a build without the feature, and of one on a machine without so many cards.
        #[cfg(not(feature = "cuda"))]
        ("--device cuda", "this build lacks the feature `cuda`; rebuild with `--features cuda`"),
        (
            "--device cuda:99",
            if cfg!(feature = "cuda") { "--device cpu" } else { "lacks the feature `cuda`" },
        ),
        ("--num-tasks 0", "num_tasks = 0: expected 1 to"),
        ("--trunc-length 0", "trunc_length = 0: expected 1 to"),
        ("--trunc-length 18446744073709551615", "trunc_length = 18446744073709551615: expected 1 to"),
        ("--min-length 0", "min_length = 0: expected 1 to 500"),
        ("--min-length 30 --max-length 20", "min_length = 30: expected 1 to 20"),
        ("--max-length 0", "max_length = 0: expected 1 to"),
        ("--hidden-size 0", "hidden_size = 0: expected 1 to"),
        ("--hidden-size 100000000", "hidden_size = 100000000: expected 1 to"),
        ("--std 0", "std = 0: expected a positive number"),
        ("--std nan", "std = NaN: expected"),
        ("--std=-1", "std = -1: expected"),
        ("--outer-lr nan", "outer_lr = NaN: expected a positive number"),
        ("--outer-lr=-1", "outer_lr = -1: expected"),
        ("--outer-lr-end 1.5", "outer_lr_end = 1.5: expected 0 to 1"),
        ("--clip 0", "clip = 0: expected a positive number"),
        ("--step-mult nan", "step_mult = NaN: expected"),
        ("--exp-mult inf", "exp_mult = inf: expected"),
        ("--weight-decay=-1", "weight_decay = -1: expected 0 to"),
        ("--validation-tasks 18446744073709551615", "validation_tasks = "),
        ("--validation-every 0", "validation_every = 0: expected 1 to"),
        ("--checkpoint-every 0", "checkpoint_every = 0: expected 1 to"),
        ("--eval-steps 0", "eval_steps = 0: expected 1 to"),
        ("--eval-steps 18446744073709551615", "eval_steps = 18446744073709551615: expected 1 to"),
        ("--eval-seeds 0", "eval_seeds = 0: expected 1 to"),
        ("--restarts 0", "restarts = 0: expected 1 to"),
        ("--restarts 2 --validation-tasks 0", "restarts = 2: the best is chosen by validation"),
        ("--seed 18446744073709551615", "seed = 18446744073709551615: expected 0 to 9223372036854775807"),
        ("--seed 9223372036854775807 --restarts 2", "expected 0 to 9223372036854775806"),
        ("--seed 18446744073709551615 --restarts 2", "seed = 18446744073709551615: expected"),
        ("--threads 99999999", "99999999"),
        ("--lopt learnable-sgd --task mnist-mlp --data-dir /does/not/exist", "/does/not/exist"),
    ] {
        let got = refused(
            &dir,
            &format!("{line} {}", if line.contains("--task") { "" } else { "--task quadratics" }),
        );
        assert!(got.contains(wanted), "{line}: {got}");
        assert!(!dir.exists(), "{line}");
    }
    let recipe = root.path().join("recipe.toml");
    for (text, wanted) in [
        ("task = \"suite\"\n[training]\nmlp_weight = -1.0\n", "weights"),
        ("[objective]\nscale = { Log = { floor = 0.0, ceiling = 3.0 } }\nemphasis = \"Uniform\"\n", "floor"),
        ("horizon = { Constant = 0 }\n", "length"),
    ] {
        std::fs::write(&recipe, text).unwrap();
        let got = refused(&dir, &format!("--recipe {}", recipe.display()));
        assert!(got.contains(wanted), "{text}: {got}");
        assert!(!dir.exists(), "{text}");
    }
}

#[test]
fn the_estimator_auto_is_chosen_once_and_kept_with_its_evidence() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    stopped(&dir, &format!("{SMALL} --estimator auto --outer-steps 3"), 2);
    let settings = std::fs::read_to_string(dir.join(FILE)).unwrap();
    let table: toml::Table = toml::from_str(&settings).unwrap();
    let chosen = table["estimator"].as_str().unwrap();
    let evidence = std::fs::read_to_string(dir.join("choice.csv")).unwrap();
    let best = evidence.lines().find(|l| l.starts_with("true,")).unwrap();
    let fields: Vec<&str> = best.split(',').collect();
    assert_eq!(fields[1].to_lowercase(), chosen.replace('-', ""));
    assert_eq!(fields[3].parse::<i64>().unwrap(), table["trunc_length"].as_integer().unwrap());
    assert_eq!(fields[4].parse::<i64>().unwrap(), table["num_tasks"].as_integer().unwrap());
    // What was chosen stays, and nothing is measured again.
    run(options(&dir, "--resume")).unwrap();
    assert_eq!(std::fs::read_to_string(dir.join(FILE)).unwrap(), settings);
    assert_eq!(std::fs::read_to_string(dir.join("choice.csv")).unwrap(), evidence);
}

#[test]
fn a_directory_is_free_until_a_run_or_something_foreign_is_in_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    // What a run that was killed before its first checkpoint leaves.
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join(FILE), "std = 0").unwrap();
    run(options(&dir, &format!("{SMALL} --outer-steps 3"))).unwrap();
    let before = files(&dir);
    assert!(before.contains_key("theta.safetensors"));
    let got = refused(&dir, &format!("{SMALL} --outer-steps 3"));
    assert!(got.contains("holds a run already"), "{got}");
    assert_eq!(files(&dir), before);
    // Metrics that went missing cost the picture only.
    std::fs::remove_file(dir.join("metrics.csv")).unwrap();
    run(options(&dir, "--resume")).unwrap();

    let foreign = root.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.tex"), "").unwrap();
    let got = refused(&foreign, SMALL);
    assert!(got.contains("holds `thesis.tex`"), "{got}");
    let got = refused(&foreign, "--resume");
    assert!(got.contains("holds no run to resume"), "{got}");
    assert_eq!(files(&foreign).len(), 1);
}

#[test]
fn flags_that_contradict_a_saved_run_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    stopped(&dir, &format!("{SMALL} --outer-steps 4"), 2);
    let before = files(&dir);
    let got = refused(&dir, "--resume --outer-lr 1e-4");
    let way = "use --resume --override outer-lr=1e-4";
    assert!(got.contains("--outer-lr 1e-4") && got.contains("has 0.003") && got.contains(way), "{got}");
    // The default, but not what the run has.
    let got = refused(&dir, "--resume --num-tasks 16");
    assert!(
        got.contains("--num-tasks 16") && got.contains("has 2;") && got.contains("cannot change"),
        "{got}"
    );
    let got = refused(&dir, "--resume --data-dir here");
    assert!(got.contains("no value"), "{got}");
    for line in ["--override outer-lr=1", "--resume --recipe x.toml"] {
        let words = ["meta_train"].into_iter().chain(line.split(' '));
        assert!(Options::command().try_get_matches_from(words).is_err(), "{line}");
    }
    for (change, wanted) in [
        ("outer-lr", "expected NAME=VALUE"),
        ("std=0.1", "may change only outer-lr, outer-lr-end, outer-steps"),
        ("outer-lr=fast", "--override outer-lr=fast"),
        ("outer-steps=1.5", "--override outer-steps=1.5: invalid type"),
        ("outer-lr=1,outer_lr=2", "twice"),
        ("outer-lr=-1", "outer_lr = -1: expected a positive number"),
        ("outer-lr=1e-4,eval-seeds=0", "eval_seeds = 0: expected 1 to"),
        ("outer-steps=1", "2 are done already, got 1"),
        ("outer-steps=2", "2 are done already, got 2"),
    ] {
        let got = refused(&dir, &format!("--resume --override {change}"));
        assert!(got.contains(wanted), "{change}: {got}");
    }
    assert_eq!(files(&dir), before);
    // What the run has anyway may be said.
    run(options(&dir, "--resume --outer-lr 3e-3 --num-tasks 2 --override clip=10")).unwrap();
    assert_eq!(files(&dir)[FILE], before[FILE]);
}

#[test]
fn an_overridden_run_ends_the_same_wherever_it_was_stopped() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    stopped(&dir, &format!("{SMALL} --outer-steps 8"), 4);
    let saved = files(&dir)["learner.ckpt"].clone();
    let [twin, killed, plain] = ["stopped", "killed", "plain"].map(|name| copy(&dir, name));
    let first = "--resume --override outer-lr=1e-4,outer-steps=12";
    let second = "--resume --override clip=0.5,outer-lr=0.01";

    stopped(&dir, first, 6);
    run(options(&dir, second)).unwrap();
    let Settings { config, overrides } = Settings::load(&RunDir::new(&dir)).unwrap();
    assert_eq!((config.outer_steps, overrides.len()), (12, 2));
    assert_eq!(
        overrides[0].to_string(),
        "override at outer step 4 of seed 0: outer-lr 0.003 -> 0.0001, outer-steps 8 -> 12"
    );
    assert_eq!(overrides[1].at[0].outer_step, 6);
    let page = std::fs::read_to_string(dir.join("report/report.html")).unwrap();
    assert!(page.contains("outer-steps 8 -&gt; 12"));

    // Stopped between and after the overrides; an override that is repeated is none.
    stopped(&twin, first, 5);
    stopped(&twin, "--resume", 6);
    stopped(&twin, second, 9);
    run(options(&twin, second)).unwrap();
    assert!(end(&twin) == end(&dir));

    // Killed after the settings were written and before the states.
    let ckpt = killed.join("learner.ckpt");
    stopped(&killed, first, 4);
    std::fs::write(&ckpt, &saved).unwrap();
    stopped(&killed, "--resume", 6);
    let at_six = std::fs::read(&ckpt).unwrap();
    stopped(&killed, second, 6);
    std::fs::write(&ckpt, at_six).unwrap();
    run(options(&killed, "--resume")).unwrap();
    assert!(end(&killed) == end(&dir));
    // A state of another time is not of these settings.
    std::fs::write(&ckpt, saved).unwrap();
    let got = refused(&killed, "--resume");
    assert!(got.contains("saved run: expected"), "{got}");

    run(options(&plain, "--resume")).unwrap();
    assert!(end(&plain) != end(&dir));
    let straight = root.path().join("straight");
    run(options(&straight, &format!("{SMALL} --outer-steps 8"))).unwrap();
    assert!(end(&straight) == end(&plain));
}

#[test]
fn finished_restarts_go_on_with_more_steps() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    run(options(&dir, &format!("{SMALL} --outer-steps 3 --seed 5 --restarts 2"))).unwrap();
    run(options(&dir, "--resume --override outer-steps=7,eval-seeds=1")).unwrap();
    let own = Settings::load(&RunDir::new(&dir)).unwrap();
    let at: Vec<(u64, u64)> = own.overrides[0].at.iter().map(|at| (at.seed, at.outer_step)).collect();
    assert_eq!(at, [(5, 3), (6, 3)]);
    for seed in ["seed-5", "seed-6"] {
        let rows = std::fs::read_to_string(dir.join(seed).join("metrics.csv")).unwrap();
        assert_eq!(rows.lines().count(), 8, "{rows}");
    }
}

#[test]
fn a_device_is_parsed_and_saved_and_does_not_change() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let words = |device: &str| {
        let line = ["meta_train", "--device", device];
        Options::command().try_get_matches_from(line).map(|m| m.get_one::<Device>("device").copied())
    };
    assert_eq!(words("cuda").unwrap(), Some(Device::Cuda(0)));
    let error = words("gpu").unwrap_err().to_string();
    assert!(error.contains("unknown device `gpu`, expected one of: cpu, cuda, cuda:N"), "{error}");
    stopped(&dir, &format!("{SMALL} --outer-steps 2"), 1);
    let saved = std::fs::read_to_string(dir.join(FILE)).unwrap();
    assert!(saved.contains("device = \"cpu\""), "{saved}");
    let error = refused(&dir, "--resume --device cuda");
    assert!(
        error.starts_with("--device cuda: contradicts the saved configuration, which has \"cpu\""),
        "{error}"
    );
}
