//! The accumulation: S = A¹ A² … Aᴸ, made while the forward pass runs.
//!
//! Each linear layer gives one [`Factor`](factor::Factor), its share matrix A as a few terms diag(u) V diag(t). A factor is
//! only ever applied; A itself is not formed. The machine here is a shift-reduce parser of the product: as the pass leaves
//! a layer its factor is *shifted* on a stack, and the plan says which neighbours to *reduce* to their product. What is
//! left at the end is S.
//!
//! A product of neighbouring factors, from layer a to layer b, is a block, kept in one of two layouts:
//!
//! - a [`Prefix`]: for each input of a, its shares in the outputs of b, one after another. It grows to the right: another
//!   factor is multiplied in as its layer is left, by Vᵀ X.
//! - a [`Suffix`]: for each output of b, the shares of the inputs of a. It grows to the left, by V S.
//!
//! Sinks (what goes to biases, stabilisers and so on) are rows of A below the inputs'. In a prefix they ride along as more
//! inputs; in a suffix they are final the moment they meet it.

mod block;
mod factor;

use block::{Prefix, Suffix};

use crate::scalar::Scalar;

pub(crate) use factor::{Factor, Prepared};

/// The order in which the share matrices are multiplied. The shares are the same up to rounding; the cost is not.
///
/// For layer sizes n_0, …, n_L, all outputs, counted in multiply-adds:
///
/// | order | cost | memory | best where |
/// |---|---|---|---|
/// | `Forward` | n_0 (n_1 n_2 + … + n_(L-1) n_L) | one n_0 x n_l block | the network widens; few inputs |
/// | `Reverse` | n_L (n_0 n_1 + … + n_(L-2) n_(L-1)) | the activations and one n_l x n_L block | the network narrows; few outputs |
///
/// An explainer takes the one that costs less, unless it is told.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Accumulation {
    /// Reduce after every shift: streaming, and no activations are kept.
    Forward,
    /// Shift all, then reduce from the outputs.
    Reverse,
}

impl Accumulation {
    /// The order that costs less for linear maps of these (inputs, outputs); the streaming one of equals.
    pub(crate) fn cheaper(shapes: &[(usize, usize)]) -> Self {
        let (Some(&(first, _)), Some(&(_, last))) = (shapes.first(), shapes.last()) else { return Self::Forward };
        let cost =
            |width: usize, maps: &[(usize, usize)]| maps.iter().map(|&(n, m)| width as f64 * n as f64 * m as f64).sum::<f64>();
        // Each order gets the map at which it begins for nothing.
        let (forward, reverse) = (cost(first, &shapes[1..]), cost(last, &shapes[..shapes.len() - 1]));
        if forward <= reverse { Self::Forward } else { Self::Reverse }
    }
}

/// Why relevance left the inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// It went to a bias.
    Bias,
    /// It went to the stabiliser of a total.
    Stabilizer,
    /// The rule's shares do not sum to 1, and this is what is missing: the rule [`Relative`](crate::Relative).
    Rest,
    /// The total was exactly 0 and there was no stabiliser: there was nothing to share it by.
    Dead,
}

/// The name of a row of sinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub layer: usize,
    pub cause: Cause,
}

/// Relevances that have outgrown the number type at a layer.
pub(crate) struct Overflow {
    pub layer: usize,
}

/// The shares in one sample: what the accumulation is for.
pub(crate) struct Shares<T> {
    /// inputs x outputs, column-major.
    pub inputs: Vec<T>,
    /// The true shares are `inputs` · 2^exponent.
    pub exponent: i32,
    /// For each label, one share for each output.
    pub sinks: Vec<(Label, Vec<T>)>,
}

enum Item<'a, T: Scalar> {
    Factor(Factor<'a, T>),
    Prefix(Prefix<T>),
    Suffix(Suffix<T>),
}

/// The stack and what is on it.
pub(crate) struct Machine<'a, T: Scalar> {
    plan: Accumulation,
    stack: Vec<Item<'a, T>>,
}

impl<'a, T: Scalar> Machine<'a, T> {
    pub fn new(plan: Accumulation) -> Self {
        Self { plan, stack: Vec::new() }
    }

    /// Takes the factor of the layer that the pass has just left.
    pub fn shift(&mut self, factor: Factor<'a, T>) -> Result<(), Overflow> {
        self.stack.push(Item::Factor(factor));
        match self.plan {
            Accumulation::Forward => self.reduce(),
            Accumulation::Reverse => Ok(()),
        }
    }

