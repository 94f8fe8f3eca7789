//! Longer texts: how to bring a network from Python, how to add to the crate, what results cost and
//! how exact they are.
//!
//! The pages are those of `docs/`, and their Rust code is run by the tests.

// On a code host a page's links are the paths at its end. Here they are the ones before it: the
// first definition of a link wins.

/// How to write a layer of your own, outside the crate or in it.
///
/// [adding-a-rule]: crate::guide::adding_a_rule
///
#[doc = include_str!("../docs/adding-a-layer.md")]
pub mod adding_a_layer {}

/// How to write a rule of your own, outside the crate or in it.
///
/// [custom-rule]: #the-example
///
#[doc = include_str!("../docs/adding-a-rule.md")]
#[doc = concat!("## The example\n\n```\n", include_str!("../examples/custom_rule.rs"), "```")]
pub mod adding_a_rule {}

/// How to make the reader of ONNX models understand another operator.
///
/// [adding-a-layer]: crate::guide::adding_a_layer
/// [from-python]: crate::guide::from_python
///
#[doc = include_str!("../docs/adding-an-onnx-operator.md")]
pub mod adding_an_onnx_operator {}

/// How relprop, zennit and captum differ, and how long each takes.
///
/// [performance]: crate::guide::performance
///
#[doc = include_str!("../docs/comparison.md")]
pub mod comparison {}

/// How to export a model from Python and explain it by one command.
///
#[cfg_attr(feature = "doc-images", doc = embed_doc_image::embed_image!("iris-relevance", "docs/iris-relevance.png"))]
///
// One of its examples reads a safetensors file.
#[cfg_attr(any(not(doctest), feature = "safetensors"), doc = include_str!("../docs/from-python.md"))]
pub mod from_python {}

/// Networks for images: layers, batch norms, pictures of relevance.
///
#[cfg_attr(feature = "doc-images", doc = embed_doc_image::embed_image!("imagenet-relevance", "docs/imagenet-relevance.png"))]
///
#[doc = include_str!("../docs/images.md")]
pub mod images {}

/// How to ask about a unit, a path or a weight, and to compare rules.
///
#[doc = include_str!("../docs/inside-the-network.md")]
pub mod inside_the_network {}

/// What results look like to a program: the schema that the feature `serde` writes, and the command
/// line with `--json`.
///
#[doc = include_str!("../docs/json.md")]
pub mod json {}

/// What a user of an earlier version writes instead.
///
#[doc = include_str!("../docs/migrating.md")]
pub mod migrating {}

/// How arrays of ndarray become samples, and results arrays, without a copy.
///
#[doc = include_str!("../docs/ndarray.md")]
pub mod ndarray {}

/// The networks of digits that come with the examples: how they were trained, how good they are,
/// and the licenses.
///
#[doc = include_str!("../examples/mnist/MODEL_CARD.md")]
pub mod model_card {}

/// Where digits are lost, what helps, and a bound of the rounding error.
///
#[doc = include_str!("../docs/numerics.md")]
pub mod numerics {}

/// What is computed: share matrices, their product, the ledger; and all rules with their formulas
/// and sources.
///
/// [adding-a-layer]: crate::guide::adding_a_layer
/// [adding-a-rule]: crate::guide::adding_a_rule
#[cfg_attr(feature = "doc-images", doc = embed_doc_image::embed_image!("rules", "docs/rules.png"))]
///
#[doc = include_str!("../docs/rules.md")]
pub mod rules {}

/// How a server holds an explainer: threads, batches, memory.
///
/// [performance]: crate::guide::performance
///
#[doc = include_str!("../docs/serving.md")]
pub mod serving {}

/// What was measured: time, memory, and the orders of accumulation beside each other.
///
#[doc = include_str!("../docs/performance.md")]
pub mod performance {}
