//! The share matrix of a linear node, for the current samples.

use std::sync::Arc;

use super::Cause;
use super::terms::{Scale, Term, Terms};
use super::totals::{SinkShare, Undefined};
use crate::buffer::{Buffer, Buffers};
use crate::layer::{self, LinearMap};
use crate::linalg;
use crate::scalar::Scalar;

/// The share matrix A = Σ diag(u) V diag(t) for some samples, and the rows of sinks below it.
#[derive(Debug)]
pub(crate) struct TermShares<T: Scalar> {
    /// The rule's terms, with the matrices V.
    pub(super) terms: Arc<Terms<T>>,
    pub(super) samples: usize,
    /// z, samples as columns.
    pub(super) z: Buffer<T>,
    /// f(z) for each transform, samples as columns.
    pub(super) mapped: Buffer<T>,
    /// Each t, samples as columns.
    pub(super) t: Buffer<T>,
    /// The ε of each group and sample.
    pub(super) epsilons: Buffer<T>,
    /// For each sample and stored cause, one share per output. The other sinks follow from t: the
    /// stabilizer absorbs |t| ε, the bias absorbs t times the bias, and [`Undefined`]
    /// marks an output that has no shares.
    pub(super) stored: Buffer<T>,
}

impl<T: Scalar> TermShares<T> {
    pub fn give_back(self, buffers: &mut Buffers<T>) {
        for buffer in [self.stored, self.epsilons, self.t, self.mapped, self.z] {
            buffers.values.give(buffer);
        }
    }

    pub(super) fn terms(&self) -> &Terms<T> {
        &self.terms
    }

    /// The u of a term for all samples, `None` for ones.
    fn u(&self, term: &Term) -> Option<&[T]> {
        let Self { z, mapped, .. } = self;
        match term.u {
            Scale::Inputs => Some(z),
            Scale::Ones => None,
            Scale::Mapped(k) => Some(&mapped[k * z.len()..][..z.len()]),
        }
    }

    fn t(&self, term: &Term) -> &[T] {
        // The vectors t follow one another, each with all samples.
        let size = self.samples * self.terms.outputs;
        &self.t[term.t * size..][..size]
    }

    pub(super) fn u_of(&self, term: &Term, sample: usize) -> Option<&[T]> {
        self.u(term).map(|u| &u[sample * self.terms.inputs..][..self.terms.inputs])
    }

    fn t_of(&self, term: &Term, sample: usize) -> &[T] {
        &self.t(term)[sample * self.terms.outputs..][..self.terms.outputs]
    }

    /// The stored rows of sinks of a sample, each with its position among the causes.
    fn stored(&self, sample: usize) -> impl Iterator<Item = (usize, &[T])> {
        let Terms { stored, outputs, .. } = &*self.terms;
        let rows = self.stored[sample * stored.len() * outputs..].chunks_exact(*outputs);
        stored.iter().zip(rows).filter_map(move |(&cause, row)| Some((self.place(cause)?, row)))
    }

    /// The sinks of a sample that follow from t: the position among the causes, the t, and how the
    /// share follows from it.
    fn derived(&self, sample: usize) -> impl Iterator<Item = (usize, &[T], SinkShare<'_, T>)> {
        let (shares, outputs) = (self, self.terms.outputs);
        self.terms.groups.iter().enumerate().flat_map(move |(number, group)| {
            let t = &shares.t[(group.t * shares.samples + sample) * outputs..][..outputs];
            let epsilon = shares.epsilons[number * shares.samples + sample];
            group
                .sinks(epsilon)
                .filter_map(move |(cause, derived)| Some((self.place(cause)?, t, derived)))
        })
    }

    fn place(&self, cause: Cause) -> Option<usize> {
        self.terms.causes.iter().position(|&other| other == cause)
    }

    /// Writes the rows of sinks of a sample to `out`, one share per output.
    pub fn sink_rows(&self, sample: usize, out: &mut [T]) {
        let outputs = self.terms.outputs;
        out.fill(T::zero());
        for (place, row) in self.stored(sample) {
            linalg::add_scaled(T::one(), row, &mut out[place * outputs..][..outputs]);
        }
        for (place, t, derived) in self.derived(sample) {
            // Several groups can add to the same row.
            let row = out[place * outputs..][..outputs].iter_mut().zip(t);
            match derived {
                SinkShare::Times(bias) if bias.each() == 1 => {
                    row.zip(bias.values()).for_each(|((out, &t), &b)| *out += t * b);
                }
                SinkShare::Times(bias) => {
                    row.zip(bias.iter()).for_each(|((out, &t), b)| *out += t * b);
                }
                SinkShare::Magnitude(by) => row.for_each(|(out, &t)| *out += t.abs() * by),
                SinkShare::Lost(c) => {
                    row.filter(|(_, t)| Undefined::is(**t)).for_each(|(out, _)| *out += c);
                }
            }
        }
    }

    /// Writes the values of a sample's sinks in the product with a block to `out`: one value for
    /// each sink and column.
    pub fn drain(&self, sample: usize, block: &[T], out: &mut [T]) {
        let outputs = self.terms.outputs;
        let columns = block.len() / outputs;
        out.fill(T::zero());
        for (column, x) in block.chunks_exact(outputs).enumerate() {
            for (place, row) in self.stored(sample) {
                out[place * columns + column] += T::from_f64(linalg::dot(row, x));
            }
            for (place, t, derived) in self.derived(sample) {
                out[place * columns + column] += T::from_f64(derived.sum(t, x));
            }
        }
    }

