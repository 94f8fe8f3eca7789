//! # ZPlus
//!
//! ```text
//!     A_ij = (z_i+ w_ij+ + z_i- w_ij-) / S(their sum + b_j+)        p+ = max(p, 0), p- = min(p, 0)
//! ```
//!
//! G. Montavon, S. Lapuschkin, A. Binder, W. Samek, K.-R. Müller: Explaining nonlinear
//! classification decisions with deep Taylor decomposition. Pattern Recognition 65, 2017, pp.
//! 211-222. The rule is alpha-beta with α = 1, β = 0.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    describe, same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The z⁺ rule: positive contributions, divided by their sum. No relevance changes sign, and no
/// total cancels.
///
/// Inputs, weights and the bias are all split by sign, so the rule is also correct for inputs of
/// both signs.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
/// | bias | [`BiasMode::Absorb`] | how b+ is treated | any mode |
///
/// Sinks: the bias b_j+ / S (under `Absorb`), the stabilizer, and all relevance (`Empty`) where no
/// contribution is positive.
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -1.0, 3.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0, 1.0], Rule::ZPlus)?;
/// assert!((explanation.shares() - dmatrix![0.25; 0.0; 0.75]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ZPlus {
    stabilizer: Stabilizer,
    bias: BiasMode,
}

settings!(ZPlus);

/// The positive or negative contributions, divided by their sum.
pub(super) fn of_sign<T: Scalar>(
    positive: bool,
    stabilizer: Stabilizer,
    bias: BiasMode,
) -> Group<T> {
    let [same, other] = if positive {
        [Transform::Positive, Transform::Negative]
    } else {
        [Transform::Negative, Transform::Positive]
    };
    // A contribution is positive if input and weight have the same sign, negative otherwise.
    let parts =
        vec![Part::new(Transform::Positive, same.clone()), Part::new(Transform::Negative, other)];
    Group::new(parts, Divisor::Total(stabilizer)).with_bias(bias, same).of_one_sign()
}

impl<T: Scalar> RelevanceRule<T> for ZPlus {
    fn name(&self) -> String {
        describe("ZPlus", &[], self.stabilizer, self.bias)
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        Ok(of_sign(true, self.stabilizer, self.bias).into())
    }

    same_rule_in_f64!();
}
