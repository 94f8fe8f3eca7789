//! From steps to layers and branches.
//!
//! The steps from the input to the output are a graph; a value that all ways to a sum or
//! concatenation pass is where its branches begin (it *dominates* it), so that a graph of nested
//! sums and concatenations is read off from the output backwards.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::step::{Kind, Step, Steps, shape_of};
use super::{malformed, shortened};
use crate::error::{Error, UnsupportedNode};
use crate::layer::{Branch, Concat, Layer, Named, Residual};
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};

/// So deep may branches be nested.
const DEPTH: usize = 32;

const PADDED: &str = "padding is supported directly before a convolution or a pooling only";
const SOFTMAX: &str = "a softmax before other layers is unsupported, as only the logits of a last \
    one can be explained: explain its input, \
                       with OnnxFile::output";
const STUCK: &str = "a transpose after a softmax whose probabilities are reshaped is unsupported: \
    explain the softmax's input, with \
                     OnnxFile::output";
const CROSSING: &str = "several branches read its values at different places, so that the graph \
    is no nesting of sums and concatenations: \
                        unsupported";

const NOTHING: &str = "its output is its input: the nodes between them change no value, so that \
    there is nothing to explain; is it the \
                       right output?";
const NO_LINEAR_LAYER: &str = "it has activations and reshapes only: without a dense layer or a \
    convolution there is nothing to explain; is it \
                               the right output?";

impl<T: Scalar> Steps<T> {
    /// The model from the input to an output.
    pub fn model(mut self, output: usize) -> Result<Sequential<T>, Error> {
        let needed = self.needed(output);
        let nodes = self.refused(output, &needed);
        if !nodes.is_empty() {
            return Err(Error::UnsupportedNodes { nodes });
        }
        if !needed[0] {
            return Err(malformed("the output does not depend on the input".to_owned()));
        }
        let input = shape_of(self[0].dims.as_deref().unwrap_or_default()).map_err(malformed)?;
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

    /// All nodes on the way to the output that are unsupported, each with its own reason.
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

    /// Gives each step a name that is its own, and fit for a model's text; gives back one for what
    /// makes probabilities of the output.
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

    /// The layers from behind one step to another that it dominates.
    fn chain(
        &self,
        dominators: &Dominators,
        from: usize,
        to: usize,
        depth: usize,
    ) -> Result<Vec<Named<T>>, Error> {
        if depth > DEPTH {
            return Err(malformed(format!(
                "its branches are nested more than {DEPTH} deep: deeper ones are unsupported"
            )));
        }
        let mut layers = Vec::new();
        let mut at = to;
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
                        "node '{}' is at an unsupported place",
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
    /// Branches that begin at one step and end at others. Neighbors that go the first part of their
    /// way together are joined by themselves: exporters make one flat list of lists within lists.
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
    /// The steps whose values go into several branches, and not only where these begin, also among
    /// those that are refused.
    fn crossings(&self, dominators: &Dominators, output: usize) -> HashSet<usize> {
        let mut crossings = Crossings { met: vec![false; self.len()], found: HashSet::new() };
        self.meet(dominators, &mut crossings, (0, output), 0);
        crossings.found
    }

    /// Goes from a step back to one that dominates it, as [`chain`](Self::chain) does.
    fn meet(
        &self,
        dominators: &Dominators,
        crossings: &mut Crossings,
        (from, to): (usize, usize),
        depth: usize,
    ) {
        let mut at = to;
        // What is too deep is an error of its own.
        while at > from && depth <= DEPTH {
            if std::mem::replace(&mut crossings.met[at], true) {
                crossings.found.insert(at);
                return;
            }
            // Shapes are no values.
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

/// The name of one of a step's layers.
fn layer_name(step: &str, place: usize) -> String {
    if place == 0 { step.to_owned() } else { format!("{step}-{place}") }
}

/// The names that layers have, and those of them that join branches: the names of what is in these
/// begin with theirs.
#[derive(Default)]
struct Names {
    taken: BTreeSet<String>,
    joins: HashSet<String>,
    /// The first number that was not yet put after a name.
    next: HashMap<String, usize>,
}

impl Names {
    /// Takes a name for a step of some layers: the one that is wanted, or else that one with a
    /// number, from `first` on.
    fn free(&mut self, mut wanted: String, first: usize, layers: usize, joins: bool) -> String {
        if self.is_within(&wanted) {
            wanted = wanted.replace('.', "_");
        }
        let mut name = wanted.clone();
        while !self.is_free(&name, layers, joins) {
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

    /// Whether a name would be that of something within branches.
    fn is_within(&self, name: &str) -> bool {
        name.match_indices('.')
            .any(|(at, _)| self.joins.contains(&name[..at]) || is_join(&name[..at]))
    }

    fn is_free(&self, name: &str, layers: usize, joins: bool) -> bool {
        let inner = format!("{name}.");
        let has_inner = || {
            self.taken.range(inner.clone()..).next().is_some_and(|next| next.starts_with(&inner))
        };
        let is_taken = |name: String| self.taken.contains(&name) || is_join(&name);
        !(name.is_empty()
            || (0..layers).any(|place| is_taken(layer_name(name, place)))
            || joins && has_inner())
    }
}

/// Whether a name is one that branches with a common beginning are given.
fn is_join(name: &str) -> bool {
    name.strip_prefix(JOIN).is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// What the names of branches with a common beginning begin with.
const JOIN: &str = "join-";

/// Which steps have been met, and which of them a second time.
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

/// Of each step the last one before it that all ways to it pass, and how many such steps there are.
struct Dominators {
    immediate: Vec<usize>,
    depth: Vec<usize>,
}

impl Dominators {
    /// The steps are in an order in which each stands behind its inputs.
    fn of<T: Scalar>(steps: &Steps<T>, needed: &[bool]) -> Self {
        let mut known = Self { immediate: vec![0; steps.len()], depth: vec![0; steps.len()] };
        for at in (1..steps.len()).filter(|&at| needed[at]) {
            let values =
                steps[at].kind.inputs().iter().copied().filter(|&input| !steps[input].uncomputed);
            let common = values.reduce(|a, b| known.common(a, b)).unwrap_or(0);
            (known.immediate[at], known.depth[at]) = (common, known.depth[common] + 1);
        }
        known
    }

    /// Neighbors among some steps that go the first part of their way from `begin` together, each
    /// with the step where they part.
    fn groups<'a>(&self, begin: usize, ends: &'a [usize]) -> Vec<(usize, &'a [usize])> {
        let (mut groups, mut rest) = (Vec::new(), ends);
        while let Some(&first) = rest.first() {
            let (mut parting, mut count) = (first, 1);
            while let Some(&end) = rest.get(count) {
                let common = self.common(parting, end);
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

    /// The last step that all ways to both of these pass.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            if self.depth[a] >= self.depth[b] {
                a = self.immediate[a]
            } else {
                b = self.immediate[b]
            }
        }
        a
    }
}
