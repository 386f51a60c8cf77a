//! NumPy's array files, `.npy`: the header, and where the numbers are.
//!
//! Reference: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

/// What every such file begins with.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header that is read, in bytes: NumPy's own limit for files that are not trusted.
pub const MAX_HEADER: usize = 10_000;

/// An array file, not yet read as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Npy<'a> {
    /// Type of the numbers, e.g. `<f4`.
    pub descr: &'a str,
    /// Lengths of the axes.
    pub shape: Vec<usize>,
    /// Whether the first index runs fastest.
    pub is_fortran: bool,
    /// The numbers; their length is not checked against shape and type.
    pub content: &'a [u8],
}

impl<'a> Npy<'a> {
    /// Reads the header.
    ///
    /// ```
    /// let file = b"\x93NUMPY\x01\x00\x3d\x00{'descr': '|u1', 'fortran_order': False, 'shape': (2,), }   \n\x07\x08";
    /// let array = outerloop_core::npy::Npy::parse(file).expect("a whole file");
    /// assert_eq!((array.descr, &array.shape[..], array.content), ("|u1", &[2][..], &[7, 8][..]));
    /// ```
    ///
    /// # Errors
    /// What was expected and what came, if it is no such file, a part of one, one of records, or one with a header
    /// of more than [`MAX_HEADER`] bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (len, rest) = split(bytes).ok_or("expected a whole npy file, got another or a part")?;
        if len > MAX_HEADER {
            return Err(format!("expected a header of at most {MAX_HEADER} bytes, got {len}"));
        }
        let Some((header, content)) = rest.split_at_checked(len) else {
            return Err(format!(
                "expected a header of {len} bytes, got the end of the file after {}",
                rest.len()
            ));
        };
        let header = std::str::from_utf8(header).map_err(|e| format!("expected a header of text: {e}"))?;
        let field = |name: &str, open: char, close: char| {
            let rest = header.split_once(&format!("'{name}':"))?.1.trim_start().strip_prefix(open)?;
            Some(rest.split_once(close)?.0)
        };
        let descr =
            field("descr", '\'', '\'').ok_or(format!("expected one type of numbers, got {header:?}"))?;
        let order = header.split_once("'fortran_order':").map_or("", |(_, rest)| rest.trim_start());
        let is_fortran = match (order.starts_with("False"), order.starts_with("True")) {
            (true, _) => false,
            (_, true) => true,
            _ => return Err(format!("expected 'fortran_order': False or True, got {header:?}")),
        };
        let sizes = field("shape", '(', ')').ok_or(format!("expected a shape, got {header:?}"))?;
        let sizes = sizes.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse::<usize>());
        let shape = sizes.collect::<Result<_, _>>().map_err(|e| format!("shape in {header:?}: {e}"))?;
        Ok(Npy { descr, shape, is_fortran, content })
    }

    /// Number of elements, if it is a number.
    pub fn numel(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |a, s| a.checked_mul(*s))
    }
}

/// The header's length, and what follows it.
fn split(bytes: &[u8]) -> Option<(usize, &[u8])> {
    // Version 1 has two bytes for the header's length, later ones four.
    match bytes.strip_prefix(MAGIC)? {
        [1, _, a, b, rest @ ..] => Some((usize::from(u16::from_le_bytes([*a, *b])), rest)),
        [2 | 3, _, a, b, c, d, rest @ ..] => Some((u32::from_le_bytes([*a, *b, *c, *d]) as usize, rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str) -> Vec<u8> {
        let len = header.len() as u16;
        [MAGIC, &[1, 0], &len.to_le_bytes(), header.as_bytes(), &[1, 2, 3, 4]].concat()
    }

    #[test]
    fn headers_are_read_and_others_refused() {
        let whole = file("{'descr': '<f4', 'fortran_order': True, 'shape': (), }\n");
        let array = Npy::parse(&whole).unwrap();
        assert_eq!((array.descr, array.is_fortran, array.numel()), ("<f4", true, Some(1)));
        for n in 0..whole.len() - 4 {
            assert!(Npy::parse(&whole[..n]).is_err(), "{n}");
        }
        for (header, why) in [
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "one type of numbers"),
            ("{'descr': '<f4', 'shape': (1,), }", "fortran_order"),
            ("{'descr': '<f4', 'fortran_order': False, }", "a shape"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "invalid digit"),
        ] {
            let error = Npy::parse(&file(header)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        for (start, why) in [
            (&b"\x02\x00\xff\xff\xff\xff"[..], "at most 10000 bytes, got 4294967295"),
            (b"\x01\x00\x40\x00{", "of 64 bytes, got the end of the file after 1"),
            (b"\x01\x00\x01\x00\xff", "a header of text"),
        ] {
            let error = Npy::parse(&[MAGIC, start].concat()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let huge = file("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 2), }");
        assert_eq!(Npy::parse(&huge).unwrap().numel(), None);
    }
}
