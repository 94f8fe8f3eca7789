//! Weights from files and models to files.
//!
//! A [`StateDict`] is named tensors, whatever file they came from. It becomes a model in one of two ways: the caller gives
//! the architecture ([`StateDict::builder`]), or the file carries it ([`StateDict::to_model`]). Such a file is written by
//! [`Sequential::write_safetensors`](crate::Sequential::write_safetensors), or from PyTorch, for a `net` that is an
//! `nn.Sequential`, by
//!
//! ```text
//! from safetensors.torch import save_file
//! save_file(net.state_dict(), "model.safetensors", {"architecture": repr(net), "input": "3 224 224"})
//! ```
//!
//! `input` is the shape of a sample; a network that begins with a dense layer needs none. Branches are groups named `Residual`
//! (their sum) and `Concat`, modules of your own whose children are the branches:
//!
//! ```text
//! class Residual(nn.Sequential):
//!     def forward(self, x):
//!         return sum(branch(x) for branch in self)
//! ```
//!
//! PyTorch does not print the last two settings of an average pooling, `ceil_mode` and `count_include_pad`: where they are not
//! the usual ones, write them into the text.
//!
//! # Safety of the reader
//!
//! A file may be truncated, lie about its sizes or be made to harm: it is an error, never a panic. Nothing is allocated by
//! what a file claims, only by what it holds: its header, one tensor at a time, and the model's weights in its number type.

mod architecture;
mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Misshapen};
use crate::layer::Layer;
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};
use crate::shape::Shape;
use architecture::{Module, Weighted, join};

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
}

/// The keys of the metadata under which a model's layers and the shape of a sample stand.
const ARCHITECTURE: &str = "architecture";
const INPUT: &str = "input";

#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    number: Number,
    data: Data,
}

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

/// The type of a tensor's numbers.
#[derive(Debug, Clone)]
enum Number {
    F16,
    BF16,
    F32,
    F64,
    /// One that is not read.
    Other(String),
}

/// Where a tensor's bytes are.
#[derive(Debug, Clone)]
enum Data {
    Held(Arc<[u8]>),
    /// In a file, from a place on: they are read when they are asked for, so that a model is never in memory twice.
    InFile {
        path: Arc<PathBuf>,
        at: u64,
        length: usize,
    },
}

impl StateDict {
    /// Opens a safetensors file. Its tensors are read when they are asked for, so the file has to stay as it is until then.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::open_safetensors(path.as_ref())
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

    /// What else the file says under this key, such as the names of the outputs if its writer put them there.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// A tensor's shape and its values in C order; f16, bf16, f32 and f64 are converted.
    ///
    /// # Errors
    /// [`Error::StateDict`] where there is no such tensor, [`Error::Malformed`] where its numbers are of another type.
    pub fn tensor<T: Scalar>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>), Error> {
        let missing = || Error::StateDict { missing: vec![name.to_owned()], surplus: Vec::new(), misshapen: Vec::new() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        Ok((tensor.shape.clone(), tensor.convert(name)?))
    }

    /// The tensors whose names begin with `prefix` and a dot, without both: one module of a larger model.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        let inner = |name: &str| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
        let tensors = self.tensors.iter().filter_map(|(name, tensor)| Some((inner(name)?, tensor.clone())));
        Self { tensors: tensors.collect(), metadata: self.metadata.clone() }
    }

    /// Whether the file says the model's architecture, so that [`to_model`](Self::to_model) can be used.
    #[must_use]
    pub fn has_architecture(&self) -> bool {
        self.metadata.contains_key(ARCHITECTURE)
    }

    /// The model whose architecture the file says, in lines as PyTorch prints the layers; the tensors of the layer in
    /// line i, from 0, are `i.weight` and `i.bias`.
    ///
    /// # Errors
    /// [`Error::Malformed`] without an architecture or with a line that is no layer of this crate; then those of
    /// [`StateDictBuilder::build`].
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        let says_none = || malformed("it does not say its architecture".to_owned());
        let architecture = self.metadata(ARCHITECTURE).ok_or_else(says_none)?;
        let unusable = |text| malformed(format!("'{}' is no input shape", architecture::shortened(text)));
        let input = self.metadata(INPUT).map(|text| shape(text).ok_or_else(|| unusable(text))).transpose()?;
        self.model_of(architecture, input)
    }

    /// The model of these tensors and an architecture in the words of PyTorch: what `print(net)` shows of an `nn.Sequential`,
    /// which may hold others, and `Residual(…)` and `Concat(…)` with their branches as children. The names are those of the
    /// state dict; `()` is a name that adds nothing to it.
    ///
    /// `input` is the shape of a sample; a model that begins with a dense layer needs none.
    ///
    /// # Errors
    /// [`Error::Malformed`] where the text is no architecture, and those of [`StateDictBuilder::build`].
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
    pub fn model_of<T: Scalar>(&self, architecture: &str, input: Option<Shape>) -> Result<Sequential<T>, Error> {
        let module = architecture::parse(architecture).map_err(malformed)?;
        StateDictBuilder { weights: self, modules: vec![(String::new(), module)], input }.build()
    }

    /// Starts a model of these tensors whose architecture the caller gives.
    pub fn builder<T: Scalar>(&self) -> StateDictBuilder<'_, T> {
        StateDictBuilder { weights: self, modules: Vec::new(), input: None }
    }
}

