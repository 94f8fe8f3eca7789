//! Inside the network: the relevance of every layer's inputs, and the relevance that flows through
//! a unit, a path or a weight.

use std::fmt;

use nalgebra::{DMatrix, DVector};

use crate::accumulate::{Kept, Overflow, Suffix};
use crate::buffer::Buffers;
use crate::error::Error;
use crate::explainer::{Explainer, Run};
use crate::explanation::{Contribution, Explanation, strongest};
use crate::memory::MemoryLimit;
use crate::scalar::Scalar;

/// One explained sample with the shares at every layer, for examining units inside the network.
///
/// Layers are identified by their index in the model. The *units* of a layer are its inputs: the
/// units of layer 0 are the sample's values, and the units at the index after the last layer
/// (`layers().len()`) are the outputs. Relevance passes through activations unchanged, so a unit's
/// relevance is the same before and after an activation.
///
/// Let P be the shares of the sample's values in the units of a layer, and S the shares of these
/// units in the targets. Then P[i, j] S[j, k] f_k is the relevance of output k that flows through
/// unit j to input i. This is the *conditional relevance* (R. Achtibat et al.: From attribution
/// maps to human-understandable explanations through concept relevance propagation. Nature Machine
/// Intelligence 5, 2023). P and S are known for all units and targets at once.
///
/// Values too small for the number type are 0 in a trace, whereas an [`Explanation`] scales them by
/// its [`exponent`](Explanation::exponent).
///
/// ```
/// use relprop::{Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0, 0.0; 1.0, 1.0; 0.0, -1.0], None)?)
///     .layer(Relu)
///     .layer(Linear::new(dmatrix![1.0, 2.0, 5.0], None)?)
///     .build()?;
/// let trace = model.explainer(Rule::Lrp0)?.trace(&dvector![1.0, 2.0])?;
/// assert_eq!(trace.relevance(0, 0)?, dvector![3.0, 4.0]); // inputs
/// assert_eq!(trace.relevance(2, 0)?, dvector![1.0, 6.0, 0.0]); // hidden units
/// // The part of the inputs' relevance that flows through hidden unit 1:
/// assert_eq!(trace.through(2, &[1], 0)?, dvector![2.0, 4.0]);
/// let strongest = &trace.paths(0, 1)?[0];
/// assert_eq!(strongest.to_string(), "1 -> 1 -> 0: +4.0000"); // input, hidden unit, output
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug)]
pub struct Trace<T: Scalar> {
    explanation: Explanation<T>,
    kept: Kept<T>,
    /// For each linear layer, the shares of its inputs in the targets.
    shares: Vec<DMatrix<T>>,
    /// The shares of the outputs in the targets.
    of_outputs: DMatrix<T>,
    limit: MemoryLimit,
}

/// A path from an input to an output, through one unit of each linear layer.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Path<T> {
    /// The unit at each linear layer, from an input of the sample to the output where the path
    /// ends.
    pub units: Vec<usize>,
    /// The relevance that flows along this path: the product of its shares, times the output.
    pub relevance: T,
}

impl<T: fmt::Display> fmt::Display for Path<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units: Vec<String> = self.units.iter().map(usize::to_string).collect();
        write!(f, "{}: {:+.4}", units.join(" -> "), self.relevance)
    }
}

impl<T: Scalar> Explainer<T> {
    /// Explains the targets for one sample and keeps the shares at every layer.
    ///
    /// Cost: that of [`Accumulation::Reverse`](crate::Accumulation::Reverse), whatever the
    /// explainer's order. Memory: the activations, and inputs x targets values for each linear
    /// layer.
    ///
    /// # Errors
    /// See [`explain`](Self::explain).
    pub fn trace(&self, sample: &DVector<T>) -> Result<Trace<T>, Error> {
        self.trace_slice(sample.as_slice())
    }

    /// Explains the targets for one sample, given as a slice, and keeps the shares at every layer.
    ///
    /// # Errors
    /// See [`explain`](Self::explain).
    pub fn trace_slice(&self, sample: &[T]) -> Result<Trace<T>, Error> {
        (T::compiled().trace)(self, sample)
    }

