//! Which images belong to a split, and which of them a batch holds.

use super::{digits, ImageBatch, ImageData, Permutation};
use outerloop_core::tensor::{Backend, Dim, HasShape};
use outerloop_core::{BatchKey, Error, Float, Key, Result, Split};
use std::sync::Arc;

/// One split's images.
#[derive(Clone, Debug)]
enum Part {
    /// Shuffled anew in every epoch.
    Shuffled(Arc<[u32]>),
    /// Batches given one by one, repeated from the start when they end.
    Listed(Arc<[Vec<u32>]>),
}

/// Data with its four splits; cloning shares everything.
///
/// The stream of a split under a key is a chain of epochs, each a fresh permutation of the split's
/// images: position `j` of the stream is place `j mod n` of epoch `j / n`, and batch `t` of `b`
/// images is positions `t b .. (t + 1) b`. Nothing is dropped at an epoch's end, so a batch may
/// straddle two epochs. The epoch's permutation is a pure function of (key, split, epoch).
#[derive(Clone, Debug)]
pub struct Splits {
    data: ImageData,
    /// In the order of [`Split::ALL`].
    parts: [Part; 4],
}

/// Splits are the same in every run: this key is part of the data set's definition.
fn split_key() -> Key {
    Key::new(0).named("splits")
}

/// The numbers `range`, shuffled by the split key.
fn shuffled(range: std::ops::Range<usize>) -> Vec<u32> {
    let p = Permutation::new(range.len() as u32, split_key());
    range.clone().map(|i| range.start as u32 + p.index((i - range.start) as u32)).collect()
}

/// Images of which a tenth is one.
const LEAST_FOR_TRAINING: usize = 10;
/// Images of which a fifth for the test leaves [`LEAST_FOR_TRAINING`].
const LEAST: usize = 12;

fn check_enough(what: &str, data: &ImageData, least: usize) -> Result<()> {
    if data.len() >= least {
        return Ok(());
    }
    let what = format!("{}: {what}", data.name);
    Err(Error::Mismatch { what, expected: format!("at least {least}"), got: data.len().to_string() })
}

impl Splits {
    /// One set of images cut by a fixed key: 20 % test; of the rest 80 % train, 10 % inner valid,
    /// 10 % outer valid. At least 12 images.
    pub fn new(data: ImageData) -> Result<Self> {
        check_enough("images to split", &data, LEAST)?;
        let order = shuffled(0..data.len());
        let (test, rest) = order.split_at(data.len() / 5);
        Ok(Self::from_parts(data, rest, test))
    }

    /// Images that come with their own test set: `train` is cut by a fixed key into 80 % train,
    /// 10 % inner valid and 10 % outer valid. At least 10 images for training.
    pub fn with_test(train: &ImageData, test: &ImageData) -> Result<Self> {
        check_enough("training images to split", train, LEAST_FOR_TRAINING)?;
        let data = train.followed_by(test)?;
        let n = train.len();
        let test: Vec<u32> = (n as u32..data.len() as u32).collect();
        Ok(Self::from_parts(data, &shuffled(0..n), &test))
    }

    /// `rest` in three parts, the last two of at least one image each.
    fn from_parts(data: ImageData, rest: &[u32], test: &[u32]) -> Self {
        let tenth = rest.len() / 10;
        let (train, valid) = rest.split_at(rest.len() - 2 * tenth);
        let (inner, outer) = valid.split_at(tenth);
        let parts = [train, inner, outer, test].map(|p| Part::Shuffled(p.into()));
        Splits { data, parts }
    }

    /// Every split is all images (in another order, since batches depend on the split too).
    pub fn undivided(data: ImageData) -> Self {
        let all: Arc<[u32]> = (0..data.len() as u32).collect();
        Splits { data, parts: std::array::from_fn(|_| Part::Shuffled(all.clone())) }
    }

    /// Images that stand in the order of the splits: which belong to each, in the order of [`Split::ALL`].
    ///
    /// # Errors
    /// Empty ranges, and those that reach beyond the images.
    pub fn of_ranges(data: ImageData, ranges: [std::ops::Range<u32>; 4]) -> Result<Self> {
        if let Some(range) = ranges.iter().find(|r| r.is_empty() || r.end as usize > data.len()) {
            let why = format!("expected at least one of {} images, got {range:?}", data.len());
            return Err(Error::invalid(format!("{}: range of a split", data.name), why));
        }
        Ok(Splits { data, parts: ranges.map(|r| Part::Shuffled(r.collect::<Vec<u32>>().into())) })
    }

