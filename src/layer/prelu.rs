//! The leaky rectified linear unit with learned slopes.

use std::sync::Arc;

use super::{Layer, LeakyRelu, Operator, exactly, only_input};
use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;
use crate::shape::Shape;

const KIND: &str = "PReLU";

/// The parametric rectified linear unit: z where z > 0, otherwise the slope of the channel times z
/// (He et al. 2015).
///
/// The slopes are learned. There is one for each channel, or one for all of them. Relevance passes
/// through unchanged, as for other activations.
///
/// ```
/// use relprop::{Linear, PRelu, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0; 1.0], None)?)
///     .layer(PRelu::new(vec![0.5, 0.25])?)
///     .build()?;
/// assert_eq!(model.forward(&dvector![-4.0])?, dvector![-2.0, -1.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PRelu<T: Scalar> {
    weight: Arc<[T]>,
}

impl<T: Scalar> PRelu<T> {
    /// Creates a layer with one slope for each channel, or with one for all channels.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if there is no slope, or if a slope is not finite.
    pub fn new(weight: impl Into<Arc<[T]>>) -> Result<Self, Error> {
        let weight = weight.into();
        if weight.is_empty() {
            return Err(Error::parameter(KIND, "num_parameters", 0, "at least 1"));
        }
        match linalg::first_non_finite(&weight) {
            Some((_, slope)) => Err(Error::parameter(KIND, "weight", slope.as_f64(), "finite")),
            None => Ok(Self { weight }),
        }
    }
}

impl<T: Scalar> Layer<T> for PRelu<T> {
    fn kind(&self) -> &str {
        KIND
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let (input, slopes) = (only_input(KIND, inputs)?, self.weight.len());
        if slopes != 1 && slopes != input.channels() {
            return Err(Error::shape(KIND, input, format!("{slopes} channels")));
        }
        let functions = self.weight.iter().map(|slope| LeakyRelu::new(slope.as_f64()));
        let functions = functions.collect::<Result<Vec<_>, _>>()?;
        Ok(match *functions {
            [function] => Operator::elementwise(function),
            _ => Operator::per_channel(functions),
        })
    }

    fn arguments(&self) -> String {
        format!("num_parameters={}", self.weight.len())
    }

    fn parameters(&self) -> usize {
        self.weight.len()
    }

    fn tensors(&self) -> Vec<(&'static str, Vec<usize>, Vec<T>)> {
        vec![("weight", vec![self.weight.len()], self.weight.to_vec())]
    }

    fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
        Some(Arc::new(PRelu { weight: exactly(&self.weight).into() }))
    }
}
