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
//! | [`Operator::Lookup`] | rows of a table, chosen by whole numbers | they are constants |
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
mod embedding;
mod linear;
mod pooling;
mod prelu;
mod reshape;

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

pub use activation::{
    AxisSoftmax, Celu, Dropout, Elu, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, LeakyRelu,
    Mish, Relu, Scaled, Selu, Sigmoid, Silu, Softmax, Softplus, Softsign, Tanh,
};
pub use batch_norm::{BatchNorm1d, BatchNorm2d};
pub use branches::{Branch, Concat, Residual};
pub(crate) use branches::{Join, Named};
pub use convolution::{Conv1d, Conv2d, ConvTranspose2d, Pair};
pub use embedding::{Embedding, Lookup};
pub use linear::Linear;
pub(crate) use linear::{check_bias, same, sum_of as sum};
#[cfg(feature = "io")]
pub(crate) use pooling::Assumed;
pub use pooling::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d,
};
pub use prelu::PRelu;
pub use reshape::{Flatten, Permute, Unflatten, Upsample};

/// One layer of a [`Sequential`](crate::Sequential). Implement this trait for your own layers.
pub trait Layer<T: Scalar>: Debug + Send + Sync {
    /// The kind of layer, as it appears in errors and ledgers. If PyTorch has such a layer, this is
    /// the name of its class.
    fn kind(&self) -> &str;

    /// The layer's operator for values of these shapes.
    ///
    /// There is one shape for each value that the layer reads. Most layers read one, which
    /// [`only_input`] returns. If a layer reads several, its operator applies to all of their
    /// values, one after another.
    ///
    /// # Errors
    /// If the layer does not accept these shapes, preferably [`Error::Shape`] or
    /// [`Error::InputCount`].
    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error>;

    /// The family of layers that this layer belongs to, or `None` to let its operator decide:
    /// [`Family::Dense`] for [`Operator::Linear`], [`Family::Average`] for [`Operator::Average`],
    /// and [`Family::Sum`] for [`Operator::Sum`].
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
    /// [`Sequential::check`](crate::Sequential::check) reports them.
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
    /// [`canonize`](crate::Sequential::canonize) merges such a layer into a neighbor.
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

/// How a layer maps values forward and relevance backward.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operator<T: Scalar> {
    /// y = W z + b, with its relevance shared by the rule.
    Linear(Arc<dyn LinearMap<T>>),
    /// y = W z + b with weights for which the rules are not designed, such as those of a pooling or
    /// a normalization.
    ///
    /// Relevance is shared by the rule [`Norm`](crate::Norm) unless a
    /// [`Composite`](crate::Composite) sets another rule. Such a layer never counts as the first
    /// linear layer.
    Average(Arc<dyn LinearMap<T>>),
    /// yᵢ = f(zᵢ). Relevance passes through unchanged (Bach et al. 2015).
    Elementwise(Arc<dyn Elementwise<T>>),
    /// yᵢ = f_c(zᵢ), with one function per channel c. The first axis of the values holds the
    /// channels. Relevance passes through unchanged.
    PerChannel(Vec<Arc<dyn Elementwise<T>>>),
    /// Each output is one of the inputs. That input receives the output's relevance.
    Route(Arc<dyn Route<T>>),
    /// The same values in another shape of the same size.
    Reshape(Shape),
    /// The sum of the values that the layer reads, which all have the same shape. Relevance is
    /// shared by the rule [`Norm`](crate::Norm) unless a [`Composite`](crate::Composite) sets
    /// another rule.
    Sum,
    /// The values that the layer reads, concatenated along their first axis. Each value receives
    /// its part of the relevance.
    Concat,
    /// Rows of a table, chosen by given whole numbers. They are constants of the sample, unless
    /// they are explained themselves (see [`Graph::explain_from`](crate::Graph::explain_from)).
    Lookup(Arc<Lookup<T>>),
    /// Several branches that start from the same values, and how their outputs are combined.
    Branches(Vec<Branch<T>>, Joined),
    /// A softmax over this axis of the values. It is allowed only at the end of a model, and the
    /// logits are explained.
    Softmax(usize),
}

impl<T: Scalar> Operator<T> {
    /// Creates an [`Operator::Linear`].
    pub fn linear(map: impl LinearMap<T> + 'static) -> Self {
        Self::Linear(Arc::new(map))
    }

    /// Creates an [`Operator::Elementwise`].
    pub fn elementwise(function: impl Elementwise<T> + 'static) -> Self {
        Self::Elementwise(Arc::new(function))
    }

