//! Constant folding. Exporters often compute shapes with operators whose inputs are all constants.

use super::budget::Budget;
use super::constant::{Constant, Elements};
use super::operator::arithmetic::{greater as is_greater, less as is_less};
use super::operator::{Folding, Schema};
use super::proto::NodeProto;
use super::shapes::{permutation, resized, slice as sliced, target, wrapped};
use crate::io::tensor::Tensor;

/// A node whose inputs are all constants.
pub(super) struct ConstantNode<'a> {
    pub proto: &'a NodeProto,
    pub inputs: &'a [Option<&'a Constant>],
    pub budget: &'a Budget,
}

/// The function that computes the output of a node, or returns `None` if the node is unsupported or
/// the output would be too large.
pub(super) type Fold = fn(&ConstantNode<'_>) -> Option<Constant>;

impl ConstantNode<'_> {
    /// The output, by the function of the operator.
    pub fn output(&self, operator: &str) -> Option<Constant> {
        let schema = Schema::<f64>::find(operator)?;
        let folding = schema.folding()?;
        if !schema.reads_shape() {
            let counts = self.inputs.iter().flatten().map(|constant| constant.count());
            self.budget.fold(counts.fold(0, usize::saturating_add))?;
        }
        match folding {
            Folding::Node(fold) => fold(self),
            Folding::Unary(f) => map(self.first()?, f),
            Folding::Binary(f) => combine(self, f, None),
        }
    }

    fn input(&self, place: usize) -> Option<&Constant> {
        self.inputs.get(place).copied().flatten()
    }

    fn first(&self) -> Option<&Constant> {
        self.input(0)
    }

    /// Up to version 12 of the operator set, the axes of some operators are an attribute.
    fn axes(&self) -> Option<&[i64]> {
        self.input(1).and_then(Constant::as_ints).or(self.proto.ints("axes"))
    }
}

pub(super) fn identity(node: &ConstantNode<'_>) -> Option<Constant> {
    node.first().cloned()
}

pub(super) fn dropout(node: &ConstantNode<'_>) -> Option<Constant> {
    // The third input is true if the model is in training mode.
    let is_training = node.input(2).and_then(Constant::scalar) == Some(1.0);
    node.first().filter(|_| !is_training).cloned()
}

pub(super) fn negate(node: &ConstantNode<'_>) -> Option<Constant> {
    map(node.first()?, |a| -a)
}

// Comparisons result in integers.

pub(super) fn greater(node: &ConstantNode<'_>) -> Option<Constant> {
    combine(node, is_greater, Some(true))
}

pub(super) fn less(node: &ConstantNode<'_>) -> Option<Constant> {
    combine(node, is_less, Some(true))
}

/// A power has the type of its base.
pub(super) fn power(node: &ConstantNode<'_>) -> Option<Constant> {
    combine(node, f64::powf, Some(node.first()?.as_ints().is_some()))
}

pub(super) fn modulo(node: &ConstantNode<'_>) -> Option<Constant> {
    // Without `fmod`, the result has the sign of the divisor.
    let f: fn(f64, f64) -> f64 =
        if node.proto.int("fmod", 0) == 0 { |a, b| a - (a / b).floor() * b } else { |a, b| a % b };
    combine(node, f, None)
}

pub(super) fn squeeze(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    first.reshaped(resized(&first.dims, node.axes(), false)?)
}

pub(super) fn unsqueeze(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    first.reshaped(resized(&first.dims, node.axes(), true)?)
}

pub(super) fn constant(node: &ConstantNode<'_>) -> Option<Constant> {
    let attribute = node.proto.attribute.first()?;
    match attribute.name.as_str() {
        "value" => Constant::read(attribute.t.as_ref()?, None, node.budget).ok(),
        "value_int" => Some(Constant { dims: Vec::new(), ..Constant::ints(vec![attribute.i]) }),
        "value_ints" => Some(Constant::ints(attribute.ints.clone())),
        "value_float" => Some(Constant::floats(Vec::new(), &[attribute.f.into()])),
        "value_floats" => {
            let values: Vec<f64> = attribute.floats.iter().map(|&value| value.into()).collect();
            Some(Constant::floats(vec![values.len()], &values))
        }
        _ => None,
    }
}

pub(super) fn constant_of_shape(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    let dims: Vec<usize> =
        first.as_ints()?.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
    let count = Tensor::count(&dims)?;
    node.budget.fold(count)?;
    let value = match node.proto.attribute("value").and_then(|attribute| attribute.t.clone()) {
        Some(tensor) => Constant::read(&tensor, None, node.budget).ok()?,
        // ONNX's default is the f32 0.
        None => Constant::floats(vec![1], &[0.0]),
    };
    match value.as_ints() {
        Some(&[value]) => Constant::ints(vec![value; count]).reshaped(dims),
        _ => Some(Constant::floats(dims, &vec![value.scalar()?; count])),
    }
}

pub(super) fn shape(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    let dims: Vec<i64> =
        first.dims.iter().map(|&dim| i64::try_from(dim).ok()).collect::<Option<_>>()?;
    let end = node.proto.attribute("end").map_or(i64::MAX, |attribute| attribute.i);
    let (start, _, count) = sliced(dims.len(), node.proto.int("start", 0), end, 1)?;
    Some(Constant::ints(dims[start..start + count].to_vec()))
}

