//! [`MlpKernel`]: one [`MlpLopt`] update in two passes over the parameters.
//!
//! Pass 1 updates the momenta and sums the squares of the eight tensor features. Pass 2 takes
//! blocks of a few vectors of parameters through features, network and output rule in L1; the
//! `[n, 19]` feature matrix never exists. A block may span tensors (only the normalizers differ),
//! so small tensors share vectors. The time features are the same for all parameters, so their part
//! of the first layer is added to its bias once per step: the network per parameter is
//! 8 → H → ... → 2. Parameters too few to fill one block take another way through the network, to the
//! same bits.

use super::features::{Features, Position};
use super::{DECAYS, TENSOR_FEATURES};
use crate::kernel::net::{apply_step, Net, COLUMNS, MAX_LANES};
use crate::kernel::unit_net::UnitNet;
use crate::kernel::Path;
use crate::learned::MlpLopt;
use crate::rule::{Taped, UpdateRule};
use outerloop_core::simd::with_scratch;
use outerloop_core::{Key, Layout, OptState, Optimizer, Params, UpdateJvp, UpdateVjp};
use pulp::{Simd, WithSimd};
use std::sync::{Arc, LazyLock};

/// [`MlpLopt`] in f32 at one theta; the weights are packed when they are first used.
pub struct MlpKernel {
    pub(super) twin: Taped<MlpLopt, f32>,
    pub(super) path: Path,
    pub(super) net: Lazy<Net>,
    units: Lazy<UnitNet>,
    /// Multiply-adds per parameter in `net`, and, padding included, in `units`.
    costs: [usize; 2],
}

/// Vectors of parameters from which on [`Net`] is faster than [`UnitNet`] in any case.
const SMALL: usize = 3;

type Lazy<T> = LazyLock<T, Box<dyn FnOnce() -> T + Send>>;

impl MlpKernel {
    /// The optimizer of `theta` on a chosen path.
    ///
    /// # Panics
    /// If `theta` has not the length of the rule's layout.
    #[track_caller]
    pub fn new(rule: MlpLopt, theta: &[f32], path: Path) -> Self {
        let layout = rule.theta_layout();
        let parts = Arc::new((rule.network(), layout.clone(), theta.to_vec()));
        let again = parts.clone();
        let cost = |lanes| parts.0.layers().map(|(i, o, ..)| i * usize::next_multiple_of(o, lanes)).sum();
        MlpKernel {
            costs: [cost(1), cost(path.lanes())],
            twin: Taped::with_layout(rule, layout, theta),
            path,
            net: LazyLock::new(Box::new(move || Net::new(&parts.0, &parts.1, &parts.2))),
            units: LazyLock::new(Box::new(move || UnitNet::new(&again.0, &again.1, &again.2, path))),
        }
    }

    /// Whether `n` parameters go through the network one by one. That pays up to one and a half times the
    /// multiply-adds: few vectors of parameters make thin tiles, and packing for them takes longer.
    fn is_small(&self, n: usize) -> bool {
        let lanes = self.path.lanes();
        let [net, units] = self.costs;
        n < SMALL * lanes && 2 * n * units <= 3 * n.next_multiple_of(lanes) * net
    }

    /// Scratch for `n` parameters: the block, and the first layer's bias.
    fn scratch(&self, n: usize) -> [usize; 2] {
        if self.is_small(n) {
            return [SMALL * MAX_LANES * TENSOR_FEATURES + self.units.scratch(n), 0];
        }
        let rows = TENSOR_FEATURES + 2 * self.net.widest();
        [MAX_LANES * COLUMNS * rows, self.net.layers[0].outputs]
    }
}

impl Optimizer<f32> for MlpKernel {
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
        let n = state.params.len();
        assert_eq!(grad.len(), n, "MlpLopt: length of the gradient");
        let momentum = &mut state.slots[0].data;
        assert_eq!(momentum.len(), DECAYS.len() * n, "MlpLopt: length of the momenta");
        let tensors = state.layout.entries().len();
        let [block, bias] = self.scratch(n);
        // The closure holds no vector code: it would not be compiled for the path's instructions.
        with_scratch(block + bias + tensors * TENSOR_FEATURES, |scratch| {
            let (block, scratch) = scratch.split_at_mut(block);
            let (bias, scales) = scratch.split_at_mut(bias);
            self.path.run(Step {
                kernel: self,
                layout: &state.layout,
                params: &mut state.params,
                momentum,
                grad,
                step: state.step,
                block,
                scales,
                bias,
            });
        });
        state.step += 1;
    }
    fn update_vjp(&self) -> Option<&dyn UpdateVjp<f32>> {
        Some(self)
    }
    fn update_jvp(&self) -> Option<&dyn UpdateJvp<f32>> {
        Some(self)
    }
}

