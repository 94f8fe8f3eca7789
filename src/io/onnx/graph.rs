//! From a graph to layers and branches.
//!
//! Each node whose values depend on the input becomes a [`Step`]. The steps from the input to the output are a graph again; a
//! value that all ways to a sum or concatenation pass is where its branches begin (it *dominates* it), so that a graph of
//! nested sums and concatenations is read off from the output backwards.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::constant::{self, Budget, Constant};
use super::expression::Expression;
use super::operator::Made;
use super::proto::{self, Node};
use super::{is_standard, malformed, shortened};
use crate::error::{Error, UnsupportedNode};
use crate::io::tensor::Tensor;
use crate::layer::{Branch, Concat, Layer, Named, Operator, Residual};
use crate::scalar::Scalar;
use crate::sequential::{Sequential, SequentialBuilder};
use crate::shape::Shape;

/// So many values may be added up or put behind one another.
const JOINED: usize = 1 << 10;

/// Why a node is not read all of whose inputs are constants.
const NOT_AHEAD: &str = "it cannot be computed ahead of the input, or is too large";

/// So deep may branches stand in one another.
const DEPTH: usize = 32;

/// What a name in the graph stands for.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Constant(Constant),
    /// What a step gives.
    Step(usize),
}

/// Values that depend on the input, and how they are made.
#[derive(Debug)]
pub(super) struct Step<T: Scalar> {
    /// The node, `None` for the input.
    node: Option<usize>,
    name: String,
    operator: String,
    pub kind: Kind<T>,
    /// The sizes of a sample's values, where they are known: they are not behind a node that is not read.
    pub dims: Option<Vec<usize>>,
    pub nonnegative: bool,
    /// It is computed of shapes that are not known, as they are behind a node that is not read.
    pub of_shape: bool,
    /// The values as functions of other steps' values, one by one.
    pub expressions: Vec<(usize, Rc<Expression>)>,
}

#[derive(Debug)]
pub(super) enum Kind<T: Scalar> {
    Input,
    /// Layers one behind the other.
    Layers(usize, Vec<Arc<dyn Layer<T>>>),
    /// Zeros before and behind along each of the axes of space, for the convolution or pooling that follows.
    Padded(usize, Vec<[usize; 2]>),
    Joined {
        of: Vec<usize>,
        summed: bool,
    },
    /// It is not read.
    Refused(Vec<usize>, String),
    /// It would be read, but stands behind one that is not.
    Behind(Vec<usize>),
}

impl<T: Scalar> Kind<T> {
    fn inputs(&self) -> &[usize] {
        match self {
            Self::Input => &[],
            Self::Layers(of, _) | Self::Padded(of, _) => std::slice::from_ref(of),
            Self::Joined { of, .. } | Self::Refused(of, _) | Self::Behind(of) => of,
        }
    }
}

#[derive(Debug)]
pub(super) struct Reader<T: Scalar> {
    pub steps: Vec<Step<T>>,
    values: HashMap<String, Value>,
    /// How often each name is read.
    pub uses: HashMap<String, usize>,
    /// Steps that have more than one name.
    pub aliased: HashSet<usize>,
    /// How many samples the file is made for, 1 where it says none.
    pub batch: usize,
    budget: Budget,
    /// Concatenations by what they are of.
    pub concatenated: HashMap<Vec<usize>, usize>,
}

impl<T: Scalar> Reader<T> {
    /// With the graph's constants, and its one input of a shape that the file or the caller says.
    pub fn new(graph: &proto::Graph, size: usize, folder: Option<&Path>, shape: Option<Shape>) -> Result<Self, Error> {
        let mut values = HashMap::new();
        for bytes in &graph.initializer {
            let tensor = proto::Tensor::decode(bytes.clone()).map_err(|e| malformed(e.to_string()))?;
            let name = tensor.name.clone();
            let refused = |reason: String| malformed(format!("tensor '{}': {reason}", shortened(&name)));
            let constant = Constant::read(&tensor, folder).map_err(refused)?;
            values.insert(name, Value::Constant(constant));
        }
        let inputs: Vec<_> = graph.input.iter().filter(|input| !values.contains_key(&input.name)).collect();
        let [input] = inputs.as_slice() else {
            let names: Vec<_> = inputs.iter().take(20).map(|input| format!("'{}'", shortened(&input.name))).collect();
            return Err(malformed(format!("a model needs one input, it has {}: {}", inputs.len(), names.join(", "))));
        };
        let (batch, dims) = sample(input, shape)?;
        let first = Step {
            node: None,
            name: input.name.clone(),
            operator: String::new(),
            kind: Kind::Input,
            dims: Some(dims),
            nonnegative: false,
            of_shape: false,
            expressions: Vec::new(),
        };
        values.insert(input.name.clone(), Value::Step(0));
        let (uses, aliased, concatenated) = Default::default();
        Ok(Self { steps: vec![first], values, uses, aliased, batch, budget: Budget::of(size), concatenated })
    }

