//! A graph under a rule: how each node shares relevance, and the chain of segments.
//!
//! A value that every path from the explained values to the output passes through is a *cut*. The
//! nodes between two neighboring cuts form a *segment*, which acts as one factor of the product
//! S = A¹ A² … Aᴸ. In a model whose layers form a row, each layer is a segment of its own.

use std::sync::Arc;

use super::plan::{End, Link, Plan, Use};
use super::range::OutOfRange;
use super::sharing::{Form, Sharing, Slot};
use super::terms::Terms;
use super::{Accumulation, Cause};
use crate::buffer::Flows;
use crate::error::Error;
use crate::finding::Finding;
use crate::graph::{Graph, Operation};
use crate::layer::LinearMap;
use crate::linalg;
use crate::memory::MemoryLimit;
use crate::rule::{RelevanceRule, Site, rule_at};
use crate::scalar::Scalar;

/// A graph under a rule, with everything that does not depend on the sample.
#[derive(Debug)]
pub(crate) struct Network<T: Scalar> {
    pub graph: Graph<T>,
    /// The nodes through which relevance flows, in topological order.
    pub nodes: Vec<usize>,
    /// For each node of the graph, how it shares relevance.
    sharings: Vec<Sharing<T>>,
    /// The explained values, in order.
    pub entries: Vec<usize>,
    /// The sizes of the explained values.
    pub entry_slots: Vec<Slot>,
    /// The chain of segments.
    pub segments: Vec<Segment>,
    /// For each node, the segment that is complete when the pass has left it.
    completes: Vec<Option<usize>>,
    /// The layers to which rules apply.
    pub rules: Vec<RuleAt>,
}

/// A layer to which a rule applies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RuleAt {
    pub layer: usize,
    pub name: String,
    pub rule: String,
}

/// The nodes between two neighboring cuts.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The nodes, in topological order.
    pub nodes: Vec<usize>,
    /// The values where the segment begins.
    pub entries: Vec<Slot>,
    /// The value where it ends.
    pub exit: usize,
    pub inputs: usize,
    pub outputs: usize,
    /// For each node, where its sinks begin among those of the segment.
    pub firsts: Vec<usize>,
    /// For each node, the values that no later node of the segment reads.
    pub last_reads: Vec<Vec<usize>>,
    /// The layer and the cause of each row of sinks, in the order of the nodes.
    pub sinks: Vec<(usize, Cause)>,
    /// Whether the segment is one node that reads one value.
    pub is_single: bool,
    /// Whether its share matrix costs less to form by columns than by rows.
    pub by_columns: bool,
}

impl<T: Scalar> Network<T> {
    /// Prepares the rule at every node to which rules apply.
    pub fn new(graph: &Graph<T>, rule: &dyn RelevanceRule<T>) -> Result<Self, Error> {
        let entries = graph.entries();
        let explained = Reach::of(graph, &entries);
        if entries.contains(&graph.output_value()) {
            return Err(Error::parameter(
                "Graph",
                "output",
                graph.name_of(graph.output_value()),
                "computed from the explained values, not one of them",
            ));
        }
        if !explained.values[graph.output_value()] {
            return Err(Error::NotDependent {
                output: graph.name_of(graph.output_value()).to_owned(),
                entries: if entries.is_empty() {
                    "an input that is explained".to_owned()
                } else {
                    let names = entries.iter().map(|&value| format!("'{}'", graph.name_of(value)));
                    names.collect::<Vec<_>>().join(", ")
                },
            });
        }
        let nodes = explained.nodes.clone();
        let sites = graph.sites(&nodes);
        rule.check_sites(&sites.iter().map(|(_, site)| site.clone()).collect::<Vec<_>>())?;
        let mut network = Self {
            graph: graph.clone(),
            nodes,
            sharings: Vec::new(),
            entry_slots: entries
                .iter()
                .map(|&value| Slot { size: graph.shape_of(value).size(), value: Some(value) })
                .collect(),
            entries,
            segments: Vec::new(),
            completes: vec![None; graph.node_list().len()],
            rules: Vec::new(),
        };
        network.sharings.resize_with(graph.node_list().len(), Sharing::none);
        let mut sites = sites.into_iter().peekable();
        for number in network.nodes.clone() {
            let site = sites.next_if(|(of, _)| *of == number).map(|(_, site)| site);
            let form = match &site {
                Some(site) => {
                    let rule = rule_at(rule, site);
                    let (name, rule_name) = (site.name.to_owned(), rule.name());
                    network.rules.push(RuleAt { layer: site.layer, name, rule: rule_name });
                    prepared(graph, number, rule, site)?
                }
                None => form_of(&graph.node(number).operation),
            };
            network.sharings[number] = sharing(graph, number, form, &explained.values);
        }
        network.cut();
        Ok(network)
    }

