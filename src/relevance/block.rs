//! Blocks: products of neighboring factors.

use nalgebra::DMatrix;

use super::factor::{Factor, gather};
use super::network::Network;
use super::{Overflow, units};
use crate::buffer::{Buffer, Buffers, Flows};
use crate::linalg;
use crate::scalar::Scalar;

/// The dimensions of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// The layer that the inputs belong to, for error messages.
    pub layer: usize,
    pub inputs: usize,
    /// The number of columns of shares: outputs of the last layer, or targets.
    pub outputs: usize,
    /// The number of rows of sinks. Rows of earlier layers come first.
    pub sinks: usize,
    pub samples: usize,
}

/// The shares of each live input, and of each sink, in the outputs: for each sample, outputs x
/// (live inputs + sinks).
///
/// An input is live if it can have a nonzero share. Other inputs have no row.
#[derive(Debug)]
pub(crate) struct Prefix<T> {
    extent: Extent,
    /// The live inputs of each sample, with room for all inputs.
    live: Buffer<usize>,
    /// The number of live inputs of each sample.
    counts: Buffer<usize>,
    /// The rows of each sample, with room for all inputs.
    values: Buffer<T>,
    /// The true shares of a sample's inputs are `values` · 2^exponent. Shares of sinks are
    /// unscaled: values that underflow there are negligible compared to 1, the sum of the ledger's
    /// shares.
    exponents: Buffer<i32>,
}

/// The shares of the inputs in each output (inputs x outputs for each sample), and the rows of the
/// sinks.
#[derive(Debug)]
pub(crate) struct Suffix<T> {
    pub extent: Extent,
    pub values: Buffer<T>,
    pub sinks: Buffer<T>,
    pub exponents: Buffer<i32>,
}

impl Extent {
    fn of<T: Scalar>(factor: Factor<'_, T>) -> Self {
        Self {
            layer: factor.layer(),
            inputs: factor.inputs(),
            outputs: factor.outputs(),
            sinks: factor.sinks(),
            samples: factor.samples(),
        }
    }

    fn rows(&self) -> usize {
        self.inputs + self.sinks
    }
}

/// The number of rows that are transposed together.
const BLOCK: usize = 32;

fn zeros<T: Scalar>(samples: usize, buffers: &mut Buffers<T>) -> Buffer<i32> {
    let mut exponents = buffers.exponents.take(samples);
    exponents.fill(0);
    exponents
}

impl<T: Scalar> Prefix<T> {
    fn with_room(extent: Extent, buffers: &mut Buffers<T>) -> Self {
        let Extent { inputs, samples, .. } = extent;
        Self {
            extent,
            // Sizes do not depend on the values, so repeated passes allocate nothing.
            live: buffers.indices.take(inputs * samples),
            counts: buffers.indices.take(samples),
            values: buffers.values.take(extent.rows() * extent.outputs * samples),
            exponents: zeros(samples, buffers),
        }
    }

    fn live(&self, sample: usize) -> &[usize] {
        &self.live[sample * self.extent.inputs..][..self.counts[sample]]
    }

    /// The rows of a sample: first those of the live inputs, then those of the sinks.
    fn rows(&self, sample: usize) -> &[T] {
        let rows = self.counts[sample] + self.extent.sinks;
        &self.values[sample * self.extent.rows() * self.extent.outputs..]
            [..rows * self.extent.outputs]
    }

    fn rows_mut(&mut self, sample: usize) -> &mut [T] {
        let rows = self.counts[sample] + self.extent.sinks;
        &mut self.values[sample * self.extent.rows() * self.extent.outputs..]
            [..rows * self.extent.outputs]
    }

    /// Forms a factor as a block. Cost: live inputs x outputs multiply-adds for each sample and
    /// term.
    pub fn new(factor: Factor<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        buffers.room = factor.inputs();
        let block = Self::of_factor(factor, buffers);
        buffers.room = 0;
        block?.normalized(factor.layer())
    }

    fn of_factor(factor: Factor<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let extent = Extent::of(factor);
        let mut block = Self::with_room(extent, buffers);
        for sample in 0..extent.samples {
            let live = &mut block.live[sample * extent.inputs..][..extent.inputs];
            let count = factor.live(sample, live);
            block.counts[sample] = count;
            // A copy, because the block's rows are borrowed mutably below.
            let mut live = buffers.indices.take(extent.inputs);
            live[..count].copy_from_slice(block.live(sample));
            let (shares, sinks) = block.rows_mut(sample).split_at_mut(count * extent.outputs);
            let exponent = factor.rows(sample, &live[..count], shares, buffers)?;
            factor.sink_rows(sample, sinks, buffers)?;
            block.exponents[sample] = exponent;
            buffers.indices.give(live);
        }
        Ok(block)
    }

