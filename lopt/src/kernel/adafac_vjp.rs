//! The derivative of [`AdafacKernel`]'s update: accumulators and features on the array tape, their
//! normalization, the network and the output rule, where most of the work is, in blocks
//! ([`super::net_vjp`]).

use super::adafac_step::AdafacKernel;
use super::net_vjp::{NetVjp, BLOCK};
use crate::features::normalize;
use crate::taped::step_vars;
use crate::{Tape, Var};
use outerloop_core::simd::{load, store, with_scratch};
use outerloop_core::{Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

impl UpdateVjp<f32> for AdafacKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let rule = self.twin.rule();
        let tape = Tape::default();
        let (leaf, flat) = self.twin.leaf(&tape);
        let now = step_vars(before, grad, loss, |x| tape.leaf(x));
        let (tensors, slots) = rule.net().features(&leaf, &now);
        let columns: Vec<(Range<usize>, Vec<Var<f32>>)> =
            tensors.iter().map(|t| (t.range.clone(), t.columns())).collect();
        // The network's part of theta's adjoint, and the features'.
        let features = self.net.layers[0].inputs;
        let mut adjoint = vec![0.0; features * grad.len()];
        let scratch: usize = NetVjp::scratch(&self.net).iter().sum();
        with_scratch(scratch + features, |scratch| {
            let (scales, scratch) = scratch.split_at_mut(features);
            let mults = [rule.exp_mult, rule.step_mult];
            self.path.run(Networks {
                net: NetVjp::new(&self.net, mults, before.step, scratch),
                scales,
                columns: &columns,
                params: &after.params,
                adjoint: &mut adjoint,
                theta,
            });
        });

        let mut seeds: Vec<(&Var<f32>, &[f32])> = vec![(&now.params, &after.params)];
        seeds.extend(slots.iter().zip(&after.slots).map(|(v, s)| (v, &s.data[..])));
        let mut rest = &adjoint[..];
        for column in columns.iter().flat_map(|(_, columns)| columns) {
            let (part, after) = rest.split_at(column.len());
            seeds.push((column, part));
            rest = after;
        }
        let mut inputs = vec![&flat, &now.params, &now.grad];
        inputs.extend(&now.slots);
        let mut adjoints = tape.pull_back(&seeds, &inputs).into_iter();
        let mut next = || adjoints.next().expect("one adjoint per input");
        theta.iter_mut().zip(next()).for_each(|(t, a)| *t += a);
        let mut state = after.clone();
        state.step = before.step;
        state.params = next();
        let grad = next();
        for slot in &mut state.slots {
            slot.data = next();
        }
        UpdateAdjoint { state, grad, loss: 0.0 }
    }
}

/// Normalization, network and output rule of all tensors.
struct Networks<'a> {
    net: NetVjp<'a>,
    /// The features' normalizers.
    scales: &'a mut [f32],
    /// Every tensor's place and features before normalization.
    columns: &'a [(Range<usize>, Vec<Var<f32>>)],
    /// The adjoint of the new parameters.
    params: &'a [f32],
    /// The features' adjoints, one tensor `[features, length]` after the other.
    adjoint: &'a mut [f32],
    theta: &'a mut [f32],
}

impl WithSimd for Networks<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Networks { mut net, scales, columns, params, mut adjoint, theta } = self;
        net.start(s);
        for (range, columns) in columns {
            let n = range.len();
            let (part, rest) = adjoint.split_at_mut(columns.len() * n);
            adjoint = rest;
            for (scale, column) in scales.iter_mut().zip(columns) {
                let mean = dot(s, column.data(), column.data()) / n as f32;
                *scale = (mean + normalize::EPSILON as f32).sqrt().recip();
            }
            for start in (0..n).step_by(BLOCK * S::F32_LANES) {
                let block = start..n.min(start + BLOCK * S::F32_LANES);
                let x = net.features(s).chunks_exact_mut(BLOCK);
                for ((x, column), scale) in x.zip(columns).zip(&*scales) {
                    let column = &column.data()[block.clone()];
                    for (v, x) in x.iter_mut().enumerate() {
                        let raw = load(s, &column[column.len().min(v * S::F32_LANES)..]);
                        *x = s.mul_f32s(s.splat_f32s(*scale), raw);
                    }
                }
                net.block(s, block, &params[range.clone()], part);
            }
            // f̄ = s x̄ − s³ f mean(f x̄)
            for ((x, column), scale) in part.chunks_exact_mut(n).zip(columns).zip(&*scales) {
                let c = -scale.powi(3) * dot(s, x, column.data()) / n as f32;
                let (scale, c) = (s.splat_f32s(*scale), s.splat_f32s(c));
                for (x, raw) in x.chunks_mut(S::F32_LANES).zip(column.data().chunks(S::F32_LANES)) {
                    let sum = s.mul_add_e_f32s(c, load(s, raw), s.mul_f32s(scale, load(s, x)));
                    store(s, x, sum);
                }
            }
        }
        net.add_theta(s, theta);
    }
}

/// `Σ x y`, in parts that bound the rounding error.
#[inline(always)]
fn dot<S: Simd>(s: S, x: &[f32], y: &[f32]) -> f32 {
    let part = 128 * S::F32_LANES;
    let mut total = 0.0;
    for (x, y) in x.chunks(part).zip(y.chunks(part)) {
        let mut sum = s.splat_f32s(0.0);
        for (x, y) in x.chunks(S::F32_LANES).zip(y.chunks(S::F32_LANES)) {
            sum = s.mul_add_e_f32s(load(s, x), load(s, y), sum);
        }
        total += s.reduce_sum_f32s(sum);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::super::mlp_vjp::tests::check;
    use super::*;
    use crate::kernel::Path;

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in super::super::adafac_step::tests::rules() {
            check(&rule, 1e-3, |path: Path, theta| Box::new(AdafacKernel::new(rule.clone(), theta, path)));
        }
    }
}