    /// The images of a split.
    ///
    /// # Errors
    /// If batches are listed.
    pub fn members(&self, split: Split) -> Result<Vec<u32>> {
        match &self.parts[split as usize] {
            Part::Shuffled(part) => Ok(part.to_vec()),
            Part::Listed(_) => Err(Error::invalid("images of a split", "batches are listed one by one")),
        }
    }

    /// Explicit batches of image indices per split (in the order of [`Split::ALL`]): batch `t` of a
    /// split is entry `t mod len` of its list, whatever the key. For reproducing published runs.
    pub fn listed(data: ImageData, batches: [Vec<Vec<u32>>; 4]) -> Result<Self> {
        let size = batches[0].first().map_or(0, Vec::len);
        for (split, list) in Split::ALL.iter().zip(&batches) {
            if list.is_empty() || size == 0 {
                let got = format!("got {} batches of {size} images", list.len());
                let why = format!("there must be at least one image, {got}");
                return Err(Error::invalid(format!("listed batches of {split:?}"), why));
            }
            for batch in list {
                if batch.len() != size {
                    return Err(Error::mismatch(
                        format!("size of the listed batches of {split:?}"),
                        size,
                        batch.len(),
                    ));
                }
                if let Some(i) = batch.iter().find(|&&i| i as usize >= data.len()) {
                    return Err(Error::mismatch("image index in a listed batch", 0..data.len(), i));
                }
            }
        }
        Ok(Splits { data, parts: batches.map(|list| Part::Listed(list.into())) })
    }

    /// The digits, cut by [`Self::new`]: 1152 train, 143 inner valid, 143 outer valid, 359 test.
    pub fn digits() -> Self {
        Self::new(digits()).expect("1797 images can be split")
    }

    /// The same test images; all others divided anew by `key`, in parts of the same sizes. With `rows`, only
    /// so many of them (1 to all) are for training, and the rest goes in halves to both validation splits:
    /// small training sets, which models overfit.
    ///
    /// An optimizer that is meta-trained on one division may learn its validation images by heart; on a
    /// fresh one per run it cannot.
    ///
    /// # Errors
    /// If batches are listed, or `rows` leaves no image for validation.
    pub fn resplit(&self, key: Key, rows: Option<usize>) -> Result<Self> {
        let mut pool = Vec::new();
        for split in [Split::Train, Split::InnerValid, Split::OuterValid] {
            pool.extend(self.members(split)?);
        }
        let train = rows.unwrap_or(self.len(Split::Train));
        let inner =
            if rows.is_some() { (pool.len().saturating_sub(train)) / 2 } else { self.len(Split::InnerValid) };
        if train == 0 || inner == 0 || train + inner >= pool.len() {
            let most = pool.len().saturating_sub(2);
            return Err(Error::invalid("resplit: rows", format!("expected 1 to {most}, got {train}")));
        }
        let order = Permutation::new(pool.len() as u32, key.named("resplit"));
        let pool: Vec<u32> = (0..pool.len() as u32).map(|i| pool[order.index(i) as usize]).collect();
        let (train, rest) = pool.split_at(train);
        let (inner, outer) = rest.split_at(inner);
        let [train, inner, outer] = [train, inner, outer].map(|p| Part::Shuffled(p.into()));
        let parts = [train, inner, outer, self.parts[Split::Test as usize].clone()];
        Ok(Splits { data: self.data.clone(), parts })
    }

    /// The same division of other images of the same number, e.g. resized ones:
    /// `splits.map(|d| d.channel_mean().resized(8, 8))`.
    pub fn map(mut self, f: impl FnOnce(&ImageData) -> Result<ImageData>) -> Result<Self> {
        let data = f(&self.data)?;
        if data.len() != self.data.len() {
            return Err(Error::mismatch("images of a division", self.data.len(), data.len()));
        }
        self.data = data;
        Ok(self)
    }

    /// The images.
    pub fn data(&self) -> &ImageData {
        &self.data
    }

    /// Number of images in a split (for listed batches: over all of them, repeats counted).
    pub fn len(&self, split: Split) -> usize {
        match &self.parts[split as usize] {
            Part::Shuffled(p) => p.len(),
            Part::Listed(list) => list.iter().map(Vec::len).sum(),
        }
    }

    /// Errors unless batches of `size` can be made.
    pub fn check_batch_size(&self, size: usize) -> Result<()> {
        if size == 0 {
            return Err(Error::invalid("batch size", "must be at least 1, got 0"));
        }
        match &self.parts[0] {
            Part::Listed(list) if list[0].len() != size => {
                Err(Error::mismatch("batch size (of the listed batches)", list[0].len(), size))
            }
            _ => Ok(()),
        }
    }

