//! Numerical health: the cancellation at each layer, and the rounding error of the shares, measured
//! against double precision.

use std::fmt;
use std::sync::Arc;

use crate::explainer::Explainer;
use crate::explanation::{Explained, Explanation, RuleAt};
use crate::graph::Graph;
use crate::inputs::Feed;
use crate::layer::Layer;
use crate::linalg;
use crate::relevance::{Accumulation, Cancellation};
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;
use crate::targets::Targets;

/// The numerical accuracy of an explanation.
///
/// The cancellation at output j of a linear layer is κ_j = Σ_i |numerator_ij| / |S(total_j)|. It is
/// 1 if nothing cancels. At 1000, the total has lost three digits, and shares of magnitude 1000
/// cancel each other. Only outputs that receive relevance are considered, and κ is only defined for
/// rules that divide by a total.
///
/// The rounding error of an explanation in `f32` is measured: the model and the rule run once more
/// in `f64` on the same sample, for the same targets, and the shares of the two explanations are
/// compared. There is nothing finer to compare an explanation in `f64` with, so its error is
/// unknown.
///
/// For an example, see [`Explainer::with_health`](crate::Explainer::with_health).
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    layers: Vec<LayerHealth>,
    targets: Vec<TargetHealth>,
    prevented: Option<Arc<str>>,
}

/// The cancellation in one linear layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LayerHealth {
    layer: usize,
    name: String,
    rule: String,
    worst: f64,
    worst_output: usize,
    median: f64,
}

#[derive(Debug, Clone, PartialEq)]
struct TargetHealth {
    target: usize,
    errors: Option<Errors>,
}

/// The largest difference of a target's shares from double precision.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Errors {
    absolute: f64,
    /// Relative to the target's largest share in double precision.
    relative: f64,
}

impl LayerHealth {
    /// The layer's index.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The layer's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The layer's rule.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The largest κ of all outputs that receive relevance, or 1 if there are none.
    #[must_use]
    pub fn worst(&self) -> f64 {
        self.worst
    }

    /// The output with the largest κ.
    #[must_use]
    pub fn worst_output(&self) -> usize {
        self.worst_output
    }

    /// The median κ of the outputs that receive relevance.
    #[must_use]
    pub fn median(&self) -> f64 {
        self.median
    }
}

impl Health {
    pub(crate) fn new<T: Scalar>(
        cancellation: Vec<Cancellation<T>>,
        rules: &[RuleAt],
        targets: impl Iterator<Item = usize>,
        errors: Result<Vec<Errors>, Arc<str>>,
    ) -> Self {
        let layers = rules.iter().zip(cancellation).map(|(at, of_layer)| {
            let kappas = of_layer.kappas.iter();
            let mut kappas: Vec<(f64, usize)> =
                kappas.map(|&(output, kappa)| (kappa.as_f64(), output)).collect();
            kappas.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (worst, worst_output) = kappas.last().copied().unwrap_or((1.0, 0));
            let median = kappas.get(kappas.len() / 2).map_or(1.0, |(kappa, _)| *kappa);
            let RuleAt { layer, name, rule } = at.clone();
            LayerHealth { layer, name, rule, worst, worst_output, median }
        });
        let (errors, prevented) = match errors {
            Ok(errors) => (errors, None),
            Err(prevented) => (Vec::new(), Some(prevented)),
        };
        let targets = targets.enumerate().map(|(column, target)| {
            let errors = errors.get(column).copied();
            TargetHealth { target, errors }
        });
        Self { layers: layers.collect(), targets: targets.collect(), prevented }
    }

