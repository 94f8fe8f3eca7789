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
use crate::layer::Family;
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

/// The published rules with their usual parameters.
///
/// The table shows the share of output j's relevance that input i receives. A *contribution* is a
/// summand z_i w_ij of the output y_j.
///
/// | rule | share of input i | source |
/// |---|---|---|
/// | `Lrp0` | z_i w_ij / y_j: [`Lrp0::default`] | Bach et al. 2015 |
/// | `Epsilon` | z_i w_ij / (y_j + ε sgn y_j), ε = 1e-6: [`Epsilon::default`] | Bach et al. 2015 |
/// | `Gamma` | contributions with the sign of y_j are weighted by 1 + γ, γ = 0.25: [`Gamma::default`] | Montavon et al. 2019; Andéol et al. 2021 |
/// | `GammaPlain` | positive weights are multiplied by 1 + γ, γ = 0.25: [`GammaPlain::default`] | Montavon et al. 2019 |
/// | `ZPlus` | positive contributions, divided by their sum: [`ZPlus::default`] | Montavon et al. 2017 |
/// | `AlphaBeta` | positive contributions weighted by α, negative ones by -β, each divided by their sum, α = 2, β = 1: [`AlphaBeta::default`] | Bach et al. 2015 |
/// | `WSquare` | w_ij² divided by the sum of all w_ij²: [`WSquare::default`] | Montavon et al. 2017 |
/// | `Flat` | 1 / n for n inputs: [`Flat`] | Lapuschkin et al. 2017 |
/// | `Pass` | 1 if input and output have the same index, otherwise 0: [`Pass`] | |
/// | `Norm` | like `Epsilon`, for poolings and sums: [`Norm`] | |
/// | `AbsLrp` | z_i w_ij divided by the sum of \|z_i w_ij\|: [`AbsLrp::default`] | Vukadin et al. 2024 |
/// | `Sign` | sgn(z_i) w_ij / (y_j + ε sgn y_j): [`Sign::default`] | Gumpfer et al. 2023 |
/// | `Relative` | z_i w_ij / n for n inputs: [`Relative::default`] | fan-in instead of the total |
///
/// [`ZBox`] is not included because it has no usual parameters: its box depends on the data.
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
    /// All rules.
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

    // The default rules have different types and exist only during the call.
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

    same_rule_in_f64!();
}

/// The layer at which a rule is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Site<'a> {
    /// The layer's index in the model.
    pub layer: usize,
    /// The layer's name if it was given one, otherwise its index.
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

/// A rule at one layer: its share matrix, in the form that belongs to the layer's
/// [`Family`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Decomposition<T> {
    /// For a linear map: a sum of groups.
    Linear(LinearShares<T>),
    /// For a product of two values that depend on the sample.
    Product(ProductShares),
    /// For a normalization whose scale depends on the sample.
    Normalization(NormalizationShares),
    /// For a softmax inside the network.
    Softmax(SoftmaxShares),
}

/// The share matrix of a linear map as a sum of groups.
#[derive(Debug, Clone)]
pub struct LinearShares<T> {
    pub(crate) groups: Vec<Group<T>>,
    pub(crate) range: Option<InputRange<T>>,
}

/// How the relevance of a product of two values is shared between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ProductShares {
    /// Each value receives one half (R. Achtibat et al.: AttnLRP. ICML 2024, proposition 3.3).
    Half,
    /// The signal receives everything, and the gate nothing (L. Arras et al.: Explaining recurrent
    /// neural network predictions in sentiment analysis. WASSA 2017).
    Signal,
    /// The second value receives everything, and the first one, such as the attention, is a
    /// constant (A. Ali et al.: XAI for transformers. ICML 2022).
    Values,
}

/// How the relevance of a normalization is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NormalizationShares {
    /// The scale is a constant (AttnLRP, proposition 3.4).
    Identity,
}

/// How the relevance of a softmax inside the network is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SoftmaxShares {
    /// z_i (R_i - s_i Σ_j R_j) (AttnLRP, proposition 3.1).
    Taylor,
    /// The probabilities are constants (Ali et al. 2022).
    Constant,
}

/// The range that a rule assumes for a layer's inputs.
#[derive(Debug, Clone)]
pub(crate) struct InputRange<T> {
    pub low: Arc<[T]>,
    pub high: Arc<[T]>,
    pub outside: Outside,
}

