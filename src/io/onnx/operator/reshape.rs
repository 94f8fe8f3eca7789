//! Operators that change the shape, or the order of the axes.

use super::shapes_of;
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::io::onnx::ir::Translation;
use crate::io::onnx::shapes::{permutation, resized, shape_of, target, wrapped};
use crate::io::onnx::shortened;
use crate::io::tensor::Tensor;
use crate::layer::{Flatten, Permute, Unflatten};
use crate::scalar::Scalar;

/// The shape with the batch axis, as in ONNX.
fn full_dims<T: Scalar>(context: &Context<'_, T>) -> Vec<usize> {
    [&[context.ir.batch], context.dims].concat()
}

pub(super) fn flatten<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let all = Tensor::count(context.dims).ok_or("its shape is too large")?;
    let axis = wrapped(context.node.int("axis", 1), context.dims.len() + 1);
    in_full_shape(context, Some(&[context.ir.batch, all][..]).filter(|_| axis == Some(1)))
}

pub(super) fn reshape<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let node = context.node;
    let asked = context
        .ints(1)
        .or(node.ints("shape"))
        .ok_or("its new shape depends on the model's input, but must be a constant")?;
    let dims = target(&full_dims(context), asked, node.int("allowzero", 0) != 0);
    in_full_shape(context, dims.as_deref())
}

pub(super) fn squeeze<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    in_full_shape(context, resized(&full_dims(context), axes(context), false).as_deref())
}

pub(super) fn unsqueeze<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    in_full_shape(context, resized(&full_dims(context), axes(context), true).as_deref())
}

fn axes<'a, T: Scalar>(context: &'a Context<'_, T>) -> Option<&'a [i64]> {
    context.ints(1).or(context.node.ints("axes"))
}

/// Every reason for rejecting these operators depends on the shape.
pub(super) fn shapes<T: Scalar>(_: &Context<'_, T>) -> Vec<Vec<usize>> {
    Vec::new()
}

/// The values in a shape with the batch axis, which must stay as it is. The shape is `None` if it
/// has another number of values.
fn in_full_shape<T: Scalar>(
    context: &Context<'_, T>,
    dims: Option<&[usize]>,
) -> TranslationResult<T> {
    match dims {
        Some([batch, dims @ ..]) if *batch == context.ir.batch => in_shape(context, dims),
        Some(_) => {
            let input = shortened(context.node.input.first().map_or("", String::as_str));
            Err(format!(
                "it mixes the values of several samples: end the model before it, with \
                 OnnxFile::output(\"{input}\")"
            ))
        }
        None => Err("its new shape does not have as many values as its input: check the shape of \
             the model's input"
            .to_owned()),
    }
}

/// The values in another shape.
fn in_shape<T: Scalar>(context: &Context<'_, T>, dims: &[usize]) -> TranslationResult<T> {
    if context.dims == dims {
        return Ok(Translation::Alias(context.input()));
    }
    // In this crate, a sample always has an axis, even for a single value.
    if dims.is_empty() && context.is_read {
        return Err(
            "it removes all axes except the batch axis, which is supported only at the end of the \
             model: explain the model up to it, with OnnxFile::output"
                .to_owned(),
        );
    }
    if dims.len() == 1 {
        context.layer(Flatten)
    } else {
        context.layer(Unflatten::new(shape_of(dims)?))
    }
}

pub(super) fn transpose<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let order = permutation(context.node.ints("perm"), context.dims.len() + 1)
        .ok_or("its perm is not a permutation of the axes: export the model again")?;
    if order[0] != 0 {
        return Err("it moves the batch axis, which is unsupported: export the model with the \
             batch axis first"
            .to_owned());
    }
    let axes: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
    // Moving axes of size 1 does not change the order of the values.
    let moved: Vec<usize> = axes.iter().copied().filter(|&axis| context.dims[axis] != 1).collect();
    if moved.is_sorted() {
        let dims: Vec<usize> = axes.iter().map(|&axis| context.dims[axis]).collect();
        return in_shape(context, &dims);
    }
    context.layer(Permute::new(&axes).map_err(reason)?)
}

pub(super) fn transpose_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    match context.node.ints("perm").and_then(|order| order.len().checked_sub(1)) {
        Some(axes) => shapes_of([axes], 8),
        None => shapes_of(1..=3, 8),
    }
}
