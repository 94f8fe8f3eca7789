//! Values that do not depend on the input, such as weights.

use std::path::{Component, Path};
use std::rc::Rc;

use bytes::Bytes;

use super::budget::Budget;
use super::proto;
use crate::io::tensor::{Data, Number, Tensor};

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
        Self {
            dims: dims.clone(),
            values: Values::Floats(Tensor {
                shape: dims,
                strides: None,
                number: Number::F64,
                data,
            }),
        }
    }

    /// A tensor of the file; external data is in a file in or below `folder`.
    pub fn read(
        tensor: &proto::Tensor,
        folder: Option<&Path>,
        budget: &Budget,
    ) -> Result<Self, String> {
        let dims: Option<Vec<usize>> =
            tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let dims =
            dims.ok_or_else(|| format!("its dimensions {:?} are not sizes", short(&tensor.dims)))?;
        let count = Tensor::count(&dims).ok_or("its dimensions are too large or too many")?;
        let raw = match tensor.data_location {
            1 => Some(external(tensor, folder, budget)?),
            _ => tensor.raw_data.clone().map(Data::Held),
        };
        let complete = |there: usize| {
            if there == count {
                Ok(())
            } else {
                Err(format!(
                    "its dimensions need {count} values, but the file has {there}: the file is \
                     damaged or cut off"
                ))
            }
        };
        let floats = |number: Number, data: Data| {
            complete(data.length() / number.size())?;
            Ok::<_, String>(Values::Floats(Tensor {
                shape: dims.clone(),
                strides: None,
                number,
                data,
            }))
        };
        let of_bits = |bits: &[i32]| -> Bytes {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // two bytes in a field of four
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
                        complete(data.length() / size_of::<$kind>())?;
                        budget.fold(count).ok_or(
                            "it has more whole numbers than shapes and indices need: tables of \
                             whole numbers are unsupported",
                        )?;
                        let bytes = data.read().map_err(|e| e.to_string())?;
                        bytes
                            .as_chunks()
                            .0
                            .iter()
                            .map(|&bytes| <$kind>::from_le_bytes(bytes) as i64)
                            .collect()
                    }
                    None => $field.iter().map(|&value| i64::from(value)).collect(),
                })?
            };
        }
        #[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
        // for every type of whole numbers alike
        let values = match tensor.data_type {
            1 => {
                let field = || {
                    tensor
                        .float_data
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect::<Vec<_>>()
                };
                floats(Number::F32, raw.unwrap_or_else(|| Data::Held(field().into())))?
            }
            11 => {
                let field = || {
                    tensor
                        .double_data
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect::<Vec<_>>()
                };
                floats(Number::F64, raw.unwrap_or_else(|| Data::Held(field().into())))?
            }
            10 => {
                floats(Number::F16, raw.unwrap_or_else(|| Data::Held(of_bits(&tensor.int32_data))))?
            }
            16 => floats(
                Number::BF16,
                raw.unwrap_or_else(|| Data::Held(of_bits(&tensor.int32_data))),
            )?,
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
        if order.len() != self.dims.len() {
            return None;
        }
        let strides = tensor.strides.clone().unwrap_or_else(|| Tensor::steps(&self.dims));
        let pick = |sizes: &[usize]| {
            order.iter().map(|&axis| sizes.get(axis).copied()).collect::<Option<Vec<usize>>>()
        };
        let dims = pick(&self.dims)?;
        let tensor =
            Tensor { shape: dims.clone(), strides: Some(pick(&strides)?), ..tensor.clone() };
        Some(Self { dims, values: Values::Floats(tensor) })
    }

    /// The same numbers in another shape of the same size.
    pub fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        if Tensor::count(&dims)? != self.count() {
            return None;
        }
        let values = match &self.values {
            Values::Floats(tensor) if tensor.strides.is_some() => {
                return Some(Self::floats(dims, &self.numbers()?));
            }
            Values::Floats(tensor) => {
                Values::Floats(Tensor { shape: dims.clone(), ..tensor.clone() })
            }
            other => other.clone(),
        };
        Some(Self { dims, values })
    }
}

fn short(dims: &[i64]) -> &[i64] {
    &dims[..dims.len().min(8)]
}

/// Data in a file beside the model: never outside its folder.
fn external(
    tensor: &proto::Tensor,
    folder: Option<&Path>,
    budget: &Budget,
) -> Result<Data, String> {
    let entry = |key: &str| {
        tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    };
    let location = entry("location").ok_or("the name of the file with its data is missing")?;
    let folder = folder.ok_or(
        "its data is in a second file: open the model by its path, with OnnxFile::open, and keep both files in one folder",
    )?;
    let outside = || {
        format!(
            "its data would be in '{}', outside the folder of the model: put both files into one \
             folder, and export the model again",
            super::shortened(location)
        )
    };
    if location.is_empty()
        || !Path::new(location)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(outside());
    }
    // A link could lead out of the folder.
    let (folder, path) = (folder.canonicalize(), folder.join(location));
    let whole = Data::of_file(&path).map_err(|e| e.to_string())?;
    match (folder, path.canonicalize()) {
        (Ok(folder), Ok(path)) if path.starts_with(&folder) => budget.add(path, whole.length()),
        _ => return Err(outside()),
    }
    let number = |key: &str| {
        entry(key)
            .map(|text| text.parse::<u64>().map_err(|_| format!("its {key} is not a number")))
            .transpose()
    };
    let from = number("offset")?.unwrap_or(0);
    let length = number("length")?.unwrap_or((whole.length() as u64).saturating_sub(from));
    whole.part(from, length).ok_or_else(|| {
        format!(
            "the file '{}' is too short for its data: it is cut off, or belongs to another model",
            super::shortened(location)
        )
    })
}
