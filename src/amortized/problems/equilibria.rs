//! Fixed points of a family of maps: a learned start and learned mixing, against Anderson's.
//!
//! `T(y; x) = tanh(W y + U x)` with a fixed random `W` of spectral norm 0.99: a contraction, whose plain iteration is slow
//! where the units are not saturated. The objective is `ln |T(y; x) − y| + const`, by which a residual ten times as small
//! is worth the same for every context and at every step; the optimum is the fixed point.
//!
//! References: Amos 2022, arXiv:2202.00665 (section on fixed points); Venkataraman, Amos 2021, *Neural Fixed-Point
//! Acceleration*, arXiv:2107.10254; Bai, Koltun, Kolter 2022 (HyperDEQ), arXiv:2111.01888.

use crate::matrix::{dot, Matrix};
use crate::model::{Full, Model};
use crate::problem::{Optimum, Own, Problem, Query, Rows};
use crate::solve::Anderson;
use outerloop_core::ops;
use outerloop_core::tensor::{
    Backend, DynParams, DynTree, Float, HasShape, Mode, PutTape, SplitTape, Tensor,
};
use outerloop_core::{Key, Layout};

/// What is added to `|T(y) − y|²`: below its root, 1e-6, residuals count alike.
const FLOOR: f64 = 1e-12;

/// A family of maps.
#[derive(Clone, Debug)]
pub struct Equilibria {
    /// `W`, `[D, D]`.
    pub w: Matrix,
    /// `U`, `[D, C]`.
    pub u: Matrix,
}

impl Equilibria {
    /// Normal `W`, scaled to spectral norm `norm`, and normal `U` of row norm about 0.5.
    pub fn random(dim: usize, context: usize, norm: f64, key: Key) -> Self {
        let normal = |name: &str, rows: usize, cols: usize| {
            let mut m = vec![0.0; rows * cols];
            key.named(name).fill_normal(&mut m);
            Matrix::new(rows, cols, m)
        };
        let w: Matrix = normal("w", dim, dim);
        let size = w.mul(&w.t()).spectral_radius().sqrt();
        let u: Matrix = normal("u", dim, context);
        Equilibria { w: w.scaled(norm / size), u: u.scaled(0.5 / (context as f64).sqrt()) }
    }

    /// `T(y; x)`.
    pub fn map(&self, x: &[f64], y: &[f64]) -> Vec<f64> {
        self.w.apply(y).iter().zip(self.u.apply(x)).map(|(a, b)| (a + b).tanh()).collect()
    }

    /// `|T(y; x) − y|`.
    pub fn residual(&self, x: &[f64], y: &[f64]) -> f64 {
        let r: Vec<f64> = self.map(x, y).iter().zip(y).map(|(a, b)| a - b).collect();
        dot(&r, &r).sqrt()
    }

    /// `U x` of every row, which the iterations share.
    fn drive<E: Float, B: Backend<E>>(&self, x: &Rows<E, B>) -> (Rows<E, B>, Rows<E, B>) {
        let matrix = |m: &Matrix| -> Rows<E, B> {
            let data = m.data.iter().map(|x| E::of(*x)).collect();
            x.device().tensor_from_vec(data, (m.rows, m.cols))
        };
        (matrix(&self.w.t()), ops::matmul(x.clone(), &matrix(&self.u.t())))
    }
}

/// `T(y) − y` of every row.
fn residuals<E: Float, B: Backend<E>, M: Mode<E, B>>(
    (w, drive): &(Rows<E, B>, Rows<E, B>),
    y: Rows<E, B, M>,
) -> Rows<E, B, M> {
    ops::sub(ops::tanh(ops::add(ops::matmul(y.clone(), w), drive)), &y)
}

impl Problem for Equilibria {
    fn name(&self) -> String {
        format!("equilibria{}", self.w.rows)
    }
    fn dim(&self) -> usize {
        self.w.rows
    }
    fn context_dim(&self) -> usize {
        self.u.cols
    }
    fn context(&self, key: Key, out: &mut [f64]) {
        key.fill_normal(out);
    }
    fn objective<E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        y: Rows<E, B, M>,
        at: &Query<'_, E, B>,
        _: &Own<'_, E, B>,
    ) -> Tensor<(usize,), E, B, M> {
        let r = residuals(&self.drive(at.x), y);
        ops::scale(ops::ln(ops::shift(ops::sum_axis1(ops::square(r)), FLOOR)), 0.5)
    }
    fn optimum(&self, context: &[f64]) -> Option<Optimum> {
        let start = vec![0.0; self.dim()];
        let y = Anderson::default().iterates(|y| self.map(context, y), &start, 500).pop()?;
        let r = self.residual(context, &y);
        Some(Optimum { value: 0.5 * (r * r + FLOOR).ln(), y })
    }
}

