//! The cancellation in each linear layer: κ_j = Σ_i |numerator_ij| / |S(total_j)| for each output j
//! that receives relevance.

use nalgebra::DMatrix;

use super::Kept;
use super::factor::{Factor, Kind, Linked, Network, Values};
use super::ruled::{self, Division, PreparedGroup, Ruled, Weights};
use crate::buffer::Buffers;
use crate::layer::{LinearMap, WeightFn};
use crate::linalg;
use crate::scalar::Scalar;

/// |V| for each V that is summed to a total.
#[derive(Debug)]
pub(crate) struct Magnitudes<T: Scalar> {
    /// For each factor, |W| of the layer's own weights and then |V| of the rule's other maps.
    factors: Vec<Vec<Option<Box<dyn LinearMap<T>>>>>,
}

/// For each linear layer, the outputs that receive relevance from a target, with their κ.
pub(crate) type Kappas<T> = Vec<Vec<(usize, T)>>;

/// The groups of numerators that are divided by a total.
fn groups<T: Scalar>(ruled: &Ruled<T>) -> impl Iterator<Item = &PreparedGroup<T>> {
    ruled.groups.iter().filter(|group| matches!(group.divisor, Division::Total(_)))
}

fn place(weights: Weights) -> usize {
    match weights {
        Weights::Own => 0,
        Weights::Other(index) => index + 1,
    }
}

impl<T: Scalar> Magnitudes<T> {
    pub fn of(network: &Network<T>) -> Self {
        let of_factor = |kind: &Kind<T>| {
            let Kind::Ruled(ruled) = kind else { return Vec::new() };
            let mut maps: Vec<_> = (0..=ruled.maps.len()).map(|_| None).collect();
            for term in groups(ruled).flat_map(|group| &ruled.terms[group.terms.clone()]) {
                let magnitude = || ruled.map(term.v).map_weights(&WeightFn::new(T::abs));
                maps[place(term.v)].get_or_insert_with(magnitude);
            }
            maps
        };
        let factors = network.factors.iter().map(|prepared| of_factor(&prepared.kind)).collect();
        Self { factors }
    }

    /// The κ of a layer's outputs, 0 where no shares are defined.
    fn of_layer(&self, number: usize, linked: ruled::Linked<'_, T>) -> Vec<T> {
        let ruled = linked.ruled;
        let (mut kappas, mut product) =
            (vec![T::zero(); ruled.outputs], vec![T::zero(); ruled.outputs]);
        for group in groups(ruled) {
            let mut sizes = vec![T::zero(); ruled.outputs];
            for term in &ruled.terms[group.terms.clone()] {
                let Some(magnitude) = &self.factors[number][place(term.v)] else { continue };
                let u = linked.u_of(term, 0).map_or_else(
                    || vec![T::one(); ruled.inputs],
                    |u| u.iter().map(|u| u.abs()).collect(),
                );
                magnitude.apply(&u, &mut product);
                linalg::add_scaled(T::one(), &product, &mut sizes);
            }
            // A total of other parts has its own bias.
            if let Some(bias) = group.bias().filter(|_| group.total_of.is_none()) {
                sizes.iter_mut().zip(bias.iter()).for_each(|(size, b)| *size += b.abs());
            }
            let t = &linked.shares.t[group.t * ruled.outputs..][..ruled.outputs];
            for ((kappa, size), &t) in kappas.iter_mut().zip(sizes).zip(t) {
                if t != T::zero() {
                    // t = c / S(total).
                    *kappa = kappa.max(size * (t / group.coefficient).abs());
                }
            }
        }
        kappas
    }

    /// The κ of each linear layer, for the factors that were kept in the pass of one sample.
    /// `of_outputs` holds the shares of the outputs in the targets, outputs x targets. Cost: that
    /// of reverse accumulation, and one product for each term.
    pub fn kappas(&self, kept: &Kept<T>, of_outputs: &DMatrix<T>) -> Kappas<T> {
        let mut back = Back {
            magnitudes: self,
            network: &kept.network,
            buffers: Buffers::default(),
            kappas: vec![None; self.factors.len()],
            targets: of_outputs.ncols(),
        };
        let mut x = of_outputs.as_slice().to_vec();
        for factor in kept.factors.iter().rev() {
            x = back.through(factor, &x);
            let inputs = x.len() / back.targets;
            x.chunks_exact_mut(inputs).for_each(rescale);
        }
        back.kappas.into_iter().flatten().collect()
    }
}

/// Keeps a target's relevances within the number type's range. Only their proportions matter here.
fn rescale<T: Scalar>(column: &mut [T]) {
    let largest = linalg::max_abs(column);
    if largest > T::zero() && largest.is_finite() {
        for v in column {
            *v /= largest;
        }
    }
}

/// The way of the relevance back through the factors.
struct Back<'a, T: Scalar> {
    magnitudes: &'a Magnitudes<T>,
    network: &'a Network<T>,
    buffers: Buffers<T>,
    /// An entry for each factor; `None` unless it is the factor of a linear layer.
    kappas: Vec<Option<Vec<(usize, T)>>>,
    targets: usize,
}

impl<T: Scalar> Back<'_, T> {
    /// The relevance of a factor's inputs, from the relevance `x` of its outputs. Both have one
    /// column for each target.
    fn through(&mut self, factor: &Factor<T>, x: &[T]) -> Vec<T> {
        let prepared = &self.network.factors[factor.number];
        let (inputs, outputs) = (prepared.inputs, prepared.outputs);
        let mut of_inputs = vec![T::zero(); inputs * self.targets];
        if let Values::Branches(branches) = &factor.values {
            // The rows of x that belong to the outputs of a branch begin at `first`.
            let mut first = 0;
            for branch in branches {
                let size = branch.last().map_or(inputs, |f| self.network.factors[f.number].outputs);
                let own = |column: &[T]| column[first..first + size].to_vec();
                let own: Vec<T> = x.chunks_exact(outputs).flat_map(own).collect();
                let own = branch.iter().rev().fold(own, |x, factor| self.through(factor, &x));
                linalg::add_scaled(T::one(), &own, &mut of_inputs);
                first += size;
            }
            return of_inputs;
        }
        if let (Kind::Ruled(ruled), Values::Ruled(shares)) = (&prepared.kind, &factor.values) {
            let kappas = self.magnitudes.of_layer(factor.number, ruled::Linked { shares, ruled });
            let receives = |j: usize| x.iter().skip(j).step_by(outputs).any(|x| *x != T::zero());
            let kappas = kappas.into_iter().enumerate();
            self.kappas[factor.number] =
                Some(kappas.filter(|&(j, kappa)| kappa != T::zero() && receives(j)).collect());
        }
        let linked = Linked { factor, network: self.network };
        linked.apply(x, &mut of_inputs, 0, &mut |_, _, _| {}, &mut self.buffers);
        of_inputs
    }
}
