//! [`Celo2Kernel`]: one [`Celo2`] update, tensor by tensor.
//!
//! As in [`crate::learned::adafac_mlp::AdafacKernel`] blocks of a few vectors are turned into features twice, once for the
//! normalizers of a matrix, once for the network. What the network gives a matrix is orthogonalized and
//! normalized in scratch before it reaches the parameters.

use super::{Celo2, Orthogonalize, EPSILON, SMALL};
use crate::kernel::dense::After;
use crate::kernel::dot::mean_square;
use crate::kernel::net::{Net, COLUMNS, MAX_LANES};
use crate::kernel::{newton_schulz, Path};
use crate::learned::adafac_mlp::accumulators::{cut, four, Accumulators, Averages, Means, Repeated, Visit};
use crate::learned::adafac_mlp::clipped::{network_places, Clipped};
use crate::learned::adafac_mlp::factored::FactoredTensor;
use crate::learned::adafac_mlp::factored_vjp::AllFeatures;
use crate::learned::adafac_mlp::features::{load_block, row, Normalizer, VectorTensor, RMS_EPSILON};
use crate::rule::{Taped, UpdateRule};
use outerloop_core::simd::{exp, load, store, with_scratch};
use outerloop_core::{Entry, Key, Layout, OptState, Optimizer, Params, UpdateJvp, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Vectors per block.
const BLOCK: usize = COLUMNS;

/// Gradients are clipped to ± this.
pub(crate) const MAX_GRAD: f32 = 1e3;

/// The clipped gradient; NaN stays.
pub(crate) fn clip_all<'a>(grad: &[f32], clipped: &'a mut [f32]) -> &'a [f32] {
    clipped.iter_mut().zip(grad).for_each(|(to, g)| *to = g.clamp(-MAX_GRAD, MAX_GRAD));
    clipped
}

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
        let (places, ranges) =
            network_places(&rule.sizes(), counts, &|tensor| range(&format!("ff_mod/~/{tensor}")));
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
        tensor: &mut Clipped<AllFeatures<'_>>,
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
            load_block::<S, _, BLOCK>(s, tensor, params, start, x, None);
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
    fn describe(&self) -> String {
        self.twin.describe()
    }
    fn init(&self, params: &Params<f32>, num_steps: Option<u64>, key: Key) -> OptState<f32> {
        self.twin.init(params, num_steps, key)
    }
    fn update(&self, state: &mut OptState<f32>, grad: &[f32], _loss: f32, _key: Key) {
        assert_eq!(grad.len(), state.params.len(), "Celo2: length of the gradient");
        let rule = self.twin.rule();
        let (repeated, vectors) = (Repeated::Means, BLOCK);
        let averages = Averages {
            rates: &self.rates,
            rms_epsilon: SMALL as f32,
            // No network reads vectors.
            moment_epsilon: RMS_EPSILON,
            repeated,
            vectors,
        };
        let features = self.net.layers[0].inputs;
        let learned =
            || state.layout.entries().iter().filter(|e| e.shape.len() > 1).map(|e| matrix(&e.shape));
        let [expanded, row, col] = averages.scratch(&state.layout);
        let lens = [
            self.block_len(),
            MAX_LANES * features,
            features,
            expanded,
            row,
            col,
            grad.len(),
            learned().map(|[rows, cols]| rows * cols).max().unwrap_or(0),
            learned().map(newton_schulz::scratch).max().unwrap_or(0),
        ];
        let lr = rule.learning_rate(state.step, state.num_steps);
        let OptState { layout, params, slots, step, .. } = state;
        with_scratch(lens.iter().sum(), |mut scratch| {
            let [block, squares, scales, expanded, row, col, clipped, direction, products] =
                lens.map(|len| cut(&mut scratch, len));
            let (grad, slots, scratch) = (clip_all(grad, clipped), four(slots), [expanded, row, col]);
            let accumulators = Accumulators { averages, grad, slots, scratch };
            let normalizer = Normalizer { block, squares, scales, epsilon: EPSILON };
            let network = Network { kernel: self, normalizer, direction, products };
            self.path.run(Step { accumulators, layout, visit: Update { network, params, step: *step, lr } });
        });
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        Some(self)
    }
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<f32>> {
        self.twin.update_jvp()
    }
}

