//! What each of ONNX's operators is here.

use std::rc::Rc;
use std::sync::Arc;

use super::constant::{Constant, Values, resized, target, wrapped};
use super::expression::Expression;
use super::graph::{Kind, Reader, Value, shape_of};
use super::proto::Node;
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d, Conv1d, Conv2d, ConvTranspose2d, Elu,
    Flatten, Gelu, HardTanh, Layer, LeakyRelu, Linear, MaxPool1d, MaxPool2d, Permute, Relu, Sigmoid, Silu, Softmax, Softplus, Tanh,
    Unflatten, Upsample,
};
use crate::scalar::Scalar;

/// What a node's values are.
pub(super) enum Made<T: Scalar> {
    /// Those of another step.
    Same(usize),
    Step(Kind<T>, Vec<(usize, Rc<Expression>)>),
}

const PART: &str = "it is read as a part of an activation (SiLU, GELU, softplus) only";

/// No value is told as a function of more others.
const BASES: usize = 8;

type Layers<T> = Vec<Arc<dyn Layer<T>>>;

fn one<T: Scalar>(layer: impl Layer<T> + 'static) -> Layers<T> {
    vec![Arc::new(layer)]
}

fn refused(error: crate::Error) -> String {
    error.to_string()
}

/// What a node is given.
struct Given<'a> {
    node: &'a Node,
    inputs: &'a [Option<Value>],
    /// The step that the first input is, and a sample's sizes there.
    step: usize,
    dims: &'a [usize],
}

impl Given<'_> {
    fn constant(&self, place: usize) -> Option<&Constant> {
        if let Some(Some(Value::Constant(constant))) = self.inputs.get(place) { Some(constant) } else { None }
    }

    fn is_given(&self, place: usize) -> bool {
        self.inputs.get(place).is_some_and(Option::is_some)
    }

    /// The numbers of an input that has to be constant.
    fn numbers<T: Scalar>(&self, place: usize, what: &str) -> Result<Vec<T>, String> {
        let missing = || format!("its {what} is no constant of numbers");
        match &self.constant(place).ok_or_else(missing)?.values {
            Values::Floats(tensor) => tensor.convert(what).map_err(refused),
            _ => Err(missing()),
        }
    }

    /// The same where it may be left out.
    fn optional<T: Scalar>(&self, place: usize, what: &str) -> Result<Option<Vec<T>>, String> {
        if self.is_given(place) { self.numbers(place, what).map(Some) } else { Ok(None) }
    }

    fn ints(&self, place: usize) -> Option<&[i64]> {
        self.constant(place).and_then(Constant::as_ints)
    }

    /// How many axes of space there are: 1 or 2.
    fn rank(&self) -> Result<usize, String> {
        match self.dims.len() {
            2 | 3 => Ok(self.dims.len() - 1),
            axes => Err(format!("it is read for sequences and images, its values have {axes} axes")),
        }
    }

    /// A setting with a number for each axis of space.
    fn sizes(&self, name: &str, rank: usize, usual: usize) -> Result<[usize; 2], String> {
        let wrong = || format!("its {name} are not {rank} sizes");
        match self.node.ints(name) {
            None => Ok([usual; 2]),
            Some(sizes) if sizes.len() == rank => pair(sizes).ok_or_else(wrong),
            Some(_) => Err(wrong()),
        }
    }
}

/// One or two sizes for two axes.
fn pair(sizes: &[i64]) -> Option<[usize; 2]> {
    let size = |&size: &i64| usize::try_from(size).ok();
    match sizes {
        [both] => Some([size(both)?; 2]),
        [height, width] => Some([size(height)?, size(width)?]),
        _ => None,
    }
}

/// Where windows lie along the axes of space.
struct Windows {
    rank: usize,
    stride: [usize; 2],
    dilation: [usize; 2],
    before: [usize; 2],
    behind: [usize; 2],
}

impl Windows {
    fn of(given: &Given<'_>, kernel: [usize; 2]) -> Result<Self, String> {
        let rank = given.rank()?;
        let (stride, dilation) = (given.sizes("strides", rank, 1)?, given.sizes("dilations", rank, 1)?);
        let mut windows = Self { rank, stride, dilation, before: [0; 2], behind: [0; 2] };
        match given.node.text("auto_pad") {
            "" | "NOTSET" => {
                if let Some(pads) = given.node.ints("pads") {
                    let (before, behind) = pads.split_at(pads.len() / 2);
                    let both = (pair(before).filter(|_| before.len() == rank), pair(behind).filter(|_| behind.len() == rank));
                    let (Some(before), Some(behind)) = both else { return Err(format!("its pads are not {} sizes", 2 * rank)) };
                    (windows.before, windows.behind) = (before, behind);
                }
            }
            "VALID" => {}
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                // As many windows as strides, and what is missing in equal parts on both sides, or one more on one of them.
                for axis in 0..2 {
                    let size = *given.dims.get(given.dims.len() - rank + axis.min(rank - 1)).unwrap_or(&1);
                    let (kernel, stride, dilation) = (kernel[axis], stride[axis], dilation[axis]);
                    let reach = kernel.saturating_sub(1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
                    let far = size.div_ceil(stride.max(1)).saturating_sub(1).checked_mul(stride);
                    let whole = far.zip(reach).and_then(|(far, reach)| far.checked_add(reach)).ok_or("its sizes overflow")?;
                    let missing = whole.saturating_sub(size);
                    let (less, more) = (missing / 2, missing.div_ceil(2));
                    (windows.before[axis], windows.behind[axis]) = if same == "SAME_UPPER" { (less, more) } else { (more, less) };
                }
            }
            other => return Err(format!("auto_pad is '{}'", super::shortened(other))),
        }
        Ok(windows)
    }

