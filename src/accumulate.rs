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
mod kept;
mod plan;
mod range;
mod ruled;

use block::Prefix;
use factor::{Factor, Linked, Open, Values};
use plan::Step;

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Sequential, Visitor};

pub(crate) use block::Suffix;
pub(crate) use cancellation::{Kappas, Magnitudes};
pub(crate) use factor::Network;
pub(crate) use kept::Kept;
pub use plan::Plan;
pub(crate) use plan::{End, Link};
pub(crate) use range::OutOfRange;

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
}

/// The relevances at a layer exceed the range of the number type.
pub(crate) struct Overflow {
    pub layer: usize,
}

impl Overflow {
    pub fn error<T: Scalar>(&self, model: &Sequential<T>) -> Error {
        Error::Overflow { layer: self.layer, kind: model.kind(self.layer).to_owned() }
    }
}

/// An item on the stack.
#[derive(Debug)]
enum Item<T> {
    Factor(Factor<T>),
    Prefix(Prefix<T>),
    Suffix(Suffix<T>),
    /// The outputs to explain, the same number for each sample.
    Selection(Buffer<usize>),
}

/// The memory of a [`Machine`], which is reused between passes.
#[derive(Debug)]
pub(crate) struct Stack<T> {
    items: Vec<Item<T>>,
    open: Open<T>,
    noted: Vec<OutOfRange>,
}

impl<T> Default for Stack<T> {
    fn default() -> Self {
        Self { items: Vec::new(), open: Open::default(), noted: Vec::new() }
    }
}

/// The targets of an accumulation, once the outputs are known.
pub(crate) enum Targets<T> {
    All,
    /// The selected outputs, the same number for each sample.
    Selected(Buffer<usize>),
    /// The relevance to start from (outputs x targets for each sample), and the number of targets.
    Weighted(Buffer<T>, usize),
}

/// The stack, and the remaining steps of the plan.
pub(crate) struct Machine<'a, T: Scalar> {
    model: &'a Sequential<T>,
    network: &'a Network<T>,
    steps: std::slice::Iter<'a, Step>,
    stack: &'a mut Vec<Item<T>>,
    open: &'a mut Open<T>,
    /// Samples outside the range that a rule assumes.
    noted: &'a mut Vec<OutOfRange>,
}

impl<T: Scalar> Visitor<T> for Machine<'_, T> {
    fn leave(&mut self, buffers: &mut Buffers<T>, leaving: Leaving<'_, T>) -> Result<(), Error> {
        let factor = self.network.factor(leaving, buffers, self.noted)?;
        self.shift(factor, buffers)
    }

    fn route(
        &mut self,
        buffers: &mut Buffers<T>,
        number: usize,
        from: Buffer<usize>,
        samples: usize,
    ) -> Result<(), Error> {
        self.shift(Factor { number, samples, values: Values::Route(from) }, buffers)
    }

    fn open(&mut self) {
        self.open.open();
    }

    fn next(&mut self) {
        self.open.next();
    }

    fn close(
        &mut self,
        buffers: &mut Buffers<T>,
        number: usize,
        samples: usize,
    ) -> Result<(), Error> {
        let factor = self.open.close(number, samples);
        self.shift(factor, buffers)
    }
}

impl<'a, T: Scalar> Machine<'a, T> {
    pub fn new(
        model: &'a Sequential<T>,
        network: &'a Network<T>,
        plan: &'a Plan,
        stack: &'a mut Stack<T>,
    ) -> Self {
        let Stack { items, open, noted } = stack;
        items.clear();
        open.clear();
        noted.clear();
        let mut steps = plan.steps().iter();
        // The machine starts out waiting for a factor, so it skips the first shift.
        steps.next();
        Self { model, network, steps, stack: items, open, noted }
    }

    /// Takes the list of noted samples.
    pub fn take_noted(&mut self) -> Vec<OutOfRange> {
        std::mem::take(self.noted)
    }

