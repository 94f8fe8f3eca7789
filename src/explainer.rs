//! The explainer: a model and a rule, prepared for repeated use.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::explanation::{self, About, Explained, Explanation, Sink};
use crate::graph::{Graph, Outputs, Slots, describe};
use crate::health::{Finer, Health, RuleInF64};
use crate::inputs::{Feed, Inputs};
use crate::layer;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::relevance::{
    self, Accumulation, End, Machine, Magnitudes, Network, OutOfRange, Overflow, Plan, Recorder,
    Stack, Suffix, Tape,
};
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;
use crate::targets::Targets;

/// Reusable memory for [`Explainer::explain_into`] and [`Explainer::explain_batch_into`].
///
/// A workspace also holds the results of the last call. It works with any explainer and grows as
/// needed. Each thread needs its own.
#[derive(Debug)]
pub struct Workspace<T: Scalar> {
    parts: Vec<Part<T>>,
    explanations: Vec<Explanation<T>>,
}

/// The memory for one part of a batch.
#[derive(Debug)]
struct Part<T: Scalar> {
    buffers: Buffers<T>,
    slots: Slots<T>,
    stack: Stack<T>,
}

impl<T: Scalar> Default for Workspace<T> {
    fn default() -> Self {
        Self { parts: Vec::new(), explanations: Vec::new() }
    }
}

impl<T: Scalar> Default for Part<T> {
    fn default() -> Self {
        Self { buffers: Buffers::default(), slots: Slots::default(), stack: Stack::default() }
    }
}

/// A model and a rule, with everything precomputed that does not depend on the sample.
///
/// An explainer is `Send + Sync` and uses no locks, and explaining does not change it. A server can
/// create one explainer and share it between threads.
///
/// ```
/// use relprop::{Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], None)?)
///     .layer(Relu)
///     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
///     .build()?;
/// let explainer = model.explainer(Rule::Epsilon)?;
/// for x in [dvector![3.0, 1.0], dvector![0.0, 2.0]] {
///     println!("{}", explainer.explain(&x)?);
/// }
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Explainer<T: Scalar> {
    about: Arc<About>,
    network: Arc<Network<T>>,
    targets: Targets<T>,
    explained: Explained<T>,
    plan: Plan,
    limit: MemoryLimit,
    /// The rule in double precision, from which a health report is prepared.
    rule: RuleInF64,
    checkup: Option<Checkup<T>>,
}

/// What a health report needs.
#[derive(Debug, Clone)]
struct Checkup<T: Scalar> {
    magnitudes: Arc<Magnitudes<T>>,
    finer: Finer,
}