    /// The cancellation in each linear layer, in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerHealth] {
        &self.layers
    }

    /// The explained targets.
    #[cfg(feature = "serde")]
    pub(crate) fn targets(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|health| health.target)
    }

    /// The rounding error of a target's shares: the largest difference of any of its shares from
    /// the same share computed in `f64`.
    ///
    /// These are the true shares, with the [`exponent`](Explanation::exponent) applied. For a
    /// weighting of outputs, they are the relevances in [`shares`](Explanation::shares). The result
    /// is `None` if the target is not explained or the error could not be measured; see
    /// [`prevented`](Self::prevented).
    #[must_use]
    pub fn error(&self, target: usize) -> Option<f64> {
        self.errors(target).map(|errors| errors.absolute)
    }

    /// The [`error`](Self::error), relative to the target's largest share in `f64`.
    ///
    /// It is infinite if all shares in `f64` are 0 and the explanation's are not.
    #[must_use]
    pub fn relative_error(&self, target: usize) -> Option<f64> {
        self.errors(target).map(|errors| errors.relative)
    }

    fn errors(&self, target: usize) -> Option<Errors> {
        self.targets.iter().find(|health| health.target == target)?.errors
    }

    /// Why the rounding error could not be measured, in one sentence, or `None` if it was measured.
    ///
    /// The error is not measured:
    ///
    /// - if the explanation is in `f64` already,
    /// - if [`Layer::to_f64`](crate::Layer::to_f64) returns `None` for a layer, or
    ///   [`RelevanceRule::to_f64`] for the rule, or
    /// - if the model or the rule fails in `f64`.
    #[must_use]
    pub fn prevented(&self) -> Option<&str> {
        self.prevented.as_deref()
    }
}

impl fmt::Display for Health {
    /// Prints one line for each linear layer, one for the rounding error, and advice if there is
    /// any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Above this cancellation, a layer's shares are mostly noise.
        const CANCELS: f64 = 1e3;
        /// Above this relative error, fewer than two digits are correct.
        const INACCURATE: f64 = 1e-2;
        writeln!(f, "cancellation: sum of magnitudes / total (1: nothing cancels)")?;
        for LayerHealth { name, rule, worst, worst_output, median, .. } in &self.layers {
            writeln!(
                f,
                "  layer {name:<4} {rule:<28} median {median:>9.3}  worst {worst:>9.3e} at \
                 output {worst_output}"
            )?;
        }
        let relative = self.targets.iter().filter_map(|health| health.errors);
        let error = relative.map(|errors| errors.relative).fold(0.0, f64::max);
        match &self.prevented {
            None => write!(
                f,
                "rounding: shares are off by at most {error:.1e} of their target's largest \
                 (measured against f64)"
            )?,
            Some(prevented) => write!(f, "rounding: not measured. {prevented}")?,
        }
        let worst = self.layers.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
        if let Some(LayerHealth { name, worst, .. }) = worst.filter(|health| health.worst > CANCELS)
        {
            write!(
                f,
                "\nadvice: at layer {name} shares of {worst:.0e} cancel; raise epsilon there, or \
                 use Gamma"
            )?;
        }
        if error > INACCURATE {
            write!(f, "\nadvice: use f64 for reliable digits")?;
        }
        Ok(())
    }
}

/// A rule in double precision, if it has this form and there is a use for it.
#[derive(Clone)]
pub(crate) struct RuleInF64 {
    name: String,
    rule: Option<Arc<dyn RelevanceRule<f64>>>,
}

/// Whether the number type is `f64`, so that no type is finer.
fn is_finest<T: Scalar>() -> bool {
    T::epsilon().as_f64() <= f64::EPSILON
}

impl RuleInF64 {
    pub fn of<T: Scalar>(rule: &dyn RelevanceRule<T>) -> Self {
        let converted = if is_finest::<T>() { None } else { rule.to_f64() };
        Self { name: rule.name(), rule: converted.map(Arc::from) }
    }
}

impl fmt::Debug for RuleInF64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// An explainer in double precision with which explanations are compared, or the sentence that says
/// why there is none.
#[derive(Debug, Clone)]
pub(crate) enum Finer {
    Ready(Box<Explainer<f64>>),
    Prevented(Arc<str>),
}

impl Finer {
    /// Prepares the model and the rule in double precision, for all outputs.
    pub fn new<T: Scalar>(model: &Graph<T>, rule: &RuleInF64) -> Self {
        explainer(model, rule).map_or_else(
            |prevented| Self::Prevented(prevented.into()),
            |explainer| Self::Ready(Box::new(explainer.without_limits())),
        )
    }

    pub fn runs(&self) -> bool {
        matches!(self, Self::Ready(_))
    }

    pub fn accumulation(self, accumulation: Accumulation) -> Self {
        match self {
            Self::Ready(explainer) => Self::Ready(Box::new(explainer.accumulation(accumulation))),
            prevented @ Self::Prevented(_) => prevented,
        }
    }