    /// Finds the cuts. No edge leads past a cut, from a node before it to one after it.
    fn cut(&mut self) {
        let graph = &self.graph;
        // For each value, the last of these nodes that reads it.
        let mut last_reader = vec![0; graph.input_list().len() + graph.node_list().len()];
        for (at, &number) in self.nodes.iter().enumerate() {
            for slot in &self.sharing(number).slots {
                if let Some(value) = slot.value {
                    last_reader[value] = at;
                }
            }
        }
        let slot = |value: usize| Slot { size: graph.shape_of(value).size(), value: Some(value) };
        let mut entries = self.entry_slots.clone();
        let mut reach = self.entries.iter().map(|&value| last_reader[value]).max().unwrap_or(0);
        let (mut first, mut segments) = (0, Vec::new());
        for (at, &number) in self.nodes.iter().enumerate() {
            let exit = graph.value_of(number);
            if reach <= at {
                let nodes = self.nodes[first..=at].to_vec();
                let is_identity = matches!(*nodes, [only] if self.sharing(only).is_identity());
                // A chain is never empty, even if relevance only passes through.
                let is_all = segments.is_empty() && at + 1 == self.nodes.len();
                if !is_identity || entries.len() > 1 || is_all {
                    segments.push(self.segment(nodes, entries, exit));
                }
                entries = vec![slot(exit)];
                first = at + 1;
            }
            reach = reach.max(last_reader[exit]);
        }
        for (index, segment) in segments.iter().enumerate() {
            if let Some(&last) = segment.nodes.last() {
                self.completes[last] = Some(index);
            }
        }
        for segment in &mut segments {
            let link = self.link(segment);
            segment.by_columns = link.of_columns() < link.of_rows();
        }
        self.segments = segments;
    }

    /// For each of these nodes, the values that no later one of them reads, except the ones to keep.
    pub fn last_reads(&self, nodes: &[usize], keep: &[usize]) -> Vec<Vec<usize>> {
        let values = self.graph.input_list().len() + self.graph.node_list().len();
        let mut is_read = vec![false; values];
        for &value in keep {
            is_read[value] = true;
        }
        let mut last_reads = vec![Vec::new(); nodes.len()];
        for (at, &number) in nodes.iter().enumerate().rev() {
            for value in self.sharing(number).slots.iter().filter_map(|slot| slot.value) {
                if !std::mem::replace(&mut is_read[value], true) {
                    last_reads[at].push(value);
                }
            }
        }
        last_reads
    }

    fn segment(&self, nodes: Vec<usize>, entries: Vec<Slot>, exit: usize) -> Segment {
        let (mut firsts, mut sinks) = (Vec::new(), Vec::new());
        for &number in &nodes {
            let sharing = self.sharing(number);
            firsts.push(sinks.len());
            sinks.extend(sharing.causes.iter().map(|&cause| (sharing.layer, cause)));
        }
        let is_single = match (nodes.as_slice(), entries.as_slice()) {
            (&[only], [entry]) => {
                matches!(self.sharing(only).slots.as_slice(), [slot] if slot.value == entry.value)
            }
            _ => false,
        };
        Segment {
            inputs: entries.iter().map(|entry| entry.size).sum(),
            outputs: self.graph.shape_of(exit).size(),
            last_reads: self.last_reads(&nodes, &[exit]),
            nodes,
            entries,
            exit,
            firsts,
            sinks,
            is_single,
            by_columns: false,
        }
    }

    /// How a node shares relevance.
    pub fn sharing(&self, node: usize) -> &Sharing<T> {
        &self.sharings[node]
    }

    /// Whether relevance flows through a node.
    pub fn reaches(&self, node: usize) -> bool {
        !self.sharings[node].slots.is_empty()
    }

