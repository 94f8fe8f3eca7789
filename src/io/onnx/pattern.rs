//! Patterns of several nodes that become one layer, once all nodes are known: biases, scaled
//! activations, and probabilities at the end.

mod bias;
mod ending;
mod factor;
mod permutation;

use std::sync::Arc;

use super::ir::{Computation, Ir};
use super::operator::Schema;
use crate::error::Error;
use crate::layer::{Joined, Layer, Operator};
use crate::scalar::Scalar;
use crate::shape::Shape;
use permutation::is_permutation;

impl<T: Scalar> Ir<T> {
    /// Replaces the patterns of the nodes from the input to an output. If the output is a
    /// concatenation of probabilities, returns the layer that turns logits into probabilities,
    /// which comes after the concatenation.
    pub fn replace_patterns(&mut self, output: usize) -> Result<Option<Arc<dyn Layer<T>>>, Error> {
        self.merge_shifts(output)?;
        let last = self.without_moves(output);
        let link = if let Computation::Join(of, Joined::Concatenated) = &self[last].computation {
            let of = of.clone();
            self.replace_probabilities(last, &of)
        } else {
            self.replace_probability(last);
            self.permute_logits(output, last);
            None
        };
        self.merge_factors(output, last)?;
        Ok(link)
    }

    /// Whether a node's operator is supported only at the end of a model.
    pub fn ends(&self, node: usize) -> bool {
        Schema::<T>::find(&self[node].operator).is_some_and(|schema| schema.only_last)
    }

    /// The permutations after a softmax at the end that cannot be moved before it, because a
    /// reshape between the two changes the axes.
    pub fn stuck(&self, output: usize) -> Vec<usize> {
        let last = self.without_moves(output);
        if !self.ends(last) {
            return Vec::new();
        }
        let permutes = |node: &usize| match &self[*node].computation {
            Computation::Layers(_, layers) => is_permutation(layers),
            _ => false,
        };
        // `permute_logits` handles the permutations that directly follow the softmax. They are
        // skipped here.
        self.moves_after(last, output).into_iter().skip_while(permutes).filter(permutes).collect()
    }

    /// The input of a node that is a single activation, or `None` for other nodes.
    fn activated(&self, node: usize) -> Option<usize> {
        match &self[node].computation {
            Computation::Layers(of, layers) => {
                matches!(layers.as_slice(), [layer] if is_activation(layer)).then_some(*of)
            }
            _ => None,
        }
    }
}

fn is_activation<T: Scalar>(layer: &Arc<dyn Layer<T>>) -> bool {
    matches!(layer.operator(&[Shape::from(1)]), Ok(Operator::Elementwise(_)))
}
