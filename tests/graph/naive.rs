//! A reference for graphs: relevance on any acyclic network, as explicit loops in double precision,
//! written directly from the formulas. It shares no code with the crate.

// The loops follow the formulas, index by index.
#![allow(clippy::needless_range_loop)]

use relprop::layer::Route;
use relprop::nalgebra::{DMatrix, DVector};
use relprop::rule::{Decomposition, Site, Stabilizer};
use relprop::{
    AlphaBeta, Cause, Epsilon, Error, Gamma, Graph, GraphBuilder, Inputs, Layer, Linear, Operator,
    Relative, RelevanceRule, Relu, Scalar, Shape, Softmax, ValueId, ZPlus,
};

/// The stabilizer of a sum.
const NORM: f64 = 1e-6;

/// How a dense layer shares relevance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Formula {
    Epsilon(f64),
    ZPlus(f64),
    /// γ and ε.
    Gamma(f64, f64),
    /// α and ε.
    AlphaBeta(f64, f64),
    Relative,
}

/// What a value is.
#[derive(Debug, Clone)]
pub enum Op {
    Input,
    Given,
    Constant(Vec<f64>),
    Dense {
        weights: Vec<Vec<f64>>,
        bias: Option<Vec<f64>>,
        formula: Formula,
    },
    Relu,
    Sum,
    Concat,
    Select(Vec<usize>),
    /// The same values as a vector.
    Flatten,
}

#[derive(Debug, Clone)]
pub struct Value {
    pub op: Op,
    /// The positions of the values that are read.
    pub reads: Vec<usize>,
    pub shape: Shape,
}

/// A network: a value reads only values before it.
#[derive(Debug, Clone, Default)]
pub struct Naive {
    pub values: Vec<Value>,
    /// Whether the first output is followed by a softmax.
    pub softmax: bool,
    pub outputs: Vec<usize>,
}

/// The relevance of everything, for one starting point.
#[derive(Debug)]
pub struct Relevance {
    pub of: Vec<Vec<f64>>,
    /// The layer, the cause and the relevance of each sink.
    pub sinks: Vec<(usize, Cause, f64)>,
}

/// The share matrix of a layer: for each output, the shares of the inputs and those of the sinks.
type Shares = Vec<(Vec<f64>, Vec<(Cause, f64)>)>;

fn plus(v: f64) -> f64 {
    v.max(0.0)
}

fn minus(v: f64) -> f64 {
    v.min(0.0)
}

impl Formula {
    /// The shares of one output.
    fn share(self, z: &[f64], w: &[f64], b: f64) -> (Vec<f64>, Vec<(Cause, f64)>) {
        let n = z.len();
        let of = |f: &dyn Fn(f64, f64) -> f64| (0..n).map(|i| f(z[i], w[i])).collect::<Vec<f64>>();
        let (mut shares, mut sinks) = (vec![0.0; n], Vec::new());
        let mut add = |c: f64, numerators: Vec<f64>, b: f64, eps: f64, one_sign: bool| {
            let total = numerators.iter().sum::<f64>() + b;
            if one_sign && total == 0.0 {
                sinks.push((Cause::Empty, c));
                return;
            }
            let sign = if total < 0.0 { -1.0 } else { 1.0 };
            let divisor = total + eps * sign;
            for i in 0..n {
                shares[i] += c * numerators[i] / divisor;
            }
            sinks.push((Cause::Bias, c * b / divisor));
            sinks.push((Cause::Stabilizer, c * eps * sign / divisor));
        };
        let positive = |z: f64, w: f64| plus(z) * plus(w) + minus(z) * minus(w);
        let negative = |z: f64, w: f64| plus(z) * minus(w) + minus(z) * plus(w);
        match self {
            Self::Epsilon(eps) => add(1.0, of(&|z, w| z * w), b, eps, false),
            Self::ZPlus(eps) => add(1.0, of(&positive), plus(b), eps, true),
            Self::Gamma(g, eps) => {
                let y = of(&|z, w| z * w).iter().sum::<f64>() + b;
                if y == 0.0 {
                    return (vec![0.0; n], vec![(Cause::Dead, 1.0)]);
                }
                let same = |v: f64| if y > 0.0 { plus(v) } else { minus(v) };
                let other = |v: f64| if y > 0.0 { minus(v) } else { plus(v) };
                let numerators =
                    of(&|z, w| plus(z) * (w + g * same(w)) + minus(z) * (w + g * other(w)));
                add(1.0, numerators, b + g * same(b), eps, false);
            }
            Self::AlphaBeta(alpha, eps) => {
                add(alpha, of(&positive), plus(b), eps, true);
                if alpha > 1.0 {
                    add(1.0 - alpha, of(&negative), minus(b), eps, true);
                }
            }
            Self::Relative => {
                shares = of(&|z, w| z * w / n as f64);
                sinks = vec![(Cause::Rest, 1.0 - shares.iter().sum::<f64>())];
            }
        }
        (shares, sinks)
    }

