//! Layers: what a network is made of.
//!
//! A layer is one of a few *operators*, and the operator says both how values go forward and how relevance comes back:
//!
//! | operator | values | relevance |
//! |---|---|---|
//! | [`Operator::Linear`] | y = W z + b | is shared among the inputs by the rule |
//! | [`Operator::Elementwise`] | yᵢ = f(zᵢ) | passes unchanged |
//! | [`Operator::Softmax`] | at the end only | the logits are explained |
//!
//! A layer of your own implements [`Layer`] and, with it, [`LinearMap`] or [`Elementwise`]:
//!
//! ```
//! use relprop::{Elementwise, Layer, Linear, Operator, Rule, Scalar, Sequential};
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
//!     fn operator(&self) -> Operator<'_, T> {
//!         Operator::Elementwise(self)
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
mod linear;

use std::fmt::Debug;

use crate::linalg;
use crate::scalar::Scalar;

pub use activation::{Dropout, Elu, Gelu, HardTanh, Identity, LeakyRelu, Relu, Sigmoid, Silu, Softmax, Softplus, Tanh};
pub use linear::Linear;
pub(crate) use linear::{check_bias, same};

/// One layer of a [`Sequential`](crate::Sequential).
pub trait Layer<T: Scalar>: Debug + Send + Sync {
    /// The layer's name, as PyTorch calls it where it has the layer; it stands in errors and ledgers.
    fn kind(&self) -> &str;

    /// What the layer does with values and with relevance.
    fn operator(&self) -> Operator<'_, T>;

    /// The layer's settings as PyTorch prints them between the brackets, such as `negative_slope=0.01`.
    fn arguments(&self) -> String {
        String::new()
    }
}

impl<T: Scalar, L: Layer<T> + ?Sized> Layer<T> for Box<L> {
    fn kind(&self) -> &str {
        (**self).kind()
    }

    fn operator(&self) -> Operator<'_, T> {
        (**self).operator()
    }

    fn arguments(&self) -> String {
        (**self).arguments()
    }
}

/// How a layer turns values into values and relevance into relevance.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operator<'a, T: Scalar> {
    /// y = W z + b; a rule shares the relevance.
    Linear(&'a dyn LinearMap<T>),
    /// yᵢ = f(zᵢ); relevance passes unchanged (Bach et al. 2015).
    Elementwise(&'a dyn Elementwise<T>),
    /// A softmax over all values, allowed at the end of a model only: the logits are explained.
    Softmax,
}

/// A function of one value, applied to each.
pub trait Elementwise<T: Scalar>: Debug + Send + Sync {
    /// f(z).
    fn value(&self, z: T) -> T;

    /// An upper bound of |f(a) - f(b)| / |a - b|, where it is known; without it an explanation's
    /// [`health`](crate::Explanation::health) has no bound of the rounding errors. `value` is taken to be right to 8 units in
    /// the last place of |z| + |f(z)|.
    fn steepest(&self) -> Option<f64> {
        None
    }

    /// Replaces each value by f(value).
    fn apply(&self, values: &mut [T]) {
        for value in values {
            *value = self.value(*value);
        }
    }
}

/// A linear map y = W z + b, given by its two products.
///
/// The products take any number of columns at once: a slice of `inputs()` x columns in column-major order, each column
/// a sample or a row of relevance. Every rule, in both directions, is made of these two products of the map or of the
/// same map with other weights, so this is all that a convolution or any other linear layer has to offer. The methods
/// with a default are the same with a scaling, or with a part left out: worth overriding where that costs less.
pub trait LinearMap<T: Scalar>: Debug + Send + Sync {
    /// The length of z.
    fn inputs(&self) -> usize;

    /// The length of y.
    fn outputs(&self) -> usize;

    /// b, of length [`outputs`](Self::outputs); `None` stands for zeros.
    fn bias(&self) -> Option<&[T]>;

    /// y = W x without the bias, for every column; all of `y` is overwritten.
    fn apply(&self, x: &[T], y: &mut [T]);

    /// x = Wᵀ y for every column; all of `x` is overwritten.
    fn apply_transposed(&self, y: &[T], x: &mut [T]);

    /// The same map, without a bias and with every weight w replaced by f(w). Padding is not a weight.
    fn map_weights(&self, f: &dyn Fn(T) -> T) -> Box<dyn LinearMap<T>>;

    /// The same map with every weight replaced by 1; worth overriding where that has a shorter form.
    fn ones(&self) -> Box<dyn LinearMap<T>> {
        self.map_weights(&|_| T::one())
    }

    /// How many multiply-adds a product costs for one column; the order of accumulation is chosen by it.
    fn multiply_adds(&self) -> f64 {
        self.inputs() as f64 * self.outputs() as f64
    }

    /// y = W diag(u) x. `u` has one column for each sample, and `x` as many for each sample as for any other.
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

    /// Adds some columns of diag(t) W diag(u) to `out` (outputs x those columns): those of the listed inputs.
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

    /// Adds some columns of diag(u) Wᵀ diag(t) to `out` (inputs x those columns): those of the listed outputs.
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

/// Multiplies each sample's columns by that sample's column of `by`, entry by entry.
pub(crate) fn scale_columns<T: Scalar>(values: &mut [T], by: &[T], rows: usize) {
    let per_sample = values.len() / by.len().max(1);
    for (values, by) in values.chunks_exact_mut(rows * per_sample).zip(by.chunks_exact(rows)) {
        for column in values.chunks_exact_mut(rows) {
            for (v, &by) in column.iter_mut().zip(by) {
                *v *= by;
            }
        }
    }
}

/// How many inputs each output of a map has: its fan-in, with padding left out.
pub(crate) fn fan_in<T: Scalar>(map: &dyn LinearMap<T>) -> Vec<T> {
    let mut counts = vec![T::zero(); map.outputs()];
    map.ones().apply(&vec![T::one(); map.inputs()], &mut counts);
    counts
}

/// Replaces each column z of `size` values by softmax(z), without overflow.
pub(crate) fn softmax<T: Scalar>(values: &mut [T], size: usize) {
    for column in values.chunks_exact_mut(size) {
        let max = column.iter().fold(T::neg_infinity(), |m, &v| m.max(v));
        for v in column.iter_mut() {
            *v = (*v - max).exp();
        }
        let sum: T = column.iter().copied().sum();
        for v in column {
            *v /= sum;
        }
    }
}

/// Adds b to every column.
pub(crate) fn add_bias<T: Scalar>(bias: Option<&[T]>, values: &mut [T]) {
    if let Some(bias) = bias {
        for column in values.chunks_exact_mut(bias.len()) {
            linalg::add_scaled(T::one(), bias, column);
        }
    }
}
