//! Update rules that treat every parameter alone, each written once; the update and its exact
//! derivative follow from it.

use crate::kernel::{f32s, f32s_mut, Fused, Path};
use crate::rule::dual::{Dual, Scalar};
use outerloop_core::{Float, OptState, Params, Slot, UpdateAdjoint};
use pulp::{Arch, Simd, WithSimd};

/// The place of an update in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Updates done before this one.
    pub step: u64,
    /// The planned number of updates, if known.
    pub num_steps: Option<u64>,
}

impl At {
    pub(crate) fn of<E>(state: &OptState<E>) -> Self {
        At { step: state.step, num_steps: state.num_steps }
    }
    /// The number of this update, counted from 1.
    pub fn t(self) -> f64 {
        (self.step + 1) as f64
    }
}

/// The start of a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// The same number everywhere.
    Constant(f64),
    /// A copy of the parameters.
    Params,
}

/// `[T; N]` with its length behind a type parameter.
pub trait Array<T>: AsRef<[T]> + AsMut<[T]> {
    /// The length.
    const LEN: usize;
    /// Element `i` is `f(i)`.
    fn from_fn(f: impl FnMut(usize) -> T) -> Self;
}

impl<T, const N: usize> Array<T> for [T; N] {
    const LEN: usize = N;
    #[inline(always)]
    fn from_fn(f: impl FnMut(usize) -> T) -> Self {
        std::array::from_fn(f)
    }
}

/// An update rule for one parameter `p` with gradient `g` and a few slots of its own.
///
/// [`elementwise_optimizer!`](crate::elementwise_optimizer) makes an
/// [`Optimizer`](outerloop_core::Optimizer) with an exact
/// [`UpdateVjp`](outerloop_core::UpdateVjp) of it: [`Self::step`] runs on [`Dual`] numbers with
/// one direction for each of p, slots, g and theta, four at a time. Coefficients are computed in
/// f64 once per step and rounded to the dtype, so nothing cancels in f32.
///
/// ```
/// use outerloop_lopt::rule::dual::Scalar;
/// use outerloop_lopt::hand::{At, Elementwise};
///
/// /// v ← μ v + g;  p ← p − lr v
/// #[derive(Clone)]
/// struct Momentum { lr: f64, mu: f64 }
///
/// impl Elementwise for Momentum {
///     type Slots<T> = [T; 1];
///     type Coeffs<T> = [T; 2];
///     const SLOTS: &'static [&'static str] = &["momentum"];
///     fn name(&self) -> String { "momentum".into() }
///     fn coeffs<S: Scalar>(&self, _theta: &[S], _at: At) -> [S; 2] { [S::of(self.lr), S::of(self.mu)] }
///     #[inline(always)]
///     fn step<S: Scalar>(&self, &[lr, mu]: &[S; 2], p: S, [v]: [S; 1], g: S) -> (S, [S; 1]) {
///         let v = mu * v + g;
///         (p - lr * v, [v])
///     }
/// }
/// outerloop_lopt::elementwise_optimizer!(Momentum);
/// ```
pub trait Elementwise: Send + Sync {
    /// `[T; number of slots]`.
    type Slots<T>: Array<T>;
    /// `[T; number of coefficients]`.
    type Coeffs<T>: Array<T>;
    /// The slots' names.
    const SLOTS: &'static [&'static str];
    /// A kernel for [`Self::step`] and its derivative in f32, if there is one.
    const FUSED: Option<Fused> = None;

    /// Short name for reports.
    fn name(&self) -> String;

    /// What fills a slot at the start; zeros by default.
    fn initial(&self, slot: usize) -> Initial {
        let _ = slot;
        Initial::Constant(0.0)
    }

    /// The meta-parameters this rule was built from; empty for a hand-designed one.
    fn theta(&self) -> &[f64] {
        &[]
    }

    /// What [`Self::step`] needs besides the parameter's own numbers: learning rate, decays, bias
    /// corrections. `theta` is [`Self::theta`], as numbers that may carry derivatives.
    fn coeffs<S: Scalar>(&self, theta: &[S], at: At) -> Self::Coeffs<S>;

    /// [`Self::coeffs`] at [`Self::theta`]; override where parts can be computed once for all steps.
    fn values(&self, at: At) -> Self::Coeffs<f64> {
        self.coeffs(self.theta(), at)
    }

    /// The new parameter and slots. Mark it `#[inline(always)]`: the driver vectorizes it.
    fn step<S: Scalar>(
        &self,
        coeffs: &Self::Coeffs<S>,
        p: S,
        slots: Self::Slots<S>,
        g: S,
    ) -> (S, Self::Slots<S>);
}

