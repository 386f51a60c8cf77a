//! Where a run's numbers go: [`CsvWriter`] for analysis, [`TensorBoardWriter`] for watching.

mod csv;
mod tensorboard;

pub use self::csv::CsvWriter;
pub use tensorboard::TensorBoardWriter;

use outerloop_core::Result;

/// Takes named numbers over outer steps.
///
/// Steps come in non-decreasing order. NaN and infinities are values: a writer keeps them.
/// Numeric code never sees a writer; the trainer's loop computes first and writes then.
///
/// ```
/// use outerloop_core::Result;
/// use outerloop_outer::metrics::MetricWriter;
///
/// /// Remembers the smallest value of one tag.
/// struct Best { tag: &'static str, value: f64 }
///
/// impl MetricWriter for Best {
///     fn scalar(&mut self, _step: u64, tag: &str, value: f64) -> Result<()> {
///         if tag == self.tag { self.value = self.value.min(value) }
///         Ok(())
///     }
///     fn flush(&mut self) -> Result<()> { Ok(()) }
/// }
///
/// let mut best = Best { tag: "meta_loss", value: f64::INFINITY };
/// best.row(0, &[("meta_loss", 2.0), ("grad_norm", 0.5)])?;
/// best.row(1, &[("meta_loss", 1.5), ("grad_norm", 0.7)])?;
/// assert_eq!(best.value, 1.5);
/// # Ok::<(), outerloop_core::Error>(())
/// ```
pub trait MetricWriter: Send {
    /// The value of `tag` at an outer step.
    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()>;

    /// All values of one outer step.
    fn row(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        values.iter().try_for_each(|(tag, value)| self.scalar(step, tag, *value))
    }

    /// Hands everything taken so far to the operating system.
    fn flush(&mut self) -> Result<()>;
}

/// Several writers as one.
impl MetricWriter for Vec<Box<dyn MetricWriter>> {
    fn scalar(&mut self, step: u64, tag: &str, value: f64) -> Result<()> {
        self.iter_mut().try_for_each(|w| w.scalar(step, tag, value))
    }
    fn row(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.iter_mut().try_for_each(|w| w.row(step, values))
    }
    fn flush(&mut self) -> Result<()> {
        self.iter_mut().try_for_each(|w| w.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_writers_get_the_same_row() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a.csv"), dir.path().join("b.csv")];
        let mut all: Vec<Box<dyn MetricWriter>> = Vec::new();
        for p in &paths {
            all.push(Box::new(CsvWriter::create(p).unwrap()));
        }
        all.row(0, &[("loss", 1.0), ("norm", 2.0)]).unwrap();
        all.scalar(1, "loss", 0.5).unwrap();
        all.flush().unwrap();
        for p in &paths {
            assert_eq!(std::fs::read_to_string(p).unwrap(), "step,loss,norm\n0,1,2\n1,0.5,\n");
        }
    }
}
