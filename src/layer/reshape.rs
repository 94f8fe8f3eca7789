//! Layers that change the shape or the order of the values.

use std::sync::Arc;

use super::{Layer, Operator, Route, only_input, same_layer_in_f64};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// Flattens the values to a vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flatten;

impl<T: Scalar> Layer<T> for Flatten {
    fn kind(&self) -> &str {
        "Flatten"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        Ok(Operator::Reshape(input.size().into()))
    }

    fn arguments(&self) -> String {
        "start_dim=1, end_dim=-1".to_owned()
    }

    same_layer_in_f64!();
}

/// Gives the values another shape of the same size, for example to turn a vector into an image.
///
/// ```
/// use relprop::{Conv2d, Sequential, Unflatten};
///
/// let conv = Conv2d::new([1, 2, 1, 1], vec![1.0, 2.0], None)?;
/// let image = Unflatten::new([2, 2, 2]);
/// let model = Sequential::builder().input(8).layer(image).layer(conv).build()?;
/// assert_eq!(model.output_shape().dims(), [1, 2, 2]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unflatten {
    shape: Shape,
}

impl Unflatten {
    /// Creates a layer that gives the values this shape.
    pub fn new(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into() }
    }
}

impl<T: Scalar> Layer<T> for Unflatten {
    fn kind(&self) -> &str {
        "Unflatten"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        if input.size() == self.shape.size() {
            return Ok(Operator::Reshape(self.shape));
        }
        Err(Error::shape("Unflatten", input, format!("a shape of the same size as {}", self.shape)))
    }

    fn arguments(&self) -> String {
        format!("dim=1, unflattened_size=({})", listed(self.shape.dims()))
    }

    same_layer_in_f64!();
}

/// Reorders the axes of the values, for example to move the channels of an image to the front.
///
/// ```
/// use relprop::{Conv2d, Permute, Sequential};
///
/// // Rows x columns x channels, as in TensorFlow.
/// let conv = Conv2d::new([1, 3, 1, 1], vec![1.0, 2.0, 3.0], None)?;
/// let permute = Permute::new(&[2, 0, 1])?;
/// let model = Sequential::builder().input([5, 4, 3]).layer(permute).layer(conv).build()?;
/// assert_eq!(model.output_shape().dims(), [1, 5, 4]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permute {
    axes: Vec<usize>,
}

impl Permute {
    /// Creates a layer whose output axis i is the input axis `axes[i]`. Axes are counted from 0,
    /// without the batch axis.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] unless `axes` contains each axis exactly once.
    pub fn new(axes: &[usize]) -> Result<Self, Error> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if axes.is_empty()
            || axes.len() > Shape::MAX_AXES
            || sorted.iter().enumerate().any(|(at, &axis)| at != axis)
        {
            return Err(Error::parameter(
                "Permute",
                "axes",
                axes,
                "one to eight axes, counted from 0, each exactly once",
            ));
        }
        Ok(Self { axes: axes.to_vec() })
    }
}

impl<T: Scalar> Layer<T> for Permute {
    fn kind(&self) -> &str {
        "Permute"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        if input.dims().len() != self.axes.len() {
            let expected = format!("values with {} axes", self.axes.len());
            return Err(Error::shape("Permute", input, expected));
        }
        Ok(Operator::Route(Arc::new(Permuted { axes: self.axes.clone(), input })))
    }

    /// In PyTorch the batch axis counts too, so each axis is shifted by 1.
    fn arguments(&self) -> String {
        let axes: Vec<usize> =
            std::iter::once(0).chain(self.axes.iter().map(|axis| axis + 1)).collect();
        format!("dims=({})", listed(&axes))
    }

    same_layer_in_f64!();
}

#[derive(Debug)]
struct Permuted {
    axes: Vec<usize>,
    input: Shape,
}

impl<T: Scalar> Route<T> for Permuted {
    fn output_shape(&self) -> Shape {
        let mut output = self.input;
        for (axis, &from) in self.axes.iter().enumerate() {
            output = output.with_dim(axis, self.input.dims()[from]);
        }
        output
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn route(&self, _values: &[T], from: &mut [usize]) {
        let dims = self.input.dims();
        // The length of each output axis, and its step in the input.
        let axes: Vec<(usize, usize)> =
            self.axes.iter().map(|&axis| (dims[axis], dims[axis + 1..].iter().product())).collect();
        // The index along each output axis, counted up like the digits of a number.
        let mut index = vec![0; axes.len()];
        let mut place = 0;
        for from in from {
            *from = place;
            for (index, &(length, step)) in index.iter_mut().zip(&axes).rev() {
                *index += 1;
                place += step;
                if *index < length {
                    break;
                }
                place -= length * step;
                *index = 0;
            }
        }
    }
}

fn listed(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Repeats each value along height and width (nearest neighbor).
///
/// | parameter | range |
/// |---|---|
/// | factor | at least 1 |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upsample {
    factor: usize,
}

impl Upsample {
    /// Creates a layer that repeats each value `factor` times along each axis.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] if the factor is 0.
    pub fn new(factor: usize) -> Result<Self, Error> {
        if factor == 0 {
            Err(Error::parameter("Upsample", "scale_factor", factor, "at least 1"))
        } else {
            Ok(Self { factor })
        }
    }
}

impl<T: Scalar> Layer<T> for Upsample {
    fn kind(&self) -> &str {
        "Upsample"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<T>, Error> {
        let input = only_input(Layer::<T>::kind(self), inputs)?;
        if !(2..=3).contains(&input.dims().len()) {
            return Err(Error::shape(
                "Upsample",
                input,
                "channels x height x width, or channels x length",
            ));
        }
        let [height, width] = input.plane();
        let along = |size: usize| size.saturating_mul(self.factor);
        let size = [if input.dims().len() == 3 { along(height) } else { 1 }, along(width)];
        Ok(Operator::Route(Arc::new(Nearest {
            factor: self.factor,
            input,
            output: input.with(input.channels(), size),
        })))
    }

    fn arguments(&self) -> String {
        // PyTorch prints the factor as a floating-point number.
        format!("scale_factor={:.1}, mode='nearest'", self.factor as f64)
    }

    same_layer_in_f64!();
}

#[derive(Debug)]
struct Nearest {
    factor: usize,
    input: Shape,
    output: Shape,
}

impl<T: Scalar> Route<T> for Nearest {
    fn output_shape(&self) -> Shape {
        self.output
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn route(&self, _values: &[T], from: &mut [usize]) {
        let ([height, width], [tall, wide]) = (self.input.plane(), self.output.plane());
        // For a sequence this is 1, since only the width is scaled.
        let down = tall / height;
        for (line, from) in from.chunks_exact_mut(wide).enumerate() {
            let (channel, row) = (line / tall, line % tall);
            let first = (channel * height + row / down) * width;
            from.iter_mut()
                .enumerate()
                .for_each(|(column, from)| *from = first + column / self.factor);
        }
    }
}