    fn rule<T: Scalar>(self) -> Box<dyn RelevanceRule<T>> {
        let absolute = Stabilizer::Absolute;
        match self {
            Self::Epsilon(eps) => Box::new(Epsilon::new(eps).unwrap()),
            Self::ZPlus(eps) => Box::new(ZPlus::default().with_stabilizer(absolute(eps)).unwrap()),
            Self::Gamma(g, eps) => {
                Box::new(Gamma::new(g).unwrap().with_stabilizer(absolute(eps)).unwrap())
            }
            Self::AlphaBeta(alpha, eps) => {
                let rule = AlphaBeta::new(alpha, alpha - 1.0).unwrap();
                Box::new(rule.with_stabilizer(absolute(eps)).unwrap())
            }
            Self::Relative => Box::new(Relative::default()),
        }
    }
}

impl Naive {
    pub fn add(&mut self, op: Op, reads: &[usize], shape: impl Into<Shape>) -> usize {
        self.values.push(Value { op, reads: reads.to_vec(), shape: shape.into() });
        self.values.len() - 1
    }

    pub fn input(&mut self, shape: impl Into<Shape>) -> usize {
        self.add(Op::Input, &[], shape)
    }

    pub fn given(&mut self, shape: impl Into<Shape>) -> usize {
        self.add(Op::Given, &[], shape)
    }

    pub fn constant(&mut self, values: &[f64]) -> usize {
        self.add(Op::Constant(values.to_vec()), &[], values.len())
    }

    pub fn dense(
        &mut self,
        reads: usize,
        weights: Vec<Vec<f64>>,
        bias: Option<Vec<f64>>,
        formula: Formula,
    ) -> usize {
        let outputs = weights.len();
        self.add(Op::Dense { weights, bias, formula }, &[reads], outputs)
    }

    pub fn relu(&mut self, reads: usize) -> usize {
        self.add(Op::Relu, &[reads], self.values[reads].shape)
    }

    pub fn flatten(&mut self, reads: usize) -> usize {
        self.add(Op::Flatten, &[reads], self.size(reads))
    }

    pub fn sum(&mut self, reads: &[usize]) -> usize {
        self.add(Op::Sum, reads, self.values[reads[0]].shape)
    }

    /// The concatenation of vectors.
    pub fn concat(&mut self, reads: &[usize]) -> usize {
        let size: usize = reads.iter().map(|&value| self.size(value)).sum();
        self.add(Op::Concat, reads, size)
    }

    pub fn select(&mut self, reads: usize, from: &[usize]) -> usize {
        self.add(Op::Select(from.to_vec()), &[reads], from.len())
    }

    pub fn size(&self, value: usize) -> usize {
        self.values[value].shape.size()
    }

    pub fn is_input(&self, value: usize) -> bool {
        matches!(self.values[value].op, Op::Input | Op::Given | Op::Constant(_))
    }

    /// The name of a value in the crate's graph.
    pub fn name(&self, value: usize) -> String {
        match self.values[value].op {
            // These are built without a name.
            Op::Sum | Op::Concat => self.layer_of(value).to_string(),
            _ => format!("v{value}"),
        }
    }

