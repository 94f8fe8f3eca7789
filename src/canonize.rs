//! Canonization: merging normalizations into neighboring linear layers.
//!
//! At inference, a batch normalization is y = a z + b for each channel. After a linear map it can
//! become part of that map: a (W z + c) + b = (a W) z + (a c + b). The network still computes the
//! same function, but most rules then explain it differently, and the published rules are designed
//! for the merged network (Guillemot et al. 2020: Breaking Batch Normalization for better
//! explainability of Deep Neural Networks through Layer-wise Relevance Propagation).

use std::fmt;
use std::sync::Arc;

use crate::error::Error;
use crate::graph::Graph;
use crate::layer::Layer;
use crate::scalar::Scalar;
use crate::sequential::Sequential;

/// A normalization that has been merged into a neighbor.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Merged {
    /// The normalization's name in the model.
    pub norm: String,
    /// The name of the layer that now includes it.
    pub into: String,
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} into {}", self.norm, self.into)
    }
}

impl<T: Scalar> Sequential<T> {
    /// Merges batch normalizations into neighboring linear layers, like [`Graph::canonize`].
    ///
    /// # Errors
    /// See [`Graph::canonize`].
    pub fn canonize(&self) -> Result<(Self, Vec<Merged>), Error> {
        let (graph, merged) = (**self).canonize()?;
        Ok((Self::of(graph), merged))
    }
}

impl<T: Scalar> Graph<T> {
    /// Merges batch normalizations into neighboring linear layers, and returns the new model with a
    /// list of what was merged.
    ///
    /// A normalization is merged into the linear layer before it or, if there is none, after it.
    /// Dropouts, identities and reshapes between the two do not matter. A normalization remains if
    /// neither neighbor is linear, or if another layer also reads the values between the two. It also
    /// remains if the only linear neighbor is a padded convolution after it, because the zeros in the
    /// padding are not shifted.
    /// [`check`](Self::check) reports the normalizations that remain.
    ///
    /// The other layers keep their names, and the outputs are the same up to rounding. Cost: a copy
    /// of the weights.
    ///
    /// # Errors
    /// The errors of [`SequentialBuilder::build`](crate::SequentialBuilder::build) that a layer
    /// from outside the crate can cause.
    ///
    /// # Example
    /// ```
    /// use relprop::{BatchNorm1d, Linear, Relu, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let norm = BatchNorm1d::new(vec![2.0], vec![1.0], vec![0.5], vec![4.0], 0.0)?;
    /// let linear = Linear::new(dmatrix![1.0, -1.0], None)?;
    /// let model = Sequential::builder().layer(linear).layer(norm).layer(Relu).build()?;
    /// let (merged, what) = model.canonize()?;
    /// assert_eq!(what[0].to_string(), "1 into 0");
    /// assert_eq!(merged.names(), ["0", "2"]);
    /// let x = dvector![3.0, 1.0];
    /// assert_eq!(merged.forward(&x)?, model.forward(&x)?);
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn canonize(&self) -> Result<(Self, Vec<Merged>), Error> {
        (T::compiled().canonize)(self)
    }

    pub(crate) fn canonize_inner(&self) -> Result<(Self, Vec<Merged>), Error> {
        let mut merging = Merging::of(self);
        for number in 0..self.node_list().len() {
            merging.merge(number);
        }
        let Merging { layers, merged, .. } = merging;
        Ok((self.rebuilt(&layers)?, merged))
    }
}

/// The layers so far, some of which have been merged into others.
struct Merging<'a, T: Scalar> {
    graph: &'a Graph<T>,
    /// The layer of each node, or `None` if it has been merged into another one.
    layers: Vec<Option<Arc<dyn Layer<T>>>>,
    /// How often each value is read. Outputs and explained values count as well.
    reads: Vec<usize>,
    merged: Vec<Merged>,
}

impl<'a, T: Scalar> Merging<'a, T> {
    fn of(graph: &'a Graph<T>) -> Self {
        let layers = graph.node_list().iter().map(|node| Some(node.layer.clone())).collect();
        Self { graph, layers, reads: graph.all_reads(), merged: Vec::new() }
    }

    /// Merges a node into the one before it, or the one before it into this node, if one of them is
    /// a normalization.
    fn merge(&mut self, number: usize) {
        let (Some(before), Some(layer)) = (self.before(number), self.layers[number].clone()) else {
            return;
        };
        let Some(other) = self.layers[before].clone() else { return };
        let name = |number: usize| self.graph.node(number).name.clone();
        // A normalization after a layer that can absorb it.
        if let Some((a, b)) = layer.per_channel()
            && let Some(scaled) = other.scaled(a, b)
        {
            self.merged.push(Merged { norm: name(number), into: name(before) });
            self.layers[before] = Some(scaled);
            self.layers[number] = None;
            return;
        }
        // A layer after a normalization that it can absorb.
        if let Some((a, b)) = other.per_channel()
            && let Some(scaled) = layer.of_scaled(a, b)
        {
            self.merged.push(Merged { norm: name(before), into: name(number) });
            self.layers[number] = Some(scaled);
            self.layers[before] = None;
        }
    }

    /// The last node before this one that changes values, if nothing else reads what is between the
    /// two. Dropouts, reshapes and merged normalizations are passed over.
    fn before(&self, number: usize) -> Option<usize> {
        let mut at = number;
        loop {
            let &[input] = self.graph.node(at).inputs.as_slice() else { return None };
            if self.reads[input] > 1 {
                return None;
            }
            at = self.graph.producer(input)?;
            let is_reshape = self.graph.node(at).operation.is_reshape();
            if self.layers[at].is_some() && !is_reshape {
                return Some(at);
            }
        }
    }
}