    /// Multiplies in the factor of the next layer. Cost: (live inputs + sinks) times that of the
    /// factor's product, for each sample and term.
    pub fn times(self, factor: Factor<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        buffers.room = self.extent.rows();
        let product = self.times_factor(factor, buffers);
        buffers.room = 0;
        product?.normalized(factor.layer())
    }

    fn times_factor(
        self,
        factor: Factor<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Self, Overflow> {
        let next = Extent::of(factor);
        let extent =
            Extent { outputs: next.outputs, sinks: self.extent.sinks + next.sinks, ..self.extent };
        // The old block is still needed, so both exist at this point.
        let values = buffers.values.take(extent.rows() * extent.outputs * extent.samples);
        let old = self.values;
        let before = Self { values: old, ..self };
        let mut product = Self {
            extent,
            live: before.live,
            counts: before.counts,
            values,
            exponents: before.exponents,
        };
        for sample in 0..extent.samples {
            // Sinks of earlier layers are rows like any other. Those of this factor are added below
            // them.
            let live = product.counts[sample];
            let rows = live + before.extent.sinks;
            let size = before.extent.rows() * before.extent.outputs;
            let x = &before.values[sample * size..][..rows * before.extent.outputs];
            let (shares, sinks) = product.rows_mut(sample).split_at_mut(rows * extent.outputs);
            let exponent = factor.apply_transposed(sample, x, shares, buffers)?;
            // The rows of sinks are unscaled.
            if exponent != 0 {
                let old = &mut shares[live * extent.outputs..];
                for share in old {
                    *share = share.times_two_to(exponent);
                }
            }
            factor.sink_rows(sample, sinks, buffers)?;
            product.exponents[sample] += exponent;
        }
        buffers.values.give(before.values);
        Ok(product)
    }

    fn normalized(mut self, layer: usize) -> Result<Self, Overflow> {
        for sample in 0..self.extent.samples {
            let inputs = self.counts[sample] * self.extent.outputs;
            let (shares, sinks) = self.rows_mut(sample).split_at_mut(inputs);
            // Only the rows of inputs are scaled.
            let exponent = normalize(shares).ok_or(Overflow { layer })?;
            if linalg::first_non_finite(sinks).is_some() {
                return Err(Overflow { layer });
            }
            self.exponents[sample] += exponent;
        }
        Ok(self)
    }

    /// Converts to the other layout, keeping the `selected` outputs of each sample, or all outputs.
    pub fn into_suffix(self, selected: Option<&[usize]>, buffers: &mut Buffers<T>) -> Suffix<T> {
        let Extent { inputs, outputs, sinks, samples, .. } = self.extent;
        let columns = selected.map_or(outputs, |selected| selected.len() / samples);
        let mut values = buffers.values.take(inputs * columns * samples);
        let mut of_sinks = buffers.values.take(sinks * columns * samples);
        values.fill(T::zero());
        for sample in 0..samples {
            let shares = &mut values[sample * inputs * columns..][..inputs * columns];
            let of_sinks = &mut of_sinks[sample * sinks * columns..][..sinks * columns];
            // A prefix stores the shares row by row, a suffix column by column. Sinks are rows in
            // both.
            let (of_live, rows) = self.rows(sample).split_at(self.counts[sample] * outputs);
            let selected = selected.map(|selected| &selected[sample * columns..][..columns]);
            let output = |column: usize| selected.map_or(column, |selected| selected[column]);
            for (to, row) in of_sinks.chunks_exact_mut(columns).zip(rows.chunks_exact(outputs)) {
                to.iter_mut().enumerate().for_each(|(column, share)| *share = row[output(column)]);
            }
            // Column by column, so that writes are sequential. A few rows at a time stay in the
            // cache.
            let live = self.live(sample);
            for (live, of_live) in live.chunks(BLOCK).zip(of_live.chunks(BLOCK * outputs)) {
                for (column, shares) in shares.chunks_exact_mut(inputs).enumerate() {
                    let output = output(column);
                    for (&input, row) in live.iter().zip(of_live.chunks_exact(outputs)) {
                        shares[input] = row[output];
                    }
                }
            }
        }
        let Self { extent, live, counts, values: old, exponents } = self;
        buffers.values.give(old);
        buffers.indices.give(counts);
        buffers.indices.give(live);
        Suffix { extent: Extent { outputs: columns, ..extent }, values, sinks: of_sinks, exponents }
    }
}

impl<T: Scalar> Suffix<T> {
    /// Forms the columns of a factor for the chosen outputs as a block. Every sample has the same
    /// number of chosen outputs. Cost: inputs x chosen outputs, for each sample and term.
    pub fn of_outputs(
        factor: Factor<'_, T>,
        chosen: &[usize],
        buffers: &mut Buffers<T>,
    ) -> Result<Self, Overflow> {
        let whole = Extent::of(factor);
        let extent = Extent { outputs: chosen.len() / whole.samples, ..whole };
        let mut values = buffers.values.take(extent.inputs * chosen.len());
        let mut sinks = buffers.values.take(extent.sinks * chosen.len());
        for (sample, selected) in chosen.chunks_exact(extent.outputs).enumerate() {
            let size = extent.inputs * extent.outputs;
            if !factor.columns(sample, selected, &mut values[sample * size..][..size], buffers) {
                // A factor that cannot form its columns directly is multiplied by unit vectors.
                buffers.values.give(values);
                buffers.values.give(sinks);
                return Self::of_units(factor, whole, chosen, buffers);
            }
            // The rows of sinks for all outputs, of which only the selected ones are kept.
            let mut rows = buffers.values.take(extent.sinks * whole.outputs);
            factor.sink_rows(sample, &mut rows, buffers)?;
            let sinks = &mut sinks[sample * extent.sinks * extent.outputs..]
                [..extent.sinks * extent.outputs];
            for (to, row) in
                sinks.chunks_exact_mut(extent.outputs).zip(rows.chunks_exact(whole.outputs))
            {
                to.iter_mut().zip(selected).for_each(|(share, &k)| *share = row[k]);
            }
            buffers.values.give(rows);
        }
        Self { extent, values, sinks, exponents: zeros(extent.samples, buffers) }
            .normalized(extent.layer)
    }

