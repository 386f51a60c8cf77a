//! The feature `png`: a bitmap with an embedded font.
//!
//! The font is a subset of DejaVu Sans, under the licence in `lopt-sans.LICENSE.txt`.

use super::picture::Picture;
use outerloop_core::{Error, Result};
use plotters::{
    prelude::BitMapBackend,
    style::{register_font as register, FontStyle},
};

/// With this feature plotters measures text in SVG with the font too.
pub(super) fn register_font() -> Result<()> {
    register("sans-serif", FontStyle::Normal, include_bytes!("lopt-sans.ttf"))
        .map_err(|_| Error::invalid("embedded font", "plotters cannot read it"))
}

pub(super) fn encode(picture: &impl Picture) -> Result<Vec<u8>> {
    register_font()?;
    let (width, height) = picture.size();
    let mut rgb = vec![255; 3 * width as usize * height as usize];
    picture.draw(BitMapBackend::with_buffer(&mut rgb, (width, height)))?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&rgb))
        .map_err(|e| Error::invalid("png", e.to_string()))?;
    Ok(file)
}
