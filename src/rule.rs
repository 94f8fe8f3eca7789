//! Rules: how a linear layer's relevance is shared among its inputs.
//!
//! Every rule on a linear map y = W z + b is a short sum, and a rule is the *data* of that sum
//! ([`Decomposition`]):
//!
//! ```text
//!     A_ij = Σ_groups c Σ_parts  f(z_i) g(w_ij) / d_j        R_i = Σ_j A_ij R_j
//! ```
//!
//! f and g are functions of one number ([`Transform`]), c is the group's coefficient, d_j its
//! divisor ([`Divisor`]), and a group may be there for outputs of one sign only ([`Gate`]). From
//! that data the crate makes the factors diag(u) V diag(t), with u = f(z), V = g(W) and t = c / d.
//! V does not depend on the sample and is prepared once. Nothing else in the crate knows one rule
//! from another.
//!
//! A rule of your own implements [`RelevanceRule`]; [the guide](crate::guide::adding_a_rule) shows
//! one.

mod abs_lrp;
mod alpha_beta;
mod epsilon;
mod flat;
mod gamma;
mod lrp0;
mod norm;
mod pass;
mod relative;
mod sign;
mod wsquare;
mod zbox;
mod zplus;

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

pub use abs_lrp::AbsLrp;
pub use alpha_beta::AlphaBeta;
pub use epsilon::Epsilon;
pub use flat::Flat;
pub use gamma::{Gamma, GammaPlain};
pub use lrp0::Lrp0;
pub use norm::Norm;
pub use pass::Pass;
pub use relative::Relative;
pub use sign::Sign;
pub use wsquare::WSquare;
pub use zbox::ZBox;
pub use zplus::ZPlus;

/// How relevance is shared at each linear layer: the trait of all rules, and of your own.
///
/// References, boxes and `Arc`s of a rule are rules too.
pub trait RelevanceRule<T: Scalar>: Send + Sync {
    /// The rule's name with its parameters, as it stands in results.
    fn name(&self) -> String;

    /// The name of the rule at one layer, where that depends on the layer.
    fn name_at(&self, site: &Site<'_>) -> String {
        let _ = site;
        self.name()
    }

    /// Whether the rule knows itself what to do with poolings, sums of branches and normalizations.
    /// Where it does not, they are shared by [`Norm`].
    fn is_composite(&self) -> bool {
        false
    }

    /// Looks at all layers that share relevance, before any is asked about, and refuses what cannot
    /// be meant.
    ///
    /// # Errors
    /// Such as [`Error::UnmatchedSetting`] of a [`Composite`](crate::Composite) with a setting that
    /// fits no layer.
    fn check_sites(&self, sites: &[Site<'_>]) -> Result<(), Error> {
        let _ = sites;
        Ok(())
    }

    /// The rule at one layer.
    ///
    /// # Errors
    /// Whatever keeps the rule from being used there, best as [`Error::Unsupported`] or
    /// [`Error::InvalidParameter`].
    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error>;
}

macro_rules! forward_rule {
    ($($pointer:ty),*) => {$(
        impl<T: Scalar, R: RelevanceRule<T> + ?Sized> RelevanceRule<T> for $pointer {
            fn name(&self) -> String {
                (**self).name()
            }

            fn name_at(&self, site: &Site<'_>) -> String {
                (**self).name_at(site)
            }

            fn is_composite(&self) -> bool {
                (**self).is_composite()
            }

            fn check_sites(&self, sites: &[Site<'_>]) -> Result<(), Error> {
                (**self).check_sites(sites)
            }

            fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
                (**self).decompose(site)
            }
        }
    )*};
}
forward_rule!(&R, Box<R>, Arc<R>);

/// What a rule says at a layer, by its name there: [`Norm`] where it does not decide itself.
pub(crate) fn rule_at<'a, T: Scalar>(
    rule: &'a dyn RelevanceRule<T>,
    site: &Site<'_>,
) -> &'a dyn RelevanceRule<T> {
    if site.learned || rule.is_composite() { rule } else { &Norm }
}

