//! # Flat
//!
//! ```text
//!     A_ij = 1 / n_j        n_j: number of inputs of output j
//! ```
//!
//! S. Lapuschkin, A. Binder, K.-R. Müller, W. Samek: Understanding and comparing deep neural
//! networks for age and gender classification. ICCV workshops, 2017, pp. 1629-1638.

use super::{
    BiasMode, Decomposition, Divisor, Group, Part, RelevanceRule, Site, Transform, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The flat rule: the same share for every input, for a first layer where only position matters.
///
/// No parameters. Padding does not count as an input. No sinks, except for outputs without inputs
/// (`Rest`).
///
/// # Example
/// ```
/// use relprop::{Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -3.0], None)?).build()?;
/// assert_eq!(model.explain(&dvector![5.0, 0.0], Rule::Flat)?.shares(), &dmatrix![0.5; 0.5]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flat;

impl<T: Scalar> RelevanceRule<T> for Flat {
    fn name(&self) -> String {
        "Flat".to_owned()
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let part = Part::new(Transform::One, Transform::One);
        Ok(Group::new(vec![part], Divisor::FanIn)
            .with_bias(BiasMode::Ignore, Transform::Identity)
            .into())
    }

    same_rule_in_f64!();
}
