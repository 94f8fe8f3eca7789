//! Layers: what a network is made of.
//!
//! A layer is a description; for values of a certain shape it is one of a few *operators*, and the
//! operator says both how values go forward and how relevance comes back:
//!
//! | operator | values | relevance |
//! |---|---|---|
//! | [`Operator::Linear`] | y = W z + b | is shared among the inputs by the rule |
//! | [`Operator::Average`] | y = W z, with weights that are not learned | is shared by the rule [`Norm`](crate::Norm) |
//! | [`Operator::Elementwise`] | yᵢ = f(zᵢ) | passes unchanged |
//! | [`Operator::PerChannel`] | yᵢ = f_c(zᵢ), with a function for each channel c | passes unchanged |
//! | [`Operator::Route`] | each output is one of the inputs | goes to that input |
//! | [`Operator::Reshape`] | the same, in another shape | passes unchanged |
//! | [`Operator::Branches`] | several branches of the same values, summed or one after another | is split among them |
//! | [`Operator::Softmax`] | at the end only | the logits are explained |
//!
//! A function at the end that [gives a probability](Elementwise::gives_probability), such as
//! [`Sigmoid`], is treated as a softmax is: the logit is explained, and the probability given
//! beside it.
//!
//! A layer of your own implements [`Layer`] and, with it, [`LinearMap`], [`Elementwise`] or
//! [`Route`]:
//!
//! ```
//! use relprop::{Elementwise, Error, Layer, Linear, Operator, Rule, Scalar, Sequential, Shape};
//! use relprop::nalgebra::{self, dmatrix, dvector};
//!
//! /// z -> z² where z > 0, otherwise 0.
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
//!     fn operator(&self, _input: Shape) -> Result<Operator<T>, Error> {
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
mod linear;
mod pooling;
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
pub(crate) use branches::Named;
pub use branches::{Branch, Concat, Residual};
pub use convolution::{Conv1d, Conv2d, ConvTranspose2d};
pub use linear::Linear;
pub(crate) use linear::{check_bias, same, sum_of as sum};
#[cfg(feature = "io")]
pub(crate) use pooling::Assumed;
pub use pooling::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, MaxPool1d, MaxPool2d,
};
pub use reshape::{Flatten, Permute, Unflatten, Upsample};

/// One layer of a [`Sequential`](crate::Sequential): the trait that a layer of your own implements.
pub trait Layer<T: Scalar>: Debug + Send + Sync {
    /// The layer's name, as PyTorch calls it where it has the layer; it stands in errors and
    /// ledgers.
    fn kind(&self) -> &str;

    /// What the layer does with values of this shape, and with their relevance.
    ///
    /// # Errors
    /// Where the layer cannot take values of this shape: best [`Error::Shape`].
    fn operator(&self, input: Shape) -> Result<Operator<T>, Error>;

    /// The layer's settings as PyTorch prints them between the brackets, such as
    /// `negative_slope=0.01`.
    fn arguments(&self) -> String {
        String::new()
    }

    /// Settings that could make a difference for values of this shape, as they are taken to be
    /// because the text that the layer was read from does not say them:
    /// [`Sequential::check`](crate::Sequential::check) reports them.
    fn assumed(&self, input: Shape) -> Option<String> {
        let _ = input;
        None
    }

    /// How many inputs the layer takes, where it takes that many and no others: a model that begins
    /// with such a layer need not be told its input's shape.
    fn inputs(&self) -> Option<usize> {
        None
    }

    /// How many numbers have been learned.
    fn parameters(&self) -> usize {
        0
    }

    /// a and b, where the layer is y = a z + b with one of each for each channel: a normalization,
    /// which [`canonize`](crate::Sequential::canonize) merges into a neighbor.
    fn per_channel(&self) -> Option<(&[T], &[T])> {
        None
    }

