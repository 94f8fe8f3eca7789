//! Factors: the share matrix of a segment, for the current samples.

use super::network::{Network, Segment};
use super::sharing::{Shares, Sharing, Slot};
use super::tape::{Tape, Walk};
use super::{Drain, Overflow, units};
use crate::buffer::{Buffers, Flow, Flows};
use crate::linalg;
use crate::scalar::Scalar;

/// The share matrix of a segment. Its rows are the values where the segment begins, and its columns
/// those where it ends.
#[derive(Clone, Copy)]
pub(crate) struct Factor<'a, T: Scalar> {
    segment: &'a Segment,
    network: &'a Network<T>,
    tape: &'a Tape<T>,
}

impl<'a, T: Scalar> Factor<'a, T> {
    pub fn new(network: &'a Network<T>, segment: usize, tape: &'a Tape<T>) -> Self {
        Self { segment: &network.segments[segment], network, tape }
    }

    pub fn samples(self) -> usize {
        self.tape.samples
    }

    pub fn inputs(self) -> usize {
        self.segment.inputs
    }

    pub fn outputs(self) -> usize {
        self.segment.outputs
    }

    pub fn sinks(self) -> usize {
        self.segment.sinks.len()
    }

    /// The layer at the end of the segment, for error messages.
    pub fn layer(self) -> usize {
        self.segment.nodes.last().map_or(0, |&node| self.network.sharing(node).layer)
    }

    /// The only node, if the segment is one node that reads one value.
    fn single(self) -> Option<(&'a Sharing<T>, &'a Shares<T>)> {
        let node = *self.segment.nodes.first().filter(|_| self.segment.is_single)?;
        Some((self.network.sharing(node), self.tape.of(node)))
    }

    fn walk(self) -> Walk<'a, T> {
        Walk { network: self.network, tape: self.tape }
    }

    /// Lists the inputs that can have a nonzero share for a sample, and returns their number.
    pub fn live(self, sample: usize, list: &mut [usize]) -> usize {
        if let Some((_, shares)) = self.single() {
            return shares.live(sample, self.outputs(), list);
        }
        // Not examined further: all inputs are taken to be live.
        list.iter_mut().enumerate().for_each(|(input, at)| *at = input);
        list.len()
    }

    /// Writes the listed rows of A for one sample to `out`, outputs x listed rows. Returns the
    /// exponent of the shares.
    pub fn rows(
        self,
        sample: usize,
        listed: &[usize],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) -> Result<i32, Overflow> {
        if let Some((_, shares)) = self.single() {
            shares.rows(sample, (listed, self.inputs()), out, buffers);
            return Ok(0);
        }
        // Row i of A is Aᵀ times unit vector i.
        let units = units(listed, self.inputs(), buffers);
        let exponent = self.apply_transposed(sample, &units, out, buffers);
        buffers.values.give(units);
        exponent
    }

    /// Writes the listed columns of A for one sample to `out`, inputs x listed columns. Only a
    /// rule's terms can do this; otherwise, returns `false`.
    pub fn columns(
        self,
        sample: usize,
        listed: &[usize],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) -> bool {
        match self.single().and_then(|(_, shares)| shares.terms()) {
            Some(shares) => {
                shares.columns(sample, listed, out, buffers);
                true
            }
            None => false,
        }
    }

    /// Writes the rows of sinks of a sample to `out`, one value per output. The sinks inside the
    /// segment are carried to its end.
    pub fn sink_rows(
        self,
        sample: usize,
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) -> Result<(), Overflow> {
        if let Some((_, shares)) = self.single() {
            shares.sink_rows(sample, out);
            return Ok(());
        }
        out.fill(T::zero());
        if self.sinks() == 0 {
            return Ok(());
        }
        let flow = self.forth(sample, None, buffers)?;
        let first = flow.columns.start * self.outputs();
        out[first..first + flow.values.len()].copy_from_slice(&flow.values);
        flow.give_back(buffers);
        Ok(())
    }

    /// Computes Aᵀ X for one sample. The columns of `x` have `inputs` values, and those of `out`
    /// have `outputs` values. Returns the exponent of the result. Cost: that of the nodes'
    /// products, for each column.
    pub fn apply_transposed(
        self,
        sample: usize,
        x: &[T],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) -> Result<i32, Overflow> {
        if let Some((_, shares)) = self.single() {
            shares.apply_transposed(sample, (x, self.inputs()), (out, self.outputs()), buffers);
            return Ok(0);
        }
        if x.is_empty() {
            return Ok(0);
        }
        let flow = self.forth(sample, Some(x), buffers)?;
        linalg::copy(&flow.values, out);
        let exponent = flow.exponents[0];
        flow.give_back(buffers);
        Ok(exponent)
    }

    /// Carries the columns of `x`, or otherwise those of the sinks, from the beginning of the
    /// segment to its end.
    fn forth(
        self,
        sample: usize,
        x: Option<&[T]>,
        buffers: &mut Buffers<T>,
    ) -> Result<Flow<T>, Overflow> {
        let mut flows = self.take_flows(buffers);
        let inputs = self.inputs();
        let columns = x.map_or(0, |x| x.len() / inputs);
        let mut first = 0;
        for entry in &self.segment.entries {
            let mut values = buffers.take_columns(entry.size, columns);
            linalg::copy_part((x.unwrap_or(&[]), inputs), first, (&mut values, entry.size));
            let mut exponents = buffers.exponents.take(1);
            exponents[0] = 0;
            first += entry.size;
            if let Some(value) = entry.value {
                flows[value] = Some(Flow { values, exponents, columns: 0..columns });
            }
        }
        let nodes = (self.segment.nodes.as_slice(), self.segment.last_reads.as_slice());
        let firsts = x.is_none().then_some(self.segment.firsts.as_slice());
        let walked = self.walk().forth(nodes, &mut flows, sample, firsts, buffers);
        let exit = flows[self.segment.exit].take();
        give_flows(flows, buffers);
        walked?;
        // The walk has reached the end of the segment.
        Ok(exit.unwrap_or_else(|| Flow {
            values: buffers.values.take(0),
            exponents: buffers.exponents.take(1),
            columns: 0..0,
        }))
    }

    /// Computes A X for all samples. The columns of `x` have `outputs` values, and those of `out`
    /// have `inputs` values. Each sample has the same number of columns. The result's exponents are
    /// added to `exponents`. The values of the sinks are passed to `drain`. Cost: that of the
    /// nodes' products, for each column.
    pub fn apply(
        self,
        x: &[T],
        out: &mut [T],
        exponents: &mut [i32],
        drain: Drain<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Overflow> {
        let (inputs, outputs, samples) = (self.inputs(), self.outputs(), self.samples());
        let columns = x.len() / outputs / samples.max(1);
        if let Some((_, shares)) = self.single() {
            let mut sinks = buffers.values.take(self.sinks() * columns);
            for (sample, block) in x.chunks_exact(outputs * columns).enumerate() {
                shares.drain(sample, block, &mut sinks);
                drain(sample, 0, &sinks);
            }
            buffers.values.give(sinks);
            shares.apply((x, outputs), (out, inputs), columns, buffers);
            return Ok(());
        }
        let mut flows = self.take_flows(buffers);
        let mut values = buffers.values.take(x.len());
        linalg::copy(x, &mut values);
        let mut zeros = buffers.exponents.take(samples);
        zeros.fill(0);
        flows[self.segment.exit] = Some(Flow { values, exponents: zeros, columns: 0..columns });
        let firsts = &self.segment.firsts;
        let walked = self.walk().back(
            &self.segment.nodes,
            &mut flows,
            false,
            &mut |place, sample, sinks| drain(sample, firsts[place], sinks),
            buffers,
        );
        if walked.is_ok() {
            gather(&self.segment.entries, (&flows, samples), out, exponents);
        }
        give_flows(flows, buffers);
        walked
    }

    fn take_flows(self, buffers: &mut Buffers<T>) -> Flows<T> {
        let mut flows = std::mem::take(&mut buffers.flows);
        let graph = &self.network.graph;
        let values = graph.input_list().len() + graph.node_list().len();
        flows.resize_with(flows.len().max(values), || None);
        flows
    }
}

