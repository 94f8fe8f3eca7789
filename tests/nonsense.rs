//! Layers and rules from outside the crate that return nonsense: each gives an error or a sound
//! result, and none panics.

use std::sync::Arc;

use proptest::prelude::*;
use relprop::layer::{Joined, Route};
use relprop::nalgebra::DMatrix;
use relprop::rule::{
    Decomposition, Divisor, Gate, Group, NormalizationShares, Outside, Part, ProductShares, Site,
    SoftmaxShares, Stabilizer, Transform,
};
use relprop::{
    Accumulation, Bias, BiasMode, Branch, Elementwise, Error, Graph, Layer, Linear, LinearMap,
    Operator, RelevanceRule, Relu, Rule, Sequential, Shape, Targets, WeightFn,
};

/// The numbers from which everything else is made.
#[derive(Debug, Clone)]
struct Dice(Vec<u32>);

impl Dice {
    fn at(&self, place: usize) -> usize {
        self.0[place % self.0.len()] as usize
    }

    /// True once in so many cases.
    fn one_in(&self, cases: usize, place: usize) -> bool {
        self.at(place).is_multiple_of(cases)
    }

    fn size(&self, place: usize) -> usize {
        [3, 3, 3, 0, 1, 2, 4, 6, 9, usize::MAX / 128, usize::MAX][self.at(place) % 11]
    }

    fn number(&self, place: usize) -> f64 {
        let usual = self.at(place) as f64 / f64::from(u32::MAX) * 2.0 - 1.0;
        [usual, usual, usual, 0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, -1e-310]
            [self.at(place) % 9]
    }

    fn shape(&self, place: usize) -> Shape {
        match self.at(place) % 4 {
            0 => self.size(place + 1).into(),
            1 => [self.size(place + 1), self.size(place + 2)].into(),
            2 => [1, 3].into(),
            _ => 3.into(),
        }
    }
}

/// A layer that returns what the dice say.
#[derive(Debug, Clone)]
struct AnyLayer(Dice);

impl Layer<f64> for AnyLayer {
    fn kind(&self) -> &str {
        "AnyLayer"
    }

    fn operator(&self, inputs: &[Shape]) -> Result<Operator<f64>, Error> {
        let dice = &self.0;
        let own = || Arc::new(self.clone());
        Ok(match dice.at(0) % 11 {
            0 | 1 => Operator::Linear(own()),
            2 => Operator::Average(own()),
            3 => Operator::Elementwise(own()),
            4 => Operator::PerChannel((0..dice.size(1).min(9)).map(|_| own() as _).collect()),
            5 => Operator::Route(own()),
            6 => Operator::Reshape(dice.shape(1)),
            7 => Operator::Branches(
                (0..dice.at(1) % 3)
                    .map(|_| Branch::from(Sequential::builder().layer(Relu)))
                    .collect(),
                if dice.one_in(2, 2) { Joined::Summed } else { Joined::Concatenated },
            ),
            8 => Operator::Softmax(dice.size(1)),
            9 => Operator::Sum,
            _ if inputs.is_empty() => Operator::Sum,
            _ => Operator::Concat,
        })
    }

    fn inputs(&self) -> Option<usize> {
        (self.0.one_in(3, 9)).then(|| self.0.size(10))
    }
}

impl Elementwise<f64> for AnyLayer {
    fn value(&self, z: f64) -> f64 {
        if self.0.one_in(2, 3) { self.0.number(4) } else { z + self.0.number(4) }
    }

    fn is_nonnegative(&self, _input: bool) -> bool {
        self.0.one_in(4, 5)
    }
}

impl Route<f64> for AnyLayer {
    fn output_shape(&self) -> Shape {
        self.0.shape(3)
    }

    fn is_fixed(&self) -> bool {
        self.0.one_in(2, 4)
    }

    fn route(&self, _values: &[f64], from: &mut [usize]) {
        let set = if self.0.one_in(4, 5) { from.len() / 2 } else { from.len() };
        for (place, from) in from[..set].iter_mut().enumerate() {
            *from = [0, 1, 2, 0, 1, 2, 7, usize::MAX][self.0.at(place + 6) % 8];
        }
    }
}

/// A map whose sizes, values and bias contradict each other, but whose own methods do not panic.
impl LinearMap<f64> for AnyLayer {
    fn inputs(&self) -> usize {
        self.0.size(3)
    }

