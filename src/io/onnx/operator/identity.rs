//! Operators that do not change the values at inference.

use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult};
use crate::io::onnx::ir::Translation;
use crate::scalar::Scalar;

/// The values of the first input. A ZipMap only adds the classes' names to scikit-learn's
/// probabilities.
#[allow(clippy::unnecessary_wraps)] // an entry of the registry
pub(super) fn identity<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    Ok(Translation::Alias(context.input()))
}

/// Whether a dropout is in training mode.
pub(super) fn is_training<T: Scalar>(context: &Context<'_, T>) -> bool {
    context.constant(2).and_then(Constant::scalar) == Some(1.0)
}

pub(super) fn cast<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    match context.node.int("to", 1) {
        // The numbers are ONNX's codes of the floating-point types. A cast from integers is a node
        // of its own, whose values are no longer integers.
        1 | 10 | 11 | 16 if context.ir[context.input()].whole => context.layers(Vec::new()),
        1 | 10 | 11 | 16 => Ok(Translation::Alias(context.input())),
        _ => Err("it converts values to integers or strings, which cannot be explained: explain \
             the model up to its input, with OnnxFile::output"
            .to_owned()),
    }
}
