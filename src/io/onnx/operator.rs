//! Turning each of ONNX's operators into layers.

use std::sync::Arc;

use super::arithmetic::{affine, per_channel};
use super::constant::Constant;
use super::expression::{binary, unary};
use super::proto::Node;
use super::shapes::{permutation, resized, target, wrapped};
use super::step::{Given, Kind, Layers, Made, Steps, UNSUPPORTED, Value, one, refused, shape_of};
use super::windows::upsampled;
use crate::io::tensor::Tensor;
use crate::layer::{
    BatchNorm1d, BatchNorm2d, Flatten, Joined, Linear, MaxPool1d, MaxPool2d, Permute, Softmax,
    Unflatten,
};
use crate::scalar::Scalar;

/// The reason for rejecting a node in training mode, which behaves differently at inference.
const TRAINING: &str = "it is in training mode: export the model after model.eval()";

/// The reason for rejecting a node whose weights are not those of a dense layer.
const NO_MATRIX: &str = "its weights must be a matrix of floating-point numbers";

impl<T: Scalar> Steps<T> {
    /// Converts an operator with an input that depends on the model's input, or returns the reason
    /// for rejecting it.
    pub(super) fn operator(
        &self,
        node: &Node,
        operator: &str,
        inputs: &[Option<Value>],
        steps: &[usize],
    ) -> Result<Made<T>, String> {
        let combines = binary(operator).is_some();
        if !combines && unary(operator).is_none() && !READ.contains(&operator) {
            return Err(UNSUPPORTED.to_owned());
        }
        if !MOVES.contains(&operator) && steps.iter().any(|&step| self[step].whole) {
            return Err(
                "its values are integers, for which it is unsupported: convert the input to \
                 floating-point numbers first (Cast)"
                    .to_owned(),
            );
        }
        let known = steps.iter().all(|&step| self[step].dims.is_some());
        // The unsupported node before this one is reported, and there is nothing more to say here.
        let behind = || Ok(Made::Step(Kind::Behind(steps.to_vec()), Vec::new()));
        let all = steps.len() == inputs.len() && !steps.iter().any(|&step| self[step].uncomputed);
        match operator {
            // Checking a constant requires the shape of the values.
            _ if !known && combines && !all => behind(),
            _ if combines => self.arithmetic(node, operator, inputs, steps),
            "Where" => self.choice(inputs, steps),
            "Concat" => self.concat(node, inputs, steps.to_vec()),
            _ => {
                let Some(Some(Value::Step(step))) = inputs.first() else {
                    return Err(
                        "its first input is a constant, and another one depends on the model's \
                         input: only the opposite order is supported"
                            .to_owned(),
                    );
                };
                if steps.iter().filter(|&&step| !self[step].uncomputed).count() > 1 {
                    return Err("more than one of its inputs depends on the model's input, as in \
                         attention, which is unsupported: explain the model up to one of them, \
                         with OnnxFile::output"
                        .to_owned());
                }
                if !known {
                    return self
                        .after_unknown(node, operator, inputs, *step)
                        .map_or_else(behind, Err);
                }
                let dims = self[*step].dims.as_deref().unwrap_or_default();
                self.one_input(
                    operator,
                    &Given { node, inputs, step: *step, dims, budget: &self.budget },
                )
            }
        }
    }

    /// The reason for rejecting a node whose values have an unknown shape, because they come after
    /// an unsupported node. Returns only a reason that holds for every possible shape.
    fn after_unknown(
        &self,
        node: &Node,
        operator: &str,
        inputs: &[Option<Value>],
        step: usize,
    ) -> Option<String> {
        let reason = |dims: &[usize]| {
            let given = Given { node, inputs, step, dims, budget: &self.budget };
            self.one_input(operator, &given).err()
        };
        let shapes = possible_shapes(
            &Given { node, inputs, step, dims: &[], budget: &self.budget },
            operator,
        );
        let first = reason(shapes.first()?)?;
        shapes[1..].iter().all(|dims| reason(dims).as_ref() == Some(&first)).then_some(first)
    }

