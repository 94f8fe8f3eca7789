//! Architectures, in the words in which PyTorch prints them.

mod arguments;

use std::sync::Arc;

use arguments::{Arguments, NAMED};

use crate::error::Error;
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, Assumed, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d,
    Branch, Celu, Concat, Conv1d, Conv2d, ConvTranspose2d, Dropout, Elu, Flatten, Gelu,
    HardSigmoid, HardSwish, HardTanh, Identity, Layer, LeakyRelu, Linear, MaxPool1d, MaxPool2d,
    Mish, Named, Permute, Relu, Residual, Scaled, Selu, Sigmoid, Silu, Softmax, Softplus, Softsign,
    Tanh, Unflatten, Upsample,
};
use crate::nearest::did_you_mean;
use crate::scalar::Scalar;

/// So deep may modules be nested.
const DEPTH: usize = 32;

/// A part of an architecture.
#[derive(Debug, Clone)]
pub(super) enum Module<T: Scalar> {
    Layer(Arc<dyn Layer<T>>),
    /// A layer with weights of its own, which the tensors under its name are.
    Weighted(Weighted),
    Sequential(Vec<(String, Module<T>)>),
    Residual(Vec<(String, Module<T>)>),
    Concat(Vec<(String, Module<T>)>),
}

/// A layer that is still without its weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Weighted {
    Linear { inputs: usize, outputs: usize, bias: bool },
    Convolution(Convolution),
    BatchNorm { rank: usize, channels: usize, eps: f64, affine: bool, bias: bool },
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
    /// The tensors that it asks for: their names and shapes.
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

    /// The layer of these tensors, in the order in which it asks for them.
    pub fn layer<T: Scalar>(&self, tensors: Vec<Vec<T>>) -> Result<Arc<dyn Layer<T>>, Error> {
        let mut tensors = tensors.into_iter();
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
            Self::BatchNorm { rank, channels, eps, affine, bias } => {
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

/// The layers of a module, named by their path in it.
pub(super) fn branch<T: Scalar>(
    module: &Module<T>,
    make: &mut Maker<'_, T>,
    path: &str,
) -> Result<Branch<T>, Error> {
    let mut layers = Vec::new();
    add(module, make, path, "", &mut layers)?;
    Ok(Branch { layers })
}

/// Makes the layer of a name.
pub(super) type Maker<'a, T> = dyn FnMut(&str, &Weighted) -> Result<Arc<dyn Layer<T>>, Error> + 'a;

/// `path` is the module's name in the file, `own` within the branch that it is in.
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

/// A name behind a path; either may be empty.
pub(super) fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_owned(),
        (path, "") => path.to_owned(),
        (path, name) => format!("{path}.{name}"),
    }
}

/// The part of a name after a module's, `None` where the name is not within that module.
pub(super) fn within<'a>(name: &'a str, module: &str) -> Option<&'a str> {
    match module {
        "" => Some(name),
        module => name.strip_prefix(module)?.strip_prefix('.'),
    }
}

/// What is wrong with a text, and the name of the layer at which.
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

