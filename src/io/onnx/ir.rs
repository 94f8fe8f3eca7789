//! The intermediate representation (IR): a graph with one node for each ONNX node whose values
//! depend on the model's input, before patterns are replaced and layers are declared.

use std::ops::{Index, IndexMut};
use std::rc::Rc;
use std::sync::Arc;

use super::budget::Budget;
use super::constant::Constant;
use super::expression::Expressions;
use super::operator::Schema;
use super::shapes::shape_of;
use crate::io::tensor::Tensor;
use crate::layer::{Joined, Layer, Operator};
use crate::scalar::Scalar;

/// The maximum number of inputs of one sum or concatenation, and of all of them together.
const INPUTS: usize = 1 << 10;
const ALL_INPUTS: usize = 1 << 15;

/// A value to which a name in the file refers.
#[derive(Debug, Clone)]
pub(super) enum Operand {
    Constant(Constant),
    /// The values of the IR node with this index.
    Node(usize),
}

/// Values that depend on the input, and how they are computed.
#[derive(Debug)]
pub(super) struct IrNode<T: Scalar> {
    /// The index of the ONNX node, or `None` for the input.
    pub place: Option<usize>,
    pub name: String,
    pub operator: Rc<str>,
    pub computation: Computation<T>,
    /// The shape of the values for one sample. It can be unknown after an unsupported node.
    pub dims: Option<Vec<usize>>,
    pub nonnegative: bool,
    /// Whether the values are integers.
    pub whole: bool,
    /// Whether the values should be a constant, but could not be computed, because they depend on
    /// an unknown shape or because the node is unsupported.
    pub uncomputed: bool,
    /// The values as elementwise functions of the values of other nodes.
    pub expressions: Expressions,
}

pub(super) type Layers<T> = Vec<Arc<dyn Layer<T>>>;

/// How a node's values are computed. The numbers are the indices of the nodes that are its inputs.
#[derive(Debug)]
pub(super) enum Computation<T: Scalar> {
    Input,
    /// By layers, one after another. Without layers, the values are those of the input.
    Layers(usize, Layers<T>),
    /// By padding with zeros before and after each spatial axis, which the next convolution or
    /// pooling includes.
    Padding(usize, Vec<[usize; 2]>),
    /// By multiplication by a number. It becomes part of the activation before or after it, or
    /// otherwise a scaling.
    Factor(usize, f64),
    /// By adding a number to each channel. It becomes the bias of the layer before it, or otherwise
    /// a shift.
    Shift(usize, Vec<f64>),
    /// By adding or concatenating the values of several nodes.
    Join(Vec<usize>, Joined),
    /// The node is unsupported, for this reason.
    Unsupported(Vec<usize>, String),
    /// The node comes after an unsupported one, and there is no known reason to reject it as well.
    AfterUnsupported(Vec<usize>),
}

impl<T: Scalar> Computation<T> {
    pub fn inputs(&self) -> &[usize] {
        match self {
            Self::Input => &[],
            Self::Layers(of, _)
            | Self::Padding(of, _)
            | Self::Factor(of, _)
            | Self::Shift(of, _) => std::slice::from_ref(of),
            Self::Join(of, _) | Self::Unsupported(of, _) | Self::AfterUnsupported(of) => of,
        }
    }

    pub fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported(..))
    }
}

/// What an ONNX node becomes.
pub(super) enum Translation<T: Scalar> {
    /// The values of an existing IR node, because the ONNX node changes nothing.
    Alias(usize),
    /// A new IR node, with its values as functions of those of other nodes.
    Node(Computation<T>, Expressions),
}

impl<T: Scalar> From<Computation<T>> for Translation<T> {
    fn from(computation: Computation<T>) -> Self {
        Self::Node(computation, Expressions::new())
    }
}

/// All nodes, and what is known about the file. Each node comes after its inputs.
#[derive(Debug)]
pub(super) struct Ir<T: Scalar> {
    nodes: Vec<IrNode<T>>,
    /// The version of ONNX's operator set.
    pub opset: i64,
    /// The batch size for which the file is made, or 1 if it is not fixed.
    pub batch: usize,
    /// The number of inputs of all sums and concatenations.
    joined: usize,
    pub budget: Budget,
}

impl<T: Scalar> Index<usize> for Ir<T> {
    type Output = IrNode<T>;

