//! # ZBox
//!
//! ```text
//!     A_ij = (z_i w_ij - l_i w_ij+ - h_i w_ij-) / S(their sum)
//!     p+ = max(p, 0), p- = min(p, 0)
//! ```
//!
//! G. Montavon, S. Lapuschkin, A. Binder, W. Samek, K.-R. Müller: Explaining nonlinear
//! classification decisions with deep Taylor decomposition. Pattern Recognition 65, 2017, pp.
//! 211-222. The bias cancels: b - b+ - b- = 0.

use std::sync::Arc;

use super::{
    BiasMode, Decomposition, Divisor, Group, Outside, Part, RelevanceRule, Site, Stabilizer,
    Transform, same_rule_in_f64,
};
use crate::error::Error;
use crate::scalar::Scalar;

/// The z-box rule, for a first layer whose inputs lie in a box, such as pixels: each input is
/// compared with the corner of the box that favors the output least.
///
/// For a sample in the box, no numerator is negative, so no total cancels. An input of 0 can get
/// relevance too.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | low, high | none | the box: a range for all inputs or for each | finite, low <= high |
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
///
/// Sink: the stabilizer.
///
/// # Example
/// ```
/// use relprop::{Linear, Sequential, ZBox};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -1.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 0.0], ZBox::new(0.0, 1.0)?)?;
/// // 1 - 0 and 0 - 1 · -1: the bright pixel supports the output, and so does the dark pixel, which
/// // would lower the output if it were bright.
/// assert!((explanation.shares() - dmatrix![0.5; 0.5]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ZBox {
    low: Arc<[f64]>,
    high: Arc<[f64]>,
    stabilizer: Stabilizer,
    outside: Outside,
}

impl ZBox {
    /// Creates the rule with the same range for all inputs.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless both bounds are finite and low <= high.
    pub fn new(low: f64, high: f64) -> Result<Self, Error> {
        Self::per_input(vec![low], vec![high])
    }

    /// Creates the rule with a separate range for each input, as for pixels of normalized channels.
    /// A single range applies to all inputs.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless `low` and `high` have the same length and all bounds are
    /// finite with low <= high. Using the rule with several ranges at a layer with a different
    /// number of inputs is also an error.
    pub fn per_input(low: Vec<f64>, high: Vec<f64>) -> Result<Self, Error> {
        let ordered = low
            .iter()
            .zip(&high)
            .all(|(low, high)| low.is_finite() && high.is_finite() && low <= high);
        if low.len() != high.len() || low.is_empty() || !ordered {
            return Err(Error::parameter(
                "ZBox",
                "low, high",
                (low, high),
                "finite and of the same length, with low <= high",
            ));
        }
        Ok(Self {
            low: low.into(),
            high: high.into(),
            stabilizer: Stabilizer::default(),
            outside: Outside::default(),
        })
    }

    /// Sets the stabilizer of the totals.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless ε is finite and above 0.
    pub fn with_stabilizer(mut self, stabilizer: Stabilizer) -> Result<Self, Error> {
        self.stabilizer = stabilizer.check("ZBox")?;
        Ok(self)
    }

    /// Sets how samples outside the box are treated.
    ///
    /// By default they are refused, because the shares of such a sample can have any sign and size.
    #[must_use]
    pub fn with_outside(mut self, outside: Outside) -> Self {
        self.outside = outside;
        self
    }
}

impl<T: Scalar> RelevanceRule<T> for ZBox {
    fn name(&self) -> String {
        match (&*self.low, &*self.high) {
            ([low], [high]) => format!("ZBox({low:?}, {high:?})"),
            (low, _) => format!("ZBox({} inputs)", low.len()),
        }
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let of_inputs = |bounds: &[f64]| -> Result<Vec<T>, Error> {
            match bounds {
                [all] => Ok(vec![T::from_f64(*all); site.inputs]),
                each if each.len() == site.inputs => {
                    Ok(each.iter().map(|&bound| T::from_f64(bound)).collect())
                }
                each => {
                    let (bounds, inputs) = (each.len(), site.inputs);
                    let reason = format!(
                        "the box has bounds for {bounds} inputs, but the layer has {inputs} inputs"
                    );
                    Err(site.unsupported(RelevanceRule::<T>::name(self), reason))
                }
            }
        };
        // The numerators z w - l w+ - h w-, as three parts.
        let (low, high) = (of_inputs(&self.low)?, of_inputs(&self.high)?);
        let negated = |bounds: &[T]| -> Vec<T> { bounds.iter().map(|&bound| -bound).collect() };
        let parts = vec![
            Part::new(Transform::Identity, Transform::Identity),
            Part::fixed(negated(&low), Transform::Positive),
            Part::fixed(negated(&high), Transform::Negative),
        ];
        let group = Group::new(parts, Divisor::Total(self.stabilizer))
            // The bias cancels in the total: b - b+ - b- = 0.
            .with_bias(BiasMode::Ignore, Transform::Identity);
        Ok(Decomposition::from(group).for_inputs(low, high, self.outside))
    }

    same_rule_in_f64!();
}