/// The published rules with their usual parameters.
///
/// | rule | share of output j's relevance that goes to input i | source |
/// |---|---|---|
/// | `Lrp0` | z_i w_ij / y_j: [`Lrp0::default`] | Bach et al. 2015 |
/// | `Epsilon` | z_i w_ij / (y_j + ε sgn y_j), ε = 1e-6: [`Epsilon::default`] | Bach et al. 2015 |
/// | `Gamma` | what has the sign of y_j counts 1 + γ times, γ = 0.25: [`Gamma::default`] | Montavon et al. 2019; Andéol et al. 2021 |
/// | `GammaPlain` | positive weights count 1 + γ times, γ = 0.25: [`GammaPlain::default`] | Montavon et al. 2019 |
/// | `ZPlus` | what is positive, over its sum: [`ZPlus::default`] | Montavon et al. 2017 |
/// | `AlphaBeta` | what is positive α times, what is negative -β times, α = 2, β = 1: [`AlphaBeta::default`] | Bach et al. 2015 |
/// | `WSquare` | w_ij² over its sum: [`WSquare::default`] | Montavon et al. 2017 |
/// | `Flat` | 1 / n, n inputs: [`Flat`] | Lapuschkin et al. 2017 |
/// | `Pass` | all to the input of the same index: [`Pass`] | |
/// | `Norm` | as `Epsilon`, for poolings and sums: [`Norm`] | |
/// | `AbsLrp` | z_i w_ij over the sum of |z_i w_ij|: [`AbsLrp::default`] | Vukadin et al. 2024 |
/// | `Sign` | sgn(z_i) w_ij / (y_j + ε sgn y_j): [`Sign::default`] | Gumpfer et al. 2023 |
/// | `Relative` | z_i w_ij / n, n inputs: [`Relative::default`] | fan-in instead of the total |
///
/// [`ZBox`] has no usual parameters: its box is that of the data.
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
    /// [`Lrp0::default`].
    Lrp0,
    /// [`Epsilon::default`].
    Epsilon,
    /// [`Gamma::default`].
    Gamma,
    /// [`GammaPlain::default`].
    GammaPlain,
    /// [`ZPlus::default`].
    ZPlus,
    /// [`AlphaBeta::default`].
    AlphaBeta,
    /// [`WSquare::default`].
    WSquare,
    /// [`Flat`].
    Flat,
    /// [`Pass`].
    Pass,
    /// [`Norm`].
    Norm,
    /// [`AbsLrp::default`].
    AbsLrp,
    /// [`Sign::default`].
    Sign,
    /// [`Relative::default`].
    Relative,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Lrp0,
        Self::Epsilon,
        Self::Gamma,
        Self::GammaPlain,
        Self::ZPlus,
        Self::AlphaBeta,
        Self::WSquare,
        Self::Flat,
        Self::Pass,
        Self::Norm,
        Self::AbsLrp,
        Self::Sign,
        Self::Relative,
    ];

    fn with<T: Scalar, R>(self, f: impl FnOnce(&dyn RelevanceRule<T>) -> R) -> R {
        match self {
            Self::Lrp0 => f(&Lrp0::default()),
            Self::Epsilon => f(&Epsilon::default()),
            Self::Gamma => f(&Gamma::default()),
            Self::GammaPlain => f(&GammaPlain::default()),
            Self::ZPlus => f(&ZPlus::default()),
            Self::AlphaBeta => f(&AlphaBeta::default()),
            Self::WSquare => f(&WSquare::default()),
            Self::Flat => f(&Flat),
            Self::Pass => f(&Pass),
            Self::Norm => f(&Norm),
            Self::AbsLrp => f(&AbsLrp::default()),
            Self::Sign => f(&Sign::default()),
            Self::Relative => f(&Relative::default()),
        }
    }
}

impl<T: Scalar> RelevanceRule<T> for Rule {
    fn name(&self) -> String {
        self.with::<T, _>(|rule| rule.name())
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        self.with::<T, _>(|rule| rule.decompose(site))
    }
}

/// The layer at which a rule is asked what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Site<'a> {
    /// The layer's index in the model.
    pub layer: usize,
    /// The layer's name: the one it was given, else its index.
    pub name: &'a str,
    /// The layer's kind.
    pub kind: &'a str,
    /// How many inputs the layer has.
    pub inputs: usize,
    /// How many outputs the layer has.
    pub outputs: usize,
    /// The shape of its inputs.
    pub input_shape: Shape,
    /// The shape of its outputs.
    pub output_shape: Shape,
    /// Whether it is a layer such as a dense one or a convolution, whose learned weights a rule is
    /// meant for; a pooling, a sum of branches or a normalization is not.
    pub learned: bool,
    /// The layer's place among the linear layers with learned weights, from 0; of another, how many
    /// of them are before it.
    pub linear_index: usize,
    /// How many linear layers with learned weights the model has.
    pub linear_count: usize,
}

/// A rule at one layer: the share matrix as a sum of groups.
#[derive(Debug, Clone)]
pub struct Decomposition<T> {
    pub(crate) groups: Vec<Group<T>>,
    pub(crate) range: Option<InputRange<T>>,
}

/// What a rule supposes of the inputs of a layer.
#[derive(Debug, Clone)]
pub(crate) struct InputRange<T> {
    pub low: Arc<[T]>,
    pub high: Arc<[T]>,
    pub outside: Outside,
}

