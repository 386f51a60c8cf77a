//! The comparison with the swept reference, per task and in sum.

use super::contest::{Contest, Results, Role, Run};
use super::duel::{win_rate, Duel};
use super::metrics::{
    envelope, mean, mean_curve, performance_profile, profile_score, smoothed, steps_to, Steps,
};
use super::statistics::{Bootstrap, Interval};
use serde::{Deserialize, Serialize};

/// Losses below this multiple of the initial one count as equal to it: they differ by f32 rounding.
pub const LOSS_FLOOR: f64 = 1e-10;
/// The target of performance profiles: what the swept reference reaches after this part of the horizon.
pub const TARGET_FRACTION: f64 = 0.75;
/// Performance profiles and their scores end here.
pub const MAX_TAU: f64 = 4.0;

/// A contestant on one task, at the horizon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// The variant with the lowest mean final training loss.
    pub best: usize,
    /// Final smoothed training loss per variant, mean over seeds; infinite if any seed failed.
    pub sweep: Vec<f64>,
    /// Final smoothed training loss of the best variant per seed.
    pub losses: Vec<f64>,
    /// Mean of `losses`.
    pub loss: f64,
    /// Validation loss of the best variant at the horizon, mean over seeds.
    pub validation: f64,
    /// Normalized final loss: over that of the best-of-sweep reference.
    pub ratio: f64,
    /// Steps that the reference's envelope needs for `loss`, over the horizon.
    pub speedup: f64,
    /// Whether the reference never gets there, so that `speedup` is a lower bound.
    pub speedup_is_bound: bool,
    /// Steps to the performance profile's target, by the best variant for that; infinite if not
    /// reached within the horizon.
    pub steps_to_target: f64,
}

/// A contestant over all tasks, at the horizon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestantScore {
    /// Fraction of tasks with a lower mean final training loss than the best-of-sweep reference; equal
    /// counts half.
    pub win_rate: Interval,
    /// The same for the validation loss at the horizon.
    pub validation_win_rate: Interval,
    /// Interquartile mean over tasks and seeds of the normalized final loss.
    pub loss_ratio: Interval,
    /// Interquartile mean over tasks and seeds of the speed-up.
    pub speedup: Interval,
    /// Median over tasks of the speed-up of the seeds' mean loss.
    pub median_speedup: Interval,
    /// Runs of the best variants with a non-finite loss.
    pub failures: usize,
    /// Mean height of the performance profile.
    pub profile_score: f64,
}

/// A learned contestant at one horizon, against the reference at the same number of steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HorizonScore {
    /// Index of the contestant.
    pub contestant: usize,
    /// Updates, as told to the optimizer.
    pub num_steps: u64,
    /// See [`ContestantScore::win_rate`].
    pub win_rate: Interval,
    /// See [`ContestantScore::loss_ratio`].
    pub loss_ratio: Interval,
    /// See [`ContestantScore::median_speedup`].
    pub median_speedup: Interval,
}

/// Everything that the report says about losses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// `[task][contestant]`
    pub tasks: Vec<Vec<TaskScore>>,
    /// Per contestant.
    pub contestants: Vec<ContestantScore>,
    /// Learned contestants at all horizons, the contest's own among them.
    pub horizons: Vec<HorizonScore>,
    /// Best of the reference's sweep after every step, `[task][0 ..= num_steps reference_factor]`.
    pub envelopes: Vec<Vec<f64>>,
}

/// The validation loss after `step` updates; infinite if it is not finite.
fn validation(run: &Run, step: u64) -> f64 {
    let loss = run.curve.evals.iter().find(|e| e.step == step).map_or(f64::NAN, |e| f64::from(e.loss));
    if loss.is_finite() {
        loss
    } else {
        f64::INFINITY
    }
}

/// What the runs of one variant on one task amount to.
struct Summary {
    /// Smoothed training loss, `[seed][0 ..= num_steps]`.
    curves: Vec<Vec<f64>>,
    /// Their mean.
    mean: Vec<f64>,
    /// `[seed]`, at the contest's horizon.
    validation: Vec<f64>,
}

impl Summary {
    fn at(&self, step: u64) -> Vec<f64> {
        self.curves.iter().map(|c| c[step as usize]).collect()
    }
}

fn lowest(values: impl Iterator<Item = f64>) -> usize {
    let by_value = values.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    by_value.map_or(0, |(i, _)| i)
}

