//! Reading weights and models from files, and writing models to files.
//!
//! A [`StateDict`] holds the named tensors of a file. It becomes a model in one of two ways: the
//! caller gives the architecture ([`StateDict::builder`]), or the file contains it
//! ([`StateDict::to_model`]).
//! [`Sequential::write_safetensors`](crate::Sequential::write_safetensors) writes a file that
//! contains the architecture. In PyTorch, the following lines do the same. Here, `net` is an
//! `nn.Sequential`, which may contain others, and `x` is a batch of samples:
//!
//! ```text
//! from safetensors.torch import save_file
//! from torch import nn
//!
//! for pool in (nn.AvgPool1d, nn.AvgPool2d):  # PyTorch prints only some of their settings
//!     pool.extra_repr = lambda self: ", ".join(
//!         f"{name}={getattr(self, name)}" for name in self.__constants__
//!     )
//! shape = " ".join(map(str, x.shape[1:]))
//! save_file(net.state_dict(), "model.safetensors", {"architecture": repr(net), "input": shape})
//! ```
//!
//! The architecture is the text that `print(net)` shows. This text does not include what a
//! `forward` method does. A class of your own that holds one module is therefore read as that
//! module, and a class that holds several is rejected. If the `forward` method of such a class only
//! applies its modules one after another, replace the name of the class with `Sequential`. Modules
//! named `Residual` (the sum of its branches) and `Concat` are read as branches. Define them as
//! classes of your own whose children are the branches:
//!
//! ```text
//! class Residual(nn.Sequential):
//!     def forward(self, x):
//!         return sum(branch(x) for branch in self)
//! ```
//!
//! PyTorch prints the settings `ceil_mode`, `count_include_pad` and `divisor_override` of an
//! average pooling only with the `extra_repr` above. If the text does not contain them and they
//! could make a difference, the defaults are assumed, and
//! [`Graph::check`](crate::Graph::check) reports
//! [`Code::AssumedSettings`](crate::Code::AssumedSettings). Every other argument of a layer is
//! either supported, without effect after training, or rejected.
//!
//! # Safety of the readers
//!
//! A file that is truncated, malicious or wrong about its sizes causes an error, never a panic, and
//! nothing in it is executed. The memory allocated depends on what a file holds, not on what it
//! claims. Reading a file or making a model from it allocates at most 1 MiB plus 256 bytes for
//! each byte of the file (and of an ONNX model's external data). For a compressed archive, the
//! limit is 1,288 bytes for each byte, because deflate can expand one byte to 1,032.

mod architecture;
#[cfg(any(feature = "npz", feature = "pytorch"))]
mod archive;
mod builder;
#[cfg(feature = "npz")]
mod npz;
#[cfg(feature = "onnx")]
mod onnx;
#[cfg(feature = "pytorch")]
mod pytorch;
mod recognize;
#[cfg(feature = "safetensors")]
mod safetensors;
// No single format uses all of it.
#[cfg_attr(
    not(all(feature = "npz", feature = "onnx", feature = "pytorch", feature = "safetensors")),
    allow(dead_code)
)]
mod tensor;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::Sequential;
use crate::shape::Shape;
pub use builder::StateDictBuilder;
#[cfg(feature = "onnx")]
pub use onnx::OnnxFile;
use tensor::{Data, Tensor};

/// Named tensors, as in PyTorch's `state_dict()`, and the architecture if the file contains it.
///
/// ```
/// use relprop::io::StateDict;
/// use relprop::nalgebra::{self, dmatrix, dvector};
/// use relprop::{Linear, Relu, Sequential};
///
/// # let layer = Linear::new(dmatrix![1.0_f32, 2.0], dvector![0.5])?;
/// # let file = Sequential::builder().layer(layer).build()?.to_safetensors()?;
/// let weights = StateDict::from_safetensors(&file)?; // or StateDict::open("model.safetensors")?
/// let model = weights.builder::<f32>().linear("0", 2, 1).layer(Relu).build()?;
/// assert_eq!(model.forward(&dvector![1.0, 1.0])?, dvector![3.5]);
///
/// let error = weights.builder::<f32>().linear("0", 3, 1).build().unwrap_err();
/// assert!(error.to_string().contains("0.weight: the shape is [1, 2], not [1, 3]"));
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct StateDict {
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
    /// For each object in the file that is not a tensor of numbers, what it is and what to do.
    left_out: BTreeMap<String, Arc<str>>,
}

/// The keys of the metadata that hold a model's layers and the shape of a sample.
const ARCHITECTURE: &str = "architecture";
const INPUT: &str = "input";

/// The formats that hold weights.
const FORMATS: &str = "safetensors, PyTorch (.pt, .pth) and NumPy (.npz, .npy) files";

/// The shape with these one to three sizes.
fn shape(dims: &[usize]) -> Option<Shape> {
    match *dims {
        [size] => Some(size.into()),
        [channels, length] => Some([channels, length].into()),
        [channels, height, width] => Some([channels, height, width].into()),
        _ => None,
    }
}