    /// Calls `f(row, image)` for every image of the batch that `at` names.
    ///
    /// # Panics
    /// If batches are listed and have another size.
    #[inline]
    fn each(&self, at: BatchKey, size: usize, mut f: impl FnMut(usize, usize)) {
        let part = match &self.parts[at.split as usize] {
            Part::Shuffled(part) => part,
            Part::Listed(list) => {
                let batch = &list[(at.step % list.len() as u64) as usize];
                assert_eq!(batch.len(), size, "listed batches have one size");
                return batch.iter().enumerate().for_each(|(row, &i)| f(row, i as usize));
            }
        };
        let n = part.len() as u64;
        let order = at.key.named("order");
        let mut j = u128::from(at.step) * size as u128; // a stream may be longer than 2^64
        let mut row = 0;
        while row < size {
            let (epoch, start) = (j / u128::from(n), (j % u128::from(n)) as u64);
            let shuffle =
                Permutation::new(n as u32, order.fold_in((epoch as u64).wrapping_mul(4) + at.split as u64));
            let run = (size - row).min((n - start) as usize);
            shuffle.each(start as u32, run as u32, |i, p| f(row + i, part[p as usize] as usize));
            row += run;
            j += run as u128;
        }
    }

    /// The images of the batch that `at` names, as indices into [`Self::data`].
    pub fn indices(&self, at: BatchKey, size: usize) -> Vec<u32> {
        let mut out = vec![0; size];
        self.indices_into(at, &mut out);
        out
    }

    /// [`Self::indices`] for a batch of the length of `out`.
    pub(crate) fn indices_into(&self, at: BatchKey, out: &mut [u32]) {
        self.each(at, out.len(), |row, i| out[row] = i as u32);
    }

    /// The batch that `at` names; `features` is the images' number of features as a dfdx dimension.
    ///
    /// # Panics
    /// If `features` differs from the data's.
    #[track_caller]
    pub fn batch<F: Dim, E: Float, B: Backend<E>>(
        &self,
        dev: &B,
        at: BatchKey,
        size: usize,
        features: F,
    ) -> ImageBatch<F, E, B> {
        assert_eq!(features.size(), self.data.features(), "{}: features per image", self.data.name);
        let mut labels = vec![0; size];
        let images = dev.tensor_from_vec(self.gather(at, &mut labels), (size, features));
        ImageBatch { images, labels }
    }

    /// Overwrites `batch` with the one that `at` names, of the same size.
    pub fn refill<F: Dim, E: Float, B: Backend<E>>(&self, at: BatchKey, batch: &mut ImageBatch<F, E, B>) {
        let shape = *batch.images.shape();
        // The pixels are moved into the tensor: copying 32 kB into the old one costs up to 11 us when
        // the two buffers are neighbours (4 kB aliasing in memcpy), an allocation 0.1 us.
        let pixels = self.gather(at, &mut batch.labels);
        batch.images = batch.images.device().tensor_from_vec(pixels, shape);
    }

    /// The pixels of the batch that `at` names, `[labels.len(), features]`, and its labels.
    fn gather<E: Float>(&self, at: BatchKey, labels: &mut [u32]) -> Vec<E> {
        let f = self.data.features();
        let mut pixels = vec![E::of(0.0); labels.len() * f];
        self.each(at, labels.len(), |row, i| {
            labels[row] = self.data.labels[i];
            widen(self.data.image(i), &mut pixels[row * f..(row + 1) * f]);
        });
        pixels
    }
}

