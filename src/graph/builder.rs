//! Building a graph.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bind::Binder;
use super::declaration::{Declaration, Declarations, LayerDeclaration, Position, invalid};
use super::{Graph, Input, InputSource};
use crate::error::Error;
use crate::layer::{Join, Joined, Layer};
use crate::scalar::Scalar;
use crate::shape::{LARGEST, Shape};

/// A value of a graph that is being built: an input, a constant, or the output of a layer.
///
/// It belongs to the builder that returned it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The number of the builder.
    builder: u64,
    /// The position among the builder's declarations.
    index: usize,
}

impl ValueId {
    pub(super) fn index(self) -> usize {
        self.index
    }
}

/// The number of builders so far. Each builder is numbered, so that it recognizes its own values.
static BUILDERS: AtomicU64 = AtomicU64::new(0);

/// A builder for a [`Graph`]. Each method that adds something returns the new value.
///
/// Errors are reported by [`build`](Self::build).
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct GraphBuilder<T: Scalar> {
    declared: Declarations<T>,
    number: u64,
}

/// Checks that an input has a usable size.
pub(crate) fn check_input(of: &str, shape: Shape) -> Result<(), Error> {
    if shape.size() == 0 || shape.size() > LARGEST {
        let requirement = format!("a shape of at least one value and at most {LARGEST}");
        return Err(Error::parameter(of, "input", shape, &requirement));
    }
    Ok(())
}

impl<T: Scalar> Default for GraphBuilder<T> {
    fn default() -> Self {
        let number = BUILDERS.fetch_add(1, Ordering::Relaxed);
        let declared = Declarations { items: Vec::new(), outputs: Vec::new(), checks_names: false };
        Self { declared, number }
    }
}

impl<T: Scalar> GraphBuilder<T> {
    fn add(&mut self, item: Declaration<T>) -> ValueId {
        self.declared.items.push(item);
        ValueId { builder: self.number, index: self.declared.items.len() - 1 }
    }

    /// The position of a value, or `usize::MAX` for one of another builder, which is reported when
    /// the graph is built.
    fn position(&self, value: ValueId) -> usize {
        if value.builder == self.number { value.index } else { usize::MAX }
    }

    fn add_input(&mut self, name: &str, shape: Shape, source: InputSource<T>) -> ValueId {
        self.add(Declaration::Input(Input { name: name.to_owned(), shape, source }))
    }

    /// Adds an input of the model. Explanations give the relevance of its values.
    pub fn input(&mut self, name: &str, shape: impl Into<Shape>) -> ValueId {
        self.add_input(name, shape.into(), InputSource::Explained)
    }

    /// Adds a *given* input, such as a mask. Each sample has its own values, but they are not
    /// explained.
    ///
    /// The relevance that they receive is assigned to the sink
    /// [`Cause::Constant`](crate::Cause::Constant).
    pub fn given(&mut self, name: &str, shape: impl Into<Shape>) -> ValueId {
        self.add_input(name, shape.into(), InputSource::Given)
    }

    /// Adds a given input of whole numbers, such as the ids of tokens, which an
    /// [`Embedding`](crate::Embedding) looks up.
    pub fn given_whole(&mut self, name: &str, shape: impl Into<Shape>) -> ValueId {
        self.add_input(name, shape.into(), InputSource::Whole)
    }

    /// Adds values that are the same for every sample, in C order.
    ///
    /// The relevance that they receive is assigned to the sink
    /// [`Cause::Constant`](crate::Cause::Constant).
    pub fn constant(
        &mut self,
        name: &str,
        shape: impl Into<Shape>,
        values: impl Into<Arc<[T]>>,
    ) -> ValueId {
        self.add_input(name, shape.into(), InputSource::Constant(values.into()))
    }