    /// Creates an [`Operator::PerChannel`].
    pub fn per_channel(functions: impl IntoIterator<Item = impl Elementwise<T> + 'static>) -> Self {
        Self::PerChannel(
            functions
                .into_iter()
                .map(|function| Arc::new(function) as Arc<dyn Elementwise<T>>)
                .collect(),
        )
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

/// How the outputs of branches are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Joined {
    /// They are added. The relevance of the sum is shared by the rule [`Norm`](crate::Norm).
    Summed,
    /// They are concatenated along the channels.
    Concatenated,
}

/// A layer in which each output is one of the inputs.
pub trait Route<T: Scalar>: Debug + Send + Sync {
    /// The shape of the outputs.
    fn output_shape(&self) -> Shape;

    /// Fills `from` with the index of the input that each output is taken from, for the values of
    /// one sample.
    fn route(&self, values: &[T], from: &mut [usize]);

    /// Whether the route is the same for all samples.
    fn is_fixed(&self) -> bool {
        false
    }
}

/// An activation: a function that is applied to each value separately.
///
/// The function is the same for all values of a layer. A layer with one parameter per channel, such
/// as [`PRelu`](crate::PRelu), uses [`Operator::per_channel`] with one function for each channel:
///
/// ```
/// use relprop::{
///     Celu, Elementwise, Error, Layer, Linear, Operator, Scalar, Sequential, Shape,
/// };
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// /// A CELU with one alpha per channel.
/// #[derive(Debug)]
/// struct ChannelCelu(Vec<f64>);
///
/// impl<T: Scalar> Layer<T> for ChannelCelu {
///     fn kind(&self) -> &str {
///         "ChannelCELU"
///     }
///     fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
///         let functions: Result<Vec<_>, Error> =
///             self.0.iter().map(|&alpha| Celu::new(alpha)).collect();
///         Ok(Operator::per_channel(functions?))
///     }
/// }
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0; 1.0], None)?)
///     .layer(ChannelCelu(vec![1.0, 0.5]))
///     .build()?;
/// let y = model.forward(&dvector![-50.0])?;
/// assert!((y - dvector![-1.0, -0.5]).amax() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
pub trait Elementwise<T: Scalar>: Debug + Send + Sync {
    /// f(z).
    fn value(&self, z: T) -> T;

    /// Whether f(z) >= 0 for every z or, if `input` is true, for every z >= 0.
    ///
    /// In the layer after such a function, a rule's terms for negative inputs are skipped.
    fn is_nonnegative(&self, input: bool) -> bool {
        let _ = input;
        false
    }

    /// Whether f turns a logit into a probability: it rises from 0 to 1, like the logistic
    /// function.
    ///
    /// If such a function ends a model, the logit is explained, and the explanation also reports
    /// the probability.
    fn gives_probability(&self) -> bool {
        false
    }

    /// Replaces each value with f(value).
    ///
    /// A call can receive any part of the layer's values: a large layer is split among threads, and
    /// a batch is passed as one slice. An implementation must therefore treat all values alike.
    fn apply(&self, values: &mut [T]) {
        for value in values {
            *value = self.value(*value);
        }
    }
}

/// The functions of a layer: one for all of its values, or one per channel.
#[derive(Debug, Clone)]
pub(crate) struct Functions<T: Scalar> {
    functions: Vec<Arc<dyn Elementwise<T>>>,
    /// How many consecutive values share a function.
    each: usize,
}

impl<T: Scalar> Functions<T> {
    pub fn alike(function: Arc<dyn Elementwise<T>>) -> Self {
        // No index reaches `each`, so all values have function 0.
        Self { functions: vec![function], each: usize::MAX }
    }

    /// # Errors
    /// [`Error::Shape`] unless there is exactly one function per channel.
    pub fn per_channel(
        functions: Vec<Arc<dyn Elementwise<T>>>,
        kind: &str,
        shape: Shape,
    ) -> Result<Self, Error> {
        if functions.len() != shape.channels() {
            return Err(Error::shape(
                kind,
                shape,
                format!("{} channels, one for each of its functions", functions.len()),
            ));
        }
        Ok(Self { each: shape.size() / functions.len().max(1), functions })
    }

    pub fn iter(&self) -> impl Iterator<Item = &dyn Elementwise<T>> {
        self.functions.iter().map(|function| &**function)
    }

    /// The function that all values share, if there is only one.
    pub fn single(&self) -> Option<&dyn Elementwise<T>> {
        if let [function] = self.functions.as_slice() { Some(&**function) } else { None }
    }

    /// The function of the value at this index of a sample.
    pub fn at(&self, index: usize) -> &dyn Elementwise<T> {
        &*self.functions[index / self.each % self.functions.len()]
    }

    /// Whether all values are nonnegative. If `input` is true, all arguments are known to be.
    pub fn is_nonnegative(&self, input: bool) -> bool {
        self.iter().all(|function| function.is_nonnegative(input))
    }

