//! Normalizations with constant statistics.

use super::shapes_of;
use crate::io::onnx::affine::{affine, per_channel};
use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::layer::{BatchNorm1d, BatchNorm2d};
use crate::scalar::Scalar;

pub(super) fn batch_norm<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let [weight, bias, mean, variance] = [(1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")]
        .map(|(place, what)| context.numbers(place, what));
    let eps = context.node.decimal("epsilon", 1e-5);
    if context.dims.len() == 3 {
        context.layer(BatchNorm2d::new(weight?, bias?, mean?, variance?, eps).map_err(reason)?)
    } else {
        context.layer(BatchNorm1d::new(weight?, bias?, mean?, variance?, eps).map_err(reason)?)
    }
}

/// Whether a batch norm is in training mode.
pub(super) fn is_training<T: Scalar>(context: &Context<'_, T>) -> bool {
    // Before version 14 of the operator set, additional outputs meant training mode.
    let more = context.node.output.iter().skip(1).any(|output| !output.is_empty());
    more || context.node.int("training_mode", 0) != 0
}

pub(super) fn shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let scale = context.constant(1).and_then(|scale| scale.dims.first());
    shapes_of(1..=3, scale.copied().unwrap_or(8))
}

/// scikit-learn's scaler, (x - offset) scale.
pub(super) fn scaler<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let numbers = |name: &str, default: f64| {
        let values: Vec<f64> = context
            .node
            .attribute(name)
            .map_or(Vec::new(), |attribute| attribute.floats.iter().map(|&f| f.into()).collect());
        let values = if values.is_empty() { vec![default] } else { values };
        let constant = Constant::floats(vec![1, values.len()], &values);
        per_channel(&constant, context.dims, &context.ir.budget)
    };
    let (offset, scale) = (numbers("offset", 0.0)?, numbers("scale", 1.0)?);
    let b: Vec<f64> = offset.iter().zip(&scale).map(|(offset, scale)| -offset * scale).collect();
    context.layers(affine(context.dims, &scale, &b)?)
}
