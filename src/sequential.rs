//! The model: a sequence of layers.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::layer::{
    self, Branch, Elementwise, Functions, Joined, Layer, LinearMap, Named, Operator, Route,
    SoftmaxOver,
};
use crate::linalg;
use crate::rule::Site;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// A network: a sequence of layers, some of which can hold branches of further layers.
///
/// A model is immutable once built. Clones share the layers, so cloning a model for each thread is
/// cheap. Use [`explain`](Self::explain) to explain a single sample and
/// [`explainer`](Self::explainer) to explain many.
///
/// Layers are numbered from 0 in the order in which they run. A layer with branches comes before
/// the layers inside its branches.
#[derive(Debug, Clone)]
pub struct Sequential<T: Scalar> {
    chain: Arc<Chain<T>>,
    branch: Branch<T>,
    input: Shape,
}

/// A sequence of layers, bound to the shape of its inputs.
#[derive(Debug)]
pub(crate) struct Chain<T: Scalar> {
    pub nodes: Vec<Node<T>>,
    pub output: Shape,
}

/// A layer at its position in a chain.
#[derive(Debug)]
pub(crate) struct Node<T: Scalar> {
    pub layer: Arc<dyn Layer<T>>,
    pub name: String,
    pub index: usize,
    pub output: Shape,
    pub bound: Bound<T>,
}

impl<T: Scalar> Node<T> {
    pub fn has_branches(&self) -> bool {
        matches!(self.bound, Bound::Branches { .. })
    }
}

/// What a layer does at its position. `factor` is the number of the layer's factor in the
/// explanation; factors are numbered in the order in which layers are bound.
#[derive(Debug)]
pub(crate) enum Bound<T: Scalar> {
    Linear(Linear<T>),
    Elementwise(Functions<T>),
    Reshape,
    Route {
        factor: usize,
        route: Arc<dyn Route<T>>,
        inputs: usize,
    },
    Branches {
        factor: usize,
        branches: Vec<Chain<T>>,
        inputs: usize,
        sum: Option<Linear<T>>,
    },
    Softmax(SoftmaxOver),
    /// The final function that turns logits into probabilities. Explanations skip it.
    Link(Functions<T>),
}

/// A linear map to which a rule is applied.
#[derive(Debug)]
pub(crate) struct Linear<T: Scalar> {
    pub factor: usize,
    pub map: Arc<dyn LinearMap<T>>,
    pub input: Shape,
    /// Whether the weights are learned: false for averages, sums and normalizations.
    pub learned: bool,
    /// Whether the map's inputs are nonnegative for every sample.
    pub nonnegative: bool,
}

/// A builder for a [`Sequential`] or a [`Branch`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct SequentialBuilder<T: Scalar> {
    branch: Branch<T>,
    input: Option<Shape>,
}

impl<T: Scalar> From<SequentialBuilder<T>> for Branch<T> {
    fn from(builder: SequentialBuilder<T>) -> Self {
        builder.branch
    }
}

impl<T: Scalar> From<Branch<T>> for SequentialBuilder<T> {
    fn from(branch: Branch<T>) -> Self {
        Self { branch, input: None }
    }
}

impl<T: Scalar> SequentialBuilder<T> {
    /// Sets the shape of a sample.
    ///
    /// This is not needed for a model that starts with a dense layer.
    pub fn input(mut self, shape: impl Into<Shape>) -> Self {
        self.input = Some(shape.into());
        self
    }

    /// Appends a layer.
    pub fn layer(mut self, layer: impl Layer<T> + 'static) -> Self {
        self.branch.layers.push(Named { name: None, layer: Arc::new(layer) });
        self
    }

    /// Appends a layer with a name.
    ///
    /// A [`Composite`](crate::Composite) can refer to the layer by this name. A layer without a
    /// name is named by its index.
    pub fn named(mut self, name: &str, layer: impl Layer<T> + 'static) -> Self {
        self.branch.layers.push(Named { name: Some(name.to_owned()), layer: Arc::new(layer) });
        self
    }

