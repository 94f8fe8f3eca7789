//! Explanations as a picture.

use relprop::heatmap::{Canvas, Rgb, diverging, over_channels, text_width};
use relprop::{Explanation, Shape};

use super::report::{relevance, shown, title};
use super::samples::{Samples, is_channels_last};
use crate::Failure;

const WHITE: Rgb = [255; 3];
const BLACK: Rgb = [0; 3];
const GRAY: Rgb = [150; 3];
const PALE: Rgb = [220; 3];
/// Sizes in pixels: of a dot of a letter, of a line of text, and of the gap between parts.
const TEXT: usize = 1;
const LINE: usize = 12 * TEXT;
const GAP: usize = 12;
/// The approximate width of a map.
const WIDE: usize = 224;
/// A side of a map has at most this many squares.
const LARGEST: usize = 512;
const BAR: usize = 120;
/// The largest height of all parts, one below the other, and the longest name.
const TALLEST: usize = 16_000;
const LETTERS: usize = 32;

/// A part for each sample and target: bars for a vector, the sample and a map of its relevance for
/// a sequence or an image. Parts beyond the largest height are only counted.
pub struct Picture<'a> {
    samples: &'a Samples,
    top: usize,
    parts: Vec<Canvas>,
    height: usize,
    is_full: bool,
    left: usize,
}

impl<'a> Picture<'a> {
    pub fn new(samples: &'a Samples, top: usize) -> Self {
        Self { samples, top, parts: Vec::new(), height: 0, is_full: false, left: 0 }
    }

    pub fn add(&mut self, number: usize, explanation: &Explanation<f32>) -> Result<(), Failure> {
        for target in explanation.targets() {
            if self.is_full {
                self.left += 1;
                continue;
            }
            let title = title(number, explanation, target);
            let Self { samples, top, .. } = self;
            let part = match samples.shape.dims() {
                [_] => bars(&title, explanation, target, samples, *top)?,
                _ => map(
                    &title,
                    explanation,
                    target,
                    samples.values.column(number).as_slice(),
                    samples.shape,
                )?,
            };
            self.height += part.height() + GAP;
            // The first part is always drawn, however tall it is.
            self.is_full = !self.parts.is_empty() && self.height > TALLEST;
            if self.is_full {
                self.left += 1;
            } else {
                self.parts.push(part);
            }
        }
        Ok(())
    }

    /// The picture, and the number of explanations that did not fit.
    pub fn finish(self) -> Result<(Canvas, usize), Failure> {
        let grid = Canvas::grid(&self.parts, if self.parts.len() > 3 { 2 } else { 1 }, GAP, WHITE)?;
        let key = match self.samples.shape.dims() {
            [_] => "what contributed most: red for the output, blue against it",
            _ => "the sample, and what its values contributed: red for the output, blue against it",
        };
        let mut canvas = Canvas::new(
            grid.width().max(text_width(key, TEXT) + 2 * GAP),
            grid.height() + LINE + GAP,
            WHITE,
        )?;
        canvas.draw_text(GAP, GAP, key, TEXT, GRAY);
        canvas.draw_canvas(0, LINE + GAP, &grid);
        Ok((canvas, self.left))
    }
}

/// The strongest inputs, a bar each: to the right for the output, to the left against it.
fn bars(
    title: &str,
    explanation: &Explanation<f32>,
    target: usize,
    samples: &Samples,
    top: usize,
) -> Result<Canvas, Failure> {
    let strongest = explanation.top(target, top)?;
    // MIN_POSITIVE avoids a division by 0 if there is no relevance.
    let largest = strongest.iter().map(|c| c.relevance.abs()).fold(f32::MIN_POSITIVE, f32::max);
    // The zero line, after the longest name (a letter has 5 dots, and the next begins after 6) and
    // a bar to the left.
    let middle = text_width("m", TEXT) * (LETTERS + 2) * 6 / 5 + BAR;
    let values: Vec<String> = strongest.iter().map(|c| shown(relevance(explanation, c))).collect();
    let widest = values.iter().map(|value| text_width(value, TEXT)).max().unwrap_or(0);
    let width = (middle + BAR + GAP + widest).max(text_width(title, TEXT));
    let mut canvas = Canvas::new(width, (strongest.len() + 2) * LINE, WHITE)?;
    canvas.draw_text(0, 0, title, TEXT, BLACK);
    for (row, contribution) in strongest.iter().enumerate() {
        let (y, share) = ((row + 1) * LINE + LINE / 2, contribution.relevance / largest);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // from 0 to the length of a bar
        let length = (share.abs() * BAR as f32).round() as usize;
        canvas.draw_text(0, y, &cut(&samples.name(contribution.input)), TEXT, BLACK);
        let from = if share < 0.0 { middle - length } else { middle };
        canvas.fill_rect(from, y - 1, length, LINE - 3, diverging(f64::from(share).signum() * 0.8));
        canvas.draw_text(middle + BAR + GAP, y, &values[row], TEXT, BLACK);
    }
    canvas.fill_rect(middle, LINE, 1, (strongest.len() + 1) * LINE, GRAY);
    Ok(canvas)
}