struct Step<'a> {
    kernel: &'a MlpKernel,
    layout: &'a Layout,
    params: &'a mut [f32],
    momentum: &'a mut [f32],
    grad: &'a [f32],
    step: u64,
    /// Activations of one block.
    block: &'a mut [f32],
    /// `[tensors, 8]`, the features' normalizers.
    scales: &'a mut [f32],
    /// The first layer's bias with its time part.
    bias: &'a mut [f32],
}

impl WithSimd for Step<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(mut self, s: S) {
        self.features().accumulate(s);
        let mut at = Position::FIRST;
        if self.kernel.is_small(self.params.len()) {
            match self.params.len().div_ceil(S::F32_LANES) {
                0 => {}
                1 => self.one_by_one::<S, 1>(s, &mut at),
                2 => self.one_by_one::<S, 2>(s, &mut at),
                _ => self.one_by_one::<S, SMALL>(s, &mut at),
            }
            return;
        }
        self.kernel.net.time_bias(s, self.step, self.bias);
        while at.start < self.params.len() {
            match (self.params.len() - at.start).div_ceil(S::F32_LANES) {
                1 => self.block::<S, 1>(s, &mut at),
                2 => self.block::<S, 2>(s, &mut at),
                _ => self.block::<S, COLUMNS>(s, &mut at),
            }
        }
    }
}

