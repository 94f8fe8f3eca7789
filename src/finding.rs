//! Findings: what can make an explanation misleading.

use std::fmt;

/// The kinds of [`Finding`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The model ends with a softmax, so its logits are explained.
    SoftmaxLast,
    /// The model ends with a sigmoid, so its logits are explained.
    SigmoidLast,
    /// An activation is not 0 at 0, so relevance can have the wrong sign after passing through it.
    NonzeroAtZero,
    /// A rule gives relevance to units that an activation sets to 0.
    DeadUnits,
    /// A normalization is a separate layer.
    UnmergedNorm,
    /// Biases are large compared with what inputs add to the outputs.
    LargeBiases,
    /// Two dense layers follow each other without an activation between them.
    NoActivation,
    /// A sample has values outside the range that a rule assumes, such as the box of
    /// [`ZBox`](crate::ZBox).
    OutsideRange,
    /// A layer was read from an architecture text without some settings that can matter.
    AssumedSettings,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SoftmaxLast => "softmax-last",
            Self::SigmoidLast => "sigmoid-last",
            Self::NonzeroAtZero => "nonzero-at-zero",
            Self::DeadUnits => "dead-units",
            Self::UnmergedNorm => "unmerged-norm",
            Self::LargeBiases => "large-biases",
            Self::NoActivation => "no-activation",
            Self::OutsideRange => "outside-range",
            Self::AssumedSettings => "assumed-settings",
        })
    }
}

/// Something about a model and a rule that can make an explanation misleading.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Finding {
    /// The kind of finding.
    pub code: Code,
    /// The layer's index.
    pub layer: usize,
    /// The layer's name.
    pub name: String,
    /// The layer's kind.
    pub kind: String,
    /// What was found, as a sentence.
    pub sentence: String,
    /// What to do about it.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at layer {} ({}): {} {}",
            self.code, self.name, self.kind, self.sentence, self.advice
        )
    }
}
