//! Weights from files and models to files.
//!
//! A [`StateDict`] is named tensors, whatever file they came from. It becomes a model in one of two
//! ways: the caller gives the architecture ([`StateDict::builder`]), or the file carries it
//! ([`StateDict::to_model`]). Such a file is written by
//! [`Sequential::write_safetensors`](crate::Sequential::write_safetensors), or from PyTorch, for a
//! `net` that is an `nn.Sequential`, which may hold others, and a batch `x` of samples, by
//!
//! ```text
//! from safetensors.torch import save_file
//! from torch import nn
//!
//! for pool in (nn.AvgPool1d, nn.AvgPool2d):  # PyTorch prints only some of their settings
//!     pool.extra_repr = lambda self: ", ".join(f"{name}={getattr(self, name)}" for name in self.__constants__)
//! shape = " ".join(map(str, x.shape[1:]))
//! save_file(net.state_dict(), "model.safetensors", {"architecture": repr(net), "input": shape})
//! ```
//!
//! The text is what `print(net)` shows. PyTorch does not print what a `forward` does. So a class of
//! your own that holds one module is taken for that module, and one that holds several is refused:
//! where its forward applies them one after another and does nothing else, write `Sequential` in
//! the place of its name. Branches are groups named `Residual` (their sum) and `Concat`, modules of
//! your own whose children are the branches:
//!
//! ```text
//! class Residual(nn.Sequential):
//!     def forward(self, x):
//!         return sum(branch(x) for branch in self)
//! ```
//!
//! PyTorch does not print the settings `ceil_mode`, `count_include_pad` and `divisor_override` of
//! an average pooling unless the lines above have it do so. Where the text does not say them and
//! they could make a difference, they are taken to be the usual ones, and
//! [`Sequential::check`](crate::Sequential::check) finds
//! [`Code::AssumedSettings`](crate::Code::AssumedSettings). Every other argument of a layer is
//! understood, is without effect after training, or is refused.
//!
//! # Safety of the readers
//!
//! A file may be truncated, lie about its sizes or be made to harm: it is an error, never a panic,
//! and nothing in it is run. Nothing is allocated by what a file claims, only by what it holds: to
//! read a file, or to make a model of it, takes at most 256 bytes for each of its bytes (and of
//! those beside an ONNX model) and 1 MiB; 1,288 for each byte of a compressed archive, as deflate
//! makes up to 1,032 of one.

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
// No format has need of all of it.
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

/// Named tensors, as PyTorch's `state_dict()` gives them, and the architecture if the file says it.
///
/// ```
/// use relprop::io::StateDict;
/// use relprop::nalgebra::{self, dmatrix, dvector};
/// use relprop::{Linear, Relu, Sequential};
///
/// # let file = Sequential::builder().layer(Linear::new(dmatrix![1.0_f32, 2.0], dvector![0.5])?).build()?.to_safetensors()?;
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
    /// What is in the file but is no tensor of numbers, by its name: what it is, and what to do.
    left_out: BTreeMap<String, Arc<str>>,
}

/// The keys of the metadata that hold a model's layers and the shape of a sample.
const ARCHITECTURE: &str = "architecture";
const INPUT: &str = "input";

/// The formats of weights.
const FORMATS: &str = "safetensors, PyTorch's .pt and .pth, and NumPy's .npz and .npy";

/// One to three sizes.
fn shape(dims: &[usize]) -> Option<Shape> {
    match *dims {
        [size] => Some(size.into()),
        [channels, length] => Some([channels, length].into()),
        [channels, height, width] => Some([channels, height, width].into()),
        _ => None,
    }
}

impl StateDict {
    /// Opens a file of weights; its first bytes tell which format it has, not its name:
    ///
    /// | format | feature | from bytes |
    /// |---|---|---|
    /// | safetensors | `safetensors` | [`from_safetensors`](Self::from_safetensors) |
    /// | PyTorch's `.pt` and `.pth` | `pytorch` | [`from_pytorch`](Self::from_pytorch) |
    /// | NumPy's `.npz` and `.npy` | `npz` | [`from_npz`](Self::from_npz) |
    ///
    /// Its tensors are read when they are asked for, so the file has to stay as it is until then.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`], also for a format whose feature is off.
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

