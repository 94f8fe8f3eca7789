//! Values that do not depend on the input: weights, and what exporters compute of shapes.

use std::path::{Component, Path};
use std::rc::Rc;

use bytes::Bytes;

use super::proto::{self, Node};
use crate::io::tensor::{Data, Number, Tensor};

/// Folding makes at most so many numbers for each byte of the file, and so many more.
const MADE: usize = 1 << 16;

/// A constant tensor.
#[derive(Debug, Clone)]
pub(super) struct Constant {
    pub dims: Vec<usize>,
    pub values: Values,
}

#[derive(Debug, Clone)]
pub(super) enum Values {
    /// Of any type of whole numbers, and truth values.
    Ints(Rc<[i64]>),
    Floats(Tensor),
    /// Of a type that is of no use here, such as texts.
    Other,
}

impl Constant {
    pub fn ints(values: Vec<i64>) -> Self {
        Self { dims: vec![values.len()], values: Values::Ints(values.into()) }
    }

    pub fn floats(dims: Vec<usize>, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = Data::Held(bytes.into());
        Self { dims: dims.clone(), values: Values::Floats(Tensor { shape: dims, strides: None, number: Number::F64, data }) }
    }

    /// A tensor of the file; external data is in a file in or below `folder`.
    pub fn read(tensor: &proto::Tensor, folder: Option<&Path>) -> Result<Self, String> {
        let dims: Option<Vec<usize>> = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let dims = dims.ok_or_else(|| format!("its dimensions are {:?}", short(&tensor.dims)))?;
        let count = Tensor::count(&dims).ok_or("its dimensions overflow")?;
        let raw = match tensor.data_location {
            1 => Some(external(tensor, folder)?),
            _ => tensor.raw_data.clone().map(Data::Held),
        };
        let complete = |there: usize| {
            if there == count { Ok(()) } else { Err(format!("it has {there} values for dimensions of {count}")) }
        };
        let floats = |number: Number, data: Data| {
            complete(data.length() / number.size())?;
            Ok::<_, String>(Values::Floats(Tensor { shape: dims.clone(), strides: None, number, data }))
        };
        let of_bits = |bits: &[i32]| -> Bytes {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // two bytes in a field of four
            bits.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect::<Vec<_>>().into()
        };
        let ints = |values: Vec<i64>| {
            complete(values.len())?;
            Ok::<_, String>(Values::Ints(values.into()))
        };
        macro_rules! raw_ints {
            ($kind:ty, $field:expr) => {
                ints(match raw {
                    Some(data) => {
                        // Whole numbers are read at once: they are shapes and indices.
                        if data.length() / size_of::<$kind>() != count {
                            complete(data.length() / size_of::<$kind>())?;
                        }
                        let bytes = data.read().map_err(|e| e.to_string())?;
                        bytes.as_chunks().0.iter().map(|&bytes| <$kind>::from_le_bytes(bytes) as i64).collect()
                    }
                    None => $field.iter().map(|&value| i64::from(value)).collect(),
                })?
            };
        }
        #[allow(clippy::cast_lossless, clippy::cast_possible_wrap)] // for every type of whole numbers alike
        let values = match tensor.data_type {
            1 => {
                let field = || tensor.float_data.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
                floats(Number::F32, raw.unwrap_or_else(|| Data::Held(field().into())))?
            }
            11 => {
                let field = || tensor.double_data.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
                floats(Number::F64, raw.unwrap_or_else(|| Data::Held(field().into())))?
            }
            10 => floats(Number::F16, raw.unwrap_or_else(|| Data::Held(of_bits(&tensor.int32_data))))?,
            16 => floats(Number::BF16, raw.unwrap_or_else(|| Data::Held(of_bits(&tensor.int32_data))))?,
            2 | 9 => raw_ints!(u8, tensor.int32_data),
            3 => raw_ints!(i8, tensor.int32_data),
            6 => raw_ints!(i32, tensor.int32_data),
            7 => raw_ints!(i64, tensor.int64_data),
            _ => Values::Other,
        };
        Ok(Self { dims, values })
    }

    pub fn as_ints(&self) -> Option<&[i64]> {
        if let Values::Ints(values) = &self.values { Some(values) } else { None }
    }

    pub fn count(&self) -> usize {
        Tensor::count(&self.dims).unwrap_or(usize::MAX)
    }

