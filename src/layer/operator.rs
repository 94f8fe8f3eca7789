//! Operators: how a layer maps values forward and relevance backward.

use std::fmt::Debug;
use std::sync::Arc;

use super::{Branch, Elementwise, LinearMap, Lookup};
use crate::scalar::Scalar;
use crate::shape::Shape;

/// How a layer maps values forward and relevance backward.
#[derive(Debug)]
#[non_exhaustive]
pub enum Operator<T: Scalar> {
    /// y = W z + b, with its relevance shared by the rule.
    Linear(Arc<dyn LinearMap<T>>),
    /// y = W z + b with weights for which the rules are not designed, such as those of a pooling or
    /// a normalization.
    ///
    /// Relevance is shared by the rule [`Norm`](crate::Norm) unless a
    /// [`Composite`](crate::Composite) sets another rule. Such a layer never counts as the first
    /// linear layer.
    Average(Arc<dyn LinearMap<T>>),
    /// yᵢ = f(zᵢ). Relevance passes through unchanged (Bach et al. 2015).
    Elementwise(Arc<dyn Elementwise<T>>),
    /// yᵢ = f_c(zᵢ), with one function per channel c. The first axis of the values holds the
    /// channels. Relevance passes through unchanged.
    PerChannel(Vec<Arc<dyn Elementwise<T>>>),
    /// Each output is one of the inputs. That input receives the output's relevance.
    Route(Arc<dyn Route<T>>),
    /// The same values in another shape of the same size.
    Reshape(Shape),
    /// The sum of the values that the layer reads, which all have the same shape. Relevance is
    /// shared by the rule [`Norm`](crate::Norm) unless a [`Composite`](crate::Composite) sets
    /// another rule.
    Sum,
    /// The values that the layer reads, concatenated along their first axis. Each value receives
    /// its part of the relevance.
    Concat,
    /// Rows of a table, chosen by given whole numbers. They are constants of the sample, unless
    /// they are explained themselves (see [`Graph::explain_from`](crate::Graph::explain_from)).
    Lookup(Arc<Lookup<T>>),
    /// Several branches that start from the same values, and how their outputs are combined.
    Branches(Vec<Branch<T>>, Joined),
    /// A softmax over this axis of the values. It is allowed only at the end of a model, and the
    /// logits are explained.
    Softmax(usize),
}

impl<T: Scalar> Operator<T> {
    /// Creates an [`Operator::Linear`].
    pub fn linear(map: impl LinearMap<T> + 'static) -> Self {
        Self::Linear(Arc::new(map))
    }

    /// Creates an [`Operator::Elementwise`].
    pub fn elementwise(function: impl Elementwise<T> + 'static) -> Self {
        Self::Elementwise(Arc::new(function))
    }

    /// Creates an [`Operator::PerChannel`].
    pub fn per_channel(functions: impl IntoIterator<Item = impl Elementwise<T> + 'static>) -> Self {
        Self::PerChannel(
            functions
                .into_iter()
                .map(|function| Arc::new(function) as Arc<dyn Elementwise<T>>)
                .collect(),
        )
    }
}

/// How the outputs of branches are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Joined {
    /// They are added. The relevance of the sum is shared by the rule [`Norm`](crate::Norm).
    Summed,
    /// They are concatenated along the channels.
    Concatenated,
}

/// A layer in which each output is one of the inputs.
pub trait Route<T: Scalar>: Debug + Send + Sync {
    /// The shape of the outputs.
    fn output_shape(&self) -> Shape;

    /// Fills `from` with the index of the input that each output is taken from, for the values of
    /// one sample.
    fn route(&self, values: &[T], from: &mut [usize]);

    /// Whether the route is the same for all samples.
    fn is_fixed(&self) -> bool {
        false
    }
}
