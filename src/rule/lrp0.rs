//! # LRP-0
//!
//! ```text
//!     A_ij = z_i w_ij / y_j        y_j = Σ_i z_i w_ij + b_j
//! ```
//!
//! S. Bach, A. Binder, G. Montavon, F. Klauschen, K.-R. Müller, W. Samek: On pixel-wise
//! explanations for non-linear classifier decisions by layer-wise relevance propagation. PLoS ONE
//! 10(7): e0130140, 2015. Equation 56.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Stabilizer, Transform,
    same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The LRP-0 rule, z_i w_ij / y_j: shares in proportion to each input's contribution to the output,
/// without a stabilizer.
///
/// In a network of linear layers and ReLUs it equals gradient times input. Where y_j is exactly 0,
/// the shares are 0.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | bias | [`BiasMode::Absorb`] | how b is treated | any mode |
///
/// Sinks: the bias b_j / y_j (under `Absorb`), and all relevance (`Dead`) where y_j is 0.
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let layer = Linear::new(dmatrix![2.0, 1.0], dvector![1.0])?;
/// let model = Sequential::builder().layer(layer).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0], Rule::Lrp0)?;
/// assert_eq!(explanation.shares(), &dmatrix![0.5; 0.25]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lrp0 {
    bias: BiasMode,
}

impl Lrp0 {
    /// Sets how the bias is treated.
    #[must_use]
    pub fn with_bias(mut self, bias: BiasMode) -> Self {
        self.bias = bias;
        self
    }
}

impl<T: Scalar> RelevanceRule<T> for Lrp0 {
    fn name(&self) -> String {
        match self.bias {
            BiasMode::Absorb => "Lrp0".to_owned(),
            mode => format!("Lrp0(bias: {mode:?})"),
        }
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part = Part::new(Transform::Identity, Transform::Identity);
        Ok(Group::new(vec![part], Divisor::Total(Stabilizer::None))
            .with_bias(self.bias, Transform::Identity)
            .into())
    }

    same_rule_in_f64!();
}
