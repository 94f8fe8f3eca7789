//! Activations, and the functions from which exporters compose them.

use std::rc::Rc;
use std::sync::Arc;

use super::{PART, refused};
use crate::io::onnx::affine::{no_more_axes, per_channel};
use crate::io::onnx::context::{Context, TranslationResult, reason};
use crate::io::onnx::expression::{Expression, Expressions};
use crate::io::onnx::ir::{Computation, Translation};
use crate::io::onnx::recognition::{recognized, recognized_but_cuts, unscaled};
use crate::io::onnx::shortened;
use crate::layer::{
    Celu, Elementwise, Elu, Gelu, HardSigmoid, HardTanh, Identity, Layer, LeakyRelu, PRelu, Relu,
    Scaled, Selu, Silu,
};
use crate::scalar::Scalar;

/// The node is this activation.
#[allow(clippy::unnecessary_wraps)] // the last expression of an operator's function
pub(super) fn of<T: Scalar>(
    context: &Context<'_, T>,
    activation: impl Layer<T> + Elementwise<f64> + Copy + 'static,
) -> TranslationResult<T> {
    let expressions = composed(context, activation);
    let computation = Computation::Layers(context.input(), vec![Arc::new(activation)]);
    Ok(Translation::Node(computation, expressions))
}

/// The node is an activation with a scaled argument and a scaled value.
fn scaled<T: Scalar, F>(
    context: &Context<'_, T>,
    activation: F,
    argument: f64,
    value: f64,
) -> TranslationResult<T>
where
    F: Layer<T> + Layer<f64> + Elementwise<T> + Elementwise<f64> + Copy + 'static,
{
    let layer = Scaled::<T>::new(activation, argument, value).map_err(reason)?;
    let f = Scaled::<f64>::new(activation, argument, value).map_err(reason)?;
    let expressions = composed(context, f);
    let computation = Computation::Layers(context.input(), vec![Arc::new(layer)]);
    Ok(Translation::Node(computation, expressions))
}

/// The values of an activation as functions of the values of the bases.
fn composed<T: Scalar>(
    context: &Context<'_, T>,
    f: impl Elementwise<f64> + 'static,
) -> Expressions {
    let f: Rc<dyn Elementwise<f64>> = Rc::new(f);
    context.ir.composed(context.input(), |own| Expression::Activation(f.clone(), own))
}

/// A function that is supported only as a part of an activation.
pub(super) fn unary<T: Scalar>(context: &Context<'_, T>, f: fn(f64) -> f64) -> Translation<T> {
    let expressions = context.ir.composed(context.input(), |own| Expression::Unary(f, own));
    match recognized(&expressions) {
        Some(computation) => Translation::Node(computation, expressions),
        None => refused(context, PART, expressions),
    }
}

/// -x, which is a factor unless it completes an activation.
#[allow(clippy::unnecessary_wraps)] // an entry of the registry
pub(super) fn negate<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let input = context.input();
    let expressions = context.ir.composed(input, |own| Expression::Unary(|a| -a, own));
    let computation = unscaled(&expressions).unwrap_or(Computation::Factor(input, -1.0));
    Ok(Translation::Node(computation, expressions))
}

/// Whether an attribute has a value up to rounding.
fn is<T: Scalar>(context: &Context<'_, T>, name: &str, value: f32) -> bool {
    (context.node.float(name, value) - value).abs() < 1e-6
}

pub(super) fn hard_sigmoid<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    if !is(context, "beta", 0.5) {
        let beta = context.node.float("beta", 0.5);
        return Err(format!(
            "its beta is {beta}, but only 0.5 is supported (the value of PyTorch and Keras)"
        ));
    }
    // ONNX's default slope, 0.2, is not PyTorch's, which is 1/6.
    if (context.node.float("alpha", 0.2) - 1.0 / 6.0).abs() < 1e-6 {
        return of(context, HardSigmoid);
    }
    // clip(alpha x + 1/2) is PyTorch's function at 6 alpha x.
    scaled(context, HardSigmoid, 6.0 * context.node.decimal("alpha", 0.2), 1.0)
}

pub(super) fn leaky_relu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    of(context, LeakyRelu::new(context.node.decimal("alpha", 0.01)).map_err(reason)?)
}

pub(super) fn prelu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let slope = context.constant(1).ok_or("its slope must be a constant")?;
    if let Some(slope) = slope.scalar() {
        return of(context, LeakyRelu::new(slope).map_err(reason)?);
    }
    no_more_axes(slope, context.dims)?;
    let slopes = per_channel(slope, context.dims, &context.ir.budget)?;
    let slopes: Vec<T> = slopes.into_iter().map(T::from_f64).collect();
    context.layer(PRelu::new(slopes).map_err(reason)?)
}

pub(super) fn elu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    of(context, Elu::new(context.node.decimal("alpha", 1.0)).map_err(reason)?)
}

pub(super) fn celu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    of(context, Celu::new(context.node.decimal("alpha", 1.0)).map_err(reason)?)
}

pub(super) fn selu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    if is(context, "alpha", 1.673_263_2) && is(context, "gamma", 1.050_701) {
        return of(context, Selu);
    }
    let elu = Elu::new(context.node.decimal("alpha", 1.673_263_2)).map_err(reason)?;
    scaled(context, elu, 1.0, context.node.decimal("gamma", 1.050_701))
}

pub(super) fn gelu<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    match context.node.text("approximate") {
        "" | "none" => of(context, Gelu::Exact),
        "tanh" => of(context, Gelu::Tanh),
        other => Err(format!(
            "its approximation '{}' is unsupported: only 'none' and 'tanh' are supported",
            shortened(other)
        )),
    }
}

pub(super) fn swish<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    if is(context, "alpha", 1.0) {
        return of(context, Silu);
    }
    match context.node.decimal("alpha", 1.0) {
        // x σ(0) = x / 2.
        0.0 => scaled(context, Identity, 1.0, 0.5),
        // x σ(alpha x) = silu(alpha x) / alpha.
        alpha => scaled(context, Silu, alpha, 1.0 / alpha),
    }
}

pub(super) fn clip<T: Scalar>(context: &Context<'_, T>) -> TranslationResult<T> {
    let node = context.node;
    let bound = |place: usize, name: &str| match (context.is_given(place), context.constant(place))
    {
        (false, _) => Ok(node.attribute(name).map(|_| node.decimal(name, 0.0))),
        (true, Some(constant)) => {
            Ok(Some(constant.scalar().ok_or("each of its bounds must be a single number")?))
        }
        (true, None) => Err("its bounds must be constants"),
    };
    // Exporters write a missing bound as the smallest or the largest f32.
    let (least, most) = (
        bound(1, "min")?.filter(|&least| least > -3e38),
        bound(2, "max")?.filter(|&most| most < 3e38),
    );
    let translation = match (least, most) {
        (Some(0.0), None) => of(context, Relu),
        (None, None) => {
            Err("it has no bounds and changes nothing: remove it from the model".to_owned())
        }
        (least, most) => {
            let bounds = (least.unwrap_or(f32::MIN.into()), most.unwrap_or(f32::MAX.into()));
            of(context, HardTanh::new(bounds.0, bounds.1).map_err(reason)?)
        }
    }?;
    Ok(match translation {
        Translation::Node(computation, expressions) => {
            // A clip after a shift can be one of the hard activations.
            let beyond: Expressions =
                expressions.iter().filter(|(base, _)| *base != context.input()).cloned().collect();
            Translation::Node(recognized_but_cuts(&beyond).unwrap_or(computation), expressions)
        }
        alias @ Translation::Alias(_) => alias,
    })
}
