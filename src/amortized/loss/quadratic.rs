//! The three losses on a quadratic, in closed form: the oracle of [`super::Loss`].
//!
//! `f(y; x) = ½ (y − M x)ᵀ H (y − M x)`, model `y = W x`, contexts `x ~ N(0, I)`.

use crate::matrix::{dot, Matrix};
use outerloop_core::Float;

/// The family of quadratics, with a linear model.
#[derive(Clone, Debug)]
pub struct QuadraticLosses<E = f64> {
    /// Curvature `[D, D]`, symmetric.
    pub h: Matrix<E>,
    /// Solutions are `M x`, `[D, X]`.
    pub m: Matrix<E>,
    /// The model's weights, `[D, X]`.
    pub w: Matrix<E>,
}

/// A loss with its gradient by the weights.
pub type LossAndGrad<E> = (E, Matrix<E>);

/// Which constant a score-function estimate subtracts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// 0
    None,
    /// `f(y)`
    Value,
    /// `E f(y + σ e)`
    Smoothed,
}

impl<E: Float> QuadraticLosses<E> {
    fn difference(&self) -> Matrix<E> {
        self.w.plus(-1.0, &self.m)
    }

    /// `E f(W x; x) = ½ tr(H D Dᵀ)` with `D = W − M`; gradient `H D`.
    pub fn objective(&self) -> LossAndGrad<E> {
        let d = self.difference();
        let grad = self.h.mul(&d);
        (grad.mul(&d.t()).trace() * E::of(0.5), grad)
    }
    /// `E |W x − y*|² = |D|²`; gradient `2 D`.
    pub fn regression(&self) -> LossAndGrad<E> {
        let d = self.difference();
        (dot(&d.data, &d.data), d.scaled(2.0))
    }
    /// `E f(W x + σ e; x)`: the objective's mean plus `½ σ² tr H`, with the same gradient.
    pub fn smoothed(&self, sigma: f64) -> LossAndGrad<E> {
        let (f, grad) = self.objective();
        (f + self.bump(sigma), grad)
    }
    /// `½ σ² tr H`
    fn bump(&self, sigma: f64) -> E {
        E::of(0.5 * sigma * sigma) * self.h.trace()
    }

    /// Both losses averaged over the rows of `xs`: objective, then regression.
    pub fn on_batch(&self, xs: &[Vec<E>]) -> [LossAndGrad<E>; 2] {
        let share = 1.0 / xs.len() as f64;
        let d = self.difference();
        let (rows, cols) = (d.rows, d.cols);
        let mut sums = [(); 2].map(|()| (E::of(0.0), Matrix::zeros(rows, cols)));
        for x in xs {
            let gap = d.apply(x);
            let row = Matrix::new(1, cols, x.clone());
            let slope = Matrix::column(&self.h.apply(&gap));
            let parts = [
                (E::of(0.5) * self.h.form(&gap, &gap), slope.mul(&row)),
                (dot(&gap, &gap), Matrix::column(&gap).scaled(2.0).mul(&row)),
            ];
            for (sum, (loss, grad)) in sums.iter_mut().zip(parts) {
                sum.0 += E::of(share) * loss;
                sum.1 = sum.1.plus(share, &grad);
            }
        }
        sums
    }

    /// The model's prediction, its objective and the gradient there.
    pub fn at(&self, x: &[E]) -> (Vec<E>, E, Vec<E>) {
        let gap = self.difference().apply(x);
        let grad = self.h.apply(&gap);
        (self.w.apply(x), E::of(0.5) * dot(&gap, &grad), grad)
    }

    /// `E f(y + σ e)` at a context's prediction.
    pub fn smoothed_at(&self, x: &[E], sigma: f64) -> E {
        self.at(x).1 + self.bump(sigma)
    }

    /// The variance per component of `(f(y + σ e) − b) e/σ`, one draw:
    /// `(c² + c σ² (t + 2 hᵢᵢ) + σ⁴/4 E[(eᵀHe)² eᵢ²])/σ² + |g|² + 2 gᵢ² − gᵢ²`, with `c = f − b`, `t = tr H` and
    /// `E[(eᵀHe)² eᵢ²] = t² + 2 tr H² + 4 t hᵢᵢ + 8 (H²)ᵢᵢ`.
    pub fn score_variance(&self, x: &[E], sigma: f64, baseline: Baseline) -> Vec<E> {
        let (_, f, g) = self.at(x);
        let c = f - match baseline {
            Baseline::None => E::of(0.0),
            Baseline::Value => f,
            Baseline::Smoothed => self.smoothed_at(x, sigma),
        };
        let (t, h2, gg) = (self.h.trace(), self.h.mul(&self.h), dot(&g, &g));
        let s2 = E::of(sigma * sigma);
        let k = E::of;
        let component = |i: usize| {
            let hi = self.h.at(i, i);
            let fourth = t * t + k(2.0) * h2.trace() + k(4.0) * t * hi + k(8.0) * h2.at(i, i);
            c * c / s2 + c * (t + k(2.0) * hi) + s2 * k(0.25) * fourth + gg + g[i] * g[i]
        };
        (0..g.len()).map(component).collect()
    }

    /// The variance per component of the antithetic `(f(y + σe) − f(y − σe)) e/(2σ)`: `|g|² + gᵢ²`, for every σ.
    pub fn antithetic_variance(&self, x: &[E]) -> Vec<E> {
        let g = self.at(x).2;
        let gg = dot(&g, &g);
        g.iter().map(|g| gg + *g * *g).collect()
    }

    /// The baseline of least variance per component: `E[f(y + σe) eᵢ²] = f + ½ σ² (tr H + 2 hᵢᵢ)`.
    pub fn best_baseline(&self, x: &[E], sigma: f64) -> Vec<E> {
        let (_, f, g) = self.at(x);
        let t = self.h.trace();
        let half = E::of(0.5 * sigma * sigma);
        (0..g.len()).map(|i| f + half * (t + E::of(2.0) * self.h.at(i, i))).collect()
    }

    /// The mean objective along `steps` steps of gradient descent on the mean objective or, otherwise, the mean
    /// regression loss; the start comes first.
    pub fn descend(&self, rate: f64, steps: usize, regression: bool) -> Vec<E> {
        let mut at = self.clone();
        let mut values = vec![at.objective().0];
        for _ in 0..steps {
            let grad = if regression { at.regression().1 } else { at.objective().1 };
            at.w = at.w.plus(-rate, &grad);
            values.push(at.objective().0);
        }
        values
    }
}
