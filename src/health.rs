//! Numerical health: how much cancels at each layer, and how far rounding can have moved the
//! shares.

use std::fmt;

use crate::accumulate::Rounded;
use crate::explanation::Explanation;
use crate::scalar::Scalar;

/// How far the numbers of an explanation can be trusted.
///
/// At each linear layer the gauge of an output is κ_j = Σ_i |numerator_ij| / |S(total_j)|: 1 where
/// nothing cancels, 1000 where three digits of the total are lost and shares of a thousand cancel
/// each other. Only outputs count that relevance comes to, and only rules that divide by a total
/// have a gauge.
///
/// The bound is one of the worst case, made beside the numbers
/// ([numerics](crate::guide::numerics)): no share is further from what exact arithmetic would give
/// with the same weights and inputs. Real errors are far below it, as signs cancel.
///
/// [`Explainer::with_health`](crate::Explainer::with_health) has an example.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    layers: Vec<LayerHealth>,
    targets: Vec<TargetHealth>,
    digits: u32,
}

/// How much cancels in one linear layer.
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

    /// The largest κ of an output that relevance comes to; 1 where there is none.
    #[must_use]
    pub fn worst(&self) -> f64 {
        self.worst
    }

    /// Which output that is.
    #[must_use]
    pub fn worst_output(&self) -> usize {
        self.worst_output
    }

    /// The median κ of these outputs.
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

    /// The gauges of the linear layers, in order.
    #[must_use]
    pub fn layers(&self) -> &[LayerHealth] {
        &self.layers
    }

    /// The targets that the bounds are of.
    #[cfg(feature = "serde")]
    pub(crate) fn targets(&self) -> impl Iterator<Item = usize> + '_ {
        self.targets.iter().map(|health| health.target)
    }

    /// What no share of this target can be off by; `None` where nothing bounds it, or for a target
    /// that is not explained.
    ///
    /// There is no bound where a total without a stabilizer ([`Lrp0`](crate::Lrp0)) might be 0 if
    /// it were not for rounding, after an activation without
    /// [`steepest`](crate::Elementwise::steepest), for a rule that transforms the inputs by a
    /// function of its own after the first layer or divides by the total of other parts, and where
    /// the shares leave the number type's range.
    #[must_use]
    pub fn bound(&self, target: usize) -> Option<f64> {
        self.targets.iter().find(|health| health.target == target)?.bound
    }

    /// The bound as a part of the target's largest share.
    #[must_use]
    pub fn relative_bound(&self, target: usize) -> Option<f64> {
        let health = self.targets.iter().find(|health| health.target == target)?;
        health.bound.map(|bound| {
            if bound == 0.0 { 0.0 } else { bound / health.largest.max(f64::MIN_POSITIVE) }
        })
    }
}

impl fmt::Display for Health {
    /// A line for each linear layer, one for the bound, and what would help.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Above it, a layer's shares are mostly noise around each other.
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
            None => write!(f, "rounding: nothing bounds it here")?,
        }
        let worst = self.layers.iter().max_by(|a, b| a.worst.total_cmp(&b.worst));
        if let Some(LayerHealth { layer, worst, .. }) =
            worst.filter(|health| health.worst > CANCELS)
        {
            write!(
                f,
                "\nadvice: at layer {layer} shares of {worst:.0e} cancel; raise epsilon there, or \
                 take Gamma"
            )?;
        }
        if self.digits < 10 && bound.is_none_or(|bound| bound > 1e-2) {
            write!(f, "\nadvice: to be sure of the digits, explain in f64")?;
        }
        Ok(())
    }
}
