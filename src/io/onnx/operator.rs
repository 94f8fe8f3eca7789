//! What each of ONNX's operators is here.

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
    BatchNorm1d, BatchNorm2d, Flatten, Linear, MaxPool1d, MaxPool2d, Permute, Softmax, Unflatten,
};
use crate::scalar::Scalar;

/// Why a node is refused that does something else when a model is used.
const TRAINING: &str = "it is in training mode: export the model after model.eval()";

/// Why a node is refused whose weights are not those of a dense layer.
const NO_MATRIX: &str = "its weights are not a matrix of floating-point numbers";

impl<T: Scalar> Steps<T> {
    /// What an operator with an input that depends on the model's makes, or why it is refused.
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
                "its values are whole numbers, and on these it is unsupported: convert the input \
                 to floating point first (Cast)"
                    .to_owned(),
            );
        }
        let known = steps.iter().all(|&step| self[step].dims.is_some());
        let behind = || Ok(Made::Step(Kind::Behind(steps.to_vec()), Vec::new()));
        let all = steps.len() == inputs.len() && !steps.iter().any(|&step| self[step].uncomputed);
        match operator {
            // A constant is looked at together with the values' shape.
            _ if !known && combines && !all => behind(),
            _ if combines => self.arithmetic(node, operator, inputs, steps),
            "Where" => self.choice(inputs, steps),
            "Concat" => self.concat(node, inputs, steps.to_vec()),
            _ => {
                let Some(Some(Value::Step(step))) = inputs.first() else {
                    return Err(
                        "its first input is a constant and another input depends on the model's input: unsupported in this order"
                            .to_owned(),
                    );
                };
                if steps.iter().filter(|&&step| !self[step].uncomputed).count() > 1 {
                    return Err("more than one of its inputs depends on the model's input (as in \
                         attention): unsupported"
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

    /// Why a node is refused whatever the shape of its values, which is unknown, may be.
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
            "Identity" | "Dropout" | "ai.onnx.ml.ZipMap" => return Ok(Made::Same(step)),
            "Cast" => match node.int("to", 1) {
                // Whole numbers become others with it.
                1 | 10 | 11 | 16 if self[step].whole => Vec::new(),
                1 | 10 | 11 | 16 => return Ok(Made::Same(step)),
                _ => {
                    return Err("it converts values to whole numbers or texts, which cannot be \
                        explained: end the model before it"
                        .to_owned());
                }
            },
            "Gemm" => Self::gemm(given)?,
            "MatMul" => {
                let weight = given.constant(1).ok_or("its second input has to be a constant")?;
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
                let axes = given
                    .ints(1)
                    .or(node.ints("axes"))
                    .ok_or("a mean over all axes is unsupported: it would mix the samples")?;
                let mut axes: Vec<Option<usize>> =
                    axes.iter().map(|&axis| wrapped(axis, dims.len() + 1)).collect();
                axes.sort_unstable();
                if dims.len() < 2 || !axes.into_iter().eq((2..=dims.len()).map(Some)) {
                    return Err(
                        "only a mean over all axes of space is supported (the length of a \
                         sequence, height and width of an image)"
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

    /// Over one axis, or, until operator set 12, over all axes from one on.
    fn softmax(&self, given: &Given<'_>) -> Result<Layers<T>, String> {
        let (axes, over_one) = (given.dims.len(), self.opset >= 13);
        let axis = given.node.int("axis", if over_one { -1 } else { 1 });
        match wrapped(axis, axes + 1) {
            Some(0) => Err(format!(
                "its axis {axis} is that of the samples: explain its input, with OnnxFile::output"
            )),
            Some(1) if axes == 1 => Ok(one(Softmax)),
            Some(axis) if over_one || axis == axes => Ok(one(Softmax::over(axis - 1))),
            Some(1) => Ok(vec![
                Arc::new(Flatten),
                Arc::new(Softmax),
                Arc::new(Unflatten::new(shape_of(given.dims)?)),
            ]),
            Some(_) => Err(
                "it is over several axes, but not all: explain its input, with OnnxFile::output"
                    .to_owned(),
            ),
            None => Err(format!("its values have no axis {axis}")),
        }
    }

    fn gemm(given: &Given<'_>) -> Result<Layers<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its second input has to be a constant")?;
        if node.int("transA", 0) != 0 {
            return Err("transA is unsupported".to_owned());
        }
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
            (true, None) => return Err("its third input has to be a constant".to_owned()),
        };
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        bias.iter_mut().flatten().for_each(|b| *b *= f64::from(beta));
        Ok(one(Self::dense(given, turned.as_ref().unwrap_or(weight), alpha, bias.as_deref())?))
    }

    /// A dense layer of weights inputs x outputs, each of them times `alpha`.
    fn dense(
        given: &Given<'_>,
        weight: &Constant,
        alpha: f32,
        bias: Option<&[f64]>,
    ) -> Result<Linear<T>, String> {
        let &[inputs, outputs] = weight.dims.as_slice() else { return Err(NO_MATRIX.to_owned()) };
        if given.dims.len() != 1 {
            return Err(format!(
                "it is supported on vectors, and its values have {} axes: put a Flatten before it",
                given.dims.len()
            ));
        }
        let turned = weight.transposed(&[1, 0]).ok_or(NO_MATRIX)?;
        let mut weights: Vec<T> = given.convert(Some(&turned), "weight")?;
        for weight in &mut weights {
            *weight *= T::from_f64(alpha.into());
        }
        let bias: Option<Vec<T>> = bias.map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        Linear::from_rows(outputs, inputs, &weights, bias.as_deref()).map_err(refused)
    }

    fn normalization(given: &Given<'_>) -> Result<Layers<T>, String> {
        // Before set 14 there were more outputs in training.
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
        let full = [&[self.batch], given.dims].concat();
        let axes = given.ints(1).or(node.ints("axes"));
        let dims = match operator {
            "Flatten" => {
                let all = Tensor::count(given.dims).ok_or("its sizes are too large")?;
                (wrapped(node.int("axis", 1), full.len()) == Some(1)).then(|| vec![self.batch, all])
            }
            "Reshape" => {
                let asked = given
                    .ints(1)
                    .or(node.ints("shape"))
                    .ok_or("its new shape depends on the input: a constant shape is needed")?;
                target(&full, asked, node.int("allowzero", 0) != 0)
            }
            _ => resized(&full, axes, operator == "Unsqueeze"),
        };
        match dims.as_deref() {
            Some([batch, dims @ ..]) if *batch == self.batch => self.in_shape(given, dims),
            Some(_) => {
                let input = super::shortened(node.input.first().map_or("", String::as_str));
                Err(format!(
                    "it mixes values of several samples: end the model before it, with \
                     OnnxFile::output(\"{input}\")"
                ))
            }
            None => Err("its new shape does not fit the values".to_owned()),
        }
    }

    /// The values of a step in another shape.
    fn in_shape(&self, given: &Given<'_>, dims: &[usize]) -> Result<Made<T>, String> {
        let step = given.step;
        if self[step].dims.as_deref() == Some(dims) {
            return Ok(Made::Same(step));
        }
        // Here a sample has an axis, if only of one value.
        if dims.is_empty() && given.node.output.iter().any(|output| self.uses.contains_key(output))
        {
            return Err(
                "it removes all axes but that of the samples, and other nodes follow: unsupported \
                 except at the end of the model"
                    .to_owned(),
            );
        }
        let layers =
            if dims.len() == 1 { one(Flatten) } else { one(Unflatten::new(shape_of(dims)?)) };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn transposed(&self, given: &Given<'_>) -> Result<Made<T>, String> {
        let order = permutation(given.node.ints("perm"), given.dims.len() + 1)
            .ok_or("its perm is not an order of the axes")?;
        if order[0] != 0 {
            return Err("it moves the axis of the samples: unsupported".to_owned());
        }
        let axes: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
        let dims: Vec<usize> = axes.iter().map(|&axis| given.dims[axis]).collect();
        // Axes of one index can go anywhere without a value that moves.
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
        mut steps: Vec<usize>,
    ) -> Result<Made<T>, String> {
        if steps.len() != inputs.len() {
            return Err("one of its inputs is a constant: unsupported, all have to depend on the \
                model's input"
                .to_owned());
        }
        let axis = node.int("axis", 1);
        let along_channels = match &self[steps[0]].dims {
            Some(dims) => wrapped(axis, dims.len() + 1) == Some(1),
            // Counted from the end it may be any.
            None => axis == 1 || axis < 0,
        };
        if !along_channels {
            return Err("its axis is unsupported: values can be concatenated along the channels \
                only (axis 1)"
                .to_owned());
        }
        if let [only] = *steps {
            return Ok(Made::Same(only));
        }
        // A list that grows by one layer's outputs at a time, as in DenseNet, is the last
        // concatenation and what is new.
        let known = (2..steps.len().min(256))
            .rev()
            .find_map(|count| Some((count, *self.concatenated.get(&steps[..count])?)));
        if let Some((count, whole)) = known {
            steps.splice(..count, [whole]);
        }
        Ok(Made::Step(Kind::Joined { of: steps, summed: false }, Vec::new()))
    }
}

/// Those that are of sequences and images only.
const OF_SPACE: &[&str] =
    &["AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize", "Upsample"];

/// Shapes that values may have which a node takes, where these are unknown: two of each number of
/// axes, as a reason that has to do with sizes is not the same for both. None where all is a matter
/// of shapes.
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
    // More axes come of a node before it.
    axes.filter(|axes| (1..=3).contains(axes)).flat_map(of).collect()
}

/// Those that change no value: they move values, or convert their type.
pub(super) const MOVES: &[&str] =
    &["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// The operators that are read where an input depends on the model's, beside the functions of one
/// and of two numbers; what they are read as depends on their settings.
#[rustfmt::skip]
const READ: &[&str] = &[
    "AveragePool", "BatchNormalization", "Cast", "Celu", "Clip", "Concat", "Conv", "ConvTranspose", "Dropout", "Elu", "Flatten", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "MaxPool",
    "Mish", "PRelu", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Squeeze",
    "Swish", "Tanh", "Transpose", "Unsqueeze", "Upsample", "Where", "ai.onnx.ml.Scaler", "ai.onnx.ml.ZipMap",
];
