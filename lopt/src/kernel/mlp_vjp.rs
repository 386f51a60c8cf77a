//! The derivative of [`MlpKernel`]'s update.
//!
//! With normalized features `x = s f`, `s = (ε + mean f²)^-½`, and `x̄` from [`super::net_vjp`]:
//! `f̄ = s x̄ − s³ f mean(f x̄)`; `m̄ = d (m̄′ + f̄_m)`, `ḡ = f̄_g + Σ (1 − d) (m̄′ + f̄_m)`,
//! `p̄ = p̄′ + f̄_p`. A last pass over each tensor undoes the
//! normalization.

use super::mlp_features::{Features, Position};
use super::mlp_step::MlpKernel;
use super::net_vjp::{NetVjp, BLOCK};
use crate::mlp_lopt::{DECAYS, TENSOR_FEATURES};
use outerloop_core::simd::{load, store, with_scratch};
use outerloop_core::{Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};

impl UpdateVjp<f32> for MlpKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let n = before.params.len();
        let lens = [
            NetVjp::scratch(&self.net).iter().sum(),
            DECAYS.len() * n,
            TENSOR_FEATURES * n,
            before.layout.entries().len() * TENSOR_FEATURES,
        ];
        let mut adjoint = UpdateAdjoint { state: after.clone(), grad: vec![0.0; n], loss: 0.0 };
        adjoint.state.step = before.step;
        let rule = self.twin.rule();
        with_scratch(lens.iter().sum(), |scratch| {
            let (net, scratch) = scratch.split_at_mut(lens[0]);
            let (momentum, scratch) = scratch.split_at_mut(lens[1]);
            let (feature_adjoint, scales) = scratch.split_at_mut(lens[2]);
            momentum.copy_from_slice(&before.slots[0].data);
            self.path.run(Vjp {
                features: Features { layout: &before.layout, params: &before.params, grad, momentum, scales },
                net: NetVjp::new(&self.net, [rule.exp_mult, rule.step_mult], before.step, net),
                feature_adjoint,
                params: &mut adjoint.state.params,
                momentum: &mut adjoint.state.slots[0].data,
                grad: &mut adjoint.grad,
                theta,
            });
        });
        adjoint
    }
}

struct Vjp<'a> {
    features: Features<'a>,
    net: NetVjp<'a>,
    /// Adjoint of the normalized features, `[8, n]`.
    feature_adjoint: &'a mut [f32],
    /// The adjoint after the update; becomes that before it.
    params: &'a mut [f32],
    /// The same for the momenta.
    momentum: &'a mut [f32],
    grad: &'a mut [f32],
    theta: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        self.features.accumulate(s);
        self.net.start(s);
        let mut at = Position::FIRST;
        while at.start < self.params.len() {
            let range = self.features.load::<S, BLOCK>(s, &mut at, self.net.features(s));
            self.net.block(s, range, self.params, self.feature_adjoint);
        }
        self.net.add_theta(s, self.theta);
        for t in 0..self.features.layout.entries().len() {
            self.finish_tensor(s, t);
        }
    }
}