    /// Appends the layers of another builder, with `name` and a dot prefixed to their names.
    ///
    /// PyTorch names the layers of a nested `nn.Sequential` in the same way.
    ///
    /// ```
    /// use relprop::{Linear, Relu, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let linear = Linear::new(dmatrix![1.0, 2.0], None)?;
    /// let features = Sequential::builder().layer(linear).layer(Relu);
    /// let head = Sequential::builder().layer(Linear::new(dmatrix![3.0], None)?);
    /// let model =
    ///     Sequential::builder().nested("features", features).nested("head", head).build()?;
    /// assert_eq!(model.names(), ["features.0", "features.1", "head.0"]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn nested(mut self, name: &str, inner: impl Into<Branch<T>>) -> Self {
        for (index, Named { name: own, layer }) in inner.into().layers.into_iter().enumerate() {
            let own = own.unwrap_or_else(|| index.to_string());
            self.branch.layers.push(Named { name: Some(format!("{name}.{own}")), layer });
        }
        self
    }

    /// Builds the model and checks all shapes.
    ///
    /// # Errors
    /// - [`Error::EmptyModel`] if there are no layers, and [`Error::NoLinearLayer`] if none is
    ///   linear.
    /// - [`Error::UnknownInput`] if the shape of a sample is neither set nor determined by the
    ///   layers.
    /// - [`Error::LayerShape`] if two layers do not fit together.
    /// - [`Error::SoftmaxInMiddle`] or [`Error::SoftmaxInBranch`] if a softmax is not at the end.
    /// - [`Error::InvalidParameter`] if a layer's settings are invalid.
    /// - [`Error::ZeroSized`], [`Error::BiasShape`] or [`Error::NonFiniteBias`] if a custom linear
    ///   layer is malformed.
    pub fn build(self) -> Result<Sequential<T>, Error> {
        (T::compiled().build)(self)
    }

    pub(crate) fn build_inner(self) -> Result<Sequential<T>, Error> {
        let layers = &self.branch.layers;
        let Some(first) = layers.first() else { return Err(Error::EmptyModel) };
        // Activations accept any shape, so the first layer with a fixed input size decides.
        let taken = layers.iter().find_map(|node| node.layer.inputs()).map(Shape::from);
        let input = match self.input.or(taken) {
            Some(input) => input,
            None if layers.iter().all(|node| {
                matches!(
                    node.layer.operator(&[1.into()]),
                    Ok(Operator::Elementwise(_)
                        | Operator::PerChannel(_)
                        | Operator::Reshape(_)
                        | Operator::Softmax(_))
                )
            }) =>
            {
                return Err(Error::NoLinearLayer { layers: layers.len() });
            }
            None => return Err(Error::UnknownInput { kind: first.layer.kind().to_owned() }),
        };
        // A size that is taken from a layer is checked when the layer is bound.
        if self.input.is_some() && (input.size() == 0 || input.size() > LARGEST) {
            let requirement = format!("a shape of at least one value and at most {LARGEST}");
            return Err(Error::parameter("Sequential", "input", input, &requirement));
        }
        let mut numbers = Numbers::default();
        let chain = numbers.bind(&self.branch, input, false, &|own, index| {
            own.map_or_else(|| index.to_string(), str::to_owned)
        });
        let mut chain = chain.map_err(|error| match error {
            // The size came from a later layer and does not fit the first one, so the input is
            // unknown.
            Error::LayerShape { layer: 0, .. } if self.input.is_none() => {
                Error::UnknownInput { kind: first.layer.kind().to_owned() }
            }
            other => other,
        })?;
        chain.link();
        if numbers.factors == 0 {
            return Err(Error::NoLinearLayer { layers: layers.len() });
        }
        Ok(Sequential { chain: Arc::new(chain), branch: self.branch, input })
    }
}

/// The largest allowed number of values in a layer. Sums of such sizes, and their sizes in bytes,
/// do not overflow.
const LARGEST: usize = isize::MAX as usize / 64;

/// The counters for numbering layers and factors while a model is built.
#[derive(Default)]
struct Numbers {
    layers: usize,
    factors: usize,
    /// Whether the layers being bound are inside a branch.
    inside: bool,
}

impl Numbers {
    fn factor(&mut self) -> usize {
        self.factors += 1;
        self.factors - 1
    }