    /// Forms a factor as a block.
    pub fn of_factor(factor: Factor<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        Ok(Prefix::new(factor, buffers)?.into_suffix(None, buffers))
    }

    /// The block of the explained values, from their relevance after a walk along all nodes, and
    /// the values of all sinks, for one sample.
    pub fn of_flows(
        network: &Network<T>,
        flows: &Flows<T>,
        of_sinks: &[T],
        buffers: &mut Buffers<T>,
    ) -> Result<Self, Overflow> {
        let (inputs, layer) = (network.inputs(), network.sharing(network.nodes[0]).layer);
        let outputs = network
            .entries
            .iter()
            .filter_map(|&value| flows[value].as_ref())
            .map(|flow| flow.columns.len())
            .max()
            .unwrap_or(1);
        let extent = Extent { layer, inputs, outputs, sinks: of_sinks.len() / outputs, samples: 1 };
        let mut values = buffers.values.take(inputs * outputs);
        let mut exponents = zeros(1, buffers);
        gather(&network.entry_slots, (flows, 1), &mut values, &mut exponents);
        let mut sinks = buffers.values.take(of_sinks.len());
        sinks.copy_from_slice(of_sinks);
        Self { extent, values, sinks, exponents }.normalized(layer)
    }

    fn of_units(
        factor: Factor<'_, T>,
        whole: Extent,
        selected: &[usize],
        buffers: &mut Buffers<T>,
    ) -> Result<Self, Overflow> {
        let units = units(selected, whole.outputs, buffers);
        let targets = selected.len() / whole.samples;
        Self::of_targets(whole.layer, units, whole.outputs, targets, buffers)?
            .after(factor, buffers)
    }

    /// The block at the end of a chain for weightings of its outputs: the relevance to start from.
    pub fn of_targets(
        layer: usize,
        values: Buffer<T>,
        outputs: usize,
        targets: usize,
        buffers: &mut Buffers<T>,
    ) -> Result<Self, Overflow> {
        let samples = values.len() / (outputs * targets);
        let extent = Extent { layer, inputs: outputs, outputs: targets, sinks: 0, samples };
        let sinks = buffers.values.take(0);
        Self { extent, values, sinks, exponents: zeros(samples, buffers) }.normalized(layer)
    }

    /// The true shares of one sample, inputs x outputs. Shares too small for the number type are 0.
    pub fn to_matrix(&self, sample: usize) -> Result<DMatrix<T>, Overflow> {
        let Extent { layer, inputs, outputs, .. } = self.extent;
        let stored = &self.values[sample * inputs * outputs..][..inputs * outputs];
        let shares = stored.iter().map(|share| share.times_two_to(self.exponents[sample]));
        let shares = DMatrix::from_iterator(inputs, outputs, shares);
        if linalg::first_non_finite(shares.as_slice()).is_some() {
            Err(Overflow { layer })
        } else {
            Ok(shares)
        }
    }

