//! What a flat buffer means: the names, shapes and offsets of the tensors in it.

use crate::{Error, Float, Result};
use serde::{Deserialize, Serialize};
use std::{ops::Range, sync::Arc};

/// One tensor in a flat buffer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique name, parts joined with `/`.
    pub name: String,
    /// Dimensions, row major; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index of the first element.
    pub offset: usize,
}

impl Entry {
    /// Number of elements (1 for a scalar).
    #[inline]
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
    /// The elements' positions in the flat buffer.
    #[inline]
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.numel()
    }
}

/// Names, shapes and offsets of the tensors in one flat, row-major buffer without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// A layout from `(name, shape)` pairs, in buffer order.
    pub fn new<N: Into<String>, S: Into<Vec<usize>>>(tensors: impl IntoIterator<Item = (N, S)>) -> Self {
        let mut layout = Layout::default();
        for (name, shape) in tensors {
            layout.push(name, shape);
        }
        layout
    }

    /// Appends a tensor and returns its range.
    ///
    /// # Panics
    /// If the name is taken.
    #[track_caller]
    pub fn push(&mut self, name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Range<usize> {
        let entry = Entry { name: name.into(), shape: shape.into(), offset: self.len };
        assert!(self.get(&entry.name).is_none(), "layout: two tensors are named `{}`", entry.name);
        self.len += entry.numel();
        let range = entry.range();
        self.entries.push(entry);
        range
    }

    /// The tensors in buffer order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
    /// Total number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether the buffer has no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
    /// The tensor of this name, or an error that lists the names there are.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.get(name).ok_or_else(|| Error::Unknown {
            what: "tensor",
            got: name.to_string(),
            allowed: self.entries.iter().map(|e| e.name.clone()).collect(),
        })
    }
    /// Errors unless a buffer has the length of this layout.
    pub fn check_len(&self, what: &str, len: usize) -> Result<()> {
        if len == self.len {
            Ok(())
        } else {
            Err(Error::mismatch(format!("{what}: number of elements"), self.len, len))
        }
    }
}

/// A flat buffer with its layout: parameters, a gradient, or theta.
#[derive(Clone, Debug, PartialEq)]
pub struct Params<E = f32> {
    /// The meaning of `data`.
    pub layout: Arc<Layout>,
    /// The elements, in layout order.
    pub data: Vec<E>,
}

impl<E: Float> Params<E> {
    /// All zeros.
    pub fn zeros(layout: Arc<Layout>) -> Self {
        let data = vec![E::of(0.0); layout.len()];
        Params { layout, data }
    }
    /// A buffer with its layout.
    pub fn new(layout: Arc<Layout>, data: Vec<E>) -> Result<Self> {
        layout.check_len("params", data.len())?;
        Ok(Params { layout, data })
    }
    /// The elements of one tensor.
    pub fn tensor(&self, name: &str) -> Result<&[E]> {
        Ok(&self.data[self.layout.entry(name)?.range()])
    }
    /// The elements of one tensor, writable.
    pub fn tensor_mut(&mut self, name: &str) -> Result<&mut [E]> {
        let range = self.layout.entry(name)?.range();
        Ok(&mut self.data[range])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_order_and_scalars_count_one() {
        let l = Layout::new([("b", vec![5]), ("s", vec![]), ("w", vec![4, 3]), ("none", vec![0, 3])]);
        assert_eq!(l.len(), 18);
        assert_eq!(l.entry("w").unwrap().range(), 6..18);
        assert_eq!(l.entry("none").unwrap().range(), 18..18);
        assert_eq!(
            l.entry("x").unwrap_err().to_string(),
            "unknown tensor `x`, expected one of: b, s, w, none"
        );
    }

    #[test]
    #[should_panic(expected = "two tensors are named `b`")]
    fn names_are_unique() {
        Layout::new([("b", vec![1]), ("b", vec![1])]);
    }
}