impl StateDict {
    /// Opens a file of weights.
    ///
    /// The format is recognized by the file's first bytes, not by its name:
    ///
    /// | format | feature | from bytes |
    /// |---|---|---|
    /// | safetensors | `safetensors` | [`from_safetensors`](Self::from_safetensors) |
    /// | PyTorch's `.pt` and `.pth` | `pytorch` | [`from_pytorch`](Self::from_pytorch) |
    /// | NumPy's `.npz` and `.npy` | `npz` | [`from_npz`](Self::from_npz) |
    ///
    /// Tensors are read on demand, so the file must not change while they are still needed.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Malformed`], also if the crate feature for the format is off.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        Self::of_data(&Data::of_file(path)?).map_err(|error| error.in_file(path))
    }

    fn of_data(whole: &Data) -> Result<Self, Error> {
        let beginning = whole.beginning(recognize::ENOUGH)?;
        let what = recognize::recognize(&beginning);
        #[cfg(any(feature = "npz", feature = "pytorch"))]
        if beginning.starts_with(archive::Archive::MAGIC) {
            let archive = archive::Archive::open(whole)?;
            #[cfg(feature = "pytorch")]
            // Both formats are zip archives, and the names of their files tell them apart.
            if pytorch::is_checkpoint(&archive)? {
                return Self::of_checkpoint(archive);
            }
            let names = archive.names()?;
            #[cfg(feature = "npz")]
            if npz::has_arrays(&names) {
                return Self::of_npz(archive);
            }
            return Err(malformed(not_weights(
                recognize::of_archive(&names).unwrap_or(recognize::ARCHIVE),
            )));
        }
        #[cfg(feature = "npz")]
        if beginning.starts_with(npz::MAGIC) {
            return Self::of_npy(whole);
        }
        #[cfg(feature = "pytorch")]
        if pytorch::is_legacy(&beginning) {
            return Self::of_legacy(whole);
        }
        #[cfg(feature = "safetensors")]
        if what == Some(recognize::SAFETENSORS) {
            return Self::of_safetensors(whole);
        }
        Err(malformed(what.map_or_else(|| recognize::instead(None, FORMATS), not_weights)))
    }

    #[cfg(any(feature = "npz", feature = "pytorch"))]
    fn of(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        Self {
            tensors: tensors.into_iter().collect(),
            metadata: BTreeMap::new(),
            left_out: BTreeMap::new(),
        }
    }

    /// The tensors' names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, or `None` if there is no such tensor. This does not read the tensor.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// An entry of the file's metadata, such as the names of the outputs if the writer of the file
    /// stored them.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The shape of a tensor and its values in C order.
    ///
    /// The values are converted from f16, bf16, f32 or f64, and in NumPy and PyTorch files from
    /// integers too.
    ///
    /// # Errors
    /// [`Error::StateDict`] if there is no such tensor, [`Error::Malformed`] if its numbers have an
    /// unsupported type, and [`Error::Io`], because tensors are read from the file on demand.
    pub fn tensor<T: Scalar>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>), Error> {
        let missing = || {
            let notes = self.left_out.get(name).map(|what| format!("{name} is {what}"));
            // A left-out tensor is in the file, so it is not listed as missing.
            let missing = notes.is_none().then(|| name.to_owned());
            Error::StateDict {
                missing: missing.into_iter().collect(),
                surplus: Vec::new(),
                misshapen: Vec::new(),
                notes: notes.into_iter().collect(),
            }
        };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        Ok((tensor.shape.clone(), tensor.convert(name)?))
    }

    /// The tensors of one module of a larger model.
    ///
    /// These are the tensors whose names begin with `prefix` and a dot; both are removed from the
    /// names.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        fn own<V: Clone>(named: &BTreeMap<String, V>, module: &str) -> BTreeMap<String, V> {
            under(named, module).map(|(name, value)| (name.to_owned(), value.clone())).collect()
        }
        Self {
            tensors: own(&self.tensors, prefix),
            metadata: self.metadata.clone(),
            left_out: own(&self.left_out, prefix),
        }
    }

    /// Whether the file contains the model's architecture, which [`to_model`](Self::to_model)
    /// requires.
    #[must_use]
    pub fn has_architecture(&self) -> bool {
        self.metadata.contains_key(ARCHITECTURE)
    }

    /// Builds the model from the architecture in the file.
    ///
    /// The architecture is the text that [`model_of`](Self::model_of) accepts, or one layer per
    /// line as PyTorch prints it. In the latter case, the tensors of the layer in line i, counted
    /// from 0, are `i.weight` and `i.bias`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the file contains no architecture, or one with a layer that this
    /// crate does not have; and the errors of [`StateDictBuilder::build`].
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        let no_architecture = || {
            malformed(
                "the file has weights, but no architecture: pass the text that PyTorch prints for \
                 the network to StateDict::model_of, or store it in the file with the Python code \
                 in the documentation of relprop::io"
                    .to_owned(),
            )
        };
        let architecture = self.metadata(ARCHITECTURE).ok_or_else(no_architecture)?;
        let unusable = |text| {
            malformed(format!(
                "'{}' is not an input shape: write one to three sizes, separated by spaces",
                architecture::shortened(text)
            ))
        };
        let sizes = |text: &str| {
            text.split_whitespace().map(|dim| dim.parse().ok()).collect::<Option<Vec<usize>>>()
        };
        let input = |text| sizes(text).and_then(|dims| shape(&dims)).ok_or_else(|| unusable(text));
        let input = self.metadata(INPUT).map(input).transpose()?;
        self.model_of(architecture, input)
    }

    /// Builds a model from these tensors and an architecture as PyTorch prints it.
    ///
    /// The architecture is the text that `print(net)` shows for an `nn.Sequential`. It may contain
    /// other `nn.Sequential`s, and `Residual(…)` and `Concat(…)` with their branches as children. A
    /// module of any other class that holds one module is read as that module. The layers have the
    /// names that they have in the state dict. A module with the empty name, `()`, adds nothing to
    /// the names of its children.
    ///
    /// If the tensors fit the architecture only under a prefix, and exactly one prefix fits, the
    /// tensors under it are used ([`StateDictBuilder::build`]).
    ///
    /// `input` is the shape of a sample; a model that begins with a dense layer does not need it.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the text is not an architecture, and the errors of
    /// [`StateDictBuilder::build`].
    ///
    /// # Example
    /// ```no_run
    /// # fn main() -> Result<(), relprop::Error> {
    /// use relprop::Shape;
    /// use relprop::io::StateDict;
    ///
    /// let text = "Sequential(
    ///   (features): Sequential(
    ///     (0): Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    ///     (1): ReLU()
    ///   )
    ///   (pool): AdaptiveAvgPool2d(output_size=1)
    ///   (flatten): Flatten(start_dim=1, end_dim=-1)
    ///   (head): Linear(in_features=16, out_features=10, bias=True)
    /// )";
    /// let weights = StateDict::open("net.safetensors")?;
    /// let model = weights.model_of::<f32>(text, Some(Shape::from([3, 32, 32])))?;
    /// # let _ = model;
    /// # Ok(())
    /// # }
    /// ```
    pub fn model_of<T: Scalar>(
        &self,
        architecture: &str,
        input: Option<Shape>,
    ) -> Result<Sequential<T>, Error> {
        (T::compiled().model_of)(self, architecture, input)
    }

    pub(crate) fn model_of_inner<T: Scalar>(
        &self,
        architecture: &str,
        input: Option<Shape>,
    ) -> Result<Sequential<T>, Error> {
        let module = architecture::parse(architecture).map_err(malformed)?;
        if let Some(name) = builder::asked_twice(&module) {
            return Err(malformed(format!(
                "the architecture has two layers that need the tensor {}: give each layer its own \
                 name",
                architecture::shortened(&name)
            )));
        }
        StateDictBuilder { weights: self, modules: vec![(String::new(), module)], input }.build()
    }

    /// Returns a builder for a model with these tensors.
    pub fn builder<T: Scalar>(&self) -> StateDictBuilder<'_, T> {
        StateDictBuilder { weights: self, modules: Vec::new(), input: None }
    }
}

