//! Branches: parallel paths through the network that start from the same values.

use std::sync::Arc;

use super::{Joined, Layer, Operator, same_layer_in_f64};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::shape::Shape;

/// A sequence of layers that forms one path through a layer such as [`Residual`]. A branch without
/// layers passes the values through unchanged.
///
/// A [`SequentialBuilder`](crate::SequentialBuilder) converts into a branch.
#[derive(Debug, Clone)]
pub struct Branch<T: Scalar> {
    pub(crate) layers: Vec<Named<T>>,
}

impl<T: Scalar> Branch<T> {
    /// This branch in double precision, or `None` if [`Layer::to_f64`] returns `None` for one of
    /// its layers.
    #[must_use]
    pub fn to_f64(&self) -> Option<Branch<f64>> {
        let converted = |Named { name, layer }: &Named<T>| {
            Some(Named { name: name.clone(), layer: layer.to_f64()? })
        };
        Some(Branch { layers: self.layers.iter().map(converted).collect::<Option<_>>()? })
    }
}

/// A layer, with its name if it was given one.
#[derive(Debug, Clone)]
pub(crate) struct Named<T: Scalar> {
    pub name: Option<String>,
    pub layer: Arc<dyn Layer<T>>,
}

/// A residual block: the sum of its branches, y = b₁(z) + b₂(z) + …
///
/// In a [`Graph`](crate::Graph), the layers of the branches and their sum are nodes like all
/// others.
///
/// A shortcut is a branch without layers, or with only the layers that adapt its shape to that of
/// the other branches. Relevance is split by the rule [`Norm`](crate::Norm), a_i / (Σ a + ε sgn),
/// and each branch passes its part back to z.
///
/// ```
/// use relprop::{Linear, Relu, Residual, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let linear = Linear::new(dmatrix![1.0, 2.0; 0.0, 1.0], None)?;
/// let inner = Sequential::builder().layer(linear).layer(Relu);
/// let block = Residual::new([inner, Sequential::builder()])?;
/// let model = Sequential::builder().input(2).layer(block).build()?;
/// let explanation = model.explain(&dvector![1.0, 1.0], Rule::Epsilon)?;
/// assert_eq!(explanation.output(), &dvector![4.0, 2.0]);
/// assert!((explanation.relevance(0)? - dvector![2.0, 2.0]).amax() < 1e-5);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Residual<T: Scalar> {
    branches: Vec<Branch<T>>,
}

/// The outputs of several branches, concatenated along the channels.
///
/// ```
/// use relprop::{Concat, Linear, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let sum = Sequential::builder().layer(Linear::new(dmatrix![1.0, 1.0], None)?);
/// let concat = Concat::new([Sequential::builder(), sum])?;
/// let model = Sequential::builder().input(2).layer(concat).build()?;
/// assert_eq!(model.forward(&dvector![1.0, 2.0])?, dvector![1.0, 2.0, 3.0]);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Concat<T: Scalar> {
    branches: Vec<Branch<T>>,
}

macro_rules! joined {
    ($name:ident, $kind:literal, $how:expr) => {
        impl<T: Scalar> $name<T> {
            /// Creates a layer from these branches.
            ///
            /// # Errors
            /// [`Error::InvalidParameter`] if there are no branches.
            pub fn new<B: Into<Branch<T>>>(
                branches: impl IntoIterator<Item = B>,
            ) -> Result<Self, Error> {
                let branches: Vec<Branch<T>> = branches.into_iter().map(Into::into).collect();
                if branches.is_empty() {
                    return Err(Error::parameter($kind, "number of branches", 0, "at least 1"));
                }
                Ok(Self { branches })
            }
        }

        impl<T: Scalar> Layer<T> for $name<T> {
            fn kind(&self) -> &str {
                $kind
            }

            fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
                Ok(Operator::Branches(self.branches.clone(), $how))
            }

            fn parameters(&self) -> usize {
                self.branches
                    .iter()
                    .flat_map(|branch| &branch.layers)
                    .map(|node| node.layer.parameters())
                    .sum()
            }

            fn to_f64(&self) -> Option<Arc<dyn Layer<f64>>> {
                let branches = self.branches.iter().map(Branch::to_f64).collect::<Option<_>>()?;
                Some(Arc::new($name { branches }))
            }
        }
    };
}

/// The node in which branches, or other values, are joined.
#[derive(Debug, Clone)]
pub(crate) struct Join {
    kind: String,
    joined: Joined,
}

impl Join {
    pub fn new(kind: &str, joined: Joined) -> Self {
        Self { kind: kind.to_owned(), joined }
    }

    /// The join of values that are not the ends of branches, with its usual kind.
    pub fn of_values(joined: Joined) -> Self {
        match joined {
            Joined::Summed => Self::new("Sum", joined),
            Joined::Concatenated => Self::new("Concat", joined),
        }
    }
}

impl<T: Scalar> Layer<T> for Join {
    fn kind(&self) -> &str {
        &self.kind
    }

    fn operator(&self, _inputs: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(match self.joined {
            Joined::Summed => Operator::Sum,
            Joined::Concatenated => Operator::Concat,
        })
    }

    same_layer_in_f64!();
}

joined!(Residual, "Residual", Joined::Summed);
joined!(Concat, "Concat", Joined::Concatenated);
