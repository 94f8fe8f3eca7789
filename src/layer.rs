//! Layers: the building blocks of a network.
//!
//! A [`Layer`] is a description. For values of a given shape it provides one of a few *operators*,
//! and the operator defines both the forward pass and how relevance flows back:
//!
//! | operator | values | relevance |
//! |---|---|---|
//! | [`Operator::Linear`] | y = W z + b | shared among the inputs by the rule |
//! | [`Operator::Average`] | y = W z + b, for poolings and normalizations | shared by the rule [`Norm`](crate::Norm) |
//! | [`Operator::Elementwise`] | yᵢ = f(zᵢ) | passes through unchanged |
//! | [`Operator::PerChannel`] | yᵢ = f_c(zᵢ), with one function per channel c | passes through unchanged |
//! | [`Operator::Route`] | each output is one of the inputs | assigned to that input |
//! | [`Operator::Reshape`] | the same values in another shape | passes through unchanged |
//! | [`Operator::Sum`] | the sum of the values read | shared by the rule [`Norm`](crate::Norm) |
//! | [`Operator::Concat`] | the values read, one after another | each value receives its part |
//! | [`Operator::Lookup`] | rows of a table, chosen by whole numbers | constants of the sample |
//! | [`Operator::Branches`] | several branches that start from the same values, summed or concatenated | split among the branches |
//! | [`Operator::Softmax`] | softmax, at the end only | the logits are explained |
//!
//! A function at the end that [gives a probability](Elementwise::gives_probability), such as
//! [`Sigmoid`], is treated like a softmax: the logit is explained, and the explanation also reports
//! the probability.
//!
//! To add your own layer, implement [`Layer`] together with [`LinearMap`], [`Elementwise`] or
//! [`Route`]:
//!
//! ```
//! use relprop::{Elementwise, Error, Layer, Linear, Operator, Rule, Scalar, Sequential, Shape};
//! use relprop::nalgebra::{self, dmatrix, dvector};
//!
//! /// z² where z > 0, otherwise 0.
//! #[derive(Debug)]
//! struct SquaredRelu;
//!
//! impl<T: Scalar> Elementwise<T> for SquaredRelu {
//!     fn value(&self, z: T) -> T {
//!         let z = z.max(T::zero());
//!         z * z
//!     }
//! }
//!
//! impl<T: Scalar> Layer<T> for SquaredRelu {
//!     fn kind(&self) -> &str {
//!         "SquaredReLU"
//!     }
//!     fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
//!         Ok(Operator::elementwise(Self))
//!     }
//! }
//!
//! let model = Sequential::builder()
//!     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], dvector![0.0, 0.1])?)
//!     .layer(SquaredRelu)
//!     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
//!     .build()?;
//! assert_eq!(model.explain(&dvector![1.0, 2.0], Rule::Epsilon)?.shares().shape(), (2, 1));
//! # Ok::<(), relprop::Error>(())
//! ```

mod activation;
mod batch_norm;
mod branches;
mod convolution;
mod elementwise;
mod embedding;
mod linear;
mod map;
mod operator;
mod pair;
mod pooling;
mod prelu;
mod reshape;
mod softmax;

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

pub use activation::{
    Celu, Dropout, Elu, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, LeakyRelu, Mish, Relu,
    Scaled, Selu, Sigmoid, Silu, Softplus, Softsign, Tanh,
};
pub use batch_norm::{BatchNorm1d, BatchNorm2d};
pub use branches::{Branch, Concat, Residual};
pub(crate) use branches::{Join, Named};
pub use convolution::{Conv1d, Conv2d, ConvTranspose2d};
pub use elementwise::Elementwise;
pub(crate) use elementwise::Functions;
pub use embedding::{Embedding, Lookup};
pub use linear::Linear;
pub(crate) use linear::{check_bias, same, sum_of as sum};
pub use map::{Bias, LinearMap, WeightFn};
pub(crate) use map::{add_bias, fan_in, scale_columns};
pub use operator::{Joined, Operator, Route};
pub use pair::Pair;
#[cfg(feature = "io")]
pub(crate) use pooling::Assumed;
pub use pooling::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d,
};
pub use prelu::PRelu;
pub use reshape::{Flatten, Permute, Unflatten, Upsample};
pub(crate) use softmax::SoftmaxOver;
pub use softmax::{AxisSoftmax, Softmax};

/// One layer of a network. Implement this trait for your own layers.
pub trait Layer<T: Scalar>: Debug + Send + Sync {
    /// The kind of layer, as it appears in errors and ledgers. If PyTorch has such a layer, this is
    /// the name of its class.
    fn kind(&self) -> &str;

    /// The layer's operator for values of these shapes.
    ///
    /// There is one shape for each value that the layer reads. Most layers read one value, whose
    /// shape [`only_input`] returns. If a layer reads several values, its operator applies to all of
    /// them, one after another.
    ///
    /// # Errors
    /// If the layer does not accept these shapes, preferably [`Error::Shape`] or
    /// [`Error::InputCount`].
    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error>;

