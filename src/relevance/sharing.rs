//! How a node of any family shares relevance among the values that it reads.

use std::sync::Arc;

use super::range::OutOfRange;
use super::shares::TermShares;
use super::terms::Terms;
use super::{Cause, units};
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::graph::Left;
use crate::linalg;
use crate::scalar::Scalar;

/// The share matrix of a node, with everything that does not depend on the sample.
///
/// Its rows are the inputs of the node: those of all values that it reads, one value after another.
#[derive(Debug)]
pub(crate) struct Sharing<T: Scalar> {
    /// The layer's index.
    pub layer: usize,
    pub slots: Vec<Slot>,
    pub inputs: usize,
    pub outputs: usize,
    /// The cause of each row of sinks.
    pub causes: Vec<Cause>,
    pub form: Form<T>,
}

/// One of the values that a node reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub size: usize,
    /// The value, or `None` if it is a constant of the sample, whose relevance is a sink.
    pub value: Option<usize>,
}

/// The form of a share matrix.
#[derive(Debug)]
pub(crate) enum Form<T: Scalar> {
    /// The identity: each output's relevance passes to the input with the same index.
    Pass,
    /// A rule's terms.
    Terms(Arc<Terms<T>>),
    /// Each output is a copy of the input with this index.
    Copies(Arc<[usize]>),
    /// Each output is a copy of an input that depends on the sample.
    Selection,
}

/// The share matrix of a node for some samples.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a box would be allocated for each node and call
pub(crate) enum Shares<T: Scalar> {
    Pass,
    Terms(TermShares<T>),
    Copies(Arc<[usize]>),
    /// For each output of each sample, the input that it is a copy of.
    Selection(Buffer<usize>),
}

impl<T: Scalar> Sharing<T> {
    /// The share matrix, once the pass has left the node. A sample outside the range that the
    /// node's rule assumes causes an error or is noted, depending on the rule.
    pub fn shares(
        &self,
        node: usize,
        left: Left<'_, T>,
        noted: &mut Vec<OutOfRange>,
        buffers: &mut Buffers<T>,
    ) -> Result<Shares<T>, Error> {
        Ok(match (&self.form, left) {
            (Form::Terms(terms), Left::Product { z, product }) => {
                if let Some(range) = &terms.range {
                    range.check(node, &z, noted)?;
                }
                Shares::Terms(terms.shares(z, product, buffers))
            }
            (Form::Copies(from), _) => Shares::Copies(from.clone()),
            (Form::Selection, Left::Selected(from)) => Shares::Selection(from),
            // The other combinations do not occur.
            (_, left) => {
                left.give_back(buffers);
                Shares::Pass
            }
        })
    }

    /// Whether relevance passes through unchanged to the only value that is read.
    pub fn is_identity(&self) -> bool {
        matches!((&self.form, self.slots.as_slice()), (Form::Pass, [Slot { value: Some(_), .. }]))
    }

    /// Whether the share matrix is the identity.
    pub fn is_pass(&self) -> bool {
        matches!(self.form, Form::Pass)
    }

    /// The cost of applying the share matrix to one column.
    pub fn multiply_adds(&self) -> f64 {
        match &self.form {
            Form::Pass => 0.0,
            Form::Terms(terms) => terms.multiply_adds(),
            Form::Copies(_) | Form::Selection => self.outputs as f64,
        }
    }

    /// The costs of forming one row and one column of the share matrix.
    pub fn formed(&self) -> (f64, f64) {
        match &self.form {
            Form::Terms(terms) => terms.formed(),
            _ => (self.outputs as f64, self.inputs as f64),
        }
    }

    /// The row of the sink for constants, if one of the values is a constant of the sample.
    pub fn constant_row(&self) -> Option<usize> {
        self.causes.iter().position(|&cause| cause == Cause::Constant)
    }
}

