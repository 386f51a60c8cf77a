//! Update rules that treat every parameter alone, each written once; the update and its exact
//! derivative follow from it.

mod jvp;
mod update;
mod vjp;

pub use jvp::jvp;
pub use update::update;
pub use vjp::vjp;

use crate::kernel::{f32s_mut, Fused};
use crate::rule::dual::Scalar;
use outerloop_core::{Float, OptState, Params, Result, Slot};
use std::borrow::Cow;

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
/// [`UpdateVjp`](outerloop_core::UpdateVjp) of it: [`Self::step`] runs on [`Dual`](crate::rule::dual::Dual) numbers with
/// one direction for each of p, slots, g and theta, four at a time. Coefficients are computed in
/// f64 once per step and rounded to the dtype, so nothing cancels in f32.
///
/// ```
/// use outerloop_lopt::rule::dual::Scalar;
/// use outerloop_lopt::hand::{At, Elementwise};
///
/// /// v ← μ v + g;  p ← p − lr v
/// #[derive(Clone, Debug)]
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

    /// Whether every hyperparameter is in its range; see [`Optimizer::validate`](outerloop_core::Optimizer::validate).
    ///
    /// # Errors
    /// The first that is not, with the range.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

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

    /// See [`Optimizer::evaluation_params`](outerloop_core::Optimizer::evaluation_params).
    fn evaluation_params<'a, E: Float>(&self, state: &'a OptState<E>) -> Cow<'a, [E]> {
        Cow::Borrowed(&state.params)
    }
}

/// Coefficients in the dtype of the parameters.
fn rounded<E: Float, R: Elementwise>(c: &R::Coeffs<f64>) -> R::Coeffs<E> {
    R::Coeffs::from_fn(|k| <E as Float>::of(c.as_ref()[k]))
}

/// Numbers that are f32 under that name.
fn in_f32<E: Float>(x: &mut [E]) -> &mut [f32] {
    let [x] = f32s_mut([x]).expect("of the gradient's dtype, which is f32");
    x
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
        $crate::optimizer_of_rule!($rule, Elementwise, elementwise, {
            fn update_jvp(&self) -> Option<&dyn outerloop_core::UpdateJvp<E>> {
                Some(self)
            }
        });
        impl<E: outerloop_core::Float> outerloop_core::UpdateJvp<E> for $rule {
            fn jvp(
                &self,
                before: &outerloop_core::OptState<E>,
                grad: &[E],
                _loss: E,
                _key: outerloop_core::Key,
                tangent: outerloop_core::UpdateTangent<'_, E>,
            ) -> outerloop_core::OptState<E> {
                $crate::hand::elementwise::jvp(self, before, grad, tangent)
            }
        }
    };
}

#[cfg(test)]
pub(crate) mod tests {
    use super::update::{update_fused, update_plain};
    use super::vjp::{vjp_dual, vjp_fused};
    use super::*;
    use crate::hand::{Adam, AdamW, Sgd};
    use crate::kernel::Path;
    use outerloop_core::{Key, Layout, UpdateAdjoint};
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

    fn rules() -> [Adam; 3] {
        let root = |epsilon| Adam { epsilon_root: 0.0, epsilon, ..Adam::default() };
        [Adam::default(), root(1e-3), root(0.0)]
    }

    pub(crate) fn fifty_steps<R: Elementwise>(rule: &R) {
        for shape in SHAPES {
            for path in Path::available() {
                let mut want = start::<f32, R>(rule, shape);
                let mut got = want.clone();
                for t in 0..50 {
                    let mut grad = normal::<f32>(Key::new(t), want.params.len());
                    grad.iter_mut().take(usize::from(t == 40)).for_each(|g| *g = 1e20);
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

    /// All adjoints after a few steps: state, gradient, theta. `first`: added to the first gradient.
    fn adjoints<E: Float, R: Elementwise>(
        rule: &R,
        shape: &[usize],
        (steps, first): (u64, f64),
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
        let mut grad = normal(Key::new(95), n);
        grad.iter_mut().take(1).for_each(|g| *g += <E as Float>::of(first));
        let a = vjp(&state, &grad, &after, &mut theta);
        assert_eq!((a.state.step, a.loss), (state.step, E::of(0.0)));
        let mut all = vec![a.state.params, a.grad, theta];
        all.extend(a.state.slots.into_iter().map(|s| s.data));
        all.iter().map(|x| x.iter().map(|x| x.f64()).collect()).collect()
    }

    pub(crate) fn check_fused_vjp<R: Elementwise>(rule: &R) {
        let cases = [(0, 0.0), (3, 0.0), (3, 1e20)];
        for (shape, case) in SHAPES.into_iter().flat_map(|shape| cases.map(|case| (shape, case))) {
            let want = adjoints::<f64, R>(rule, shape, case, |s, g, a, t| vjp_dual(rule, s, g, a, t));
            let mut bits = None;
            for path in Path::available() {
                let got = adjoints::<f32, R>(rule, shape, case, |s, g, a, t| {
                    vjp_fused(path, rule, s, g, a, t).expect("the rule has a kernel")
                });
                let own: Vec<u64> = got.iter().flatten().map(|x| x.to_bits()).collect();
                assert!(bits.get_or_insert_with(|| own.clone()) == &own, "bits of {shape:?} on {path:?}");
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
