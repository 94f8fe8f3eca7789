//! Decompositions: a rule as data.

use std::fmt::{self, Debug};
use std::sync::Arc;

use crate::error::Error;
use crate::scalar::Scalar;

/// A rule at one layer: its share matrix, in the form that belongs to the layer's
/// [`Family`](crate::Family).
///
/// All layers to which rules apply today have linear maps, so their form is
/// [`Linear`](Self::Linear).
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
    pub(crate) input: InputFactor<T>,
    pub(crate) weight: WeightFactor<T>,
}

/// The factor of a numerator that belongs to the input.
#[derive(Debug, Clone)]
pub(crate) enum InputFactor<T> {
    Of(Transform<T>),
    /// Values that the rule provides, one per input.
    Fixed(Arc<[T]>),
}

/// The factor of a numerator that belongs to the weight.
#[derive(Debug, Clone)]
pub(crate) enum WeightFactor<T> {
    Of(Transform<T>),
    /// 1 between an input and the output with the same index, otherwise 0.
    Same,
}

impl<T: Scalar> Part<T> {
    /// The numerator f(z_i) g(w_ij) with f = `input` and g = `weight`.
    #[must_use]
    pub fn new(input: Transform<T>, weight: Transform<T>) -> Self {
        Self { input: InputFactor::Of(input), weight: WeightFactor::Of(weight) }
    }

    /// The numerator l_i g(w_ij) with g = `weight` and fixed values l, one per input of the layer.
    #[must_use]
    pub fn fixed(values: impl Into<Arc<[T]>>, weight: Transform<T>) -> Self {
        Self { input: InputFactor::Fixed(values.into()), weight: WeightFactor::Of(weight) }
    }

    /// The numerator that is 1 if the input has the same index as the output, otherwise 0. The
    /// layer must have the same number of inputs and outputs.
    #[must_use]
    pub fn same() -> Self {
        Self { input: InputFactor::Of(Transform::One), weight: WeightFactor::Same }
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
    pub(super) fn check(self, rule: &str) -> Result<Self, Error> {
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