    /// Shifts the factor of the layer that the pass has just left.
    fn shift(&mut self, factor: Factor<T>, buffers: &mut Buffers<T>) -> Result<(), Error> {
        if let Some(factor) = self.open.place(factor) {
            self.stack.push(Item::Factor(factor));
            self.reduce(buffers).map_err(|at| at.error(self.model))?;
        }
        Ok(())
    }

    /// Multiplies in the targets and returns the shares of all samples.
    pub fn finish(
        mut self,
        targets: Targets<T>,
        buffers: &mut Buffers<T>,
    ) -> Result<Suffix<T>, Overflow> {
        match targets {
            Targets::All => {}
            Targets::Selected(selected) => self.stack.push(Item::Selection(selected)),
            Targets::Weighted(values, targets) => {
                if let Some(last) = self.network.chain().last() {
                    let block =
                        Suffix::of_targets(last.layer, values, last.outputs, targets, buffers)?;
                    self.stack.push(Item::Suffix(block));
                }
            }
        }
        self.reduce(buffers)?;
        // A network has at least one factor, so one item is always left.
        let whole = self.stack.pop().ok_or(Overflow { layer: 0 })?;
        self.suffix(whole, buffers)
    }

    /// Performs the steps up to the next shift.
    fn reduce(&mut self, buffers: &mut Buffers<T>) -> Result<(), Overflow> {
        while let Some(step) = self.steps.next().filter(|step| **step != Step::Shift) {
            // The topmost item is the right one. A plan never reduces fewer than two items.
            let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) else {
                return Ok(());
            };
            let product = match (step, left, right) {
                // If both are factors, `prefix` forms the left one.
                (Step::Append, left, Item::Factor(right)) => {
                    let product =
                        self.prefix(left, buffers)?.times(self.linked(&right), buffers)?;
                    right.give_back(buffers);
                    Item::Prefix(product)
                }
                // Only the selected columns of the factor are formed.
                (Step::Select, Item::Factor(left), Item::Selection(selected)) => {
                    let product = Suffix::of_outputs(self.linked(&left), &selected, buffers)?;
                    left.give_back(buffers);
                    buffers.indices.give(selected);
                    Item::Suffix(product)
                }
                (_, left, Item::Selection(selected)) => {
                    let product = self.prefix(left, buffers)?.into_suffix(Some(&selected), buffers);
                    buffers.indices.give(selected);
                    Item::Suffix(product)
                }
                // If both are factors, `suffix` forms the right one.
                (_, Item::Factor(left), right) => {
                    let product =
                        self.suffix(right, buffers)?.after(self.linked(&left), buffers)?;
                    left.give_back(buffers);
                    Item::Suffix(product)
                }
                (_, left, right) => {
                    let (left, right) = (self.prefix(left, buffers)?, self.suffix(right, buffers)?);
                    Item::Suffix(right.join(left, buffers)?)
                }
            };
            self.stack.push(product);
        }
        Ok(())
    }

    fn linked<'b>(&'b self, factor: &'b Factor<T>) -> Linked<'b, T> {
        Linked { factor, network: self.network }
    }

    fn prefix(&self, item: Item<T>, buffers: &mut Buffers<T>) -> Result<Prefix<T>, Overflow> {
        match item {
            Item::Prefix(prefix) => Ok(prefix),
            Item::Suffix(suffix) => Ok(suffix.into_prefix(buffers)),
            Item::Factor(factor) => {
                let prefix = Prefix::new(self.linked(&factor), buffers)?;
                factor.give_back(buffers);
                Ok(prefix)
            }
            // No plan multiplies a selection by a factor on its right.
            Item::Selection(_) => Err(Overflow { layer: 0 }),
        }
    }

    fn suffix(&self, item: Item<T>, buffers: &mut Buffers<T>) -> Result<Suffix<T>, Overflow> {
        match item {
            Item::Suffix(suffix) => Ok(suffix),
            other => Ok(self.prefix(other, buffers)?.into_suffix(None, buffers)),
        }
    }
}
