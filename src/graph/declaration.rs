//! What a builder declares: inputs, layers and outputs, whose shapes are not yet known.

use std::ops::Range;
use std::sync::Arc;

use super::Input;
use crate::error::Error;
use crate::layer::Layer;
use crate::scalar::Scalar;

/// All declarations of a graph.
#[derive(Debug, Clone)]
pub(super) struct Declarations<T: Scalar> {
    pub items: Vec<Declaration<T>>,
    /// The names of the outputs, with their positions among the items.
    pub outputs: Vec<(String, usize)>,
    /// Whether each name may be used only once. In a [`Sequential`](crate::Sequential), layers that
    /// share their weights can have the same name.
    pub checks_names: bool,
}

/// What a value is.
#[derive(Debug, Clone)]
pub(super) enum Declaration<T: Scalar> {
    Input(Input<T>),
    Layer(LayerDeclaration<T>),
}

/// A layer, and the positions of the values that it reads among the declared items.
#[derive(Debug, Clone)]
pub(super) struct LayerDeclaration<T: Scalar> {
    pub name: Option<String>,
    pub layer: Arc<dyn Layer<T>>,
    pub inputs: Vec<usize>,
    /// For a node of a graph that was built before: its index, and its branches.
    pub position: Option<Position>,
}

/// The place of a node among the layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub index: usize,
    /// If the node joins branches, the indices of the layers in each branch.
    pub branches: Vec<Range<usize>>,
}

/// The error for declarations that do not fit together.
pub(super) fn invalid(reason: String) -> Error {
    Error::InvalidGraph { reason }
}
