//! Parsing of architectures in the format in which PyTorch prints modules.

mod arguments;

use std::sync::Arc;

use arguments::{Arguments, NAMED};

use crate::error::Error;
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, Assumed, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d,
    Branch, Celu, Concat, Conv1d, Conv2d, ConvTranspose2d, Dropout, Elu, Flatten, Gelu,
    HardSigmoid, HardSwish, HardTanh, Identity, Layer, LeakyRelu, Linear, MaxPool1d, MaxPool2d,
    Mish, Named, PRelu, Permute, Relu, Residual, Scaled, Selu, Sigmoid, Silu, Softmax, Softplus,
    Softsign, Tanh, Unflatten, Upsample,
};
use crate::nearest::did_you_mean;
use crate::scalar::Scalar;

/// How deep modules can be nested. The parser recurses, so this bounds its use of the stack.
const DEPTH: usize = 32;

/// A part of an architecture.
#[derive(Debug, Clone)]
pub(super) enum Module<T: Scalar> {
    Layer(Arc<dyn Layer<T>>),
    /// A layer with weights, which are the tensors under its name.
    Weighted(Weighted),
    Sequential(Vec<(String, Module<T>)>),
    Residual(Vec<(String, Module<T>)>),
    Concat(Vec<(String, Module<T>)>),
}

/// A layer whose weights are not yet loaded.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Weighted {
    Linear { inputs: usize, outputs: usize, bias: bool },
    Convolution(Convolution),
    BatchNorm { rank: usize, channels: usize, eps: f64, affine: bool, bias: bool },
    PRelu { slopes: usize },
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Convolution {
    kind: &'static str,
    inputs: usize,
    outputs: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    padding_end: [usize; 2],
    output_padding: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    bias: bool,
}

impl Weighted {
    /// The names and shapes of the tensors that the layer needs.
    pub fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Self::Linear { inputs, outputs, bias } => {
                let mut tensors = vec![("weight", vec![*outputs, *inputs])];
                tensors.extend(bias.then(|| ("bias", vec![*outputs])));
                tensors
            }
            Self::Convolution(convolution) => {
                let mut tensors = vec![("weight", convolution.shape())];
                tensors.extend(convolution.bias.then(|| ("bias", vec![convolution.outputs])));
                tensors
            }
            Self::PRelu { slopes } => vec![("weight", vec![*slopes])],
            Self::BatchNorm { channels, affine, bias, .. } => {
                let names = [
                    ("weight", *affine),
                    ("bias", *affine && *bias),
                    ("running_mean", true),
                    ("running_var", true),
                ];
                names
                    .into_iter()
                    .filter(|(_, is_there)| *is_there)
                    .map(|(name, _)| (name, vec![*channels]))
                    .collect()
            }
        }
    }

    /// Makes the layer from its tensors, in the order of [`tensors`](Self::tensors).
    pub fn layer<T: Scalar>(&self, tensors: Vec<Vec<T>>) -> Result<Arc<dyn Layer<T>>, Error> {
        let mut tensors = tensors.into_iter();
        // There is one vector for each entry of `tensors`, so none is missing.
        let mut next = || tensors.next().unwrap_or_default();
        Ok(match self {
            Self::Linear { inputs, outputs, bias } => {
                let weight = next();
                let bias = bias.then(&mut next);
                Arc::new(Linear::from_rows(*outputs, *inputs, &weight, bias.as_deref())?)
            }
            Self::Convolution(convolution) => {
                let weight = next();
                let bias = convolution.bias.then(&mut next);
                convolution.layer(weight, bias)?
            }
            Self::PRelu { .. } => Arc::new(PRelu::new(next())?),
            Self::BatchNorm { rank, channels, eps, affine, bias } => {
                // Without affine parameters, the scale is 1 and the shift 0.
                let mut or = |is_there: bool, value: T| {
                    if is_there { next() } else { vec![value; *channels] }
                };
                let (weight, bias) = (or(*affine, T::one()), or(*affine && *bias, T::zero()));
                let (mean, variance) = (next(), next());
                if *rank == 2 {
                    Arc::new(BatchNorm2d::new(weight, bias, mean, variance, *eps)?)
                } else {
                    Arc::new(BatchNorm1d::new(weight, bias, mean, variance, *eps)?)
                }
            }
        })
    }
}

