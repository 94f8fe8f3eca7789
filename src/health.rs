//! Numerical health: the cancellation at each layer, and a bound on the rounding error of the
//! shares.

use std::fmt;

use crate::accumulate::Rounded;
use crate::explanation::Explanation;
use crate::scalar::Scalar;

/// The numerical accuracy of an explanation.
///
/// The cancellation at output j of a linear layer is κ_j = Σ_i |numerator_ij| / |S(total_j)|. It is
/// 1 if nothing cancels. At 1000, the total has lost three digits, and shares of magnitude 1000
/// cancel each other. Only outputs that receive relevance are considered, and κ is only defined for
/// rules that divide by a total.
///
/// The bound on the rounding error is a worst case, computed alongside the shares (see
/// [numerics](crate::guide::numerics)). No share differs from the result of exact arithmetic, with
/// the same weights and inputs, by more than the bound. Actual errors are far smaller, because
/// errors of different sign cancel.
///
/// For an example, see [`Explainer::with_health`](crate::Explainer::with_health).
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    layers: Vec<LayerHealth>,
    targets: Vec<TargetHealth>,
    digits: u32,
}

/// The cancellation in one linear layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LayerHealth {
    layer: usize,
    rule: String,
    worst: f64,
    worst_output: usize,
    median: f64,
}

#[derive(Debug, Clone, PartialEq)]
struct TargetHealth {
    target: usize,
    bound: Option<f64>,
    largest: f64,
}

impl LayerHealth {
    /// The layer's index.
    #[must_use]
    pub fn layer(&self) -> usize {
        self.layer
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
        rounded: &Rounded<T>,
        rules: &[(usize, String)],
        explanation: &Explanation<T>,
    ) -> Self {
        let layers = rules.iter().zip(&rounded.kappas).map(|((layer, rule), kappas)| {
            let mut kappas: Vec<(f64, usize)> =
                kappas.iter().map(|&(output, kappa)| (kappa.as_f64(), output)).collect();
            kappas.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (worst, worst_output) = kappas.last().copied().unwrap_or((1.0, 0));
            let median = kappas.get(kappas.len() / 2).map_or(1.0, |(kappa, _)| *kappa);
            LayerHealth { layer: *layer, rule: rule.clone(), worst, worst_output, median }
        });
        let scale = f64::from(explanation.exponent()).exp2();
        let targets =
            explanation.targets().zip(explanation.shares().column_iter()).enumerate().map(
                |(column, (target, shares))| {
                    let bound = rounded.bounds.as_ref().map(|bounds| bounds[column].as_f64());
                    TargetHealth {
                        target,
                        bound,
                        largest: shares
                            .iter()
                            .fold(0.0, |max: f64, share| max.max(share.as_f64().abs()))
                            * scale,
                    }
                },
            );
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 7 or 15
        let digits = -T::epsilon().as_f64().log10() as u32;
        Self { layers: layers.collect(), targets: targets.collect(), digits }
    }

    /// The cancellation in each linear layer, in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerHealth] {
        &self.layers
    }

    /// The targets that the bounds are for.
    #[cfg(feature = "serde")]
    pub(crate) fn targets(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|health| health.target)
    }

    /// A bound on the rounding error of every share of a target.
    ///
    /// The result is `None` if the target is not explained or no bound is known.
    ///
    /// No bound is known:
    ///
    /// - if the network has branches or layers that select values, such as max pooling,
    /// - if a total without a stabilizer ([`Lrp0`](crate::Lrp0)) might be 0 in exact arithmetic,
    /// - after an activation without [`steepest`](crate::Elementwise::steepest),
    /// - if a rule transforms the inputs of a layer other than the first with a custom function,
    /// - if a rule divides some parts by the total of other parts, or
    /// - if the shares leave the number type's range.
    #[must_use]
    pub fn bound(&self, target: usize) -> Option<f64> {
        self.targets.iter().find(|health| health.target == target)?.bound
    }

    /// The [`bound`](Self::bound), relative to the target's largest share.
    #[must_use]
    pub fn relative_bound(&self, target: usize) -> Option<f64> {
        let health = self.targets.iter().find(|health| health.target == target)?;
        health.bound.map(|bound| {
            if bound == 0.0 { 0.0 } else { bound / health.largest.max(f64::MIN_POSITIVE) }
        })
    }
}

impl fmt::Display for Health {
    /// Prints one line for each linear layer, one for the bound, and advice if there is any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Above this cancellation, a layer's shares are mostly noise.
        const CANCELS: f64 = 1e3;
        writeln!(f, "cancellation: sum of magnitudes / total (1: nothing cancels)")?;
        for LayerHealth { layer, rule, worst, worst_output, median } in &self.layers {
            writeln!(
                f,
                "  layer {layer:<4} {rule:<28} median {median:>9.3}  worst {worst:>9.3e} at \
                 output {worst_output}"
            )?;
        }
        let relative: Option<Vec<f64>> =
            self.targets.iter().map(|health| self.relative_bound(health.target)).collect();
        let bound = relative.map(|all| all.into_iter().fold(0.0, f64::max));
        match bound {
            Some(bound) => write!(
                f,
                "rounding: no share is off by more than {bound:.1e} of its target's largest"
            )?,
            None => write!(f, "rounding: no bound is known")?,
        }
        let worst = self.layers.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
        if let Some(LayerHealth { layer, worst, .. }) =
            worst.filter(|health| health.worst > CANCELS)
        {
            write!(
                f,
                "\nadvice: at layer {layer} shares of {worst:.0e} cancel; raise epsilon there, or \
                 use Gamma"
            )?;
        }
        if self.digits < 10 && bound.is_none_or(|bound| bound > 1e-2) {
            write!(f, "\nadvice: use f64 for reliable digits")?;
        }
        Ok(())
    }
}