impl Scores {
    /// Scores all runs. The contest must be the one that gave `results`.
    pub fn new(contest: &Contest, results: &Results) -> Self {
        let config = &contest.config;
        let horizon = config.num_steps;
        let summary = |runs: &mut dyn Iterator<Item = &Run>, step| {
            let runs: Vec<&Run> = runs.collect();
            let curves: Vec<Vec<f64>> = runs.iter().map(|r| smoothed(&r.curve.train)).collect();
            let validation = runs.iter().map(|r| validation(r, step)).collect();
            Summary { mean: mean_curve(&curves), curves, validation }
        };
        // [task][contestant][variant]
        let all: Vec<Vec<Vec<Summary>>> = (0..contest.tasks.len())
            .map(|task| {
                let of = |(c, contestant): (usize, &super::Contestant)| {
                    (0..contestant.variants.len())
                        .map(|v| summary(&mut results.of(task, c, v), horizon))
                        .collect()
                };
                contest.contestants.iter().enumerate().map(of).collect()
            })
            .collect();
        let reference = |task: usize| &all[task][contest.reference];
        let reference_at = |step: u64| -> Vec<Vec<f64>> {
            (0..all.len())
                .map(|task| {
                    let best = lowest(reference(task).iter().map(|s| s.mean[step as usize]));
                    reference(task)[best].at(step)
                })
                .collect()
        };
        let mut scores = Scores {
            tasks: Vec::new(),
            contestants: Vec::new(),
            horizons: Vec::new(),
            envelopes: Vec::new(),
        };
        scores.envelopes = (0..all.len())
            .map(|task| envelope(&reference(task).iter().map(|s| &s.mean[..]).collect::<Vec<_>>()))
            .collect();

        let best_of = |task: usize, c: usize| lowest(all[task][c].iter().map(|s| s.mean[horizon as usize]));
        let bests: Vec<Vec<usize>> = (0..all.len())
            .map(|task| (0..contest.contestants.len()).map(|c| best_of(task, c)).collect())
            .collect();
        let tasks = 0..all.len();
        let validations = |c: usize| -> Vec<Vec<f64>> {
            tasks.clone().map(|task| all[task][c][bests[task][c]].validation.clone()).collect()
        };
        let bootstrap = Bootstrap {
            tasks: all.len(),
            seeds: config.seeds as usize,
            resamples: config.resamples,
            key: contest.key.named("bootstrap"),
        };

        scores.tasks = vec![Vec::new(); all.len()];
        for c in 0..contest.contestants.len() {
            let duel = Duel {
                envelopes: &scores.envelopes,
                horizon,
                losses: tasks.clone().map(|task| all[task][c][bests[task][c]].at(horizon)).collect(),
                reference: reference_at(horizon),
            };
            let rows: Vec<TaskScore> = tasks
                .clone()
                .map(|task| {
                    let (variants, best) = (&all[task][c], bests[task][c]);
                    let loss = mean(duel.losses[task].iter().copied());
                    let speedup = duel.speedup(task, loss);
                    let to_target = |s: &Summary| {
                        let target = scores.envelopes[task][(TARGET_FRACTION * horizon as f64) as usize];
                        steps_to(&envelope(&[&s.mean[..=horizon as usize]]), target).or_infinity()
                    };
                    TaskScore {
                        best,
                        sweep: variants.iter().map(|s| s.mean[horizon as usize]).collect(),
                        losses: duel.losses[task].clone(),
                        loss,
                        validation: mean(variants[best].validation.iter().copied()),
                        ratio: duel.ratio(task, loss),
                        speedup: speedup.at_least(),
                        speedup_is_bound: matches!(speedup, Steps::MoreThan(_)),
                        steps_to_target: variants.iter().map(to_target).fold(f64::INFINITY, f64::min),
                    }
                })
                .collect();
            let (ours, theirs) = (validations(c), validations(contest.reference));
            let failures = duel.losses.iter().flatten().filter(|l| !l.is_finite()).count();
            let score = ContestantScore {
                win_rate: duel.win_rate(&bootstrap),
                validation_win_rate: bootstrap.interval(|draw| win_rate(&ours, &theirs, draw)),
                loss_ratio: duel.loss_ratio(&bootstrap),
                speedup: duel.mean_speedup(&bootstrap),
                median_speedup: duel.median_speedup(&bootstrap),
                failures,
                profile_score: 0.0,
            };
            scores.contestants.push(score);
            scores.tasks.iter_mut().zip(rows).for_each(|(task, row)| task.push(row));
        }
        let steps = scores.steps_to_target();
        for (c, score) in scores.contestants.iter_mut().enumerate() {
            score.profile_score = profile_score(&steps, c, MAX_TAU);
        }

        let mut lengths = config.other_horizons.clone();
        lengths.push(horizon);
        lengths.sort_unstable();
        lengths.dedup();
        for (c, contestant) in contest.contestants.iter().enumerate() {
            if contestant.role != Role::Learned {
                continue;
            }
            for &num_steps in &lengths {
                let losses = tasks.clone().map(|task| {
                    let runs = (0..contestant.variants.len())
                        .map(|v| summary(&mut results.of_length(task, c, v, num_steps), num_steps));
                    let runs: Vec<Summary> = runs.collect();
                    runs[lowest(runs.iter().map(|s| s.mean[num_steps as usize]))].at(num_steps)
                });
                let duel = Duel {
                    envelopes: &scores.envelopes,
                    horizon: num_steps,
                    losses: losses.collect(),
                    reference: reference_at(num_steps),
                };
                let score = HorizonScore {
                    contestant: c,
                    num_steps,
                    win_rate: duel.win_rate(&bootstrap),
                    loss_ratio: duel.loss_ratio(&bootstrap),
                    median_speedup: duel.median_speedup(&bootstrap),
                };
                scores.horizons.push(score);
            }
        }
        scores
    }

    /// Steps to the target, `[task][contestant]`.
    pub fn steps_to_target(&self) -> Vec<Vec<f64>> {
        self.tasks.iter().map(|task| task.iter().map(|s| s.steps_to_target).collect()).collect()
    }

    /// The performance profile of a contestant at `points` factors from 1 to [`MAX_TAU`], evenly spread
    /// over their logarithms: `(tau, fraction of tasks)`.
    pub fn profile(&self, contestant: usize, points: usize) -> Vec<(f64, f64)> {
        let steps = self.steps_to_target();
        let tau = |i: usize| MAX_TAU.powf(i as f64 / (points - 1).max(1) as f64);
        (0..points).map(|i| (tau(i), performance_profile(&steps, contestant, tau(i)))).collect()
    }
}