    /// Replaces the two topmost items by their product.
    fn reduce(&mut self) -> Result<(), Overflow> {
        let (right, left) = (self.stack.pop(), self.stack.pop());
        self.stack.push(match (left, right) {
            (Some(left), Some(Item::Factor(factor))) => Item::Prefix(left.into_prefix()?.times(&factor)?),
            (Some(left), Some(right)) => Item::Suffix(left.before(right.into_suffix()?)?),
            (None, Some(only)) => only,
            (_, None) => return Ok(()),
        });
        Ok(())
    }

    /// Reduces what is left, from the outputs, and gives the shares of the whole model, one for each sample.
    pub fn finish(mut self) -> Result<Vec<Shares<T>>, Overflow> {
        let Some(last) = self.stack.pop() else { return Ok(Vec::new()) };
        let mut shares = last.into_suffix()?;
        while let Some(left) = self.stack.pop() {
            shares = left.before(shares)?;
        }
        shares.into_shares()
    }
}

impl<T: Scalar> Item<'_, T> {
    fn into_prefix(self) -> Result<Prefix<T>, Overflow> {
        match self {
            Item::Factor(factor) => Prefix::new(&factor),
            Item::Prefix(prefix) => Ok(prefix),
            Item::Suffix(suffix) => Ok(suffix.into()),
        }
    }

    /// The product with the block to the right.
    fn before(self, suffix: Suffix<T>) -> Result<Suffix<T>, Overflow> {
        match self {
            Item::Factor(factor) => suffix.after(&factor),
            Item::Prefix(prefix) => suffix.join(&prefix),
            Item::Suffix(left) => suffix.join(&left.into()),
        }
    }

    fn into_suffix(self) -> Result<Suffix<T>, Overflow> {
        match self {
            Item::Factor(factor) => Ok(Prefix::new(&factor)?.into()),
            Item::Prefix(prefix) => Ok(prefix.into()),
            Item::Suffix(suffix) => Ok(suffix),
        }
    }
}

#[cfg(test)]
mod tests {
    use nalgebra::DMatrix;

    use super::*;
    use crate::layer::{Linear, LinearMap};
    use crate::rule::{Rule, Site};
    use crate::sequential::Leaving;

    /// The shares of a chain of five factors, reduced `reductions[l]` times after shift l.
    fn shares(reductions: [usize; 5]) -> Vec<f64> {
        let sizes = [3, 5, 2, 7, 4, 2];
        let weight = |j: usize, i: usize| ((3 * i + 7 * j) % 11) as f64 / 5.0 - 0.9;
        let maps: Vec<_> = sizes.windows(2).map(|n| Linear::new(DMatrix::from_fn(n[1], n[0], weight), None).unwrap()).collect();
        let prepared: Vec<_> = maps
            .iter()
            .map(|map| {
                let (inputs, outputs) = (map.inputs(), map.outputs());
                Prepared::new(&Rule::Epsilon, &Site { layer: 0, kind: "", inputs, outputs, linear_index: 0, linear_count: 5 }, map)
                    .unwrap()
            })
            .collect();
        let mut machine = Machine::new(Accumulation::Reverse);
        let mut z = vec![1.0, -0.5, 2.0];
        for (layer, (map, prepared)) in maps.iter().zip(&prepared).enumerate() {
            let mut y = vec![0.0; map.outputs()];
            map.apply(&z, &mut y);
            assert!(machine.shift(prepared.factor(Leaving { layer, map, inputs: z }, &y)).is_ok());
            z = y;
            for _ in 0..reductions[layer] {
                assert!(machine.reduce().is_ok());
            }
        }
        let shares = machine.finish().ok().unwrap().pop().unwrap();
        assert_eq!(shares.sinks.len(), 5);
        shares.inputs.into_iter().chain(shares.sinks.into_iter().flat_map(|(_, row)| row)).collect()
    }

    #[test]
    fn any_bracketing_gives_the_same_shares() {
        let reverse = shares([0; 5]);
        for reductions in [[0, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 2, 1], [0, 0, 1, 1, 0], [0, 0, 0, 3, 1]] {
            let other = shares(reductions);
            let scale = reverse.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            for (a, b) in other.iter().zip(&reverse) {
                approx::assert_abs_diff_eq!(*a, *b, epsilon = 1e-12 * scale);
            }
        }
    }
}
