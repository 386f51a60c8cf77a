use super::contest::Results;
use super::*;
use crate::eval::{Curve, EvalPoint, ToldSteps};
use crate::workers::Workers;
use outerloop_core::tensor::{Backend, Mode, Rank0, Rank1, Tensor};
use outerloop_core::{BatchKey, Float, Key, SingleTask, Split, Task};
use outerloop_lopt::hand::{Adam, Cosine, Sgd};
use outerloop_tasks::quadratics::{NoisyMeanQuadraticTask, QuadraticTask};
use std::sync::Arc;

fn tasks() -> Vec<ContestTask> {
    vec![
        ContestTask { name: "round".into(), family: Arc::new(SingleTask::new(QuadraticTask::new(3))) },
        ContestTask {
            name: "noisy <2>".into(),
            family: Arc::new(SingleTask::new(NoisyMeanQuadraticTask::new(2, 0.1))),
        },
    ]
}

/// Adam, an SGD sweep whose last rate diverges, a "learned" optimizer, one that always diverges.
fn contest() -> Contest {
    Contest {
        config: ContestConfig {
            // No multiple of the number of evaluations.
            num_steps: 19,
            reference_factor: 2,
            seeds: 2,
            other_horizons: vec![5, 38],
            resamples: 50,
            evaluations: 2,
            ..ContestConfig::default()
        },
        tasks: tasks(),
        contestants: vec![
            Contestant::swept("Adam", &[1e-2, 1e-1, 1.0], |lr| Box::new(Adam::new(lr))),
            Contestant::swept("SGD", &[1e-3, 1e-1, 1e6], |lr| Box::new(Sgd::new(lr))),
            Contestant::single("learned", Role::Learned, Box::new(Adam::new(0.5))),
            Contestant::single("broken", Role::Baseline, Box::new(Sgd::new(1e6))),
        ],
        reference: 0,
        key: Key::new(3),
    }
}

/// Losses whose smoothed values are the given ones.
fn with_smoothed(values: &[f64]) -> Vec<f32> {
    let decay = metrics::EMA_DECAY;
    let raw = |w: &[f64]| ((w[1] - decay * w[0]) / (1.0 - decay)) as f32;
    std::iter::once(values[0] as f32).chain(values.windows(2).map(raw)).collect()
}

/// Two tasks, two seeds: a reference that goes 4, 3, 2, 1.5, 1, and a contestant that is faster but
/// fails on one seed of the second task.
fn hand_made() -> (Contest, Results) {
    let contest = Contest {
        config: ContestConfig {
            num_steps: 2,
            reference_factor: 2,
            seeds: 2,
            resamples: 200,
            ..ContestConfig::default()
        },
        tasks: tasks(),
        contestants: vec![
            Contestant::swept("Adam", &[0.1], |lr| Box::new(Adam::new(lr))),
            Contestant::single("learned", Role::Learned, Box::new(Adam::new(0.1))),
        ],
        ..contest()
    };
    let run = |task, contestant, seed, num_steps, train: Vec<f32>| {
        let evals = vec![EvalPoint {
            step: 2,
            split: Split::OuterValid,
            loss: 1.0 + contestant as f32,
            metrics: Vec::new(),
        }];
        Run { task, contestant, variant: 0, seed, num_steps, curve: Curve { train, evals } }
    };
    let mut runs = Vec::new();
    for task in 0..2 {
        for seed in 0..2 {
            runs.push(run(task, 0, seed, 4, with_smoothed(&[4.0, 3.0, 2.0, 1.5, 1.0])));
            let end = match (task, seed) {
                (0, 0) => 1.75,
                (0, 1) => 1.25,
                _ => 1.5,
            };
            let mut losses = with_smoothed(&[4.0, 2.0, end]);
            if (task, seed) == (1, 1) {
                losses[2] = f32::NAN;
            }
            runs.push(run(task, 1, seed, 2, losses));
        }
    }
    let results = Results::new(&contest, runs);
    (contest, results)
}

