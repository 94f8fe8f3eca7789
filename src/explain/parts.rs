//! Many targets of a large network, explained some at a time.
//!
//! The shares of a wide hidden layer can be many times larger than those of the inputs. If they are
//! computed for some targets at a time, the results need most of the memory. Each part runs the
//! forward pass again. That pass costs little, because a part has many targets.

use std::sync::Arc;

use nalgebra::DMatrix;

use super::explainer::Explainer;
use super::explanation::Explanation;
use super::pass::PartMemory;
use super::targets::Targets;
use crate::error::Error;
use crate::graph::Feed;
use crate::relevance::End;
use crate::scalar::Scalar;

impl<T: Scalar> Explainer<T> {
    /// The number of targets that are explained at a time, if these are not all.
    pub(super) fn targets_at_once(&self) -> Option<usize> {
        /// Blocks with fewer bytes are no burden.
        const SMALL: f64 = (256 << 20) as f64;
        /// The largest size of the blocks, as a fraction of the results.
        const LARGEST: f64 = 0.2;
        /// The number of targets that make up for another forward pass.
        const FEWEST: usize = 16;
        let (count, blocks) = (self.target_count(), self.values_of_blocks(1));
        let results = self.values_of_shares();
        let is_small = blocks * (size_of::<T>() as f64) < SMALL || blocks <= LARGEST * results;
        if is_small {
            return None;
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let fits = (count as f64 * LARGEST * results / blocks) as usize;
        // The blocks to the left of a bottleneck do not depend on the number of targets.
        Some(fits.max(FEWEST))
            .filter(|&at_once| at_once < count && self.values_of_blocks_for(at_once) < blocks / 2.0)
    }

    /// The number of values in the blocks of a sample for some targets.
    pub(super) fn values_of_blocks_for(&self, targets: usize) -> f64 {
        let accumulation = self.plan.accumulation();
        2.0 * self.network.plan(accumulation, End::Selected(targets)).largest_block(accumulation)
    }

    /// This explainer for some of its targets.
    pub(super) fn part_of_targets(&self, first: usize, count: usize) -> Self {
        let some = first..first + count;
        let targets = match &*self.targets {
            Targets::All => Targets::Outputs(some.collect()),
            // There is only one predicted output.
            Targets::Predicted => Targets::Predicted,
            Targets::Outputs(listed) => Targets::Outputs(listed[some].to_vec()),
            Targets::Weighted(weightings) => {
                Targets::Weighted(weightings.columns(first, count).into_owned())
            }
        };
        let mut part = Self { targets: Arc::new(targets), checkup: None, ..self.clone() };
        part.plan = self.network.plan(self.plan.accumulation(), part.end());
        part.prepared()
    }

    /// Explains one sample, some targets at a time.
    pub(super) fn explain_in_parts(
        &self,
        at_once: usize,
        feed: &Feed<'_, T>,
        memory: &mut PartMemory<T>,
        explanation: &mut Explanation<T>,
    ) -> Result<(), Error> {
        let (inputs, count) = (self.network.inputs(), self.target_count());
        let old = std::mem::replace(&mut explanation.shares, DMatrix::zeros(0, 0));
        *explanation = self.empty();
        let mut shares: Vec<T> = old.data.into();
        shares.clear();
        shares.reserve_exact(inputs * count);
        let mut sinks = vec![T::zero(); self.about.sinks.len() * count];
        let mut exponents = Vec::new();
        let mut piece = self.empty();
        for first in (0..count).step_by(at_once) {
            let some = at_once.min(count - first);
            let part = self.part_of_targets(first, some);
            part.explain_at_once(feed, memory, std::slice::from_mut(&mut piece))?;
            shares.extend_from_slice(piece.shares.as_slice());
            for (sinks, piece) in sinks.chunks_exact_mut(count).zip(piece.sinks.chunks_exact(some))
            {
                sinks[first..first + some].copy_from_slice(piece);
            }
            exponents.push(piece.exponent);
        }
        // The shares of all targets have one exponent: the largest of those of the parts.
        let exponent = exponents.iter().copied().max().unwrap_or(0);
        for (part, own) in shares.chunks_mut(inputs * at_once).zip(exponents) {
            if own != exponent {
                for share in part {
                    *share = share.times_two_to(own - exponent);
                }
            }
        }
        explanation.output = piece.output;
        explanation.probabilities = piece.probabilities;
        explanation.findings = piece.findings;
        explanation.shares = DMatrix::from_vec(inputs, count, shares);
        explanation.sinks = sinks;
        explanation.exponent = exponent;
        Ok(())
    }
}