    /// Its numbers, whatever their type.
    #[allow(clippy::cast_precision_loss)] // whole numbers among weights are small
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match &self.values {
            Values::Ints(values) => Some(values.iter().map(|&value| value as f64).collect()),
            Values::Floats(tensor) => tensor.convert("").ok(),
            Values::Other => None,
        }
    }

    /// Its one number.
    pub fn scalar(&self) -> Option<f64> {
        if self.count() == 1 { self.numbers()?.first().copied() } else { None }
    }

    /// Its axes in another order; nothing is moved.
    pub fn transposed(&self, order: &[usize]) -> Option<Self> {
        let Values::Floats(tensor) = &self.values else { return None };
        let strides = tensor.strides.clone().unwrap_or_else(|| Tensor::steps(&self.dims));
        let pick = |sizes: &[usize]| order.iter().map(|&axis| sizes.get(axis).copied()).collect::<Option<Vec<usize>>>();
        let dims = pick(&self.dims)?;
        let tensor = Tensor { shape: dims.clone(), strides: Some(pick(&strides)?), ..tensor.clone() };
        Some(Self { dims, values: Values::Floats(tensor) })
    }

    /// A tensor whose numbers are some of this one's: of each index, at which place.
    fn gathered(&self, dims: Vec<usize>, budget: &mut Budget, place: impl Fn(&[usize]) -> Option<usize>) -> Option<Self> {
        let count = Tensor::count(&dims)?;
        budget.take(count)?;
        let mut index = vec![0; dims.len()];
        let mut places = Vec::with_capacity(count);
        for _ in 0..count {
            places.push(place(&index)?);
            for axis in (0..dims.len()).rev() {
                index[axis] += 1;
                if index[axis] < dims[axis] {
                    break;
                }
                index[axis] = 0;
            }
        }
        if let Values::Ints(values) = &self.values {
            let picked = places.into_iter().map(|at| values.get(at).copied()).collect::<Option<_>>()?;
            return Constant::ints(picked).reshaped(dims);
        }
        let numbers = self.numbers()?;
        let picked: Vec<f64> = places.into_iter().map(|at| numbers.get(at).copied()).collect::<Option<_>>()?;
        Some(Constant::floats(dims, &picked))
    }

    /// The same numbers in another shape of the same size.
    pub fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        if Tensor::count(&dims)? != self.count() {
            return None;
        }
        let values = match &self.values {
            Values::Floats(tensor) if tensor.strides.is_some() => return Some(Self::floats(dims, &self.numbers()?)),
            Values::Floats(tensor) => Values::Floats(Tensor { shape: dims.clone(), ..tensor.clone() }),
            other => other.clone(),
        };
        Some(Self { dims, values })
    }
}

fn short(dims: &[i64]) -> &[i64] {
    &dims[..dims.len().min(8)]
}

/// Data in a file beside the model: never outside its folder.
fn external(tensor: &proto::Tensor, folder: Option<&Path>) -> Result<Data, String> {
    let entry = |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
    let location = entry("location").ok_or("it does not say where its data is")?;
    let folder = folder.ok_or("its data is in another file, and the model was not read from one")?;
    let outside = || format!("its data is said to be in '{}', outside the model's folder", super::shortened(location));
    if location.is_empty() || !Path::new(location).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(outside());
    }
    // A link could lead out of the folder.
    let (folder, path) = (folder.canonicalize(), folder.join(location));
    let whole = Data::of_file(&path).map_err(|e| e.to_string())?;
    match (folder, path.canonicalize()) {
        (Ok(folder), Ok(path)) if path.starts_with(&folder) => {}
        _ => return Err(outside()),
    }
    let number = |key: &str| entry(key).map(|text| text.parse::<u64>().map_err(|_| format!("its {key} is no number"))).transpose();
    let from = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or((whole.length() as u64).saturating_sub(from));
    whole.part(from, length).ok_or_else(|| format!("'{}' ends before its data does", super::shortened(location)))
}

/// How much folding may still make.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub fn of(file: usize) -> Self {
        Self { left: file.saturating_add(MADE) }
    }

    fn take(&mut self, count: usize) -> Option<()> {
        self.left = self.left.checked_sub(count)?;
        Some(())
    }
}

