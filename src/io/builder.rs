//! Models of named tensors and an architecture.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::StateDict;
use super::architecture::{self, Module, Weighted, join};
use crate::error::{Error, Misshapen};
use crate::layer::Layer;
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};
use crate::shape::Shape;

/// Collects the layers of a model whose weights are in a [`StateDict`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct StateDictBuilder<'a, T: Scalar> {
    pub(super) weights: &'a StateDict,
    pub(super) modules: Vec<(String, Module<T>)>,
    pub(super) input: Option<Shape>,
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
    /// tensor that is not of floating point; [`Error::Io`]; [`Error::NonFiniteWeight`] and [`Error::NonFiniteBias`], with the tensor's
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

/// A tensor that two of a module's layers ask for, if there is one: a file of a few bytes would make a large model.
pub(super) fn asked_twice<T: Scalar>(module: &Module<T>) -> Option<String> {
    let mut asked = Vec::new();
    ask(module, "", &mut asked);
    let mut seen = BTreeSet::new();
    asked.into_iter().map(|(name, _)| name).find(|name| !seen.insert(name.clone()))
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

/// Says in an error about one layer's weights which tensors they were.
fn name_layer(mut error: Error, name: &str) -> Error {
    if let Error::NonFiniteWeight { kind, .. } | Error::NonFiniteBias { kind, .. } | Error::ZeroSized { kind, .. } = &mut error {
        *kind = format!("{kind} {name}");
    }
    error
}
