//! One CSV row per outer step, one column per tag.

use super::MetricWriter;
use outerloop_core::{atomic::write_atomic, Error, Result};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// Writes `step,tag,...` and then a row per outer step.
///
/// The first row's tags make the header; a tag that appears later adds a column (the file is
/// rewritten atomically), and a value that is missing is an empty cell. Numbers are the shortest
/// text that reads back as the same f64; `NaN`, `inf` and `-inf` stand as such. Each row is one
/// write to the file, so a killed process tears the last line at most.
pub struct CsvWriter {
    path: PathBuf,
    file: File,
    tags: Vec<String>,
    pending: Option<(u64, Vec<(String, f64)>)>,
}

impl CsvWriter {
    /// A new file; one that exists is overwritten.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        Self::from_rows(path.into(), Vec::new(), &[])
    }

    /// Continues a file at outer step `step`: rows of that step and later, which a killed process
    /// wrote after its last checkpoint, are dropped, as is a torn last line. A missing file is
    /// created. The file is replaced atomically.
    ///
    /// # Errors
    /// [`Error::Format`] if the file is not one of ours: it is left as it is.
    pub fn resume(path: impl Into<PathBuf>, step: u64) -> Result<Self> {
        let path = path.into();
        if !path.exists() {
            return Self::create(path);
        }
        let (tags, mut rows) = read(&path)?;
        rows.retain(|(s, _)| *s < step);
        Self::from_rows(path, tags, &rows)
    }

    fn from_rows(path: PathBuf, tags: Vec<String>, rows: &[(u64, Vec<String>)]) -> Result<Self> {
        let mut text = Vec::new();
        if !tags.is_empty() {
            text.extend(line(&path, &header(&tags))?);
        }
        for (step, cells) in rows {
            let mut record = vec![step.to_string()];
            record.extend(cells.iter().cloned());
            record.resize(tags.len() + 1, String::new());
            text.extend(line(&path, &record)?);
        }
        write_atomic(&path, &text)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        Ok(CsvWriter { path, file, tags, pending: None })
    }

    fn write_pending(&mut self) -> Result<()> {
        let Some((step, values)) = self.pending.take() else { return Ok(()) };
        let new: Vec<String> =
            values.iter().map(|(tag, _)| tag).filter(|tag| !self.tags.contains(tag)).cloned().collect();
        if !new.is_empty() {
            let (mut tags, rows) = read(&self.path)?;
            tags.extend(new);
            *self = Self::from_rows(std::mem::take(&mut self.path), tags, &rows)?;
        }
        let cell = |tag: &String| {
            let value = values.iter().rev().find(|(t, _)| t == tag);
            value.map_or(String::new(), |(_, v)| v.to_string())
        };
        let record: Vec<String> =
            std::iter::once(step.to_string()).chain(self.tags.iter().map(cell)).collect();
        let line = line(&self.path, &record)?;
        self.file.write_all(&line).map_err(|e| Error::io(&self.path, e))
    }
}

impl MetricWriter for CsvWriter {
    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        if self.pending.as_ref().is_some_and(|(s, _)| *s != step) {
            self.write_pending()?;
        }
        let (_, values) = self.pending.get_or_insert_with(|| (step, Vec::new()));
        match values.iter_mut().find(|(t, _)| t == tag) {
            Some((_, v)) => *v = value,
            None => values.push((tag.to_string(), value)),
        }
        Ok(())
    }

    fn row(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        values.iter().try_for_each(|(tag, value)| self.scalar(step, tag, *value))?;
        self.write_pending()
    }

    /// Ends the current row.
    fn flush(&mut self) -> Result<()> {
        self.write_pending()
    }
}

impl Drop for CsvWriter {
    fn drop(&mut self) {
        // Errors have no way out of a drop; callers who care flush.
        let _ = self.write_pending();
    }
}

fn header(tags: &[String]) -> Vec<String> {
    std::iter::once("step".to_string()).chain(tags.iter().cloned()).collect()
}

fn line(path: &Path, record: &[String]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(record).map_err(|e| Error::format(path, e.to_string()))?;
    writer.into_inner().map_err(|e| Error::io(path, e.into_error()))
}

/// The tags and the rows up to the last complete line.
type Rows = (Vec<String>, Vec<(u64, Vec<String>)>);

