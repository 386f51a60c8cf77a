//! Learned optimizers that others published, with their weights.

use super::{Knobs, FAST, SMALL};
use outerloop_core::{Error, LearnedOptimizer, Optimizer, Result};
use outerloop_lopt::hand::{LossTerm, WeightDecay};
use outerloop_lopt::theta::{Import, ThetaFile};
use outerloop_lopt::{registry, Celo, CeloAdam};
use std::path::Path;

/// A learned optimizer with the weights that its authors published, byte for byte.
///
/// It plans its steps for the number of steps that [`Optimizer::init`] is told: without one `init` panics with a
/// message that says so.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// Short name.
    pub name: &'static str,
    /// Name of the file in `src/pretrained`.
    pub file: &'static str,
    /// Its contents.
    pub bytes: &'static [u8],
    /// The learned optimizer.
    pub make: fn() -> Box<dyn LearnedOptimizer>,
    /// Where it comes from: repository, commit, path.
    pub source: &'static str,
    /// The copyright notice and licence of the weights, which every copy has to keep.
    pub licence: &'static str,
}

const LICENCE: &str = include_str!("celo.LICENSE.txt");

/// The optimizer of [`celo`]: 37,089 meta-parameters.
pub const CELO: Published = Published {
    name: "celo",
    file: "celo.state",
    bytes: include_bytes!("celo.state"),
    make: || Box::new(Celo::published()),
    source: "amoudgl/celo 66d976116f39da286951f0c5e0a18eee8d1fd66b, algoperf/submissions/celo/theta.state",
    licence: LICENCE,
};

/// The optimizer of [`celo_adam`]: 36,865 meta-parameters.
pub const CELO_ADAM: Published = Published {
    name: "celo-adam",
    file: "celo_adam.state",
    bytes: include_bytes!("celo_adam.state"),
    make: || Box::new(CeloAdam::default()),
    source:
        "amoudgl/celo 66d976116f39da286951f0c5e0a18eee8d1fd66b, algoperf/submissions/celo_adam/theta.state",
    licence: LICENCE,
};

impl Published {
    /// The learned optimizer and its theta, e.g. to go on meta-training.
    pub fn learned(&self) -> Result<(Box<dyn LearnedOptimizer>, Vec<f32>)> {
        let lopt = (self.make)();
        let theta = Import::default().bytes(self.bytes, self.file)?.theta_for(&*lopt)?;
        Ok((lopt, theta))
    }

    /// The optimizer.
    pub fn optimizer(&self) -> Result<Box<dyn Optimizer>> {
        let (lopt, theta) = self.learned()?;
        Ok(lopt.opt_fn(&theta))
    }

    /// The optimizer with `weight_decay · p` added to the gradient, as its authors' `WeightDecayWrapper`.
    ///
    /// `loss` says what the optimizer, which reads the loss, is told besides: [`LossTerm::Reference`] is theirs
    /// and adds `weight_decay Σp²`, [`LossTerm::Proper`] half of it, the term whose gradient is added, and
    /// [`LossTerm::None`] nothing. The reported training loss is not changed by any.
    pub fn with_weight_decay(&self, weight_decay: f64, loss: LossTerm) -> Result<Box<dyn Optimizer>> {
        let opt: Box<dyn Optimizer> = Box::new(WeightDecay::new(weight_decay, loss, self.optimizer()?));
        opt.validate()?;
        Ok(opt)
    }
}

/// Celo, meta-trained by its authors on four families of image MLPs with runs of 100 to 2000 steps; nothing to
/// tune. Weights: MIT, Copyright (c) 2025 Abhinav Moudgil; [`Published::licence`] is the text.
///
/// It plans for the `num_steps` that [`Optimizer::init`] is told and panics without; it also reads the loss.
/// Reference: Moudgil et al. 2025, arXiv:2501.12670.
///
/// ```
/// use outerloop::prelude::*;
/// let opt = outerloop::pretrained::celo()?;
/// let params = Params::<f32>::zeros(std::sync::Arc::new(Layout::new([("w", vec![3, 2])])));
/// let mut state = opt.init(&params, Some(100), Key::new(0));
/// opt.update(&mut state, &[0.1; 6], 2.3, Key::new(0));
/// # Ok::<(), Error>(())
/// ```
pub fn celo() -> Result<Box<dyn Optimizer>> {
    CELO.optimizer()
}