    fn outputs(&self) -> usize {
        self.0.size(4)
    }

    fn output_shape(&self) -> Shape {
        if self.0.one_in(3, 5) { self.0.shape(5) } else { self.outputs().into() }
    }

    fn bias(&self) -> Option<Bias<'_, f64>> {
        const BIASES: [&[f64]; 5] = [&[], &[1.0], &[1.0, 2.0, -1.0], &[f64::NAN; 3], &[0.5; 4]];
        (self.0.one_in(2, 6)).then(|| BIASES[self.0.at(7) % 5].into())
    }

    fn keeps_sign(&self) -> bool {
        self.0.one_in(3, 8)
    }

    fn apply(&self, x: &[f64], y: &mut [f64]) {
        if !self.0.one_in(4, 9) {
            let sum: f64 = x.iter().sum();
            y.iter_mut().enumerate().for_each(|(k, y)| *y = sum + self.0.number(k));
        }
    }

    fn apply_transposed(&self, y: &[f64], x: &mut [f64]) {
        LinearMap::apply(self, y, x);
    }

    fn map_weights(&self, f: &WeightFn<f64>) -> Box<dyn LinearMap<f64>> {
        let mut other = self.clone();
        if self.0.one_in(4, 10) {
            other.0.0.rotate_left(1);
        }
        other.0.0.push(if f.value(0.5) > 0.4 { 7 } else { 8 });
        Box::new(other)
    }
}

/// A rule that returns what the dice say.
#[derive(Debug, Clone)]
struct AnyRule(Dice);

impl RelevanceRule<f64> for AnyRule {
    fn name(&self) -> String {
        "AnyRule".to_owned()
    }

    fn decompose(&self, site: &Site<'_>) -> Result<Decomposition<f64>, Error> {
        let dice = &self.0;
        match dice.at(0) % 12 {
            0 => return Ok(Decomposition::Product(ProductShares::Half)),
            1 => return Ok(Decomposition::Normalization(NormalizationShares::Identity)),
            2 => return Ok(Decomposition::Softmax(SoftmaxShares::Taylor)),
            _ => {}
        }
        let groups = (0..dice.at(1) % 4).map(|group| self.group(10 * group, site)).collect();
        let decomposition = Decomposition::new(groups);
        Ok(if dice.one_in(4, 2) {
            let (low, high) = (dice.number(3), dice.number(4));
            let sizes = [site.inputs, site.inputs, dice.at(5) % 9];
            decomposition.for_inputs(
                vec![low; sizes[dice.at(6) % 3]],
                vec![high; sizes[dice.at(7) % 3]],
                if dice.one_in(2, 8) { Outside::Refuse } else { Outside::Report },
            )
        } else {
            decomposition
        })
    }
}

impl AnyRule {
    fn group(&self, at: usize, site: &Site<'_>) -> Group<f64> {
        let dice = &self.0;
        let stabilizer = match dice.at(at + 1) % 4 {
            0 => Stabilizer::None,
            1 => Stabilizer::Absolute(dice.number(at + 2)),
            2 => Stabilizer::RelativeToRms(dice.number(at + 2)),
            _ => Stabilizer::default(),
        };
        let parts = |at: usize| (0..dice.at(at) % 3).map(|k| self.part(at + k, site)).collect();
        let divisor = match dice.at(at + 3) % 5 {
            0 => Divisor::FanIn,
            1 => Divisor::One,
            2 => Divisor::TotalOf(parts(at + 4), stabilizer),
            _ => Divisor::Total(stabilizer),
        };
        let modes = [BiasMode::Absorb, BiasMode::Ignore, BiasMode::Distribute];
        let gates = [Gate::Always, Gate::Positive, Gate::Negative];
        let group = Group::new(parts(at + 5), divisor)
            .times(if dice.one_in(2, at + 6) { 1.0 } else { dice.number(at + 6) })
            .with_bias(modes[dice.at(at + 7) % 3], self.transform(at + 8))
            .where_output(gates[dice.at(at + 9) % 3]);
        if dice.one_in(5, at + 2) { group.of_one_sign() } else { group }
    }

