//! `UpdateVjp::vjp` of an [`Elementwise`] rule.

use super::update::{load, store, BLOCK};
use super::{in_f32, rounded, sum_f64, Array, At, Elementwise};
use crate::kernel::{f32s, Path};
use crate::rule::dual::Dual;
use outerloop_core::{Float, OptState, Slot, UpdateAdjoint};

/// Directions per pass of the derivative.
const WIDTH: usize = 4;

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
pub(super) fn vjp_fused<E: Float, R: Elementwise>(
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
pub(super) fn vjp_dual<E: Float, R: Elementwise>(
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
        Pass { rule, coeffs: &coeffs, first, before, grad, after }.run(out);
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
}

impl<E: Float, R: Elementwise> Pass<'_, E, R> {
    /// Fills `out`. For one instruction set only: derivatives that have to be fast are kernels.
    fn run(self, out: &mut [Vec<E>]) {
        let Pass { rule, coeffs, first, before, grad, after } = self;
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
