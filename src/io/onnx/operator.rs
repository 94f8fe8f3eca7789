//! The registry of operators ([`Schema::ALL`]), and the translation of nodes by it.
//!
//! To add an operator, add an entry, and its function to the file of its family.

mod activation;
pub(super) mod arithmetic;
mod convolution;
mod dense;
mod identity;
mod join;
mod normalization;
mod pooling;
mod reshape;
mod resize;
mod softmax;
mod windows;

use super::context::{Context, TranslationResult};
use super::expression::Expressions;
use super::fold::{self, Fold};
use super::ir::{Computation, Ir, Operand, Translation};
use super::proto::NodeProto;
use crate::layer::{HardSwish, Mish, Relu, Sigmoid, Softplus, Softsign, Tanh};
use crate::scalar::Scalar;

/// The reason for rejecting an unknown operator.
const UNSUPPORTED: &str = "the operator is unsupported: explain the model up to its input, with \
    OnnxFile::output, or export the model without it";

/// The reason for rejecting a node in training mode, which behaves differently at inference.
const TRAINING: &str = "it is in training mode: export the model after model.eval()";

/// The reason for rejecting an operator on integers.
const INTEGERS: &str = "its values are integers, for which it is unsupported: convert the input to \
    floating-point numbers first (Cast)";

