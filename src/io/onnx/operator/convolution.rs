//! Convolutions, and the padding before them.

use super::shapes_of;
use super::windows::{WindowGrid, unpadded, with_windows};
use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::io::onnx::ir::Computation;
use crate::io::onnx::shapes::wrapped;
use crate::io::onnx::shortened;
use crate::layer::{Conv1d, Conv2d, ConvTranspose2d, Layer};
use crate::scalar::Scalar;
use std::sync::Arc;

/// The shape of the weights, whose first two axes are channels.
fn weight_shape<'a, T: Scalar>(context: &'a Context<'_, T>) -> Result<&'a [usize], String> {
    let weight = context.constant(1).ok_or("its weights must be constants")?;
    let (shape, rank) = (weight.dims.as_slice(), context.rank()?);
    if shape.len() != rank + 2 {
        return Err(format!(
            "its weights have {} axes, but for values with {} axes (without the batch axis) they \
             must have {}",
            shape.len(),
            rank + 1,
            rank + 2
        ));
    }
    Ok(shape)
}

fn windows<T: Scalar>(context: &Context<'_, T>, shape: &[usize]) -> Result<WindowGrid, String> {
    let kernel = match *shape {
        [_, _, length] => [length; 2],
        _ => [shape[2], shape[3]],
    };
    WindowGrid::of(context, kernel)
}

fn groups<T: Scalar>(context: &Context<'_, T>) -> Result<usize, String> {
    usize::try_from(context.node.int("group", 1)).map_err(|_| "its group is negative".to_owned())
}

pub(super) fn conv<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let shape = weight_shape(context)?;
    let (input, by) = unpadded(context);
    let windows = windows(context, shape)?.padded(by)?;
    let groups = groups(context)?;
    let (weights, bias) = (context.numbers(1, "weights")?, context.optional(2, "bias")?);
    macro_rules! with_settings {
        ($layer:expr) => {
            Arc::new(
                with_windows!($layer.map_err(reason)?, windows)
                    .dilation(windows.dilation)
                    .groups(groups),
            )
        };
    }
    let layer: Arc<dyn Layer<T>> = match *shape {
        [outputs, inputs, length] => {
            with_settings!(Conv1d::new([outputs, inputs, length], weights, bias))
        }
        _ => with_settings!(Conv2d::new([shape[0], shape[1], shape[2], shape[3]], weights, bias)),
    };
    Ok(Computation::Layers(input, vec![layer]).into())
}

pub(super) fn conv_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let weights = context.constant(1).map(|weights| weights.dims.as_slice()).unwrap_or_default();
    let inputs = match weights {
        &[_, inputs, ..] => {
            usize::try_from(context.node.int("group", 1)).unwrap_or(1).saturating_mul(inputs)
        }
        _ => 8,
    };
    of_weights(weights, inputs)
}

fn of_weights(weights: &[usize], inputs: usize) -> Vec<Vec<usize>> {
    match weights.len().checked_sub(1) {
        Some(axes) => shapes_of([axes], inputs),
        None => shapes_of(1..=3, inputs),
    }
}

pub(super) fn conv_transpose<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let node = context.node;
    let shape = weight_shape(context)?;
    if !matches!(node.text("auto_pad"), "" | "NOTSET") || node.attribute("output_shape").is_some() {
        return Err("its auto_pad or output_shape is unsupported: export the model with explicit \
             pads"
            .to_owned());
    }
    let windows = windows(context, shape)?;
    let groups = groups(context)?;
    let (weights, bias) = (context.numbers(1, "weights")?, context.optional(2, "bias")?);
    let (_, by) = unpadded(context);
    let &[inputs, outputs, height, width] = shape else {
        return Err("it is supported only for images".to_owned());
    };
    if !by.is_empty() {
        return Err("it is supported only without a padding before it".to_owned());
    }
    let more = context.sizes("output_padding", windows.rank, 0)?;
    let layer = ConvTranspose2d::new([inputs, outputs, height, width], weights, bias);
    context.layer(
        with_windows!(layer.map_err(reason)?, windows)
            .dilation(windows.dilation)
            .groups(groups)
            .output_padding(more),
    )
}

pub(super) fn conv_transpose_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let weights = context.constant(1).map(|weights| weights.dims.as_slice()).unwrap_or_default();
    of_weights(weights, weights.first().copied().unwrap_or(8))
}

pub(super) fn pad<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let node = context.node;
    let rank = context.rank()?;
    if !matches!(node.text("mode"), "" | "constant") {
        return Err(format!(
            "its mode '{}' is unsupported: only padding with zeros is supported (mode \
             'constant')",
            shortened(node.text("mode"))
        ));
    }
    // Up to version 10 of the operator set, the value and the pads are attributes.
    let value = context
        .constant(2)
        .and_then(Constant::scalar)
        .or_else(|| (!context.is_given(2)).then(|| node.float("value", 0.0).into()));
    if value != Some(0.0) {
        return Err("only padding with constant zeros is supported".to_owned());
    }
    let pads = context.ints(1).or(node.ints("pads")).ok_or("its pads must be constants")?;
    let axes: Vec<Option<usize>> = match context.ints(3) {
        Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank + 2)).collect(),
        None => (0..rank + 2).map(Some).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err("its pads must have two numbers for each axis".to_owned());
    }
    let mut by = vec![[0; 2]; rank];
    let (before, after) = pads.split_at(axes.len());
    for (axis, (&before, &after)) in axes.into_iter().zip(before.iter().zip(after)) {
        let axis = axis.ok_or("one of its axes does not exist")?;
        // Axes 0 and 1 are samples and channels.
        match (axis.checked_sub(2), usize::try_from(before), usize::try_from(after)) {
            (Some(axis), Ok(before), Ok(after)) => by[axis] = [before, after],
            _ if before == 0 && after == 0 => {}
            (None, ..) => {
                return Err("it pads samples or channels, but only padding of spatial axes is \
                     supported"
                    .to_owned());
            }
            _ => {
                return Err("its pads are negative (cropping), which is unsupported".to_owned());
            }
        }
    }
    Ok(Computation::Padding(context.input(), by).into())
}

pub(super) fn pad_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let pads = context.ints(1).or(context.node.ints("pads"));
    match pads.and_then(|pads| (pads.len() / 2).checked_sub(1)) {
        Some(axes) => shapes_of([axes], 8),
        None => shapes_of(2..=3, 8),
    }
}
