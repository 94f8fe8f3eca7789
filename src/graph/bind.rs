//! Binding: each declared layer becomes one node or several, with known shapes. What a layer
//! returns is checked here, because a layer can come from outside the crate.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::builder::{Declaration, GraphBuilder};
use super::operation::Operation;
use super::{Graph, Input, InputSource, Node, Output, Structure};
use crate::error::Error;
use crate::layer::{Branch, Join, Joined, Layer, Named, Operator};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The largest allowed number of values in a layer. Sums of such sizes, and their sizes in bytes,
/// do not overflow.
pub(crate) const LARGEST: usize = isize::MAX as usize / 64;

/// The deepest nesting of branches.
const DEPTH: usize = 64;

/// A layer, and the positions of the values that it reads among the declared items.
#[derive(Debug, Clone)]
pub(crate) struct LayerDeclaration<T: Scalar> {
    pub name: Option<String>,
    pub layer: Arc<dyn Layer<T>>,
    pub inputs: Vec<usize>,
    /// For a node of a graph that was built before: its index, and its branches.
    pub position: Option<Position>,
}

/// The place of a node among the layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub index: usize,
    /// If the node joins branches, the indices of the layers in each branch.
    pub branches: Vec<Range<usize>>,
}

/// What is known about a value.
#[derive(Debug, Clone, Copy)]
struct ValueFacts {
    shape: Shape,
    /// Whether the values are nonnegative for every sample.
    nonnegative: bool,
    /// Whether they are whole numbers, which only some layers read.
    whole: bool,
}

/// The nodes so far.
pub(super) struct Binder<T: Scalar> {
    inputs: Vec<Input<T>>,
    nodes: Vec<Node<T>>,
    known: Vec<ValueFacts>,
    /// The number of layers so far. A layer with branches is counted before those inside them.
    layers: usize,
}

impl<T: Scalar> Binder<T> {
    pub fn bind(builder: &GraphBuilder<T>) -> Result<Graph<T>, Error> {
        let mut binder =
            Self { inputs: Vec::new(), nodes: Vec::new(), known: Vec::new(), layers: 0 };
        // Inputs come first among the values.
        let mut values = vec![0; builder.items.len()];
        for (at, item) in builder.items.iter().enumerate() {
            if let Declaration::Input(input) = item {
                values[at] = binder.input(input)?;
            }
        }
        let mut place = 0;
        for (at, item) in builder.items.iter().enumerate() {
            let Declaration::Layer(declared) = item else { continue };
            let name = declared.name.clone().unwrap_or_else(|| place.to_string());
            place += 1;
            if declared.inputs.iter().any(|&value| value >= at) {
                return Err(invalid(format!(
                    "layer '{name}' reads a value that another builder has returned"
                )));
            }
            let inputs: Vec<usize> = declared.inputs.iter().map(|&value| values[value]).collect();
            values[at] = binder.declared(declared, name, &inputs)?;
        }
        let outputs = builder
            .outputs
            .iter()
            .map(|(name, position)| match values.get(*position) {
                Some(&value) => Ok(Output { name: name.clone(), value }),
                None => Err(invalid(format!(
                    "output '{name}' is a value that another builder has returned"
                ))),
            })
            .collect::<Result<Vec<_>, Error>>()?;
        binder.finish(outputs, builder)
    }

