//! The comparison with the swept reference, per task and in sum.

use super::contest::{Contest, ContestConfig, Results, Role, Run};
use super::duel::{win_rate, Duel};
use super::metrics::{
    envelope, mean, mean_curve, performance_profile, profile_score, smoothed, steps_to, RatioScale, Steps,
};
use super::statistics::{Bootstrap, Interval};
use crate::eval::EvalPoint;
use outerloop_core::{Metric, Split};
use serde::{Deserialize, Serialize};

/// The target of performance profiles: what the swept reference reaches after this part of the horizon, or,
/// where it failed, the best of all contestants.
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
    /// The variant with the lowest mean validation loss at the horizon.
    pub best_by_validation: usize,
    /// Its validation loss at the horizon, mean over seeds.
    pub validation: f64,
    /// The lowest validation loss that it had along the run, mean over seeds of each seed's lowest.
    pub lowest_validation: f64,
    /// Its loss at the horizon on data that nothing is chosen by, mean over seeds; NaN without such data.
    pub test: f64,
    /// The part of the test examples that it classifies wrongly (of the validation examples, without test data),
    /// mean over seeds; NaN if the task has no error rate.
    pub error_rate: f64,
    /// Normalized final loss: over that of the best-of-sweep reference, see [`RatioScale`].
    pub ratio: f64,
    /// What counts as a loss of 0 in the ratio: 0 unless losses of this task are negative.
    pub ratio_zero: f64,
    /// Steps that the reference's envelope needs for `loss`, over the horizon.
    pub speedup: f64,
    /// Whether the reference never gets there, so that `speedup` is a lower bound.
    pub speedup_is_bound: bool,
    /// Steps to the performance profile's target, by the best variant for that; infinite if not
    /// reached within the horizon, or if the run failed by then.
    pub steps_to_target: f64,
}

/// A contestant over all tasks, at the horizon.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestantScore {
    /// Fraction of tasks with a lower mean final training loss than the best-of-sweep reference; equal
    /// counts half, a failure nothing.
    pub win_rate: Interval,
    /// The same for the validation loss at the horizon, both with the variants chosen by it.
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
    /// See [`ContestantScore::validation_win_rate`].
    pub validation_win_rate: Interval,
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

/// The evaluation on a split after `step` updates.
fn evaluation(run: &Run, split: Split, step: u64) -> Option<&EvalPoint> {
    run.curve.evals.iter().find(|e| e.step == step && e.split == split)
}

/// A loss; infinite if it is not finite.
fn or_infinity(loss: f64) -> f64 {
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
    /// `[seed]`
    validation: Vec<f64>,
    /// Until the judged step, `[seed]`.
    lowest_validation: Vec<f64>,
    /// NaN without test data, `[seed]`.
    test: Vec<f64>,
    /// `[seed]`
    error_rate: Vec<f64>,
}

impl Summary {
    /// With the losses on other data after `step` updates.
    fn new<'a>(runs: impl Iterator<Item = &'a Run>, step: u64, config: &ContestConfig) -> Self {
        let runs: Vec<&Run> = runs.collect();
        let per_run = |f: &dyn Fn(&Run) -> f64| runs.iter().map(|r| f(r)).collect::<Vec<f64>>();
        let at = |r: &Run, split| evaluation(r, split, step).map_or(f64::NAN, |e| f64::from(e.loss));
        let curves: Vec<Vec<f64>> = runs.iter().map(|r| smoothed(&r.curve.train)).collect();
        Summary {
            mean: mean_curve(&curves),
            curves,
            validation: per_run(&|r| or_infinity(at(r, config.validation))),
            lowest_validation: per_run(&|r| {
                let evals = r.curve.evals.iter().filter(|e| e.step <= step && e.split == config.validation);
                evals.map(|e| or_infinity(f64::from(e.loss))).fold(f64::INFINITY, f64::min)
            }),
            test: per_run(&|r| config.test.map_or(f64::NAN, |split| or_infinity(at(r, split)))),
            error_rate: per_run(&|r| {
                let point = evaluation(r, config.test.unwrap_or(config.validation), step);
                point.and_then(|e| e.metric(Metric::ERROR_RATE)).unwrap_or(f64::NAN)
            }),
        }
    }

    fn at(&self, step: u64) -> Vec<f64> {
        self.curves.iter().map(|c| c[step as usize]).collect()
    }

    /// The lowest loss that a seed ever had.
    fn lowest(&self) -> f64 {
        self.curves.iter().flatten().copied().fold(f64::INFINITY, f64::min)
    }
}

