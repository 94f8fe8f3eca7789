//! Factors that are kept after the pass, for examining the inside of the network.

use std::sync::Arc;

use super::factor::{Factor, Linked, Network, Open, Prepared, Values};
use super::{OutOfRange, Overflow, Prefix, Suffix, Targets};
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Sequential, Visitor};

/// The factors of the chain for one sample.
#[derive(Debug)]
pub(crate) struct Kept<T: Scalar> {
    model: Sequential<T>,
    pub(super) network: Arc<Network<T>>,
    pub(super) factors: Vec<Factor<T>>,
    open: Open<T>,
    /// Samples outside the range that a rule assumes.
    noted: Vec<OutOfRange>,
}

impl<T: Scalar> Visitor<T> for Kept<T> {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        let factor = self.network.factor(leaving, buffers, &mut self.noted)?;
        self.keep(factor);
        Ok(())
    }

    fn route(
        &mut self,
        _buffers: &mut Buffers<T>,
        number: usize,
        from: Buffer<usize>,
        samples: usize,
    ) -> Result<(), Error> {
        self.keep(Factor { number, samples, values: Values::Route(from) });
        Ok(())
    }

    fn open(&mut self) {
        self.open.open();
    }

    fn next(&mut self) {
        self.open.next();
    }

    fn close(
        &mut self,
        _buffers: &mut Buffers<T>,
        number: usize,
        samples: usize,
    ) -> Result<(), Error> {
        let factor = self.open.close(number, samples);
        self.keep(factor);
        Ok(())
    }
}

impl<T: Scalar> Kept<T> {
    pub fn new(model: Sequential<T>, network: Arc<Network<T>>) -> Self {
        Self { model, network, factors: Vec::new(), open: Open::default(), noted: Vec::new() }
    }

    /// Takes the list of noted samples.
    pub fn take_noted(&mut self) -> Vec<OutOfRange> {
        std::mem::take(&mut self.noted)
    }

    fn keep(&mut self, factor: Factor<T>) {
        if let Some(factor) = self.open.place(factor) {
            self.factors.push(factor);
        }
    }

    /// The number of factors.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// The index in the model of a factor's layer.
    pub fn layer(&self, place: usize) -> usize {
        self.prepared(place).layer
    }

    pub fn model(&self) -> &Sequential<T> {
        &self.model
    }

    fn prepared(&self, place: usize) -> &Prepared<T> {
        &self.network.factors[self.factors[place].number]
    }

    /// The numbers of inputs and outputs of a factor.
    pub fn sizes(&self, place: usize) -> (usize, usize) {
        (self.prepared(place).inputs, self.prepared(place).outputs)
    }

    fn linked(&self, place: usize) -> Linked<'_, T> {
        Linked { factor: &self.factors[place], network: &self.network }
    }

    /// Forms the share matrix of a factor. Cost: the size of the matrix, for each term.
    pub fn shares(&self, linear: usize, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        Ok(Prefix::new(self.linked(linear), buffers)?.into_suffix(None, buffers))
    }

    /// The shares of each factor's inputs in the targets, from the last factor to the first. Cost:
    /// that of reverse accumulation.
    pub fn suffixes(
        &self,
        targets: Targets<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Vec<Suffix<T>>, Overflow> {
        let last = self.len() - 1;
        // The shares of the last factor's inputs.
        let mut block = match targets {
            Targets::All => self.shares(last, buffers)?,
            Targets::Selected(selected) => {
                Suffix::of_outputs(self.linked(last), &selected, buffers)?
            }
            Targets::Weighted(values, targets) => {
                let (_, outputs) = self.sizes(last);
                Suffix::of_targets(self.layer(last), values, outputs, targets, buffers)?
                    .after(self.linked(last), buffers)?
            }
        };
        let mut blocks = Vec::with_capacity(self.len());
        for linear in (0..last).rev() {
            // Copied, because `after` consumes its block and this one is part of the result.
            let next = block.copy(buffers).after(self.linked(linear), buffers)?;
            blocks.push(std::mem::replace(&mut block, next));
        }
        // The block of the first factor, whose inputs are those of the model.
        blocks.push(block);
        Ok(blocks)
    }

    /// Multiplies a block of shares of this factor's inputs by all previous factors, back to the
    /// model's inputs. Cost: that of reverse accumulation.
    pub fn back_from(
        &self,
        linear: usize,
        block: Suffix<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Suffix<T>, Overflow> {
        (0..linear).rev().try_fold(block, |block, linear| block.after(self.linked(linear), buffers))
    }

    /// The shares of the model's inputs in each input of this factor. This factor must not be the
    /// first one. Cost: that of forward accumulation up to this factor.
    pub fn prefix(&self, linear: usize, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        let first = Prefix::new(self.linked(0), buffers)?;
        let product = (1..linear)
            .try_fold(first, |prefix, linear| prefix.times(self.linked(linear), buffers))?;
        Ok(product.into_suffix(None, buffers))
    }
}
