//! Estimates: what is known about a value of the graph without a sample.

use super::Node;
use super::operation::LinearNode;
use crate::layer::{Family, Functions, WeightFn};
use crate::scalar::Scalar;

/// What is known about a value of the graph without a sample.
#[derive(Debug, Clone)]
pub(crate) struct Estimate<T> {
    /// The estimated mean square of each number, for inputs with a mean square of 1.
    pub squares: Vec<T>,
    /// The numbers that the functions since the last linear layer assign to the arguments -1 and
    /// -2, as examples of arguments below zero. `None` if they are unknown, as for the model's
    /// inputs.
    pub below_zero: Option<[T; 2]>,
    /// The name of the dense layer that computes the value, if one does.
    pub dense: Option<String>,
}

impl<T: Scalar> Estimate<T> {
    /// That of an input with this many numbers.
    pub fn of_input(size: usize) -> Self {
        Self { squares: vec![T::one(); size], below_zero: None, dense: None }
    }

    /// Several values as one.
    pub fn joined(parts: &[&Self]) -> Self {
        let below_zero = parts.first().and_then(|first| first.below_zero);
        let alike = parts.iter().all(|part| part.below_zero == below_zero);
        let dense = if let [only] = parts { only.dense.clone() } else { None };
        Self {
            squares: parts.iter().flat_map(|part| &part.squares).copied().collect(),
            below_zero: below_zero.filter(|_| alike),
            dense,
        }
    }

    /// After functions of one value.
    pub(super) fn after_functions(mut self, functions: &Functions<T>) -> Self {
        // If the functions of the channels disagree, nothing is known.
        let mut below =
            functions.iter().map(|f| self.below_zero.map(|values| values.map(|v| f.value(v))));
        let first = below.next().flatten();
        self.below_zero = if below.all(|other| other == first) { first } else { None };
        // Averages over a value of typical size and its negative.
        for (at, square) in self.squares.iter_mut().enumerate() {
            let function = functions.at(at);
            let (a, b) = (function.value(square.sqrt()), function.value(-square.sqrt()));
            *square = (a * a + b * b) * T::from_f64(0.5);
        }
        Self { dense: None, ..self }
    }

    /// After a linear layer.
    pub(super) fn after_linear(self, node: &Node<T>, linear: &LinearNode<T>) -> Self {
        let (mut squares, bias) = (linear.mean_squares(&self.squares), linear.map.bias());
        if let Some(bias) = bias {
            squares.iter_mut().zip(bias.iter()).for_each(|(square, b)| *square += b * b);
        }
        // After a linear layer, values can be below zero again. After an average without a bias,
        // units that were set to 0 still cannot: their average is 0 again.
        let below_zero = if linear.family.is_learned() || bias.is_some() {
            // Any two values do. An activation that maps both to 0, such as a ReLU, makes dead
            // units.
            Some([-T::one(), -T::one() - T::one()])
        } else {
            self.below_zero
        };
        // A normalization does not separate two dense layers.
        let dense =
            if node.is_norm() { self.dense } else { node.is_dense().then(|| node.name.clone()) };
        Self { squares, below_zero, dense }
    }
}

impl<T: Scalar> LinearNode<T> {
    /// The mean squares of W z for independent z with the given mean squares.
    pub fn mean_squares(&self, squares: &[T]) -> Vec<T> {
        let mut sums = vec![T::zero(); self.map.outputs()];
        self.map.map_weights(&WeightFn::new(|w| w * w)).apply(squares, &mut sums);
        sums
    }
}

impl<T: Scalar> Node<T> {
    pub fn is_norm(&self) -> bool {
        self.operation.linear().is_some_and(|linear| linear.family == Family::Normalization)
    }

    pub fn is_dense(&self) -> bool {
        self.operation.linear().is_some_and(|linear| linear.family == Family::Dense)
    }
}
