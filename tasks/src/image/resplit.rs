//! One model on images that every run divides anew.

use super::task::{ImageModel, ImageTask};
use crate::data::Splits;
use outerloop_core::{Key, Result, TaskFamily};

/// One image model, each task on its own division of the images that are not for the test
/// ([`Splits::resplit`]): cross-validation of a meta-loss on a validation split.
#[derive(Clone, Debug)]
pub struct ResplitFamily<M> {
    data: Splits,
    model: M,
    rows: Option<usize>,
}

impl<M: ImageModel> ResplitFamily<M> {
    /// The model on divisions of `data`; `rows`: images for training, all that `data` has by default.
    ///
    /// # Errors
    /// As of [`Splits::resplit`] and [`ImageTask::new`].
    pub fn new(data: Splits, model: M, rows: Option<usize>) -> Result<Self> {
        ImageTask::new(data.resplit(Key::new(0), rows)?, model.clone())?;
        Ok(ResplitFamily { data, model, rows })
    }
}

impl<M: ImageModel> TaskFamily for ResplitFamily<M> {
    type Config = Splits;
    type Task = ImageTask<M>;

    fn name(&self) -> String {
        let rows = self.rows.map_or(String::new(), |n| format!("_{n}rows"));
        format!("{}_{}{rows}", self.data.data().name, self.model.name())
    }
    fn sample(&self, key: Key) -> Splits {
        self.data.resplit(key, self.rows).expect("the constructor divided it")
    }
    fn task(&self, data: &Splits) -> ImageTask<M> {
        ImageTask::new(data.clone(), self.model.clone()).expect("the constructor made one")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::MlpConfig;
    use outerloop_core::{BatchKey, FlatFamily, Metric, Split};

    #[test]
    fn tasks_differ_in_their_division_only_and_say_their_error_rate() {
        let family = ResplitFamily::new(Splits::digits(), MlpConfig::default(), Some(100)).unwrap();
        let [a, b] = [0, 1].map(|k| FlatFamily::<f32>::sample_task(&family, Key::new(k)));
        let params = a.init(Key::new(3));
        assert_eq!(params.data, b.init(Key::new(3)).data);
        let at = |split| BatchKey { split, step: 0, key: Key::new(4) };
        let loss = |task: &std::sync::Arc<dyn outerloop_core::FlatTask>, split| {
            task.evaluator().loss(&params.data, &[], at(split))
        };
        assert_eq!(loss(&a, Split::Test), loss(&b, Split::Test));
        assert_ne!(loss(&a, Split::Train), loss(&b, Split::Train));
        let metrics = a.metrics(&params.data, &[], at(Split::Test));
        let [Metric { name, value }] = &metrics[..] else { panic!("{metrics:?}") };
        // Untrained: about nine of ten wrong.
        assert!(name == Metric::ERROR_RATE && (0.6..1.0).contains(value), "{metrics:?}");
        assert!(ResplitFamily::new(Splits::digits(), MlpConfig::default(), Some(0)).is_err());
    }
}
