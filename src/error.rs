//! The one error type of the crate.

use crate::shape::{Shape, TooManyAxes};

/// Everything that can go wrong. Each variant carries what you need to fix the problem.
///
/// `layer` is the index of a layer. Layers are counted from 0 in the order in which they are listed.
/// `name` is the layer's name in the printed model, in the ledger and in all other results. `kind` is
/// its name in PyTorch (`"Linear"`, `"ReLU"`). A call that returns an error has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model was built without any layers.
    #[error("the model has no layers; add at least one linear layer")]
    EmptyModel,

    /// A model has no linear layer.
    #[error(
        "none of the model's {layers} layers is linear; a model needs at least one linear layer"
    )]
    NoLinearLayer {
        /// How many layers the model has.
        layers: usize,
    },

    /// A layer does not accept the shape of a value that it reads.
    #[error("layer {name} ({kind}) expects {expected}, but got {found}")]
    LayerShape {
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
        /// What the layer accepts.
        expected: String,
        /// The shape of the value.
        found: Shape,
    },

    /// A layer does not accept values of this shape.
    #[error("{kind} expects {expected}, but got {found}")]
    Shape {
        /// The layer's kind, with its place in the model if that is known.
        kind: String,
        /// What the layer accepts.
        expected: String,
        /// The shape found.
        found: Shape,
    },

    /// A layer reads another number of values.
    #[error("{kind} reads {expected}, but {} given", values(*.found))]
    InputCount {
        /// The layer's kind, with its place in the model if that is known.
        kind: String,
        /// How many values the layer reads, as part of a sentence.
        expected: String,
        /// How many values it was given.
        found: usize,
    },

    /// A layer in which each output is one of the inputs returned an index that does not exist.
    #[error(
        "{kind}: output {output} is a copy of input {index}, but the layer has only {inputs} \
         inputs (counted from 0); its Route must set every index to one of them"
    )]
    RouteIndex {
        /// The layer's kind.
        kind: String,
        /// The output's index.
        output: usize,
        /// The index that was returned, or `usize::MAX` if it was not set.
        index: usize,
        /// How many inputs the layer has.
        inputs: usize,
    },

    /// A shape has too many axes.
    #[error(transparent)]
    TooManyAxes(#[from] TooManyAxes),

    /// A graph is not a network.
    #[error("the graph cannot be built: {reason}")]
    InvalidGraph {
        /// What is wrong, and what to do.
        reason: String,
    },

    /// A graph has no value with this name.
    #[error("the graph has no input and no layer named '{name}'{nearest}")]
    NoSuchValue {
        /// The name that was requested.
        name: String,
        /// `, did you mean 'head'?` if there is a similar name, otherwise empty.
        nearest: String,
    },

    /// The layers of a graph do not form a row, so the graph is not a
    /// [`Sequential`](crate::Sequential).
    #[error(
        "layer '{layer}' ({kind}) reads {reads}, but in a Sequential each layer reads only the \
         layer before it: use a Graph instead (for an ONNX model, call Graph::read_onnx or \
         OnnxFile::to_graph)"
    )]
    NotAChain {
        /// The name of the first layer that does not read only the layer before it.
        layer: String,
        /// The layer's kind.
        kind: String,
        /// The names of the values that it reads, as part of a sentence.
        reads: String,
    },

    /// A model's output does not depend on the values to explain.
    #[error(
        "the output '{output}' does not depend on {entries}; choose another output with \
         Graph::with_output, or other values to explain with Graph::explain_from"
    )]
    NotDependent {
        /// The name of the output's value.
        output: String,
        /// The names of the values to explain, as part of a sentence.
        entries: String,
    },

    /// The values of a model's inputs do not fit the model.
    #[error("{reason}")]
    Inputs {
        /// What is wrong, and what to do.
        reason: String,
    },

    /// The first layer of a model accepts inputs of more than one shape, and no input shape was
    /// set.
    #[error(
        "layer 0 ({kind}) accepts inputs of more than one shape; set the shape with \
         SequentialBuilder::input"
    )]
    UnknownInput {
        /// The first layer's kind.
        kind: String,
    },

    /// The length of a bias differs from the number of outputs.
    #[error(
        "{kind}: the bias has {found} values, but the layer has {outputs} outputs (its weights \
         are {outputs} x {inputs})"
    )]
    BiasShape {
        /// The layer's kind.
        kind: String,
        /// How many values the bias has.
        found: usize,
        /// How many outputs the layer has.
        outputs: usize,
        /// How many inputs the layer has.
        inputs: usize,
    },

    /// The length of a slice of weights does not match its shape.
    #[error(
        "{kind}: got {found} weights for a shape of {outputs} x {inputs}; pass one weight for \
         each output and input"
    )]
    WeightCount {
        /// The layer's kind.
        kind: String,
        /// How many values the slice has.
        found: usize,
        /// How many outputs the shape has.
        outputs: usize,
        /// How many inputs the shape has.
        inputs: usize,
    },

    /// A layer has no inputs or no outputs.
    #[error(
        "{kind}: a layer needs at least one input and one output, but the weights are {outputs} x \
         {inputs}"
    )]
    ZeroSized {
        /// The layer's kind.
        kind: String,
        /// How many outputs the layer has.
        outputs: usize,
        /// How many inputs the layer has.
        inputs: usize,
    },

    /// A softmax is not the last layer of the model.
    #[error(
        "layer {name} (Softmax) is followed by other layers; only a softmax at the very end can be \
         explained (through its logits), so end the model with it or remove it"
    )]
    SoftmaxInMiddle {
        /// The softmax's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The index of the layer after it.
        next: usize,
    },

    /// A softmax is in a branch.
    #[error(
        "layer {name} (Softmax) is in a branch; only a softmax at the very end of the model can \
         be explained (through its logits), so remove it"
    )]
    SoftmaxInBranch {
        /// The softmax's index.
        layer: usize,
        /// The layer's name.
        name: String,
    },

    /// The length of a sample differs from the number of values that the model expects.
    #[error("the model expects {expected} values (layer 0 is {kind}), but the sample has {found}")]
    InputShape {
        /// The first layer's kind.
        kind: String,
        /// How many values a sample of the model has.
        expected: usize,
        /// How many values the sample has.
        found: usize,
    },

    /// The length of a batch is not a multiple of the model's number of inputs.
    #[error(
        "{found} values are not a whole number of samples: the model expects {inputs} values per \
         sample, which gives {} samples and a remainder of {}",
        .found / .inputs, .found % .inputs
    )]
    BatchLength {
        /// How many inputs the model has.
        inputs: usize,
        /// How many values the slice has.
        found: usize,
    },

    /// A result does not fit the slice it is written to.
    #[error("the {what} has {expected} values, but the slice to write it to has {found}")]
    SliceLength {
        /// What is written.
        what: String,
        /// How many values it has.
        expected: usize,
        /// How many values the slice has.
        found: usize,
    },

    /// The model does not have the requested output.
    #[error(
        "output {target} was requested, but the model has outputs 0 to {last}",
        last = .outputs - 1
    )]
    TargetOutOfRange {
        /// The output that was requested.
        target: usize,
        /// How many outputs the model has.
        outputs: usize,
    },

    /// The model has the requested output, but it is not among the explainer's targets.
    #[error(
        "output {target} was requested, but the explainer's targets are {explained:?}; add it to \
         the targets"
    )]
    NotExplained {
        /// The output that was requested.
        target: usize,
        /// The outputs that are explained.
        explained: Vec<usize>,
    },

    /// The model does not have the requested layer.
    #[error(
        "layer {layer} was requested, but the model has layers 0 to {last}; for the outputs, use \
         the index {layers}",
        last = .layers - 1
    )]
    LayerOutOfRange {
        /// The layer that was requested.
        layer: usize,
        /// How many layers the model has.
        layers: usize,
    },

    /// The weights of a layer without weights were requested.
    #[error("layer {name} has no weights because it is not a linear layer")]
    NotLinear {
        /// The layer that was requested.
        layer: usize,
        /// The layer's name.
        name: String,
    },

    /// A layer does not have the requested unit.
    #[error(
        "unit {unit} was requested, but layer {name} has {units} inputs (units are counted from 0)"
    )]
    UnitOutOfRange {
        /// The unit that was requested.
        unit: usize,
        /// The layer.
        layer: usize,
        /// The layer's name.
        name: String,
        /// How many inputs the layer has.
        units: usize,
    },

    /// A weighting of outputs does not have exactly one weight per output.
    #[error(
        "the weightings have {found} rows, but the model has {outputs} outputs; use one row per \
         output"
    )]
    WeightingShape {
        /// How many rows the weightings have.
        found: usize,
        /// How many outputs the model has.
        outputs: usize,
    },

    /// A weight is NaN or infinite.
    #[error(
        "{kind}: the weight of output {output} for input {input} is {value}; it must be finite"
    )]
    NonFiniteWeight {
        /// The layer's kind.
        kind: String,
        /// The weight's row.
        output: usize,
        /// The weight's column.
        input: usize,
        /// The value found.
        value: f64,
    },

    /// A bias is NaN or infinite.
    #[error("{kind}: the bias of output {output} is {value}; it must be finite")]
    NonFiniteBias {
        /// The layer's kind.
        kind: String,
        /// The output's index.
        output: usize,
        /// The value found.
        value: f64,
    },

    /// A value of a sample is NaN or infinite.
    #[error("value {index} of {input} of sample {sample} is {value}; it must be finite")]
    NonFiniteInput {
        /// The name of the model's input.
        input: String,
        /// The value's index within this input.
        index: usize,
        /// The sample's index in the batch, 0 for a single sample.
        sample: usize,
        /// The value found.
        value: f64,
    },

    /// A layer's output is NaN or infinite although its input is finite: the network overflows the
    /// number type.
    #[error(
        "output {index} of layer {name} ({kind}) is {value}: the network overflows the number \
         type for this sample; smaller inputs may help"
    )]
    NonFiniteOutput {
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
        /// The output's index within the layer.
        index: usize,
        /// The value found.
        value: f64,
    },

    /// Relevances are too large for the number type.
    #[error(
        "the relevances at layer {name} ({kind}) are too large for the number type; use a larger \
         epsilon or f64"
    )]
    Overflow {
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
    },

    /// A parameter of a rule or of a layer is outside its range.
    #[error("{of}: {parameter} must be {requirement}, but is {value}")]
    InvalidParameter {
        /// The rule or the kind of layer.
        of: String,
        /// The parameter's name.
        parameter: String,
        /// The value given.
        value: String,
        /// The condition that a valid value meets.
        requirement: String,
    },

    /// A rule does not support a layer.
    #[error("{rule} cannot be used at layer {name} ({kind}): {reason}")]
    Unsupported {
        /// The rule's name.
        rule: String,
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
        /// Why the rule cannot be used.
        reason: String,
    },

    /// A setting of a composite matches no layer.
    #[error("{setting} matches no layer, so {rule} would not be used{nearest} ({layers})")]
    UnmatchedSetting {
        /// The setting, such as `Composite::layer("haed", ..)`.
        setting: String,
        /// The rule's name.
        rule: String,
        /// `, did you mean 'head'?` if some layer has a similar name, otherwise empty.
        nearest: String,
        /// The layers to which rules apply, as part of a sentence.
        layers: String,
    },

    /// A value is outside the range that a rule assumes for a layer's inputs, such as the box of
    /// [`ZBox`](crate::ZBox).
    #[error(
        "input {input} of layer {name} ({kind}) is {value} in sample {sample}, outside the range \
         from {low} to {high} that {rule} assumes (inputs outside: {count}): widen the range, or \
         let the rule report such samples (Outside::Report)"
    )]
    OutsideRange {
        /// The rule's name.
        rule: String,
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
        /// The sample's index in the batch, 0 for a single sample.
        sample: usize,
        /// The input that is farthest outside.
        input: usize,
        /// Its value.
        value: f64,
        /// The lower bound of its range.
        low: f64,
        /// The upper bound of its range.
        high: f64,
        /// How many inputs of the sample are outside.
        count: usize,
    },

    /// A call would use more memory than its limit.
    #[error(
        "{what} would take {}, more than the limit of {}: {remedy}",
        memory(*.bytes),
        memory(*.limit)
    )]
    TooLarge {
        /// What needs the memory.
        what: String,
        /// How many bytes it needs.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
        /// What to do.
        remedy: String,
    },

    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the operating system reported.
        source: std::io::Error,
    },

    /// A file is invalid or unsupported.
    #[error("not a usable {format} file: {reason}")]
    Malformed {
        /// The format's name.
        format: String,
        /// What is wrong.
        reason: String,
    },

    /// The tensors of a file do not match the architecture.
    #[error(
        "the weights do not fit the architecture:{}",
        list_tensors(.missing, .surplus, .misshapen, .notes)
    )]
    StateDict {
        /// Tensors that the architecture needs but the file does not have.
        missing: Vec<String>,
        /// Tensors of the file that the architecture does not use.
        surplus: Vec<String>,
        /// Tensors whose shape differs from the one that the architecture needs.
        misshapen: Vec<Misshapen>,
        /// Possible causes and what to do about them, one sentence each.
        notes: Vec<String>,
    },

    /// An ONNX model has operators that are unsupported, in general or at their position.
    #[error(
        "the model has {}{} that cannot be explained:{}",
        count(.nodes.len()),
        family(.nodes),
        list_nodes(.nodes)
    )]
    UnsupportedNodes {
        /// All unsupported nodes between the input and the output.
        nodes: Vec<UnsupportedNode>,
    },

    /// A layer cannot be written to a file, because it is not one of the crate's own and could not
    /// be read back.
    #[error(
        "layer {name} ({kind}) cannot be written to a file because it is not one of the crate's \
         own layers"
    )]
    NotWritable {
        /// The layer's index.
        layer: usize,
        /// The layer's name.
        name: String,
        /// The layer's kind.
        kind: String,
    },
}

