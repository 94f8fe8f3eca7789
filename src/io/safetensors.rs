//! The safetensors format.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::architecture::shortened;
use super::{StateDict, Tensor, Values, architecture};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::{Bound, Sequential, describe};
use crate::shape::Shape;

/// The key of the file's metadata under which the layers stand.
const ARCHITECTURE: &str = "architecture";
const INPUT: &str = "input";

/// One to three sizes.
fn shape(text: &str) -> Option<Shape> {
    let dims: Vec<usize> = text.split_whitespace().map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    match *dims {
        [size] => Some(size.into()),
        [channels, length] => Some([channels, length].into()),
        [channels, height, width] => Some([channels, height, width].into()),
        _ => None,
    }
}

impl StateDict {
    /// Reads the content of a safetensors file.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_safetensors(bytes: &[u8]) -> Result<Self, Error> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| malformed(&e))?;
        let file = SafeTensors::deserialize(bytes).map_err(|e| malformed(&e))?;
        let architecture = header.metadata().as_ref().and_then(|metadata| metadata.get(ARCHITECTURE)).cloned();
        let input = header.metadata().as_ref().and_then(|metadata| metadata.get(INPUT));
        let input =
            input.map(|text| shape(text).ok_or_else(|| super::malformed(format!("'{}' is no input shape", shortened(text)))));
        let input = input.transpose()?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let bytes = || view.data().to_vec();
            let values = match view.dtype() {
                Dtype::F16 => Values::F16(bytes()),
                Dtype::BF16 => Values::BF16(bytes()),
                Dtype::F32 => Values::F32(bytes()),
                Dtype::F64 => Values::F64(bytes()),
                other => Values::Other(format!("{other:?}")),
            };
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
        }
        Ok(Self { tensors, architecture, input })
    }
}

impl<T: Scalar> Sequential<T> {
    /// The model as a safetensors file, in its own number type, with the architecture in the file's metadata.
    ///
    /// The tensors have the names that PyTorch's `nn.Sequential` would give them, so it can load them too.
    ///
    /// # Errors
    /// [`Error::NotWritable`] for a layer whose kind is none of this crate's. A layer of your own is told by its kind alone:
    /// do not give it the name of another.
    ///
    /// # Example
    /// ```
    /// use relprop::io::StateDict;
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    /// use relprop::{Linear, Relu, Sequential};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], dvector![0.5])?).layer(Relu).build()?;
    /// let again = StateDict::from_safetensors(&model.to_safetensors()?)?.to_model::<f64>()?;
    /// assert_eq!(again.to_string(), model.to_string());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn to_safetensors(&self) -> Result<Vec<u8>, Error> {
        let mut tensors = Vec::new();
        for node in self.nodes() {
            let known = matches!(node.bound, Bound::Branches { .. }) || architecture::parse::<T>(&describe(&*node.layer)).is_ok();
            if !known {
                return Err(Error::NotWritable { layer: node.index, kind: node.layer.kind().to_owned() });
            }
            for (name, shape, values) in node.layer.tensors() {
                tensors.push((format!("{}.{name}", node.name), shape, bytes(values.into_iter())));
            }
        }
        let dtype = if size_of::<T>() == 4 { Dtype::F32 } else { Dtype::F64 };
        let views = tensors.iter().map(|(name, shape, bytes)| Ok((name, TensorView::new(dtype, shape.clone(), bytes)?)));
        let views: Vec<_> = views.collect::<Result<_, _>>().map_err(|e| malformed(&e))?;
        let dims: Vec<String> = self.input_shape().dims().iter().map(usize::to_string).collect();
        let metadata = HashMap::from([(ARCHITECTURE.to_owned(), self.to_string()), (INPUT.to_owned(), dims.join(" "))]);
        safetensors::serialize(views, Some(metadata)).map_err(|e| malformed(&e))
    }

    /// Writes [`to_safetensors`](Self::to_safetensors) to a file.
    ///
    /// # Errors
    /// [`Error::NotWritable`], [`Error::Io`].
    pub fn write_safetensors(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let bytes = self.to_safetensors()?;
        std::fs::write(path, bytes).map_err(|source| Error::io(path, source))
    }

    /// Reads a model from a safetensors file that says its architecture: [`StateDict::open`], [`StateDict::to_model`].
    ///
    /// # Errors
    /// Those of both.
    pub fn read_safetensors(path: impl AsRef<Path>) -> Result<Self, Error> {
        StateDict::open(path)?.to_model()
    }
}

/// The numbers in their own type, little-endian.
fn bytes<T: Scalar>(values: impl Iterator<Item = T>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for value in values {
        #[allow(clippy::cast_possible_truncation)] // a T of four bytes is an f32, and exactly representable
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
