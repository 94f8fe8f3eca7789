//! The forward pass: the only loop over nodes that computes values.

use super::inputs::Feed;
use super::operation::Operation;
use super::{Graph, InputSource, Node};
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::linalg;
use crate::memory::check_possible;
use crate::scalar::Scalar;

/// What a node leaves for the sharing of relevance, with samples as columns.
pub(crate) enum Left<'a, T: Scalar> {
    /// Nothing besides its values.
    Values,
    /// Of a linear map: z, and W z without the bias.
    Product { z: Buffer<T>, product: &'a [T] },
    /// Of a selection by the sample: the input of each output.
    Selected(Buffer<usize>),
}

/// Observes the nodes during a forward pass.
pub(crate) trait Visitor<T: Scalar> {
    /// Called when the pass leaves the node with this number.
    fn leave(
        &mut self,
        node: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error>;
}

impl<T: Scalar> Left<'_, T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        match self {
            Self::Values => {}
            Self::Product { z, .. } => buffers.values.give(z),
            Self::Selected(from) => buffers.indices.give(from),
        }
    }
}

/// A visitor that keeps nothing.
pub(crate) struct Forget;

impl<T: Scalar> Visitor<T> for Forget {
    fn leave(
        &mut self,
        _: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error> {
        left.give_back(buffers);
        Ok(())
    }
}

/// The results of a forward pass, with samples as columns.
pub(crate) struct Outputs<T> {
    /// The values that are explained.
    pub logits: Buffer<T>,
    /// The probabilities computed from the logits, if the model ends with a softmax or a sigmoid.
    pub probabilities: Option<Buffer<T>>,
}

impl<T: Scalar> Outputs<T> {
    /// The values of one of these samples.
    pub fn logits_of(&self, sample: usize, samples: usize) -> &[T] {
        let size = self.logits.len() / samples;
        &self.logits[sample * size..][..size]
    }

    /// The probabilities of one of these samples.
    pub fn probabilities_of(&self, sample: usize, samples: usize) -> Option<&[T]> {
        let size = self.logits.len() / samples;
        self.probabilities.as_ref().map(|values| &values[sample * size..][..size])
    }

    pub fn copy(&self, buffers: &mut Buffers<T>) -> Self {
        Self {
            logits: buffers.values.copy(&self.logits),
            probabilities: self.probabilities.as_ref().map(|values| buffers.values.copy(values)),
        }
    }
}

/// The nodes to compute, in order, and how often each value is read.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub nodes: Vec<usize>,
    uses: Vec<usize>,
    /// The size of the largest value.
    largest: usize,
}

impl Schedule {
    /// The nodes on the way to a value.
    pub fn to<T: Scalar>(inputs: usize, nodes: &[Node<T>], value: usize) -> Self {
        let mut uses = vec![0; inputs + nodes.len()];
        // The result is read as well.
        uses[value] = 1;
        let mut needed = Vec::new();
        for (number, node) in nodes.iter().enumerate().rev() {
            if uses[inputs + number] > 0 {
                needed.push(number);
                node.inputs.iter().for_each(|&input| uses[input] += 1);
            }
        }
        needed.reverse();
        // A node's inputs are joined if there are several.
        let shape_of = |value: usize| value.checked_sub(inputs).map(|number| nodes[number].shape);
        let read = |number: usize| {
            let sizes = nodes[number].inputs.iter().filter_map(|&value| shape_of(value));
            sizes.fold(0_usize, |sum, shape| sum.saturating_add(shape.size()))
        };
        let largest = needed.iter().map(|&number| read(number).max(nodes[number].shape.size()));
        let largest = largest.max().unwrap_or(0);
        Self { nodes: needed, uses, largest }
    }

    /// How often each value is read.
    pub fn reads(&self) -> Vec<usize> {
        self.uses.clone()
    }

    /// Whether the value is needed.
    pub fn needs(&self, value: usize) -> bool {
        self.uses[value] > 0
    }
}

/// The values that a pass still needs.
#[derive(Debug, Default)]
pub(crate) struct Slots<T> {
    values: Vec<Option<Buffer<T>>>,
    /// How often each value will still be read.
    uses: Vec<usize>,
}

impl<T: Scalar> Slots<T> {
    fn start(&mut self, schedule: &Schedule, buffers: &mut Buffers<T>) {
        // After an error, some values are left over.
        self.values.drain(..).flatten().for_each(|values| buffers.values.give(values));
        self.values.resize_with(schedule.uses.len(), || None);
        self.uses.clone_from(&schedule.uses);
    }

