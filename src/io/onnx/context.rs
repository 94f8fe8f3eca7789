//! What a function that translates a node knows about it.

use std::sync::Arc;

use super::constant::{Constant, Elements};
use super::ir::{Computation, Ir, Layers, Operand, Translation};
use super::proto::NodeProto;
use crate::error::Error;
use crate::layer::Layer;
use crate::scalar::Scalar;

/// An ONNX node with its operands.
pub(super) struct Context<'a, T: Scalar> {
    pub ir: &'a Ir<T>,
    pub node: &'a NodeProto,
    /// The name of the operator, with its domain unless that is ONNX's own.
    pub operator: &'a str,
    /// The node's inputs. An optional input that is absent is `None`.
    pub operands: &'a [Option<Operand>],
    /// The IR nodes among the operands. There is at least one.
    pub inputs: &'a [usize],
    /// The shape of the first of them for one sample.
    pub dims: &'a [usize],
    /// Whether another node reads the node's output.
    pub is_read: bool,
}

/// What an operator's function returns. The error is the reason for rejecting the node.
pub(super) type TranslationResult<T> = Result<Translation<T>, String>;

/// The text of an error, as the reason for rejecting a node.
#[allow(clippy::needless_pass_by_value)] // for use in map_err
pub(super) fn reason(error: Error) -> String {
    error.to_string()
}

impl<T: Scalar> Context<'_, T> {
    /// The first operand that depends on the sample.
    pub fn input(&self) -> usize {
        self.inputs[0]
    }

    /// The node becomes one layer.
    #[allow(clippy::unnecessary_wraps)] // the last expression of an operator's function
    pub fn layer(&self, layer: impl Layer<T> + 'static) -> TranslationResult<T> {
        self.layers(vec![Arc::new(layer)])
    }

    /// The node becomes these layers, one after another.
    #[allow(clippy::unnecessary_wraps)] // the last expression of an operator's function
    pub fn layers(&self, layers: Layers<T>) -> TranslationResult<T> {
        Ok(Computation::Layers(self.input(), layers).into())
    }

    pub fn constant(&self, place: usize) -> Option<&Constant> {
        if let Some(Some(Operand::Constant(constant))) = self.operands.get(place) {
            Some(constant)
        } else {
            None
        }
    }

    pub fn is_given(&self, place: usize) -> bool {
        self.operands.get(place).is_some_and(Option::is_some)
    }

    /// The numbers of an operand that must be a constant.
    pub fn numbers(&self, place: usize, what: &str) -> Result<Vec<T>, String> {
        self.convert(self.constant(place), what)
    }

    /// The numbers of an optional operand that must be a constant if it is given.
    pub fn optional(&self, place: usize, what: &str) -> Result<Option<Vec<T>>, String> {
        if self.is_given(place) { self.numbers(place, what).map(Some) } else { Ok(None) }
    }

    /// The numbers of a constant, converted for a layer.
    pub fn convert(&self, constant: Option<&Constant>, what: &str) -> Result<Vec<T>, String> {
        let Some(constant @ Constant { elements: Elements::Floats(tensor), .. }) = constant else {
            return Err(format!("its {what} must be constant floating-point numbers"));
        };
        // Before the conversion, which allocates this many numbers.
        self.ir.budget.keep(constant.count())?;
        tensor.convert(what).map_err(reason)
    }

    pub fn ints(&self, place: usize) -> Option<&[i64]> {
        self.constant(place).and_then(Constant::as_ints)
    }

    /// The number of spatial axes, 1 or 2.
    pub fn rank(&self) -> Result<usize, String> {
        match self.dims.len() {
            2 | 3 => Ok(self.dims.len() - 1),
            axes => Err(format!(
                "it is supported only for sequences and images, but its values have {axes} axes \
                 (without the batch axis)"
            )),
        }
    }

    /// An attribute with a number for each spatial axis.
    pub fn sizes(&self, name: &str, rank: usize, default: usize) -> Result<[usize; 2], String> {
        let wrong = || format!("its {name} must have {rank} non-negative numbers");
        match self.node.ints(name) {
            None => Ok([default; 2]),
            Some(sizes) if sizes.len() == rank => pair(sizes).ok_or_else(wrong),
            Some(_) => Err(wrong()),
        }
    }
}

/// Converts one or two sizes to sizes for two axes.
pub(super) fn pair(sizes: &[i64]) -> Option<[usize; 2]> {
    let size = |&size: &i64| usize::try_from(size).ok();
    match sizes {
        [both] => Some([size(both)?; 2]),
        [height, width] => Some([size(height)?, size(width)?]),
        _ => None,
    }
}