impl Convolution {
    fn is_transposed(&self) -> bool {
        self.kind == "ConvTranspose2d"
    }

    fn shape(&self) -> Vec<usize> {
        let [height, width] = self.kernel;
        // PyTorch stores the weights of a transposed convolution with the input channels first.
        let [outer, inner] = if self.is_transposed() {
            [self.inputs, self.outputs]
        } else {
            [self.outputs, self.inputs]
        };
        let inner = inner / self.groups.max(1);
        if self.kind == "Conv1d" {
            vec![outer, inner, width]
        } else {
            vec![outer, inner, height, width]
        }
    }

    fn layer<T: Scalar>(
        &self,
        weight: Vec<T>,
        bias: Option<Vec<T>>,
    ) -> Result<Arc<dyn Layer<T>>, Error> {
        let shape = self.shape();
        macro_rules! with_settings {
            ($layer:expr) => {
                $layer
                    .stride(self.stride)
                    .padding(self.padding)
                    .padding_end(self.padding_end)
                    .dilation(self.dilation)
                    .groups(self.groups)
            };
        }
        Ok(match (self.kind, shape.as_slice()) {
            ("Conv1d", &[outer, inner, width]) => {
                Arc::new(with_settings!(Conv1d::new([outer, inner, width], weight, bias)?))
            }
            ("ConvTranspose2d", &[outer, inner, height, width]) => {
                let layer = ConvTranspose2d::new([outer, inner, height, width], weight, bias)?;
                Arc::new(with_settings!(layer.output_padding(self.output_padding)))
            }
            // The shape of a Conv2d has four sizes.
            (_, dims) => {
                let height = dims.get(2).copied().unwrap_or(1);
                let width = dims.get(3).copied().unwrap_or(1);
                Arc::new(with_settings!(Conv2d::new(
                    [dims[0], dims[1], height, width],
                    weight,
                    bias
                )?))
            }
        })
    }
}

/// Makes the layers of a module, named by their paths within it.
pub(super) fn branch<T: Scalar>(
    module: &Module<T>,
    make: &mut Maker<'_, T>,
    path: &str,
) -> Result<Branch<T>, Error> {
    let mut layers = Vec::new();
    add(module, make, path, "", &mut layers)?;
    Ok(Branch { layers })
}

/// A function that makes the layer with this name.
pub(super) type Maker<'a, T> = dyn FnMut(&str, &Weighted) -> Result<Arc<dyn Layer<T>>, Error> + 'a;

/// Appends the layers of a module. `path` is the module's name in the file, `own` its name within
/// the branch that contains it.
fn add<T: Scalar>(
    module: &Module<T>,
    make: &mut Maker<'_, T>,
    path: &str,
    own: &str,
    layers: &mut Vec<Named<T>>,
) -> Result<(), Error> {
    let mut put = |layer| layers.push(Named { name: Some(own.to_owned()), layer });
    match module {
        Module::Layer(layer) => put(layer.clone()),
        Module::Weighted(weighted) => put(make(path, weighted)?),
        Module::Sequential(children) => {
            for (name, child) in children {
                add(child, make, &join(path, name), &join(own, name), layers)?;
            }
        }
        Module::Residual(children) | Module::Concat(children) => {
            let mut branches = Vec::with_capacity(children.len());
            for (name, child) in children {
                let mut inner = Vec::new();
                // The names of layers begin anew in each branch, but the tensors keep their full
                // path.
                add(child, make, &join(path, name), name, &mut inner)?;
                branches.push(Branch { layers: inner });
            }
            let summed = matches!(module, Module::Residual(_));
            put(if summed {
                Arc::new(Residual::new(branches)?)
            } else {
                Arc::new(Concat::new(branches)?)
            });
        }
    }
    Ok(())
}

