//! Activations, and the functions from which exporters compose them.

use std::rc::Rc;
use std::sync::Arc;

use super::arithmetic::{recognized, recognized_but_cuts, unscaled};
use super::constant::Constant;
use super::expression::{Expression, unary};
use super::step::{Given, Kind, Made, PART, Steps, UNSUPPORTED, refused};
use crate::layer::{
    Celu, Elementwise, Elu, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, Layer, LeakyRelu,
    Mish, Relu, Scaled, Selu, Sigmoid, Silu, Softplus, Softsign, Tanh,
};
use crate::scalar::Scalar;

impl<T: Scalar> Steps<T> {
    pub(super) fn activation(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let step = given.step;
        Ok(match function_of(operator, given)? {
            Function::Activation(layer, f) => {
                let expressions = self.composed(step, |own| Expression::Activation(f.clone(), own));
                // A clip after a shift can be one of the hard activations.
                let beyond =
                    |(base, _): &&(usize, Rc<Expression>)| operator == "Clip" && *base != step;
                let beyond: Vec<_> = expressions.iter().filter(beyond).cloned().collect();
                let kind =
                    recognized_but_cuts(&beyond).unwrap_or_else(|| Kind::Layers(step, vec![layer]));
                Made::Step(kind, expressions)
            }
            Function::Part(f) => {
                let expressions = self.composed(step, |own| Expression::Unary(f, own));
                let otherwise = || match operator {
                    "Neg" => Kind::Factor(step, -1.0),
                    _ => Kind::Refused(vec![step], PART.to_owned()),
                };
                let kind = if operator == "Neg" {
                    unscaled(&expressions)
                } else {
                    recognized(&expressions)
                };
                let kind = kind.unwrap_or_else(otherwise);
                Made::Step(kind, expressions)
            }
        })
    }
}

/// An elementwise function.
enum Function<T: Scalar> {
    Activation(Arc<dyn Layer<T>>, Rc<dyn Elementwise<f64>>),
    /// A function that is supported only as a part of an activation.
    Part(fn(f64) -> f64),
}

fn function<T: Scalar>(
    activation: impl Layer<T> + Elementwise<f64> + Copy + 'static,
) -> Function<T> {
    Function::Activation(Arc::new(activation), Rc::new(activation))
}

fn scaled<T: Scalar, F>(activation: F, argument: f64, value: f64) -> Result<Function<T>, String>
where
    F: Layer<T> + Layer<f64> + Elementwise<T> + Elementwise<f64> + Copy + 'static,
{
    let layer = Scaled::<T>::new(activation, argument, value).map_err(refused)?;
    Ok(Function::Activation(
        Arc::new(layer),
        Rc::new(Scaled::<f64>::new(activation, argument, value).map_err(refused)?),
    ))
}

fn function_of<T: Scalar>(operator: &str, given: &Given<'_>) -> Result<Function<T>, String> {
    let node = given.node;
    let near = |name: &str, usual: f32| (node.float(name, usual) - usual).abs() < 1e-6;
    Ok(match operator {
        "Relu" => function(Relu),
        "Sigmoid" => function(Sigmoid),
        "Tanh" => function(Tanh),
        "Softplus" => function(Softplus::default()),
        "Softsign" => function(Softsign),
        "Mish" => function(Mish),
        "HardSwish" => function(HardSwish),
        "HardSigmoid" if !near("beta", 0.5) => {
            let beta = node.float("beta", 0.5);
            return Err(format!(
                "its beta is {beta}, but only 0.5 is supported (the value of PyTorch and Keras)"
            ));
        }
        // ONNX's default slope, 0.2, is not PyTorch's, which is 1/6.
        "HardSigmoid" if (node.float("alpha", 0.2) - 1.0 / 6.0).abs() < 1e-6 => {
            function(HardSigmoid)
        }
        // clip(alpha x + 1/2) is PyTorch's function at 6 alpha x.
        "HardSigmoid" => scaled(HardSigmoid, 6.0 * node.decimal("alpha", 0.2), 1.0)?,
        "LeakyRelu" => function(LeakyRelu::new(node.decimal("alpha", 0.01)).map_err(refused)?),
        "PRelu" => {
            let slope = given
                .constant(1)
                .and_then(Constant::scalar)
                .ok_or("its slope must be a single constant for all channels")?;
            function(LeakyRelu::new(slope).map_err(refused)?)
        }
        "Elu" => function(Elu::new(node.decimal("alpha", 1.0)).map_err(refused)?),
        "Celu" => function(Celu::new(node.decimal("alpha", 1.0)).map_err(refused)?),
        "Selu" if near("alpha", 1.673_263_2) && near("gamma", 1.050_701) => function(Selu),
        "Selu" => {
            let elu = Elu::new(node.decimal("alpha", 1.673_263_2)).map_err(refused)?;
            scaled(elu, 1.0, node.decimal("gamma", 1.050_701))?
        }
        "Gelu" => match node.text("approximate") {
            "" | "none" => function(Gelu::Exact),
            "tanh" => function(Gelu::Tanh),
            other => {
                return Err(format!(
                    "its approximation '{}' is unsupported: only 'none' and 'tanh' are supported",
                    super::shortened(other)
                ));
            }
        },
        "Swish" if near("alpha", 1.0) => function(Silu),
        "Swish" => match node.decimal("alpha", 1.0) {
            // x σ(0) = x / 2.
            0.0 => scaled(Identity, 1.0, 0.5)?,
            // x σ(alpha x) = silu(alpha x) / alpha.
            alpha => scaled(Silu, alpha, 1.0 / alpha)?,
        },
        "Clip" => {
            let bound =
                |place: usize, name: &str| match (given.is_given(place), given.constant(place)) {
                    (false, _) => Ok(node.attribute(name).map(|_| node.decimal(name, 0.0))),
                    (true, Some(constant)) => Ok(Some(
                        constant.scalar().ok_or("each of its bounds must be a single number")?,
                    )),
                    (true, None) => Err("its bounds must be constants"),
                };
            // Exporters write a missing bound as the smallest or the largest f32.
            let (least, most) = (
                bound(1, "min")?.filter(|&least| least > -3e38),
                bound(2, "max")?.filter(|&most| most < 3e38),
            );
            match (least, most) {
                (Some(0.0), None) => function(Relu),
                (None, None) => {
                    return Err(
                        "it has no bounds and changes nothing: remove it from the model".to_owned()
                    );
                }
                (least, most) => {
                    let (least, most) =
                        (least.unwrap_or(f32::MIN.into()), most.unwrap_or(f32::MAX.into()));
                    function(HardTanh::new(least, most).map_err(refused)?)
                }
            }
        }
        _ => Function::Part(unary(operator).ok_or(UNSUPPORTED)?),
    })
}
