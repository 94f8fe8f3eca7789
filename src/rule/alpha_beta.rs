//! # AlphaBeta
//!
//! ```text
//!     A_ij = α (z_i+ w_ij+ + z_i- w_ij-) / S(their sum + b_j+)
//!          - β (z_i+ w_ij- + z_i- w_ij+) / S(their sum + b_j-)
//! ```
//!
//! with α - β = 1, p+ = max(p, 0), p- = min(p, 0).
//!
//! S. Bach, A. Binder, G. Montavon, F. Klauschen, K.-R. Müller, W. Samek: On pixel-wise
//! explanations for non-linear classifier decisions by layer-wise relevance propagation. PLoS ONE
//! 10(7): e0130140, 2015. Equation 60.

use super::zplus::of_sign;
use super::{
    BiasMode, Decomposition, RelevanceRule, Site, Stabilizer, describe, same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The alpha-beta rule: positive contributions are weighted by α and negative ones by -β, each
/// divided by their own sum. No total cancels, and evidence against an output remains visible.
///
/// With α = 1 and β = 0, this is [`ZPlus`](crate::ZPlus).
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | alpha, beta | 2, 1 | weights of positive and negative contributions | finite, α >= 1, β >= 0, α - β = 1 |
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
/// | bias | [`BiasMode::Absorb`] | how b+ and b- are treated | any mode |
///
/// Sinks: the bias, α b_j+ / S - β b_j- / S (under `Absorb`), the stabilizer, and α or -β if there
/// are no contributions of the corresponding sign (`Empty`).
///
/// # Example
/// ```
/// use relprop::{AlphaBeta, Linear, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -1.0, 3.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0, 1.0], AlphaBeta::new(2.0, 1.0)?)?;
/// assert!((explanation.shares() - dmatrix![0.5; -1.0; 1.5]).amax() < 1e-5);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlphaBeta {
    alpha: f64,
    beta: f64,
    stabilizer: Stabilizer,
    bias: BiasMode,
}

impl AlphaBeta {
    /// Creates the rule with α and β.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless α >= 1, β >= 0 and α - β = 1 (to 1e-9).
    pub fn new(alpha: f64, beta: f64) -> Result<Self, Error> {
        if alpha.is_finite() && alpha >= 1.0 && beta >= 0.0 && (alpha - beta - 1.0).abs() <= 1e-9 {
            return Ok(Self { alpha, beta, ..Self::default() });
        }
        Err(Error::parameter(
            "AlphaBeta",
            "(alpha, beta)",
            (alpha, beta),
            "finite, with alpha >= 1, beta >= 0 and alpha - beta = 1",
        ))
    }
}

impl Default for AlphaBeta {
    fn default() -> Self {
        Self { alpha: 2.0, beta: 1.0, stabilizer: Stabilizer::default(), bias: BiasMode::default() }
    }
}

settings!(AlphaBeta);

impl<T: Scalar> RelevanceRule<T> for AlphaBeta {
    fn name(&self) -> String {
        describe("AlphaBeta", &[self.alpha, self.beta], self.stabilizer, self.bias)
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let mut groups =
            vec![of_sign(true, self.stabilizer, self.bias).times(T::from_f64(self.alpha))];
        // With β = 0 the second group would be computed for nothing.
        if self.beta > 0.0 {
            groups.push(of_sign(false, self.stabilizer, self.bias).times(T::from_f64(-self.beta)));
        }
        Ok(Decomposition::new(groups))
    }

    same_rule_in_f64!();
}
