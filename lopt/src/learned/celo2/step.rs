//! [`Celo2Kernel`]: one [`Celo2`] update, tensor by tensor.
//!
//! As in [`crate::learned::adafac_mlp::AdafacKernel`] blocks of a few vectors are turned into features twice, once for the
//! normalizers of a matrix, once for the network. What the network gives a matrix is orthogonalized and
//! normalized in scratch before it reaches the parameters.

use super::features::{clip, network_input, Celo2Features};
use super::{Celo2, Orthogonalize, EPSILON, SMALL};
use crate::features::factored::Factored;
use crate::kernel::dense::After;
use crate::kernel::net::{Net, COLUMNS, MAX_LANES};
use crate::kernel::{newton_schulz, Path};
use crate::learned::adafac_mlp::factored::{mean_square, table_lens, FactoredTensor, Table, Walk};
use crate::learned::adafac_mlp::factored_vjp::AllFeatures;
use crate::learned::adafac_mlp::features::{normalizers, row, update_moments, Tensor};
use crate::learned::adafac_mlp::step::average;
use crate::rule::{Taped, UpdateRule};
use outerloop_core::simd::{exp, load, store, with_scratch};
use outerloop_core::{Entry, Key, OptState, Optimizer, Params, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Vectors per block.
const BLOCK: usize = COLUMNS;

/// Gradients are clipped to ± this.
pub(super) const MAX_GRAD: f32 = 1e3;

/// [`Celo2`] in f32 at one theta, with packed weights.
pub struct Celo2Kernel {
    pub(super) twin: Taped<Celo2, f32>,
    pub(super) path: Path,
    /// Without the third output, which nothing reads.
    pub(super) net: Net,
    /// Where the network's weights and biases lie in theta, in the order of `net.ranges`.
    pub(super) places: Vec<usize>,
    /// Rates of momenta, RMS averages and factored second moments.
    pub(super) rates: [Vec<f32>; 3],
}

impl Celo2Kernel {
    /// The optimizer of `theta` on a chosen path.
    ///
    /// # Panics
    /// If `theta` has not the length of the rule's layout.
    #[track_caller]
    pub fn new(rule: Celo2, theta: &[f32], path: Path) -> Self {
        let layout = rule.theta_layout();
        let range = |name: &str| layout.get(name).expect("theta holds the network").range();
        let mut rates = rule.decays().map(|d| d.iter().map(|d| (1.0 - d) as f32).collect::<Vec<_>>());
        // Only the momenta's may leave [0, 1].
        rates[1..].iter_mut().flatten().for_each(|rate| *rate = rate.clamp(0.0, 1.0));
        let counts = [0, 1, 2].map(|i: usize| rates[i].len());
        let first: Vec<usize> = rule.first_layer().flat_map(|(name, _)| range(&name)).collect();
        let sizes = rule.sizes();
        let (mut places, mut ranges) = (Vec::new(), Vec::new());
        for (i, size) in sizes.windows(2).enumerate() {
            let [inputs, outputs] = [size[0], size[1]];
            let used = if i + 2 == sizes.len() { 2 } else { outputs };
            let start = places.len();
            for input in 0..inputs {
                let row = match i {
                    0 => first[network_input(counts, input) * outputs..].to_vec(),
                    _ => range(&format!("ff_mod/~/w{i}")).skip(input * outputs).collect(),
                };
                places.extend_from_slice(&row[..used]);
            }
            let bias = places.len();
            places.extend(range(&format!("ff_mod/~/b{i}")).take(used));
            ranges.push([start..bias, bias..places.len()]);
        }
        let packed: Vec<f32> = places.iter().map(|p| theta[*p]).collect();
        let net = Net::without_time(ranges, &packed);
        Celo2Kernel { net, places, rates, path, twin: Taped::new(rule, theta) }
    }

    pub(super) fn counts(&self) -> [usize; 3] {
        [0, 1, 2].map(|i| self.rates[i].len())
    }

    /// Numbers of scratch for a block of [`Self::directions`].
    pub(super) fn block_len(&self) -> usize {
        let rows = self.net.layers[0].inputs + self.counts()[2] + 2 * self.net.widest();
        MAX_LANES * BLOCK * rows
    }

    /// The network's step for the elements of a tensor from `start` to the end of `params`, given the
    /// features' normalizers. `block`: scratch.
    #[inline(always)]
    pub(super) fn directions<S: Simd>(
        &self,
        s: S,
        tensor: &mut Celo2Features<'_>,
        (params, start): (&[f32], usize),
        scales: &[f32],
        block: &mut [f32],
        out: &mut [f32],
    ) {
        let first = &self.net.layers[0];
        let after = After::of(0, self.net.layers.len());
        let exp_mult = s.splat_f32s(self.twin.rule().exp_mult as f32);
        let (block, _) = S::as_mut_simd_f32s(block);
        let (x, units) = block.split_at_mut((first.inputs + self.counts()[2]) * BLOCK);
        let units = &mut units[..2 * self.net.widest() * BLOCK];
        let length = BLOCK * S::F32_LANES;
        for (start, out) in (start..params.len()).step_by(length).zip(out.chunks_mut(length)) {
            tensor.load::<S, BLOCK>(s, params, start, x, None);
            let x = &mut x[..first.inputs * BLOCK];
            for (scale, x) in scales.iter().zip(x.chunks_exact_mut(BLOCK)) {
                let scale = s.splat_f32s(*scale);
                for x in x {
                    *x = s.mul_f32s(*x, scale);
                }
            }
            first.forward::<S, COLUMNS, BLOCK>(s, Some(&first.bias), x, units, after);
            let y = self.net.finish::<S, COLUMNS, BLOCK>(s, units);
            let (a, b) = (row::<_, BLOCK>(y, 0), row::<_, BLOCK>(y, 1));
            for (out, (a, b)) in out.chunks_mut(S::F32_LANES).zip(a.iter().zip(b)) {
                let direction = s.mul_f32s(*a, exp(s, s.mul_f32s(exp_mult, *b)));
                store(s, out, direction);
            }
        }
    }
}

/// Extents of the matrices in a tensor of rank 2 or more.
pub(super) fn matrix(shape: &[usize]) -> [usize; 2] {
    match shape {
        [.., rows, cols] => [*rows, *cols],
        _ => [1, 1],
    }
}

impl Optimizer<f32> for Celo2Kernel {
    fn name(&self) -> String {
        self.twin.name()
    }
    fn init(&self, params: &Params<f32>, num_steps: Option<u64>, key: Key) -> OptState<f32> {
        self.twin.init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], _loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "Celo2: length of the gradient");
        let counts = self.counts();
        let decays = counts[2];
        let features = self.net.layers[0].inputs;
        let tables = table_lens(&state.layout, decays, decays);
        let learned =
            || state.layout.entries().iter().filter(|e| e.shape.len() > 1).map(|e| matrix(&e.shape));
        let lens = [
            self.block_len(),
            MAX_LANES * features,
            features,
            FactoredTensor::expanded_len(decays, 2 * decays, BLOCK),
            tables[0],
            tables[1],
            grad.len(),
            learned().map(|[rows, cols]| rows * cols).max().unwrap_or(0),
            learned().map(newton_schulz::scratch).max().unwrap_or(0),
        ];
        with_scratch(lens.iter().sum(), |scratch| {
            let (block, scratch) = scratch.split_at_mut(lens[0]);
            let (squares, scratch) = scratch.split_at_mut(lens[1]);
            let (scales, scratch) = scratch.split_at_mut(lens[2]);
            let (expanded, scratch) = scratch.split_at_mut(lens[3]);
            let (row_table, scratch) = scratch.split_at_mut(lens[4]);
            let (col_table, scratch) = scratch.split_at_mut(lens[5]);
            let (clipped, scratch) = scratch.split_at_mut(lens[6]);
            let (direction, products) = scratch.split_at_mut(lens[7]);
            let network = Network { kernel: self, block, squares, scales, direction, products };
            let tables = [row_table, col_table];
            self.path.run(Step { network, state, grad, clipped, expanded, tables });
        });
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        Some(self)
    }
}

