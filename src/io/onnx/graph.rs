//! Turning the nodes of a graph into steps. Each node whose values depend on the input becomes a
//! step, and the values of all other nodes are computed in advance.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use bytes::Bytes;
use prost::Message;

use super::budget::Budget;
use super::constant::{Constant, Values};
use super::fold::fold;
use super::proto::{self, Node, ValueInfo};
use super::step::{Kind, Made, Steps, Value};
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
pub(super) struct Reader<T: Scalar> {
    steps: Steps<T>,
    values: HashMap<String, Value>,
    /// The shapes in the file, by the names of the values. They make it possible to check the nodes
    /// after an unsupported one, so that an error lists all unsupported nodes.
    shapes: Option<HashMap<String, Vec<usize>>>,
}

impl<T: Scalar> Reader<T> {
    /// Reads the graph's constants and its one input. The input's shape comes from the file or the
    /// caller.
    pub fn new(
        graph: &proto::Graph,
        opset: i64,
        size: usize,
        folder: Option<&Path>,
        shape: Option<Shape>,
    ) -> Result<Self, Error> {
        let mut values = HashMap::new();
        let budget = Budget::of(size);
        for bytes in &graph.initializer {
            let tensor =
                proto::Tensor::decode(bytes.clone()).map_err(|e| malformed(e.to_string()))?;
            let name = tensor.name.clone();
            let refused =
                |reason: String| malformed(format!("tensor '{}': {reason}", shortened(&name)));
            let constant = Constant::read(&tensor, folder, &budget).map_err(refused)?;
            values.insert(name, Value::Constant(constant));
        }
        // Older files list the initializers among the inputs.
        let inputs: Vec<_> =
            graph.input.iter().filter(|input| !values.contains_key(&input.name)).collect();
        let [input] = inputs.as_slice() else {
            let names: Vec<_> = inputs
                .iter()
                .take(20)
                .map(|input| format!("'{}'", shortened(&input.name)))
                .collect();
            return Err(malformed(format!(
                "it has {} inputs ({}), but only one is supported: export the model with one input",
                inputs.len(),
                names.join(", ")
            )));
        };
        // Whether the input consists of integers or booleans, by ONNX's code of its element type.
        let whole = match input
            .r#type
            .as_ref()
            .and_then(|of| of.tensor.as_ref())
            .map_or(0, |tensor| tensor.elem_type)
        {
            0 | 1 | 10 | 11 | 16 => false,
            2..=7 | 9 | 12 | 13 => true,
            _ => {
                return Err(malformed(format!(
                    "its input '{}' does not consist of numbers: export the model with an input of \
                     floating-point numbers",
                    shortened(&input.name)
                )));
            }
        };
        let (batch, dims) = sample(input, shape)?;
        values.insert(input.name.clone(), Value::Step(0));
        Ok(Self {
            steps: Steps::new(&input.name, opset, batch, dims, whole, budget),
            values,
            shapes: None,
        })
    }

    /// Builds the graph from the input to an output.
    pub fn read(mut self, graph: &proto::Graph, output: &str) -> Result<Graph<T>, Error> {
        let decode =
            |bytes: &Bytes| Node::decode(bytes.clone()).map_err(|e| malformed(e.to_string()));
        for bytes in &graph.node {
            for input in decode(bytes)?.input {
                // A bias can be merged into the layer before it only if nothing else reads that
                // layer.
                *self.steps.uses.entry(input).or_default() += 1;
            }
        }
        self.steps.outputs = graph.output.iter().map(|output| output.name.clone()).collect();
        for (index, bytes) in graph.node.iter().enumerate() {
            self.node(graph, index, &decode(bytes)?)?;
        }
        match self.values.get(output) {
            Some(&Value::Step(step)) => self.steps.graph(step, output),
            Some(Value::Constant(_)) => Err(malformed(format!(
                "its output '{}' does not depend on the input: choose another, with \
                 OnnxFile::output",
                shortened(output)
            ))),
            None => Err(malformed(no_such_output(graph, output, self.values.keys()))),
        }
    }

