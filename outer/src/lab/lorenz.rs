//! The Lorenz system as inner training: a chaotic oracle for estimators.

use outerloop_core::{
    BatchKey, Evaluator, FlatTask, Float, Key, Layout, LearnedOptimizer, OptState, Optimizer, Params,
};
use std::sync::Arc;

/// Three parameters, the state of a Lorenz system; the loss is their last one, z. Its gradient is known to no update.
///
/// The system starts at a random point near (1, 1, 20) and is moved by [`LorenzRule`]. The mean of z over a long run
/// rises by about 1 per unit of r around r = 28 although nearby runs part exponentially: unrolled gradients of long runs
/// are useless here, and the gradient of the smoothed mean is not.
///
/// Reference: Lorenz 1963, doi:10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2; the slope: Lea, Allen and Haine 2000,
/// doi:10.1034/j.1600-0870.2000.01137.x; as a meta-learning task: Metz et al. 2021, arXiv:2111.05803; Li et al. 2023,
/// arXiv:2304.12180, section 5.1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lorenz;

/// One step of Euler's method for `ẋ = a (y − x), ẏ = x (r − z) − y, ż = x y − 8z/3` per update, with `a = exp(θ₀)` and
/// `r = exp(θ₁)`; the gradient is not read.
///
/// Theta: `ln a` and `ln r`, at first of a = 10 and r = 28.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LorenzRule {
    /// Time per step. Default 0.005.
    pub dt: f64,
}

impl Default for LorenzRule {
    fn default() -> Self {
        LorenzRule { dt: 0.005 }
    }
}

/// Spread of the starting points.
const SPREAD: f64 = 1.0;

fn layout() -> Arc<Layout> {
    Arc::new(Layout::new([("state", vec![3])]))
}

impl<E: Float> FlatTask<E> for Lorenz {
    fn name(&self) -> String {
        "lorenz".into()
    }
    fn layout(&self) -> Arc<Layout> {
        layout()
    }
    fn init(&self, key: Key) -> Params<E> {
        let mut params: Params<E> = Params::zeros(layout());
        key.fill_normal(&mut params.data);
        for (p, center) in params.data.iter_mut().zip([1.0, 1.0, 20.0]) {
            *p = E::of(center + SPREAD * p.f64());
        }
        params
    }
    fn init_state(&self) -> Vec<E> {
        Vec::new()
    }
    fn evaluator(&self) -> Box<dyn Evaluator<E>> {
        Box::new(*self)
    }
    fn normalizer(&self, loss: f64) -> f64 {
        loss
    }
}

impl<E: Float> Evaluator<E> for Lorenz {
    fn loss(&mut self, params: &[E], _: &[E], _: BatchKey) -> E {
        params[2]
    }
    fn loss_and_grad(&mut self, params: &[E], _: &mut [E], _: BatchKey, grad: &mut [E]) -> E {
        grad.copy_from_slice(&[0.0, 0.0, 1.0].map(E::of));
        params[2]
    }
    fn loss_grad_hvp(
        &mut self,
        params: &[E],
        _: &[E],
        at: BatchKey,
        _: &[E],
        grad: &mut [E],
        hvp: &mut [E],
    ) -> E {
        hvp.fill(E::of(0.0));
        self.loss_and_grad(params, &mut [], at, grad)
    }
}

#[derive(Debug)]
struct Stepper<E> {
    a: E,
    r: E,
    dt: E,
}

impl<E: Float> LearnedOptimizer<E> for LorenzRule {
    fn name(&self) -> String {
        "LorenzRule".into()
    }
    fn theta_layout(&self) -> Arc<Layout> {
        Arc::new(Layout::new([("log_a", vec![]), ("log_r", vec![])]))
    }
    fn init(&self, _: Key) -> Vec<E> {
        [10.0f64, 28.0].map(|x| E::of(x.ln())).to_vec()
    }
    fn opt_fn(&self, theta: &[E]) -> Box<dyn Optimizer<E>> {
        let [a, r] = [0, 1].map(|i: usize| E::of(theta[i].f64().exp()));
        Box::new(Stepper { a, r, dt: E::of(self.dt) })
    }
}

impl<E: Float> Optimizer<E> for Stepper<E> {
    fn name(&self) -> String {
        "LorenzRule".into()
    }
    fn init(&self, params: &Params<E>, num_steps: Option<u64>, _: Key) -> OptState<E> {
        OptState::new(params, num_steps)
    }
    fn update(&self, state: &mut OptState<E>, _: &[E], _: E, _: Key) {
        if let [x, y, z] = &mut state.params[..] {
            let slopes = [self.a * (*y - *x), *x * (self.r - *z) - *y, *x * *y - E::of(8.0 / 3.0) * *z];
            for (p, slope) in [x, y, z].into_iter().zip(slopes) {
                *p += self.dt * slope;
            }
        }
        state.step += 1;
    }
}
