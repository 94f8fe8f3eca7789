// The README ends with link definitions that work on a code host. In the rendered documentation,
// the definitions here take precedence because they come first.
//! [adding-a-layer]: guide::adding_a_layer
//! [adding-a-rule]: guide::adding_a_rule
//! [comparison]: guide::comparison
//! [from-python]: guide::from_python
//! [graphs]: guide::graphs
//! [images]: guide::images
//! [inside]: guide::inside_the_network
//! [json]: guide::json
//! [model-card]: guide::model_card
//! [ndarray]: guide::ndarray
//! [numerics]: guide::numerics
//! [performance]: guide::performance
//! [rules-page]: guide::rules
//! [serving]: guide::serving
#![cfg_attr(
    feature = "doc-images",
    doc = embed_doc_image::embed_image!("iris-relevance", "docs/iris-relevance.png"),
    doc = embed_doc_image::embed_image!("mnist-relevance", "docs/mnist-relevance.png")
)]
//!
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
// Some of the linked items exist only if a feature is enabled.
#![cfg_attr(
    not(all(feature = "npz", feature = "onnx", feature = "pytorch", feature = "safetensors")),
    allow(rustdoc::broken_intra_doc_links)
)]

pub mod guide;
#[cfg(feature = "heatmap")]
#[cfg_attr(docsrs, doc(cfg(feature = "heatmap")))]
pub mod heatmap;
#[cfg(feature = "io")]
#[cfg_attr(docsrs, doc(cfg(feature = "io")))]
pub mod io;
pub mod layer;
pub mod rule;

mod buffer;
mod canonize;
mod check;
mod compiled;
mod composite;
mod error;
mod explain;
mod finding;
mod graph;
mod linalg;
mod memory;
mod nearest;
mod relevance;
mod scalar;
mod sequential;
#[cfg(feature = "serde")]
mod serialize;
mod shape;

pub use nalgebra;

// Networks and explainers.
pub use canonize::Merged;
pub use explain::{Explainer, Sweep, Targets, Workspace};
pub use finding::{Code, Finding};
pub use graph::{Graph, GraphBuilder, Inputs, ValueId, Values};
pub use sequential::{Sequential, SequentialBuilder};

// Results.
pub use explain::{
    Contribution, Explanation, Health, LayerHealth, Ledger, LedgerEntry, Path, Trace,
};
pub use relevance::{Accumulation, Cause, Plan};

// Rules.
pub use composite::Composite;
#[doc(inline)]
pub use rule::{
    AbsLrp, AlphaBeta, BiasMode, Epsilon, Flat, Gamma, GammaPlain, Lrp0, Norm, Pass, Relative,
    RelevanceRule, Rule, Sign, WSquare, ZBox, ZPlus,
};

// Layers, and the building blocks of custom layers.
#[doc(inline)]
pub use layer::{
    AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d, AvgPool2d, AxisSoftmax, BatchNorm1d,
    BatchNorm2d, Branch, Celu, Concat, Conv1d, Conv2d, ConvTranspose2d, Dropout, Elu, Embedding,
    Flatten, Gelu, HardSigmoid, HardSwish, HardTanh, Identity, LeakyRelu, Linear, MaxPool1d,
    MaxPool2d, Mish, PRelu, Permute, Relu, Residual, Scaled, Selu, Sigmoid, Silu, Softmax,
    Softplus, Softsign, Tanh, Unflatten, Upsample,
};
#[doc(inline)]
pub use layer::{Bias, Elementwise, Family, Layer, LayerId, LinearMap, Operator, Pair, WeightFn};

// Common types.
pub use error::{Error, Misshapen, UnsupportedNode};
pub use scalar::Scalar;
pub use shape::{Shape, TooManyAxes};
