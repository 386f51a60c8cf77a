//! Data made from keys, with known noise: tables whose labels a teacher gives, spirals, the next symbols of a
//! Markov chain, and the next characters of a text. They are images of one row for the image models, `[1, 1, features]`.

use super::{ImageData, Splits};
use outerloop_core::{Error, Key, Result, Split};
use serde::{Deserialize, Serialize};

/// Rows of each validation split and of the test.
const HELD_OUT_ROWS: usize = 512;

/// A classification table: `x ~ N(0, diag(s²))` with `s²` geometric from 1 to `1/condition` in random order, and
/// the label is drawn from the softmax of a random teacher's logits.
///
/// The teacher is linear in `x/s` without hidden units, else a tanh net with one hidden layer; its logits have
/// standard deviation `sharpness` over rows: the larger, the less noise in the labels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// Columns, at least 1.
    pub features: usize,
    /// Labels, at least 2.
    pub classes: usize,
    /// Training rows, at least 1.
    pub rows: usize,
    /// Hidden units of the teacher; 0: linear.
    pub teacher: usize,
    /// Largest over smallest variance of a column, at least 1.
    pub condition: f64,
    /// Standard deviation of the teacher's logits, positive.
    pub sharpness: f64,
    /// Standard deviation of the inputs of a teacher's hidden units, positive: from about 5 on its classes have many
    /// sharp borders. Default 1.5.
    #[serde(default = "smooth")]
    pub roughness: f64,
}

/// Of the teachers from before there was a choice.
fn smooth() -> f64 {
    1.5
}

impl Default for Table {
    fn default() -> Self {
        Table {
            features: 16,
            classes: 4,
            rows: 256,
            teacher: 16,
            condition: 1.0,
            sharpness: 4.0,
            roughness: smooth(),
        }
    }
}

fn normals(n: usize, key: Key) -> Vec<f32> {
    let mut x = vec![0.0; n];
    key.fill_normal(&mut x);
    x
}

/// `x w` of rows `x` `[n, inputs]` and `w` `[inputs, outputs]`.
fn product(x: &[f32], w: &[f32], inputs: usize) -> Vec<f32> {
    let outputs = w.len() / inputs;
    let mut y = vec![0.0; x.len() / inputs * outputs];
    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
        for (x, w) in x.iter().zip(w.chunks_exact(outputs)) {
            y.iter_mut().zip(w).for_each(|(y, w)| *y += x * w);
        }
    }
    y
}

impl Table {
    /// The table that `key` names, with its splits: `rows` for training and 512 for each other part.
    ///
    /// # Errors
    /// Sizes and numbers out of range.
    pub fn splits(&self, key: Key) -> Result<Splits> {
        let Table { features, classes, rows, teacher, condition, sharpness, roughness } = *self;
        let positive = |x: f64| x > 0.0 && x.is_finite();
        if features == 0
            || classes < 2
            || rows == 0
            || !positive(sharpness)
            || !positive(roughness)
            || !(positive(condition) && condition >= 1.0)
        {
            let why = "expected features, rows >= 1, classes >= 2, condition >= 1, sharpness and roughness > 0, finite";
            return Err(Error::invalid(format!("{self:?}"), why));
        }
        let n = rows + 3 * HELD_OUT_ROWS;
        let z = normals(n * features, key.named("rows"));
        let hidden = match teacher {
            0 => z.clone(),
            width => {
                let scale = roughness as f32 / (features as f32).sqrt();
                let w: Vec<f32> =
                    normals(features * width, key.named("hidden")).iter().map(|w| scale * w).collect();
                product(&z, &w, features).into_iter().map(f32::tanh).collect()
            }
        };
        let inner = hidden.len() / n;
        let mut logits = product(&hidden, &normals(inner * classes, key.named("output")), inner);
        let norm = (logits.iter().map(|x| f64::from(x * x)).sum::<f64>() / logits.len() as f64).sqrt();
        logits.iter_mut().for_each(|x| *x *= (sharpness / norm.max(1e-12)) as f32);
        let labels: Vec<u32> = logits
            .chunks_exact(classes)
            .enumerate()
            .map(|(i, row)| drawn(row, key.named("labels").fold_in(i as u64)))
            .collect();
        // Variances in a geometric sequence, in the order of random numbers.
        let mut order: Vec<usize> = (0..features).collect();
        let places = normals(features, key.named("order"));
        order.sort_by(|a, b| places[*a].total_cmp(&places[*b]));
        let last = (features - 1).max(1) as f64;
        let scale = |column: usize| condition.powf(-0.5 * order[column] as f64 / last) as f32;
        let x: Vec<f32> = z.iter().enumerate().map(|(i, z)| z * scale(i % features)).collect();
        let name = format!("table{features}x{classes}");
        in_order(ImageData::new(name, x, labels, [1, 1, features], classes)?, rows)
    }
}

