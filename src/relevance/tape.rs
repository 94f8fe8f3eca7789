//! The tape: the share matrices of all nodes for the current samples, and relevance on its way
//! along the nodes, forward or in reverse.

use super::network::Network;
use super::range::OutOfRange;
use super::sharing::{Shares, Sharing, Slot};
use super::{Overflow, normalize};
use crate::buffer::{Buffer, Buffers, Flow, Flows};
use crate::error::Error;
use crate::graph::{Left, Visitor};
use crate::linalg;
use crate::scalar::Scalar;

/// The share matrices of the nodes that a pass has left.
#[derive(Debug, Default)]
pub(crate) struct Tape<T: Scalar> {
    /// One entry for each node of the graph.
    shares: Vec<Option<Shares<T>>>,
    pub samples: usize,
    /// Samples outside the range that a rule assumes.
    pub noted: Vec<OutOfRange>,
}

impl<T: Scalar> Tape<T> {
    /// Clears the tape for a pass of this many samples.
    pub fn start(&mut self, nodes: usize, samples: usize, buffers: &mut Buffers<T>) {
        // After an error, some share matrices are left over.
        self.shares.drain(..).flatten().for_each(|shares| shares.give_back(buffers));
        self.shares.resize_with(nodes, || None);
        self.samples = samples;
        self.noted.clear();
    }

    /// Records the share matrix of the node that the pass leaves.
    pub fn record(
        &mut self,
        network: &Network<T>,
        node: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error> {
        if !network.reaches(node) {
            left.give_back(buffers);
            return Ok(());
        }
        let shares = network.sharing(node).shares(node, left, &mut self.noted, buffers)?;
        self.shares[node] = Some(shares);
        Ok(())
    }

    /// The share matrix of a node. The pass has left the node.
    pub fn of(&self, node: usize) -> &Shares<T> {
        self.shares[node].as_ref().unwrap_or(&Shares::Pass)
    }

    /// Gives back the memory of some nodes' share matrices.
    pub fn forget(&mut self, nodes: &[usize], buffers: &mut Buffers<T>) {
        for &node in nodes {
            if let Some(shares) = self.shares[node].take() {
                shares.give_back(buffers);
            }
        }
    }
}

/// A visitor that records the share matrices of all nodes.
pub(crate) struct Recorder<'a, T: Scalar> {
    network: &'a Network<T>,
    tape: &'a mut Tape<T>,
}

impl<'a, T: Scalar> Recorder<'a, T> {
    /// A recorder for a pass of this many samples.
    pub fn new(
        network: &'a Network<T>,
        tape: &'a mut Tape<T>,
        samples: usize,
        buffers: &mut Buffers<T>,
    ) -> Self {
        tape.start(network.graph.node_list().len(), samples, buffers);
        Self { network, tape }
    }
}

impl<T: Scalar> Visitor<T> for Recorder<'_, T> {
    fn leave(
        &mut self,
        node: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error> {
        self.tape.record(self.network, node, left, buffers)
    }
}

/// A walk along some nodes.
pub(crate) struct Walk<'a, T: Scalar> {
    pub network: &'a Network<T>,
    pub tape: &'a Tape<T>,
}

