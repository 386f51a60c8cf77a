//! Tables of numbers from files: CSV text and NumPy arrays.

use outerloop_core::{Error, Result};
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY";

/// All numbers of a table, row major, and the number of columns. `.npy` is told by its content, all else is
/// read as CSV. An array with one axis is a column.
///
/// # Errors
/// Files that cannot be read, and the first place that is not what it should be.
pub fn table(path: &Path) -> Result<(Vec<f64>, usize)> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let parsed = if bytes.starts_with(MAGIC) { npy(&bytes) } else { csv(&bytes) };
    parsed.map_err(|why| Error::format(path, why))
}

type Table = std::result::Result<(Vec<f64>, usize), String>;

fn csv(bytes: &[u8]) -> Table {
    let text = std::str::from_utf8(bytes).map_err(|e| format!("expected CSV text or an npy file: {e}"))?;
    let (mut numbers, mut columns) = (Vec::new(), 0);
    let lines = text.lines().enumerate().map(|(i, l)| (i + 1, l.trim())).filter(|(_, l)| !l.is_empty());
    for (k, (line, text)) in lines.enumerate() {
        let row: std::result::Result<Vec<f64>, String> = text
            .split(',')
            .map(|cell| cell.trim().parse::<f64>().map_err(|_| format!("`{}`", cell.trim())))
            .collect();
        match row {
            Ok(row) if columns == 0 || row.len() == columns => {
                columns = row.len();
                numbers.extend(row);
            }
            Ok(row) => return Err(format!("line {line}: expected {columns} numbers, got {}", row.len())),
            // Names of the columns.
            Err(_) if k == 0 => {}
            Err(cell) => return Err(format!("line {line}: expected a number, got {cell}")),
        }
    }
    if columns == 0 {
        return Err("expected rows of numbers, got none".into());
    }
    Ok((numbers, columns))
}

fn npy(bytes: &[u8]) -> Table {
    let cut = "expected a whole npy file, got a part of one";
    let (len, start) = match bytes.get(6..12).ok_or(cut)? {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        [_, _, a, b, c, d] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        _ => return Err(cut.into()),
    };
    let header = bytes.get(start..start + len).and_then(|h| std::str::from_utf8(h).ok()).ok_or(cut)?;
    let content = &bytes[start + len..];
    let between =
        |from: &str, to: char| header.split_once(from).and_then(|(_, r)| r.split_once(to)).map(|r| r.0);
    if !header.contains("'fortran_order': False") {
        return Err(format!("expected rows first, 'fortran_order': False, got {header:?}"));
    }
    let shape: Vec<usize> = between("'shape': (", ')')
        .unwrap_or_default()
        .split(',')
        .filter_map(|s| s.trim().parse().ok())
        .collect();
    let (rows, columns) = match shape[..] {
        [n] => (n, 1),
        [n, c] => (n, c),
        _ => return Err(format!("expected one or two axes, got {shape:?}")),
    };
    let dtype = between("'descr': '", '\'').unwrap_or_default();
    let fixed = "chunks have this length";
    let numbers: Vec<f64> = match dtype {
        "<f4" => {
            content.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect(fixed)).into()).collect()
        }
        "<f8" => content.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect(fixed))).collect(),
        _ => return Err(format!("expected f32 or f64, little endian ('<f4', '<f8'), got {dtype:?}")),
    };
    if columns == 0 || numbers.len() != rows * columns {
        return Err(format!("expected {rows} times {columns} numbers, got {}", numbers.len()));
    }
    Ok((numbers, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<(Vec<f64>, usize)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        std::fs::write(&path, bytes).unwrap();
        table(&path)
    }

    #[test]
    fn csv_has_rows_of_numbers_and_perhaps_names() {
        assert_eq!(read(b"a,b\n1, 2.5\n-3e-1,4\n").unwrap(), (vec![1.0, 2.5, -0.3, 4.0], 2));
        assert!(read(b"1,nan\n").unwrap().0[1].is_nan());
        let error = |bytes| read(bytes).unwrap_err().to_string();
        assert!(error(b"1,2\n3\n").contains("line 2: expected 2 numbers, got 1"));
        assert!(error(b"1,2\n3,x\n").contains("line 2: expected a number, got `x`"));
        assert!(error(b"a,b\n").contains("expected rows of numbers, got none"));
    }

    #[test]
    fn npy_arrays_of_both_widths() {
        let file = |descr: &str, shape: &str, content: &[u8]| {
            let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
            let mut bytes = MAGIC.to_vec();
            bytes.extend([1, 0]);
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            bytes.extend(content);
            bytes
        };
        let f8: Vec<u8> = [1.0f64, 2.0, 3.0, -4.5].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read(&file("<f8", "(2, 2)", &f8)).unwrap(), (vec![1.0, 2.0, 3.0, -4.5], 2));
        let f4: Vec<u8> = [1.0f32, 0.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read(&file("<f4", "(2,)", &f4)).unwrap(), (vec![1.0, 0.25], 1));
        assert!(read(&file("<i8", "(4,)", &f8)).unwrap_err().to_string().contains("expected f32 or f64"));
        let error = read(&file("<f8", "(3, 2)", &f8)).unwrap_err().to_string();
        assert!(error.contains("expected 3 times 2 numbers, got 4"), "{error}");
        assert!(read(b"\x93NUMPY\x01").unwrap_err().to_string().contains("a part of one"));
    }
}