/// The sample and, next to it, its relevance.
fn map(
    title: &str,
    explanation: &Explanation<f32>,
    target: usize,
    sample: &[f32],
    shape: Shape,
) -> Result<Canvas, Failure> {
    let relevance = explanation.relevance(target)?;
    let (sample, _) = planes(sample, shape);
    let (relevance, shape) = planes(relevance.as_slice(), shape);
    let relevance = over_channels(&relevance, shape)?;
    // Each square of a large map is the mean of a few pixels.
    let (sample, planes) = coarser(&sample, shape);
    let (relevance, _) = coarser(&relevance, [1, shape.dims()[1], shape.dims()[2]].into());
    let (height, width) = (planes.dims()[1], planes.dims()[2]);
    let cell = (WIDE / height.max(width)).max(1);
    let mut canvas = Canvas::new(
        (2 * width * cell + GAP).max(text_width(title, TEXT)),
        height * cell + LINE,
        WHITE,
    )?;
    canvas.draw_text(0, 0, title, TEXT, BLACK);
    canvas.draw_image(0, LINE, &sample, planes, cell)?;
    let left = width * cell + GAP;
    canvas.draw_map(left, LINE, &relevance, width, cell, diverging);
    // The frame shows where the map ends, which is white where there is no relevance.
    frame(&mut canvas, [left, LINE, width * cell, height * cell]);
    Ok(canvas)
}

/// A line around a part, inside it.
fn frame(canvas: &mut Canvas, [x, y, width, height]: [usize; 4]) {
    canvas.fill_rect(x, y, width, 1, PALE);
    canvas.fill_rect(x, y + height - 1, width, 1, PALE);
    canvas.fill_rect(x, y, 1, height, PALE);
    canvas.fill_rect(x + width - 1, y, 1, height, PALE);
}

/// A name, shortened in its middle: names often differ at their end.
fn cut(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= LETTERS {
        return name.to_owned();
    }
    let (begin, end) = (&letters[..LETTERS / 2 - 1], &letters[letters.len() - LETTERS / 2 + 2..]);
    [begin, &['.'; 3], end].concat().into_iter().collect()
}

/// Means of neighboring values, so that no side is longer than a map's largest.
fn coarser(values: &[f32], shape: Shape) -> (Vec<f32>, Shape) {
    let &[channels, height, width] = shape.dims() else { return (values.to_vec(), shape) };
    // A square is the mean of up to tall x wide values. At the edges there can be fewer.
    let (tall, wide) = (height.div_ceil(LARGEST), width.div_ceil(LARGEST));
    let (rows, columns) = (height.div_ceil(tall), width.div_ceil(wide));
    let (mut sums, mut counts) =
        (vec![0.0; channels * rows * columns], vec![0.0_f32; channels * rows * columns]);
    for (at, value) in values.iter().enumerate() {
        let (channel, row, column) =
            (at / width / height, at / width % height / tall, at % width / wide);
        let to = (channel * rows + row) * columns + column;
        sums[to] += value;
        counts[to] += 1.0;
    }
    sums.iter_mut().zip(&counts).for_each(|(sum, count)| *sum /= count.max(1.0));
    (sums, [channels, rows, columns].into())
}

/// Values as channels x height x width; a sequence is one picture of channels x length.
fn planes(values: &[f32], shape: Shape) -> (Vec<f32>, Shape) {
    match *shape.dims() {
        [height, width, channels] if is_channels_last(shape) => {
            // Channels last: the values of a channel are `channels` apart.
            let of = |channel: usize| values.iter().skip(channel).step_by(channels).copied();
            ((0..channels).flat_map(of).collect(), [channels, height, width].into())
        }
        [channels, length] => (values.to_vec(), [1, channels, length].into()),
        _ => (values.to_vec(), shape),
    }
}
