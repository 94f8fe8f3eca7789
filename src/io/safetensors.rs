//! The safetensors format.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use safetensors::tensor::{Metadata, TensorView};
use safetensors::{Dtype, SafeTensorError};

use super::tensor::{Data, Number, Tensor};
use super::{ARCHITECTURE, INPUT, StateDict, architecture, recognize};
use crate::error::Error;
use crate::graph::describe;
use crate::scalar::Scalar;
use crate::sequential::Sequential;

impl StateDict {
    /// Reads the content of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Error> {
        match recognize::recognize(bytes) {
            None | Some(recognize::SAFETENSORS) => {
                Self::of_safetensors(&Data::Held(Bytes::copy_from_slice(bytes)))
            }
            what => {
                let reason = recognize::instead(what, "safetensors files");
                Err(Error::Malformed { format: "safetensors".to_owned(), reason })
            }
        }
    }

    pub(super) fn of_safetensors(whole: &Data) -> Result<Self, Error> {
        let short = || {
            super::malformed(
                "the safetensors file is truncated: copy or download it again".to_owned(),
            )
        };
        // The file begins with the length of its header in eight bytes.
        let length = *whole
            .beginning(8)?
            .first_chunk()
            .ok_or_else(|| malformed(&SafeTensorError::HeaderTooSmall))?;
        let length = u64::from_le_bytes(length);
        let header = whole.part(8, length).ok_or_else(short)?.read()?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| malformed(&SafeTensorError::InvalidHeaderDeserialization(e)))?;
        // The data follows the header. Bytes after the data are an error too.
        let behind = whole.part(8 + length, header.data_len() as u64).ok_or_else(short)?;
        if behind.length() + 8 + usize::try_from(length).map_err(|_| short())? != whole.length() {
            return Err(malformed(&SafeTensorError::MetadataIncompleteBuffer));
        }
        Self::with_header(&header, &behind).ok_or_else(short)
    }

    /// Makes the tensors of a header, whose numbers are in the data that follows it. Returns `None`
    /// if a tensor is outside the data.
    fn with_header(header: &Metadata, behind: &Data) -> Option<Self> {
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let number = match info.dtype {
                Dtype::F16 => Number::F16,
                Dtype::BF16 => Number::BF16,
                Dtype::F32 => Number::F32,
                Dtype::F64 => Number::F64,
                other => Number::Other(format!("{other:?}")),
            };
            let (from, to) = info.data_offsets;
            let data = behind.part(from as u64, to.checked_sub(from)? as u64)?;
            Some((name, Tensor { shape: info.shape.clone(), strides: None, number, data }))
        });
        let tensors: Option<_> = tensors.collect();
        let metadata =
            header.metadata().iter().flatten().map(|(key, text)| (key.clone(), text.clone()));
        Some(Self { tensors: tensors?, metadata: metadata.collect(), left_out: BTreeMap::new() })
    }
}

impl<T: Scalar> Sequential<T> {
    /// Serializes the model as a safetensors file, with the architecture in the metadata.
    ///
    /// The numbers keep the model's number type. The tensors have the names that PyTorch's
    /// `nn.Sequential` would give them, so PyTorch can load them too.
    ///
    /// # Errors
    /// [`Error::NotWritable`] for a layer whose kind is not one of this crate's. Layers are
    /// recognized by their kind alone, so a layer of your own must not have the kind of one of the
    /// crate's layers.
    ///
    /// # Example
    /// ```
    /// use relprop::io::StateDict;
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    /// use relprop::{Linear, Relu, Sequential};
    ///
    /// let layer = Linear::new(dmatrix![1.0, 2.0], dvector![0.5])?;
    /// let model = Sequential::builder().layer(layer).layer(Relu).build()?;
    /// let file = model.to_safetensors()?;
    /// let again = StateDict::from_safetensors(&file)?.to_model::<f64>()?;
    /// assert_eq!(again.to_string(), model.to_string());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn to_safetensors(&self) -> Result<Vec<u8>, Error> {
        (T::compiled().to_safetensors)(self)
    }

    pub(crate) fn to_safetensors_inner(&self) -> Result<Vec<u8>, Error> {
        let mut tensors = Vec::new();
        for node in self.nodes() {
            // A layer can be read back if its text parses. The layers in branches are nodes too.
            let known = !node.branches.is_empty()
                || architecture::parse::<T>(&describe(&*node.layer)).is_ok();
            if !known {
                return Err(Error::NotWritable {
                    layer: node.index,
                    name: node.name.clone(),
                    kind: node.layer.kind().to_owned(),
                });
            }
            for (name, shape, values) in node.layer.tensors() {
                tensors.push((format!("{}.{name}", node.name), shape, bytes(values.into_iter())));
            }
        }
        // A `Scalar` is either an f32 or an f64.
        let dtype = if size_of::<T>() == 4 { Dtype::F32 } else { Dtype::F64 };
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)));
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| malformed(&e))?;
        let dims: Vec<String> = self.input_shape().dims().iter().map(usize::to_string).collect();
        let metadata = HashMap::from([
            (ARCHITECTURE.to_owned(), self.to_string()),
            (INPUT.to_owned(), dims.join(" ")),
        ]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| malformed(&e))
    }

    /// Writes the model to a safetensors file.
    ///
    /// The file contains what [`to_safetensors`](Self::to_safetensors) returns.
    ///
    /// # Errors
    /// [`Error::NotWritable`] and [`Error::Io`].
    pub fn write_safetensors(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = self.to_safetensors()?;
        std::fs::write(path, bytes).map_err(|source| Error::io(path, source))
    }

    /// Reads a model from a safetensors file that contains its architecture.
    ///
    /// Calls [`StateDict::open`] and [`StateDict::to_model`].
    ///
    /// # Errors
    /// The errors of [`StateDict::open`] and [`StateDict::to_model`].
    pub fn read_safetensors(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        StateDict::open(path)?.to_model().map_err(|error| error.in_file(path))
    }
}

/// The bytes of the numbers in their own type, little-endian.
fn bytes<T: Scalar>(values: impl Iterator<Item = T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        #[allow(clippy::cast_possible_truncation)]
        // a T of four bytes is an f32, which the cast restores exactly
        if size_of::<T>() == 4 {
            bytes.extend_from_slice(&(value.as_f64() as f32).to_le_bytes());
        } else {
            bytes.extend_from_slice(&value.as_f64().to_le_bytes());
        }
    }
    bytes
}

fn malformed(error: &safetensors::SafeTensorError) -> Error {
    Error::Malformed { format: "safetensors".to_owned(), reason: error.to_string() }
}