    fn part(&self, at: usize, site: &Site<'_>) -> Part<f64> {
        let dice = &self.0;
        match dice.at(at + 1) % 6 {
            0 => Part::same(),
            1 => {
                let size = [site.inputs, site.inputs, 0, 5][dice.at(at + 2) % 4];
                Part::fixed(vec![dice.number(at + 3); size], self.transform(at + 4))
            }
            _ => Part::new(self.transform(at + 2), self.transform(at + 4)),
        }
    }

    fn transform(&self, at: usize) -> Transform<f64> {
        let number = self.0.number(at + 1);
        match self.0.at(at) % 6 {
            0 | 1 => Transform::Identity,
            2 => Transform::One,
            3 => Transform::Positive,
            4 => Transform::Negative,
            _ => Transform::map(move |v| v + number),
        }
    }
}

fn linear() -> Linear<f64> {
    Linear::new(
        DMatrix::from_fn(3, 3, |j, i| (i as f64 - 1.3 * j as f64).sin()),
        relprop::nalgebra::dvector![0.1, -0.2, 0.3],
    )
    .unwrap()
}

/// Explains samples in every way and checks that all numbers that come out are finite.
fn explain(model: &Graph<f64>, rule: &dyn RelevanceRule<f64>) {
    let _ = model.check(rule);
    let Ok(explainer) = model.explainer(rule) else { return };
    let size = model.inputs();
    let samples: Vec<f64> = (0..2 * size).map(|i| (i as f64 * 0.7).cos()).collect();
    let (orders, outputs) =
        ([Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse], model.outputs());
    for order in orders {
        for targets in [
            Targets::All,
            Targets::Predicted,
            Targets::Weighted(DMatrix::from_element(outputs.min(99), 1, 0.5)),
        ] {
            let Ok(explainer) = explainer.clone().accumulation(order).targets(targets) else {
                continue;
            };
            let explained = explainer.explain_slice(&samples[..size]);
            let mut workspace = explainer.workspace();
            let _ = explainer.explain_batch_into(&samples, &mut workspace);
            let Ok(explanation) = explained else { continue };
            for target in explanation.targets().collect::<Vec<_>>() {
                let relevance = explanation.relevance(target).unwrap();
                assert!(relevance.iter().all(|v| v.is_finite()), "{relevance}");
                let ledger = explanation.ledger(target).unwrap();
                assert!(ledger.entries().iter().all(|entry| entry.relevance().is_finite()));
            }
        }
    }
    if let Ok(trace) = explainer.trace_slice(&samples[..size]) {
        for layer in 0..=model.layers().len() {
            let shares = trace.shares(layer).unwrap();
            assert!(shares.iter().all(|v| v.is_finite()));
            let _ = (trace.prefix(layer), trace.of_weights(layer, 0));
        }
        let _ = trace.paths(0, 2);
    }
    let _ = explainer.with_health().explain_slice(&samples[..size]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn layers_that_return_nonsense(
        dice in prop::collection::vec(any::<u32>(), 16),
        other in prop::collection::vec(any::<u32>(), 16),
        (alone, rule) in (any::<bool>(), 0..Rule::ALL.len()),
    ) {
        let (layer, other) = (AnyLayer(Dice(dice)), AnyLayer(Dice(other)));
        let rule = Rule::ALL[rule];
        let layers = Sequential::builder().layer(linear()).layer(layer.clone());
        let layers = if alone { layers } else { layers.layer(other.clone()).layer(linear()) };
        if let Ok(model) = layers.build() {
            explain(&model, &rule);
        }
        let mut graph = Graph::builder();
        let x = graph.input("x", 3);
        let a = graph.layer(layer, [x]);
        let b = graph.layer(other.clone(), if alone { vec![x, a] } else { vec![a] });
        let c = graph.layer(linear(), [x]);
        let sum = graph.sum([b, c]);
        let d = graph.layer(other, [sum, a]);
        graph.output("sum", sum);
        graph.output("d", d);
        if let Ok(graph) = graph.build() {
            explain(&graph, &rule);
            if let Ok(graph) = graph.with_output("d") {
                explain(&graph, &rule);
            }
        }
    }

    #[test]
    fn rules_that_return_nonsense(
        dice in prop::collection::vec(any::<u32>(), 64),
        twice in any::<bool>(),
    ) {
        let rule = AnyRule(Dice(dice));
        let layers = Sequential::builder().layer(linear()).layer(Relu);
        let layers = if twice { layers.layer(linear()) } else { layers };
        explain(&layers.build().unwrap(), &rule);
    }
}
