//! # Pass
//!
//! ```text
//!     A_ij = 1 where i = j, else 0
//! ```

use super::{BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Transform};
use crate::error::Error;
use crate::scalar::Scalar;

/// The rule that gives everything to the input of the same index, as if the layer were not there.
///
/// No parameters, no sinks. [`Error::Unsupported`] for a layer whose inputs and outputs have
/// different shapes.
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -3.0; 2.0, 2.0], None)?).build()?;
/// assert_eq!(model.explain(&dvector![5.0, 1.0], Rule::Pass)?.shares(), &dmatrix![1.0, 0.0; 0.0, 1.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pass;

impl<T: Scalar> RelevanceRule<T> for Pass {
    fn name(&self) -> String {
        "Pass".to_owned()
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        if site.input_shape != site.output_shape {
            return Err(Error::Unsupported {
                rule: RelevanceRule::<T>::name(self),
                layer: site.layer,
                kind: site.kind.to_owned(),
                reason: format!(
                    "its inputs are {} and its outputs {}, not of one shape",
                    site.input_shape, site.output_shape
                ),
            });
        }
        Ok(Group::new(vec![Part::same()], Divisor::One)
            .with_bias(BiasMode::Ignore, Transform::Identity)
            .into())
    }
}