/// The entries whose names are within a module, each with the rest of its name.
fn under<'a, V>(
    named: &'a BTreeMap<String, V>,
    module: &str,
) -> impl Iterator<Item = (&'a str, &'a V)> {
    // In alphabetical order, the names that begin with `module.` are contiguous.
    let stem = if module.is_empty() { String::new() } else { format!("{module}.") };
    named
        .range(stem.clone()..)
        .map_while(move |(name, value)| Some((name.strip_prefix(&*stem)?, value)))
}

/// The reason for rejecting a file that does not hold weights or whose reader is disabled.
fn not_weights(what: &str) -> String {
    let needs =
        |feature: &str| format!("it is {what}: enable the crate feature `{feature}` to read it");
    match what {
        recognize::SAFETENSORS if cfg!(not(feature = "safetensors")) => needs("safetensors"),
        recognize::CHECKPOINT if cfg!(not(feature = "pytorch")) => needs("pytorch"),
        recognize::ARRAY | recognize::ARRAYS if cfg!(not(feature = "npz")) => needs("npz"),
        recognize::ARCHIVE if cfg!(not(any(feature = "npz", feature = "pytorch"))) => {
            needs("pytorch` or `npz")
        }
        recognize::ARCHIVE => {
            "it is a zip archive with neither a PyTorch checkpoint (data.pkl) nor a NumPy array \
             (.npy): give a file written by torch.save or numpy.savez"
                .into()
        }
        recognize::ONNX => {
            format!(
                "it is {what}, which contains its architecture: read it with \
                Graph::read_onnx (feature `onnx`)"
            )
        }
        _ => recognize::instead(Some(what), FORMATS),
    }
}

fn malformed(reason: String) -> Error {
    Error::Malformed { format: "model".to_owned(), reason }
}