    fn index(&self, node: usize) -> &IrNode<T> {
        &self.nodes[node]
    }
}

impl<T: Scalar> IndexMut<usize> for Ir<T> {
    fn index_mut(&mut self, node: usize) -> &mut IrNode<T> {
        &mut self.nodes[node]
    }
}

impl<T: Scalar> Ir<T> {
    /// Starts with the model's input. `dims` is the shape of a sample, and `whole` is true if it
    /// consists of integers.
    pub fn new(
        name: &str,
        opset: i64,
        batch: usize,
        dims: Vec<usize>,
        whole: bool,
        budget: Budget,
    ) -> Self {
        let input = IrNode {
            place: None,
            name: name.to_owned(),
            operator: "".into(),
            computation: Computation::Input,
            dims: Some(dims),
            nonnegative: false,
            whole,
            uncomputed: false,
            expressions: Expressions::new(),
        };
        Self { nodes: vec![input], opset, batch, joined: 0, budget }
    }

    /// Adds a node and finds the shape and sign of its values. A node that does not fit its inputs
    /// becomes an unsupported one.
    pub fn push(
        &mut self,
        place: usize,
        name: &str,
        operator: &Rc<str>,
        mut computation: Computation<T>,
    ) -> usize {
        if let Computation::Join(of, _) = &computation {
            // `infer` compares this total with the limit.
            self.joined += of.len();
        }
        let (mut dims, mut nonnegative) = (None, false);
        match self.infer(&computation) {
            Ok(known) => (dims, nonnegative) = known,
            Err(reason) => {
                computation = Computation::Unsupported(computation.inputs().to_vec(), reason);
            }
        }
        let schema = Schema::<T>::find(operator);
        if dims.is_none() && schema.is_some_and(|schema| schema.keeps_shape) {
            // Assume a shape, so that the nodes after an unsupported one are checked too.
            let of = computation.inputs().iter().filter_map(|&node| self[node].dims.as_ref());
            // With broadcasting, the output is as large as the largest input.
            dims = of.max_by_key(|dims| Tensor::count(dims)).cloned();
        }
        let whole = !schema.is_some_and(Schema::gives_floats)
            && computation.inputs().iter().any(|&node| self[node].whole);
        self.nodes.push(IrNode {
            place: Some(place),
            name: name.to_owned(),
            operator: operator.clone(),
            computation,
            dims,
            nonnegative,
            whole,
            uncomputed: false,
            expressions: Expressions::new(),
        });
        self.nodes.len() - 1
    }

    /// The shape of the values of a computation, and whether they are never negative.
    fn infer(&self, computation: &Computation<T>) -> Result<(Option<Vec<usize>>, bool), String> {
        match computation {
            Computation::Layers(of, layers) => {
                let Some(dims) = &self[*of].dims else { return Ok((None, false)) };
                infer_layers(dims, self[*of].nonnegative, layers)
            }
            Computation::Padding(of, by) => {
                let Some(mut dims) = self[*of].dims.clone() else { return Ok((None, false)) };
                for (dim, [before, after]) in dims.iter_mut().skip(1).zip(by) {
                    *dim = dim
                        .checked_add(*before)
                        .and_then(|dim| dim.checked_add(*after))
                        .ok_or("its shape is too large")?;
                }
                Ok((Some(dims), self[*of].nonnegative))
            }
            Computation::Factor(of, factor) => {
                Ok((self[*of].dims.clone(), self[*of].nonnegative && *factor >= 0.0))
            }
            Computation::Shift(of, _) => Ok((self[*of].dims.clone(), false)),
            Computation::Join(of, joined) => self.infer_join(of, *joined),
            Computation::Input
            | Computation::Unsupported(..)
            | Computation::AfterUnsupported(_) => Ok((None, false)),
        }
    }