fn read(path: &Path) -> Result<Rows> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&bytes[..whole]);
    let mut tags = None;
    let mut rows = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let record = record.map_err(|e| Error::format(path, e.to_string()))?;
        let mut cells = record.iter().map(str::to_string);
        let first = cells.next().unwrap_or_default();
        if i == 0 {
            if first != "step" {
                let why = format!("not a metrics file: expected a header with `step` first, got `{first}`");
                return Err(Error::format(path, why));
            }
            tags = Some(cells.collect());
            continue;
        }
        let step = first
            .parse()
            .map_err(|_| Error::format(path, format!("row {i}: expected an outer step, got `{first}`")))?;
        rows.push((step, cells.collect()));
    }
    if tags.is_none() && !b"step,".starts_with(&bytes[..bytes.len().min(5)]) {
        return Err(Error::format(path, "not a metrics file: no complete line, and no `step` at its start"));
    }
    Ok((tags.unwrap_or_default(), rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn odd_numbers_and_names_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.csv");
        let mut w = CsvWriter::create(&path).unwrap();
        let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.1 + 0.2, 1e-300];
        for (step, v) in values.iter().enumerate() {
            w.row(step as u64, &[("loss, mean", *v)]).unwrap();
        }
        assert_eq!(
            text(&path).lines().take(5).collect::<Vec<_>>(),
            ["step,\"loss, mean\"", "0,NaN", "1,inf", "2,-inf", "3,-0"]
        );
        let (tags, rows) = read(&path).unwrap();
        assert_eq!(tags, ["loss, mean"]);
        for (v, (_, cells)) in values.iter().zip(rows) {
            let back: f64 = cells[0].parse().unwrap();
            assert!(back.to_bits() == v.to_bits() || (back.is_nan() && v.is_nan()), "{back} {v}");
        }
    }

    #[test]
    fn a_new_tag_adds_a_column_and_a_missing_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.csv");
        let mut w = CsvWriter::create(&path).unwrap();
        w.row(0, &[("a", 1.0)]).unwrap();
        w.row(1, &[("b", 2.5), ("a", 2.0)]).unwrap();
        w.row(2, &[("b", 3.0)]).unwrap();
        assert_eq!(text(&path), "step,a,b\n0,1,\n1,2,2.5\n2,,3\n");
    }

    #[test]
    fn scalars_of_one_step_share_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.csv");
        let mut w = CsvWriter::create(&path).unwrap();
        for (step, tag, v) in [(0, "a", 1.0), (0, "b", 2.0), (1, "a", 3.0), (1, "a", 4.0)] {
            w.scalar(step, tag, v).unwrap();
        }
        drop(w);
        assert_eq!(text(&path), "step,a,b\n0,1,2\n1,4,\n");
    }

    #[test]
    fn resume_refuses_a_foreign_file_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        for foreign in ["my notes\nline 2\n", "my notes", "step,a\n0,1\nx,2\n", "step,a\n0,1,2\n"] {
            fs::write(&path, foreign).unwrap();
            assert!(matches!(CsvWriter::resume(&path, 1), Err(Error::Format { .. })), "{foreign}");
            assert_eq!(text(&path), foreign);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

        /// Killed anywhere after its checkpoint, a resumed run ends with the uninterrupted file.
        #[test]
        fn a_resumed_file_equals_the_uninterrupted_one(at in 0..12u64, ahead in 0..5u64, cut in 0..20usize) {
            let dir = tempfile::tempdir().unwrap();
            let (a, b) = (dir.path().join("a.csv"), dir.path().join("b.csv"));
            let rows = |w: &mut CsvWriter, steps: std::ops::Range<u64>| for s in steps {
                w.row(s, &[("loss", 1.0 / (1.0 + s as f64)), ("norm", f64::NAN)]).unwrap();
            };
            rows(&mut CsvWriter::create(&a).unwrap(), 0..12);
            rows(&mut CsvWriter::create(&b).unwrap(), 0..at);
            let saved = fs::read(&b).unwrap().len();
            rows(&mut CsvWriter::resume(&b, at).unwrap(), at..at + ahead);
            let killed = fs::read(&b).unwrap();
            fs::write(&b, &killed[..saved.max(killed.len().saturating_sub(cut))]).unwrap();
            rows(&mut CsvWriter::resume(&b, at).unwrap(), at..12);
            prop_assert_eq!(text(&b), text(&a));
        }
    }
}
