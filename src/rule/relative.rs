//! # Relative
//!
//! ```text
//!     A_ij = z_i w_ij / n        n: number of inputs of output j
//! ```
//!
//! This is the forward-pass formulation of LRP with the constant fan-in as the divisor, instead of
//! the total.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Transform, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The rule without a total, z_i w_ij / n: each input's contribution divided by the fan-in.
///
/// No divisor depends on the data, so the rule is stable without a stabilizer. The shares do not
/// sum to 1; the ledger lists the difference, positive or negative, as the rest. The shares shrink
/// with every layer and in a deep network would fall below the range of the number type, so their
/// scale is kept separately ([`Explanation::exponent`](crate::Explanation::exponent)).
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | bias | [`BiasMode::Ignore`] | `Distribute` adds b_j / n to each z_i w_ij | `Ignore` or `Distribute` |
///
/// Sink: the rest, 1 - Σ_i A_ij.
///
/// # Example
/// ```
/// use relprop::{Linear, Relative, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let layer = Linear::new(dmatrix![2.0, 1.0], dvector![1.0])?;
/// let model = Sequential::builder().layer(layer).build()?;
/// let explanation = model.explain(&dvector![1.0, 3.0], Relative::default())?;
/// assert_eq!(explanation.shares()[(0, 0)], 1.0); // 1 · 2 / 2
/// assert_eq!(explanation.shares()[(1, 0)], 1.5); // 3 · 1 / 2
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relative {
    bias: BiasMode,
}

impl Relative {
    /// Creates the rule with this treatment of the bias.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for [`BiasMode::Absorb`], because there is no total that could
    /// absorb the bias.
    pub fn new(bias: BiasMode) -> Result<Self, Error> {
        if bias == BiasMode::Absorb {
            let requirement = "Ignore or Distribute (the rule has no total to absorb it)";
            return Err(Error::parameter("Relative", "bias", bias, requirement));
        }
        Ok(Self { bias })
    }
}

impl Default for Relative {
    fn default() -> Self {
        Self { bias: BiasMode::Ignore }
    }
}

impl<T: Scalar> RelevanceRule<T> for Relative {
    fn name(&self) -> String {
        match self.bias {
            BiasMode::Ignore => "Relative".to_owned(),
            mode => format!("Relative(bias: {mode:?})"),
        }
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part = Part::new(Transform::Identity, Transform::Identity);
        Ok(Group::new(vec![part], Divisor::FanIn).with_bias(self.bias, Transform::Identity).into())
    }

    same_rule_in_f64!();
}