    /// The layer that does what this layer and then y = a z + b do, with an a and a b for each of
    /// its output channels.
    fn scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        let _ = (a, b);
        None
    }

    /// The layer that does what y = a z + b, with an a and a b for each of its input channels, and
    /// then this layer do.
    fn of_scaled(&self, a: &[T], b: &[T]) -> Option<Arc<dyn Layer<T>>> {
        let _ = (a, b);
        None
    }

    /// The same layer with other branches, where it has some.
    fn with_branches(
        &self,
        f: &mut dyn FnMut(&Branch<T>) -> Branch<T>,
    ) -> Option<Arc<dyn Layer<T>>> {
        let _ = f;
        None
    }

    /// What has been learned, as it is written to a file: the names, shapes and values of PyTorch's
    /// state dict.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        Vec::new()
    }
}

macro_rules! forward_layer {
    ($($pointer:ty),*) => {$(
        impl<T: Scalar, L: Layer<T> + ?Sized> Layer<T> for $pointer {
            fn kind(&self) -> &str {
                (**self).kind()
            }

            fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
                (**self).operator(input)
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

            fn with_branches(&self, f: &mut dyn FnMut(&Branch<T>) -> Branch<T>) -> Option<Arc<dyn Layer<T>>> {
                (**self).with_branches(f)
            }

            fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
                (**self).tensors()
            }
        }
    )*};
}
forward_layer!(Box<L>, Arc<L>);

/// How a layer turns values into values and relevance into relevance.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operator<T: Scalar> {
    /// y = W z + b; a rule shares the relevance.
    Linear(Arc<dyn LinearMap<T>>),
    /// The same where the rules are not meant for the weights, such as those of a pooling or of a
    /// normalization: shared by the rule [`Norm`](crate::Norm), unless a
    /// [`Composite`](crate::Composite) says otherwise, and passed over when the first linear layer
    /// is looked for.
    Average(Arc<dyn LinearMap<T>>),
    /// yᵢ = f(zᵢ); relevance passes unchanged (Bach et al. 2015).
    Elementwise(Arc<dyn Elementwise<T>>),
    /// The same with a function for each channel: as many as the first axis of the values is long.
    PerChannel(Vec<Arc<dyn Elementwise<T>>>),
    /// Each output is one of the inputs, and its relevance goes there.
    Route(Arc<dyn Route<T>>),
    /// The values as they are, in another shape of the same size.
    Reshape(Shape),
    /// Several branches, each of the same values, and what becomes of their outputs.
    Branches(Vec<Branch<T>>, Joined),
    /// A softmax over this axis of the values, allowed at the end of a model only: the logits are
    /// explained.
    Softmax(usize),
}

impl<T: Scalar> Operator<T> {
    /// [`Operator::Linear`].
    pub fn linear(map: impl LinearMap<T> + 'static) -> Self {
        Self::Linear(Arc::new(map))
    }

    /// [`Operator::Elementwise`].
    pub fn elementwise(function: impl Elementwise<T> + 'static) -> Self {
        Self::Elementwise(Arc::new(function))
    }

    /// [`Operator::PerChannel`].
    pub fn per_channel(functions: impl IntoIterator<Item = impl Elementwise<T> + 'static>) -> Self {
        Self::PerChannel(
            functions
                .into_iter()
                .map(|function| Arc::new(function) as Arc<dyn Elementwise<T>>)
                .collect(),
        )
    }
}

/// What becomes of the outputs of branches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Joined {
    /// They are added, and the sum's relevance is shared by the rule [`Norm`](crate::Norm).
    Summed,
    /// They stand one after another along the channels.
    Concatenated,
}

/// A layer whose outputs are each one of its inputs.
pub trait Route<T: Scalar>: Debug + Send + Sync {
    /// The shape of the outputs.
    fn output_shape(&self) -> Shape;

    /// For each output the index of the input that it is, for the values of one sample.
    fn route(&self, values: &[T], from: &mut [usize]);

