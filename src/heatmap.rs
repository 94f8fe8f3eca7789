//! Heatmaps of relevance: a small RGB canvas, two color scales, and PNG files.
//!
//! ```
//! use relprop::heatmap::{Canvas, diverging};
//! use relprop::{Linear, Rule, Sequential};
//! use relprop::nalgebra::{self, dmatrix, dvector};
//!
//! let linear = Linear::new(dmatrix![1.0, -2.0, 0.5, 0.0], None)?;
//! let model = Sequential::builder().layer(linear).build()?;
//! let relevance = model.explain(&dvector![1.0, 1.0, 1.0, 1.0], Rule::Epsilon)?.relevance(0)?;
//!
//! // The four inputs are an image of 2 x 2 pixels, each drawn as a square of 8 x 8.
//! let mut canvas = Canvas::new(40, 30, [255; 3])?;
//! canvas.draw_text(2, 2, "out 0", 1, [0; 3]);
//! canvas.draw_map(2, 12, relevance.as_slice(), 2, 8, diverging);
//! assert!(canvas.to_png()?.starts_with(b"\x89PNG"));
//! # Ok::<(), relprop::Error>(())
//! ```

mod image;

use std::path::Path;

use crate::error::Error;
use crate::scalar::Scalar;

pub use image::over_channels;

/// Red, green and blue.
pub type Rgb = [u8; 3];

/// The largest width and height of a canvas.
const LARGEST: usize = 16_384;

/// An RGB picture to draw on.
///
/// The origin is the upper left corner. Anything outside the canvas is not drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    width: usize,
    height: usize,
    pixels: Vec<Rgb>,
}

impl Canvas {
    /// Creates a canvas filled with one color.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if a side is 0 or longer than 16384 pixels.
    pub fn new(width: usize, height: usize, background: Rgb) -> Result<Self, Error> {
        for (name, side) in [("width", width), ("height", height)] {
            if !(1..=LARGEST).contains(&side) {
                return Err(Error::parameter("Canvas", name, side, "from 1 to 16384"));
            }
        }
        Ok(Self { width, height, pixels: vec![background; width * height] })
    }

    /// The width in pixels.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The height in pixels.
    #[must_use]
    pub fn height(&self) -> usize {
        self.height
    }

    /// The color of a pixel, or `None` if it is outside the canvas.
    #[must_use]
    pub fn pixel(&self, x: usize, y: usize) -> Option<Rgb> {
        // Beyond the width, the index would be that of a pixel in a row below.
        if x < self.width {
            self.pixels.get(y.checked_mul(self.width)?.checked_add(x)?).copied()
        } else {
            None
        }
    }

