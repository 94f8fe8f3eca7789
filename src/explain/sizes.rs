//! How much memory the results need.

use super::explainer::{Checkup, Explainer};
use crate::error::Error;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::scalar::Scalar;

impl<T: Scalar> Explainer<T> {
    /// The number of explained targets.
    pub(super) fn target_count(&self) -> usize {
        self.targets.count(self.model().outputs())
    }

    /// The number of values in the explanation of a sample.
    pub(super) fn values_of_shares(&self) -> f64 {
        let rows = self.network.inputs() as f64 + self.about.sinks.len() as f64;
        rows * self.target_count() as f64
    }

    /// The number of values in the explanations of this many samples.
    pub(super) fn values_of(&self, samples: usize) -> f64 {
        let of_sample = self.values_of_shares();
        let of_health = |checkup: &Checkup<T>| {
            // The relevance of all layers, for the cancellation, and the explanation in f64, whose
            // values are twice as large.
            let cancellation = self.values_of_layers() * self.target_count() as f64;
            let finer = 2.0 * (of_sample + self.values_of_blocks(1));
            if checkup.finer.runs() { cancellation + finer } else { cancellation }
        };
        of_sample * samples as f64 + self.checkup.as_ref().map_or(0.0, of_health)
    }

    /// The number of units of all layers, with their sinks.
    fn values_of_layers(&self) -> f64 {
        let of_node = |&node: &usize| {
            let sharing = self.network.sharing(node);
            (sharing.outputs + sharing.causes.len()) as f64
        };
        self.network.inputs() as f64 + self.network.nodes.iter().map(of_node).sum::<f64>()
    }

    /// The number of values in the blocks of this many samples during a multiplication: the new
    /// block and the one it is computed from.
    pub(super) fn values_of_blocks(&self, samples: usize) -> f64 {
        2.0 * samples as f64 * self.plan.largest_block(self.plan.accumulation())
    }

    /// The number of values in the blocks of this many samples, or of some of their targets if these
    /// are explained some at a time.
    fn values_of_blocks_at_once(&self, samples: usize) -> f64 {
        match self.targets_at_once() {
            None => self.values_of_blocks(samples),
            // Each thread explains some targets of one sample.
            Some(some) => {
                let fraction = some as f64 / self.target_count() as f64;
                let of_part = fraction * self.values_of_shares() + self.values_of_blocks_for(some);
                samples.min(linalg::threads()) as f64 * of_part
            }
        }
    }

    /// Checks that the explanations of `samples` samples fit within the memory limit if `at_once`
    /// of them are computed at a time.
    pub(super) fn check_size(&self, samples: usize, at_once: usize) -> Result<(), Error> {
        let blocks = self.values_of_blocks_at_once(at_once);
        let values = self.values_of(samples) + blocks;
        let (inputs, targets) = (self.network.inputs(), self.target_count());
        let what = || match samples {
            1 => format!(
                "the shares of {inputs} inputs in {targets} outputs, with intermediate results,"
            ),
            _ => format!(
                "the shares of {inputs} inputs in {targets} outputs for {samples} samples, with \
                 intermediate results,"
            ),
        };
        let too_large_alone = || {
            self.limit
                .check::<T>(
                    self.values_of(1) + self.values_of_blocks_at_once(1),
                    String::new,
                    String::new,
                )
                .is_err()
        };
        let remedy = || {
            let fewer = if samples == 1 || too_large_alone() {
                "explain fewer outputs (Targets::Predicted, or a list of them)"
            } else {
                "explain the batch in parts, or fewer outputs (Targets::Predicted, or a list of \
                 them)"
            };
            format!("{fewer}, or raise the limit with Explainer::memory_limit")
        };
        self.limit.check::<T>(values, what, remedy)
    }

    /// Checks that a trace is within the memory limit. A trace holds the shares of every layer as a
    /// block and as a matrix.
    pub(super) fn check_size_of_trace(&self) -> Result<MemoryLimit, Error> {
        let (targets, outputs) = (self.target_count() as f64, self.model().outputs() as f64);
        let layers = self.values_of_layers();
        let values = self.values_of(1) + (2.0 * layers + outputs) * targets;
        let remedy = "trace fewer outputs (Targets::Predicted, or a list of them), or raise the \
            limit with Explainer::memory_limit";
        self.limit.check::<T>(
            values,
            || format!("a trace of {targets} outputs"),
            || remedy.to_owned(),
        )?;
        Ok(self.limit)
    }
}
