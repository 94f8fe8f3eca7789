//! Arithmetic operators: sums of values, biases and scales of channels, and parts of activations.

use std::rc::Rc;

use super::{PART, refused};
use crate::io::onnx::affine::{affine, no_more_axes, per_channel};
use crate::io::onnx::constant::Constant;
use crate::io::onnx::context::{Context, TranslationResult};
use crate::io::onnx::expression::{Expression, Expressions};
use crate::io::onnx::ir::{Computation, Operand, Translation};
use crate::io::onnx::recognition::{recognized, recognized_sum, unscaled};
use crate::layer::Joined;
use crate::scalar::Scalar;

const PRODUCT: &str = "both of its inputs depend on the model's input, and the result is not a \
    known activation: products of such values (gates, attention) are unsupported; explain the \
    model up to one of the inputs, with OnnxFile::output";

const DIVISION: &str = "it divides by values that depend on the model's input, which is \
    unsupported: explain the model up to its input, with OnnxFile::output";

pub fn greater(a: f64, b: f64) -> f64 {
    f64::from(a > b)
}

pub fn less(a: f64, b: f64) -> f64 {
    f64::from(a < b)
}

fn is_sum<T: Scalar>(context: &Context<'_, T>) -> bool {
    matches!(context.operator, "Add" | "Sum")
}

/// A function of each pair of values.
pub(super) fn binary<T: Scalar>(
    context: &Context<'_, T>,
    f: fn(f64, f64) -> f64,
) -> TranslationResult<T> {
    let ir = context.ir;
    let all_depend = context.inputs.len() == context.operands.len()
        && !context.inputs.iter().any(|&input| ir[input].uncomputed);
    // Checking a constant requires the shape of the values.
    if !all_depend && context.inputs.iter().any(|&input| ir[input].dims.is_none()) {
        return Ok(Computation::AfterUnsupported(context.inputs.to_vec()).into());
    }
    match context.operands {
        [Some(Operand::Node(_)), Some(Operand::Constant(constant))] => {
            with_constant(context, f, constant, false)
        }
        [Some(Operand::Constant(constant)), Some(Operand::Node(_))] => {
            with_constant(context, f, constant, true)
        }
        [Some(Operand::Node(only))] if matches!(context.operator, "Sum" | "Max" | "Min") => {
            Ok(Translation::Alias(*only))
        }
        operands if operands.len() == context.inputs.len() => Ok(of_values(context, f)),
        _ => Err("it has more than two inputs, and some are constants, which is unsupported: \
             split it into several nodes"
            .to_owned()),
    }
}

/// An operator on values that all depend on the sample.
fn of_values<T: Scalar>(context: &Context<'_, T>, f: fn(f64, f64) -> f64) -> Translation<T> {
    let (ir, inputs) = (context.ir, context.inputs);
    let expressions = if let &[a, b] = inputs { ir.combined(a, b, f) } else { Expressions::new() };
    let known = if is_sum(context) {
        // A sum of supported values remains a sum, so that its terms share the relevance. The sum
        // can be a scaled activation only if a term is unsupported by itself.
        let of_parts = || inputs.iter().any(|&input| ir[input].computation.is_unsupported());
        recognized_sum(&expressions)
            .or_else(|| if of_parts() { recognized(&expressions) } else { None })
    } else {
        recognized(&expressions)
    };
    match known {
        Some(computation) => Translation::Node(computation, expressions),
        None if is_sum(context) => {
            let sum = Computation::Join(inputs.to_vec(), Joined::Summed);
            Translation::Node(sum, expressions)
        }
        None => refused(context, PRODUCT, expressions),
    }
}

/// An operator on values and a constant. `first` is true if the constant comes first.
fn with_constant<T: Scalar>(
    context: &Context<'_, T>,
    f: fn(f64, f64) -> f64,
    constant: &Constant,
    first: bool,
) -> TranslationResult<T> {
    let &Context { ir, operator, dims, .. } = context;
    let input = context.input();
    no_more_axes(constant, dims)?;
    let scalar = constant.scalar();
    let expressions = scalar.map_or(Expressions::new(), |number| {
        let number = Rc::new(Expression::Number(number));
        let with = |(base, own): (usize, Rc<Expression>)| {
            let (a, b) = if first { (&number, &own) } else { (&own, &number) };
            Some((base, Expression::Binary(f, a.clone(), b.clone()).short()?))
        };
        ir.bases(input).into_iter().filter_map(with).collect()
    });
    // When the whole graph is known, a factor can become part of an activation.
    let factor = match (operator, first) {
        ("Mul", _) => scalar,
        ("Div", false) => scalar.map(f64::recip),
        // 0 - x.
        ("Sub", true) if scalar == Some(0.0) => Some(-1.0),
        _ => None,
    };
    let factor =
        factor.filter(|factor| factor.is_finite() && !ir[input].computation.is_unsupported());
    // A factor stays separate until the patterns are replaced, unless it completes an activation
    // without factors.
    let known = if factor.is_some() { unscaled(&expressions) } else { recognized(&expressions) };
    if let Some(computation) = known {
        return Ok(Translation::Node(computation, expressions));
    }
    if matches!(operator, "Max" | "Min" | "Pow" | "Greater" | "Less") {
        return Ok(refused(context, PART, expressions));
    }
    // Checks the constant, and takes what a layer would hold from the budget.
    let values = per_channel(constant, dims, &ir.budget)?;
    if let Some(factor) = factor {
        return Ok(Translation::Node(Computation::Factor(input, factor), expressions));
    }
    let computation = match (operator, first) {
        ("Add" | "Sum", _) => Computation::Shift(input, values),
        ("Sub", false) => Computation::Shift(input, values.iter().map(|value| -value).collect()),
        ("Sub", true) => {
            Computation::Layers(input, affine(dims, &vec![-1.0; values.len()], &values)?)
        }
        ("Mul", _) => Computation::Layers(input, affine(dims, &values, &vec![0.0; values.len()])?),
        ("Div", false) => {
            let inverse: Vec<f64> = values.iter().map(|value| 1.0 / value).collect();
            Computation::Layers(input, affine(dims, &inverse, &vec![0.0; values.len()])?)
        }
        _ => return Ok(refused(context, DIVISION, expressions)),
    };
    Ok(Translation::Node(computation, expressions))
}