impl<T: Scalar> Shares<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        match self {
            Self::Terms(shares) => shares.give_back(buffers),
            Self::Selection(from) => buffers.indices.give(from),
            Self::Pass | Self::Copies(_) => {}
        }
    }

    /// The inputs that the outputs of a sample are copies of.
    fn from(&self, sample: usize, outputs: usize) -> Option<&[usize]> {
        match self {
            Self::Copies(from) => Some(from),
            Self::Selection(from) => Some(&from[sample * outputs..][..outputs]),
            Self::Pass | Self::Terms(_) => None,
        }
    }

    /// Lists the inputs that can have a nonzero share for a sample, and returns their number.
    pub fn live(&self, sample: usize, outputs: usize, list: &mut [usize]) -> usize {
        if let Self::Terms(shares) = self {
            return shares.live(sample, list);
        }
        let Some(from) = self.from(sample, outputs) else {
            list.iter_mut().enumerate().for_each(|(input, at)| *at = input);
            return list.len();
        };
        list.fill(0);
        for &input in from {
            list[input] = 1;
        }
        let mut count = 0;
        for input in 0..list.len() {
            // Compacts the flags to a list of indices, in place and without branching.
            let there = list[input];
            list[count] = input;
            count += there;
        }
        count
    }

    /// Writes the listed rows of A for one sample to `out`, outputs x listed rows.
    pub fn rows(
        &self,
        sample: usize,
        (listed, inputs): (&[usize], usize),
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) {
        if let Self::Terms(shares) = self {
            return shares.rows(sample, listed, out, buffers);
        }
        // Row i of A is Aᵀ times unit vector i.
        let units = units(listed, inputs, buffers);
        let outputs = out.len() / listed.len().max(1);
        self.apply_transposed(sample, (&units, inputs), (out, outputs), buffers);
        buffers.values.give(units);
    }

    /// Writes the rows of the node's own sinks of a sample to `out`, one value per output.
    pub fn sink_rows(&self, sample: usize, out: &mut [T]) {
        if let Self::Terms(shares) = self {
            shares.sink_rows(sample, out);
        }
    }

    /// Writes the values of a sample's own sinks in the product with a block to `out`: one value
    /// for each sink and column.
    pub fn drain(&self, sample: usize, block: &[T], out: &mut [T]) {
        if let Self::Terms(shares) = self {
            shares.drain(sample, block, out);
        }
    }

    /// Computes Aᵀ X for one sample. The columns of `x` have `inputs` values, and those of `out`
    /// have `outputs` values.
    pub fn apply_transposed(
        &self,
        sample: usize,
        (x, inputs): (&[T], usize),
        (out, outputs): (&mut [T], usize),
        buffers: &mut Buffers<T>,
    ) {
        if x.is_empty() {
            // There are no columns if no input is live, or if the layers so far have no sinks.
            return;
        }
        match self {
            Self::Pass => linalg::copy(x, out),
            Self::Terms(shares) => shares.apply_transposed(sample, x, out, buffers),
            Self::Copies(_) | Self::Selection(_) => {
                let from = self.from(sample, outputs).unwrap_or_default();
                for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs)) {
                    out.iter_mut().zip(from).for_each(|(out, &input)| *out = x[input]);
                }
            }
        }
    }

    /// Computes A X for all samples. The columns of `x` have `outputs` values, and those of `out`
    /// have `inputs` values. Each sample has the same number of columns.
    pub fn apply(
        &self,
        (x, outputs): (&[T], usize),
        (out, inputs): (&mut [T], usize),
        columns: usize,
        buffers: &mut Buffers<T>,
    ) {
        match self {
            Self::Pass => linalg::copy(x, out),
            Self::Terms(shares) => shares.apply(x, out, buffers),
            Self::Copies(_) | Self::Selection(_) => {
                out.fill(T::zero());
                let blocks =
                    x.chunks_exact(outputs * columns).zip(out.chunks_exact_mut(inputs * columns));
                for (sample, (x, out)) in blocks.enumerate() {
                    let from = self.from(sample, outputs).unwrap_or_default();
                    for (x, out) in x.chunks_exact(outputs).zip(out.chunks_exact_mut(inputs)) {
                        // Several outputs can be copies of the same input.
                        from.iter().zip(x).for_each(|(&input, &x)| out[input] += x);
                    }
                }
            }
        }
    }

    pub fn terms(&self) -> Option<&TermShares<T>> {
        if let Self::Terms(shares) = self { Some(shares) } else { None }
    }
}