    /// Fills a rectangle.
    ///
    /// ```
    /// # use relprop::heatmap::Canvas;
    /// let mut canvas = Canvas::new(4, 4, [0; 3])?;
    /// canvas.fill_rect(2, 2, 100, 100, [255, 0, 0]);
    /// assert_eq!(canvas.pixel(3, 3), Some([255, 0, 0]));
    /// assert_eq!(canvas.pixel(1, 3), Some([0, 0, 0]));
    /// assert_eq!(canvas.pixel(4, 0), None);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn fill_rect(&mut self, x: usize, y: usize, width: usize, height: usize, color: Rgb) {
        let right = x.saturating_add(width).min(self.width);
        let below = y.saturating_add(height).min(self.height);
        let rows = self.pixels.chunks_exact_mut(self.width).take(below).skip(y);
        for row in rows {
            // There is no such part if the rectangle begins to the right of the canvas.
            if let Some(part) = row.get_mut(x..right) {
                part.fill(color);
            }
        }
    }

    /// Draws values row by row, `columns` to a row, each as a square of `cell` x `cell` pixels.
    ///
    /// The values are divided by their largest magnitude, so that zero stays zero and the strongest
    /// value becomes 1 or -1. If all values are zero, they stay zero. Values that are not finite
    /// are drawn as zero. Use the color scale [`diverging`] for relevance, and [`sequential`] for
    /// inputs.
    pub fn draw_map<T: Scalar>(
        &mut self,
        x: usize,
        y: usize,
        values: &[T],
        columns: usize,
        cell: usize,
        color: impl Fn(f64) -> Rgb,
    ) {
        self.draw_pixels(x, y, columns, cell, strengths(values).map(color));
    }

    fn draw_pixels(
        &mut self,
        x: usize,
        y: usize,
        columns: usize,
        cell: usize,
        colors: impl Iterator<Item = Rgb>,
    ) {
        let columns = columns.max(1);
        for (pixel, color) in colors.enumerate() {
            let at = |from: usize, index: usize| from.saturating_add(index.saturating_mul(cell));
            self.fill_rect(at(x, pixel % columns), at(y, pixel / columns), cell, cell, color);
        }
    }

    /// Draws a line of text with its upper left corner at (x, y).
    ///
    /// Each dot of the 5 x 7 font is a square of `scale` x `scale` pixels. The font has the
    /// printable ASCII characters; any other character is drawn as a box.
    pub fn draw_text(&mut self, x: usize, y: usize, text: &str, scale: usize, color: Rgb) {
        for (index, character) in text.chars().enumerate() {
            for (column, bits) in glyph(character).into_iter().enumerate() {
                // Letters such as g have an eighth row below the line.
                for row in (0..8).filter(|row| bits >> row & 1 == 1) {
                    let left = (index.saturating_mul(ADVANCE))
                        .saturating_add(column)
                        .saturating_mul(scale);
                    let (left, top) =
                        (x.saturating_add(left), y.saturating_add(scale.saturating_mul(row)));
                    self.fill_rect(left, top, scale, scale, color);
                }
            }
        }
    }

    /// Encodes the canvas as a PNG file.
    ///
    /// # Errors
    /// [`Error::Io`] if the encoder fails, which does not happen for a valid canvas.
    pub fn to_png(&self) -> Result<Vec<u8>, Error> {
        self.encode()
            .map_err(|source| Error::Io { path: "the picture".to_owned(), source: source.into() })
    }

    /// Writes the canvas to a PNG file.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn write_png(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        std::fs::write(path, self.to_png()?).map_err(|source| Error::io(path, source))
    }

    fn encode(&self) -> Result<Vec<u8>, png::EncodingError> {
        let side =
            |pixels: usize| u32::try_from(pixels).map_err(|_| png::EncodingError::LimitsExceeded);
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, side(self.width)?, side(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        writer.finish()?;
        Ok(file)
    }
}

/// The value, or 0 if it is not finite.
fn finite<T: Scalar>(value: T) -> f64 {
    if value.is_finite() { value.as_f64() } else { 0.0 }
}

/// The values as fractions of their largest magnitude.
fn strengths<T: Scalar>(values: &[T]) -> impl Iterator<Item = f64> + '_ {
    let largest = values.iter().map(|&v| finite(v).abs()).fold(0.0, f64::max);
    // Divides by `largest`, because its reciprocal is infinite for the smallest numbers.
    values.iter().map(move |&v| if largest > 0.0 { finite(v) / largest } else { 0.0 })
}

/// The width of a line of text in pixels, without the space after its last character.
///
/// ```
/// assert_eq!(relprop::heatmap::text_width("42", 2), 22);
/// ```
#[must_use]
pub fn text_width(text: &str, scale: usize) -> usize {
    text.chars().count().saturating_mul(ADVANCE).saturating_sub(1).saturating_mul(scale)
}

/// The color scale for relevance: blue for -1, white for 0, red for 1.
///
/// ```
/// use relprop::heatmap::diverging;
///
/// assert_eq!(diverging(0.0), [255, 255, 255]);
/// assert_eq!(diverging(f64::NAN), [255, 255, 255]);
/// let [red, _, blue] = diverging(0.5);
/// assert!(red > blue);
/// ```
#[must_use]
pub fn diverging(value: f64) -> Rgb {
    const WHITE: [f64; 3] = [255.0; 3];
    const RED: [f64; 3] = [190.0, 10.0, 30.0];
    const BLUE: [f64; 3] = [20.0, 60.0, 190.0];
    let value = if value.is_finite() { value.clamp(-1.0, 1.0) } else { 0.0 };
    mix(WHITE, if value < 0.0 { BLUE } else { RED }, value.abs())
}