    /// The model from the input to an output.
    pub fn read(mut self, graph: &proto::Graph, output: &str) -> Result<Sequential<T>, Error> {
        let decode = |bytes: &Bytes| Node::decode(bytes.clone()).map_err(|e| malformed(e.to_string()));
        for bytes in &graph.node {
            for input in decode(bytes)?.input {
                *self.uses.entry(input).or_default() += 1;
            }
        }
        for output in &graph.output {
            *self.uses.entry(output.name.clone()).or_default() += 1;
        }
        for (index, bytes) in graph.node.iter().enumerate() {
            self.node(index, &decode(bytes)?)?;
        }
        match self.values.get(output) {
            Some(&Value::Step(step)) => self.model(step),
            Some(Value::Constant(_)) => Err(malformed(format!("output '{}' does not depend on the input", shortened(output)))),
            None => Err(malformed(format!("no node gives the output '{}'", shortened(output)))),
        }
    }

    fn node(&mut self, index: usize, node: &Node) -> Result<(), Error> {
        let name = node.output.first().filter(|_| node.name.is_empty()).unwrap_or(&node.name).clone();
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            let value = self.values.get(input).cloned();
            if value.is_none() && !input.is_empty() {
                let (name, input) = (shortened(&name), shortened(input));
                let reason = format!("node '{name}' reads '{input}', which no node before it gives: there is a cycle, or no order");
                return Err(malformed(reason));
            }
            inputs.push(value);
        }
        let steps: Vec<usize> =
            inputs.iter().flatten().filter_map(|value| if let Value::Step(step) = value { Some(*step) } else { None }).collect();
        let operator = if is_standard(&node.domain) { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) };
        let value = if steps.is_empty() {
            let constants: Vec<Option<&Constant>> = inputs
                .iter()
                .map(|value| if let Some(Value::Constant(constant)) = value { Some(constant) } else { None })
                .collect();
            let folded = if is_standard(&node.domain) { constant::fold(node, &constants, &mut self.budget) } else { None };
            folded.map_or_else(|| self.refuse(index, &name, &operator, steps, NOT_AHEAD.to_owned()), Value::Constant)
        } else if operator == "Shape"
            && let Some(dims) = self.full_dims(steps[0])
        {
            // The shape is known, whatever the values are.
            let of = Constant { dims, values: constant::Values::Other };
            let folded = constant::fold(node, &[Some(&of)], &mut self.budget);
            folded.map_or_else(|| self.refuse(index, &name, &operator, steps, NOT_AHEAD.to_owned()), Value::Constant)
        } else if operator == "Shape" || steps.iter().all(|&step| self.steps[step].of_shape) {
            let step = self.push(index, &name, &operator, Kind::Behind(steps));
            self.steps[step].of_shape = true;
            Value::Step(step)
        } else {
            match self.operator(node, &operator, &inputs) {
                Ok(Made::Same(step)) => {
                    self.aliased.insert(step);
                    Value::Step(step)
                }
                Ok(Made::Step(kind, expressions)) => {
                    let concatenated = matches!(kind, Kind::Joined { summed: false, .. });
                    let step = self.push(index, &name, &operator, kind);
                    if concatenated {
                        self.concatenated.insert(steps, step);
                    }
                    self.steps[step].expressions = expressions;
                    Value::Step(step)
                }
                Err(reason) => self.refuse(index, &name, &operator, steps, reason),
            }
        };
        for (place, output) in node.output.iter().enumerate().filter(|(_, output)| !output.is_empty()) {
            let value = if place == 0 {
                value.clone()
            } else {
                let of = if let Value::Step(step) = value { vec![step] } else { Vec::new() };
                self.refuse(index, output, &operator, of, format!("its output {place} is not read"))
            };
            self.values.insert(output.clone(), value);
        }
        Ok(())
    }

    fn refuse(&mut self, index: usize, name: &str, operator: &str, of: Vec<usize>, reason: String) -> Value {
        Value::Step(self.push(index, name, operator, Kind::Refused(of, reason)))
    }

    /// Adds a step, with the shape and sign of its values.
    fn push(&mut self, index: usize, name: &str, operator: &str, mut kind: Kind<T>) -> usize {
        let (mut dims, mut nonnegative) = (None, false);
        match self.follow(&kind) {
            Ok(known) => (dims, nonnegative) = known,
            Err(reason) => kind = Kind::Refused(kind.inputs().to_vec(), reason),
        }
        if dims.is_none() && keeps_shape(operator) {
            // So that what stands behind it is looked at, too.
            let of = kind.inputs().iter().filter_map(|&step| self.steps[step].dims.as_ref());
            dims = of.max_by_key(|dims| Tensor::count(dims)).cloned();
        }
        let (name, operator) = (name.to_owned(), operator.to_owned());
        self.steps.push(Step {
            node: Some(index),
            name,
            operator,
            kind,
            dims,
            nonnegative,
            of_shape: false,
            expressions: Vec::new(),
        });
        self.steps.len() - 1
    }

    /// The sizes of what a kind of step gives, and whether it is never negative.
    fn follow(&self, kind: &Kind<T>) -> Result<(Option<Vec<usize>>, bool), String> {
        match kind {
            Kind::Layers(of, layers) => {
                let Some(dims) = &self.steps[*of].dims else { return Ok((None, false)) };
                let mut shape = shape_of(dims)?;
                let mut sign = self.steps[*of].nonnegative;
                for layer in layers {
                    (shape, sign) = match layer.operator(shape).map_err(|e| e.to_string())? {
                        Operator::Linear(map) | Operator::Average(map) => {
                            if map.inputs() != shape.size() {
                                return Err(format!("it takes {} values and is given {}", map.inputs(), shape.size()));
                            }
                            (map.output_shape(), sign && map.keeps_sign())
                        }
                        Operator::Elementwise(function) => (shape, function.is_nonnegative(sign)),
                        Operator::Route(route) => (route.output_shape(), sign),
                        Operator::Reshape(shape) => (shape, sign),
                        Operator::Branches(..) | Operator::Softmax => (shape, false),
                    };
                }
                Ok((Some(shape.dims().to_vec()), sign))
            }
            Kind::Padded(of, by) => {
                let Some(mut dims) = self.steps[*of].dims.clone() else { return Ok((None, false)) };
                for (dim, [before, behind]) in dims.iter_mut().skip(1).zip(by) {
                    *dim = dim.checked_add(*before).and_then(|dim| dim.checked_add(*behind)).ok_or("its sizes overflow")?;
                }
                Ok((Some(dims), self.steps[*of].nonnegative))
            }
            Kind::Joined { of, .. } if of.len() > JOINED => Err(format!("it has {} inputs, {JOINED} at most are read", of.len())),
            Kind::Joined { of, summed } => {
                let all: Option<Vec<&Vec<usize>>> = of.iter().map(|&step| self.steps[step].dims.as_ref()).collect();
                let Some(all) = all else { return Ok((None, false)) };
                let mut dims = (*all.first().ok_or("it is of nothing")?).clone();
                let fits = |other: &&Vec<usize>| {
                    if *summed { **other == dims } else { other.len() == dims.len() && other.get(1..) == dims.get(1..) }
                };
                if !all.iter().all(fits) {
                    return Err(format!("its inputs have different shapes: {:?}", &all[..all.len().min(8)]));
                }
                if !summed && !dims.is_empty() {
                    dims[0] = all.iter().try_fold(0_usize, |sum, dims| sum.checked_add(dims[0])).ok_or("its sizes overflow")?;
                }
                Ok((Some(dims), of.iter().all(|&step| self.steps[step].nonnegative)))
            }
            Kind::Input | Kind::Refused(..) | Kind::Behind(_) => Ok((None, false)),
        }
    }

    /// The sizes of a step's values with the samples' axis, as ONNX counts them.
    pub fn full_dims(&self, step: usize) -> Option<Vec<usize>> {
        self.steps[step].dims.as_ref().map(|dims| [&[self.batch], dims.as_slice()].concat())
    }

    fn model(mut self, output: usize) -> Result<Sequential<T>, Error> {
        let mut needed = vec![false; self.steps.len()];
        needed[output] = true;
        for step in (0..=output).rev() {
            if needed[step] {
                self.steps[step].kind.inputs().iter().for_each(|&input| needed[input] = true);
            }
        }
        let mut refused: Vec<UnsupportedNode> = Vec::new();
        for step in self.steps.iter().zip(&needed).filter(|(_, needed)| **needed).map(|(step, _)| step) {
            match &step.kind {
                Kind::Refused(_, reason) => refused.push(step.unsupported(reason)),
                Kind::Padded(..) => refused.push(step.unsupported("zeros are padded before a convolution or a pooling only")),
                _ => {}
            }
        }
        if !refused.is_empty() {
            return Err(Error::UnsupportedNodes { nodes: refused });
        }
        if !needed[0] {
            return Err(malformed("the output does not depend on the input".to_owned()));
        }
        let input = shape_of(self.steps[0].dims.as_deref().unwrap_or_default()).map_err(malformed)?;
        self.name_steps(&needed);
        let dominators = Dominators::of(&self.steps[..=output], &needed);
        let mut placed = vec![false; self.steps.len()];
        let layers = self.chain(&dominators, &mut placed, 0, output, 0)?;
        SequentialBuilder::from(Branch { layers }).input(input).build()
    }

    /// Gives each step a name that is its own, and fit for a model's text.
    fn name_steps(&mut self, needed: &[bool]) {
        let mut taken = HashSet::new();
        for (step, _) in self.steps.iter_mut().zip(needed).filter(|(_, needed)| **needed) {
            let fit = |c: char| if c.is_alphanumeric() || "_-./:".contains(c) { c } else { '_' };
            let name: String = step.name.chars().take(200).map(fit).collect();
            let node = step.node.unwrap_or(0);
            step.name = if name.is_empty() || taken.contains(&name) { format!("{name}_{node}") } else { name };
            taken.insert(step.name.clone());
        }
    }

    /// The layers from behind one step to another that it dominates.
    fn chain(
        &self,
        dominators: &Dominators,
        placed: &mut [bool],
        from: usize,
        to: usize,
        depth: usize,
    ) -> Result<Vec<Named<T>>, Error> {
        if depth > DEPTH {
            return Err(malformed(format!("its branches stand in one another more than {DEPTH} deep")));
        }
        let mut layers = Vec::new();
        let mut at = to;
        while at != from {
            let step = &self.steps[at];
            if std::mem::replace(&mut placed[at], true) {
                let reason = "its values go into several branches, and not only where these begin";
                return Err(Error::UnsupportedNodes { nodes: vec![step.unsupported(reason)] });
            }
            let name = |place: usize| if place == 0 { step.name.clone() } else { format!("{}-{place}", step.name) };
            match &step.kind {
                Kind::Layers(of, own) => {
                    let named =
                        own.iter().enumerate().map(|(place, layer)| Named { name: Some(name(place)), layer: layer.clone() });
                    layers.extend(named.rev());
                    at = *of;
                }
                Kind::Joined { of, summed } => {
                    let begin = dominators.immediate[at];
                    let layer = self.join(dominators, placed, begin, of, *summed, depth)?;
                    layers.push(Named { name: Some(name(0)), layer });
                    at = begin;
                }
                _ => return Err(malformed(format!("node '{}' has no place", shortened(&step.name)))),
            }
        }
        layers.reverse();
        Ok(layers)
    }
}

