//! The model: layers one after another.

use std::fmt;
use std::sync::Arc;

use nalgebra::{DMatrix, DVector};

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::layer::{self, Elementwise, Layer, LinearMap, Operator};
use crate::linalg;
use crate::rule::Site;
use crate::scalar::Scalar;

/// A network of layers that follow one another.
///
/// Immutable once built and cheap to clone: the layers are shared, so a clone for each thread costs nothing.
/// [`explain`](Self::explain) and [`explainer`](Self::explainer) are what it is for.
#[derive(Debug, Clone)]
pub struct Sequential<T: Scalar> {
    layers: Arc<[Box<dyn Layer<T>>]>,
    names: Arc<[String]>,
    inputs: usize,
    outputs: usize,
}

/// Collects the layers of a [`Sequential`].
#[derive(Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct SequentialBuilder<T: Scalar> {
    layers: Vec<Box<dyn Layer<T>>>,
    names: Vec<String>,
}

impl<T: Scalar> SequentialBuilder<T> {
    /// Adds a layer behind those that are there.
    pub fn layer(self, layer: impl Layer<T> + 'static) -> Self {
        let name = self.layers.len().to_string();
        self.named(&name, layer)
    }

    /// Adds a layer under a name, by which a [`Composite`](crate::Composite) can speak of it; else its index is its name.
    pub fn named(mut self, name: &str, layer: impl Layer<T> + 'static) -> Self {
        self.layers.push(Box::new(layer));
        self.names.push(name.to_owned());
        self
    }

    /// The model, with all shapes checked.
    ///
    /// # Errors
    /// [`Error::EmptyModel`], [`Error::NoLinearLayer`], [`Error::LayerShape`] where two layers do not fit,
    /// [`Error::SoftmaxInMiddle`], and [`Error::ZeroSized`], [`Error::BiasShape`] or [`Error::NonFiniteBias`] for a linear
    /// layer from outside the crate that is not sound.
    pub fn build(self) -> Result<Sequential<T>, Error> {
        let mut ends: Option<(usize, usize)> = None;
        for (index, layer) in self.layers.iter().enumerate() {
            match layer.operator() {
                Operator::Linear(map) => {
                    check_map(layer.kind(), map)?;
                    if let Some((_, found)) = ends.filter(|&(_, found)| found != map.inputs()) {
                        let kind = layer.kind().to_owned();
                        return Err(Error::LayerShape { layer: index, kind, expected: map.inputs(), found });
                    }
                    ends = Some((ends.map_or(map.inputs(), |(inputs, _)| inputs), map.outputs()));
                }
                Operator::Softmax if index + 1 < self.layers.len() => {
                    return Err(Error::SoftmaxInMiddle { layer: index, next: index + 1 });
                }
                Operator::Elementwise(_) | Operator::Softmax => {}
            }
        }
        match ends {
            Some((inputs, outputs)) => Ok(Sequential { layers: self.layers.into(), names: self.names.into(), inputs, outputs }),
            None if self.layers.is_empty() => Err(Error::EmptyModel),
            None => Err(Error::NoLinearLayer { layers: self.layers.len() }),
        }
    }
}

fn check_map<T: Scalar>(kind: &str, map: &dyn LinearMap<T>) -> Result<(), Error> {
    let (outputs, inputs) = (map.outputs(), map.inputs());
    if outputs == 0 || inputs == 0 {
        return Err(Error::ZeroSized { kind: kind.to_owned(), outputs, inputs });
    }
    map.bias().map_or(Ok(()), |bias| layer::check_bias(kind, bias, outputs, inputs))
}

/// What a run of the network leaves behind, samples as columns.
pub(crate) struct Outputs<T> {
    /// The values that are explained.
    pub logits: Buffer<T>,
    /// The softmax of the logits, where the model ends with one.
    pub probabilities: Option<Buffer<T>>,
}

/// A linear layer at the moment at which the forward pass leaves it.
pub(crate) struct Leaving<'a, T: Scalar> {
    /// The layer's place among the linear layers.
    pub linear: usize,
    pub map: &'a dyn LinearMap<T>,
    /// z, samples as columns; handed over because the pass needs it no more.
    pub inputs: Buffer<T>,
    /// W z.
    pub product: &'a [T],
}

/// Who looks at the layers while the network runs.
pub(crate) trait Visitor<T: Scalar> {
    /// Takes what a linear layer leaves.
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error>;

    /// Sees what goes into an activation.
    fn meet(&mut self, _function: &dyn Elementwise<T>, _values: &[T]) {}
}

impl<T: Scalar, F: FnMut(&mut Buffers<T>, Leaving<'_, T>) -> Result<(), Error>> Visitor<T> for F {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        self(buffers, leaving)
    }
}