    /// Binds the layers to the shape of their inputs and names the layers that have no name.
    /// `nonnegative` tells whether the inputs are nonnegative for every sample.
    fn bind<T: Scalar>(
        &mut self,
        branch: &Branch<T>,
        input: Shape,
        nonnegative: bool,
        name: &dyn Fn(Option<&str>, usize) -> String,
    ) -> Result<Chain<T>, Error> {
        let (mut shape, mut sign) = (input, nonnegative);
        let mut nodes = Vec::with_capacity(branch.layers.len());
        for (place, Named { name: own, layer }) in branch.layers.iter().enumerate() {
            let name = own.as_ref().map_or_else(|| name(None, place), |own| name(Some(own), place));
            // Counted before the branches are bound, so a layer comes before those inside its
            // branches.
            let index = self.layers;
            self.layers += 1;
            let refused = |error| match error {
                Error::Shape { kind, expected, found } => {
                    Error::LayerShape { layer: index, kind, expected, found }
                }
                other => other,
            };
            let inputs = shape.size();
            let linear = |numbers: &mut Self,
                          map: Arc<dyn LinearMap<T>>,
                          learned,
                          nonnegative|
             -> Result<Linear<T>, Error> {
                // A custom layer can return any map.
                check_map(layer.kind(), &*map)?;
                if map.inputs() != inputs {
                    let (kind, expected) =
                        (layer.kind().to_owned(), format!("{} inputs", map.inputs()));
                    return Err(Error::LayerShape { layer: index, kind, expected, found: shape });
                }
                Ok(Linear { factor: numbers.factor(), map, input: shape, learned, nonnegative })
            };
            let (bound, output) = match layer.operator(&[shape]).map_err(refused)? {
                operator @ (Operator::Linear(_) | Operator::Average(_)) => {
                    let learned = matches!(operator, Operator::Linear(_));
                    // Never skipped: the pattern above admits only these two.
                    let (Operator::Linear(map) | Operator::Average(map)) = operator else {
                        continue;
                    };
                    let linear = linear(self, map, learned, sign)?;
                    // With learned weights of both signs, nothing is known until the next
                    // activation.
                    sign = sign && linear.map.keeps_sign();
                    let output = linear.map.output_shape();
                    (Bound::Linear(linear), output)
                }
                operator @ (Operator::Elementwise(_) | Operator::PerChannel(_)) => {
                    let functions = match operator {
                        Operator::Elementwise(function) => Functions::alike(function),
                        Operator::PerChannel(functions) => {
                            Functions::per_channel(functions, layer.kind(), shape)
                                .map_err(refused)?
                        }
                        _ => continue,
                    };
                    sign = functions.is_nonnegative(sign);
                    (Bound::Elementwise(functions), shape)
                }
                Operator::Reshape(output) => (Bound::Reshape, output),
                Operator::Route(route) => {
                    let output = route.output_shape();
                    (Bound::Route { factor: self.factor(), route, inputs }, output)
                }
                Operator::Branches(branches, _) if branches.is_empty() => {
                    return Err(refused(Error::shape(
                        layer.kind(),
                        shape,
                        "at least one branch (it has none)",
                    )));
                }
                Operator::Branches(branches, joined) => {
                    // The layer's own factor is numbered before those in its branches, and the
                    // sum's after them.
                    let (factor, outside) =
                        (self.factor(), std::mem::replace(&mut self.inside, true));
                    let mut chains = Vec::with_capacity(branches.len());
                    let mut all = true;
                    for (number, branch) in branches.iter().enumerate() {
                        let inner = |own: Option<&str>, place: usize| match own {
                            Some(own) => format!("{name}.{own}"),
                            None => format!("{name}.{number}.{place}"),
                        };
                        let chain = self.bind(branch, shape, sign, &inner)?;
                        all &= chain.nonnegative(sign);
                        chains.push(chain);
                    }
                    self.inside = outside;
                    sign = all;
                    let output = joined_shape(index, layer.kind(), &chains, joined)?;
                    let sum = match joined {
                        Joined::Concatenated => None,
                        Joined::Summed => {
                            let map = layer::sum(chains.len(), output);
                            let input = map.inputs().into();
                            Some(Linear {
                                factor: self.factor(),
                                map,
                                input,
                                learned: false,
                                nonnegative: all,
                            })
                        }
                    };
                    (Bound::Branches { factor, branches: chains, inputs, sum }, output)
                }
                Operator::Softmax(_) if self.inside => {
                    return Err(Error::SoftmaxInBranch { layer: index });
                }
                Operator::Softmax(_) if !only_reshapes(&branch.layers[place + 1..], shape) => {
                    return Err(Error::SoftmaxInMiddle { layer: index, next: index + 1 });
                }
                Operator::Softmax(axis) => (
                    Bound::Softmax(SoftmaxOver::new(axis, layer.kind(), shape).map_err(refused)?),
                    shape,
                ),
            };
            if output.size() == 0 || output.size() > LARGEST {
                let (kind, expected) =
                    (layer.kind().to_owned(), format!("inputs that give 1 to {LARGEST} outputs"));
                return Err(Error::LayerShape { layer: index, kind, expected, found: shape });
            }
            nodes.push(Node { layer: layer.clone(), name, index, output, bound });
            shape = output;
        }
        Ok(Chain { nodes, output: shape })
    }
}