struct Step<'a> {
    network: Network<'a>,
    state: &'a mut OptState<f32>,
    grad: &'a [f32],
    /// The clipped gradient.
    clipped: &'a mut [f32],
    expanded: &'a mut [f32],
    /// Scratch of [`Table`]s.
    tables: [&'a mut [f32]; 2],
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        let rates = &self.network.kernel.rates;
        for (to, g) in self.clipped.chunks_mut(S::F32_LANES).zip(self.grad.chunks(S::F32_LANES)) {
            store(s, to, clip(s, load(s, g), MAX_GRAD));
        }
        let [momentum, rms, ..] = &mut self.state.slots[..] else { unreachable!("four slots") };
        average::<S, false>(s, &mut momentum.data, self.clipped, &rates[0]);
        average::<S, true>(s, &mut rms.data, self.clipped, &rates[1]);
        let layout = self.state.layout.clone();
        let mut starts = [0, 0];
        for entry in layout.entries().iter().filter(|e| e.numel() > 0) {
            self.tensor(s, entry, &mut starts);
        }
    }
}

impl Step<'_> {
    /// Updates one tensor; `starts`: where its row and column accumulators lie.
    #[inline(always)]
    fn tensor<S: Simd>(&mut self, s: S, entry: &Entry, starts: &mut [usize; 2]) {
        let kernel = self.network.kernel;
        let rule = kernel.twin.rule();
        let (counts, rates) = (kernel.counts(), &kernel.rates[2]);
        let (range, grad) = (entry.range(), &*self.clipped);
        let lr = rule.learning_rate(self.state.step, self.state.num_steps);
        let factored = Factored::new(&entry.shape);
        let lens = factored.lens();
        let step = self.state.step;
        let OptState { params, slots, .. } = &mut *self.state;
        let [momentum, rms, row, col] = &mut slots[..] else { unreachable!("four slots") };
        let row = &mut row.data[starts[0]..starts[0] + counts[2] * lens[0]];
        let col = &mut col.data[starts[1]..starts[1] + counts[2] * lens[1]];
        *starts = [starts[0] + row.len(), starts[1] + col.len()];
        let (momentum, rms) = (&momentum.data[..], &rms.data[..]);
        let params = &mut params[range.clone()];
        let Some(axes) = factored.axes() else {
            update_moments(s, &grad[range.clone()], rates, row);
            adam(s, rule, step, lr, params, [momentum, rms], range);
            return;
        };
        let [row_table, col_table] = &mut self.tables;
        let tables = [(lens[0], row_table), (lens[1], col_table)];
        let tables = tables.map(|(len, scratch)| Table::new(len, counts[2], counts[2], scratch));
        let (walk, expanded) = (Walk::new(axes), &mut *self.expanded);
        let rms_epsilon = SMALL as f32;
        let at = range.clone();
        let tensor =
            FactoredTensor { range: at, counts, grad, momentum, rms, rms_epsilon, tables, walk, expanded };
        let tensor = AllFeatures::new(s, tensor, axes, rates, [row, col]);
        if rule.uses_adam(entry) {
            adam(s, rule, step, lr, params, [momentum, rms], range);
            return;
        }
        self.network.update(s, &mut Celo2Features(tensor), matrix(&entry.shape), lr, params);
    }
}

