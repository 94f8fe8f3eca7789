//! Sweeps: one forward pass for several rules.

use nalgebra::DVector;

use crate::accumulate::{Machine, Stack};
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::explainer::{Explainer, Run};
use crate::explanation::Explanation;
use crate::memory::MemoryLimit;
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Outputs, Sequential, Visitor};
use crate::targets::Targets;

/// A model and several rules that share each forward pass.
///
/// ```
/// use relprop::{Gamma, Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], None)?)
///     .layer(Relu)
///     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
///     .build()?;
/// let x = dvector![3.0, 1.0];
/// for explanation in model.sweep([Rule::Epsilon, Rule::ZPlus, Rule::AlphaBeta])?.explain(&x)? {
///     println!("{explanation}");
/// }
/// let gammas: Vec<Gamma> =
///     [0.0, 0.1, 0.25, 0.5, 1.0].into_iter().map(Gamma::new).collect::<Result<_, _>>()?;
/// assert_eq!(model.sweep(gammas)?.explain(&x)?.len(), 5);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Sweep<T: Scalar> {
    explainers: Vec<Explainer<T>>,
    limit: MemoryLimit,
}

impl<T: Scalar> Sequential<T> {
    /// Prepares several rules for this model.
    ///
    /// Rules of different types can be passed as `Box<dyn RelevanceRule<T>>`. Cost: that of
    /// [`explainer`](Self::explainer) for each rule.
    ///
    /// # Errors
    /// See [`explainer`](Self::explainer).
    pub fn sweep<R: RelevanceRule<T>>(
        &self,
        rules: impl IntoIterator<Item = R>,
    ) -> Result<Sweep<T>, Error> {
        let explainers =
            rules.into_iter().map(|rule| self.explainer(rule)).collect::<Result<_, _>>()?;
        Ok(Sweep { explainers, limit: MemoryLimit::default() })
    }
}

impl<T: Scalar> Sweep<T> {
    /// Sets the [`Targets`] of all rules.
    ///
    /// # Errors
    /// See [`Explainer::targets`].
    pub fn targets(self, targets: impl Into<Targets<T>>) -> Result<Self, Error> {
        let targets = targets.into();
        let explainers = self
            .explainers
            .iter()
            .map(|explainer| explainer.clone().targets(targets.clone()))
            .collect::<Result<_, _>>()?;
        Ok(Self { explainers, ..self })
    }

    /// Sets the limit on the memory of a call, in bytes.
    ///
    /// See [`Explainer::memory_limit`].
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.limit = MemoryLimit(bytes);
        self
    }

    /// The explainers, in the order of the rules.
    #[must_use]
    pub fn explainers(&self) -> &[Explainer<T>] {
        &self.explainers
    }

    /// Explains one sample with each rule, in the order of the rules.
    ///
    /// Each explanation is bit-for-bit identical to that of the rule's own explainer.
    ///
    /// Cost: one forward pass, and one accumulation per rule.
    ///
    /// # Errors
    /// See [`Explainer::explain`].
    pub fn explain(&self, sample: &DVector<T>) -> Result<Vec<Explanation<T>>, Error> {
        self.explain_slice(sample.as_slice())
    }

    /// Explains one sample, given as a slice, with each rule.
    ///
    /// # Errors
    /// See [`Explainer::explain`].
    pub fn explain_slice(&self, sample: &[T]) -> Result<Vec<Explanation<T>>, Error> {
        (T::compiled().explain_by_all)(self, sample)
    }

    pub(crate) fn explain_inner(&self, sample: &[T]) -> Result<Vec<Explanation<T>>, Error> {
        let Some(first) = self.explainers.first() else { return Ok(Vec::new()) };
        let model = first.model();
        model.check_input(sample.len())?;
        model.check_samples(sample)?;
        // All explanations and all stacks exist at the same time.
        let values = self
            .explainers
            .iter()
            .map(|explainer| explainer.values_of(1) + explainer.values_of_blocks(1))
            .sum();
        let remedy = "use fewer rules or targets, or raise the limit with Sweep::memory_limit";
        self.limit.check::<T>(
            values,
            || format!("the shares by {} rules", self.explainers.len()),
            || remedy.to_owned(),
        )?;
        let mut buffers = Buffers::default();
        let mut stacks: Vec<Stack<T>> = self.explainers.iter().map(|_| Stack::default()).collect();
        let machines = self
            .explainers
            .iter()
            .zip(&mut stacks)
            .map(|(explainer, stack)| explainer.machine(stack));
        let mut machines = Machines(machines.collect());
        let outputs = model.pass(sample, &mut buffers, &mut machines)?;
        let explanations = self.explainers.iter().zip(machines.0).map(|(explainer, machine)| {
            // Each run takes ownership of its outputs.
            let logits = copy(&outputs.logits, &mut buffers);
            let probabilities =
                outputs.probabilities.as_ref().map(|values| copy(values, &mut buffers));
            let mut run: Run<T> =
                explainer.finish(machine, Outputs { logits, probabilities }, &mut buffers)?;
            let mut explanation = explainer.empty();
            explainer.fill(&mut run, 0, &mut explanation)?;
            explainer.examine(sample, &mut explanation)?;
            Ok(explanation)
        });
        explanations.collect()
    }
}

/// Machines that share one pass.
struct Machines<'a, T: Scalar>(Vec<Machine<'a, T>>);

impl<T: Scalar> Visitor<T> for Machines<'_, T> {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        for machine in &mut self.0 {
            // Each machine takes ownership of the inputs.
            let inputs = copy(&leaving.inputs, buffers);
            machine.leave(buffers, Leaving { inputs, ..leaving })?;
        }
        buffers.values.give(leaving.inputs);
        Ok(())
    }

    fn route(
        &mut self,
        buffers: &mut Buffers<T>,
        factor: usize,
        from: Buffer<usize>,
        samples: usize,
    ) -> Result<(), Error> {
        for machine in &mut self.0 {
            let mut copied = buffers.indices.take(from.len());
            copied.copy_from_slice(&from);
            machine.route(buffers, factor, copied, samples)?;
        }
        buffers.indices.give(from);
        Ok(())
    }

    fn open(&mut self) {
        self.0.iter_mut().for_each(Visitor::open);
    }

    fn next(&mut self) {
        self.0.iter_mut().for_each(Visitor::next);
    }

    fn close(
        &mut self,
        buffers: &mut Buffers<T>,
        factor: usize,
        samples: usize,
    ) -> Result<(), Error> {
        self.0.iter_mut().try_for_each(|machine| machine.close(buffers, factor, samples))
    }
}

fn copy<T: Scalar>(values: &[T], buffers: &mut Buffers<T>) -> Buffer<T> {
    let mut copied = buffers.values.take(values.len());
    copied.copy_from_slice(values);
    copied
}
