//! The comparison of an explanation with one in double precision.

use std::fmt;
use std::sync::Arc;

use super::explainer::Explainer;
use super::explanation::Explanation;
use super::health::Errors;
use super::targets::Targets;
use crate::graph::{Feed, Graph};
use crate::layer::Layer;
use crate::linalg;
use crate::relevance::Accumulation;
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;

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
        let finer = match &*explanation.of {
            // The predicted output can differ in double precision.
            Targets::Predicted => {
                explainer.of_outputs(&[explanation.predicted()]).explain_inputs(&sample)
            }
            _ => explainer.explain_inputs(&sample),
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
