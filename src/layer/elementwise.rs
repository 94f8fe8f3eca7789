//! Functions of one value.

use std::fmt::Debug;
use std::sync::Arc;

use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// An activation: a function that is applied to each value separately.
///
/// The function is the same for all values of a layer. A layer with one parameter per channel, such
/// as [`PRelu`](crate::PRelu), uses [`Operator::per_channel`](crate::Operator::per_channel) with one
/// function for each channel:
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
        linalg::vectorized(|| {
            for value in values {
                *value = self.value(*value);
            }
        });
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