/// Whether the layers only change the shape of their values.
fn only_reshapes<T: Scalar>(layers: &[Named<T>], mut shape: Shape) -> bool {
    layers.iter().all(|named| match named.layer.operator(&[shape]) {
        Ok(Operator::Reshape(output)) => {
            shape = output;
            true
        }
        _ => false,
    })
}

/// The shape of the joined outputs of some branches.
fn joined_shape<T: Scalar>(
    layer: usize,
    kind: &str,
    branches: &[Chain<T>],
    joined: Joined,
) -> Result<Shape, Error> {
    let first = branches[0].output;
    let refuse = |found: Shape, expected: String| {
        Err(Error::LayerShape { layer, kind: kind.to_owned(), expected, found })
    };
    for branch in &branches[1..] {
        let fits = match joined {
            Joined::Summed => branch.output == first,
            // Branches are concatenated along the channels, so only the other dimensions must
            // match.
            Joined::Concatenated => branch.output.dims()[1..] == first.dims()[1..],
        };
        if !fits {
            return refuse(
                branch.output,
                format!("branches with matching output shapes (the first gives {first})"),
            );
        }
    }
    Ok(match joined {
        Joined::Summed => first,
        Joined::Concatenated => {
            let channels = branches.iter().map(|branch| branch.output.channels()).sum();
            if first.dims().len() == 1 {
                Shape::from(channels)
            } else {
                first.with(channels, first.plane())
            }
        }
    })
}

fn check_map<T: Scalar>(kind: &str, map: &dyn LinearMap<T>) -> Result<(), Error> {
    let (outputs, inputs) = (map.outputs(), map.inputs());
    if outputs == 0 || inputs == 0 || map.output_shape().size() != outputs {
        return Err(Error::ZeroSized { kind: kind.to_owned(), outputs, inputs });
    }
    map.bias().map_or(Ok(()), |bias| layer::check_bias(kind, bias, outputs, inputs))
}

impl<T: Scalar> Chain<T> {
    /// Turns a final function that gives probabilities into the model's link. Layers that only move
    /// values can follow this function, because they can move the logits just as well.
    fn link(&mut self) {
        let moves = |node: &&mut Node<T>| match &node.bound {
            Bound::Reshape => true,
            Bound::Route { route, .. } => route.is_fixed(),
            _ => false,
        };
        let Some(last) = self.nodes.iter_mut().rev().find(|node| !moves(node)) else { return };
        // A placeholder, so that the functions can be moved.
        let bound = std::mem::replace(&mut last.bound, Bound::Reshape);
        last.bound = match bound {
            Bound::Elementwise(functions)
                if functions.single().is_some_and(Elementwise::gives_probability) =>
            {
                Bound::Link(functions)
            }
            other => other,
        };
    }

