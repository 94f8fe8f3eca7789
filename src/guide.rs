//! Guides: importing networks from Python, networks of any structure, extending the crate, and the
//! cost and accuracy of results.
//!
//! The pages are Markdown files of the repository, most of them from `docs/`. Their Rust code is
//! tested.

// Each page ends with link definitions that work on a code host. In the rendered documentation, the
// definitions before the page take precedence because they come first.

/// How to write a layer, in your own crate or in this one.
///
/// [adding-a-rule]: crate::guide::adding_a_rule
/// [graphs]: crate::guide::graphs
///
#[doc = include_str!("../docs/adding-a-layer.md")]
pub mod adding_a_layer {}

/// How to write a rule, in your own crate or in this one.
///
/// [custom-rule]: #the-example
///
#[doc = include_str!("../docs/adding-a-rule.md")]
#[doc = concat!("## The example\n\n```\n", include_str!("../examples/custom_rule.rs"), "```")]
pub mod adding_a_rule {}

/// How to add support for another operator to the ONNX reader.
///
/// [adding-a-layer]: crate::guide::adding_a_layer
/// [from-python]: crate::guide::from_python
///
#[doc = include_str!("../docs/adding-an-onnx-operator.md")]
pub mod adding_an_onnx_operator {}

/// How relprop, zennit and captum differ, and how fast they are.
///
/// [performance]: crate::guide::performance
///
#[doc = include_str!("../docs/comparison.md")]
pub mod comparison {}

/// How to export a model from Python and explain it with one command.
///
/// [graphs]: crate::guide::graphs
///
#[cfg_attr(
    feature = "doc-images",
    doc = embed_doc_image::embed_image!("iris-relevance", "docs/iris-relevance.png")
)]
///
// One of the page's examples reads a safetensors file.
#[cfg_attr(
    any(not(doctest), feature = "safetensors"),
    doc = include_str!("../docs/from-python.md")
)]
pub mod from_python {}

/// Networks of any structure: several inputs, constants, other values to explain, and what they
/// cost.
///
/// [from-python]: crate::guide::from_python
///
#[doc = include_str!("../docs/graphs.md")]
pub mod graphs {}

/// Image networks: layers, batch norms and heatmaps.
///
/// [graphs]: crate::guide::graphs
///
#[cfg_attr(
    feature = "doc-images",
    doc = embed_doc_image::embed_image!("imagenet-relevance", "docs/imagenet-relevance.png")
)]
///
#[doc = include_str!("../docs/images.md")]
pub mod images {}

/// How to examine single units, paths and weights, and how to compare rules.
///
/// [graphs]: crate::guide::graphs
///
#[doc = include_str!("../docs/inside-the-network.md")]
pub mod inside_the_network {}

/// The JSON schema of results, as written by the `serde` feature and by the command line with
/// `--json`.
///
/// [graphs]: crate::guide::graphs
///
#[doc = include_str!("../docs/json.md")]
pub mod json {}

/// How to migrate code from an earlier version.
///
#[doc = include_str!("../docs/migrating.md")]
pub mod migrating {}

/// How to pass ndarray arrays as samples, and get results as arrays, without copying.
///
#[doc = include_str!("../docs/ndarray.md")]
pub mod ndarray {}

/// The digit networks used by the examples: their training, accuracy and licenses.
///
#[doc = include_str!("../examples/mnist/MODEL_CARD.md")]
pub mod model_card {}

/// Where precision is lost, what helps, and how the rounding error is measured.
///
#[doc = include_str!("../docs/numerics.md")]
pub mod numerics {}

/// What is computed (share matrices, their product and the ledger), and all rules with their
/// formulas and sources.
///
/// [adding-a-layer]: crate::guide::adding_a_layer
/// [adding-a-rule]: crate::guide::adding_a_rule
/// [graphs]: crate::guide::graphs
#[cfg_attr(
    feature = "doc-images",
    doc = embed_doc_image::embed_image!("rules", "docs/rules.png")
)]
///
#[doc = include_str!("../docs/rules.md")]
pub mod rules {}

/// How to use an explainer in a server: threads, batches and memory.
///
/// [graphs]: crate::guide::graphs
/// [performance]: crate::guide::performance
///
#[doc = include_str!("../docs/serving.md")]
pub mod serving {}

/// Measurements of time and memory, and a comparison of the orders of accumulation.
///
/// [graphs]: crate::guide::graphs
///
#[doc = include_str!("../docs/performance.md")]
pub mod performance {}
