//! The accumulation: S = A¹ A² … Aᴸ, computed during the forward pass.
//!
//! Each layer that does not just pass relevance through unchanged has a [`Factor`]. The factor of a
//! linear layer is its share matrix A, kept as a few terms diag(u) V diag(t). A factor is normally
//! applied to a block; it is formed as a matrix only if the chain needs a block to start from. The
//! [`Machine`] works like a shift-reduce parser: when the pass leaves a layer, the machine *shifts*
//! the layer's factor onto a stack, and the [`Plan`] tells it which neighbors to *reduce* to their
//! product. At the end, only S is left on the stack.
//!
//! A product of neighboring factors, from layer a to layer b, is a block, kept in one of two
//! layouts:
//!
//! - A [`Prefix`] holds, for each input of a, its shares in the outputs of b. It grows to the
//!   right: when the pass leaves the next layer, that layer's factor is multiplied in by products
//!   Vᵀ X.
//! - A [`Suffix`] holds, for each output of b, the shares of the inputs of a. It grows to the left,
//!   by products V S.
//!
//! Sinks (the parts absorbed by biases, stabilizers and so on) are additional rows of A below those
//! of the inputs. A prefix carries them along like additional inputs. In a suffix, they are final
//! as soon as they are added.

mod block;
mod cancellation;
mod factor;
mod machine;
mod network;
mod plan;
mod range;
mod shares;
mod sharing;
mod tape;
mod terms;
mod totals;

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::graph::Graph;
use crate::scalar::Scalar;

pub(crate) use block::Suffix;
use block::normalize;
pub(crate) use cancellation::{Cancellation, Magnitudes};
pub(crate) use factor::Factor;
pub(crate) use machine::{Machine, Stack};
pub(crate) use network::{Network, RuleAt};
pub(crate) use plan::End;
pub use plan::Plan;
pub(crate) use range::OutOfRange;
pub(crate) use tape::{Recorder, Tape, Walk};

/// The order in which the share matrices are multiplied.
///
/// All orders give the same shares up to rounding, but at different costs.
///
/// The costs in multiply-adds, for layer sizes n_0, …, n_L and k targets (by default, all n_L
/// outputs):
///
/// | order | cost | memory | best if |
/// |---|---|---|---|
/// | `Forward` | n_0 (n_1 n_2 + … + n_(L-1) n_L) | one n_0 x n_l block | the network widens, or has few inputs |
/// | `Reverse` | k (n_0 n_1 + … + n_(L-2) n_(L-1)) | the activations and one n_l x k block | the network narrows, or there are few targets |
/// | `Optimal` | that of the cheapest bracketing | at most a block on each side of a bottleneck | always |
///
/// [`Explainer::plan`](crate::Explainer::plan) shows the cost of each order for a model.
///
/// ```
/// use relprop::{Accumulation, Linear, Relu, Rule, Sequential};
/// use relprop::nalgebra::{self, dmatrix, dvector};
///
/// let model = Sequential::builder()
///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], None)?)
///     .layer(Relu)
///     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
///     .build()?;
/// let x = dvector![3.0, 1.0];
/// let forward = model.explainer(Rule::Epsilon)?.accumulation(Accumulation::Forward).explain(&x)?;
/// let reverse = model.explainer(Rule::Epsilon)?.accumulation(Accumulation::Reverse).explain(&x)?;
/// assert!((forward.shares() - reverse.shares()).amax() < 1e-12);
/// # Ok::<(), relprop::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
pub enum Accumulation {
    /// The cheapest bracketing of the chain.
    #[default]
    Optimal,
    /// Multiply in each share matrix as soon as it is known. No activations are kept.
    Forward,
    /// Collect all share matrices, then multiply from the outputs back to the inputs.
    Reverse,
}

/// Why relevance is absorbed by a sink and does not reach the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// Relevance absorbed by a bias.
    Bias,
    /// Relevance absorbed by the stabilizer of a total.
    Stabilizer,
    /// The remainder of a rule whose shares do not sum to 1. Such rules are
    /// [`Relative`](crate::Relative), [`AbsLrp`](crate::AbsLrp) and [`Sign`](crate::Sign).
    Rest,
    /// The total is exactly 0 and there is no stabilizer, so no shares can be computed.
    Dead,
    /// The rule only assigns shares to contributions of one sign, and there are no contributions of
    /// that sign.
    Empty,
    /// Relevance of values that are constants of the sample: given inputs, constants of the model
    /// and what is computed from them.
    Constant,
}

/// The relevances at a layer exceed the range of the number type.
pub(crate) struct Overflow {
    pub layer: usize,
}

impl Overflow {
    pub fn error<T: Scalar>(&self, graph: &Graph<T>) -> Error {
        let (layer, name) = (self.layer, graph.layer_name(self.layer).to_owned());
        Error::Overflow { layer, name, kind: graph.kind(layer).to_owned() }
    }
}

/// Receives the values of sinks in a product A X: the sample, the index of the first sink, and one
/// value for each sink and column.
type Drain<'a, T> = &'a mut dyn FnMut(usize, usize, &[T]);

/// The relevance to start from, once the outputs are known.
pub(crate) enum Seed<T> {
    /// That of every output.
    All,
    /// That of some outputs, the same number for each sample.
    Outputs(Buffer<usize>),
    /// This relevance (outputs x targets for each sample), and the number of targets.
    Weighted(Buffer<T>, usize),
}

/// The listed unit vectors.
fn units<T: Scalar>(listed: &[usize], size: usize, buffers: &mut Buffers<T>) -> Buffer<T> {
    let mut units = buffers.take_columns(size, listed.len());
    units.fill(T::zero());
    units.chunks_exact_mut(size).zip(listed).for_each(|(unit, &at)| unit[at] = T::one());
    units
}
