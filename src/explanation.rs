//! The result of one explained sample.

use std::fmt;

use nalgebra::{DMatrix, DVector};

use crate::accumulate::Cause;
use crate::error::Error;
use crate::ledger::{Ledger, LedgerEntry};
use crate::scalar::Scalar;

/// How one sample's outputs are made of its inputs, for all outputs at once.
///
/// The *shares* S (inputs x outputs) say which part of an output went to which input; the *relevance* of output k is
/// S[:, k] · f_k(x). What did not go to an input stands in the [ledger](Self::ledger).
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
    pub(crate) rule: String,
    pub(crate) output: DVector<T>,
    pub(crate) probabilities: Option<DVector<T>>,
    pub(crate) shares: DMatrix<T>,
    pub(crate) exponent: i32,
    pub(crate) sinks: Vec<Sink<T>>,
}

/// One row of sinks: what each output lost there, as a share.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sink<T> {
    pub layer: usize,
    pub kind: String,
    pub cause: Cause,
    pub shares: Vec<T>,
}

/// What one input contributed to an output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contribution<T> {
    /// The input's index.
    pub input: usize,
    /// Its relevance, scaled as [`Explanation::relevance`] is.
    pub relevance: T,
}

impl<T: Scalar> Explanation<T> {
    /// The name of the rule.
    #[must_use]
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// f(x), the outputs that are explained: the logits where the model ends with a softmax.
    #[must_use]
    pub fn output(&self) -> &DVector<T> {
        &self.output
    }

    /// The softmax of the output, where the model ends with one.
    #[must_use]
    pub fn probabilities(&self) -> Option<&DVector<T>> {
        self.probabilities.as_ref()
    }

    /// The index of the largest output, the first of equals.
    #[must_use]
    pub fn predicted(&self) -> usize {
        let largest = |best: usize, (k, value): (usize, &T)| if *value > self.output[best] { k } else { best };
        self.output.iter().enumerate().fold(0, largest)
    }

    /// S, inputs x outputs; the true shares are these times 2^[`exponent`](Self::exponent).
    #[must_use]
    pub fn shares(&self) -> &DMatrix<T> {
        &self.shares
    }

    /// 0, unless even the largest true share is too small for the number type to hold in full precision.
    ///
    /// Then the shares and relevances are given times 2^-exponent: their proportions are right, and their size is not
    /// lost. It happens in deep networks under a rule that does not conserve, such as [`Relative`](crate::Relative).
    #[must_use]
    pub fn exponent(&self) -> i32 {
        self.exponent
    }

    /// The relevance of each input for output `target`, S[:, k] · f_k(x), times 2^-[`exponent`](Self::exponent).
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`].
    pub fn relevance(&self, target: usize) -> Result<DVector<T>, Error> {
        self.check(target)?;
        Ok(self.shares.column(target) * self.output[target])
    }

    /// The `count` inputs that contributed most to output `target`, for or against, the strongest first.
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`].
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -5.0, 2.0], None)?).build()?;
    /// let top = model.explain(&dvector![1.0, 1.0, 1.0], Rule::Epsilon)?.top(0, 2)?;
    /// assert_eq!([top[0].input, top[1].input], [1, 2]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn top(&self, target: usize, count: usize) -> Result<Vec<Contribution<T>>, Error> {
        let relevance = self.relevance(target)?;
        let mut order: Vec<_> = relevance.iter().enumerate().map(|(input, &relevance)| Contribution { input, relevance }).collect();
        // Magnitudes are never NaN, so that all compare; the sort is stable, so equals stay in the inputs' order.
        order.sort_by(|a, b| b.relevance.abs().partial_cmp(&a.relevance.abs()).unwrap_or(std::cmp::Ordering::Equal));
        order.truncate(count);
        Ok(order)
    }

    /// Where all relevance of output `target` went.
    ///
    /// # Errors
    /// [`Error::TargetOutOfRange`].
    pub fn ledger(&self, target: usize) -> Result<Ledger, Error> {
        self.check(target)?;
        let scale = f64::from(self.exponent).exp2();
        let output = self.output[target].as_f64();
        let shares = self.shares.column(target);
        let entries = self.sinks.iter().map(|sink| {
            let share = sink.shares[target].as_f64();
            LedgerEntry { layer: sink.layer, kind: sink.kind.clone(), cause: sink.cause, share, relevance: share * output }
        });
        Ok(Ledger {
            target,
            output,
            inputs: shares.iter().map(|share| share.as_f64()).sum::<f64>() * scale,
            inputs_magnitude: shares.iter().map(|share| share.as_f64().abs()).sum::<f64>() * scale,
            entries: entries.collect(),
        })
    }

    fn check(&self, target: usize) -> Result<(), Error> {
        let outputs = self.output.len();
        if target < outputs { Ok(()) } else { Err(Error::TargetOutOfRange { target, outputs }) }
    }
}

impl<T: Scalar> fmt::Display for Explanation<T> {
    /// A line for each output (the largest ten of them): its value and the inputs that contributed most.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const OUTPUTS: usize = 10;
        const INPUTS: usize = 4;
        let (inputs, outputs) = self.shares.shape();
        write!(f, "{}: {inputs} inputs, {outputs} outputs, predicted {}", self.rule, self.predicted())?;
        if self.exponent != 0 {
            write!(f, ", relevances times 2^{}", self.exponent)?;
        }
        let mut order: Vec<usize> = (0..outputs).collect();
        order.sort_by(|&a, &b| self.output[b].partial_cmp(&self.output[a]).unwrap_or(std::cmp::Ordering::Equal));
        for &target in order.iter().take(OUTPUTS) {
            write!(f, "\n  output {target:>4} {:>12.5}", self.output[target])?;
            if let Some(probabilities) = &self.probabilities {
                write!(f, " {:>7.2} %", probabilities[target].as_f64() * 100.0)?;
            }
            f.write_str("  from")?;
            for contribution in self.top(target, INPUTS).map_err(|_| fmt::Error)? {
                write!(f, "  [{}] {:+.4}", contribution.input, contribution.relevance)?;
            }
        }
        if outputs > OUTPUTS {
            write!(f, "\n  and {} more outputs", outputs - OUTPUTS)?;
        }
        Ok(())
    }
}
