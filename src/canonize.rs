//! Canonizing: normalizations merged into the linear layers beside them.
//!
//! A batch normalization is, at inference, y = a z + b for each channel, and after a linear map it
//! is part of that map: a (W z + c) + b = (a W) z + (a c + b). The network stays the same function;
//! its explanation by most rules does not, and the published rules are meant for the merged one
//! (Guillemot et al. 2020: Breaking Batch Normalization for better explainability of Deep Neural
//! Networks through Layer-wise Relevance Propagation).

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
    /// The name of the layer that does its work now.
    pub into: String,
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} into {}", self.norm, self.into)
    }
}

impl<T: Scalar> Sequential<T> {
    /// The same network with its batch normalizations merged into the linear layers before them,
    /// or, where there is none, after them; and what was merged. The other layers keep their names.
    ///
    /// Dropouts, identities and reshapes between the two make no difference. A normalization stays
    /// where neither neighbor is linear, or where the one after it is a padded convolution, as
    /// zeros in the padding are not shifted; [`check`](Self::check) then says so. The outputs are
    /// the same up to rounding. Cost: a copy of the weights.
    ///
    /// # Errors
    /// Those of [`SequentialBuilder::build`](crate::SequentialBuilder::build) that a layer from
    /// outside the crate can cause.
    ///
    /// # Example
    /// ```
    /// use relprop::{BatchNorm1d, Linear, Relu, Sequential};
    /// use relprop::nalgebra::{self, dmatrix, dvector};
    ///
    /// let norm = BatchNorm1d::new(vec![2.0], vec![1.0], vec![0.5], vec![4.0], 0.0)?;
    /// let model = Sequential::builder().layer(Linear::new(dmatrix![1.0, -1.0], None)?).layer(norm).layer(Relu).build()?;
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

/// The same layers with what can be merged of them merged, under the names they had. `chain` is
/// what the layers do in their place, `path` the name of the layer whose branch they are, `unnamed`
/// what a layer without a name is called there.
fn merge<T: Scalar>(
    branch: &Branch<T>,
    chain: &Chain<T>,
    path: &str,
    unnamed: &dyn Fn(usize) -> String,
    merged: &mut Vec<Merged>,
) -> Branch<T> {
    let full = |own: &str| if path.is_empty() { own.to_owned() } else { format!("{path}.{own}") };
    let mut layers: Vec<Named<T>> = Vec::with_capacity(branch.layers.len());
    // The place of the last layer that does more than leave values as they are: dropouts and
    // reshapes do not part a normalization from its neighbor.
    let mut last: Option<usize> = None;
    for (place, (Named { name, layer }, node)) in branch.layers.iter().zip(&chain.nodes).enumerate()
    {
        let own = name.clone().unwrap_or_else(|| unnamed(place));
        let chains: &[Chain<T>] =
            if let Bound::Branches { branches, .. } = &node.bound { branches } else { &[] };
        let mut numbered = chains.iter().enumerate();
        let inner = layer.with_branches(&mut |branch| match numbered.next() {
            Some((number, chain)) => {
                merge(branch, chain, &full(&own), &|place| format!("{number}.{place}"), merged)
            }
            None => branch.clone(),
        });
        let layer = inner.unwrap_or_else(|| layer.clone());
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
