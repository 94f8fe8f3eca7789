//! # Sign
//!
//! ```text
//!     A_ij = sgn(z_i) w_ij / (y_j + ε sgn y_j)        y_j = Σ_i z_i w_ij + b_j        sgn 0 = 1
//! ```
//!
//! N. Gumpfer, J. Prim, T. Keller, B. Seeger, M. Guckert, J. Hannig: SIGNed explanations: unveiling
//! relevant features by reducing bias. Information Fusion 99, 2023.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    describe, same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The SIGN rule: shares by the weight and the sign of each input, regardless of its magnitude.
///
/// A feature with the value 0 can be relevant too. The rule is designed for the first layer, where
/// the magnitude of a value depends on its unit of measurement.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
/// | bias | [`BiasMode::Absorb`] | how b is treated | any mode |
///
/// Sinks: the bias b_j / S (under `Absorb`), the stabilizer, and the `Rest`: the difference between
/// 1 and the sum of shares, bias and stabilizer.
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -1.0, 3.0], None)?).build()?;
/// let explanation = model.explain(&dvector![4.0, -4.0, 0.0], Rule::Sign)?; // y = 8
/// assert!((explanation.shares() - dmatrix![0.125; 0.125; 0.375]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sign {
    stabilizer: Stabilizer,
    bias: BiasMode,
}

settings!(Sign);

impl<T: Scalar> RelevanceRule<T> for Sign {
    fn name(&self) -> String {
        describe("Sign", &[], self.stabilizer, self.bias)
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let sign = Transform::map(|z: T| if z < T::zero() { -T::one() } else { T::one() });
        // The divisor is S(y), the stabilized output, and not the sum of the numerators.
        let outputs = vec![Part::new(Transform::Identity, Transform::Identity)];
        let group = Group::new(
            vec![Part::new(sign, Transform::Identity)],
            Divisor::TotalOf(outputs, self.stabilizer),
        );
        Ok(group.with_bias(self.bias, Transform::Identity).into())
    }

    same_rule_in_f64!();
}
