//! Sinusoid MAML by implicit differentiation (iMAML): the meta-gradient of inner training that went to its end, however
//! it got there.
//!
//! The inner problem is proximal, `w*(θ) = argmin_w L_support(w) + λ/2 |w − θ|²`, an ordinary [`HyperTask`] with the
//! initial weights θ as hyperparameters. The theorem gives `dL_query/dθ = λ (H + λ I)⁻¹ ∇L_query` by
//! [`outerloop_outer::implicit`], some conjugate gradient steps: neither the path of the inner training nor its memory
//! enter. Biased by the distance of `w` from `w*` and by the solve.
//!
//! After few inner steps the Hessian of a small network is indefinite: with λ = ½ and rate 0.05 conjugate gradients met
//! negative curvature in two of three sines, steep sines diverged, and nothing was learned; a λ strong enough against it
//! leaves no room to adapt. So `H` is the Gauss-Newton matrix by default: never indefinite, the Hessian where the support set
//! is fitted, and of a rank that is at most the number of points, so that as many steps solve exactly.
//!
//! Reference: Rajeswaran, Finn, Kakade, Levine 2019, arXiv:1909.04630 (with the Hessian, λ = ½ to 2, 16 inner steps, 5 of
//! conjugate gradients).

use super::maml::{Episode, SinusoidMaml};
use crate::problem::Rows;
use crate::train::averaged;
use outerloop_core::ops;
use outerloop_core::tensor::{Backend, Curvature, DynParams, Float, Mode, Rank0, Tensor};
use outerloop_core::{BatchKey, HyperProblem, HyperTask, Key, Result, Split, Task};
use outerloop_outer::implicit::{ConjugateGradient, HyperBatches, HyperEvaluator, Implicit};
use outerloop_outer::{Estimate, EstimatorState, GradientEstimator, Workers};
use std::sync::Arc;

/// Settings.
#[derive(Clone, Debug)]
pub struct ImplicitMaml {
    /// Network, data and number of sines per meta-gradient; its order and inner steps are not used.
    pub maml: SinusoidMaml,
    /// Strength λ of the pull to the initial weights; default 2.
    pub lambda: f64,
    /// Inner gradient steps, of rate `inner_rate`; default 32.
    pub inner_steps: usize,
    /// Default 0.005.
    pub inner_rate: f64,
    /// Conjugate gradient steps; default 10.
    pub solve_steps: usize,
    /// The matrix that is inverted; default Gauss-Newton.
    pub curvature: Curvature,
}

impl Default for ImplicitMaml {
    fn default() -> Self {
        ImplicitMaml {
            maml: SinusoidMaml::default(),
            lambda: 2.0,
            inner_steps: 32,
            inner_rate: 0.005,
            solve_steps: 10,
            curvature: Curvature::GaussNewton,
        }
    }
}

impl<E: Float, B: Backend<E>> HyperTask<E, B> for ImplicitMaml {
    type Params = DynParams<E, B>;
    type Hyper = DynParams<E, B>;
    type Batch = (Rows<E, B>, Rows<E, B>);
    fn name(&self) -> String {
        "sinusoid_imaml".into()
    }
    fn init(&self, dev: &B, key: Key) -> Self::Params {
        Task::<E, B>::init(&self.maml, dev, key)
    }
    fn init_hyper(&self, dev: &B, key: Key) -> Self::Hyper {
        Task::<E, B>::init(&self.maml, dev, key)
    }
    /// The sine of the batch's key: its support set for training, its query set for validation.
    fn batch(&self, dev: &B, at: BatchKey) -> Self::Batch {
        let [support, query]: Episode<E, B> = self.maml.episode(dev, at.key);
        if at.split == Split::Train {
            support
        } else {
            query
        }
    }
    fn train_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        theta: &Self::Hyper,
        support: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        let fit = self.maml.net.mse(&self.maml.flat(w, m), support);
        // λ/2 |w − θ|² as a squared error, whose curvature belongs to a Gauss-Newton matrix.
        let pull = ops::mse(self.maml.flat(w, m), &self.maml.flat(theta, m));
        let numbers = self.maml.net.layout().len() as f64;
        ops::add(fit, &ops::scale(pull, 0.5 * self.lambda * numbers))
    }
    fn valid_loss<M: Mode<E, B>>(
        &self,
        w: &Self::Params,
        _: &Self::Hyper,
        query: &Self::Batch,
        m: M,
    ) -> Tensor<Rank0, E, B, M> {
        self.maml.net.mse(&self.maml.flat(w, m), query)
    }
}

/// The meta-gradient, averaged over fresh sines.
pub struct ImplicitMamlGradient {
    config: ImplicitMaml,
    problem: Arc<HyperProblem>,
    implicit: Implicit,
}

impl ImplicitMamlGradient {
    /// An estimator.
    ///
    /// # Errors
    /// Settings of the solve out of range.
    pub fn new(config: ImplicitMaml) -> Result<Self> {
        let problem = Arc::new(HyperProblem::new(config.clone())?);
        let solver = ConjugateGradient { steps: config.solve_steps, ..ConjugateGradient::default() };
        let implicit = Implicit { curvature: config.curvature, ..Implicit::new(solver) };
        implicit.validate(problem.params.len())?;
        Ok(ImplicitMamlGradient { config, problem, implicit })
    }