    pub(crate) fn trace_inner(&self, sample: &[T]) -> Result<Trace<T>, Error> {
        let overflow = |at: Overflow| self.overflow(&at);
        let model = self.model();
        model.check_input(sample.len())?;
        model.check_samples(sample)?;
        let limit = self.check_size_of_trace()?;
        let mut buffers = Buffers::default();
        let mut kept = Kept::new(model.clone(), self.network().clone());
        let outputs = model.pass(sample, &mut buffers, &mut kept)?;
        let (targets, selected) = self.begin(&outputs.logits, &mut buffers);
        let mut blocks = kept.suffixes(targets, &mut buffers).map_err(overflow)?;
        // The suffixes begin with the last factor; the shares are in the order of the layers.
        blocks.reverse();
        let shares = blocks
            .iter()
            .map(|block| block.to_matrix(0).map_err(overflow))
            .collect::<Result<_, _>>()?;
        let mut explanation = self.empty();
        self.fill(
            // The shares of the first factor's inputs are the explanation itself.
            &mut Run { outputs, block: blocks.swap_remove(0), selected, noted: kept.take_noted() },
            0,
            &mut explanation,
        )?;
        self.examine(sample, &mut explanation)?;
        let of_outputs = explanation.of_outputs();
        Ok(Trace { explanation, kept, shares, of_outputs, limit })
    }
}

impl<T: Scalar> Trace<T> {
    /// The explanation of the sample.
    #[must_use]
    pub fn explanation(&self) -> &Explanation<T> {
        &self.explanation
    }

    /// The position of the linear layer with the same units as `layer`: that of the next linear
    /// layer, or the number of linear layers if `layer` stands for the outputs.
    fn linear(&self, layer: usize) -> Result<usize, Error> {
        let layers = self.kept.model().nodes().len();
        if layer > layers {
            return Err(Error::LayerOutOfRange { layer, layers });
        }
        Ok((0..self.kept.len())
            .find(|&linear| layer <= self.kept.layer(linear))
            .unwrap_or(self.kept.len()))
    }

    fn units(&self, linear: usize) -> usize {
        self.shares.get(linear).unwrap_or(&self.of_outputs).nrows()
    }

    /// The shares of a layer's units in the targets, units x targets.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`].
    pub fn shares(&self, layer: usize) -> Result<&DMatrix<T>, Error> {
        Ok(self.shares.get(self.linear(layer)?).unwrap_or(&self.of_outputs))
    }