/// How to treat a sample with inputs outside the range that a rule assumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Outside {
    /// Explaining the sample fails with [`Error::OutsideRange`].
    #[default]
    Refuse,
    /// The sample is explained, and [`Explanation::findings`](crate::Explanation::findings) reports
    /// it.
    Report,
}

impl<T: Scalar> Decomposition<T> {
    /// The share matrix of a linear map: the sum of these groups.
    #[must_use]
    pub fn new(groups: Vec<Group<T>>) -> Self {
        Self::Linear(LinearShares { groups, range: None })
    }

    /// Restricts the inputs of a linear map to the range from `low` to `high`.
    ///
    /// Both have one value per input. `outside` sets how a sample outside the range is treated. The
    /// other forms have no range.
    #[must_use]
    pub fn for_inputs(
        mut self,
        low: impl Into<Arc<[T]>>,
        high: impl Into<Arc<[T]>>,
        outside: Outside,
    ) -> Self {
        if let Self::Linear(shares) = &mut self {
            shares.range = Some(InputRange { low: low.into(), high: high.into(), outside });
        }
        self
    }

    /// The share matrix, if it is that of a linear map.
    pub(crate) fn linear(&self) -> Option<&LinearShares<T>> {
        if let Self::Linear(shares) = self { Some(shares) } else { None }
    }
}

impl<T: Scalar> From<Group<T>> for Decomposition<T> {
    fn from(group: Group<T>) -> Self {
        Self::new(vec![group])
    }
}

/// Numerators f(z_i) g(w_ij) with a common divisor.
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
    /// Creates a group: the sum of `parts` divided by `divisor`, with coefficient 1.
    ///
    /// The total includes the layer's unchanged bias ([`BiasMode::Absorb`]). [`Divisor::FanIn`] and
    /// [`Divisor::One`] are not totals and cannot absorb a bias, so set another bias mode for them.
    #[must_use]
    pub fn new(parts: Vec<Part<T>>, divisor: Divisor<T>) -> Self {
        let (bias, bias_mode) = (Transform::Identity, BiasMode::Absorb);
        let (gate, one_sign, completes) = (Gate::Always, false, None);
        Self { coefficient: T::one(), parts, bias, bias_mode, divisor, gate, one_sign, completes }
    }

    /// Multiplies the group by c. If the coefficients of a decomposition do not sum to 1, the
    /// ledger shows the difference.
    #[must_use]
    pub fn times(mut self, c: T) -> Self {
        self.coefficient = c;
        self
    }

    /// Sets how the bias is treated. `transform` is applied to the bias first, as g is to the
    /// weights.
    #[must_use]
    pub fn with_bias(mut self, mode: BiasMode, transform: Transform<T>) -> Self {
        self.bias_mode = mode;
        self.bias = transform;
        self
    }

    /// Restricts the group to outputs of one sign. For the other outputs the group is skipped.
    #[must_use]
    pub fn where_output(mut self, gate: Gate) -> Self {
        self.gate = gate;
        self
    }

    /// Declares that the group's numerators and the bias all have the same sign.
    ///
    /// A total of 0 then means that all of them are 0, and the group's coefficient is assigned to
    /// the sink [`Cause::Empty`](crate::Cause::Empty).
    #[must_use]
    pub fn of_one_sign(mut self) -> Self {
        self.one_sign = true;
        self
    }

    /// Declares that the numerators of this group and of the previous one sum to k z_i w_ij for all
    /// i and j.
    ///
    /// The totals of this group then follow from the layer's outputs and the previous group's
    /// totals, at no extra cost.
    #[must_use]
    pub(crate) fn completing(mut self, k: T) -> Self {
        self.completes = Some(k);
        self
    }
}

/// The outputs to which a group applies, by the sign of the layer's output y_j.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Gate {
    /// All outputs.
    #[default]
    Always,
    /// Outputs with y_j > 0.
    Positive,
    /// Outputs with y_j < 0.
    Negative,
}

/// One numerator, f(z_i) g(w_ij).
#[derive(Debug, Clone)]
pub struct Part<T> {
    pub(crate) input: Input<T>,
    pub(crate) weight: Weight<T>,
}

/// The factor of a numerator that belongs to the input.
#[derive(Debug, Clone)]
pub(crate) enum Input<T> {
    Of(Transform<T>),
    /// Values that the rule provides, one per input.
    Fixed(Arc<[T]>),
}

