//! The two jobs that make training images: distillation and augmentation.

use crate::jobs::{picture, tune, Plan};
use crate::problem::{unreachable_parts, Classifier, Set, Tuned};
use crate::{percent, Options, Table};
use outerloop::lopt::hand::{Momentum, Schedule};
use outerloop::outer::implicit::Constraint;
use outerloop::outer::plot::{ImageGrid, ImageRow};
use outerloop::prelude::*;
use std::sync::Arc;

/// Ten images teach a model to read digits.
pub fn distill(options: &Options) -> Result<()> {
    /// Steps from zero to the optimum.
    const RETRAINING: u64 = 5000;
    let dir = options.out.join("distill");
    let key = Key::new(options.seed).named("digits");
    let [valid, test] = <[Set; 2]>::try_from(Set::parts([600], key)).map_err(|_| unreachable_parts())?;
    let pixels = 64;
    let classes: Vec<u32> = (0..10).collect();
    // Of real digits: the first of each class in the validation data.
    let first = |class: &u32| valid.y.iter().position(|y| y == class).unwrap_or(0);
    let real: Vec<f32> =
        classes.iter().flat_map(|c| &valid.x[first(c) * pixels..][..pixels]).copied().collect();
    let mean = |class: &u32| -> Vec<f32> {
        let of_class: Vec<usize> = (0..valid.y.len()).filter(|i| valid.y[*i] == *class).collect();
        let sum = |p: usize| of_class.iter().map(|i| valid.x[i * pixels + p]).sum::<f32>();
        (0..pixels).map(|p| sum(p) / of_class.len() as f32).collect()
    };
    let means: Vec<f32> = classes.iter().flat_map(mean).collect();
    let train = Set { x: Vec::new(), y: classes };
    let (rate, decay) = (0.1, 0.003);
    let sets = [train, valid, test];
    let task =
        Arc::new(Classifier { widths: vec![64, 10], tuned: Tuned::Images, decay, sets, batch: usize::MAX });
    // A hypergradient is one only where training has ended: momentum and 50 steps take the weights there, and images that
    // move ever more slowly let them stay.
    let plan = Plan {
        inner: Momentum::new(rate, 0.95),
        implicit: Implicit::new(ConjugateGradient { tolerance: 1e-4, ..ConjugateGradient::default() }),
        hyper: Box::new(Adam::new(Schedule::Linear { start: 0.02, end: 0.0002 })),
        // Pixels are between 0 and 1. Images without bounds outgrow any learning rate.
        range: Constraint::Between { low: -1.0, high: 2.0 },
        steps: 1500,
        inner_steps: 50,
        warm_up: 500,
    };
    let done = tune(options, dir.clone(), task, plan)?;
    let learned = done.learner.hyper(&done.state.lanes[0]);
    let mut table = Table::new(
        "Softmax regression trained from zero on ten images",
        &["images", "test accuracy", "test loss"],
    );
    let mut row = |name: &str, w: &[f32]| {
        let accuracy = done.task.accuracy(w, &done.task.sets[2]);
        table.row([name.to_string(), percent(accuracy), format!("{:.3}", done.losses(w)?[1])]);
        Ok::<_, Error>(())
    };
    for (name, images) in [("ten real digits", &real), ("ten class means", &means), ("ten learned", &learned)]
    {
        row(name, &done.retrained(images, RETRAINING)?)?;
    }
    let [_, valid, _] = &done.task.sets;
    row("all 600 digits that they were learned from", &done.trained_on(valid.clone(), RETRAINING)?)?;
    picture(&dir, "Ten images are learned", &[("learned images", &done)])?;
    let row = ImageRow::new("", &learned, pixels);
    let grid = ImageGrid { shape: [8, 8], rows: vec![row], zoom: 12, ..ImageGrid::default() };
    grid.save(dir.join("images.svg"))?;
    table.save(&dir)
}

/// A network whose every weight is a hyperparameter changes the training images.
pub fn augment(options: &Options) -> Result<()> {
    let dir = options.out.join("augment");
    let parts = Set::parts([100, 300], Key::new(options.seed).named("digits"));
    let sets = <[Set; 3]>::try_from(parts).map_err(|_| unreachable_parts())?;
    let rate = 0.2;
    let task = Arc::new(Classifier {
        widths: vec![64, 32, 10],
        tuned: Tuned::Augmentation(32),
        decay: 1e-3,
        sets,
        batch: usize::MAX,
    });
    let plan = Plan {
        inner: Momentum::new(rate, 0.0),
        implicit: Implicit::new(Neumann::new(20, rate)),
        hyper: Box::new(Adam::new(0.01)),
        range: Constraint::Free,
        steps: 300,
        inner_steps: 10,
        warm_up: 500,
    };
    let done = tune(options, dir.clone(), task, plan)?;
    let n = done.learner.problem().params.len();
    let steps = done.inner_steps();
    let without = done.retrained(&done.initial(), steps)?;
    let [train, valid, _] = &done.task.sets;
    let both = Set { x: [&train.x[..], &valid.x].concat(), y: [&train.y[..], &valid.y].concat() };
    let on_both = done.trained_on(both, steps)?;
    let mut table = Table::new(
        "An augmentation network, 100 training and 300 validation digits",
        &["training images", "valid loss", "test loss", "valid accuracy", "test accuracy"],
    );
    let joint = done.joint();
    for (name, w, is_valid_unseen) in [
        ("100 as they are", &without[..], true),
        ("100 augmented", &joint[..n], true),
        ("100 and the validation digits, as they are", &on_both, false),
    ] {
        let [_, valid, test] = &done.task.sets;
        let share = |set| percent(done.task.accuracy(w, set));
        let [on_valid, on_test] = done.losses(w)?;
        let of_valid = |x: String| if is_valid_unseen { x } else { "trained on".into() };
        table.row([
            name.to_string(),
            of_valid(format!("{on_valid:.3}")),
            format!("{on_test:.3}"),
            of_valid(share(valid)),
            share(test),
        ]);
    }
    picture(&dir, "An augmentation network is learned", &[("augmented", &done)])?;
    table.save(&dir)
}
