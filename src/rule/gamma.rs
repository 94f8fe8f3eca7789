//! # Gamma and GammaPlain
//!
//! With p+ = max(p, 0) and p- = min(p, 0), Gamma is
//!
//! ```text
//!     y_j > 0:  A_ij = (z_i+ (w_ij + γ w_ij+) + z_i- (w_ij + γ w_ij-))
//!                      / S(their sum + b_j + γ b_j+)
//!     y_j < 0:  A_ij = (z_i+ (w_ij + γ w_ij-) + z_i- (w_ij + γ w_ij+))
//!                      / S(their sum + b_j + γ b_j-)
//! ```
//!
//! and GammaPlain, which is designed for z >= 0 and y > 0, where the two rules agree, is
//!
//! ```text
//!     A_ij = z_i (w_ij + γ w_ij+) / S(their sum + b_j + γ b_j+)
//! ```
//!
//! G. Montavon, A. Binder, S. Lapuschkin, W. Samek, K.-R. Müller: Layer-wise relevance propagation:
//! an overview. In: Explainable AI, LNCS 11700, Springer, 2019, pp. 193-209.
//!
//! L. Andéol, Y. Kawakami, Y. Wada, T. Kanamori, K.-R. Müller, G. Montavon: Learning domain
//! invariant representations by joint Wasserstein distance minimization. arXiv:2106.04923, 2021
//! (the form for both signs).

use super::{
    BiasMode, Decomposition, Divisor, Gate, Group, Part, RelevanceRule, Site, Stabilizer,
    Transform, describe, same_rule_in_f64, settings,
};
use crate::error::Error;
use crate::scalar::Scalar;

const GAMMA: f64 = 0.25;

/// The gamma rule: contributions with the sign of the output are weighted by 1 + γ. Less cancels,
/// and evidence against an output remains visible.
///
/// γ = 0 gives [`Epsilon`](crate::Epsilon), and γ → ∞ gives [`ZPlus`](crate::ZPlus) where y_j > 0.
///
/// | parameter | default | purpose | range |
/// |---|---|---|---|
/// | gamma | 0.25 | how strongly the output's sign is favored | finite, at least 0 |
/// | stabilizer | 1e-6 | keeps totals away from zero | see [`Stabilizer`] |
/// | bias | [`BiasMode::Absorb`] | how b is treated | any mode |
///
/// Sinks: the bias (under `Absorb`), the stabilizer, and all relevance (`Dead`) where y_j is
/// exactly 0.
///
/// # Example
/// ```
/// use relprop::{Gamma, Linear, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![2.0, -1.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0], Gamma::new(1.0)?)?;
/// // The positive contribution counts twice: (2 + 2) / 3 and -1 / 3.
/// assert!((explanation.shares() - dmatrix![4.0 / 3.0; -1.0 / 3.0]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::struct_field_names)] // the parameter γ has the same name as the rule
pub struct Gamma {
    gamma: f64,
    stabilizer: Stabilizer,
    bias: BiasMode,
}

/// The plain gamma rule: positive weights are multiplied by 1 + γ, regardless of the signs of
/// inputs and output.
///
/// The parameters are those of [`Gamma`]. The two rules agree if all inputs are nonnegative and the
/// output is positive. Otherwise, this rule can divide by a total near zero, so use [`Gamma`]
/// instead.
///
/// Sinks: the bias (under `Absorb`) and the stabilizer.
///
/// # Example
/// ```
/// use relprop::{GammaPlain, Linear, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![2.0, -1.0], None)?).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0], GammaPlain::new(1.0)?)?;
/// assert!((explanation.shares() - dmatrix![4.0 / 3.0; -1.0 / 3.0]).amax() < 1e-6);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GammaPlain {
    gamma: f64,
    stabilizer: Stabilizer,
    bias: BiasMode,
}

macro_rules! constructors {
    ($rule:ident) => {
        impl $rule {
            /// Creates the rule with γ.
            ///
            /// # Errors
            /// [`Error::InvalidParameter`] unless γ is finite and at least 0.
            pub fn new(gamma: f64) -> Result<Self, Error> {
                if gamma.is_finite() && gamma >= 0.0 {
                    return Ok(Self { gamma, ..Self::default() });
                }
                Err(Error::parameter(stringify!($rule), "gamma", gamma, "finite and at least 0"))
            }
        }

        impl Default for $rule {
            fn default() -> Self {
                Self { gamma: GAMMA, stabilizer: Stabilizer::default(), bias: BiasMode::default() }
            }
        }

        settings!($rule);
    };
}
constructors!(Gamma);
constructors!(GammaPlain);

/// The functions v + γ v+ and v + γ v-.
fn preferring<T: Scalar>(gamma: f64) -> [Transform<T>; 2] {
    let gamma = T::from_f64(gamma);
    [
        Transform::map(move |v: T| v + gamma * v.max(T::zero())),
        Transform::map(move |v: T| v + gamma * v.min(T::zero())),
    ]
}

impl<T: Scalar> RelevanceRule<T> for Gamma {
    fn name(&self) -> String {
        describe("Gamma", &[self.gamma], self.stabilizer, self.bias)
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let [positive, negative] = preferring::<T>(self.gamma);
        // Positive inputs use the weights mapped by `with`, negative ones those by `against`.
        let group = |gate, [with, against]: [&Transform<T>; 2]| {
            let parts = vec![
                Part::new(Transform::Positive, with.clone()),
                Part::new(Transform::Negative, against.clone()),
            ];
            let group = Group::new(parts, Divisor::Total(self.stabilizer))
                .with_bias(self.bias, with.clone());
            group.where_output(gate)
        };
        // Where y_j = 0, neither group applies, and the relevance is assigned to the sink `Dead`.
        let groups = [
            group(Gate::Positive, [&positive, &negative]),
            group(Gate::Negative, [&negative, &positive]),
        ];
        // The numerators of both groups sum to (2 + γ) z w: (w + γ w+) + (w + γ w-) = (2 + γ) w.
        let [first, second] = groups;
        Ok(Decomposition::new(vec![first, second.completing(T::from_f64(2.0 + self.gamma))]))
    }

    same_rule_in_f64!();
}

impl<T: Scalar> RelevanceRule<T> for GammaPlain {
    fn name(&self) -> String {
        describe("GammaPlain", &[self.gamma], self.stabilizer, self.bias)
    }

    fn decompose(&self, _site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let [positive, _] = preferring::<T>(self.gamma);
        let part = Part::new(Transform::Identity, positive.clone());
        Ok(Group::new(vec![part], Divisor::Total(self.stabilizer))
            .with_bias(self.bias, positive)
            .into())
    }

    same_rule_in_f64!();
}
