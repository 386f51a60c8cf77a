//! Evolution strategies that look mostly where a guess of the gradient points.

use super::{
    at_least_one, Antithetic, Estimate, EstimatorState, FullEs, FullGrad, FullLoss, GradientEstimator,
};
use crate::adjoint::SweepConfig;
use crate::truncation::TruncationSchedule;
use crate::unroll::TruncatedStep;
use crate::workers::Workers;
use outerloop_core::{Error, Key, Result};
use serde::{Deserialize, Serialize};

/// Where the subspace comes from that [`GuidedEs`] prefers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Guide {
    /// The last estimates, at most so many. Costs nothing.
    Past(usize),
    /// So many gradients of runs cut short after `steps` steps, one run each, by an adjoint sweep: short-sighted guesses.
    Unrolled {
        /// Number of gradients.
        count: usize,
        /// Inner steps of their runs.
        steps: u64,
    },
}

/// Guided evolution strategies over whole runs: perturbations lie mostly in a subspace of guesses.
///
/// `ε = σ (√α z + √((1−α) P/k) U w)`, `z ~ N(0, I_P)`, `w ~ N(0, I_k)`, `U` `[P, k]` an orthonormal basis of k guesses
/// of the gradient; `g = 1/(2σ²N) Σᵢ εᵢ (Lᵢ⁺ − Lᵢ⁻)` as in [`FullEs`]. The mean square of ε's elements is σ² for every α
/// (the paper's form is this with σ/√P for σ and β = P). With α = 1, or no guesses yet, this is [`FullEs`], to the bit.
///
/// Bias: the expectation is `Σ ∇L_σ` with `Σ = α I + (1−α) P/k UUᵀ`: a descent direction, α times the gradient outside
/// the subspace and `α + (1−α) P/k` times inside. Variance: with good guesses that of k dimensions instead of P. Cost: 2 N T inner
/// steps, and those of the guesses.
///
/// Shapes: `theta` `[P]`, guesses `[k, P]`.
/// Reference: Maheswaranathan et al. 2019, arXiv:1806.10230; past estimates as guesses: Liu et al. 2020,
/// arXiv:2005.06316 (self-guided ES).
pub struct GuidedEs {
    es: FullEs,
    guide: Guide,
    guesses: Option<FullGrad>,
    alpha: f64,
}

impl GuidedEs {
    /// Settings as of [`FullEs`]; `alpha`, from 0 to 1, is the share of the perturbations' variance outside the subspace
    /// (the paper's default: 0.5). Errors on settings out of range, and, for unrolled guesses, on an update rule without
    /// derivative.
    pub fn new(
        step: TruncatedStep,
        common: Antithetic,
        loss: FullLoss,
        guide: Guide,
        alpha: f64,
    ) -> Result<Self> {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Error::invalid("alpha of guided ES", format!("expected 0 to 1, got {alpha}")));
        }
        let guesses = match guide {
            Guide::Past(count) => {
                at_least_one("past estimates", count)?;
                if alpha == 0.0 {
                    let why =
                        "expected above 0: without other directions a subspace of past estimates never grows";
                    return Err(Error::invalid("alpha of guided ES", why));
                }
                None
            }
            Guide::Unrolled { count, steps } => {
                at_least_one("unrolled guesses", count)?;
                let schedule = TruncationSchedule::Constant(steps);
                let TruncatedStep { family, lopt, told, meta_loss, objective, .. } = &step;
                let short = TruncatedStep::new(family.clone(), lopt.clone(), schedule)?
                    .with_told(*told)?
                    .with_meta_loss(*meta_loss)
                    .with_objective(*objective)?;
                Some(FullGrad::new(short, 1, SweepConfig::default())?)
            }
        };
        Ok(GuidedEs { es: FullEs::new(step, common, loss)?, guide, guesses, alpha })
    }

    /// The guesses for an estimate.
    fn guesses(
        &self,
        theta: &[f32],
        state: &EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Vec<Vec<f32>> {
        match (&self.guide, &self.guesses) {
            (Guide::Unrolled { count, .. }, Some(grad)) => {
                let guess = |i: usize| {
                    let mut own = EstimatorState::new(state.key.named("guess").fold_in(i as u64));
                    grad.estimate(theta, &mut own, outer_step, workers).grad
                };
                (0..*count).map(guess).collect()
            }
            _ => state.past.clone(),
        }
    }
}

impl GradientEstimator for GuidedEs {
    fn name(&self) -> String {
        "guided-es".into()
    }

    fn describe(&self) -> String {
        format!("guided-es({:?}, alpha={}, {})", self.guide, self.alpha, self.es.describe())
    }

    fn init(&self, theta: &[f32], key: Key, workers: &Workers) -> EstimatorState {
        self.es.init(theta, key, workers)
    }