    /// Query loss after the inner training on the sine of a key.
    pub fn adapted_loss(&self, theta: &[f32], key: Key) -> f64 {
        let (evaluator, joint) = &mut self.adapted(theta, key);
        let loss = evaluator.loss(joint, HyperBatches::at(0, key).valid);
        f64::from(loss.expect("both buffers have the layout's length"))
    }

    /// Weights after the inner training, and θ behind them.
    fn adapted(&self, theta: &[f32], key: Key) -> (HyperEvaluator, Vec<f32>) {
        let (n, at) = (theta.len(), HyperBatches::at(0, key));
        let mut evaluator = HyperEvaluator::new(self.problem.clone());
        let mut joint = [theta, theta].concat();
        let mut grad = vec![0.0; n];
        for _ in 0..self.config.inner_steps {
            let trained = evaluator.loss_and_grad(&joint, at.curvature, &mut grad);
            trained.expect("both buffers have the layout's length");
            let rate = self.config.inner_rate as f32;
            joint[..n].iter_mut().zip(&grad).for_each(|(w, g)| *w -= rate * g);
        }
        (evaluator, joint)
    }

    /// Query loss and meta-gradient of the sine of a key; NaN where the solve failed.
    pub fn of_sine(&self, theta: &[f32], key: Key) -> (f64, Vec<f32>) {
        let (n, at) = (theta.len(), HyperBatches::at(0, key));
        let (mut evaluator, joint) = self.adapted(theta, key);
        match evaluator.hypergradient(&self.implicit, &at, &joint, None) {
            // Negative curvature ends the solve early; what it had by then is a direction of descent, too.
            Ok(h) => (h.valid_loss, h.grad),
            Err(_) => (f64::NAN, vec![f32::NAN; n]),
        }
    }
}

impl GradientEstimator for ImplicitMamlGradient {
    fn name(&self) -> String {
        "implicit-maml".into()
    }
    fn describe(&self) -> String {
        format!("implicit-maml({:?}, {})", self.config, self.implicit.describe())
    }
    fn init(&self, _: &[f32], key: Key, _: &Workers) -> EstimatorState {
        EstimatorState::new(key)
    }
    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let sine = |i: usize| state.key.named("sines").fold_in(outer_step).fold_in(i as u64);
        let mut keys: Vec<Key> = (0..self.config.maml.tasks).map(sine).collect();
        let parts = workers.map(&mut keys, |_, _, key| self.of_sine(theta, *key));
        averaged(parts, (self.config.maml.tasks * self.config.inner_steps) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problems::maml::FlatNet;
    use outerloop_core::contract::check_hyper_task;
    use outerloop_core::ops::Activation;

    /// Against central differences of the query loss at the end of long inner training.
    #[test]
    fn the_meta_gradient_is_that_of_the_trained_weights() {
        let net = FlatNet { widths: vec![1, 4, 1], activation: Activation::Tanh };
        let maml = SinusoidMaml { net, points: 4, ..SinusoidMaml::default() };
        let config = ImplicitMaml {
            maml,
            inner_steps: 400,
            inner_rate: 0.05,
            solve_steps: 13,
            curvature: Curvature::Hessian,
            ..ImplicitMaml::default()
        };
        check_hyper_task(&Arc::new(config.clone())).expect("the contract");
        let estimator = ImplicitMamlGradient::new(config.clone()).expect("valid settings");
        let theta =
            HyperTask::<f32, outerloop_core::tensor::Cpu>::init(&config, &Default::default(), Key::new(1));
        let mut flat = vec![0.0f32; 13];
        outerloop_core::tensor::ParamTree::write_flat(&theta, &mut flat);
        let key = Key::new(5);
        let (_, grad) = estimator.of_sine(&flat, key);
        // Losses in f32 are good to 1e-6; a step of 1e-2 leaves an error of 1e-4.
        for i in 0..13 {
            let at = |h: f32| {
                let mut moved = flat.clone();
                moved[i] += h;
                estimator.of_sine(&moved, key).0
            };
            let want = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!(
                (f64::from(grad[i]) - want).abs() < 2e-3 * (1.0 + want.abs()),
                "{i}: {}, not {want}",
                grad[i]
            );
        }
    }

    /// Of a linear network both matrices are the same, and of it alone: the pull's curvature is in both.
    #[test]
    fn gauss_newton_is_the_hessian_of_a_linear_network() {
        let gradient = |widths: Vec<usize>, curvature: Curvature| {
            let net = FlatNet { widths, activation: Activation::Tanh };
            let maml = SinusoidMaml { net, points: 4, ..SinusoidMaml::default() };
            let config = ImplicitMaml { maml, curvature, solve_steps: 20, ..ImplicitMaml::default() };
            let theta: Vec<f32> = (0..config.maml.net.layout().len()).map(|i| 0.3 - 0.1 * i as f32).collect();
            ImplicitMamlGradient::new(config).expect("valid settings").of_sine(&theta, Key::new(3)).1
        };
        let apart = |widths: &[usize]| {
            let [a, b] = [Curvature::Hessian, Curvature::GaussNewton].map(|c| gradient(widths.to_vec(), c));
            let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            off / a.iter().fold(0.0, |m: f32, a| m.max(a.abs()))
        };
        assert!(apart(&[1, 1]) < 1e-4, "{}", apart(&[1, 1]));
        assert!(apart(&[1, 3, 1]) > 1e-2, "{}", apart(&[1, 3, 1]));
    }
}