impl<T: Scalar> Walk<'_, T> {
    /// Carries relevance in reverse along some nodes, for all samples: R(z) = A R(y), summed over
    /// all nodes that read a value, in a fixed order. `flows` holds the relevance of the values to
    /// start from. If `keeps`, it also keeps that of all values on the way. The values of the sinks
    /// of each node are passed to `drain`, with the node's place among the nodes.
    pub fn back(
        &self,
        nodes: &[usize],
        flows: &mut Flows<T>,
        keeps: bool,
        drain: &mut dyn FnMut(usize, usize, &[T]),
        buffers: &mut Buffers<T>,
    ) -> Result<(), Overflow> {
        for (place, &node) in nodes.iter().enumerate().rev() {
            let value = self.network.graph.value_of(node);
            let flow = if keeps {
                flows[value].as_ref().map(|flow| flow.copy(buffers))
            } else {
                flows[value].take()
            };
            // Nothing has reached a value that is not between the start and the end.
            let Some(flow) = flow else { continue };
            let sharing = self.network.sharing(node);
            if !sharing.causes.is_empty() {
                self.drain(
                    node,
                    sharing,
                    &flow,
                    &mut |sample, sinks| drain(place, sample, sinks),
                    buffers,
                );
            }
            let below = self.back_through(node, sharing, flow, buffers)?;
            self.split(sharing, below, flows, buffers);
        }
        Ok(())
    }

    /// The relevance of a node's inputs, of all values together.
    fn back_through(
        &self,
        node: usize,
        sharing: &Sharing<T>,
        flow: Flow<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Flow<T>, Overflow> {
        let shares = self.tape.of(node);
        if matches!(shares, Shares::Pass) {
            return Ok(flow);
        }
        let columns = flow.columns.len();
        let mut values = buffers.values.take(sharing.inputs * columns * self.tape.samples);
        shares.apply(
            (&flow.values, sharing.outputs),
            (&mut values, sharing.inputs),
            columns,
            buffers,
        );
        let Flow { values: above, mut exponents, columns: range } = flow;
        buffers.values.give(above);
        let size = sharing.inputs * columns;
        for (values, exponent) in values.chunks_exact_mut(size).zip(exponents.iter_mut()) {
            *exponent += normalize(values).ok_or(Overflow { layer: sharing.layer })?;
        }
        Ok(Flow { values, exponents, columns: range })
    }

    /// Passes the values of a node's sinks to `drain`, for each sample.
    fn drain(
        &self,
        node: usize,
        sharing: &Sharing<T>,
        flow: &Flow<T>,
        drain: &mut dyn FnMut(usize, &[T]),
        buffers: &mut Buffers<T>,
    ) {
        let columns = flow.columns.len();
        let shares = self.tape.of(node);
        let mut sinks = buffers.values.take(sharing.causes.len() * columns);
        let own = sharing.constant_row().unwrap_or(sharing.causes.len());
        let blocks = flow.values.chunks_exact(sharing.outputs * columns);
        for (sample, block) in blocks.enumerate() {
            shares.drain(sample, block, &mut sinks[..own * columns]);
            if own < sharing.causes.len() {
                let row = self.constant_sinks(node, sharing, sample, buffers);
                for (sink, block) in
                    sinks[own * columns..].iter_mut().zip(block.chunks_exact(sharing.outputs))
                {
                    *sink = T::from_f64(linalg::dot(&row, block));
                }
                buffers.values.give(row);
            }
            let exponent = flow.exponents[sample];
            if exponent != 0 {
                // The relevance is scaled, but that of sinks is not.
                sinks.iter_mut().for_each(|sink| *sink = sink.times_two_to(exponent));
            }
            drain(sample, &sinks);
        }
        buffers.values.give(sinks);
    }

    /// The row of the sink for constants: for each output, the sum of the shares of the values that
    /// are constants of the sample.
    fn constant_sinks(
        &self,
        node: usize,
        sharing: &Sharing<T>,
        sample: usize,
        buffers: &mut Buffers<T>,
    ) -> Buffer<T> {
        let mut constants = buffers.values.take(sharing.inputs);
        let mut first = 0;
        for slot in &sharing.slots {
            let is_constant = if slot.value.is_none() { T::one() } else { T::zero() };
            constants[first..first + slot.size].fill(is_constant);
            first += slot.size;
        }
        let mut row = buffers.values.take(sharing.outputs);
        self.tape.of(node).apply_transposed(
            sample,
            (&constants, sharing.inputs),
            (&mut row, sharing.outputs),
            buffers,
        );
        buffers.values.give(constants);
        row
    }

    /// Adds the relevance of a node's inputs to that of the values that they belong to.
    fn split(
        &self,
        sharing: &Sharing<T>,
        below: Flow<T>,
        flows: &mut Flows<T>,
        buffers: &mut Buffers<T>,
    ) {
        if let [slot] = *sharing.slots {
            match slot.value {
                Some(value) => arrive(&mut flows[value], below, self.tape.samples, buffers),
                None => below.give_back(buffers),
            }
            return;
        }
        let mut first = 0;
        for slot in &sharing.slots {
            if let Some(value) = slot.value {
                let count = below.values.len() / sharing.inputs;
                let mut values = buffers.values.take(slot.size * count);
                let whole = (&*below.values, sharing.inputs);
                linalg::copy_part(whole, first, (&mut values, slot.size));
                let mut exponents = buffers.exponents.take(below.exponents.len());
                exponents.copy_from_slice(&below.exponents);
                let part = Flow { values, exponents, columns: below.columns.clone() };
                arrive(&mut flows[value], part, self.tape.samples, buffers);
            }
            first += slot.size;
        }
        below.give_back(buffers);
    }

    /// Carries the shares of some inputs forward along some nodes, for one sample: the shares in
    /// the outputs of a node are Aᵀ times those in its inputs. `flows` holds the columns to start
    /// from. After `last_reads`, the values that no later node reads are forgotten.
    ///
    /// With `sinks`, each node adds the columns of its own sinks, numbered from the first of these
    /// numbers on. They are not scaled.
    pub fn forth(
        &self,
        (nodes, last_reads): (&[usize], &[Vec<usize>]),
        flows: &mut Flows<T>,
        sample: usize,
        sinks: Option<&[usize]>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Overflow> {
        for (place, &node) in nodes.iter().enumerate() {
            let sharing = self.network.sharing(node);
            let last = last_reads.get(place).map_or(&[][..], Vec::as_slice);
            let joined = join(sharing, flows, last, buffers);
            let is_pass = matches!(self.tape.of(node), Shares::Pass);
            let mut flow = self.forth_through(node, sharing, joined, sample, buffers);
            match sinks {
                Some(firsts) => {
                    flow = self.add_sinks(node, sharing, flow, (sample, firsts[place]), buffers);
                }
                None if is_pass => {}
                None => {
                    flow.exponents[0] +=
                        normalize(&mut flow.values).ok_or(Overflow { layer: sharing.layer })?;
                }
            }
            flows[self.network.graph.value_of(node)] = Some(flow);
            for &value in last {
                if let Some(flow) = flows[value].take() {
                    flow.give_back(buffers);
                }
            }
        }
        Ok(())
    }

    fn forth_through(
        &self,
        node: usize,
        sharing: &Sharing<T>,
        flow: Flow<T>,
        sample: usize,
        buffers: &mut Buffers<T>,
    ) -> Flow<T> {
        let shares = self.tape.of(node);
        if matches!(shares, Shares::Pass) {
            return flow;
        }
        let mut values = buffers.take_columns(sharing.outputs, flow.columns.len());
        shares.apply_transposed(
            sample,
            (&flow.values, sharing.inputs),
            (&mut values, sharing.outputs),
            buffers,
        );
        let Flow { values: below, exponents, columns } = flow;
        buffers.values.give(below);
        Flow { values, exponents, columns }
    }

    /// Adds the columns of a node's own sinks.
    fn add_sinks(
        &self,
        node: usize,
        sharing: &Sharing<T>,
        flow: Flow<T>,
        (sample, first): (usize, usize),
        buffers: &mut Buffers<T>,
    ) -> Flow<T> {
        let count = sharing.causes.len();
        if count == 0 {
            return flow;
        }
        let size = sharing.outputs;
        let end = first + count;
        let from = if flow.columns.is_empty() { first } else { flow.columns.start.min(first) };
        let mut values = buffers.take_columns(size, end - from);
        values.fill(T::zero());
        // Sinks are numbered in the order of the nodes, so those of earlier nodes come first.
        if !flow.columns.is_empty() {
            values[(flow.columns.start - from) * size..][..flow.values.len()]
                .copy_from_slice(&flow.values);
        }
        let own = &mut values[(first - from) * size..];
        match sharing.constant_row() {
            None => self.tape.of(node).sink_rows(sample, own),
            Some(constant) => {
                let (sinks, constants) = own.split_at_mut(constant * size);
                self.tape.of(node).sink_rows(sample, sinks);
                let row = self.constant_sinks(node, sharing, sample, buffers);
                constants.copy_from_slice(&row);
                buffers.values.give(row);
            }
        }
        let Flow { values: old, exponents, .. } = flow;
        buffers.values.give(old);
        Flow { values, exponents, columns: from..end }
    }
}

/// Adds relevance to that of a value, sample by sample.
fn arrive<T: Scalar>(
    slot: &mut Option<Flow<T>>,
    new: Flow<T>,
    samples: usize,
    buffers: &mut Buffers<T>,
) {
    let Some(sum) = slot else {
        *slot = Some(new);
        return;
    };
    let size = new.values.len() / samples.max(1);
    for sample in 0..samples {
        let part = sample * size..(sample + 1) * size;
        let (mine, other) = (sum.exponents[sample], new.exponents[sample]);
        let (to, from) = (&mut sum.values[part.clone()], &new.values[part]);
        if mine == other {
            linalg::add_scaled(T::one(), from, to);
            continue;
        }
        // The exponents are aligned at the larger one, which that of zeros is not.
        let is_zero = |values: &[T]| linalg::max_abs(values) == T::zero();
        let aligned = match (is_zero(to), is_zero(from)) {
            (_, true) => mine,
            (true, _) => other,
            _ => mine.max(other),
        };
        for (to, from) in to.iter_mut().zip(from) {
            *to = to.times_two_to(mine - aligned) + from.times_two_to(other - aligned);
        }
        sum.exponents[sample] = aligned;
    }
    new.give_back(buffers);
}

/// The columns at a node's inputs, of all values together.
fn join<T: Scalar>(
    sharing: &Sharing<T>,
    flows: &mut Flows<T>,
    last: &[usize],
    buffers: &mut Buffers<T>,
) -> Flow<T> {
    if let [Slot { value: Some(value), .. }] = *sharing.slots {
        // The last reader gets the flow itself.
        let flow = if last.contains(&value) {
            flows[value].take()
        } else {
            flows[value].as_ref().map(|flow| flow.copy(buffers))
        };
        if let Some(flow) = flow {
            return flow;
        }
    }
    let of = |value: Option<usize>| value.and_then(|value| flows[value].as_ref());
    let parts = || sharing.slots.iter().filter_map(|slot| of(slot.value));
    let stored = || parts().filter(|flow| !flow.columns.is_empty());
    let first = stored().map(|flow| flow.columns.start).min().unwrap_or(0);
    let columns = first..stored().map(|flow| flow.columns.end).max().unwrap_or(first);
    let largest = stored()
        .filter(|flow| flow.values.iter().any(|v| *v != T::zero()))
        .map(|flow| flow.exponents[0])
        .max()
        .unwrap_or(0);
    let mut values = buffers.take_columns(sharing.inputs, columns.len());
    values.fill(T::zero());
    let mut place = 0;
    for slot in &sharing.slots {
        if let Some(flow) = of(slot.value) {
            let by = flow.exponents[0] - largest;
            for (column, from) in flow.columns.clone().zip(flow.values.chunks_exact(slot.size)) {
                let to = &mut values[(column - first) * sharing.inputs + place..][..slot.size];
                if by == 0 {
                    to.copy_from_slice(from);
                } else {
                    to.iter_mut().zip(from).for_each(|(to, v)| *to = v.times_two_to(by));
                }
            }
        }
        place += slot.size;
    }
    let mut exponents = buffers.exponents.take(1);
    exponents[0] = largest;
    Flow { values, exponents, columns }
}