    fn input(&mut self, input: &Input<T>) -> Result<usize, Error> {
        let (name, shape) = (&input.name, input.shape);
        let mut nonnegative = false;
        if let InputSource::Constant(values) = &input.source {
            if values.len() != shape.size() {
                return Err(invalid(format!(
                    "constant '{name}' has the shape {shape}: give it {} values, not {}",
                    shape.size(),
                    values.len()
                )));
            }
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(invalid(format!(
                    "constant '{name}' contains {value}, but its values must be finite"
                )));
            }
            nonnegative = values.iter().all(|&value| value >= T::zero());
        }
        let whole = matches!(input.source, InputSource::Whole);
        self.inputs.push(input.clone());
        self.known.push(ValueFacts { shape, nonnegative, whole });
        Ok(self.known.len() - 1)
    }

    fn declared(
        &mut self,
        declared: &LayerDeclaration<T>,
        name: String,
        inputs: &[usize],
    ) -> Result<usize, Error> {
        match &declared.position {
            None => self.layer(declared.layer.clone(), name, inputs, 0),
            Some(position) => {
                self.layers = self.layers.max(position.index + 1);
                self.node(declared.layer.clone(), name, inputs, position.clone())
            }
        }
    }

    /// Binds a layer, which has not been bound before, and the layers of its branches. Returns the
    /// value that it computes.
    fn layer(
        &mut self,
        layer: Arc<dyn Layer<T>>,
        name: String,
        inputs: &[usize],
        depth: usize,
    ) -> Result<usize, Error> {
        if depth > DEPTH {
            return Err(invalid(format!(
                "the branches of layer '{name}' ({}) are nested more than {DEPTH} deep",
                layer.kind()
            )));
        }
        let index = self.layers;
        self.layers += 1;
        let shapes = self.shapes(inputs);
        let operator = layer.operator(&shapes).map_err(|error| at(index, &name, error))?;
        if matches!(operator, Operator::Softmax(_)) && depth > 0 {
            return Err(Error::SoftmaxInBranch { layer: index, name });
        }
        let Operator::Branches(branches, joined) = operator else {
            let position = Position { index, branches: Vec::new() };
            return self.operation(layer, name, inputs, position, operator);
        };
        let kind = layer.kind();
        if branches.is_empty() {
            let of = format!("layer {name} ({kind})");
            return Err(Error::parameter(&of, "number of branches", 0, "at least 1"));
        }
        let &[input] = inputs else {
            let error = Error::inputs(kind, inputs.len(), "one value, where its branches begin");
            return Err(at(index, &name, error));
        };
        let mut ends = Vec::with_capacity(branches.len());
        let mut ranges = Vec::with_capacity(branches.len());
        for (number, Branch { layers }) in branches.into_iter().enumerate() {
            let (first, mut value) = (self.layers, input);
            for (place, Named { name: own, layer }) in layers.into_iter().enumerate() {
                let name = match own {
                    Some(own) => format!("{name}.{own}"),
                    None => format!("{name}.{number}.{place}"),
                };
                value = self.layer(layer, name, &[value], depth + 1)?;
            }
            ends.push(value);
            ranges.push(first..self.layers);
        }
        let join = Arc::new(Join::new(kind, joined));
        self.node(join, name, &ends, Position { index, branches: ranges })
    }

    fn shapes(&self, inputs: &[usize]) -> Vec<Shape> {
        inputs.iter().map(|&value| self.known[value].shape).collect()
    }

    /// Binds a layer that is one node.
    fn node(
        &mut self,
        layer: Arc<dyn Layer<T>>,
        name: String,
        inputs: &[usize],
        position: Position,
    ) -> Result<usize, Error> {
        let shapes = self.shapes(inputs);
        let operator = layer.operator(&shapes).map_err(|error| at(position.index, &name, error))?;
        self.operation(layer, name, inputs, position, operator)
    }

    fn operation(
        &mut self,
        layer: Arc<dyn Layer<T>>,
        name: String,
        inputs: &[usize],
        position: Position,
        operator: Operator<T>,
    ) -> Result<usize, Error> {
        let (shapes, Position { index, branches }) = (self.shapes(inputs), position);
        let kind = layer.kind();
        let refused = |error| at(index, &name, error);
        if inputs.is_empty() {
            return Err(refused(Error::inputs(kind, 0, "at least one value")));
        }
        let whole = inputs.iter().filter(|&&value| self.known[value].whole).count();
        if whole > 0 && !matches!(operator, Operator::Lookup(_)) {
            return Err(invalid(format!(
                "layer '{name}' ({kind}) reads whole numbers, but only an embedding can look them \
                 up: declare the input with GraphBuilder::given, or add an embedding before the \
                 layer"
            )));
        }
        if whole == 0 && matches!(operator, Operator::Lookup(_)) {
            return Err(invalid(format!(
                "layer '{name}' ({kind}) looks up whole numbers: declare its input with \
                 GraphBuilder::given_whole"
            )));
        }
        let sign = inputs.iter().all(|&value| self.known[value].nonnegative);
        let (operation, shape) =
            Operation::of(operator, (kind, layer.family()), &shapes, sign).map_err(refused)?;
        if shape.size() == 0 || shape.size() > LARGEST {
            let expected = format!("inputs that give 1 to {LARGEST} outputs");
            return Err(refused(Error::shape(kind, shapes[0], expected)));
        }
        self.known.push(ValueFacts {
            shape,
            nonnegative: operation.is_nonnegative(sign),
            whole: false,
        });
        let inputs = inputs.to_vec();
        self.nodes.push(Node { layer, name, index, inputs, shape, operation, branches });
        Ok(self.known.len() - 1)
    }

    /// Finds the endings and checks the graph as a whole.
    fn finish(
        mut self,
        outputs: Vec<Output>,
        builder: &GraphBuilder<T>,
    ) -> Result<Graph<T>, Error> {
        if builder.checks_names {
            self.check_names()?;
        }
        if outputs.is_empty() {
            return Err(invalid(
                "it has no output: declare one with GraphBuilder::output".to_owned(),
            ));
        }
        let is_whole = |output: &&Output| self.known[output.value].whole;
        if let Some(Output { name, .. }) = outputs.iter().find(is_whole) {
            return Err(invalid(format!(
                "output '{name}' is an input of whole numbers: declare the output of a layer \
                 instead"
            )));
        }
        if !self.inputs.iter().any(|input| {
            matches!(input.source, InputSource::Explained | InputSource::Given | InputSource::Whole)
        }) {
            return Err(invalid("it has no input: add one with GraphBuilder::input".to_owned()));
        }
        self.find_endings(&outputs)?;
        let shares = |node: &Node<T>| {
            node.operation.linear().is_some() || node.operation.selection().is_some()
        };
        if !self.nodes.iter().any(shares) {
            return Err(Error::NoLinearLayer { layers: self.layers });
        }
        let Self { inputs, nodes, .. } = self;
        Ok(Graph::of(Structure::new(inputs, nodes, outputs)))
    }

    /// Checks that no two inputs or layers have the same name.
    fn check_names(&self) -> Result<(), Error> {
        let mut names = HashSet::new();
        let inputs = self.inputs.iter().map(|input| &input.name);
        match inputs
            .chain(self.nodes.iter().map(|node| &node.name))
            .find(|&name| !names.insert(name))
        {
            Some(twice) => Err(invalid(format!(
                "the name '{twice}' is used more than once: give each input and each layer its own \
                 name"
            ))),
            None => Ok(()),
        }
    }

    /// Turns the functions that give probabilities at an output into endings.
    fn find_endings(&mut self, outputs: &[Output]) -> Result<(), Error> {
        let first = self.inputs.len();
        // Only layers on the way to an output count.
        let mut readers = vec![0; self.known.len()];
        let mut needed = vec![false; self.known.len()];
        for output in outputs {
            needed[output.value] = true;
        }
        for (number, node) in self.nodes.iter().enumerate().rev() {
            if needed[first + number] {
                for &value in &node.inputs {
                    needed[value] = true;
                    readers[value] += 1;
                }
            }
        }
        let mut ends = HashSet::new();
        for output in outputs {
            let (mut value, mut only_reshapes, mut allowed) = (output.value, true, 0);
            // Layers that only move values can follow the function, because they can move the
            // logits just as well.
            while value >= first && readers[value] == allowed {
                let node = &mut self.nodes[value - first];
                if node.operation.only_moves() && node.inputs.len() == 1 {
                    only_reshapes &= node.operation.is_reshape();
                    (value, allowed) = (node.inputs[0], 1);
                    continue;
                }
                if node.operation.end(only_reshapes) {
                    ends.insert(value);
                }
                break;
            }
        }
        let softmax = self.nodes.iter().enumerate().find(|(number, node)| {
            let value = first + number;
            node.operation.is_softmax() && needed[value] && !ends.contains(&value)
        });
        match softmax {
            Some((_, node)) => Err(Error::SoftmaxInMiddle {
                layer: node.index,
                name: node.name.clone(),
                next: node.index + 1,
            }),
            None => Ok(()),
        }
    }
}