#[test]
fn scores_are_those_computed_by_hand() {
    let (contest, results) = hand_made();
    let scores = Scores::new(&contest, &results);
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-5, "{got}, expected {want}");

    let first = &scores.tasks[0][1];
    near(first.loss, 1.5);
    near(first.ratio, 0.75);
    // The reference is at 1.5 after 3 steps of a horizon of 2.
    near(first.speedup, 1.5);
    // Its target is what the reference has after ⌊0.75 · 2⌋ = 1 step: 3.
    near(first.steps_to_target, 0.5);
    near(scores.tasks[0][0].steps_to_target, 1.0);
    near(first.validation, 2.0);
    assert!(!first.speedup_is_bound);

    let failed = &scores.tasks[1][1];
    assert_eq!((failed.loss, failed.ratio, failed.speedup), (f64::INFINITY, f64::INFINITY, 0.0));

    let learned = &scores.contestants[1];
    near(learned.win_rate.value, 0.5);
    assert_eq!(learned.validation_win_rate.value, 0.0);
    // Runs: 0.875, 0.625, 0.75, ∞ without the ends.
    near(learned.loss_ratio.value, 0.8125);
    // Runs: 1.25, 1.75, 1.5, 0 without the ends.
    near(learned.speedup.value, 1.375);
    near(learned.median_speedup.value, 0.75);
    assert_eq!(learned.failures, 1);
    // It fails on the second task, though it reached the target before.
    assert_eq!(failed.steps_to_target, f64::INFINITY);
    near(learned.profile_score, 0.5);
    near(scores.contestants[0].profile_score, (2.0 / 3.0 + 1.0) / 2.0);
    // The reference against itself.
    let own = &scores.contestants[0];
    assert_eq!((own.win_rate.value, own.failures), (0.5, 0));
    near(own.loss_ratio.value, 1.0);
    near(own.median_speedup.value, 1.0);
}

/// The curves of [`hand_made`] without its failure, moved by `by`.
fn moved(by: f64) -> (Contest, Results) {
    let (contest, mut results) = hand_made();
    for run in &mut results.runs {
        let values: &[f64] = if run.contestant == 0 { &[4.0, 3.0, 2.0, 1.5, 1.0] } else { &[4.0, 2.0, 1.5] };
        run.curve.train = with_smoothed(&values.iter().map(|v| v + by).collect::<Vec<_>>());
    }
    (contest, results)
}

/// The lines and single points of the page's pictures in one section.
fn drawn(report: &Report, section: &str) -> [usize; 2] {
    let dir = tempfile::tempdir().unwrap();
    let page = std::fs::read_to_string(report.save(dir.path()).unwrap()).unwrap();
    let pictures = page.split(&format!("<h2>{section}")).nth(1).and_then(|rest| rest.split("<h2>").next());
    // Axes and ticks are thinner.
    ["stroke-width=\"2\"", "<circle"].map(|mark| pictures.unwrap().matches(mark).count())
}