/// Appends a name to a path; either can be empty.
pub(super) fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_owned(),
        (path, "") => path.to_owned(),
        (path, name) => format!("{path}.{name}"),
    }
}

/// The rest of a name after the name of a module, or `None` if it is not within that module.
pub(super) fn within<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    match module {
        "" => Some(name),
        module => name.strip_prefix(module)?.strip_prefix('.'),
    }
}

/// The reason why a text is rejected, and the path of the layer with the problem.
struct Refused {
    path: String,
    reason: String,
}

impl From<String> for Refused {
    fn from(reason: String) -> Self {
        Self { path: String::new(), reason }
    }
}

impl Refused {
    fn within(mut self, name: &str) -> Self {
        self.path = join(name, &self.path);
        self
    }
}

/// Parses the text that PyTorch prints for a module: one `Sequential(…)`, or several modules one
/// after another.
pub(super) fn parse<T: Scalar>(text: &str) -> Result<Module<T>, String> {
    let mut reader = Reader { text, at: 0 };
    let mut modules = Vec::new();
    while !reader.rest().trim_start().is_empty() {
        let module = reader.module(0).map_err(|refused| {
            // If one group is the whole model, its own index is not part of the layers' names.
            let Refused { path, reason } = if refused.path.is_empty() || !modules.is_empty() {
                refused.within(&modules.len().to_string())
            } else {
                refused
            };
            format!("the architecture, layer {}: {reason}", shortened(&path))
        })?;
        modules.push((modules.len().to_string(), module));
    }
    match modules.as_slice() {
        [(_, Module::Sequential(_))] => Ok(modules.remove(0).1),
        _ => Ok(Module::Sequential(modules)),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_spaces(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    /// Skips this text if it comes next, and returns whether it does.
    fn takes(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        self.at += if there { text.len() } else { 0 };
        there
    }

    fn module<T: Scalar>(&mut self, depth: usize) -> Result<Module<T>, Refused> {
        if depth > DEPTH {
            return Err(format!("modules are nested more than {DEPTH} levels deep").into());
        }
        self.skip_spaces();
        let rest = self.rest();
        let no_layer = |text: &str| {
            format!(
                "'{}' is not a layer in PyTorch's format, such as ReLU(): use the text that \
                 print(net) shows",
                shortened(text)
            )
        };
        let (kind, _) = rest.split_once('(').ok_or_else(|| no_layer(rest))?;
        self.at += kind.len() + 1;
        let kind = kind.trim();
        if matches!(kind, "ModuleList" | "ModuleDict") {
            return Err(several(kind, "its parts").into());
        }
        let is_group = matches!(kind, "Sequential" | "Residual" | "Concat");
        // For a layer, this reads nothing, because its arguments do not look like children.
        let mut children = self.children(is_group, depth)?;
        match (kind, children.len()) {
            ("Sequential", _) => Ok(Module::Sequential(children)),
            ("Residual", _) => Ok(Module::Residual(children)),
            ("Concat", _) => Ok(Module::Concat(children)),
            (_, 0) => {
                // Find the bracket that closes the one after the kind.
                let (rest, mut open) = (self.rest(), 1);
                let end = rest.find(|c| {
                    open += i32::from(c == '(') - i32::from(c == ')');
                    open == 0
                });
                let end = end.ok_or_else(|| no_layer(rest))?;
                self.at += end + 1;
                Ok(of_kind(kind, &rest[..end])?)
            }
            // A user's class that holds one module, such as the network itself, can only apply that
            // module.
            (_, 1) => Ok(Module::Sequential(vec![children.remove(0)])),
            _ => {
                let names: Vec<String> =
                    children.iter().take(4).map(|(name, _)| shortened(name)).collect();
                let more = if children.len() > 4 { ", ..." } else { "" };
                Err(several(kind, &format!("{}{more}", names.join(", "))).into())
            }
        }
    }

    /// Reads any number of `(name): module` and the closing bracket. If something else comes first,
    /// reads nothing.
    fn children<T: Scalar>(
        &mut self,
        is_group: bool,
        depth: usize,
    ) -> Result<Vec<(String, Module<T>)>, Refused> {
        let begin = self.at;
        let mut children = Vec::new();
        loop {
            self.skip_spaces();
            // A child begins with a name in brackets and a colon. Other brackets belong to a
            // layer's arguments.
            let in_brackets = self
                .rest()
                .strip_prefix('(')
                .and_then(|rest| rest.split_at_checked(rest.find(['(', ')', ','])?));
            match in_brackets.filter(|(_, after)| after.starts_with("):")).map(|(name, _)| name) {
                Some(name) => {
                    // Skip the name, its brackets and the colon.
                    self.at += name.len() + 3;
                    let child = self.module(depth + 1).map_err(|refused| refused.within(name))?;
                    children.push((name.to_owned(), child));
                }
                None if children.is_empty() && !(self.rest().starts_with(')')) => {
                    self.at = begin;
                    return Ok(children);
                }
                None if children.is_empty() => {
                    // The brackets are empty, as in a group without children or a layer without
                    // arguments. A layer's brackets are left to the caller.
                    self.at = if is_group { self.at + 1 } else { begin };
                    return Ok(children);
                }
                None if self.takes(")") => return Ok(children),
                None => {
                    let text = shortened(self.rest());
                    return Err(if text.is_empty() {
                        "the text ends before the bracket that closes the module: copy everything \
                         that print(net) shows"
                            .to_owned()
                            .into()
                    } else {
                        format!(
                            "'{text}' is neither a child such as (0): ReLU() nor the bracket that \
                             closes the module: copy everything that print(net) shows"
                        )
                        .into()
                    });
                }
            }
        }
    }
}

/// The reason for rejecting a class that holds several modules.
fn several(kind: &str, parts: &str) -> String {
    let kind = shortened(kind);
    format!(
        "PyTorch prints the parts of {kind} ({parts}), but not how its forward method uses them. \
         If forward only applies the parts in this order, replace {kind} with Sequential; if one \
         part is the network, pass only that part, with its weights from StateDict::under; \
         otherwise export the network to ONNX"
    )
}

/// The supported layers, in alphabetical order.
const KINDS: [&str; 45] = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AlphaDropout",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "CELU",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "ELU",
    "FeatureAlphaDropout",
    "Flatten",
    "GELU",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPool1d",
    "MaxPool2d",
    "Mish",
    "PReLU",
    "Permute",
    "ReLU",
    "ReLU6",
    "SELU",
    "Scaled",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "Unflatten",
    "Upsample",
    "UpsamplingNearest1d",
    "UpsamplingNearest2d",
];

/// The reason for rejecting a layer of an unknown kind, with the kind that was probably intended.
fn unknown(kind: &str) -> String {
    if kind.starts_with("nn.") || kind.contains("torch") || kind.contains("import") {
        return format!(
            "'{}' is Python code: pass the text that print(net) shows",
            shortened(kind)
        );
    }
    let (kind, mut end) = (shortened(kind), did_you_mean(kind, KINDS));
    if end.is_empty() {
        end.push('.');
    }
    format!(
        "{kind} is unsupported{end} The supported layers are {}, and the groups are Sequential, \
         Residual and Concat",
        KINDS.join(", ")
    )
}

/// Makes the layer of a kind from the text between its brackets. Every argument must be supported.
fn of_kind<T: Scalar>(kind: &str, text: &str) -> Result<Module<T>, String> {
    let arguments = Arguments::new(text);
    let layer = layer(kind, &arguments).and_then(|layer| arguments.finish().map(|()| layer));
    layer.map_err(|reason| if KINDS.contains(&kind) { format!("{kind}: {reason}") } else { reason })
}

#[allow(clippy::too_many_lines)] // a table of the layers
fn layer<T: Scalar>(kind: &str, arguments: &Arguments<'_>) -> Result<Module<T>, String> {
    let refused = |error: Error| error.to_string();
    let one = |at: usize| arguments.inplace(at);
    let layer: Arc<dyn Layer<T>> = match kind {
        "Linear" => {
            let (inputs, outputs) =
                (arguments.size("in_features", 0)?, arguments.size("out_features", 1)?);
            return Ok(Module::Weighted(Weighted::Linear {
                inputs,
                outputs,
                bias: arguments.flag("bias", 2, true)?,
            }));
        }
        "Conv1d" | "Conv2d" | "ConvTranspose2d" => {
            return Ok(Module::Weighted(Weighted::Convolution(convolution(kind, arguments)?)));
        }
        "BatchNorm1d" | "BatchNorm2d" => return batch_norm(kind, arguments).map(Module::Weighted),
        "MaxPool1d" | "MaxPool2d" | "AvgPool1d" | "AvgPool2d" => {
            return pooling(kind, arguments).map(Module::Layer);
        }
        "AdaptiveAvgPool1d" => {
            let size = arguments.pair("output_size", 0, 1)?.ok_or("output_size is missing")?;
            Arc::new(AdaptiveAvgPool1d::new(size))
        }
        "AdaptiveAvgPool2d" => {
            let size = arguments.pair("output_size", 0, 2)?.ok_or("output_size is missing")?;
            Arc::new(AdaptiveAvgPool2d::new(size))
        }
        "Upsample" | "UpsamplingNearest1d" | "UpsamplingNearest2d" => upsample(arguments)?,
        "ReLU" => one(0).map(|()| Arc::new(Relu))?,
        "LeakyReLU" => {
            arguments.inplace(1)?;
            Arc::new(LeakyRelu::new(arguments.number("negative_slope", 0, 0.01)?).map_err(refused)?)
        }
        "PReLU" => {
            // The slopes' initial value does not matter, because they are loaded.
            arguments.number("init", 1, 0.25)?;
            let slopes = arguments.text("num_parameters", 0);
            let slopes = slopes.map_or(Ok(1), |_| arguments.size("num_parameters", 0))?;
            return Ok(Module::Weighted(Weighted::PRelu { slopes }));
        }
        "ELU" => {
            arguments.inplace(1)?;
            Arc::new(Elu::new(arguments.number("alpha", 0, 1.0)?).map_err(refused)?)
        }
        "GELU" => match arguments.text("approximate", 0) {
            None | Some("'none'") => Arc::new(Gelu::Exact),
            Some("'tanh'") => Arc::new(Gelu::Tanh),
            Some(other) => {
                return Err(format!(
                    "approximate={} is unsupported: only 'none' and 'tanh' are supported",
                    shortened(other)
                ));
            }
        },
        "CELU" => {
            arguments.inplace(1)?;
            Arc::new(Celu::new(arguments.number("alpha", 0, 1.0)?).map_err(refused)?)
        }
        "SELU" => one(0).map(|()| Arc::new(Selu))?,
        "SiLU" => one(0).map(|()| Arc::new(Silu))?,
        "Mish" => one(0).map(|()| Arc::new(Mish))?,
        "Softsign" => Arc::new(Softsign),
        "Hardsigmoid" => one(0).map(|()| Arc::new(HardSigmoid))?,
        "Hardswish" => one(0).map(|()| Arc::new(HardSwish))?,
        "Sigmoid" => Arc::new(Sigmoid),
        "Tanh" => Arc::new(Tanh),
        "Softplus" => {
            let (beta, threshold) =
                (arguments.number("beta", 0, 1.0)?, arguments.number("threshold", 1, 20.0)?);
            Arc::new(Softplus::new(beta, threshold).map_err(refused)?)
        }
        "ReLU6" => {
            arguments.inplace(0)?;
            Arc::new(HardTanh::new(0.0, 6.0).map_err(refused)?)
        }
        "Hardtanh" => {
            arguments.inplace(2)?;
            let (min, max) =
                (arguments.number("min_val", 0, -1.0)?, arguments.number("max_val", 1, 1.0)?);
            Arc::new(HardTanh::new(min, max).map_err(refused)?)
        }
        "Scaled" => scaled(arguments)?,
        "Identity" => {
            // An Identity that replaces another layer accepts that layer's arguments.
            arguments.ignore_all();
            Arc::new(Identity)
        }
        "Flatten" => {
            let why = "only flattening a whole sample is supported (start_dim=1, end_dim=-1)";
            arguments.only("start_dim", 0, &["1"], why)?;
            arguments.only("end_dim", 1, &["-1"], why)?;
            Arc::new(Flatten)
        }
        "Unflatten" => {
            let why = "only unflattening a whole sample is supported (dim=1)";
            arguments.only("dim", 0, &["1"], why)?;
            let sizes = arguments.sizes("unflattened_size", 1)?;
            Arc::new(Unflatten::new(super::shape(&sizes).ok_or(
                "only vectors, sequences and images are supported: unflattened_size must have one \
                 to three sizes",
            )?))
        }
        "Permute" => {
            let axes = arguments.sizes("dims", 0)?;
            let axes = axes
                .strip_prefix(&[0])
                .ok_or("the batch axis cannot be moved: dims must begin with 0")?;
            let axes: Option<Vec<usize>> = axes.iter().map(|axis| axis.checked_sub(1)).collect();
            Arc::new(
                Permute::new(&axes.ok_or("dims contains the batch axis, 0, more than once")?)
                    .map_err(refused)?,
            )
        }
        "Dropout"
        | "Dropout1d"
        | "Dropout2d"
        | "Dropout3d"
        | "AlphaDropout"
        | "FeatureAlphaDropout" => {
            arguments.inplace(1)?;
            Arc::new(Dropout::new(arguments.number("p", 0, 0.5)?).map_err(refused)?)
        }
        "Softmax" | "LogSoftmax" => softmax(arguments)?,
        other => return Err(unknown(other)),
    };
    Ok(Module::Layer(layer))
}

fn batch_norm(kind: &str, arguments: &Arguments<'_>) -> Result<Weighted, String> {
    let (channels, eps) = (arguments.size("num_features", 0)?, arguments.number("eps", 1, 1e-5)?);
    // The momentum only matters in training. `None` stands for a cumulative average.
    if arguments
        .text("momentum", 2)
        .is_some_and(|text| text != "None" && text.parse::<f64>().is_err())
    {
        return Err("momentum is neither a number nor None".to_owned());
    }
    let (affine, bias) = (arguments.flag("affine", 3, true)?, arguments.flag("bias", NAMED, true)?);
    let why = "without running statistics, the outputs of a sample depend on the rest of its batch";
    arguments.only("track_running_stats", 4, &["True"], why)?;
    Ok(Weighted::BatchNorm {
        rank: if kind == "BatchNorm2d" { 2 } else { 1 },
        channels,
        eps,
        affine,
        bias,
    })
}

fn scaled<T: Scalar>(arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    let inner =
        arguments.text("activation", 0).and_then(|text| text.strip_suffix(')')?.split_once('('));
    // Nested `Scaled` layers are equivalent to one, and rejecting them bounds the recursion.
    let (kind, own) = inner
        .filter(|(kind, _)| *kind != "Scaled")
        .ok_or("the activation is missing: write Scaled(ReLU(), argument=2.0, value=0.5)")?;
    let Module::Layer(inner) = of_kind(kind, own)? else {
        return Err(format!("{kind} is not an activation, and only activations can be scaled"));
    };
    let (argument, value) =
        (arguments.number("argument", 1, 1.0)?, arguments.number("value", 2, 1.0)?);
    Ok(Arc::new(Scaled::of(inner, argument, value).map_err(|error| error.to_string())?))
}

/// Makes a softmax. A log-softmax is read as one too, because its logits are the same; its outputs
/// are the logarithms of the probabilities.
fn softmax<T: Scalar>(arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    match arguments.text("dim", 0) {
        // For vectors, PyTorch's default is the only axis other than that of the batch.
        None | Some("None") => Ok(Arc::new(Softmax)),
        Some(dim) => {
            let dim =
                dim.parse().map_err(|_| format!("dim={} is not an integer", shortened(dim)))?;
            Ok(Arc::new(Softmax::over_dim(dim)))
        }
    }
}

fn upsample<T: Scalar>(arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    arguments.only(
        "size",
        0,
        &["None"],
        "use scale_factor instead, an integer by which the height and width are multiplied",
    )?;
    // With an integer factor, the two modes are the same.
    let modes = ["'nearest'", "'nearest-exact'"];
    arguments.only("mode", 2, &modes, "only 'nearest' and 'nearest-exact' are supported")?;
    arguments.only(
        "align_corners",
        3,
        &["None", "False"],
        "it has no meaning for the mode 'nearest'",
    )?;
    let text = arguments.text("scale_factor", 1).ok_or("scale_factor is missing")?;
    let inner = text.trim_start_matches('(').trim_end_matches(')');
    let factors: Option<Vec<f64>> = inner
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().ok())
        .collect();
    // The first factor, with all factors, which must be equal to it.
    let factor = factors.and_then(|factors| Some((*factors.first()?, factors)));
    match factor {
        Some((factor, all))
            if factor.fract() == 0.0
                && (1.0..=1024.0).contains(&factor)
                && all.iter().all(|f| f.total_cmp(&factor).is_eq()) =>
        {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // the factor is an integer from 1 to 1024
            Ok(Arc::new(Upsample::new(factor as usize).map_err(|error| error.to_string())?))
        }
        _ => Err(format!(
            "scale_factor={} is unsupported: it must be an integer from 1 to 1024, the same for \
             height and width",
            shortened(text)
        )),
    }
}