/// A class by its probability, `softmax(logits)`.
fn drawn(logits: &[f32], key: Key) -> u32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|l| f64::from(l - top).exp()).collect();
    let mut left = key.uniform() * weights.iter().sum::<f64>();
    for (class, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return class as u32;
        }
    }
    (logits.len() - 1) as u32
}

/// The first `rows` for training, then three equal parts.
fn in_order(data: ImageData, rows: usize) -> Result<Splits> {
    let rest = (data.len() - rows) / 3;
    let cuts = [0, rows, rows + rest, rows + 2 * rest, data.len()];
    Splits::of_ranges(data, [0, 1, 2, 3].map(|i| cuts[i] as u32..cuts[i + 1] as u32))
}

/// Two intertwined spirals of one and a half turns in the plane, `rows` points for training and 512 for every other
/// part; `noise`: standard deviation of the points around them (their arms are 0.33 apart).
///
/// # Errors
/// No rows, or noise that is negative or not finite.
pub fn spirals(rows: usize, noise: f64, key: Key) -> Result<Splits> {
    if rows == 0 || !(noise >= 0.0 && noise.is_finite()) {
        return Err(Error::invalid(
            format!("spirals of {rows} rows with noise {noise}"),
            "expected at least one row, and finite noise that is not negative",
        ));
    }
    let n = rows + 3 * HELD_OUT_ROWS;
    let around = normals(2 * n, key.named("noise"));
    let (mut x, mut labels) = (Vec::with_capacity(2 * n), Vec::with_capacity(n));
    for i in 0..n {
        let label = (i % 2) as u32;
        let radius = key.named("radius").fold_in(i as u64).uniform().sqrt();
        let angle = 3.0 * std::f64::consts::PI * radius + std::f64::consts::PI * f64::from(label);
        for (j, at) in [angle.cos(), angle.sin()].into_iter().enumerate() {
            x.push((radius * at) as f32 + noise as f32 * around[2 * i + j]);
        }
        labels.push(label);
    }
    in_order(ImageData::new("spirals", x, labels, [1, 1, 2], 2)?, rows)
}

/// Letters, a space for everything else, of which the text consists after folding.
const ALPHABET: usize = 27;

/// Which letter follows `context` letters of an English text, each one-hot: `27 context` features and 27 classes.
/// Upper case counts as lower case, and every run of other characters as one space. The text is cut into
/// training (70 %), both validations and test (10 % each), in this order.
///
/// # Errors
/// A context of 0, or a text of fewer than `context + 100` letters.
pub fn next_letter(text: &str, context: usize) -> Result<Splits> {
    let mut letters: Vec<u32> = Vec::new();
    for c in text.chars() {
        let code = match c.to_ascii_lowercase() {
            c @ 'a'..='z' => 1 + c as u32 - 'a' as u32,
            _ => 0,
        };
        if code != 0 || letters.last() != Some(&0) {
            letters.push(code);
        }
    }
    if context == 0 || letters.len() < context + 100 {
        let why = format!(
            "expected a context of at least 1 and {} letters or more, got {}",
            context + 100,
            letters.len()
        );
        return Err(Error::invalid(format!("next letter after {context}"), why));
    }
    let rows = (letters.len() - context) * 7 / 10;
    next_symbol("letters", &letters, context, ALPHABET, rows)
}

