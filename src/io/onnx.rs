//! ONNX models.
//!
//! A file is a graph of operators; what lies between its input and one of its outputs becomes a
//! [`Sequential`], in four steps: the messages are decoded ([`proto`]), what does not depend on the
//! input is computed ([`fold`]), each operator becomes layers or a join of several ways ([`graph`],
//! [`operator`] and what it calls), and sums and concatenations become branches ([`branches`]),
//! after factors have become part of their activations ([`ending`]).

mod activation;
mod arithmetic;
mod branches;
mod budget;
mod constant;
mod ending;
mod expression;
mod fold;
mod graph;
mod operator;
mod proto;
mod scaled;
mod shapes;
mod step;
mod windows;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;

use super::architecture::shortened;
use super::recognize;
use super::tensor::Data;
use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::Sequential;
use crate::shape::Shape;
use graph::Reader;
use proto::{Model, ValueInfo};

/// No graph has more nodes.
const NODES: usize = 1 << 15;

/// The sets of operators that are read: what an operator means may change from one to the next.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=28;

/// An ONNX file before a model is made of it: where it has several outputs, or an input of no fixed
/// shape, it has to be told which. For all others there is [`Sequential::read_onnx`].
///
/// ```no_run
/// use relprop::io::OnnxFile;
///
/// let file = OnnxFile::open("detector.onnx")?;
/// println!("{:?}", file.outputs());
/// let model = file.input([3, 224, 224]).output("scores").to_model::<f32>()?;
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct OnnxFile {
    graph: proto::Graph,
    size: usize,
    folder: Option<PathBuf>,
    input: Option<Shape>,
    output: Option<String>,
    opset: i64,
}

impl OnnxFile {
    /// Opens a model. External data is read from files in or below its folder, and nowhere else.
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

    /// Reads the content of a model's file, which has to hold all of its weights. A `Vec<u8>` is
    /// taken as it is.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let bytes = bytes.into();
        let size = bytes.len();
        let what = recognize::recognize(&bytes[..size.min(recognize::ENOUGH)]);
        let Ok(Model { graph: Some(graph), opset_import }) = Model::decode(bytes) else {
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
                "its operator set is version {opset}, and versions {oldest} to {newest} are supported: export the model again with opset_version=17, or convert it with onnx.version_converter"
            );
            return Err(malformed(reason));
        }
        if nodes > NODES {
            return Err(malformed(format!(
                "its graph has {nodes} nodes, and at most {NODES} are supported"
            )));
        }
        Ok(file)
    }

    /// The names of the outputs.
    #[must_use]
    pub fn outputs(&self) -> Vec<&str> {
        self.graph.output.iter().map(|output| output.name.as_str()).collect()
    }

    /// The shape of a sample, where the file leaves it open.
    #[must_use]
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// The output that is explained, where there are several; the name of any other value of the
    /// graph does as well, and the model ends there.
    #[must_use]
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.output = Some(name.into());
        self
    }

    /// The model from the input to the output.
    ///
    /// # Errors
    /// [`Error::UnsupportedNodes`] with all nodes that cannot be explained; [`Error::Malformed`]
    /// for a graph that is not sound, has several inputs, or leaves open which output is meant or
    /// how large a sample is; and those of
    /// [`SequentialBuilder::build`](crate::SequentialBuilder::build).
    pub fn to_model<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        (T::compiled().model_of_onnx)(self)
    }

    pub(crate) fn to_model_inner<T: Scalar>(&self) -> Result<Sequential<T>, Error> {
        let graph = &self.graph;
        let output = self.output.as_deref().map_or_else(|| self.only(graph), Ok)?;
        Reader::new(graph, self.opset, self.size, self.folder.as_deref(), self.input)?
            .read(graph, output)
    }

    /// The only output that has numbers of floating point.
    fn only<'a>(&self, graph: &'a proto::Graph) -> Result<&'a str, Error> {
        let listed = || {
            self.outputs()
                .iter()
                .take(20)
                .map(|name| format!("'{}'", shortened(name)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        // A classifier of scikit-learn has a label besides, a whole number or a text.
        let floating = |output: &&ValueInfo| {
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
                "it has several outputs ({}): say which one to explain, \
                with OnnxFile::output",
                listed()
            ))),
        }
    }
}

impl<T: Scalar> Sequential<T> {
    /// Reads a model from an ONNX file with one input and one output of floating point:
    /// [`OnnxFile::open`], [`OnnxFile::to_model`].
    ///
    /// The layers have the names of the nodes. A batch-normalization that the exporter has left
    /// alone is a layer of its own: [`canonize`](Self::canonize) before you explain. A log-softmax
    /// at the end becomes a softmax, whose logits are explained, and p and 1 - p become the
    /// probabilities of two logits. A number that an activation's argument or value is multiplied
    /// by is part of the activation ([`Scaled`](crate::Scaled)). Casts to numbers of 16 bits are
    /// left out: the model computes in `T` throughout.
    ///
    /// # Errors
    /// Those of both.
    ///
    /// # Example
    /// ```no_run
    /// use relprop::{Rule, Sequential};
    /// use relprop::nalgebra::DVector;
    ///
    /// let model = Sequential::<f32>::read_onnx("model.onnx")?.canonize()?.0;
    /// let sample = DVector::zeros(model.inputs());
    /// println!("{}", model.explain(&sample, Rule::Epsilon)?);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn read_onnx(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        OnnxFile::open(path)?.to_model().map_err(|error| error.in_file(path))
    }
}

/// What is said of a file that is no model, or only a part of one.
fn no_model(what: Option<&'static str>) -> String {
    match what {
        Some(recognize::ONNX) => {
            "it begins as an ONNX model and is cut off or damaged: download or export it again"
                .to_owned()
        }
        Some(
            weights @ (recognize::SAFETENSORS
            | recognize::CHECKPOINT
            | recognize::ARRAY
            | recognize::ARRAYS),
        ) => {
            format!(
                "it is {weights}, which has weights only: read it with StateDict::open, or export \
                 the model to ONNX"
            )
        }
        other => recognize::instead(other, "ONNX models"),
    }
}

/// ONNX's own operators, not those of a vendor.
fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn malformed(reason: String) -> Error {
    Error::Malformed { format: "ONNX".to_owned(), reason }
}
