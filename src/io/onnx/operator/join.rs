//! Operators that put several values together: concatenation and choice.

use std::rc::Rc;

use super::{PART, refused};
use crate::io::onnx::affine::no_more_axes;
use crate::io::onnx::context::{Context, TranslationResult};
use crate::io::onnx::expression::{Expression, Expressions};
use crate::io::onnx::ir::{Computation, Operand, Translation};
use crate::io::onnx::recognition::recognized;
use crate::io::onnx::shapes::wrapped;
use crate::layer::Joined;
use crate::scalar::Scalar;

pub(super) fn concat<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let &Context { ir, inputs, .. } = context;
    if inputs.len() != context.operands.len() {
        return Err(
            "one of its inputs is a constant, but all must depend on the model's input".to_owned()
        );
    }
    let axis = context.node.int("axis", 1);
    let along_channels = match &ir[context.input()].dims {
        Some(dims) => wrapped(axis, dims.len() + 1) == Some(1),
        // The shape is unknown, and an axis that is counted from the end can be any axis.
        None => axis == 1 || axis < 0,
    };
    if !along_channels {
        return Err("its axis is unsupported: only concatenation along the channels (axis 1) is \
             supported"
            .to_owned());
    }
    if let [only] = *inputs {
        return Ok(Translation::Alias(only));
    }
    Ok(Computation::Join(inputs.to_vec(), Joined::Concatenated).into())
}

/// The choice between two values, each of which can be a constant, depending on a third.
pub(super) fn choose<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let ir = context.ir;
    for operand in context.operands.iter().flatten() {
        if let (Operand::Constant(constant), Some(dims)) = (operand, &ir[context.input()].dims) {
            no_more_axes(constant, dims)?;
        }
    }
    // `Ok` holds the functions of a node's bases, `Err` a number that is the same for all bases.
    let part = |operand: &Option<Operand>| match operand.as_ref()? {
        Operand::Node(node) => Some(Ok(ir.bases(*node))),
        Operand::Constant(constant) => Some(Err(Rc::new(Expression::Number(constant.scalar()?)))),
    };
    let parts: Vec<_> = context.operands.iter().map(part).collect::<Option<_>>().ok_or(PART)?;
    let [whether, a, b] = parts.as_slice() else { return Err(PART.to_owned()) };
    let at = |base: usize, part: &Result<Expressions, Rc<Expression>>| match part {
        Ok(bases) => bases.iter().find(|(other, _)| *other == base).map(|(_, own)| own.clone()),
        Err(number) => Some(number.clone()),
    };
    let with = |(base, _): (usize, Rc<Expression>)| {
        let choice = Expression::Choice(at(base, whether)?, at(base, a)?, at(base, b)?);
        Some((base, choice.short()?))
    };
    let expressions: Expressions = ir.bases(context.input()).into_iter().filter_map(with).collect();
    match recognized(&expressions) {
        Some(computation) => Ok(Translation::Node(computation, expressions)),
        None => Ok(refused(context, PART, expressions)),
    }
}
