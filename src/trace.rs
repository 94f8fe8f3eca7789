//! Inside the network: the relevance of every layer's inputs, and the relevance that flows through
//! a unit, a path or a weight.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use crate::buffer::{Buffers, Flow};
use crate::error::Error;
use crate::explainer::{Explainer, Run};
use crate::explanation::{Contribution, Explanation, strongest};
use crate::graph::{Graph, Node};
use crate::inputs::Feed;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::nearest::did_you_mean;
use crate::relevance::{Factor, Network, Overflow, Suffix, Tape, Targets, Walk};
use crate::scalar::Scalar;

/// One explained sample with the shares at every layer, for examining units inside the network.
///
/// Layers are identified by their name or by their index in the model. The *units* of a layer are
/// its inputs: the units of layer 0 are the sample's values, and the units at the index after the
/// last layer (`layers().len()`) are the outputs. A layer that reads several values has the units
/// of all of them, one value after another, and those of a value that it reads twice once; a layer
/// with branches has those that the branches begin with. Relevance passes through activations unchanged, so a unit's relevance is the same before
/// and after an activation.
///
/// The relevance of a unit is the sum over all layers that read it.
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
    network: Arc<Network<T>>,
    tape: Tape<T>,
    /// For each value of the graph, the shares of its units in the targets, if any relevance
    /// reaches it.
    shares: Vec<Option<DMatrix<T>>>,
    limit: MemoryLimit,
}

/// A layer of a model, by its index or by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerId<'a> {
    /// The index, counted from 0. The index after the last layer stands for the outputs.
    Index(usize),
    /// The name.
    Name(&'a str),
}

impl From<usize> for LayerId<'_> {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for LayerId<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
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
    /// explainer's order. Memory: the activations, and units x targets values for each layer.
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
        let feed = Feed::Columns(sample, model.inputs());
        feed.check(model)?;
        let limit = self.check_size_of_trace()?;
        let (mut buffers, mut tape) = (Buffers::default(), Tape::default());
        let outputs = self.record(&feed, &mut tape, &mut buffers)?;
        let (targets, selected) = self.begin(&outputs.logits, &mut buffers);
        let network = self.network().clone();
        let of_outputs = of_targets(&targets, model.outputs());
        let mut flows = network.empty_flows();
        flows[model.output_value()] = Some(Flow::of_matrix(&of_outputs, &mut buffers));
        let mut sinks = vec![Vec::new(); network.nodes.len()];
        let walk = Walk { network: &network, tape: &tape };
        let mut drain = |place: usize, _: usize, of_node: &[T]| sinks[place] = of_node.to_vec();
        walk.back(&network.nodes, &mut flows, true, &mut drain, &mut buffers).map_err(overflow)?;
        // The explanation is the relevance of the explained values, with the sinks of all nodes.
        let block = Suffix::of_flows(&network, &flows, &sinks.concat(), &mut buffers);
        let mut explanation = self.empty();
        let mut run = Run { outputs, block: block.map_err(overflow)?, selected };
        self.fill(&mut run, 0, &tape.noted, &mut explanation)?;
        self.examine(&feed, &mut explanation)?;
        let shares = flows
            .iter()
            .enumerate()
            .map(|(value, flow)| {
                let Some(flow) = flow else { return Some(None) };
                Some(Some(matrix(flow, model.shape_of(value).size())?))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| overflow(Overflow { layer: 0 }))?;
        Ok(Trace { explanation, network, tape, shares, limit })
    }
}

/// The shares of the outputs in the targets, outputs x targets.
fn of_targets<T: Scalar>(targets: &Targets<T>, outputs: usize) -> DMatrix<T> {
    match targets {
        Targets::All => DMatrix::identity(outputs, outputs),
        Targets::Selected(selected) => {
            DMatrix::from_fn(outputs, selected.len(), |output, column| {
                if selected[column] == output { T::one() } else { T::zero() }
            })
        }
        Targets::Weighted(values, targets) => DMatrix::from_column_slice(outputs, *targets, values),
    }
}

