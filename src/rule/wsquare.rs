//! # WSquare
//!
//! ```text
//!     A_ij = w_ij² / S(Σ_i w_ij²)
//! ```
//!
//! G. Montavon, S. Lapuschkin, A. Binder, W. Samek, K.-R. Müller: Explaining nonlinear
//! classification decisions with deep Taylor decomposition. Pattern Recognition 65, 2017, pp.
//! 211-222.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    describe, same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The w² rule: shares in proportion to the squared weights, regardless of the inputs, for a first
/// layer with inputs of any size.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
/// | bias | [`BiasMode::Ignore`] | `Absorb` adds b² to the total, as zennit does | `Ignore` or `Absorb` |
///
/// Sinks: the stabilizer and the bias (under `Absorb`).
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -3.0], None)?).build()?;
/// let explanation = model.explain(&dvector![5.0, 0.0], Rule::WSquare)?;
/// assert!((explanation.shares() - dmatrix![0.1; 0.9]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WSquare {
    stabilizer: Stabilizer,
    bias: BiasMode,
}

impl Default for WSquare {
    fn default() -> Self {
        Self { stabilizer: Stabilizer::default(), bias: BiasMode::Ignore }
    }
}

settings!(WSquare);

impl<T: Scalar> RelevanceRule<T> for WSquare {
    fn name(&self) -> String {
        // The name omits defaults, and this rule's default is Ignore.
        describe(
            "WSquare",
            &[],
            self.stabilizer,
            if self.bias == BiasMode::Ignore { BiasMode::default() } else { self.bias },
        )
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let square = Transform::map(|w: T| w * w);
        let part = Part::new(Transform::One, square.clone());
        Ok(Group::new(vec![part], Divisor::Total(self.stabilizer))
            .with_bias(self.bias, square)
            // No square is negative, so a total of 0 means that all of them are 0.
            .of_one_sign()
            .into())
    }

    same_rule_in_f64!();
}
