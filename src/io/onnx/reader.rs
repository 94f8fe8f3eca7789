//! Visiting the nodes of a file in order. Each node whose values depend on the input becomes a node
//! of the [`Ir`], and the values of all other nodes are computed in advance.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message;

use super::budget::Budget;
use super::constant::{Constant, Elements};
use super::fold::ConstantNode;
use super::input::{ModelInput, sizes_of};
use super::ir::{Computation, Ir, Operand, Translation};
use super::operator::Schema;
use super::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::{is_standard, malformed, shortened};
use crate::error::Error;
use crate::graph::Graph;
use crate::nearest::did_you_mean;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The reason for rejecting a node whose inputs are all constants.
const NOT_AHEAD: &str = "all of its inputs are constants, but its output cannot be computed, \
    because the operator is unsupported or the output is too large: simplify the model first, for \
    example with onnx-simplifier";

/// Visits the nodes of a graph in order.
#[derive(Debug)]
pub(super) struct NodeReader<'a, T: Scalar> {
    graph: &'a GraphProto,
    ir: Ir<T>,
    operands: HashMap<String, Operand>,
    /// The names that nodes read.
    read: HashSet<String>,
    /// The shapes in the file, by the names of the values. They make it possible to check the nodes
    /// after an unsupported one, so that an error lists all unsupported nodes.
    shapes: Option<HashMap<String, Vec<usize>>>,
}

/// A node of the file, with its place.
struct PlacedNode<'a> {
    node: &'a NodeProto,
    place: usize,
    /// The node's name, or that of its first output.
    name: String,
    /// The name of the operator. Operators of other domains than ONNX's keep the domain, as in
    /// `ai.onnx.ml.Scaler`.
    operator: Rc<str>,
}

impl<'a> PlacedNode<'a> {
    fn of(node: &'a NodeProto, place: usize) -> Self {
        let name = node.output.first().filter(|_| node.name.is_empty()).unwrap_or(&node.name);
        let operator = if is_standard(&node.domain) {
            node.op_type.clone()
        } else {
            format!("{}.{}", node.domain, node.op_type)
        };
        Self { node, place, name: name.clone(), operator: operator.into() }
    }
}

fn decode(bytes: &Bytes) -> Result<NodeProto, Error> {
    NodeProto::decode(bytes.clone()).map_err(|e| malformed(e.to_string()))
}

impl<'a, T: Scalar> NodeReader<'a, T> {
    /// Reads the graph's constants and its one input. The input's shape comes from the file or the
    /// caller.
    pub fn new(
        graph: &'a GraphProto,
        opset: i64,
        size: usize,
        folder: Option<&Path>,
        shape: Option<Shape>,
    ) -> Result<Self, Error> {
        let mut operands = HashMap::new();
        let budget = Budget::of(size);
        for bytes in &graph.initializer {
            let tensor =
                TensorProto::decode(bytes.clone()).map_err(|e| malformed(e.to_string()))?;
            let constant = Constant::read(&tensor, folder, &budget).map_err(|reason| {
                malformed(format!("tensor '{}': {reason}", shortened(&tensor.name)))
            })?;
            operands.insert(tensor.name, Operand::Constant(constant));
        }
        let ModelInput { name, batch, dims, whole } = ModelInput::of(graph, &operands, shape)?;
        operands.insert(name.to_owned(), Operand::Node(0));
        let ir = Ir::new(name, opset, batch, dims, whole, budget);
        Ok(Self { graph, ir, operands, read: HashSet::new(), shapes: None })
    }

    /// Builds the graph from the input to an output.
    pub fn read(mut self, output: &str) -> Result<Graph<T>, Error> {
        for bytes in &self.graph.node {
            self.read.extend(decode(bytes)?.input);
        }
        for (place, bytes) in self.graph.node.iter().enumerate() {
            self.node(&PlacedNode::of(&decode(bytes)?, place))?;
        }
        match self.operands.get(output) {
            Some(&Operand::Node(node)) => self.ir.build(node, output),
            Some(Operand::Constant(_)) => Err(malformed(format!(
                "its output '{}' does not depend on the input: choose another, with \
                 OnnxFile::output",
                shortened(output)
            ))),
            None => Err(malformed(no_such_output(self.graph, output, self.operands.keys()))),
        }
    }

    fn node(&mut self, node: &PlacedNode<'_>) -> Result<(), Error> {
        let operands = self.operands_of(node)?;
        let first = self.operand(node, &operands);
        let outputs = node.node.output.iter().enumerate();
        for (number, name) in outputs.filter(|(_, name)| !name.is_empty()) {
            let operand =
                if number == 0 { first.clone() } else { self.other_output(node, &first, number) };
            if let Operand::Node(output) = operand
                && self.ir[output].dims.is_none()
            {
                // With a shape from elsewhere, the nodes after an unsupported one can be checked
                // too.
                self.ir[output].dims =
                    gemm_outputs(node.node, &operands).or_else(|| self.said_shape(name));
            }
            self.operands.insert(name.clone(), operand);
        }
        Ok(())
    }

    /// A node's inputs. If an optional input is absent, its name is empty.
    fn operands_of(&self, node: &PlacedNode<'_>) -> Result<Vec<Option<Operand>>, Error> {
        let operand = |input: &String| match self.operands.get(input) {
            None if !input.is_empty() => Err(malformed(format!(
                "node '{}' reads '{}', which no node before it computes: the graph has a cycle or \
                 its nodes are not sorted, so export the model again",
                shortened(&node.name),
                shortened(input)
            ))),
            operand => Ok(operand.cloned()),
        };
        node.node.input.iter().map(operand).collect()
    }

