//! Sweeps: one forward pass for several rules.

use nalgebra::DVector;

use super::explainer::Explainer;
use super::explanation::Explanation;
use super::targets::Targets;
use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::graph::{Feed, Graph, Inputs, Left, Slots, Visitor};
use crate::memory::MemoryLimit;
use crate::relevance::Stack;
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;

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

impl<T: Scalar> Graph<T> {
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
        let Some(first) = self.explainers.first() else { return Ok(Vec::new()) };
        first.model().check_input(sample.len())?;
        (T::compiled().explain_by_all)(self, &Feed::Columns(sample, first.model().inputs()))
    }

    /// Explains one sample, given as the values of each input by name, with each rule.
    ///
    /// # Errors
    /// See [`Explainer::explain_inputs`].
    pub fn explain_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Vec<Explanation<T>>, Error> {
        let Some(first) = self.explainers.first() else { return Ok(Vec::new()) };
        (T::compiled().explain_by_all)(self, &inputs.bind_one(first.model())?)
    }

    pub(crate) fn explain_inner(&self, feed: &Feed<'_, T>) -> Result<Vec<Explanation<T>>, Error> {
        let Some(first) = self.explainers.first() else { return Ok(Vec::new()) };
        let model = first.model();
        feed.check(model)?;
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
        let (mut buffers, mut recording) = (Buffers::default(), Recording(Vec::new()));
        let outputs = model.pass(feed, &mut Slots::default(), &mut buffers, &mut recording)?;
        let explanations = self.explainers.iter().map(|explainer| {
            let mut stack = Stack::default();
            let mut machine = explainer.machine(&mut stack, 1, &mut buffers);
            for (node, record) in &recording.0 {
                let left = record.left(&mut buffers);
                machine.leave(*node, left, &mut buffers)?;
            }
            let outputs = outputs.copy(&mut buffers);
            let mut run = explainer.finish(machine, outputs, &mut buffers)?;
            let mut explanation = explainer.empty();
            explainer.write(&mut run, 0, &stack.tape.noted, &mut explanation)?;
            explainer.examine(feed, &mut explanation)?;
            Ok(explanation)
        });
        explanations.collect()
    }
}

/// What each node of a pass has left, for the machines of all rules.
struct Recording<T: Scalar>(Vec<(usize, NodeRecord<T>)>);

/// A [`Left`] that outlives the pass.
enum NodeRecord<T: Scalar> {
    Values,
    Product { z: Buffer<T>, product: Buffer<T> },
    Selected(Buffer<usize>),
}

impl<T: Scalar> NodeRecord<T> {
    fn left(&self, buffers: &mut Buffers<T>) -> Left<'_, T> {
        match self {
            Self::Values => Left::Values,
            Self::Product { z, product } => Left::Product { z: buffers.values.copy(z), product },
            Self::Selected(from) => Left::Selected(buffers.indices.copy(from)),
        }
    }
}

impl<T: Scalar> Visitor<T> for Recording<T> {
    fn leave(
        &mut self,
        node: usize,
        left: Left<'_, T>,
        buffers: &mut Buffers<T>,
    ) -> Result<(), Error> {
        let record = match left {
            Left::Values => NodeRecord::Values,
            Left::Product { z, product } => {
                NodeRecord::Product { z, product: buffers.values.copy(product) }
            }
            Left::Selected(from) => NodeRecord::Selected(from),
        };
        self.0.push((node, record));
        Ok(())
    }
}
