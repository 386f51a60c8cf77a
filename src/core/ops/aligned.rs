//! Buffers that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Numbers in a cache line.
const LINE: usize = 16;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// f32 numbers whose first one begins a cache line, so that no vector straddles two.
#[derive(Clone, Debug)]
pub(super) struct Aligned {
    lines: Vec<Line>,
    len: usize,
}

impl Aligned {
    pub(super) fn zeros(len: usize) -> Self {
        Aligned { lines: vec![Line([0.0; LINE]); len.div_ceil(LINE)], len }
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `Line` is `repr(C)` and as large as its array, so the lines are at least `len`
        // contiguous initialized numbers.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_line_and_hold_what_is_written() {
        for len in [0, 1, 16, 33] {
            let mut a = Aligned::zeros(len);
            assert_eq!((a.len(), a.as_ptr().align_offset(64)), (len, 0));
            for (i, x) in a.iter_mut().enumerate() {
                *x = i as f32;
            }
            assert!(a.iter().enumerate().all(|(i, x)| *x == i as f32));
        }
    }
}
