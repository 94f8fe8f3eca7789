//! Weights from files and models to files.
//!
//! A [`StateDict`] is named tensors, whatever file they came from. It becomes a model in one of two ways: the caller gives
//! the architecture ([`StateDict::builder`]), or the file carries it ([`StateDict::to_model`]). Such a file is written by
//! [`Sequential::write_safetensors`](crate::Sequential::write_safetensors), or from PyTorch, for a `net` that is an
//! `nn.Sequential`, by
//!
//! ```text
//! from safetensors.torch import save_file
//! save_file(net.state_dict(), "model.safetensors", {"architecture": "\n".join(map(repr, net))})
//! ```
//!
//! # Safety of the reader
//!
//! A file may be truncated, lie about its sizes or be made to harm: it is an error, never a panic. Nothing is allocated by
//! what a file claims, only by what it holds: the file, a copy of its tensors, and the model's weights in its number type.

mod architecture;
mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::error::{Error, Misshapen};
use crate::layer::{Layer, Linear};
use crate::scalar::Scalar;
use crate::sequential::Sequential;

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
    architecture: Option<String>,
}

#[derive(Debug, Clone)]
struct Tensor {
    shape: Vec<usize>,
    values: Values,
}

/// A tensor's numbers as the file has them, little-endian.
#[derive(Debug, Clone)]
enum Values {
    F16(Vec<u8>),
    BF16(Vec<u8>),
    F32(Vec<u8>),
    F64(Vec<u8>),
    /// A type that is no weight's, by name.
    Other(String),
}

impl StateDict {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_safetensors(&bytes)
    }

    /// The tensors' names, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape and its values in C order; f16, bf16, f32 and f64 are converted.
    ///
    /// # Errors
    /// [`Error::StateDict`] where there is no such tensor, [`Error::Malformed`] where its numbers are of another type.
    pub fn tensor<T: Scalar>(&self, name: &str) -> Result<(Vec<usize>, Vec<T>), Error> {
        let missing = || Error::StateDict { missing: vec![name.to_owned()], surplus: Vec::new(), misshapen: Vec::new() };
        let tensor = self.tensors.get(name).ok_or_else(missing)?;
        Ok((tensor.shape.clone(), tensor.values.convert(name)?))
    }

    /// The tensors whose names begin with `prefix` and a dot, without both: one module of a larger model.
    #[must_use]
    pub fn under(&self, prefix: &str) -> Self {
        let inner = |name: &str| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
        let tensors = self.tensors.iter().filter_map(|(name, tensor)| Some((inner(name)?, tensor.clone())));
        Self { tensors: tensors.collect(), architecture: self.architecture.clone() }
    }

    /// Whether the file says the model's architecture, so that [`to_model`](Self::to_model) can be used.
    #[must_use]
    pub fn has_architecture(&self) -> bool {
        self.architecture.is_some()
    }

    /// The model whose architecture the file says, in lines as PyTorch prints the layers; the tensors of the layer in
    /// line i, from 0, are `i.weight` and `i.bias`.
    ///
    /// # Errors
    /// [`Error::Malformed`] without an architecture or with a line that is no layer of this crate; then those of
    /// [`StateDictBuilder::build`].
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        let malformed = |reason| Error::Malformed { format: "model".to_owned(), reason };
        let text = self.architecture.as_ref().ok_or_else(|| malformed("it does not say its architecture".to_owned()))?;
        let mut builder = self.builder();
        for (index, line) in text.lines().enumerate() {
            let step = architecture::parse(line).map_err(|reason| malformed(format!("layer {index}: {reason}")))?;
            builder.steps.push(match step {
                architecture::Parsed::Linear { inputs, outputs, bias } => {
                    Step::Linear { name: index.to_string(), inputs, outputs, bias }
                }
                architecture::Parsed::Other(layer) => Step::Layer(layer),
            });
        }
        builder.build()
    }

    /// Starts a model of these tensors whose architecture the caller gives.
    pub fn builder<T: Scalar>(&self) -> StateDictBuilder<'_, T> {
        StateDictBuilder { weights: self, steps: Vec::new() }
    }
}

