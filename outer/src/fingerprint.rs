//! What a resumed run is recognized by: texts that name everything its results depend on.

use outerloop_core::{BatchKey, Device, FlatFamily, FlatTask, Float, Key, LearnedOptimizer, Split};
use xxhash_rust::xxh3::{xxh3_64, Xxh3};

/// Tasks of a family that its fingerprint looks at, with a gradient of each: less than a tenth of an outer
/// step, and enough to meet the rarer parts of a mixture.
const DRAWS: u64 = 64;

/// Longest description that is kept as it is, in bytes.
const LONG: usize = 500;

/// A description, or of a long one (with a theta in it) a hash.
pub(crate) fn short(description: String) -> String {
    match description.len() {
        0..=LONG => description,
        _ => hash(&description),
    }
}

fn hash(text: &str) -> String {
    format!("#{:016x}", xxh3_64(text.as_bytes()))
}

/// Architecture, and a hash of all that the optimizer at an initial theta says of itself: an architecture
/// names what a theta file must match, which need not be all.
pub(crate) fn of_lopt<E: Float>(lopt: &dyn LearnedOptimizer<E>) -> String {
    let start = lopt.opt_fn(&lopt.init(Key::new(0)));
    format!("{} {}", lopt.architecture(), hash(&start.describe()))
}

/// Name, and a hash of what the first tasks are: a family cannot forget to name its data, sizes or
/// augmentations, since their layouts, initial parameters, losses and gradients are compared themselves.
pub(crate) fn of_family<E: Float>(family: &dyn FlatFamily<E>) -> String {
    let (mut hash, mut device) = (Xxh3::new(), Device::Cpu);
    for draw in 0..DRAWS {
        let [task, init, data] = Key::new(draw).named("fingerprint").split();
        let task = family.sample_task(task);
        let (layout, mut state, params) = (task.layout(), task.init_state(), task.init(init).data);
        hash.update(format!("{} {layout:?}", task.name()).as_bytes());
        let mut add = |x: f64| hash.update(&x.to_le_bytes());
        [-1.0, 0.1, 10.0, 1e4, f64::NAN].iter().for_each(|x| add(task.normalizer(*x)));
        params.iter().for_each(|x| add(x.f64()));
        let (mut evaluator, mut grad) = (task.evaluator(), vec![E::of(0.0); params.len()]);
        let loss = evaluator.loss_and_grad(&params, &mut state, BatchKey::train(0, data), &mut grad);
        [loss].iter().chain(&grad).chain(&state).for_each(|x| add(x.f64()));
        device = task.device();
    }
    format!("{}{} #{:016x}", family.name(), place(device), hash.digest())
}

/// Devices differ in the last bits of their sums: a run on one does not go on on another.
fn place(device: Device) -> String {
    match device {
        Device::Cpu => String::new(),
        other => format!(" on {other}"),
    }
}

/// A hash of what a task is: initial parameters, and losses and gradients on a batch of every split.
pub(crate) fn of_task<E: Float>(task: &dyn FlatTask<E>) -> String {
    let [init, data] = Key::new(0).named("fingerprint").split();
    let (mut state, params) = (task.init_state(), task.init(init).data);
    let (mut evaluator, mut grad) = (task.evaluator(), vec![E::of(0.0); params.len()]);
    let mut hash = Xxh3::new();
    let mut add = |x: &E| hash.update(&x.f64().to_le_bytes());
    params.iter().for_each(&mut add);
    for split in [Split::Train, Split::OuterValid] {
        let at = BatchKey { split, step: 0, key: data };
        let loss = evaluator.loss_and_grad(&params, &mut state, at, &mut grad);
        [loss].iter().chain(&grad).for_each(&mut add);
    }
    format!("{}#{:016x}", place(task.device()), hash.digest())
}

