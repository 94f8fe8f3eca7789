//! The graph: the values of a network, and the nodes that compute them.
//!
//! A value is an input of the model, a constant, or the output of a node. A node has a layer, the
//! values that it reads and the shape of its output. Nodes are in topological order: each one comes
//! after the nodes that it reads. [`Sequential`](crate::Sequential) is a graph whose layers form a
//! row, some of which can hold branches.

mod bind;
mod builder;
mod declaration;
mod estimate;
mod inputs;
mod operation;
mod pass;
mod print;

use std::ops::Range;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use crate::buffer::Buffers;
use crate::error::Error;
use crate::layer::Layer;
use crate::nearest::did_you_mean;
use crate::rule::Site;
use crate::scalar::Scalar;
use crate::shape::Shape;

pub(crate) use builder::check_input;
pub use builder::{GraphBuilder, ValueId};
pub(crate) use declaration::Position;
pub(crate) use estimate::Estimate;
pub(crate) use inputs::Feed;
pub use inputs::{Inputs, Values};
pub(crate) use operation::{Ending, LinearNode, Operation};
pub(crate) use pass::{Forget, Left, Outputs, Schedule, Slots, Visitor};
pub(crate) use print::describe;

/// A network of any structure.
///
/// Values can be read by several layers, layers can read several values, and there can be several
/// inputs and outputs. For layers in a row, [`Sequential`](crate::Sequential) is simpler. [The
/// guide](crate::guide::graphs) describes graphs step by step.
///
/// A graph is immutable once built. Clones share the layers, so cloning a graph for each thread is
/// cheap. Use [`explain`](Self::explain) to explain a single sample and
/// [`explainer`](Self::explainer) to explain many.
///
/// ```
/// use relprop::{Graph, Linear, Relu, Rule};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let mut graph = Graph::builder();
/// let x = graph.input("x", 2);
/// let linear = graph.named("linear", Linear::new(dmatrix![1.0, 2.0; 0.0, 1.0], None)?, [x]);
/// let relu = graph.layer(Relu, [linear]);
/// // The hidden units are read twice.
/// let head = graph.named("head", Linear::new(dmatrix![2.0, 0.0; 0.0, 2.0], None)?, [relu]);
/// let sum = graph.sum([relu, head, x]);
/// graph.output("y", sum);
/// let graph = graph.build()?;
///
/// let explanation = graph.explain(&dvector![1.0, 1.0], Rule::Epsilon)?;
/// assert_eq!(explanation.output(), &dvector![10.0, 4.0]);
/// assert!((explanation.relevance(0)? - dvector![4.0, 6.0]).amax() < 1e-4);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Graph<T: Scalar> {
    structure: Arc<Structure<T>>,
    /// The value that is the output.
    output: usize,
    /// The values to explain, if they are not the model's inputs.
    entries: Option<Arc<[usize]>>,
    schedule: Arc<Schedule>,
}

/// The parts of a graph that all of its views share.
#[derive(Debug)]
pub(crate) struct Structure<T: Scalar> {
    inputs: Vec<Input<T>>,
    nodes: Vec<Node<T>>,
    outputs: Vec<Output>,
    /// The number of the node of each layer.
    layers: Vec<usize>,
}

/// A value that no node computes.
#[derive(Debug, Clone)]
pub(crate) struct Input<T> {
    pub name: String,
    pub shape: Shape,
    pub source: InputSource<T>,
}

/// Where the values of an input come from.
#[derive(Debug, Clone)]
pub(crate) enum InputSource<T> {
    /// The sample, and explanations give their relevance.
    Explained,
    /// The sample.
    Given,
    /// The sample, and they are whole numbers.
    Whole,
    /// They are the same for all samples.
    Constant(Arc<[T]>),
}

/// An output of the model.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub name: String,
    pub value: usize,
}