    /// The relevance of each unit of a layer for a target.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], and the errors of [`Explanation::relevance`].
    pub fn relevance(&self, layer: usize, target: usize) -> Result<DVector<T>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        Ok(self.shares(layer)?.column(column) * scale)
    }

    /// The `count` units of a layer that contribute most to a target, for or against it, strongest
    /// first.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance).
    pub fn top(
        &self,
        layer: usize,
        target: usize,
        count: usize,
    ) -> Result<Vec<Contribution<T>>, Error> {
        Ok(strongest(&self.relevance(layer, target)?, count))
    }

    /// The shares of the sample's values in each unit of a layer, inputs x units.
    ///
    /// Multiplying each column by the relevance of its unit gives the conditional relevance of all
    /// units at once. Cost: that of [`Accumulation::Forward`](crate::Accumulation::Forward) up to
    /// this layer.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`], [`Error::Overflow`] or [`Error::TooLarge`].
    pub fn prefix(&self, layer: usize) -> Result<DMatrix<T>, Error> {
        (T::compiled().prefix)(self, layer)
    }

    pub(crate) fn prefix_inner(&self, layer: usize) -> Result<DMatrix<T>, Error> {
        let linear = self.linear(layer)?;
        // The new block and the one it is computed from, at the largest layer on the way.
        let largest = (0..=linear).map(|linear| self.units(linear)).max().unwrap_or(0);
        let what = || {
            format!(
                "the shares of {} inputs in the units of each layer up to layer {layer}",
                self.units(0)
            )
        };
        self.check_size(2.0 * self.units(0) as f64 * largest as f64, what)?;
        match linear {
            0 => Ok(DMatrix::identity(self.units(0), self.units(0))),
            linear => self.whole(self.kept.prefix(linear, &mut Buffers::default())),
        }
    }

    /// The part of the inputs' relevance for a target that flows through the given units of a
    /// layer.
    ///
    /// Summed over all units of a layer, these parts give the whole relevance. Cost: reverse
    /// accumulation for one target, from this layer back to the inputs. The network is not run
    /// again.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), and [`Error::UnitOutOfRange`].
    pub fn through(
        &self,
        layer: usize,
        units: &[usize],
        target: usize,
    ) -> Result<DVector<T>, Error> {
        (T::compiled().through)(self, layer, units, target)
    }

    pub(crate) fn through_inner(
        &self,
        layer: usize,
        units: &[usize],
        target: usize,
    ) -> Result<DVector<T>, Error> {
        let (linear, relevance) = (self.linear(layer)?, self.relevance(layer, target)?);
        let mut buffers = Buffers::default();
        // R_j for the chosen units, and 0 for all others.
        let mut chosen = buffers.values.take(relevance.len());
        chosen.fill(T::zero());
        for &unit in units {
            if unit >= relevance.len() {
                return Err(Error::UnitOutOfRange { unit, layer, units: relevance.len() });
            }
            chosen[unit] = relevance[unit];
        }
        // Only for error messages. For the outputs, it is the last layer.
        let from = self.kept.layer(linear.min(self.kept.len() - 1));
        let block = Suffix::of_targets(from, chosen, relevance.len(), 1, &mut buffers);
        let inputs =
            self.whole(block.and_then(|block| self.kept.back_from(linear, block, &mut buffers)))?;
        Ok(inputs.column(0).into_owned())
    }

    /// The relevance of each weight of a linear layer for a target.
    ///
    /// This is A_ij R_j, the relevance that flows from output j to input i. The result is outputs x
    /// inputs, the shape of a dense layer's weights. A convolution's result is that of the dense
    /// layer with the same values. Cost: the size of the result for each of the rule's terms.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), [`Error::NotLinear`] if the layer has no share
    /// matrix, as an activation, and [`Error::TooLarge`].
    pub fn of_weights(&self, layer: usize, target: usize) -> Result<DMatrix<T>, Error> {
        (T::compiled().of_weights)(self, layer, target)
    }

    pub(crate) fn of_weights_inner(
        &self,
        layer: usize,
        target: usize,
    ) -> Result<DMatrix<T>, Error> {
        let linear = self.linear(layer)?;
        if linear == self.kept.len() || self.kept.layer(linear) != layer {
            return Err(Error::NotLinear { layer });
        }
        let (column, scale) = self.explanation.place(target)?;
        // The shares of this layer's outputs in the target, which `scale` turns into their R_j.
        let above = self.shares.get(linear + 1).unwrap_or(&self.of_outputs).column(column);
        let mut shares = self.of_factor(linear)?;
        // Column j of A times R_j.
        for (mut share, above) in shares.column_iter_mut().zip(&above) {
            share *= *above * scale;
        }
        Ok(shares.transpose())
    }

    /// The `count` strongest paths from the inputs to a target.
    ///
    /// A path is strong if the product of its shares is large in magnitude. The paths are found
    /// exactly, by dynamic programming over the layers. For a weighting of outputs, paths can end
    /// at any output. Cost: every share matrix is formed, and searched in at most its size times
    /// `count` steps.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), and [`Error::TooLarge`] if the share matrix of
    /// a layer exceeds the memory limit, as that of a convolution easily does.
    pub fn paths(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        (T::compiled().paths)(self, target, count)
    }

    pub(crate) fn paths_inner(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        // A unit has at most `count` arrivals, and at most one for each path that leads to it.
        let (mut to_each, mut arrivals) = (1.0_f64, 0.0);
        for units in (0..=self.kept.len()).map(|linear| self.units(linear) as f64) {
            arrivals += to_each * units;
            to_each = (to_each * units).min(count as f64);
        }
        let numbers = size_of::<Arrival>() / size_of::<T>();
        self.check_size(arrivals * numbers as f64, || {
            format!("the {count} strongest paths to each unit of each layer")
        })?;
        let mut ends = Ends::at_inputs(self.units(0));
        for linear in 0..self.kept.len() {
            ends.lengthen(&self.of_factor(linear)?, count);
        }
        // The last step leads to the target itself.
        ends.lengthen(&(self.of_outputs.columns(column, 1) * scale), count);
        // There is only one column in the last step.
        let paths = ends.paths(0);
        if paths.iter().any(|path: &Path<T>| !path.relevance.is_finite()) {
            return Err(Overflow { layer: self.kept.layer(0) }.error(self.kept.model()));
        }
        Ok(paths)
    }

    fn check_size(&self, values: f64, what: impl FnOnce() -> String) -> Result<(), Error> {
        self.limit.check::<T>(values, what, || {
            "raise the limit with Explainer::memory_limit before you trace".to_owned()
        })
    }

    fn of_factor(&self, linear: usize) -> Result<DMatrix<T>, Error> {
        let (inputs, outputs) = self.kept.sizes(linear);
        let what = || {
            format!("the share matrix of layer {}, {inputs} x {outputs},", self.kept.layer(linear))
        };
        // The share matrix exists as a prefix, as a suffix and as a matrix.
        self.check_size(3.0 * inputs as f64 * outputs as f64, what)?;
        self.whole(self.kept.shares(linear, &mut Buffers::default()))
    }

    fn whole(&self, block: Result<Suffix<T>, Overflow>) -> Result<DMatrix<T>, Error> {
        let overflow = |at: Overflow| at.error(self.kept.model());
        block.map_err(overflow)?.to_matrix(0).map_err(overflow)
    }
}

