//! Operations: what a node does with the values that it reads. This is the only file that
//! distinguishes between all families of operators.
//!
//! A node that reads several values gets them as one: for each sample, one value after another.

use std::sync::Arc;

use super::Node;
use super::estimate::Estimate;
use super::pass::{ForwardPass, Left};
use crate::buffer::Buffer;
use crate::error::Error;
use crate::layer::{
    self, Elementwise, Family, Functions, Joined, LinearMap, Lookup, Operator, Route, SoftmaxOver,
};
use crate::memory::check_possible;
use crate::scalar::Scalar;
use crate::shape::{LARGEST, Shape};

/// What a node does.
#[derive(Debug)]
pub(crate) enum Operation<T: Scalar> {
    Linear(LinearNode<T>),
    Elementwise(Functions<T>),
    /// The same values in another shape. This includes a concatenation.
    Reshape,
    Selection(Selection<T>),
    Lookup(Arc<Lookup<T>>),
    /// The function at the end that turns logits into probabilities. Explanations skip it.
    Ending(Ending<T>),
}

/// A linear map to which a rule is applied.
#[derive(Debug)]
pub(crate) struct LinearNode<T: Scalar> {
    pub map: Arc<dyn LinearMap<T>>,
    pub input: Shape,
    pub family: Family,
    /// Whether the map's inputs are nonnegative for every sample.
    pub nonnegative: bool,
}

/// Outputs that are copies of inputs.
#[derive(Debug)]
pub(crate) struct Selection<T: Scalar> {
    route: Arc<dyn Route<T>>,
    inputs: usize,
    outputs: usize,
    /// The input of each output, if it is the same for all samples.
    pub fixed: Option<Arc<[usize]>>,
}

/// A function that turns logits into probabilities.
#[derive(Debug)]
pub(crate) enum Ending<T: Scalar> {
    Softmax(SoftmaxOver),
    Link(Functions<T>),
}

impl<T: Scalar> Operation<T> {
    /// The operation of an operator for values of these shapes, and the shape of its outputs.
    /// `nonnegative` tells whether all values are nonnegative for every sample.
    ///
    /// # Errors
    /// If the operator contradicts itself or the shapes, as a custom layer's can.
    pub fn of(
        operator: Operator<T>,
        (kind, family): (&str, Option<Family>),
        shapes: &[Shape],
        nonnegative: bool,
    ) -> Result<(Self, Shape), Error> {
        let inputs = shapes.iter().map(Shape::size).fold(0, usize::saturating_add);
        if inputs > LARGEST {
            let expected = format!("at most {LARGEST} values");
            return Err(Error::shape(kind, shapes[0], expected));
        }
        let input = if let [only] = shapes { *only } else { inputs.into() };
        let one = || layer::only_input(kind, shapes);
        let linear = |map: Arc<dyn LinearMap<T>>, usual| {
            check_map(kind, &*map)?;
            if map.inputs() != inputs {
                return Err(Error::shape(kind, input, format!("{} inputs", map.inputs())));
            }
            let (output, family) = (map.output_shape(), family.unwrap_or(usual));
            Ok((Self::Linear(LinearNode { map, input, family, nonnegative }), output))
        };
        match operator {
            Operator::Linear(map) => linear(map, Family::Dense),
            Operator::Average(map) => linear(map, Family::Average),
            Operator::Sum => {
                let shape = joined_shape(kind, shapes, Joined::Summed)?;
                linear(layer::sum(shapes.len(), shape), Family::Sum)
            }
            Operator::Concat => {
                Ok((Self::Reshape, joined_shape(kind, shapes, Joined::Concatenated)?))
            }
            Operator::Elementwise(function) => {
                Ok((Self::Elementwise(Functions::alike(function)), one()?))
            }
            Operator::PerChannel(functions) => {
                let shape = one()?;
                Ok((Self::Elementwise(Functions::per_channel(functions, kind, shape)?), shape))
            }
            Operator::Reshape(output) if output.size() != inputs => {
                let expected =
                    format!("{} values, as many as its output {output} has", output.size());
                Err(Error::shape(kind, input, expected))
            }
            Operator::Reshape(output) => Ok((Self::Reshape, output)),
            Operator::Route(route) => {
                let output = route.output_shape();
                if output.size() > LARGEST {
                    let expected = format!("inputs that give 1 to {LARGEST} outputs");
                    return Err(Error::shape(kind, input, expected));
                }
                let mut selection =
                    Selection { inputs, outputs: output.size(), fixed: None, route };
                if selection.route.is_fixed() {
                    let what = || format!("the route of {kind} with outputs {output}");
                    check_possible::<usize>(output.size(), what)?;
                    check_possible::<T>(inputs, what)?;
                    // Unset indices are out of range, so a layer that does not set all is found.
                    let mut from = vec![usize::MAX; output.size()];
                    selection.route.route(&vec![T::zero(); inputs], &mut from);
                    selection.check(kind, &from)?;
                    selection.fixed = Some(from.into());
                }
                Ok((Self::Selection(selection), output))
            }
            Operator::Lookup(lookup) => {
                let output = lookup.output_shape(one()?)?;
                Ok((Self::Lookup(lookup), output))
            }
            Operator::Softmax(axis) => {
                let shape = one()?;
                let softmax = SoftmaxOver::new(axis, kind, shape)?;
                Ok((Self::Ending(Ending::Softmax(softmax)), shape))
            }
            // Branches become several nodes before this is called, unless a layer with branches
            // returns other branches the second time.
            Operator::Branches(..) => {
                Err(Error::shape(kind, input, "the same operator each time it is asked for"))
            }
        }
    }