impl<T: Scalar> Sequential<T> {
    /// Starts a model.
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
        SequentialBuilder { layers: Vec::new(), names: Vec::new() }
    }

    /// How many values a sample has.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// How many outputs the model has.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The layers, in order.
    #[must_use]
    pub fn layers(&self) -> &[Box<dyn Layer<T>>] {
        &self.layers
    }

    /// The layers' names, in order: those they were given, else their indices.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The linear layers, as a rule is asked about them.
    pub(crate) fn sites(&self) -> impl Iterator<Item = (Site<'_>, &dyn LinearMap<T>)> {
        let linear = |layer: &dyn Layer<T>| matches!(layer.operator(), Operator::Linear(_));
        let linear_count = self.layers.iter().filter(|layer| linear(&***layer)).count();
        let maps = self.layers.iter().enumerate().filter_map(|(index, layer)| match layer.operator() {
            Operator::Linear(map) => Some((index, layer, map)),
            _ => None,
        });
        maps.enumerate().map(move |(linear_index, (layer, node, map))| {
            let (name, kind) = (self.names[layer].as_str(), node.kind());
            let (inputs, outputs) = (map.inputs(), map.outputs());
            (Site { layer, name, kind, inputs, outputs, linear_index, linear_count }, map)
        })
    }

    /// The model's output at one sample: probabilities where it ends with a softmax.
    ///
    /// # Errors
    /// [`Error::InputShape`], [`Error::NonFiniteInput`], [`Error::NonFiniteOutput`].
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Sequential, Softmax};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0; 1.0], None)?).layer(Softmax).build()?;
    /// assert_eq!(model.forward(&dvector![3.0])?, dvector![0.5, 0.5]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn forward(&self, sample: &DVector<T>) -> Result<DVector<T>, Error> {
        self.check_input(sample.len())?;
        self.run(sample.as_slice()).map(DVector::from_vec)
    }

    /// The model's outputs for a batch, samples as columns: inputs x samples in, outputs x samples out.
    ///
    /// A C-order array of shape (samples, inputs), as numpy and PyTorch have it, is such a matrix without a copy.
    /// Any number of samples goes, none too.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), with the sample's index.
    ///
    /// # Example
    /// ```
    /// use relprop::{Linear, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, 2.0], None)?).build()?;
    /// assert_eq!(model.forward_batch(&dmatrix![1.0, 0.0, 5.0; 0.0, 1.0, 5.0])?, dmatrix![1.0, 2.0, 15.0]);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn forward_batch(&self, samples: &DMatrix<T>) -> Result<DMatrix<T>, Error> {
        self.check_input(samples.nrows())?;
        let values = self.run(samples.as_slice())?;
        Ok(DMatrix::from_vec(self.outputs, samples.ncols(), values))
    }

    fn run(&self, samples: &[T]) -> Result<Vec<T>, Error> {
        self.check_samples(samples)?;
        let mut buffers = Buffers::default();
        let outputs = self.pass(samples, &mut buffers, &mut |buffers: &mut Buffers<T>, leaving: Leaving<'_, T>| {
            buffers.values.give(leaving.inputs);
            Ok(())
        })?;
        Ok(outputs.probabilities.unwrap_or(outputs.logits).to_vec())
    }

    /// A sample has as many values as the model has inputs.
    pub(crate) fn check_input(&self, found: usize) -> Result<(), Error> {
        if found == self.inputs {
            return Ok(());
        }
        Err(Error::InputShape { kind: self.layers[0].kind().to_owned(), expected: self.inputs, found })
    }

    /// Samples are finite.
    pub(crate) fn check_samples(&self, samples: &[T]) -> Result<(), Error> {
        let Some((at, value)) = linalg::first_non_finite(samples) else { return Ok(()) };
        let (sample, index) = (at / self.inputs, at % self.inputs);
        Err(Error::NonFiniteInput { index, sample, value: value.as_f64() })
    }

    /// Runs the network once on finite samples of the right length, as columns, and shows the layers to a visitor as the pass
    /// leaves them.
    ///
    /// This is the only loop over the layers: whoever wants more than the outputs takes it in here.
    pub(crate) fn pass(&self, samples: &[T], buffers: &mut Buffers<T>, visitor: &mut impl Visitor<T>) -> Result<Outputs<T>, Error> {
        let columns = samples.len() / self.inputs;
        let mut values = buffers.values.take(samples.len());
        values.copy_from_slice(samples);
        let mut probabilities = None;
        let mut linear = 0;
        for (layer, node) in self.layers.iter().enumerate() {
            match node.operator() {
                Operator::Linear(map) => {
                    let mut product = buffers.values.take(map.outputs() * columns);
                    map.apply(&values, &mut product);
                    // Before the visit, so that the visitor meets finite numbers only.
                    check_output(layer, &**node, &product, map.outputs())?;
                    visitor.leave(buffers, Leaving { linear, map, inputs: values, product: &product })?;
                    layer::add_bias(map.bias(), &mut product);
                    values = product;
                    linear += 1;
                }
                Operator::Elementwise(function) => {
                    visitor.meet(function, &values);
                    function.apply(&mut values);
                }
                Operator::Softmax => {
                    let mut softmax = buffers.values.take(values.len());
                    softmax.copy_from_slice(&values);
                    layer::softmax(&mut softmax, self.outputs);
                    probabilities = Some(softmax);
                }
            }
            check_output(layer, &**node, &values, values.len() / columns.max(1))?;
        }
        Ok(Outputs { logits: values, probabilities })
    }
}

/// A layer's values, `size` for each sample, are finite.
fn check_output<T: Scalar>(layer: usize, node: &dyn Layer<T>, values: &[T], size: usize) -> Result<(), Error> {
    match linalg::first_non_finite(values) {
        Some((at, value)) => {
            Err(Error::NonFiniteOutput { layer, kind: node.kind().to_owned(), index: at % size, value: value.as_f64() })
        }
        None => Ok(()),
    }
}

impl<T: Scalar> fmt::Display for Sequential<T> {
    /// The model as PyTorch prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Sequential(")?;
        for (index, layer) in self.layers.iter().enumerate() {
            writeln!(f, "  ({index}): {}", describe(&**layer))?;
        }
        f.write_str(")")
    }
}

/// One layer as PyTorch prints it.
pub(crate) fn describe<T: Scalar>(layer: &dyn Layer<T>) -> String {
    format!("{}({})", layer.kind(), layer.arguments())
}
