//! The crate's large functions, compiled once for each number type, as part of this crate.
//!
//! A generic function is compiled again in every crate that calls it. The functions in this table
//! are compiled with this crate, for `f32` and for `f64`, and public functions call them through
//! the table. As a result, programs, tests and examples do not compile the engine again, and an
//! optimization level that is set for this crate applies to the engine.
//!
//! A new large function gets a field here, and its body moves to a function named `…_inner`.

use std::cell::RefCell;
use std::thread::LocalKey;

use nalgebra::{DMatrix, DVector};

use crate::canonize::Merged;
use crate::error::Error;
use crate::explain::{Explainer, Explanation, Ledger, Path, Sweep, Targets, Trace, Workspace};
use crate::finding::Finding;
use crate::graph::{Feed, Graph, GraphBuilder};
use crate::layer::LayerId;
use crate::linalg::{self, Kernel, Scratch};
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};

#[cfg(feature = "io")]
use crate::{io::StateDict, io::StateDictBuilder, shape::Shape};

/// The bodies of the large public functions.
#[allow(clippy::type_complexity)] // the types are the functions' signatures
pub struct Compiled<T: Scalar> {
    pub(crate) run: fn(Kernel<'_, '_, T>),
    /// The memory in which each thread prepares products.
    pub(crate) scratch: &'static LocalKey<RefCell<Scratch<T>>>,
    pub(crate) build: fn(SequentialBuilder<T>) -> Result<Sequential<T>, Error>,
    pub(crate) build_graph: fn(GraphBuilder<T>) -> Result<Graph<T>, Error>,
    pub(crate) forward: fn(&Graph<T>, &Feed<'_, T>) -> Result<Vec<T>, Error>,
    pub(crate) canonize: fn(&Graph<T>) -> Result<(Graph<T>, Vec<Merged>), Error>,
    pub(crate) check: fn(&Graph<T>, &dyn RelevanceRule<T>) -> Result<Vec<Finding>, Error>,
    pub(crate) explainer: fn(&Graph<T>, &dyn RelevanceRule<T>, bool) -> Result<Explainer<T>, Error>,
    pub(crate) targets: fn(Explainer<T>, Targets<T>) -> Result<Explainer<T>, Error>,
    pub(crate) with_health: fn(Explainer<T>) -> Explainer<T>,
    pub(crate) explain_into:
        for<'w> fn(&Explainer<T>, &[T], &'w mut Workspace<T>) -> Result<&'w Explanation<T>, Error>,
    pub(crate) explain_batch_into: for<'w> fn(
        &Explainer<T>,
        &[T],
        &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error>,
    pub(crate) explain_feed_into: for<'w> fn(
        &Explainer<T>,
        &Feed<'_, T>,
        &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error>,
    pub(crate) explain_by_all: fn(&Sweep<T>, &Feed<'_, T>) -> Result<Vec<Explanation<T>>, Error>,
    pub(crate) trace: fn(&Explainer<T>, &Feed<'_, T>) -> Result<Trace<T>, Error>,
    pub(crate) prefix: fn(&Trace<T>, LayerId<'_>) -> Result<DMatrix<T>, Error>,
    pub(crate) through: fn(&Trace<T>, LayerId<'_>, &[usize], usize) -> Result<DVector<T>, Error>,
    pub(crate) of_weights: fn(&Trace<T>, LayerId<'_>, usize) -> Result<DMatrix<T>, Error>,
    pub(crate) paths: fn(&Trace<T>, usize, usize) -> Result<Vec<Path<T>>, Error>,
    pub(crate) ledger: fn(&Explanation<T>, usize) -> Result<Ledger, Error>,
    #[cfg(feature = "io")]
    pub(crate) model_of: fn(&StateDict, &str, Option<Shape>) -> Result<Sequential<T>, Error>,
    #[cfg(feature = "io")]
    pub(crate) model_of_layers: fn(StateDictBuilder<'_, T>) -> Result<Sequential<T>, Error>,
    #[cfg(feature = "safetensors")]
    pub(crate) to_safetensors: fn(&Sequential<T>) -> Result<Vec<u8>, Error>,
    #[cfg(feature = "onnx")]
    pub(crate) graph_of_onnx: fn(&crate::io::OnnxFile) -> Result<Graph<T>, Error>,
}

thread_local! {
    static SCRATCH_F32: RefCell<Scratch<f32>> = RefCell::default();
    static SCRATCH_F64: RefCell<Scratch<f64>> = RefCell::default();
}

/// The functions for `f32`.
pub static F32: Compiled<f32> = Compiled::with(&SCRATCH_F32);

/// The functions for `f64`.
pub static F64: Compiled<f64> = Compiled::with(&SCRATCH_F64);

impl<T: Scalar> Compiled<T> {
    const fn with(scratch: &'static LocalKey<RefCell<Scratch<T>>>) -> Self {
        Self {
            run: linalg::dispatch,
            scratch,
            build: SequentialBuilder::build_inner,
            build_graph: GraphBuilder::build_inner,
            forward: Graph::forward_inner,
            canonize: Graph::canonize_inner,
            check: Graph::check_inner,
            explainer: Graph::explainer_inner,
            targets: Explainer::targets_inner,
            with_health: Explainer::with_health_inner,
            explain_into: Explainer::explain_into_inner,
            explain_batch_into: Explainer::explain_batch_into_inner,
            explain_feed_into: Explainer::explain_feed_into_inner,
            explain_by_all: Sweep::explain_inner,
            trace: Explainer::trace_inner,
            prefix: Trace::prefix_inner,
            through: Trace::through_inner,
            of_weights: Trace::of_weights_inner,
            paths: Trace::paths_inner,
            ledger: Explanation::ledger_inner,
            #[cfg(feature = "io")]
            model_of: StateDict::model_of_inner,
            #[cfg(feature = "io")]
            model_of_layers: |builder| builder.build_inner(),
            #[cfg(feature = "safetensors")]
            to_safetensors: Sequential::to_safetensors_inner,
            #[cfg(feature = "onnx")]
            graph_of_onnx: crate::io::OnnxFile::to_graph_inner,
        }
    }
}