/// The best of the variants at every step.
fn envelope_of<'a>(variants: impl IntoIterator<Item = &'a Summary>) -> Vec<f64> {
    envelope(&variants.into_iter().map(|s| &s.mean[..]).collect::<Vec<_>>())
}

/// The variant with the lowest mean loss after `step` updates.
fn best(variants: &[Summary], step: u64) -> usize {
    let by_loss =
        variants.iter().map(|s| s.mean[step as usize]).enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
    by_loss.map_or(0, |(i, _)| i)
}

/// The variant with the lowest mean validation loss.
fn best_by_validation(variants: &[Summary]) -> usize {
    let by_loss = variants.iter().map(|s| mean(s.validation.iter().copied())).enumerate();
    by_loss.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(i, _)| i)
}

/// All runs, summed up and ready to be compared.
struct Judge<'a> {
    contest: &'a Contest,
    results: &'a Results,
    /// `[task][contestant][variant]`
    summaries: Vec<Vec<Vec<Summary>>>,
    envelopes: Vec<Vec<f64>>,
    /// `[task]`
    scales: Vec<RatioScale>,
    bootstrap: Bootstrap,
}

impl<'a> Judge<'a> {
    fn new(contest: &'a Contest, results: &'a Results) -> Self {
        let variants = |task, c: usize| -> Vec<Summary> {
            let variants = 0..contest.contestants[c].variants.len();
            let (config, of) = (&contest.config, |v| results.of(task, c, v));
            variants.map(|v| Summary::new(of(v), config.num_steps, config)).collect()
        };
        let tasks = 0..contest.tasks.len();
        let summaries: Vec<Vec<Vec<Summary>>> =
            tasks.map(|task| (0..contest.contestants.len()).map(|c| variants(task, c)).collect()).collect();
        let envelopes: Vec<Vec<f64>> =
            summaries.iter().map(|task| envelope_of(&task[contest.reference])).collect();
        let scale = |(task, envelope): (&Vec<Vec<Summary>>, &Vec<f64>)| {
            let lowest = task.iter().flatten().map(Summary::lowest).fold(f64::INFINITY, f64::min);
            RatioScale::new(envelope[0], lowest)
        };
        let scales = summaries.iter().zip(&envelopes).map(scale).collect();
        let bootstrap = Bootstrap {
            tasks: contest.tasks.len(),
            seeds: contest.config.seeds as usize,
            resamples: contest.config.resamples,
            key: contest.key.named("bootstrap"),
        };
        Judge { contest, results, summaries, envelopes, scales, bootstrap }
    }

    fn horizon(&self) -> u64 {
        self.contest.config.num_steps
    }

    /// A contestant's best variants at the horizon, per task.
    fn best(&self, contestant: usize) -> impl Iterator<Item = &Summary> {
        self.summaries.iter().map(move |task| &task[contestant][best(&task[contestant], self.horizon())])
    }

    /// Validation losses at the horizon of the variants chosen by them, `[task][seed]`.
    fn validation(&self, contestant: usize) -> Vec<Vec<f64>> {
        let chosen = |variants: &Vec<Summary>| variants[best_by_validation(variants)].validation.clone();
        self.summaries.iter().map(|task| chosen(&task[contestant])).collect()
    }