impl<T: Scalar> Graph<T> {
    /// Explains all outputs for one sample.
    ///
    /// One pass over the layers computes the outputs and accumulates their shares.
    ///
    /// This is a shortcut for [`explainer`](Self::explainer) followed by [`Explainer::explain`]. If
    /// there are many samples, keep the explainer: a rule that transforms the weights does so each
    /// time an explainer is created.
    ///
    /// # Errors
    /// See [`explainer`](Self::explainer) and [`Explainer::explain`].
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Relu, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder()
    ///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0], dvector![0.0, 0.1, -0.2])?)
    ///     .layer(Relu)
    ///     .layer(Linear::new(dmatrix![1.0, 1.0, -1.0], dvector![0.05])?)
    ///     .build()?;
    /// let explanation = model.explain(&dvector![1.0, 2.0], Rule::Epsilon)?;
    /// assert_eq!(explanation.output(), &model.forward(&dvector![1.0, 2.0])?);
    /// assert_eq!(explanation.shares().shape(), (2, 1));
    /// assert!(explanation.ledger(0)?.imbalance() < 1e-12);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain(
        &self,
        sample: &DVector<T>,
        rule: impl RelevanceRule<T>,
    ) -> Result<Explanation<T>, Error> {
        self.explainer(rule)?.explain(sample)
    }

    /// Explains all outputs for each sample of a batch.
    ///
    /// This is a shortcut for [`explainer`](Self::explainer) followed by
    /// [`Explainer::explain_batch`].
    ///
    /// # Errors
    /// See [`explainer`](Self::explainer) and [`Explainer::explain_batch`].
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let samples = dmatrix![1.0, 0.0, 5.0; 0.0, 1.0, 5.0];
    /// let explanations = model.explain_batch(&samples, Rule::Epsilon)?;
    /// assert_eq!(explanations.len(), 3);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_batch(
        &self,
        samples: &DMatrix<T>,
        rule: impl RelevanceRule<T>,
    ) -> Result<Vec<Explanation<T>>, Error> {
        self.explainer(rule)?.explain_batch(samples)
    }

    /// Prepares a rule for this model.
    ///
    /// Cost: one copy of each linear layer's weights for each of the rule's transforms. `Epsilon`
    /// and `Relative` need no copies.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the rule cannot be used at a layer, [`Error::UnmatchedSetting`] if
    /// a setting of a composite matches no layer, [`Error::NotDependent`] if the output does not
    /// depend on the explained values, [`Error::InvalidParameter`] if it is one of them, and any
    /// error that the rule itself returns.
    pub fn explainer(&self, rule: impl RelevanceRule<T>) -> Result<Explainer<T>, Error> {
        (T::compiled().explainer)(self, &rule)
    }

    pub(crate) fn explainer_inner(
        &self,
        rule: &dyn RelevanceRule<T>,
    ) -> Result<Explainer<T>, Error> {
        let network = Network::new(self, rule)?;
        let rules = network.rules.clone();
        let sinks = network.segments.iter().flat_map(|segment| &segment.sinks);
        let sinks = sinks
            .map(|&(layer, cause)| Sink { layer, kind: self.kind(layer).to_owned(), cause })
            .collect();
        let inputs = network
            .entries
            .iter()
            .map(|&value| (self.name_of(value).to_owned(), self.shape_of(value)))
            .collect();
        let about = Arc::new(About { rule: rule.name(), rules, sinks, inputs });
        let plan = Plan::new(Accumulation::default(), &network.links(), End::All);
        let network = Arc::new(network);
        let (targets, explained, limit) = (Targets::All, Explained::All, MemoryLimit::default());
        let (rule, checkup) = (RuleInF64::of(rule), None);
        Ok(Explainer { about, network, targets, explained, plan, limit, rule, checkup })
    }
}

impl<T: Scalar> Explainer<T> {
    /// Sets the order of accumulation.
    #[must_use]
    pub fn accumulation(mut self, accumulation: Accumulation) -> Self {
        self.plan = Plan::new(accumulation, &self.network.links(), self.end());
        if let Some(checkup) = &mut self.checkup {
            checkup.finer = checkup.finer.clone().accumulation(accumulation);
        }
        self
    }