/// A tensor whose shape differs from the one that the architecture needs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Misshapen {
    /// The tensor's name.
    pub name: String,
    /// The shape that the architecture needs.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// A node of an ONNX model that cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct UnsupportedNode {
    /// The node's name, or the name of its first output if it has none.
    pub name: String,
    /// The operator, with its domain unless that is ONNX's own.
    pub operator: String,
    /// The node's place in the file, such as `graph.node[3]`.
    pub path: String,
    /// Why it cannot be explained.
    pub reason: String,
}

fn values(count: usize) -> String {
    match count {
        1 => "1 value is".to_owned(),
        _ => format!("{count} values are"),
    }
}

/// A number of bytes, in the unit that is easiest to read.
fn memory(bytes: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{size:.1} {}", units[unit]) }
}

fn count(nodes: usize) -> String {
    if nodes == 1 { "a node".to_owned() } else { format!("{nodes} nodes") }
}

/// The kind of network that the nodes belong to, if that tells more than the list of nodes.
fn family(nodes: &[UnsupportedNode]) -> &'static str {
    let has =
        |operators: &[&str]| nodes.iter().any(|node| operators.contains(&node.operator.as_str()));
    if has(&["LSTM", "GRU", "RNN"]) {
        " (of a recurrent network)"
    } else if has(&["LayerNormalization"]) && has(&["Softmax"]) {
        " (of a transformer: attention and layer norms)"
    } else {
        ""
    }
}

