//! Learned optimizers that come with the crate, ready for use.
//!
//! ```
//! use outerloop::prelude::*;
//!
//! let opt = outerloop::pretrained::small()?;
//! // Say how long the run will be: the optimizer plans for it.
//! let config = EvalConfig { num_steps: 20, ..EvalConfig::default() };
//! let task = SingleTask::new(ImageMlp::digits());
//! let curve = &training_curves(&task, &*opt, &config, Key::new(0), 1, &Workers::new(1)?)[0];
//! assert!(curve.train[20] < 0.5 * curve.train[0]);
//! # Ok::<(), Error>(())
//! ```
//!
//! `src/pretrained/` holds each theta with its provenance: recipe, command, seed, hash and results; [`celo`] and
//! [`celo_adam`] are of others, with their licence beside them.

mod knobs;
mod published;

pub use knobs::Knobs;
pub use published::{celo, celo_adam, Named, Published, CELO, CELO_ADAM, NAMES};

use outerloop_core::{Error, LearnedOptimizer, Optimizer, Result};
use outerloop_lopt::{registry, theta::ThetaFile};
use outerloop_outer::guard::{GuardConfig, Guarded};

/// A learned optimizer with the theta that meta-training gave it.
#[derive(Clone, Copy, Debug)]
pub struct Pretrained {
    /// Name of its files.
    pub name: &'static str,
    /// The length of run that it was made for, in steps.
    pub num_steps: u64,
    /// Shortest and longest inner runs of its meta-training, in steps.
    pub horizons: [u64; 2],
    /// The theta file ([`ThetaFile`]).
    pub bytes: &'static [u8],
}

/// The optimizer of [`small`].
///
/// A [`ControlledAdam`](outerloop_lopt::ControlledAdam) with an average of its iterates, meta-trained for the
/// validation loss of small nets on digits and on generated tables by `examples/meta_train/small.toml`.
pub const SMALL: Pretrained = Pretrained {
    name: "small",
    num_steps: 500,
    horizons: [50, 1500],
    bytes: include_bytes!("pretrained/small.safetensors"),
};

/// The optimizer of [`fast`].
///
/// A [`ControlledAdam`](outerloop_lopt::ControlledAdam) meta-trained for the training loss of small digits
/// MLPs, autoencoders and quadratics by `examples/meta_train/fast.toml`.
pub const FAST: Pretrained = Pretrained {
    name: "fast",
    num_steps: 500,
    horizons: [75, 575],
    bytes: include_bytes!("pretrained/fast.safetensors"),
};

impl Pretrained {
    /// Theta with architecture and provenance.
    pub fn file(&self) -> Result<ThetaFile> {
        ThetaFile::from_bytes(self.bytes, self.name)
    }

    /// The learned optimizer and its theta, e.g. to go on meta-training.
    pub fn learned(&self) -> Result<(Box<dyn LearnedOptimizer>, Vec<f32>)> {
        let file = self.file()?;
        let lopt = registry::from_architecture(&file.architecture)?;
        let theta = file.theta_for(&*lopt)?.to_vec();
        Ok((lopt, theta))
    }

    /// The optimizer behind guard rails made of what it met in meta-training: unusual lengths of runs,
    /// gradients, parameters and losses are counted, and if the loss diverges, `fallback` goes on.
    ///
    /// ```
    /// use outerloop::prelude::*;
    ///
    /// let opt = outerloop::pretrained::SMALL.guarded(Box::new(Adam::new(1e-3)))?;
    /// let params = Params::<f32>::zeros(std::sync::Arc::new(Layout::new([("w", vec![3, 2])])));
    /// let mut state = opt.init(&params, Some(100_000), Key::new(0));
    /// opt.update(&mut state, &[0.1; 6], 2.3, Key::new(0));
    /// assert!(opt.report(&state).unusual_horizon); // so long a run is more than it has ever seen
    /// # Ok::<(), Error>(())
    /// ```
    pub fn guarded(&self, fallback: Box<dyn Optimizer>) -> Result<Guarded> {
        let file = self.file()?;
        let seen = file.metadata.get("input_ranges").map(|json| serde_json::from_str(json));
        let ranges = seen.transpose().map_err(|e| Error::format(self.name, e.to_string()))?;
        let [low, high] = self.horizons;
        let config = GuardConfig { horizons: low..=high, ranges, ..GuardConfig::default() };
        Ok(Guarded::new(self.optimizer()?, config).with_fallback(fallback))
    }

    /// The optimizer.
    pub fn optimizer(&self) -> Result<Box<dyn Optimizer>> {
        let (lopt, theta) = self.learned()?;
        Ok(lopt.opt_fn(&theta))
    }
}