    /// The index of the layer that computes a value.
    pub fn layer_of(&self, value: usize) -> usize {
        (0..value).filter(|&before| !self.is_input(before)).count()
    }

    /// The inputs whose values a sample has, in order.
    pub fn sampled(&self) -> Vec<usize> {
        let is = |&value: &usize| matches!(self.values[value].op, Op::Input | Op::Given);
        (0..self.values.len()).filter(is).collect()
    }

    pub fn explained(&self) -> Vec<usize> {
        (0..self.values.len()).filter(|&v| matches!(self.values[v].op, Op::Input)).collect()
    }

    fn joined(&self, value: usize, all: &[Vec<f64>]) -> Vec<f64> {
        self.values[value].reads.iter().flat_map(|&read| all[read].clone()).collect()
    }

    /// All values, for a sample with the values of all inputs one after another.
    pub fn compute(&self, sample: &[f64]) -> Vec<Vec<f64>> {
        let (mut all, mut first): (Vec<Vec<f64>>, _) = (Vec::new(), 0);
        for (at, value) in self.values.iter().enumerate() {
            let z = self.joined(at, &all);
            all.push(match &value.op {
                Op::Input | Op::Given => {
                    first += value.shape.size();
                    sample[first - value.shape.size()..first].to_vec()
                }
                Op::Constant(values) => values.clone(),
                Op::Dense { weights, bias, .. } => (0..weights.len())
                    .map(|j| {
                        let product: f64 = (0..z.len()).map(|i| z[i] * weights[j][i]).sum();
                        product + bias.as_ref().map_or(0.0, |b| b[j])
                    })
                    .collect(),
                Op::Relu => z.iter().map(|&z| plus(z)).collect(),
                Op::Sum => {
                    let size = value.shape.size();
                    (0..size).map(|j| z.iter().skip(j).step_by(size).sum()).collect()
                }
                Op::Concat | Op::Flatten => z,
                Op::Select(from) => from.iter().map(|&i| z[i]).collect(),
            });
        }
        all
    }

    /// The share matrix of the layer that computes a value.
    pub fn shares(&self, value: usize, all: &[Vec<f64>]) -> Shares {
        let z = self.joined(value, all);
        let unit = |i: usize| {
            let mut shares = vec![0.0; z.len()];
            shares[i] = 1.0;
            (shares, Vec::new())
        };
        match &self.values[value].op {
            Op::Dense { weights, bias, formula } => (0..weights.len())
                .map(|j| formula.share(&z, &weights[j], bias.as_ref().map_or(0.0, |b| b[j])))
                .collect(),
            Op::Sum => {
                let size = self.size(value);
                let weights = |j: usize| {
                    (0..z.len()).map(|i| if i % size == j { 1.0 } else { 0.0 }).collect::<Vec<_>>()
                };
                (0..size).map(|j| Formula::Epsilon(NORM).share(&z, &weights(j), 0.0)).collect()
            }
            Op::Select(from) => from.iter().map(|&i| unit(i)).collect(),
            _ => (0..z.len()).map(unit).collect(),
        }
    }

    /// Which values depend on the entries.
    pub fn dependent(&self, entries: &[usize]) -> Vec<bool> {
        let mut depends: Vec<bool> = Vec::new();
        for (at, value) in self.values.iter().enumerate() {
            let reads = value.reads.iter().any(|&read| depends[read]);
            depends.push(entries.contains(&at) || reads);
        }
        depends
    }

    /// The relevance of every value, from that of the output's units down to the entries: the
    /// relevance of a value is the sum over the layers that read it.
    pub fn explain(
        &self,
        all: &[Vec<f64>],
        output: usize,
        entries: &[usize],
        start: &[f64],
    ) -> Relevance {
        let depends = self.dependent(entries);
        let mut of: Vec<Vec<f64>> = all.iter().map(|values| vec![0.0; values.len()]).collect();
        of[output] = start.to_vec();
        let mut sinks = Vec::new();
        for at in (0..=output).rev() {
            if !depends[at] || entries.contains(&at) || self.is_input(at) {
                continue;
            }
            let (above, layer) = (of[at].clone(), self.layer_of(at));
            for (j, (shares, own)) in self.shares(at, all).into_iter().enumerate() {
                sinks
                    .extend(own.into_iter().map(|(cause, share)| (layer, cause, share * above[j])));
                let mut first = 0;
                for &read in &self.values[at].reads {
                    for i in 0..self.size(read) {
                        let part = shares[first + i] * above[j];
                        if depends[read] {
                            of[read][i] += part;
                        } else {
                            sinks.push((layer, Cause::Constant, part));
                        }
                    }
                    first += self.size(read);
                }
            }
        }
        Relevance { of, sinks }
    }