    /// The first output of a node.
    fn operand(&mut self, node: &PlacedNode<'_>, operands: &[Option<Operand>]) -> Operand {
        let inputs: Vec<usize> = operands
            .iter()
            .flatten()
            .filter_map(|operand| match operand {
                Operand::Node(input) => Some(*input),
                Operand::Constant(_) => None,
            })
            .collect();
        let Some(&first) = inputs.first() else {
            let constants: Vec<Option<&Constant>> = operands
                .iter()
                .map(|operand| match operand {
                    Some(Operand::Constant(constant)) => Some(constant),
                    _ => None,
                })
                .collect();
            return self.computed(node, &constants, inputs);
        };
        if Schema::<T>::find(&node.operator).is_some_and(Schema::reads_shape) {
            return match self.ir.full_dims(first) {
                // The shape is known, although the values are not.
                Some(dims) => {
                    let of = Constant { dims, elements: Elements::Other };
                    self.computed(node, &[Some(&of)], inputs)
                }
                None => self.uncomputed(node, Computation::AfterUnsupported(inputs)),
            };
        }
        // This computes a shape from an unknown one, as after an unsupported node.
        if inputs.iter().all(|&input| self.ir[input].uncomputed) {
            return self.uncomputed(node, Computation::AfterUnsupported(inputs));
        }
        let is_read = node.node.output.iter().any(|output| self.read.contains(output));
        match self.ir.translate(node.node, &node.operator, operands, &inputs, is_read) {
            Ok(Translation::Alias(of)) => Operand::Node(of),
            Ok(Translation::Node(computation, expressions)) => {
                let added = self.push(node, &node.name, computation);
                self.ir[added].expressions = expressions;
                Operand::Node(added)
            }
            Err(reason) => {
                Operand::Node(self.push(node, &node.name, Computation::Unsupported(inputs, reason)))
            }
        }
    }

    fn push(&mut self, node: &PlacedNode<'_>, name: &str, computation: Computation<T>) -> usize {
        self.ir.push(node.place, name, &node.operator, computation)
    }

    /// An output other than the first, which is unsupported.
    fn other_output(&mut self, node: &PlacedNode<'_>, first: &Operand, number: usize) -> Operand {
        let of = if let Operand::Node(node) = first { vec![*node] } else { Vec::new() };
        let reported = |&node: &usize| {
            matches!(
                self.ir[node].computation,
                Computation::Unsupported(..) | Computation::AfterUnsupported(_)
            )
        };
        // If the node or one before it is unsupported, do not report this output as well.
        let computation = if of.iter().any(reported) {
            Computation::AfterUnsupported(of)
        } else {
            let reason = format!(
                "only its first output is supported, but output {number} is used too: explain the \
                 model up to its input, with OnnxFile::output"
            );
            Computation::Unsupported(of, reason)
        };
        Operand::Node(self.push(node, &node.node.output[number], computation))
    }

    /// The shape of a value for one sample, if the file contains it.
    fn said_shape(&mut self, name: &str) -> Option<Vec<usize>> {
        let batch = self.ir.batch;
        // Decoded at most once, and only if a shape is unknown.
        let shapes = self.shapes.get_or_insert_with(|| {
            let said = self
                .graph
                .value_info
                .iter()
                .filter_map(|bytes| ValueInfoProto::decode(bytes.clone()).ok());
            said.filter_map(|info| Some((sizes_of(&info, batch)?, info.name)))
                .map(|(dims, name)| (name, dims))
                .collect()
        });
        shapes.get(name).cloned()
    }

    /// The computed constant, or an unsupported node if it cannot be computed.
    fn computed(
        &mut self,
        node: &PlacedNode<'_>,
        inputs: &[Option<&Constant>],
        of: Vec<usize>,
    ) -> Operand {
        let constant = ConstantNode { proto: node.node, inputs, budget: &self.ir.budget };
        match constant.output(&node.operator) {
            Some(constant) => Operand::Constant(constant),
            None => self.uncomputed(node, Computation::Unsupported(of, NOT_AHEAD.to_owned())),
        }
    }

    /// Adds a node that should have been a constant, but could not be computed.
    fn uncomputed(&mut self, node: &PlacedNode<'_>, computation: Computation<T>) -> Operand {
        let added = self.push(node, &node.name, computation);
        self.ir[added].uncomputed = true;
        Operand::Node(added)
    }
}

/// The shape of a dense layer's outputs, which does not depend on that of its operands.
fn gemm_outputs(node: &NodeProto, operands: &[Option<Operand>]) -> Option<Vec<usize>> {
    match operands.get(1) {
        Some(Some(Operand::Constant(weights))) if node.op_type == "Gemm" => {
            let outputs = weights.dims.get(usize::from(node.int("transB", 0) == 0))?;
            Some(vec![*outputs])
        }
        _ => None,
    }
}

/// The reason for rejecting an output that does not exist, with the name that was probably
/// intended.
fn no_such_output<'a>(
    graph: &'a GraphProto,
    asked: &str,
    names: impl Iterator<Item = &'a String>,
) -> String {
    let outputs = graph
        .output
        .iter()
        .take(8)
        .map(|output| format!("'{}'", shortened(&output.name)))
        .collect::<Vec<_>>()
        .join(", ");
    let asked = shortened(asked);
    // A file can contain any number of names of any length, so the search is limited.
    let mut names: Vec<&str> =
        names.map(String::as_str).filter(|name| !name.is_empty() && name.len() <= 120).collect();
    names.sort_unstable();
    let meant = did_you_mean(
        &asked,
        graph.output.iter().map(|output| output.name.as_str()).take(8).chain(names).take(4096),
    );
    format!("the graph has no value '{asked}' (its outputs are {outputs}){meant}")
}