/// Which of `symbols` follows `context` of them, each one-hot; the first `rows` for training, the rest in thirds.
fn next_symbol(name: &str, text: &[u32], context: usize, symbols: usize, rows: usize) -> Result<Splits> {
    let (mut x, mut labels) = (Vec::new(), Vec::new());
    for window in text.windows(context + 1) {
        for symbol in &window[..context] {
            x.extend((0..symbols as u32).map(|s| f32::from(u8::from(s == *symbol))));
        }
        labels.push(window[context]);
    }
    in_order(ImageData::new(name, x, labels, [1, context, symbols], symbols)?, rows)
}

/// A text of a Markov chain: after each `order` symbols the next is drawn from the softmax of their logits, normal
/// with standard deviation `sharpness`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chain {
    /// Different symbols, at least 2.
    pub symbols: usize,
    /// How many symbols the next depends on, at least 1.
    pub order: usize,
    /// Standard deviation of the logits, not negative: the larger, the more predictable.
    pub sharpness: f64,
    /// Training rows, at least 1; every other part has 512.
    pub rows: usize,
}

impl Chain {
    /// The next symbol after `context` of them, of the text that `key` names: `symbols · context` features.
    ///
    /// # Errors
    /// Sizes and numbers out of range.
    pub fn splits(&self, context: usize, key: Key) -> Result<Splits> {
        let Chain { symbols, order, sharpness, rows } = *self;
        let is_sharp = sharpness >= 0.0 && sharpness.is_finite();
        if symbols < 2 || order == 0 || rows == 0 || context == 0 || !is_sharp {
            let why = "expected symbols >= 2, order, rows, context >= 1, and a finite sharpness >= 0";
            return Err(Error::invalid(format!("{self:?} seen through {context} symbols"), why));
        }
        let [logits, draws] = key.split();
        let mut text: Vec<u32> = vec![0; order];
        for i in 0..rows + 3 * HELD_OUT_ROWS + context {
            let past = text[text.len() - order..].iter().fold(logits, |key, s| key.fold_in(u64::from(*s)));
            let mut row = normals(symbols, past);
            row.iter_mut().for_each(|x| *x *= sharpness as f32);
            text.push(drawn(&row, draws.fold_in(i as u64)));
        }
        next_symbol("chain", &text[order..], context, symbols, rows)
    }
}