/// Elements per block. Blocks are copied to the stack, so that the compiler sees buffers that do
/// not overlap and vectorizes the loop over them.
const BLOCK: usize = 64;
/// Directions per pass of the derivative.
const WIDTH: usize = 4;

fn rounded<E: Float, R: Elementwise>(c: &R::Coeffs<f64>) -> R::Coeffs<E> {
    R::Coeffs::from_fn(|k| <E as Float>::of(c.as_ref()[k]))
}

/// A block of `x` from `start` on, padded with zeros.
#[inline(always)]
fn load<E: Float, const B: usize>(x: &[E], start: usize) -> [E; B] {
    let mut out = [<E as Float>::of(0.0); B];
    match x[start..].first_chunk() {
        Some(full) => out = *full,
        None => out[..x.len() - start].copy_from_slice(&x[start..]),
    }
    out
}

/// Writes a block of `x` from `start` on, without the padding.
#[inline(always)]
fn store<E: Float, const B: usize>(block: &[E; B], x: &mut [E], start: usize) {
    let x = &mut x[start..];
    match x.first_chunk_mut() {
        Some(full) => *full = *block,
        None => x.copy_from_slice(&block[..x.len()]),
    }
}

/// `Optimizer::init` of a rule.
pub fn init<E: Float, R: Elementwise>(rule: &R, params: &Params<E>, num_steps: Option<u64>) -> OptState<E> {
    let n = params.data.len();
    let mut state = OptState::new(params, num_steps);
    for (k, name) in R::SLOTS.iter().enumerate() {
        let data = match rule.initial(k) {
            Initial::Constant(x) => vec![<E as Float>::of(x); n],
            Initial::Params => params.data.clone(),
        };
        state.slots.push(Slot { name: name.to_string(), data });
    }
    state
}

/// `Optimizer::update` of a rule.
///
/// # Panics
/// If `grad` and the parameters differ in length.
#[track_caller]
pub fn update<E: Float, R: Elementwise>(rule: &R, state: &mut OptState<E>, grad: &[E]) {
    assert_eq!(grad.len(), state.params.len(), "update: length of the gradient");
    let coeffs = rounded::<E, R>(&rule.values(At::of(state)));
    if !update_fused::<E, R>(Path::best(), &coeffs, state, grad) {
        update_plain(rule, &coeffs, state, grad);
    }
    state.step += 1;
}

/// The update by [`Elementwise::step`].
fn update_plain<E: Float, R: Elementwise>(
    rule: &R,
    coeffs: &R::Coeffs<E>,
    state: &mut OptState<E>,
    grad: &[E],
) {
    Arch::new().dispatch(Update { rule, coeffs, state, grad });
}

/// The update by [`Elementwise::FUSED`]; false if there is no kernel for this rule and dtype.
fn update_fused<E: Float, R: Elementwise>(
    path: Path,
    coeffs: &R::Coeffs<E>,
    state: &mut OptState<E>,
    grad: &[E],
) -> bool {
    let (Some(fused), Some([c, g])) = (R::FUSED, f32s([coeffs.as_ref(), grad])) else { return false };
    let mut slots = state.slots.iter_mut().map(|slot| &mut slot.data[..]);
    let mut slots =
        R::Slots::<&mut [f32]>::from_fn(|_| in_f32(slots.next().expect("as many slots as the rule names")));
    fused.update(path, c, in_f32(&mut state.params), slots.as_mut(), g);
    true
}

/// Numbers that are f32 under that name.
fn in_f32<E: Float>(x: &mut [E]) -> &mut [f32] {
    let [x] = f32s_mut([x]).expect("of the gradient's dtype, which is f32");
    x
}

