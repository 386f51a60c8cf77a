//! Tests' harness: a kernel's derivative against the rule's on the tape.

use crate::kernel::Path;
use crate::rule::{Taped, UpdateRule};
use outerloop_core::contract::awkward_layout;
use outerloop_core::{Float, Key, Layout, OptState, Optimizer, Params, Slot, UpdateTangent};
use std::sync::Arc;

/// Normal numbers, the same in f32 and f64.
fn normal<E: Float>(key: u64, len: usize) -> Vec<E> {
    let mut x = vec![0.0f32; len];
    Key::new(key).fill_normal(&mut x);
    x.iter().map(|x| E::of(f64::from(*x))).collect()
}

/// All adjoints of one update: parameters, gradient, theta, slots. `first`: a factor of the first gradient.
fn adjoints<E: Float>(
    opt: &dyn Optimizer<E>,
    state: &OptState<E>,
    theta: usize,
    first: f64,
) -> Vec<Vec<f64>> {
    let mut after = state.zeros_like();
    after.params = normal(32, state.params.len());
    for (k, slot) in after.slots.iter_mut().enumerate() {
        slot.data = normal(33 + k as u64, slot.data.len());
    }
    let mut grad: Vec<E> = normal(31, state.params.len());
    grad.iter_mut().take(1).for_each(|g| *g *= E::of(first));
    let mut theta = vec![E::of(0.0); theta];
    let vjp = opt.update_vjp().expect("a learned optimizer has a derivative");
    let a = vjp.vjp(state, &grad, E::of(0.0), Key::new(0), &after, &mut theta);
    let mut all = vec![a.state.params, a.grad, theta];
    all.extend(a.state.slots.into_iter().map(|s| s.data));
    all.iter().map(|x| x.iter().map(|x| x.f64()).collect()).collect()
}

/// The direction in which the state after an update moves, when everything before it does.
fn tangents<E: Float>(opt: &dyn Optimizer<E>, state: &OptState<E>, theta: usize) -> Vec<Vec<f64>> {
    let n = state.params.len();
    let mut moved = state.zeros_like();
    moved.params = normal(42, n);
    for (k, slot) in moved.slots.iter_mut().enumerate() {
        slot.data = normal(43 + k as u64, slot.data.len());
    }
    let [grad, moved_grad, theta]: [Vec<E>; 3] = [normal(31, n), normal(41, n), normal(40, theta)];
    let tangent = UpdateTangent { state: &moved, grad: &moved_grad, loss: E::of(0.5), theta: &theta };
    let jvp = opt.update_jvp().expect("a rule on the tape has one");
    let after = jvp.jvp(state, &grad, E::of(0.0), Key::new(0), tangent);
    assert_eq!(after.step, state.step + 1);
    let slots = after.slots.iter().map(|s| &s.data);
    std::iter::once(&after.params).chain(slots).map(|x| x.iter().map(|x| x.f64()).collect()).collect()
}

pub(crate) fn converted<A: Float, B: Float>(s: &OptState<A>) -> OptState<B> {
    let convert = |x: &[A]| x.iter().map(|x| B::of(x.f64())).collect();
    let slots = s.slots.iter().map(|s| Slot { name: s.name.clone(), data: convert(&s.data) }).collect();
    let params = convert(&s.params);
    OptState { layout: s.layout.clone(), params, slots, step: s.step, num_steps: s.num_steps }
}

/// The bits of parameters and slots.
pub(crate) fn bits(state: &OptState<f32>) -> Vec<u32> {
    let slots = state.slots.iter().flat_map(|s| &s.data);
    state.params.iter().chain(slots).map(|x| x.to_bits()).collect()
}

/// Holds a kernel's derivative in f32 against the rule's on the tape in f64, after three updates, on
/// shapes of many kinds; the bits must be the same on every path.
pub(crate) fn check<R: UpdateRule + Clone>(
    rule: &R,
    tolerance: f64,
    kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
) {
    check_on(&layouts(), 1.0, rule, tolerance, kernel);
}

fn layouts() -> Vec<Arc<Layout>> {
    let shapes: [&[usize]; 10] =
        [&[10], &[], &[7, 33], &[33, 7], &[5, 1], &[2, 3, 4, 5], &[0], &[49], &[2000], &[50, 40]];
    let mut layouts = vec![awkward_layout()];
    layouts.extend(shapes.map(|s| Arc::new(Layout::new([("x", s.to_vec())]))));
    layouts.push(Arc::new(Layout::new((0..40).map(|i| (format!("{i:02}"), vec![i % 5])))));
    layouts
}

/// [`check`] of the derivative in forward mode.
pub(crate) fn check_forward<R: UpdateRule + Clone>(
    rule: &R,
    tolerance: f64,
    kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
) {
    hold(&layouts(), (tangents::<f64>, tangents::<f32>), rule, tolerance, kernel);
}

/// [`check`] on these layouts, with the first gradient multiplied by `first`.
pub(crate) fn check_on<R: UpdateRule + Clone>(
    layouts: &[Arc<Layout>],
    first: f64,
    rule: &R,
    tolerance: f64,
    kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
) {
    let wide = |opt: &dyn Optimizer<f64>, state: &OptState<f64>, len| adjoints(opt, state, len, first);
    let narrow = |opt: &dyn Optimizer<f32>, state: &OptState<f32>, len| adjoints(opt, state, len, first);
    hold(layouts, (wide, narrow), rule, tolerance, kernel);
}

/// Holds what `derivatives` gives of a kernel against what it gives of the twin in f64.
fn hold<R: UpdateRule + Clone>(
    layouts: &[Arc<Layout>],
    derivatives: (
        impl Fn(&dyn Optimizer<f64>, &OptState<f64>, usize) -> Vec<Vec<f64>>,
        impl Fn(&dyn Optimizer<f32>, &OptState<f32>, usize) -> Vec<Vec<f64>>,
    ),
    rule: &R,
    tolerance: f64,
    kernel: impl Fn(Path, &[f32]) -> Box<dyn Optimizer<f32>>,
) {
    let theta: Vec<f32> = rule.init_theta(Key::new(6));
    let theta64: Vec<f64> = theta.iter().map(|t| f64::from(*t)).collect();
    let twin = Taped::<_, f64>::new(rule.clone(), &theta64);
    for layout in layouts {
        let mut params = Params::<f64>::zeros(layout.clone());
        Key::new(9).fill_normal(&mut params.data);
        let mut state = twin.init(&params, Some(20), Key::new(0));
        for t in 0..3 {
            let mut grad = vec![0.0; layout.len()];
            Key::new(t).fill_normal(&mut grad);
            twin.update(&mut state, &grad, 0.0, Key::new(0));
        }
        // Both start from the same, rounded state.
        let narrow: OptState<f32> = converted(&state);
        let want = derivatives.0(&twin, &converted(&narrow), theta.len());
        let mut bits = None;
        for path in Path::available() {
            let got = derivatives.1(&*kernel(path, &theta), &narrow, theta.len());
            let own: Vec<u64> = got.iter().flatten().map(|x| x.to_bits()).collect();
            assert!(bits.get_or_insert_with(|| own.clone()) == &own, "{} {path:?} {layout:?}", rule.name());
            for (k, (got, want)) in got.iter().zip(&want).enumerate() {
                let size = want.iter().fold(0.1f64, |a, x| a.max(x.abs()));
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    let error = (got - want).abs();
                    assert!(
                        error <= tolerance * (want.abs() + 0.1 * size),
                        "{} {path:?} {layout:?} {k} {i}: {got} {want}",
                        rule.name()
                    );
                }
            }
        }
    }
}
