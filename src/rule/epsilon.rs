//! # Epsilon
//!
//! ```text
//!     A_ij = z_i w_ij / (y_j + ε sgn y_j)        y_j = Σ_i z_i w_ij + b_j        sgn 0 = 1
//! ```
//!
//! S. Bach, A. Binder, G. Montavon, F. Klauschen, K.-R. Müller, W. Samek: On pixel-wise
//! explanations for non-linear classifier decisions by layer-wise relevance propagation. PLoS ONE
//! 10(7): e0130140, 2015. Equation 58.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The epsilon rule, z_i w_ij / (y_j + ε sgn y_j): shares in proportion to each input's
/// contribution to the output.
///
/// If ε is negligible compared with every total, this is LRP-0, which in a ReLU network equals
/// gradient times input.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | epsilon | 1e-6 | keeps totals away from zero; a larger value damps noise | finite, above 0 |
/// | absolute or relative to the rms of the totals | absolute | a relative ε has the same effect at any scale of the layer | |
/// | bias | [`BiasMode::Absorb`] | how b is treated | any mode |
///
/// Sinks: the bias b_j / S (under `Absorb`) and the stabilizer ε sgn y_j / S.
///
/// # Example
/// ```
/// use relprop::{BiasMode, Epsilon, Linear, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let layer = Linear::new(dmatrix![2.0, 1.0], dvector![1.0])?;
/// let model = Sequential::builder().layer(layer).build()?;
/// let x = dvector![1.0, 1.0];
/// let absorb = model.explain(&x, Epsilon::new(1e-9)?)?;
/// assert!((absorb.shares() - dmatrix![0.5; 0.25]).amax() < 1e-8); // the bias absorbs a quarter
/// let ignore = model.explain(&x, Epsilon::new(1e-9)?.with_bias(BiasMode::Ignore))?;
/// assert!((ignore.shares() - dmatrix![2.0 / 3.0; 1.0 / 3.0]).amax() < 1e-8);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Epsilon {
    stabilizer: Stabilizer,
    bias: BiasMode,
}

impl Epsilon {
    /// Creates the rule with an absolute ε.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless ε is finite and above 0.
    pub fn new(epsilon: f64) -> Result<Self, Error> {
        Self::default().with_stabilizer(Stabilizer::Absolute(epsilon))
    }

    /// Creates the rule with ε as a multiple of the root mean square of the layer's totals.
    ///
    /// The root mean square is computed separately for each layer and sample.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless ε is finite and above 0.
    ///
    /// # Example
    /// ```
    /// use relprop::{Epsilon, RelevanceRule};
    /// let rule = Epsilon::relative_to_rms(0.25)?;
    /// assert_eq!(RelevanceRule::<f32>::name(&rule), "Epsilon(0.25 rms)");
    /// assert!(Epsilon::relative_to_rms(0.0).is_err());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn relative_to_rms(epsilon: f64) -> Result<Self, Error> {
        Self::default().with_stabilizer(Stabilizer::RelativeToRms(epsilon))
    }
}

settings!(Epsilon);

impl<T: Scalar> RelevanceRule<T> for Epsilon {
    fn name(&self) -> String {
        let epsilon = self.stabilizer;
        match self.bias {
            BiasMode::Absorb => format!("Epsilon({epsilon})"),
            mode => format!("Epsilon({epsilon}, bias: {mode:?})"),
        }
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part = Part::new(Transform::Identity, Transform::Identity);
        Ok(Group::new(vec![part], Divisor::Total(self.stabilizer))
            .with_bias(self.bias, Transform::Identity)
            .into())
    }

    same_rule_in_f64!();
}