/// Adam with a schedule that its authors meta-trained; licence and needs as of [`celo`].
pub fn celo_adam() -> Result<Box<dyn Optimizer>> {
    CELO_ADAM.optimizer()
}

/// The names that [`Named::load`] knows.
pub const NAMES: [&str; 4] = [SMALL.name, FAST.name, CELO.name, CELO_ADAM.name];

/// A learned optimizer with its theta, from a name or a file.
pub struct Named {
    /// For reports: the name, or the class and the file.
    pub name: String,
    /// The learned optimizer.
    pub lopt: Box<dyn LearnedOptimizer>,
    /// Its theta.
    pub theta: Vec<f32>,
}

impl Named {
    /// From what stands on a command line:
    ///
    /// | text | learned optimizer |
    /// |---|---|
    /// | one of [`NAMES`] | the pretrained one |
    /// | `small{...}`, `fast{...}` | the same with [`Knobs`] in JSON, e.g. `small{"rate":3,"decay":0.1}` |
    /// | `FILE` | a theta file of ours ([`ThetaFile`]), or the file of a published one, e.g. `celo.state` |
    /// | `CLASS=FILE`, `CLASS{...}=FILE` | a class of [`registry::LEARNED`] with hyperparameters in JSON, and theta in any format that [`Import`] reads |
    ///
    /// # Errors
    /// Unknown names and classes, and files that are none or belong to another learned optimizer.
    pub fn load(text: &str) -> Result<Self> {
        if let Some(published) = [CELO, CELO_ADAM].iter().find(|p| p.name == text) {
            let (lopt, theta) = published.learned()?;
            return Ok(Named { name: text.into(), lopt, theta });
        }
        let (name, knobs) = text.split_at(text.find('{').unwrap_or(text.len()));
        if let Some(own) = [SMALL, FAST].into_iter().find(|own| own.name == name) {
            let knobs: Knobs = serde_json::from_str(if knobs.is_empty() { "{}" } else { knobs })
                .map_err(|e| Error::invalid(format!("`{text}`: knobs"), e.to_string()))?;
            let (lopt, theta) = own.learned_with(knobs)?;
            return Ok(Named { name: text.into(), lopt, theta });
        }
        if let Some((class, file)) = class_and_file(text) {
            let (class, hyper) = class.split_at(class.find('{').unwrap_or(class.len()));
            let hyper = serde_json::from_str(if hyper.is_empty() { "{}" } else { hyper })
                .map_err(|e| Error::invalid(format!("`{text}`: hyperparameters"), e.to_string()))?;
            let lopt = registry::learned::<f32>(class, &hyper)?;
            let theta = Import::default().file(file)?.theta_for(&*lopt)?;
            return Ok(Named { name: format!("{class} {file}"), lopt, theta });
        }
        let path = Path::new(text);
        if !path.exists() {
            let mut allowed: Vec<String> = NAMES.map(String::from).into();
            allowed.extend(["FILE".into(), "CLASS=FILE".into()]);
            return Err(Error::Unknown {
                what: "pretrained optimizer or theta file",
                got: text.into(),
                allowed,
            });
        }
        let own = match ThetaFile::load(path) {
            Ok(file) => {
                let lopt = registry::from_architecture(&file.architecture)?;
                let theta = file.theta_for(&*lopt)?.to_vec();
                let class = file.architecture.split(' ').next().unwrap_or_default();
                return Ok(Named { name: format!("{class} {text}"), lopt, theta });
            }
            Err(e) => e,
        };
        // Names and shapes decide whose it is: a file fits at most one.
        let Ok(arrays) = Import::default().file(path) else { return Err(own) };
        for published in [CELO, CELO_ADAM] {
            let lopt = (published.make)();
            if let Ok(theta) = arrays.theta_for(&*lopt) {
                return Ok(Named { name: format!("{} {text}", published.name), lopt, theta });
            }
        }
        let classes = registry::LEARNED.join(", ");
        Err(Error::format(
            path,
            format!("whose theta is it? expected CLASS={text}, with CLASS one of {classes}"),
        ))
    }

    /// The optimizer.
    pub fn optimizer(&self) -> Box<dyn Optimizer> {
        self.lopt.opt_fn(&self.theta)
    }
}