    /// Adds a layer that reads these values. Its name is its position among the layers, counted
    /// from 0.
    pub fn layer(
        &mut self,
        layer: impl Layer<T> + 'static,
        inputs: impl IntoIterator<Item = ValueId>,
    ) -> ValueId {
        self.declare(None, Arc::new(layer), inputs)
    }

    /// Adds a layer with a name.
    pub fn named(
        &mut self,
        name: &str,
        layer: impl Layer<T> + 'static,
        inputs: impl IntoIterator<Item = ValueId>,
    ) -> ValueId {
        self.declare(Some(name.to_owned()), Arc::new(layer), inputs)
    }

    /// Adds the sum of some values of the same shape. The rule [`Norm`](crate::Norm) shares its
    /// relevance among them, unless a [`Composite`](crate::Composite) sets another rule.
    pub fn sum(&mut self, inputs: impl IntoIterator<Item = ValueId>) -> ValueId {
        self.layer(Join::of_values(Joined::Summed), inputs)
    }

    /// Adds the concatenation of some values along their first axis. Each value receives the
    /// relevance of its part.
    pub fn concat(&mut self, inputs: impl IntoIterator<Item = ValueId>) -> ValueId {
        self.layer(Join::of_values(Joined::Concatenated), inputs)
    }

    pub(crate) fn declare(
        &mut self,
        name: Option<String>,
        layer: Arc<dyn Layer<T>>,
        inputs: impl IntoIterator<Item = ValueId>,
    ) -> ValueId {
        let inputs = inputs.into_iter().map(|value| self.position(value)).collect();
        self.add(Declaration::Layer(LayerDeclaration { name, layer, inputs, position: None }))
    }

    /// Declares an output of the model. The first output is explained unless another one is chosen
    /// with [`Graph::with_output`].
    pub fn output(&mut self, name: &str, value: ValueId) {
        self.declared.outputs.push((name.to_owned(), self.position(value)));
    }

    /// Builds the graph and checks all shapes.
    ///
    /// # Errors
    /// - [`Error::InvalidGraph`] if there is no input or no output, if two of the inputs, constants
    ///   and layers have the same name, if two outputs have the same name, if a constant is not
    ///   finite or not of its shape, if a value does not belong to this builder, or if a layer other
    ///   than an embedding reads whole numbers.
    /// - [`Error::NoLinearLayer`] if no layer shares relevance among its inputs, as linear layers,
    ///   poolings and sums do.
    /// - [`Error::LayerShape`], [`Error::InputCount`] and the other errors of
    ///   [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn build(mut self) -> Result<Graph<T>, Error> {
        self.check()?;
        self.declared.checks_names = true;
        (T::compiled().build_graph)(self)
    }

    /// Checks the shapes of the inputs, and that no two outputs have the same name.
    fn check(&self) -> Result<(), Error> {
        for item in &self.declared.items {
            if let Declaration::Input(input) = item {
                check_input("GraphBuilder", input.shape)?;
            }
        }
        let mut names = HashSet::new();
        match self.declared.outputs.iter().find(|(name, _)| !names.insert(name)) {
            Some((twice, _)) => Err(invalid(format!(
                "the name '{twice}' is used for more than one output: give each output its own name"
            ))),
            None => Ok(()),
        }
    }

    pub(crate) fn build_inner(self) -> Result<Graph<T>, Error> {
        Binder::bind(&self.declared)
    }
}

impl<T: Scalar> GraphBuilder<T> {
    pub(super) fn add_existing(&mut self, input: Input<T>) -> ValueId {
        self.add(Declaration::Input(input))
    }

    pub(super) fn place(
        &mut self,
        name: &str,
        layer: Arc<dyn Layer<T>>,
        inputs: &[ValueId],
        position: Position,
    ) -> ValueId {
        let inputs = inputs.iter().map(|&value| self.position(value)).collect();
        let (name, position) = (Some(name.to_owned()), Some(position));
        self.add(Declaration::Layer(LayerDeclaration { name, layer, inputs, position }))
    }
}
