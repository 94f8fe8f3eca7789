//! Turning steps into layers and branches.
//!
//! The steps from the input to the output form a graph. The branches of a sum or concatenation
//! begin at its *immediate dominator*, the last step before it that all paths from the input pass
//! through. This makes it possible to read nested sums and concatenations backwards from the
//! output.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::step::{Kind, Step, Steps, shape_of};
use super::{malformed, shortened};
use crate::error::{Error, UnsupportedNode};
use crate::layer::{Branch, Concat, Layer, Named, Residual};
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};

/// The deepest nesting of branches.
const DEPTH: usize = 32;

const PADDED: &str = "padding is supported only directly before a convolution or a pooling";
const SOFTMAX: &str = "a softmax before other layers is unsupported, because only the logits of a \
    softmax at the end can be explained: explain its input, with OnnxFile::output";
const STUCK: &str = "a transpose after a softmax whose probabilities are reshaped is unsupported: \
    explain the softmax's input, with OnnxFile::output";
const CROSSING: &str = "several branches read its values at different points, which is \
    unsupported, because sums and concatenations must be nested: explain the model up to it, with \
    OnnxFile::output";

const NOTHING: &str = "the nodes between its input and its output do not change any value, so \
    there is nothing to explain: choose another output, with OnnxFile::output";
const NO_LINEAR_LAYER: &str = "it only has activations and reshapes, and without a dense layer or \
    a convolution there is nothing to explain: choose another output, with OnnxFile::output";

impl<T: Scalar> Steps<T> {
    /// Builds the model from the input to an output.
    pub fn model(mut self, output: usize) -> Result<Sequential<T>, Error> {
        let needed = self.needed(output);
        let nodes = self.refused(output, &needed);
        if !nodes.is_empty() {
            return Err(Error::UnsupportedNodes { nodes });
        }
        if !needed[0] {
            return Err(malformed(
                "the output does not depend on the input: choose another, with OnnxFile::output"
                    .to_owned(),
            ));
        }
        let input = shape_of(self[0].dims.as_deref().unwrap_or_default()).map_err(malformed)?;
        // This rewrites steps, so some of them may not be needed any more.
        let link = self.end(output)?;
        let needed = self.needed(output);
        let probabilities = self.name_steps(&needed, output);
        let dominators = Dominators::of(&self, &needed);
        let mut layers = self.chain(&dominators, 0, output, 0)?;
        if let Some(layer) = link {
            layers.push(Named { name: Some(probabilities), layer });
        }
        SequentialBuilder::from(Branch { layers }).input(input).build().map_err(|error| match error
        {
            Error::EmptyModel => malformed(NOTHING.to_owned()),
            Error::NoLinearLayer { .. } => malformed(NO_LINEAR_LAYER.to_owned()),
            other => other,
        })
    }

    /// All unsupported nodes on the path to the output, each with its reason.
    fn refused(&self, output: usize, needed: &[bool]) -> Vec<UnsupportedNode> {
        let crossings = self.crossings(&Dominators::of(self, needed), output);
        let (last, stuck) = (self.without_moves(output), self.stuck(output));
        let reason = |at: usize| match &self[at].kind {
            Kind::Refused(_, reason) => Some(reason.as_str()),
            Kind::Padded(..) => Some(PADDED),
            _ if at != last && matches!(&*self[at].operator, "Softmax" | "LogSoftmax") => {
                Some(SOFTMAX)
            }
            _ if stuck.contains(&at) => Some(STUCK),
            _ => crossings.contains(&at).then_some(CROSSING),
        };
        (0..=output)
            .filter(|&at| needed[at])
            .filter_map(|at| Some(self[at].unsupported(reason(at)?)))
            .collect()
    }

    /// Gives each step a unique name without characters that have a meaning in a model's text.
    /// Returns a name for the layer that turns the output into probabilities.
    fn name_steps(&mut self, needed: &[bool], output: usize) -> String {
        let mut names = Names::default();
        for step in (0..needed.len()).filter(|&step| needed[step]) {
            let step = &mut self[step];
            let fit = |c: char| if c.is_alphanumeric() || "_-./:".contains(c) { c } else { '_' };
            let name: String = step.name.chars().take(200).map(fit).collect();
            let (layers, joins) = match &step.kind {
                Kind::Layers(_, layers) => (layers.len().max(1), false),
                kind => (1, matches!(kind, Kind::Joined { .. })),
            };
            step.name = names.free(name, step.node.unwrap_or(0), layers, joins);
        }
        names.free(format!("{}-probabilities", self[output].name), output, 1, false)
    }