struct Step<'a> {
    accumulators: Accumulators<'a>,
    layout: &'a Layout,
    visit: Update<'a>,
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let Step { accumulators, layout, mut visit } = self;
        accumulators.run(s, layout, &mut visit);
    }
}

/// What an update does with a tensor.
struct Update<'a> {
    network: Network<'a>,
    params: &'a mut [f32],
    /// Updates before this one.
    step: u64,
    /// Of this update.
    lr: f64,
}

impl Visit for Update<'_> {
    #[inline(always)]
    fn vector<S: Simd>(&mut self, s: S, tensor: VectorTensor<'_>, _: Range<usize>) {
        self.adam(s, [tensor.momentum, tensor.rms], tensor.range);
    }

    #[inline(always)]
    fn factored<S: Simd>(&mut self, s: S, entry: &Entry, tensor: FactoredTensor<'_>, means: Means<'_>) {
        if self.network.kernel.twin.rule().uses_adam(entry) {
            self.adam(s, [tensor.momentum, tensor.rms], tensor.range);
            return;
        }
        let params = &mut self.params[tensor.range.clone()];
        let mut tensor = Clipped(AllFeatures::new(tensor, &means));
        self.network.update(s, &mut tensor, matrix(&entry.shape), self.lr, params);
    }
}

impl Update<'_> {
    /// AdamW on the tensor at `range`, from the momenta and RMS averages `[decays, n]`.
    #[inline(always)]
    fn adam<S: Simd>(&mut self, s: S, [momentum, rms]: [&[f32]; 2], range: Range<usize>) {
        let rule = self.network.kernel.twin.rule();
        let [m_scale, v_scale] = rule.adam_corrections(self.step).map(|c| s.splat_f32s(c as f32));
        let lr = s.splat_f32s((rule.adam_lr_mult * self.lr) as f32);
        let decay = s.splat_f32s(rule.weight_decay as f32);
        let last = rms.len() - rms.len() / rule.rms_decays.len();
        let params = &mut self.params[range.clone()];
        let averages =
            momentum[range.clone()].chunks(S::F32_LANES).zip(rms[last..][range].chunks(S::F32_LANES));
        for (p, (m, v)) in params.chunks_mut(S::F32_LANES).zip(averages) {
            let root = s.sqrt_f32s(s.mul_f32s(v_scale, load(s, v)));
            let root = s.add_f32s(root, s.splat_f32s(SMALL as f32));
            let direction = s.div_f32s(s.mul_f32s(m_scale, load(s, m)), root);
            let old = load(s, p);
            let step = s.mul_add_e_f32s(decay, old, direction);
            store(s, p, s.negate_mul_add_e_f32s(lr, step, old));
        }
    }
}

/// The learned update of a tensor, and its scratch.
struct Network<'a> {
    kernel: &'a Celo2Kernel,
    /// Its block also holds the features and activations of a block for the network.
    normalizer: Normalizer<'a>,
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
        tensor: &mut Clipped<AllFeatures<'_>>,
        [rows, cols]: [usize; 2],
        lr: f64,
        params: &mut [f32],
    ) {
        let rule = self.kernel.twin.rule();
        let numel = rows * cols;
        for start in (0..params.len()).step_by(numel) {
            let end = start + numel;
            let walk = tensor.0.walk();
            let normalizer = &mut self.normalizer;
            normalizer.run::<S, _, false>(s, tensor, &params[..end], start);
            tensor.0.set_walk(walk);
            let direction = &mut self.direction[..numel];
            let part = (&params[..end], start);
            self.kernel.directions(s, tensor, part, normalizer.scales, normalizer.block, direction);
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
    use crate::learned::derivative::bits;
    use outerloop_core::{Float, LearnedOptimizer};
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
                let mut first = None;
                for path in Path::available() {
                    let got = run(&Celo2Kernel::new(rule.clone(), &theta, path), layout);
                    let bits = bits(&got);
                    let first = first.get_or_insert_with(|| bits.clone());
                    assert!(*first == bits, "bits on {path:?}: {rule:?} {layout:?}");
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