fn list_nodes(nodes: &[UnsupportedNode]) -> String {
    let line = |node: &UnsupportedNode| {
        let UnsupportedNode { name, operator, path, reason } = node;
        format!("\n  {operator} '{name}' ({path}): {reason}")
    };
    nodes.iter().map(line).collect()
}

fn list_tensors(
    missing: &[String],
    surplus: &[String],
    misshapen: &[Misshapen],
    notes: &[String],
) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for (title, names) in [("missing", missing), ("surplus", surplus)] {
        if !names.is_empty() {
            let _ = write!(text, "\n  {title}: {}", names.join(", "));
        }
    }
    for m in misshapen {
        let _ = write!(text, "\n  {}: the shape is {:?}, not {:?}", m.name, m.found, m.expected);
    }
    for note in notes {
        let _ = write!(text, "\n  {note}");
    }
    text
}

impl Error {
    /// Wraps an operating system error about a file.
    #[cfg(any(feature = "io", feature = "heatmap"))]
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// Converts the sample's index in a part of a batch that begins at `first` to its index in the
    /// whole batch.
    pub(crate) fn in_batch(mut self, first: usize) -> Self {
        if let Self::OutsideRange { sample, .. } = &mut self {
            *sample += first;
        }
        self
    }

    /// Prefixes the reason of [`Error::Malformed`] with the file's path.
    #[cfg(feature = "io")]
    pub(crate) fn in_file(mut self, path: &std::path::Path) -> Self {
        if let Self::Malformed { reason, .. } = &mut self {
            *reason = format!("{}: {reason}", path.display());
        }
        self
    }

    /// The error for a shape that a layer does not accept.
    pub(crate) fn shape(kind: &str, found: Shape, expected: impl Into<String>) -> Self {
        Self::Shape { kind: kind.to_owned(), expected: expected.into(), found }
    }

    /// The error for a layer that reads another number of values.
    pub(crate) fn inputs(kind: &str, found: usize, expected: &str) -> Self {
        Self::InputCount { kind: kind.to_owned(), expected: expected.to_owned(), found }
    }

    /// The error for a parameter outside its range.
    pub(crate) fn parameter(
        of: &str,
        parameter: &str,
        value: impl std::fmt::Debug,
        requirement: &str,
    ) -> Self {
        Self::InvalidParameter {
            of: of.to_owned(),
            parameter: parameter.to_owned(),
            value: format!("{value:?}"),
            requirement: requirement.to_owned(),
        }
    }
}
