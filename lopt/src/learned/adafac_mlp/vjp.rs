//! The derivative of [`AdafacKernel`]'s update, tensor by tensor: the network by [`crate::kernel::net_vjp`], what it
//! reads by [`super::tensor_vjp`], the means of rows and columns by
//! [`super::factored_vjp`].

use super::factored::{table_lens, FactoredTensor, Table, Walk};
use super::factored_vjp::{AllFeatures, MeansVjp};
use super::features::{update_moments, VectorTensor, RMS_EPSILON};
use super::step::{average, AdafacKernel};
use super::tensor_vjp::{cut, TensorAdjoint, TensorVjp};
use crate::features::adafac::column_count;
use crate::features::factored::Factored;
use crate::features::normalize;
use crate::kernel::net_vjp::NetVjp;
use outerloop_core::simd::with_scratch;
use outerloop_core::{Entry, Key, OptState, UpdateAdjoint, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

impl UpdateVjp<f32> for AdafacKernel {
    fn vjp(
        &self,
        before: &OptState<f32>,
        grad: &[f32],
        _loss: f32,
        _key: Key,
        after: &OptState<f32>,
        theta: &mut [f32],
    ) -> UpdateAdjoint<f32> {
        let counts = self.counts();
        let decays = counts[2];
        let tables = table_lens(&before.layout, decays, decays);
        let lens = [
            NetVjp::scratch(&self.net).iter().sum(),
            TensorVjp::scratch(counts, column_count(counts), &before.layout),
            TensorVjp::expanded_len(counts),
            tables[0],
            tables[1],
            // More than three arrays of a table.
            tables[0].max(tables[1]),
            before.slots.iter().map(|slot| slot.data.len()).sum(),
        ];
        let mut adjoint = UpdateAdjoint { state: after.clone(), grad: vec![0.0; grad.len()], loss: 0.0 };
        adjoint.state.step = before.step;
        let rule = self.twin.rule();
        with_scratch(lens.iter().sum(), |mut scratch| {
            let mut next = |i: usize| cut(&mut scratch, lens[i]);
            let net = NetVjp::new(&self.net, [rule.exp_mult, rule.step_mult], before.step, next(0));
            let UpdateAdjoint { state, grad: grad_adjoint, .. } = &mut adjoint;
            let adjoints = (state, &mut grad_adjoint[..]);
            let tensors = TensorVjp::new(&self.rates, column_count(counts), before, adjoints, next(1));
            let [expanded, row_table, col_table, sums, mut accumulators] = [2, 3, 4, 5, 6].map(next);
            let slots = [0, 1, 2, 3].map(|i| {
                let old = &before.slots[i].data;
                let slot = cut(&mut accumulators, old.len());
                slot.copy_from_slice(old);
                slot
            });
            let tables = [row_table, col_table];
            self.path.run(Vjp { kernel: self, net, tensors, slots, grad, expanded, tables, sums, theta });
        });
        adjoint
    }
}

struct Vjp<'a> {
    kernel: &'a AdafacKernel,
    net: NetVjp<'a>,
    tensors: TensorVjp<'a>,
    /// The accumulators; become those after the update.
    slots: [&'a mut [f32]; 4],
    grad: &'a [f32],
    expanded: &'a mut [f32],
    /// Scratch of [`Table`]s.
    tables: [&'a mut [f32]; 2],
    /// Scratch of [`MeansVjp`].
    sums: &'a mut [f32],
    theta: &'a mut [f32],
}

impl WithSimd for Vjp<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let kernel = self.kernel;
        let [momentum, rms, ..] = &mut self.slots;
        average::<S, false>(s, momentum, self.grad, &kernel.rates[0]);
        average::<S, true>(s, rms, self.grad, &kernel.rates[1]);
        self.net.start(s);
        self.tensors.rate_sums.clear(s);
        let layout = &self.tensors.before.layout;
        let mut starts = [0, 0];
        for entry in layout.entries().iter().filter(|e| e.numel() > 0) {
            self.tensor(s, entry, &mut starts);
        }
        self.net.add_theta(s, self.theta);
        let rates = &mut self.tensors.rate_sums;
        rates.finish(s);
        let slopes = kernel.rate_slopes.iter().flatten();
        for ((place, slope), sum) in kernel.rate_places().zip(slopes).zip(&*rates.totals) {
            self.theta[place] += slope * sum;
        }
    }
}