#[test]
fn a_lower_loss_is_a_win_in_the_whole_report_wherever_zero_lies() {
    let (contest, results) = moved(0.0);
    let positive = Scores::new(&contest, &results);
    // Between the losses, below all but the start, above all, and at the start.
    for by in [-1.75, -3.9, -20.0, -4.0, -100.0] {
        let (contest, results) = moved(by);
        let report = Report::new("moved", &contest, &results);
        let scores = &report.scores;
        for (task, row) in scores.tasks.iter().enumerate() {
            for (c, score) in row.iter().enumerate() {
                let want = &positive.tasks[task][c];
                assert!((score.speedup - want.speedup).abs() < 1e-3, "{by}: {score:?}, {want:?}");
                assert!(
                    (score.steps_to_target - want.steps_to_target).abs() < 1e-3,
                    "{by}: {score:?}, {want:?}"
                );
                // (1.5 − 1 + 0.01 · 3) / (2 − 1 + 0.01 · 3)
                let ratio = [1.0, 0.53 / 1.03][c];
                assert!((score.ratio - ratio).abs() < 1e-3, "{by}: {score:?}");
                assert!((score.ratio_zero - (1.0 - 0.03 + by)).abs() < 1e-3 * by.abs(), "{by}: {score:?}");
            }
        }
        let [reference, learned] = [0, 1].map(|c| scores.contestants[c]);
        assert_eq!((learned.win_rate.value, reference.win_rate.value), (1.0, 0.5), "{by}");
        assert!((reference.loss_ratio.value - 1.0).abs() < 1e-9, "{by}: {reference:?}");
        assert!(report.text().contains("Losses reach zero or below on round, noisy <2>"), "{by}");
        // Both contestants on both tasks; the one rate of the sweep is a point.
        assert_eq!(drawn(&report, "Learning curves"), [4, 0], "{by}");
        assert_eq!(drawn(&report, "Sweeps"), [2, 2], "{by}");
    }
    let (contest, results) = moved(0.0);
    assert!(Report::new("positive", &contest, &results).remarks().is_empty());
}

#[test]
fn a_failed_reference_scores_nothing_and_is_said() {
    let (contest, mut results) = moved(0.0);
    for run in results.runs.iter_mut().filter(|r| (r.task, r.contestant) == (1, 0)) {
        run.curve.train[2..].fill(f32::NAN);
    }
    let report = Report::new("failed", &contest, &results);
    let [reference, learned] = [0, 1].map(|c| &report.scores.tasks[1][c]);
    let failed = (reference.loss, reference.ratio, reference.speedup, reference.steps_to_target);
    assert_eq!(failed, (f64::INFINITY, f64::INFINITY, 0.0, f64::INFINITY));
    // Lower than the 3 that the reference reached; the profile's target is the learned one's own 2.
    assert_eq!((learned.ratio, learned.speedup, learned.speedup_is_bound), (0.0, 2.0, true));
    assert!((learned.steps_to_target - 1.0).abs() < 1e-5, "{learned:?}");
    let [reference, learned] = [0, 1].map(|c| report.scores.contestants[c]);
    assert_eq!((reference.win_rate.value, reference.failures), (0.25, 2));
    assert_eq!((learned.win_rate.value, learned.profile_score), (1.0, 1.0));
    assert!(
        report.text().contains("Every setting of Adam has a failed run on noisy <2>"),
        "{}",
        report.text()
    );
    assert_eq!(drawn(&report, "Learning curves"), [4, 0]);
    assert_eq!(drawn(&report, "Sweeps"), [2, 1]);
}

#[test]
fn where_all_fail_from_the_start_nobody_scores() {
    let (contest, mut results) = hand_made();
    for run in &mut results.runs {
        run.curve.train.fill(f32::NAN);
        run.curve.evals.iter_mut().for_each(|e| e.loss = f32::INFINITY);
    }
    let report = Report::new("nothing", &contest, &results);
    for c in &report.scores.contestants {
        assert_eq!((c.win_rate.value, c.validation_win_rate.value, c.profile_score), (0.0, 0.0, 0.0));
        assert_eq!((c.loss_ratio.value, c.speedup.value, c.median_speedup.value), (f64::INFINITY, 0.0, 0.0));
    }
    assert_eq!(drawn(&report, "Learning curves"), [0, 0]);
}