    /// Lists all layers, each before the layers inside its branches.
    fn all<'a>(&'a self, list: &mut Vec<&'a Node<T>>) {
        for node in &self.nodes {
            list.push(node);
            if let Bound::Branches { branches, .. } = &node.bound {
                for branch in branches {
                    branch.all(list);
                }
            }
        }
    }

    /// Whether all outputs are nonnegative; `input` tells whether all inputs are.
    fn nonnegative(&self, input: bool) -> bool {
        self.nodes.iter().fold(input, |sign, node| match &node.bound {
            Bound::Linear(linear) => sign && linear.map.keeps_sign(),
            Bound::Elementwise(functions) => functions.is_nonnegative(sign),
            Bound::Branches { branches, .. } => {
                branches.iter().all(|branch| branch.nonnegative(sign))
            }
            Bound::Reshape | Bound::Route { .. } => sign,
            // Probabilities are never negative.
            Bound::Softmax(_) | Bound::Link(_) => true,
        })
    }
}

/// The results of a forward pass, with samples as columns.
pub(crate) struct Outputs<T> {
    /// The values that are explained.
    pub logits: Buffer<T>,
    /// The probabilities computed from the logits, if the model ends with a softmax or a sigmoid.
    pub probabilities: Option<Buffer<T>>,
}

/// The state of a linear layer at the moment when the forward pass leaves it.
pub(crate) struct Leaving<'a, T: Scalar> {
    /// The layer's number among the factors.
    pub factor: usize,
    pub map: &'a dyn LinearMap<T>,
    /// z, with samples as columns. The visitor takes ownership, as the pass no longer needs it.
    pub inputs: Buffer<T>,
    /// W z.
    pub product: &'a [T],
}

/// Observes the layers during a forward pass.
pub(crate) trait Visitor<T: Scalar> {
    /// Called when the pass leaves a linear layer.
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error>;

    /// Called after a layer that selects some of its inputs. For each output, `from` holds the
    /// index of the input that was copied.
    fn route(
        &mut self,
        buffers: &mut Buffers<T>,
        _factor: usize,
        from: Buffer<usize>,
        _samples: usize,
    ) -> Result<(), Error> {
        buffers.indices.give(from);
        Ok(())
    }

    /// Called before the first branch of a layer.
    fn open(&mut self) {}

    /// Called before each branch.
    fn next(&mut self) {}

    /// Called after the last branch of a layer.
    fn close(
        &mut self,
        _buffers: &mut Buffers<T>,
        _factor: usize,
        _samples: usize,
    ) -> Result<(), Error> {
        Ok(())
    }
}

/// A visitor that only returns buffers to their pool.
struct Forget;

impl<T: Scalar> Visitor<T> for Forget {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        buffers.values.give(leaving.inputs);
        Ok(())
    }
}

impl<T: Scalar> Sequential<T> {
    /// Starts building a model.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Relu, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder()
    ///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0; 0.0, 1.0], dvector![0.0, 0.1, -0.2])?)
    ///     .layer(Relu)
    ///     .layer(Linear::new(dmatrix![1.0, 1.0, -1.0], dvector![0.05])?)
    ///     .build()?;
    /// assert_eq!((model.inputs(), model.outputs()), (2, 1));
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn builder() -> SequentialBuilder<T> {
        SequentialBuilder { branch: Branch { layers: Vec::new() }, input: None }
    }