    /// Lists the inputs that can have a nonzero share for a sample, and returns their number.
    pub fn live(&self, sample: usize, list: &mut [usize]) -> usize {
        let mut count = 0;
        for i in 0..list.len() {
            let mut any = false;
            for term in &self.terms.list {
                any |= self.u_of(term, sample).is_none_or(|u| u[i] != T::zero());
            }
            // Always written but only counted if live, so there is no branch to mispredict.
            list[count] = i;
            count += usize::from(any);
        }
        count
    }

    /// Writes the listed rows of A for one sample to `out`, outputs x listed rows. Cost: this size
    /// for each term.
    pub fn rows(&self, sample: usize, listed: &[usize], out: &mut [T], buffers: &mut Buffers<T>) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_inputs(listed, u, t, out));
    }

    /// Writes the listed columns of A for one sample to `out`, inputs x listed columns. Cost: this
    /// size for each term.
    pub fn columns(
        &self,
        sample: usize,
        listed: &[usize],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) {
        self.form(sample, out, buffers, |v, u, t, out| v.add_scaled_outputs(listed, u, t, out));
    }

    /// Sets `out` to zero, and calls `add` for each term of one sample.
    fn form(
        &self,
        sample: usize,
        out: &mut [T],
        buffers: &mut Buffers<T>,
        add: impl Fn(&dyn LinearMap<T>, &[T], &[T], &mut [T]),
    ) {
        out.fill(T::zero());
        let mut ones = buffers.values.take(self.terms.inputs);
        ones.fill(T::one());
        for term in &self.terms.list {
            add(
                self.terms.map(term.v),
                self.u_of(term, sample).unwrap_or(&ones),
                self.t_of(term, sample),
                out,
            );
        }
        buffers.values.give(ones);
    }

    /// Computes Aᵀ X for one sample. The columns of `x` have `inputs` values, and those of `out`
    /// have `outputs` values. Cost: that of the map's product, for each column and term, except for
    /// the inputs where u is 0.
    pub fn apply_transposed(
        &self,
        sample: usize,
        x: &[T],
        out: &mut [T],
        buffers: &mut Buffers<T>,
    ) {
        self.sum(out, self.terms.outputs, buffers, |term, out, _| {
            // Aᵀ X = Σ diag(t) Vᵀ diag(u) X. The map itself applies Vᵀ.
            match self.u_of(term, sample) {
                Some(u) => self.terms.map(term.v).apply_scaled(u, x, out),
                None => self.terms.map(term.v).apply(x, out),
            }
            layer::scale_columns(out, self.t_of(term, sample), self.terms.outputs);
        });
    }

    /// Computes A X for all samples. The columns of `x` have `outputs` values, and those of `out`
    /// have `inputs` values. Each sample has the same number of columns. Cost: that of
    /// [`apply_transposed`](Self::apply_transposed).
    pub fn apply(&self, x: &[T], out: &mut [T], buffers: &mut Buffers<T>) {
        self.sum(out, self.terms.inputs, buffers, |term, out, buffers| {
            // A X = Σ diag(u) V diag(t) X, so X is scaled first.
            let mut scaled = buffers.values.take(x.len());
            self.scale(x, self.t(term), &mut scaled);
            match self.u(term) {
                // This happens if a term is only for outputs of one sign, and all outputs have the
                // other sign.
                _ if linalg::max_abs(&scaled) == T::zero() => out.fill(T::zero()),
                Some(u) => self.terms.map(term.v).apply_transposed_scaled(&scaled, u, out),
                None => self.terms.map(term.v).apply_transposed(&scaled, out),
            }
            buffers.values.give(scaled);
        });
    }

    /// Multiplies each sample's columns by its t.
    fn scale(&self, x: &[T], t: &[T], scaled: &mut [T]) {
        let outputs = self.terms.outputs;
        // The number of values in a sample's columns.
        let size = x.len() / t.len() * outputs;
        for ((x, scaled), t) in
            x.chunks_exact(size).zip(scaled.chunks_exact_mut(size)).zip(t.chunks_exact(outputs))
        {
            for (x, scaled) in x.chunks_exact(outputs).zip(scaled.chunks_exact_mut(outputs)) {
                linalg::zip_parts(scaled, x, |first, scaled, x| {
                    for ((scaled, &x), &t) in scaled.iter_mut().zip(x).zip(&t[first..]) {
                        *scaled = x * t;
                    }
                });
            }
        }
    }

    /// Sums the results of `product` over all terms. The columns of `out` have this height.
    fn sum(
        &self,
        out: &mut [T],
        height: usize,
        buffers: &mut Buffers<T>,
        product: impl Fn(&Term, &mut [T], &mut Buffers<T>),
    ) {
        let Some((first, others)) = self.terms.list.split_first() else {
            return out.fill(T::zero());
        };
        product(first, out, buffers);
        for term in others {
            let mut next = buffers.take_columns(height, out.len() / height);
            product(term, &mut next, buffers);
            linalg::add_scaled(T::one(), &next, out);
            buffers.values.give(next);
        }
    }
}