    /// Multiplies in the factor of the previous layer. Cost: (1 + sinks) x outputs times that of
    /// the factor's product, for each sample and term.
    pub fn after(self, factor: Factor<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let before = Extent::of(factor);
        let Extent { outputs, samples, .. } = self.extent;
        let extent = Extent { sinks: before.sinks + self.extent.sinks, outputs, ..before };
        let mut sinks = buffers.values.take(extent.sinks * outputs * samples);
        // Chunks need a nonzero size, even without sinks.
        for (sample, sinks) in sinks.chunks_exact_mut((extent.sinks * outputs).max(1)).enumerate() {
            // The sinks of later layers are final. They move below those of the new factor.
            let old = &mut sinks[before.sinks * outputs..];
            old.copy_from_slice(&self.sinks[sample * old.len()..][..old.len()]);
        }
        let mut values = buffers.values.take(extent.inputs * outputs * samples);
        let mut added = zeros(samples, buffers);
        let mut exponents = self.exponents;
        let mut drain = |sample: usize, first: usize, values: &[T]| {
            let new = &mut sinks[(sample * extent.sinks + first) * outputs..][..values.len()];
            new.iter_mut()
                .zip(values)
                // The block's shares are scaled, but those of sinks are not.
                .for_each(|(share, v)| *share = v.times_two_to(exponents[sample]));
        };
        factor.apply(&self.values, &mut values, &mut added, &mut drain, buffers)?;
        exponents.iter_mut().zip(&*added).for_each(|(exponent, added)| *exponent += added);
        buffers.exponents.give(added);
        buffers.values.give(self.values);
        buffers.values.give(self.sinks);
        Self { extent, values, sinks, exponents }.normalized(before.layer)
    }

    /// Multiplies by the block to the left, sample by sample. Cost: (live inputs + sinks) x inner
    /// size x outputs multiply-adds for each sample.
    pub fn join(self, left: Prefix<T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let Extent { inputs: inner, outputs, samples, .. } = self.extent;
        let inputs = left.extent.inputs;
        let extent =
            Extent { outputs, sinks: left.extent.sinks + self.extent.sinks, ..left.extent };
        let mut values = buffers.values.take(inputs * outputs * samples);
        let mut sinks = buffers.values.take(extent.sinks * outputs * samples);
        let mut exponents = self.exponents;
        for sample in 0..samples {
            let live = left.live(sample);
            let right = &self.values[sample * inner * outputs..][..inner * outputs];
            let (rows, rows_of_sinks) = left.rows(sample).split_at(live.len() * inner);
            let of_sinks = &mut sinks[sample * extent.sinks * outputs..][..extent.sinks * outputs];
            let (new, old) = of_sinks.split_at_mut(left.extent.sinks * outputs);
            old.copy_from_slice(&self.sinks[sample * old.len()..][..old.len()]);
            // The right block's exponent alone: the left block's sinks are unscaled.
            pass_sinks(rows_of_sinks, right, inner, exponents[sample], new);

            let shares = &mut values[sample * inputs * outputs..][..inputs * outputs];
            // Inputs that are not live have no row in the left block and get zeros.
            let max = linalg::apply_to_rows(rows, inner, right, live, shares);
            exponents[sample] += left.exponents[sample]
                + rescale(shares, max).ok_or(Overflow { layer: extent.layer })?;
        }
        for buffer in [self.values, self.sinks, left.values] {
            buffers.values.give(buffer);
        }
        buffers.indices.give(left.counts);
        buffers.indices.give(left.live);
        buffers.exponents.give(left.exponents);
        let product = Self { extent, values, sinks, exponents };
        product.sinks_are_finite(extent.layer)
    }

    /// Converts to the other layout.
    pub fn into_prefix(self, buffers: &mut Buffers<T>) -> Prefix<T> {
        let Extent { inputs, outputs, sinks, samples, .. } = self.extent;
        let mut prefix = Prefix::with_room(self.extent, buffers);
        prefix.exponents.copy_from_slice(&self.exponents);
        for sample in 0..samples {
            let shares = &self.values[sample * inputs * outputs..][..inputs * outputs];
            let live = &mut prefix.live[sample * inputs..][..inputs];
            let count = linalg::list_nonzero_rows(shares, live);
            prefix.counts[sample] = count;
            let mut live = buffers.indices.take(inputs);
            live[..count].copy_from_slice(prefix.live(sample));
            let (rows, of_sinks) = prefix.rows_mut(sample).split_at_mut(count * outputs);
            linalg::copy_rows(shares, inputs, outputs, |row| live[row], rows);
            of_sinks.copy_from_slice(&self.sinks[sample * sinks * outputs..][..sinks * outputs]);
            buffers.indices.give(live);
        }
        self.give_back(buffers);
        prefix
    }

