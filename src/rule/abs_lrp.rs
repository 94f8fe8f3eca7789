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
    describe,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// Shares in proportion to what each input added, relative to the sum of the magnitudes: no share
/// is larger than 1, however much cancels.
///
/// | parameter | default | what for | range |
/// |---|---|---|---|
/// | stabilizer | 1e-6 | keeps the sum of magnitudes from zero | see [`Stabilizer`] |
///
/// The bias has no part in it. Sinks: the stabilizer, and `rest`, twice the negative part of the
/// magnitudes: the shares sum to (P - N) / (P + N) for positive parts P and negative parts N. So
/// the relevances of an output below 0 sum to a positive number.
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
    /// The same with another stabilizer of the sum of magnitudes.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] where ε is not finite or not above 0.
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
        let magnitudes = vec![Part::new(magnitude.clone(), magnitude)];
        let part = Part::new(Transform::Identity, Transform::Identity);
        let group = Group::new(vec![part], Divisor::TotalOf(magnitudes, self.stabilizer));
        Ok(group.with_bias(BiasMode::Ignore, Transform::Identity).into())
    }
}
