//! The result of one explained sample.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use super::health::Health;
use super::ledger::{Ledger, LedgerEntry};
use super::targets::Targets;
use crate::error::Error;
use crate::finding::Finding;
use crate::graph::Outputs;
use crate::linalg;
use crate::nearest::did_you_mean;
use crate::relevance::{Cause, Overflow, RuleAt, Suffix};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// The explanation of one sample: the contribution of each input to each output.
///
/// The *shares* S (inputs x outputs) give the fraction of each output that is assigned to each
/// input. The *relevance* of the inputs for output k is S[:, k] · f_k(x). The
/// [ledger](Self::ledger) also lists the relevance that is not assigned to any input.
///
/// ```
/// use relprop::{Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![2.0, 2.0, 2.0; 2.0, 2.0, 2.0; 2.0, 2.0, 2.0], None)?)
///     .layer(Relu)
///     .layer(Linear::new(dmatrix![3.0, 3.0, 3.0], None)?)
///     .build()?;
/// let explanation = model.explain(&dvector![1.0, 2.0, 3.0], Rule::Epsilon)?;
/// assert!((explanation.relevance(0)? - dvector![18.0, 36.0, 54.0]).amax() < 1e-4);
/// println!("{explanation}");
/// println!("{}", explanation.ledger(0)?);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation<T: Scalar> {
    pub(crate) about: Arc<About>,
    pub(crate) output: DVector<T>,
    pub(crate) probabilities: Option<DVector<T>>,
    /// The target of each column of the shares.
    pub(crate) of: Arc<Targets<T>>,
    pub(crate) shares: DMatrix<T>,
    pub(crate) exponent: i32,
    /// For each sink in `about`, one share per column of `shares`.
    pub(crate) sinks: Vec<T>,
    pub(crate) health: Option<Health>,
    pub(crate) findings: Vec<Finding>,
}

/// What all explanations of an explainer have in common.
#[derive(Debug, PartialEq)]
pub(crate) struct About {
    pub rule: String,
    /// The layers to which rules apply.
    pub rules: Vec<RuleAt>,
    pub sinks: Vec<Sink>,
    /// The name and the shape of each explained value.
    pub inputs: Vec<(String, Shape)>,
}

/// A row of sinks: the layer it belongs to, and the cause of the relevance it absorbs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sink {
    pub layer: usize,
    pub name: String,
    pub kind: String,
    pub cause: Cause,
}

/// The contribution of one input to an output.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Contribution<T> {
    /// The input's index.
    pub input: usize,
    /// Its relevance, scaled like [`Explanation::relevance`].
    pub relevance: T,
}

/// The index of the largest value, or of the first of them in case of a tie.
pub(crate) fn largest<T: Scalar>(values: &[T]) -> usize {
    values
        .iter()
        .enumerate()
        .fold(0, |best, (k, value)| if *value > values[best] { k } else { best })
}

/// The `count` contributions of largest magnitude, strongest first.
pub(crate) fn strongest<T: Scalar>(relevance: &DVector<T>, count: usize) -> Vec<Contribution<T>> {
    let mut order: Vec<_> = relevance
        .iter()
        .enumerate()
        .map(|(input, &relevance)| Contribution { input, relevance })
        .collect();
    // Magnitudes are never NaN, so the fallback is never used. The sort is stable, so ties keep the
    // order of the inputs.
    order.sort_by(|a, b| {
        b.relevance.abs().partial_cmp(&a.relevance.abs()).unwrap_or(std::cmp::Ordering::Equal)
    });
    order.truncate(count);
    order
}

