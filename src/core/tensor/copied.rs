//! [`Backend::with_grads`] by copies to the host and back, for devices whose memory the host does not reach.

use super::{unique_id, Backend, Float, Gradients, Shape, Storage, Tensor};
use dfdx::prelude::HasShape;

/// How a buffer comes to the host and back.
pub(super) struct Copies<E: Float, B: Backend<E>> {
    pub read: fn(&<B as Storage<E>>::Vec) -> Vec<E>,
    pub write: fn(&mut <B as Storage<E>>::Vec, &[E]),
}

impl<E: Float, B: Backend<E>> Copies<E, B> {
    /// As [`Backend::with_grads`].
    pub fn with_grads(
        &self,
        grads: &mut Gradients<E, B>,
        y: &Tensor<(usize,), E, B>,
        x: &[Tensor<(usize,), E, B>],
        active: &[bool],
        f: impl FnOnce(&[E], &mut [Option<&mut [E]>]),
    ) -> Result<(), B::Err> {
        let ids: Vec<_> = x.iter().map(unique_id).collect();
        assert!(!ids.contains(&unique_id(y)), "an operation's output is not its input");
        let dy = (self.read)(grads.get_or_alloc_mut(y)?);
        // Where an input comes again (x * x), it adds to zeros, which are added when the first one is back.
        let is_first = |i: usize| !(0..i).any(|j| active[j] && ids[j] == ids[i]);
        let mut dx: Vec<Option<Vec<E>>> = Vec::with_capacity(x.len());
        for (i, x) in x.iter().enumerate() {
            dx.push(match active[i] {
                false => None,
                true if is_first(i) => Some((self.read)(grads.get_or_alloc_mut(x)?)),
                true => Some(vec![E::of(0.0); x.shape().num_elements()]),
            });
        }
        let mut views: Vec<Option<&mut [E]>> = dx.iter_mut().map(|d| d.as_deref_mut()).collect();
        f(&dy, &mut views);
        for (i, part) in dx.into_iter().enumerate() {
            let Some(part) = part else { continue };
            let target = grads.get_or_alloc_mut(&x[i])?;
            if is_first(i) {
                (self.write)(target, &part);
            } else {
                let mut sum = (self.read)(target);
                sum.iter_mut().zip(&part).for_each(|(s, p)| *s += *p);
                (self.write)(target, &sum);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Cpu, Host, TensorFromVec};

    const COPIES: Copies<f64, Cpu> =
        Copies { read: |v| Cpu::slice(v).to_vec(), write: |v, x| Cpu::slice_mut(v).copy_from_slice(x) };

    /// Calls either way with the same gradients, twice, and returns those of all inputs.
    fn gradients(copies: bool) -> Vec<Vec<f64>> {
        let dev = Cpu::default();
        let tensor = |x: [f64; 3]| dev.tensor_from_vec(x.to_vec(), (3,));
        let (a, b, y) = (tensor([1.0, 2.0, 3.0]), tensor([4.0, 5.0, 6.0]), tensor([0.0; 3]));
        let mut grads = Gradients::<f64, Cpu>::leaky();
        Cpu::slice_mut(grads.get_or_alloc_mut(&y).unwrap()).copy_from_slice(&[0.5, -1.0, 2.0]);
        Cpu::slice_mut(grads.get_or_alloc_mut(&a).unwrap()).copy_from_slice(&[10.0, 20.0, 30.0]);
        // `b` before `a`, which is there twice, once inactive.
        let inputs = [b.clone(), a.clone(), a.clone(), b.clone(), a.clone()];
        let active = [false, true, true, true, true];
        for _ in 0..2 {
            let f = |dy: &[f64], dx: &mut [Option<&mut [f64]>]| {
                assert!(dx[0].is_none());
                for (i, d) in dx.iter_mut().enumerate() {
                    let Some(d) = d else { continue };
                    d.iter_mut().zip(dy).for_each(|(d, dy)| *d += (i + 1) as f64 * dy);
                }
            };
            if copies {
                COPIES.with_grads(&mut grads, &y, &inputs, &active, f).unwrap();
            } else {
                <Cpu as Backend<f64>>::with_grads(&mut grads, &y, &inputs, &active, f).unwrap();
            }
        }
        [&a, &b, &y].map(|t| Cpu::slice(grads.get_or_alloc_mut(t).unwrap()).to_vec()).to_vec()
    }

    #[test]
    fn copies_add_what_the_host_adds_in_place() {
        let got = gradients(true);
        assert_eq!(got, gradients(false));
        // a: 10 + 2 (2 + 3 + 5) · ½, b: 2 · 4 · ½.
        assert_eq!([got[0][0], got[1][0], got[2][0]], [20.0, 4.0, 0.5]);
    }
}