    /// Losses per task and seed against those of the reference's best variants after as many steps.
    fn duel(&self, losses: Vec<Vec<f64>>, step: u64) -> Duel<'_> {
        let reference = self.summaries.iter().map(|task| &task[self.contest.reference]);
        let reference = reference.map(|variants| variants[best(variants, step)].at(step)).collect();
        Duel { envelopes: &self.envelopes, scales: &self.scales, horizon: step, losses, reference }
    }

    fn at_horizon(&self, contestant: usize) -> Duel<'_> {
        self.duel(self.best(contestant).map(|s| s.at(self.horizon())).collect(), self.horizon())
    }

    /// See [`TARGET_FRACTION`].
    fn target(&self, task: usize) -> f64 {
        let at = (TARGET_FRACTION * self.horizon() as f64) as usize;
        let survives = |s: &&Summary| s.mean[self.horizon() as usize].is_finite();
        if self.summaries[task][self.contest.reference].iter().any(|s| survives(&s)) {
            return self.envelopes[task][at];
        }
        envelope_of(self.summaries[task].iter().flatten().filter(survives))
            .get(at)
            .copied()
            .unwrap_or(f64::INFINITY)
    }

    fn task(&self, task: usize, contestant: usize, duel: &Duel) -> TaskScore {
        let (variants, horizon) = (&self.summaries[task][contestant], self.horizon() as usize);
        let best = best(variants, self.horizon());
        let loss = mean(duel.losses[task].iter().copied());
        let speedup = duel.speedup(task, loss);
        let target = self.target(task);
        let to_target = |s: &Summary| match s.mean[horizon].is_finite() && target.is_finite() {
            true => steps_to(&envelope(&[&s.mean[..=horizon]]), target).or_infinity(),
            false => f64::INFINITY,
        };
        let by_validation = best_by_validation(variants);
        let chosen = &variants[by_validation];
        TaskScore {
            best,
            sweep: variants.iter().map(|s| s.mean[horizon]).collect(),
            losses: duel.losses[task].clone(),
            loss,
            best_by_validation: by_validation,
            validation: mean(chosen.validation.iter().copied()),
            lowest_validation: mean(chosen.lowest_validation.iter().copied()),
            test: mean(chosen.test.iter().copied()),
            error_rate: mean(chosen.error_rate.iter().copied()),
            ratio: duel.ratio(task, loss),
            ratio_zero: self.scales[task].zero,
            speedup: speedup.at_least(),
            speedup_is_bound: matches!(speedup, Steps::MoreThan(_)),
            steps_to_target: variants.iter().map(to_target).fold(f64::INFINITY, f64::min),
        }
    }

    fn contestant(&self, contestant: usize, duel: &Duel, profile_score: f64) -> ContestantScore {
        let (ours, theirs) = (self.validation(contestant), self.validation(self.contest.reference));
        ContestantScore {
            win_rate: duel.win_rate(&self.bootstrap),
            validation_win_rate: self.bootstrap.interval(|draw| win_rate(&ours, &theirs, draw)),
            loss_ratio: duel.loss_ratio(&self.bootstrap),
            speedup: duel.mean_speedup(&self.bootstrap),
            median_speedup: duel.median_speedup(&self.bootstrap),
            failures: duel.losses.iter().flatten().filter(|l| !l.is_finite()).count(),
            profile_score,
        }
    }

    /// A contestant's runs of another length.
    fn horizon_score(&self, contestant: usize, num_steps: u64) -> HorizonScore {
        let config = &self.contest.config;
        // Shorter runs of the reference are the beginnings of its long ones.
        let variants = |c: usize, planned: u64| {
            let of = |task, v| self.results.of_length(task, c, v, planned);
            let all = 0..self.contest.contestants[c].variants.len();
            let task = |t| all.clone().map(|v| Summary::new(of(t, v), num_steps, config)).collect();
            (0..self.summaries.len()).map(task).collect::<Vec<Vec<Summary>>>()
        };
        let ours = variants(contestant, num_steps);
        let reference = variants(self.contest.reference, self.contest.longest());
        let validation = |all: &[Vec<Summary>]| {
            all.iter().map(|v| v[best_by_validation(v)].validation.clone()).collect::<Vec<_>>()
        };
        let (valid, their_valid) = (validation(&ours), validation(&reference));
        let duel = self.duel(ours.iter().map(|v| v[best(v, num_steps)].at(num_steps)).collect(), num_steps);
        HorizonScore {
            contestant,
            num_steps,
            win_rate: duel.win_rate(&self.bootstrap),
            validation_win_rate: self.bootstrap.interval(|draw| win_rate(&valid, &their_valid, draw)),
            loss_ratio: duel.loss_ratio(&self.bootstrap),
            median_speedup: duel.median_speedup(&self.bootstrap),
        }
    }
}

impl Scores {
    /// Scores all runs. The contest must be the one that gave `results`.
    pub fn new(contest: &Contest, results: &Results) -> Self {
        let judge = Judge::new(contest, results);
        let all = 0..contest.contestants.len();
        let duels: Vec<Duel> = all.clone().map(|c| judge.at_horizon(c)).collect();
        let tasks: Vec<Vec<TaskScore>> = (0..contest.tasks.len())
            .map(|task| all.clone().map(|c| judge.task(task, c, &duels[c])).collect())
            .collect();
        let steps: Vec<Vec<f64>> =
            tasks.iter().map(|task| task.iter().map(|s| s.steps_to_target).collect()).collect();
        let contestants =
            all.clone().map(|c| judge.contestant(c, &duels[c], profile_score(&steps, c, MAX_TAU))).collect();
        let learned = all.filter(|&c| contest.contestants[c].role == Role::Learned && c != contest.reference);
        let horizons = learned
            .flat_map(|c| contest.lengths(c).into_iter().map(move |num_steps| (c, num_steps)))
            .map(|(c, num_steps)| judge.horizon_score(c, num_steps))
            .collect();
        drop(duels);
        Scores { tasks, contestants, horizons, envelopes: judge.envelopes }
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
