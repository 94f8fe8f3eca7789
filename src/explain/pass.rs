//! One pass over the nodes, for some samples, and what becomes of its results.

use super::explainer::{Checkup, Explainer};
use super::explanation::{self, Explanation};
use super::health::Health;
use super::targets::Targets;
use crate::buffer::Buffers;
use crate::error::Error;
use crate::graph::{Feed, Outputs, Slots};
use crate::layer;
use crate::relevance::{Machine, OutOfRange, Overflow, Recorder, Seed, Stack, Suffix, Tape};
use crate::scalar::Scalar;

/// The memory for one part of a batch.
#[derive(Debug, Default)]
pub(super) struct PartMemory<T: Scalar> {
    buffers: Buffers<T>,
    slots: Slots<T>,
    stack: Stack<T>,
}

impl<T: Scalar> Explainer<T> {
    /// Explains samples that have been checked, and writes each result into one of the
    /// explanations.
    pub(super) fn explain_part(
        &self,
        feed: &Feed<'_, T>,
        part: &mut PartMemory<T>,
        explanations: &mut [Explanation<T>],
    ) -> Result<(), Error> {
        match self.targets_at_once() {
            None => self.explain_at_once(feed, part, explanations)?,
            Some(at_once) => {
                for (sample, explanation) in explanations.iter_mut().enumerate() {
                    self.explain_in_parts(at_once, &feed.part(sample, 1), part, explanation)?;
                }
            }
        }
        if self.checkup.is_some() {
            for (sample, explanation) in explanations.iter_mut().enumerate() {
                self.examine(&feed.part(sample, 1), explanation)?;
            }
        }
        Ok(())
    }

    /// Explains all targets of samples in one pass.
    pub(super) fn explain_at_once(
        &self,
        feed: &Feed<'_, T>,
        part: &mut PartMemory<T>,
        explanations: &mut [Explanation<T>],
    ) -> Result<(), Error> {
        let PartMemory { buffers, slots, stack } = part;
        buffers.rewind();
        let mut machine = self.machine(stack, feed.samples(), buffers);
        let outputs = self.model().pass(feed, slots, buffers, &mut machine)?;
        let mut run = self.finish(machine, outputs, buffers)?;
        for (sample, explanation) in explanations.iter_mut().enumerate() {
            self.write(&mut run, sample, &stack.tape.noted, explanation)?;
        }
        run.give_back(buffers);
        Ok(())
    }

    /// The machine that accumulates the shares during a forward pass of this many samples.
    pub(super) fn machine<'a>(
        &'a self,
        stack: &'a mut Stack<T>,
        samples: usize,
        buffers: &mut Buffers<T>,
    ) -> Machine<'a, T> {
        Machine::new(&self.network, &self.plan, stack, samples, buffers)
    }

    /// Finishes the accumulation, once the outputs are known.
    pub(super) fn finish(
        &self,
        machine: Machine<'_, T>,
        outputs: Outputs<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<PassResult<T>, Error> {
        let seed = self.seed(&outputs.logits, buffers);
        let block = machine.finish(seed, buffers).map_err(|at| self.overflow(&at))?;
        Ok(PassResult { outputs, block })
    }

    /// The relevance to start from, once the outputs are known.
    pub(super) fn seed(&self, logits: &[T], buffers: &mut Buffers<T>) -> Seed<T> {
        let outputs = self.model().outputs();
        let samples = logits.len() / outputs;
        match &*self.targets {
            Targets::All => Seed::All,
            Targets::Predicted => {
                let mut predicted = buffers.indices.take(samples);
                for (predicted, logits) in predicted.iter_mut().zip(logits.chunks_exact(outputs)) {
                    *predicted = explanation::largest(logits);
                }
                Seed::Outputs(predicted)
            }
            Targets::Outputs(listed) => {
                let mut all = buffers.indices.take(samples * listed.len());
                all.chunks_exact_mut(listed.len())
                    .for_each(|of_one| of_one.copy_from_slice(listed));
                Seed::Outputs(all)
            }
            Targets::Weighted(weightings) => {
                let mut relevance = buffers.values.take(samples * weightings.len());
                for (relevance, logits) in
                    relevance.chunks_exact_mut(weightings.len()).zip(logits.chunks_exact(outputs))
                {
                    // The relevance to start from: c_k f_k.
                    relevance.copy_from_slice(weightings.as_slice());
                    layer::scale_columns(relevance, logits, outputs);
                }
                Seed::Weighted(relevance, weightings.ncols())
            }
        }
    }

    /// An explanation that has not been written yet.
    pub(super) fn empty(&self) -> Explanation<T> {
        Explanation::empty(self.about.clone(), self.targets.clone())
    }

    /// Writes one sample's results into an explanation, reusing its memory.
    pub(super) fn write(
        &self,
        run: &mut PassResult<T>,
        sample: usize,
        noted: &[OutOfRange],
        explanation: &mut Explanation<T>,
    ) -> Result<(), Error> {
        explanation
            .write_from((&self.about, &self.targets), &run.outputs, &mut run.block, sample)
            .map_err(|at| self.overflow(&at))?;
        explanation.health = None;
        explanation.findings.clear();
        let of_sample = noted.iter().filter(|found| found.sample == sample);
        explanation.findings.extend(of_sample.filter_map(|found| self.network.finding(found)));
        Ok(())
    }

    /// Computes the health of one sample's explanation, if it was requested.
    pub(super) fn examine(
        &self,
        feed: &Feed<'_, T>,
        explanation: &mut Explanation<T>,
    ) -> Result<(), Error> {
        let Some(Checkup { magnitudes, finer }) = &self.checkup else { return Ok(()) };
        let (mut buffers, mut tape) = (Buffers::default(), Tape::default());
        self.record(feed, &mut tape, &mut buffers)?;
        let cancellation = magnitudes
            .cancellation(&self.network, &tape, &explanation.of_outputs())
            .map_err(|at| self.overflow(&at))?;
        let errors = finer.errors((self.model(), feed), explanation);
        let health = Health::new(cancellation, &self.about.rules, explanation.targets(), errors);
        explanation.health = Some(health);
        Ok(())
    }

    /// Runs one pass that records the share matrices of all nodes.
    pub(super) fn record(
        &self,
        feed: &Feed<'_, T>,
        tape: &mut Tape<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Outputs<T>, Error> {
        let mut recorder = Recorder::new(&self.network, tape, feed.samples(), buffers);
        self.model().pass(feed, &mut Slots::default(), buffers, &mut recorder)
    }

    pub(super) fn overflow(&self, at: &Overflow) -> Error {
        at.error(self.model())
    }
}

/// The results of one pass.
pub(crate) struct PassResult<T> {
    pub outputs: Outputs<T>,
    pub block: Suffix<T>,
}

impl<T: Scalar> PassResult<T> {
    pub(super) fn give_back(self, buffers: &mut Buffers<T>) {
        self.block.give_back(buffers);
        buffers.values.give(self.outputs.logits);
        if let Some(probabilities) = self.outputs.probabilities {
            buffers.values.give(probabilities);
        }
    }
}
