//! What each of ONNX's operators is here.

use super::arithmetic::{affine, per_channel};
use super::constant::Constant;
use super::expression::{binary, unary};
use super::proto::Node;
use super::shapes::{permutation, resized, target, wrapped};
use super::step::{Given, Kind, Layers, Made, Steps, Value, one, refused, shape_of};
use super::windows::upsampled;
use crate::io::tensor::Tensor;
use crate::layer::{BatchNorm1d, BatchNorm2d, Flatten, Linear, MaxPool1d, MaxPool2d, Permute, Softmax, Unflatten};
use crate::scalar::Scalar;

/// Why a node is not read that does something else when a model is used.
const TRAINING: &str = "it is in training: export the model after model.eval()";

/// Why a node is not read whose weights are not those of a dense layer.
const NO_MATRIX: &str = "its weights are no matrix of numbers of floating point";

impl<T: Scalar> Steps<T> {
    /// What an operator with an input that depends on the model's makes, or why it is not read.
    pub(super) fn operator(
        &self,
        node: &Node,
        operator: &str,
        inputs: &[Option<Value>],
        steps: &[usize],
    ) -> Result<Made<T>, String> {
        let combines = binary(operator).is_some();
        if !combines && unary(operator).is_none() && !READ.contains(&operator) {
            return Err("the operator is not read".to_owned());
        }
        if !MOVES.contains(&operator) && steps.iter().any(|&step| self[step].whole) {
            return Err("its values are whole numbers, with which it is another function".to_owned());
        }
        let known = steps.iter().all(|&step| self[step].dims.is_some());
        let behind = || Ok(Made::Step(Kind::Behind(steps.to_vec()), Vec::new()));
        match operator {
            _ if !known && (combines || matches!(operator, "Where" | "Concat")) => behind(),
            _ if combines => self.arithmetic(node, operator, inputs, steps),
            "Where" => self.choice(inputs, steps),
            "Concat" => self.concat(node, inputs, steps.to_vec()),
            _ => {
                let Some(Some(Value::Step(step))) = inputs.first() else {
                    return Err("its first input does not depend on the model's input, but others do".to_owned());
                };
                if steps.iter().filter(|&&step| !self[step].uncomputed).count() > 1 {
                    return Err("more than one of its inputs depends on the model's input".to_owned());
                }
                if !known {
                    return behind();
                }
                let dims = self[*step].dims.as_deref().unwrap_or_default();
                self.one_input(operator, &Given { node, inputs, step: *step, dims, budget: &self.budget })
            }
        }
    }