    fn node(&mut self, graph: &proto::Graph, index: usize, node: &Node) -> Result<(), Error> {
        let name =
            node.output.first().filter(|_| node.name.is_empty()).unwrap_or(&node.name).clone();
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            let value = self.values.get(input).cloned();
            // An empty name stands for an optional input that is absent.
            if value.is_none() && !input.is_empty() {
                let (name, input) = (shortened(&name), shortened(input));
                let reason = format!(
                    "node '{name}' reads '{input}', which no node before it computes: the graph \
                     has a cycle or its nodes are not sorted, so export the model again"
                );
                return Err(malformed(reason));
            }
            inputs.push(value);
        }
        let steps: Vec<usize> = inputs
            .iter()
            .flatten()
            .filter_map(|value| if let Value::Step(step) = value { Some(*step) } else { None })
            .collect();
        // Operators of other domains keep the domain, as in `ai.onnx.ml.Scaler`.
        let domain =
            if is_standard(&node.domain) { String::new() } else { format!("{}.", node.domain) };
        let operator: Rc<str> = (domain + &node.op_type).into();
        let value = if steps.is_empty() {
            let constants: Vec<Option<&Constant>> = inputs
                .iter()
                .map(|value| {
                    if let Some(Value::Constant(constant)) = value { Some(constant) } else { None }
                })
                .collect();
            let folded = if is_standard(&node.domain) {
                fold(node, &constants, &self.steps.budget)
            } else {
                None
            };
            self.computed(index, &name, &operator, folded, steps)
        } else if &*operator == "Shape"
            && let Some(dims) = self.steps.full_dims(steps[0])
        {
            // The shape is known, although the values are not.
            let of = Constant { dims, values: Values::Other };
            let folded = fold(node, &[Some(&of)], &self.steps.budget);
            self.computed(index, &name, &operator, folded, steps)
        } else if &*operator == "Shape" || steps.iter().all(|&step| self.steps[step].uncomputed) {
            // This computes a shape from an unknown one, as after an unsupported node.
            self.uncomputed(index, &name, &operator, Kind::Behind(steps))
        } else {
            match self.steps.operator(node, &operator, &inputs, &steps) {
                Ok(Made::Same(step)) => {
                    self.steps.aliased.insert(step);
                    Value::Step(step)
                }
                Ok(Made::Step(kind, expressions)) => {
                    let step = self.steps.push(index, &name, &operator, kind);
                    self.steps[step].expressions = expressions;
                    Value::Step(step)
                }
                Err(reason) => Value::Step(self.steps.push(
                    index,
                    &name,
                    &operator,
                    Kind::Refused(steps, reason),
                )),
            }
        };
        for (place, output) in
            node.output.iter().enumerate().filter(|(_, output)| !output.is_empty())
        {
            let value = if place == 0 {
                value.clone()
            } else {
                let of = if let Value::Step(step) = value { vec![step] } else { Vec::new() };
                let behind = |&step: &usize| {
                    matches!(self.steps[step].kind, Kind::Refused(..) | Kind::Behind(_))
                };
                // If the node or one before it is unsupported, do not report this output as well.
                let kind = if of.iter().any(behind) {
                    Kind::Behind(of)
                } else {
                    Kind::Refused(
                        of,
                        format!(
                            "only its first output is supported, but output {place} is used too: \
                             explain the model up to its input, with OnnxFile::output"
                        ),
                    )
                };
                Value::Step(self.steps.push(index, output, &operator, kind))
            };
            if let Value::Step(step) = value
                && self.steps[step].dims.is_none()
            {
                // With a shape from elsewhere, the nodes after an unsupported one can be checked
                // too.
                self.steps[step].dims =
                    gemm_outputs(node, &inputs).or_else(|| self.said_shape(graph, output));
            }
            self.values.insert(output.clone(), value);
        }
        Ok(())
    }

    /// The shape of a value for one sample, if the file contains it.
    fn said_shape(&mut self, graph: &proto::Graph, name: &str) -> Option<Vec<usize>> {
        let batch = self.steps.batch;
        // Decoded at most once, and only if a shape is unknown.
        let shapes = self.shapes.get_or_insert_with(|| {
            let said =
                graph.value_info.iter().filter_map(|bytes| ValueInfo::decode(bytes.clone()).ok());
            said.filter_map(|info| Some((sizes_of(&info, batch)?, info.name)))
                .map(|(dims, name)| (name, dims))
                .collect()
        });
        shapes.get(name).cloned()
    }

    /// The computed constant, or a rejected step if it could not be computed.
    fn computed(
        &mut self,
        index: usize,
        name: &str,
        operator: &Rc<str>,
        folded: Option<Constant>,
        of: Vec<usize>,
    ) -> Value {
        let refused = |of| Kind::Refused(of, NOT_AHEAD.to_owned());
        folded.map_or_else(|| self.uncomputed(index, name, operator, refused(of)), Value::Constant)
    }

    /// Adds a step that should have been a constant, but could not be computed.
    fn uncomputed(&mut self, index: usize, name: &str, operator: &Rc<str>, kind: Kind<T>) -> Value {
        let step = self.steps.push(index, name, operator, kind);
        self.steps[step].uncomputed = true;
        Value::Step(step)
    }
}

