//! The one error type of the crate.

use crate::shape::Shape;

/// What can go wrong, each case with what is needed to mend it.
///
/// Layers are counted from 0 in the order in which they were added, as in PyTorch's
/// `nn.Sequential`; `kind` is the layer's name there (`"Linear"`, `"ReLU"`). A call that returns an
/// error has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model was built without a single layer.
    #[error("the model has no layers")]
    EmptyModel,

    /// No layer of the model fixes how many inputs it takes.
    #[error(
        "none of the model's {layers} layers says how many inputs it takes; a model needs at least one linear layer"
    )]
    NoLinearLayer {
        /// How many layers the model has.
        layers: usize,
    },

    /// A layer does not take as many values as the layers before it give.
    #[error("layer {layer} ({kind}) takes {expected}, but {} {found}", before(*.layer))]
    LayerShape {
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
        /// What the layer takes.
        expected: String,
        /// The shape that it would be given.
        found: Shape,
    },

    /// A layer cannot take values of the shape that the layers before it give.
    #[error("{kind} takes {expected}, but is given {found}")]
    Shape {
        /// The layer's kind, with its place in the model where that is known.
        kind: String,
        /// What the layer takes.
        expected: String,
        /// The shape found.
        found: Shape,
    },

    /// A model does not begin with a layer that says how many inputs it takes, and was not told its
    /// input's shape.
    #[error(
        "layer 0 ({kind}) takes inputs of many shapes: say which, with SequentialBuilder::input"
    )]
    UnknownInput {
        /// The first layer's kind.
        kind: String,
    },

    /// A layer's bias has not one value for each of its outputs.
    #[error(
        "{kind}: the bias has {found} values for {outputs} outputs (weights are {outputs} x \
         {inputs})"
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

    /// A slice of weights has not the length that its shape says.
    #[error("{kind}: {found} weights were given for a shape of {outputs} x {inputs}")]
    WeightCount {
        /// The layer's kind.
        kind: String,
        /// How many values the slice has.
        found: usize,
        /// How many outputs were asked for.
        outputs: usize,
        /// How many inputs were asked for.
        inputs: usize,
    },

    /// A layer has no inputs or no outputs.
    #[error(
        "{kind}: a layer needs at least one input and one output, the weights are {outputs} x \
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

    /// A softmax stands anywhere but at the end of the model.
    #[error(
        "layer {layer} (Softmax) is followed by other layers; only a softmax at the very end can \
         be explained (its logits are), \
         so end the model before layer {next} or remove the softmax"
    )]
    SoftmaxInMiddle {
        /// The softmax's index.
        layer: usize,
        /// The index of the layer behind it.
        next: usize,
    },

    /// A softmax is in a branch.
    #[error(
        "layer {layer} (Softmax) is in a branch; only a softmax at the very end can be explained \
         (its logits are), so remove it"
    )]
    SoftmaxInBranch {
        /// The softmax's index.
        layer: usize,
    },

    /// A sample has not as many values as the model has inputs.
    #[error("the model takes {expected} inputs (layer 0 is {kind}), the sample has {found}")]
    InputShape {
        /// The first layer's kind.
        kind: String,
        /// How many inputs the model has.
        expected: usize,
        /// How many values the sample has.
        found: usize,
    },

    /// A slice is not one sample after another: its length is no multiple of the model's inputs.
    #[error(
        "{found} values are not a whole number of samples: the model takes {inputs} values a sample, so {} samples leave {} over",
        .found / .inputs, .found % .inputs
    )]
    BatchLength {
        /// How many inputs the model has.
        inputs: usize,
        /// How many values the slice has.
        found: usize,
    },

    /// A slice to write to has not the length of what is written.
    #[error("the {what} has {expected} values, the slice to write it to has {found}")]
    SliceLength {
        /// What is written.
        what: String,
        /// How many values it has.
        expected: usize,
        /// How many values the slice has.
        found: usize,
    },

    /// An output was asked for that the model does not have.
    #[error("output {target} was asked for, the model has outputs 0 to {last}", last = .outputs - 1)]
    TargetOutOfRange {
        /// The output asked for.
        target: usize,
        /// How many outputs the model has.
        outputs: usize,
    },

    /// An output was asked for that the model has but the explainer was not asked to explain.
    #[error("output {target} was asked for, but the explainer's targets are {explained:?}")]
    NotExplained {
        /// The output asked for.
        target: usize,
        /// The outputs that are explained.
        explained: Vec<usize>,
    },

    /// A layer was asked for that the model does not have.
    #[error("layer {layer} was asked for, the model has layers 0 to {last}, and {layers} means \
        the outputs", last = .layers - 1)]
    LayerOutOfRange {
        /// The layer asked for.
        layer: usize,
        /// How many layers the model has.
        layers: usize,
    },

    /// The weights of a layer were asked for that has none.
    #[error("layer {layer} is not a linear layer: it has no weights")]
    NotLinear {
        /// The layer asked for.
        layer: usize,
    },

    /// A unit was asked for that a layer does not have.
    #[error("unit {unit} was asked for, layer {layer} has {units} inputs")]
    UnitOutOfRange {
        /// The unit asked for.
        unit: usize,
        /// The layer.
        layer: usize,
        /// How many inputs the layer has.
        units: usize,
    },

    /// Weightings of outputs have not one weight for each output.
    #[error("the weightings have {found} rows, the model has {outputs} outputs")]
    WeightingShape {
        /// How many rows the weightings have.
        found: usize,
        /// How many outputs the model has.
        outputs: usize,
    },

    /// A weight is NaN or infinite.
    #[error("{kind}: the weight of output {output} for input {input} is {value}")]
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
    #[error("{kind}: the bias of output {output} is {value}")]
    NonFiniteBias {
        /// The layer's kind.
        kind: String,
        /// The output's index.
        output: usize,
        /// The value found.
        value: f64,
    },

    /// A value of a sample is NaN or infinite.
    #[error("input {index} of sample {sample} is {value}")]
    NonFiniteInput {
        /// The input's index.
        index: usize,
        /// The sample's index in the batch, 0 for a single sample.
        sample: usize,
        /// The value found.
        value: f64,
    },

    /// A layer's output is NaN or infinite, though its input was finite: the network overflows the
    /// number type.
    #[error(
        "output {index} of layer {layer} ({kind}) is {value}: the network overflows the number \
         type at this sample"
    )]
    NonFiniteOutput {
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
        /// The output's index within the layer.
        index: usize,
        /// The value found.
        value: f64,
    },

    /// Relevances became too large for the number type.
    #[error(
        "the relevances at layer {layer} ({kind}) are too large for the number type; a larger \
         epsilon or f64 helps"
    )]
    Overflow {
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
    },

    /// A parameter of a rule or of a layer is outside its range.
    #[error("{of}: {parameter} must be {requirement}, it is {value}")]
    InvalidParameter {
        /// The rule or the kind of layer.
        of: String,
        /// The parameter's name.
        parameter: String,
        /// The value given.
        value: String,
        /// What a value has to be.
        requirement: String,
    },

    /// A rule does not know what to do at a layer.
    #[error("{rule} cannot be used at layer {layer} ({kind}): {reason}")]
    Unsupported {
        /// The rule's name.
        rule: String,
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
        /// Why not.
        reason: String,
    },

    /// A setting of a composite fits no layer.
    #[error("{setting} fits no layer, so {rule} would be used nowhere{nearest}; {layers}")]
    UnmatchedSetting {
        /// The setting, such as `Composite::name("haed")`.
        setting: String,
        /// The rule's name.
        rule: String,
        /// `, did you mean 'head'?`, where a name is near; else empty.
        nearest: String,
        /// Which layers take a rule.
        layers: String,
    },

    /// A value is outside the range that a rule supposes of a layer's inputs, such as the box of
    /// [`ZBox`](crate::ZBox).
    #[error(
        "input {input} of layer {layer} ({kind}) is {value} in sample {sample}, outside the range \
         from {low} to {high} that {rule} \
         supposes (inputs outside: {count}): widen the range, or let the rule report such samples \
         (Outside::Report)"
    )]
    OutsideRange {
        /// The rule's name.
        rule: String,
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
        /// The sample's index in the batch, 0 for a single sample.
        sample: usize,
        /// The input that is farthest outside.
        input: usize,
        /// Its value.
        value: f64,
        /// The least value it may have.
        low: f64,
        /// The largest value it may have.
        high: f64,
        /// How many inputs of the sample are outside.
        count: usize,
    },

    /// A call would take more memory than its limit.
    #[error("{what} would take {}, more than the limit of {}: {remedy}", memory(*.bytes), memory(*.limit))]
    TooLarge {
        /// What would take it.
        what: String,
        /// How many bytes.
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
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file is not what its format demands.
    #[error("not a usable {format} file: {reason}")]
    Malformed {
        /// The format's name.
        format: String,
        /// What is wrong.
        reason: String,
    },

    /// The tensors of a file are not those that the architecture asks for.
    #[error("the weights do not fit the architecture:{}", list_tensors(.missing, .surplus, .misshapen, .notes))]
    StateDict {
        /// Tensors that the architecture asks for and the file does not have.
        missing: Vec<String>,
        /// Tensors of the file that the architecture does not ask for.
        surplus: Vec<String>,
        /// Tensors of another shape than the architecture asks for.
        misshapen: Vec<Misshapen>,
        /// What may be why, and what to do, a sentence each.
        notes: Vec<String>,
    },

    /// An ONNX model has operators that are not read, or not in that place.
    #[error("the model has {}{} that cannot be explained:{}", count(.nodes.len()), family(.nodes), list_nodes(.nodes))]
    UnsupportedNodes {
        /// All of them on the way from the input to the output.
        nodes: Vec<UnsupportedNode>,
    },

    /// A layer cannot be written to a file, because reading it back would not know its kind.
    #[error("layer {layer} ({kind}) is not one of the crate's own and cannot be written to a file")]
    NotWritable {
        /// The layer's index.
        layer: usize,
        /// The layer's kind.
        kind: String,
    },
}

