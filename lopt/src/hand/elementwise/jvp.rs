//! `UpdateJvp::jvp` of an [`Elementwise`] rule.

use super::{rounded, Array, At, Elementwise};
use crate::rule::dual::Dual;
use outerloop_core::{Float, OptState, UpdateTangent};

/// `UpdateJvp::jvp` of a rule: [`Elementwise::step`] on numbers with one direction. No kernel: as fast as the
/// compiler makes it.
pub fn jvp<E: Float, R: Elementwise>(
    rule: &R,
    before: &OptState<E>,
    grad: &[E],
    tangent: UpdateTangent<'_, E>,
) -> OptState<E> {
    assert_eq!(tangent.theta.len(), rule.theta().len(), "jvp: length of theta's tangent");
    let at = At::of(before);
    let theta = rule.theta().iter().zip(tangent.theta);
    let theta: Vec<_> = theta.map(|(&value, d)| Dual::<f64, 1> { value, d: [d.f64()] }).collect();
    // The values are those of the update; the slopes are exact and rounded once.
    let (values, slopes) = (rounded::<E, R>(&rule.values(at)), rule.coeffs(&theta, at));
    let coeffs = R::Coeffs::from_fn(|k| {
        let slope = slopes.as_ref()[k].d[0];
        Dual { value: values.as_ref()[k], d: [<E as Float>::of(slope)] }
    });
    let mut after = before.zeros_like();
    after.step += 1;
    for i in 0..grad.len() {
        let dual = |x: &[E], d: &[E]| Dual { value: x[i], d: [d[i]] };
        let p = dual(&before.params, &tangent.state.params);
        let slots = R::Slots::from_fn(|k| dual(&before.slots[k].data, &tangent.state.slots[k].data));
        let (p, slots) = rule.step(&coeffs, p, slots, dual(grad, tangent.grad));
        after.params[i] = p.d[0];
        after.slots.iter_mut().zip(slots.as_ref()).for_each(|(slot, moved)| slot.data[i] = moved.d[0]);
    }
    after
}
