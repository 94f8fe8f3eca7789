//! Canonization: merging normalizations into neighboring linear layers.
//!
//! At inference, a batch normalization is y = a z + b for each channel. After a linear map it can
//! become part of that map: a (W z + c) + b = (a W) z + (a c + b). The network still computes the
//! same function, but most rules then explain it differently, and the published rules are designed
//! for the merged network (Guillemot et al. 2020: Breaking Batch Normalization for better
//! explainability of Deep Neural Networks through Layer-wise Relevance Propagation).

use std::fmt;

use crate::error::Error;
use crate::layer::{Branch, Named};
use crate::scalar::Scalar;
use crate::sequential::{Bound, Chain, Sequential, SequentialBuilder};

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
    /// Merges batch normalizations into neighboring linear layers, and returns the new model with a
    /// list of what was merged.
    ///
    /// A normalization is merged into the linear layer before it or, if there is none, after it.
    /// Dropouts, identities and reshapes between the two do not matter. A normalization remains if
    /// neither neighbor is linear. It also remains if the only linear neighbor is a padded
    /// convolution after it, because the zeros in the padding are not shifted.
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
        let mut merged = Vec::new();
        let branch =
            merge(self.branch(), self.chain(), "", &|place| place.to_string(), &mut merged);
        Ok((SequentialBuilder::from(branch).input(self.input_shape()).build()?, merged))
    }
}

/// Merges the normalizations of a branch where possible. All layers keep their names.
///
/// `chain` is the bound form of the branch, `path` is the name of the layer to which the branch
/// belongs, and `unnamed` returns the name of a layer at a given place that has no name of its own.
fn merge<T: Scalar>(
    branch: &Branch<T>,
    chain: &Chain<T>,
    path: &str,
    unnamed: &dyn Fn(usize) -> String,
    merged: &mut Vec<Merged>,
) -> Branch<T> {
    let full = |own: &str| if path.is_empty() { own.to_owned() } else { format!("{path}.{own}") };
    let mut layers: Vec<Named<T>> = Vec::with_capacity(branch.layers.len());
    // The place of the last layer that changes values. Dropouts and reshapes between a
    // normalization and its neighbor are skipped.
    let mut last: Option<usize> = None;
    for (place, (Named { name, layer }, node)) in branch.layers.iter().zip(&chain.nodes).enumerate()
    {
        let own = name.clone().unwrap_or_else(|| unnamed(place));
        let chains: &[Chain<T>] =
            if let Bound::Branches { branches, .. } = &node.bound { branches } else { &[] };
        // `with_branches` visits the branches in the order in which they were bound.
        let mut numbered = chains.iter().enumerate();
        let inner = layer.with_branches(&mut |branch| match numbered.next() {
            Some((number, chain)) => {
                merge(branch, chain, &full(&own), &|place| format!("{number}.{place}"), merged)
            }
            None => branch.clone(),
        });
        let layer = inner.unwrap_or_else(|| layer.clone());
        // A normalization after a layer that can absorb it.
        if let (Some((a, b)), Some(before)) =
            (layer.per_channel(), last.map(|last| &mut layers[last]))
            && let Some(scaled) = before.layer.scaled(a, b)
        {
            merged.push(Merged {
                norm: full(&own),
                into: full(before.name.as_deref().unwrap_or_default()),
            });
            before.layer = scaled;
            continue;
        }
        // A layer after a normalization that it can absorb.
        let scaled = last
            .and_then(|last| layers[last].layer.per_channel())
            .and_then(|(a, b)| layer.of_scaled(a, b));
        if let (Some(scaled), Some(before)) = (scaled, last) {
            let norm = layers.remove(before).name.unwrap_or_default();
            merged.push(Merged { norm: full(&norm), into: full(&own) });
            layers.push(Named { name: Some(own), layer: scaled });
            last = Some(layers.len() - 1);
            continue;
        }
        if !matches!(node.bound, Bound::Reshape) {
            last = Some(layers.len());
        }
        layers.push(Named { name: Some(own), layer });
    }
    Branch { layers }
}