    /// Whether the values make no difference: it is the same route for all samples.
    fn is_fixed(&self) -> bool {
        false
    }
}

/// An activation: a function of one value, applied to each.
///
/// It is the same function for all values of a layer. A layer whose function has a parameter for
/// each channel, such as PyTorch's `PReLU`, gives a function for each: [`Operator::per_channel`].
///
/// ```
/// use relprop::{Elementwise, Error, Layer, LeakyRelu, Linear, Operator, Scalar, Sequential, Shape};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// /// z where z > 0, otherwise z times the slope of its channel.
/// #[derive(Debug)]
/// struct PRelu(Vec<f64>);
///
/// impl<T: Scalar> Layer<T> for PRelu {
///     fn kind(&self) -> &str {
///         "PReLU"
///     }
///     fn operator(&self, _input: Shape) -> Result<Operator<T>, Error> {
///         let functions: Result<Vec<_>, Error> = self.0.iter().map(|&slope| LeakyRelu::new(slope)).collect();
///         Ok(Operator::per_channel(functions?))
///     }
/// }
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0; 1.0], None)?)
///     .layer(PRelu(vec![0.5, 0.25]))
///     .build()?;
/// assert_eq!(model.forward(&dvector![-4.0])?, dvector![-2.0, -1.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
pub trait Elementwise<T: Scalar>: Debug + Send + Sync {
    /// f(z).
    fn value(&self, z: T) -> T;

    /// Whether f(z) is never negative, or, where `input` is true, not where z is not: a rule's
    /// terms for negative values are left out after such a function.
    fn is_nonnegative(&self, input: bool) -> bool {
        let _ = input;
        false
    }

    /// An upper bound of |f(a) - f(b)| / |a - b|, where it is known; without it an explanation's
    /// [`health`](crate::Explanation::health) has no bound of the rounding errors. `value` is taken
    /// to be right to 8 units in the last place of |z| + |f(z)|.
    fn steepest(&self) -> Option<f64> {
        None
    }

    /// Whether f turns a logit into a probability, as the logistic function does: growing, and from
    /// 0 to 1. At the end of a model the logit is then explained, and the probability given beside
    /// it.
    fn gives_probability(&self) -> bool {
        false
    }

    /// Replaces each value by f(value).
    ///
    /// A call covers any part of the layer's values, and which part is not told: a layer of many
    /// values is shared out among threads, and a batch is one row of values. So an implementation
    /// must treat all values alike.
    fn apply(&self, values: &mut [T]) {
        for value in values {
            *value = self.value(*value);
        }
    }
}

/// The functions of a layer: one for all of its values, or one for each channel.
#[derive(Debug)]
pub(crate) struct Functions<T: Scalar> {
    functions: Vec<Arc<dyn Elementwise<T>>>,
    /// How many values in a row a function is for.
    each: usize,
}

impl<T: Scalar> Functions<T> {
    pub fn alike(function: Arc<dyn Elementwise<T>>) -> Self {
        Self { functions: vec![function], each: usize::MAX }
    }

    /// # Errors
    /// [`Error::Shape`] unless there is a function for each channel.
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

    /// The function of all values, if it is one.
    pub fn single(&self) -> Option<&dyn Elementwise<T>> {
        if let [function] = self.functions.as_slice() { Some(&**function) } else { None }
    }

    /// The function of the value at this place among those of a sample.
    pub fn at(&self, index: usize) -> &dyn Elementwise<T> {
        &*self.functions[index / self.each % self.functions.len()]
    }

    /// Whether no value is negative, if no argument is, or whatever they are.
    pub fn is_nonnegative(&self, input: bool) -> bool {
        self.iter().all(|function| function.is_nonnegative(input))
    }

    /// Replaces the values of some samples, each as a column.
    pub fn apply(&self, values: &mut [T]) {
        if let Some(function) = self.single() {
            return linalg::each_part(values, |values| function.apply(values));
        }
        let count = self.functions.len();
        linalg::each_chunk(values, self.each, |chunk, values| {
            self.functions[chunk % count].apply(values)
        });
    }
}