    /// The layers after the step `from` up to and including `to`, which `from` dominates.
    fn chain(
        &self,
        dominators: &Dominators,
        from: usize,
        to: usize,
        depth: usize,
    ) -> Result<Vec<Named<T>>, Error> {
        if depth > DEPTH {
            return Err(malformed(format!(
                "its branches are nested more than {DEPTH} levels deep, which is unsupported: \
                 choose an earlier output, with OnnxFile::output"
            )));
        }
        let mut layers = Vec::new();
        let mut at = to;
        // The steps are visited from last to first, so the layers are reversed below.
        while at != from {
            let step = &self[at];
            let name = |place: usize| layer_name(&step.name, place);
            match &step.kind {
                Kind::Layers(of, own) => {
                    let named = own.iter().enumerate().map(|(place, layer)| Named {
                        name: Some(name(place)),
                        layer: layer.clone(),
                    });
                    layers.extend(named.rev());
                    at = *of;
                }
                Kind::Joined { of, summed } => {
                    let begin = dominators.immediate[at];
                    let layer = self.join(dominators, begin, of, *summed, depth)?;
                    layers.push(Named { name: Some(name(0)), layer });
                    at = begin;
                }
                _ => {
                    return Err(malformed(format!(
                        "node '{}' is unsupported at this point of the graph: explain the model up \
                         to it, with OnnxFile::output",
                        shortened(&step.name)
                    )));
                }
            }
        }
        layers.reverse();
        Ok(layers)
    }
}

impl<T: Scalar> Steps<T> {
    /// Makes the branches that begin at one step and end at others. Neighboring branches with a
    /// common beginning form an inner join, because exporters flatten nested sums and
    /// concatenations into one.
    fn join(
        &self,
        dominators: &Dominators,
        begin: usize,
        ends: &[usize],
        summed: bool,
        depth: usize,
    ) -> Result<Arc<dyn Layer<T>>, Error> {
        let mut branches = Vec::new();
        for (parting, together) in dominators.groups(begin, ends) {
            let mut layers = self.chain(dominators, begin, parting, depth + 1)?;
            if together.len() > 1 {
                let layer = self.join(dominators, parting, together, summed, depth + 1)?;
                layers.push(Named { name: Some(format!("{JOIN}{}", branches.len())), layer });
            }
            branches.push(Branch { layers });
        }
        Ok(if summed {
            Arc::new(Residual::new(branches)?)
        } else {
            Arc::new(Concat::new(branches)?)
        })
    }
}

impl<T: Scalar> Steps<T> {
    /// The steps whose values several branches read, except where these branches begin. This
    /// includes unsupported steps.
    fn crossings(&self, dominators: &Dominators, output: usize) -> HashSet<usize> {
        let mut crossings = Crossings { met: vec![false; self.len()], found: HashSet::new() };
        self.meet(dominators, &mut crossings, (0, output), 0);
        crossings.found
    }

    /// Follows the steps backwards from one to another that dominates it, as
    /// [`chain`](Self::chain) does.
    fn meet(
        &self,
        dominators: &Dominators,
        crossings: &mut Crossings,
        (from, to): (usize, usize),
        depth: usize,
    ) {
        let mut at = to;
        // Branches that are nested too deeply are reported by `chain`.
        while at > from && depth <= DEPTH {
            // Another path has already passed through this step.
            if std::mem::replace(&mut crossings.met[at], true) {
                crossings.found.insert(at);
                return;
            }
            // Steps that only compute shapes do not count.
            let inputs: Vec<usize> = self[at]
                .kind
                .inputs()
                .iter()
                .copied()
                .filter(|&input| !self[input].uncomputed)
                .collect();
            let begin = dominators.immediate[at];
            if let [_, _, ..] = inputs.as_slice() {
                self.meet_all(dominators, crossings, (begin, &inputs), depth);
            }
            at = if let [of] = *inputs { of } else { begin };
        }
    }

    fn meet_all(
        &self,
        dominators: &Dominators,
        crossings: &mut Crossings,
        (begin, ends): (usize, &[usize]),
        depth: usize,
    ) {
        if depth > DEPTH {
            return;
        }
        for (parting, together) in dominators.groups(begin, ends) {
            self.meet(dominators, crossings, (begin, parting), depth + 1);
            if together.len() > 1 {
                self.meet_all(dominators, crossings, (parting, together), depth + 1);
            }
        }
    }
}

/// The name of a step's layer with this index.
fn layer_name(step: &str, place: usize) -> String {
    if place == 0 { step.to_owned() } else { format!("{step}-{place}") }
}