/// The shape of a dense layer's outputs, which does not depend on that of its inputs.
fn gemm_outputs(node: &Node, inputs: &[Option<Value>]) -> Option<Vec<usize>> {
    match inputs.get(1) {
        Some(Some(Value::Constant(weights))) if node.op_type == "Gemm" => {
            let outputs = weights.dims.get(usize::from(node.int("transB", 0) == 0))?;
            Some(vec![*outputs])
        }
        _ => None,
    }
}

/// The shape of one sample of a value, if all its sizes are known and the first axis is the batch
/// axis.
fn sizes_of(info: &ValueInfo, batch: usize) -> Option<Vec<usize>> {
    let shape = info.r#type.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
    let size = |value: i64| usize::try_from(value).ok().filter(|&value| value > 0);
    let [samples, rest @ ..] = shape.dim.as_slice() else { return None };
    let fits = samples.value.is_none_or(|value| size(value).is_none_or(|value| value == batch));
    let dims: Vec<usize> = rest.iter().map(|dim| size(dim.value?)).collect::<Option<_>>()?;
    (fits && (1..=3).contains(&dims.len())).then_some(dims)
}

/// The reason for rejecting an output that does not exist, with the name that was probably
/// intended.
fn no_such_output<'a>(
    graph: &'a proto::Graph,
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

/// The text for a shape in a file, with `?` for a size that is not fixed.
fn open_dims(dims: &[Option<usize>]) -> String {
    let sizes: Vec<_> = dims
        .iter()
        .take(8)
        .map(|dim| dim.map_or_else(|| "?".to_owned(), |dim| dim.to_string()))
        .collect();
    sizes.join(" x ")
}

/// The batch size of a file's input and the shape of one sample.
fn sample(input: &proto::ValueInfo, given: Option<Shape>) -> Result<(usize, Vec<usize>), Error> {
    let name = shortened(&input.name);
    let shape = input
        .r#type
        .as_ref()
        .and_then(|of| of.tensor.as_ref())
        .and_then(|tensor| tensor.shape.as_ref());
    let known = |value: Option<i64>| {
        value.and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0)
    };
    let dims: Vec<Option<usize>> =
        shape.iter().flat_map(|shape| &shape.dim).map(|dim| known(dim.value)).collect();
    let batch = dims.first().copied().flatten().unwrap_or(1);
    if let Some(given) = given {
        if given.size() == 0 {
            return Err(malformed(format!(
                "the given shape {given} has a size of 0: all sizes must be at least 1"
            )));
        }
        let fits = |(dim, given): (&Option<usize>, &usize)| dim.is_none_or(|dim| dim == *given);
        if !dims.is_empty()
            && (dims.len() != given.dims().len() + 1
                || !dims[1..].iter().zip(given.dims()).all(fits))
        {
            return Err(malformed(format!(
                "the given shape {given} does not fit its input '{name}', which is {} (with the \
                 batch axis)",
                open_dims(&dims)
            )));
        }
        return Ok((batch, given.dims().to_vec()));
    }
    let [_, rest @ ..] = dims.as_slice() else {
        return Err(malformed(format!(
            "the file has no shape for its input '{name}': give the shape of one sample, with \
             OnnxFile::input"
        )));
    };
    if rest.is_empty() {
        let reason =
            "has only one axis: export the model with an input of shape samples x features";
        return Err(malformed(format!("its input '{name}' {reason}")));
    }
    if rest.len() > 3 {
        return Err(malformed(format!(
            "its input '{name}' has {} axes, but only 2 (vectors), 3 (sequences) or 4 (images) are \
             supported, with the batch axis",
            rest.len() + 1
        )));
    }
    let open = || {
        malformed(format!(
            "the file does not fix the shape of its input '{name}': give the shape of one sample, \
             with OnnxFile::input"
        ))
    };
    Ok((batch, rest.iter().copied().collect::<Option<_>>().ok_or_else(open)?))
}