/// A loop that `pulp` compiles for every instruction set. Rust never contracts a product and a sum,
/// so all of them give the same bits.
struct Update<'a, E, R: Elementwise> {
    rule: &'a R,
    coeffs: &'a R::Coeffs<E>,
    state: &'a mut OptState<E>,
    grad: &'a [E],
}

impl<E: Float, R: Elementwise> WithSimd for Update<'_, E, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<V: Simd>(mut self, _: V) {
        let start = self.blocks::<BLOCK>(0);
        // The rest without padding: tiny tasks are all rest.
        let start = self.blocks::<8>(start);
        self.blocks::<1>(start);
    }
}

impl<E: Float, R: Elementwise> Update<'_, E, R> {
    /// Updates from `start` on as many whole blocks of B elements as there are; returns their end.
    #[inline(always)]
    fn blocks<const B: usize>(&mut self, start: usize) -> usize {
        let Update { rule, coeffs, state, grad } = self;
        let end = grad.len() - (grad.len() - start) % B;
        for start in (start..end).step_by(B) {
            let mut p: [E; B] = load(&state.params, start);
            let mut slots = R::Slots::<[E; B]>::from_fn(|k| load(&state.slots[k].data, start));
            let g: [E; B] = load(grad, start);
            for i in 0..B {
                let s = R::Slots::<E>::from_fn(|k| slots.as_ref()[k][i]);
                let (new, s) = rule.step(coeffs, p[i], s, g[i]);
                p[i] = new;
                for k in 0..R::Slots::<E>::LEN {
                    slots.as_mut()[k][i] = s.as_ref()[k];
                }
            }
            store(&p, &mut state.params, start);
            for (k, s) in slots.as_ref().iter().enumerate() {
                store(s, &mut state.slots[k].data, start);
            }
        }
        end
    }
}

/// `UpdateVjp::vjp` of a rule: its kernel, or forward mode, contracted with the adjoint `after` on the
/// fly.
pub fn vjp<E: Float, R: Elementwise>(
    rule: &R,
    before: &OptState<E>,
    grad: &[E],
    after: &OptState<E>,
    theta: &mut [E],
) -> UpdateAdjoint<E> {
    assert_eq!(theta.len(), rule.theta().len(), "vjp: length of theta's adjoint");
    vjp_fused(Path::best(), rule, before, grad, after, theta)
        .unwrap_or_else(|| vjp_dual(rule, before, grad, after, theta))
}

/// d coeffs / d theta, one set of coefficients for each theta.
fn slopes<R: Elementwise>(rule: &R, at: At) -> Vec<R::Coeffs<f64>> {
    let values = rule.theta();
    let mut slopes = Vec::with_capacity(values.len());
    for first in (0..values.len()).step_by(WIDTH) {
        let variable = |(i, &v): (usize, &f64)| Dual::<f64, WIDTH>::variable(v, i.wrapping_sub(first));
        let theta: Vec<_> = values.iter().enumerate().map(variable).collect();
        let c = rule.coeffs(&theta, at);
        let along = |j: usize| R::Coeffs::from_fn(|k| c.as_ref()[k].d[j]);
        slopes.extend((0..WIDTH.min(values.len() - first)).map(along));
    }
    slopes
}

/// [`vjp`] by [`Elementwise::FUSED`]; `None` if there is no kernel for this rule and dtype.
fn vjp_fused<E: Float, R: Elementwise>(
    path: Path,
    rule: &R,
    before: &OptState<E>,
    grad: &[E],
    after: &OptState<E>,
    theta: &mut [E],
) -> Option<UpdateAdjoint<E>> {
    let fused = R::FUSED?;
    let at = At::of(before);
    let coeffs = rounded::<E, R>(&rule.values(at));
    let [coeffs, grad_f32] = f32s([coeffs.as_ref(), grad])?;
    let (mut inputs, mut adjoints) = (f32s([&before.params])?.to_vec(), f32s([&after.params])?.to_vec());
    for (slot, adjoint) in before.slots.iter().zip(&after.slots) {
        inputs.extend(f32s([&slot.data])?);
        adjoints.extend(f32s([&adjoint.data])?);
    }
    inputs.push(grad_f32);
    let mut out = vec![vec![<E as Float>::of(0.0); grad.len()]; inputs.len()];
    let mut views: Vec<&mut [f32]> = out.iter_mut().map(|x| in_f32(x)).collect();
    let sums = fused.pull_back(path, coeffs, &inputs, &adjoints, &mut views);
    // Through the coefficients, in f64.
    for (t, slope) in theta.iter_mut().zip(slopes(rule, at)) {
        *t += <E as Float>::of(slope.as_ref().iter().zip(&sums).map(|(slope, sum)| slope * sum).sum());
    }
    let grad = out.pop()?;
    let params = out.remove(0);
    Some(adjoint(before, params, out, grad))
}

