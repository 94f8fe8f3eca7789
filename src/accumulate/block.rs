//! Blocks: products of neighbouring factors.

use crate::accumulate::factor::Linked;
use crate::accumulate::Overflow;
use crate::buffer::{Buffer, Buffers};
use crate::linalg::{self, Matrix};
use crate::scalar::Scalar;

/// What a block is of, and how much.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// The layer whose inputs these are; errors name it.
    pub layer: usize,
    pub inputs: usize,
    /// How many columns of shares there are: outputs of the last layer, or targets.
    pub outputs: usize,
    /// How many rows of sinks, those of earlier layers first.
    pub sinks: usize,
    pub samples: usize,
}

/// The shares of each input, and of each sink, in the outputs: for each sample, outputs x (inputs + sinks).
#[derive(Debug)]
pub(crate) struct Prefix<T> {
    extent: Extent,
    values: Buffer<T>,
    /// The true shares of the inputs are `values` · 2^exponent, by sample. The sinks' stand as they are: what underflows
    /// there is nothing against the 1 that the ledger sums to.
    exponents: Buffer<i32>,
}

/// The shares of the inputs in each output: for each sample, inputs x outputs; and for each sample the sinks' rows.
#[derive(Debug)]
pub(crate) struct Suffix<T> {
    pub extent: Extent,
    pub values: Buffer<T>,
    pub sinks: Buffer<T>,
    pub exponents: Buffer<i32>,
}

impl Extent {
    fn of<T: Scalar>(linked: Linked<'_, T>) -> Self {
        let p = linked.prepared;
        Self { layer: p.layer, inputs: p.inputs, outputs: p.outputs, sinks: p.causes.len(), samples: linked.factor.samples }
    }

    fn rows(&self) -> usize {
        self.inputs + self.sinks
    }
}

fn zeros<T: Scalar>(samples: usize, buffers: &mut Buffers<T>) -> Buffer<i32> {
    let mut exponents = buffers.exponents.take(samples);
    exponents.fill(0);
    exponents
}

impl<T: Scalar> Prefix<T> {
    /// The factor as a block. Cost: inputs x outputs multiply-adds for each sample and term.
    pub fn new(linked: Linked<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let extent = Extent::of(linked);
        let mut values = buffers.values.take(extent.rows() * extent.outputs * extent.samples);
        let sinks = linked.factor.sinks.chunks_exact((extent.sinks * extent.outputs).max(1));
        for (sample, block) in values.chunks_exact_mut(extent.rows() * extent.outputs).enumerate() {
            let (shares, rows) = block.split_at_mut(extent.inputs * extent.outputs);
            linked.transposed_matrix(sample, shares, buffers);
            rows.copy_from_slice(sinks.clone().nth(sample).unwrap_or_default());
        }
        Self { extent, values, exponents: zeros(extent.samples, buffers) }.normalised(extent.layer)
    }

    /// The product with the factor of the next layer.
    /// Cost: (inputs + sinks) times the factor's product, for each sample and term.
    pub fn times(self, linked: Linked<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let next = Extent::of(linked);
        let extent = Extent { outputs: next.outputs, sinks: self.extent.sinks + next.sinks, ..self.extent };
        let (rows, size) = (self.extent.rows(), extent.rows() * extent.outputs);
        let mut values = buffers.values.take(size * extent.samples);
        let mut product = buffers.values.take(rows * extent.outputs * extent.samples);
        linked.apply_transposed(&self.values, &mut product, buffers);
        let of_product = product.chunks_exact(rows * extent.outputs);
        for (sample, (block, product)) in values.chunks_exact_mut(size).zip(of_product).enumerate() {
            let (before, after) = block.split_at_mut(product.len());
            before.copy_from_slice(product);
            after.copy_from_slice(&linked.factor.sinks[sample * after.len()..][..after.len()]);
        }
        buffers.values.give(product);
        buffers.values.give(self.values);
        Self { extent, values, exponents: self.exponents }.normalised(next.layer)
    }

