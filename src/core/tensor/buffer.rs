//! Buffers that outlive their use: a thread keeps those it dropped and takes them again.
//!
//! A tangent's buffers are large and short-lived. Fresh ones would come from the operating system page by
//! page in every call.

use crate::Float;
use std::any::Any;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};

/// Buffers that a thread keeps at most.
const KEPT: usize = 128;
/// Bytes of the smallest buffer that is worth it: below, the allocator is faster.
const SMALLEST: usize = 1 << 14;

thread_local! {
    /// Dropped buffers of any dtype, the latest last.
    static SPARE: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// Gives what this thread keeps back to the allocator.
pub(crate) fn release_buffers() {
    SPARE.with_borrow_mut(Vec::clear);
}

/// A buffer of the thread.
pub(crate) struct Buffer<E: 'static>(Vec<E>);

impl<E: Float> Buffer<E> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut data = Self::spare(len);
        data.resize(len, E::of(0.0));
        Buffer(data)
    }

    /// The elements of `x`.
    pub fn copy(x: &[E]) -> Self {
        let mut data = Self::spare(x.len());
        data.extend_from_slice(x);
        Buffer(data)
    }

    /// The elements of `x`, changed by `f` block by block, so that memory is passed over once: it is called with the
    /// place of a block and its elements.
    pub fn mapped(x: &[E], mut f: impl FnMut(Range<usize>, &mut [E])) -> Self {
        const BLOCK: usize = 1 << 10;
        let mut data = Self::spare(x.len());
        for block in x.chunks(BLOCK) {
            let start = data.len();
            data.extend_from_slice(block);
            f(start..data.len(), &mut data[start..]);
        }
        Buffer(data)
    }

    /// An empty vector with room for `len` elements, but not for many more.
    fn spare(len: usize) -> Vec<E> {
        if len * size_of::<E>() < SMALLEST {
            return Vec::with_capacity(len);
        }
        let fits = |b: &Box<dyn Any>| {
            b.downcast_ref::<Vec<E>>().is_some_and(|v| (len..=2 * len).contains(&v.capacity()))
        };
        let found = SPARE.with_borrow_mut(|s| s.iter().rposition(fits).map(|i| s.remove(i)));
        found.and_then(|b| b.downcast().ok()).map_or_else(|| Vec::with_capacity(len), |v| *v)
    }
}

impl<E: 'static> Drop for Buffer<E> {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.0);
        if data.capacity() * size_of::<E>() < SMALLEST {
            return;
        }
        data.clear();
        // An error means that the thread ends.
        let _ = SPARE.try_with(|s| {
            let mut s = s.borrow_mut();
            if s.len() == KEPT {
                s.remove(0);
            }
            s.push(Box::new(data));
        });
    }
}

impl<E: 'static> Deref for Buffer<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        &self.0
    }
}

impl<E: 'static> DerefMut for Buffer<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again_and_comes_clean() {
        let large = SMALLEST / size_of::<f32>();
        let mut first = Buffer::<f32>::zeros(large + 7);
        first.fill(3.0);
        let place = first.as_ptr();
        drop(first);
        // Neither another dtype nor a much smaller buffer takes it.
        let (wide, small) = (Buffer::<f64>::zeros(large), Buffer::<f32>::zeros(large / 4));
        assert!(wide.as_ptr().cast() != place && small.as_ptr() != place);
        let again = Buffer::<f32>::zeros(large);
        assert_eq!(again.as_ptr(), place);
        assert!(again.len() == large && again.iter().all(|x| *x == 0.0));
        drop(again);
        let x: Vec<f32> = (0..large).map(|i| i as f32).collect();
        let copy = Buffer::copy(&x);
        assert_eq!(copy.as_ptr(), place);
        assert_eq!(copy[..], x);
    }

    #[test]
    fn a_mapped_buffer_is_changed_block_by_block() {
        let x: Vec<f64> = (0..2500).map(f64::from).collect();
        let mapped = Buffer::mapped(&x, |at, block| {
            assert_eq!(x[at.clone()], *block);
            block.iter_mut().zip(at).for_each(|(b, i)| *b += 0.5 * i as f64);
        });
        assert!(mapped.len() == 2500 && mapped.iter().zip(&x).all(|(m, x)| *m == 1.5 * x));
    }

    #[test]
    fn a_thread_keeps_a_bounded_number() {
        let many: Vec<_> = (0..2 * KEPT).map(|_| Buffer::<f64>::zeros(SMALLEST)).collect();
        drop(many);
        assert!((1..=KEPT).contains(&SPARE.with_borrow(Vec::len)));
        release_buffers();
        assert!(SPARE.with_borrow(Vec::is_empty));
    }
}
