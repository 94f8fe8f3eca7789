//! Factors that are kept when the pass is over, for whoever looks inside the network.

use std::sync::Arc;

use super::factor::{Factor, Linked, Prepared};
use super::{Overflow, Prefix, Suffix, Targets, link};
use crate::buffer::Buffers;
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Sequential};

/// The factor of each linear layer at one sample.
#[derive(Debug)]
pub(crate) struct Kept<T: Scalar> {
    model: Sequential<T>,
    prepared: Arc<[Prepared<T>]>,
    factors: Vec<Factor<T>>,
}

impl<T: Scalar> Kept<T> {
    pub fn new(model: Sequential<T>, prepared: Arc<[Prepared<T>]>) -> Self {
        Self { model, prepared, factors: Vec::new() }
    }

    /// Keeps the factor of the layer that the pass has just left.
    pub fn keep(&mut self, leaving: Leaving<'_, T>, buffers: &mut Buffers<T>) {
        self.factors.push(self.prepared[leaving.linear].factor(leaving, buffers));
    }

    /// How many factors there are.
    pub fn len(&self) -> usize {
        self.factors.len()
    }

    /// Whose index in the model a factor is.
    pub fn layer(&self, linear: usize) -> usize {
        self.prepared[linear].layer
    }

    pub fn model(&self) -> &Sequential<T> {
        &self.model
    }

    /// The inputs and outputs of a factor.
    pub fn sizes(&self, linear: usize) -> (usize, usize) {
        (self.prepared[linear].inputs, self.prepared[linear].outputs)
    }

    fn linked(&self, linear: usize) -> Result<Linked<'_, T>, Overflow> {
        link(&self.model, &self.prepared, &self.factors[linear])
    }

    /// A itself. Cost: its size for each term.
    pub fn shares(&self, linear: usize, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        Ok(Prefix::new(self.linked(linear)?, buffers)?.into_suffix(None, buffers))
    }

    /// The shares of each factor's inputs in the targets, the first factor's last. Cost: that of accumulation in reverse.
    pub fn suffixes(&self, targets: Targets<T>, buffers: &mut Buffers<T>) -> Result<Vec<Suffix<T>>, Overflow> {
        let last = self.len() - 1;
        let mut block = match targets {
            Targets::All => self.shares(last, buffers)?,
            Targets::Selected(selected) => Suffix::of_outputs(self.linked(last)?, &selected, buffers)?,
            Targets::Weighted(values, targets) => {
                let (_, outputs) = self.sizes(last);
                Suffix::of_targets(self.layer(last), values, outputs, targets, buffers)?.after(self.linked(last)?, buffers)?
            }
        };
        let mut blocks = Vec::with_capacity(self.len());
        for linear in (0..last).rev() {
            let next = block.copy(buffers).after(self.linked(linear)?, buffers)?;
            blocks.push(std::mem::replace(&mut block, next));
        }
        blocks.push(block);
        Ok(blocks)
    }

    /// The shares of the model's inputs in what a block has shares in, when the block is of the inputs of this factor.
    /// Cost: that of accumulation in reverse.
    pub fn back_from(&self, linear: usize, block: Suffix<T>, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        (0..linear).rev().try_fold(block, |block, linear| block.after(self.linked(linear)?, buffers))
    }

    /// The shares of the model's inputs in each input of this factor, which is not the first.
    /// Cost: that of accumulation forward, up to there.
    pub fn prefix(&self, linear: usize, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        let first = Prefix::new(self.linked(0)?, buffers)?;
        let product = (1..linear).try_fold(first, |prefix, linear| prefix.times(self.linked(linear)?, buffers))?;
        Ok(product.into_suffix(None, buffers))
    }
}