    /// A value. The last reader gets the memory itself, and earlier ones a copy.
    fn read(&mut self, value: usize, buffers: &mut Buffers<T>) -> Buffer<T> {
        self.uses[value] -= 1;
        let slot = &mut self.values[value];
        let last = self.uses[value] == 0;
        let values = if last {
            slot.take()
        } else {
            slot.as_ref().map(|values| buffers.values.copy(values))
        };
        // Never empty: nodes come after the nodes that they read.
        values.unwrap_or_else(Buffer::empty)
    }
}

/// One forward pass.
pub(crate) struct ForwardPass<'a, T: Scalar> {
    samples: usize,
    buffers: &'a mut Buffers<T>,
    visitor: &'a mut dyn Visitor<T>,
}

impl<T: Scalar> ForwardPass<'_, T> {
    /// Memory for `size` values of each sample.
    pub fn take(&mut self, size: usize) -> Buffer<T> {
        self.buffers.values.take(size * self.samples)
    }

    pub fn take_indices(&mut self, size: usize) -> Buffer<usize> {
        self.buffers.indices.take(size * self.samples)
    }

    pub fn give(&mut self, values: Buffer<T>) {
        self.buffers.values.give(values);
    }

    pub fn leave(&mut self, node: usize, left: Left<'_, T>) -> Result<(), Error> {
        self.visitor.leave(node, left, self.buffers)
    }

    /// The values that a node reads, one after another for each sample.
    fn read(&mut self, graph: &Graph<T>, node: &Node<T>, slots: &mut Slots<T>) -> Buffer<T> {
        if let [input] = *node.inputs {
            return slots.read(input, self.buffers);
        }
        let size = |value: usize| graph.shape_of(value).size();
        let whole: usize = node.inputs.iter().map(|&input| size(input)).sum();
        let mut joined = self.take(whole);
        let mut first = 0;
        for &input in &node.inputs {
            let (values, size) = (slots.read(input, self.buffers), size(input));
            for (joined, values) in joined.chunks_exact_mut(whole).zip(values.chunks_exact(size)) {
                linalg::copy(values, &mut joined[first..first + size]);
            }
            self.buffers.values.give(values);
            first += size;
        }
        joined
    }
}

impl<T: Scalar> Graph<T> {
    /// Computes the output and shows each node to a visitor as the pass leaves it. The caller has
    /// checked the samples.
    pub(crate) fn pass(
        &self,
        feed: &Feed<'_, T>,
        slots: &mut Slots<T>,
        buffers: &mut Buffers<T>,
        visitor: &mut dyn Visitor<T>,
    ) -> Result<Outputs<T>, Error> {
        let (schedule, samples) = (self.schedule(), feed.samples());
        check_possible::<T>(schedule.largest.saturating_mul(samples), || {
            format!("a layer of {} values for {samples} samples", schedule.largest)
        })?;
        slots.start(schedule, buffers);
        let mut pass = ForwardPass { samples, buffers, visitor };
        for (number, input) in self.input_list().iter().enumerate() {
            if schedule.needs(number) && !matches!(input.source, InputSource::Whole) {
                // Activations work in place, so they need a copy of the samples.
                let mut values = pass.take(input.shape.size());
                feed.write(self, number, &mut values);
                slots.values[number] = Some(values);
            }
        }
        for &number in &schedule.nodes {
            let node = self.node(number);
            let values = if let Operation::Lookup(lookup) = &node.operation {
                let mut rows = pass.take(node.shape.size());
                lookup.write(feed.whole(self, node.inputs[0]), &mut rows)?;
                pass.leave(number, Left::Values)?;
                rows
            } else {
                let z = pass.read(self, node, slots);
                node.operation.compute(number, node, z, &mut pass)?
            };
            slots.values[self.value_of(number)] = Some(values);
        }
        let logits = slots.read(self.output_value(), pass.buffers);
        let probabilities = self.probabilities(&logits, buffers)?;
        Ok(Outputs { logits, probabilities })
    }

    /// The probabilities, if the model ends with a function that computes them from the logits.
    fn probabilities(
        &self,
        logits: &[T],
        buffers: &mut Buffers<T>,
    ) -> Result<Option<Buffer<T>>, Error> {
        let Some((node, ending)) = self.ending() else { return Ok(None) };
        let mut probabilities = buffers.values.take(logits.len());
        linalg::copy(logits, &mut probabilities);
        ending.apply(&mut probabilities);
        node.check(&probabilities)?;
        Ok(Some(probabilities))
    }
}

impl<T: Scalar> Node<T> {
    /// Checks that the node's outputs are finite.
    pub(super) fn check(&self, values: &[T]) -> Result<(), Error> {
        match linalg::first_non_finite(values) {
            Some((at, value)) => Err(Error::NonFiniteOutput {
                layer: self.index,
                name: self.name.clone(),
                kind: self.layer.kind().to_owned(),
                index: at % self.shape.size(),
                value: value.as_f64(),
            }),
            None => Ok(()),
        }
    }
}