impl Vjp<'_> {
    /// One tensor; `starts`: where its row and column accumulators lie.
    #[inline(always)]
    fn tensor<S: Simd>(&mut self, s: S, entry: &Entry, starts: &mut [usize; 2]) {
        let (counts, rates) = (self.kernel.counts(), &self.kernel.rates[2]);
        let (range, grad) = (entry.range(), self.grad);
        let factored = Factored::new(&entry.shape);
        let lens = factored.lens();
        let at = [0, 1].map(|i| starts[i]..starts[i] + counts[2] * lens[i]);
        *starts = [at[0].end, at[1].end];
        let [momentum, rms, row, col] = &mut self.slots;
        let (row, col) = (&mut row[at[0].clone()], &mut col[at[1].clone()]);
        let (momentum, rms) = (&**momentum, &**rms);
        let Some(axes) = factored.axes() else {
            update_moments(s, &grad[range.clone()], rates, row);
            let mut tensor = VectorTensor { range: range.clone(), counts, grad, momentum, rms, moments: row };
            pull_back(s, &mut self.tensors, &mut self.net, &mut tensor, &range, at[0].clone());
            return;
        };
        let [row_table, col_table] = &mut self.tables;
        let tables = [(lens[0], row_table), (lens[1], col_table)];
        let tables = tables.map(|(len, scratch)| Table::new(len, counts[2], counts[2], scratch));
        let (walk, expanded, rms_epsilon) = (Walk::new(axes), &mut *self.expanded, RMS_EPSILON);
        let tensor = FactoredTensor {
            range: range.clone(),
            counts,
            grad,
            momentum,
            rms,
            rms_epsilon,
            tables,
            walk,
            expanded,
        };
        let mut tensor = AllFeatures::new(s, tensor, axes, rates, [&mut *row, &mut *col]);
        pull_back(s, &mut self.tensors, &mut self.net, &mut tensor, &range, 0..0);
        for (i, (slot, at)) in [row, col].into_iter().zip(at).enumerate() {
            let means = MeansVjp::new(&mut self.tensors, i, at, slot, self.sums);
            tensor.pull_back_means::<S, true>(s, i, axes, means);
        }
        tensor.add_to_gradient(s, &mut self.tensors.grad[range]);
    }
}

/// The adjoints of one tensor's elements; second moments of a vector lie at `moments`.
#[inline(always)]
fn pull_back<S: Simd, T: TensorAdjoint>(
    s: S,
    tensors: &mut TensorVjp<'_>,
    net: &mut NetVjp<'_>,
    tensor: &mut T,
    range: &Range<usize>,
    moments: Range<usize>,
) {
    let all = 0..range.len();
    tensors.step[all.clone()].copy_from_slice(&tensors.state.params[range.clone()]);
    tensors.normalizers(s, tensor, range, all.clone(), normalize::EPSILON);
    tensors.network(s, net, tensor, range, all.clone());
    tensors.elements(s, tensor, range, all, moments);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Path;
    use crate::learned::adafac_mlp::DECAY_NAMES;
    use crate::learned::derivative::check;
    use crate::learned::AdafacMlp;
    use crate::rule::{Taped, UpdateRule};
    use outerloop_core::{contract::awkward_layout, Optimizer, Params};

    #[test]
    fn agrees_with_the_twin_in_f64() {
        for rule in crate::learned::adafac_mlp::step::tests::rules() {
            check(&rule, 1e-3, |path: Path, theta| Box::new(AdafacKernel::new(rule.clone(), theta, path)));
        }
    }

    /// The adjoints of gradient and theta of a first update with this gradient, for the adjoint 1 of all
    /// parameters and slots.
    fn first_adjoints(opt: &dyn Optimizer<f32>, theta: usize, grad: f32) -> [Vec<f32>; 2] {
        let layout = awkward_layout();
        let state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
        let mut after = state.zeros_like();
        after.params.fill(1.0);
        after.slots.iter_mut().for_each(|s| s.data.fill(1.0));
        let mut theta = vec![0.0; theta];
        let vjp = opt.update_vjp().expect("it has a derivative");
        let grad = vec![grad; layout.len()];
        let adjoint = vjp.vjp(&state, &grad, 0.0, Key::new(0), &after, &mut theta);
        [adjoint.grad, theta]
    }

    #[test]
    fn derivatives_at_zero_are_finite() {
        let rule = AdafacMlp::default();
        let theta: Vec<f32> = rule.init_theta(Key::new(6));
        for path in Path::available() {
            let opt = AdafacKernel::new(rule.clone(), &theta, path);
            let adjoints = first_adjoints(&opt, theta.len(), 0.0);
            assert!(adjoints.iter().flatten().all(|a| a.is_finite()), "{path:?}");
        }
    }

    #[test]
    fn a_clipped_rate_has_no_slope() {
        let rule = AdafacMlp::default();
        let mut theta: Vec<f32> = rule.init_theta(Key::new(6));
        let layout = rule.theta_layout();
        // Rates of 0.1, 0.01 and 0.001 times e⁵.
        let places = DECAY_NAMES.map(|name| layout.get(name).unwrap().range());
        places.iter().for_each(|range| theta[range.clone()].fill(0.5));
        let [_, want] = first_adjoints(&Taped::<_, f32>::new(rule.clone(), &theta), theta.len(), 0.3);
        for path in Path::available() {
            let opt = AdafacKernel::new(rule.clone(), &theta, path);
            let [_, got] = first_adjoints(&opt, theta.len(), 0.3);
            for i in places.iter().cloned().flatten() {
                assert!((got[i] - want[i]).abs() <= 1e-3 * want[i].abs(), "{path:?} {i}: {got:?}");
            }
            let is_clipped = |i: usize| got[places[2].start + i] == 0.0;
            assert_eq!([0, 1, 2].map(is_clipped), [true, true, false], "{path:?}");
        }
    }
}