/// The true values of a flow, or `None` if one of them is not finite. Values too small for the
/// number type are 0.
fn matrix<T: Scalar>(flow: &Flow<T>, size: usize) -> Option<DMatrix<T>> {
    let values = flow.values.iter().map(|v| v.times_two_to(flow.exponents[0]));
    let matrix = DMatrix::from_iterator(size, flow.values.len() / size, values);
    linalg::first_non_finite(matrix.as_slice()).is_none().then_some(matrix)
}

impl<T: Scalar> Trace<T> {
    /// The explanation of the sample.
    #[must_use]
    pub fn explanation(&self) -> &Explanation<T> {
        &self.explanation
    }

    fn graph(&self) -> &Graph<T> {
        &self.network.graph
    }

    /// A layer's node, or `None` for the outputs.
    fn node(&self, layer: LayerId<'_>) -> Result<Option<&Node<T>>, Error> {
        let graph = self.graph();
        match layer {
            LayerId::Index(index) if index == graph.nodes().len() => Ok(None),
            LayerId::Index(index) => match graph.layer(index) {
                Some(node) => Ok(Some(node)),
                None => Err(Error::LayerOutOfRange { layer: index, layers: graph.nodes().len() }),
            },
            LayerId::Name(name) => match graph.nodes().find(|node| node.name == name) {
                Some(node) => Ok(Some(node)),
                None => Err(Error::NoSuchValue {
                    name: name.to_owned(),
                    nearest: did_you_mean(name, graph.names()),
                }),
            },
        }
    }

    /// The values whose units are those of a layer.
    fn values(&self, layer: LayerId<'_>) -> Result<Vec<usize>, Error> {
        Ok(match self.node(layer)? {
            Some(node) => self.graph().units_of(node),
            None => vec![self.graph().output_value()],
        })
    }

    fn size(&self, value: usize) -> usize {
        self.graph().shape_of(value).size()
    }

    fn units(&self, values: &[usize]) -> usize {
        values.iter().map(|&value| self.size(value)).sum()
    }