/// A layer, with the values that it reads.
#[derive(Debug)]
pub(crate) struct Node<T: Scalar> {
    pub layer: Arc<dyn Layer<T>>,
    pub name: String,
    /// The layer's index. A layer with branches comes before the layers inside its branches, but
    /// its node, which joins the branches, comes after theirs.
    pub index: usize,
    pub inputs: Vec<usize>,
    pub shape: Shape,
    pub operation: Operation<T>,
    /// If the node joins branches, the indices of the layers in each branch.
    pub branches: Vec<Range<usize>>,
}

impl<T: Scalar> Input<T> {
    /// This input in another number type.
    fn converted<U: Scalar>(&self) -> Input<U> {
        let source = match &self.source {
            InputSource::Explained => InputSource::Explained,
            InputSource::Given => InputSource::Given,
            InputSource::Whole => InputSource::Whole,
            InputSource::Constant(values) => {
                InputSource::Constant(values.iter().map(|v| U::from_f64(v.as_f64())).collect())
            }
        };
        Input { name: self.name.clone(), shape: self.shape, source }
    }
}

impl<T: Scalar> Structure<T> {
    fn new(inputs: Vec<Input<T>>, nodes: Vec<Node<T>>, outputs: Vec<Output>) -> Self {
        let mut layers: Vec<usize> = (0..nodes.len()).collect();
        layers.sort_by_key(|&number| nodes[number].index);
        Self { inputs, nodes, outputs, layers }
    }
}

/// The shape of a sample, and its parts.
pub(crate) fn floats<T>(inputs: &[Input<T>]) -> impl Iterator<Item = &Input<T>> {
    inputs
        .iter()
        .filter(|input| matches!(input.source, InputSource::Explained | InputSource::Given))
}

impl<T: Scalar> Graph<T> {
    /// Starts building a graph.
    pub fn builder() -> GraphBuilder<T> {
        GraphBuilder::default()
    }

    fn of(structure: Structure<T>) -> Self {
        let output = structure.outputs[0].value;
        let schedule = Schedule::to(structure.inputs.len(), &structure.nodes, output);
        Self { structure: Arc::new(structure), output, entries: None, schedule: Arc::new(schedule) }
    }

    /// The number of values in a sample. Inputs of whole numbers and constants are not part of it.
    #[must_use]
    pub fn inputs(&self) -> usize {
        floats(&self.structure.inputs).map(|input| input.shape.size()).sum()
    }

