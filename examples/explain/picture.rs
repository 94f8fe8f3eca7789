//! Explanations as a picture.

use relprop::heatmap::{Canvas, Rgb, diverging, over_channels, text_width};
use relprop::{Explanation, Shape};

use crate::Failure;
use crate::report::{shown, title};
use crate::samples::{Samples, is_channels_last};

const WHITE: Rgb = [255; 3];
const BLACK: Rgb = [0; 3];
const GREY: Rgb = [150; 3];
/// The pixels for each dot of a letter, for a line of text, and between the parts.
const TEXT: usize = 1;
const LINE: usize = 12 * TEXT;
const GAP: usize = 12;
/// About how wide a map is, and a bar at most.
const WIDE: usize = 224;
const BAR: usize = 120;
/// No more explanations are drawn, and of a name no more letters.
const MOST: usize = 64;
const LETTERS: usize = 32;

/// A part for each sample and target: bars for a vector, the sample and a map of its relevance for a sequence or an image.
pub fn draw(explanations: &[Explanation<f32>], samples: &Samples, top: usize) -> Result<Canvas, Failure> {
    let mut parts = Vec::new();
    for (number, explanation) in explanations.iter().enumerate() {
        for target in explanation.targets().take(MOST - parts.len()) {
            let title = title(number, explanation, target);
            parts.push(match samples.shape.dims() {
                [_] => bars(&title, explanation, target, samples, top)?,
                _ => map(&title, explanation, target, samples.values.column(number).as_slice(), samples.shape)?,
            });
        }
    }
    let grid = Canvas::grid(&parts, if parts.len() > 3 { 2 } else { 1 }, GAP, WHITE)?;
    let key = "red: for the output, blue: against it";
    let mut canvas = Canvas::new(grid.width().max(text_width(key, TEXT) + 2 * GAP), grid.height() + LINE + GAP, WHITE)?;
    canvas.draw_text(GAP, GAP, key, TEXT, GREY);
    canvas.draw_canvas(0, LINE + GAP, &grid);
    Ok(canvas)
}

/// The strongest inputs, a bar each: to the right for the output, to the left against it.
fn bars(title: &str, explanation: &Explanation<f32>, target: usize, samples: &Samples, top: usize) -> Result<Canvas, Failure> {
    let strongest = explanation.top(target, top)?;
    let largest = strongest.iter().map(|c| c.relevance.abs()).fold(f32::MIN_POSITIVE, f32::max);
    let middle = text_width("m", TEXT) * (LETTERS + 2) * 6 / 5 + BAR;
    let mut canvas = Canvas::new(middle + BAR + GAP + text_width("-0000.000000", TEXT), (strongest.len() + 2) * LINE, WHITE)?;
    canvas.draw_text(0, 0, title, TEXT, BLACK);
    for (row, contribution) in strongest.iter().enumerate() {
        let (y, share) = ((row + 1) * LINE + LINE / 2, contribution.relevance / largest);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // from 0 to the length of a bar
        let length = (share.abs() * BAR as f32).round() as usize;
        let name: String = samples.name(contribution.input).chars().take(LETTERS).collect();
        canvas.draw_text(0, y, &name, TEXT, BLACK);
        let from = if share < 0.0 { middle - length } else { middle };
        canvas.fill_rect(from, y - 1, length, LINE - 3, diverging(f64::from(share).signum() * 0.8));
        canvas.draw_text(middle + BAR + GAP, y, &shown(contribution.relevance.into()), TEXT, BLACK);
    }
    canvas.fill_rect(middle, LINE, 1, (strongest.len() + 1) * LINE, GREY);
    Ok(canvas)
}

/// The sample and, beside it, its relevance.
fn map(title: &str, explanation: &Explanation<f32>, target: usize, sample: &[f32], shape: Shape) -> Result<Canvas, Failure> {
    let relevance = explanation.relevance(target)?;
    let (sample, _) = planes(sample, shape);
    let (relevance, planes) = planes(relevance.as_slice(), shape);
    let (height, width) = (planes.dims()[1], planes.dims()[2]);
    let cell = (WIDE / height.max(width)).max(1);
    let mut canvas = Canvas::new((2 * width * cell + GAP).max(text_width(title, TEXT)), height * cell + LINE, WHITE)?;
    canvas.draw_text(0, 0, title, TEXT, BLACK);
    canvas.draw_image(0, LINE, &sample, planes, cell)?;
    canvas.draw_map(width * cell + GAP, LINE, &over_channels(&relevance, planes)?, width, cell, diverging);
    Ok(canvas)
}

/// Values as channels x height x width; a sequence is one picture of channels x length.
fn planes(values: &[f32], shape: Shape) -> (Vec<f32>, Shape) {
    match *shape.dims() {
        [height, width, channels] if is_channels_last(shape) => {
            let of = |channel: usize| values.iter().skip(channel).step_by(channels).copied();
            ((0..channels).flat_map(of).collect(), [channels, height, width].into())
        }
        [channels, length] => (values.to_vec(), [1, channels, length].into()),
        _ => (values.to_vec(), shape),
    }
}