    /// The segment that is complete when the pass has left this node.
    pub fn completed_by(&self, node: usize) -> Option<usize> {
        self.completes[node]
    }

    /// The number of explained values.
    pub fn inputs(&self) -> usize {
        self.segments[0].inputs
    }

    /// A place for the relevance of each value of the graph.
    pub fn empty_flows(&self) -> Flows<T> {
        let values = self.graph.input_list().len() + self.graph.node_list().len();
        std::iter::repeat_with(|| None).take(values).collect()
    }

    /// The order of accumulation with the least cost, or the wanted one.
    pub fn plan(&self, accumulation: Accumulation, end: End) -> Plan {
        let name = |&node: &usize| self.graph.node(node).name.clone();
        let layers = self.segments.iter().map(|segment| segment.nodes.iter().map(name).collect());
        Plan::new(accumulation, &self.links(), end, layers.collect())
    }

    /// Prepares the linear maps for the products that explaining many samples by this plan needs.
    pub fn prepare(&self, plan: &Plan) {
        let one_by_one = self.explains_one_by_one();
        let is_worth_it = |map: &dyn LinearMap<T>| {
            // With few columns a product, a large matrix takes as long to read as to multiply, so
            // a copy in another order would only take memory.
            !one_by_one
                || !map.forms_matrix()
                || map.inputs().saturating_mul(map.outputs()) < linalg::LARGE
        };
        for node in self.graph.node_list() {
            if let Some(linear) = node.operation.linear()
                && is_worth_it(&*linear.map)
            {
                linear.map.prepare_apply();
            }
        }
        for (segment, use_of) in self.segments.iter().zip(plan.uses()) {
            for &node in &segment.nodes {
                if let Form::Terms(terms) = &self.sharing(node).form {
                    // A factor of several nodes is formed by products, and so is that of a
                    // convolution: by its rows or by its columns.
                    let is_formed = use_of == Use::Formed;
                    let by_both = is_formed && !segment.is_single;
                    let by_one = is_formed && !terms.own.forms_matrix();
                    let appended =
                        use_of == Use::Appended || by_both || by_one && !segment.by_columns;
                    let prepended =
                        use_of == Use::Prepended || by_both || by_one && segment.by_columns;
                    terms.prepare(appended, prepended, &is_worth_it);
                }
            }
        }
    }

    /// Whether the samples of a batch pass through the layers one by one: a large convolutional
    /// network can need as much memory for a sample as for its weights.
    pub fn explains_one_by_one(&self) -> bool {
        /// The number of multiply-adds from which a network is large.
        const ENOUGH: f64 = 5e7;
        let maps = self.nodes.iter().filter_map(|&node| self.graph.node(node).operation.linear());
        let convolutions = maps.filter(|linear| !linear.map.forms_matrix());
        convolutions.map(|linear| linear.map.multiply_adds()).sum::<f64>() >= ENOUGH
    }

    /// The sizes and costs of each segment.
    fn links(&self) -> Vec<Link> {
        self.segments.iter().map(|segment| self.link(segment)).collect()
    }

    fn link(&self, segment: &Segment) -> Link {
        let (inputs, outputs, sinks) = (segment.inputs, segment.outputs, segment.sinks.len());
        if let ([only], true) = (segment.nodes.as_slice(), segment.is_single) {
            let sharing = self.sharing(*only);
            let (row, column) = sharing.formed();
            let multiply_adds = sharing.multiply_adds();
            let (carry, widest) = (0.0, 0);
            return Link { inputs, outputs, sinks, multiply_adds, row, column, carry, widest };
        }
        let of_nodes = segment.nodes.iter().map(|&node| self.sharing(node).multiply_adds());
        let multiply_adds = of_nodes.sum::<f64>() + outputs as f64;
        let (row, column) = (multiply_adds, multiply_adds);
        let nodes = || segment.nodes.iter().map(|&node| self.sharing(node));
        // Each node carries the sinks of the nodes before it.
        let carry = nodes().zip(&segment.firsts);
        let carry = carry.map(|(sharing, &first)| sharing.multiply_adds() * first as f64).sum();
        let widest = nodes().map(|sharing| sharing.inputs.max(sharing.outputs)).max().unwrap_or(0);
        Link { inputs, outputs, sinks, multiply_adds, row, column, carry, widest }
    }