fn convolution(kind: &str, arguments: &Arguments<'_>) -> Result<Convolution, String> {
    let kind = match kind {
        "Conv1d" => "Conv1d",
        "ConvTranspose2d" => "ConvTranspose2d",
        _ => "Conv2d",
    };
    let (rank, transposed) = (if kind == "Conv1d" { 1 } else { 2 }, kind == "ConvTranspose2d");
    // The positions of PyTorch's arguments, where they are not keyword-only.
    let [output_padding, dilation, groups, bias, mode] =
        if transposed { [5, 8, 6, 7, 9] } else { [NAMED, 5, 6, 7, 8] };
    let why = "only padding with zeros is supported";
    arguments.only("padding_mode", mode, &["zeros", "'zeros'"], why)?;
    let pair = |name: &str, place: usize, default: usize| {
        Ok::<_, String>(arguments.pair(name, place, rank)?.unwrap_or([default; 2]))
    };
    // A sequence has no height, so its height gets the value that changes nothing.
    let along = |[height, width]: [usize; 2], nothing| {
        if rank == 1 { [nothing, width] } else { [height, width] }
    };
    let kernel = along(arguments.pair("kernel_size", 2, rank)?.ok_or("kernel_size is missing")?, 1);
    let (stride, dilation) =
        (along(pair("stride", 3, 1)?, 1), along(pair("dilation", dilation, 1)?, 1));
    let (padding, padding_end) = match arguments.text("padding", 4) {
        Some("valid" | "'valid'") if !transposed => ([0, 0], [0, 0]),
        // The padding that makes the output as large as the input. If the total is odd, the end
        // gets one more, as in PyTorch.
        Some("same" | "'same'") if !transposed => {
            if stride != [1, 1] {
                return Err("padding='same' requires a stride of 1".to_owned());
            }
            let total = |axis: usize| dilation[axis].saturating_mul(kernel[axis].saturating_sub(1));
            let total = [total(0), total(1)];
            (total.map(|total| total / 2), total.map(|total| total - total / 2))
        }
        _ => {
            let padding = along(pair("padding", 4, 0)?, 0);
            (padding, along(arguments.pair("padding_end", NAMED, rank)?.unwrap_or(padding), 0))
        }
    };
    let output_padding = pair("output_padding", output_padding, 0)?;
    if !transposed && output_padding != [0, 0] {
        return Err("output_padding is supported only for transposed convolutions".to_owned());
    }
    Ok(Convolution {
        kind,
        inputs: arguments.size("in_channels", 0)?,
        outputs: arguments.size("out_channels", 1)?,
        kernel,
        stride,
        padding,
        padding_end,
        output_padding,
        dilation,
        groups: if arguments.text("groups", groups).is_some() {
            arguments.size("groups", groups)?
        } else {
            1
        },
        bias: arguments.flag("bias", bias, true)?,
    })
}