    fn normalised(mut self, layer: usize) -> Result<Self, Overflow> {
        let Extent { inputs, outputs, .. } = self.extent;
        let blocks = self.values.chunks_exact_mut(self.extent.rows() * outputs);
        for (block, exponent) in blocks.zip(self.exponents.iter_mut()) {
            let (shares, sinks) = block.split_at_mut(inputs * outputs);
            *exponent += normalise(shares).ok_or(Overflow { layer })?;
            if linalg::first_non_finite(sinks).is_some() {
                return Err(Overflow { layer });
            }
        }
        Ok(self)
    }

    /// The same in the other layout, with the `selected` outputs of each sample, or with all.
    pub fn into_suffix(self, selected: Option<&[usize]>, buffers: &mut Buffers<T>) -> Suffix<T> {
        let Extent { inputs, outputs, sinks, samples, .. } = self.extent;
        let columns = selected.map_or(outputs, |selected| selected.len() / samples);
        let mut values = buffers.values.take(inputs * columns * samples);
        let mut of_sinks = buffers.values.take(sinks * columns * samples);
        for (sample, block) in self.values.chunks_exact(self.extent.rows() * outputs).enumerate() {
            let values = &mut values[sample * inputs * columns..][..inputs * columns];
            let of_sinks = &mut of_sinks[sample * sinks * columns..][..sinks * columns];
            match selected.map(|selected| &selected[sample * columns..][..columns]) {
                None => {
                    linalg::transpose(block, outputs, inputs, (outputs, inputs), values);
                    of_sinks.copy_from_slice(&block[inputs * outputs..]);
                }
                Some(selected) => {
                    for (row, of_row) in block.chunks_exact(outputs).enumerate() {
                        for (column, &k) in selected.iter().enumerate() {
                            match row.checked_sub(inputs) {
                                None => values[column * inputs + row] = of_row[k],
                                Some(sink) => of_sinks[sink * columns + column] = of_row[k],
                            }
                        }
                    }
                }
            }
        }
        buffers.values.give(self.values);
        let extent = Extent { outputs: columns, ..self.extent };
        Suffix { extent, values, sinks: of_sinks, exponents: self.exponents }
    }
}

impl<T: Scalar> Suffix<T> {
    /// The selected outputs of a factor as a block, as many for each sample. Cost: inputs x those for each sample and term.
    pub fn of_outputs(linked: Linked<'_, T>, selected: &[usize], buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let whole = Extent::of(linked);
        let extent = Extent { outputs: selected.len() / whole.samples, ..whole };
        let mut values = buffers.values.take(extent.inputs * selected.len());
        let mut sinks = buffers.values.take(extent.sinks * selected.len());
        let of_factor = |sample: usize, sink: usize, k: usize| {
            linked.factor.sinks[(sample * whole.sinks + sink) * whole.outputs + k]
        };
        for (sample, selected) in selected.chunks_exact(extent.outputs).enumerate() {
            let size = extent.inputs * extent.outputs;
            linked.columns(sample, selected, &mut values[sample * size..][..size], buffers);
            for sink in 0..extent.sinks {
                let row = &mut sinks[(sample * extent.sinks + sink) * extent.outputs..][..extent.outputs];
                row.iter_mut().zip(selected).for_each(|(share, &k)| *share = of_factor(sample, sink, k));
            }
        }
        Self { extent, values, sinks, exponents: zeros(extent.samples, buffers) }.normalised(extent.layer)
    }

    /// The block that ends a chain in weightings of its outputs: their relevance to begin with.
    pub fn of_targets(layer: usize, values: Buffer<T>, outputs: usize, targets: usize, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let samples = values.len() / (outputs * targets);
        let extent = Extent { layer, inputs: outputs, outputs: targets, sinks: 0, samples };
        let sinks = buffers.values.take(0);
        Self { extent, values, sinks, exponents: zeros(samples, buffers) }.normalised(layer)
    }

