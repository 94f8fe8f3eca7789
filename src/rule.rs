//! Rules: how the relevance of a linear layer is shared among its inputs.
//!
//! Every rule for a linear map y = W z + b is a short sum. A rule returns the *data* of that sum
//! ([`Decomposition`]):
//!
//! ```text
//!     A_ij = Σ_groups c Σ_parts  f(z_i) g(w_ij) / d_j        R_i = Σ_j A_ij R_j
//! ```
//!
//! f and g are functions of one number ([`Transform`]), c is the group's coefficient, and d_j is
//! its divisor ([`Divisor`]). A group can be restricted to outputs of one sign ([`Gate`]). From
//! that data the crate computes the factors diag(u) V diag(t), with u = f(z), V = g(W) and
//! t = c / d. V does not depend on the sample and is prepared once. No other part of the crate
//! distinguishes between rules.
//!
//! To add your own rule, implement [`RelevanceRule`]. [The guide](crate::guide::adding_a_rule) has
//! an example.

mod abs_lrp;
mod alpha_beta;
mod decomposition;
mod epsilon;
mod flat;
mod gamma;
mod lrp0;
mod norm;
mod pass;
mod published;
mod relative;
mod sign;
mod wsquare;
mod zbox;
mod zplus;

use std::sync::Arc;

use crate::error::Error;
use crate::layer::Family;
use crate::scalar::Scalar;
use crate::shape::Shape;

pub use abs_lrp::AbsLrp;
pub use alpha_beta::AlphaBeta;
pub use decomposition::{
    BiasMode, Decomposition, Divisor, Gate, Group, LinearShares, NormalizationShares, Outside,
    Part, ProductShares, SoftmaxShares, Stabilizer, Transform,
};
pub(crate) use decomposition::{InputFactor, InputRange, WeightFactor};
pub use epsilon::Epsilon;
pub use flat::Flat;
pub use gamma::{Gamma, GammaPlain};
pub use lrp0::Lrp0;
pub use norm::Norm;
pub use pass::Pass;
pub use published::Rule;
pub use relative::Relative;
pub use sign::Sign;
pub use wsquare::WSquare;
pub use zbox::ZBox;
pub use zplus::ZPlus;

/// How relevance is shared at each linear layer. Implement this trait for your own rules.
///
/// References, boxes and `Arc`s of a rule are rules too.
pub trait RelevanceRule<T: Scalar>: Send + Sync {
    /// The rule's name with its parameters, as it appears in results.
    fn name(&self) -> String;

    /// The rule that is used at one layer.
    ///
    /// By default, a rule is used at layers with learned weights, and the rule that is usual for
    /// the family ([`Norm`]) at poolings, sums and normalizations. A
    /// [`Composite`](crate::Composite) chooses a rule for every layer.
    fn at(&self, site: &Site<'_>) -> Choice<'_, T> {
        if site.family.is_learned() { Choice::This } else { Choice::Usual }
    }

    /// Checks the rule against all layers that share relevance, before
    /// [`decompose`](Self::decompose) is called for any of them.
    ///
    /// # Errors
    /// Any error in the rule's settings, such as [`Error::UnmatchedSetting`] from a
    /// [`Composite`](crate::Composite) with a setting that matches no layer.
    fn check_sites(&self, sites: &[Site<'_>]) -> Result<(), Error> {
        let _ = sites;
        Ok(())
    }

    /// The rule's decomposition at one layer.
    ///
    /// # Errors
    /// If the rule cannot be used there, preferably [`Error::Unsupported`] or
    /// [`Error::InvalidParameter`].
    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error>;

    /// This rule in double precision, with the same settings, or `None` if there is no such rule.
    ///
    /// [`Explainer::with_health`](crate::Explainer::with_health) uses it to measure the rounding
    /// error of an explanation in single precision.
    fn to_f64(&self) -> Option<Box<dyn RelevanceRule<f64>>> {
        None
    }
}

/// The method `to_f64` of a rule whose type does not depend on the number type.
macro_rules! same_rule_in_f64 {
    () => {
        fn to_f64(&self) -> Option<Box<dyn crate::RelevanceRule<f64>>> {
            Some(Box::new(Clone::clone(self)))
        }
    };
}
use same_rule_in_f64;

// Every method is forwarded, because a default would hide what the inner rule returns.
macro_rules! forward_rule {
    ($($pointer:ty),*) => {$(
        impl<T: Scalar, R: RelevanceRule<T> + ?Sized> RelevanceRule<T> for $pointer {
            fn name(&self) -> String {
                (**self).name()
            }

            fn at(&self, site: &Site<'_>) -> Choice<'_, T> {
                (**self).at(site)
            }

            fn check_sites(&self, sites: &[Site<'_>]) -> Result<(), Error> {
                (**self).check_sites(sites)
            }

            fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
                (**self).decompose(site)
            }

            fn to_f64(&self) -> Option<Box<dyn RelevanceRule<f64>>> {
                (**self).to_f64()
            }
        }
    )*};
}
forward_rule!(&R, Box<R>, Arc<R>);

/// The rule that is used at a layer.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Choice<'a, T: Scalar> {
    /// The rule that was asked.
    This,
    /// The rule that is usual for the layer's family.
    Usual,
    /// Another rule.
    Other(&'a dyn RelevanceRule<T>),
}

/// The rule that is usual for a family of layers that no other rule covers.
pub(crate) fn usual<T: Scalar>(family: Family) -> &'static dyn RelevanceRule<T> {
    match family {
        Family::Dense | Family::Convolution => &EPSILON,
        Family::Average | Family::Sum | Family::Normalization => &Norm,
    }
}

static EPSILON: Rule = Rule::Epsilon;

/// The rule that is used at a layer, according to `rule`.
pub(crate) fn rule_at<'a, T: Scalar>(
    rule: &'a dyn RelevanceRule<T>,
    site: &Site<'_>,
) -> &'a dyn RelevanceRule<T> {
    match rule.at(site) {
        Choice::This => rule,
        Choice::Usual => usual(site.family),
        Choice::Other(other) => other,
    }
}

