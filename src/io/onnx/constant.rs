//! Values that do not depend on the input, such as weights.

use std::path::{Component, Path};
use std::rc::Rc;

use bytes::Bytes;

use super::budget::Budget;
use super::proto::TensorProto;
use crate::io::tensor::{Data, Number, Tensor};

/// A constant tensor.
#[derive(Debug, Clone)]
pub(super) struct Constant {
    pub dims: Vec<usize>,
    pub elements: Elements,
}

/// The elements of a constant.
#[derive(Debug, Clone)]
pub(super) enum Elements {
    /// Integers of any type, or booleans.
    Ints(Rc<[i64]>),
    Floats(Tensor),
    /// Values of a type that is not needed here, such as strings.
    Other,
}

impl Constant {
    pub fn ints(values: Vec<i64>) -> Self {
        Self { dims: vec![values.len()], elements: Elements::Ints(values.into()) }
    }

    pub fn floats(dims: Vec<usize>, values: &[f64]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let data = Data::Held(bytes.into());
        Self {
            dims: dims.clone(),
            elements: Elements::Floats(Tensor {
                shape: dims,
                strides: None,
                number: Number::F64,
                data,
            }),
        }
    }

    /// Reads a tensor of the file. External data must be in a file in or below `folder`.
    pub fn read(
        tensor: &TensorProto,
        folder: Option<&Path>,
        budget: &Budget,
    ) -> Result<Self, String> {
        let dims: Option<Vec<usize>> =
            tensor.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let dims =
            dims.ok_or_else(|| format!("its shape {:?} has negative sizes", short(&tensor.dims)))?;
        let count = Tensor::count(&dims).ok_or("its shape is too large or has too many axes")?;
        let raw = match tensor.data_location {
            // ONNX's code for external data.
            1 => Some(external(tensor, folder, budget)?),
            _ => tensor.raw_data.clone().map(Data::Held),
        };
        let complete = |there: usize| {
            if there == count {
                Ok(())
            } else {
                Err(format!(
                    "its shape requires {count} values, but the file has {there}: the file is \
                     truncated or damaged, so download or export it again"
                ))
            }
        };
        let floats = |number: Number, data: Data| {
            complete(data.length() / number.size())?;
            Ok::<_, String>(Elements::Floats(Tensor {
                shape: dims.clone(),
                strides: None,
                number,
                data,
            }))
        };
        let of_bits = |bits: &[i32]| -> Bytes {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // 16-bit numbers are stored as the low half of 32-bit integers
            bits.iter().flat_map(|&bits| (bits as u16).to_le_bytes()).collect::<Vec<_>>().into()
        };
        let ints = |values: Vec<i64>| {
            complete(values.len())?;
            Ok::<_, String>(Elements::Ints(values.into()))
        };
        macro_rules! raw_ints {
            ($kind:ty, $field:expr) => {
                ints(match raw {
                    Some(data) => {
                        // Integers are read immediately, because they are shapes and indices, which
                        // folding needs.
                        complete(data.length() / size_of::<$kind>())?;
                        budget.fold(count).ok_or(
                            "it has more integers than shapes and indices need, and tables of \
                             integers are unsupported",
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
        // the macro uses the same conversion for every integer type
        let elements = match tensor.data_type {
            // The numbers are ONNX's codes of the element types.
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
            // Booleans (9) are bytes too. In fields without raw data, all small integers are 32
            // bits wide.
            2 | 9 => raw_ints!(u8, tensor.int32_data),
            3 => raw_ints!(i8, tensor.int32_data),
            6 => raw_ints!(i32, tensor.int32_data),
            7 => raw_ints!(i64, tensor.int64_data),
            _ => Elements::Other,
        };
        Ok(Self { dims, elements })
    }

    pub fn as_ints(&self) -> Option<&[i64]> {
        if let Elements::Ints(values) = &self.elements { Some(values) } else { None }
    }

    pub fn count(&self) -> usize {
        Tensor::count(&self.dims).unwrap_or(usize::MAX)
    }

    /// The values as numbers, or `None` if they are not numbers or cannot be read.
    #[allow(clippy::cast_precision_loss)] // integers in a model are small
    pub fn numbers(&self) -> Option<Vec<f64>> {
        match &self.elements {
            Elements::Ints(values) => Some(values.iter().map(|&value| value as f64).collect()),
            Elements::Floats(tensor) => tensor.convert("").ok(),
            Elements::Other => None,
        }
    }

    /// The number, if there is exactly one.
    pub fn scalar(&self) -> Option<f64> {
        if self.count() == 1 { self.numbers()?.first().copied() } else { None }
    }

    /// The tensor with its axes in another order. Only the strides change, not the data.
    pub fn transposed(&self, order: &[usize]) -> Option<Self> {
        let Elements::Floats(tensor) = &self.elements else { return None };
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
        Some(Self { dims, elements: Elements::Floats(tensor) })
    }

    /// The tensor in another shape of the same size.
    pub fn reshaped(&self, dims: Vec<usize>) -> Option<Self> {
        if Tensor::count(&dims)? != self.count() {
            return None;
        }
        let elements = match &self.elements {
            // After a transpose, strides may be unable to express the new shape, so this copies the
            // numbers.
            Elements::Floats(tensor) if tensor.strides.is_some() => {
                return Some(Self::floats(dims, &self.numbers()?));
            }
            Elements::Floats(tensor) => {
                Elements::Floats(Tensor { shape: dims.clone(), ..tensor.clone() })
            }
            other => other.clone(),
        };
        Some(Self { dims, elements })
    }
}

fn short(dims: &[i64]) -> &[i64] {
    &dims[..dims.len().min(8)]
}

/// Finds a tensor's data in another file, which must be in or below the folder of the model.
fn external(tensor: &TensorProto, folder: Option<&Path>, budget: &Budget) -> Result<Data, String> {
    let entry = |key: &str| {
        tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str())
    };
    let location = entry("location")
        .ok_or("the name of the file with its data is missing: export the model again")?;
    let folder = folder.ok_or(
        "its data is in a second file: open the model by its path, with OnnxFile::open, and keep \
         both files in one folder",
    )?;
    let outside = || {
        format!(
            "its data is in '{}', which is outside the folder of the model: export the model \
             again, with both files in one folder",
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
    // A symbolic link could point out of the folder, so the real paths are compared.
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
    // Without a length, the data extends to the end of the file.
    let length = number("length")?.unwrap_or((whole.length() as u64).saturating_sub(from));
    whole.part(from, length).ok_or_else(|| {
        format!(
            "the file '{}' is too short for its data: it is truncated or belongs to another model, \
             so download or export both files again",
            super::shortened(location)
        )
    })
}
