//! Inside the network: the relevance of every layer's inputs, and the relevance that flows through
//! a unit or a weight.

use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use super::explainer::Explainer;
use super::explanation::{Contribution, Explanation, strongest};
use super::pass::PassResult;
use crate::buffer::{Buffers, Flow};
use crate::error::Error;
use crate::graph::{Feed, Graph, Inputs, Node};
use crate::layer::LayerId;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::nearest::did_you_mean;
use crate::relevance::{Network, Overflow, Seed, Suffix, Tape, Walk};
use crate::scalar::Scalar;

/// One explained sample with the shares at every layer, for examining units inside the network.
///
/// Layers are identified by their name or by their index in the model. The *units* of a layer are
/// its inputs: the units of layer 0 are the sample's values, and the units at the index after the
/// last layer (`layers().len()`) are the outputs. A layer that reads several values has the units
/// of all of them, one value after another. The units of a value that it reads twice are listed
/// once. The units of a layer with branches are those of the value where its branches begin.
///
/// The relevance of a unit is the sum of what all layers that read it pass back. Relevance passes
/// through activations unchanged, so a unit's relevance is the same before and after an activation.
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
    pub(super) explanation: Explanation<T>,
    pub(super) network: Arc<Network<T>>,
    pub(super) tape: Tape<T>,
    /// For each value of the graph, the shares of its units in the targets, if any relevance
    /// reaches it.
    shares: Vec<Option<DMatrix<T>>>,
    limit: MemoryLimit,
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
        self.model().check_input(sample.len())?;
        (T::compiled().trace)(self, &Feed::Columns(sample, self.model().inputs()))
    }

    /// Explains the targets for one sample, given as the values of each input by name, and keeps
    /// the shares at every layer.
    ///
    /// # Errors
    /// See [`explain_inputs`](Self::explain_inputs).
    pub fn trace_inputs(&self, inputs: &Inputs<'_, T>) -> Result<Trace<T>, Error> {
        (T::compiled().trace)(self, &inputs.bind_one(self.model())?)
    }

    pub(crate) fn trace_inner(&self, feed: &Feed<'_, T>) -> Result<Trace<T>, Error> {
        let overflow = |at: Overflow| self.overflow(&at);
        let model = self.model();
        feed.check(model)?;
        let limit = self.check_size_of_trace()?;
        let (mut buffers, mut tape) = (Buffers::default(), Tape::default());
        let outputs = self.record(feed, &mut tape, &mut buffers)?;
        let seed = self.seed(&outputs.logits, &mut buffers);
        let network = self.network().clone();
        let of_outputs = of_targets(&seed, model.outputs());
        let mut flows = network.empty_flows();
        flows[model.output_value()] = Some(Flow::of_matrix(&of_outputs, &mut buffers));
        let mut sinks = vec![Vec::new(); network.nodes.len()];
        let walk = Walk { network: &network, tape: &tape };
        let mut drain = |place: usize, _: usize, of_node: &[T]| sinks[place] = of_node.to_vec();
        walk.back(&network.nodes, &mut flows, true, &mut drain, &mut buffers).map_err(overflow)?;
        // The explanation is the relevance of the explained values, with the sinks of all nodes.
        let block = Suffix::of_flows(&network, &flows, &sinks.concat(), &mut buffers);
        let mut explanation = self.empty();
        let mut run = PassResult { outputs, block: block.map_err(overflow)? };
        self.write(&mut run, 0, &tape.noted, &mut explanation)?;
        self.examine(feed, &mut explanation)?;
        let shares = flows
            .iter()
            .enumerate()
            .map(|(value, flow)| {
                let flow = flow.as_ref();
                flow.map(|flow| matrix(model, value, flow)).transpose().map_err(overflow)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Trace { explanation, network, tape, shares, limit })
    }
}

/// The shares of the outputs in the targets, outputs x targets.
fn of_targets<T: Scalar>(seed: &Seed<T>, outputs: usize) -> DMatrix<T> {
    match seed {
        Seed::All => DMatrix::identity(outputs, outputs),
        Seed::Outputs(selected) => DMatrix::from_fn(outputs, selected.len(), |output, column| {
            if selected[column] == output { T::one() } else { T::zero() }
        }),
        Seed::Weighted(values, targets) => DMatrix::from_column_slice(outputs, *targets, values),
    }
}

/// The true values of the flow at a value of the graph. Values too small for the number type are 0.
fn matrix<T: Scalar>(
    graph: &Graph<T>,
    value: usize,
    flow: &Flow<T>,
) -> Result<DMatrix<T>, Overflow> {
    let size = graph.shape_of(value).size();
    let values = flow.values.iter().map(|v| v.times_two_to(flow.exponents[0]));
    let matrix = DMatrix::from_iterator(size, flow.values.len() / size, values);
    match linalg::first_non_finite(matrix.as_slice()) {
        Some(_) => Err(Overflow { layer: graph.layer_of(value) }),
        None => Ok(matrix),
    }
}