pub(super) fn invalid(reason: String) -> Error {
    Error::InvalidGraph { reason }
}

/// Adds the place of a layer to its error.
fn at(index: usize, name: &str, error: Error) -> Error {
    match error {
        Error::Shape { kind, expected, found } => {
            Error::LayerShape { layer: index, name: name.to_owned(), kind, expected, found }
        }
        Error::InputCount { kind, expected, found } => {
            Error::InputCount { kind: format!("layer {name} ({kind})"), expected, found }
        }
        other => other,
    }
}

/// The shape of joined values.
pub(super) fn joined_shape(kind: &str, inputs: &[Shape], joined: Joined) -> Result<Shape, Error> {
    let [first, others @ ..] = inputs else {
        return Err(Error::inputs(kind, 0, "at least one value"));
    };
    for other in others {
        let (fits, matching) = match joined {
            Joined::Summed => (other == first, "the same shape"),
            // Values are concatenated along the channels, so only the other axes must match.
            Joined::Concatenated => (
                other.dims().len() == first.dims().len()
                    && other.dims().get(1..) == first.dims().get(1..),
                "the same shape except for the first axis",
            ),
        };
        if !fits {
            let expected = format!("values of {matching} (the first has {first})");
            return Err(Error::shape(kind, *other, expected));
        }
    }
    Ok(match joined {
        Joined::Summed => *first,
        Joined::Concatenated if first.dims().is_empty() => inputs.len().into(),
        Joined::Concatenated => {
            let channels = inputs.iter().map(Shape::channels).fold(0, usize::saturating_add);
            first.with_dim(0, channels)
        }
    })
}