    fn estimate(
        &self,
        theta: &[f32],
        state: &mut EstimatorState,
        outer_step: u64,
        workers: &Workers,
    ) -> Estimate {
        let basis = orthonormal(&self.guesses(theta, state, outer_step, workers));
        let guide = (!basis.is_empty() && self.alpha < 1.0).then_some(Subspace { basis, alpha: self.alpha });
        let mut estimate = self.es.estimate_guided(theta, state, outer_step, workers, guide.as_ref());
        if let Some(Guide::Unrolled { count, steps }) = self.guesses.as_ref().map(|_| &self.guide) {
            estimate.inner_steps += *count as u64 * *steps;
        }
        if let Guide::Past(count) = self.guide {
            state.past.insert(0, estimate.grad.clone());
            state.past.truncate(count);
        }
        estimate
    }
}

/// A subspace, and how much of the perturbations' variance lies outside.
pub(super) struct Subspace {
    /// Orthonormal, `[k, P]`.
    basis: Vec<Vec<f32>>,
    alpha: f64,
}

impl Subspace {
    /// Makes of `σ z` the perturbation `σ (√α z + √((1−α) P/k) U w)`.
    pub(super) fn shape(&self, std: f32, key: Key, eps: &mut [f32]) {
        let k = self.basis.len();
        let mut w = vec![0.0f32; k];
        key.fill_normal(&mut w);
        let outside = self.alpha.sqrt() as f32;
        let inside = ((1.0 - self.alpha) * eps.len() as f64 / k as f64).sqrt() as f32 * std;
        eps.iter_mut().for_each(|e| *e *= outside);
        for (w, u) in w.iter().zip(&self.basis) {
            let c = inside * w;
            eps.iter_mut().zip(u).for_each(|(e, u)| *e += c * u);
        }
    }
}

/// What is left of a vector's length where it counts as dependent on those before.
const DEPENDENT: f64 = 1e-5;

/// An orthonormal basis of what finite vectors span, by modified Gram-Schmidt, twice.
fn orthonormal(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    for vector in vectors.iter().filter(|v| v.iter().all(|x| x.is_finite())) {
        let mut v: Vec<f64> = vector.iter().map(|x| f64::from(*x)).collect();
        let whole = norm(&v);
        for _ in 0..2 {
            for u in &basis {
                let c: f64 = v.iter().zip(u).map(|(v, u)| v * u).sum();
                v.iter_mut().zip(u).for_each(|(v, u)| *v -= c * u);
            }
        }
        let left = norm(&v);
        if left > DEPENDENT * whole {
            v.iter_mut().for_each(|x| *x /= left);
            basis.push(v);
        }
    }
    basis.into_iter().map(|u| u.into_iter().map(|x| x as f32).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_orthonormal_and_leave_out_what_depends() {
        let vectors =
            [vec![3.0, 0.0, 4.0], vec![f32::NAN; 3], vec![6.0, 0.0, 8.0], vec![1.0, 1.0, 0.0], vec![0.0; 3]];
        let basis = orthonormal(&vectors);
        assert_eq!(basis.len(), 2);
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        for (i, a) in basis.iter().enumerate() {
            for (j, b) in basis.iter().enumerate() {
                assert!((dot(a, b) - f32::from(u8::from(i == j))).abs() < 1e-6);
            }
        }
        assert_eq!(basis[0], [0.6, 0.0, 0.8]);
    }

    /// `E ε εᵀ = σ² (α I + (1−α) P/k UUᵀ)`, to four standard errors of 40,000 draws.
    #[test]
    fn perturbations_have_the_stated_covariance() {
        let subspace = Subspace { basis: vec![vec![0.6, 0.0, 0.8]], alpha: 0.25 };
        let draws = 40_000;
        let mut second = [[0.0f64; 3]; 3];
        for i in 0..draws {
            let key = Key::new(3).fold_in(i);
            let mut eps = [0.0f32; 3];
            key.fill_normal(&mut eps);
            eps.iter_mut().for_each(|e| *e *= 0.5);
            subspace.shape(0.5, key.named("guide"), &mut eps);
            for a in 0..3 {
                for b in 0..3 {
                    second[a][b] += f64::from(eps[a] * eps[b]) / draws as f64;
                }
            }
        }
        let u = [0.6, 0.0, 0.8];
        for a in 0..3 {
            for b in 0..3 {
                let want = 0.25 * (0.25 * f64::from(u8::from(a == b)) + 0.75 * 3.0 * u[a] * u[b]);
                // The fourth moments of these are below 2 · 0.42².
                assert!((second[a][b] - want).abs() < 4.0 * 0.6 / 200.0, "{a} {b}: {} {want}", second[a][b]);
            }
        }
    }
}