    /// With zeros that were padded before.
    fn padded(mut self, by: &[[usize; 2]]) -> Result<Self, String> {
        for axis in 0..2 {
            let [before, behind] = by.get(axis.min(self.rank - 1)).copied().unwrap_or([0; 2]);
            let sum = |a: usize, b: usize| a.checked_add(b).ok_or("its padding overflows");
            (self.before[axis], self.behind[axis]) = (sum(self.before[axis], before)?, sum(self.behind[axis], behind)?);
        }
        Ok(self)
    }
}

macro_rules! with_windows {
    ($layer:expr, $windows:expr) => {
        $layer.stride($windows.stride).padding($windows.before).padding_end($windows.behind)
    };
}

impl<T: Scalar> Reader<T> {
    /// What an operator with an input that depends on the model's makes, or why it is not read.
    pub(super) fn operator(&self, node: &Node, operator: &str, inputs: &[Option<Value>]) -> Result<Made<T>, String> {
        let steps: Vec<usize> =
            inputs.iter().flatten().filter_map(|value| if let Value::Step(step) = value { Some(*step) } else { None }).collect();
        if !READ.contains(&operator) {
            return Err("the operator is not read".to_owned());
        }
        if steps.iter().any(|&step| self.steps[step].dims.is_none()) {
            return Ok(Made::Step(Kind::Behind(steps), Vec::new()));
        }
        match operator {
            "Add" | "Sum" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" | "Greater" | "Less" => {
                self.arithmetic(node, operator, inputs, &steps)
            }
            "Where" => self.choice(inputs, steps),
            "Concat" => self.concat(node, inputs, steps),
            _ => {
                let Some(Some(Value::Step(step))) = inputs.first() else {
                    return Err("its first input does not depend on the model's input, but others do".to_owned());
                };
                if steps.len() > 1 {
                    return Err("more than one of its inputs depends on the model's input".to_owned());
                }
                let dims = self.steps[*step].dims.as_deref().unwrap_or_default();
                self.one_input(operator, &Given { node, inputs, step: *step, dims })
            }
        }
    }

    fn one_input(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let &Given { node, step, dims, .. } = given;
        let layers = match operator {
            "Identity" | "Dropout" | "ai.onnx.ml.ZipMap" => return Ok(Made::Same(step)),
            "Cast" => match node.int("to", 1) {
                1 | 10 | 11 | 16 => return Ok(Made::Same(step)),
                _ => return Err("it makes whole numbers or texts of the values".to_owned()),
            },
            "Gemm" => self.gemm(given)?,
            "MatMul" => {
                let weight = given.constant(1).ok_or("it multiplies by what is no constant")?;
                one(self.dense(dims, weight, None)?)
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
                    per_channel(&Constant::floats(vec![1, values.len()], &values), dims)
                };
                let (offset, scale) = (of(offset, 0.0)?, of(scale, 1.0)?);
                let b: Vec<f64> = offset.iter().zip(&scale).map(|(offset, scale)| -offset * scale).collect();
                affine(dims, &scale, &b)?
            }
            "MaxPool" | "AveragePool" => return self.pooling(operator, given),
            "GlobalAveragePool" => self.average(given, true)?,
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
                self.average(given, node.int("keepdims", 1) != 0)?
            }
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => return self.reshaped(operator, given),
            "Transpose" => return self.transposed(given),
            "Pad" => return Self::padded(given),
            "Upsample" | "Resize" => upsampled(operator, given)?,
            "Softmax" | "LogSoftmax" => {
                let axis = node.attribute("axis").map_or(1, |attribute| attribute.i);
                if dims.len() != 1 || !matches!(axis, 1 | -1) {
                    return Err("it is read over the values of a vector only".to_owned());
                }
                one(Softmax)
            }
            _ => {
                let (layer, function) = activation(operator, given)?;
                let expressions = function.map_or(Vec::new(), |function| self.composed(step, function));
                return match layer {
                    Some(layer) => Ok(Made::Step(Kind::Layers(step, vec![layer]), expressions)),
                    None => {
                        let reason = PART.to_owned();
                        Ok(Made::Step(Kind::Refused(vec![step], reason), expressions))
                    }
                };
            }
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn gemm(&self, given: &Given<'_>) -> Result<Layers<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its second input is no constant")?;
        if node.int("transA", 0) != 0 {
            return Err("it transposes its first input".to_owned());
        }
        let turned = if node.int("transB", 0) == 0 { None } else { weight.transposed(&[1, 0]) };
        let mut bias = match (given.is_given(2), given.constant(2)) {
            (false, _) => None,
            (true, Some(bias)) => {
                let outputs = turned.as_ref().unwrap_or(weight).dims.get(1).copied().unwrap_or(0);
                Some(per_channel(bias, &[outputs])?)
            }
            (true, None) => return Err("its third input is no constant".to_owned()),
        };
        let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
        bias.iter_mut().flatten().for_each(|b| *b *= f64::from(beta));
        let dense = self.dense(given.dims, turned.as_ref().unwrap_or(weight), bias.as_deref())?;
        #[allow(clippy::float_cmp)] // what is not exactly 1 has to be multiplied by
        if alpha == 1.0 {
            return Ok(one(dense));
        }
        Err(format!("its alpha is {alpha}, not 1"))
    }

    /// A dense layer of weights inputs x outputs.
    fn dense(&self, dims: &[usize], weight: &Constant, bias: Option<&[f64]>) -> Result<Linear<T>, String> {
        let &[inputs, outputs] = weight.dims.as_slice() else { return Err("its weights are no matrix".to_owned()) };
        if dims.len() != 1 {
            return Err(format!("it is read for vectors, its values have {} axes: put a Flatten before it", dims.len()));
        }
        let turned = weight.transposed(&[1, 0]).ok_or("its weights are no numbers of floating point")?;
        let Values::Floats(tensor) = &turned.values else { return Err("its weights are no numbers".to_owned()) };
        let weights = tensor.convert("weight").map_err(refused)?;
        let bias: Option<Vec<T>> = bias.map(|bias| bias.iter().map(|&b| T::from_f64(b)).collect());
        Linear::from_rows(outputs, inputs, &weights, bias.as_deref()).map_err(refused)
    }

    /// What a step gives, or, where it pads, what it pads, and with how much along each axis of space.
    fn unpadded<'a>(&'a self, given: &Given<'_>) -> (usize, &'a [[usize; 2]]) {
        if let Kind::Padded(of, by) = &self.steps[given.step].kind { (*of, by) } else { (given.step, &[]) }
    }

    fn convolution(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        let weight = given.constant(1).ok_or("its weights are no constant")?;
        let shape = weight.dims.clone();
        let rank = given.rank()?;
        if shape.len() != rank + 2 {
            return Err(format!("its weights have {} axes for values with {}", shape.len(), rank + 1));
        }
        let kernel = if rank == 1 { [shape[2]; 2] } else { [shape[2], shape[3]] };
        let (step, by) = self.unpadded(given);
        if operator == "ConvTranspose"
            && (!matches!(node.text("auto_pad"), "" | "NOTSET") || node.attribute("output_shape").is_some())
        {
            return Err("its padding is said by the shape of its output".to_owned());
        }
        let windows = Windows::of(given, kernel)?;
        let windows = if operator == "Conv" { windows.padded(by)? } else { windows };
        let groups = usize::try_from(node.int("group", 1)).map_err(|_| "its group is below 0")?;
        let (weights, bias): (Vec<T>, Option<Vec<T>>) = (given.numbers(1, "weights")?, given.optional(2, "bias")?);
        macro_rules! with_settings {
            ($layer:expr) => {
                with_windows!($layer.map_err(refused)?, windows).dilation(windows.dilation).groups(groups)
            };
        }
        let layers = match (operator, rank) {
            ("Conv", 1) => one(with_settings!(Conv1d::new([shape[0], shape[1], shape[2]], weights, bias))),
            ("Conv", _) => one(with_settings!(Conv2d::new([shape[0], shape[1], shape[2], shape[3]], weights, bias))),
            (_, 2) if by.is_empty() => {
                let more = given.sizes("output_padding", rank, 0)?;
                let layer = ConvTranspose2d::new([shape[0], shape[1], shape[2], shape[3]], weights, bias);
                one(with_settings!(layer).output_padding(more))
            }
            _ => return Err("it is read for images only".to_owned()),
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn normalization(given: &Given<'_>) -> Result<Layers<T>, String> {
        if given.node.int("training_mode", 0) != 0 {
            return Err("it is in training: export the model after model.eval()".to_owned());
        }
        let [weight, bias, mean, variance] =
            [(1, "scale"), (2, "bias"), (3, "mean"), (4, "variance")].map(|(place, what)| given.numbers(place, what));
        let eps = decimal(given.node.float("epsilon", 1e-5));
        if given.dims.len() == 3 {
            Ok(one(BatchNorm2d::new(weight?, bias?, mean?, variance?, eps).map_err(refused)?))
        } else {
            Ok(one(BatchNorm1d::new(weight?, bias?, mean?, variance?, eps).map_err(refused)?))
        }
    }

    fn pooling(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let (node, rank) = (given.node, given.rank()?);
        let kernel = given
            .node
            .attribute("kernel_shape")
            .map(|_| given.sizes("kernel_shape", rank, 1))
            .ok_or("it has no kernel_shape")??;
        let (step, by) = self.unpadded(given);
        let windows = Windows::of(given, kernel)?;
        let own = windows.before != [0; 2] || windows.behind != [0; 2];
        let ceil = node.int("ceil_mode", 0) != 0;
        let counted = node.int("count_include_pad", 0) != 0;
        let windows = windows.padded(by)?;
        macro_rules! pool {
            ($layer:ident) => {
                with_windows!($layer::new(kernel), windows).ceil_mode(ceil)
            };
        }
        let layers = if operator == "MaxPool" {
            // Zeros are no larger than any value in a window where none is negative.
            if !by.is_empty() && !self.steps[step].nonnegative {
                return Err("zeros are padded before it, and its values may be negative".to_owned());
            }
            match rank {
                1 => one(pool!(MaxPool1d).dilation(windows.dilation)),
                _ => one(pool!(MaxPool2d).dilation(windows.dilation)),
            }
        } else {
            if windows.dilation != [1; 2] {
                return Err("its windows are dilated".to_owned());
            }
            if !by.is_empty() && own && !counted {
                return Err("zeros are padded before it, and it pads more that do not count".to_owned());
            }
            let counted = counted || !by.is_empty();
            match rank {
                1 => one(pool!(AvgPool1d).count_include_pad(counted)),
                _ => one(pool!(AvgPool2d).count_include_pad(counted)),
            }
        };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    /// The mean over all of space.
    #[allow(clippy::unused_self)] // for the type of the numbers
    fn average(&self, given: &Given<'_>, keep: bool) -> Result<Layers<T>, String> {
        let mut layers = match given.rank()? {
            1 => one(AdaptiveAvgPool1d::new(1)),
            _ => one(AdaptiveAvgPool2d::new(1)),
        };
        if !keep {
            layers.push(Arc::new(Flatten));
        }
        Ok(layers)
    }

    fn reshaped(&self, operator: &str, given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        let full = [&[self.batch], given.dims].concat();
        let axes = given.ints(1).or(node.ints("axes"));
        let dims = match operator {
            "Flatten" => {
                let axis = if node.int("axis", 1) == i64::try_from(full.len()).unwrap_or(0) {
                    None
                } else {
                    wrapped(node.int("axis", 1), full.len())
                };
                (axis == Some(1)).then(|| vec![self.batch, given.dims.iter().product()])
            }
            "Reshape" => {
                let asked =
                    given.ints(1).or(node.ints("shape")).ok_or("the shape it asks for cannot be computed ahead of the input")?;
                target(&full, asked, node.int("allowzero", 0) != 0)
            }
            _ => resized(&full, axes, operator == "Unsqueeze"),
        };
        match dims.as_deref() {
            Some([batch, dims @ ..]) if *batch == self.batch => self.in_shape(given.step, dims),
            Some(_) => Err("it mixes values of several samples".to_owned()),
            None => Err("the shape it asks for does not fit its values".to_owned()),
        }
    }

    /// The values of a step in another shape.
    fn in_shape(&self, step: usize, dims: &[usize]) -> Result<Made<T>, String> {
        if self.steps[step].dims.as_deref() == Some(dims) {
            return Ok(Made::Same(step));
        }
        let layers = if dims.len() == 1 { one(Flatten) } else { one(Unflatten::new(shape_of(dims)?)) };
        Ok(Made::Step(Kind::Layers(step, layers), Vec::new()))
    }

    fn transposed(&self, given: &Given<'_>) -> Result<Made<T>, String> {
        let rank = given.dims.len() + 1;
        let order: Vec<usize> = match given.node.ints("perm") {
            Some(order) => order.iter().map(|&axis| usize::try_from(axis).unwrap_or(usize::MAX)).collect(),
            None => (0..rank).rev().collect(),
        };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..rank) {
            return Err("its perm is no order of the axes".to_owned());
        }
        if order[0] != 0 {
            return Err("it moves the samples' axis".to_owned());
        }
        let axes: Vec<usize> = order[1..].iter().map(|axis| axis - 1).collect();
        let dims: Vec<usize> = axes.iter().map(|&axis| given.dims[axis]).collect();
        // Axes of one index can go anywhere without a value that moves.
        let moved: Vec<usize> = axes.iter().copied().filter(|&axis| given.dims[axis] != 1).collect();
        if moved.is_sorted() {
            return self.in_shape(given.step, &dims);
        }
        Ok(Made::Step(Kind::Layers(given.step, one(Permute::new(&axes).map_err(refused)?)), Vec::new()))
    }

    fn padded(given: &Given<'_>) -> Result<Made<T>, String> {
        let node = given.node;
        let rank = given.rank()?;
        if !matches!(node.text("mode"), "" | "constant") {
            return Err(format!("it pads by mode '{}', not with zeros", super::shortened(node.text("mode"))));
        }
        let value =
            given.constant(2).and_then(Constant::scalar).or_else(|| (!given.is_given(2)).then(|| node.float("value", 0.0).into()));
        if value != Some(0.0) {
            return Err("it pads with other values than zeros".to_owned());
        }
        let pads = given.ints(1).or(node.ints("pads")).ok_or("its pads are no constant")?;
        let axes: Vec<Option<usize>> = match given.ints(3) {
            Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank + 2)).collect(),
            None => (0..rank + 2).map(Some).collect(),
        };
        if pads.len() != 2 * axes.len() {
            return Err("its pads are not two for each axis".to_owned());
        }
        let mut by = vec![[0; 2]; rank];
        let (before, behind) = pads.split_at(axes.len());
        for (axis, (&before, &behind)) in axes.into_iter().zip(before.iter().zip(behind)) {
            let axis = axis.ok_or("one of its axes is none of its input's")?;
            match (axis.checked_sub(2), usize::try_from(before), usize::try_from(behind)) {
                (Some(axis), Ok(before), Ok(behind)) => by[axis] = [before, behind],
                _ if before == 0 && behind == 0 => {}
                (None, ..) => return Err("it pads samples or channels".to_owned()),
                _ => return Err("it takes values away".to_owned()),
            }
        }
        Ok(Made::Step(Kind::Padded(given.step, by), Vec::new()))
    }

    fn concat(&self, node: &Node, inputs: &[Option<Value>], mut steps: Vec<usize>) -> Result<Made<T>, String> {
        if steps.len() != inputs.len() {
            return Err("one of its inputs does not depend on the model's input".to_owned());
        }
        let rank = self.steps[steps[0]].dims.as_ref().map_or(0, Vec::len) + 1;
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

    fn arithmetic(&self, node: &Node, operator: &str, inputs: &[Option<Value>], steps: &[usize]) -> Result<Made<T>, String> {
        match inputs {
            [Some(Value::Step(step)), Some(Value::Constant(constant))] => {
                self.with_constant(node, operator, *step, constant, false)
            }
            [Some(Value::Constant(constant)), Some(Value::Step(step))] => self.with_constant(node, operator, *step, constant, true),
            [Some(Value::Step(step))] if matches!(operator, "Sum" | "Max" | "Min") => Ok(Made::Same(*step)),
            _ if steps.len() == inputs.len() => {
                let expressions = match (steps, operator) {
                    ([a, b], "Add" | "Sum") => self.combined(*a, *b, |a, b| a + b),
                    ([a, b], "Sub") => self.combined(*a, *b, |a, b| a - b),
                    ([a, b], "Mul") => self.combined(*a, *b, |a, b| a * b),
                    ([a, b], "Div") => self.combined(*a, *b, |a, b| a / b),
                    ([a, b], "Greater") => self.combined(*a, *b, |a, b| f64::from(a > b)),
                    ([a, b], "Less") => self.combined(*a, *b, |a, b| f64::from(a < b)),
                    _ => Vec::new(),
                };
                if let Some(kind) = recognized(&expressions) {
                    return Ok(Made::Step(kind, expressions));
                }
                let kind = match operator {
                    "Add" | "Sum" => Kind::Joined { of: steps.to_vec(), summed: true },
                    _ => Kind::Refused(
                        steps.to_vec(),
                        "both of its inputs depend on the model's, and it is no activation that is known".to_owned(),
                    ),
                };
                Ok(Made::Step(kind, expressions))
            }
            _ => Err("more than two inputs, and not all of them depend on the model's".to_owned()),
        }
    }

    /// One of two values, each of which may be a constant, as a third says.
    fn choice(&self, inputs: &[Option<Value>], steps: Vec<usize>) -> Result<Made<T>, String> {
        let of = |value: &Option<Value>| match value {
            Some(Value::Step(step)) => Some(Ok(self.bases(*step))),
            Some(Value::Constant(constant)) => Some(Err(Rc::new(Expression::Number(constant.scalar()?)))),
            None => None,
        };
        let parts: Option<Vec<_>> = inputs.iter().map(of).collect();
        let parts = parts.filter(|parts| parts.len() == 3).ok_or(PART)?;
        let at = |base: usize, part: &Result<Vec<(usize, Rc<Expression>)>, Rc<Expression>>| match part {
            Ok(bases) => bases.iter().find(|(other, _)| *other == base).map(|(_, own)| own.clone()),
            Err(number) => Some(number.clone()),
        };
        let with = |(base, _): (usize, Rc<Expression>)| {
            Some((base, Expression::Choice(at(base, &parts[0])?, at(base, &parts[1])?, at(base, &parts[2])?).short()?))
        };
        let expressions: Vec<_> = self.bases(steps[0]).into_iter().filter_map(with).collect();
        let kind = recognized(&expressions).unwrap_or_else(|| Kind::Refused(steps, PART.to_owned()));
        Ok(Made::Step(kind, expressions))
    }

    /// Values and a constant; `first` where the constant comes first.
    fn with_constant(&self, node: &Node, operator: &str, step: usize, constant: &Constant, first: bool) -> Result<Made<T>, String> {
        let dims = self.steps[step].dims.as_deref().unwrap_or_default();
        let scalar = constant.scalar();
        let f: fn(f64, f64) -> f64 = match operator {
            "Add" | "Sum" => |a, b| a + b,
            "Sub" => |a, b| a - b,
            "Mul" => |a, b| a * b,
            "Div" => |a, b| a / b,
            "Pow" => f64::powf,
            "Max" => f64::max,
            "Greater" => |a, b| f64::from(a > b),
            "Less" => |a, b| f64::from(a < b),
            _ => f64::min,
        };
        let expressions = scalar.map_or(Vec::new(), |number| {
            let number = Rc::new(Expression::Number(number));
            let with = |(base, own): (usize, Rc<Expression>)| {
                let (a, b) = if first { (&number, &own) } else { (&own, &number) };
                Some((base, Expression::Binary(f, a.clone(), b.clone()).short()?))
            };
            self.bases(step).into_iter().filter_map(with).collect()
        });
        if let Some(kind) = recognized(&expressions) {
            return Ok(Made::Step(kind, expressions));
        }
        if matches!(operator, "Max" | "Min" | "Pow" | "Greater" | "Less") {
            let layer = match (operator, scalar) {
                ("Max", Some(least)) => clipped(Some(least), None)?,
                ("Min", Some(most)) => clipped(None, Some(most))?,
                _ => None,
            };
            let kind = match layer {
                Some(layer) => Kind::Layers(step, vec![layer]),
                None => Kind::Refused(vec![step], PART.to_owned()),
            };
            return Ok(Made::Step(kind, expressions));
        }
        let values = per_channel(constant, dims)?;
        let (a, b): (Vec<f64>, Vec<f64>) = match (operator, first) {
            ("Add" | "Sum", _) => (vec![1.0; values.len()], values),
            ("Sub", false) => (vec![1.0; values.len()], values.iter().map(|value| -value).collect()),
            ("Sub", true) => (vec![-1.0; values.len()], values),
            ("Mul", _) => (values.clone(), vec![0.0; values.len()]),
            ("Div", false) => (values.iter().map(|value| 1.0 / value).collect(), vec![0.0; values.len()]),
            _ => {
                let reason = "it divides by values that depend on the input".to_owned();
                return Ok(Made::Step(Kind::Refused(vec![step], reason), expressions));
            }
        };
        // The bias of a dense layer or a convolution, written as an operator of its own.
        let plain = matches!(operator, "Add" | "Sum");
        let read_once = node.input.get(usize::from(first)).is_some_and(|name| self.uses.get(name) == Some(&1));
        let alone = read_once && !self.aliased.contains(&step);
        if let (true, Kind::Layers(of, layers)) = (plain && alone, &self.steps[step].kind) {
            let (ones, b): (Vec<T>, Vec<T>) =
                (a.iter().map(|&a| T::from_f64(a)).collect(), b.iter().map(|&b| T::from_f64(b)).collect());
            let last = layers.last().filter(|last| last.per_channel().is_none());
            if let Some(layer) = last.and_then(|last| last.scaled(&ones, &b)) {
                let mut layers = layers.clone();
                layers.pop();
                layers.push(layer);
                return Ok(Made::Step(Kind::Layers(*of, layers), expressions));
            }
        }
        Ok(Made::Step(Kind::Layers(step, affine(dims, &a, &b)?), expressions))
    }

    /// A step's values as functions of other steps' values, itself first.
    fn bases(&self, step: usize) -> Vec<(usize, Rc<Expression>)> {
        let own = (step, Rc::new(Expression::X));
        std::iter::once(own).chain(self.steps[step].expressions.iter().cloned()).take(BASES).collect()
    }

    fn composed(&self, step: usize, f: fn(f64) -> f64) -> Vec<(usize, Rc<Expression>)> {
        self.bases(step).into_iter().filter_map(|(base, own)| Some((base, Expression::Unary(f, own).short()?))).collect()
    }

    /// Two steps' values as a function of what both are functions of, the nearest first.
    fn combined(&self, a: usize, b: usize, f: fn(f64, f64) -> f64) -> Vec<(usize, Rc<Expression>)> {
        let others = self.bases(b);
        let with = |(base, own): (usize, Rc<Expression>)| {
            let (_, other) = others.iter().find(|(other, _)| *other == base)?;
            Some((base, Expression::Binary(f, own, other.clone()).short()?))
        };
        self.bases(a).into_iter().filter_map(with).collect()
    }
}

