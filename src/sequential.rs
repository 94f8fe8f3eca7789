//! The model for layers in a row.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::Error;
use crate::graph::{Graph, check_input};
use crate::layer::{Branch, Layer, Named, Operator};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// A network: a sequence of layers, some of which can hold branches of further layers.
///
/// A sequential model is a [`Graph`] whose layers are listed one after another, and it has all
/// methods of a graph. It is immutable once built. Clones share the layers, so cloning a model for
/// each thread is cheap. Use [`explain`](Graph::explain) to explain a single sample and
/// [`explainer`](Graph::explainer) to explain many.
///
/// Layers are numbered from 0 in the order in which they are listed. A layer with branches comes
/// before the layers inside its branches. So after a layer with branches, the index of a layer
/// without a name differs from its name, which is its position in the builder.
#[derive(Debug, Clone)]
pub struct Sequential<T: Scalar> {
    graph: Graph<T>,
}

/// A sequential model has all methods of a graph.
impl<T: Scalar> Deref for Sequential<T> {
    type Target = Graph<T>;

    fn deref(&self) -> &Graph<T> {
        &self.graph
    }
}

impl<T: Scalar> From<Sequential<T>> for Graph<T> {
    fn from(model: Sequential<T>) -> Self {
        model.graph
    }
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
    /// A [`Composite`](crate::Composite) and a [`Trace`](crate::Trace) can refer to the layer by this
    /// name. A layer without a name is named by its position in the builder, counted from 0.
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
        let layers = self.branch.layers;
        let Some(first) = layers.first() else { return Err(Error::EmptyModel) };
        let kind = first.layer.kind().to_owned();
        // Activations accept any shape, so the first layer with a fixed input size decides.
        let taken = layers.iter().find_map(|node| node.layer.inputs()).map(Shape::from);
        let input = match self.input.or(taken) {
            Some(input) => input,
            None if layers.iter().all(|named| accepts_any_shape(&*named.layer)) => {
                return Err(Error::NoLinearLayer { layers: layers.len() });
            }
            None => return Err(Error::UnknownInput { kind }),
        };
        // A size that is taken from a layer is checked when the layer is bound.
        self.input.map_or(Ok(()), |input| check_input("Sequential", input))?;
        let mut graph = Graph::builder();
        // No layer may have the same name.
        let mut name = "input".to_owned();
        while layers.iter().any(|named| named.name.as_ref() == Some(&name)) {
            name.push('_');
        }
        let mut value = graph.input(&name, input);
        for Named { name, layer } in layers {
            value = graph.declare(name, layer, [value]);
        }
        graph.output("output", value);
        match graph.build_inner() {
            Ok(graph) => Ok(Sequential { graph }),
            // The size came from a later layer and does not fit the first one, so the input is
            // unknown.
            Err(Error::LayerShape { layer: 0, .. }) if self.input.is_none() => {
                Err(Error::UnknownInput { kind })
            }
            Err(error) => Err(error),
        }
    }
}

fn accepts_any_shape<T: Scalar>(layer: &dyn Layer<T>) -> bool {
    matches!(
        layer.operator(&[1.into()]),
        Ok(Operator::Elementwise(_)
            | Operator::PerChannel(_)
            | Operator::Reshape(_)
            | Operator::Softmax(_))
    )
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

    /// The graph of the model.
    #[must_use]
    pub fn graph(&self) -> &Graph<T> {
        &self.graph
    }

    /// Rebuilds the network for samples of another shape.
    ///
    /// # Errors
    /// See [`SequentialBuilder::build`].
    pub fn with_input(&self, shape: impl Into<Shape>) -> Result<Self, Error> {
        Ok(Self { graph: self.graph.with_input_inner(shape.into())? })
    }

    /// A graph with one input whose layers form a row.
    pub(crate) fn of(graph: Graph<T>) -> Self {
        Self { graph }
    }
}

impl<T: Scalar> fmt::Display for Sequential<T> {
    /// Prints the model as PyTorch does, nested by name. The alternate form `{:#}` adds the output
    /// shape and the number of parameters of each layer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.graph.write_sequential(f)
    }
}