pub(super) fn transpose(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    let order = permutation(node.proto.ints("perm"), first.dims.len())?;
    match first {
        // Integers have no strides, so their values are moved. For other numbers, only
        // strides change.
        whole_numbers @ Constant { elements: Elements::Ints(_), .. } => {
            let steps = Tensor::steps(&whole_numbers.dims);
            let dims = order.iter().map(|&axis| whole_numbers.dims[axis]).collect();
            let place = |index: &[usize]| {
                Some(index.iter().zip(&order).map(|(at, &axis)| at * steps[axis]).sum())
            };
            gathered(whole_numbers, dims, node.budget, place)
        }
        other => other.transposed(&order),
    }
}

pub(super) fn reshape(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    let dims = target(&first.dims, node.input(1)?.as_ints()?, node.proto.int("allowzero", 0) != 0)?;
    first.reshaped(dims)
}

pub(super) fn flatten(node: &ConstantNode<'_>) -> Option<Constant> {
    let first = node.first()?;
    let axis =
        usize::try_from(node.proto.int("axis", 1)).ok().filter(|&axis| axis <= first.dims.len())?;
    let (before, after) = first.dims.split_at(axis);
    first.reshaped(vec![Tensor::count(before)?, Tensor::count(after)?])
}

pub(super) fn concat(node: &ConstantNode<'_>) -> Option<Constant> {
    let parts: Vec<&Constant> = node.inputs.iter().copied().collect::<Option<_>>()?;
    // Exporters concatenate the sizes of shapes, so vectors of integers are enough.
    let values: Option<Vec<&[i64]>> =
        parts.iter().map(|part| part.as_ints().filter(|_| part.dims.len() == 1)).collect();
    Some(Constant::ints(values?.concat()))
}

pub(super) fn gather(node: &ConstantNode<'_>) -> Option<Constant> {
    let (from, indices) = (node.first()?, node.input(1)?);
    let axis = wrapped(node.proto.int("axis", 0), from.dims.len())?;
    let chosen: Vec<usize> = indices
        .as_ints()?
        .iter()
        .map(|&index| wrapped(index, from.dims[axis]))
        .collect::<Option<_>>()?;
    let (steps, own) = (Tensor::steps(&from.dims), Tensor::steps(&indices.dims));
    // The axes of the indices replace the axis that they choose from.
    let dims = [&from.dims[..axis], &indices.dims, &from.dims[axis + 1..]].concat();
    let rank = indices.dims.len();
    gathered(from, dims, node.budget, |index| {
        // The same three parts of the index: before the axis, within the indices, and after
        // the axis.
        let (before, rest) = index.split_at(axis);
        let (within, after) = rest.split_at(rank);
        let at = |index: &[usize], steps: &[usize]| {
            index.iter().zip(steps).map(|(at, step)| at * step).sum::<usize>()
        };
        let pick = *chosen.get(at(within, &own))?;
        Some(at(before, &steps[..axis]) + pick * steps[axis] + at(after, &steps[axis + 1..]))
    })
}

pub(super) fn slice(node: &ConstantNode<'_>) -> Option<Constant> {
    let from = node.first()?;
    let given = |at: usize, name: &str| {
        node.input(at).and_then(Constant::as_ints).or(node.proto.ints(name))
    };
    // Up to version 9 of the operator set, these are attributes.
    let (starts, ends) = (given(1, "starts")?, given(2, "ends")?);
    let all: Vec<i64> = (0..i64::try_from(starts.len()).ok()?).collect();
    let (axes, ones) = (given(3, "axes").unwrap_or(&all), vec![1; starts.len()]);
    let strides = node.input(4).map_or(Some(ones.as_slice()), Constant::as_ints)?;
    // The first index, the stride and the count for each axis. An axis that is not listed
    // stays whole.
    let mut parts: Vec<(usize, i64, usize)> = from.dims.iter().map(|&dim| (0, 1, dim)).collect();
    for (at, &axis) in axes.iter().enumerate() {
        let axis = wrapped(axis, from.dims.len())?;
        let (start, end, stride) = (*starts.get(at)?, *ends.get(at)?, *strides.get(at)?);
        parts[axis] = sliced(from.dims[axis], start, end, stride)?;
    }
    let steps = Tensor::steps(&from.dims);
    let dims = parts.iter().map(|&(.., count)| count).collect();
    gathered(from, dims, node.budget, |index| {
        let along =
            |((&(start, stride, _), &at), &step): ((&(usize, i64, usize), &usize), &usize)| {
                let at = i64::try_from(at).ok()?.checked_mul(stride)?;
                Some(start.checked_add_signed(isize::try_from(at).ok()?)? * step)
            };
        parts.iter().zip(index).zip(&steps).map(along).try_fold(0, |sum, place| Some(sum + place?))
    })
}

