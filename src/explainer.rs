//! The explainer: a model and a rule, prepared once.

use nalgebra::{DMatrix, DVector};

use crate::accumulate::{Accumulation, Machine, Overflow, Prepared, Shares};
use crate::error::Error;
use crate::explanation::{Explanation, Sink};
use crate::layer::{LinearMap, Operator};
use crate::rule::{RelevanceRule, Site};
use crate::scalar::Scalar;
use crate::sequential::Sequential;

/// A model and a rule with all that does not depend on the sample: what a server holds.
///
/// `Send + Sync`, without locks; explaining changes nothing in it.
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
#[derive(Debug)]
pub struct Explainer<T: Scalar> {
    model: Sequential<T>,
    rule: String,
    /// One for each linear layer.
    prepared: Vec<Prepared<T>>,
    accumulation: Accumulation,
}

impl<T: Scalar> Sequential<T> {
    /// Explains all outputs at one sample: one pass over the layers gives the outputs and accumulates their shares.
    ///
    /// The same as [`explainer`](Self::explainer) and [`Explainer::explain`]; hold the explainer where there are many
    /// samples and the rule transforms the weights.
    ///
    /// # Errors
    /// Those of [`explainer`](Self::explainer) and [`Explainer::explain`].
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
    pub fn explain(&self, sample: &DVector<T>, rule: impl RelevanceRule<T>) -> Result<Explanation<T>, Error> {
        self.explainer(rule)?.explain(sample)
    }

    /// Prepares a rule for this model.
    ///
    /// Cost: for each linear layer and each of the rule's transforms one copy of its weights; none for `Epsilon` and
    /// `Relative`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the rule cannot be used at a layer, and whatever the rule itself returns.
    pub fn explainer(&self, rule: impl RelevanceRule<T>) -> Result<Explainer<T>, Error> {
        let linear: Vec<_> = self
            .layers()
            .iter()
            .enumerate()
            .filter_map(|(index, layer)| match layer.operator() {
                Operator::Linear(map) => Some((index, layer.kind(), map)),
                _ => None,
            })
            .collect();
        let prepare = |(linear_index, &(layer, kind, map)): (usize, &(usize, &str, _))| {
            let map: &dyn LinearMap<T> = map;
            let (inputs, outputs) = (map.inputs(), map.outputs());
            let site = Site { layer, kind, inputs, outputs, linear_index, linear_count: linear.len() };
            Prepared::new(&rule, &site, map)
        };
        let prepared = linear.iter().enumerate().map(prepare).collect::<Result<_, _>>()?;
        let shapes: Vec<_> = linear.iter().map(|(_, _, map)| (map.inputs(), map.outputs())).collect();
        Ok(Explainer { model: self.clone(), rule: rule.name(), prepared, accumulation: Accumulation::cheaper(&shapes) })
    }
}

impl<T: Scalar> Explainer<T> {
    /// The same with another order of accumulation.
    #[must_use]
    pub fn accumulation(mut self, accumulation: Accumulation) -> Self {
        self.accumulation = accumulation;
        self
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Sequential<T> {
        &self.model
    }

    /// Explains all outputs at one sample.
    ///
    /// Cost and memory: see [`Accumulation`].
    ///
    /// # Errors
    /// [`Error::InputShape`], [`Error::NonFiniteInput`], [`Error::NonFiniteOutput`], [`Error::Overflow`].
    pub fn explain(&self, sample: &DVector<T>) -> Result<Explanation<T>, Error> {
        self.explain_slice(sample.as_slice())
    }

    /// The same for a sample in a slice.
    ///
    /// # Errors
    /// As [`explain`](Self::explain).
    pub fn explain_slice(&self, sample: &[T]) -> Result<Explanation<T>, Error> {
        self.model.check_input(sample.len())?;
        let mut machine = Machine::new(self.accumulation);
        let mut prepared = self.prepared.iter();
        let outputs = self.model.pass(sample.to_vec(), |leaving, product| match prepared.next() {
            Some(prepared) => machine.shift(prepared.factor(leaving, product)).map_err(|at| self.overflow(&at)),
            None => Ok(()),
        })?;
        let shares = machine.finish().map_err(|at| self.overflow(&at))?.pop().ok_or(Error::EmptyModel)?;
        self.check_relevances(&shares, &outputs.logits)?;
        let sinks = shares.sinks.into_iter().map(|(label, shares)| {
            let kind = self.model.layers()[label.layer].kind().to_owned();
            Sink { layer: label.layer, kind, cause: label.cause, shares }
        });
        Ok(Explanation {
            rule: self.rule.clone(),
            output: DVector::from_vec(outputs.logits),
            probabilities: outputs.probabilities.map(DVector::from_vec),
            shares: DMatrix::from_vec(self.model.inputs(), self.model.outputs(), shares.inputs),
            exponent: shares.exponent,
            sinks: sinks.collect(),
        })
    }
    /// Shares may be finite where shares times outputs are not.
    fn check_relevances(&self, shares: &Shares<T>, outputs: &[T]) -> Result<(), Error> {
        let largest = T::max_value().as_f64();
        for (target, (column, &output)) in shares.inputs.chunks_exact(self.model.inputs()).zip(outputs).enumerate() {
            let (output, mut sum) = (output.as_f64().abs(), 0.0);
            let of_inputs = column.iter().map(|&share| (0, share));
            for (layer, share) in of_inputs.chain(shares.sinks.iter().map(|(label, row)| (label.layer, row[target]))) {
                let share = share.as_f64().abs();
                sum += share;
                // The ledger's sums are finite where the sum of magnitudes is.
                if share * output > largest || !(sum * output.max(1.0)).is_finite() {
                    return Err(self.overflow(&Overflow { layer }));
                }
            }
        }
        Ok(())
    }

    fn overflow(&self, at: &Overflow) -> Error {
        Error::Overflow { layer: at.layer, kind: self.model.layers()[at.layer].kind().to_owned() }
    }
}
