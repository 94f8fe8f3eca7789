//! Binding: each declared layer becomes one node or several, with known shapes. What a layer
//! returns is checked here, because a layer can come from outside the crate.

use std::collections::HashSet;
use std::sync::Arc;

use super::declaration::{Declaration, Declarations, LayerDeclaration, Position, invalid};
use super::operation::Operation;
use super::{Graph, Input, InputSource, Node, Output, Structure};
use crate::error::Error;
use crate::layer::{Branch, Join, Layer, Named, Operator};
use crate::scalar::Scalar;
use crate::shape::{LARGEST, Shape};

/// The deepest nesting of branches.
const DEPTH: usize = 64;

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
    pub fn bind(declarations: &Declarations<T>) -> Result<Graph<T>, Error> {
        let mut binder =
            Self { inputs: Vec::new(), nodes: Vec::new(), known: Vec::new(), layers: 0 };
        // Inputs come first among the values.
        let mut values = vec![0; declarations.items.len()];
        for (at, item) in declarations.items.iter().enumerate() {
            if let Declaration::Input(input) = item {
                values[at] = binder.input(input)?;
            }
        }
        let mut place = 0;
        for (at, item) in declarations.items.iter().enumerate() {
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
        let outputs = declarations
            .outputs
            .iter()
            .map(|(name, position)| match values.get(*position) {
                Some(&value) => Ok(Output { name: name.clone(), value }),
                None => Err(invalid(format!(
                    "output '{name}' is a value that another builder has returned"
                ))),
            })
            .collect::<Result<Vec<_>, Error>>()?;
        binder.finish(outputs, declarations)
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
        declarations: &Declarations<T>,
    ) -> Result<Graph<T>, Error> {
        if declarations.checks_names {
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
        if self.inputs.iter().all(|input| matches!(input.source, InputSource::Constant(_))) {
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