/// The operators that are read where an input depends on the model's; what they are read as depends on their settings.
#[rustfmt::skip]
const READ: &[&str] = &[
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Dropout", "Elu",
    "Erf", "Exp", "Flatten", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "Identity", "LeakyRelu", "Less", "Log", "LogSoftmax",
    "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal", "ReduceMean", "Relu", "Reshape", "Resize",
    "Sigmoid", "Softmax", "Softplus", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tanh", "Transpose", "Unsqueeze", "Upsample", "Where",
    "ai.onnx.ml.Scaler", "ai.onnx.ml.ZipMap",
];

/// An activation as a layer, where it is one, and as a function, where it can be a part of one.
#[allow(clippy::type_complexity)]
fn activation<T: Scalar>(operator: &str, given: &Given<'_>) -> Result<(Option<Arc<dyn Layer<T>>>, Option<fn(f64) -> f64>), String> {
    fn layer<T: Scalar>(layer: impl Layer<T> + 'static) -> Option<Arc<dyn Layer<T>>> {
        Some(Arc::new(layer))
    }
    let node = given.node;
    let setting = |name: &str, usual: f32| decimal(node.float(name, usual));
    Ok(match operator {
        "Relu" => (layer(Relu), Some(|x| x.max(0.0))),
        "Sigmoid" => (layer(Sigmoid), Some(|x| 1.0 / (1.0 + (-x).exp()))),
        "Tanh" => (layer(Tanh), Some(f64::tanh)),
        "Softplus" => (layer(Softplus::default()), Some(|x| x.max(0.0) + (-x.abs()).exp().ln_1p())),
        "LeakyRelu" => (layer(LeakyRelu::new(setting("alpha", 0.01)).map_err(refused)?), None),
        "PRelu" => {
            let slope = given.constant(1).and_then(Constant::scalar).ok_or("it has more than one slope")?;
            (layer(LeakyRelu::new(slope).map_err(refused)?), None)
        }
        "Elu" => (layer(Elu::new(setting("alpha", 1.0)).map_err(refused)?), None),
        "Gelu" => match node.text("approximate") {
            "" | "none" => (layer(Gelu::Exact), None),
            "tanh" => (layer(Gelu::Tanh), None),
            other => return Err(format!("its approximation is '{}'", super::shortened(other))),
        },
        #[allow(clippy::float_cmp)] // any other factor is another function
        "Swish" if node.float("alpha", 1.0) == 1.0 => (layer(Silu), None),
        "Swish" => return Err("its alpha is not 1".to_owned()),
        "Clip" => {
            let bound = |place: usize, name: &str| match (given.is_given(place), given.constant(place)) {
                (false, _) => Ok(node.attribute(name).map(|attribute| decimal(attribute.f)).filter(|bound| bound.abs() < 3e38)),
                (true, Some(constant)) => Ok(constant.scalar().filter(|bound| bound.abs() < 3e38)),
                (true, None) => Err("its bounds are no constants"),
            };
            let (least, most) = (bound(1, "min")?, bound(2, "max")?);
            match clipped(least, most)? {
                Some(clipped) => (Some(clipped), None),
                None => return Err("it has no bounds, or one that is not 0".to_owned()),
            }
        }
        "Erf" => (None, Some(libm::erf)),
        "Exp" => (None, Some(f64::exp)),
        "Log" => (None, Some(f64::ln)),
        "Neg" => (None, Some(|x| -x)),
        "Abs" => (None, Some(f64::abs)),
        "Sqrt" => (None, Some(f64::sqrt)),
        "Reciprocal" => (None, Some(f64::recip)),
        _ => return Err("the operator is not read".to_owned()),
    })
}

