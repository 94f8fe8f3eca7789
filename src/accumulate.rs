//! The accumulation: S = A¹ A² … Aᴸ, made while the forward pass runs.
//!
//! Each layer that does more than pass relevance on gives one [`Factor`]: a linear layer its share
//! matrix A as a few terms diag(u) V diag(t). A factor is only ever applied, or formed where the
//! chain needs a block to begin with. The machine here is a shift-reduce parser of the product: as
//! the pass leaves a layer its factor is *shifted* on a stack, and the [`Plan`] says which
//! neighbors to *reduce* to their product. What is left at the end is S.
//!
//! A product of neighboring factors, from layer a to layer b, is a block, kept in one of two
//! layouts:
//!
//! - a [`Prefix`]: for each input of a, its shares in the outputs of b, one after another. It grows
//!   to the right: another factor is multiplied in as its layer is left, by Vᵀ X.
//! - a [`Suffix`]: for each output of b, the shares of the inputs of a. It grows to the left, by V
//!   S.
//!
//! Sinks (what goes to biases, stabilizers and so on) are rows of A below the inputs'. In a prefix
//! they ride along as more inputs; in a suffix they are final the moment they meet it.

mod block;
mod factor;
mod kept;
mod plan;
mod range;
mod rounding;
mod ruled;

use block::Prefix;
use factor::{Factor, Linked, Open, Values};
use plan::Step;

use crate::buffer::{Buffer, Buffers};
use crate::error::Error;
use crate::scalar::Scalar;
use crate::sequential::{Leaving, Sequential, Visitor};

pub(crate) use block::Suffix;
pub(crate) use factor::Network;
pub(crate) use kept::Kept;
pub use plan::Plan;
pub(crate) use plan::{End, Link};
pub(crate) use range::OutOfRange;
pub(crate) use rounding::{Magnitudes, Rounded, Rounding};

/// The order in which the share matrices are multiplied. The shares are the same up to rounding;
/// the cost is not.
///
/// For layer sizes n_0, …, n_L and k targets (all n_L outputs, unless told otherwise), counted in
/// multiply-adds:
///
/// | order | cost | memory | best where |
/// |---|---|---|---|
/// | `Forward` | n_0 (n_1 n_2 + … + n_(L-1) n_L) | one n_0 x n_l block | the network widens; few inputs |
/// | `Reverse` | k (n_0 n_1 + … + n_(L-2) n_(L-1)) | the activations and one n_l x k block | the network narrows; few targets |
/// | `Optimal` | the least of all bracketings | at most a block on each side of a bottleneck | always |
///
/// [`Explainer::plan`](crate::Explainer::plan) shows what the orders cost for a model.
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
    /// Reduce after every shift: streaming, and no activations are kept.
    Forward,
    /// Shift all, then reduce from the outputs.
    Reverse,
}

/// Why relevance left the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// It went to a bias.
    Bias,
    /// It went to the stabilizer of a total.
    Stabilizer,
    /// The rule's shares do not sum to 1, and this is what is missing: the rules
    /// [`Relative`](crate::Relative), [`AbsLrp`](crate::AbsLrp) and [`Sign`](crate::Sign).
    Rest,
    /// The total was exactly 0 and there was no stabilizer: there was nothing to share it by.
    Dead,
    /// A rule shares by what is positive, or negative, and there was nothing of that sign.
    Empty,
}

/// Relevances that have outgrown the number type at a layer.
pub(crate) struct Overflow {
    pub layer: usize,
}

impl Overflow {
    pub fn error<T: Scalar>(&self, model: &Sequential<T>) -> Error {
        Error::Overflow { layer: self.layer, kind: model.kind(self.layer).to_owned() }
    }
}

/// What can lie on the stack.
#[derive(Debug)]
enum Item<T> {
    Factor(Factor<T>),
    Prefix(Prefix<T>),
    Suffix(Suffix<T>),
    /// The outputs to explain, as many for each sample.
    Selection(Buffer<usize>),
}

/// The memory of the stack.
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
    /// The selected outputs, as many for each sample.
    Selected(Buffer<usize>),
    /// The relevance to begin with: for each sample, outputs x so many targets.
    Weighted(Buffer<T>, usize),
}

/// The stack, and the plan that says what to do with it.
pub(crate) struct Machine<'a, T: Scalar> {
    model: &'a Sequential<T>,
    network: &'a Network<T>,
    steps: std::slice::Iter<'a, Step>,
    stack: &'a mut Vec<Item<T>>,
    open: &'a mut Open<T>,
    /// Samples that are outside the range that a rule supposes.
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
        // The first shift is what the machine waits for.
        steps.next();
        Self { model, network, steps, stack: items, open, noted }
    }

    /// What was noted of the samples.
    pub fn take_noted(&mut self) -> Vec<OutOfRange> {
        std::mem::take(self.noted)
    }

    /// Takes the factor of the layer that the pass has just left.
    fn shift(&mut self, factor: Factor<T>, buffers: &mut Buffers<T>) -> Result<(), Error> {
        if let Some(factor) = self.open.place(factor) {
            self.stack.push(Item::Factor(factor));
            self.reduce(buffers).map_err(|at| at.error(self.model))?;
        }
        Ok(())
    }

    /// Takes the targets and gives what is left: the shares of all samples.
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
        let whole = self.stack.pop().ok_or(Overflow { layer: 0 })?;
        self.suffix(whole, buffers)
    }

    /// Does the steps up to the next shift.
    fn reduce(&mut self, buffers: &mut Buffers<T>) -> Result<(), Overflow> {
        while let Some(step) = self.steps.next().filter(|step| **step != Step::Shift) {
            let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) else {
                return Ok(());
            };
            let product = match (step, left, right) {
                (Step::Append, left, Item::Factor(right)) => {
                    let product =
                        self.prefix(left, buffers)?.times(self.linked(&right), buffers)?;
                    right.give_back(buffers);
                    Item::Prefix(product)
                }
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