fn pooling<T: Scalar>(kind: &str, arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    let (rank, is_max) = (if kind.ends_with("1d") { 1 } else { 2 }, kind.starts_with("Max"));
    let kernel = arguments.pair("kernel_size", 0, rank)?.ok_or("kernel_size is missing")?;
    let stride = arguments.pair("stride", 1, rank)?.unwrap_or(kernel);
    let padding = arguments.pair("padding", 2, rank)?.unwrap_or([0, 0]);
    let padding_end = arguments.pair("padding_end", NAMED, rank)?.unwrap_or(padding);
    let ceil_place = if is_max { 5 } else { 3 };
    // Record which settings were not printed, so that `Graph::check` can report them.
    let says_ceil = arguments.text("ceil_mode", ceil_place).is_some();
    let ceil = arguments.flag("ceil_mode", ceil_place, false)?;
    macro_rules! windows {
        ($layer:ident) => {
            $layer::new(kernel)
                .stride(stride)
                .padding(padding)
                .padding_end(padding_end)
                .ceil_mode(ceil)
        };
    }
    if is_max {
        let dilation = arguments.pair("dilation", 3, rank)?.unwrap_or([1, 1]);
        let why = "the indices of the maxima are not available";
        arguments.only("return_indices", 4, &["False"], why)?;
        return Ok(if rank == 1 {
            Arc::new(windows!(MaxPool1d).dilation(dilation))
        } else {
            Arc::new(windows!(MaxPool2d).dilation(dilation))
        });
    }
    let says_count = arguments.text("count_include_pad", 4).is_some();
    let count = arguments.flag("count_include_pad", 4, true)?;
    if rank == 1 {
        let assumed = Assumed {
            ceil_mode: !says_ceil,
            count_include_pad: !says_count,
            divisor_override: false,
        };
        return Ok(Arc::new(windows!(AvgPool1d).count_include_pad(count).assuming(assumed)));
    }
    let divisor = arguments.text("divisor_override", 5);
    let assumed = Assumed {
        ceil_mode: !says_ceil,
        count_include_pad: !says_count,
        divisor_override: divisor.is_none(),
    };
    let layer = windows!(AvgPool2d).count_include_pad(count).assuming(assumed);
    Ok(match divisor {
        None | Some("None") => Arc::new(layer),
        Some(_) => Arc::new(layer.divisor_override(arguments.size("divisor_override", 5)?)),
    })
}

/// Text from a file, without control characters and cut to a length that fits an error message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