impl<T: Scalar> Explanation<T> {
    /// The name of the rule.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.about.rule
    }

    /// The model's outputs f(x).
    ///
    /// If the model ends with a softmax or a sigmoid, these are the logits, because explanations
    /// start from the logits.
    #[must_use]
    pub fn output(&self) -> &DVector<T> {
        &self.output
    }

    /// The probabilities, if the model ends with a softmax or a sigmoid.
    #[must_use]
    pub fn probabilities(&self) -> Option<&DVector<T>> {
        self.probabilities.as_ref()
    }

    /// The index of the largest output, or of the first of them in case of a tie.
    #[must_use]
    pub fn predicted(&self) -> usize {
        largest(self.output.as_slice())
    }

    /// The shares S, inputs x targets.
    ///
    /// The true shares are these values times 2^[`exponent`](Self::exponent).
    ///
    /// The targets are all outputs unless the explainer was given others (see
    /// [`targets`](Self::targets)). For a weighting of outputs, the column holds the relevance Σ_k
    /// c_k f_k S_k itself instead of shares, because the weighted sum can be 0.
    #[must_use]
    pub fn shares(&self) -> &DMatrix<T> {
        &self.shares
    }

    /// The target of each column of [`shares`](Self::shares): the index of an output or of a
    /// weighting.
    pub fn targets(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.shares.ncols()).map(|column| match &*self.of {
            Targets::Predicted => self.predicted(),
            Targets::Outputs(outputs) => outputs[column],
            Targets::All | Targets::Weighted(_) => column,
        })
    }

    /// Whether the targets are weightings of the outputs instead of outputs.
    #[must_use]
    pub fn is_weighted(&self) -> bool {
        matches!(*self.of, Targets::Weighted(_))
    }

    /// The binary exponent by which shares and relevances are scaled.
    ///
    /// The exponent is 0 unless even the largest true share is too small for the number type to
    /// hold in full precision. In that case, the returned shares and relevances are the true ones
    /// times 2^-exponent. This preserves their proportions, and the exponent records their
    /// magnitude. Such small shares occur in deep networks with rules that do not conserve
    /// relevance, such as [`Relative`](crate::Relative).
    #[must_use]
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// The relevance of each input for output `target`, or for the weighting with this index.
    ///
    /// The relevance is S[:, k] · f_k(x), times 2^-[`exponent`](Self::exponent).
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`], or [`Error::NotExplained`] if this output is not one of the
    /// explainer's targets.
    pub fn relevance(&self, target: usize) -> Result<DVector<T>, Error> {
        let (shares, scale) = (self.shares_of(target)?, self.scale(target));
        Ok(DVector::from_vec(shares.iter().map(|&share| share * scale).collect()))
    }

    /// Writes the [`relevance`](Self::relevance) of each input into a slice.
    ///
    /// The slice must have one element for each input.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance). [`Error::SliceLength`] is returned if the slice has a
    /// different length.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -5.0], None)?).build()?;
    /// let mut relevance = [0.0_f64; 2];
    /// model.explain(&dvector![1.0, 2.0], Rule::Epsilon)?.relevance_into(0, &mut relevance)?;
    /// assert!((relevance[1] + 10.0).abs() < 1e-4);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn relevance_into(&self, target: usize, relevance: &mut [T]) -> Result<(), Error> {
        let (shares, scale) = (self.shares_of(target)?, self.scale(target));
        if relevance.len() != shares.len() {
            let what = "relevance".to_owned();
            return Err(Error::SliceLength {
                what,
                expected: shares.len(),
                found: relevance.len(),
            });
        }
        for (relevance, &share) in relevance.iter_mut().zip(shares) {
            *relevance = share * scale;
        }
        Ok(())
    }

    /// The names and shapes of the explained values: those of the model's inputs, or of the values
    /// chosen with [`Graph::explain_from`](crate::Graph::explain_from).
    ///
    /// The rows of [`shares`](Self::shares) are those of all of these values, one value after
    /// another.
    pub fn inputs(&self) -> impl Iterator<Item = (&str, Shape)> {
        self.about.inputs.iter().map(|(name, shape)| (name.as_str(), *shape))
    }

    /// The relevance of one of the explained values for output `target`, or for the weighting with
    /// this index. For an example, see [`Inputs`](crate::Inputs).
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance). [`Error::NoSuchValue`] is returned if no explained value
    /// has this name.
    pub fn relevance_of(&self, name: &str, target: usize) -> Result<DVector<T>, Error> {
        let mut first = 0;
        for (own, shape) in self.inputs() {
            if own == name {
                let relevance = self.relevance(target)?;
                return Ok(relevance.rows(first, shape.size()).into_owned());
            }
            first += shape.size();
        }
        let names = self.inputs().map(|(name, _)| name);
        Err(Error::NoSuchValue { name: name.to_owned(), nearest: did_you_mean(name, names) })
    }

    fn shares_of(&self, target: usize) -> Result<&[T], Error> {
        let inputs = self.shares.nrows();
        Ok(&self.shares.as_slice()[self.column(target)? * inputs..][..inputs])
    }

    /// The `count` inputs that contribute most to output `target`, for or against it, strongest
    /// first.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance).
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let linear = Linear::new(dmatrix![1.0, -5.0, 2.0], None)?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let top = model.explain(&dvector![1.0, 1.0, 1.0], Rule::Epsilon)?.top(0, 2)?;
    /// assert_eq!([top[0].input, top[1].input], [1, 2]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn top(&self, target: usize, count: usize) -> Result<Vec<Contribution<T>>, Error> {
        Ok(strongest(&self.relevance(target)?, count))
    }

    /// The relevance of each input for output `a` minus its relevance for output `b`.
    ///
    /// This is the relevance for the difference f_a - f_b: it explains why the model favors `a`
    /// over `b`.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance).
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let linear = Linear::new(dmatrix![1.0, 2.0; 3.0, 1.0], None)?;
    /// let model = Sequential::builder().layer(linear).build()?;
    /// let explanation = model.explain(&dvector![1.0, 2.0], Rule::Lrp0)?;
    /// assert!((explanation.contrast(1, 0)? - dvector![2.0, -2.0]).amax() < 1e-12);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn contrast(&self, a: usize, b: usize) -> Result<DVector<T>, Error> {
        // Both are finite, but the difference of two huge values can overflow.
        Ok((self.relevance(a)? - self.relevance(b)?)
            .map(|v| v.max(T::min_value()).min(T::max_value())))
    }

    /// The ledger of output `target`, which accounts for all of its relevance.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance).
    pub fn ledger(&self, target: usize) -> Result<Ledger, Error> {
        (T::compiled().ledger)(self, target)
    }

    pub(crate) fn ledger_inner(&self, target: usize) -> Result<Ledger, Error> {
        let column = self.column(target)?;
        // The exponent applies to the inputs only. The shares of sinks are stored unscaled.
        let (scale, targets) = (f64::from(self.exponent).exp2(), self.shares.ncols());
        let shares = self.shares.column(column);
        let rows = self.sinks.chunks_exact(targets);
        Ok(Ledger {
            target,
            whole: self.whole(target),
            scale: self.scale(target).as_f64(),
            inputs: shares.iter().map(|share| share.as_f64()).sum::<f64>() * scale,
            inputs_magnitude: shares.iter().map(|share| share.as_f64().abs()).sum::<f64>() * scale,
            entries: (self.about.sinks.iter().zip(rows))
                .map(|(sink, row)| LedgerEntry {
                    layer: sink.layer,
                    name: sink.name.clone(),
                    kind: sink.kind.clone(),
                    cause: sink.cause,
                    part: row[column].as_f64(),
                    whole: self.whole(target),
                    scale: self.scale(target).as_f64(),
                })
                .collect(),
        })
    }

    /// The numerical accuracy of the explanation.
    ///
    /// `None` unless requested with [`Explainer::with_health`](crate::Explainer::with_health).
    #[must_use]
    pub fn health(&self) -> Option<&Health> {
        self.health.as_ref()
    }

    /// Findings that can make the explanation of this sample misleading.
    ///
    /// There is a finding if the sample is outside the range that a rule assumes and the rule
    /// [reports](crate::rule::Outside::Report) such samples instead of refusing them.
    /// [`Graph::check`](crate::Graph::check) finds problems that do not depend on the sample.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The column of a target, and the scale that turns its shares into relevance.
    pub(crate) fn place(&self, target: usize) -> Result<(usize, T), Error> {
        Ok((self.column(target)?, self.scale(target)))
    }

    /// The shares of the outputs themselves in the targets, outputs x targets.
    pub(crate) fn of_outputs(&self) -> DMatrix<T> {
        let outputs = self.output.len();
        let mut shares = DMatrix::zeros(outputs, self.shares.ncols());
        match &*self.of {
            Targets::Weighted(weightings) => {
                // These shares are not multiplied by an output later, so they already contain it:
                // c_k f_k.
                shares.copy_from(weightings);
                shares
                    .column_iter_mut()
                    .for_each(|mut column| column.component_mul_assign(&self.output));
            }
            _ => self
                .targets()
                .enumerate()
                .for_each(|(column, target)| shares[(target, column)] = T::one()),
        }
        shares
    }

    /// The column of a target.
    fn column(&self, target: usize) -> Result<usize, Error> {
        let outputs = match &*self.of {
            Targets::Weighted(weightings) => weightings.ncols(),
            _ => self.output.len(),
        };
        if target >= outputs {
            return Err(Error::TargetOutOfRange { target, outputs });
        }
        match &*self.of {
            Targets::All | Targets::Weighted(_) => Ok(target),
            Targets::Predicted | Targets::Outputs(_) => self
                .targets()
                .position(|other| other == target)
                .ok_or_else(|| Error::NotExplained { target, explained: self.targets().collect() }),
        }
    }

    /// Whether all relevances and the ledger's sums are finite. Shares can be finite while shares
    /// times outputs are not. The caller guarantees that no share of an input exceeds `bound` in
    /// magnitude.
    pub(crate) fn is_finite(&self, bound: T) -> bool {
        let largest = T::max_value().as_f64();
        let share = bound.max(linalg::max_abs(&self.sinks)).as_f64();
        let output = linalg::max_abs(self.output.as_slice()).as_f64().max(1.0);
        // This cheap check nearly always succeeds.
        share * output * (self.shares.len() + self.sinks.len()) as f64 <= largest
            || self.targets().zip(self.shares.column_iter()).enumerate().all(
                |(column, (target, shares))| {
                    let scale = self.scale(target).as_f64().abs();
                    let sinks = self.sinks.iter().skip(column).step_by(self.shares.ncols());
                    let parts =
                        || shares.iter().chain(sinks.clone()).map(|share| share.as_f64().abs());
                    parts().all(|part| part * scale <= largest)
                        && (parts().sum::<f64>() * scale.max(1.0)).is_finite()
                },
            )
    }

    /// The scale that turns a target's shares into relevance.
    fn scale(&self, target: usize) -> T {
        // The relevance is S[:, k] · f_k.
        if self.is_weighted() { T::one() } else { self.output[target] }
    }

    /// The value that a target's shares and sinks sum to.
    fn whole(&self, target: usize) -> f64 {
        let Targets::Weighted(weightings) = &*self.of else { return 1.0 };
        let terms = weightings.column(target).into_iter().zip(&self.output);
        terms.map(|(c, f)| c.as_f64() * f.as_f64()).sum()
    }
}

impl<T: Scalar> Explanation<T> {
    /// An explanation that has not been written yet.
    pub(super) fn empty(about: Arc<About>, of: Arc<Targets<T>>) -> Self {
        Self {
            about,
            output: DVector::zeros(0),
            probabilities: None,
            of,
            shares: DMatrix::zeros(0, 0),
            exponent: 0,
            sinks: Vec::new(),
            health: None,
            findings: Vec::new(),
        }
    }

    /// Writes the results of one sample of a pass into the memory of this explanation.
    ///
    /// # Errors
    /// [`Overflow`] if a relevance is not finite.
    pub(super) fn write_from(
        &mut self,
        (about, of): (&Arc<About>, &Arc<Targets<T>>),
        values: &Outputs<T>,
        block: &mut Suffix<T>,
        sample: usize,
    ) -> Result<(), Overflow> {
        let (exponent, bound) = block.apply_exponent(sample)?;
        // Another explainer may have used this memory before.
        if !Arc::ptr_eq(&self.about, about) || !Arc::ptr_eq(&self.of, of) {
            *self = Self::empty(about.clone(), of.clone());
        }
        write(&mut self.output, values.logits_of(sample, block.samples()));
        match values.probabilities_of(sample, block.samples()) {
            Some(values) => {
                let probabilities = self.probabilities.get_or_insert_with(|| DVector::zeros(0));
                write(probabilities, values);
            }
            None => self.probabilities = None,
        }
        self.sinks.clear();
        self.sinks.extend_from_slice(block.sinks_of(sample));
        let shares = std::mem::replace(&mut self.shares, DMatrix::zeros(0, 0));
        let (inputs, targets) = (block.extent.inputs, block.extent.outputs);
        self.shares =
            DMatrix::from_vec(inputs, targets, block.take_shares(sample, shares.data.into()));
        self.exponent = exponent;
        if self.is_finite(bound) { Ok(()) } else { Err(Overflow { layer: block.extent.layer }) }
    }
}

fn write<T: Scalar>(vector: &mut DVector<T>, values: &[T]) {
    if vector.len() == values.len() {
        vector.copy_from_slice(values);
    } else {
        *vector = DVector::from_column_slice(values);
    }
}

impl<T: Scalar> fmt::Display for Explanation<T> {
    /// Prints one line for each of the ten targets with the largest values: the value, and the
    /// inputs that contribute most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TARGETS: usize = 10;
        const INPUTS: usize = 4;
        let (inputs, outputs) = (self.shares.nrows(), self.output.len());
        write!(
            f,
            "{}: {inputs} inputs, {outputs} outputs, predicted {}",
            self.rule(),
            self.predicted()
        )?;
        if self.exponent != 0 {
            write!(f, ", relevances times 2^{}", self.exponent)?;
        }
        let weighted = self.is_weighted();
        let name = if weighted { "weighting" } else { "output" };
        let value = |target: usize| self.whole(target) * self.scale(target).as_f64();
        let mut order: Vec<usize> = self.targets().collect();
        order.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        for &target in order.iter().take(TARGETS) {
            write!(f, "\n  {name} {target:>4} {:>12.5}", value(target))?;
            if let Some(probabilities) = self.probabilities.as_ref().filter(|_| !weighted) {
                write!(f, " {:>7.2} %", probabilities[target].as_f64() * 100.0)?;
            }
            f.write_str("  from")?;
            for contribution in self.top(target, INPUTS).map_err(|_| fmt::Error)? {
                write!(f, "  [{}] {:+.4}", contribution.input, contribution.relevance)?;
            }
        }
        if order.len() > TARGETS {
            write!(f, "\n  and {} more {name}s", order.len() - TARGETS)?;
        }
        Ok(())
    }
}