/// The function that a rule applies to every weight of a map, such as max(w, 0).
#[derive(Clone)]
pub struct WeightFn<T>(Arc<dyn Fn(T) -> T + Send + Sync>);

impl<T> WeightFn<T> {
    /// Any function that is finite where its argument is.
    pub fn new(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// The function's value.
    pub fn value(&self, weight: T) -> T {
        (self.0)(weight)
    }
}

impl<T: Scalar> WeightFn<T> {
    /// This function of another one's value, where there is one.
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

/// A linear map y = W z + b, given by its two products.
///
/// The products take any number of columns at once: a slice of `inputs()` x columns in column-major
/// order, each column a sample or a row of relevance. Every rule, in both directions, is made of
/// these two products of the map or of the same map with other weights, so this is all that a
/// convolution or any other linear layer has to offer. The methods with a default are the same with
/// a scaling, or with a part left out: worth overriding where that costs less.
pub trait LinearMap<T: Scalar>: Debug + Send + Sync {
    /// The length of z.
    fn inputs(&self) -> usize;

    /// The length of y.
    fn outputs(&self) -> usize;

    /// The shape of y, of size [`outputs`](Self::outputs); a vector unless the map says otherwise.
    fn output_shape(&self) -> Shape {
        self.outputs().into()
    }

    /// Whether no weight is negative and there is no bias, so that y is not negative where z is
    /// not.
    fn keeps_sign(&self) -> bool {
        false
    }

    /// b; `None` stands for zeros.
    fn bias(&self) -> Option<Bias<'_, T>>;

    /// y = W x without the bias, for every column; all of `y` is overwritten.
    fn apply(&self, x: &[T], y: &mut [T]);

    /// x = Wᵀ y for every column; all of `x` is overwritten.
    fn apply_transposed(&self, y: &[T], x: &mut [T]);

    /// The same map, without a bias and with every weight w replaced by `f.value(w)`. Padding is
    /// not a weight.
    fn map_weights(&self, f: &WeightFn<T>) -> Box<dyn LinearMap<T>>;

    /// The same map with every weight replaced by 1; worth overriding where that has a shorter
    /// form.
    fn ones(&self) -> Box<dyn LinearMap<T>> {
        self.map_weights(&WeightFn::new(|_| T::one()))
    }

    /// Whether a product's entries are sums of products, so that their rounding is bounded by the
    /// sum of the magnitudes. Where they are made otherwise, an explanation's
    /// [`health`](crate::Explanation::health) has no bound of the rounding errors.
    fn sums_products(&self) -> bool {
        true
    }

    /// Whether the matrix is at hand, so that one of its rows or columns costs no more than its
    /// length.
    fn forms_matrix(&self) -> bool {
        false
    }

    /// How many multiply-adds a product costs for one column; the order of accumulation is chosen
    /// by it.
    fn multiply_adds(&self) -> f64 {
        self.inputs() as f64 * self.outputs() as f64
    }

    /// y = W diag(u) x. `u` has one column for each sample, and `x` as many for each sample as for
    /// any other.
    ///
    /// Worth overriding where a u_i of zero can save work. The default makes a copy of `x`.
    fn apply_scaled(&self, u: &[T], x: &[T], y: &mut [T]) {
        let mut scaled = x.to_vec();
        scale_columns(&mut scaled, u, self.inputs());
        self.apply(&scaled, y);
    }

    /// x = diag(u) Wᵀ y, with `u` as in [`apply_scaled`](Self::apply_scaled).
    ///
    /// Worth overriding where a u_i of zero can save work.
    fn apply_transposed_scaled(&self, y: &[T], u: &[T], x: &mut [T]) {
        self.apply_transposed(y, x);
        scale_columns(x, u, self.inputs());
    }