/// The color scale for inputs: black for 0, white for 1.
///
/// ```
/// use relprop::heatmap::sequential;
///
/// assert_eq!([sequential(0.0), sequential(1.0), sequential(7.0)], [[0; 3], [255; 3], [255; 3]]);
/// ```
#[must_use]
pub fn sequential(value: f64) -> Rgb {
    mix([0.0; 3], [255.0; 3], if value.is_finite() { value.clamp(0.0, 1.0) } else { 0.0 })
}

// A weight between 0 and 1 gives channels between 0 and 255.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn mix(from: [f64; 3], to: [f64; 3], weight: f64) -> Rgb {
    let channel = |(from, to): (f64, f64)| (from + (to - from) * weight).round() as u8;
    let ([r, g, b], [to_r, to_g, to_b]) = (from, to);
    [(r, to_r), (g, to_g), (b, to_b)].map(channel)
}

/// The number of dots from one character to the next.
const ADVANCE: usize = 6;

/// The five columns of a character, with the lowest bit at the top.
fn glyph(character: char) -> [u8; 5] {
    let index =
        u32::from(character).checked_sub(0x20).and_then(|index| usize::try_from(index).ok());
    index.and_then(|index| FONT.get(index)).copied().unwrap_or([0x7f, 0x41, 0x41, 0x41, 0x7f])
}

