//! Learned optimizers' derivatives in f32 where accumulators are fresh: finite, and those in f64.

use outerloop_core::contract::awkward_params;
use outerloop_core::{Float, Key, OptState};
use outerloop_lopt::registry;
use serde_json::json;

/// Adjoints of theta, parameters, every slot, gradient and loss of one update of an initial state.
fn adjoints<E: Float>(class: &str, zeros: usize) -> Vec<(String, Vec<f64>)> {
    let lopt = registry::learned::<E>(class, &json!({})).unwrap();
    let key = Key::new(5);
    // The same numbers in both dtypes: rounded to f32.
    let theta: Vec<E> = lopt.init(key).iter().map(|t| E::of(f64::from(t.f64() as f32))).collect();
    let opt = lopt.opt_fn(&theta);
    let mut params = awkward_params::<E>(key);
    params.data.iter_mut().for_each(|p| *p = E::of(f64::from(p.f64() as f32)));
    let state = opt.init(&params, Some(20), key);
    let normal = |name: &str, len: usize| -> Vec<E> {
        let mut x = vec![0.0f32; len];
        key.named(name).fill_normal(&mut x);
        x.iter().map(|x| E::of(f64::from(*x))).collect()
    };
    let mut grad = normal("grad", params.data.len());
    grad.iter_mut().step_by(zeros).for_each(|g| *g = E::of(0.0));
    let mut after: OptState<E> = state.zeros_like();
    after.params = normal("after", params.data.len());
    let mut adjoint = vec![E::of(0.0); theta.len()];
    let vjp = opt.update_vjp().expect("every learned optimizer has a derivative");
    let before = vjp.vjp(&state, &grad, E::of(0.5), key, &after, &mut adjoint);
    let wide = |x: &[E]| x.iter().map(|x| x.f64()).collect::<Vec<_>>();
    let mut all = vec![
        ("theta".to_string(), wide(&adjoint)),
        ("params".to_string(), wide(&before.state.params)),
        ("grad".to_string(), wide(&before.grad)),
        ("loss".to_string(), vec![before.loss.f64()]),
    ];
    all.extend(before.state.slots.iter().map(|s| (s.name.clone(), wide(&s.data))));
    all
}

#[test]
fn f32_adjoints_of_fresh_accumulators_are_finite_and_those_of_f64() {
    for class in registry::LEARNED {
        // Every gradient zero, or every second one.
        for zeros in [1, 2] {
            for ((what, narrow), (_, wide)) in
                adjoints::<f32>(class, zeros).iter().zip(adjoints::<f64>(class, zeros))
            {
                // Adjoints of the parameters are about 1; what cancels against them is rounding: the worst
                // of 30 keys differs by 1.7e-3 (Celo2's row sums).
                let size = wide.iter().fold(0.0f64, |a, x| a.max(x.abs()));
                assert!(size.is_finite(), "{class} {what}");
                for (i, (a, b)) in narrow.iter().zip(&wide).enumerate() {
                    assert!(
                        (a - b).abs() <= 3e-3 * size + 1e-9,
                        "{class}, zeros {zeros}: {what}[{i}]: {a:e}, not {b:e}"
                    );
                }
            }
        }
    }
}