    /// Applies the functions in place to one or more samples, one sample per column.
    pub fn apply(&self, values: &mut [T]) {
        if let Some(function) = self.single() {
            return linalg::each_part(values, |values| function.apply(values));
        }
        // The chunks are the channels of one sample after another, so the functions repeat.
        let count = self.functions.len();
        linalg::each_chunk(values, self.each, |chunk, values| {
            self.functions[chunk % count].apply(values);
        });
    }
}

/// The function that a rule applies to every weight of a map, such as max(w, 0).
#[derive(Clone)]
pub struct WeightFn<T>(Arc<dyn Fn(T) -> T + Send + Sync>);

impl<T> WeightFn<T> {
    /// Wraps a function, which must be finite for finite arguments.
    pub fn new(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// The function's value at `weight`.
    pub fn value(&self, weight: T) -> T {
        (self.0)(weight)
    }
}

impl<T: Scalar> WeightFn<T> {
    /// The composition `self(inner(w))`, or `self` if there is no inner function.
    pub(crate) fn after(&self, inner: Option<&Self>) -> Self {
        let (f, Some(inner)) = (self.clone(), inner.cloned()) else { return self.clone() };
        Self::new(move |w| f.value(inner.value(w)))
    }
}

impl<T> Debug for WeightFn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeightFn(..)")
    }
}

/// A linear map y = W z + b, defined by its products with W and Wᵀ.
///
/// A product accepts any number of columns at once, as a slice of `inputs()` x columns in
/// column-major order. Each column is a sample or a row of relevance. Every rule is computed from
/// these two products, of this map or of the same map with other weights, so they are all that a
/// convolution or any other linear layer has to compute. Several methods with a default are scaled
/// or partial products. Override those that your map can compute at a lower cost.
pub trait LinearMap<T: Scalar>: Debug + Send + Sync {
    /// The length of z.
    fn inputs(&self) -> usize;

    /// The length of y.
    fn outputs(&self) -> usize;

    /// The shape of y, whose size is [`outputs`](Self::outputs). By default a vector.
    fn output_shape(&self) -> Shape {
        self.outputs().into()
    }

    /// Whether all weights are nonnegative and there is no bias, so that z >= 0 implies y >= 0.
    fn keeps_sign(&self) -> bool {
        false
    }

    /// The bias b, or `None` if it is zero.
    fn bias(&self) -> Option<Bias<'_, T>>;

    /// Computes y = W x, without the bias, for every column. Overwrites all of `y`.
    fn apply(&self, x: &[T], y: &mut [T]);

    /// Computes x = Wᵀ y for every column. Overwrites all of `x`.
    fn apply_transposed(&self, y: &[T], x: &mut [T]);

    /// This map without its bias and with every weight w replaced by `f.value(w)`. Padding has no
    /// weights to replace.
    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>>;

    /// This map without its bias and with every weight replaced by 1.
    ///
    /// Override it if that map has a cheaper form.
    fn ones(&self) -> Box<dyn LinearMap<T>> {
        self.map_weights(&WeightFn::new(|_| T::one()))
    }

    /// Whether the matrix is stored, so that reading a row or a column costs no more than its
    /// length.
    fn forms_matrix(&self) -> bool {
        false
    }

    /// The number of multiply-adds in a product with one column. It determines the order of
    /// accumulation.
    fn multiply_adds(&self) -> f64 {
        self.inputs() as f64 * self.outputs() as f64
    }

    /// Computes y = W diag(u) x. `u` has one column per sample, and `x` has the same number of
    /// columns for each sample.
    ///
    /// Override it if zeros in u can save work. The default copies `x`.
    fn apply_scaled(&self, u: &[T], x: &[T], y: &mut [T]) {
        let mut scaled = x.to_vec();
        scale_columns(&mut scaled, u, self.inputs());
        self.apply(&scaled, y);
    }

    /// Computes x = diag(u) Wᵀ y, with `u` as in [`apply_scaled`](Self::apply_scaled).
    ///
    /// Override it if zeros in u can save work.
    fn apply_transposed_scaled(&self, y: &[T], u: &[T], x: &mut [T]) {
        self.apply_transposed(y, x);
        scale_columns(x, u, self.inputs());
    }

    /// Adds the columns of diag(t) W diag(u) for the listed inputs to the columns of `out`.
    ///
    /// Override it if the matrix is stored: the default computes a product for each listed input.
    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let mut unit = vec![T::zero(); self.inputs()];
        let mut column = vec![T::zero(); self.outputs()];
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(t.len())) {
            // W (u_i e_i) is column i of W diag(u).
            unit[i] = u[i];
            self.apply(&unit, &mut column);
            unit[i] = T::zero();
            for ((out, &v), &t) in out.iter_mut().zip(&column).zip(t) {
                *out += v * t;
            }
        }
    }

    /// Adds the columns of diag(u) Wᵀ diag(t) for the listed outputs to the columns of `out`.
    ///
    /// Override it if the matrix is stored: the default computes a product for each listed output.
    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let mut unit = vec![T::zero(); self.outputs()];
        let mut column = vec![T::zero(); self.inputs()];
        for (&k, out) in listed.iter().zip(out.chunks_exact_mut(u.len())) {
            // Wᵀ (t_k e_k) is column k of Wᵀ diag(t).
            unit[k] = t[k];
            self.apply_transposed(&unit, &mut column);
            unit[k] = T::zero();
            for ((out, &v), &u) in out.iter_mut().zip(&column).zip(u) {
                *out += v * u;
            }
        }
    }
}