/// The decimal number that was meant, not the f32 nearest to it.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}

/// Values cut off at one or two bounds.
fn clipped<T: Scalar>(least: Option<f64>, most: Option<f64>) -> Result<Option<Arc<dyn Layer<T>>>, String> {
    Ok(match (least, most) {
        (Some(0.0), None) => Some(Arc::new(Relu)),
        (Some(least), Some(most)) => Some(Arc::new(HardTanh::new(least, most).map_err(refused)?)),
        _ => None,
    })
}

/// The step that an expression is, where it is a known activation of another.
fn recognized<T: Scalar>(expressions: &[(usize, Rc<Expression>)]) -> Option<Kind<T>> {
    expressions.iter().find_map(|(base, expression)| Some(Kind::Layers(*base, vec![expression.activation()?])))
}

/// A constant's value for each channel, where it has one value for all of a channel.
fn per_channel(constant: &Constant, dims: &[usize]) -> Result<Vec<f64>, String> {
    let channels = dims.first().copied().unwrap_or(1);
    let values = constant.numbers().ok_or("a constant of it is no number")?;
    if let [value] = *values {
        // No more of them are made than a layer has values.
        return if channels <= 1 << 24 { Ok(vec![value; channels]) } else { Err("it has too many channels".to_owned()) };
    }
    // From the right, as shapes of different lengths are laid on one another: the channels' axis, and then those of space.
    let space = dims.len().saturating_sub(1);
    let at = constant.dims.len().checked_sub(space + 1);
    let alone = constant.dims.iter().enumerate().all(|(axis, &dim)| dim == 1 || Some(axis) == at);
    if values.len() == channels && alone {
        return Ok(values);
    }
    Err(format!("a constant of shape {:?} is not one value for each of {channels} channels", constant.dims))
}

