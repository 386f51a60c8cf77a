//! Quadratic programs: iterations of ADMM by the rule that chooses its step parameter.

use crate::{mean, median, table, Options};
use outerloop::amortized::problems::qp::{AdmmRule, QpFamily, RhoPolicy, RhoRule};
use outerloop::core::{Key, LearnedOptimizer, Optimizer, Result};
use outerloop::lopt::hand::Adam;
use outerloop::outer::estimator::{Antithetic, FullLoss};
use outerloop::outer::plot::{Plot, Scale, Series};
use outerloop::outer::{FullEs, GradientLearner, TruncatedStep, TruncationSchedule};
use std::sync::Arc;

/// Unseen programs.
const UNSEEN: u64 = 500;
/// Most iterations.
const MOST: u64 = 4000;

pub fn run(o: &Options) -> Result<()> {
    let (family, policy) = (Arc::new(QpFamily::default()), Arc::new(RhoPolicy::default()));
    let step = TruncatedStep::new(family.clone(), policy.clone(), TruncationSchedule::Constant(300))?;
    let common = Antithetic { num_tasks: 32, std: 0.1, ..Antithetic::default() };
    let es = FullEs::new(step, common, FullLoss::Mean)?;
    let (opt, steps) = (Adam::new(2e-2), o.steps_or(400));
    let learner = GradientLearner::new(policy.clone(), vec![Box::new(es)], Box::new(opt), steps)?;
    let theta = o.runs().train("qp-policy", &learner)?;

    let fixed = |rho: f64| {
        let family = QpFamily { rho, ..QpFamily::default() };
        (family, Box::new(AdmmRule { rule: RhoRule::Fixed, interval: 10 }) as Box<dyn Optimizer>)
    };
    let iterations = |(family, rule): &(QpFamily, Box<dyn Optimizer>), split: &str, n: u64| -> Vec<f64> {
        let key = Key::new(1 + o.seed).named(split);
        (0..n).map(|i| family.iterations(&**rule, key.fold_in(i), MOST) as f64).collect()
    };
    // The best constant is chosen on programs of its own.
    let grid: Vec<f64> = (-4..=4).map(|e| 10f64.powf(0.5 * f64::from(e))).collect();
    let cost = |rho: &f64| mean(&iterations(&fixed(*rho), "tuning", 100)).0;
    let costs: Vec<f64> = grid.iter().map(cost).collect();
    let best = (0..grid.len()).fold(0, |b, i| if costs[i] < costs[b] { i } else { b });
    let rules = [
        ("rho 0.1 (OSQP's start), fixed".to_string(), fixed(0.1)),
        (format!("rho {:.2}, the best fixed one", grid[best]), fixed(grid[best])),
        (
            "OSQP's balance of residuals".into(),
            (
                QpFamily::default(),
                Box::new(AdmmRule { rule: RhoRule::Balance, interval: 10 }) as Box<dyn Optimizer>,
            ),
        ),
        ("policy, untrained".into(), (QpFamily::default(), policy.opt_fn(&policy.init(Key::new(0))))),
        ("policy by evolution strategies".into(), (QpFamily::default(), policy.opt_fn(&theta))),
    ];
    let (mut rows, mut series) = (Vec::new(), Vec::new());
    for (name, rule) in &rules {
        let mut counts = iterations(rule, "test", UNSEEN);
        let (m, e) = mean(&counts);
        let unsolved = counts.iter().filter(|c| **c >= MOST as f64).count();
        let lost = if unsolved > 0 { format!("   {unsolved} not solved in {MOST}") } else { String::new() };
        rows.push((name.clone(), format!("{m:.1} +- {e:.1}   median {:.0}{lost}", median(&counts))));
        counts.sort_by(f64::total_cmp);
        let points = counts.iter().enumerate().map(|(i, c)| ((i + 1) as f64 / UNSEEN as f64, *c));
        series.push(Series::line(name.clone(), points.collect()));
    }
    table(&format!("ADMM iterations to a relative accuracy of 1e-4, {UNSEEN} unseen programs"), &rows);
    Plot {
        title: "iterations on unseen programs".into(),
        x_label: "part of the programs".into(),
        y_label: "iterations".into(),
        y_scale: Scale::Log,
        series,
        ..Plot::default()
    }
    .save(o.dir.join("qp.svg"))
}