/// What a node makes of constants alone; `None` where it is not known, or would be too large.
#[allow(clippy::too_many_lines)] // a table of operators
pub(super) fn fold(node: &Node, inputs: &[Option<&Constant>], budget: &mut Budget) -> Option<Constant> {
    let input = |at: usize| inputs.get(at).copied().flatten();
    let first = input(0);
    budget.take(inputs.iter().flatten().map(|constant| constant.count()).sum())?;
    match node.op_type.as_str() {
        "Identity" | "Dropout" => first.cloned(),
        "Constant" => {
            let attribute = node.attribute.first()?;
            match attribute.name.as_str() {
                "value" => Constant::read(attribute.t.as_ref()?, None).ok(),
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
        "ConstantOfShape" => {
            let dims: Vec<usize> = first?.as_ints()?.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<_>>()?;
            let count = Tensor::count(&dims)?;
            budget.take(count)?;
            let value = match node.attribute("value").and_then(|attribute| attribute.t.clone()) {
                Some(tensor) => Constant::read(&tensor, None).ok()?,
                None => Constant::floats(vec![1], &[0.0]),
            };
            match value.as_ints() {
                Some(&[value]) => Constant::ints(vec![value; count]).reshaped(dims),
                _ => Some(Constant::floats(dims, &vec![value.scalar()?; count])),
            }
        }
        "Shape" => {
            let dims: Vec<i64> = first?.dims.iter().map(|&dim| i64::try_from(dim).ok()).collect::<Option<_>>()?;
            let end = node.attribute("end").map_or(i64::MAX, |attribute| attribute.i);
            let (start, _, count) = slice(dims.len(), node.int("start", 0), end, 1)?;
            Some(Constant::ints(dims[start..start + count].to_vec()))
        }
        "Cast" => cast(first?, node.int("to", 0)),
        "Transpose" => {
            let order = match node.ints("perm") {
                Some(order) => order.iter().map(|&axis| usize::try_from(axis).ok()).collect::<Option<Vec<_>>>()?,
                None => (0..first?.dims.len()).rev().collect(),
            };
            let mut sorted = order.clone();
            sorted.sort_unstable();
            let whole = sorted.into_iter().eq(0..first?.dims.len());
            match first? {
                _ if !whole => None,
                whole_numbers @ Constant { values: Values::Ints(_), .. } => {
                    let steps = Tensor::steps(&whole_numbers.dims);
                    let dims = order.iter().map(|&axis| whole_numbers.dims[axis]).collect();
                    let place = |index: &[usize]| Some(index.iter().zip(&order).map(|(at, &axis)| at * steps[axis]).sum());
                    whole_numbers.gathered(dims, budget, place)
                }
                other => other.transposed(&order),
            }
        }
        "Reshape" => {
            let dims = target(&first?.dims, input(1)?.as_ints()?, node.int("allowzero", 0) != 0)?;
            first?.reshaped(dims)
        }
        "Flatten" => {
            let axis =
                usize::try_from(node.int("axis", 1)).ok().filter(|&axis| axis <= first.map_or(0, |first| first.dims.len()))?;
            let (before, behind) = first?.dims.split_at(axis);
            first?.reshaped(vec![Tensor::count(before)?, Tensor::count(behind)?])
        }
        "Unsqueeze" | "Squeeze" => {
            let axes = input(1).and_then(Constant::as_ints).or(node.ints("axes"));
            first?.reshaped(resized(&first?.dims, axes, node.op_type == "Unsqueeze")?)
        }
        "Concat" => {
            let parts: Vec<&Constant> = inputs.iter().copied().collect::<Option<_>>()?;
            let values: Option<Vec<&[i64]>> = parts.iter().map(|part| part.as_ints().filter(|_| part.dims.len() == 1)).collect();
            Some(Constant::ints(values?.concat()))
        }
        "Gather" => {
            let (from, indices) = (first?, input(1)?);
            let axis = wrapped(node.int("axis", 0), from.dims.len())?;
            let chosen: Vec<usize> =
                indices.as_ints()?.iter().map(|&index| wrapped(index, from.dims[axis])).collect::<Option<_>>()?;
            let (steps, own) = (Tensor::steps(&from.dims), Tensor::steps(&indices.dims));
            let dims = [&from.dims[..axis], &indices.dims, &from.dims[axis + 1..]].concat();
            let rank = indices.dims.len();
            from.gathered(dims, budget, |index| {
                let (before, rest) = index.split_at(axis);
                let (within, behind) = rest.split_at(rank);
                let at = |index: &[usize], steps: &[usize]| index.iter().zip(steps).map(|(at, step)| at * step).sum::<usize>();
                let pick = *chosen.get(at(within, &own))?;
                Some(at(before, &steps[..axis]) + pick * steps[axis] + at(behind, &steps[axis + 1..]))
            })
        }
        "Slice" => {
            let from = first?;
            let given = |at: usize, name: &str| input(at).and_then(Constant::as_ints).or(node.ints(name));
            let (starts, ends) = (given(1, "starts")?, given(2, "ends")?);
            let all: Vec<i64> = (0..i64::try_from(starts.len()).ok()?).collect();
            let (axes, ones) = (given(3, "axes").unwrap_or(&all), vec![1; starts.len()]);
            let strides = input(4).map_or(Some(ones.as_slice()), Constant::as_ints)?;
            let mut parts: Vec<(usize, i64, usize)> = from.dims.iter().map(|&dim| (0, 1, dim)).collect();
            for (at, &axis) in axes.iter().enumerate() {
                let axis = wrapped(axis, from.dims.len())?;
                let (start, end, stride) = (*starts.get(at)?, *ends.get(at)?, *strides.get(at)?);
                parts[axis] = slice(from.dims[axis], start, end, stride)?;
            }
            let steps = Tensor::steps(&from.dims);
            let dims = parts.iter().map(|&(.., count)| count).collect();
            from.gathered(dims, budget, |index| {
                let along = |((&(start, stride, _), &at), &step): ((&(usize, i64, usize), &usize), &usize)| {
                    let at = i64::try_from(at).ok()?.checked_mul(stride)?;
                    Some(start.checked_add_signed(isize::try_from(at).ok()?)? * step)
                };
                parts.iter().zip(index).zip(&steps).map(along).try_fold(0, |sum, place| Some(sum + place?))
            })
        }
        "Neg" => map(first?, |a| -a),
        "Sqrt" => map(first?, f64::sqrt),
        "Reciprocal" => map(first?, f64::recip),
        "Exp" => map(first?, f64::exp),
        "Abs" => map(first?, f64::abs),
        "Floor" => map(first?, f64::floor),
        "Ceil" => map(first?, f64::ceil),
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" => {
            let (a, b) = (first?, input(1)?);
            let f: fn(f64, f64) -> f64 = match node.op_type.as_str() {
                "Add" => |a, b| a + b,
                "Sub" => |a, b| a - b,
                "Mul" => |a, b| a * b,
                "Div" => |a, b| a / b,
                "Mod" if node.int("fmod", 0) != 0 => |a, b| a % b,
                // With the sign of the divisor.
                "Mod" => |a, b| a - (a / b).floor() * b,
                _ => f64::powf,
            };
            combine(a, b, f, budget)
        }
        _ => None,
    }
}

/// The same in another type of numbers, in the count of ONNX; types of less than two bytes for a number of floating point, whose
/// rounding would show, and texts are not known.
#[allow(clippy::cast_possible_truncation)] // as a cast does
fn cast(constant: &Constant, to: i64) -> Option<Constant> {
    let whole: fn(f64) -> i64 = match to {
        2..=7 | 12 | 13 => |value| value as i64,
        9 => |value| i64::from(value != 0.0),
        1 | 10 | 11 | 16 => {
            return match constant.values {
                Values::Floats(_) => Some(constant.clone()),
                _ => Some(Constant::floats(constant.dims.clone(), &constant.numbers()?)),
            };
        }
        _ => return None,
    };
    match constant.values {
        Values::Ints(_) if to != 9 => Some(constant.clone()),
        _ => Constant::ints(constant.numbers()?.into_iter().map(whole).collect()).reshaped(constant.dims.clone()),
    }
}

fn map(constant: &Constant, f: impl Fn(f64) -> f64) -> Option<Constant> {
    let values: Vec<f64> = constant.numbers()?.into_iter().map(f).collect();
    of_numbers(constant.as_ints().is_some(), constant.dims.clone(), &values)
}

/// Whole numbers stay whole.
fn of_numbers(whole: bool, dims: Vec<usize>, values: &[f64]) -> Option<Constant> {
    #[allow(clippy::cast_possible_truncation)] // as ONNX divides whole numbers
    if whole {
        Constant::ints(values.iter().map(|&value| value as i64).collect()).reshaped(dims)
    } else {
        Some(Constant::floats(dims, values))
    }
}

/// f of two tensors, of which the smaller is repeated.
fn combine(a: &Constant, b: &Constant, f: impl Fn(f64, f64) -> f64, budget: &mut Budget) -> Option<Constant> {
    let rank = a.dims.len().max(b.dims.len());
    let padded = |dims: &[usize]| [vec![1; rank - dims.len()], dims.to_vec()].concat();
    let (da, db) = (padded(&a.dims), padded(&b.dims));
    let dims: Vec<usize> = da
        .iter()
        .zip(&db)
        .map(|(&a, &b)| if a == b || b == 1 { Some(a) } else { Some(b).filter(|_| a == 1) })
        .collect::<Option<_>>()?;
    let count = Tensor::count(&dims)?;
    budget.take(count)?;
    let (va, vb) = (a.numbers()?, b.numbers()?);
    let place = |own: &[usize], index: usize| {
        let (mut at, mut step, mut rest) = (0, 1, index);
        for axis in (0..rank).rev() {
            at += (rest % dims[axis]) % own[axis] * step;
            step *= own[axis];
            rest /= dims[axis];
        }
        at
    };
    let values: Vec<f64> = (0..count).map(|index| f(va[place(&da, index)], vb[place(&db, index)])).collect();
    of_numbers(a.as_ints().is_some() && b.as_ints().is_some(), dims, &values)
}

/// Where a slice of an axis begins, how it goes on, and how many there are of it.
fn slice(dim: usize, start: i64, end: i64, stride: i64) -> Option<(usize, i64, usize)> {
    let dim = i64::try_from(dim).ok()?;
    let from_end = |at: i64| if at < 0 { at.saturating_add(dim) } else { at };
    let (least, most) = if stride > 0 { (0, dim) } else { (-1, dim - 1) };
    let (start, end) = (from_end(start).clamp(least, most), from_end(end).clamp(least, most));
    let count = match stride {
        0 => return None,
        1.. => (end - start).max(0).checked_add(stride - 1)? / stride,
        _ => (start - end).max(0).checked_add(-(stride + 1))? / stride.checked_neg()?,
    };
    Some((usize::try_from(start).unwrap_or(0), stride, usize::try_from(count).ok()?))
}

/// A negative index counts from the end.
pub(super) fn wrapped(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index.checked_add(length)? } else { index };
    usize::try_from(index).ok().filter(|_| index < length)
}