/// A tensor whose numbers are taken from another. `place` returns the position of a number for each
/// index.
fn gathered(
    from: &Constant,
    dims: Vec<usize>,
    budget: &Budget,
    place: impl Fn(&[usize]) -> Option<usize>,
) -> Option<Constant> {
    let count = Tensor::count(&dims)?;
    budget.fold(count)?;
    let mut index = vec![0; dims.len()];
    let mut places = Vec::with_capacity(count);
    for _ in 0..count {
        places.push(place(&index)?);
        // The next index in C order, in which the last axis changes fastest.
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            if index[axis] < dims[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    if let Elements::Ints(values) = &from.elements {
        let picked = places.into_iter().map(|at| values.get(at).copied()).collect::<Option<_>>()?;
        return Constant::ints(picked).reshaped(dims);
    }
    let numbers = from.numbers()?;
    let picked: Vec<f64> =
        places.into_iter().map(|at| numbers.get(at).copied()).collect::<Option<_>>()?;
    Some(Constant::floats(dims, &picked))
}

/// Converts a constant to the number type with the ONNX code `to`.
#[allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, clippy::cast_sign_loss)]
// ONNX's Cast truncates too
pub(super) fn cast(node: &ConstantNode<'_>) -> Option<Constant> {
    let (constant, to) = (node.first()?, node.proto.int("to", 0));
    // The numbers are ONNX's codes of the element types. Integers of all types are kept as i64.
    let whole: fn(i64) -> i64 = match to {
        2 => |value| (value as u8).into(),
        3 => |value| (value as i8).into(),
        4 => |value| (value as u16).into(),
        5 => |value| (value as i16).into(),
        6 => |value| (value as i32).into(),
        7 | 13 => |value| value,
        9 => |value| i64::from(value != 0),
        12 => |value| (value as u32).into(),
        _ => {
            let rounded: fn(f64) -> f64 = match to {
                1 => |value| (value as f32).into(),
                10 => |value| half::f16::from_f64(value).into(),
                11 => |value| value,
                16 => |value| half::bf16::from_f64(value).into(),
                _ => return None,
            };
            let values: Vec<f64> = constant.numbers()?.into_iter().map(rounded).collect();
            return Some(Constant::floats(constant.dims.clone(), &values));
        }
    };
    let values = match &constant.elements {
        Elements::Ints(values) => values.iter().map(|&value| whole(value)).collect(),
        // As a boolean, 0.5 is true, although it would truncate to 0.
        _ if to == 9 => {
            constant.numbers()?.into_iter().map(|value| i64::from(value != 0.0)).collect()
        }
        _ => constant.numbers()?.into_iter().map(|value| whole(value as i64)).collect(),
    };
    Constant::ints(values).reshaped(constant.dims.clone())
}

/// Applies a function to each number.
fn map(constant: &Constant, f: impl Fn(f64) -> f64) -> Option<Constant> {
    let values: Vec<f64> = constant.numbers()?.into_iter().map(f).collect();
    of_numbers(constant.as_ints().is_some(), constant.dims.clone(), &values)
}

/// Makes a constant of integers if `whole` is set, otherwise of floating-point numbers.
fn of_numbers(whole: bool, dims: Vec<usize>, values: &[f64]) -> Option<Constant> {
    #[allow(clippy::cast_possible_truncation)] // ONNX's division of integers truncates too
    if whole {
        Constant::ints(values.iter().map(|&value| value as i64).collect()).reshaped(dims)
    } else {
        Some(Constant::floats(dims, values))
    }
}

/// Applies `f` to the two inputs, with broadcasting. `whole` sets whether the result consists of
/// integers. If it is `None`, the result does if both inputs do.
fn combine(
    node: &ConstantNode<'_>,
    f: fn(f64, f64) -> f64,
    whole: Option<bool>,
) -> Option<Constant> {
    let &[Some(a), Some(b)] = node.inputs else { return None };
    let rank = a.dims.len().max(b.dims.len());
    // Broadcasting aligns shapes at their last axes.
    let padded = |dims: &[usize]| [vec![1; rank - dims.len()], dims.to_vec()].concat();
    let (da, db) = (padded(&a.dims), padded(&b.dims));
    let dims: Vec<usize> = da
        .iter()
        .zip(&db)
        .map(|(&a, &b)| if a == b || b == 1 { Some(a) } else { Some(b).filter(|_| a == 1) })
        .collect::<Option<_>>()?;
    let count = Tensor::count(&dims)?;
    node.budget.fold(count)?;
    let (va, vb) = (a.numbers()?, b.numbers()?);
    // For an index of the output, the position of the number to use from an input. Along an axis of
    // size 1, the same number is used for every index.
    let place = |own: &[usize], index: usize| {
        let (mut at, mut step, mut rest) = (0, 1, index);
        for axis in (0..rank).rev() {
            at += (rest % dims[axis]) % own[axis] * step;
            step *= own[axis];
            rest /= dims[axis];
        }
        at
    };
    let values: Vec<f64> =
        (0..count).map(|index| f(va[place(&da, index)], vb[place(&db, index)])).collect();
    of_numbers(whole.unwrap_or(a.as_ints().is_some() && b.as_ints().is_some()), dims, &values)
}