    fn one_input(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let &Given { node, step, dims, .. } = given;
        let layers = match operator {
            "Dropout" if given.constant(2).and_then(Constant::scalar) == Some(1.0) => return Err(TRAINING.to_owned()),
            "Identity" | "Dropout" | "ai.onnx.ml.ZipMap" => return Ok(Made::Same(step)),
            "Cast" => match node.int("to", 1) {
                // Whole numbers become others with it.
                1 | 10 | 11 | 16 if self[step].whole => Vec::new(),
                1 | 10 | 11 | 16 => return Ok(Made::Same(step)),
                _ => return Err("it makes whole numbers or texts of the values".to_owned()),
            },
            "Gemm" => Self::gemm(given)?,
            "MatMul" => {
                let weight = given.constant(1).ok_or("it multiplies by what is no constant")?;
                one(Self::dense(given, weight, 1.0, None)?)
            }
            "Conv" | "ConvTranspose" => return self.convolution(operator, given),
            "BatchNormalization" => Self::normalization(given)?,
            "ai.onnx.ml.Scaler" => {
                let numbers = |name: &str| -> Vec<f64> {
                    node.attribute(name).map_or(Vec::new(), |attribute| attribute.floats.iter().map(|&f| f.into()).collect())
                };
                let (offset, scale) = (numbers("offset"), numbers("scale"));
                let of = |values: Vec<f64>, usual: f64| {
                    let values = if values.is_empty() { vec![usual] } else { values };
                    per_channel(&Constant::floats(vec![1, values.len()], &values), dims, given.budget)
                };
                let (offset, scale) = (of(offset, 0.0)?, of(scale, 1.0)?);
                let b: Vec<f64> = offset.iter().zip(&scale).map(|(offset, scale)| -offset * scale).collect();
                affine(dims, &scale, &b)?
            }
            "MaxPool" | "AveragePool" => return self.pooling(operator, given),
            "GlobalAveragePool" => Self::average(given, true)?,
            "GlobalMaxPool" => match given.rank()? {
                1 => one(MaxPool1d::new(dims[1])),
                _ => one(MaxPool2d::new([dims[1], dims[2]])),
            },
            "ReduceMean" => {
                let axes = given.ints(1).or(node.ints("axes")).ok_or("it is the mean over all axes")?;
                let mut axes: Vec<Option<usize>> = axes.iter().map(|&axis| wrapped(axis, dims.len() + 1)).collect();
                axes.sort_unstable();
                if dims.len() < 2 || !axes.into_iter().eq((2..=dims.len()).map(Some)) {
                    return Err("it is no mean over all of space, and over that alone".to_owned());
                }
                Self::average(given, node.int("keepdims", 1) != 0)?
            }
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => return self.reshaped(operator, given),
            "Transpose" => return self.transposed(given),
            "Pad" => return Self::padded(given),
            "Upsample" | "Resize" => upsampled(operator, given)?,
            "Softmax" | "LogSoftmax" => {
                let axis = node.int("axis", 1);
                if dims.len() != 1 || !matches!(axis, 1 | -1) {
                    return Err("it is read over the values of a vector only".to_owned());
                }
                one(Softmax)
            }
            _ => return self.activation(operator, given),
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn gemm(given: &Given<'_>) -> Result<Layers<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its second input is no constant")?;
        if node.int("transA", 0) != 0 {
            return Err("it transposes its first input".to_owned());
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
            (true, None) => return Err("its third input is no constant".to_owned()),
        };
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        bias.iter_mut().flatten().for_each(|b| *b *= f64::from(beta));
        Ok(one(Self::dense(given, turned.as_ref().unwrap_or(weight), alpha, bias.as_deref())?))
    }

    /// A dense layer of weights inputs x outputs, each of them times `alpha`.
    fn dense(given: &Given<'_>, weight: &Constant, alpha: f32, bias: Option<&[f64]>) -> Result<Linear<T>, String> {
        let &[inputs, outputs] = weight.dims.as_slice() else { return Err(NO_MATRIX.to_owned()) };
        if given.dims.len() != 1 {
            return Err(format!("it is read for vectors, its values have {} axes: put a Flatten before it", given.dims.len()));
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
            [(1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")].map(|(place, what)| given.numbers(place, what));
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
                let all = Tensor::count(given.dims).ok_or("its sizes overflow")?;
                (wrapped(node.int("axis", 1), full.len()) == Some(1)).then(|| vec![self.batch, all])
            }
            "Reshape" => {
                let asked =
                    given.ints(1).or(node.ints("shape")).ok_or("the shape it asks for cannot be computed ahead of the input")?;
                target(&full, asked, node.int("allowzero", 0) != 0)
            }
            _ => resized(&full, axes, operator == "Unsqueeze"),
        };
        match dims.as_deref() {
            Some([batch, dims @ ..]) if *batch == self.batch => self.in_shape(given, dims),
            Some(_) => {
                let input = super::shortened(node.input.first().map_or("", String::as_str));
                Err(format!("it mixes values of several samples; the model can end before it, at '{input}'"))
            }
            None => Err("the shape it asks for does not fit its values".to_owned()),
        }
    }

    /// The values of a step in another shape.
    fn in_shape(&self, given: &Given<'_>, dims: &[usize]) -> Result<Made<T>, String> {
        let step = given.step;
        if self[step].dims.as_deref() == Some(dims) {
            return Ok(Made::Same(step));
        }
        // Here a sample has an axis, if only of one value.
        if dims.is_empty() && given.node.output.iter().any(|output| self.uses.contains_key(output)) {
            return Err("it leaves the samples' axis alone, and there are nodes behind it".to_owned());
        }
        let layers = if dims.len() == 1 { one(Flatten) } else { one(Unflatten::new(shape_of(dims)?)) };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn transposed(&self, given: &Given<'_>) -> Result<Made<T>, String> {
        let order = permutation(given.node.ints("perm"), given.dims.len() + 1).ok_or("its perm is no order of the axes")?;
        if order[0] != 0 {
            return Err("it moves the samples' axis".to_owned());
        }
        let axes: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
        let dims: Vec<usize> = axes.iter().map(|&axis| given.dims[axis]).collect();
        // Axes of one index can go anywhere without a value that moves.
        let moved: Vec<usize> = axes.iter().copied().filter(|&axis| given.dims[axis] != 1).collect();
        if moved.is_sorted() {
            return self.in_shape(given, &dims);
        }
        Ok(Made::Step(Kind::Layers(given.step, one(Permute::new(&axes).map_err(refused)?)), Vec::new()))
    }

    fn concat(&self, node: &Node, inputs: &[Option<Value>], mut steps: Vec<usize>) -> Result<Made<T>, String> {
        if steps.len() != inputs.len() {
            return Err("one of its inputs does not depend on the model's input".to_owned());
        }
        let rank = self[steps[0]].dims.as_ref().map_or(0, Vec::len) + 1;
        if wrapped(node.int("axis", 1), rank) != Some(1) {
            return Err("it is read along the channels only".to_owned());
        }
        if let [only] = *steps {
            return Ok(Made::Same(only));
        }
        // A list that grows by one layer's outputs at a time, as in DenseNet, is the last concatenation and what is new.
        let known = (2..steps.len().min(256)).rev().find_map(|count| Some((count, *self.concatenated.get(&steps[..count])?)));
        if let Some((count, whole)) = known {
            steps.splice(..count, [whole]);
        }
        Ok(Made::Step(Kind::Joined { of: steps, summed: false }, Vec::new()))
    }
}

/// Those that leave whole numbers what they are, and the one that makes others of them.
const MOVES: &[&str] = &["Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"];

/// The operators that are read where an input depends on the model's, beside the functions of one and of two numbers; what they are
/// read as depends on their settings.
#[rustfmt::skip]
const READ: &[&str] = &[
    "AveragePool", "BatchNormalization", "Cast", "Celu", "Clip", "Concat", "Conv", "ConvTranspose", "Dropout", "Elu", "Flatten", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "LogSoftmax", "MatMul", "MaxPool",
    "Mish", "PRelu", "Pad", "ReduceMean", "Relu", "Reshape", "Resize", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Squeeze",
    "Swish", "Tanh", "Transpose", "Unsqueeze", "Upsample", "Where", "ai.onnx.ml.Scaler", "ai.onnx.ml.ZipMap",
];
