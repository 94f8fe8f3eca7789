//! # Norm
//!
//! ```text
//!     A_ij = z_i w_ij / S(y_j)
//! ```
//!
//! The name comes from zennit's rule for poolings and sums: their weights are not learned, only
//! normalized.
//!
//! C. Anders, D. Neumann, W. Samek, K.-R. Müller, S. Lapuschkin: Software for dataset-wide XAI.
//! arXiv:2106.13200, 2021.

use super::{Decomposition, Epsilon, RelevanceRule, Site, same_rule_in_f64};
use crate::error::Error;
use crate::scalar::Scalar;

/// The rule for poolings and sums: shares in proportion to each input's contribution, as with
/// [`Epsilon::default`].
///
/// No parameters. The sinks are those of [`Epsilon`].
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let mean = Sequential::builder().layer(Linear::new(dmatrix![0.5, 0.5], None)?).build()?;
/// let explanation = mean.explain(&dvector![3.0, 1.0], Rule::Norm)?;
/// assert!((explanation.shares() - dmatrix![0.75; 0.25]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Norm;

impl<T: Scalar> RelevanceRule<T> for Norm {
    fn name(&self) -> String {
        "Norm".to_owned()
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        Epsilon::default().decompose(site)
    }

    same_rule_in_f64!();
}