/// Copies f32 numbers to another dtype.
fn widen<E: Float>(from: &[f32], to: &mut [E]) {
    for (to, x) in to.iter_mut().zip(from) {
        *to = E::of(f64::from(*x));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn at(split: Split, step: u64, seed: u64) -> BatchKey {
        BatchKey { split, step, key: Key::new(seed) }
    }

    fn stream(s: &Splits, split: Split, batches: u64, size: usize, seed: u64) -> Vec<u32> {
        (0..batches).flat_map(|t| s.indices(at(split, t, seed), size)).collect()
    }

    #[test]
    fn splits_cover_all_images_without_overlap() {
        let s = Splits::digits();
        assert_eq!(Split::ALL.map(|p| s.len(p)), [1152, 143, 143, 359]);
        let mut seen = HashSet::new();
        for split in Split::ALL {
            for i in stream(&s, split, 1, s.len(split), 0) {
                assert!(seen.insert(i), "image {i} is in two splits");
            }
        }
        assert_eq!(seen.len(), 1797);
    }

    #[test]
    fn epochs_are_permutations_chained_without_dropping() {
        let s = Splits::digits();
        for (split, size) in [(Split::InnerValid, 10), (Split::Train, 128), (Split::OuterValid, 400)] {
            let n = s.len(split);
            let order = stream(&s, split, (3 * n / size + 2) as u64, size, 4);
            let epochs: Vec<&[u32]> = order.chunks_exact(n).take(3).collect();
            let sets: Vec<HashSet<u32>> = epochs.iter().map(|e| e.iter().copied().collect()).collect();
            assert!(sets.iter().all(|s| s.len() == n && *s == sets[0]), "{split:?}");
            assert_ne!(epochs[0], epochs[1]);
            assert_ne!(epochs[1], epochs[2]);
            assert_ne!(epochs[0], &stream(&s, split, n as u64, 1, 5)[..], "another key, another order");
            // The batch size cuts the stream, it does not change it.
            assert_eq!(order[..n], stream(&s, split, n as u64, 1, 4)[..]);
        }
    }

    #[test]
    fn undivided_splits_hold_everything_in_different_orders() {
        let s = Splits::undivided(digits());
        let orders = Split::ALL.map(|p| stream(&s, p, 1, 1797, 1));
        for (i, a) in orders.iter().enumerate() {
            assert_eq!(a.iter().collect::<HashSet<_>>().len(), 1797);
            assert!(orders[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn resplit_moves_all_images_but_the_test() {
        let s = Splits::digits();
        let images = |s: &Splits, split| -> HashSet<u32> {
            stream(s, split, 1, s.len(split), 0).into_iter().collect()
        };
        for (rows, lens) in [(None, [1152, 143, 143, 359]), (Some(64), [64, 687, 687, 359])] {
            let [a, b] = [0, 1].map(|k| s.resplit(Key::new(k), rows).unwrap());
            assert_eq!(Split::ALL.map(|p| a.len(p)), lens);
            assert_eq!(images(&a, Split::Test), images(&s, Split::Test));
            assert_ne!(images(&a, Split::OuterValid), images(&b, Split::OuterValid));
            let all: HashSet<u32> = Split::ALL.iter().flat_map(|p| images(&a, *p)).collect();
            assert_eq!(all.len(), 1797);
        }
        for rows in [0, 1437, 5000] {
            assert!(s.resplit(Key::new(0), Some(rows)).is_err(), "{rows}");
        }
    }

    #[test]
    fn own_test_sets_stay_apart() {
        let image = |v: f32, n: u32| {
            ImageData::new("x", vec![v; n as usize], vec![0; n as usize], [1, 1, 1], 1).unwrap()
        };
        let s = Splits::with_test(&image(0.0, 20), &image(1.0, 7)).unwrap();
        assert_eq!(Split::ALL.map(|p| s.len(p)), [16, 2, 2, 7]);
        for split in Split::ALL {
            let is_test = split == Split::Test;
            let images = stream(&s, split, 2, 9, 0);
            assert!(images.iter().all(|&i| (s.data().image(i as usize)[0] == 1.0) == is_test));
        }
    }

    #[test]
    fn splits_say_how_many_images_they_need() {
        let images = |n: usize| ImageData::new("x", vec![0.5; n], vec![0; n], [1, 1, 1], 1).unwrap();
        let lens = |s: Splits| Split::ALL.map(|p| s.len(p));
        assert_eq!(lens(Splits::new(images(12)).unwrap()), [8, 1, 1, 2]);
        assert_eq!(lens(Splits::with_test(&images(10), &images(1)).unwrap()), [8, 1, 1, 1]);
        let text = |r: Result<Splits>| r.unwrap_err().to_string();
        assert_eq!(text(Splits::new(images(11))), "x: images to split: expected at least 12, got 11");
        let error = text(Splits::with_test(&images(9), &images(100)));
        assert_eq!(error, "x: training images to split: expected at least 10, got 9");
    }

    #[test]
    fn listed_batches_come_as_given() {
        let list = |a: u32| vec![vec![a, 3], vec![5, a]];
        let s = Splits::listed(digits(), [list(0), list(1), list(2), list(7)]).unwrap();
        assert_eq!(s.indices(at(Split::Test, 3, 8), 2), [5, 7]);
        assert_eq!(s.indices(at(Split::Train, 4, 9), 2), [0, 3]);
        assert!(s.check_batch_size(3).is_err());
        let bad = Splits::listed(digits(), [list(0), list(1797), list(2), list(7)]).unwrap_err();
        assert_eq!(bad.to_string(), "image index in a listed batch: expected 0..1797, got 1797");
    }

    #[test]
    fn batches_are_stable_and_steps_far_out_work() {
        // A change here changes every training run.
        let s = Splits::digits();
        assert_eq!(s.indices(at(Split::Train, 10, 0), 4), PINNED);
        assert_eq!(s.indices(at(Split::Train, u64::MAX, 0), 2000).len(), 2000);
    }
    const PINNED: [u32; 4] = [913, 116, 67, 80];
}
