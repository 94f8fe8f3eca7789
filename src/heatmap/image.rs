//! Images of shape channels x height x width, and the relevance of their pixels.

use super::{Canvas, Rgb, diverging, finite, mix, sequential, strengths};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The relevance of each pixel, summed over its channels.
///
/// `relevance` has the shape channels x height x width, in C order.
///
/// # Errors
/// [`Error::Shape`] if the number of values does not match the shape, or the shape has no height
/// and width.
///
/// ```
/// use relprop::heatmap::over_channels;
///
/// assert_eq!(over_channels(&[1.0, 2.0, 10.0, 20.0], [2, 1, 2].into())?, [11.0, 22.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
pub fn over_channels<T: Scalar>(relevance: &[T], shape: Shape) -> Result<Vec<T>, Error> {
    let plane = plane(relevance.len(), shape)?;
    let mut sums = vec![T::zero(); plane];
    for channel in relevance.chunks_exact(plane) {
        sums.iter_mut().zip(channel).for_each(|(sum, &v)| *sum += v);
    }
    Ok(sums)
}

/// The number of pixels of an image, after checking that its values match the shape.
fn plane(values: usize, shape: Shape) -> Result<usize, Error> {
    let expected = |text: String| Error::shape("heatmap", values.into(), text);
    match *shape.dims() {
        [_, height, width] if shape.size() == values && values > 0 => Ok(height * width),
        [_, _, _] => Err(expected(format!("values of the shape {shape}"))),
        _ => Err(expected("an image: channels x height x width".to_owned())),
    }
}

impl Canvas {
    /// Draws an image with its upper left corner at (x, y).
    ///
    /// Each pixel of the image is a square of `cell` x `cell` pixels. Three channels are drawn as
    /// red, green and blue; for any other number of channels, their mean is drawn in gray. The
    /// smallest value is black, the largest white.
    ///
    /// # Errors
    /// See [`over_channels`].
    pub fn draw_image<T: Scalar>(
        &mut self,
        x: usize,
        y: usize,
        image: &[T],
        shape: Shape,
        cell: usize,
    ) -> Result<(), Error> {
        let plane = plane(image.len(), shape)?;
        let [_, width] = shape.plane();
        self.draw_pixels(x, y, width, cell, (0..plane).map(colors(image, shape)));
        Ok(())
    }

    /// Draws the relevance of an image's pixels over the image.
    ///
    /// The image is drawn in pale gray, and the relevance over it in blue and red, more opaque
    /// where it is stronger. The pixel with the strongest relevance has the color of 1 or -1 in
    /// [`diverging`]. Pixels have the same size as in [`draw_image`](Self::draw_image).
    ///
    /// # Errors
    /// See [`over_channels`].
    ///
    /// ```
    /// use relprop::heatmap::Canvas;
    ///
    /// let mut canvas = Canvas::new(2, 1, [0; 3])?;
    /// canvas.draw_overlay(0, 0, &[0.0, 1.0], &[0.0, 3.0], [1, 1, 2].into(), 1)?;
    /// assert_eq!(canvas.pixel(1, 0), Some([190, 10, 30])); // all of the relevance
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn draw_overlay<T: Scalar>(
        &mut self,
        x: usize,
        y: usize,
        image: &[T],
        relevance: &[T],
        shape: Shape,
        cell: usize,
    ) -> Result<(), Error> {
        plane(image.len(), shape)?;
        let sums = over_channels(relevance, shape)?;
        let color = colors(image, shape);
        let pixels = strengths(&sums).enumerate().map(|(pixel, strength)| {
            let gray = color(pixel).map(f64::from).iter().sum::<f64>() / 3.0;
            // Pale, so that no line of the image is as dark as the strongest relevance.
            let pale = 150.0 + gray * 105.0 / 255.0;
            // The square root makes weak relevance visible, too.
            mix([pale; 3], diverging(strength.signum()).map(f64::from), strength.abs().sqrt())
        });
        let [_, width] = shape.plane();
        self.draw_pixels(x, y, width, cell, pixels);
        Ok(())
    }

    /// Draws another canvas with its upper left corner at (x, y).
    pub fn draw_canvas(&mut self, x: usize, y: usize, other: &Self) {
        for (row, line) in other.pixels.chunks_exact(other.width).enumerate() {
            for (column, &color) in line.iter().enumerate() {
                self.fill_rect(x.saturating_add(column), y.saturating_add(row), 1, 1, color);
            }
        }
    }

    /// Arranges canvases in a grid of `columns` columns, with a gap around each.
    ///
    /// Every cell is as wide as the widest canvas and as tall as the tallest.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if there are no canvases, or if the grid would exceed the
    /// maximum size of a canvas.
    ///
    /// ```
    /// use relprop::heatmap::Canvas;
    ///
    /// let pictures = [
    ///     Canvas::new(10, 8, [0; 3])?,
    ///     Canvas::new(10, 8, [9; 3])?,
    ///     Canvas::new(6, 8, [99; 3])?,
    /// ];
    /// let grid = Canvas::grid(&pictures, 2, 4, [255; 3])?;
    /// assert_eq!((grid.width(), grid.height()), (4 + 14 + 14, 4 + 12 + 12));
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn grid(
        pictures: &[Self],
        columns: usize,
        gap: usize,
        background: Rgb,
    ) -> Result<Self, Error> {
        let columns = columns.clamp(1, pictures.len().max(1));
        let largest = |side: fn(&Self) -> usize| {
            // The size of a cell includes the gap before it.
            pictures.iter().map(side).max().unwrap_or(0).saturating_add(gap)
        };
        let (wide, tall) = (largest(Self::width), largest(Self::height));
        if pictures.is_empty() {
            return Err(Error::parameter("Canvas", "pictures", 0, "at least one"));
        }
        let along = |count: usize, cell: usize| count.saturating_mul(cell).saturating_add(gap);
        let mut grid = Self::new(
            along(columns, wide),
            along(pictures.len().div_ceil(columns), tall),
            background,
        )?;
        for (index, picture) in pictures.iter().enumerate() {
            grid.draw_canvas(gap + index % columns * wide, gap + index / columns * tall, picture);
        }
        Ok(grid)
    }
}

/// The color of each pixel of an image.
fn colors<T: Scalar>(image: &[T], shape: Shape) -> impl Fn(usize) -> Rgb + '_ {
    let (least, largest) =
        image.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, largest), &v| {
            let v = finite(v);
            (least.min(v), largest.max(v))
        });
    // If all values are the same, the image is black.
    let range = if largest > least { largest - least } else { 1.0 };
    let (channels, plane) = (shape.channels(), image.len() / shape.channels().max(1));
    let of = move |channel: usize, pixel: usize| {
        (finite(image[channel * plane + pixel]) - least) / range
    };
    move |pixel| {
        let channel = |v: f64| sequential(v)[0];
        if channels == 3 {
            [0, 1, 2].map(|c| channel(of(c, pixel)))
        } else {
            [channel((0..channels).map(|c| of(c, pixel)).sum::<f64>() / channels as f64); 3]
        }
    }
}