/// Reads the text in which PyTorch prints a module: one `Sequential(…)`, or modules one after
/// another.
pub(super) fn parse<T: Scalar>(text: &str) -> Result<Module<T>, String> {
    let mut reader = Reader { text, at: 0 };
    let mut modules = Vec::new();
    while !reader.rest().trim_start().is_empty() {
        let module = reader.module(0).map_err(|refused| {
            // The names in a group that is the only one begin with those of its children.
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

    /// Continues after this text, where it comes next.
    fn takes(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        self.at += if there { text.len() } else { 0 };
        there
    }

    fn module<T: Scalar>(&mut self, depth: usize) -> Result<Module<T>, Refused> {
        if depth > DEPTH {
            return Err(format!("modules are nested more than {DEPTH} deep").into());
        }
        self.skip_spaces();
        let rest = self.rest();
        let no_layer = |text: &str| {
            format!("'{}' is not a layer as PyTorch prints it, such as ReLU()", shortened(text))
        };
        let (kind, _) = rest.split_once('(').ok_or_else(|| no_layer(rest))?;
        self.at += kind.len() + 1;
        let kind = kind.trim();
        if matches!(kind, "ModuleList" | "ModuleDict") {
            return Err(several(kind, "its parts").into());
        }
        let is_group = matches!(kind, "Sequential" | "Residual" | "Concat");
        let mut children = self.children(is_group, depth)?;
        match (kind, children.len()) {
            ("Sequential", _) => Ok(Module::Sequential(children)),
            ("Residual", _) => Ok(Module::Residual(children)),
            ("Concat", _) => Ok(Module::Concat(children)),
            (_, 0) => {
                // To the bracket that closes the first.
                let (rest, mut open) = (self.rest(), 1);
                let end = rest.find(|c| {
                    open += i32::from(c == '(') - i32::from(c == ')');
                    open == 0
                });
                let end = end.ok_or_else(|| no_layer(rest))?;
                self.at += end + 1;
                Ok(of_kind(kind, &rest[..end])?)
            }
            // A class of its own that holds one module, such as the network: there is nothing else
            // that it could apply.
            (_, 1) => Ok(Module::Sequential(vec![children.remove(0)])),
            _ => {
                let names: Vec<String> =
                    children.iter().take(4).map(|(name, _)| shortened(name)).collect();
                let more = if children.len() > 4 { ", ..." } else { "" };
                Err(several(kind, &format!("{}{more}", names.join(", "))).into())
            }
        }
    }

    /// `(name): module` as often as it comes, and the bracket behind; none of it where something
    /// else comes.
    fn children<T: Scalar>(
        &mut self,
        is_group: bool,
        depth: usize,
    ) -> Result<Vec<(String, Module<T>)>, Refused> {
        let begin = self.at;
        let mut children = Vec::new();
        loop {
            self.skip_spaces();
            // A name in brackets and a colon; brackets may be a layer's arguments, too.
            let in_brackets = self
                .rest()
                .strip_prefix('(')
                .and_then(|rest| rest.split_at_checked(rest.find(['(', ')', ','])?));
            match in_brackets.filter(|(_, behind)| behind.starts_with("):")).map(|(name, _)| name) {
                Some(name) => {
                    self.at += name.len() + 3;
                    let child = self.module(depth + 1).map_err(|refused| refused.within(name))?;
                    children.push((name.to_owned(), child));
                }
                None if children.is_empty() && !(self.rest().starts_with(')')) => {
                    self.at = begin;
                    return Ok(children);
                }
                None if children.is_empty() => {
                    // Nothing between the brackets: a group without children, or a layer without
                    // arguments.
                    self.at = if is_group { self.at + 1 } else { begin };
                    return Ok(children);
                }
                None if self.takes(")") => return Ok(children),
                None => {
                    let text = shortened(self.rest());
                    return Err(if text.is_empty() {
                        "the text ends before the module's last bracket: it is incomplete"
                            .to_owned()
                            .into()
                    } else {
                        format!(
                            "'{text}' is neither a child such as (0): ReLU() nor the bracket \
                            that closes the module"
                        )
                        .into()
                    });
                }
            }
        }
    }
}

/// What is said of a class that holds several modules.
fn several(kind: &str, parts: &str) -> String {
    let kind = shortened(kind);
    format!(
        "PyTorch prints the parts of {kind} ({parts}), but not how its forward uses them. If \
         forward applies the parts in \
         this order and does nothing else, write Sequential in place of {kind}; if one part is \
         the network, give that part alone, \
         with its weights by StateDict::under; else export the network to ONNX"
    )
}

/// The layers that can be read, in the order of the alphabet.
const KINDS: [&str; 44] = [
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

/// What is said of a layer of none of these kinds, with the one that is probably meant.
fn unknown(kind: &str) -> String {
    if kind.starts_with("nn.") || kind.contains("torch") || kind.contains("import") {
        return format!("'{}' is Python code: the text is what print(net) prints", shortened(kind));
    }
    let (kind, meant) = (shortened(kind), did_you_mean(kind, KINDS));
    format!(
        "{kind} is unsupported{meant}; the layers are {}, and the groups Sequential, Residual and \
         Concat",
        KINDS.join(", ")
    )
}

/// The layer of a kind with the text between its brackets, all of which is understood.
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
        "ELU" => {
            arguments.inplace(1)?;
            Arc::new(Elu::new(arguments.number("alpha", 0, 1.0)?).map_err(refused)?)
        }
        "GELU" => match arguments.text("approximate", 0) {
            None | Some("'none'") => Arc::new(Gelu::Exact),
            Some("'tanh'") => Arc::new(Gelu::Tanh),
            Some(other) => {
                return Err(format!(
                    "approximate={} is unsupported: it is 'none' or 'tanh'",
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
            // It takes whatever the layer took that it replaces.
            arguments.ignore_all();
            Arc::new(Identity)
        }
        "Flatten" => {
            let why = "Flatten makes one vector of a whole sample, start_dim=1 and end_dim=-1";
            arguments.only("start_dim", 0, &["1"], why)?;
            arguments.only("end_dim", 1, &["-1"], why)?;
            Arc::new(Flatten)
        }
        "Unflatten" => {
            arguments.only("dim", 0, &["1"], "Unflatten takes a whole sample apart, dim=1")?;
            let sizes = arguments.sizes("unflattened_size", 1)?;
            Arc::new(Unflatten::new(
                super::shape(&sizes).ok_or("Unflatten makes vectors, sequences and images only")?,
            ))
        }
        "Permute" => {
            let axes = arguments.sizes("dims", 0)?;
            let axes =
                axes.strip_prefix(&[0]).ok_or("Permute leaves the samples' axis where it is")?;
            let axes: Option<Vec<usize>> = axes.iter().map(|axis| axis.checked_sub(1)).collect();
            Arc::new(
                Permute::new(&axes.ok_or("Permute names the samples' axis twice")?)
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
    // How fast the statistics follow a batch in training; None is their mean.
    if arguments
        .text("momentum", 2)
        .is_some_and(|text| text != "None" && text.parse::<f64>().is_err())
    {
        return Err("momentum is not a number".to_owned());
    }
    let (affine, bias) = (arguments.flag("affine", 3, true)?, arguments.flag("bias", NAMED, true)?);
    let why = "without statistics of its own it normalizes by the batch";
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
    // One within another would be one, and a text could nest them without end.
    let (kind, own) = inner
        .filter(|(kind, _)| *kind != "Scaled")
        .ok_or("its activation is missing, as in Scaled(ReLU(), argument=2.0, value=0.5)")?;
    let Module::Layer(inner) = of_kind(kind, own)? else {
        return Err(format!("{kind} is not an activation"));
    };
    let (argument, value) =
        (arguments.number("argument", 1, 1.0)?, arguments.number("value", 2, 1.0)?);
    Ok(Arc::new(Scaled::of(inner, argument, value).map_err(|error| error.to_string())?))
}

/// A log-softmax has the same logits; its outputs are the logarithms of the probabilities.
fn softmax<T: Scalar>(arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    match arguments.text("dim", 0) {
        // PyTorch then takes the axis of the values, where they are a vector.
        None | Some("None") => Ok(Arc::new(Softmax)),
        Some(dim) => {
            let dim =
                dim.parse().map_err(|_| format!("dim={} is not a whole number", shortened(dim)))?;
            Ok(Arc::new(Softmax::over_dim(dim)))
        }
    }
}

fn upsample<T: Scalar>(arguments: &Arguments<'_>) -> Result<Arc<dyn Layer<T>>, String> {
    arguments.only(
        "size",
        0,
        &["None"],
        "write scale_factor instead, how many times larger the output is, a whole number",
    )?;
    // By a whole factor the two are the same.
    let modes = ["'nearest'", "'nearest-exact'"];
    arguments.only("mode", 2, &modes, "the mode is 'nearest'")?;
    arguments.only(
        "align_corners",
        3,
        &["None", "False"],
        "it is of no use for the mode 'nearest'",
    )?;
    let text = arguments.text("scale_factor", 1).ok_or("scale_factor is missing")?;
    let inner = text.trim_start_matches('(').trim_end_matches(')');
    let factors: Option<Vec<f64>> = inner
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().ok())
        .collect();
    let factor = factors.and_then(|factors| Some((*factors.first()?, factors)));
    match factor {
        Some((factor, all))
            if factor.fract() == 0.0
                && (1.0..=1024.0).contains(&factor)
                && all.iter().all(|f| f.total_cmp(&factor).is_eq()) =>
        {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // whole, and from 1 to 1024
            Ok(Arc::new(Upsample::new(factor as usize).map_err(|error| error.to_string())?))
        }
        _ => Err(format!(
            "scale_factor={} is unsupported: it is one whole number from 1 to 1024, the same \
             along height and width",
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
    // Where PyTorch's arguments have places, these are their order.
    let [output_padding, dilation, groups, bias, mode] =
        if transposed { [5, 8, 6, 7, 9] } else { [NAMED, 5, 6, 7, 8] };
    arguments.only("padding_mode", mode, &["zeros", "'zeros'"], "padding is of zeros")?;
    let pair = |name: &str, place: usize, default: usize| {
        Ok::<_, String>(arguments.pair(name, place, rank)?.unwrap_or([default; 2]))
    };
    let along = |[height, width]: [usize; 2], nothing| {
        if rank == 1 { [nothing, width] } else { [height, width] }
    };
    let kernel = along(arguments.pair("kernel_size", 2, rank)?.ok_or("kernel_size is missing")?, 1);
    let (stride, dilation) =
        (along(pair("stride", 3, 1)?, 1), along(pair("dilation", dilation, 1)?, 1));
    let (padding, padding_end) = match arguments.text("padding", 4) {
        Some("valid" | "'valid'") if !transposed => ([0, 0], [0, 0]),
        // So much that the outputs are as many as the inputs, the odd one at the end.
        Some("same" | "'same'") if !transposed => {
            if stride != [1, 1] {
                return Err("padding=same is for a stride of 1".to_owned());
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
        return Err("output_padding is of transposed convolutions".to_owned());
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
        arguments.only("return_indices", 4, &["False"], "a layer gives values only")?;
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

/// What a file says, fit for an error's one line.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