/// The adjoint before an update that these buffers make.
fn adjoint<E: Float>(
    before: &OptState<E>,
    params: Vec<E>,
    slots: impl IntoIterator<Item = Vec<E>>,
    grad: Vec<E>,
) -> UpdateAdjoint<E> {
    let named = before.slots.iter().zip(slots);
    let slots = named.map(|(slot, data)| Slot { name: slot.name.clone(), data }).collect();
    let state = OptState { params, slots, layout: before.layout.clone(), ..*before };
    UpdateAdjoint { state, grad, loss: <E as Float>::of(0.0) }
}

/// [`vjp`] in forward mode.
fn vjp_dual<E: Float, R: Elementwise>(
    rule: &R,
    before: &OptState<E>,
    grad: &[E],
    after: &OptState<E>,
    theta: &mut [E],
) -> UpdateAdjoint<E> {
    let n = grad.len();
    let num_slots = R::Slots::<E>::LEN;
    let at = At::of(before);
    let coeffs = rounded::<E, R>(&rule.values(at));
    let slopes = slopes(rule, at);
    // The inputs in order: p, slots, g, theta. One buffer of adjoints [n] for each.
    let num_inputs = num_slots + 2 + slopes.len();
    let mut adjoints: Vec<Vec<E>> = (0..num_inputs).map(|_| vec![<E as Float>::of(0.0); n]).collect();
    for (pass, out) in adjoints.chunks_mut(WIDTH).enumerate() {
        let first = pass * WIDTH;
        let coeffs = R::Coeffs::<Dual<E, WIDTH>>::from_fn(|k| {
            let d = std::array::from_fn(|j| match (first + j).checked_sub(num_slots + 2) {
                Some(i) if i < slopes.len() => <E as Float>::of(slopes[i].as_ref()[k]),
                _ => <E as Float>::of(0.0),
            });
            Dual { value: coeffs.as_ref()[k], d }
        });
        Arch::new().dispatch(Pass { rule, coeffs: &coeffs, first, before, grad, after, out });
    }
    for (t, parts) in theta.iter_mut().zip(adjoints.drain(num_slots + 2..)) {
        *t += <E as Float>::of(sum_f64(&parts));
    }
    let grad = adjoints.pop().expect("one buffer for each input");
    let params = adjoints.remove(0);
    adjoint(before, params, adjoints, grad)
}

/// One pass of [`vjp`]: the adjoints of the inputs `first..first + WIDTH`.
struct Pass<'a, E, R: Elementwise> {
    rule: &'a R,
    coeffs: &'a R::Coeffs<Dual<E, WIDTH>>,
    first: usize,
    before: &'a OptState<E>,
    grad: &'a [E],
    after: &'a OptState<E>,
    out: &'a mut [Vec<E>],
}

