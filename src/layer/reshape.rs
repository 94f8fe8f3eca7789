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

/// Each value repeated along height and width (nearest neighbour).
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
        if factor == 0 { Err(Error::parameter("Upsample", "scale_factor", factor, "at least 1")) } else { Ok(Self { factor }) }
    }
}

impl<T: Scalar> Layer<T> for Upsample {
    fn kind(&self) -> &str {
        "Upsample"
    }

    fn operator(&self, input: Shape) -> Result<Operator<T>, Error> {
        if input.dims().len() < 2 {
            return Err(Error::shape("Upsample", input, "channels x height x width, or channels x length"));
        }
        let [height, width] = input.plane();
        let along = |size: usize| size.saturating_mul(self.factor);
        let size = [if input.dims().len() == 3 { along(height) } else { 1 }, along(width)];
        Ok(Operator::Route(Arc::new(Nearest { factor: self.factor, input, output: input.with(input.channels(), size) })))
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

    fn route(&self, _values: &[T], from: &mut [usize]) {
        let ([height, width], [tall, wide]) = (self.input.plane(), self.output.plane());
        let down = tall / height;
        for (line, from) in from.chunks_exact_mut(wide).enumerate() {
            let (channel, row) = (line / tall, line % tall);
            let first = (channel * height + row / down) * width;
            from.iter_mut().enumerate().for_each(|(column, from)| *from = first + column / self.factor);
        }
    }
}