impl<T: Scalar> Reader<T> {
    /// Branches that begin at one step and end at others. Neighbours that go the first part of their way together are joined by
    /// themselves: exporters make one flat list of lists within lists.
    fn join(
        &self,
        dominators: &Dominators,
        placed: &mut [bool],
        begin: usize,
        ends: &[usize],
        summed: bool,
        depth: usize,
    ) -> Result<Arc<dyn Layer<T>>, Error> {
        let mut branches = Vec::new();
        let mut rest = ends;
        while let Some(&first) = rest.first() {
            let (mut parting, mut count) = (first, 1);
            while let Some(&end) = rest.get(count) {
                let common = dominators.common(parting, end);
                if common == begin {
                    break;
                }
                (parting, count) = (common, count + 1);
            }
            let (together, behind) = rest.split_at(count);
            let mut layers = self.chain(dominators, placed, begin, parting, depth + 1)?;
            if count > 1 {
                let layer = self.join(dominators, placed, parting, together, summed, depth + 1)?;
                layers.push(Named { name: Some(format!("join-{}", branches.len())), layer });
            }
            branches.push(Branch { layers });
            rest = behind;
        }
        Ok(if summed { Arc::new(Residual::new(branches)?) } else { Arc::new(Concat::new(branches)?) })
    }
}

