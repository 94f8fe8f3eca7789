//! The check of a model and a rule, without a sample.

use std::collections::HashMap;

use crate::canonize::Merged;
use crate::error::Error;
use crate::finding::{Code, Finding};
use crate::graph::{Ending, Estimate, Graph, LinearNode, Node};
use crate::layer::{Functions, LinearMap};
use crate::memory::MemoryLimit;
use crate::rule::{
    BiasMode, Decomposition, Divisor, Group, InputFactor, RelevanceRule, Site, rule_at,
};
use crate::scalar::Scalar;

impl<T: Scalar> Graph<T> {
    /// Finds problems that can make explanations of this model by this rule misleading, without
    /// needing a sample.
    ///
    /// Biases are compared with what inputs of rms 1 would add to the outputs; the true size of the
    /// inputs is unknown. Cost: a forward pass, and a copy of the weights of one layer at a time.
    ///
    /// # Errors
    /// The rule's own error if it cannot be used at some layer, and [`Error::TooLarge`] if the
    /// check would exceed the memory limit.
    ///
    /// # Example
    /// ```
    /// use relprop::{Code, Composite, Linear, Relu, Rule, Sequential};
    /// use relprop::nalgebra::{self, dmatrix};
    ///
    /// let model = Sequential::builder()
    ///     .layer(Linear::new(dmatrix![1.0, -1.0; 0.5, 2.0], None)?)
    ///     .layer(Relu)
    ///     .layer(Linear::new(dmatrix![1.0, 1.0], None)?)
    ///     .build()?;
    /// let findings = model.check(Rule::Flat)?;
    /// assert_eq!((findings[0].code, findings[0].layer), (Code::DeadUnits, 2));
    /// println!("{}", findings[0]);
    /// assert!(model.check(Composite::new(Rule::Epsilon).first(Rule::Flat))?.is_empty());
    /// # Ok::<(), relprop::Error>(())
    /// ```
    pub fn check(&self, rule: impl RelevanceRule<T>) -> Result<Vec<Finding>, Error> {
        (T::compiled().check)(self, &rule)
    }

    pub(crate) fn check_inner(&self, rule: &dyn RelevanceRule<T>) -> Result<Vec<Finding>, Error> {
        let largest = self.nodes().map(|node| node.shape.size()).fold(self.inputs(), usize::max);
        let remedy = || "give the model a smaller input".to_owned();
        MemoryLimit::default().check::<T>(
            2.0 * largest as f64,
            || format!("a check of layers with {largest} values"),
            remedy,
        )?;
        // Canonizing copies the weights, so it runs only if there is a normalization.
        let merged = if self.nodes().any(Node::is_norm) { self.canonize()?.1 } else { Vec::new() };
        let nodes = self.nodes_with_relevance();
        let sites = self.sites(&nodes).into_iter().collect();
        let mut check = Check {
            graph: self,
            rule,
            sites,
            last: self.last_layer(),
            merged,
            findings: Vec::new(),
        };
        check.nodes()?;
        Ok(check.findings)
    }

    /// The layer at the output, not counting reshapes.
    fn last_layer(&self) -> Option<usize> {
        let mut value = self.output_value();
        loop {
            let node = self.node(self.producer(value)?);
            if !node.operation.is_reshape() || node.inputs.len() > 1 {
                return Some(node.index);
            }
            value = node.inputs[0];
        }
    }
}

struct Check<'a, T: Scalar> {
    graph: &'a Graph<T>,
    rule: &'a dyn RelevanceRule<T>,
    /// The layers to which rules apply, with the numbers of their nodes.
    sites: HashMap<usize, Site<'a>>,
    /// The index of the last layer that is more than a reshape.
    last: Option<usize>,
    /// The normalizations that can be merged.
    merged: Vec<Merged>,
    findings: Vec<Finding>,
}