#[test]
fn labels_of_variants_tell_them_apart() {
    let labels = |rates: &[f64]| -> Vec<String> {
        let c = Contestant::swept("SGD", rates, |lr| Box::new(Sgd::new(lr)));
        c.variants.into_iter().map(|v| v.label).collect()
    };
    assert_eq!(labels(&[1e-7, 3.16e-7, 1.0]), ["1e-7", "3e-7", "1e0"]);
    assert_eq!(labels(&[1e-2, 1.4e-2, 0.3]), ["1.0e-2", "1.4e-2", "3.0e-1"]);
    assert_eq!(labels(&[0.1, 0.1 + 1e-16])[1], "1.000000000000001e-1");
    let sgd = |rates: &[f64]| Contestant::swept("SGD", rates, |lr| Box::new(Sgd::new(lr)));
    let single = Contestant::single("SGD 1e-1", Role::Baseline, Box::new(Sgd::new(0.1)));
    for contestants in [vec![sgd(&[0.1, 0.2, 0.1])], vec![sgd(&[0.1, 0.2]), single]] {
        let error = Contest { contestants, ..contest() }.check().unwrap_err().to_string();
        assert!(error.contains("variants"), "{error}");
    }
}

#[test]
fn a_loss_that_the_reference_never_reaches_gives_a_lower_bound() {
    let (contest, mut results) = hand_made();
    for run in results.runs.iter_mut().filter(|r| r.contestant == 1) {
        run.curve.train = with_smoothed(&[4.0, 2.0, 0.5]);
    }
    let scores = Scores::new(&contest, &results);
    assert!(scores.tasks[0][1].speedup_is_bound);
    assert_eq!(scores.tasks[0][1].speedup, 2.0);
}

#[test]
fn results_do_not_depend_on_threads_and_failures_stay() {
    let contest = contest();
    let tables = |threads| {
        let results = contest.run(&Workers::new(threads).unwrap()).unwrap();
        let report = Report::new("test", &contest, &results);
        report.tables().iter().map(|t| t.csv().unwrap()).collect::<Vec<_>>()
    };
    let one = tables(1);
    assert_eq!(one, tables(3));

    let results = contest.run(&Workers::new(2).unwrap()).unwrap();
    let scores = Scores::new(&contest, &results);
    let broken = &scores.contestants[3];
    assert_eq!((broken.failures, broken.median_speedup.value, broken.profile_score), (4, 0.0, 0.0));
    assert_eq!((broken.win_rate.value, broken.loss_ratio.value), (0.0, f64::INFINITY));
    // Adam's runs are longer, and evaluated at the horizon all the same.
    assert!(scores.tasks.iter().all(|t| t[0].validation.is_finite()));
    // A sweep is not judged by its broken rate, which stays in the table.
    assert_eq!(scores.contestants[1].failures, 0);
    assert_eq!(scores.tasks[0][1].sweep[2], f64::INFINITY);
    // Three horizons of the learned one: its own and two more.
    assert_eq!(scores.horizons.iter().map(|h| h.num_steps).collect::<Vec<_>>(), [5, 19, 38]);
}

#[test]
fn one_task_is_timed_in_one_column() {
    let mut contest = contest();
    for columns in [2, 1] {
        contest.tasks.truncate(columns);
        let results = contest.run(&Workers::new(2).unwrap()).unwrap();
        let mut report = Report::new("times", &contest, &results);
        report.times = time_steps(&contest);
        let dir = tempfile::tempdir().unwrap();
        let page = std::fs::read_to_string(report.save(dir.path()).unwrap()).unwrap();
        let header = page.split("Cost of a step").nth(1).and_then(|cost| cost.split("</tr>").next()).unwrap();
        assert_eq!(header.matches("parameters)").count(), columns, "{header}");
    }
}