    fn one_input(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let &Given { node, step, dims, .. } = given;
        let layers = match operator {
            "Dropout" if given.constant(2).and_then(Constant::scalar) == Some(1.0) => {
                return Err(TRAINING.to_owned());
            }
            // ZipMap only adds the classes' names to scikit-learn's probabilities.
            "Identity" | "Dropout" | "ai.onnx.ml.ZipMap" => return Ok(Made::Same(step)),
            "Cast" => match node.int("to", 1) {
                // The numbers are ONNX's codes of the floating-point types. A cast from integers
                // is a step of its own, whose values are no longer integers.
                1 | 10 | 11 | 16 if self[step].whole => Vec::new(),
                1 | 10 | 11 | 16 => return Ok(Made::Same(step)),
                _ => {
                    return Err(
                        "it converts values to integers or strings, which cannot be explained: \
                         explain the model up to its input, with OnnxFile::output"
                            .to_owned(),
                    );
                }
            },
            "Gemm" => Self::gemm(given)?,
            "MatMul" => {
                let weight = given.constant(1).ok_or("its second input must be a constant")?;
                one(Self::dense(given, weight, 1.0, None)?)
            }
            "Conv" | "ConvTranspose" => return self.convolution(operator, given),
            "BatchNormalization" => Self::normalization(given)?,
            "ai.onnx.ml.Scaler" => {
                let numbers = |name: &str| -> Vec<f64> {
                    node.attribute(name).map_or(Vec::new(), |attribute| {
                        attribute.floats.iter().map(|&f| f.into()).collect()
                    })
                };
                let (offset, scale) = (numbers("offset"), numbers("scale"));
                let of = |values: Vec<f64>, usual: f64| {
                    let values = if values.is_empty() { vec![usual] } else { values };
                    per_channel(
                        &Constant::floats(vec![1, values.len()], &values),
                        dims,
                        given.budget,
                    )
                };
                let (offset, scale) = (of(offset, 0.0)?, of(scale, 1.0)?);
                // The operator computes (x - offset) scale.
                let b: Vec<f64> =
                    offset.iter().zip(&scale).map(|(offset, scale)| -offset * scale).collect();
                affine(dims, &scale, &b)?
            }
            "MaxPool" | "AveragePool" => return self.pooling(operator, given),
            "GlobalAveragePool" => Self::average(given, true)?,
            "GlobalMaxPool" => match given.rank()? {
                1 => one(MaxPool1d::new(dims[1])),
                _ => one(MaxPool2d::new([dims[1], dims[2]])),
            },
            "ReduceMean" => {
                let axes = given.ints(1).or(node.ints("axes")).ok_or(
                    "it is a mean over all axes, which would mix the samples of a batch: \
                     export the model with a mean over the spatial axes",
                )?;
                let mut axes: Vec<Option<usize>> =
                    axes.iter().map(|&axis| wrapped(axis, dims.len() + 1)).collect();
                axes.sort_unstable();
                // With the batch axis, the spatial axes are those from 2 on.
                if dims.len() < 2 || !axes.into_iter().eq((2..=dims.len()).map(Some)) {
                    return Err(
                        "only a mean over all spatial axes is supported (the length of a sequence, \
                         or the height and width of an image)"
                            .to_owned(),
                    );
                }
                Self::average(given, node.int("keepdims", 1) != 0)?
            }
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => {
                return self.reshaped(operator, given);
            }
            "Transpose" => return self.transposed(given),
            "Pad" => return Self::padded(given),
            "Upsample" | "Resize" => upsampled(operator, given)?,
            "Softmax" | "LogSoftmax" => self.softmax(given)?,
            _ => return self.activation(operator, given),
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    /// A softmax over one axis. Up to version 12 of the operator set, it is over this axis and all
    /// axes after it.
    fn softmax(&self, given: &Given<'_>) -> Result<Layers<T>, String> {
        let (axes, over_one) = (given.dims.len(), self.opset >= 13);
        let axis = given.node.int("axis", if over_one { -1 } else { 1 });
        match wrapped(axis, axes + 1) {
            Some(0) => Err(format!(
                "its axis {axis} is the batch axis: explain its input, with OnnxFile::output"
            )),
            Some(1) if axes == 1 => Ok(one(Softmax)),
            // For the last axis, both versions of the operator agree.
            Some(axis) if over_one || axis == axes => Ok(one(Softmax::over(axis - 1))),
            // From the first axis on, the older version is a softmax over the whole sample.
            Some(1) => Ok(vec![
                Arc::new(Flatten),
                Arc::new(Softmax),
                Arc::new(Unflatten::new(shape_of(given.dims)?)),
            ]),
            Some(_) => Err(
                "it is over several axes, but not all, which is unsupported: explain its input, \
                 with OnnxFile::output"
                    .to_owned(),
            ),
            None => Err(format!(
                "its axis is {axis}, which its values do not have: export the model again"
            )),
        }
    }

    fn gemm(given: &Given<'_>) -> Result<Layers<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its second input must be a constant")?;
        if node.int("transA", 0) != 0 {
            return Err("transA is unsupported: export the model without it".to_owned());
        }
        // `dense` expects inputs x outputs, which is ONNX's order without transB.
        let turned = match node.int("transB", 0) {
            0 => None,
            _ => Some(weight.transposed(&[1, 0]).ok_or(NO_MATRIX)?),
        };
        let mut bias = match (given.is_given(2), given.constant(2)) {
            (false, _) => None,
            (true, Some(bias)) => {
                let outputs = turned.as_ref().unwrap_or(weight).dims.get(1).copied().unwrap_or(0);
                Some(per_channel(bias, &[outputs], given.budget)?)
            }
            (true, None) => return Err("its third input must be a constant".to_owned()),
        };
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        bias.iter_mut().flatten().for_each(|b| *b *= f64::from(beta));
        Ok(one(Self::dense(given, turned.as_ref().unwrap_or(weight), alpha, bias.as_deref())?))
    }

    /// A dense layer with weights of shape inputs x outputs, which are multiplied by `alpha`.
    fn dense(
        given: &Given<'_>,
        weight: &Constant,
        alpha: f32,
        bias: Option<&[f64]>,
    ) -> Result<Linear<T>, String> {
        let &[inputs, outputs] = weight.dims.as_slice() else { return Err(NO_MATRIX.to_owned()) };
        if given.dims.len() != 1 {
            return Err(format!(
                "it is supported only for vectors, but its values have {} axes (without the batch \
                 axis): put a Flatten before it",
                given.dims.len()
            ));
        }
        // `Linear` has outputs x inputs. This changes only the strides, and the conversion follows
        // them.
        let turned = weight.transposed(&[1, 0]).ok_or(NO_MATRIX)?;
        let mut weights: Vec<T> = given.convert(Some(&turned), "weight")?;
        for weight in &mut weights {
            *weight *= T::from_f64(alpha.into());
        }
        let bias: Option<Vec<T>> = bias.map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        Linear::from_rows(outputs, inputs, &weights, bias.as_deref()).map_err(refused)
    }

    fn normalization(given: &Given<'_>) -> Result<Layers<T>, String> {
        // Before version 14 of the operator set, additional outputs meant training mode.
        let more = given.node.output.iter().skip(1).any(|output| !output.is_empty());
        if more || given.node.int("training_mode", 0) != 0 {
            return Err(TRAINING.to_owned());
        }
        let [weight, bias, mean, variance] =
            [(1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")]
                .map(|(place, what)| given.numbers(place, what));
        let eps = given.node.decimal("epsilon", 1e-5);
        if given.dims.len() == 3 {
            Ok(one(BatchNorm2d::new(weight?, bias?, mean?, variance?, eps).map_err(refused)?))
        } else {
            Ok(one(BatchNorm1d::new(weight?, bias?, mean?, variance?, eps).map_err(refused)?))
        }
    }

    fn reshaped(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        // Shapes in the file include the batch axis, which must stay as it is.
        let full = [&[self.batch], given.dims].concat();
        let axes = given.ints(1).or(node.ints("axes"));
        let dims = match operator {
            "Flatten" => {
                let all = Tensor::count(given.dims).ok_or("its shape is too large")?;
                (wrapped(node.int("axis", 1), full.len()) == Some(1)).then(|| vec![self.batch, all])
            }
            "Reshape" => {
                let asked = given
                    .ints(1)
                    .or(node.ints("shape"))
                    .ok_or("its new shape depends on the model's input, but must be a constant")?;
                target(&full, asked, node.int("allowzero", 0) != 0)
            }
            _ => resized(&full, axes, operator == "Unsqueeze"),
        };
        match dims.as_deref() {
            Some([batch, dims @ ..]) if *batch == self.batch => self.in_shape(given, dims),
            Some(_) => {
                let input = super::shortened(node.input.first().map_or("", String::as_str));
                Err(format!(
                    "it mixes the values of several samples: end the model before it, with \
                     OnnxFile::output(\"{input}\")"
                ))
            }
            None => Err(
                "its new shape does not have as many values as its input: check the shape of the \
                 model's input"
                    .to_owned(),
            ),
        }
    }

    /// The values of a step in another shape.
    fn in_shape(&self, given: &Given<'_>, dims: &[usize]) -> Result<Made<T>, String> {
        let step = given.step;
        if self[step].dims.as_deref() == Some(dims) {
            return Ok(Made::Same(step));
        }
        // In this crate, a sample always has an axis, even for a single value.
        if dims.is_empty() && given.node.output.iter().any(|output| self.uses.contains_key(output))
        {
            return Err(
                "it removes all axes except the batch axis, which is supported only at the end of \
                 the model: explain the model up to it, with OnnxFile::output"
                    .to_owned(),
            );
        }
        let layers =
            if dims.len() == 1 { one(Flatten) } else { one(Unflatten::new(shape_of(dims)?)) };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn transposed(&self, given: &Given<'_>) -> Result<Made<T>, String> {
        let order = permutation(given.node.ints("perm"), given.dims.len() + 1)
            .ok_or("its perm is not a permutation of the axes: export the model again")?;
        if order[0] != 0 {
            return Err(
                "it moves the batch axis, which is unsupported: export the model with the \
                 batch axis first"
                    .to_owned(),
            );
        }
        let axes: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
        let dims: Vec<usize> = axes.iter().map(|&axis| given.dims[axis]).collect();
        // Moving axes of size 1 does not change the order of the values.
        let moved: Vec<usize> =
            axes.iter().copied().filter(|&axis| given.dims[axis] != 1).collect();
        if moved.is_sorted() {
            return self.in_shape(given, &dims);
        }
        Ok(Made::Step(
            Kind::Layers(given.step, one(Permute::new(&axes).map_err(refused)?)),
            Vec::new(),
        ))
    }

    fn concat(
        &self,
        node: &Node,
        inputs: &[Option<Value>],
        steps: Vec<usize>,
    ) -> Result<Made<T>, String> {
        if steps.len() != inputs.len() {
            return Err(
                "one of its inputs is a constant, but all must depend on the model's input"
                    .to_owned(),
            );
        }
        let axis = node.int("axis", 1);
        let along_channels = match &self[steps[0]].dims {
            Some(dims) => wrapped(axis, dims.len() + 1) == Some(1),
            // The shape is unknown, and an axis that is counted from the end can be any axis.
            None => axis == 1 || axis < 0,
        };
        if !along_channels {
            return Err("its axis is unsupported: only concatenation along the channels (axis 1) \
                 is supported"
                .to_owned());
        }
        if let [only] = *steps {
            return Ok(Made::Same(only));
        }
        Ok(Made::Step(Kind::Joined { of: steps, joined: Joined::Concatenated }, Vec::new()))
    }
}

/// The operators that only apply to sequences and images.
const OF_SPACE: &[&str] =
    &["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize", "Upsample"];

/// Shapes that an input of unknown shape can have, two for each possible number of axes. If a
/// reason for rejecting the node depends on the sizes, it differs between the two. Returns none for
/// operators for which every reason depends on the shape.
fn possible_shapes(given: &Given<'_>, operator: &str) -> Vec<Vec<usize>> {
    let weights = given.constant(1).map(|weights| weights.dims.as_slice()).unwrap_or_default();
    let pairs = |list: Option<&[i64]>| list.map(|list| list.len() / 2);
    let axes = match operator {
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => return Vec::new(),
        "Gemm" | "MatMul" => Some(1),
        "Conv" | "ConvTranspose" => weights.len().checked_sub(1),
        "MaxPool" | "AveragePool" => given.node.ints("kernel_shape").map(|kernel| kernel.len() + 1),
        "Transpose" => given.node.ints("perm").and_then(|order| order.len().checked_sub(1)),
        "Pad" => {
            pairs(given.ints(1).or(given.node.ints("pads"))).and_then(|axes| axes.checked_sub(1))
        }
        _ => None,
    };
    let inputs = match (operator, weights) {
        ("Conv", &[_, inputs, ..]) => {
            usize::try_from(given.node.int("group", 1)).unwrap_or(1).saturating_mul(inputs)
        }
        ("BatchNormalization" | "ConvTranspose" | "MatMul", &[inputs, ..]) => inputs,
        ("Gemm", &[first, second]) => {
            [first, second][usize::from(given.node.int("transB", 0) != 0)]
        }
        _ => 8,
    };
    let of = |axes: usize| {
        [32, 48].map(|size| [vec![inputs], vec![size; axes.saturating_sub(1)]].concat())
    };
    let axes = match axes {
        Some(axes) => axes..=axes,
        None if OF_SPACE.contains(&operator) => 2..=3,
        None => 1..=3,
    };
    // Samples have at most three axes, so only an unsupported node can have more.
    axes.filter(|axes| (1..=3).contains(axes)).flat_map(of).collect()
}

/// The operators that only move values or convert their type.
pub(super) const MOVES: &[&str] =
    &["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// The operators that are supported on values that depend on the model's input, in addition to the
/// functions of one and of two numbers. Not all of their settings are supported.
#[rustfmt::skip]
const READ: &[&str] = &[
    "AveragePool", "BatchNormalization", "Cast", "Celu", "Clip", "Concat", "Conv", "ConvTranspose",
    "Dropout", "Elu", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "MaxPool", "Mish",
    "PRelu", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Softmax",
    "Softplus", "Softsign", "Squeeze", "Swish", "Tanh", "Transpose", "Unsqueeze", "Upsample",
    "Where", "ai.onnx.ml.Scaler", "ai.onnx.ml.ZipMap",
];
