//! Blocks: products of neighbouring factors.

use crate::accumulate::factor::Factor;
use crate::accumulate::{Label, Overflow, Shares};
use crate::linalg;
use crate::scalar::Scalar;

/// The shares of each input, and of each sink, in the outputs: for each sample, outputs x (inputs + sinks).
pub(crate) struct Prefix<T> {
    /// The layer whose inputs these are.
    layer: usize,
    inputs: usize,
    outputs: usize,
    values: Vec<T>,
    labels: Vec<Label>,
    /// The true shares of the inputs are `values` · 2^exponent, by sample. The sinks' stand as they are: what underflows
    /// there is nothing against the 1 that the ledger sums to.
    exponents: Vec<i32>,
}

/// The shares of the inputs in each output: for each sample, inputs x outputs.
pub(crate) struct Suffix<T> {
    /// The layer whose inputs these are.
    layer: usize,
    inputs: usize,
    outputs: usize,
    values: Vec<T>,
    /// For each label, one share for each output and sample.
    sinks: Vec<(Label, Vec<T>)>,
    exponents: Vec<i32>,
}

impl<T: Scalar> Prefix<T> {
    /// The factor as a block. Cost: inputs x outputs multiply-adds for each sample and term.
    pub fn new(factor: &Factor<'_, T>) -> Result<Self, Overflow> {
        let (inputs, outputs, samples) = (factor.inputs, factor.outputs, factor.samples());
        let mut values = vec![T::zero(); inputs * outputs * samples];
        for (sample, values) in values.chunks_exact_mut(inputs * outputs).enumerate() {
            factor.transposed_matrix(sample, values);
        }
        let layer = factor.layer;
        let block = Self { layer, inputs, outputs, values, labels: Vec::new(), exponents: vec![0; samples] };
        block.with_sinks(factor).normalised(factor.layer)
    }

    /// The product with the factor of the next layer.
    /// Cost: (inputs + sinks) times the factor's product, for each sample and term.
    pub fn times(self, factor: &Factor<'_, T>) -> Result<Self, Overflow> {
        let values = factor.apply_transposed(&self.values, self.inputs + self.labels.len());
        let block = Self { outputs: factor.outputs, values, ..self };
        block.with_sinks(factor).normalised(factor.layer)
    }

    /// Appends the factor's sinks as further rows of shares.
    fn with_sinks(mut self, factor: &Factor<'_, T>) -> Self {
        let rows = self.inputs + self.labels.len();
        let mut values = Vec::with_capacity(self.values.len() + factor.sinks.len() * self.outputs * factor.samples());
        for (sample, block) in self.values.chunks_exact(rows * self.outputs).enumerate() {
            values.extend_from_slice(block);
            for (_, sink) in &factor.sinks {
                values.extend_from_slice(&sink[sample * self.outputs..][..self.outputs]);
            }
        }
        self.values = values;
        self.labels.extend(factor.sinks.iter().map(|(label, _)| *label));
        self
    }

    fn normalised(mut self, layer: usize) -> Result<Self, Overflow> {
        let rows = self.inputs + self.labels.len();
        for (block, exponent) in self.values.chunks_exact_mut(rows * self.outputs).zip(&mut self.exponents) {
            let (shares, sinks) = block.split_at_mut(self.inputs * self.outputs);
            *exponent += normalise(shares).ok_or(Overflow { layer })?;
            if linalg::first_non_finite(sinks).is_some() {
                return Err(Overflow { layer });
            }
        }
        Ok(self)
    }
}

impl<T: Scalar> Suffix<T> {
    /// The product with the factor of the layer before.
    /// Cost: (1 + sinks) x outputs times the factor's product, for each sample and term.
    pub fn after(self, factor: &Factor<'_, T>) -> Result<Self, Overflow> {
        let mut sinks = Vec::with_capacity(factor.sinks.len() + self.sinks.len());
        for (label, row) in &factor.sinks {
            let mut shares = Vec::with_capacity(self.outputs * factor.samples());
            for (sample, &exponent) in self.exponents.iter().enumerate() {
                let row = &row[sample * self.inputs..][..self.inputs];
                let block = &self.values[sample * self.inputs * self.outputs..][..self.inputs * self.outputs];
                shares.extend(block.chunks_exact(self.inputs).map(|column| linalg::dot(row, column).times_two_to(exponent)));
            }
            sinks.push((*label, shares));
        }
        sinks.extend(self.sinks);
        let values = factor.apply(&self.values, self.outputs);
        Self { layer: factor.layer, inputs: factor.inputs, values, sinks, ..self }.normalised(factor.layer)
    }

    fn normalised(mut self, layer: usize) -> Result<Self, Overflow> {
        for (block, exponent) in self.values.chunks_exact_mut(self.inputs * self.outputs).zip(&mut self.exponents) {
            *exponent += normalise(block).ok_or(Overflow { layer })?;
        }
        if self.sinks.iter().any(|(_, shares)| linalg::first_non_finite(shares).is_some()) {
            return Err(Overflow { layer });
        }
        Ok(self)
    }