/// y = a z + b for each channel.
fn affine<T: Scalar>(dims: &[usize], a: &[f64], b: &[f64]) -> Result<Layers<T>, String> {
    let of = |values: &[f64]| -> Vec<T> { values.iter().map(|&value| T::from_f64(value)).collect() };
    let (weight, bias, mean, variance) = (of(a), of(b), vec![T::zero(); a.len()], vec![T::one(); a.len()]);
    if dims.len() == 3 {
        Ok(one(BatchNorm2d::new(weight, bias, mean, variance, 0.0).map_err(refused)?))
    } else {
        Ok(one(BatchNorm1d::new(weight, bias, mean, variance, 0.0).map_err(refused)?))
    }
}

/// Values repeated by a whole factor, whatever the rounding is called.
fn upsampled<T: Scalar>(operator: &str, given: &Given<'_>) -> Result<Layers<T>, String> {
    let (node, rank) = (given.node, given.rank()?);
    if !matches!(node.text("mode"), "" | "nearest") {
        return Err(format!("its mode is '{}', not 'nearest'", super::shortened(node.text("mode"))));
    }
    let scales = if operator == "Upsample" || given.inputs.len() == 2 { 1 } else { 2 };
    let scales = match given.constant(scales).and_then(Constant::numbers).filter(|scales| !scales.is_empty()) {
        Some(scales) => scales,
        None => {
            let sizes = given.constant(3).and_then(Constant::numbers).ok_or("its scales are no constant")?;
            let given_sizes =
                std::iter::once(sizes.first().copied().unwrap_or(1.0)).chain(given.dims.iter().map(|&dim| dim as f64));
            sizes.iter().zip(given_sizes).map(|(size, dim)| size / dim).collect()
        }
    };
    let factor = scales.last().copied().unwrap_or(0.0);
    let even = scales.len() == rank + 2 && scales[2..].iter().all(|&scale| (scale - factor).abs() < 1e-9);
    let rest = scales.iter().take(2).all(|&scale| (scale - 1.0).abs() < 1e-9);
    if !even || !rest || factor.fract() != 0.0 || !(1.0..=1024.0).contains(&factor) {
        return Err(format!("its scales are {:?}, not one whole number along space", &scales[..scales.len().min(5)]));
    }
    let (mode, rounding) = match operator {
        "Upsample" => ("asymmetric", "floor"),
        _ => (node.text("coordinate_transformation_mode"), node.text("nearest_mode")),
    };
    for &size in &given.dims[1..] {
        for index in 0..size.saturating_mul(8).min(4096).min(size * 1024) {
            let x = index as f64;
            if x >= size as f64 * factor {
                break;
            }
            let at = match mode {
                "" | "half_pixel" | "pytorch_half_pixel" | "half_pixel_symmetric" => (x + 0.5) / factor - 0.5,
                "asymmetric" => x / factor,
                "tf_half_pixel_for_nn" => (x + 0.5) / factor,
                "align_corners" => x * (size as f64 - 1.0) / (size as f64 * factor - 1.0),
                other => return Err(format!("its coordinate_transformation_mode is '{}'", super::shortened(other))),
            };
            let at = match rounding {
                "" | "round_prefer_floor" => (at - 0.5).ceil(),
                "round_prefer_ceil" => (at + 0.5).floor(),
                "floor" => at.floor(),
                "ceil" => at.ceil(),
                other => return Err(format!("its nearest_mode is '{}'", super::shortened(other))),
            };
            #[allow(clippy::float_cmp)] // whole numbers both
            if at.clamp(0.0, size as f64 - 1.0) != (x / factor).floor() {
                return Err("its values are not repeated equally often".to_owned());
            }
        }
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole, and from 1 to 1024
    Ok(one(Upsample::new(factor as usize).map_err(refused)?))
}
