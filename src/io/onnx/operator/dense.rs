//! Dense layers.

use super::shapes_of;
use crate::io::onnx::affine::per_channel;
use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::layer::Linear;
use crate::scalar::Scalar;

/// The reason for rejecting a node whose weights are not those of a dense layer.
const NO_MATRIX: &str = "its weights must be a matrix of floating-point numbers";

pub(super) fn matmul<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let weight = context.constant(1).ok_or("its second input must be a constant")?;
    dense(context, weight, 1.0, None)
}

pub(super) fn matmul_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let inputs = context.constant(1).and_then(|weight| weight.dims.first());
    shapes_of([1], inputs.copied().unwrap_or(8))
}

pub(super) fn gemm<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let node = context.node;
    let weight = context.constant(1).ok_or("its second input must be a constant")?;
    if node.int("transA", 0) != 0 {
        return Err("transA is unsupported: export the model without it".to_owned());
    }
    // `dense` expects inputs x outputs, which is ONNX's order without transB.
    let turned = match node.int("transB", 0) {
        0 => None,
        _ => Some(weight.transposed(&[1, 0]).ok_or(NO_MATRIX)?),
    };
    let weight = turned.as_ref().unwrap_or(weight);
    let mut bias = match (context.is_given(2), context.constant(2)) {
        (false, _) => None,
        (true, Some(bias)) => {
            let outputs = weight.dims.get(1).copied().unwrap_or(0);
            Some(per_channel(bias, &[outputs], &context.ir.budget)?)
        }
        (true, None) => return Err("its third input must be a constant".to_owned()),
    };
    let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
    bias.iter_mut().flatten().for_each(|b| *b *= f64::from(beta));
    dense(context, weight, alpha, bias.as_deref())
}

pub(super) fn gemm_shapes<T: Scalar>(context: &Context<'_, T>) -> Vec<Vec<usize>> {
    let inputs = match context.constant(1).map(|weight| weight.dims.as_slice()) {
        Some(&[first, second]) => [first, second][usize::from(context.node.int("transB", 0) != 0)],
        _ => 8,
    };
    shapes_of([1], inputs)
}

/// A dense layer with weights of shape inputs x outputs, which are multiplied by `alpha`.
fn dense<T: Scalar>(
    context: &Context<'_, T>,
    weight: &Constant,
    alpha: f32,
    bias: Option<&[f64]>,
) -> TranslationResult<T> {
    let &[inputs, outputs] = weight.dims.as_slice() else { return Err(NO_MATRIX.to_owned()) };
    if context.dims.len() != 1 {
        return Err(format!(
            "it is supported only for vectors, but its values have {} axes (without the batch \
             axis): put a Flatten before it",
            context.dims.len()
        ));
    }
    // `Linear` has outputs x inputs. This changes only the strides, and the conversion follows
    // them.
    let turned = weight.transposed(&[1, 0]).ok_or(NO_MATRIX)?;
    let mut weights: Vec<T> = context.convert(Some(&turned), "weight")?;
    for weight in &mut weights {
        *weight *= T::from_f64(alpha.into());
    }
    let bias: Option<Vec<T>> = bias.map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
    context.layer(Linear::from_rows(outputs, inputs, &weights, bias.as_deref()).map_err(reason)?)
}