/// Iterations whose start and mixing are learned.
///
/// With `r = T(y) − y`, `Δ` the difference to the iterate before, and Anderson's coefficient of memory 1,
/// `c = ⟨r, Δr⟩/|Δr|²`, step t is `y ← y + βₜ r − aₜ c (Δy + βₜ Δr) + mₜ Δy`. The numbers `β = 1 + ..`, `a = 1 + ..` and
/// `m` of every step are learned; at first the model is Anderson's iteration of memory 1. The start is a network's
/// prediction, or zero. One evaluation of the map per step.
#[derive(Clone, Debug)]
pub struct Mixing {
    /// The maps.
    pub maps: Equilibria,
    /// Predicts the start; none: zero.
    pub start: Option<Full>,
    /// Steps K.
    pub steps: usize,
}

impl Mixing {
    fn start_len(&self) -> (usize, usize) {
        self.start.as_ref().map_or((0, 0), |f| {
            let net = f.net(&self.maps);
            (net.tensors(), net.len())
        })
    }
}

impl Model for Mixing {
    fn name(&self) -> String {
        let start = self.start.as_ref().map_or_else(|| "zero".into(), Model::name);
        format!("{start}+{}xmixing", self.steps)
    }
    fn layout<P: Problem>(&self, problem: &P) -> Layout {
        let mut layout = self.start.as_ref().map_or_else(Layout::default, |f| f.layout(problem));
        layout.push("mixing", vec![3 * self.steps]);
        layout
    }
    fn init<P: Problem>(&self, problem: &P, key: Key, out: &mut [f64]) {
        let (start, rest) = out.split_at_mut(self.start_len().1);
        if let Some(full) = &self.start {
            full.init(problem, key, start);
        }
        rest.fill(0.0);
    }
    fn predict<P: Problem, E: Float, B: Backend<E>, M: Mode<E, B>>(
        &self,
        problem: &P,
        at: &Query<'_, E, B>,
        params: &DynParams<E, B>,
        m: M,
    ) -> Vec<Rows<E, B, M>> {
        let start: Rows<E, B, M> = match &self.start {
            Some(full) => full.predict(problem, at, params, m).pop().expect("one prediction"),
            None => at.x.device().filled((at.x.shape().0, problem.dim()), |_| ()).put_tape(m),
        };
        let first = self.start_len().0;
        let row = ops::reshape(params.traced(first, (3 * self.steps,), m), (1, 3 * self.steps));
        let number = |i: usize| -> Tensor<(), E, B> {
            ops::reshape(ops::columns(row.clone(), i, 1usize), ()).split_tape().0
        };
        let map = self.maps.drive(at.x);
        let mut iterates = vec![start];
        let mut last = None::<(Rows<E, B, M>, Rows<E, B, M>)>;
        for t in 0..self.steps {
            let y = iterates[t].clone();
            let r = residuals(&map, y.clone());
            let full_step = |r: Rows<E, B, M>| ops::add(ops::mul(r.clone(), &number(3 * t)), &r);
            let mut next = ops::add(y.clone(), &full_step(r.clone()));
            if let Some((y_before, r_before)) = last {
                let (dy, dr) = (ops::sub(y.clone(), &y_before), ops::sub(r.clone(), &r_before));
                let top = ops::sum_axis1(ops::mul(r.clone(), &dr));
                let bottom = ops::shift(ops::sum_axis1(ops::square(dr.clone())), 1e-20);
                let c = ops::div(top, &bottom);
                let c = ops::add(ops::mul(c.clone(), &number(3 * t + 1)), &c);
                let back = ops::add(full_step(dr), &dy);
                let back = ops::transpose(ops::mul(ops::transpose(back), &c));
                next = ops::add(ops::sub(next, &back), &ops::mul(dy, &number(3 * t + 2)));
            }
            last = Some((y, r));
            iterates.push(next);
        }
        iterates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{AmortizedTask, Training};
    use outerloop_core::contract::check_task;
    use outerloop_core::Typed;

    #[test]
    fn untrained_mixing_is_andersons_of_memory_one() {
        let maps = Equilibria::random(5, 3, 0.9, Key::new(1));
        let training = Training { batch_size: 2, ..Training::default() };
        let zero = Mixing { maps: maps.clone(), start: None, steps: 6 };
        let task = AmortizedTask::new(maps.clone(), zero, training.clone()).expect("valid settings");
        let mut x = [0.0; 3];
        maps.context(Key::new(2), &mut x);
        let got = task.predict::<f64>(&[0.0; 18], &x, Key::new(0));
        let one = Anderson { memory: 1, ridge: 1e-300, ..Anderson::default() };
        let want = one.iterates(|y| maps.map(&x, y), &[0.0; 5], 6);
        for (t, (a, b)) in got.iter().zip(&want).enumerate() {
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9), "{t}: {a:?}, not {b:?}");
        }
        let best = maps.optimum(&x).expect("a contraction");
        assert!(maps.residual(&x, &best.y) < 1e-13);
        let learned = Mixing { maps: maps.clone(), start: Some(Full::new([4])), steps: 3 };
        let task = AmortizedTask::new(maps, learned, training).expect("valid settings");
        check_task(&Typed::new(task.clone()), &Typed::new(task)).expect("the contract");
    }
}