    /// Sets the targets, which must be valid for the model.
    pub fn targets<T: Scalar>(self, targets: &Targets<T>) -> Self {
        let Self::Ready(explainer) = self else { return self };
        let targets = match targets {
            Targets::All => Targets::All,
            Targets::Predicted => Targets::Predicted,
            Targets::Outputs(outputs) => Targets::Outputs(outputs.clone()),
            Targets::Weighted(weightings) => Targets::Weighted(weightings.map(T::as_f64)),
        };
        explainer.targets(targets).map_or_else(
            |error| Self::Prevented(format!("The targets are unsupported in f64: {error}.").into()),
            |explainer| Self::Ready(Box::new(explainer)),
        )
    }

    /// The largest difference of each target's shares from double precision.
    pub fn errors<T: Scalar>(
        &self,
        (model, feed): (&Graph<T>, &Feed<'_, T>),
        explanation: &Explanation<T>,
    ) -> Result<Vec<Errors>, Arc<str>> {
        let explainer = match self {
            Self::Ready(explainer) => explainer,
            Self::Prevented(prevented) => return Err(prevented.clone()),
        };
        let sample = feed.to_f64(model);
        let finer = match &explanation.explained {
            // The predicted output can differ in double precision.
            Explained::Outputs(outputs) => explainer.of_outputs(outputs).explain_inputs(&sample),
            Explained::All | Explained::Weightings(_) => explainer.explain_inputs(&sample),
        };
        let finer =
            finer.map_err(|error| format!("The sample cannot be explained in f64: {error}."))?;
        let exponents = (explanation.exponent(), finer.exponent());
        let columns = explanation.shares().column_iter().zip(finer.shares().column_iter());
        Ok(columns
            .map(|(own, finer)| errors(own.as_slice(), finer.as_slice(), exponents))
            .collect())
    }
}

/// The errors of a target's shares. The true shares are these, times two to the exponents.
fn errors<T: Scalar>(own: &[T], finer: &[f64], exponents: (i32, i32)) -> Errors {
    let difference = |(own_exponent, exponent): (i32, i32)| {
        own.iter().zip(finer).fold(0.0, |most: f64, (own, finer)| {
            let own = own.as_f64().times_two_to(own_exponent);
            most.max((own - finer.times_two_to(exponent)).abs())
        })
    };
    // Relative to the largest share, tiny shares matter too, so they are not scaled down to 0.
    let scaled = difference((exponents.0.saturating_sub(exponents.1), 0));
    let largest = linalg::max_abs(finer);
    let relative = if scaled == 0.0 { 0.0 } else { scaled / largest };
    Errors { absolute: difference(exponents), relative }
}

/// The explainer in double precision, or the sentence that says why there is none.
fn explainer<T: Scalar>(model: &Graph<T>, rule: &RuleInF64) -> Result<Explainer<f64>, String> {
    if is_finest::<T>() {
        return Err("The explanation is in f64 already, and there is no finer type to compare it \
                    with."
            .to_owned());
    }
    let layers: Option<Vec<_>> =
        model.node_list().iter().map(|node| Some(Some(node.layer.to_f64()?))).collect();
    let layers: Vec<Option<Arc<dyn Layer<f64>>>> =
        layers.ok_or_else(|| unconverted_layer(model))?;
    let rule_in_f64 = rule.rule.as_ref().ok_or_else(|| {
        format!("The rule {} has no form in f64, because its to_f64 returns None.", rule.name)
    })?;
    let finer = model
        .rebuilt(&layers)
        .map_err(|error| format!("The model cannot be built in f64: {error}."))?;
    if finer.outputs() != model.outputs() {
        return Err(format!(
            "The model has {} outputs in f64 instead of {}, because to_f64 of one of its layers \
             returns another layer.",
            finer.outputs(),
            model.outputs()
        ));
    }
    finer
        .explainer(rule_in_f64)
        .map_err(|error| format!("The rule {} cannot be used in f64: {error}.", rule.name))
}

/// The sentence about the first layer that has no form in double precision.
fn unconverted_layer<T: Scalar>(model: &Graph<T>) -> String {
    match model.nodes().find(|node| node.layer.to_f64().is_none()) {
        Some(node) => format!(
            "Layer '{}' ({}) has no form in f64, because its to_f64 returns None.",
            node.name,
            node.layer.kind()
        ),
        None => "A layer has no form in f64.".to_owned(),
    }
}