    /// The shares of a layer's units in the targets, units x targets.
    ///
    /// They are 0 for units that no relevance reaches.
    ///
    /// # Errors
    /// [`Error::LayerOutOfRange`] or [`Error::NoSuchValue`].
    pub fn shares<'a>(&self, layer: impl Into<LayerId<'a>>) -> Result<DMatrix<T>, Error> {
        let values = self.values(layer.into())?;
        let targets = self.explanation.shares().ncols();
        let mut shares = DMatrix::zeros(self.units(&values), targets);
        let mut first = 0;
        for &value in &values {
            let size = self.size(value);
            if let Some(own) = &self.shares[value] {
                shares.rows_mut(first, size).copy_from(own);
            }
            first += size;
        }
        Ok(shares)
    }

    /// The relevance of each unit of a layer for a target.
    ///
    /// # Errors
    /// See [`shares`](Self::shares), and the errors of [`Explanation::relevance`].
    pub fn relevance<'a>(
        &self,
        layer: impl Into<LayerId<'a>>,
        target: usize,
    ) -> Result<DVector<T>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        Ok(self.shares(layer)?.column(column) * scale)
    }

    /// The `count` units of a layer that contribute most to a target, for or against it, strongest
    /// first.
    ///
    /// # Errors
    /// See [`relevance`](Self::relevance).
    pub fn top<'a>(
        &self,
        layer: impl Into<LayerId<'a>>,
        target: usize,
        count: usize,
    ) -> Result<Vec<Contribution<T>>, Error> {
        Ok(strongest(&self.relevance(layer, target)?, count))
    }

    /// The shares of the explained values in each unit of a layer, inputs x units.
    ///
    /// Multiplying each column by the relevance of its unit gives the conditional relevance of all
    /// units at once. Cost: that of [`Accumulation::Forward`](crate::Accumulation::Forward) up to
    /// this layer.
    ///
    /// # Errors
    /// See [`shares`](Self::shares), [`Error::Overflow`] and [`Error::TooLarge`].
    pub fn prefix<'a>(&self, layer: impl Into<LayerId<'a>>) -> Result<DMatrix<T>, Error> {
        (T::compiled().prefix)(self, layer.into())
    }

    pub(crate) fn prefix_inner(&self, layer: LayerId<'_>) -> Result<DMatrix<T>, Error> {
        let values = self.values(layer)?;
        let (inputs, network) = (self.network.inputs(), &self.network);
        // The new block and the one it is computed from, at the largest layer on the way.
        let largest = network.nodes.iter().map(|&node| network.sharing(node).outputs).max();
        let what = || format!("the shares of {inputs} inputs in the units of each layer");
        self.check_size(2.0 * inputs as f64 * largest.unwrap_or(0).max(inputs) as f64, what)?;
        let mut buffers = Buffers::default();
        let mut flows = network.empty_flows();
        let mut first = 0;
        for &entry in &network.entries {
            let size = self.size(entry);
            let mut own = DMatrix::zeros(size, inputs);
            own.columns_mut(first, size).fill_with_identity();
            flows[entry] = Some(Flow::of_matrix(&own, &mut buffers));
            first += size;
        }
        let walk = Walk { network, tape: &self.tape };
        let all = (network.nodes.as_slice(), [].as_slice());
        walk.forth(all, &mut flows, 0, None, &mut buffers).map_err(|at| at.error(self.graph()))?;
        let mut shares = DMatrix::zeros(inputs, self.units(&values));
        let mut first = 0;
        for &value in &values {
            let size = self.size(value);
            // Each column of the flow has the shares of one input.
            if let Some(flow) = &flows[value] {
                let own =
                    matrix(flow, size).ok_or_else(|| Overflow { layer: 0 }.error(self.graph()))?;
                shares.columns_mut(first, size).copy_from(&own.transpose());
            }
            first += size;
        }
        Ok(shares)
    }

    /// The part of the inputs' relevance for a target that flows through the given units of a
    /// layer.
    ///
    /// If all relevance flows through this layer, these parts, summed over all of its units, give
    /// the whole relevance. Cost: reverse accumulation for one target, from this layer back to the
    /// inputs. The network is not run again.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), and [`Error::UnitOutOfRange`].
    pub fn through<'a>(
        &self,
        layer: impl Into<LayerId<'a>>,
        units: &[usize],
        target: usize,
    ) -> Result<DVector<T>, Error> {
        (T::compiled().through)(self, layer.into(), units, target)
    }

    pub(crate) fn through_inner(
        &self,
        layer: LayerId<'_>,
        units: &[usize],
        target: usize,
    ) -> Result<DVector<T>, Error> {
        let (values, relevance) = (self.values(layer)?, self.relevance(layer, target)?);
        // R_j for the chosen units, and 0 for all others.
        let mut chosen = DVector::zeros(relevance.len());
        for &unit in units {
            if unit >= relevance.len() {
                let layer = self.node(layer)?.map_or(self.graph().nodes().len(), |node| node.index);
                return Err(Error::UnitOutOfRange { unit, layer, units: relevance.len() });
            }
            chosen[unit] = relevance[unit];
        }
        let (mut buffers, mut flows) = (Buffers::default(), self.network.empty_flows());
        let mut first = 0;
        for &value in &values {
            let size = self.size(value);
            let own = chosen.rows(first, size).into_owned();
            let own = DMatrix::from_column_slice(size, 1, own.as_slice());
            flows[value] = Some(Flow::of_matrix(&own, &mut buffers));
            first += size;
        }
        let walk = Walk { network: &self.network, tape: &self.tape };
        walk.back(&self.network.nodes, &mut flows, false, &mut |_, _, _| {}, &mut buffers)
            .and_then(|()| Suffix::of_flows(&self.network, &flows, &[], &mut buffers))
            .and_then(|block| block.to_matrix(0))
            .map(|inputs| inputs.column(0).into_owned())
            .map_err(|at| at.error(self.graph()))
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
    pub fn of_weights<'a>(
        &self,
        layer: impl Into<LayerId<'a>>,
        target: usize,
    ) -> Result<DMatrix<T>, Error> {
        (T::compiled().of_weights)(self, layer.into(), target)
    }

    pub(crate) fn of_weights_inner(
        &self,
        layer: LayerId<'_>,
        target: usize,
    ) -> Result<DMatrix<T>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        let none = |layer: usize| Error::NotLinear { layer };
        let node = self.node(layer)?.ok_or_else(|| none(self.graph().nodes().len()))?;
        let number = self.graph().number_of(node);
        let sharing = self.network.sharing(number);
        if !self.network.reaches(number) || sharing.is_pass() {
            return Err(none(node.index));
        }
        let (inputs, outputs) = (sharing.inputs, sharing.outputs);
        let what = || format!("the share matrix of layer {}, {inputs} x {outputs},", node.index);
        // The share matrix and the result exist at the same time.
        self.check_size(3.0 * inputs as f64 * outputs as f64, what)?;
        let mut buffers = Buffers::default();
        let mut relevance = DMatrix::zeros(outputs, inputs);
        let all: Vec<usize> = (0..inputs).collect();
        // Row i of A, for each input i.
        let shares = self.tape.of(number);
        shares.rows(0, (&all, inputs), relevance.as_mut_slice(), &mut buffers);
        // The shares of this layer's outputs in the target, which `scale` turns into their R_j.
        let above = &self.shares[self.graph().value_of(number)];
        for (output, mut row) in relevance.row_iter_mut().enumerate() {
            let above = above.as_ref().map_or(T::zero(), |above| above[(output, column)]);
            row *= above * scale;
        }
        match linalg::first_non_finite(relevance.as_slice()) {
            Some(_) => Err(Overflow { layer: node.index }.error(self.graph())),
            None => Ok(relevance),
        }
    }

    /// The `count` strongest paths from the inputs to a target.
    ///
    /// A path is strong if the product of its shares is large in magnitude. It has one unit of each
    /// value that all relevance flows through; where the network branches, that is one unit where
    /// the branches begin and one where they end. The paths are found exactly, by dynamic
    /// programming over the layers. For a weighting of outputs, paths can end at any output. Cost:
    /// every share matrix is formed, and searched in at most its size times `count` steps.
    ///
    /// # Errors
    /// The errors of [`relevance`](Self::relevance), and [`Error::TooLarge`] if the share matrix of
    /// a layer exceeds the memory limit, as that of a convolution easily does.
    pub fn paths(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        (T::compiled().paths)(self, target, count)
    }

    pub(crate) fn paths_inner(&self, target: usize, count: usize) -> Result<Vec<Path<T>>, Error> {
        let (column, scale) = self.explanation.place(target)?;
        let segments = &self.network.segments;
        // A unit has at most `count` arrivals, and at most one for each path that leads to it.
        let (mut to_each, mut arrivals) = (1.0_f64, 0.0);
        let sizes = segments.iter().map(|segment| segment.inputs);
        for units in sizes.chain([self.graph().outputs()]).map(|units| units as f64) {
            arrivals += to_each * units;
            to_each = (to_each * units).min(count as f64);
        }
        let numbers = size_of::<Arrival>() / size_of::<T>();
        self.check_size(arrivals * numbers as f64, || {
            format!("the {count} strongest paths to each unit of each layer")
        })?;
        let mut ends = Ends::at_inputs(self.network.inputs());
        for segment in 0..segments.len() {
            ends.lengthen(&self.of_segment(segment)?, count);
        }
        // The last step leads to the target itself.
        ends.lengthen(&(self.explanation.of_outputs().columns(column, 1) * scale), count);
        // There is only one column in the last step.
        let paths = ends.paths(0);
        if paths.iter().any(|path: &Path<T>| !path.relevance.is_finite()) {
            return Err(Overflow { layer: 0 }.error(self.graph()));
        }
        Ok(paths)
    }

    /// The share matrix of a segment.
    fn of_segment(&self, segment: usize) -> Result<DMatrix<T>, Error> {
        let factor = Factor::new(&self.network, segment, &self.tape);
        let (inputs, outputs) = (factor.inputs(), factor.outputs());
        let what =
            || format!("the share matrix of layer {}, {inputs} x {outputs},", factor.layer());
        // The share matrix exists as a prefix, as a suffix and as a matrix.
        self.check_size(3.0 * inputs as f64 * outputs as f64, what)?;
        Suffix::of_factor(factor, &mut Buffers::default())
            .and_then(|block| block.to_matrix(0))
            .map_err(|at| at.error(self.graph()))
    }

    fn check_size(&self, values: f64, what: impl FnOnce() -> String) -> Result<(), Error> {
        self.limit.check::<T>(values, what, || {
            "raise the limit with Explainer::memory_limit before you trace".to_owned()
        })
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