/// The function that translates a node.
type Translate<T> = fn(&Context<'_, T>) -> TranslationResult<T>;

/// What the reader knows about an operator.
pub(super) struct Schema<T: Scalar> {
    /// The name, with its domain unless that is ONNX's own.
    name: &'static str,
    /// How a node that reads values that depend on the sample is translated.
    semantics: Semantics<T>,
    /// How a node that only reads constants is computed.
    fold: Option<Fold>,
    /// What the operator does with integers that depend on the sample.
    integers: Integers,
    /// The shapes that the first input can have if it is unknown, two for each possible number of
    /// axes. A reason for rejecting the node that is the same for all of them holds for every
    /// shape. If there are none, every reason depends on the shape.
    shapes: fn(&Context<'_, T>) -> Vec<Vec<usize>>,
    /// Whether the output has the shape of the largest input.
    pub keeps_shape: bool,
    /// Whether the operator is supported only at the end of a model.
    pub only_last: bool,
    /// Whether a node is in training mode.
    training: fn(&Context<'_, T>) -> bool,
}

/// How nodes are translated.
enum Semantics<T: Scalar> {
    /// Only the first input can depend on the sample.
    OneInput(Translate<T>),
    /// Any inputs can depend on the sample.
    AnyInputs(Translate<T>),
    /// A function of each value, which is supported only as a part of an activation.
    Unary(fn(f64) -> f64),
    /// A function of each pair of values.
    Binary(fn(f64, f64) -> f64),
    /// The output depends only on the shape of the input.
    Shape,
    /// The operator is supported only on constants, or not at all.
    Unsupported,
}

/// What an operator does with integers that depend on the sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Integers {
    Unsupported,
    /// It moves them.
    Move,
    /// It converts them to floating-point numbers.
    Convert,
}

impl<T: Scalar> Schema<T> {
    const fn new(name: &'static str, semantics: Semantics<T>) -> Self {
        Self {
            name,
            semantics,
            fold: None,
            integers: Integers::Unsupported,
            shapes: |_| shapes_of(1..=3, 8),
            keeps_shape: false,
            only_last: false,
            training: |_| false,
        }
    }

    const fn one(name: &'static str, translate: Translate<T>) -> Self {
        Self::new(name, Semantics::OneInput(translate))
    }

    const fn any(name: &'static str, translate: Translate<T>) -> Self {
        Self::new(name, Semantics::AnyInputs(translate))
    }

    /// A function of each value that is an activation.
    const fn activation(name: &'static str, translate: Translate<T>) -> Self {
        Self::one(name, translate).keeps_shape()
    }

    const fn unary(name: &'static str, f: fn(f64) -> f64) -> Self {
        Self::new(name, Semantics::Unary(f)).keeps_shape()
    }

    const fn binary(name: &'static str, f: fn(f64, f64) -> f64) -> Self {
        Self::new(name, Semantics::Binary(f)).keeps_shape()
    }

    /// An operator that is supported only on constants.
    const fn constant(name: &'static str, fold: Fold) -> Self {
        Self::new(name, Semantics::Unsupported).fold(fold)
    }

    /// An operator that is unsupported, but whose output has the shape of its input.
    const fn unsupported(name: &'static str) -> Self {
        Self::new(name, Semantics::Unsupported).keeps_shape()
    }

    const fn fold(mut self, fold: Fold) -> Self {
        self.fold = Some(fold);
        self
    }

    const fn integers(mut self, integers: Integers) -> Self {
        self.integers = integers;
        self
    }

    const fn shapes(mut self, shapes: fn(&Context<'_, T>) -> Vec<Vec<usize>>) -> Self {
        self.shapes = shapes;
        self
    }

    /// The operator only applies to sequences and images.
    const fn spatial(self) -> Self {
        self.shapes(|_| shapes_of(2..=3, 8))
    }

    const fn keeps_shape(mut self) -> Self {
        self.keeps_shape = true;
        self
    }

    const fn only_last(mut self) -> Self {
        self.only_last = true;
        self
    }

    const fn training(mut self, training: fn(&Context<'_, T>) -> bool) -> Self {
        self.training = training;
        self
    }

    /// All operators that the reader knows, in alphabetical order. Not all of their settings are
    /// supported.
    #[rustfmt::skip]
    const ALL: &'static [Self] = &[
        Self::unary("Abs", f64::abs),
        Self::binary("Add", |a, b| a + b),
        Self::one("AveragePool", pooling::pool).shapes(pooling::shapes),
        Self::one("BatchNormalization", normalization::batch_norm)
            .shapes(normalization::shapes).keeps_shape().training(normalization::is_training),
        Self::one("Cast", identity::cast).integers(Integers::Convert).fold(fold::cast),
        Self::unary("Ceil", f64::ceil),
        Self::activation("Celu", activation::celu),
        Self::activation("Clip", activation::clip),
        Self::any("Concat", join::concat).fold(fold::concat),
        Self::constant("Constant", fold::constant),
        Self::constant("ConstantOfShape", fold::constant_of_shape),
        Self::one("Conv", convolution::conv).shapes(convolution::conv_shapes),
        Self::one("ConvTranspose", convolution::conv_transpose)
            .shapes(convolution::conv_transpose_shapes),
        Self::binary("Div", |a, b| a / b),
        Self::one("Dropout", identity::identity).training(identity::is_training)
            .fold(fold::dropout),
        Self::activation("Elu", activation::elu),
        Self::unary("Erf", libm::erf),
        Self::unary("Exp", f64::exp),
        Self::one("Flatten", reshape::flatten).shapes(reshape::shapes).integers(Integers::Move)
            .fold(fold::flatten),
        Self::unary("Floor", f64::floor),
        Self::constant("Gather", fold::gather),
        Self::activation("Gelu", activation::gelu),
        Self::one("Gemm", dense::gemm).shapes(dense::gemm_shapes),
        Self::one("GlobalAveragePool", pooling::global_average).spatial(),
        Self::one("GlobalMaxPool", pooling::global_max).spatial(),
        Self::binary("Greater", arithmetic::greater).fold(fold::greater),
        Self::unsupported("GroupNormalization"),
        Self::activation("HardSigmoid", activation::hard_sigmoid),
        Self::activation("HardSwish", |context| activation::of(context, HardSwish)),
        Self::one("Identity", identity::identity).integers(Integers::Move).fold(fold::identity),
        Self::unsupported("InstanceNormalization"),
        Self::unsupported("LayerNormalization"),
        Self::activation("LeakyRelu", activation::leaky_relu),
        Self::binary("Less", arithmetic::less).fold(fold::less),
        Self::unary("Log", f64::ln),
        Self::one("LogSoftmax", softmax::softmax).keeps_shape().only_last(),
        Self::unsupported("LpNormalization"),
        Self::one("MatMul", dense::matmul).shapes(dense::matmul_shapes),
        Self::binary("Max", f64::max),
        Self::one("MaxPool", pooling::pool).shapes(pooling::shapes),
        Self::unsupported("MeanVarianceNormalization"),
        Self::binary("Min", f64::min),
        Self::activation("Mish", |context| activation::of(context, Mish)),
        Self::constant("Mod", fold::modulo),
        Self::binary("Mul", |a, b| a * b),
        Self::activation("Neg", activation::negate).fold(fold::negate),
        Self::activation("PRelu", activation::prelu),
        Self::one("Pad", convolution::pad).shapes(convolution::pad_shapes),
        Self::binary("Pow", f64::powf).fold(fold::power),
        Self::unsupported("RMSNormalization"),
        Self::unary("Reciprocal", f64::recip),
        Self::one("ReduceMean", pooling::reduce_mean),
        Self::activation("Relu", |context| activation::of(context, Relu)),
        Self::one("Reshape", reshape::reshape).shapes(reshape::shapes).integers(Integers::Move)
            .fold(fold::reshape),
        Self::one("Resize", resize::resize).spatial(),
        Self::activation("Selu", activation::selu),
        Self::new("Shape", Semantics::Shape).fold(fold::shape),
        Self::activation("Sigmoid", |context| activation::of(context, Sigmoid)),
        Self::constant("Slice", fold::slice),
        Self::one("Softmax", softmax::softmax).keeps_shape().only_last(),
        Self::activation("Softplus", |context| activation::of(context, Softplus::default())),
        Self::activation("Softsign", |context| activation::of(context, Softsign)),
        Self::unary("Sqrt", f64::sqrt),
        Self::one("Squeeze", reshape::squeeze).shapes(reshape::shapes).integers(Integers::Move)
            .fold(fold::squeeze),
        Self::binary("Sub", |a, b| a - b),
        Self::binary("Sum", |a, b| a + b),
        Self::activation("Swish", activation::swish),
        Self::activation("Tanh", |context| activation::of(context, Tanh)),
        Self::one("Transpose", reshape::transpose).shapes(reshape::transpose_shapes)
            .integers(Integers::Move).fold(fold::transpose),
        Self::one("Unsqueeze", reshape::unsqueeze).shapes(reshape::shapes)
            .integers(Integers::Move).fold(fold::unsqueeze),
        Self::one("Upsample", resize::resize).spatial(),
        Self::any("Where", join::choose).keeps_shape(),
        Self::one("ai.onnx.ml.Scaler", normalization::scaler),
        Self::one("ai.onnx.ml.ZipMap", identity::identity),
        Self::unsupported("com.microsoft.SimplifiedLayerNormalization"),
        Self::unsupported("com.microsoft.SkipLayerNormalization"),
        Self::unsupported("com.microsoft.SkipSimplifiedLayerNormalization"),
    ];

    /// The operator with this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        Self::ALL.iter().find(|schema| schema.name == name)
    }

    /// Whether the operator moves or converts integers that depend on the sample.
    pub fn takes_integers(&self) -> bool {
        self.integers != Integers::Unsupported
    }

    /// Whether the values are never integers.
    pub fn gives_floats(&self) -> bool {
        self.integers == Integers::Convert
    }

    /// Whether the output depends only on the shape of the input.
    pub fn reads_shape(&self) -> bool {
        matches!(self.semantics, Semantics::Shape)
    }

    /// How a node that only reads constants is computed.
    pub fn folding(&self) -> Option<Folding> {
        match (self.fold, &self.semantics) {
            (Some(fold), _) => Some(Folding::Node(fold)),
            (None, &Semantics::Unary(f)) => Some(Folding::Unary(f)),
            (None, &Semantics::Binary(f)) => Some(Folding::Binary(f)),
            _ => None,
        }
    }

    /// Translates a node, or returns the reason for rejecting it.
    pub fn translate(&self, context: &Context<'_, T>) -> TranslationResult<T> {
        let ir = context.ir;
        if !self.takes_integers() && context.inputs.iter().any(|&input| ir[input].whole) {
            return Err(INTEGERS.to_owned());
        }
        match self.semantics {
            Semantics::OneInput(translate) => self.with_one_input(context, translate),
            Semantics::Unary(f) => {
                self.with_one_input(context, |context| Ok(activation::unary(context, f)))
            }
            Semantics::AnyInputs(translate) => translate(context),
            Semantics::Binary(f) => arithmetic::binary(context, f),
            Semantics::Shape | Semantics::Unsupported => Err(UNSUPPORTED.to_owned()),
        }
    }

    fn with_one_input(
        &self,
        context: &Context<'_, T>,
        translate: impl Fn(&Context<'_, T>) -> TranslationResult<T>,
    ) -> TranslationResult<T> {
        let ir = context.ir;
        if !matches!(context.operands.first(), Some(Some(Operand::Node(_)))) {
            return Err("its first input is a constant, and another one depends on the model's \
                 input: only the opposite order is supported"
                .to_owned());
        }
        if context.inputs.iter().filter(|&&input| !ir[input].uncomputed).count() > 1 {
            return Err("more than one of its inputs depends on the model's input, as in \
                 attention, which is unsupported: explain the model up to one of them, with \
                 OnnxFile::output"
                .to_owned());
        }
        let translate = |dims: &[usize]| {
            let context = Context { dims, ..*context };
            if (self.training)(&context) {
                return Err(TRAINING.to_owned());
            }
            translate(&context)
        };
        if context.inputs.iter().all(|&input| ir[input].dims.is_some()) {
            return translate(context.dims);
        }
        // The node comes after an unsupported one, which is reported. Only a reason that holds for
        // every possible shape is another one.
        let shapes = (self.shapes)(context);
        let mut reasons = shapes.iter().map(|dims| translate(dims).err());
        match reasons.next().flatten() {
            Some(first) if reasons.all(|other| other.as_ref() == Some(&first)) => Err(first),
            _ => Ok(Computation::AfterUnsupported(context.inputs.to_vec()).into()),
        }
    }
}

/// How a node that only reads constants is computed.
pub(super) enum Folding {
    Node(Fold),
    Unary(fn(f64) -> f64),
    Binary(fn(f64, f64) -> f64),
}

impl<T: Scalar> Ir<T> {
    /// Translates a node with an input that depends on the sample, or returns the reason for
    /// rejecting it.
    pub fn translate(
        &self,
        node: &NodeProto,
        operator: &str,
        operands: &[Option<Operand>],
        inputs: &[usize],
        is_read: bool,
    ) -> TranslationResult<T> {
        let schema = Schema::find(operator).ok_or(UNSUPPORTED)?;
        let dims = self[inputs[0]].dims.as_deref().unwrap_or_default();
        schema.translate(&Context { ir: self, node, operator, operands, inputs, dims, is_read })
    }
}

/// Two shapes for each of these numbers of axes. If a reason for rejecting a node depends on the
/// sizes, it differs between the two.
fn shapes_of(axes: impl IntoIterator<Item = usize>, channels: usize) -> Vec<Vec<usize>> {
    let of = |axes: usize| {
        [32, 48].map(|size| [vec![channels], vec![size; axes.saturating_sub(1)]].concat())
    };
    // Samples have at most three axes, so only an unsupported node can have more.
    axes.into_iter().filter(|axes| (1..=3).contains(axes)).flat_map(of).collect()
}

/// A node that is rejected for a reason, unless a node after it makes it part of an activation.
fn refused<T: Scalar>(
    context: &Context<'_, T>,
    reason: &str,
    expressions: Expressions,
) -> Translation<T> {
    let computation = Computation::Unsupported(context.inputs.to_vec(), reason.to_owned());
    Translation::Node(computation, expressions)
}

/// The reason for rejecting a function that is not part of a known activation.
const PART: &str = "it is supported only as part of a known activation, such as SiLU or GELU: \
    explain the model up to its input, with OnnxFile::output";
