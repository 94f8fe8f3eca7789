//! ONNX models.
//!
//! A file contains a graph of operators. The part between its input and one of its outputs becomes
//! a [`Graph`], in four stages:
//!
//! 1. Decode the protobuf messages ([`proto`]).
//! 2. Visit the nodes in order ([`reader`]). A node whose inputs are all constants is computed
//!    ([`fold`]). Other nodes are translated into an intermediate representation ([`ir`]) by the
//!    registry of operators ([`operator`]), in which functions that exporters write as several
//!    operators are recognized ([`recognition`]).
//! 3. Replace patterns of several nodes ([`pattern`]).
//! 4. Declare the layers of the graph ([`build`]).

mod affine;
mod budget;
mod build;
mod constant;
mod context;
mod expression;
mod fold;
mod input;
mod ir;
mod operator;
mod pattern;
mod proto;
mod reader;
mod recognition;
mod scaled;
mod shapes;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::architecture::shortened;
use super::recognize;
use super::tensor::Data;
use crate::error::Error;
use crate::graph::{Graph, Node};
use crate::scalar::Scalar;
use crate::sequential::Sequential;
use crate::shape::Shape;
use proto::{GraphProto, ModelProto, ValueInfoProto};
use reader::NodeReader;

/// The most nodes that a graph can have.
const NODES: usize = 1 << 15;

/// The supported versions of the operator set. The meaning of an operator can change between
/// versions.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=28;

/// An ONNX file, before it is turned into a model.
///
/// Use this for files with several outputs or with an input whose shape is not fixed, to choose the
/// output and the shape. [`Graph::read_onnx`] reads all other files in one step.
///
/// ```no_run
/// use relprop::io::OnnxFile;
///
/// let file = OnnxFile::open("detector.onnx")?;
/// println!("{:?}", file.outputs());
/// let graph = file.input([3, 224, 224]).output("scores").to_graph::<f32>()?;
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct OnnxFile {
    graph: GraphProto,
    size: usize,
    folder: Option<PathBuf>,
    input: Option<Shape>,
    output: Option<String>,
    opset: i64,
}

impl OnnxFile {
    /// Opens an ONNX file.
    ///
    /// External data is read only from files in or below the folder of the model.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut file =
            Self::from_bytes(Data::of_file(path)?.read()?).map_err(|error| error.in_file(path))?;
        file.folder = Some(
            path.parent()
                .filter(|folder| *folder != Path::new(""))
                .unwrap_or(Path::new("."))
                .to_owned(),
        );
        Ok(file)
    }

    /// Reads the content of an ONNX file, which must contain all of its weights.
    ///
    /// A `Vec<u8>` is not copied.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let size = bytes.len();
        // Decoding consumes the bytes, so this is for its error.
        let what = recognize::recognize(&bytes[..size.min(recognize::ENOUGH)]);
        let Ok(ModelProto { graph: Some(graph), opset_import }) = ModelProto::decode(bytes) else {
            return Err(malformed(no_model(what)));
        };
        let opset = opset_import
            .iter()
            .find(|opset| is_standard(&opset.domain))
            .map_or(0, |opset| opset.version);
        let file = Self { graph, size, folder: None, input: None, output: None, opset };
        let nodes = file.graph.node.len();
        if !OPSETS.contains(&opset) {
            let (oldest, newest) = (OPSETS.start(), OPSETS.end());
            let reason = format!(
                "its operator set has version {opset}, but only versions {oldest} to {newest} are \
                 supported: export the model again with opset_version=17, or convert it with \
                 onnx.version_converter"
            );
            return Err(malformed(reason));
        }
        if nodes > NODES {
            return Err(malformed(format!(
                "its graph has {nodes} nodes, but at most {NODES} are supported: simplify the \
                 model, for example with onnx-simplifier"
            )));
        }
        Ok(file)
    }

    /// The names of the outputs.
    #[must_use]
    pub fn outputs(&self) -> Vec<&str> {
        self.graph.output.iter().map(|output| output.name.as_str()).collect()
    }

    /// Sets the shape of a sample, for a file that does not fix it.
    #[must_use]
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// Chooses the output to explain, for a file with several outputs.
    ///
    /// The name can also be that of any other value in the graph. The model then ends there.
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.output = Some(name.into());
        self
    }

    /// Builds the graph from the input to the output.
    ///
    /// Each node of the file becomes a layer with the node's name, and reads the same values. If a
    /// node becomes several layers, a number is added to the name from the second layer on. Nodes
    /// that change no value become no layer.
    ///
    /// # Errors
    /// [`Error::UnsupportedNodes`], which lists all nodes that cannot be explained;
    /// [`Error::Malformed`] for a file that is invalid, has several inputs, or does not determine
    /// the output or the shape of a sample; and the errors of
    /// [`GraphBuilder::build`](crate::GraphBuilder::build).
    pub fn to_graph<T: Scalar>(&self) -> Result<Graph<T>, Error> {
        (T::compiled().graph_of_onnx)(self)
    }

    /// Builds the model of a file whose layers form a row.
    ///
    /// # Errors
    /// [`Error::NotAChain`] if a layer does not read only the layer before it, as in a network with
    /// branches; and the errors of [`to_graph`](Self::to_graph).
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        chain(self.to_graph()?)
    }

    pub(crate) fn to_graph_inner<T: Scalar>(&self) -> Result<Graph<T>, Error> {
        let graph = &self.graph;
        let output = self.output.as_deref().map_or_else(|| self.only(graph), Ok)?;
        NodeReader::new(graph, self.opset, self.size, self.folder.as_deref(), self.input)?
            .read(output)
    }

    /// The name of the only output with floating-point numbers.
    fn only<'a>(&self, graph: &'a GraphProto) -> Result<&'a str, Error> {
        let listed = || {
            self.outputs()
                .iter()
                .take(20)
                .map(|name| format!("'{}'", shortened(name)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        // A scikit-learn classifier has a second output, the label, which is an integer or string.
        // The numbers below are ONNX's element types for unknown, f32, f16, f64 and bf16.
        let floating = |output: &&ValueInfoProto| {
            let tensor = output.r#type.as_ref().and_then(|of| of.tensor.as_ref());
            tensor.is_none_or(|tensor| matches!(tensor.elem_type, 0 | 1 | 10 | 11 | 16))
        };
        match graph.output.iter().filter(floating).collect::<Vec<_>>().as_slice() {
            [one] => Ok(&one.name),
            [] => Err(malformed(
                "it has no output of floating-point numbers: export the model with its scores or \
                 probabilities as an output"
                    .to_owned(),
            )),
            _ => Err(malformed(format!(
                "it has several outputs ({}): choose the one to explain with OnnxFile::output",
                listed()
            ))),
        }
    }
}

impl<T: Scalar> Graph<T> {
    /// Reads a network from an ONNX file with one input and one floating-point output.
    ///
    /// Calls [`OnnxFile::open`] and [`OnnxFile::to_graph`]. The layers have the names of the nodes.
    /// A batch norm that the exporter did not fold becomes a layer; call
    /// [`canonize`](Self::canonize) before you explain such a network. A log-softmax at the end
    /// becomes a softmax, whose logits are explained, and a pair of outputs p and 1 - p becomes the
    /// probabilities of two logits. A factor of an activation's argument or value becomes part of
    /// the activation ([`Scaled`](crate::Scaled)). Casts to 16-bit numbers are ignored, because the
    /// network computes in `T` throughout.
    ///
    /// # Errors
    /// The errors of [`OnnxFile::open`] and [`OnnxFile::to_graph`].
    ///
    /// # Example
    /// ```no_run
    /// use relprop::{Graph, Rule};
    /// use relprop::nalgebra::DVector;
    ///
    /// let graph = Graph::<f32>::read_onnx("model.onnx")?.canonize()?.0;
    /// let sample = DVector::zeros(graph.inputs());
    /// println!("{}", graph.explain(&sample, Rule::Epsilon)?);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn read_onnx(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        OnnxFile::open(path)?.to_graph().map_err(|error| error.in_file(path))
    }
}