    /// The product with the block before, sample by sample.
    /// Cost: (inputs + sinks) x inner size x outputs multiply-adds for each sample.
    pub fn join(self, left: &Prefix<T>) -> Result<Self, Overflow> {
        let (inner, rows) = (self.inputs, left.inputs + left.labels.len());
        let mut values = Vec::with_capacity(left.inputs * self.outputs * self.exponents.len());
        let mut sinks: Vec<(Label, Vec<T>)> = left.labels.iter().map(|&label| (label, Vec::new())).collect();
        let mut product = vec![T::zero(); rows * self.outputs];
        let pairs = left.values.chunks_exact(rows * inner).zip(self.values.chunks_exact(inner * self.outputs));
        for ((left, right), &exponent) in pairs.zip(&self.exponents) {
            linalg::apply_transposed(left, inner, rows, right, &mut product);
            for column in product.chunks_exact(rows) {
                let (shares, of_sinks) = column.split_at(rows - sinks.len());
                values.extend_from_slice(shares);
                for ((_, sink), share) in sinks.iter_mut().zip(of_sinks) {
                    sink.push(share.times_two_to(exponent));
                }
            }
        }
        sinks.extend(self.sinks);
        let exponents = left.exponents.iter().zip(&self.exponents).map(|(a, b)| a + b).collect();
        let Prefix { layer, inputs, .. } = *left;
        Self { layer, inputs, outputs: self.outputs, values, sinks, exponents }.normalised(layer)
    }

    /// One [`Shares`] for each sample.
    ///
    /// The exponent is applied where the largest share then keeps its full precision, otherwise it stays.
    pub fn into_shares(self) -> Result<Vec<Shares<T>>, Overflow> {
        let smallest = T::min_positive_value() / T::epsilon();
        let blocks = self.values.chunks_exact(self.inputs * self.outputs).zip(&self.exponents);
        blocks
            .enumerate()
            .map(|(sample, (block, &exponent))| {
                let mut inputs = block.to_vec();
                let stored = linalg::max_abs(block);
                let max = stored.times_two_to(exponent);
                let fits = max >= smallest || exponent >= 0 || stored == T::zero();
                if fits && exponent != 0 {
                    for share in &mut inputs {
                        *share = share.times_two_to(exponent);
                    }
                }
                let outputs = sample * self.outputs..(sample + 1) * self.outputs;
                let sinks = self.sinks.iter().map(|(label, shares)| (*label, shares[outputs.clone()].to_vec())).collect();
                let shares = Shares { inputs, exponent: if fits { 0 } else { exponent }, sinks };
                if max.is_finite() { Ok(shares) } else { Err(Overflow { layer: self.layer }) }
            })
            .collect()
    }
}

impl<T: Scalar> From<Prefix<T>> for Suffix<T> {
    fn from(prefix: Prefix<T>) -> Self {
        let Prefix { layer, inputs, outputs, values, labels, exponents } = prefix;
        let rows = inputs + labels.len();
        let mut shares = vec![T::zero(); inputs * outputs * exponents.len()];
        let mut sinks: Vec<(Label, Vec<T>)> = labels.into_iter().map(|label| (label, Vec::new())).collect();
        for (block, shares) in values.chunks_exact(rows * outputs).zip(shares.chunks_exact_mut(inputs * outputs)) {
            let (of_inputs, of_sinks) = block.split_at(inputs * outputs);
            linalg::transpose(of_inputs, outputs, inputs, shares);
            for ((_, sink), row) in sinks.iter_mut().zip(of_sinks.chunks_exact(outputs)) {
                sink.extend_from_slice(row);
            }
        }
        Self { layer, inputs, outputs, values: shares, sinks, exponents }
    }
}

impl<T: Scalar> From<Suffix<T>> for Prefix<T> {
    fn from(suffix: Suffix<T>) -> Self {
        let Suffix { layer, inputs, outputs, values, sinks, exponents } = suffix;
        let rows = inputs + sinks.len();
        let mut shares = vec![T::zero(); rows * outputs * exponents.len()];
        for (sample, shares) in shares.chunks_exact_mut(rows * outputs).enumerate() {
            let (of_inputs, of_sinks) = shares.split_at_mut(inputs * outputs);
            linalg::transpose(&values[sample * inputs * outputs..][..inputs * outputs], inputs, outputs, of_inputs);
            for ((_, sink), row) in sinks.iter().zip(of_sinks.chunks_exact_mut(outputs)) {
                row.copy_from_slice(&sink[sample * outputs..][..outputs]);
            }
        }
        let labels = sinks.into_iter().map(|(label, _)| label).collect();
        Self { layer, inputs, outputs, values: shares, labels, exponents }
    }
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