impl Step<'_> {
    #[inline(always)]
    fn features(&mut self) -> Features<'_> {
        Features {
            layout: self.layout,
            params: self.params,
            grad: self.grad,
            momentum: self.momentum,
            scales: self.scales,
        }
    }

    /// Pass 2 over one block of V vectors; moves `at` behind it.
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, s: S, at: &mut Position) {
        let block = std::mem::take(&mut self.block);
        let (x, units) = S::as_mut_simd_f32s(block).0.split_at_mut(TENSOR_FEATURES * V);
        let range = self.features().load::<S, V>(s, at, x);
        let out = self.kernel.net.forward::<S, V>(s, self.bias, x, units);
        let rule = self.kernel.twin.rule();
        apply_step::<S, V>(s, out, [rule.exp_mult, rule.step_mult], &mut self.params[range]);
        self.block = block;
    }

    /// Pass 2 for all parameters, which fit into V vectors.
    #[inline(always)]
    fn one_by_one<S: Simd, const V: usize>(&mut self, s: S, at: &mut Position) {
        let block = std::mem::take(&mut self.block);
        let width = V * S::F32_LANES;
        let (x, scratch) = block.split_at_mut(TENSOR_FEATURES * width);
        let range = self.features().load::<S, V>(s, at, S::as_mut_simd_f32s(x).0);
        let (out, stride) = self.kernel.units.forward(s, self.step, x, width, range.len(), scratch);
        for (p, out) in out.chunks_exact(stride).take(range.len()).enumerate() {
            (x[p], x[width + p]) = (out[0], out[1]);
        }
        let rule = self.kernel.twin.rule();
        let out = S::as_simd_f32s(x).0;
        apply_step::<S, V>(s, out, [rule.exp_mult, rule.step_mult], &mut self.params[range]);
        self.block = block;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learned::derivative::bits;
    use outerloop_core::contract::awkward_layout;
    use outerloop_core::LearnedOptimizer;
    use std::sync::Arc;

    /// Layouts with single tensors and mixtures, around the block sizes of every path.
    fn layouts() -> Vec<Arc<Layout>> {
        let mut all = vec![awkward_layout()];
        let shapes: [&[usize]; 11] =
            [&[10], &[], &[1], &[7, 33], &[33, 7], &[2, 3, 4, 5], &[0], &[23], &[24], &[49], &[2100]];
        all.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
        all.push(Arc::new(Layout::new((0..40).map(|i| (format!("{i:02}"), vec![i % 5])))));
        all.push(Arc::new(Layout::new([("b", vec![10]), ("none", vec![0]), ("w", vec![32, 64])])));
        all
    }

    fn run(opt: &dyn Optimizer<f32>, layout: &Arc<Layout>, steps: u64) -> OptState<f32> {
        let key = Key::new(8);
        let mut params = Params::zeros(layout.clone());
        key.fill_normal(&mut params.data);
        let mut state = opt.init(&params, None, key);
        let mut grad = vec![0.0; layout.len()];
        for t in 0..steps {
            key.fold_in(t).fill_normal(&mut grad);
            opt.update(&mut state, &grad, 0.0, key);
        }
        state
    }

    fn rules() -> Vec<MlpLopt> {
        let rule = |hidden_size, hidden_layers| MlpLopt {
            exp_mult: 0.1,
            step_mult: 0.05,
            hidden_size,
            hidden_layers,
        };
        vec![rule(32, 2), rule(4, 2), rule(7, 3), rule(5, 1), rule(1, 1), rule(3, 0)]
    }

    #[test]
    fn fifty_steps_agree_with_the_twin() {
        for rule in rules() {
            let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
            for layout in layouts() {
                let want = run(&Taped::<_, f32>::new(rule.clone(), &theta), &layout, 50);
                let mut first = None;
                for path in Path::available() {
                    let got = run(&MlpKernel::new(rule.clone(), &theta, path), &layout, 50);
                    let bits = bits(&got);
                    let first = first.get_or_insert_with(|| bits.clone());
                    assert!(*first == bits, "bits on {path:?}: {rule:?} {layout:?}");
                    let close = |a: &[f32], b: &[f32]| {
                        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-5 * (1.0 + b.abs()))
                    };
                    assert!(close(&got.params, &want.params), "{rule:?} {path:?} {layout:?}");
                    assert!(close(&got.slots[0].data, &want.slots[0].data), "{rule:?} {path:?} {layout:?}");
                }
            }
        }
    }

    #[test]
    fn few_parameters_get_the_bits_that_they_get_among_many() {
        let key = Key::new(7);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let many = 100;
        for (rule, path) in rules().iter().flat_map(|r| Path::available().into_iter().map(move |p| (r, p))) {
            let theta = LearnedOptimizer::<f32>::init(rule, Key::new(6));
            let opt = MlpKernel::new(rule.clone(), &theta, path);
            for n in (0..SMALL * path.lanes()).chain([SMALL * path.lanes()]) {
                // Tensors are normalized apart, so that the second one does not change the first.
                let [alone, among] = [&[("x", n)][..], &[("x", n), ("y", many)]].map(|tensors| {
                    let layout = Layout::new(tensors.iter().map(|(name, n)| (*name, vec![*n])));
                    let mut params = Params::zeros(Arc::new(layout));
                    key.fill_normal(&mut params.data);
                    let mut state = opt.init(&params, None, key);
                    for t in 0..3 {
                        let mut grad = vec![0.0; state.params.len()];
                        key.fold_in(t).fill_normal(&mut grad);
                        opt.update(&mut state, &grad, 0.0, key);
                    }
                    state
                });
                let wide = rule.hidden_size == 32;
                assert!(!wide || opt.is_small(n) == (n < SMALL * path.lanes()), "{path:?} {n}");
                assert!(!opt.is_small(n + many));
                assert_eq!(bits(&alone.params), bits(&among.params[..n]), "{rule:?} {path:?} {n}");
            }
        }
    }

    #[test]
    fn every_thread_gives_the_same_bits() {
        let rule = MlpLopt::default();
        let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
        let opt = MlpKernel::new(rule, &theta, Path::best());
        let layout = awkward_layout();
        let here = run(&opt, &layout, 20);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| run(&opt, &layout, 20))).collect();
            for t in threads {
                let there = t.join().unwrap();
                assert!(here.params.iter().zip(&there.params).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        });
    }

    #[test]
    fn nan_spreads_in_its_own_tensor_only() {
        let rule = MlpLopt::default();
        let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
        let layout = Arc::new(Layout::new([("a", vec![5]), ("b", vec![30])]));
        for path in Path::available() {
            let opt = MlpKernel::new(rule.clone(), &theta, path);
            let mut state = opt.init(&Params::zeros(layout.clone()), None, Key::new(0));
            let mut grad = vec![1.0; 35];
            grad[2] = f32::NAN;
            opt.update(&mut state, &grad, 0.0, Key::new(0));
            assert!(state.params[..5].iter().all(|p| p.is_nan()), "{path:?}");
            assert!(state.params[5..].iter().all(|p| p.is_finite()), "{path:?}");
        }
    }
}