#[test]
fn the_report_is_one_page_and_its_numbers_stand_in_the_tables() {
    let contest = contest();
    let results = contest.run(&Workers::new(2).unwrap()).unwrap();
    let mut report = Report::new("a <title>", &contest, &results);
    report.times = time_steps(&contest);
    report.receipt = report.receipt.with_hash("input", b"abc");
    let dir = tempfile::tempdir().unwrap();
    let path = report.save(dir.path()).unwrap();
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains("a &lt;title&gt;") && page.contains("noisy &lt;2&gt;"));
    // Self-contained: nothing is loaded, nothing runs.
    for tag in ["<script", "src=", "<link", "@import", "url("] {
        assert!(!page.contains(tag), "{tag}");
    }
    for tag in ["figure", "table", "svg", "section", "div", "p", "h2"] {
        let count = |text: &str| page.matches(text).count();
        let open = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
        assert_eq!(open, count(&format!("</{tag}>")), "{tag}");
    }

    let mut files: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let expected = [
        "curves.csv",
        "horizons.csv",
        "profiles.csv",
        "report.html",
        "report.json",
        "runs.csv",
        "scores.csv",
        "summary.csv",
        "sweeps.csv",
        "timing.csv",
    ];
    assert_eq!(files, expected);
    // Every table that the page names is there.
    for name in expected.iter().filter(|n| n.ends_with(".csv") && **n != "runs.csv") {
        assert!(page.contains(name), "{name}");
    }

    let json = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let hash = json["results_hash"].as_str().unwrap();
    assert!(page.contains(hash) && hash.starts_with("xxh3:"));
    assert_eq!(json["receipt"]["inputs"][0][0], "input");
    // XXH3-64 of "abc" by the reference implementation.
    assert_eq!(json["receipt"]["inputs"][0][1], "xxh3:78af5f94892f3950");

    // Means of the runs are the scores.
    let read = |name: &str| csv::Reader::from_path(dir.path().join(name)).unwrap();
    let rows = |name: &str| read(name).into_records().map(Result::unwrap).collect::<Vec<_>>();
    let mut compared = 0;
    for score in rows("scores.csv") {
        let same = |run: &&csv::StringRecord| {
            (&run[0], &run[1], &run[2], &run[5]) == (&score[0], &score[2], &score[4], "19")
        };
        let losses: Vec<f64> =
            rows("runs.csv").iter().filter(same).map(|run| run[7].parse().unwrap()).collect();
        let want: f64 = score[5].parse().unwrap();
        assert_eq!(losses.len(), 2, "{score:?}");
        assert_eq!(losses.iter().sum::<f64>() / 2.0, want, "{score:?}");
        compared += 1;
    }
    assert_eq!(compared, 8);
}

#[test]
fn contests_without_sense_are_refused() {
    let message = |contest: Contest| contest.check().unwrap_err().to_string();
    assert!(message(Contest { reference: 9, ..contest() }).contains("reference"));
    let config = |config| Contest { config, ..contest() };
    let fine = ContestConfig::default();
    for (wanted, bad) in [
        (
            "num_steps of a contest: must be 1 to 1000000000, got 0",
            ContestConfig { num_steps: 0, ..fine.clone() },
        ),
        ("reference_factor of a contest", ContestConfig { reference_factor: 0, ..fine.clone() }),
        // Not a horizon that overflows.
        ("num_steps x reference_factor", ContestConfig { num_steps: 1 << 29, ..fine.clone() }),
        ("seeds of a contest", ContestConfig { seeds: 0, ..fine.clone() }),
        ("seeds of a contest", ContestConfig { seeds: u64::MAX, ..fine.clone() }),
        ("evaluations of a contest", ContestConfig { evaluations: 0, ..fine.clone() }),
        ("eval_batches of a contest", ContestConfig { eval_batches: 0, ..fine.clone() }),
        ("1 to 2000", ContestConfig { other_horizons: vec![2001], ..fine.clone() }),
        ("1 to 2000", ContestConfig { other_horizons: vec![100, 0], ..fine }),
    ] {
        let got = message(config(bad));
        assert!(got.contains(wanted), "{got}, not {wanted}");
    }
    let twice = vec![tasks()[0].clone(), tasks()[0].clone()];
    assert!(message(Contest { tasks: twice, ..contest() }).contains("differ"));
}

/// `|x|² + b`
struct Bowl(f64);

impl<E: Float, B: Backend<E>> Task<E, B> for Bowl {
    type Params = Tensor<Rank1<3>, E, B>;
    type Batch = ();
    fn name(&self) -> String {
        "bowl".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        dev.normal(key)
    }
    fn batch(&self, _: &B, _: BatchKey) {}
    fn loss<M: Mode<E, B>>(&self, p: &Self::Params, _: &(), m: M) -> Tensor<Rank0, E, B, M> {
        use dfdx::prelude::*;
        p.clone().put_tape(m).square().sum::<Rank0, _>() + E::of(self.0)
    }
}