/// The printable ASCII characters, from the space to the tilde.
#[rustfmt::skip]
const FONT: [[u8; 5]; 95] = [
    // space ! " # $ % & '
    [0x00, 0x00, 0x00, 0x00, 0x00], [0x00, 0x00, 0x5f, 0x00, 0x00],
    [0x00, 0x07, 0x00, 0x07, 0x00], [0x14, 0x7f, 0x14, 0x7f, 0x14],
    [0x24, 0x2a, 0x7f, 0x2a, 0x12], [0x23, 0x13, 0x08, 0x64, 0x62],
    [0x36, 0x49, 0x55, 0x22, 0x50], [0x00, 0x05, 0x03, 0x00, 0x00],
    // ( ) * + , - . /
    [0x00, 0x1c, 0x22, 0x41, 0x00], [0x00, 0x41, 0x22, 0x1c, 0x00],
    [0x14, 0x08, 0x3e, 0x08, 0x14], [0x08, 0x08, 0x3e, 0x08, 0x08],
    [0x00, 0x50, 0x30, 0x00, 0x00], [0x08, 0x08, 0x08, 0x08, 0x08],
    [0x00, 0x60, 0x60, 0x00, 0x00], [0x20, 0x10, 0x08, 0x04, 0x02],
    // 0 1 2 3 4 5 6 7
    [0x3e, 0x51, 0x49, 0x45, 0x3e], [0x00, 0x42, 0x7f, 0x40, 0x00],
    [0x42, 0x61, 0x51, 0x49, 0x46], [0x21, 0x41, 0x45, 0x4b, 0x31],
    [0x18, 0x14, 0x12, 0x7f, 0x10], [0x27, 0x45, 0x45, 0x45, 0x39],
    [0x3c, 0x4a, 0x49, 0x49, 0x30], [0x01, 0x71, 0x09, 0x05, 0x03],
    // 8 9 : ; < = > ?
    [0x36, 0x49, 0x49, 0x49, 0x36], [0x06, 0x49, 0x49, 0x29, 0x1e],
    [0x00, 0x36, 0x36, 0x00, 0x00], [0x00, 0x56, 0x36, 0x00, 0x00],
    [0x08, 0x14, 0x22, 0x41, 0x00], [0x14, 0x14, 0x14, 0x14, 0x14],
    [0x00, 0x41, 0x22, 0x14, 0x08], [0x02, 0x01, 0x51, 0x09, 0x06],
    // @ A B C D E F G
    [0x32, 0x49, 0x79, 0x41, 0x3e], [0x7e, 0x11, 0x11, 0x11, 0x7e],
    [0x7f, 0x49, 0x49, 0x49, 0x36], [0x3e, 0x41, 0x41, 0x41, 0x22],
    [0x7f, 0x41, 0x41, 0x22, 0x1c], [0x7f, 0x49, 0x49, 0x49, 0x41],
    [0x7f, 0x09, 0x09, 0x09, 0x01], [0x3e, 0x41, 0x49, 0x49, 0x7a],
    // H I J K L M N O
    [0x7f, 0x08, 0x08, 0x08, 0x7f], [0x00, 0x41, 0x7f, 0x41, 0x00],
    [0x20, 0x40, 0x41, 0x3f, 0x01], [0x7f, 0x08, 0x14, 0x22, 0x41],
    [0x7f, 0x40, 0x40, 0x40, 0x40], [0x7f, 0x02, 0x0c, 0x02, 0x7f],
    [0x7f, 0x04, 0x08, 0x10, 0x7f], [0x3e, 0x41, 0x41, 0x41, 0x3e],
    // P Q R S T U V W
    [0x7f, 0x09, 0x09, 0x09, 0x06], [0x3e, 0x41, 0x51, 0x21, 0x5e],
    [0x7f, 0x09, 0x19, 0x29, 0x46], [0x46, 0x49, 0x49, 0x49, 0x31],
    [0x01, 0x01, 0x7f, 0x01, 0x01], [0x3f, 0x40, 0x40, 0x40, 0x3f],
    [0x1f, 0x20, 0x40, 0x20, 0x1f], [0x3f, 0x40, 0x38, 0x40, 0x3f],
    // X Y Z [ \ ] ^ _
    [0x63, 0x14, 0x08, 0x14, 0x63], [0x07, 0x08, 0x70, 0x08, 0x07],
    [0x61, 0x51, 0x49, 0x45, 0x43], [0x00, 0x7f, 0x41, 0x41, 0x00],
    [0x02, 0x04, 0x08, 0x10, 0x20], [0x00, 0x41, 0x41, 0x7f, 0x00],
    [0x04, 0x02, 0x01, 0x02, 0x04], [0x40, 0x40, 0x40, 0x40, 0x40],
    // ` a b c d e f g
    [0x00, 0x01, 0x02, 0x04, 0x00], [0x20, 0x54, 0x54, 0x54, 0x78],
    [0x7f, 0x48, 0x44, 0x44, 0x38], [0x38, 0x44, 0x44, 0x44, 0x20],
    [0x38, 0x44, 0x44, 0x48, 0x7f], [0x38, 0x54, 0x54, 0x54, 0x18],
    [0x08, 0x7e, 0x09, 0x01, 0x02], [0x18, 0xa4, 0xa4, 0xa4, 0x7c],
    // h i j k l m n o
    [0x7f, 0x08, 0x04, 0x04, 0x78], [0x00, 0x44, 0x7d, 0x40, 0x00],
    [0x40, 0x80, 0x84, 0x7d, 0x00], [0x7f, 0x10, 0x28, 0x44, 0x00],
    [0x00, 0x41, 0x7f, 0x40, 0x00], [0x7c, 0x04, 0x18, 0x04, 0x78],
    [0x7c, 0x08, 0x04, 0x04, 0x78], [0x38, 0x44, 0x44, 0x44, 0x38],
    // p q r s t u v w
    [0xfc, 0x24, 0x24, 0x24, 0x18], [0x18, 0x24, 0x24, 0x24, 0xfc],
    [0x7c, 0x08, 0x04, 0x04, 0x08], [0x48, 0x54, 0x54, 0x54, 0x20],
    [0x04, 0x3f, 0x44, 0x40, 0x20], [0x3c, 0x40, 0x40, 0x20, 0x7c],
    [0x1c, 0x20, 0x40, 0x20, 0x1c], [0x3c, 0x40, 0x30, 0x40, 0x3c],
    // x y z { | } ~
    [0x44, 0x28, 0x10, 0x28, 0x44], [0x1c, 0xa0, 0xa0, 0xa0, 0x7c],
    [0x44, 0x64, 0x54, 0x4c, 0x44], [0x00, 0x08, 0x36, 0x41, 0x00],
    [0x00, 0x00, 0x7f, 0x00, 0x00], [0x00, 0x41, 0x36, 0x08, 0x00], [0x08, 0x04, 0x08, 0x10, 0x08],
];
