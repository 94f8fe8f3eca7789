//! The machine that multiplies the factors in the order of a plan, during the forward pass.

use super::block::{Prefix, Suffix};
use super::factor::Factor;
use super::network::Network;
use super::plan::{Plan, Step};
use super::tape::Tape;
use super::{Overflow, Seed};
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::graph::{Left, Visitor};
use crate::scalar::Scalar;

/// An item on the stack.
#[derive(Debug)]
enum Item<T> {
    /// The factor of the segment with this index.
    Factor(usize),
    Prefix(Prefix<T>),
    Suffix(Suffix<T>),
    /// The outputs to explain, the same number for each sample.
    Selection(Buffer<usize>),
}

/// The memory of a [`Machine`], which is reused between passes.
#[derive(Debug, Default)]
pub(crate) struct Stack<T: Scalar> {
    items: Vec<Item<T>>,
    pub tape: Tape<T>,
}

/// The stack, and the remaining steps of the plan.
pub(crate) struct Machine<'a, T: Scalar> {
    network: &'a Network<T>,
    steps: std::slice::Iter<'a, Step>,
    stack: &'a mut Stack<T>,
}

impl<T: Scalar> Visitor<T> for Machine<'_, T> {
    fn leave(
        &mut self,
        node: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error> {
        self.stack.tape.record(self.network, node, left, buffers)?;
        if let Some(segment) = self.network.completed_by(node) {
            self.stack.items.push(Item::Factor(segment));
            self.reduce(buffers).map_err(|at| at.error(&self.network.graph))?;
        }
        Ok(())
    }
}

impl<'a, T: Scalar> Machine<'a, T> {
    /// A machine for a pass of this many samples.
    pub fn new(
        network: &'a Network<T>,
        plan: &'a Plan,
        stack: &'a mut Stack<T>,
        samples: usize,
        buffers: &mut Buffers<T>,
    ) -> Self {
        stack.items.clear();
        stack.tape.start(network.graph.node_list().len(), samples, buffers);
        let mut steps = plan.steps().iter();
        // The machine starts out waiting for a factor, so it skips the first shift.
        steps.next();
        Self { network, steps, stack }
    }

    /// Multiplies in the targets and returns the shares of all samples.
    pub fn finish(
        mut self,
        targets: Seed<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Suffix<T>, Overflow> {
        let last = self.network.segments.len() - 1;
        match targets {
            Seed::All => {}
            Seed::Outputs(selected) => self.stack.items.push(Item::Selection(selected)),
            Seed::Weighted(values, targets) => {
                let (layer, outputs) = (self.factor(last).layer(), self.factor(last).outputs());
                let block = Suffix::of_targets(layer, values, outputs, targets, buffers)?;
                self.stack.items.push(Item::Suffix(block));
            }
        }
        self.reduce(buffers)?;
        // A network has at least one segment, so one item is always left.
        let whole = self.stack.items.pop().unwrap_or(Item::Factor(last));
        self.suffix(whole, buffers)
    }

    /// Performs the steps up to the next shift.
    fn reduce(&mut self, buffers: &mut Buffers<T>) -> Result<(), Overflow> {
        while let Some(step) = self.steps.next().filter(|step| **step != Step::Shift) {
            // The topmost item is the right one. A plan never reduces fewer than two items.
            let (Some(right), Some(left)) = (self.stack.items.pop(), self.stack.items.pop()) else {
                break;
            };
            let product = match (step, left, right) {
                // If both are factors, `prefix` forms the left one.
                (Step::Append, left, Item::Factor(right)) => {
                    let product = self.prefix(left, buffers)?.times(self.factor(right), buffers)?;
                    self.forget(right, buffers);
                    Item::Prefix(product)
                }
                // Only the selected columns of the factor are formed.
                (Step::Select, Item::Factor(left), Item::Selection(selected)) => {
                    let product = Suffix::of_outputs(self.factor(left), &selected, buffers)?;
                    self.forget(left, buffers);
                    buffers.indices.give(selected);
                    Item::Suffix(product)
                }
                (_, left, Item::Selection(selected)) => {
                    let product = self.prefix(left, buffers)?.into_suffix(Some(&selected), buffers);
                    buffers.indices.give(selected);
                    Item::Suffix(product)
                }
                // If both are factors, `suffix` forms the right one.
                (_, Item::Factor(left), right) => {
                    let product = self.suffix(right, buffers)?.after(self.factor(left), buffers)?;
                    self.forget(left, buffers);
                    Item::Suffix(product)
                }
                (_, left, right) => {
                    let (left, right) = (self.prefix(left, buffers)?, self.suffix(right, buffers)?);
                    Item::Suffix(right.join(left, buffers)?)
                }
            };
            self.stack.items.push(product);
        }
        Ok(())
    }

    fn factor(&self, segment: usize) -> Factor<'_, T> {
        Factor::new(self.network, segment, &self.stack.tape)
    }

    /// Gives back the memory of a factor that has been multiplied in.
    fn forget(&mut self, segment: usize, buffers: &mut Buffers<T>) {
        self.stack.tape.forget(&self.network.segments[segment].nodes, buffers);
    }

    fn prefix(&mut self, item: Item<T>, buffers: &mut Buffers<T>) -> Result<Prefix<T>, Overflow> {
        match item {
            Item::Prefix(prefix) => Ok(prefix),
            Item::Suffix(suffix) => Ok(suffix.into_prefix(buffers)),
            Item::Factor(segment) => {
                let prefix = Prefix::new(self.factor(segment), buffers)?;
                self.forget(segment, buffers);
                Ok(prefix)
            }
            // No plan multiplies a selection by a factor on its right.
            Item::Selection(selected) => {
                let (size, samples) = (selected.len().max(1), self.stack.tape.samples.max(1));
                let units = super::units(&selected, size, buffers);
                let block = Suffix::of_targets(0, units, size, size / samples, buffers)?;
                Ok(block.into_prefix(buffers))
            }
        }
    }

    fn suffix(&mut self, item: Item<T>, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        match item {
            Item::Suffix(suffix) => Ok(suffix),
            Item::Factor(segment) if self.network.segments[segment].by_columns => {
                let outputs = self.network.segments[segment].outputs;
                let mut all = buffers.indices.take(outputs * self.stack.tape.samples);
                all.iter_mut().enumerate().for_each(|(at, output)| *output = at % outputs);
                let suffix = Suffix::of_outputs(self.factor(segment), &all, buffers)?;
                buffers.indices.give(all);
                self.forget(segment, buffers);
                Ok(suffix)
            }
            other => Ok(self.prefix(other, buffers)?.into_suffix(None, buffers)),
        }
    }
}
