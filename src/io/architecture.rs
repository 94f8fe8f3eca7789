//! Architectures, in the words in which PyTorch prints them.

use std::sync::Arc;

use crate::error::Error;
use crate::layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d, Branch, Celu, Concat, Conv1d, Conv2d,
    ConvTranspose2d, Dropout, Elu, Flatten, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, Layer, LeakyRelu, Linear, MaxPool1d,
    MaxPool2d, Mish, Named, Permute, Relu, Residual, Scaled, Selu, Sigmoid, Silu, Softmax, Softplus, Softsign, Tanh, Unflatten,
    Upsample,
};
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
    BatchNorm { rank: usize, channels: usize, eps: f64 },
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
            Self::BatchNorm { channels, .. } => {
                ["weight", "bias", "running_mean", "running_var"].map(|name| (name, vec![*channels])).into()
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
            Self::BatchNorm { rank, eps, .. } => {
                let [weight, bias, mean, variance] = [next(), next(), next(), next()];
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
        let [outer, inner] = if self.is_transposed() { [self.inputs, self.outputs] } else { [self.outputs, self.inputs] };
        let inner = inner / self.groups.max(1);
        if self.kind == "Conv1d" { vec![outer, inner, width] } else { vec![outer, inner, height, width] }
    }

    fn layer<T: Scalar>(&self, weight: Vec<T>, bias: Option<Vec<T>>) -> Result<Arc<dyn Layer<T>>, Error> {
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
            ("Conv1d", &[outer, inner, width]) => Arc::new(with_settings!(Conv1d::new([outer, inner, width], weight, bias)?)),
            ("ConvTranspose2d", &[outer, inner, height, width]) => {
                let layer = ConvTranspose2d::new([outer, inner, height, width], weight, bias)?;
                Arc::new(with_settings!(layer.output_padding(self.output_padding)))
            }
            (_, dims) => {
                let height = dims.get(2).copied().unwrap_or(1);
                let width = dims.get(3).copied().unwrap_or(1);
                Arc::new(with_settings!(Conv2d::new([dims[0], dims[1], height, width], weight, bias)?))
            }
        })
    }
}

/// The layers of a module, named by their path in it.
pub(super) fn branch<T: Scalar>(module: &Module<T>, make: &mut Maker<'_, T>, path: &str) -> Result<Branch<T>, Error> {
    let mut layers = Vec::new();
    add(module, make, path, "", &mut layers)?;
    Ok(Branch { layers })
}

/// Makes the layer that stands under a name.
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
            put(if summed { Arc::new(Residual::new(branches)?) } else { Arc::new(Concat::new(branches)?) });
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