impl<T: Scalar> Check<'_, T> {
    fn find(&mut self, node: &Node<T>, code: Code, sentence: String, advice: &str) {
        let (name, kind) = (node.name.clone(), node.layer.kind().to_owned());
        let (layer, advice) = (node.index, advice.to_owned());
        self.findings.push(Finding { code, layer, name, kind, sentence, advice });
    }

    fn nodes(&mut self) -> Result<(), Error> {
        let graph = self.graph;
        // Values are forgotten after their last reader.
        let mut values: Vec<Option<Estimate<T>>> = graph
            .input_list()
            .iter()
            .map(|input| Some(Estimate::of_input(input.shape.size())))
            .collect();
        values.resize_with(values.len() + graph.node_list().len(), || None);
        let mut reads = graph.schedule().reads();
        for &number in &graph.schedule().nodes {
            let node = graph.node(number);
            let parts: Vec<_> =
                node.inputs.iter().filter_map(|&input| values[input].as_ref()).collect();
            let z = Estimate::joined(&parts);
            for &input in &node.inputs {
                reads[input] -= 1;
                if reads[input] == 0 {
                    values[input] = None;
                }
            }
            self.node(number, node, &z)?;
            values[graph.value_of(number)] = Some(node.operation.estimate(node, z)?);
        }
        Ok(())
    }

    /// Examines a node that reads these values.
    fn node(&mut self, number: usize, node: &Node<T>, z: &Estimate<T>) -> Result<(), Error> {
        self.assumed(node);
        self.no_activation(node, z);
        if let Some(functions) = node.operation.functions() {
            self.nonzero_at_zero(node, functions);
        }
        if let Some(ending) = node.operation.ending() {
            self.logits_explained(node, ending);
        }
        // No rule is used where no relevance arrives.
        if let (Some(linear), Some(site)) =
            (node.operation.linear(), self.sites.get(&number).cloned())
        {
            self.under_rule(node, linear, &site, z)?;
        }
        Ok(())
    }

    /// Reports that the logits are explained and not the probabilities.
    fn logits_explained(&mut self, node: &Node<T>, ending: &Ending<T>) {
        let (code, function, advice) = match ending {
            Ending::Softmax(_) => (
                Code::SoftmaxLast,
                "a softmax",
                "No action is needed if you want to explain the logits. To see why one output \
                 wins over another, explain the difference between them.",
            ),
            Ending::Link(_) => (
                Code::SigmoidLast,
                node.layer.kind(),
                "No action is needed if you want to explain the logits: positive relevance raises \
                 the probability, negative relevance lowers it.",
            ),
        };
        let sentence = format!(
            "The model ends with {function}. The logits are explained, not the probabilities."
        );
        self.find(node, code, sentence, advice);
    }

    /// Reports an activation that is not 0 at 0. Relevance passes through an activation unchanged,
    /// which assumes that its argument and its value have the same sign.
    fn nonzero_at_zero(&mut self, node: &Node<T>, functions: &Functions<T>) {
        let Some(value) =
            functions.iter().map(|f| f.value(T::zero())).find(|value| *value != T::zero())
        else {
            return;
        };
        let (kind, value) = (node.layer.kind(), value.as_f64());
        let (sentence, advice) = if self.last == Some(node.index) {
            (
                format!(
                    "The model ends with {kind}, which is {value:.3} at 0. If its argument and its \
                     value have different signs, inputs that raise the output have negative \
                     relevance."
                ),
                "End the model before this layer, so that the argument is explained instead.",
            )
        } else {
            (
                format!(
                    "{kind} is {value:.3} at 0, so a unit with a negative argument can have a \
                     positive value. The inputs that raised it then have negative relevance."
                ),
                "Compare with gradient x input before you trust the signs. An activation that is 0 \
                 at 0, such as Tanh, does not have this problem.",
            )
        };
        self.find(node, Code::NonzeroAtZero, sentence, advice);
    }

    /// Reports two dense layers in a row. Together they are a single linear map, so networks rarely
    /// have them. More often an activation was left out.
    fn no_activation(&mut self, node: &Node<T>, values: &Estimate<T>) {
        let (true, Some(before)) = (node.is_dense(), &values.dense) else { return };
        self.find(
            node,
            Code::NoActivation,
            format!(
                "There is no activation between the dense layers '{before}' and '{}'.",
                node.name
            ),
            "If the network has one, such as a function that its forward method calls, add it to \
             the architecture. Without it the outputs are wrong.",
        );
    }

    fn assumed(&mut self, node: &Node<T>) {
        let Some(settings) =
            node.inputs.first().and_then(|&input| node.layer.assumed(self.graph.shape_of(input)))
        else {
            return;
        };
        self.find(
            node,
            Code::AssumedSettings,
            format!(
                "The architecture text omits some of the layer's settings, which are therefore \
                 assumed to be {settings}."
            ),
            "If they have other values, write them into the text. PyTorch prints them only with \
             the Python code in the documentation of relprop::io.",
        );
    }

    fn under_rule(
        &mut self,
        node: &Node<T>,
        linear: &LinearNode<T>,
        site: &Site<'_>,
        values: &Estimate<T>,
    ) -> Result<(), Error> {
        let map = &*linear.map;
        let typical = linear.mean_squares(&values.squares);
        let rule = rule_at(self.rule, site);
        let (name, decomposition) = (rule.name(), rule.decompose(site)?);
        if values.below_zero.is_some_and(|values| values == [T::zero(); 2])
            && gives_to_zeros(&decomposition, map)
        {
            let advice = if site.is_first {
                "Use a rule here that depends on the values of the inputs, such as ZPlus or \
                 Epsilon."
            } else {
                "Use it only at the first layer, with Composite::first, or at a layer whose inputs \
                 are never set to 0."
            };
            self.find(
                node,
                Code::DeadUnits,
                format!(
                    "{name} gives relevance to units that the activation before the layer sets to \
                    0, although they contribute nothing."
                ),
                advice,
            );
        }
        if node.is_norm() {
            let advice = if self.merged.iter().any(|merged| merged.norm == node.name) {
                "Call canonize to merge it into the neighboring linear layer. Most rules then give \
                 a different result, which is the published one."
            } else {
                "It cannot be merged, because neither neighbor is a linear layer that can absorb \
                 it (a padded convolution after it cannot), or because something else reads the \
                 values between. Check its biases in the ledger."
            };
            self.find(
                node,
                Code::UnmergedNorm,
                format!(
                    "{name} explains the normalization as a separate layer, so relevance is lost \
                    to its shift."
                ),
                advice,
            );
        }
        if let Some((of_bias, of_sum)) = bias_against(map, &typical, &decomposition) {
            self.find(
                node,
                Code::LargeBiases,
                format!(
                    "The biases (rms {of_bias:.2}) are larger than what inputs of rms 1 add to \
                     the outputs (rms {of_sum:.2}), so under {name} they may absorb much of the \
                     relevance."
                ),
                "Check the ledger, and compare with BiasMode::Ignore or BiasMode::Distribute.",
            );
        }
        Ok(())
    }
}