/// AdamW on the tensor at `range`, from the momenta and RMS averages `[decays, n]`.
#[inline(always)]
fn adam<S: Simd>(
    s: S,
    rule: &Celo2,
    step: u64,
    lr: f64,
    params: &mut [f32],
    [momentum, rms]: [&[f32]; 2],
    range: Range<usize>,
) {
    let [m_scale, v_scale] = rule.adam_corrections(step).map(|c| s.splat_f32s(c as f32));
    let lr = s.splat_f32s((rule.adam_lr_mult * lr) as f32);
    let decay = s.splat_f32s(rule.weight_decay as f32);
    let last = rms.len() - rms.len() / rule.rms_decays.len();
    let averages = momentum[range.clone()].chunks(S::F32_LANES).zip(rms[last..][range].chunks(S::F32_LANES));
    for (p, (m, v)) in params.chunks_mut(S::F32_LANES).zip(averages) {
        let root = s.sqrt_f32s(s.mul_f32s(v_scale, load(s, v)));
        let root = s.add_f32s(root, s.splat_f32s(SMALL as f32));
        let direction = s.div_f32s(s.mul_f32s(m_scale, load(s, m)), root);
        let old = load(s, p);
        let step = s.mul_add_e_f32s(decay, old, direction);
        store(s, p, s.negate_mul_add_e_f32s(lr, step, old));
    }
}

/// The learned update of a tensor, and its scratch.
struct Network<'a> {
    kernel: &'a Celo2Kernel,
    /// Features and activations of one block.
    block: &'a mut [f32],
    /// Sums of squares per feature, in vectors.
    squares: &'a mut [f32],
    /// The features' normalizers.
    scales: &'a mut [f32],
    /// Of one matrix.
    direction: &'a mut [f32],
    /// Scratch of [`newton_schulz::orthogonalize`].
    products: &'a mut [f32],
}