/// A learned optimizer for small nets that should generalize, without anything to tune: it was meta-trained for
/// the validation loss.
///
/// Use the parameters that it means, [`Optimizer::evaluation_params`]: an average of its iterates, by which it
/// needs no `num_steps`. See `src/pretrained/small.md` for what it wins and where it loses.
pub fn small() -> Result<Box<dyn Optimizer>> {
    SMALL.optimizer()
}

/// A learned optimizer for a low training loss of nets of up to some ten thousand parameters after up to about
/// 500 steps, without anything to tune. It overfits where a task can be overfitted.
///
/// It plans its steps for the `num_steps` that [`Optimizer::init`] is told; without it the learning rate
/// never falls. See `src/pretrained/fast.md` for what it wins and where it loses.
pub fn fast() -> Result<Box<dyn Optimizer>> {
    FAST.optimizer()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prelude::*;
    use crate::tasks::suite;

    #[test]
    fn each_carries_its_recipe_and_its_architecture() {
        for pretrained in [SMALL, FAST] {
            let file = pretrained.file().unwrap();
            let (lopt, theta) = pretrained.learned().unwrap();
            assert_eq!(theta.len(), lopt.theta_layout().len());
            assert_eq!(lopt.name(), "ControlledAdam");
            assert!(file.metadata["config"].contains("task = \"suite\""));
            assert!(ThetaFile::from_bytes(&pretrained.bytes[1..], "cut").is_err());
        }
    }

    #[test]
    fn each_is_at_home_on_its_mixture_and_lost_far_from_it() {
        [SMALL, FAST].into_iter().for_each(at_home_and_lost);
    }

    fn at_home_and_lost(pretrained: Pretrained) {
        let guarded = pretrained.guarded(Box::new(Adam::new(1e-3))).unwrap();
        let task = suite::training().sample(Key::new(5)).task::<f32>(Key::new(5)).unwrap();
        let report = |scale: f32, steps| {
            let mut params = task.init(Key::new(6));
            params.data.iter_mut().for_each(|p| *p *= scale);
            let mut state = guarded.init(&params, Some(steps), Key::new(0));
            let (mut evaluator, mut grad) = (task.evaluator(), vec![0.0; params.data.len()]);
            for t in 0..20 {
                let at = BatchKey::train(t, Key::new(7));
                let loss = evaluator.loss_and_grad(&state.params, &mut task.init_state(), at, &mut grad);
                guarded.update(&mut state, &grad, loss, Key::new(0));
            }
            guarded.report(&state)
        };
        let home = report(1.0, pretrained.num_steps);
        assert!(!home.unusual_horizon && home.diverged_at.is_none(), "{home:?}");
        assert_eq!((home.unusual_gradients, home.unusual_parameters, home.unusual_losses), (0, 0, 0));
        let lost = report(1e4, 10_000);
        assert!(lost.unusual_horizon && lost.unusual_parameters > 0, "{lost:?}");
    }

    /// Final losses of three runs on a held-out task, of training and of validation.
    fn losses(task: &str, opt: &dyn Optimizer, told: ToldSteps) -> [Vec<f32>; 2] {
        let held_out = suite::held_out().into_iter().find(|t| t.name == task).unwrap();
        let family = SingleTask(held_out.task().unwrap());
        let key = suite::evaluation_key(3).named("pretrained");
        let config = EvalConfig {
            num_steps: 500,
            told,
            eval_every: 500,
            splits: vec![Split::OuterValid],
            ..EvalConfig::default()
        };
        let curves = training_curves(&family, opt, &config, key, 3, &Workers::new(1).unwrap());
        let valid = |c: &Curve| c.evals.last().unwrap().loss;
        [curves.iter().map(|c| c.final_train(20)).collect(), curves.iter().map(valid).collect()]
    }

    #[test]
    fn small_validates_and_fast_trains_better_than_untuned_adam_on_held_out_tasks() {
        for (kind, opt) in [(1, small().unwrap()), (0, fast().unwrap())] {
            for task in ["mlp16-tanh", "mlp32-relu-mse"] {
                let learned = losses(task, &*opt, ToldSteps::Exact)[kind].clone();
                let adam = losses(task, &Adam::new(1e-3), ToldSteps::Exact)[kind].clone();
                // The worst seed of one against the best of the other.
                let worst = learned.iter().copied().fold(0.0, f32::max);
                let best = adam.iter().copied().fold(f32::INFINITY, f32::min);
                assert!(worst < 0.75 * best, "{task}: {learned:?} against {adam:?}");
            }
        }
    }

    #[test]
    fn small_does_the_same_whatever_length_it_is_told() {
        let run = |told| losses("mlp16-tanh", &*small().unwrap(), told);
        let exact = run(ToldSteps::Exact);
        assert_eq!(exact, run(ToldSteps::Unknown));
        assert_eq!(exact, run(ToldSteps::Steps(125)));
    }
}