    /// The family of layers that this layer belongs to, or `None` to let its operator decide.
    ///
    /// The operator's family is [`Family::Dense`] for [`Operator::Linear`], [`Family::Average`] for
    /// [`Operator::Average`], and [`Family::Sum`] for [`Operator::Sum`].
    ///
    /// A [`Composite`](crate::Composite) can choose rules by family.
    fn family(&self) -> Option<Family> {
        None
    }

    /// The layer's settings as PyTorch prints them in parentheses, such as `negative_slope=0.01`.
    fn arguments(&self) -> String {
        String::new()
    }

    /// The settings that had to be assumed because the architecture text omits them, if they can
    /// matter for values of this shape.
    ///
    /// [`Graph::check`](crate::Graph::check) reports them.
    fn assumed(&self, input: Shape) -> Option<String> {
        let _ = input;
        None
    }

    /// The number of inputs, if it is fixed. A model that begins with such a layer does not need an
    /// input shape.
    fn inputs(&self) -> Option<usize> {
        None
    }

    /// The number of learned values.
    fn parameters(&self) -> usize {
        0
    }

    /// The scale a and shift b of each channel, if the layer is a normalization y = a z + b.
    ///
    /// [`Graph::canonize`](crate::Graph::canonize) merges such a layer into a neighbor.
    fn per_channel(&self) -> Option<(&[T], &[T])> {
        None
    }

    /// Merges this layer and a layer y = a z + b after it into one, or returns `None` if it cannot.
    ///
    /// `a` and `b` have one value per output channel.
    fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        let _ = (a, b);
        None
    }

    /// Merges this layer and a layer y = a z + b before it into one, or returns `None` if it
    /// cannot.
    ///
    /// `a` and `b` have one value per input channel.
    fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        let _ = (a, b);
        None
    }

    /// The learned tensors as they are written to a file, with the names, shapes and values of
    /// PyTorch's state dict.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        Vec::new()
    }

    /// This layer in double precision, with the same settings and with every weight converted
    /// exactly, or `None` if there is no such layer.
    ///
    /// [`Explainer::with_health`](crate::Explainer::with_health) uses it to measure the rounding
    /// error of an explanation in single precision.
    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        None
    }
}

/// The method `to_f64` of a layer whose type does not depend on the number type.
macro_rules! same_layer_in_f64 {
    () => {
        fn to_f64(&self) -> Option<std::sync::Arc<dyn crate::Layer<f64>>> {
            Some(std::sync::Arc::new(Clone::clone(self)))
        }
    };
}
use same_layer_in_f64;

/// The same numbers in double precision.
fn exactly<T: Scalar>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.as_f64()).collect()
}

/// The shape of the one value that a layer reads.
///
/// # Errors
/// [`Error::InputCount`] if the layer is given more or fewer values.
pub fn only_input(kind: &str, inputs: &[Shape]) -> Result<Shape, Error> {
    match inputs {
        [input] => Ok(*input),
        _ => Err(Error::inputs(kind, inputs.len(), "one value")),
    }
}

// Every method is forwarded, because a default would hide what the inner layer returns.
macro_rules! forward_layer {
    ($($pointer:ty),*) => {$(
        impl<T: Scalar, L: Layer<T> + ?Sized> Layer<T> for $pointer {
            fn kind(&self) -> &str {
                (**self).kind()
            }

            fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
                (**self).operator(inputs)
            }

            fn family(&self) -> Option<Family> {
                (**self).family()
            }

            fn arguments(&self) -> String {
                (**self).arguments()
            }

            fn assumed(&self, input: Shape) -> Option<String> {
                (**self).assumed(input)
            }

            fn inputs(&self) -> Option<usize> {
                (**self).inputs()
            }

            fn parameters(&self) -> usize {
                (**self).parameters()
            }

            fn per_channel(&self) -> Option<(&[T], &[T])> {
                (**self).per_channel()
            }

            fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
                (**self).scaled(a, b)
            }

            fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
                (**self).of_scaled(a, b)
            }

            fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
                (**self).tensors()
            }

            fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
                (**self).to_f64()
            }
        }
    )*};
}
forward_layer!(Box<L>, Arc<L>);

/// A layer of a model, by its index or by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerId<'a> {
    /// The index, counted from 0. The index after the last layer refers to the outputs.
    Index(usize),
    /// The name.
    Name(&'a str),
}

impl From<usize> for LayerId<'_> {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for LayerId<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

/// The families of layers to which rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// A linear map with learned weights from each input to each output.
    Dense,
    /// A linear map with learned weights that are shared along space or time.
    Convolution,
    /// A linear map whose weights are not learned, such as an average pooling.
    Average,
    /// A sum of values.
    Sum,
    /// A normalization that is a scale and a shift of each channel.
    Normalization,
}

impl Family {
    /// Whether rules are designed for the weights. [`Norm`](crate::Norm) shares the relevance of
    /// the other families unless a [`Composite`](crate::Composite) sets another rule.
    #[must_use]
    pub fn is_learned(self) -> bool {
        matches!(self, Self::Dense | Self::Convolution)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dense => "dense",
            Self::Convolution => "convolution",
            Self::Average => "average",
            Self::Sum => "sum",
            Self::Normalization => "normalization",
        })
    }
}