/// The dimensions that a reshape asks for: 0 stands for what was there, one -1 for what is left.
pub(super) fn target(dims: &[usize], asked: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let size = |(axis, &asked): (usize, &i64)| match asked {
        -1 => Some(None),
        0 if !allow_zero => dims.get(axis).copied().map(Some),
        asked => usize::try_from(asked).ok().map(Some),
    };
    let sizes: Vec<Option<usize>> = asked.iter().enumerate().map(size).collect::<Option<_>>()?;
    let known = sizes.iter().flatten().try_fold(1_usize, |count, &size| count.checked_mul(size))?;
    let all = Tensor::count(dims)?;
    let rest = match sizes.iter().filter(|size| size.is_none()).count() {
        0 if known == all => 1,
        1 if known > 0 && all.is_multiple_of(known) => all / known,
        _ => return None,
    };
    Some(sizes.into_iter().map(|size| size.unwrap_or(rest)).collect())
}

/// The dimensions with axes of one index put in or taken out.
pub(super) fn resized(dims: &[usize], axes: Option<&[i64]>, insert: bool) -> Option<Vec<usize>> {
    let rank = if insert { dims.len().checked_add(axes?.len())? } else { dims.len() };
    let axes: Option<Vec<usize>> = match axes {
        Some(axes) => axes.iter().map(|&axis| wrapped(axis, rank)).collect(),
        None => Some((0..rank).filter(|&axis| dims[axis] == 1).collect()),
    };
    let mut chosen = vec![false; rank];
    for axis in axes? {
        if std::mem::replace(&mut chosen[axis], true) {
            return None;
        }
    }
    let mut rest = dims.iter().copied();
    if insert {
        return chosen.into_iter().map(|new| if new { Some(1) } else { rest.next() }).collect();
    }
    if chosen.iter().zip(dims).any(|(&chosen, &dim)| chosen && dim != 1) {
        return None;
    }
    Some(chosen.into_iter().zip(rest).filter(|(chosen, _)| !chosen).map(|(_, dim)| dim).collect())
}
