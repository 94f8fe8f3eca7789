//! # Pass
//!
//! ```text
//!     A_ij = 1 if i = j, otherwise 0
//! ```

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Transform, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The pass-through rule: each input receives the relevance of the output with the same index, as
/// if the layer were absent.
///
/// No parameters and no sinks. If the inputs and outputs of a layer have different shapes, the rule
/// returns [`Error::Unsupported`].
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let layer = Linear::new(dmatrix![1.0, -3.0; 2.0, 2.0], None)?;
/// let model = Sequential::builder().layer(layer).build()?;
/// let explanation = model.explain(&dvector![5.0, 1.0], Rule::Pass)?;
/// assert_eq!(explanation.shares(), &dmatrix![1.0, 0.0; 0.0, 1.0]);
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
            let (input, output) = (site.input_shape, site.output_shape);
            let reason = format!("its input shape {input} differs from its output shape {output}");
            return Err(site.unsupported(RelevanceRule::<T>::name(self), reason));
        }
        Ok(Group::new(vec![Part::same()], Divisor::One)
            .with_bias(BiasMode::Ignore, Transform::Identity)
            .into())
    }

    same_rule_in_f64!();
}