/// The factor of a numerator that belongs to the weight.
#[derive(Debug, Clone)]
pub(crate) enum Weight<T> {
    Of(Transform<T>),
    /// 1 between an input and the output with the same index, otherwise 0.
    Same,
}

impl<T: Scalar> Part<T> {
    /// The numerator f(z_i) g(w_ij) with f = `input` and g = `weight`.
    #[must_use]
    pub fn new(input: Transform<T>, weight: Transform<T>) -> Self {
        Self { input: Input::Of(input), weight: Weight::Of(weight) }
    }

    /// The numerator l_i g(w_ij) with g = `weight` and fixed values l, one per input of the layer.
    #[must_use]
    pub fn fixed(values: impl Into<Arc<[T]>>, weight: Transform<T>) -> Self {
        Self { input: Input::Fixed(values.into()), weight: Weight::Of(weight) }
    }

    /// The numerator that is 1 if the input has the same index as the output, otherwise 0. The
    /// layer must have the same number of inputs and outputs.
    #[must_use]
    pub fn same() -> Self {
        Self { input: Input::Of(Transform::One), weight: Weight::Same }
    }
}

/// A function of one number that is applied to each input, weight or bias.
///
/// Prefer the other variants over [`Map`](Self::Map) because they cost less: for example, unchanged
/// weights are not copied, and a dense matrix of ones has rank one.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Transform<T> {
    /// f(v) = v.
    #[default]
    Identity,
    /// f(v) = 1.
    One,
    /// f(v) = max(v, 0).
    Positive,
    /// f(v) = min(v, 0).
    Negative,
    /// Any other function. It must be finite for finite arguments.
    Map(Arc<dyn Fn(T) -> T + Send + Sync>),
}

impl<T: Scalar> Transform<T> {
    /// Creates a [`Transform::Map`] from a function.
    pub fn map(f: impl Fn(T) -> T + Send + Sync + 'static) -> Self {
        Self::Map(Arc::new(f))
    }

    /// Whether the two are known to be the same function.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            // Closures cannot be compared. Clones of one transform share their closure.
            (Self::Map(f), Self::Map(g)) => Arc::ptr_eq(f, g),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// The function's value at v.
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
    /// The stabilized total: the sum of the numerators over i, plus the bias unless it is ignored.
    Total(Stabilizer),
    /// The stabilized total of other parts, plus the bias unless it is ignored. The difference
    /// between this total and the sum of the numerators is the sink
    /// [`Cause::Rest`](crate::Cause::Rest).
    TotalOf(Vec<Part<T>>, Stabilizer),
    /// The number of inputs of each output, which is a constant.
    FanIn,
    /// The constant 1.
    One,
}

/// The ε that keeps a total away from zero: S(t) = t + ε sgn(t), with sgn(0) = 1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Stabilizer {
    /// ε = 0. If a total is exactly 0, the shares are 0 and the relevance is assigned to the sink
    /// [`Cause::Dead`](crate::Cause::Dead).
    None,
    /// A fixed ε.
    Absolute(f64),
    /// ε as a multiple of the root mean square of the layer's totals for the sample.
    RelativeToRms(f64),
}

impl Default for Stabilizer {
    /// ε = 1e-6.
    fn default() -> Self {
        Self::Absolute(1e-6)
    }
}

impl Stabilizer {
    /// Checks that ε is finite and above 0.
    fn check(self, rule: &str) -> Result<Self, Error> {
        match self {
            Self::Absolute(epsilon) | Self::RelativeToRms(epsilon)
                if !(epsilon.is_finite() && epsilon > 0.0) =>
            {
                // An ε of 0 is most likely an attempt to use no stabilizer.
                let none = match rule {
                    _ if epsilon != 0.0 => "",
                    "Epsilon" => " (for no stabilizer, use Rule::Lrp0)",
                    _ => " (for no stabilizer, use Stabilizer::None)",
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

/// How a rule treats the bias of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum BiasMode {
    /// The bias is part of the total. Its share of the relevance is a sink in the ledger.
    #[default]
    Absorb,
    /// The bias is left out of the total, so the inputs receive all of the relevance.
    Ignore,
    /// b_j / n is added to each of the n numerators of output j, as in the LRP toolbox of
    /// Lapuschkin et al. 2016.
    Distribute,
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
