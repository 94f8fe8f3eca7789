//! # AbsLrp
//!
//! ```text
//!     A_ij = z_i w_ij / (Σ_i |z_i w_ij| + ε)
//! ```
//!
//! D. Vukadin, P. Afrić, M. Šilić, G. Delač: Advancing attribution-based neural network
//! explainability through relative absolute magnitude layer-wise relevance propagation and
//! multi-component evaluation. ACM Transactions on Intelligent Systems and Technology 15(3), 2024.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    describe, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The AbsLRP rule: each input's contribution, divided by the sum of the magnitudes of all
/// contributions. No share exceeds 1, however much the contributions cancel.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | stabilizer | 1e-6 | keeps the sum of magnitudes away from zero | see [`Stabilizer`] |
///
/// The bias is ignored. Sinks: the stabilizer and the `Rest`.
///
/// If the positive contributions sum to P and the negative ones to -N, the shares sum to
/// (P - N) / (P + N), and the rest is 2 N / (P + N). For an output below 0, the relevances
/// therefore sum to a positive number.
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -2.0, 1.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0, 1.0], Rule::AbsLrp)?;
/// assert!((explanation.shares() - dmatrix![0.25; -0.5; 0.25]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AbsLrp {
    stabilizer: Stabilizer,
}

impl AbsLrp {
    /// Sets the stabilizer of the sum of magnitudes.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless ε is finite and above 0.
    pub fn with_stabilizer(mut self, stabilizer: Stabilizer) -> Result<Self, Error> {
        self.stabilizer = stabilizer.check("AbsLrp")?;
        Ok(self)
    }
}

impl<T: Scalar> RelevanceRule<T> for AbsLrp {
    fn name(&self) -> String {
        describe("AbsLrp", &[], self.stabilizer, BiasMode::default())
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let magnitude = Transform::map(T::abs);
        // |z| |w| = |z w|.
        let magnitudes = vec![Part::new(magnitude.clone(), magnitude)];
        let part = Part::new(Transform::Identity, Transform::Identity);
        let group = Group::new(vec![part], Divisor::TotalOf(magnitudes, self.stabilizer));
        Ok(group.with_bias(BiasMode::Ignore, Transform::Identity).into())
    }

    same_rule_in_f64!();
}
