//! Every operation against the same as a composition: value, gradient and product with the Hessian.

use super::*;
use crate::problem::Rows;
use outerloop_core::ops;
use outerloop_core::tensor::{
    host_data, record_hvp, Cpu, DynParams, DynTree, Float, Mode, ParamTree, Rank0, Rec, SplitTape, Tensor,
    TensorFromVec,
};
use outerloop_core::{Key, Layout};
use std::sync::Arc;

type Inputs<'a, E> = &'a [Rows<E, Cpu, Rec>];
type Function<'a, E> = &'a dyn Fn(Inputs<'_, E>) -> Rows<E, Cpu, Rec>;

/// Whether two functions of matrices of these shapes are the same; each result is weighted by random numbers.
fn check<E: Float>(shapes: &[[usize; 2]], tolerance: f64, parts: [Function<'_, E>; 2])
where
    Cpu: outerloop_core::tensor::Host<E>,
{
    let dev = Cpu::default();
    let layout = Layout::new(shapes.iter().enumerate().map(|(i, s)| (i.to_string(), s.to_vec())));
    let mut flat = vec![E::of(0.0); 2 * layout.len()];
    Key::new(3).fill_normal(&mut flat);
    let (at, v) = flat.split_at(layout.len());
    let layout = Arc::new(layout);
    let params = DynParams::<E, Cpu>::new(&dev, layout.clone(), at);
    let directions: Vec<&[E]> = layout.entries().iter().map(|e| &v[e.range()]).collect();
    let found = parts.map(|f| {
        let r = record_hvp(&params.ids(), &directions, |m: Rec| -> Tensor<Rank0, E, Cpu, Rec> {
            let inputs: Vec<_> =
                shapes.iter().enumerate().map(|(i, s)| params.traced(i, (s[0], s[1]), m)).collect();
            let y = f(&inputs);
            let mut weights = vec![E::of(0.0); host_data(&y.clone().split_tape().0).len()];
            Key::new(4).fill_normal(&mut weights);
            let weights = dev.tensor_from_vec(weights, *outerloop_core::tensor::HasShape::shape(&y));
            // Not linear in the result, so that adjoints change along the direction, too.
            ops::sum(ops::mul(ops::square(y.clone()), &weights))
        });
        let mut grads = r.grads;
        let mut grad = vec![E::of(0.0); layout.len()];
        params.read_grads(&dev, &mut grads, &mut grad);
        let zero = |(h, e): (Option<Vec<E>>, &outerloop_core::Entry)| {
            h.unwrap_or_else(|| vec![E::of(0.0); e.numel()])
        };
        let hvp: Vec<E> = r.hvp.expect("exact").into_iter().zip(layout.entries()).flat_map(zero).collect();
        [vec![host_data(&r.value)[0]], grad, hvp]
    });
    for (k, (a, b)) in found[0].iter().zip(&found[1]).enumerate() {
        assert!(b.iter().any(|b| b.f64() != 0.0), "nothing to compare in {k}");
        for (a, b) in a.iter().zip(b) {
            let off = (a.f64() - b.f64()).abs();
            assert!(off <= tolerance * (1.0 + b.f64().abs()), "{k}: {a} {b}");
        }
    }
}

fn bare<E: Float>(x: &Rows<E, Cpu, Rec>) -> Rows<E, Cpu> {
    x.clone().split_tape().0
}

fn column<M: Mode<E, Cpu>, E: Float>(x: Tensor<(usize,), E, Cpu, M>) -> Rows<E, Cpu, M>
where
    Cpu: outerloop_core::tensor::Host<E>,
{
    let n = outerloop_core::tensor::HasShape::shape(&x).0;
    ops::reshape(x, (n, 1usize))
}

fn check_all<E: Float>(tolerance: f64)
where
    Cpu: outerloop_core::tensor::Host<E>,
{
    // More columns than partial sums, and others left over.
    check::<E>(
        &[[3, 37], [3, 37]],
        tolerance,
        [&|p| column(bernoulli(p[0].clone(), &bare(&p[1]))), &|p| {
            let each = ops::sub(ops::mul(p[0].clone(), &p[1]), &ops::softplus(p[0].clone()));
            column(ops::sum_axis1(each))
        }],
    );
    for samples in [1, 3] {
        check::<E>(
            &[[2, 10], [2 * samples, 5]],
            tolerance,
            [&|p| sample(&p[0], &bare(&p[1])), &move |p| {
                let ids: Vec<u32> = (0..2 * samples as u32).map(|i| i / samples as u32).collect();
                let rows = ops::embedding(p[0].clone(), &ids);
                let spread = ops::exp(ops::scale(ops::columns(rows.clone(), 5, 5usize), 0.5));
                ops::add(ops::columns(rows, 0, 5usize), &ops::mul(spread, &p[1]))
            }],
        );
    }
    check::<E>(
        &[[3, 42]],
        tolerance,
        [&|p| column(divergence(&p[0])), &|p| {
            let [mu, v] = [0, 21].map(|at| ops::columns(p[0].clone(), at, 21usize));
            let spread = ops::shift(ops::sub(ops::exp(v.clone()), &v), -1.0);
            column(ops::scale(ops::sum_axis1(ops::add(ops::square(mu), &spread)), 0.5))
        }],
    );
    check::<E>(
        &[[4, 19], [4, 19], [1, 19]],
        tolerance,
        [
            &|p| {
                let beta = ops::reshape(bare(&p[2]), (19usize,));
                shrink(p[0].clone(), Some(&p[1]), &beta)
            },
            &|p| {
                let v = ops::add(p[0].clone(), &p[1]);
                let beta = ops::reshape(p[2].clone(), (19usize,));
                let above = ops::relu(ops::sub(v.clone(), &beta));
                ops::sub(above, &ops::relu(ops::sub(ops::neg(v), &beta)))
            },
        ],
    );
    check::<E>(
        &[[4, 3]],
        tolerance,
        [&|p| unit(p[0].clone()), &|p| {
            let t = ops::transpose(p[0].clone());
            let norm = ops::sqrt(ops::sum_axis0(ops::square(t.clone())));
            ops::transpose(ops::div(t, &norm))
        }],
    );
    check::<E>(
        &[[3, 5]; 3],
        tolerance,
        [&|p| mix(p[0].clone(), &p[1], &p[2]), &|p| {
            ops::add(p[2].clone(), &ops::mul(p[0].clone(), &ops::sub(p[1].clone(), &p[2])))
        }],
    );
}

#[test]
fn fused_operations_are_their_compositions() {
    check_all::<f64>(1e-12);
    check_all::<f32>(2e-5);
}