/// What becomes of a sample with inputs outside the range that a rule supposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Outside {
    /// Explaining it is the error [`Error::OutsideRange`].
    #[default]
    Refuse,
    /// It is explained, and the explanation has a finding:
    /// [`Explanation::findings`](crate::Explanation::findings).
    Report,
}

impl<T: Scalar> Decomposition<T> {
    /// The sum of these groups.
    #[must_use]
    pub fn new(groups: Vec<Group<T>>) -> Self {
        Self { groups, range: None }
    }

    /// The same for inputs from `low` to `high` only, with a value for each input of the layer.
    #[must_use]
    pub fn for_inputs(
        mut self,
        low: impl Into<Arc<[T]>>,
        high: impl Into<Arc<[T]>>,
        outside: Outside,
    ) -> Self {
        self.range = Some(InputRange { low: low.into(), high: high.into(), outside });
        self
    }
}

impl<T: Scalar> From<Group<T>> for Decomposition<T> {
    fn from(group: Group<T>) -> Self {
        Self::new(vec![group])
    }
}

/// Numerators f(z_i) g(w_ij) that have one divisor in common.
#[derive(Debug, Clone)]
pub struct Group<T> {
    pub(crate) coefficient: T,
    pub(crate) parts: Vec<Part<T>>,
    pub(crate) bias: Transform<T>,
    pub(crate) bias_mode: BiasMode,
    pub(crate) divisor: Divisor<T>,
    pub(crate) gate: Gate,
    pub(crate) one_sign: bool,
    pub(crate) completes: Option<T>,
}

impl<T: Scalar> Group<T> {
    /// The sum of `parts` over `divisor`, with coefficient 1 and the layer's bias as it is,
    /// absorbed in the total.
    ///
    /// A [`Divisor::FanIn`] knows no total: set another bias mode there.
    #[must_use]
    pub fn new(parts: Vec<Part<T>>, divisor: Divisor<T>) -> Self {
        let (bias, bias_mode) = (Transform::Identity, BiasMode::Absorb);
        let (gate, one_sign, completes) = (Gate::Always, false, None);
        Self { coefficient: T::one(), parts, bias, bias_mode, divisor, gate, one_sign, completes }
    }

    /// The same times c. Where the coefficients of a decomposition do not sum to 1, the ledger
    /// shows the rest.
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

    /// The same for outputs of one sign only; for the others the group is not there.
    #[must_use]
    pub fn where_output(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// The same, and all of its numerators, with the bias, have one sign: a total of 0 then means
    /// that there are none, and the group's coefficient goes to the sink
    /// [`Cause::Empty`](crate::Cause::Empty).
    #[must_use]
    pub fn of_one_sign(mut self) -> Self {
        self.one_sign = true;
        self
    }

    /// The same, and its numerators and those of the group before it sum to k z_i w_ij for all i
    /// and j: its totals then follow from the layer's own outputs and that group's, and cost
    /// nothing.
    #[must_use]
    pub fn completing(mut self, k: T) -> Self {
        self.completes = Some(k);
        self
    }
}

/// For which outputs a group is there, by the sign of the layer's own output y_j.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Gate {
    /// For all.
    #[default]
    Always,
    /// Where y_j > 0.
    Positive,
    /// Where y_j < 0.
    Negative,
}

/// One numerator, f(z_i) g(w_ij).
#[derive(Debug, Clone)]
pub struct Part<T> {
    pub(crate) input: Input<T>,
    pub(crate) weight: Weight<T>,
}

/// What a numerator takes of an input.
#[derive(Debug, Clone)]
pub(crate) enum Input<T> {
    Of(Transform<T>),
    /// Values of the rule's own, one for each input.
    Fixed(Arc<[T]>),
}

/// What a numerator takes of a weight.
#[derive(Debug, Clone)]
pub(crate) enum Weight<T> {
    Of(Transform<T>),
    /// 1 between an input and the output of the same index, else 0.
    Same,
}

impl<T: Scalar> Part<T> {
    /// f(z_i) g(w_ij) with f = `input` and g = `weight`.
    #[must_use]
    pub fn new(input: Transform<T>, weight: Transform<T>) -> Self {
        Self { input: Input::Of(input), weight: Weight::Of(weight) }
    }

    /// l_i g(w_ij) with g = `weight` and a value of the rule's own for each input of the layer.
    #[must_use]
    pub fn fixed(values: impl Into<Arc<[T]>>, weight: Transform<T>) -> Self {
        Self { input: Input::Fixed(values.into()), weight: Weight::Of(weight) }
    }

    /// 1 for the input of the same index as the output, else 0; for layers with as many inputs as
    /// outputs.
    #[must_use]
    pub fn same() -> Self {
        Self { input: Input::Of(Transform::One), weight: Weight::Same }
    }
}