impl<E: Float, R: Elementwise> WithSimd for Pass<'_, E, R> {
    type Output = ();
    #[inline(always)]
    fn with_simd<V: Simd>(self, _: V) {
        let Pass { rule, coeffs, first, before, grad, after, out } = self;
        let num_slots = R::Slots::<E>::LEN;
        // Direction of an input within this pass; WIDTH or more if it is not in this pass.
        let variable = |value: E, input: usize| {
            Dual::<E, WIDTH>::variable(value, if input >= first { input - first } else { WIDTH })
        };
        for start in (0..grad.len()).step_by(BLOCK) {
            let (p, g): ([E; BLOCK], [E; BLOCK]) = (load(&before.params, start), load(grad, start));
            let slots = R::Slots::<[E; BLOCK]>::from_fn(|k| load(&before.slots[k].data, start));
            let a_p: [E; BLOCK] = load(&after.params, start);
            let a_slots = R::Slots::<[E; BLOCK]>::from_fn(|k| load(&after.slots[k].data, start));
            let mut sums = [[<E as Float>::of(0.0); BLOCK]; WIDTH];
            for i in 0..BLOCK {
                let s = R::Slots::<Dual<E, WIDTH>>::from_fn(|k| variable(slots.as_ref()[k][i], k + 1));
                let (new, s) = rule.step(coeffs, variable(p[i], 0), s, variable(g[i], num_slots + 1));
                for (j, sums) in sums.iter_mut().enumerate() {
                    let mut sum = a_p[i] * new.d[j];
                    for k in 0..R::Slots::<E>::LEN {
                        sum += a_slots.as_ref()[k][i] * s.as_ref()[k].d[j];
                    }
                    sums[i] = sum;
                }
            }
            for (out, sums) in out.iter_mut().zip(&sums) {
                store(sums, out, start);
            }
        }
    }
}

/// The sum in f64, always in the same order: eight interleaved partial sums, then those in order.
pub(crate) fn sum_f64<E: Float>(x: &[E]) -> f64 {
    let mut sums = [0.0; 8];
    for chunk in x.chunks(8) {
        for (s, x) in sums.iter_mut().zip(chunk) {
            *s += x.f64();
        }
    }
    sums.iter().sum()
}