/// `CLASS=FILE` in two; the class may have hyperparameters with `=` inside braces.
fn class_and_file(text: &str) -> Option<(&str, &str)> {
    let end = text.rfind('}').unwrap_or(0);
    let at = end + text[end..].find('=')?;
    // `./a=b` is a path.
    let (class, file) = (&text[..at], &text[at + 1..]);
    (!class.is_empty() && !class.split('{').next().unwrap_or("").contains('/')).then_some((class, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prelude::*;

    #[test]
    fn published_weights_are_there_with_their_licence() {
        for (published, len) in [(CELO, 37_089), (CELO_ADAM, 36_865)] {
            let (lopt, theta) = published.learned().unwrap();
            assert_eq!((theta.len(), lopt.theta_layout().len()), (len, len));
            assert!(published.licence.contains("MIT") && published.licence.contains("Abhinav Moudgil"));
            let named = Named::load(published.name).unwrap();
            assert_eq!((named.lopt.architecture(), named.theta), (lopt.architecture(), theta));
        }
    }

    /// The first step of CeloAdam is its learning rate, whatever the task: 0.15356146 times 1e-3.
    #[test]
    fn the_first_step_of_celo_adam_is_the_published_one() {
        let opt = celo_adam().unwrap();
        let params = Params::<f32>::zeros(std::sync::Arc::new(Layout::new([("w", vec![2])])));
        for steps in [7, 100_000] {
            let mut state = opt.init(&params, Some(steps), Key::new(0));
            opt.update(&mut state, &[1.0, -20.0], 3.0, Key::new(0));
            for (p, sign) in state.params.iter().zip([-1.0, 1.0]) {
                assert!((f64::from(*p) * sign / 1.5356146e-4 - 1.0).abs() < 1e-6, "{p}");
            }
        }
    }

    #[test]
    fn weight_decay_pulls_parameters_and_tells_the_loss() {
        let params =
            Params::new(std::sync::Arc::new(Layout::new([("w", vec![2])])), vec![1.0, -1.0]).unwrap();
        let opt = CELO_ADAM.with_weight_decay(0.1, LossTerm::Reference).unwrap();
        let mut state = opt.init(&params, Some(10), Key::new(0));
        opt.update(&mut state, &[0.0, 0.0], 3.0, Key::new(0));
        assert!(state.params[0] < 1.0 && state.params[1] > -1.0);
        // 3 + 0.1 (1 + 1), at the weight 1 − d of a first value.
        let d = (-0.1f64).exp();
        let mean = f64::from(state.slot("loss_means").unwrap()[0]);
        assert!((mean - 3.2 * (1.0 - d)).abs() < 1e-6, "{mean}");
        assert!(CELO.with_weight_decay(-1.0, LossTerm::None).is_err());
    }

    #[test]
    fn files_are_known_by_what_they_hold_and_errors_say_what_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(path("a.state"), CELO.bytes).unwrap();
        std::fs::write(path("b"), CELO_ADAM.bytes).unwrap();
        std::fs::write(path("small"), SMALL.bytes).unwrap();
        let class = |text: &str| Named::load(text).map(|n| n.lopt.name());
        assert_eq!(class(&path("a.state")).unwrap(), "Celo");
        assert_eq!(class(&path("b")).unwrap(), "CeloAdam");
        assert_eq!(
            class(&path("small")).unwrap(),
            SMALL.file().unwrap().architecture.split(' ').next().unwrap()
        );
        let settings = r#"Celo{"lstm_hidden_size":64,"param_inits":1}="#;
        assert_eq!(class(&format!("{settings}{}", path("a.state"))).unwrap(), "Celo");
        for (text, part) in [
            ("tiny".to_string(), "celo-adam, FILE, CLASS=FILE"),
            (format!("Lstm={}", path("b")), "learned optimizer"),
            (format!("Celo={}", path("a.state")), "expected [64, 4]"),
            (format!("Celo{{]={}", path("a.state")), "hyperparameters"),
        ] {
            let error = class(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        // Arrays of nobody.
        std::fs::write(path("c.npy"), npy_of_one_number()).unwrap();
        let error = class(&path("c.npy")).unwrap_err().to_string();
        assert!(error.contains("CLASS=") && error.contains("CeloAdam"), "{error}");
    }

    fn npy_of_one_number() -> Vec<u8> {
        let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n";
        let len = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00", &len[..], header.as_bytes(), &[0; 4]].concat()
    }

    #[test]
    #[should_panic(expected = "init needs num_steps")]
    fn a_run_of_unknown_length_is_refused() {
        let params = Params::<f32>::zeros(std::sync::Arc::new(Layout::new([("w", vec![2])])));
        celo().unwrap().init(&params, None, Key::new(0));
    }
}
