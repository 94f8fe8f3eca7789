//! Rules: how a linear layer's relevance is shared among its inputs.
//!
//! Every rule on a linear map y = W z + b is a short sum, and a rule is the *data* of that sum ([`Decomposition`]):
//!
//! ```text
//!     A_ij = Σ_groups c Σ_parts  f(z_i) g(w_ij) / d_j        R_i = Σ_j A_ij R_j
//! ```
//!
//! f and g are functions of one number ([`Transform`]), c is the group's coefficient, d_j its divisor ([`Divisor`]). From that data the crate
//! makes the factors diag(u) V diag(t), with u = f(z), V = g(W) and t = c / d. V does not depend on the sample and is
//! prepared once. Nothing else in the crate knows one rule from another.
//!
//! A rule of your own implements [`RelevanceRule`]; `examples/custom_rule.rs` shows one.

mod epsilon;
mod relative;

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::error::Error;
use crate::scalar::Scalar;

pub use epsilon::Epsilon;
pub use relative::Relative;

/// How relevance is shared at each linear layer.
///
/// References, boxes and `Arc`s of a rule are rules too.
pub trait RelevanceRule<T: Scalar>: Send + Sync {
    /// The rule's name with its parameters, as it stands in results.
    fn name(&self) -> String;

    /// The rule at one layer.
    ///
    /// # Errors
    /// Whatever keeps the rule from being used there, best as [`Error::Unsupported`] or [`Error::InvalidParameter`].
    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error>;
}

macro_rules! forward_rule {
    ($($pointer:ty),*) => {$(
        impl<T: Scalar, R: RelevanceRule<T> + ?Sized> RelevanceRule<T> for $pointer {
            fn name(&self) -> String {
                (**self).name()
            }

            fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
                (**self).decompose(site)
            }
        }
    )*};
}
forward_rule!(&R, Box<R>, Arc<R>);

/// The published rules with their usual parameters.
///
/// | rule | share of output j's relevance that goes to input i | source |
/// |---|---|---|
/// | `Epsilon` | z_i w_ij / (y_j + ε sgn y_j), ε = 1e-6: [`Epsilon::default`] | Bach et al. 2015 |
/// | `Relative` | z_i w_ij / n, n inputs: [`Relative::default`] | fan-in instead of the total |
///
/// ```
/// use relprop::{Epsilon, Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
/// let x = dvector![3.0, 1.0];
/// let usual = model.explain(&x, Rule::Epsilon)?;
/// let coarse = model.explain(&x, Epsilon::new(5.0)?)?;
/// assert!((usual.shares() - dmatrix![0.6; 0.4]).amax() < 1e-6);
/// assert!((coarse.shares() - dmatrix![0.3; 0.2]).amax() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// [`Epsilon::default`].
    Epsilon,
    /// [`Relative::default`].
    Relative,
}

impl<T: Scalar> RelevanceRule<T> for Rule {
    fn name(&self) -> String {
        match self {
            Self::Epsilon => RelevanceRule::<T>::name(&Epsilon::default()),
            Self::Relative => RelevanceRule::<T>::name(&Relative::default()),
        }
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        match self {
            Self::Epsilon => Epsilon::default().decompose(site),
            Self::Relative => Relative::default().decompose(site),
        }
    }
}

/// The layer at which a rule is asked what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Site<'a> {
    /// The layer's index in the model.
    pub layer: usize,
    /// The layer's kind.
    pub kind: &'a str,
    /// How many inputs the layer has.
    pub inputs: usize,
    /// How many outputs the layer has.
    pub outputs: usize,
    /// The layer's place among the linear layers, from 0.
    pub linear_index: usize,
    /// How many linear layers the model has.
    pub linear_count: usize,
}

/// A rule at one layer: the share matrix as a sum of groups.
#[derive(Debug, Clone)]
pub struct Decomposition<T> {
    pub(crate) groups: Vec<Group<T>>,
}