/// Makes an [`Optimizer`](outerloop_core::Optimizer) and its
/// [`UpdateVjp`](outerloop_core::UpdateVjp) of an [`Elementwise`] rule.
#[macro_export]
macro_rules! elementwise_optimizer {
    ($rule:ty) => {
        impl<E: outerloop_core::Float> outerloop_core::Optimizer<E> for $rule {
            fn name(&self) -> String {
                $crate::hand::Elementwise::name(self)
            }
            fn init(
                &self,
                params: &outerloop_core::Params<E>,
                num_steps: Option<u64>,
                _key: outerloop_core::Key,
            ) -> outerloop_core::OptState<E> {
                $crate::hand::elementwise::init(self, params, num_steps)
            }
            fn update(
                &self,
                state: &mut outerloop_core::OptState<E>,
                grad: &[E],
                _loss: E,
                _key: outerloop_core::Key,
            ) {
                $crate::hand::elementwise::update(self, state, grad)
            }
            fn update_vjp(&self) -> Option<&dyn outerloop_core::UpdateVjp<E>> {
                Some(self)
            }
        }
        impl<E: outerloop_core::Float> outerloop_core::UpdateVjp<E> for $rule {
            fn vjp(
                &self,
                before: &outerloop_core::OptState<E>,
                grad: &[E],
                _loss: E,
                _key: outerloop_core::Key,
                after: &outerloop_core::OptState<E>,
                theta: &mut [E],
            ) -> outerloop_core::UpdateAdjoint<E> {
                $crate::hand::elementwise::vjp(self, before, grad, after, theta)
            }
        }
    };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::hand::{Adam, AdamW, Sgd};
    use outerloop_core::{Key, Layout};
    use std::sync::Arc;

    /// Numbers that are the same in both dtypes; every seventh is 0.
    fn normal<E: Float>(key: Key, len: usize) -> Vec<E> {
        let mut x = vec![0.0f32; len];
        key.fill_normal(&mut x);
        x.iter_mut().step_by(7).for_each(|x| *x = 0.0);
        x.iter().map(|x| E::of(f64::from(*x))).collect()
    }

    /// Shapes around vectors and chunks of every path.
    const SHAPES: [&[usize]; 8] = [&[], &[0], &[10], &[33, 7], &[7, 33], &[2, 3, 4, 5], &[513], &[2410]];

    fn start<E: Float, R: Elementwise>(rule: &R, shape: &[usize]) -> OptState<E> {
        let layout = Arc::new(Layout::new([("x", shape.to_vec())]));
        let data = normal(Key::new(1), layout.len());
        init(rule, &Params { layout, data }, Some(60))
    }

    fn rules() -> [Adam; 2] {
        [Adam::default(), Adam { epsilon_root: 0.0, epsilon: 1e-3, ..Adam::default() }]
    }

    pub(crate) fn fifty_steps<R: Elementwise>(rule: &R) {
        for shape in SHAPES {
            for path in Path::available() {
                let mut want = start::<f32, R>(rule, shape);
                let mut got = want.clone();
                for t in 0..50 {
                    let grad = normal::<f32>(Key::new(t), want.params.len());
                    let coeffs = rounded::<f32, R>(&rule.coeffs(rule.theta(), At::of(&want)));
                    assert!(update_fused::<f32, R>(path, &coeffs, &mut got, &grad));
                    update_plain::<f32, R>(rule, &coeffs, &mut want, &grad);
                    (want.step, got.step) = (t + 1, t + 1);
                }
                assert_eq!(got, want, "{shape:?} {path:?}");
            }
        }
    }

    #[test]
    fn fused_updates_have_the_bits_of_plain_ones() {
        for adam in rules() {
            fifty_steps(&adam);
        }
        fifty_steps(&AdamW::new(0.02, 0.1));
        fifty_steps(&Sgd::new(0.02));
    }

    /// All adjoints after a few steps: state, gradient, theta.
    fn adjoints<E: Float, R: Elementwise>(
        rule: &R,
        shape: &[usize],
        steps: u64,
        vjp: impl Fn(&OptState<E>, &[E], &OptState<E>, &mut [E]) -> UpdateAdjoint<E>,
    ) -> Vec<Vec<f64>> {
        // The states come from f32, so that both dtypes start from the same numbers.
        let mut narrow = start::<f32, R>(rule, shape);
        let n = narrow.params.len();
        for t in 0..steps {
            update(rule, &mut narrow, &normal(Key::new(t), n));
        }
        let wide = |x: &[f32]| -> Vec<E> { x.iter().map(|x| E::of(f64::from(*x))).collect() };
        let mut state = start::<E, R>(rule, shape);
        state.step = narrow.step;
        state.params = wide(&narrow.params);
        let mut after = state.zeros_like();
        after.params = normal(Key::new(90), n);
        for k in 0..state.slots.len() {
            state.slots[k].data = wide(&narrow.slots[k].data);
            after.slots[k].data = normal(Key::new(91 + k as u64), n);
        }
        let mut theta = vec![E::of(0.5); rule.theta().len()];
        let a = vjp(&state, &normal(Key::new(95), n), &after, &mut theta);
        assert_eq!((a.state.step, a.loss), (state.step, E::of(0.0)));
        let mut all = vec![a.state.params, a.grad, theta];
        all.extend(a.state.slots.into_iter().map(|s| s.data));
        all.iter().map(|x| x.iter().map(|x| x.f64()).collect()).collect()
    }

    pub(crate) fn check_fused_vjp<R: Elementwise>(rule: &R) {
        for (shape, steps) in SHAPES.into_iter().flat_map(|shape| [(shape, 0), (shape, 3)]) {
            let want = adjoints::<f64, R>(rule, shape, steps, |s, g, a, t| vjp_dual(rule, s, g, a, t));
            for path in Path::available() {
                let got = adjoints::<f32, R>(rule, shape, steps, |s, g, a, t| {
                    vjp_fused(path, rule, s, g, a, t).expect("the rule has a kernel")
                });
                for (got, want) in got.iter().zip(&want) {
                    assert_eq!(got.len(), want.len());
                    let size = want.iter().fold(1e-6f64, |a, x| a.max(x.abs()));
                    for (got, want) in got.iter().zip(want) {
                        let gap = (got - want).abs();
                        assert!(gap <= 1e-5 * (want.abs() + size), "{shape:?} {path:?}: {got} {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn fused_derivatives_are_those_of_dual_numbers() {
        for adam in rules() {
            check_fused_vjp(&adam);
        }
        check_fused_vjp(&AdamW::new(0.02, 0.1));
        check_fused_vjp(&Sgd::new(0.02));
    }
}
