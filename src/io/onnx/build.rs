//! The last stage: declaring the layers of a [`Graph`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::ir::{Computation, Ir, IrNode};
use super::shapes::shape_of;
use super::{malformed, shortened};
use crate::error::{Error, UnsupportedNode};
use crate::graph::{Graph, GraphBuilder, ValueId};
use crate::layer::{Join, Layer};
use crate::scalar::Scalar;

const PADDED: &str = "padding is supported only directly before a convolution or a pooling";
const SOFTMAX: &str = "a softmax before other layers is unsupported, because only the logits of a \
    softmax at the end can be explained: explain its input, with OnnxFile::output";
const STUCK: &str = "a transpose after a softmax whose probabilities are reshaped is unsupported: \
    explain the softmax's input, with OnnxFile::output";

const NOTHING: &str = "the nodes between its input and its output do not change any value, so \
    there is nothing to explain: choose another output, with OnnxFile::output";
const NO_LINEAR_LAYER: &str = "it only has activations and reshapes, and without a dense layer or \
    a convolution there is nothing to explain: choose another output, with OnnxFile::output";

impl<T: Scalar> Ir<T> {
    /// Builds the graph from the input to an output, which has this name in the file.
    pub fn build(mut self, output: usize, name: &str) -> Result<Graph<T>, Error> {
        let needed = self.needed(output);
        let nodes = self.unsupported(output, &needed);
        if !nodes.is_empty() {
            return Err(Error::UnsupportedNodes { nodes });
        }
        if !needed[0] {
            return Err(malformed(
                "the output does not depend on the input: choose another, with OnnxFile::output"
                    .to_owned(),
            ));
        }
        let shape = shape_of(self[0].dims.as_deref().unwrap_or_default()).map_err(malformed)?;
        // This rewrites nodes, so some of them may not be needed any more.
        let link = self.replace_patterns(output)?;
        let needed = self.needed(output);
        let mut layers = LayerList::default();
        let input = layers.names.free(&self[0].name, 0, 1);
        // The value of each node. Those that are not needed keep the input, which nothing reads.
        let mut values = vec![layers.graph.input(&input, shape); output + 1];
        for number in (1..=output).filter(|&number| needed[number]) {
            values[number] = layers.add(&self[number], &values)?;
        }
        let mut last = values[output];
        if let Some(link) = link {
            let wanted = format!("{}-probabilities", self[output].name);
            last = layers.in_row(&wanted, output, &[link], last);
        }
        if layers.count == 0 {
            return Err(malformed(NOTHING.to_owned()));
        }
        layers.graph.output(&fit(name), last);
        layers.graph.build().map_err(|error| match error {
            Error::NoLinearLayer { .. } => malformed(NO_LINEAR_LAYER.to_owned()),
            other => other,
        })
    }

    /// All unsupported nodes on the path to the output, each with its reason.
    fn unsupported(&self, output: usize, needed: &[bool]) -> Vec<UnsupportedNode> {
        let (last, stuck) = (self.without_moves(output), self.stuck(output));
        let reason = |at: usize| match &self[at].computation {
            Computation::Unsupported(_, reason) => Some(reason.as_str()),
            Computation::Padding(..) => Some(PADDED),
            _ if at != last && self.ends(at) => Some(SOFTMAX),
            _ => stuck.contains(&at).then_some(STUCK),
        };
        (0..=output)
            .filter(|&at| needed[at])
            .filter_map(|at| Some(self[at].report(reason(at)?)))
            .collect()
    }
}

/// The layers so far, with their names.
#[derive(Default)]
struct LayerList<T: Scalar> {
    graph: GraphBuilder<T>,
    names: Names,
    count: usize,
}

impl<T: Scalar> LayerList<T> {
    /// Adds the layers of a node. Returns the value of the last.
    fn add(&mut self, node: &IrNode<T>, values: &[ValueId]) -> Result<ValueId, Error> {
        let number = node.place.unwrap_or(0);
        match &node.computation {
            Computation::Layers(of, layers) => {
                Ok(self.in_row(&node.name, number, layers, values[*of]))
            }
            Computation::Join(of, joined) => {
                let name = self.names.free(&node.name, number, 1);
                self.count += 1;
                let join = Arc::new(Join::of_values(*joined));
                Ok(self.graph.declare(Some(name), join, of.iter().map(|&of| values[of])))
            }
            _ => Err(malformed(format!(
                "node '{}' is unsupported at this point of the graph: explain the model up to it, \
                 with OnnxFile::output",
                shortened(&node.name)
            ))),
        }
    }

    /// Adds layers that each read the one before, the first of them `value`.
    fn in_row(
        &mut self,
        wanted: &str,
        first: usize,
        layers: &[Arc<dyn Layer<T>>],
        value: ValueId,
    ) -> ValueId {
        let name = self.names.free(wanted, first, layers.len());
        self.count += layers.len();
        layers.iter().enumerate().fold(value, |value, (place, layer)| {
            self.graph.declare(Some(layer_name(&name, place)), layer.clone(), [value])
        })
    }
}

/// The name of a node's layer with this index.
fn layer_name(node: &str, place: usize) -> String {
    if place == 0 { node.to_owned() } else { format!("{node}-{place}") }
}

/// A name without characters that have a meaning in a model's text, and not too long.
fn fit(name: &str) -> String {
    let fit = |c: char| if c.is_alphanumeric() || "_-./:".contains(c) { c } else { '_' };
    name.chars().take(200).map(fit).collect()
}

/// The names that are in use.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    /// For each name, the next number to append to it.
    next: HashMap<String, usize>,
}

impl Names {
    /// Reserves a name for a node with some layers. If the wanted name is in use, a number is
    /// appended, starting with `first`.
    fn free(&mut self, wanted: &str, first: usize, layers: usize) -> String {
        let wanted = fit(wanted);
        let mut name = wanted.clone();
        while name.is_empty()
            || (0..layers).any(|place| self.taken.contains(&layer_name(&name, place)))
        {
            // Counting on from the last number keeps many equal names from taking quadratic time.
            let number = self.next.entry(wanted.clone()).or_insert(first);
            name = format!("{wanted}_{number}");
            *number += 1;
        }
        self.taken.extend((0..layers).map(|place| layer_name(&name, place)));
        name
    }
}

impl<T: Scalar> IrNode<T> {
    fn report(&self, reason: &str) -> UnsupportedNode {
        UnsupportedNode {
            name: shortened(&self.name),
            operator: shortened(&self.operator),
            path: self
                .place
                .map_or_else(|| "graph.input".to_owned(), |index| format!("graph.node[{index}]")),
            reason: reason.to_owned(),
        }
    }
}