    /// The values of the outputs for some samples.
    pub fn compute(
        &self,
        number: usize,
        node: &Node<T>,
        z: Buffer<T>,
        pass: &mut ForwardPass<'_, T>,
    ) -> Result<Buffer<T>, Error> {
        match self {
            Self::Linear(linear) => linear.compute(number, node, z, pass),
            Self::Elementwise(functions) => {
                let mut values = z;
                functions.apply(&mut values);
                node.check(&values)?;
                pass.leave(number, Left::Values)?;
                Ok(values)
            }
            Self::Selection(selection) => selection.compute(number, node, z, pass),
            // A reshape moves nothing in memory. The probabilities follow at the end.
            Self::Reshape | Self::Ending(_) => {
                pass.leave(number, Left::Values)?;
                Ok(z)
            }
            // A lookup reads whole numbers, which the pass handles itself.
            Self::Lookup(_) => Ok(z),
        }
    }

    /// Whether the outputs are nonnegative for every sample if the inputs are.
    pub fn is_nonnegative(&self, inputs: bool) -> bool {
        match self {
            // With learned weights of both signs, nothing is known until the next activation.
            Self::Linear(linear) => inputs && linear.map.keeps_sign(),
            Self::Elementwise(functions) => functions.is_nonnegative(inputs),
            Self::Reshape | Self::Selection(_) => inputs,
            Self::Lookup(_) => false,
            // Probabilities are never negative.
            Self::Ending(_) => true,
        }
    }

    /// What is known about the outputs without a sample.
    pub fn estimate(&self, node: &Node<T>, z: Estimate<T>) -> Result<Estimate<T>, Error> {
        Ok(match self {
            Self::Linear(linear) => z.after_linear(node, linear),
            Self::Elementwise(functions) => z.after_functions(functions),
            Self::Reshape => z,
            Self::Selection(selection) => {
                // Without a sample, the typical sizes decide the route of a max pooling.
                let from = selection.from(node.layer.kind(), &z.squares)?;
                let squares = from.iter().map(|&input| z.squares[input]).collect();
                Estimate { squares, dense: None, ..z }
            }
            Self::Lookup(_) => Estimate::of_input(node.shape.size()),
            Self::Ending(_) => Estimate { dense: None, ..z },
        })
    }

    /// Whether the operation only moves values, to the same places for all samples.
    pub fn only_moves(&self) -> bool {
        match self {
            Self::Reshape => true,
            Self::Selection(selection) => selection.fixed.is_some(),
            _ => false,
        }
    }

    pub fn is_reshape(&self) -> bool {
        matches!(self, Self::Reshape)
    }

    pub fn functions(&self) -> Option<&Functions<T>> {
        if let Self::Elementwise(functions) = self { Some(functions) } else { None }
    }

    pub fn ending(&self) -> Option<&Ending<T>> {
        if let Self::Ending(ending) = self { Some(ending) } else { None }
    }

    pub fn is_softmax(&self) -> bool {
        matches!(self, Self::Ending(Ending::Softmax(_)))
    }

    /// Turns a function that gives probabilities into an ending, and returns whether the operation
    /// is an ending. A softmax is one only before reshapes, which do not move its groups.
    pub fn end(&mut self, only_reshapes: bool) -> bool {
        match self {
            Self::Ending(_) => only_reshapes || !self.is_softmax(),
            Self::Elementwise(functions)
                if functions.single().is_some_and(Elementwise::gives_probability) =>
            {
                *self = Self::Ending(Ending::Link(functions.clone()));
                true
            }
            _ => false,
        }
    }

    pub fn selection(&self) -> Option<&Selection<T>> {
        if let Self::Selection(selection) = self { Some(selection) } else { None }
    }

    pub fn linear(&self) -> Option<&LinearNode<T>> {
        if let Self::Linear(linear) = self { Some(linear) } else { None }
    }
}