    /// The number of outputs.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.output_shape().size()
    }

    /// The shape of a sample. If there are several inputs, it is a vector of all of their values,
    /// one input after another.
    #[must_use]
    pub fn input_shape(&self) -> Shape {
        let mut shapes = floats(&self.structure.inputs).map(|input| input.shape);
        match (shapes.next(), shapes.next()) {
            (Some(only), None) => only,
            _ => self.inputs().into(),
        }
    }

    /// The shape of the outputs.
    #[must_use]
    pub fn output_shape(&self) -> Shape {
        self.shape_of(self.output)
    }

    /// The names and shapes of the inputs, in order. Constants are not listed.
    #[must_use]
    pub fn input_names(&self) -> Vec<(&str, Shape)> {
        self.structure
            .inputs
            .iter()
            .filter(|input| !matches!(input.source, InputSource::Constant(_)))
            .map(|input| (input.name.as_str(), input.shape))
            .collect()
    }

    /// The names of the outputs, in order.
    #[must_use]
    pub fn output_names(&self) -> Vec<&str> {
        self.structure.outputs.iter().map(|output| output.name.as_str()).collect()
    }

    /// The layers, in the order in which they were added. A layer with branches comes before the
    /// layers inside them.
    #[must_use]
    pub fn layers(&self) -> Vec<&dyn Layer<T>> {
        self.nodes().map(|node| &*node.layer).collect()
    }

    /// The names of the layers, in order.
    ///
    /// A layer without a name is named by its position among the layers that were added to the
    /// builder, counted from 0.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.nodes().map(|node| node.name.as_str()).collect()
    }

    /// The number of learned parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.structure.nodes.iter().map(|node| node.layer.parameters()).sum()
    }

    /// This graph with another output: one of its outputs, or the output of any layer, by name.
    ///
    /// # Errors
    /// [`Error::NoSuchValue`], or [`Error::InvalidParameter`] for an input that is not also an
    /// output.
    pub fn with_output(&self, name: &str) -> Result<Self, Error> {
        let named = self.structure.outputs.iter().find(|output| output.name == name);
        if let Some(output) = named {
            return Ok(self.with_output_value(output.value));
        }
        let value = self.find(name)?;
        if self.producer(value).is_none() {
            let requirement = "one of its outputs, or the output of a layer";
            return Err(Error::parameter("Graph", "output", name, requirement));
        }
        Ok(self.with_output_value(value))
    }

    fn with_output_value(&self, output: usize) -> Self {
        let Structure { inputs, nodes, .. } = &*self.structure;
        let schedule = Arc::new(Schedule::to(inputs.len(), nodes, output));
        Self { output, schedule, ..self.clone() }
    }

    /// This graph with other explained values: inputs, or the outputs of layers, by name.
    ///
    /// An explanation then gives the relevance of these values. Relevance stops where it reaches one
    /// of them. Values that do not depend on any of them become constants of the sample, whose
    /// relevance is assigned to the sink [`Cause::Constant`](crate::Cause::Constant). In a language
    /// model, for example, this gives the relevance of the embeddings.
    ///
    /// # Errors
    /// [`Error::NoSuchValue`], or [`Error::InvalidParameter`] if no name is given.
    ///
    /// # Example
    /// ```
    /// use relprop::{Graph, Linear, Relu, Rule};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let mut graph = Graph::builder();
    /// let x = graph.input("x", 2);
    /// let hidden = graph.named("hidden", Linear::new(dmatrix![1.0, 2.0; 0.0, 1.0], None)?, [x]);
    /// let relu = graph.named("relu", Relu, [hidden]);
    /// let y = graph.named("head", Linear::new(dmatrix![2.0, 1.0], None)?, [relu]);
    /// graph.output("y", y);
    /// let graph = graph.build()?.explain_from(["relu"])?;
    /// let explanation = graph.explain(&dvector![1.0, 1.0], Rule::Lrp0)?;
    /// assert_eq!(explanation.relevance(0)?, dvector![6.0, 1.0]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn explain_from<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for name in names {
            let value = self.find(name)?;
            let input = self.structure.inputs.get(value);
            if let Some(Input { source: InputSource::Whole | InputSource::Constant(_), .. }) = input
            {
                return Err(Error::parameter(
                    "Graph",
                    "explained value",
                    name,
                    "an input of floating-point numbers, or the output of a layer",
                ));
            }
            if !entries.contains(&value) {
                entries.push(value);
            }
        }
        if entries.is_empty() {
            return Err(Error::parameter("Graph", "number of explained values", 0, "at least 1"));
        }
        Ok(Self { entries: Some(entries.into()), ..self.clone() })
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        let inputs = self.structure.inputs.iter().map(|input| input.name.as_str());
        let nodes = self.structure.nodes.iter().map(|node| node.name.as_str());
        let mut names = inputs.chain(nodes);
        names.clone().position(|other| other == name).ok_or_else(|| Error::NoSuchValue {
            name: name.to_owned(),
            nearest: did_you_mean(name, names.by_ref()),
        })
    }

    /// This graph with other layers. Readers of a node without a layer read what the node read.
    ///
    /// # Errors
    /// See [`GraphBuilder::build`].
    pub(crate) fn rebuilt<U: Scalar>(
        &self,
        layers: &[Option<Arc<dyn Layer<U>>>],
    ) -> Result<Graph<U>, Error> {
        self.rebuilt_for(layers, None)
    }

    fn rebuilt_for<U: Scalar>(
        &self,
        layers: &[Option<Arc<dyn Layer<U>>>],
        shape: Option<Shape>,
    ) -> Result<Graph<U>, Error> {
        let Structure { inputs, nodes, outputs, layers: order, .. } = &*self.structure;
        // The new index of each layer.
        let mut count = 0;
        let mut indices = Vec::with_capacity(order.len() + 1);
        for &number in order {
            indices.push(count);
            count += usize::from(layers[number].is_some());
        }
        indices.push(count);
        let mut builder = GraphBuilder::default();
        let mut values: Vec<ValueId> = Vec::with_capacity(inputs.len() + nodes.len());
        let mut shape = shape;
        for input in inputs {
            let mut input = input.converted();
            if matches!(input.source, InputSource::Explained) {
                input.shape = shape.take().unwrap_or(input.shape);
            }
            values.push(builder.add_existing(input));
        }
        for (node, layer) in nodes.iter().zip(layers) {
            let value = match layer {
                Some(layer) => {
                    let inputs: Vec<_> = node.inputs.iter().map(|&value| values[value]).collect();
                    let branches = node.branches.iter();
                    let branches =
                        branches.map(|layers| indices[layers.start]..indices[layers.end]).collect();
                    let position = Position { index: indices[node.index], branches };
                    builder.place(&node.name, layer.clone(), &inputs, position)
                }
                None => values[node.inputs[0]],
            };
            values.push(value);
        }
        for Output { name, value } in outputs {
            builder.output(name, values[*value]);
        }
        let graph = builder.build_inner()?;
        // Inputs come first in the new graph too, and each layer is one node, so the values are
        // numbered as they were added.
        let moved = |value: usize| values[value].index();
        let mut view = graph.with_output_value(moved(self.output));
        view.entries =
            self.entries.as_ref().map(|entries| entries.iter().map(|&v| moved(v)).collect());
        Ok(view)
    }

    /// How often each value is read, if an output and an explained value count as a second reader.
    pub(crate) fn all_reads(&self) -> Vec<usize> {
        let Structure { inputs, nodes, outputs, .. } = &*self.structure;
        let mut reads = vec![0; inputs.len() + nodes.len()];
        for &value in nodes.iter().flat_map(|node| &node.inputs) {
            reads[value] += 1;
        }
        let kept = outputs.iter().map(|output| output.value).chain([self.output]);
        for value in kept.chain(self.entries.iter().flat_map(|entries| entries.iter().copied())) {
            reads[value] += 1;
        }
        reads
    }

    /// Rebuilds the graph for another shape of its first input.
    ///
    /// # Errors
    /// See [`GraphBuilder::build`].
    pub(crate) fn with_input_inner(&self, shape: Shape) -> Result<Self, Error> {
        check_input("Graph", shape)?;
        let layers: Vec<_> = self.node_list().iter().map(|node| Some(node.layer.clone())).collect();
        self.rebuilt_for(&layers, Some(shape))
    }

    pub(crate) fn output_list(&self) -> &[Output] {
        &self.structure.outputs
    }

    pub(crate) fn input_list(&self) -> &[Input<T>] {
        &self.structure.inputs
    }

    /// The nodes in topological order.
    pub(crate) fn node_list(&self) -> &[Node<T>] {
        &self.structure.nodes
    }

    pub(crate) fn node(&self, number: usize) -> &Node<T> {
        &self.structure.nodes[number]
    }

    /// The nodes in the order of the layers.
    pub(crate) fn nodes(&self) -> impl ExactSizeIterator<Item = &Node<T>> {
        self.structure.layers.iter().map(|&number| self.node(number))
    }

    /// The node of a layer.
    pub(crate) fn layer(&self, index: usize) -> Option<&Node<T>> {
        self.structure.layers.get(index).map(|&number| self.node(number))
    }

    /// The number of a node.
    pub(crate) fn number_of(&self, node: &Node<T>) -> usize {
        self.structure.layers[node.index]
    }

    /// The values whose units are those of a layer: what it reads, each value once, or, for a layer
    /// with branches, what the branches begin with.
    pub(crate) fn units_of(&self, node: &Node<T>) -> Vec<usize> {
        let first = node.branches.iter().find(|layers| !layers.is_empty());
        match first.and_then(|layers| self.layer(layers.start)) {
            Some(first) => self.units_of(first),
            None if node.branches.is_empty() => {
                let mut values = Vec::new();
                for &value in &node.inputs {
                    if !values.contains(&value) {
                        values.push(value);
                    }
                }
                values
            }
            // All branches are without layers.
            None => vec![node.inputs[0]],
        }
    }

    /// The value that a node computes.
    pub(crate) fn value_of(&self, number: usize) -> usize {
        self.structure.inputs.len() + number
    }

    /// The number of the node that computes a value, unless it is an input.
    pub(crate) fn producer(&self, value: usize) -> Option<usize> {
        value.checked_sub(self.structure.inputs.len())
    }

    pub(crate) fn shape_of(&self, value: usize) -> Shape {
        match self.producer(value) {
            Some(number) => self.node(number).shape,
            None => self.structure.inputs[value].shape,
        }
    }

    pub(crate) fn name_of(&self, value: usize) -> &str {
        match self.producer(value) {
            Some(number) => &self.node(number).name,
            None => &self.structure.inputs[value].name,
        }
    }

    pub(crate) fn output_value(&self) -> usize {
        self.output
    }

    pub(crate) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The values to explain, in order.
    pub(crate) fn entries(&self) -> Vec<usize> {
        match &self.entries {
            Some(entries) => entries.to_vec(),
            None => (0..self.structure.inputs.len())
                .filter(|&input| {
                    matches!(self.structure.inputs[input].source, InputSource::Explained)
                })
                .collect(),
        }
    }

    /// The function at the output that turns logits into probabilities.
    pub(crate) fn ending(&self) -> Option<(&Node<T>, &Ending<T>)> {
        let mut value = self.output;
        loop {
            let node = self.node(self.producer(value)?);
            if let Some(ending) = node.operation.ending() {
                return Some((node, ending));
            }
            // Layers after the function only move values. They have already moved the logits.
            if !node.operation.only_moves() || node.inputs.len() > 1 {
                return None;
            }
            value = node.inputs[0];
        }
    }

    /// The index of the layer that computes a value, or that of the first layer for an input.
    pub(crate) fn layer_of(&self, value: usize) -> usize {
        self.producer(value).map_or(0, |number| self.node(number).index)
    }

    /// The name of a layer.
    pub(crate) fn layer_name(&self, layer: usize) -> &str {
        self.layer(layer).map_or("", |node| &node.name)
    }

    /// The kind of a layer.
    pub(crate) fn kind(&self, layer: usize) -> &str {
        self.layer(layer).map_or("", |node| node.layer.kind())
    }

    /// The sites of those of some nodes to which rules apply, with the nodes' numbers.
    pub(crate) fn sites(&self, nodes: &[usize]) -> Vec<(usize, Site<'_>)> {
        let mut sites = Vec::new();
        // Whether a layer with learned weights lies before a value.
        let mut is_behind = vec![false; self.input_list().len() + self.node_list().len()];
        for &number in nodes {
            let node = self.node(number);
            let is_later = node.inputs.iter().any(|&value| is_behind[value]);
            is_behind[self.value_of(number)] = is_later;
            let Some(linear) = node.operation.linear() else { continue };
            is_behind[self.value_of(number)] |= linear.family.is_learned();
            sites.push((
                number,
                Site {
                    layer: node.index,
                    name: &node.name,
                    kind: node.layer.kind(),
                    family: linear.family,
                    inputs: linear.map.inputs(),
                    outputs: linear.map.outputs(),
                    input_shape: linear.input,
                    output_shape: node.shape,
                    linear_index: 0,
                    is_first: !is_later,
                    linear_count: 0,
                },
            ));
        }
        // Positions are counted in the order of the layers.
        let mut order: Vec<usize> = (0..sites.len()).collect();
        order.sort_by_key(|&at| sites[at].1.layer);
        let mut count = 0;
        for at in order {
            sites[at].1.linear_index = count;
            count += usize::from(sites[at].1.family.is_learned());
        }
        for (_, site) in &mut sites {
            site.linear_count = count;
        }
        sites
    }

    /// Computes the model's outputs for one sample.
    ///
    /// The outputs are probabilities if the model ends with a softmax or a sigmoid. If the model has
    /// several inputs, the sample contains the values of all of them, one input after another. For
    /// inputs of whole numbers, use [`forward_inputs`](Self::forward_inputs).
    ///
    /// # Errors
    /// [`Error::InputShape`], [`Error::NonFiniteInput`] or [`Error::NonFiniteOutput`].
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Sequential, Softmax};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let linear = Linear::new(dmatrix![1.0; 1.0], None)?;
    /// let model = Sequential::builder().layer(linear).layer(Softmax).build()?;
    /// assert_eq!(model.forward(&dvector![3.0])?, dvector![0.5, 0.5]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn forward(&self, sample: &DVector<T>) -> Result<DVector<T>, Error> {
        self.check_input(sample.len())?;
        (T::compiled().forward)(self, &Feed::Columns(sample.as_slice(), self.inputs()))
            .map(DVector::from_vec)
    }

    /// Computes the model's outputs for a batch.
    ///
    /// Samples are columns: `samples` is inputs x samples, and the result is outputs x samples.
    ///
    /// A C-order array of shape (samples, inputs), as in NumPy and PyTorch, has the same memory
    /// layout, so it needs no copy. A batch can have any number of samples, including zero.
    ///
    /// # Errors
    /// See [`forward`](Self::forward). [`Error::NonFiniteInput`] contains the sample's index.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// let outputs = model.forward_batch(&dmatrix![1.0, 0.0, 5.0; 0.0, 1.0, 5.0])?;
    /// assert_eq!(outputs, dmatrix![1.0, 2.0, 15.0]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn forward_batch(&self, samples: &DMatrix<T>) -> Result<DMatrix<T>, Error> {
        self.check_input(samples.nrows())?;
        let feed = Feed::Columns(samples.as_slice(), self.inputs());
        let values = (T::compiled().forward)(self, &feed)?;
        Ok(DMatrix::from_vec(self.outputs(), samples.ncols(), values))
    }

    /// Computes the model's outputs for the values of several inputs, outputs x samples.
    ///
    /// # Errors
    /// See [`forward`](Self::forward), and [`Error::Inputs`] if the values do not fit the model's
    /// inputs.
    pub fn forward_inputs(&self, inputs: &Inputs<'_, T>) -> Result<DMatrix<T>, Error> {
        let named = inputs.bind(self)?;
        let samples = named.samples();
        let values = (T::compiled().forward)(self, &named)?;
        Ok(DMatrix::from_vec(self.outputs(), samples, values))
    }

    pub(crate) fn forward_inner(&self, feed: &Feed<'_, T>) -> Result<Vec<T>, Error> {
        feed.check(self)?;
        let (mut slots, mut buffers) = (Slots::default(), Buffers::default());
        let outputs = self.pass(feed, &mut slots, &mut buffers, &mut Forget)?;
        Ok(outputs.probabilities.unwrap_or(outputs.logits).to_vec())
    }

    /// Checks that a sample has one value for each of the model's inputs.
    pub(crate) fn check_input(&self, found: usize) -> Result<(), Error> {
        if found == self.inputs() {
            return Ok(());
        }
        Err(Error::InputShape { kind: self.kind(0).to_owned(), expected: self.inputs(), found })
    }
}