    /// The product with the factor of the layer before.
    /// Cost: (1 + sinks) x outputs times the factor's product, for each sample and term.
    pub fn after(self, linked: Linked<'_, T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        let before = Extent::of(linked);
        let Extent { inputs: inner, outputs, samples, .. } = self.extent;
        let extent = Extent { sinks: before.sinks + self.extent.sinks, outputs, ..before };
        let mut sinks = buffers.values.take(extent.sinks * outputs * samples);
        for (sample, sinks) in sinks.chunks_exact_mut((extent.sinks * outputs).max(1)).enumerate() {
            let (new, old) = sinks.split_at_mut(before.sinks * outputs);
            let block = &self.values[sample * inner * outputs..][..inner * outputs];
            let rows = linked.factor.sinks[sample * before.sinks * inner..].chunks_exact(inner);
            for (share, row) in new.chunks_exact_mut(outputs).zip(rows) {
                for (share, column) in share.iter_mut().zip(block.chunks_exact(inner)) {
                    *share = with_exponent(linalg::dot(row, column), self.exponents[sample]);
                }
            }
            old.copy_from_slice(&self.sinks[sample * old.len()..][..old.len()]);
        }
        let mut values = buffers.values.take(extent.inputs * outputs * samples);
        linked.apply(&self.values, &mut values, buffers);
        buffers.values.give(self.values);
        buffers.values.give(self.sinks);
        Self { extent, values, sinks, exponents: self.exponents }.normalised(before.layer)
    }

    /// The product with the block before, sample by sample.
    /// Cost: (inputs + sinks) x inner size x outputs multiply-adds for each sample, less the rows that are zero.
    pub fn join(self, left: Prefix<T>, buffers: &mut Buffers<T>) -> Result<Self, Overflow> {
        // So many columns are multiplied at once, that they are spread over the rows while they are in the cache.
        const COLUMNS: usize = 24;
        let Extent { inputs: inner, outputs, samples, .. } = self.extent;
        let (rows, inputs) = (left.extent.rows(), left.extent.inputs);
        let extent = Extent { outputs, sinks: left.extent.sinks + self.extent.sinks, ..left.extent };
        let mut values = buffers.values.take(inputs * outputs * samples);
        let mut sinks = buffers.values.take(extent.sinks * outputs * samples);
        let mut live = buffers.indices.take(rows);
        let mut matrix = buffers.values.take(rows * inner);
        let mut product = buffers.values.take(rows * COLUMNS);
        values.fill(T::zero());
        for sample in 0..samples {
            let exponent = self.exponents[sample];
            let of_left = &left.values[sample * rows * inner..][..rows * inner];
            let mut count = 0;
            for (row, values) in of_left.chunks_exact(inner).enumerate() {
                live[count] = row;
                count += usize::from(row >= inputs || linalg::any_nonzero(values));
            }
            let live = &live[..count];
            for (at, &row) in live.iter().enumerate() {
                for (j, &share) in of_left[row * inner..][..inner].iter().enumerate() {
                    matrix[j * count + at] = share;
                }
            }
            let matrix = Matrix { values: &matrix[..count * inner], outputs: count, inputs: inner };
            let shares = &mut values[sample * inputs * outputs..][..inputs * outputs];
            let (new, old) = sinks[sample * extent.sinks * outputs..][..extent.sinks * outputs].split_at_mut(left.extent.sinks * outputs);
            old.copy_from_slice(&self.sinks[sample * old.len()..][..old.len()]);
            let right = &self.values[sample * inner * outputs..][..inner * outputs];
            for (first, right) in right.chunks(inner * COLUMNS).enumerate().map(|(at, right)| (at * COLUMNS, right)) {
                let columns = right.len() / inner;
                let product = &mut product[..count * columns];
                if count > 0 {
                    linalg::apply(matrix, None, right, product);
                }
                for (column, product) in product.chunks_exact(count.max(1)).enumerate() {
                    let column = first + column;
                    for (&row, &share) in live.iter().zip(product) {
                        match row.checked_sub(inputs) {
                            None => shares[column * inputs + row] = share,
                            Some(sink) => new[sink * outputs + column] = with_exponent(share, exponent),
                        }
                    }
                }
            }
        }
        let mut exponents = self.exponents;
        exponents.iter_mut().zip(&*left.exponents).for_each(|(a, b)| *a += b);
        for buffer in [product, matrix, self.values, self.sinks, left.values] {
            buffers.values.give(buffer);
        }
        buffers.indices.give(live);
        buffers.exponents.give(left.exponents);
        Self { extent, values, sinks, exponents }.normalised(extent.layer)
    }