    /// The same network, with the crate's builder.
    pub fn builder<T: Scalar>(&self) -> GraphBuilder<T> {
        let mut graph = Graph::builder();
        let mut ids: Vec<ValueId> = Vec::new();
        let vector = |v: &[f64]| v.iter().map(|&v| T::from_f64(v)).collect::<Vec<T>>();
        for (at, value) in self.values.iter().enumerate() {
            let (name, shape) = (self.name(at), value.shape);
            let reads = value.reads.iter().map(|&read| ids[read]);
            ids.push(match &value.op {
                Op::Input => graph.input(&name, shape),
                Op::Given => graph.given(&name, shape),
                Op::Constant(values) => graph.constant(&name, shape, vector(values)),
                Op::Dense { weights, bias, .. } => {
                    let matrix = DMatrix::from_fn(weights.len(), weights[0].len(), |j, i| {
                        T::from_f64(weights[j][i])
                    });
                    let bias = bias.as_ref().map(|bias| DVector::from_vec(vector(bias)));
                    graph.named(&name, Linear::new(matrix, bias).unwrap(), reads)
                }
                Op::Relu => graph.named(&name, Relu, reads),
                Op::Sum => graph.sum(reads),
                Op::Concat => graph.concat(reads),
                Op::Select(from) => graph.named(&name, Select(from.clone()), reads),
                Op::Flatten => graph.named(&name, relprop::Flatten, reads),
            });
        }
        for (number, &output) in self.outputs.iter().enumerate() {
            let mut value = ids[output];
            if number == 0 && self.softmax {
                value = graph.named("softmax", Softmax, [value]);
            }
            graph.output(&format!("out{number}"), value);
        }
        graph
    }

    pub fn graph<T: Scalar>(&self) -> Graph<T> {
        self.builder().build().unwrap()
    }

    /// The values of each input by name, for some samples.
    pub fn inputs<T: Scalar>(&self, samples: &[Vec<f64>]) -> Inputs<'static, T> {
        let (mut inputs, mut first) = (Inputs::new(), 0);
        for value in self.sampled() {
            let size = self.size(value);
            let of = |sample: &Vec<f64>| sample[first..first + size].to_vec();
            let values = samples.iter().flat_map(of).map(T::from_f64).collect::<Vec<T>>();
            inputs = inputs.value(self.name(value), values);
            first += size;
        }
        inputs
    }
}

/// The network is also a rule: each dense layer has its own formula.
impl<T: Scalar> RelevanceRule<T> for Naive {
    fn name(&self) -> String {
        "Naive".to_owned()
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<T>, Error> {
        let value: usize = site.name.trim_start_matches('v').parse().unwrap();
        let Op::Dense { formula, .. } = &self.values[value].op else { panic!("{site:?}") };
        formula.rule().decompose(site)
    }
}

/// A fixed selection.
#[derive(Debug)]
struct Select(Vec<usize>);

impl<T: Scalar> Layer<T> for Select {
    fn kind(&self) -> &str {
        "Select"
    }

    fn operator(&self, _: &[Shape]) -> Result<Operator<T>, Error> {
        Ok(Operator::Route(std::sync::Arc::new(Self(self.0.clone()))))
    }
}

impl<T: Scalar> Route<T> for Select {
    fn output_shape(&self) -> Shape {
        self.0.len().into()
    }

    fn route(&self, _: &[T], from: &mut [usize]) {
        from.copy_from_slice(&self.0);
    }

    fn is_fixed(&self) -> bool {
        true
    }
}