/// The strongest paths to each unit of the layers so far.
struct Ends {
    /// For each step and each of its units, the ends of the strongest paths to it, strongest first.
    steps: Vec<Vec<Vec<Arrival>>>,
}

/// The end of one path.
#[derive(Clone, Copy)]
struct Arrival {
    /// The logarithm of the product's magnitude, because products of many shares exceed the range
    /// of every number type.
    size: f64,
    negative: bool,
    /// The previous unit, and the rank of the path among the arrivals there.
    from: usize,
    rank: usize,
}

impl Ends {
    fn at_inputs(inputs: usize) -> Self {
        // An empty product: ln 1 = 0.
        let start = |from| vec![Arrival { size: 0.0, negative: false, from, rank: 0 }];
        Self { steps: vec![(0..inputs).map(start).collect()] }
    }

    /// Extends each path by a step with these shares and keeps the strongest paths to each unit.
    fn lengthen<T: Scalar>(&mut self, shares: &DMatrix<T>, count: usize) {
        let before = &self.steps[self.steps.len() - 1];
        let arrive = |shares: nalgebra::DVectorView<'_, T>| {
            let mut best: Vec<Arrival> = Vec::new();
            for (from, share) in shares.iter().enumerate().filter(|(_, share)| **share != T::zero())
            {
                let step = share.as_f64().abs().ln();
                for (rank, arrival) in before[from].iter().enumerate() {
                    let size = arrival.size + step;
                    // `best` is sorted in descending order. Equal paths stay in the order of their
                    // units.
                    let place = best.partition_point(|other| other.size >= size);
                    // Arrivals are sorted, so the remaining ones are no stronger.
                    if place >= count {
                        break;
                    }
                    // `count` is at least 1 here, because `place` is less.
                    best.truncate(count - 1);
                    best.insert(
                        place,
                        Arrival {
                            size,
                            negative: arrival.negative != (*share < T::zero()),
                            from,
                            rank,
                        },
                    );
                }
            }
            best
        };
        let arrivals = shares.column_iter().map(arrive).collect();
        self.steps.push(arrivals);
    }

    /// The strongest paths to a unit of the last step. The unit itself is not listed.
    fn paths<T: Scalar>(&self, unit: usize) -> Vec<Path<T>> {
        let last = self.steps.len() - 1;
        let path = |arrival: &Arrival| {
            let mut units = vec![0; last];
            let mut at = *arrival;
            // Follows the arrivals back to the inputs.
            for place in (0..last).rev() {
                units[place] = at.from;
                at = self.steps[place][at.from][at.rank];
            }
            let size = arrival.size.exp();
            Path { units, relevance: T::from_f64(if arrival.negative { -size } else { size }) }
        };
        self.steps[last][unit].iter().map(path).collect()
    }
}