    /// A tensor's shape, `None` where there is no such tensor. Nothing of it is read.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// What else the file says under this key, such as the names of the outputs if its writer put
    /// them there.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A tensor's shape and its values in C order; f16, bf16, f32 and f64 are converted.
    ///
    /// # Errors
    /// [`Error::StateDict`] where there is no such tensor, [`Error::Malformed`] where its numbers
    /// are of another type, and [`Error::Io`], as a file's tensors are read when they are asked
    /// for.
    pub fn tensor<T: Scalar>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>), Error> {
        let missing = || {
            let notes = self.left_out.get(name).map(|what| format!("{name} is {what}"));
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

    /// The tensors whose names begin with `prefix` and a dot, without both: one module of a larger
    /// model.
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

    /// Whether the file says the model's architecture, so that [`to_model`](Self::to_model) can be
    /// used.
    #[must_use]
    pub fn has_architecture(&self) -> bool {
        self.metadata.contains_key(ARCHITECTURE)
    }

    /// The model whose architecture the file says, in lines as PyTorch prints the layers; the
    /// tensors of the layer in line i, from 0, are `i.weight` and `i.bias`.
    ///
    /// # Errors
    /// [`Error::Malformed`] without an architecture or with a line that is no layer of this crate;
    /// then those of [`StateDictBuilder::build`].
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        let says_none = || {
            malformed(
                "the file has weights, but does not say its architecture: give it with \
                 StateDict::model_of as PyTorch prints the \
                 network, or write it into the file with the line of Python in the documentation \
                 of relprop::io"
                    .to_owned(),
            )
        };
        let architecture = self.metadata(ARCHITECTURE).ok_or_else(says_none)?;
        let unusable =
            |text| malformed(format!("'{}' is no input shape", architecture::shortened(text)));
        let sizes = |text: &str| {
            text.split_whitespace().map(|dim| dim.parse().ok()).collect::<Option<Vec<usize>>>()
        };
        let input = |text| sizes(text).and_then(|dims| shape(&dims)).ok_or_else(|| unusable(text));
        let input = self.metadata(INPUT).map(input).transpose()?;
        self.model_of(architecture, input)
    }

    /// The model of these tensors and an architecture in the words of PyTorch: what `print(net)`
    /// shows of an `nn.Sequential`, which may hold others, and `Residual(…)` and `Concat(…)` with
    /// their branches as children. The names are those of the state dict; `()` is a name that adds
    /// nothing to it. Of another class that holds one module, that module is taken.
    ///
    /// Where the tensors do not fit as they are, but under exactly one prefix, those are taken
    /// ([`StateDictBuilder::build`]).
    ///
    /// `input` is the shape of a sample; a model that begins with a dense layer needs none.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the text is no architecture, and those of
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
    /// let model = StateDict::open("net.safetensors")?.model_of::<f32>(text, Some(Shape::from([3, 32, 32])))?;
    /// # let _ = model;
    /// # Ok(())
    /// # }
    /// ```
    pub fn model_of<T: Scalar>(
        &self,
        architecture: &str,
        input: Option<Shape>,
    ) -> Result<Sequential<T>, Error> {
        let module = architecture::parse(architecture).map_err(malformed)?;
        if let Some(name) = builder::asked_twice(&module) {
            return Err(malformed(format!(
                "two layers ask for tensor {}",
                architecture::shortened(&name)
            )));
        }
        StateDictBuilder { weights: self, modules: vec![(String::new(), module)], input }.build()
    }

    /// Starts a model of these tensors whose architecture the caller gives.
    pub fn builder<T: Scalar>(&self) -> StateDictBuilder<'_, T> {
        StateDictBuilder { weights: self, modules: Vec::new(), input: None }
    }
}

/// The entries whose names are within a module, with the rest of their names.
fn under<'a, V>(
    named: &'a BTreeMap<String, V>,
    module: &str,
) -> impl Iterator<Item = (&'a str, &'a V)> {
    // They follow one another: only names that begin with `module.` lie between two that do.
    let stem = if module.is_empty() { String::new() } else { format!("{module}.") };
    named
        .range(stem.clone()..)
        .map_while(move |(name, value)| Some((name.strip_prefix(&*stem)?, value)))
}

/// What is said of a file that is none of weights, or whose reader is switched off.
fn not_weights(what: &str) -> String {
    let needs = |feature: &str| {
        format!("it is {what}: switch on the feature `{feature}` of the crate to read it")
    };
    match what {
        recognize::SAFETENSORS if cfg!(not(feature = "safetensors")) => needs("safetensors"),
        recognize::CHECKPOINT if cfg!(not(feature = "pytorch")) => needs("pytorch"),
        recognize::ARRAY | recognize::ARRAYS if cfg!(not(feature = "npz")) => needs("npz"),
        recognize::ARCHIVE if cfg!(not(any(feature = "npz", feature = "pytorch"))) => {
            needs("pytorch` or `npz")
        }
        recognize::ARCHIVE => {
            "it is a zip archive with neither a checkpoint of PyTorch (data.pkl) nor an array of \
             NumPy (.npy)"
                .into()
        }
        recognize::ONNX => {
            format!(
                "it is {what}, which has its architecture with it: read it with \
                Sequential::read_onnx (feature `onnx`)"
            )
        }
        _ => recognize::instead(Some(what), FORMATS),
    }
}

fn malformed(reason: String) -> Error {
    Error::Malformed { format: "model".to_owned(), reason }
}
