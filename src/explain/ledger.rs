//! The ledger: how all of an output's relevance is distributed.

use std::fmt;

use crate::relevance::Cause;

/// The distribution of one output's relevance over the inputs and the sinks of each layer.
///
/// For every rule, the parts sum to the output, up to rounding:
///
/// ```text
///     Σ_i R_i + Σ_layers (bias + stabilizer + rest + dead + empty + constant) = f_k(x)
/// ```
///
/// Each part is a share times the output, and the shares sum to 1. Sums are computed in double
/// precision. For a weighting of outputs (`Targets::Weighted`), the output is the weighted sum.
///
/// ```
/// use relprop::{Cause, Linear, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let linear = Linear::new(dmatrix![1.0, 2.0], dvector![1.0])?;
/// let model = Sequential::builder().layer(linear).build()?;
/// let ledger = model.explain(&dvector![1.0, 1.0], Rule::Epsilon)?.ledger(0)?;
/// assert_eq!(ledger.output(), 4.0);
/// assert!((ledger.inputs() - 3.0).abs() < 1e-5);
/// assert!((ledger.total(Cause::Bias) - 1.0).abs() < 1e-5);
/// assert!(ledger.imbalance() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    pub(crate) target: usize,
    /// The value that the parts sum to: 1, or the weighted sum.
    pub(crate) whole: f64,
    /// The scale that turns parts into relevance.
    pub(crate) scale: f64,
    pub(crate) inputs: f64,
    pub(crate) inputs_magnitude: f64,
    pub(crate) entries: Vec<LedgerEntry>,
}

/// The relevance absorbed by one sink of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LedgerEntry {
    pub(crate) layer: usize,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) cause: Cause,
    pub(crate) part: f64,
    pub(crate) whole: f64,
    pub(crate) scale: f64,
}

/// A part as a share of the whole, or 0 if the whole is 0.
fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

impl LedgerEntry {
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

    /// The layer's kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Why the sink absorbs relevance.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The share of the output, or 0 for a weighting of outputs that sums to 0.
    #[must_use]
    pub fn share(&self) -> f64 {
        share(self.part, self.whole)
    }

    /// The share times the output.
    #[must_use]
    pub fn relevance(&self) -> f64 {
        self.part * self.scale
    }
}

impl Ledger {
    /// The index of the output, or of the weighting, that this ledger accounts for.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }

    /// The value that is distributed, f_k(x).
    #[must_use]
    pub fn output(&self) -> f64 {
        self.whole * self.scale
    }

    /// The relevance of the inputs, Σ_i R_i.
    #[must_use]
    pub fn inputs(&self) -> f64 {
        self.inputs * self.scale
    }

    /// The entries, one for each sink of each layer.
    #[must_use]
    pub fn entries(&self) -> &[LedgerEntry] {
        &self.entries
    }

    /// The relevance absorbed by all sinks with this cause.
    #[must_use]
    pub fn total(&self, cause: Cause) -> f64 {
        self.entries.iter().filter(|entry| entry.cause == cause).map(LedgerEntry::relevance).sum()
    }

    /// The distinct causes of the entries, in order of first appearance from the first layer on.
    ///
    /// ```
    /// use relprop::{Cause, Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let linear = Linear::new(dmatrix![1.0, 2.0], dvector![1.0])?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let ledger = model.explain(&dvector![1.0, 1.0], Rule::Epsilon)?.ledger(0)?;
    /// assert_eq!(ledger.causes(), [Cause::Bias, Cause::Stabilizer]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    #[must_use]
    pub fn causes(&self) -> Vec<Cause> {
        let mut causes = Vec::new();
        for entry in &self.entries {
            if !causes.contains(&entry.cause) {
                causes.push(entry.cause);
            }
        }
        causes
    }

    /// The output minus all parts, which is the rounding error of the whole explanation.
    #[must_use]
    pub fn rounding(&self) -> f64 {
        (self.whole - self.parts()) * self.scale
    }

    /// The imbalance of the ledger: |1 - Σ shares| / Σ |shares|, over all inputs and sinks.
    #[must_use]
    pub fn imbalance(&self) -> f64 {
        let magnitude =
            self.inputs_magnitude + self.entries.iter().map(|entry| entry.part.abs()).sum::<f64>();
        // Avoids 0 / 0.
        (self.whole - self.parts()).abs() / magnitude.max(f64::MIN_POSITIVE)
    }

    fn parts(&self) -> f64 {
        self.inputs + self.entries.iter().map(|entry| entry.part).sum::<f64>()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bias => "bias",
            Self::Stabilizer => "stabilizer",
            Self::Rest => "rest",
            Self::Dead => "dead",
            Self::Empty => "empty",
            Self::Constant => "constant",
        })
    }
}

impl fmt::Display for Ledger {
    /// Prints one line for the inputs, one for each sink with relevance, one for the rounding
    /// error, and one for the output, which is their sum.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |v: f64| {
            if v != 0.0 && v.abs() < 1e-4 { format!("{v:.1e}") } else { format!("{v:.6}") }
        };
        let mut line = |name: &str, v: f64, share: f64| {
            writeln!(f, "  {name:<28} {:>14} {:>9.2} %", number(v), 100.0 * share)
        };
        line("inputs", self.inputs(), share(self.inputs, self.whole))?;
        for entry in self.entries.iter().filter(|entry| entry.part != 0.0) {
            line(
                &format!("layer {} {} {}", entry.name, entry.kind, entry.cause),
                entry.relevance(),
                entry.share(),
            )?;
        }
        line("rounding", self.rounding(), share(self.whole - self.parts(), self.whole))?;
        write!(f, "  {:<28} {:>14.6}", format!("= output {}", self.target), self.output())
    }
}