/// A tensor of another shape than the architecture asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Misshapen {
    /// The tensor's name.
    pub name: String,
    /// The shape asked for.
    pub expected: Vec<usize>,
    /// The shape found.
    pub found: Vec<usize>,
}

/// A node of an ONNX model that cannot be explained.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct UnsupportedNode {
    /// The node's name, or that of its first output where it has none.
    pub name: String,
    /// The operator, with its domain where that is not ONNX's own.
    pub operator: String,
    /// Where it stands in the file, such as `graph.node[3]`.
    pub path: String,
    /// Why not.
    pub reason: String,
}

/// Where what a layer is given comes from.
fn before(layer: usize) -> &'static str {
    if layer == 0 { "the model's inputs are" } else { "the layers before it give" }
}

/// Bytes in the unit in which they are read best.
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

/// What kind of network nodes are of, where that says more than their list.
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
    /// The error for what the operating system says of a file.
    #[cfg(any(feature = "io", feature = "heatmap"))]
    pub(crate) fn io(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    /// The same of a sample in a part of a batch that begins here.
    pub(crate) fn in_batch(mut self, first: usize) -> Self {
        if let Self::OutsideRange { sample, .. } = &mut self {
            *sample += first;
        }
        self
    }

    /// The same, with the file in which something is wrong.
    #[cfg(feature = "io")]
    pub(crate) fn in_file(mut self, path: &std::path::Path) -> Self {
        if let Self::Malformed { reason, .. } = &mut self {
            *reason = format!("{}: {reason}", path.display());
        }
        self
    }

    /// The error for a shape that a layer cannot take.
    pub(crate) fn shape(kind: &str, found: Shape, expected: impl Into<String>) -> Self {
        Self::Shape { kind: kind.to_owned(), expected: expected.into(), found }
    }

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