impl<T: Scalar> Trace<T> {
    /// The explanation of the sample.
    #[must_use]
    pub fn explanation(&self) -> &Explanation<T> {
        &self.explanation
    }

    pub(super) fn graph(&self) -> &Graph<T> {
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

    /// The index and the name of a layer, for messages.
    fn place(&self, layer: LayerId<'_>) -> Result<(usize, String), Error> {
        let outputs = self.graph().nodes().len();
        let node = self.node(layer)?;
        Ok(node.map_or((outputs, outputs.to_string()), |node| (node.index, node.name.clone())))
    }

    /// The values whose units are those of a layer.
    fn values(&self, layer: LayerId<'_>) -> Result<Vec<usize>, Error> {
        if let LayerId::Name(name) = layer
            && let Some(input) =
                self.graph().input_list().iter().position(|input| input.name == name)
        {
            return Ok(vec![input]);
        }
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
        // The nodes after the last of these values do not matter.
        let last = values.iter().filter_map(|&value| self.graph().producer(value)).max();
        let count = network.nodes.iter().take_while(|&&node| Some(node) <= last).count();
        let nodes = &network.nodes[..count];
        let last_reads = network.last_reads(nodes, &values);
        let walk = Walk { network, tape: &self.tape };
        walk.forth((nodes, &last_reads), &mut flows, 0, None, &mut buffers)
            .map_err(|at| at.error(self.graph()))?;
        let mut shares = DMatrix::zeros(inputs, self.units(&values));
        let mut first = 0;
        for &value in &values {
            let size = self.size(value);
            // Each column of the flow has the shares of one input.
            if let Some(flow) = &flows[value] {
                let own = matrix(self.graph(), value, flow).map_err(|at| at.error(self.graph()))?;
                shares.columns_mut(first, size).copy_from(&own.transpose());
            }
            first += size;
        }
        Ok(shares)
    }

    /// The part of the inputs' relevance for a target that flows through the given units of a
    /// layer.
    ///
    /// Through all units of a layer that all relevance flows through, this is the whole relevance.
    /// Relevance that flows through several of the units counts once. Cost: reverse accumulation for one target, from this layer back to the
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
        if let Some(&unit) = units.iter().find(|&&unit| unit >= relevance.len()) {
            let (layer, name) = self.place(layer)?;
            return Err(Error::UnitOutOfRange { unit, layer, name, units: relevance.len() });
        }
        self.back_through(&values, &relevance, units)
            .map(|inputs| inputs.column(0).into_owned())
            .map_err(|at| at.error(self.graph()))
    }

    /// The relevance of the explained values that flows through the chosen units of some values,
    /// one value after another.
    fn back_through(
        &self,
        values: &[usize],
        relevance: &DVector<T>,
        units: &[usize],
    ) -> Result<DMatrix<T>, Overflow> {
        let (network, mut buffers) = (&self.network, Buffers::default());
        let (walk, mut flows) = (Walk { network, tape: &self.tape }, network.empty_flows());
        let mut firsts = Vec::with_capacity(values.len());
        let mut first = 0;
        for &value in values {
            firsts.push((value, first));
            first += self.size(value);
        }
        // From the last value to the first, because a value can depend on another one.
        firsts.sort_unstable_by(|a, b| b.cmp(a));
        let mut rest = network.nodes.as_slice();
        let mut none = |_: usize, _: usize, _: &[T]| {};
        for (value, first) in firsts {
            let producer = self.graph().producer(value);
            let count = rest.iter().take_while(|&&node| Some(node) <= producer).count();
            let (before, after) = rest.split_at(count);
            walk.back(after, &mut flows, false, &mut none, &mut buffers)?;
            rest = before;
            let size = self.size(value);
            let flow = flows[value]
                .get_or_insert_with(|| Flow::of_matrix(&DMatrix::zeros(size, 1), &mut buffers));
            // What has flowed here through other chosen units is part of a chosen unit's relevance.
            for &unit in units.iter().filter(|&&unit| (first..first + size).contains(&unit)) {
                flow.values[unit - first] = relevance[unit].times_two_to(-flow.exponents[0]);
            }
        }
        walk.back(rest, &mut flows, false, &mut none, &mut buffers)?;
        Suffix::of_flows(network, &flows, &[], &mut buffers)?.to_matrix(0)
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
        let (index, name) = self.place(layer)?;
        let none = || Error::NotLinear { layer: index, name: name.clone() };
        let node = self.node(layer)?.ok_or_else(none)?;
        let number = self.graph().number_of(node);
        let sharing = self.network.sharing(number);
        if !self.network.reaches(number) || sharing.is_pass() {
            return Err(none());
        }
        let (inputs, outputs) = (sharing.inputs, sharing.outputs);
        let what = || format!("the share matrix of layer {name}, {inputs} x {outputs},");
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

    pub(super) fn check_size(
        &self,
        values: f64,
        what: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        self.limit.check::<T>(values, what, || {
            "raise the limit with Explainer::memory_limit before you trace".to_owned()
        })
    }
}
