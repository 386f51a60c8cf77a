//! [`MlpGroup`]: [`MlpKernel`]s of several thetas that update together, members along the vectors.
//!
//! Parameters, gradients and momenta are gathered as `[number, member]`; then every operation of
//! [`super::step`] is done to a vector of members, in the same order: the same bits.

use super::step::MlpKernel;
use super::{DECAYS, TENSOR_FEATURES};
use crate::features::normalize;
use crate::kernel::group_net::GroupNet;
use crate::kernel::net::{stepped, MAX_LANES};
use crate::learned::MlpLopt;
use crate::rule::UpdateRule;
use outerloop_core::simd::{with_scratch, Path, Simd, WithSimd, LANES};
use outerloop_core::{Layout, MemberUpdate, Optimizer, OptimizerGroup};
use std::sync::{Arc, OnceLock};

/// [`MlpLopt`]s in f32, each at its own theta.
pub struct MlpGroup {
    rule: MlpLopt,
    path: Path,
    thetas: Vec<Vec<f32>>,
    /// The members by themselves, made when somebody asks for them.
    alone: Vec<OnceLock<MlpKernel>>,
    net: GroupNet,
}

/// Buffers per parameter that are gathered: parameters, gradient and momenta.
const GATHERED: usize = 2 + DECAYS.len();

/// Vectors that parameters may fill for a group to be faster than its members alone.
const MOST: usize = 3;

impl MlpGroup {
    /// The group of these thetas on a chosen path.
    ///
    /// # Panics
    /// If there are more thetas than a vector of `path` has elements, or one has not the length of the
    /// rule's layout.
    #[track_caller]
    pub fn new(rule: MlpLopt, thetas: Vec<Vec<f32>>, path: Path) -> Self {
        let layout = rule.theta_layout();
        for theta in &thetas {
            assert_eq!(theta.len(), layout.len(), "MlpLopt: length of theta");
        }
        MlpGroup {
            net: GroupNet::new(&rule.network(), &layout, &thetas, path),
            alone: thetas.iter().map(|_| OnceLock::new()).collect(),
            thetas,
            rule,
            path,
        }
    }

    /// How many members are fastest on `n` parameters; 1: alone.
    pub fn size(n: usize, path: Path) -> usize {
        match path.lanes() {
            lanes if (1..=MOST * lanes).contains(&n) => lanes,
            _ => 1,
        }
    }

    /// Whether these updates can be made together: all parameters have the same layout, with few numbers.
    fn fits(&self, updates: &[MemberUpdate<'_, f32>]) -> bool {
        let mut active = updates.iter().filter(|t| !t.skip).map(|t| &t.state.layout);
        let Some(first) = active.next() else { return false };
        Self::size(first.len(), self.path) > 1 && active.all(|l| Arc::ptr_eq(l, first) || **l == **first)
    }
}

impl OptimizerGroup<f32> for MlpGroup {
    fn member(&self, i: usize) -> &dyn Optimizer<f32> {
        self.alone[i].get_or_init(|| MlpKernel::new(self.rule.clone(), &self.thetas[i], self.path))
    }