    /// The number of values in a sample.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.input.size()
    }

    /// The number of outputs.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.chain.output.size()
    }

    /// The shape of a sample.
    #[must_use]
    pub fn input_shape(&self) -> Shape {
        self.input
    }

    /// The shape of the outputs.
    #[must_use]
    pub fn output_shape(&self) -> Shape {
        self.chain.output
    }

    /// The layers in order, each before the layers inside its branches.
    #[must_use]
    pub fn layers(&self) -> Vec<&dyn Layer<T>> {
        self.nodes().into_iter().map(|node| &*node.layer).collect()
    }

    /// The names of the layers, in order. A layer without a name is named by its index.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.nodes().into_iter().map(|node| node.name.as_str()).collect()
    }

    /// The number of learned parameters.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.branch.layers.iter().map(|node| node.layer.parameters()).sum()
    }

    /// Rebuilds the network for samples of another shape.
    ///
    /// # Errors
    /// See [`SequentialBuilder::build`].
    pub fn with_input(&self, shape: impl Into<Shape>) -> Result<Self, Error> {
        SequentialBuilder { branch: self.branch.clone(), input: Some(shape.into()) }.build()
    }

    pub(crate) fn branch(&self) -> &Branch<T> {
        &self.branch
    }

    pub(crate) fn chain(&self) -> &Chain<T> {
        &self.chain
    }

    pub(crate) fn nodes(&self) -> Vec<&Node<T>> {
        let mut nodes = Vec::new();
        self.chain.all(&mut nodes);
        nodes
    }

    /// The kind of a layer.
    pub(crate) fn kind(&self, layer: usize) -> &str {
        self.nodes().get(layer).map_or("", |node| node.layer.kind())
    }

    /// The linear layers, each with the [`Site`] that is passed to rules.
    pub(crate) fn sites(&self) -> Vec<(Site<'_>, &Linear<T>)> {
        let nodes = self.nodes();
        let mut sites = Vec::new();
        let mut linear_index = 0;
        for node in nodes {
            let (Bound::Linear(linear) | Bound::Branches { sum: Some(linear), .. }) = &node.bound
            else {
                continue;
            };
            let (layer, name, kind) = (node.index, node.name.as_str(), node.layer.kind());
            let (inputs, outputs, learned) =
                (linear.map.inputs(), linear.map.outputs(), linear.learned);
            let (input_shape, output_shape, linear_count) =
                (linear.input, linear.map.output_shape(), 0);
            let site = Site {
                layer,
                name,
                kind,
                inputs,
                outputs,
                input_shape,
                output_shape,
                learned,
                linear_index,
                linear_count,
            };
            sites.push((site, linear));
            linear_index += usize::from(learned);
        }
        // The count is known only now.
        for (site, _) in &mut sites {
            site.linear_count = linear_index;
        }
        sites
    }

    /// Computes the model's outputs for one sample.
    ///
    /// The outputs are probabilities if the model ends with a softmax or a sigmoid.
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
        (T::compiled().forward)(self, sample.as_slice()).map(DVector::from_vec)
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
        let values = (T::compiled().forward)(self, samples.as_slice())?;
        Ok(DMatrix::from_vec(self.outputs(), samples.ncols(), values))
    }

    pub(crate) fn forward_inner(&self, samples: &[T]) -> Result<Vec<T>, Error> {
        self.check_samples(samples)?;
        let mut buffers = Buffers::default();
        let outputs = self.pass(samples, &mut buffers, &mut Forget)?;
        Ok(outputs.probabilities.unwrap_or(outputs.logits).to_vec())
    }

    /// Checks that a sample has one value for each of the model's inputs.
    pub(crate) fn check_input(&self, found: usize) -> Result<(), Error> {
        if found == self.inputs() {
            return Ok(());
        }
        Err(Error::InputShape { kind: self.kind(0).to_owned(), expected: self.inputs(), found })
    }

    /// Checks that all values are finite.
    pub(crate) fn check_samples(&self, samples: &[T]) -> Result<(), Error> {
        let Some((at, value)) = linalg::first_non_finite(samples) else { return Ok(()) };
        let (sample, index) = (at / self.inputs(), at % self.inputs());
        Err(Error::NonFiniteInput { index, sample, value: value.as_f64() })
    }

    /// Runs the network once and shows each layer to a visitor as the pass leaves it. Samples are
    /// columns. The caller must have checked their length, and that their values are finite.
    pub(crate) fn pass(
        &self,
        samples: &[T],
        buffers: &mut Buffers<T>,
        visitor: &mut dyn Visitor<T>,
    ) -> Result<Outputs<T>, Error> {
        let mut run = Run { columns: samples.len() / self.inputs(), buffers, visitor };
        let mut values = run.buffers.values.take(samples.len());
        // Activations work in place, so they need a copy of the samples.
        values.copy_from_slice(samples);
        let logits = run.chain(&self.chain, values)?;
        let probabilities = self.probabilities(&logits, buffers)?;
        Ok(Outputs { logits, probabilities })
    }

    /// The probabilities, if the last layer computes them from the logits.
    fn probabilities(
        &self,
        logits: &[T],
        buffers: &mut Buffers<T>,
    ) -> Result<Option<Buffer<T>>, Error> {
        let last = self
            .chain
            .nodes
            .iter()
            .rev()
            // Layers after it only move values. They have already moved the logits.
            .find(|node| matches!(node.bound, Bound::Softmax(_) | Bound::Link(_)));
        let Some(node) = last else { return Ok(None) };
        let mut probabilities = buffers.values.take(logits.len());
        linalg::copy(logits, &mut probabilities);
        match &node.bound {
            Bound::Softmax(softmax) => softmax.apply(&mut probabilities),
            Bound::Link(functions) => functions.apply(&mut probabilities),
            _ => {}
        }
        check_values(node, &probabilities, self.outputs())?;
        Ok(Some(probabilities))
    }
}

