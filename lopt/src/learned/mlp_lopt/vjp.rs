//! The derivative of [`MlpKernel`]'s update.
//!
//! With normalized features `x = s f`, `s = (ε + mean f²)^-½`, and `x̄` from [`crate::kernel::net_vjp`]:
//! `f̄ = s x̄ − s³ f mean(f x̄)`; `m̄ = d (m̄′ + f̄_m)`, `ḡ = f̄_g + Σ (1 − d) (m̄′ + f̄_m)`,
//! `p̄ = p̄′ + f̄_p`. A last pass over each tensor undoes the
//! normalization.

use super::features::{Features, Position};
use super::step::MlpKernel;
use super::{DECAYS, TENSOR_FEATURES};
use crate::kernel::dot::dot;
use crate::kernel::net_vjp::{NetVjp, BLOCK};
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
            let (x, raw) =
                (&self.feature_adjoint[f * n..][range.clone()], &self.features.raw(f)[range.clone()]);
            *c = -scales[f].powi(3) * dot(s, x, raw) / entry.numel().max(1) as f32;
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
mod tests {
    use super::*;
    use crate::learned::derivative::check;
    use crate::learned::MlpLopt;

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for (hidden_size, hidden_layers) in [(32, 2), (4, 2), (7, 3), (5, 1), (1, 1), (3, 0)] {
            let rule = MlpLopt { exp_mult: 0.1, step_mult: 0.05, hidden_size, hidden_layers };
            check(&rule, 1e-4, |path, theta| Box::new(MlpKernel::new(rule.clone(), theta, path)));
        }
    }
}