impl<T: Scalar> Sequential<T> {
    /// Reads a network whose layers form a row from an ONNX file, like [`Graph::read_onnx`].
    ///
    /// # Errors
    /// [`Error::NotAChain`] if a layer does not read only the layer before it, as in a network with
    /// branches, which [`Graph::read_onnx`] reads; and the errors of [`Graph::read_onnx`].
    pub fn read_onnx(path: impl AsRef<Path>) -> Result<Self, Error> {
        chain(Graph::read_onnx(path)?)
    }
}

/// A graph whose layers form a row, as a model.
fn chain<T: Scalar>(graph: Graph<T>) -> Result<Sequential<T>, Error> {
    // The input comes first among the values, so each number is that of the value before the node.
    let in_row = |(before, node): &(usize, &Node<T>)| node.inputs == [*before];
    let Some((_, node)) = graph.node_list().iter().enumerate().find(|node| !in_row(node)) else {
        return Ok(Sequential::of(graph));
    };
    let names: Vec<String> = node
        .inputs
        .iter()
        .take(8)
        .map(|&value| format!("'{}'", shortened(graph.name_of(value))))
        .collect();
    let more = match node.inputs.len() - names.len() {
        0 => String::new(),
        more => format!(" and {more} more values"),
    };
    Err(Error::NotAChain {
        layer: shortened(&node.name),
        kind: node.layer.kind().to_owned(),
        reads: names.join(", ") + &more,
    })
}

/// The reason for rejecting a file that is not a model or is only part of one.
fn no_model(what: Option<&'static str>) -> String {
    match what {
        Some(recognize::ONNX) => {
            "it begins like an ONNX model, but is truncated or damaged: download or export it again"
                .to_owned()
        }
        Some(
            weights @ (recognize::SAFETENSORS
            | recognize::CHECKPOINT
            | recognize::ARRAY
            | recognize::ARRAYS),
        ) => {
            format!(
                "it is {weights}, which contains only weights: read it with StateDict::open, or \
                 export the model to ONNX"
            )
        }
        other => recognize::instead(other, "ONNX models"),
    }
}

/// Whether a domain is that of ONNX's own operators, not of a vendor's.
fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn malformed(reason: String) -> Error {
    Error::Malformed { format: "ONNX".to_owned(), reason }
}