/// Splits with other labels for a part of the training rows: each is replaced, with this probability, by a
/// label drawn uniformly. Validation and test keep theirs.
///
/// # Errors
/// A fraction out of 0 to 1, and listed batches.
pub fn with_label_noise(splits: &Splits, fraction: f64, key: Key) -> Result<Splits> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(Error::invalid("label noise", format!("expected 0 to 1, got {fraction}")));
    }
    let data = splits.data();
    let mut labels = data.labels.to_vec();
    for i in splits.members(Split::Train)? {
        let [replace, label] = key.fold_in(u64::from(i)).split();
        if replace.uniform() < fraction {
            labels[i as usize] = (label.uniform() * data.classes as f64) as u32;
        }
    }
    splits.clone().map(|data| Ok(ImageData { labels: labels.into(), ..data.clone() }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use outerloop_core::BatchKey;

    #[test]
    fn tables_are_functions_of_their_key_with_as_much_noise_as_said() {
        let table = Table { rows: 100, ..Table::default() };
        let [a, b, c] = [1, 1, 2].map(|k| table.splits(Key::new(k)).unwrap());
        assert_eq!(a.data().images, b.data().images);
        assert_ne!(a.data().labels, c.data().labels);
        assert_eq!(Split::ALL.map(|s| a.len(s)), [100, 512, 512, 512]);
        // Labels follow the teacher the more, the sharper it is: nearly always the same as without noise.
        let labels = |sharpness| {
            let t = Table { sharpness, ..table };
            t.splits(Key::new(1)).unwrap().data().labels.to_vec()
        };
        let (sharp, exact, blunt) = (labels(50.0), labels(1e4), labels(0.1));
        let same = |x: &[u32]| x.iter().zip(&exact).filter(|(a, b)| a == b).count() as f64 / x.len() as f64;
        assert!(same(&sharp) > 0.9 && same(&blunt) < 0.4, "{} {}", same(&sharp), same(&blunt));
        // The columns' variances span the condition.
        let t = Table { condition: 100.0, features: 4, ..table }.splits(Key::new(3)).unwrap();
        let variance = |c: usize| {
            let column = t.data().images.iter().skip(c).step_by(4);
            column.map(|x| f64::from(x * x)).sum::<f64>() / t.data().len() as f64
        };
        let mut variances = [0, 1, 2, 3].map(variance);
        variances.sort_by(f64::total_cmp);
        assert!((variances[3] / variances[0] / 100.0 - 1.0).abs() < 0.3, "{variances:?}");
        for bad in [
            Table { features: 0, ..table },
            Table { classes: 1, ..table },
            Table { rows: 0, ..table },
            Table { condition: 0.5, ..table },
            Table { sharpness: f64::NAN, ..table },
            Table { roughness: 0.0, ..table },
        ] {
            assert!(bad.splits(Key::new(0)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn spirals_have_two_arms_and_letters_the_text() {
        let s = spirals(64, 0.0, Key::new(0)).unwrap();
        assert_eq!(s.data().labels.iter().filter(|l| **l == 0).count(), s.data().len() / 2);
        assert!(s.data().images.iter().all(|x| x.abs() <= 1.0));
        assert!(spirals(0, 0.1, Key::new(0)).is_err() && spirals(9, -0.1, Key::new(0)).is_err());

        let text = "The quick brown fox -- jumps over the lazy dog. ".repeat(20);
        let t = next_letter(&text, 3).unwrap();
        let (data, at) = (t.data(), |i: usize| 27 * 3 * i);
        // "the" → space; "he " → q
        assert_eq!(&data.labels[..2], &[0, 17]);
        let hot: Vec<usize> = (0..81).filter(|j| data.images[at(0) + j] == 1.0).collect();
        assert_eq!(hot, [20, 27 + 8, 54 + 5]);
        let batch = t.indices(BatchKey { split: Split::Test, step: 0, key: Key::new(0) }, 5);
        assert!(batch.iter().all(|i| *i as usize >= data.len() * 8 / 10));
        assert!(next_letter("short", 3).is_err() && next_letter(&text, 0).is_err());
    }

    #[test]
    fn a_chain_is_as_predictable_as_said() {
        let chain = Chain { symbols: 5, order: 2, sharpness: 3.0, rows: 2000 };
        let splits = chain.splits(3, Key::new(1)).unwrap();
        assert_eq!(Split::ALL.map(|s| splits.len(s)), [2000, 512, 512, 512]);
        assert_eq!(splits.data().images, chain.splits(3, Key::new(1)).unwrap().data().images);
        // The best guess from the last two symbols, counted; a chain without logits is a die.
        let guessed = |chain: Chain| {
            let data = chain.splits(2, Key::new(2)).unwrap();
            let data = data.data();
            let mut counts = [[0u32; 5]; 25];
            for (x, y) in data.images.chunks_exact(10).zip(data.labels.iter()) {
                let hot: Vec<usize> = (0..10).filter(|j| x[*j] == 1.0).collect();
                counts[5 * hot[0] + hot[1] - 5][*y as usize] += 1;
            }
            let right: u32 = counts.iter().map(|c| c.iter().max().copied().unwrap_or(0)).sum();
            f64::from(right) / data.len() as f64
        };
        let (sharp, die) = (guessed(chain), guessed(Chain { sharpness: 0.0, ..chain }));
        assert!(sharp > 0.65 && die < 0.3, "{sharp} {die}");
        assert!(
            Chain { order: 0, ..chain }.splits(1, Key::new(0)).is_err()
                && chain.splits(0, Key::new(0)).is_err()
        );
    }

    #[test]
    fn label_noise_is_in_the_training_rows_only() {
        let clean = Table { rows: 400, ..Table::default() }.splits(Key::new(5)).unwrap();
        let noisy = with_label_noise(&clean, 0.5, Key::new(6)).unwrap();
        let changed = |range: std::ops::Range<usize>| {
            range.filter(|&i| clean.data().labels[i] != noisy.data().labels[i]).count()
        };
        // Half are drawn anew, of which a quarter hits the old label: 150 ± 10.
        assert!((110..190).contains(&changed(0..400)), "{}", changed(0..400));
        assert_eq!(changed(400..clean.data().len()), 0);
        assert!(with_label_noise(&clean, 1.5, Key::new(0)).is_err());
    }
}