    /// Removes the ranges that the rules assume for their inputs.
    pub fn remove_ranges(&mut self) {
        for sharing in &mut self.sharings {
            if let Form::Terms(terms) = &mut sharing.form
                && let Some(terms) = Arc::get_mut(terms)
            {
                terms.range = None;
            }
        }
    }

    /// The finding for a sample that was noted.
    pub fn finding(&self, found: &OutOfRange) -> Option<Finding> {
        let Form::Terms(terms) = &self.sharing(found.node).form else { return None };
        terms.range.as_ref().map(|range| range.finding(found))
    }
}

impl<T: Scalar> Sharing<T> {
    /// That of a node that no relevance reaches.
    fn none() -> Self {
        Self {
            layer: 0,
            slots: Vec::new(),
            inputs: 0,
            outputs: 0,
            causes: Vec::new(),
            form: Form::Pass,
        }
    }
}

impl<T: Scalar> Graph<T> {
    /// The nodes through which relevance flows, in topological order.
    pub(crate) fn nodes_with_relevance(&self) -> Vec<usize> {
        Reach::of(self, &self.entries()).nodes
    }
}

/// The values that depend on the explained ones, and the nodes between these and the output.
struct Reach {
    values: Vec<bool>,
    nodes: Vec<usize>,
}

impl Reach {
    fn of<T: Scalar>(graph: &Graph<T>, entries: &[usize]) -> Self {
        let mut values = vec![false; graph.input_list().len() + graph.node_list().len()];
        for &value in entries {
            values[value] = true;
        }
        for (number, node) in graph.node_list().iter().enumerate() {
            let depends = node.inputs.iter().any(|&input| values[input]);
            values[graph.value_of(number)] |= depends;
        }
        let mut needed = vec![false; values.len()];
        needed[graph.output_value()] = true;
        let mut nodes = Vec::new();
        for (number, node) in graph.node_list().iter().enumerate().rev() {
            let value = graph.value_of(number);
            // Relevance stops at the explained values.
            if needed[value] && values[value] && !entries.contains(&value) {
                node.inputs.iter().for_each(|&input| needed[input] = true);
                nodes.push(number);
            }
        }
        nodes.reverse();
        Self { values, nodes }
    }
}

/// The rule's terms at a linear node.
fn prepared<T: Scalar>(
    graph: &Graph<T>,
    number: usize,
    rule: &dyn RelevanceRule<T>,
    site: &Site<'_>,
) -> Result<Form<T>, Error> {
    // A rule prepares a few values for each input and output. A file with a wrong input shape could
    // make their number arbitrarily large.
    let what = || {
        format!(
            "preparing the rule at layer {} ({} inputs, {} outputs)",
            site.name, site.inputs, site.outputs
        )
    };
    let remedy = || "give the model a smaller input".to_owned();
    let values = 2.0 * (site.inputs as f64 + site.outputs as f64);
    MemoryLimit::default().check::<T>(values, what, remedy)?;
    match graph.node(number).operation.linear() {
        Some(linear) => Ok(Form::Terms(Arc::new(Terms::new(rule, site, linear)?))),
        None => Ok(Form::Pass),
    }
}

/// The form of a node to which no rule applies.
fn form_of<T: Scalar>(operation: &Operation<T>) -> Form<T> {
    match operation.selection() {
        Some(selection) => selection.fixed.clone().map_or(Form::Selection, Form::Copies),
        None => Form::Pass,
    }
}

fn sharing<T: Scalar>(
    graph: &Graph<T>,
    number: usize,
    form: Form<T>,
    explained: &[bool],
) -> Sharing<T> {
    let node = graph.node(number);
    let slots: Vec<Slot> = node
        .inputs
        .iter()
        .map(|&value| Slot {
            size: graph.shape_of(value).size(),
            value: explained[value].then_some(value),
        })
        .collect();
    let mut causes = if let Form::Terms(terms) = &form { terms.causes.clone() } else { Vec::new() };
    if slots.iter().any(|slot| slot.value.is_none()) {
        causes.push(Cause::Constant);
    }
    let inputs = slots.iter().map(|slot| slot.size).sum();
    Sharing { layer: node.index, slots, inputs, outputs: node.shape.size(), causes, form }
}
