//! The softmax.

use super::{Layer, Operator, only_input, same_layer_in_f64};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Softmax over the values of a vector. It is allowed only at the end of a model.
///
/// For the softmax over an axis, use [`Softmax::over`].
///
/// The model's [`forward`](crate::Graph::forward) returns the probabilities. An explanation
/// explains the logits and also reports the probabilities. It does not explain the probabilities,
/// because each of them also depends on the logits of its rivals, and because relevance that is
/// multiplied by a saturated softmax vanishes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Softmax;

impl Softmax {
    /// Softmax over one axis of the values, counted from 0.
    ///
    /// For an image, `Softmax::over(0)` is the softmax over the channels, which gives probabilities
    /// for each pixel. In PyTorch this is `dim=1`, because the batch axis counts too.
    ///
    /// ```
    /// use relprop::{Conv2d, Sequential, Softmax};
    /// use relprop::nalgebra::{self, dvector};
    ///
    /// let model = Sequential::builder()
    ///     .input([1, 1, 2])
    ///     .layer(Conv2d::new([2, 1, 1, 1], vec![1.0, -1.0], None)?) // two classes per pixel
    ///     .layer(Softmax::over(0))
    ///     .build()?;
    /// let p = model.forward(&dvector![0.0, 1.0])?;
    /// // The probabilities of each pixel sum to 1.
    /// assert!((p[0] - 0.5_f64).abs() < 1e-12 && (p[1] + p[3] - 1.0).abs() < 1e-12);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    #[must_use]
    pub fn over(axis: usize) -> AxisSoftmax {
        AxisSoftmax { dim: isize::try_from(axis).map_or(isize::MAX, |axis| axis.saturating_add(1)) }
    }

    /// Softmax over the axis `dim` as PyTorch counts it: the batch axis is 0, and negative values
    /// count from the end.
    #[cfg(feature = "io")]
    pub(crate) fn over_dim(dim: isize) -> AxisSoftmax {
        AxisSoftmax { dim }
    }
}

impl<T: Scalar> Layer<T> for Softmax {
    fn kind(&self) -> &str {
        "Softmax"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        if input.dims().len() != 1 {
            return Err(Error::shape(
                "Softmax",
                input,
                "a vector (for the channels of an image, use Softmax::over(0))",
            ));
        }
        Ok(Operator::Softmax(0))
    }

    fn arguments(&self) -> String {
        "dim=-1".to_owned()
    }

    same_layer_in_f64!();
}

/// Softmax over one axis, created by [`Softmax::over`]. It is allowed only at the end of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisSoftmax {
    /// The axis as PyTorch counts it.
    dim: isize,
}

impl<T: Scalar> Layer<T> for AxisSoftmax {
    fn kind(&self) -> &str {
        "Softmax"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        let axes = input.dims().len().cast_signed();
        // A nonnegative `dim` counts the batch axis, which the values here do not have.
        match if self.dim < 0 { axes + self.dim } else { self.dim - 1 } {
            axis if (0..axes).contains(&axis) => Ok(Operator::Softmax(axis.cast_unsigned())),
            _ if self.dim == 0 || self.dim == -1 - axes => Err(Error::shape(
                "Softmax",
                input,
                format!("values for which dim={} is not the batch axis", self.dim),
            )),
            _ => {
                Err(Error::shape("Softmax", input, format!("values with an axis dim={}", self.dim)))
            }
        }
    }

    fn arguments(&self) -> String {
        format!("dim={}", self.dim)
    }

    same_layer_in_f64!();
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
