//! The explainer: a model and a rule, prepared for repeated use.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use super::checkup::{Finer, RuleInF64};
use super::explanation::{About, Explanation, Sink};
use super::targets::Targets;
use crate::error::Error;
use crate::graph::{Graph, describe};
use crate::memory::MemoryLimit;
use crate::relevance::{Accumulation, End, Magnitudes, Network, Plan, RuleAt};
use crate::rule::RelevanceRule;
use crate::scalar::Scalar;

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
    pub(super) about: Arc<About>,
    pub(super) network: Arc<Network<T>>,
    pub(super) targets: Arc<Targets<T>>,
    pub(super) plan: Plan,
    pub(super) limit: MemoryLimit,
    /// The rule in double precision, from which a health report is prepared.
    pub(super) rule: RuleInF64,
    pub(super) checkup: Option<Checkup<T>>,
    /// Whether the weights are arranged for many products.
    pub(super) prepares: bool,
}

/// What a health report needs.
#[derive(Debug, Clone)]
pub(super) struct Checkup<T: Scalar> {
    pub magnitudes: Arc<Magnitudes<T>>,
    pub finer: Finer,
}

impl<T: Scalar> Graph<T> {
    /// Explains all outputs for one sample.
    ///
    /// One pass over the layers computes the outputs and accumulates their shares.
    ///
    /// This is a shortcut for [`explainer`](Self::explainer) followed by [`Explainer::explain`],
    /// without the copies of the weights that only pay if there are many samples. If there are, keep
    /// the explainer.
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
        (T::compiled().explainer)(self, &rule, false)?.explain(sample)
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
        /// The number of samples from which preparing the weights pays.
        const MANY: usize = 8;
        (T::compiled().explainer)(self, &rule, samples.ncols() >= MANY)?.explain_batch(samples)
    }

    /// Prepares a rule for this model.
    ///
    /// Cost: one copy of each linear layer's weights for each of the rule's transforms (`Epsilon`
    /// and `Relative` have none), and one copy of these and of the layer's own weights for each
    /// direction that the plan uses, in the order in which the products read them. (The first plan is
    /// that for all outputs.) The second kind of copy belongs to the layer and is made once for all
    /// explainers of a model. A convolutional network of more than 5e7 multiply-adds does without it
    /// for dense layers of 2^20 weights or more: it explains one sample at a time, so reading the
    /// weights takes longer than the product.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the rule cannot be used at a layer, [`Error::UnmatchedSetting`] if
    /// a setting of a composite matches no layer, [`Error::NotDependent`] if the output does not
    /// depend on the explained values, [`Error::InvalidParameter`] if it is one of them, and any
    /// error that the rule itself returns.
    pub fn explainer(&self, rule: impl RelevanceRule<T>) -> Result<Explainer<T>, Error> {
        (T::compiled().explainer)(self, &rule, true)
    }

    pub(crate) fn explainer_inner(
        &self,
        rule: &dyn RelevanceRule<T>,
        prepares: bool,
    ) -> Result<Explainer<T>, Error> {
        let network = Network::new(self, rule)?;
        let rules = network.rules.clone();
        let sinks = network.segments.iter().flat_map(|segment| &segment.sinks);
        let sinks = sinks
            .map(|&(layer, cause)| Sink {
                layer,
                name: self.layer_name(layer).to_owned(),
                kind: self.kind(layer).to_owned(),
                cause,
            })
            .collect();
        let inputs = network
            .entries
            .iter()
            .map(|&value| (self.name_of(value).to_owned(), self.shape_of(value)))
            .collect();
        let about = Arc::new(About { rule: rule.name(), rules, sinks, inputs });
        let plan = network.plan(Accumulation::default(), End::All);
        let network = Arc::new(network);
        let (targets, limit) = (Arc::new(Targets::All), MemoryLimit::default());
        let (rule, checkup) = (RuleInF64::of(rule), None);
        let explainer = Explainer { about, network, targets, plan, limit, rule, checkup, prepares };
        Ok(explainer.prepared())
    }
}

impl<T: Scalar> Explainer<T> {
    /// Sets the order of accumulation.
    #[must_use]
    pub fn accumulation(mut self, accumulation: Accumulation) -> Self {
        self.plan = self.network.plan(accumulation, self.end());
        if let Some(checkup) = &mut self.checkup {
            checkup.finer = checkup.finer.clone().accumulation(accumulation);
        }
        self.prepared()
    }

    /// Prepares the weights for the products of the plan, unless they are to be used only once.
    pub(super) fn prepared(self) -> Self {
        if self.prepares {
            self.network.prepare(&self.plan);
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
        targets.check(self.model().outputs())?;
        if let Some(checkup) = &mut self.checkup {
            checkup.finer = checkup.finer.clone().targets(&targets);
        }
        self.targets = Arc::new(targets);
        self.plan = self.network.plan(self.plan.accumulation(), self.end());
        Ok(self.prepared())
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
        Self { targets: Arc::new(Targets::Outputs(outputs.to_vec())), ..self.clone() }
    }

    pub(super) fn end(&self) -> End {
        let count = self.target_count();
        match &*self.targets {
            Targets::All => End::All,
            Targets::Predicted | Targets::Outputs(_) => End::Selected(count),
            Targets::Weighted(_) => End::Weighted(count),
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

    /// The name of each layer to which a rule applies, and the rule.
    pub fn rules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.about.rules.iter().map(|at| (at.name.as_str(), at.rule.as_str()))
    }

    /// The order in which share matrices are multiplied, and the cost of each order.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl<T: Scalar> fmt::Display for Explainer<T> {
    /// Prints the rule, then one line for each linear layer with the rule used there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.about.rule)?;
        for RuleAt { layer, name, rule } in &self.about.rules {
            let layer = self.model().layer(*layer).map(|node| describe(&*node.layer));
            write!(f, "\n  {name:<8} {:<50} {rule}", layer.unwrap_or_default())?;
        }
        Ok(())
    }
}