    fn update(&self, updates: &mut [MemberUpdate<'_, f32>]) {
        assert_eq!(updates.len(), self.thetas.len(), "updates of a group: one per member");
        if !self.fits(updates) {
            for (i, update) in updates.iter_mut().enumerate().filter(|(_, t)| !t.skip) {
                update.apply(self.member(i));
            }
            return;
        }
        let layout = updates.iter().find(|t| !t.skip).expect("somebody fits").state.layout.clone();
        let (n, path) = (layout.len(), self.path);
        for update in updates.iter().filter(|t| !t.skip) {
            assert_eq!(update.grad.len(), n, "MlpLopt: length of the gradient");
            let momentum = &update.state.slots[0].data;
            assert_eq!(momentum.len(), DECAYS.len() * n, "MlpLopt: length of the momenta");
        }
        let vectors = n * GATHERED + TENSOR_FEATURES * (n + LANES) + self.net.scratch(n);
        with_scratch(vectors * path.lanes(), |scratch| {
            path.run(Step { group: self, updates, layout: &layout, scratch });
        });
    }
}

/// One update of all members that do not rest. The others' elements of the vectors hold anything, and nobody
/// reads what becomes of them.
struct Step<'a, 'b> {
    group: &'a MlpGroup,
    updates: &'a mut [MemberUpdate<'b, f32>],
    layout: &'a Layout,
    scratch: &'a mut [f32],
}

impl WithSimd for Step<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, s: S) {
        let n = self.layout.len();
        let (gathered, scratch) = self.scratch.split_at_mut(n * GATHERED * S::F32_LANES);
        let (x, scratch) = S::as_mut_simd_f32s(scratch).0.split_at_mut(TENSOR_FEATURES * n);
        let (sums, units) = scratch.split_at_mut(TENSOR_FEATURES * LANES);
        let mut steps = [0; MAX_LANES];
        for (m, update) in self.updates.iter().enumerate().filter(|(_, t)| !t.skip) {
            let mut rows = gathered.chunks_exact_mut(S::F32_LANES);
            for numbers in [&update.state.params, &update.grad, &update.state.slots[0].data] {
                numbers.iter().zip(&mut rows).for_each(|(number, row)| row[m] = *number);
            }
            steps[m] = update.state.step;
        }
        let (params, rest) = S::as_mut_simd_f32s(gathered).0.split_at_mut(n);
        let (grad, momentum) = rest.split_at_mut(n);
        accumulate(s, grad, momentum);
        let raw: [&[S::f32s]; TENSOR_FEATURES] = std::array::from_fn(|f| match f {
            0 => &*grad,
            1 => &*params,
            k => &momentum[(k - 2) * n..][..n],
        });
        for entry in self.layout.entries() {
            let range = entry.range();
            for ((raw, x), sums) in raw.iter().zip(x.chunks_exact_mut(n)).zip(sums.chunks_exact_mut(LANES)) {
                normalize_tensor(s, &raw[range.clone()], &mut x[range.clone()], sums);
            }
        }
        let out = self.group.net.forward(s, &steps[..self.updates.len()], x, n, units);
        let rule = &self.group.rule;
        let (direction, magnitude) = out.split_at(n);
        for ((p, d), m) in params.iter_mut().zip(direction).zip(magnitude) {
            *p = stepped(s, *p, [*d, *m], [rule.exp_mult, rule.step_mult]);
        }
        for (m, update) in self.updates.iter_mut().enumerate().filter(|(_, t)| !t.skip) {
            let mut rows = gathered.chunks_exact(S::F32_LANES);
            update.state.params.iter_mut().zip(&mut rows).for_each(|(number, row)| *number = row[m]);
            let rows = rows.skip(n);
            update.state.slots[0].data.iter_mut().zip(rows).for_each(|(number, row)| *number = row[m]);
            update.state.step += 1;
        }
    }
}

/// Updates the momenta `[6, n]`.
#[inline(always)]
fn accumulate<S: Simd>(s: S, grad: &[S::f32s], momentum: &mut [S::f32s]) {
    for (momentum, d) in momentum.chunks_exact_mut(grad.len()).zip(DECAYS) {
        let (keep, add) = (s.splat_f32s(d as f32), s.splat_f32s((1.0 - d) as f32));
        for (m, g) in momentum.iter_mut().zip(grad) {
            *m = s.mul_add_e_f32s(add, *g, s.mul_f32s(keep, *m));
        }
    }
}