/// Whether an input of zero can receive a share.
fn gives_to_zeros<T: Scalar>(decomposition: &Decomposition<T>, map: &dyn LinearMap<T>) -> bool {
    decomposition.linear().into_iter().flat_map(|shares| &shares.groups).any(|group| {
        let distributes = group.bias_mode == BiasMode::Distribute && map.bias().is_some();
        let gives = |input: &InputFactor<T>| match input {
            InputFactor::Of(transform) => transform.value(T::zero()) != T::zero(),
            InputFactor::Fixed(values) => values.iter().any(|v| *v != T::zero()),
        };
        distributes || group.parts.iter().any(|part| gives(&part.input))
    })
}

/// The root mean squares of the biases and of W z, if the biases are larger and the rule assigns
/// them a share.
fn bias_against<T: Scalar>(
    map: &dyn LinearMap<T>,
    typical: &[T],
    decomposition: &Decomposition<T>,
) -> Option<(f64, f64)> {
    let absorbs = |group: &Group<T>| {
        matches!(group.divisor, Divisor::Total(_) | Divisor::TotalOf(..))
            && group.bias_mode == BiasMode::Absorb
    };
    let bias = map.bias().filter(|_| {
        decomposition.linear().into_iter().flat_map(|shares| &shares.groups).any(absorbs)
    })?;
    let mean = |squares: &mut dyn Iterator<Item = f64>| {
        (squares.sum::<f64>() / typical.len() as f64).sqrt()
    };
    let of_bias = mean(&mut bias.iter().map(|b| b.as_f64() * b.as_f64()));
    let of_sum = mean(&mut typical.iter().map(|square| square.as_f64()));
    (of_bias > of_sum).then_some((of_bias, of_sum))
}