impl Network<'_> {
    /// Updates the matrices of a tensor one after the other.
    #[inline(always)]
    fn update<S: Simd>(
        &mut self,
        s: S,
        tensor: &mut Celo2Features<'_>,
        [rows, cols]: [usize; 2],
        lr: f64,
        params: &mut [f32],
    ) {
        let rule = self.kernel.twin.rule();
        let numel = rows * cols;
        for start in (0..params.len()).step_by(numel) {
            let end = start + numel;
            let walk = tensor.0.walk();
            let (x, _) = S::as_mut_simd_f32s(self.block);
            let (squares, _) = S::as_mut_simd_f32s(self.squares);
            normalizers::<S, _, false>(s, tensor, &params[..end], start, x, squares, self.scales, EPSILON);
            tensor.0.set_walk(walk);
            let direction = &mut self.direction[..numel];
            let part = (&params[..end], start);
            self.kernel.directions(s, tensor, part, self.scales, self.block, direction);
            if let Orthogonalize::NewtonSchulz(iterations) = rule.orthogonalize {
                let norm = (mean_square(s, direction) * numel as f32).sqrt() + SMALL as f32;
                let by = s.splat_f32s(norm.recip());
                for d in direction.chunks_mut(S::F32_LANES) {
                    let scaled = s.mul_f32s(by, load(s, d));
                    store(s, d, scaled);
                }
                newton_schulz::orthogonalize(s, direction, [rows, cols], iterations, self.products);
            }
            let scale = s.splat_f32s((mean_square(s, direction) + EPSILON as f32).sqrt().recip());
            let (decay, lr) = (s.splat_f32s(rule.weight_decay as f32), s.splat_f32s(lr as f32));
            let params = params[start..end].chunks_mut(S::F32_LANES);
            for (p, d) in params.zip(direction.chunks(S::F32_LANES)) {
                let old = load(s, p);
                let step = s.mul_add_e_f32s(decay, old, s.mul_f32s(scale, load(s, d)));
                store(s, p, s.negate_mul_add_e_f32s(lr, step, old));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::learned::adafac_mlp::step::tests::layouts;
    use outerloop_core::{Float, Layout, LearnedOptimizer};
    use std::sync::Arc;

    /// With and without products, wider and deeper networks, several averages, weight decay.
    pub(crate) fn rules() -> [Celo2; 4] {
        let rule = |orthogonalize| Celo2 {
            orthogonalize,
            exp_mult: 0.1,
            peak_lr: 0.02,
            weight_decay: 0.1,
            ..Celo2::default()
        };
        let deep = Celo2 { hidden_size: 13, hidden_layers: 3, adam_lr_mult: 2.0, ..rule(Orthogonalize::Off) };
        let several = Celo2 {
            momentum_decays: vec![0.5, 0.9],
            rms_decays: vec![0.9, 0.95],
            adafactor_decays: vec![0.8, 0.9],
            hidden_layers: 1,
            ..rule(Orthogonalize::NewtonSchulz(2))
        };
        [Celo2 { peak_lr: 0.02, ..Celo2::default() }, rule(Orthogonalize::NewtonSchulz(5)), deep, several]
    }

    /// Five updates, the same in every dtype, with gradients of which some are clipped.
    fn run<E: Float>(opt: &dyn Optimizer<E>, layout: &Arc<Layout>) -> OptState<E> {
        let normal = |key: Key| -> Vec<E> {
            let mut x = vec![0.0f32; layout.len()];
            key.fill_normal(&mut x);
            x.iter().map(|x| E::of(f64::from(*x))).collect()
        };
        let key = Key::new(8);
        let params = Params { data: normal(key), ..Params::zeros(layout.clone()) };
        let mut state = opt.init(&params, Some(20), key);
        for t in 0..5 {
            let mut grad = normal(key.fold_in(t));
            if let Some(g) = grad.get_mut(t as usize) {
                *g *= E::of(2e3);
            }
            opt.update(&mut state, &grad, E::of(0.0), key);
        }
        state
    }

    #[test]
    fn agrees_with_the_twin_in_f64() {
        let mut layouts = layouts();
        layouts.push(Arc::new(Layout::new([
            ("embed/w", vec![9, 4]),
            ("w", vec![3, 3, 5, 7]),
            ("b", vec![7]),
        ])));
        for rule in rules() {
            let mut theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
            theta.iter_mut().enumerate().for_each(|(i, t)| *t += 0.01 * (i as f32).sin());
            let theta64: Vec<f64> = theta.iter().map(|t| f64::from(*t)).collect();
            for layout in &layouts {
                let want = run(&Taped::new(rule.clone(), &theta64), layout);
                for path in Path::available() {
                    let got = run(&Celo2Kernel::new(rule.clone(), &theta, path), layout);
                    let close = |name: &str, a: &[f32], b: &[f64]| {
                        for (i, (a, b)) in a.iter().zip(b).enumerate() {
                            let error = (f64::from(*a) - b).abs();
                            assert!(
                                error <= 1e-3 * (0.1 + b.abs()),
                                "{rule:?} {path:?} {layout:?} {name} {i}: {a} {b}"
                            );
                        }
                    };
                    close("params", &got.params, &want.params);
                    for (got, want) in got.slots.iter().zip(&want.slots) {
                        close(&got.name, &got.data, &want.data);
                    }
                }
            }
        }
    }

    #[test]
    fn nan_spreads_in_its_own_matrix_only() {
        let rule = Celo2::default();
        let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
        let layout = Arc::new(Layout::new([("a", vec![5, 4]), ("b", vec![30]), ("c", vec![6, 9])]));
        for path in Path::available() {
            let opt = Celo2Kernel::new(rule.clone(), &theta, path);
            let mut state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
            let mut grad = vec![1.0; layout.len()];
            grad[2] = f32::NAN;
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            assert!(state.params[..20].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(state.params[20..].iter().all(|p| p.is_finite()), "{path:?}");
        }
    }
}