impl<T: Scalar> LinearNode<T> {
    fn compute(
        &self,
        number: usize,
        node: &Node<T>,
        z: Buffer<T>,
        pass: &mut ForwardPass<'_, T>,
    ) -> Result<Buffer<T>, Error> {
        let map = &*self.map;
        let mut product = pass.take(map.outputs());
        // W z without the bias, which the rules treat separately.
        map.apply(&z, &mut product);
        // Checked before the visit, so that the visitor only sees finite numbers.
        node.check(&product)?;
        pass.leave(number, Left::Product { z, product: &product })?;
        if map.bias().is_some() {
            layer::add_bias(map.bias(), &mut product);
            node.check(&product)?;
        }
        Ok(product)
    }
}

impl<T: Scalar> Selection<T> {
    /// # Errors
    /// [`Error::RouteIndex`] if an index is out of range, as a custom layer's can be.
    fn check(&self, kind: &str, from: &[usize]) -> Result<(), Error> {
        match from.iter().position(|&from| from >= self.inputs) {
            Some(output) => Err(Error::RouteIndex {
                kind: kind.to_owned(),
                output: output % self.outputs,
                index: from[output],
                inputs: self.inputs,
            }),
            None => Ok(()),
        }
    }

    /// The input of each output, for typical values.
    pub fn from(&self, kind: &str, values: &[T]) -> Result<Vec<usize>, Error> {
        if let Some(fixed) = &self.fixed {
            return Ok(fixed.to_vec());
        }
        let mut from = vec![usize::MAX; self.outputs];
        self.route.route(values, &mut from);
        self.check(kind, &from)?;
        Ok(from)
    }

    fn compute(
        &self,
        number: usize,
        node: &Node<T>,
        z: Buffer<T>,
        pass: &mut ForwardPass<'_, T>,
    ) -> Result<Buffer<T>, Error> {
        let Self { inputs, outputs, .. } = *self;
        let mut selected = pass.take(outputs);
        let samples = z.chunks_exact(inputs).zip(selected.chunks_exact_mut(outputs));
        if let Some(fixed) = &self.fixed {
            for (z, selected) in samples {
                selected.iter_mut().zip(&**fixed).for_each(|(to, &from)| *to = z[from]);
            }
            pass.give(z);
            pass.leave(number, Left::Values)?;
            return Ok(selected);
        }
        let mut from = pass.take_indices(outputs);
        // Each sample has its own route, because a maximum depends on the values.
        for ((z, selected), from) in samples.zip(from.chunks_exact_mut(outputs)) {
            from.fill(usize::MAX);
            self.route.route(z, from);
            self.check(node.layer.kind(), from)?;
            selected.iter_mut().zip(from).for_each(|(to, from)| *to = z[*from]);
        }
        pass.give(z);
        pass.leave(number, Left::Selected(from))?;
        Ok(selected)
    }
}

impl<T: Scalar> Ending<T> {
    /// Turns logits into probabilities, for one or more samples.
    pub fn apply(&self, values: &mut [T]) {
        match self {
            Self::Softmax(softmax) => softmax.apply(values),
            Self::Link(functions) => functions.apply(values),
        }
    }
}

/// Checks that a map's sizes agree with each other, because a custom layer can return any map.
fn check_map<T: Scalar>(kind: &str, map: &dyn LinearMap<T>) -> Result<(), Error> {
    let (outputs, inputs) = (map.outputs(), map.inputs());
    if outputs == 0 || inputs == 0 || map.output_shape().size() != outputs {
        return Err(Error::ZeroSized { kind: kind.to_owned(), outputs, inputs });
    }
    map.bias().map_or(Ok(()), |bias| layer::check_bias(kind, bias, outputs, inputs))
}

/// The shape of joined values.
fn joined_shape(kind: &str, inputs: &[Shape], joined: Joined) -> Result<Shape, Error> {
    let [first, others @ ..] = inputs else {
        return Err(Error::inputs(kind, 0, "at least one value"));
    };
    for other in others {
        let (fits, matching) = match joined {
            Joined::Summed => (other == first, "the same shape"),
            // Values are concatenated along the channels, so only the other axes must match.
            Joined::Concatenated => (
                other.dims().len() == first.dims().len()
                    && other.dims().get(1..) == first.dims().get(1..),
                "the same shape except for the first axis",
            ),
        };
        if !fits {
            let expected = format!("values of {matching} (the first has {first})");
            return Err(Error::shape(kind, *other, expected));
        }
    }
    Ok(match joined {
        Joined::Summed => *first,
        Joined::Concatenated if first.dims().is_empty() => inputs.len().into(),
        Joined::Concatenated => {
            let channels = inputs.iter().map(Shape::channels).fold(0, usize::saturating_add);
            first.with_dim(0, channels)
        }
    })
}