impl Tensor {
    fn convert<T: Scalar>(&self, name: &str) -> Result<Vec<T>, Error> {
        match &self.number {
            Number::F16 => self.numbers(|b| half::f16::from_le_bytes(b).to_f64()),
            Number::BF16 => self.numbers(|b| half::bf16::from_le_bytes(b).to_f64()),
            Number::F32 => self.numbers(|b| f64::from(f32::from_le_bytes(b))),
            Number::F64 => self.numbers(f64::from_le_bytes),
            Number::Other(kind) => Err(malformed(format!("tensor {name} is of type {kind}, weights are f16, bf16, f32 or f64"))),
        }
    }

    fn numbers<T: Scalar, const N: usize>(&self, number: impl Fn([u8; N]) -> f64) -> Result<Vec<T>, Error> {
        let convert = |bytes: &[u8], numbers: &mut Vec<T>| {
            numbers.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| T::from_f64(number(bytes))));
        };
        match &self.data {
            Data::Held(bytes) => {
                let mut numbers = Vec::with_capacity(bytes.len() / N);
                convert(bytes, &mut numbers);
                Ok(numbers)
            }
            Data::InFile { path, at, length } => {
                const PART: usize = 1 << 20;
                let failed = |source| Error::io(path, source);
                let mut file = File::open(&**path).map_err(failed)?;
                file.seek(SeekFrom::Start(*at)).map_err(failed)?;
                let mut numbers = Vec::with_capacity(length / N);
                let mut part = vec![0; PART.min(*length)];
                for from in (0..*length).step_by(PART) {
                    let part = &mut part[..PART.min(length - from)];
                    file.read_exact(part).map_err(failed)?;
                    convert(part, &mut numbers);
                }
                Ok(numbers)
            }
        }
    }
}

/// Collects the layers of a model whose weights are in a [`StateDict`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StateDictBuilder<'a, T: Scalar> {
    weights: &'a StateDict,
    modules: Vec<(String, Module<T>)>,
    input: Option<Shape>,
}

impl<T: Scalar> StateDictBuilder<'_, T> {
    /// The shape of a sample; a model whose first layer is dense need not be told.
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// Adds a dense layer with the tensors `name.weight`, of shape outputs x inputs, and `name.bias`.
    pub fn linear(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.modules.push((name.to_owned(), Module::Weighted(Weighted::Linear { inputs, outputs, bias: true })));
        self
    }

    /// The same without a bias.
    pub fn linear_without_bias(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.modules.push((name.to_owned(), Module::Weighted(Weighted::Linear { inputs, outputs, bias: false })));
        self
    }

    /// Adds a layer that has no tensors, such as an activation.
    pub fn layer(mut self, layer: impl Layer<T> + 'static) -> Self {
        self.modules.push((self.modules.len().to_string(), Module::Layer(Arc::new(layer))));
        self
    }

    /// The model.
    ///
    /// # Errors
    /// [`Error::StateDict`] with all tensors that are missing, surplus or of another shape; [`Error::Malformed`] for a
    /// tensor that is not of floating point; [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`], with the tensor's
    /// name; and those of [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn build(self) -> Result<Sequential<T>, Error> {
        let Self { weights, modules, input } = self;
        let module = Module::Sequential(modules);
        weights.check(&module)?;
        let mut make = |name: &str, weighted: &Weighted| {
            let tensors = weighted.tensors().into_iter().map(|(own, _)| Ok(weights.tensor(&join(name, own))?.1));
            let tensors = tensors.collect::<Result<Vec<Vec<T>>, Error>>()?;
            weighted.layer(tensors).map_err(|error| name_layer(error, name))
        };
        let branch = architecture::branch(&module, &mut make, "")?;
        let builder: SequentialBuilder<T> = branch.into();
        input.into_iter().fold(builder, SequentialBuilder::input).build()
    }
}

impl StateDict {
    /// All tensors there, of the right shape, and no others.
    fn check<T: Scalar>(&self, module: &Module<T>) -> Result<(), Error> {
        let mut asked = Vec::new();
        ask(module, "", &mut asked);
        // How many batches a normalisation has seen is of no use here.
        let mut surplus: BTreeSet<&String> = self.tensors.keys().filter(|name| !name.ends_with("num_batches_tracked")).collect();
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        for (name, expected) in asked {
            match self.tensors.get(&name) {
                None => missing.push(name.clone()),
                Some(tensor) if tensor.shape != expected => {
                    misshapen.push(Misshapen { name: name.clone(), expected, found: tensor.shape.clone() });
                }
                Some(_) => {}
            }
            surplus.remove(&name);
        }
        if missing.is_empty() && surplus.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        Err(Error::StateDict { missing, surplus: surplus.into_iter().cloned().collect(), misshapen })
    }
}

/// The names and shapes of the tensors that a module asks for.
fn ask<T: Scalar>(module: &Module<T>, path: &str, asked: &mut Vec<(String, Vec<usize>)>) {
    match module {
        Module::Layer(_) => {}
        Module::Weighted(weighted) => {
            asked.extend(weighted.tensors().into_iter().map(|(name, shape)| (join(path, name), shape)));
        }
        Module::Sequential(children) | Module::Residual(children) | Module::Concat(children) => {
            for (name, child) in children {
                ask(child, &join(path, name), asked);
            }
        }
    }
}

fn malformed(reason: String) -> Error {
    Error::Malformed { format: "model".to_owned(), reason }
}

/// Says in an error about one layer's weights which tensors they were.
fn name_layer(mut error: Error, name: &str) -> Error {
    if let Error::NonFiniteWeight { kind, .. } | Error::NonFiniteBias { kind, .. } | Error::ZeroSized { kind, .. } = &mut error {
        *kind = format!("{kind} {name}");
    }
    error
}