impl Values {
    fn convert<T: Scalar>(&self, name: &str) -> Result<Vec<T>, Error> {
        Ok(match self {
            Self::F16(bytes) => convert(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
            Self::BF16(bytes) => convert(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
            Self::F32(bytes) => convert(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Self::F64(bytes) => convert(bytes, f64::from_le_bytes),
            Self::Other(kind) => {
                let reason = format!("tensor {name} is of type {kind}, weights are f16, bf16, f32 or f64");
                return Err(Error::Malformed { format: "model".to_owned(), reason });
            }
        })
    }
}

fn convert<T: Scalar, const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&bytes| T::from_f64(number(bytes))).collect()
}

/// Collects the layers of a model whose weights are in a [`StateDict`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StateDictBuilder<'a, T: Scalar> {
    weights: &'a StateDict,
    steps: Vec<Step<T>>,
}

#[derive(Debug)]
enum Step<T: Scalar> {
    Linear { name: String, inputs: usize, outputs: usize, bias: bool },
    Layer(Box<dyn Layer<T>>),
}

impl<T: Scalar> StateDictBuilder<'_, T> {
    /// Adds a dense layer with the tensors `name.weight`, of shape outputs x inputs, and `name.bias`.
    pub fn linear(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.steps.push(Step::Linear { name: name.to_owned(), inputs, outputs, bias: true });
        self
    }

    /// The same without a bias.
    pub fn linear_without_bias(mut self, name: &str, inputs: usize, outputs: usize) -> Self {
        self.steps.push(Step::Linear { name: name.to_owned(), inputs, outputs, bias: false });
        self
    }

    /// Adds a layer that has no tensors, such as an activation.
    pub fn layer(mut self, layer: impl Layer<T> + 'static) -> Self {
        self.steps.push(Step::Layer(Box::new(layer)));
        self
    }

    /// The model.
    ///
    /// # Errors
    /// [`Error::StateDict`] with all tensors that are missing, surplus or of another shape; [`Error::Malformed`] for a
    /// tensor that is not of floating point; [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`], with the tensor's
    /// name; and those of [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn build(self) -> Result<Sequential<T>, Error> {
        self.check()?;
        let mut model = Sequential::builder();
        for step in self.steps {
            model = match step {
                Step::Layer(layer) => model.layer(layer),
                Step::Linear { name, inputs, outputs, bias } => {
                    let (_, weight) = self.weights.tensor(&format!("{name}.weight"))?;
                    let bias = if bias { Some(self.weights.tensor(&format!("{name}.bias"))?.1) } else { None };
                    let named = |error| name_layer(error, &name);
                    model.named(&name, Linear::from_rows(outputs, inputs, &weight, bias.as_deref()).map_err(named)?)
                }
            };
        }
        model.build()
    }

    /// All tensors there, of the right shape, and no others.
    fn check(&self) -> Result<(), Error> {
        let mut surplus: BTreeSet<&String> = self.weights.tensors.keys().collect();
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        let mut ask = |name: String, expected: Vec<usize>| {
            match self.weights.tensors.get(&name) {
                None => missing.push(name.clone()),
                Some(tensor) if tensor.shape != expected => {
                    misshapen.push(Misshapen { name: name.clone(), expected, found: tensor.shape.clone() });
                }
                Some(_) => {}
            }
            surplus.remove(&name);
        };
        for step in &self.steps {
            if let Step::Linear { name, inputs, outputs, bias } = step {
                ask(format!("{name}.weight"), vec![*outputs, *inputs]);
                if *bias {
                    ask(format!("{name}.bias"), vec![*outputs]);
                }
            }
        }
        if missing.is_empty() && surplus.is_empty() && misshapen.is_empty() {
            return Ok(());
        }
        Err(Error::StateDict { missing, surplus: surplus.into_iter().cloned().collect(), misshapen })
    }
}

/// Says in an error about one layer's weights which tensors they were.
fn name_layer(mut error: Error, name: &str) -> Error {
    if let Error::NonFiniteWeight { kind, .. } | Error::NonFiniteBias { kind, .. } | Error::ZeroSized { kind, .. } = &mut error {
        *kind = format!("{kind} {name}");
    }
    error
}
