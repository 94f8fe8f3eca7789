//! Layers that move values: their shape, or their place.

use std::sync::Arc;

use super::{Layer, Operator, Route};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// All values as one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flatten;

impl<T: Scalar> Layer<T> for Flatten {
    fn kind(&self) -> &str {
        "Flatten"
    }

    fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
        Ok(Operator::Reshape(input.size().into()))
    }

    fn arguments(&self) -> String {
        "start_dim=1, end_dim=-1".to_owned()
    }
}

/// The values in another shape of the same size, such as those of a vector as an image.
///
/// ```
/// use relprop::{Conv2d, Sequential, Unflatten};
///
/// let conv = Conv2d::new([1, 2, 1, 1], vec![1.0, 2.0], None)?;
/// let model = Sequential::builder().input(8).layer(Unflatten::new([2, 2, 2])).layer(conv).build()?;
/// assert_eq!(model.output_shape().dims(), [1, 2, 2]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unflatten {
    shape: Shape,
}

impl Unflatten {
    /// Values of this shape, whatever theirs was.
    pub fn new(shape: impl Into<Shape>) -> Self {
        Self { shape: shape.into() }
    }
}

impl<T: Scalar> Layer<T> for Unflatten {
    fn kind(&self) -> &str {
        "Unflatten"
    }

    fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
        if input.size() == self.shape.size() {
            return Ok(Operator::Reshape(self.shape));
        }
        Err(Error::shape("Unflatten", input, format!("as many values as {} has", self.shape)))
    }

    fn arguments(&self) -> String {
        format!("dim=1, unflattened_size=({})", listed(self.shape.dims()))
    }
}

/// The values with their axes in another order, such as an image's channels before its rows.
///
/// ```
/// use relprop::{Conv2d, Permute, Sequential};
///
/// // Rows x columns x channels, as in TensorFlow.
/// let conv = Conv2d::new([1, 3, 1, 1], vec![1.0, 2.0, 3.0], None)?;
/// let model = Sequential::builder().input([5, 4, 3]).layer(Permute::new(&[2, 0, 1])?).layer(conv).build()?;
/// assert_eq!(model.output_shape().dims(), [1, 5, 4]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permute {
    axes: Vec<usize>,
}

impl Permute {
    /// For each axis of the outputs which one of the inputs it is, from 0: the samples are not
    /// counted.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] where these are not all axes, each of them once.
    pub fn new(axes: &[usize]) -> Result<Self, Error> {
        let mut sorted = axes.to_vec();
        sorted.sort_unstable();
        if axes.is_empty()
            || axes.len() > 3
            || sorted.iter().enumerate().any(|(at, &axis)| at != axis)
        {
            return Err(Error::parameter(
                "Permute",
                "axes",
                axes,
                "one to three axes from 0, each of them once",
            ));
        }
        Ok(Self { axes: axes.to_vec() })
    }
}

impl<T: Scalar> Layer<T> for Permute {
    fn kind(&self) -> &str {
        "Permute"
    }

    fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
        if input.dims().len() != self.axes.len() {
            return Err(Error::shape("Permute", input, format!("{} axes", self.axes.len())));
        }
        Ok(Operator::Route(Arc::new(Permuted { axes: self.axes.clone(), input })))
    }

    /// PyTorch counts the samples' axis.
    fn arguments(&self) -> String {
        let axes: Vec<usize> =
            std::iter::once(0).chain(self.axes.iter().map(|axis| axis + 1)).collect();
        format!("dims=({})", listed(&axes))
    }
}

#[derive(Debug)]
struct Permuted {
    axes: Vec<usize>,
    input: Shape,
}

impl<T: Scalar> Route<T> for Permuted {
    fn output_shape(&self) -> Shape {
        let mut dims = [1; 3];
        dims.iter_mut().zip(&self.axes).for_each(|(dim, &axis)| *dim = self.input.dims()[axis]);
        match *self.axes {
            [_] => dims[0].into(),
            [_, _] => [dims[0], dims[1]].into(),
            _ => dims.into(),
        }
    }

    fn is_fixed(&self) -> bool {
        true
    }

    fn route(&self, _values: &[T], from: &mut [usize]) {
        let dims = self.input.dims();
        // Of the output's axes, from the left with axes of one index where there are fewer than
        // three.
        let (mut counts, mut steps) = ([1; 3], [0; 3]);
        for (place, &axis) in self.axes.iter().enumerate() {
            let place = 3 - self.axes.len() + place;
            (counts[place], steps[place]) = (dims[axis], dims[axis + 1..].iter().product());
        }
        let mut from = from.iter_mut();
        for a in 0..counts[0] {
            for b in 0..counts[1] {
                let first = a * steps[0] + b * steps[1];
                for (c, from) in from.by_ref().take(counts[2]).enumerate() {
                    *from = first + c * steps[2];
                }
            }
        }
    }
}

fn listed(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Each value repeated along height and width (nearest neighbor).
///
/// | parameter | range |
/// |---|---|
/// | factor | whole, at least 1 |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Upsample {
    factor: usize,
}

impl Upsample {
    /// # Errors
    /// [`Error::InvalidParameter`] where the factor is 0.
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

    fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
        if input.dims().len() < 2 {
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
        format!("scale_factor={:.1}, mode='nearest'", self.factor as f64)
    }
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