/// `x ← raw / √(mean raw² + ε)`; the squares are added up as if the tensor lay along vectors. `sums`: one
/// for every partial sum.
#[inline(always)]
fn normalize_tensor<S: Simd>(s: S, raw: &[S::f32s], x: &mut [S::f32s], sums: &mut [S::f32s]) {
    sums.fill(s.splat_f32s(0.0));
    for raw in raw.chunks(LANES) {
        for (sum, raw) in sums.iter_mut().zip(raw) {
            *sum = s.mul_add_e_f32s(*raw, *raw, *sum);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (left, right) = sums.split_at_mut(width);
        for (a, b) in left.iter_mut().zip(right) {
            *a = s.add_f32s(*a, *b);
        }
    }
    let mean = s.div_f32s(sums[0], s.splat_f32s(raw.len().max(1) as f32));
    let root = s.sqrt_f32s(s.add_f32s(mean, s.splat_f32s(normalize::EPSILON as f32)));
    let scale = s.div_f32s(s.splat_f32s(1.0), root);
    for (x, raw) in x.iter_mut().zip(raw) {
        *x = s.mul_f32s(scale, *raw);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::{Key, LearnedOptimizer, OptState, Params};

    /// Layouts of few parameters, one tensor and several, around the sizes of vectors and tiles.
    fn layouts() -> Vec<Arc<Layout>> {
        let mut all: Vec<Layout> =
            [1, 2, 5, 6, 7, 8, 9, 10, 11, 16, 17, 24, 30, 48].map(|n| Layout::new([("x", vec![n])])).into();
        all.push(Layout::new([("b", vec![3]), ("none", vec![0]), ("s", vec![]), ("w", vec![3, 4])]));
        all.push(Layout::new([("none", vec![0])]));
        all.push(Layout::new([("w", vec![20, 20])]));
        all.into_iter().map(Arc::new).collect()
    }

    fn rules() -> [MlpLopt; 4] {
        [(32, 2), (5, 3), (3, 1), (4, 0)].map(|(hidden_size, hidden_layers)| MlpLopt {
            exp_mult: 0.1,
            step_mult: 0.05,
            hidden_size,
            hidden_layers,
        })
    }

    fn start(opt: &dyn Optimizer, layout: &Arc<Layout>, key: Key) -> OptState {
        let mut params = Params::zeros(layout.clone());
        key.fill_normal(&mut params.data);
        opt.init(&params, None, key)
    }

    fn bits(state: &OptState) -> (Vec<u32>, Vec<u32>, u64) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect();
        (bits(&state.params), bits(&state.slots[0].data), state.step)
    }

    /// Steps a group and its members alone; `layouts[i]` is member i's. Each skips some, so that
    /// their steps differ, and one sees a NaN.
    fn compare(rule: &MlpLopt, layouts: &[Arc<Layout>], path: Path) {
        let key = Key::new(4).fold_in(layouts.len() as u64);
        let thetas: Vec<Vec<f32>> = (0..layouts.len() as u64)
            .map(|i| LearnedOptimizer::<f32>::init(rule, key.named("theta").fold_in(i)))
            .collect();
        let group = MlpGroup::new(rule.clone(), thetas.clone(), path);
        let starts = |i: usize| start(group.member(i), &layouts[i], key.fold_in(i as u64));
        let mut together: Vec<OptState> = (0..layouts.len()).map(starts).collect();
        let mut alone = together.clone();
        for t in 0..8 {
            let mut updates: Vec<MemberUpdate<'_, f32>> = together
                .iter_mut()
                .enumerate()
                .map(|(i, state)| {
                    let mut grad = vec![0.0; state.params.len()];
                    key.fold_in(t).fold_in(i as u64).fill_normal(&mut grad);
                    if (t, i) == (5, 1) {
                        grad.fill(f32::NAN);
                    }
                    MemberUpdate { state, grad, loss: 1.0, key, skip: (t + i as u64) % 5 == 4 }
                })
                .collect();
            group.update(&mut updates);
            for ((i, update), state) in updates.iter().enumerate().zip(&mut alone) {
                let mut update = MemberUpdate { state, grad: update.grad.clone(), ..*update };
                update.apply(&MlpKernel::new(rule.clone(), &thetas[i], path));
            }
            for (i, (a, b)) in together.iter().zip(&alone).enumerate() {
                assert_eq!(bits(a), bits(b), "{rule:?} {path:?} {:?} member {i} step {t}", layouts[i]);
            }
        }
    }

    #[test]
    fn together_they_do_what_each_does_alone() {
        for (rule, path) in rules().iter().flat_map(|r| Path::available().into_iter().map(move |p| (r, p))) {
            for layout in layouts() {
                for members in [1, path.lanes().div_ceil(2), path.lanes()] {
                    compare(rule, &vec![layout.clone(); members], path);
                }
            }
            // Members whose parameters differ cannot go together; equal layouts need not be one object.
            let [a, b, c] = [7, 8, 7].map(|n| Arc::new(Layout::new([("x", vec![n])])));
            let some = &[a, b, c][..path.lanes().min(3)];
            compare(rule, some, path);
            compare(rule, &some.iter().step_by(2).cloned().collect::<Vec<_>>(), path);
        }
    }

    #[test]
    fn nobody_left_is_fine() {
        let rule = MlpLopt::default();
        let theta = LearnedOptimizer::<f32>::init(&rule, Key::new(6));
        let group = MlpGroup::new(rule, vec![theta], Path::best());
        let layout = Arc::new(Layout::new([("x", vec![4])]));
        let mut state = start(group.member(0), &layout, Key::new(1));
        let before = bits(&state);
        let grad = vec![1.0; 4];
        group.update(&mut [MemberUpdate {
            state: &mut state,
            grad,
            loss: 0.0,
            key: Key::new(0),
            skip: true,
        }]);
        assert_eq!(before, bits(&state));
    }
}