/// The names that are in use. The name of a layer within a branch begins with the name of the layer
/// that joins the branches and a dot, so no other name can begin like that.
#[derive(Default)]
struct Names {
    taken: BTreeSet<String>,
    joins: HashSet<String>,
    /// For each name, the next number to append to it.
    next: HashMap<String, usize>,
}

impl Names {
    /// Reserves a name for a step with some layers. If the wanted name is in use, a number is
    /// appended, starting with `first`.
    fn free(&mut self, mut wanted: String, first: usize, layers: usize, joins: bool) -> String {
        if self.is_within(&wanted) {
            wanted = wanted.replace('.', "_");
        }
        let mut name = wanted.clone();
        while !self.is_free(&name, layers, joins) {
            // Counting on from the last number keeps many equal names from taking quadratic time.
            let number = self.next.entry(wanted.clone()).or_insert(first);
            name = format!("{wanted}_{number}");
            *number += 1;
        }
        self.taken.extend((0..layers).map(|place| layer_name(&name, place)));
        if joins {
            self.joins.insert(name.clone());
        }
        name
    }

    /// Whether a name looks like that of a layer within branches.
    fn is_within(&self, name: &str) -> bool {
        name.match_indices('.')
            .any(|(at, _)| self.joins.contains(&name[..at]) || is_join(&name[..at]))
    }

    fn is_free(&self, name: &str, layers: usize, joins: bool) -> bool {
        let inner = format!("{name}.");
        let has_inner = || {
            // The names are sorted, so the first one from `inner` on is enough.
            self.taken.range(inner.clone()..).next().is_some_and(|next| next.starts_with(&inner))
        };
        let is_taken = |name: String| self.taken.contains(&name) || is_join(&name);
        !(name.is_empty()
            || (0..layers).any(|place| is_taken(layer_name(name, place)))
            || joins && has_inner())
    }
}

/// Whether a name is one of those given to inner joins.
fn is_join(name: &str) -> bool {
    name.strip_prefix(JOIN).is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The prefix of the names of inner joins.
const JOIN: &str = "join-";

/// The steps that have been visited, and those visited more than once.
struct Crossings {
    met: Vec<bool>,
    found: HashSet<usize>,
}

impl<T: Scalar> Step<T> {
    fn unsupported(&self, reason: &str) -> UnsupportedNode {
        UnsupportedNode {
            name: shortened(&self.name),
            operator: shortened(&self.operator),
            path: self
                .node
                .map_or_else(|| "graph.input".to_owned(), |index| format!("graph.node[{index}]")),
            reason: reason.to_owned(),
        }
    }
}

/// For each step, its immediate dominator, which is the last step before it that all paths to it
/// pass through, and the number of its dominators.
struct Dominators {
    immediate: Vec<usize>,
    depth: Vec<usize>,
}

impl Dominators {
    /// Finds the dominators in one pass, because each step comes after its inputs.
    fn of<T: Scalar>(steps: &Steps<T>, needed: &[bool]) -> Self {
        let mut known = Self { immediate: vec![0; steps.len()], depth: vec![0; steps.len()] };
        for at in (1..steps.len()).filter(|&at| needed[at]) {
            let values =
                steps[at].kind.inputs().iter().copied().filter(|&input| !steps[input].uncomputed);
            // A path to the step passes through one of its inputs, so their last common dominator
            // is its own.
            let common = values.reduce(|a, b| known.common(a, b)).unwrap_or(0);
            (known.immediate[at], known.depth[at]) = (common, known.depth[common] + 1);
        }
        known
    }

    /// Groups neighboring steps whose paths from `begin` have a common first part. Each group comes
    /// with the step where the paths part.
    fn groups<'a>(&self, begin: usize, ends: &'a [usize]) -> Vec<(usize, &'a [usize])> {
        let (mut groups, mut rest) = (Vec::new(), ends);
        while let Some(&first) = rest.first() {
            let (mut parting, mut count) = (first, 1);
            while let Some(&end) = rest.get(count) {
                let common = self.common(parting, end);
                // The two paths have nothing in common after `begin`.
                if common == begin {
                    break;
                }
                (parting, count) = (common, count + 1);
            }
            let (together, others) = rest.split_at(count);
            groups.push((parting, together));
            rest = others;
        }
        groups
    }

    /// The last step that all paths to both of these steps pass through.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            // The deeper of two different steps does not dominate the other, so it is replaced by
            // its parent.
            if self.depth[a] >= self.depth[b] {
                a = self.immediate[a];
            } else {
                b = self.immediate[b];
            }
        }
        a
    }
}
