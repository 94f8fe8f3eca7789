#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "heatmap")]
#[cfg_attr(docsrs, doc(cfg(feature = "heatmap")))]
pub mod heatmap;
#[cfg(feature = "io")]
#[cfg_attr(docsrs, doc(cfg(feature = "io")))]
pub mod io;
pub mod layer;
pub mod rule;

mod accumulate;
mod buffer;
mod canonize;
mod check;
mod composite;
mod error;
mod explainer;
mod explanation;
mod health;
mod ledger;
mod linalg;
mod nearest;
mod scalar;
mod sequential;
mod shape;
mod sweep;
mod targets;
mod trace;

pub use nalgebra;

pub use accumulate::{Accumulation, Cause, Plan};
pub use canonize::Merged;
pub use check::{Code, Finding};
pub use composite::Composite;
pub use error::{Error, Misshapen, UnsupportedNode};
pub use explainer::{Explainer, Workspace};
pub use explanation::{Contribution, Explanation};
pub use health::{Health, LayerHealth};
pub use layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, BatchNorm1d, BatchNorm2d, Bias, Branch, Celu, Concat, Conv1d,
    Conv2d, ConvTranspose2d, Dropout, Elementwise, Elu, Flatten, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, Layer,
    LeakyRelu, Linear, LinearMap, MaxPool1d, MaxPool2d, Mish, Operator, Permute, Relu, Residual, Scaled, Selu, Sigmoid, Silu,
    Softmax, Softplus, Softsign, Tanh, Unflatten, Upsample, WeightFn,
};
pub use ledger::{Ledger, LedgerEntry};
pub use rule::{
    AlphaBeta, BiasMode, Epsilon, Flat, Gamma, GammaPlain, Lrp0, Norm, Pass, Relative, RelevanceRule, Rule, WSquare, ZBox, ZPlus,
};
pub use scalar::Scalar;
pub use sequential::{Sequential, SequentialBuilder};
pub use shape::Shape;
pub use sweep::Sweep;
pub use targets::Targets;
pub use trace::{Path, Trace};