/// The layer at which a rule is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Site<'a> {
    /// The layer's index in the model.
    pub layer: usize,
    /// The layer's name if it was given one, otherwise its position in the builder.
    pub name: &'a str,
    /// The layer's kind.
    pub kind: &'a str,
    /// The family of layers that the layer belongs to.
    pub family: Family,
    /// How many inputs the layer has.
    pub inputs: usize,
    /// How many outputs the layer has.
    pub outputs: usize,
    /// The shape of the inputs.
    pub input_shape: Shape,
    /// The shape of the outputs.
    pub output_shape: Shape,
    /// The layer's position among the linear layers with learned weights, counted from 0. For any
    /// other layer, the number of such layers before it.
    pub linear_index: usize,
    /// Whether no other layer with learned weights lies between the explained values and this one.
    /// There can be several such layers, for example if a model has several inputs.
    pub is_first: bool,
    /// How many linear layers with learned weights the model has.
    pub linear_count: usize,
}

impl Site<'_> {
    /// The error for a rule that cannot be used at this layer.
    pub fn unsupported(&self, rule: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            rule: rule.into(),
            layer: self.layer,
            name: self.name.to_owned(),
            kind: self.kind.to_owned(),
            reason: reason.into(),
        }
    }
}

/// A rule's name with its parameters and all settings that differ from the defaults.
fn describe(rule: &str, parameters: &[f64], stabilizer: Stabilizer, bias: BiasMode) -> String {
    let mut inner: Vec<String> = parameters.iter().map(|p| format!("{p:?}")).collect();
    if stabilizer != Stabilizer::default() {
        inner.push(format!("epsilon: {stabilizer}"));
    }
    if bias != BiasMode::default() {
        inner.push(format!("bias: {bias:?}"));
    }
    if inner.is_empty() { rule.to_owned() } else { format!("{rule}({})", inner.join(", ")) }
}

/// The setters of a rule that divides by totals.
macro_rules! settings {
    ($rule:ident) => {
        impl $rule {
            /// Sets the stabilizer of the totals.
            ///
            /// # Errors
            /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) unless ε is finite and
            /// above 0.
            pub fn with_stabilizer(
                mut self,
                stabilizer: crate::rule::Stabilizer,
            ) -> Result<Self, crate::Error> {
                self.stabilizer = stabilizer.check(stringify!($rule))?;
                Ok(self)
            }

            /// Sets how the bias is treated.
            #[must_use]
            pub fn with_bias(mut self, bias: crate::BiasMode) -> Self {
                self.bias = bias;
                self
            }
        }
    };
}
use settings;