    /// Sets the [`Targets`]: the index of an output, a list of indices, a weighting or
    /// `Targets::Predicted`.
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`], [`Error::WeightingShape`], or [`Error::InvalidParameter`] if
    /// there are no targets or a weight is not finite.
    pub fn targets(self, targets: impl Into<Targets<T>>) -> Result<Self, Error> {
        (T::compiled().targets)(self, targets.into())
    }

    pub(crate) fn targets_inner(mut self, targets: Targets<T>) -> Result<Self, Error> {
        let outputs = self.model().outputs();
        let none = || Error::parameter("Targets", "targets", 0, "at least one");
        self.explained = match &targets {
            Targets::All => Explained::All,
            // A placeholder: `fill` writes the prediction of each sample.
            Targets::Predicted => Explained::Outputs(vec![0]),
            Targets::Outputs(listed) => {
                if let Some(&target) = listed.iter().find(|&&target| target >= outputs) {
                    return Err(Error::TargetOutOfRange { target, outputs });
                }
                if listed.is_empty() {
                    return Err(none());
                }
                Explained::Outputs(listed.clone())
            }
            Targets::Weighted(weightings) => {
                if weightings.nrows() != outputs {
                    return Err(Error::WeightingShape { found: weightings.nrows(), outputs });
                }
                if weightings.ncols() == 0 {
                    return Err(none());
                }
                if let Some((_, value)) = linalg::first_non_finite(weightings.as_slice()) {
                    return Err(Error::parameter("Targets", "a weight", value.as_f64(), "finite"));
                }
                Explained::Weightings(Arc::new(weightings.clone()))
            }
        };
        if let Some(checkup) = &mut self.checkup {
            checkup.finer = checkup.finer.clone().targets(&targets);
        }
        self.targets = targets;
        self.plan = Plan::new(self.plan.accumulation(), &self.network.links(), self.end());
        Ok(self)
    }

    /// Sets the limit on the memory of a call, in bytes.
    ///
    /// The default is 2 GiB. Before a call allocates anything, it computes the memory that its
    /// results need: the shares of all targets, for all samples of a batch and for every layer of a
    /// trace. If this memory exceeds the limit, the call returns [`Error::TooLarge`], which states
    /// the size and a remedy.
    ///
    /// # Example
    /// ```
    /// use relprop::{Error, Linear, Rule, Sequential, Targets};
    /// use relprop::nalgebra::{DMatrix, DVector};
    ///
    /// let linear = Linear::new(DMatrix::from_element(50, 100, 1.0_f64), None)?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?.memory_limit(20_000);
    /// let x = DVector::from_element(100, 1.0);
    /// // 50 x 100 shares of 8 bytes each.
    /// assert!(matches!(explainer.explain(&x), Err(Error::TooLarge { .. })));
    /// assert!(explainer.targets(Targets::Predicted)?.explain(&x).is_ok());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    #[must_use]
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.limit = MemoryLimit(bytes);
        self
    }

    /// The number of explained targets.
    fn target_count(&self) -> usize {
        match &self.explained {
            Explained::All => self.model().outputs(),
            Explained::Outputs(outputs) => outputs.len(),
            Explained::Weightings(weightings) => weightings.ncols(),
        }
    }

    /// The number of values in the explanations of this many samples.
    pub(crate) fn values_of(&self, samples: usize) -> f64 {
        let rows = self.network.inputs() as f64 + self.about.sinks.len() as f64;
        let of_sample = rows * self.target_count() as f64;
        let of_health = |checkup: &Checkup<T>| {
            // The relevance of two layers, for the cancellation, and the explanation in f64, whose
            // values are twice as large.
            let cancellation = 2.0 * self.plan.largest_block(Accumulation::Reverse);
            let finer = 2.0 * (of_sample + self.values_of_blocks(1));
            if checkup.finer.runs() { cancellation + finer } else { cancellation }
        };
        of_sample * samples as f64 + self.checkup.as_ref().map_or(0.0, of_health)
    }

    /// The number of values in the blocks of this many samples during a multiplication: the new
    /// block and the one it is computed from.
    pub(crate) fn values_of_blocks(&self, samples: usize) -> f64 {
        2.0 * samples as f64 * self.plan.largest_block(self.plan.accumulation())
    }

    /// Checks that the explanations of `samples` samples fit within the memory limit if `at_once`
    /// of them are computed at a time.
    fn check_size(&self, samples: usize, at_once: usize) -> Result<(), Error> {
        let values = self.values_of(samples) + self.values_of_blocks(at_once);
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
                .check::<T>(self.values_of(1) + self.values_of_blocks(1), String::new, String::new)
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
    pub(crate) fn check_size_of_trace(&self) -> Result<MemoryLimit, Error> {
        let (targets, outputs) = (self.target_count() as f64, self.model().outputs() as f64);
        let of_node = |&node: &usize| {
            let sharing = self.network.sharing(node);
            (sharing.outputs + sharing.causes.len()) as f64
        };
        let layers: f64 =
            self.network.inputs() as f64 + self.network.nodes.iter().map(of_node).sum::<f64>();
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

    /// Adds a report on numerical accuracy, [`Explanation::health`], to each explanation.
    ///
    /// The report shows the cancellation in each layer. For an explanation in `f32`, it also
    /// contains the rounding error: the model and the rule run once more in `f64` on the same
    /// sample, and the two results are compared. Your own layers and rules take part in this if
    /// they implement [`Layer::to_f64`](crate::Layer::to_f64) and [`RelevanceRule::to_f64`].
    ///
    /// Cost: this call makes one more copy of the weights for each of the rule's transforms, and
    /// prepares the model and the rule in `f64`. Each sample needs about two more passes in its own
    /// type, and a whole explanation in `f64`.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Relu, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder()
    ///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], None)?)
    ///     .layer(Relu)
    ///     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
    ///     .build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?.with_health();
    /// // The first hidden unit is 1000 - 999: the difference has lost three digits.
    /// let explanation = explainer.explain(&dvector![1000.0_f32, 999.0])?;
    /// let health = explanation.health().unwrap();
    /// assert!((health.layers()[0].worst() - 1999.0).abs() < 0.01);
    /// assert!(health.relative_error(0).unwrap() < 1e-6);
    /// println!("{health}");
    /// # Ok::<(), relprop::Error>(())
    /// ```
    #[must_use]
    pub fn with_health(self) -> Self {
        (T::compiled().with_health)(self)
    }

    pub(crate) fn with_health_inner(mut self) -> Self {
        let finer = Finer::new(self.model(), &self.rule);
        let finer = finer.accumulation(self.plan.accumulation()).targets(&self.targets);
        let magnitudes = Arc::new(Magnitudes::of(&self.network));
        self.checkup = Some(Checkup { magnitudes, finer });
        self
    }

    /// This new explainer without a limit on memory, and without the ranges that its rules assume.
    pub(crate) fn without_limits(mut self) -> Self {
        // Nothing else shares the network of a new explainer.
        if let Some(network) = Arc::get_mut(&mut self.network) {
            network.remove_ranges();
        }
        self.limit = MemoryLimit(u64::MAX);
        self
    }

    /// This explainer for these outputs. Their number must be the number of its targets.
    pub(crate) fn of_outputs(&self, outputs: &[usize]) -> Self {
        let (targets, explained) =
            (Targets::Outputs(outputs.to_vec()), Explained::Outputs(outputs.to_vec()));
        Self { targets, explained, ..self.clone() }
    }

    fn end(&self) -> End {
        match &self.targets {
            Targets::All => End::All,
            Targets::Predicted => End::Selected(1),
            Targets::Outputs(listed) => End::Selected(listed.len()),
            Targets::Weighted(weightings) => End::Weighted(weightings.ncols()),
        }
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Graph<T> {
        &self.network.graph
    }

    pub(crate) fn network(&self) -> &Arc<Network<T>> {
        &self.network
    }

    /// The index and the rule of each linear layer.
    pub fn rules(&self) -> impl Iterator<Item = (usize, &str)> {
        self.about.rules.iter().map(|(layer, rule)| (*layer, rule.as_str()))
    }

    /// The order in which share matrices are multiplied, and the cost of each order.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Creates a workspace for [`explain_into`](Self::explain_into) and
    /// [`explain_batch_into`](Self::explain_batch_into).
    #[must_use]
    pub fn workspace(&self) -> Workspace<T> {
        Workspace::default()
    }

    /// Explains the targets for one sample.
    ///
    /// For cost and memory, see [`Accumulation`] and [`plan`](Self::plan).
    ///
    /// # Errors
    /// [`Error::InputShape`], [`Error::NonFiniteInput`], [`Error::NonFiniteOutput`],
    /// [`Error::Overflow`], [`Error::TooLarge`], or [`Error::OutsideRange`] if a rule such as
    /// [`ZBox`](crate::ZBox) assumes a range of values and the sample is outside it.
    pub fn explain(&self, sample: &DVector<T>) -> Result<Explanation<T>, Error> {
        self.explain_slice(sample.as_slice())
    }

    /// Explains the targets for one sample, given as a slice.
    ///
    /// # Errors
    /// See [`explain`](Self::explain).
    pub fn explain_slice(&self, sample: &[T]) -> Result<Explanation<T>, Error> {
        let mut workspace = self.workspace();
        self.explain_into(sample, &mut workspace)?;
        // There is always one after a successful call.
        workspace.explanations.pop().ok_or(Error::EmptyModel)
    }

    /// Explains the targets for one sample, reusing the memory of a workspace.
    ///
    /// The workspace holds the explanation until its next use.
    ///
    /// After the first successful call, nothing is allocated for any network of the crate's own
    /// layers and rules, with these exceptions: a convolution arranges its weights for a product when
    /// that product is first needed, [`with_health`](Self::with_health) and findings allocate in
    /// each call, and with the `rayon` feature, so can large layers, whose work is split among
    /// threads.
    ///
    /// # Errors
    /// See [`explain`](Self::explain). The workspace remains usable after an error.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?;
    /// let mut workspace = explainer.workspace();
    /// for x in [[1.0, 2.0], [3.0, 4.0]] {
    ///     let explanation = explainer.explain_into(&x, &mut workspace)?;
    ///     println!("{explanation}");
    /// }
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_into<'w>(
        &self,
        sample: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w Explanation<T>, Error> {
        (T::compiled().explain_into)(self, sample, workspace)
    }

    pub(crate) fn explain_into_inner<'w>(
        &self,
        sample: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w Explanation<T>, Error> {
        self.model().check_input(sample.len())?;
        let feed = Feed::Columns(sample, self.model().inputs());
        feed.check(self.model())?;
        self.check_size(1, 1)?;
        self.reserve(workspace, 1, 1);
        self.explain_part(&feed, &mut workspace.parts[0], &mut workspace.explanations[..1])?;
        Ok(&workspace.explanations[0])
    }

    /// Explains the targets for one sample, given as the values of each input by name.
    ///
    /// # Errors
    /// See [`explain`](Self::explain). [`Error::Inputs`] is returned if the values do not fit the
    /// model's inputs or are those of several samples.
    pub fn explain_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Explanation<T>, Error> {
        let feed = inputs.bind(self.model())?;
        if feed.samples() != 1 {
            return Err(Error::Inputs {
                reason: format!(
                    "the inputs have the values of {} samples: explain them with \
                     explain_batch_inputs",
                    feed.samples()
                ),
            });
        }
        let mut workspace = self.workspace();
        (T::compiled().explain_feed_into)(self, &feed, &mut workspace)?;
        // There is always one after a successful call.
        workspace.explanations.pop().ok_or(Error::EmptyModel)
    }

    /// Explains the targets for each sample of a batch, given as the values of each input by name.
    ///
    /// # Errors
    /// See [`explain_batch`](Self::explain_batch), and [`Error::Inputs`].
    pub fn explain_batch_inputs(
        &self,
        inputs: &Inputs<'_, T>,
    ) -> Result<Vec<Explanation<T>>, Error> {
        let feed = inputs.bind(self.model())?;
        let mut workspace = self.workspace();
        (T::compiled().explain_feed_into)(self, &feed, &mut workspace)?;
        Ok(workspace.explanations)
    }

    /// Explains the targets for each sample of a batch.
    ///
    /// Samples are columns: `samples` is inputs x samples. A batch can have any number of samples,
    /// including zero. With the `rayon` feature, the batch is split among the threads of the
    /// caller's pool. The results are bit-for-bit identical for any number of threads and any split
    /// of the batch.
    ///
    /// Cost: as for single samples, except that several samples share each read of the weights.
    /// Memory: the explanations, and for each thread the blocks of its part of the batch.
    ///
    /// # Errors
    /// See [`explain`](Self::explain). If several samples fail, the error of one of them is
    /// returned. [`Error::TooLarge`] is returned if the explanations of all samples exceed the
    /// memory limit; in that case, explain the batch in parts.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential, Targets};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let linear = Linear::new(dmatrix![1.0, 2.0; 2.0, 1.0], None)?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?.targets(Targets::Predicted)?;
    /// for explanation in explainer.explain_batch(&dmatrix![1.0, 0.0, 5.0; 0.0, 1.0, 2.0])? {
    ///     println!("{}", explanation.relevance(explanation.predicted())?);
    /// }
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_batch(&self, samples: &DMatrix<T>) -> Result<Vec<Explanation<T>>, Error> {
        self.model().check_input(samples.nrows())?;
        let mut workspace = self.workspace();
        self.explain_batch_into(samples.as_slice(), &mut workspace)?;
        Ok(workspace.explanations)
    }

    /// Explains the targets for each sample in a slice, reusing the memory of a workspace.
    ///
    /// The slice holds one sample after another: a C-order array of shape (samples, inputs), as in
    /// PyTorch and NumPy. The workspace holds the explanations until its next use.
    ///
    /// A server that explains batch after batch thus avoids the cost of allocating memory each
    /// time.
    ///
    /// # Errors
    /// See [`explain_batch`](Self::explain_batch). [`Error::BatchLength`] is returned if the length
    /// is not a multiple of the number of inputs. The workspace remains usable after an error.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let explainer = model.explainer(Rule::Epsilon)?;
    /// let mut workspace = explainer.workspace();
    /// let samples = [1.0, 0.0, 0.0, 1.0, 5.0, 2.0];
    /// assert_eq!(explainer.explain_batch_into(&samples, &mut workspace)?.len(), 3);
    /// assert_eq!(explainer.explain_batch_into(&[1.0, 0.0], &mut workspace)?.len(), 1);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_batch_into<'w>(
        &self,
        samples: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        (T::compiled().explain_batch_into)(self, samples, workspace)
    }

    pub(crate) fn explain_batch_into_inner<'w>(
        &self,
        samples: &[T],
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        let inputs = self.model().inputs();
        if !samples.len().is_multiple_of(inputs) {
            return Err(Error::BatchLength { inputs, found: samples.len() });
        }
        self.explain_feed_into_inner(&Feed::Columns(samples, inputs), workspace)
    }

    pub(crate) fn explain_feed_into_inner<'w>(
        &self,
        feed: &Feed<'_, T>,
        workspace: &'w mut Workspace<T>,
    ) -> Result<&'w [Explanation<T>], Error> {
        // Checked before the batch is split, so that the error has the sample's index in the batch.
        feed.check(self.model())?;
        let count = feed.samples();
        let (each, together) = self.split(count);
        self.check_size(count, count.div_ceil(each.max(1)).saturating_mul(together).min(count))?;
        self.reserve(workspace, count.div_ceil(each), count);
        let Workspace { parts, explanations } = workspace;
        let explanations = &mut explanations[..count];
        let of_part =
            |(number, (explanations, part)): (usize, (&mut [Explanation<T>], &mut Part<T>))| {
                let mut first = number * each;
                for explanations in explanations.chunks_mut(together) {
                    let feed = feed.part(first, explanations.len());
                    self.explain_part(&feed, part, explanations)
                        .map_err(|error| error.in_batch(first))?;
                    first += explanations.len();
                }
                Ok(())
            };
        #[cfg(feature = "rayon")]
        let results: Vec<Result<(), Error>> = {
            use rayon::prelude::*;
            explanations.par_chunks_mut(each).zip(parts).enumerate().map(of_part).collect()
        };
        #[cfg(not(feature = "rayon"))]
        let results: Vec<Result<(), Error>> =
            explanations.chunks_mut(each).zip(parts).enumerate().map(of_part).collect();
        // In the order of the samples, so the error reported does not depend on the threads.
        results.into_iter().collect::<Result<(), Error>>()?;
        Ok(explanations)
    }

    /// Makes sure that a workspace has at least this many parts and explanations.
    fn reserve(&self, workspace: &mut Workspace<T>, parts: usize, explanations: usize) {
        let Workspace { parts: those, explanations: these } = workspace;
        those.resize_with(those.len().max(parts), Part::default);
        these.resize_with(these.len().max(explanations), || self.empty());
    }

    /// How many samples of a batch each part covers, and how many of them pass through the layers
    /// together. The results depend on neither.
    fn split(&self, samples: usize) -> (usize, usize) {
        /// The largest size of a part's blocks, so that they stay in a thread's cache.
        const BLOCK: f64 = 32_768.0;
        /// The largest number of samples that pass through the layers together.
        const MOST: usize = 64;
        /// With this many multiply-adds or more, a convolutional network can need as much memory
        /// for a sample as for its weights, so each thread computes one sample at a time.
        const ENOUGH: f64 = 5e7;
        #[cfg(feature = "rayon")]
        let threads = rayon::current_num_threads();
        #[cfg(not(feature = "rayon"))]
        let threads = 1;
        let maps = || {
            let nodes = self.network.nodes.iter().map(|&node| self.model().node(node));
            nodes.filter_map(|node| node.operation.linear()).map(|linear| &*linear.map)
        };
        let convolutions = maps().filter(|map| !map.forms_matrix());
        if convolutions.map(layer::LinearMap::multiply_adds).sum::<f64>() >= ENOUGH {
            return (samples.div_ceil(threads).max(1), 1);
        }
        // The number of weights in dense layers with at least `from` weights.
        let weights = |from: usize| -> usize {
            let dense = maps().filter(|map| map.forms_matrix());
            let sizes = dense.map(|map| map.inputs() * map.outputs());
            sizes.filter(|&weights| weights >= from).sum()
        };
        if 2 * weights(linalg::LARGE) >= weights(0) {
            // The products themselves are split among the threads, and many samples should share
            // each read of the weights.
            let together = samples.clamp(1, MOST);
            return (together, together);
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let fits = (BLOCK / self.plan.largest_block(self.plan.accumulation())) as usize;
        let together = samples.div_ceil(threads).min(fits).clamp(1, MOST);
        (together, together)
    }

    /// Explains samples that have been checked, and writes each result into one of the
    /// explanations.
    fn explain_part(
        &self,
        feed: &Feed<'_, T>,
        part: &mut Part<T>,
        explanations: &mut [Explanation<T>],
    ) -> Result<(), Error> {
        let Part { buffers, slots, stack } = part;
        buffers.rewind();
        let mut machine = self.machine(stack, feed.samples(), buffers);
        let outputs = self.model().pass(feed, slots, buffers, &mut machine)?;
        let mut run = self.finish(machine, outputs, buffers)?;
        for (sample, explanation) in explanations.iter_mut().enumerate() {
            self.fill(&mut run, sample, &stack.tape.noted, explanation)?;
        }
        run.give_back(buffers);
        for (sample, explanation) in explanations.iter_mut().enumerate() {
            self.examine(&feed.part(sample, 1), explanation)?;
        }
        Ok(())
    }

    /// The machine that accumulates the shares during a forward pass of this many samples.
    pub(crate) fn machine<'a>(
        &'a self,
        stack: &'a mut Stack<T>,
        samples: usize,
        buffers: &mut Buffers<T>,
    ) -> Machine<'a, T> {
        Machine::new(&self.network, &self.plan, stack, samples, buffers)
    }

    /// Finishes the accumulation, once the outputs are known.
    pub(crate) fn finish(
        &self,
        machine: Machine<'_, T>,
        outputs: Outputs<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Run<T>, Error> {
        let (targets, selected) = self.begin(&outputs.logits, buffers);
        let block = machine.finish(targets, buffers).map_err(|at| self.overflow(&at))?;
        Ok(Run { outputs, block, selected })
    }

    /// The targets, once the outputs are known, and a copy of the selected outputs if they differ
    /// between samples.
    pub(crate) fn begin(
        &self,
        logits: &[T],
        buffers: &mut Buffers<T>,
    ) -> (relevance::Targets<T>, Option<Buffer<usize>>) {
        let outputs = self.model().outputs();
        let samples = logits.len() / outputs;
        match &self.targets {
            Targets::All => (relevance::Targets::All, None),
            Targets::Predicted => {
                let mut selected = buffers.indices.take(samples);
                for (selected, logits) in selected.iter_mut().zip(logits.chunks_exact(outputs)) {
                    *selected = explanation::largest(logits);
                }
                // The machine consumes its list, but `fill` needs the predictions again.
                let mut again = buffers.indices.take(samples);
                again.copy_from_slice(&selected);
                (relevance::Targets::Selected(selected), Some(again))
            }
            Targets::Outputs(listed) => {
                let mut selected = buffers.indices.take(samples * listed.len());
                selected
                    .chunks_exact_mut(listed.len())
                    .for_each(|selected| selected.copy_from_slice(listed));
                (relevance::Targets::Selected(selected), None)
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
                (relevance::Targets::Weighted(relevance, weightings.ncols()), None)
            }
        }
    }

    /// An explanation that has not been filled yet.
    pub(crate) fn empty(&self) -> Explanation<T> {
        Explanation {
            about: self.about.clone(),
            output: DVector::zeros(0),
            probabilities: None,
            explained: self.explained.clone(),
            shares: DMatrix::zeros(0, 0),
            exponent: 0,
            sinks: Vec::new(),
            health: None,
            findings: Vec::new(),
        }
    }

    /// Writes one sample's results into an explanation, reusing its memory.
    pub(crate) fn fill(
        &self,
        run: &mut Run<T>,
        sample: usize,
        noted: &[OutOfRange],
        explanation: &mut Explanation<T>,
    ) -> Result<(), Error> {
        let (inputs, outputs) = (self.network.inputs(), self.model().outputs());
        let Run { outputs: values, block, selected } = run;
        let (exponent, bound) = block.apply_exponent(sample).map_err(|at| self.overflow(&at))?;
        let targets = block.extent.outputs;
        let sinks = block.extent.sinks * targets;
        let logits = &values.logits[sample * outputs..][..outputs];
        let sinks = &block.sinks[sample * sinks..][..sinks];

        // Another explainer may have used this memory before.
        if !Arc::ptr_eq(&explanation.about, &self.about) || explanation.shares.ncols() != targets {
            *explanation = self.empty();
        }
        write(&mut explanation.output, logits);
        match &values.probabilities {
            Some(values) => {
                let probabilities =
                    explanation.probabilities.get_or_insert_with(|| DVector::zeros(0));
                write(probabilities, &values[sample * outputs..][..outputs]);
            }
            None => explanation.probabilities = None,
        }
        match (&mut explanation.explained, selected) {
            (Explained::Outputs(explained), Some(selected)) => {
                explained.copy_from_slice(&selected[sample..=sample]);
            }
            (explained, _) if *explained != self.explained => *explained = self.explained.clone(),
            _ => {}
        }
        explanation.findings.clear();
        explanation.findings.extend(
            noted
                .iter()
                .filter(|found| found.sample == sample)
                .filter_map(|found| self.network.finding(found)),
        );
        explanation.sinks.clear();
        explanation.sinks.extend_from_slice(sinks);
        let mut shares: Vec<T> =
            std::mem::replace(&mut explanation.shares, DMatrix::zeros(0, 0)).data.into();
        // The shares of a single sample are moved instead of copied.
        if block.extent.samples == 1 {
            shares = block.values.exchange(shares);
        } else {
            shares.clear();
            shares
                .extend_from_slice(&block.values[sample * inputs * targets..][..inputs * targets]);
        }
        explanation.shares = DMatrix::from_vec(inputs, targets, shares);
        explanation.exponent = exponent;
        let overflow = Overflow { layer: self.network.sharing(self.network.nodes[0]).layer };
        if explanation.is_finite(bound) { Ok(()) } else { Err(self.overflow(&overflow)) }
    }

    /// Computes the health of one sample's explanation, if it was requested.
    pub(crate) fn examine(
        &self,
        feed: &Feed<'_, T>,
        explanation: &mut Explanation<T>,
    ) -> Result<(), Error> {
        explanation.health = None;
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
    pub(crate) fn record(
        &self,
        feed: &Feed<'_, T>,
        tape: &mut Tape<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Outputs<T>, Error> {
        let mut recorder = Recorder::new(&self.network, tape, feed.samples(), buffers);
        self.model().pass(feed, &mut Slots::default(), buffers, &mut recorder)
    }

    pub(crate) fn overflow(&self, at: &Overflow) -> Error {
        at.error(self.model())
    }
}

impl<T: Scalar> fmt::Display for Explainer<T> {
    /// Prints the rule, then one line for each linear layer with the rule used there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about.rule)?;
        for (layer, rule) in self.rules() {
            if let Some(node) = self.model().layer(layer) {
                write!(f, "\n  {:<8} {:<50} {rule}", node.name, describe(&*node.layer))?;
            }
        }
        Ok(())
    }
}

/// The results of one pass.
pub(crate) struct Run<T> {
    pub outputs: Outputs<T>,
    pub block: Suffix<T>,
    /// The selected outputs, if they differ between samples.
    pub selected: Option<Buffer<usize>>,
}

impl<T: Scalar> Run<T> {
    fn give_back(self, buffers: &mut Buffers<T>) {
        self.block.give_back(buffers);
        buffers.values.give(self.outputs.logits);
        if let Some(probabilities) = self.outputs.probabilities {
            buffers.values.give(probabilities);
        }
        if let Some(selected) = self.selected {
            buffers.indices.give(selected);
        }
    }
}

fn write<T: Scalar>(vector: &mut DVector<T>, values: &[T]) {
    if vector.len() == values.len() {
        vector.copy_from_slice(values);
    } else {
        *vector = DVector::from_column_slice(values);
    }
}
