//! Grids of images.

use outerloop::amortized::inference::vae::Vae;
use outerloop::core::{Key, Result};
use outerloop::outer::plot::{ImageGrid, ImageRow, Shades};
use std::path::Path;

/// Grey images between black 0 and white 1.
pub fn grid(title: &str, shape: [usize; 3], columns: Vec<String>, rows: Vec<ImageRow>) -> ImageGrid {
    let shades = Shades::Between(0.0, 1.0);
    ImageGrid { title: title.into(), shape: [shape[0], shape[1]], columns, rows, shades, zoom: 6 }
}

/// Images that the decoder makes of 100 draws from the prior.
pub fn samples(vae: &Vae, own: &[f32], path: &Path) -> Result<()> {
    let pixels = vae.samples(own, 100, Key::new(11));
    let len = pixels.len() / 100;
    let rows = pixels.chunks(10 * len).map(|row| ImageRow::new("", row, len)).collect();
    grid("decoded draws from the prior", vae.shape(), Vec::new(), rows).save(path)
}

/// One row per image: the data `[N][P]`, then what the decoder makes of each posterior `[N][2 Z]` of `lambdas`.
pub fn reconstructions(
    (vae, own): (&Vae, &[f32]),
    data: &[f64],
    lambdas: &[(String, Vec<f32>)],
    path: &Path,
) -> Result<()> {
    let len = vae.shape().iter().product();
    let mut rows: Vec<ImageRow> =
        data.chunks(len).map(|x| ImageRow::new("", &crate::single(x), len)).collect();
    let mut columns = vec!["data".to_string()];
    for (name, lambda) in lambdas {
        columns.push(name.clone());
        let pixels = vae.reconstructed(own, lambda);
        for (row, image) in rows.iter_mut().zip(pixels.chunks(len)) {
            row.images.push(image.to_vec());
        }
    }
    grid("unseen data and its reconstructions", vae.shape(), columns, rows).save(path)
}