/// A function of one number, applied to each input, weight or bias.
///
/// The named ones are recognized and cost less: an unchanged weight matrix is not copied, one of
/// ones is of rank one.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Transform<T> {
    /// v.
    #[default]
    Identity,
    /// 1.
    One,
    /// max(v, 0).
    Positive,
    /// min(v, 0).
    Negative,
    /// Any other function; it must be finite where its argument is.
    Map(Arc<dyn Fn(T) -> T + Send + Sync>),
}

impl<T: Scalar> Transform<T> {
    /// Any function.
    pub fn map(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self::Map(Arc::new(f))
    }

    /// Whether both are known to be the same function.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Map(f), Self::Map(g)) => Arc::ptr_eq(f, g),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The function's value.
    #[must_use]
    pub fn value(&self, v: T) -> T {
        match self {
            Self::Identity => v,
            Self::One => T::one(),
            Self::Positive => v.max(T::zero()),
            Self::Negative => v.min(T::zero()),
            Self::Map(f) => f(v),
        }
    }
}

impl<T> Debug for Transform<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Identity => "Identity",
            Self::One => "One",
            Self::Positive => "Positive",
            Self::Negative => "Negative",
            Self::Map(_) => "Map(..)",
        })
    }
}

/// What a group's numerators are divided by.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Divisor<T> {
    /// The total: the sum of the numerators over i and, where it is not ignored, the bias;
    /// stabilized.
    Total(Stabilizer),
    /// The total of other parts and, where it is not ignored, the bias; stabilized. What the
    /// numerators' sum differs from it by is the sink [`Cause::Rest`](crate::Cause::Rest).
    TotalOf(Vec<Part<T>>, Stabilizer),
    /// The number of inputs that the output has, a constant.
    FanIn,
    /// 1.
    One,
}

/// What keeps a total away from zero: S(t) = t + ε sgn(t), with sgn(0) = 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Stabilizer {
    /// ε = 0. Where a total is exactly 0 the shares are 0, and the relevance goes to the sink
    /// [`Cause::Dead`](crate::Cause::Dead).
    None,
    /// ε itself.
    Absolute(f64),
    /// ε as a multiple of the root mean square of the layer's totals at the sample.
    RelativeToRms(f64),
}

impl Default for Stabilizer {
    /// ε = 1e-6.
    fn default() -> Self {
        Self::Absolute(1e-6)
    }
}

impl Stabilizer {
    /// An ε is finite and above 0.
    fn check(self, rule: &str) -> Result<Self, Error> {
        match self {
            Self::Absolute(epsilon) | Self::RelativeToRms(epsilon)
                if !(epsilon.is_finite() && epsilon > 0.0) =>
            {
                let none = match rule {
                    _ if epsilon != 0.0 => "",
                    "Epsilon" => " (Rule::Lrp0 has none)",
                    _ => " (Stabilizer::None has none)",
                };
                Err(Error::parameter(
                    rule,
                    "epsilon",
                    epsilon,
                    &format!("finite and above 0{none}"),
                ))
            }
            _ => Ok(self),
        }
    }
}

impl fmt::Display for Stabilizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("0"),
            Self::Absolute(epsilon) => write!(f, "{epsilon:?}"),
            Self::RelativeToRms(epsilon) => write!(f, "{epsilon:?} rms"),
        }
    }
}

/// Where the bias's part of the relevance goes: to the ledger, nowhere, or to the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BiasMode {
    /// The bias is in the total, and its share is a sink of the ledger.
    #[default]
    Absorb,
    /// The bias is left out of the total: the inputs get it all.
    Ignore,
    /// b_j / n is added to each of the n numerators of output j (the LRP toolbox of Lapuschkin et
    /// al. 2016).
    Distribute,
}

/// A rule's name with its parameters, and its settings where they are not the usual ones.
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

/// The settings of a rule that divides by totals.
macro_rules! settings {
    ($rule:ident) => {
        impl $rule {
            /// The same with another stabilizer of the totals.
            ///
            /// # Errors
            /// [`Error::InvalidParameter`](crate::Error::InvalidParameter) where ε is not finite or
            /// not above 0.
            pub fn with_stabilizer(
                mut self,
                stabilizer: crate::rule::Stabilizer,
            ) -> Result<Self, crate::Error> {
                self.stabilizer = stabilizer.check(stringify!($rule))?;
                Ok(self)
            }

            /// The same with another use of the bias.
            #[must_use]
            pub fn with_bias(mut self, bias: crate::BiasMode) -> Self {
                self.bias = bias;
                self
            }
        }
    };
}
use settings;