impl<T: Scalar> Decomposition<T> {
    /// The sum of these groups.
    #[must_use]
    pub fn new(groups: Vec<Group<T>>) -> Self {
        Self { groups }
    }
}

impl<T> From<Group<T>> for Decomposition<T> {
    fn from(group: Group<T>) -> Self {
        Self { groups: vec![group] }
    }
}

/// Numerators f(z_i) g(w_ij) that have one divisor in common.
#[derive(Debug, Clone)]
pub struct Group<T> {
    pub(crate) coefficient: T,
    pub(crate) parts: Vec<Part<T>>,
    pub(crate) bias: Transform<T>,
    pub(crate) bias_mode: BiasMode,
    pub(crate) divisor: Divisor,
}

impl<T: Scalar> Group<T> {
    /// The sum of `parts` over `divisor`, with coefficient 1 and the layer's bias as it is, absorbed in the total.
    ///
    /// A [`Divisor::FanIn`] knows no total: set another bias mode there.
    #[must_use]
    pub fn new(parts: Vec<Part<T>>, divisor: Divisor) -> Self {
        Self { coefficient: T::one(), parts, bias: Transform::Identity, bias_mode: BiasMode::Absorb, divisor }
    }

    /// The same times c. Where the coefficients of a decomposition do not sum to 1, the ledger shows the rest.
    #[must_use]
    pub fn times(mut self, c: T) -> Self {
        self.coefficient = c;
        self
    }

    /// The same with another use of the bias, which `transform` maps first, as g maps the weights.
    #[must_use]
    pub fn with_bias(mut self, mode: BiasMode, transform: Transform<T>) -> Self {
        self.bias_mode = mode;
        self.bias = transform;
        self
    }
}

/// One numerator, f(z_i) g(w_ij).
#[derive(Debug, Clone)]
pub struct Part<T> {
    pub(crate) input: Transform<T>,
    pub(crate) weight: Transform<T>,
}

impl<T: Scalar> Part<T> {
    /// f(z_i) g(w_ij) with f = `input` and g = `weight`.
    #[must_use]
    pub fn new(input: Transform<T>, weight: Transform<T>) -> Self {
        Self { input, weight }
    }
}

/// A function of one number, applied to each input, weight or bias.
///
/// The named ones are recognised and cost less: an unchanged weight matrix is not copied, one of ones is of rank one.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Transform<T> {
    /// v.
    #[default]
    Identity,
    /// 1.
    One,
    /// Any other function; it must be finite where its argument is.
    Map(Arc<dyn Fn(T) -> T + Send + Sync>),
}

impl<T: Scalar> Transform<T> {
    /// Any function.
    pub fn map(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self::Map(Arc::new(f))
    }

    /// The function's value.
    #[must_use]
    pub fn value(&self, v: T) -> T {
        match self {
            Self::Identity => v,
            Self::One => T::one(),
            Self::Map(f) => f(v),
        }
    }
}

impl<T> Debug for Transform<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "Identity",
            Self::One => "One",
            Self::Map(_) => "Map(..)",
        })
    }
}

/// What a group's numerators are divided by.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Divisor {
    /// The total: the sum of the numerators over i and, where it is not ignored, the bias; stabilised.
    Total(Stabilizer),
    /// The number of inputs that the output has, a constant.
    FanIn,
}

/// What keeps a total away from zero: S(t) = t + ε sgn(t), with sgn(0) = 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Stabilizer {
    /// ε itself.
    Absolute(f64),
    /// ε as a multiple of the root mean square of the layer's totals at the sample.
    RelativeToRms(f64),
}

/// What becomes of the bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BiasMode {
    /// The bias is in the total, and its share is a sink of the ledger.
    #[default]
    Absorb,
    /// The bias is left out of the total: the inputs get it all.
    Ignore,
    /// b_j / n is added to each of the n numerators of output j (the LRP toolbox of Lapuschkin et al. 2016).
    Distribute,
}