impl Vjp<'_> {
    /// From the adjoint of one tensor's normalized features to that of its state and gradient.
    #[inline(always)]
    fn finish_tensor<S: Simd>(&mut self, s: S, tensor: usize) {
        let n = self.params.len();
        let entry = &self.features.layout.entries()[tensor];
        let range = entry.range();
        let scales = &self.features.scales[tensor * TENSOR_FEATURES..][..TENSOR_FEATURES];
        // f̄ = s x̄ − c f with c = s³ mean(f x̄)
        let mut c = [0.0; TENSOR_FEATURES];
        for (f, c) in c.iter_mut().enumerate() {
            let mut sum = s.splat_f32s(0.0);
            let (x, raw) =
                (&self.feature_adjoint[f * n..][range.clone()], &self.features.raw(f)[range.clone()]);
            for (x, raw) in x.chunks(S::F32_LANES).zip(raw.chunks(S::F32_LANES)) {
                sum = s.mul_add_e_f32s(load(s, x), load(s, raw), sum);
            }
            *c = -scales[f].powi(3) * s.reduce_sum_f32s(sum) / entry.numel().max(1) as f32;
        }
        for i in range.clone().step_by(S::F32_LANES) {
            let i = i..range.end;
            let mut adjoint = [s.splat_f32s(0.0); TENSOR_FEATURES];
            for (f, a) in adjoint.iter_mut().enumerate() {
                let x = load(s, &self.feature_adjoint[f * n..][i.clone()]);
                let raw = load(s, &self.features.raw(f)[i.clone()]);
                *a = s.mul_add_e_f32s(s.splat_f32s(c[f]), raw, s.mul_f32s(s.splat_f32s(scales[f]), x));
            }
            let mut g = adjoint[0];
            for (k, d) in DECAYS.iter().enumerate() {
                let m = &mut self.momentum[k * n..][i.clone()];
                let sum = s.add_f32s(load(s, m), adjoint[2 + k]);
                g = s.mul_add_e_f32s(s.splat_f32s((1.0 - d) as f32), sum, g);
                store(s, m, s.mul_f32s(s.splat_f32s(*d as f32), sum));
            }
            store(s, &mut self.grad[i.clone()], g);
            let p = &mut self.params[i];
            let sum = s.add_f32s(load(s, p), adjoint[1]);
            store(s, p, sum);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::{MlpLopt, Taped, UpdateRule};
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::{Float, Layout, Optimizer, Params, Slot};
    use std::sync::Arc;

    /// All adjoints of one update: parameters, gradient, theta, slots. `first`: a factor of the first gradient.
    fn adjoints<E: Float>(
        opt: &dyn Optimizer<E>,
        state: &OptState<E>,
        theta: usize,
        first: f64,
    ) -> Vec<Vec<f64>> {
        let normal = |key: u64, len: usize| -> Vec<E> {
            let mut x = vec![0.0f32; len];
            Key::new(key).fill_normal(&mut x);
            x.iter().map(|x| E::of(f64::from(*x))).collect()
        };
        let mut after = state.zeros_like();
        after.params = normal(32, state.params.len());
        for (k, slot) in after.slots.iter_mut().enumerate() {
            slot.data = normal(33 + k as u64, slot.data.len());
        }
        let mut grad = normal(31, state.params.len());
        grad.iter_mut().take(1).for_each(|g| *g *= E::of(first));
        let mut theta = vec![E::of(0.0); theta];
        let vjp = opt.update_vjp().expect("a learned optimizer has a derivative");
        let a = vjp.vjp(state, &grad, E::of(0.0), Key::new(0), &after, &mut theta);
        let mut all = vec![a.state.params, a.grad, theta];
        all.extend(a.state.slots.into_iter().map(|s| s.data));
        all.iter().map(|x| x.iter().map(|x| x.f64()).collect()).collect()
    }

    fn converted<A: Float, B: Float>(s: &OptState<A>) -> OptState<B> {
        let convert = |x: &[A]| x.iter().map(|x| B::of(x.f64())).collect();
        let slots = s.slots.iter().map(|s| Slot { name: s.name.clone(), data: convert(&s.data) }).collect();
        let params = convert(&s.params);
        OptState { layout: s.layout.clone(), params, slots, step: s.step, num_steps: s.num_steps }
    }

    /// Holds a kernel's derivative in f32 against the rule's on the tape in f64, after three updates, on
    /// shapes of many kinds.
    pub(in crate::kernel) fn check<R: UpdateRule + Clone>(
        rule: &R,
        tolerance: f64,
        kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
    ) {
        let shapes: [&[usize]; 8] = [&[10], &[], &[7, 33], &[33, 7], &[5, 1], &[2, 3, 4, 5], &[0], &[49]];
        let mut layouts = vec![awkward_layout()];
        layouts.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
        layouts.push(Arc::new(Layout::new((0..40).map(|i| (format!("{i:02}"), vec![i % 5])))));
        check_on(&layouts, 1.0, rule, tolerance, kernel);
    }

    /// The same on these layouts, with the first gradient multiplied by `first`.
    pub(in crate::kernel) fn check_on<R: UpdateRule + Clone>(
        layouts: &[Arc<Layout>],
        first: f64,
        rule: &R,
        tolerance: f64,
        kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
    ) {
        let theta: Vec<f32> = rule.init_theta(Key::new(6));
        let theta64: Vec<f64> = theta.iter().map(|t| f64::from(*t)).collect();
        let twin = Taped::<_, f64>::new(rule.clone(), &theta64);
        for layout in layouts {
            let mut params = Params::<f64>::zeros(layout.clone());
            Key::new(9).fill_normal(&mut params.data);
            let mut state = twin.init(&params, None, Key::new(0));
            for t in 0..3 {
                let mut grad = vec![0.0; layout.len()];
                Key::new(t).fill_normal(&mut grad);
                twin.update(&mut state, &grad, 0.0, Key::new(0));
            }
            // Both start from the same, rounded state.
            let narrow: OptState<f32> = converted(&state);
            let want = adjoints(&twin, &converted(&narrow), theta.len(), first);
            for path in Path::available() {
                let got = adjoints(&*kernel(path, &theta), &narrow, theta.len(), first);
                for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                    let size = want.iter().fold(0.1f64, |a, x| a.max(x.abs()));
                    for (i, (got, want)) in got.iter().zip(want).enumerate() {
                        let error = (got - want).abs();
                        assert!(
                            error <= tolerance * (want.abs() + 0.1 * size),
                            "{} {path:?} {layout:?} {k} {i}: {got} {want}",
                            rule.name()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for (hidden_size, hidden_layers) in [(32, 2), (4, 2), (7, 3), (5, 1), (1, 1), (3, 0)] {
            let rule = MlpLopt { exp_mult: 0.1, step_mult: 0.05, hidden_size, hidden_layers };
            check(&rule, 1e-4, |path, theta| Box::new(MlpKernel::new(rule.clone(), theta, path)));
        }
    }
}