/// Where two descriptions begin to differ, from the start of the differing part on.
pub(crate) fn first_difference<'a>(a: &'a str, b: &'a str) -> [&'a str; 2] {
    let same = a.char_indices().zip(b.chars()).take_while(|((_, x), y)| x == y).last();
    let end = same.map_or(0, |((i, c), _)| i + c.len_utf8());
    let start = a[..end].rfind([';', ',', '{']).map_or(0, |i| i + 1);
    [a, b].map(|text| {
        let part = text[start..].trim_start();
        part.char_indices().nth(100).map_or(part, |(i, _)| &part[..i])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::{Layout, SingleTask};
    use outerloop_lopt::hand::{Adam, Sgd};
    use outerloop_lopt::wrap::{Combined, LearnedWidthScaled};
    use outerloop_lopt::{HandAsLearned, LearnableAdam, MlpLopt};
    use outerloop_tasks::augment::{
        AugmentedFamily, ModifyGradient, NoisyGradient, ReparamLevel, ReparamWeights,
    };
    use outerloop_tasks::data::Splits;
    use outerloop_tasks::image::{ImageLoss, ImageMlpFamily, MlpConfig, MlpTask, Nonlinearity, Norm};
    use outerloop_tasks::quadratics::FixedDimQuadraticFamily;
    use outerloop_tasks::suite::Training;
    use std::collections::BTreeSet;
    use std::sync::Arc;

    /// All descriptions differ, and each is the same when it is made again.
    /// `describe` gives the same texts every time, and no two alike.
    fn all_differ(describe: impl Fn() -> Vec<String>) {
        let texts = describe();
        assert_eq!(texts, describe());
        assert_eq!(texts.iter().collect::<BTreeSet<_>>().len(), texts.len(), "{texts:#?}");
    }

    #[test]
    fn families_differ_in_everything_that_their_tasks_do() {
        let mlp = |config: MlpConfig| SingleTask::new(MlpTask::new(Splits::digits(), config).unwrap());
        let d = MlpConfig::default;
        let quadratics = Arc::new(FixedDimQuadraticFamily { dim: 3 });
        let reparam = |spread: f64| AugmentedFamily {
            family: quadratics.clone(),
            augmentation: Arc::new(ReparamWeights::new(ReparamLevel::Tensor, 1.0..=spread).unwrap()),
        };
        let noisy = |size| AugmentedFamily {
            family: quadratics.clone(),
            augmentation: Arc::new(ModifyGradient(NoisyGradient::new(size).unwrap())),
        };
        let digits = || ImageMlpFamily::new(Splits::digits());
        let all: Vec<Box<dyn FlatFamily>> = vec![
            Box::new(mlp(d())),
            Box::new(mlp(MlpConfig { hidden: vec![31], ..d() })),
            Box::new(mlp(MlpConfig { nonlinearity: Nonlinearity::Tanh, ..d() })),
            Box::new(mlp(MlpConfig { norm: Norm::Layer, ..d() })),
            Box::new(mlp(MlpConfig { loss: ImageLoss::MeanSquaredError, ..d() })),
            Box::new(mlp(MlpConfig { init_scale: 1.01, ..d() })),
            Box::new(mlp(MlpConfig { batch_size: 127, ..d() })),
            Box::new(FixedDimQuadraticFamily { dim: 3 }),
            Box::new(FixedDimQuadraticFamily { dim: 4 }),
            Box::new(reparam(2.0)),
            Box::new(reparam(3.0)),
            Box::new(noisy(0.1)),
            Box::new(noisy(0.2)),
            Box::new(digits()),
            Box::new(ImageMlpFamily { init_scale: 0.5..=1.9, ..digits() }),
            Box::new(ImageMlpFamily {
                losses: vec![ImageLoss::CrossEntropy, ImageLoss::MeanSquaredError],
                ..digits()
            }),
            Box::new(Training::default()),
            Box::new(Training { noise_fraction: 0.2, ..Training::default() }),
            Box::new(Training { quadratic_noise: 0.2, ..Training::default() }),
        ];
        all_differ(|| all.iter().map(|f| of_family(&**f)).collect());
    }

    #[test]
    fn learned_optimizers_differ_in_what_their_architecture_leaves_out() {
        let scaled = |width: usize| {
            let base = Layout::new([("w", vec![width, width])]);
            LearnedWidthScaled::new(Box::new(MlpLopt::default()), Arc::new(base))
        };
        let hand = |lr: f64| HandAsLearned::<f32>::new(Adam::new(lr));
        let sum = |lr: f64| Combined::sum(vec![Box::new(hand(lr)), Box::new(LearnableAdam::default())]);
        let all: Vec<Box<dyn LearnedOptimizer>> = vec![
            Box::new(hand(0.1)),
            Box::new(hand(0.2)),
            Box::new(HandAsLearned::new(Sgd::new(0.1))),
            Box::new(sum(0.1)),
            Box::new(sum(0.2)),
            Box::new(MlpLopt::default()),
            Box::new(MlpLopt { step_mult: 2e-3, ..MlpLopt::default() }),
            Box::new(scaled(8)),
            Box::new(scaled(16)),
        ];
        all_differ(|| all.iter().map(|l| of_lopt(&**l)).collect());
    }

    #[test]
    fn long_descriptions_are_hashed_and_differences_found() {
        assert_eq!(short("a".repeat(LONG)), "a".repeat(LONG));
        assert_ne!(short("a".repeat(LONG + 1)), short("a".repeat(LONG + 2)));
        assert_eq!(first_difference("x=1, y=2; z", "x=1, y=3; z"), ["y=2; z", "y=3; z"]);
        assert_eq!(first_difference("same", "same, and more"), ["same", "same, and more"]);
        assert_eq!(first_difference("σ²", "σ³"), ["σ²", "σ³"]);
    }
}