fn give_flows<T: Scalar>(mut flows: Flows<T>, buffers: &mut Buffers<T>) {
    for flow in flows.iter_mut().filter_map(Option::take) {
        flow.give_back(buffers);
    }
    buffers.flows = flows;
}

/// Writes the relevance of the values where a segment begins, one value after another.
pub(super) fn gather<T: Scalar>(
    entries: &[Slot],
    (flows, samples): (&Flows<T>, usize),
    out: &mut [T],
    exponents: &mut [i32],
) {
    let inputs: usize = entries.iter().map(|entry| entry.size).sum();
    let size = out.len() / samples.max(1);
    for sample in 0..samples {
        // The exponents are aligned at the largest one of values that are not all zero.
        let largest = entries
            .iter()
            .filter_map(|entry| flows[entry.value?].as_ref())
            .filter(|flow| {
                let size = flow.values.len() / samples;
                linalg::max_abs(&flow.values[sample * size..][..size]) != T::zero()
            })
            .map(|flow| flow.exponents[sample])
            .max()
            .unwrap_or(0);
        exponents[sample] += largest;
        let out = &mut out[sample * size..][..size];
        let mut first = 0;
        for entry in entries {
            let flow = entry.value.and_then(|value| flows[value].as_ref());
            let count = size / inputs;
            for column in 0..count {
                let to = &mut out[column * inputs + first..][..entry.size];
                let Some(flow) = flow else {
                    // No relevance reaches this value.
                    to.fill(T::zero());
                    continue;
                };
                let from = &flow.values[(sample * count + column) * entry.size..][..entry.size];
                match flow.exponents[sample] - largest {
                    0 => linalg::copy(from, to),
                    by => to.iter_mut().zip(from).for_each(|(to, v)| *to = v.times_two_to(by)),
                }
            }
            first += entry.size;
        }
    }
}