    /// The same in the other layout.
    pub fn into_prefix(self, buffers: &mut Buffers<T>) -> Prefix<T> {
        let Extent { inputs, outputs, sinks, samples, .. } = self.extent;
        let mut values = buffers.values.take(self.extent.rows() * outputs * samples);
        for (sample, block) in values.chunks_exact_mut(self.extent.rows() * outputs).enumerate() {
            let (shares, rows) = block.split_at_mut(inputs * outputs);
            let of_sample = &self.values[sample * inputs * outputs..][..inputs * outputs];
            linalg::transpose(of_sample, inputs, outputs, (inputs, outputs), shares);
            rows.copy_from_slice(&self.sinks[sample * sinks * outputs..][..sinks * outputs]);
        }
        buffers.values.give(self.values);
        buffers.values.give(self.sinks);
        Prefix { extent: self.extent, values, exponents: self.exponents }
    }

    fn normalised(mut self, layer: usize) -> Result<Self, Overflow> {
        let blocks = self.values.chunks_exact_mut(self.extent.inputs * self.extent.outputs);
        for (block, exponent) in blocks.zip(self.exponents.iter_mut()) {
            *exponent += normalise(block).ok_or(Overflow { layer })?;
        }
        match linalg::first_non_finite(&self.sinks) {
            Some(_) => Err(Overflow { layer }),
            None => Ok(self),
        }
    }

    /// Applies a sample's exponent where its largest share then keeps its full precision; otherwise it is what is returned.
    pub fn apply_exponent(&mut self, sample: usize) -> Result<i32, Overflow> {
        let exponent = self.exponents[sample];
        if exponent == 0 {
            return Ok(0);
        }
        let size = self.extent.inputs * self.extent.outputs;
        let shares = &mut self.values[sample * size..][..size];
        let stored = linalg::max_abs(shares);
        let max = stored.times_two_to(exponent);
        if !max.is_finite() {
            return Err(Overflow { layer: self.extent.layer });
        }
        if max < T::min_positive_value() / T::epsilon() && exponent < 0 && stored != T::zero() {
            return Ok(exponent);
        }
        for share in shares {
            *share = share.times_two_to(exponent);
        }
        Ok(0)
    }

    pub fn give_back(self, buffers: &mut Buffers<T>) {
        buffers.values.give(self.values);
        buffers.values.give(self.sinks);
        buffers.exponents.give(self.exponents);
    }
}

fn with_exponent<T: Scalar>(value: T, exponent: i32) -> T {
    if exponent == 0 { value } else { value.times_two_to(exponent) }
}

/// Brings the largest entry into the number type's comfortable range by exact powers of two; the true values are the
/// new ones times 2^(what is returned). `None` where an entry is not finite.
fn normalise<T: Scalar>(values: &mut [T]) -> Option<i32> {
    let (low, high) = (T::one().times_two_to(-T::RANGE), T::one().times_two_to(T::RANGE));
    let mut max = linalg::max_abs(values);
    let mut exponent = 0;
    while max.is_finite() && max != T::zero() && !(low..=high).contains(&max) {
        let (by, step) = if max < low { (high, -T::RANGE) } else { (low, T::RANGE) };
        for v in values.iter_mut() {
            *v *= by;
        }
        max *= by;
        exponent += step;
    }
    max.is_finite().then_some(exponent)
}