    fn infer_join(
        &self,
        of: &[usize],
        joined: Joined,
    ) -> Result<(Option<Vec<usize>>, bool), String> {
        if of.len() > INPUTS {
            return Err(format!("it has {} inputs, but at most {INPUTS} are supported", of.len()));
        }
        if self.joined > ALL_INPUTS {
            return Err(format!(
                "the sums and concatenations of this graph have more than {ALL_INPUTS} inputs in \
                 total, which is unsupported: choose an earlier output, with OnnxFile::output"
            ));
        }
        let all: Option<Vec<&Vec<usize>>> =
            of.iter().map(|&node| self[node].dims.as_ref()).collect();
        let Some(all) = all else { return Ok((None, false)) };
        let mut dims = (*all.first().ok_or("it has no inputs")?).clone();
        let summed = joined == Joined::Summed;
        let fits = |other: &&Vec<usize>| {
            if summed {
                **other == dims
            } else {
                other.len() == dims.len() && other.get(1..) == dims.get(1..)
            }
        };
        if !all.iter().all(fits) {
            return Err(format!(
                "its inputs must have the same shape{}, but have {:?} (without the batch axis)",
                if summed { "" } else { " except for the channels" },
                &all[..all.len().min(8)]
            ));
        }
        if !summed && !dims.is_empty() {
            dims[0] = all
                .iter()
                .try_fold(0_usize, |sum, dims| sum.checked_add(dims[0]))
                .ok_or("its shape is too large")?;
        }
        Ok((Some(dims), of.iter().all(|&node| self[node].nonnegative)))
    }

    /// The shape of a node's values with the batch axis, as in ONNX.
    pub fn full_dims(&self, node: usize) -> Option<Vec<usize>> {
        self[node].dims.as_ref().map(|dims| [&[self.batch], dims.as_slice()].concat())
    }

    /// Marks the nodes that the output depends on.
    pub fn needed(&self, output: usize) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        // Each node comes after its inputs, so one pass backwards is enough.
        needed[output] = true;
        for node in (0..=output).rev() {
            if needed[node] {
                self[node].computation.inputs().iter().for_each(|&input| needed[input] = true);
            }
        }
        needed
    }

    /// For each node, the nodes that read its values and that the output depends on.
    pub fn readers(&self, output: usize) -> Vec<Vec<usize>> {
        let needed = self.needed(output);
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for node in (0..=output).filter(|&node| needed[node]) {
            self[node].computation.inputs().iter().for_each(|&input| readers[input].push(node));
        }
        readers
    }

    /// Follows nodes that only move values back to the node that computes the values.
    pub fn without_moves(&self, mut node: usize) -> usize {
        while let Some(of) = self.moved(node) {
            node = of;
        }
        node
    }

    /// The input of a node that only moves values, or `None` for other nodes.
    pub fn moved(&self, node: usize) -> Option<usize> {
        match &self[node].computation {
            Computation::Layers(of, layers)
                if layers
                    .iter()
                    .all(|layer| matches!(layer.kind(), "Flatten" | "Unflatten" | "Permute")) =>
            {
                Some(*of)
            }
            // After an unsupported node a move has no layers, but errors still depend on which node
            // is last.
            Computation::AfterUnsupported(of) => {
                let moves = Schema::<T>::find(&self[node].operator)?.takes_integers();
                of.first().copied().filter(|_| moves)
            }
            _ => None,
        }
    }

    /// The nodes after `last` that move its values, up to the output, in order.
    pub fn moves_after(&self, last: usize, output: usize) -> Vec<usize> {
        let back = std::iter::successors(Some(output), |&node| self.moved(node));
        let mut moves: Vec<usize> = back.take_while(|&node| node != last).collect();
        moves.reverse();
        moves
    }
}

/// The shape after some layers, and whether the values are never negative.
fn infer_layers<T: Scalar>(
    dims: &[usize],
    mut nonnegative: bool,
    layers: &Layers<T>,
) -> Result<(Option<Vec<usize>>, bool), String> {
    let mut shape = shape_of(dims)?;
    for layer in layers {
        (shape, nonnegative) = match layer.operator(&[shape]).map_err(|e| e.to_string())? {
            Operator::Linear(map) | Operator::Average(map) => {
                if map.inputs() != shape.size() {
                    return Err(format!(
                        "it needs {} values, but its input has {}: check the shape of the model's \
                         input",
                        map.inputs(),
                        shape.size()
                    ));
                }
                (map.output_shape(), nonnegative && map.keeps_sign())
            }
            Operator::Elementwise(function) => (shape, function.is_nonnegative(nonnegative)),
            Operator::Route(route) => (route.output_shape(), nonnegative),
            Operator::Reshape(shape) => (shape, nonnegative),
            Operator::PerChannel(functions) => {
                (shape, functions.iter().all(|function| function.is_nonnegative(nonnegative)))
            }
            _ => (shape, false),
        };
    }
    Ok((Some(shape.dims().to_vec()), nonnegative))
}