/// The bias of a linear map: one value per output, or one per channel.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a, T> {
    values: &'a [T],
    each: usize,
}

impl<'a, T: Scalar> Bias<'a, T> {
    /// A bias with one value per channel, for channels of `each` consecutive outputs.
    #[must_use]
    pub fn per_channel(values: &'a [T], each: usize) -> Self {
        Self { values, each: each.max(1) }
    }

    /// The values, one per channel.
    #[must_use]
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// How many consecutive outputs share a value.
    #[must_use]
    pub fn each(&self) -> usize {
        self.each
    }

    /// The number of outputs.
    pub(crate) fn outputs(&self) -> usize {
        self.values.len().saturating_mul(self.each)
    }

    /// The value of each output.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + 'a {
        let each = self.each;
        self.values.iter().flat_map(move |&b| std::iter::repeat_n(b, each))
    }
}

impl<'a, T: Scalar> From<&'a [T]> for Bias<'a, T> {
    /// A bias with one value per output.
    fn from(values: &'a [T]) -> Self {
        Self { values, each: 1 }
    }
}

/// Multiplies each sample's columns by that sample's column of `by`, entry by entry.
pub(crate) fn scale_columns<T: Scalar>(values: &mut [T], by: &[T], rows: usize) {
    let per_sample = values.len() / by.len().max(1);
    if per_sample == 0 {
        // There are no columns, as for the sinks of a rule that loses no relevance.
        return;
    }
    // The columns of a sample are neighbors.
    for (values, by) in values.chunks_exact_mut(rows * per_sample).zip(by.chunks_exact(rows)) {
        for column in values.chunks_exact_mut(rows) {
            linalg::zip_parts(column, by, |_, column, by| {
                for (v, &by) in column.iter_mut().zip(by) {
                    *v *= by;
                }
            });
        }
    }
}

/// The fan-in of each output: how many inputs it has, not counting padding.
pub(crate) fn fan_in<T: Scalar>(map: &dyn LinearMap<T>) -> Vec<T> {
    let mut counts = vec![T::zero(); map.outputs()];
    // With all inputs and weights 1, each output counts its inputs.
    map.ones().apply(&vec![T::one(); map.inputs()], &mut counts);
    counts
}

/// A softmax over an axis: over groups of `size` values that are `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SoftmaxOver {
    size: usize,
    step: usize,
}

impl SoftmaxOver {
    /// # Errors
    /// [`Error::Shape`] if the values have no such axis.
    pub fn new(axis: usize, kind: &str, shape: Shape) -> Result<Self, Error> {
        match shape.dims().get(axis..) {
            Some([size, inner @ ..]) => Ok(Self { size: *size, step: inner.iter().product() }),
            _ => Err(Error::shape(
                kind,
                shape,
                format!("values with at least {} axes", axis.saturating_add(1)),
            )),
        }
    }

    /// Applies the softmax in place to one or more samples, one sample per column.
    pub fn apply<T: Scalar>(self, values: &mut [T]) {
        let Self { size, step } = self;
        // A block holds `step` interleaved groups. Axes before this one and samples are further
        // blocks.
        for block in values.chunks_exact_mut(size * step) {
            for first in 0..step {
                let places = || (first..size * step).step_by(step);
                // Subtracting the maximum changes no quotient and keeps exp from overflowing.
                let max = places().fold(T::neg_infinity(), |max, at| max.max(block[at]));
                let mut sum = T::zero();
                for at in places() {
                    block[at] = (block[at] - max).exp();
                    sum += block[at];
                }
                places().for_each(|at| block[at] /= sum);
            }
        }
    }
}

/// Adds the bias to every column.
pub(crate) fn add_bias<T: Scalar>(bias: Option<Bias<'_, T>>, values: &mut [T]) {
    let Some(bias) = bias else { return };
    for column in values.chunks_exact_mut(bias.outputs()) {
        if bias.each == 1 {
            linalg::add_scaled(T::one(), bias.values, column);
        } else {
            linalg::each_chunk(column, bias.each, |channel, values| {
                let b = bias.values[channel];
                for v in values {
                    *v += b;
                }
            });
        }
    }
}
