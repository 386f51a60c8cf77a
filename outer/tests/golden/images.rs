//! The image models of kind D as tasks of the library, read off the names and shapes of a file's
//! tensors and the activation that its description names.

use crate::losses::read;
use crate::models::file_layout;
use outerloop_core::Layout;
use outerloop_tasks::data::{digits, ImageData, Splits};
use outerloop_tasks::image::{
    AutoencoderConfig, AutoencoderTask, ConvConfig, ConvTask, ImageLoss, MlpConfig, MlpTask, Nonlinearity,
    Norm, Pooling,
};
use safetensors::SafeTensors;

pub enum ImageTask {
    Mlp(MlpTask),
    Conv(ConvTask),
    Autoencoder(AutoencoderTask),
}

/// The layers of a module, in haiku's numbering: `name`, `name_1`, ..., or `name_0`, `name_1`, ...
fn numbered(layout: &Layout, name: &str, leaf: &str) -> Vec<String> {
    let has = |n: &String| layout.entries().iter().any(|e| e.name == format!("{n}/{leaf}"));
    let names = std::iter::once(name.to_string()).chain((0..99).map(|i| format!("{name}_{i}")));
    names.filter(has).collect()
}

/// The file's batch as the only one of a data set. `indices`: which of the digits it is said to hold.
fn data(file: &SafeTensors<'_>, classes: usize, indices: &[usize]) -> Splits {
    let (pixels, shape) = read(file, "batch/image").expect("the case has images");
    let pixels: Vec<f32> = pixels.into_iter().map(|x| x as f32).collect();
    let &[n, height, width, channels] = &shape[..] else { panic!("images of shape {shape:?}") };
    let labels: Vec<u32> = match read(file, "batch/label") {
        Some((labels, _)) => labels.into_iter().map(|x| x as u32).collect(),
        None => vec![0; n],
    };
    let digits = digits();
    if height * width * channels == digits.features() {
        for (row, (image, &i)) in pixels.chunks(digits.features()).zip(indices).enumerate() {
            assert_eq!(image, digits.image(i), "image {row} is digit {i}");
        }
    }
    let data = ImageData::new("golden", pixels, labels, [height, width, channels], classes);
    let batch: Vec<u32> = (0..n as u32).collect();
    let data = data.expect("the images of the case make a data set");
    Splits::listed(data, std::array::from_fn(|_| vec![batch.clone()])).expect("a batch of the data set")
}

/// The first nonlinearity that the description names; ReLU if none.
pub fn nonlinearity(description: &str) -> Nonlinearity {
    let words = description.split(|c: char| !(c.is_alphanumeric() || c == '_'));
    let of = |word: &str| match word {
        "swish" => Some(Nonlinearity::Silu),
        word => Nonlinearity::ALL.into_iter().find(|n| n.name() == word),
    };
    words.into_iter().find_map(of).unwrap_or(Nonlinearity::Relu)
}

/// The task of a file, and the file's names in the order of the task's parameters; none if it has
/// parameters of another model.
pub fn task(
    file: &SafeTensors<'_>,
    description: &str,
    indices: &[usize],
) -> Option<(ImageTask, Vec<String>)> {
    let layout = file_layout(file);
    let nonlinearity = nonlinearity(description);
    let width = |layer: &String| {
        let bias = format!("{layer}/b");
        layout.entries().iter().find(|e| e.name == bias).map_or(0, |e| e.numel())
    };
    let convs = numbered(&layout, "conv2_d", "w");
    let norms = numbered(&layout, "layer_norm", "scale");
    let mut linears = numbered(&layout, "mlp/~/linear", "w");
    linears.extend(numbered(&layout, "linear", "w"));
    let (last, hidden) = linears.split_last()?;
    let widths: Vec<usize> = convs.iter().chain(hidden).map(width).collect();
    let batch_size = file.tensor("batch/image").ok()?.shape()[0];
    let data = |classes| data(file, classes, indices);
    let valid = "the case's numbers make a task";

    let task = if !convs.is_empty() {
        let pooling = if description.contains("max pool") { Pooling::Max } else { Pooling::Mean };
        let config = ConvConfig { channels: widths, nonlinearity, pooling, init_scale: 1.0, batch_size };
        ImageTask::Conv(ConvTask::new(data(width(last)), config).expect(valid))
    } else if file.tensor("batch/label").is_err() {
        let config = AutoencoderConfig { hidden: widths, nonlinearity, init_scale: 1.0, batch_size };
        ImageTask::Autoencoder(AutoencoderTask::new(data(1), config).expect(valid))
    } else {
        let squared = description.contains("onehot");
        let config = MlpConfig {
            hidden: widths,
            nonlinearity,
            norm: if norms.is_empty() { Norm::None } else { Norm::Layer },
            loss: if squared { ImageLoss::MeanSquaredError } else { ImageLoss::CrossEntropy },
            batch_size,
            ..MlpConfig::default()
        };
        ImageTask::Mlp(MlpTask::new(data(width(last)), config).expect(valid))
    };
    let mut norms = norms.into_iter();
    let mut names = Vec::new();
    for layer in convs.iter().chain(&linears) {
        names.extend(["w", "b"].map(|leaf| format!("{layer}/{leaf}")));
        if let Some(norm) = norms.next() {
            names.extend(["scale", "offset"].map(|leaf| format!("{norm}/{leaf}")));
        }
    }
    (names.len() == layout.entries().len()).then_some((task, names))
}