/// One forward pass.
struct Run<'a, T: Scalar> {
    columns: usize,
    buffers: &'a mut Buffers<T>,
    visitor: &'a mut dyn Visitor<T>,
}

impl<T: Scalar> Run<'_, T> {
    /// Runs a chain of layers. This is the only loop over layers. The visitor collects everything
    /// besides the outputs.
    fn chain(&mut self, chain: &Chain<T>, mut values: Buffer<T>) -> Result<Buffer<T>, Error> {
        for node in &chain.nodes {
            match &node.bound {
                Bound::Linear(linear) => values = self.linear(node, linear, values)?,
                Bound::Elementwise(functions) => {
                    functions.apply(&mut values);
                    check_output(node, &values)?;
                }
                // A reshape moves nothing in memory. The other two follow later, in
                // `probabilities`.
                Bound::Reshape | Bound::Softmax(_) | Bound::Link(_) => {}
                Bound::Route { factor, route, inputs } => {
                    values = self.route(node, (*factor, &**route, *inputs), values)?;
                }
                Bound::Branches { factor, branches, inputs, sum } => {
                    values = self.branches(node, (*factor, branches, *inputs), values)?;
                    if let Some(sum) = sum {
                        values = self.linear(node, sum, values)?;
                    }
                }
            }
        }
        Ok(values)
    }

    fn linear(
        &mut self,
        node: &Node<T>,
        linear: &Linear<T>,
        values: Buffer<T>,
    ) -> Result<Buffer<T>, Error> {
        let map = &*linear.map;
        let mut product = self.buffers.values.take(map.outputs() * self.columns);
        // W z without the bias, which the rules treat separately.
        map.apply(&values, &mut product);
        // Checked before the visit, so that the visitor only sees finite numbers.
        check_output(node, &product)?;
        self.visitor.leave(
            self.buffers,
            Leaving { factor: linear.factor, map, inputs: values, product: &product },
        )?;
        if map.bias().is_some() {
            layer::add_bias(map.bias(), &mut product);
            check_output(node, &product)?;
        }
        Ok(product)
    }

    fn route(
        &mut self,
        node: &Node<T>,
        (factor, route, inputs): (usize, &dyn Route<T>, usize),
        values: Buffer<T>,
    ) -> Result<Buffer<T>, Error> {
        let outputs = node.output.size();
        let mut from = self.buffers.indices.take(outputs * self.columns);
        let mut routed = self.buffers.values.take(outputs * self.columns);
        for ((values, from), routed) in values
            .chunks_exact(inputs)
            .zip(from.chunks_exact_mut(outputs))
            .zip(routed.chunks_exact_mut(outputs))
        {
            // Each sample has its own route, because a maximum depends on the values.
            route.route(values, from);
            for (to, from) in routed.iter_mut().zip(from) {
                // A custom layer might return an index out of range.
                *from = (*from).min(inputs - 1);
                *to = values[*from];
            }
        }
        self.buffers.values.give(values);
        self.visitor.route(self.buffers, factor, from, self.columns)?;
        Ok(routed)
    }

    /// Runs all branches and concatenates their outputs, for each sample.
    fn branches(
        &mut self,
        _node: &Node<T>,
        (factor, branches, inputs): (usize, &[Chain<T>], usize),
        values: Buffer<T>,
    ) -> Result<Buffer<T>, Error> {
        let outputs: usize = branches.iter().map(|branch| branch.output.size()).sum();
        let mut joined = self.buffers.values.take(outputs * self.columns);
        self.visitor.open();
        let mut first = 0;
        for branch in branches {
            self.visitor.next();
            // Every branch consumes its inputs, so each one gets a copy.
            let mut copy = self.buffers.values.take(inputs * self.columns);
            linalg::copy(&values, &mut copy);
            let of_branch = self.chain(branch, copy)?;
            let size = branch.output.size();
            for (joined, of_branch) in
                joined.chunks_exact_mut(outputs).zip(of_branch.chunks_exact(size))
            {
                linalg::copy(of_branch, &mut joined[first..first + size]);
            }
            self.buffers.values.give(of_branch);
            first += size;
        }
        self.buffers.values.give(values);
        self.visitor.close(self.buffers, factor, self.columns)?;
        Ok(joined)
    }
}

