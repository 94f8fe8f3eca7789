//! # Relative
//!
//! ```text
//!     A_ij = z_i w_ij / n        n: how many inputs output j has
//! ```
//!
//! The forward-pass formulation of LRP with its divisor, the total, replaced by the constant
//! fan-in.

use super::{BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Transform};
use crate::error::Error;
use crate::scalar::Scalar;

/// The rule without a total, z_i w_ij / n: what an input adds, against the fan-in.
///
/// Nothing is divided by data, so nothing is unstable and no stabilizer is needed. The shares do
/// not sum to 1: what is missing (or too much) stands in the ledger as the rest. They shrink with
/// every layer, and in a deep network below the number type's range; the scale is therefore kept
/// apart ([`Explanation::exponent`](crate::Explanation::exponent)).
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
/// let model = Sequential::builder().layer(Linear::new(dmatrix![2.0, 1.0], dvector![1.0])?).build()?;
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
    /// The rule with a use of the bias.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] for [`BiasMode::Absorb`]: there is no total that could absorb
    /// the bias.
    pub fn new(bias: BiasMode) -> Result<Self, Error> {
        if bias == BiasMode::Absorb {
            let requirement = "Ignore or Distribute (the rule has no total that could absorb it)";
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
}