/// Reads the text in which PyTorch prints a module: one `Sequential(…)`, or modules one after another.
pub(super) fn parse<T: Scalar>(text: &str) -> Result<Module<T>, String> {
    let mut reader = Reader { text, at: 0 };
    let mut modules = Vec::new();
    while !reader.rest().trim_start().is_empty() {
        let module = reader.module(0).map_err(|reason| format!("layer {}: {reason}", modules.len()))?;
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

    /// Goes on behind this text, where it comes next.
    fn takes(&mut self, text: &str) -> bool {
        let there = self.rest().starts_with(text);
        self.at += if there { text.len() } else { 0 };
        there
    }

    fn module<T: Scalar>(&mut self, depth: usize) -> Result<Module<T>, String> {
        if depth > DEPTH {
            return Err(format!("modules are nested more than {DEPTH} deep"));
        }
        self.skip_spaces();
        let rest = self.rest();
        let (kind, _) = rest.split_once('(').ok_or_else(|| format!("'{}' is not a layer", shortened(rest)))?;
        self.at += kind.len() + 1;
        let kind = kind.trim();
        let children = self.children(depth)?;
        match kind {
            "Sequential" => Ok(Module::Sequential(children)),
            "Residual" => Ok(Module::Residual(children)),
            "Concat" => Ok(Module::Concat(children)),
            _ if !children.is_empty() => Err(format!("there is no module of kind '{}'", shortened(kind))),
            _ => {
                // To the bracket that closes the first.
                let (rest, mut open) = (self.rest(), 1);
                let end = rest.find(|c| {
                    open += i32::from(c == '(') - i32::from(c == ')');
                    open == 0
                });
                let end = end.ok_or_else(|| format!("'{}' is not a layer", shortened(rest)))?;
                self.at += end + 1;
                layer(kind, &Arguments(&rest[..end]))
            }
        }
    }

    /// `(name): module` as often as it comes, and the bracket behind; none of it where something else comes.
    fn children<T: Scalar>(&mut self, depth: usize) -> Result<Vec<(String, Module<T>)>, String> {
        let begin = self.at;
        let mut children = Vec::new();
        loop {
            self.skip_spaces();
            // A name in brackets and a colon; brackets may be a layer's arguments, too.
            let in_brackets = self.rest().strip_prefix('(').and_then(|rest| rest.split_at_checked(rest.find(['(', ')', ','])?));
            match in_brackets.filter(|(_, behind)| behind.starts_with("):")).map(|(name, _)| name) {
                Some(name) => {
                    self.at += name.len() + 3;
                    children.push((name.to_owned(), self.module(depth + 1)?));
                }
                None if children.is_empty() && !(self.rest().starts_with(')')) => {
                    self.at = begin;
                    return Ok(children);
                }
                None if children.is_empty() => {
                    // Nothing between the brackets: a group without children, or a layer without arguments.
                    let is_group = self.text[..begin].ends_with("Sequential(");
                    self.at = if is_group { self.at + 1 } else { begin };
                    return Ok(children);
                }
                None if self.takes(")") => return Ok(children),
                None => return Err(format!("'{}' does not close its module", shortened(self.rest()))),
            }
        }
    }
}

fn layer<T: Scalar>(kind: &str, arguments: &Arguments<'_>) -> Result<Module<T>, String> {
    let refused = |error: Error| error.to_string();
    let layer: Arc<dyn Layer<T>> = match kind {
        "Linear" => {
            let (inputs, outputs) = (arguments.size("in_features", 0)?, arguments.size("out_features", 1)?);
            return Ok(Module::Weighted(Weighted::Linear { inputs, outputs, bias: arguments.flag("bias", true)? }));
        }
        "Conv1d" | "Conv2d" | "ConvTranspose2d" => {
            return Ok(Module::Weighted(Weighted::Convolution(arguments.convolution(kind)?)));
        }
        "BatchNorm1d" | "BatchNorm2d" => {
            if !(arguments.flag("affine", true)? && arguments.flag("track_running_stats", true)?) {
                return Err(format!("{kind} without affine=True and track_running_stats=True has no weights to read"));
            }
            let (channels, eps) = (arguments.size("num_features", 0)?, arguments.number("eps", 1e-5)?);
            return Ok(Module::Weighted(Weighted::BatchNorm { rank: if kind == "BatchNorm2d" { 2 } else { 1 }, channels, eps }));
        }
        "MaxPool1d" | "MaxPool2d" | "AvgPool1d" | "AvgPool2d" => return arguments.pooling(kind).map(Module::Layer),
        "AdaptiveAvgPool1d" => Arc::new(AdaptiveAvgPool1d::new(arguments.pair("output_size", 0)?.unwrap_or([1, 1]))),
        "AdaptiveAvgPool2d" => Arc::new(AdaptiveAvgPool2d::new(arguments.pair("output_size", 0)?.unwrap_or([1, 1]))),
        "Upsample" => {
            if arguments.text("mode", 2).is_some_and(|mode| mode != "'nearest'") {
                return Err("Upsample knows the mode 'nearest' only".to_owned());
            }
            let factor = arguments.number("scale_factor", f64::NAN)?;
            if factor.fract() != 0.0 || !(1.0..=1024.0).contains(&factor) {
                return Err(format!("Upsample: scale_factor is {factor}, not a whole number"));
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // whole, and from 1 to 1024
            Arc::new(Upsample::new(factor as usize).map_err(refused)?)
        }
        "ReLU" => Arc::new(Relu),
        "LeakyReLU" => Arc::new(LeakyRelu::new(arguments.number("negative_slope", 0.01)?).map_err(refused)?),
        "ELU" => Arc::new(Elu::new(arguments.number("alpha", 1.0)?).map_err(refused)?),
        "GELU" => match arguments.text("approximate", 0) {
            None | Some("'none'") => Arc::new(Gelu::Exact),
            Some("'tanh'") => Arc::new(Gelu::Tanh),
            Some(other) => return Err(format!("GELU knows no approximation {}", shortened(other))),
        },
        "CELU" => Arc::new(Celu::new(arguments.number("alpha", 1.0)?).map_err(refused)?),
        "SELU" => Arc::new(Selu),
        "SiLU" => Arc::new(Silu),
        "Mish" => Arc::new(Mish),
        "Softsign" => Arc::new(Softsign),
        "Hardsigmoid" => Arc::new(HardSigmoid),
        "Hardswish" => Arc::new(HardSwish),
        "Sigmoid" => Arc::new(Sigmoid),
        "Tanh" => Arc::new(Tanh),
        "Softplus" => {
            let (beta, threshold) = (arguments.number("beta", 1.0)?, arguments.number("threshold", 20.0)?);
            Arc::new(Softplus::new(beta, threshold).map_err(refused)?)
        }
        "ReLU6" => Arc::new(HardTanh::new(0.0, 6.0).map_err(refused)?),
        "Hardtanh" => {
            let (min, max) = (arguments.number("min_val", -1.0)?, arguments.number("max_val", 1.0)?);
            Arc::new(HardTanh::new(min, max).map_err(refused)?)
        }
        "Scaled" => {
            let all = arguments.all();
            let inner = all[0].strip_suffix(')').and_then(|inner| inner.split_once('(')).filter(|(kind, _)| *kind != "Scaled");
            let (kind, own) = inner.ok_or("Scaled is without an activation, such as Scaled(ReLU(), argument=2.0, value=0.5)")?;
            let Module::Layer(inner) = layer(kind, &Arguments(own))? else {
                return Err(format!("Scaled is of an activation, not of a {kind}"));
            };
            let (argument, value) = (arguments.number("argument", 1.0)?, arguments.number("value", 1.0)?);
            Arc::new(Scaled::of(inner, argument, value).map_err(refused)?)
        }
        "Identity" => Arc::new(Identity),
        "Flatten" => Arc::new(Flatten),
        "Unflatten" => {
            if arguments.text("dim", 0).is_some_and(|dim| dim != "1") {
                return Err("Unflatten takes a whole sample apart: dim=1".to_owned());
            }
            let sizes = arguments.sizes("unflattened_size")?;
            Arc::new(Unflatten::new(super::shape(&sizes).ok_or("Unflatten makes vectors, sequences and images only")?))
        }
        "Permute" => {
            let axes = arguments.sizes("dims")?;
            let axes = axes.strip_prefix(&[0]).ok_or("Permute leaves the samples' axis where it is")?;
            let axes: Option<Vec<usize>> = axes.iter().map(|axis| axis.checked_sub(1)).collect();
            Arc::new(Permute::new(&axes.ok_or("Permute names the samples' axis twice")?).map_err(refused)?)
        }
        "Dropout" | "Dropout2d" => Arc::new(Dropout::new(arguments.number("p", 0.5)?).map_err(refused)?),
        "Softmax" => Arc::new(Softmax),
        other => return Err(format!("there is no layer of kind '{}'", shortened(other))),
    };
    Ok(Module::Layer(layer))
}

/// What stands between a layer's brackets.
struct Arguments<'a>(&'a str);

impl<'a> Arguments<'a> {
    /// The arguments; commas in brackets do not part them.
    fn all(&self) -> Vec<&'a str> {
        let (mut depth, mut from, mut all) = (0, 0, Vec::new());
        for (at, c) in self.0.char_indices() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if c == ',' && depth == 0 {
                all.push(self.0[from..at].trim());
                from = at + 1;
            }
        }
        all.push(self.0[from..].trim());
        all
    }

    /// An argument by its name, or at its place where it has none.
    fn text(&self, name: &str, place: usize) -> Option<&'a str> {
        let all = self.all();
        let named = all.iter().filter_map(|argument| argument.split_once('=')).find(|(key, _)| key.trim() == name);
        let placed = || all.get(place).copied().filter(|argument| !argument.is_empty() && !argument.contains('='));
        named.map(|(_, value)| value.trim()).or_else(placed)
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, String> {
        let Some(text) = self.text(name, usize::MAX) else { return Ok(default) };
        text.parse().map_err(|_| format!("{name} is '{}', not a number", shortened(text)))
    }

    fn size(&self, name: &str, place: usize) -> Result<usize, String> {
        self.text(name, place).and_then(|text| text.parse().ok()).ok_or_else(|| format!("it is without a usable {name}"))
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.text(name, usize::MAX) {
            None => Ok(default),
            Some("True") => Ok(true),
            Some("False") => Ok(false),
            Some(other) => Err(format!("{name} is '{}', not True or False", shortened(other))),
        }
    }

    /// `(3, 4, 5)`.
    fn sizes(&self, name: &str) -> Result<Vec<usize>, String> {
        let refused = || format!("it is without usable {name}");
        let text = self.text(name, usize::MAX).ok_or_else(refused)?;
        let inner = text.trim_start_matches(['(', '[']).trim_end_matches([')', ']']);
        let sizes = inner.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::parse);
        sizes.collect::<Result<_, _>>().map_err(|_| refused())
    }

    /// `3`, `(3,)` or `(3, 4)`.
    fn pair(&self, name: &str, place: usize) -> Result<Option<[usize; 2]>, String> {
        let Some(text) = self.text(name, place) else { return Ok(None) };
        let inner = text.trim_start_matches('(').trim_end_matches(')');
        let numbers: Result<Vec<usize>, _> =
            inner.split(',').map(str::trim).filter(|text| !text.is_empty()).map(str::parse).collect();
        match numbers.as_deref() {
            Ok([both]) => Ok(Some([*both, *both])),
            Ok([height, width]) => Ok(Some([*height, *width])),
            _ => Err(format!("{name} is '{}', not one or two sizes", shortened(text))),
        }
    }

    fn convolution(&self, kind: &str) -> Result<Convolution, String> {
        let kind = match kind {
            "Conv1d" => "Conv1d",
            "ConvTranspose2d" => "ConvTranspose2d",
            _ => "Conv2d",
        };
        if let Some(mode) = self.text("padding_mode", usize::MAX).filter(|mode| *mode != "zeros") {
            return Err(format!("{kind} knows no padding_mode {}", shortened(mode)));
        }
        let pair = |name: &str, default: usize| Ok::<_, String>(self.pair(name, usize::MAX)?.unwrap_or([default; 2]));
        let along = |[height, width]: [usize; 2], nothing| if kind == "Conv1d" { [nothing, width] } else { [height, width] };
        let padding = pair("padding", 0)?;
        let groups = if self.text("groups", usize::MAX).is_some() { self.size("groups", usize::MAX)? } else { 1 };
        Ok(Convolution {
            kind,
            inputs: self.size("in_channels", 0)?,
            outputs: self.size("out_channels", 1)?,
            kernel: along(self.pair("kernel_size", 2)?.ok_or_else(|| format!("{kind} without a kernel_size"))?, 1),
            stride: along(pair("stride", 1)?, 1),
            padding: along(padding, 0),
            padding_end: along(self.pair("padding_end", usize::MAX)?.unwrap_or(padding), 0),
            output_padding: pair("output_padding", 0)?,
            dilation: along(pair("dilation", 1)?, 1),
            groups,
            bias: self.flag("bias", true)?,
        })
    }

    fn pooling<T: Scalar>(&self, kind: &str) -> Result<Arc<dyn Layer<T>>, String> {
        let kernel = self.pair("kernel_size", 0)?.ok_or_else(|| format!("{kind} without a kernel_size"))?;
        let stride = self.pair("stride", 1)?.unwrap_or(kernel);
        let padding = self.pair("padding", 2)?.unwrap_or([0, 0]);
        let padding_end = self.pair("padding_end", usize::MAX)?.unwrap_or(padding);
        let dilation = self.pair("dilation", usize::MAX)?.unwrap_or([1, 1]);
        let (ceil, count) = (self.flag("ceil_mode", false)?, self.flag("count_include_pad", true)?);
        if self.text("divisor_override", usize::MAX).is_some_and(|text| text != "None") {
            return Err(format!("{kind} knows no divisor_override"));
        }
        macro_rules! windows {
            ($layer:ident) => {
                $layer::new(kernel).stride(stride).padding(padding).padding_end(padding_end).ceil_mode(ceil)
            };
        }
        Ok(match kind {
            "MaxPool1d" => Arc::new(windows!(MaxPool1d).dilation(dilation)),
            "MaxPool2d" => Arc::new(windows!(MaxPool2d).dilation(dilation)),
            "AvgPool1d" => Arc::new(windows!(AvgPool1d).count_include_pad(count)),
            _ => Arc::new(windows!(AvgPool2d).count_include_pad(count)),
        })
    }
}

/// What a file says, fit for an error's one line.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(60).collect()
}
