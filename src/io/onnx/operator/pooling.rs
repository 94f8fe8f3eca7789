//! Poolings, and means over the spatial axes.

use std::sync::Arc;

use super::shapes_of;
use super::windows::{WindowGrid, unpadded, with_windows};
use crate::io::onnx::context::{Context, TranslationResult};
use crate::io::onnx::ir::Computation;
use crate::io::onnx::shapes::wrapped;
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, Flatten, Layer, MaxPool1d,
    MaxPool2d,
};
use crate::scalar::Scalar;

pub(super) fn pool<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let (node, rank) = (context.node, context.rank()?);
    let kernel = context
        .node
        .attribute("kernel_shape")
        .map(|_| context.sizes("kernel_shape", rank, 1))
        .ok_or("its kernel_shape is missing: export the model again")??;
    let (input, by) = unpadded(context);
    let windows = WindowGrid::of(context, kernel)?;
    let own = windows.before != [0; 2] || windows.after != [0; 2];
    let ceil = node.int("ceil_mode", 0) != 0;
    if ceil && by.iter().any(|by| *by != [0; 2]) {
        return Err(
            "ceil_mode after a padding is unsupported, because the last window can begin in \
             the padding: export the model without ceil_mode"
                .to_owned(),
        );
    }
    if windows.dilation != [1; 2] && node.text("auto_pad").starts_with("SAME") {
        return Err("its auto_pad is unsupported together with dilations: export the model with \
             explicit pads"
            .to_owned());
    }
    let counted = node.int("count_include_pad", 0) != 0;
    let windows = windows.padded(by)?;
    macro_rules! pool {
        ($layer:ident) => {
            with_windows!($layer::new(kernel), windows).ceil_mode(ceil)
        };
    }
    let layer: Arc<dyn Layer<T>> = if context.operator == "MaxPool" {
        // If no value is negative, a padding with zeros does not change the maximum of a
        // window.
        if !by.is_empty() && !context.ir[input].nonnegative {
            return Err(
                "a padding with zeros before it is supported only if its values cannot be \
                 negative, because a zero could be the maximum: use the pads of the pooling"
                    .to_owned(),
            );
        }
        match rank {
            1 => Arc::new(pool!(MaxPool1d).dilation(windows.dilation)),
            _ => Arc::new(pool!(MaxPool2d).dilation(windows.dilation)),
        }
    } else {
        if windows.dilation != [1; 2] {
            return Err("dilations are unsupported in an average pooling".to_owned());
        }
        if !by.is_empty() && own && !counted {
            return Err(
                "its average counts the padding of the node before it, but not its own, which \
                 is unsupported: export the model with only one of the two paddings"
                    .to_owned(),
            );
        }
        // The zeros of a separate padding are inputs of the pooling, so they always count.
        let counted = counted || !by.is_empty();
        match rank {
            1 => Arc::new(pool!(AvgPool1d).count_include_pad(counted)),
            _ => Arc::new(pool!(AvgPool2d).count_include_pad(counted)),
        }
    };
    Ok(Computation::Layers(input, vec![layer]).into())
}

pub(super) fn shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    match context.node.ints("kernel_shape") {
        Some(kernel) => shapes_of([kernel.len().saturating_add(1)], 8),
        None => shapes_of(2..=3, 8),
    }
}

pub(super) fn global_average<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    average(context, true)
}

pub(super) fn global_max<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    match (context.rank()?, context.dims) {
        (_, &[_, height, width]) => context.layer(MaxPool2d::new([height, width])),
        _ => context.layer(MaxPool1d::new(context.dims[1])),
    }
}

pub(super) fn reduce_mean<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let axes = context.ints(1).or(context.node.ints("axes")).ok_or(
        "it is a mean over all axes, which would mix the samples of a batch: export the model with \
         a mean over the spatial axes",
    )?;
    let full = context.dims.len() + 1;
    let mut axes: Vec<Option<usize>> = axes.iter().map(|&axis| wrapped(axis, full)).collect();
    axes.sort_unstable();
    // With the batch axis, the spatial axes are those from 2 on.
    if full < 3 || !axes.into_iter().eq((2..full).map(Some)) {
        return Err(
            "only a mean over all spatial axes is supported (the length of a sequence, or \
             the height and width of an image)"
                .to_owned(),
        );
    }
    average(context, context.node.int("keepdims", 1) != 0)
}

/// The mean over all spatial axes, which are kept with the size 1 if `keep` is set.
fn average<T: Scalar>(context: &Context<'_, T>, keep: bool) -> TranslationResult<T> {
    let mut layers: Vec<Arc<dyn Layer<T>>> = match context.rank()? {
        1 => vec![Arc::new(AdaptiveAvgPool1d::new(1))],
        _ => vec![Arc::new(AdaptiveAvgPool2d::new(1))],
    };
    if !keep {
        layers.push(Arc::new(Flatten));
    }
    context.layers(layers)
}