/// A good optimizer, one that diverges, and a reference with these rates, on a bowl around `b`.
fn on_a_bowl(b: f64, rates: &[f64]) -> (Contest, Results) {
    let contest = Contest {
        config: ContestConfig {
            num_steps: 20,
            resamples: 20,
            other_horizons: Vec::new(),
            ..contest().config
        },
        tasks: vec![ContestTask { name: "bowl".into(), family: Arc::new(SingleTask::<f32>::new(Bowl(b))) }],
        contestants: vec![
            Contestant::single("good", Role::Learned, Box::new(Sgd::new(0.1))),
            Contestant::single("bad", Role::Baseline, Box::new(Sgd::new(1e30))),
            Contestant::swept("reference", rates, |lr| Box::new(Sgd::new(lr))),
        ],
        reference: 2,
        key: Key::new(0),
    };
    let results = contest.run(&Workers::new(1).unwrap()).unwrap();
    (contest, results)
}

#[test]
fn runs_below_zero_are_scored_like_runs_above() {
    let (contest, results) = on_a_bowl(-20.0, &[1e-3, 1e-2]);
    let scores = Scores::new(&contest, &results);
    assert_eq!(scores.contestants[0].win_rate.value, 1.0);
    assert!(scores.tasks[0][0].ratio < 1.0, "{:?}", scores.tasks[0][0]);
    let bad = &scores.contestants[1];
    assert_eq!((bad.win_rate.value, bad.profile_score, bad.failures), (0.0, 0.0, 2));
}

/// One seed of the reference ends above zero, the mean below.
#[test]
fn the_references_own_ratio_is_one_where_losses_cross_zero() {
    let (contest, results) = on_a_bowl(-1.45, &[0.1]);
    let scores = Scores::new(&contest, &results);
    let (losses, mean) = (&scores.tasks[0][2].losses, scores.tasks[0][2].loss);
    assert!(losses.iter().any(|l| *l > 0.0) && mean < 0.0, "{losses:?}");
    let ratio = scores.contestants[2].loss_ratio.value;
    assert!((ratio - 1.0).abs() < 1e-12, "{ratio}");
}

#[test]
fn only_learned_contestants_are_told_another_length() {
    let cosine =
        || Box::new(Adam { epsilon_root: 0.0, ..Adam::new(Cosine { peak: 0.3, ..Cosine::default() }) });
    let losses = |told| {
        let mut contest = contest();
        contest.config.told = told;
        contest.tasks.truncate(1);
        contest.contestants.truncate(1);
        contest.contestants.push(Contestant::single("learned", Role::Learned, cosine()));
        contest.contestants.push(Contestant::single("by hand", Role::Baseline, cosine()));
        let results = contest.run(&Workers::new(2).unwrap()).unwrap();
        [1, 2].map(|c| results.of(0, c, 0).flat_map(|r| r.curve.train.clone()).collect::<Vec<f32>>())
    };
    let [learned, by_hand] = losses(ToldSteps::Exact);
    assert_eq!(learned, by_hand);
    let [misled, same] = losses(ToldSteps::Steps(1000));
    assert_eq!(same, by_hand);
    assert_ne!(misled, learned);
}

#[test]
fn what_is_told_is_read_from_text() {
    let read = |text: &str| text.parse::<ToldSteps>();
    assert_eq!(read("exact"), Ok(ToldSteps::Exact));
    assert_eq!(read("unknown"), Ok(ToldSteps::Unknown));
    assert_eq!(read("125"), Ok(ToldSteps::Steps(125)));
    for text in ["0", "-1", "", "some"] {
        assert!(read(text).unwrap_err().contains("exact, unknown or a number"), "{text}");
    }
}