impl<T: Scalar> Step<T> {
    fn unsupported(&self, reason: &str) -> UnsupportedNode {
        UnsupportedNode {
            name: shortened(&self.name),
            operator: shortened(&self.operator),
            path: self.node.map_or_else(|| "graph.input".to_owned(), |index| format!("graph.node[{index}]")),
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
    fn of<T: Scalar>(steps: &[Step<T>], needed: &[bool]) -> Self {
        let mut known = Self { immediate: vec![0; steps.len()], depth: vec![0; steps.len()] };
        for (at, step) in steps.iter().enumerate().skip(1).filter(|(at, _)| needed[*at]) {
            let common = step.kind.inputs().iter().copied().reduce(|a, b| known.common(a, b)).unwrap_or(0);
            (known.immediate[at], known.depth[at]) = (common, known.depth[common] + 1);
        }
        known
    }

    /// The last step that all ways to both of these pass.
    fn common(&self, mut a: usize, mut b: usize) -> usize {
        while a != b {
            if self.depth[a] >= self.depth[b] { a = self.immediate[a] } else { b = self.immediate[b] }
        }
        a
    }
}

/// Functions of each value, and normalisations: what they give has the shape of the largest of what they take, though they may
/// not be read.
fn keeps_shape(operator: &str) -> bool {
    let arithmetic = ["Add", "Sum", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Greater", "Less", "Where", "Clip", "PRelu"];
    let functions =
        ["Erf", "Exp", "Log", "Neg", "Abs", "Sqrt", "Reciprocal", "HardSigmoid", "Selu", "Swish", "Softmax", "LogSoftmax"];
    arithmetic.contains(&operator) || functions.contains(&operator) || operator.ends_with("Normalization")
}

/// How many samples a file's input is made for, and the sizes of one.
fn sample(input: &proto::ValueInfo, given: Option<Shape>) -> Result<(usize, Vec<usize>), Error> {
    let name = shortened(&input.name);
    let shape = input.r#type.as_ref().and_then(|of| of.tensor.as_ref()).and_then(|tensor| tensor.shape.as_ref());
    let known = |value: Option<i64>| value.and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0);
    let dims: Vec<Option<usize>> = shape.iter().flat_map(|shape| &shape.dim).map(|dim| known(dim.value)).collect();
    let batch = dims.first().copied().flatten().unwrap_or(1);
    if let Some(given) = given {
        let fits = |(dim, given): (&Option<usize>, &usize)| dim.is_none_or(|dim| dim == *given);
        if !dims.is_empty() && (dims.len() != given.dims().len() + 1 || !dims[1..].iter().zip(given.dims()).all(fits)) {
            return Err(malformed(format!("its input '{name}' has another shape than {given}")));
        }
        return Ok((batch, given.dims().to_vec()));
    }
    let [_, rest @ ..] = dims.as_slice() else {
        return Err(malformed(format!("its input '{name}' has no shape: say it, with OnnxFile::input")));
    };
    if rest.is_empty() {
        let reason = "has one axis only: export the model with an input of samples x features";
        return Err(malformed(format!("its input '{name}' {reason}")));
    }
    if rest.len() > 3 {
        return Err(malformed(format!("its input '{name}' has {} axes: vectors, sequences and images are read", rest.len())));
    }
    let open = || malformed(format!("the shape of its input '{name}' is left open: say it, with OnnxFile::input"));
    Ok((batch, rest.iter().copied().collect::<Option<_>>().ok_or_else(open)?))
}

/// One to three sizes; none at all is one value.
pub(super) fn shape_of(dims: &[usize]) -> Result<Shape, String> {
    if dims.is_empty() {
        return Ok(Shape::from(1));
    }
    super::super::shape(dims).ok_or_else(|| format!("its values have {} axes: vectors, sequences and images are read", dims.len()))
}
