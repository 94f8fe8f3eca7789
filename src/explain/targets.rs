//! Targets: the outputs to explain.

use nalgebra::{DMatrix, DVector};

use crate::error::Error;
use crate::linalg;
use crate::scalar::Scalar;

/// The outputs to explain.
///
/// Explaining fewer targets costs less.
///
/// ```
/// use relprop::{Linear, Rule, Sequential, Targets};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let linear = Linear::new(dmatrix![1.0, 2.0; 3.0, 1.0; 0.0, 5.0], None)?;
/// let model = Sequential::builder().layer(linear).build()?;
/// let (x, explainer) = (dvector![1.0, 1.0], model.explainer(Rule::Epsilon)?);
///
/// let predicted = explainer.clone().targets(Targets::Predicted)?.explain(&x)?;
/// assert_eq!(predicted.targets().collect::<Vec<_>>(), [2]);
/// let some = explainer.clone().targets([0, 1])?.explain(&x)?;
/// assert_eq!(some.shares().shape(), (2, 2));
/// // Why output 1 and not output 0: f_1 - f_0 = 1.
/// let contrast = explainer.targets(dvector![-1.0, 1.0, 0.0])?.explain(&x)?;
/// assert!((contrast.relevance(0)? - dvector![2.0, -1.0]).amax() < 1e-5);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Targets<T: Scalar> {
    /// Every output.
    #[default]
    All,
    /// The largest output of each sample, or the first of them in case of a tie.
    Predicted,
    /// The listed outputs, in this order.
    Outputs(Vec<usize>),
    /// Weightings of the outputs, one per column (outputs x weightings).
    ///
    /// A weighting c explains the sum Σ_k c_k f_k. Its relevance is Σ_k c_k f_k S_k, where S_k are
    /// the shares in output k. For example, the contrast f_3 - f_5 has 1 in row 3, -1 in row 5 and
    /// 0 elsewhere.
    Weighted(DMatrix<T>),
}

impl<T: Scalar> Targets<T> {
    /// The number of targets for a model with this many outputs.
    pub(super) fn count(&self, outputs: usize) -> usize {
        match self {
            Self::All => outputs,
            Self::Predicted => 1,
            Self::Outputs(listed) => listed.len(),
            Self::Weighted(weightings) => weightings.ncols(),
        }
    }

    /// Checks the targets for a model with this many outputs.
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`], [`Error::WeightingShape`], or [`Error::InvalidParameter`] if
    /// there are no targets or a weight is not finite.
    pub(super) fn check(&self, outputs: usize) -> Result<(), Error> {
        if let Self::Outputs(listed) = self
            && let Some(&target) = listed.iter().find(|&&target| target >= outputs)
        {
            return Err(Error::TargetOutOfRange { target, outputs });
        }
        if let Self::Weighted(weightings) = self {
            if weightings.nrows() != outputs {
                return Err(Error::WeightingShape { found: weightings.nrows(), outputs });
            }
            if let Some((_, value)) = linalg::first_non_finite(weightings.as_slice()) {
                return Err(Error::parameter("Targets", "a weight", value.as_f64(), "finite"));
            }
        }
        match self.count(outputs) {
            0 => Err(Error::parameter("Targets", "targets", 0, "at least one")),
            _ => Ok(()),
        }
    }
}

impl<T: Scalar> From<usize> for Targets<T> {
    fn from(output: usize) -> Self {
        Self::Outputs(vec![output])
    }
}

impl<T: Scalar> From<Vec<usize>> for Targets<T> {
    fn from(outputs: Vec<usize>) -> Self {
        Self::Outputs(outputs)
    }
}

impl<T: Scalar, const N: usize> From<[usize; N]> for Targets<T> {
    fn from(outputs: [usize; N]) -> Self {
        Self::Outputs(outputs.to_vec())
    }
}

impl<T: Scalar> From<DMatrix<T>> for Targets<T> {
    fn from(weightings: DMatrix<T>) -> Self {
        Self::Weighted(weightings)
    }
}

impl<T: Scalar> From<DVector<T>> for Targets<T> {
    fn from(weighting: DVector<T>) -> Self {
        let outputs = weighting.len();
        Self::Weighted(DMatrix::from_vec(outputs, 1, weighting.data.into()))
    }
}
