//! Numerical health: the cancellation at each layer, and the rounding error of the shares, measured
//! against double precision.

use std::fmt;
use std::sync::Arc;

use crate::relevance::{Cancellation, RuleAt};
use crate::scalar::Scalar;

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
    pub absolute: f64,
    /// Relative to the target's largest share in double precision.
    pub relative: f64,
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
    /// These are the true shares, with the [`exponent`](crate::Explanation::exponent) applied. For a
    /// weighting of outputs, they are the relevances in [`shares`](crate::Explanation::shares). The
    /// result is `None` if the target is not explained or the error could not be measured; see
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
    ///   [`RelevanceRule::to_f64`](crate::RelevanceRule::to_f64) for the rule, or
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