/// Checks that a layer's outputs are finite.
fn check_output<T: Scalar>(node: &Node<T>, values: &[T]) -> Result<(), Error> {
    check_values(node, values, node.output.size())
}

/// Checks that all values are finite. Each sample has `size` values.
fn check_values<T: Scalar>(node: &Node<T>, values: &[T], size: usize) -> Result<(), Error> {
    match linalg::first_non_finite(values) {
        Some((at, value)) => {
            let (kind, index) = (node.layer.kind().to_owned(), at % size);
            Err(Error::NonFiniteOutput { layer: node.index, kind, index, value: value.as_f64() })
        }
        None => Ok(()),
    }
}

impl<T: Scalar> fmt::Display for Sequential<T> {
    /// Prints the model as PyTorch does, nested by name. The alternate form `{:#}` adds the output
    /// shape and the number of parameters of each layer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sequential(")?;
        write_nodes(f, &self.chain.nodes.iter().collect::<Vec<_>>(), "", 1)?;
        f.write_str("\n)")?;
        if f.alternate() {
            write!(
                f,
                "\n{} -> {}, {} parameters",
                self.input,
                self.chain.output,
                self.parameters()
            )?;
        }
        Ok(())
    }
}

/// Writes the layers whose names begin with `prefix`, one per line.
fn write_nodes<T: Scalar>(
    f: &mut fmt::Formatter<'_>,
    nodes: &[&Node<T>],
    prefix: &str,
    depth: usize,
) -> fmt::Result {
    let mut at = 0;
    while let Some(node) = nodes.get(at) {
        let name = node.name.strip_prefix(prefix).unwrap_or(&node.name);
        let indent = "  ".repeat(depth);
        if let Some((group, _)) = name.split_once('.') {
            let inner = format!("{prefix}{group}.");
            // All following layers with the same first part of the name form one nested Sequential.
            let count = nodes[at..].iter().take_while(|node| node.name.starts_with(&inner)).count();
            write!(f, "\n{indent}({group}): Sequential(")?;
            write_nodes(f, &nodes[at..at + count], &inner, depth + 1)?;
            write!(f, "\n{indent})")?;
            at += count;
            continue;
        }
        match &node.bound {
            Bound::Branches { branches, .. } => {
                write!(f, "\n{indent}({name}): {}(", node.layer.kind())?;
                for (number, branch) in branches.iter().enumerate() {
                    let own = format!("{}.", node.name);
                    let unnamed = format!("{own}{number}.");
                    let named = branch.nodes.iter().any(|node| !node.name.starts_with(&unnamed));
                    let nodes: Vec<_> = branch.nodes.iter().collect();
                    // The branch's number is not part of the names if its layers are named after
                    // the block alone.
                    let number = if named { String::new() } else { number.to_string() };
                    write!(f, "\n{indent}  ({number}): Sequential(")?;
                    write_nodes(f, &nodes, if named { &own } else { &unnamed }, depth + 2)?;
                    let end =
                        if nodes.is_empty() { String::new() } else { format!("\n{indent}  ") };
                    write!(f, "{end})")?;
                }
                write!(f, "\n{indent})")?;
            }
            _ => write!(f, "\n{indent}({name}): {}", describe(&*node.layer))?,
        }
        if f.alternate() {
            write!(f, "  # {}", node.output)?;
            match node.layer.parameters() {
                0 => {}
                count => write!(f, ", {count} parameters")?,
            }
        }
        at += 1;
    }
    Ok(())
}

/// A layer as PyTorch prints it.
pub(crate) fn describe<T: Scalar>(layer: &dyn Layer<T>) -> String {
    format!("{}({})", layer.kind(), layer.arguments())
}
