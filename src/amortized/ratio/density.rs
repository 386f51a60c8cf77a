//! [`Density`]: what samplers draw from.

use super::simulator::Simulator;
use super::Prior;

/// A density `p(theta) e^{f(theta)}` over parameters, up to a constant: a prior and a log factor (a log ratio, or
/// a log likelihood).
///
/// Samplers ask for many rows at once, through an evaluator of their own thread.
pub trait Density: Send + Sync {
    /// The prior.
    fn prior(&self) -> &dyn Prior;
    /// An evaluator with its own scratch; make one per thread.
    fn evaluator(&self) -> Box<dyn DensityEvaluator + '_>;
    /// Whether [`DensityEvaluator::log_factor_grad`] works.
    fn has_gradient(&self) -> bool {
        false
    }
}

/// Evaluates a [`Density`]'s log factor. Results are a function of the rows given together, in their order.
pub trait DensityEvaluator {
    /// `f` of each row of `theta`, `[n, dim]`, all inside the prior's support, into `out`, `[n]`.
    fn log_factor(&mut self, theta: &[f64], out: &mut [f64]);
    /// The same, and overwrites `grad`, `[n, dim]`, with each row's gradient.
    ///
    /// # Panics
    /// If the density has no gradient.
    fn log_factor_grad(&mut self, theta: &[f64], out: &mut [f64], grad: &mut [f64]) {
        let _ = (theta, out, grad);
        panic!("this density has no gradient");
    }
}

/// The exact posterior of a simulator whose likelihood is known.
pub struct ExactDensity<'a> {
    simulator: &'a dyn Simulator,
    x: Vec<f64>,
}

impl<'a> ExactDensity<'a> {
    /// Of data `x`; `None` if the simulator has no likelihood.
    pub fn new(simulator: &'a dyn Simulator, x: &[f64]) -> Option<Self> {
        let mut theta = vec![0.0; simulator.prior().dim()];
        simulator.prior().sample(outerloop_core::Key::new(0), &mut theta);
        simulator.log_likelihood(&theta, x)?;
        Some(ExactDensity { simulator, x: x.to_vec() })
    }
}

impl Density for ExactDensity<'_> {
    fn prior(&self) -> &dyn Prior {
        self.simulator.prior()
    }
    fn evaluator(&self) -> Box<dyn DensityEvaluator + '_> {
        struct Rows<'a>(&'a ExactDensity<'a>);
        impl DensityEvaluator for Rows<'_> {
            fn log_factor(&mut self, theta: &[f64], out: &mut [f64]) {
                let d = self.0.prior().dim();
                for (out, t) in out.iter_mut().zip(theta.chunks_exact(d)) {
                    *out = self.0.simulator.log_likelihood(t, &self.0.x).unwrap_or(f64::NAN);
                }
            }
        }
        Box::new(Rows(self))
    }
}

/// A density given by a function with its gradient, `f(theta, grad) -> log factor`, for a user's own targets.
pub struct FnDensity<F> {
    prior: Box<dyn Prior>,
    f: F,
}

impl<F: Fn(&[f64], &mut [f64]) -> f64 + Send + Sync> FnDensity<F> {
    /// A prior and a log factor.
    pub fn new(prior: impl Prior + 'static, f: F) -> Self {
        FnDensity { prior: Box::new(prior), f }
    }
}

impl<F: Fn(&[f64], &mut [f64]) -> f64 + Send + Sync> Density for FnDensity<F> {
    fn prior(&self) -> &dyn Prior {
        &*self.prior
    }
    fn has_gradient(&self) -> bool {
        true
    }
    fn evaluator(&self) -> Box<dyn DensityEvaluator + '_> {
        struct Rows<'a, F>(&'a F, usize);
        impl<F: Fn(&[f64], &mut [f64]) -> f64> DensityEvaluator for Rows<'_, F> {
            fn log_factor(&mut self, theta: &[f64], out: &mut [f64]) {
                let mut grad = vec![0.0; self.1];
                for (out, t) in out.iter_mut().zip(theta.chunks_exact(self.1)) {
                    *out = (self.0)(t, &mut grad);
                }
            }
            fn log_factor_grad(&mut self, theta: &[f64], out: &mut [f64], grad: &mut [f64]) {
                let d = self.1;
                for ((out, t), g) in out.iter_mut().zip(theta.chunks_exact(d)).zip(grad.chunks_exact_mut(d)) {
                    *out = (self.0)(t, g);
                }
            }
        }
        Box::new(Rows(&self.f, self.prior.dim()))
    }
}

/// Log prior and log factor of rows, as samplers need them: rows outside the prior's support are not evaluated,
/// and NaN counts as `−∞`.
pub struct Target<'a> {
    density: &'a dyn Density,
    evaluator: Box<dyn DensityEvaluator + 'a>,
    inside: Vec<usize>,
    rows: Vec<f64>,
    values: Vec<f64>,
    /// Rows evaluated so far.
    pub evaluations: u64,
    /// Of those, how many had a factor of NaN.
    pub invalid: u64,
}

impl<'a> Target<'a> {
    /// An evaluator of this density.
    pub fn new(density: &'a dyn Density) -> Self {
        let evaluator = density.evaluator();
        let (inside, rows, values) = (Vec::new(), Vec::new(), Vec::new());
        Target { density, evaluator, inside, rows, values, evaluations: 0, invalid: 0 }
    }

    /// Number of parameters.
    pub fn dim(&self) -> usize {
        self.density.prior().dim()
    }

    /// Log prior and log factor of rows `[n, dim]`; the factor of a row outside is `−∞`.
    pub fn evaluate(&mut self, theta: &[f64], prior: &mut [f64], factor: &mut [f64]) {
        let d = self.dim();
        self.inside.clear();
        self.rows.clear();
        for (i, t) in theta.chunks_exact(d).enumerate() {
            prior[i] = self.density.prior().log_density(t);
            factor[i] = f64::NEG_INFINITY;
            if prior[i] > f64::NEG_INFINITY {
                self.inside.push(i);
                self.rows.extend_from_slice(t);
            }
        }
        if self.inside.is_empty() {
            return;
        }
        self.values.resize(self.inside.len(), 0.0);
        self.evaluator.log_factor(&self.rows, &mut self.values);
        self.evaluations += self.inside.len() as u64;
        for (i, v) in self.inside.iter().zip(&self.values) {
            self.invalid += u64::from(v.is_nan());
            factor[*i] = if v.is_nan() { f64::NEG_INFINITY } else { *v };
        }
    }

    /// `ln p(theta) + f(theta)` and its gradient by theta; rows must lie inside.
    pub fn gradient(&mut self, theta: &[f64], out: &mut [f64], grad: &mut [f64]) {
        let d = self.dim();
        self.evaluator.log_factor_grad(theta, out, grad);
        self.evaluations += out.len() as u64;
        let prior = self.density.prior();
        for ((out, t), g) in out.iter_mut().zip(theta.chunks_exact(d)).zip(grad.chunks_exact_mut(d)) {
            self.invalid += u64::from(out.is_nan());
            *out += prior.log_density(t);
            prior.add_score(t, g);
        }
    }
}
