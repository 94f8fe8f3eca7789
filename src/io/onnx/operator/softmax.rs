//! The softmax.

use std::sync::Arc;

use crate::io::onnx::context::{Context, TranslationResult};
use crate::io::onnx::shapes::{shape_of, wrapped};
use crate::layer::{Flatten, Softmax, Unflatten};
use crate::scalar::Scalar;

/// A softmax over one axis. Up to version 12 of the operator set, it is over this axis and all axes
/// after it. A log-softmax has the same logits.
pub(super) fn softmax<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let (axes, over_one) = (context.dims.len(), context.ir.opset >= 13);
    let axis = context.node.int("axis", if over_one { -1 } else { 1 });
    match wrapped(axis, axes + 1) {
        Some(0) => Err(format!(
            "its axis {axis} is the batch axis: explain its input, with OnnxFile::output"
        )),
        Some(1) if axes == 1 => context.layer(Softmax),
        // For the last axis, both versions of the operator agree.
        Some(axis) if over_one || axis == axes => context.layer(Softmax::over(axis - 1)),
        // From the first axis on, the older version is a softmax over the whole sample.
        Some(1) => {
            let back = Unflatten::new(shape_of(context.dims)?);
            context.layers(vec![Arc::new(Flatten), Arc::new(Softmax), Arc::new(back)])
        }
        Some(_) => Err("it is over several axes, but not all, which is unsupported: explain its \
             input, with OnnxFile::output"
            .to_owned()),
        None => {
            Err(format!("its axis is {axis}, which its values do not have: export the model again"))
        }
    }
}