    /// Adds some columns of diag(t) W diag(u) to `out` (outputs x those columns): those of the
    /// listed inputs.
    ///
    /// Worth overriding where the matrix is at hand: the default costs a product for each.
    fn add_scaled_inputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let mut unit = vec![T::zero(); self.inputs()];
        let mut column = vec![T::zero(); self.outputs()];
        for (&i, out) in listed.iter().zip(out.chunks_exact_mut(t.len())) {
            unit[i] = u[i];
            self.apply(&unit, &mut column);
            unit[i] = T::zero();
            for ((out, &v), &t) in out.iter_mut().zip(&column).zip(t) {
                *out += v * t;
            }
        }
    }

    /// Adds some columns of diag(u) Wᵀ diag(t) to `out` (inputs x those columns): those of the
    /// listed outputs.
    ///
    /// Worth overriding where the matrix is at hand: the default costs a product for each.
    fn add_scaled_outputs(&self, listed: &[usize], u: &[T], t: &[T], out: &mut [T]) {
        let mut unit = vec![T::zero(); self.outputs()];
        let mut column = vec![T::zero(); self.inputs()];
        for (&k, out) in listed.iter().zip(out.chunks_exact_mut(u.len())) {
            unit[k] = t[k];
            self.apply_transposed(&unit, &mut column);
            unit[k] = T::zero();
            for ((out, &v), &u) in out.iter_mut().zip(&column).zip(u) {
                *out += v * u;
            }
        }
    }
}

/// The bias of a linear map: a value for each output, or one for each channel.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a, T> {
    values: &'a [T],
    each: usize,
}

impl<'a, T: Scalar> Bias<'a, T> {
    /// `values` are those of the channels, each of `each` outputs in a row.
    #[must_use]
    pub fn per_channel(values: &'a [T], each: usize) -> Self {
        Self { values, each: each.max(1) }
    }

    /// The values: one for each channel.
    #[must_use]
    pub fn values(&self) -> &'a [T] {
        self.values
    }

    /// For how many outputs in a row a value stands.
    #[must_use]
    pub fn each(&self) -> usize {
        self.each
    }

    /// How many outputs there are.
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
    /// One value for each output.
    fn from(values: &'a [T]) -> Self {
        Self { values, each: 1 }
    }
}

/// Multiplies each sample's columns by that sample's column of `by`, entry by entry.
pub(crate) fn scale_columns<T: Scalar>(values: &mut [T], by: &[T], rows: usize) {
    let per_sample = values.len() / by.len().max(1);
    if per_sample == 0 {
        // No columns at all, such as the sinks of a rule that loses nothing.
        return;
    }
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

/// How many inputs each output of a map has: its fan-in, with padding left out.
pub(crate) fn fan_in<T: Scalar>(map: &dyn LinearMap<T>) -> Vec<T> {
    let mut counts = vec![T::zero(); map.outputs()];
    map.ones().apply(&vec![T::one(); map.inputs()], &mut counts);
    counts
}

/// A softmax over an axis: each `size` values that lie `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SoftmaxOver {
    size: usize,
    step: usize,
}

impl SoftmaxOver {
    /// # Errors
    /// [`Error::Shape`] where the values have no such axis.
    pub fn new(axis: usize, kind: &str, shape: Shape) -> Result<Self, Error> {
        match shape.dims().get(axis..) {
            Some([size, inner @ ..]) => Ok(Self { size: *size, step: inner.iter().product() }),
            _ => Err(Error::shape(
                kind,
                shape,
                format!("values of at least {} axes", axis.saturating_add(1)),
            )),
        }
    }

    /// Replaces the values of some samples, each as a column, without overflow.
    pub fn apply<T: Scalar>(self, values: &mut [T]) {
        let Self { size, step } = self;
        for block in values.chunks_exact_mut(size * step) {
            for first in 0..step {
                let places = || (first..size * step).step_by(step);
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

/// Adds b to every column.
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
