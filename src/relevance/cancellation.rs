//! The cancellation in each linear layer: κ_j = Σ_i |numerator_ij| / |S(total_j)| for each output j
//! that receives relevance.

use nalgebra::DMatrix;

use super::Overflow;
use super::network::Network;
use super::shares::TermShares;
use super::sharing::Form;
use super::tape::{Tape, Walk};
use super::terms::{Division, Quotient, Terms, Weights};
use crate::buffer::{Buffers, Flow};
use crate::layer::{LinearMap, WeightFn};
use crate::linalg;
use crate::scalar::Scalar;

/// |V| for each V that is summed to a total.
#[derive(Debug)]
pub(crate) struct Magnitudes<T: Scalar> {
    /// For each node, |W| of the layer's own weights and then |V| of the rule's other maps.
    nodes: Vec<Vec<Option<Box<dyn LinearMap<T>>>>>,
}

/// The κ of the outputs of one layer that receive relevance.
pub(crate) struct Cancellation<T> {
    pub kappas: Vec<(usize, T)>,
}

/// The groups of numerators that are divided by a total.
fn groups<T: Scalar>(terms: &Terms<T>) -> impl Iterator<Item = &Quotient<T>> {
    terms.groups.iter().filter(|group| matches!(group.divisor, Division::Total(_)))
}

fn place(weights: Weights) -> usize {
    match weights {
        Weights::Own => 0,
        Weights::Other(index) => index + 1,
    }
}

impl<T: Scalar> Magnitudes<T> {
    pub fn of(network: &Network<T>) -> Self {
        let of_node = |form: &Form<T>| {
            let Form::Terms(terms) = form else { return Vec::new() };
            let mut maps: Vec<_> = (0..=terms.maps.len()).map(|_| None).collect();
            for term in groups(terms).flat_map(|group| &terms.list[group.terms.clone()]) {
                let magnitude = || terms.map(term.v).map_weights(&WeightFn::new(T::abs));
                maps[place(term.v)].get_or_insert_with(magnitude);
            }
            maps
        };
        let nodes = (0..network.graph.node_list().len())
            .map(|node| of_node(&network.sharing(node).form))
            .collect();
        Self { nodes }
    }

    /// The κ of a node's outputs, 0 where no shares are defined.
    fn of_node(&self, node: usize, shares: &TermShares<T>) -> Vec<T> {
        let terms = shares.terms();
        let (mut kappas, mut product) =
            (vec![T::zero(); terms.outputs], vec![T::zero(); terms.outputs]);
        for group in groups(terms) {
            let mut sizes = vec![T::zero(); terms.outputs];
            for term in &terms.list[group.terms.clone()] {
                let Some(magnitude) = &self.nodes[node][place(term.v)] else { continue };
                let u = shares.u_of(term, 0).map_or_else(
                    || vec![T::one(); terms.inputs],
                    |u| u.iter().map(|u| u.abs()).collect(),
                );
                magnitude.apply(&u, &mut product);
                linalg::add_scaled(T::one(), &product, &mut sizes);
            }
            // A total of other parts has its own bias.
            if let Some(bias) = group.bias().filter(|_| group.total_of.is_none()) {
                sizes.iter_mut().zip(bias.iter()).for_each(|(size, b)| *size += b.abs());
            }
            let t = &shares.t[group.t * terms.outputs..][..terms.outputs];
            for ((kappa, size), &t) in kappas.iter_mut().zip(sizes).zip(t) {
                if t != T::zero() {
                    // t = c / S(total).
                    *kappa = kappa.max(size * (t / group.coefficient).abs());
                }
            }
        }
        kappas
    }

    /// The cancellation in each linear layer, for the tape of one sample's pass. `of_outputs` holds
    /// the shares of the outputs in the targets, outputs x targets. Cost: that of reverse
    /// accumulation, and one product for each term.
    pub fn cancellation(
        &self,
        network: &Network<T>,
        tape: &Tape<T>,
        of_outputs: &DMatrix<T>,
    ) -> Result<Vec<Cancellation<T>>, Overflow> {
        let mut buffers = Buffers::default();
        let mut flows = network.empty_flows();
        flows[network.graph.output_value()] = Some(Flow::of_matrix(of_outputs, &mut buffers));
        let walk = Walk { network, tape };
        walk.back(&network.nodes, &mut flows, true, &mut |_, _, _| {}, &mut buffers)?;
        Ok(network
            .nodes
            .iter()
            .filter_map(|&node| {
                let shares = tape.of(node).terms()?;
                let outputs = network.sharing(node).outputs;
                let flow = flows[network.graph.value_of(node)].as_ref();
                let receives = |j: usize| {
                    flow.is_some_and(|flow| {
                        flow.values.iter().skip(j).step_by(outputs).any(|v| *v != T::zero())
                    })
                };
                let kappas = self.of_node(node, shares).into_iter().enumerate();
                let kappas = kappas.filter(|&(j, kappa)| kappa != T::zero() && receives(j));
                Some(Cancellation { kappas: kappas.collect() })
            })
            .collect())
    }
}