    fn normalized(mut self, layer: usize) -> Result<Self, Overflow> {
        let blocks = self.values.chunks_exact_mut(self.extent.inputs * self.extent.outputs);
        for (block, exponent) in blocks.zip(self.exponents.iter_mut()) {
            *exponent += normalize(block).ok_or(Overflow { layer })?;
        }
        self.sinks_are_finite(layer)
    }

    fn sinks_are_finite(self, layer: usize) -> Result<Self, Overflow> {
        match linalg::first_non_finite(&self.sinks) {
            Some(_) => Err(Overflow { layer }),
            None => Ok(self),
        }
    }

    /// Applies a sample's exponent if the largest share keeps its full precision. Returns the
    /// remaining exponent, and a bound on the magnitude of the shares.
    pub fn apply_exponent(&mut self, sample: usize) -> Result<(i32, T), Overflow> {
        let exponent = self.exponents[sample];
        if exponent == 0 {
            // `normalize` guarantees this bound, so the shares need not be searched.
            return Ok((0, T::one().times_two_to(T::RANGE)));
        }
        let size = self.extent.inputs * self.extent.outputs;
        let shares = &mut self.values[sample * size..][..size];
        let stored = linalg::max_abs(shares);
        let max = stored.times_two_to(exponent);
        if !max.is_finite() {
            return Err(Overflow { layer: self.extent.layer });
        }
        // Applying the exponent would make small shares subnormal, which costs precision.
        if max < T::min_positive_value() / T::epsilon() && exponent < 0 && stored != T::zero() {
            return Ok((exponent, stored));
        }
        for share in shares {
            *share = share.times_two_to(exponent);
        }
        Ok((0, max))
    }

    pub fn samples(&self) -> usize {
        self.extent.samples
    }

    /// The shares of a sample's sinks, one row per sink.
    pub fn sinks_of(&self, sample: usize) -> &[T] {
        let size = self.extent.sinks * self.extent.outputs;
        &self.sinks[sample * size..][..size]
    }

    /// The shares of a sample, in the memory of `shares` or, if there is only one sample, in that
    /// of the block, which keeps the other one.
    pub fn take_shares(&mut self, sample: usize, mut shares: Vec<T>) -> Vec<T> {
        if self.extent.samples == 1 {
            return self.values.exchange(shares);
        }
        let size = self.extent.inputs * self.extent.outputs;
        shares.clear();
        shares.extend_from_slice(&self.values[sample * size..][..size]);
        shares
    }

    pub fn give_back(self, buffers: &mut Buffers<T>) {
        buffers.values.give(self.values);
        buffers.values.give(self.sinks);
        buffers.exponents.give(self.exponents);
    }
}

/// Multiplies the rows of sinks of a block by the next block, whose shares are `right` times
/// 2^exponent.
fn pass_sinks<T: Scalar>(rows: &[T], right: &[T], inner: usize, exponent: i32, sinks: &mut [T]) {
    linalg::multiply_by_transposed(right, inner, rows, sinks);
    if exponent != 0 {
        for share in sinks {
            *share = share.times_two_to(exponent);
        }
    }
}

/// Scales the values by an exact power of two, so that the largest magnitude is well within the
/// number type's range. The true values are the new ones times 2^(returned exponent). Returns
/// `None` if a value is not finite.
pub(super) fn normalize<T: Scalar>(values: &mut [T]) -> Option<i32> {
    let max = linalg::max_abs(values);
    rescale(values, max)
}

/// Scales like [`normalize`], for values whose largest magnitude is known.
fn rescale<T: Scalar>(values: &mut [T], mut max: T) -> Option<i32> {
    let (low, high) = (T::one().times_two_to(-T::RANGE), T::one().times_two_to(T::RANGE));
    let mut exponent = 0;
    while max.is_finite() && max != T::zero() && !(low..=high).contains(&max) {
        // `low` and `high` are reciprocals, so each step multiplies by 2^±RANGE.
        let (by, step) = if max < low { (high, -T::RANGE) } else { (low, T::RANGE) };
        for v in values.iter_mut() {
            *v *= by;
        }
        max *= by;
        exponent += step;
    }
    max.is_finite().then_some(exponent)
}
