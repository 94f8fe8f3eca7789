//! Graphs: networks of any structure, compared with a reference that adds up relevance edge by edge.

mod naive;

use crate::common;
use naive::{Formula, Naive, Op, Relevance};
use proptest::prelude::*;
use relprop::nalgebra::{DMatrix, DVector, dmatrix, dvector};
use relprop::{
    Accumulation, BatchNorm1d, Cause, Code, Composite, Embedding, Epsilon, Error, Explanation,
    Flatten, Gamma, Graph, GraphBuilder, Inputs, Layer, Linear, Operator, Relative, RelevanceRule,
    Relu, Rule, Scalar, Sequential, Shape, Sigmoid, Softmax, Targets, Trace, ValueId,
};

const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];
const EPSILON: Formula = Formula::Epsilon(1e-3);

/// Numbers between -1 and 1 that follow no pattern.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    // The first numbers are close to the seed.
    (0..count + 8).map(|_| next()).skip(8).collect()
}

fn rows(outputs: usize, inputs: usize, seed: u64) -> Vec<Vec<f64>> {
    numbers(outputs * inputs, seed).chunks(inputs).map(<[f64]>::to_vec).collect()
}

/// A linear layer with weights that follow no pattern.
fn linear<T: Scalar>(outputs: usize, inputs: usize, seed: u64) -> Linear<T> {
    let rows = rows(outputs, inputs, seed);
    let weights = DMatrix::from_fn(outputs, inputs, |j, i| T::from_f64(rows[j][i]));
    let bias = numbers(outputs, seed + 1).into_iter().map(T::from_f64).collect::<Vec<_>>();
    Linear::new(weights, DVector::from_vec(bias)).unwrap()
}

/// Shorthand for networks with weights that follow no pattern.
trait Random {
    fn layer(&mut self, reads: usize, outputs: usize, formula: Formula) -> usize;
    fn plain(&mut self, reads: usize, outputs: usize) -> usize;
}

impl Random for Naive {
    fn layer(&mut self, reads: usize, outputs: usize, formula: Formula) -> usize {
        let seed = 10 * self.values.len() as u64;
        let weights = rows(outputs, self.size(reads), seed + 3);
        self.dense(reads, weights, Some(numbers(outputs, seed + 4)), formula)
    }

    fn plain(&mut self, reads: usize, outputs: usize) -> usize {
        self.layer(reads, outputs, EPSILON)
    }
}

fn close(found: f64, expected: f64, allowed: f64, what: impl Fn() -> String) {
    assert!((found - expected).abs() <= allowed, "{}: {found} for {expected}", what());
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |max: f64, v| max.max(v.abs()))
}

/// A network, what is explained, and a sample.
struct Case<'a> {
    naive: &'a Naive,
    output: usize,
    entries: &'a [usize],
    all: Vec<Vec<f64>>,
}

impl Case<'_> {
    /// The expected relevance for a target, with the shares of the outputs scaled by `by`.
    fn expected<T: Scalar>(&self, found: &Explanation<T>, target: usize, by: f64) -> Relevance {
        let y = &self.all[self.output];
        let start: Vec<f64> = if found.is_weighted() {
            (0..y.len()).map(|k| by * weightings::<f64>(y.len())[(k, target)] * y[k]).collect()
        } else {
            (0..y.len()).map(|k| if k == target { by } else { 0.0 }).collect()
        };
        self.naive.explain(&self.all, self.output, self.entries, &start)
    }

    /// What a relevance is multiplied by, because shares are those of an output.
    fn scale<T: Scalar>(&self, found: &Explanation<T>, target: usize) -> f64 {
        if found.is_weighted() { 1.0 } else { self.all[self.output][target] }
    }

    fn compare<T: Scalar>(&self, found: &Explanation<T>, tolerance: f64) {
        let y = &self.all[self.output];
        for (k, &y) in y.iter().enumerate() {
            close(found.output()[k].as_f64(), y, tolerance * (1.0 + y.abs()), || format!("y {k}"));
        }
        let names: Vec<_> = found.inputs().map(|(name, shape)| (name.to_owned(), shape)).collect();
        let known = |&value: &usize| (self.naive.name(value), self.naive.values[value].shape);
        assert_eq!(names, self.entries.iter().map(known).collect::<Vec<_>>());
        for (column, target) in found.targets().enumerate() {
            let expected = self.expected(found, target, 1.0);
            let scale = self.scale(found, target);
            let sinks: Vec<f64> = expected.sinks.iter().map(|(_, _, share)| *share).collect();
            let allowed =
                tolerance * largest(&expected.of.concat()).max(largest(&sinks)).max(1e-30);
            let power = f64::from(found.exponent()).exp2();
            let mut first = 0;
            for &entry in self.entries {
                let own = found.relevance_of(&self.naive.name(entry), target).unwrap();
                for (i, share) in expected.of[entry].iter().enumerate() {
                    let is = found.shares()[(first + i, column)].as_f64() * power;
                    close(is, *share, allowed, || format!("v{entry}[{i}] in {target}"));
                    let relevance = own[i].as_f64() * power;
                    close(relevance, share * scale, allowed * scale.abs().max(1e-30), || {
                        format!("relevance of v{entry}[{i}] in {target}")
                    });
                }
                first += own.len();
            }
            assert_eq!(first, found.shares().nrows());
            let ledger = found.ledger(target).unwrap();
            let mut sums: Vec<((usize, Cause), f64)> = Vec::new();
            let listed = expected.sinks.iter().map(|(l, c, share)| ((*l, *c), share * scale));
            let entries = ledger.entries().iter().map(|e| ((e.layer(), e.cause()), -e.relevance()));
            for (key, part) in listed.chain(entries) {
                match sums.iter_mut().find(|(other, _)| *other == key) {
                    Some((_, sum)) => *sum += part,
                    None => sums.push((key, part)),
                }
            }
            let allowed = allowed * scale.abs().max(1e-30) * 10.0;
            for ((layer, cause), difference) in sums {
                close(difference, 0.0, allowed, || format!("layer {layer} {cause} in {target}"));
            }
            // Relevance that cancels leaves only rounding, which is small next to what cancels.
            let closes = ledger.imbalance() < tolerance.max(1e-9);
            assert!(closes || ledger.rounding().abs() <= allowed, "{ledger}");
        }
    }

    fn compare_trace(&self, trace: &Trace<f64>, carrying: &[usize]) {
        let (naive, found) = (self.naive, trace.explanation());
        self.compare(found, 1e-9);
        for target in found.targets() {
            let expected = self.expected(found, target, self.scale(found, target));
            let size = largest(&expected.of.concat()).max(1e-30);
            let allowed = 1e-9 * size;
            for value in (0..=self.output).filter(|&value| !naive.is_input(value)) {
                // A value that is read twice is listed once.
                let mut reads = Vec::new();
                for &read in &naive.values[value].reads {
                    if !reads.contains(&read) {
                        reads.push(read);
                    }
                }
                let units: Vec<f64> =
                    reads.iter().flat_map(|&read| expected.of[read].clone()).collect();
                let name = naive.name(value);
                let relevance = trace.relevance(name.as_str(), target).unwrap();
                assert_eq!(relevance, trace.relevance(naive.layer_of(value), target).unwrap());
                assert_eq!(relevance.len(), units.len());
                for (unit, expected) in units.iter().enumerate() {
                    close(relevance[unit], *expected, allowed, || format!("unit {unit} of {name}"));
                }
                if !carrying.contains(&value) {
                    continue;
                }
                // The shares of the explained values in each unit.
                let prefix = trace.prefix(name.as_str()).unwrap();
                let mut unit = 0;
                for &read in &reads {
                    for j in 0..naive.size(read) {
                        let mut one = vec![0.0; naive.size(read)];
                        one[j] = 1.0;
                        let own = naive.explain(&self.all, read, self.entries, &one);
                        let parts = self.entries.iter().flat_map(|&entry| own.of[entry].clone());
                        let parts: Vec<f64> = parts.collect();
                        let through = trace.through(name.as_str(), &[unit], target).unwrap();
                        let allowed = 1e-9 * largest(&own.of.concat()).max(1e-30);
                        for (i, part) in parts.iter().enumerate() {
                            let what = || format!("input {i} in unit {unit} of {name}");
                            close(prefix[(i, unit)], *part, allowed, what);
                            let r = units[unit];
                            close(through[i], part * r, allowed * size, what);
                        }
                        unit += 1;
                    }
                }
                let is_weighted =
                    matches!(naive.values[value].op, Op::Dense { .. } | Op::Sum | Op::Select(_));
                match trace.of_weights(name.as_str(), target) {
                    Ok(weights) => {
                        assert!(is_weighted);
                        for (j, (shares, _)) in naive.shares(value, &self.all).iter().enumerate() {
                            for (i, share) in shares.iter().enumerate() {
                                let r = share * expected.of[value][j];
                                close(weights[(j, i)], r, 1e-9 * (1.0 + r.abs()), || {
                                    format!("weight {j} {i} of {name}")
                                });
                            }
                        }
                    }
                    Err(error) => {
                        assert!(
                            !is_weighted && matches!(error, Error::NotLinear { .. }),
                            "{error}"
                        );
                    }
                }
            }
        }
    }
}

fn weightings<T: Scalar>(outputs: usize) -> DMatrix<T> {
    DMatrix::from_fn(outputs, 2, |k, w| T::from_f64(if k == w { 1.0 } else { -0.5 }))
}

fn all_targets<T: Scalar>(outputs: usize) -> [Targets<T>; 4] {
    [
        Targets::All,
        Targets::Outputs(vec![outputs - 1, 0]),
        Targets::Predicted,
        Targets::Weighted(weightings(outputs)),
    ]
}

/// The values of nodes through which relevance flows.
fn carrying(naive: &Naive, output: usize, entries: &[usize]) -> Vec<usize> {
    let depends = naive.dependent(entries);
    let mut needed = vec![false; naive.values.len()];
    needed[output] = true;
    let mut list = Vec::new();
    for value in (0..=output).rev() {
        if needed[value] && depends[value] && !entries.contains(&value) && !naive.is_input(value) {
            naive.values[value].reads.iter().for_each(|&read| needed[read] = true);
            list.push(value);
        }
    }
    list
}

/// A sample for a network, with the values of all inputs one after another.
fn sample(naive: &Naive, seed: u64) -> Vec<f64> {
    let size = naive.sampled().iter().map(|&value| naive.size(value)).sum();
    numbers(size, seed)
}

/// Compares a view of a network with the reference: every order, all kinds of targets, the trace,
/// batches and sweeps.
fn check_view(naive: &Naive, graph: &Graph<f64>, output: usize, entries: &[usize]) {
    let samples: Vec<Vec<f64>> = (0..3).map(|seed| sample(naive, 77 + seed)).collect();
    let carrying = carrying(naive, output, entries);
    for targets in all_targets(naive.size(output)) {
        let explainer = graph.explainer(naive).unwrap().targets(targets).unwrap();
        let mut first = None;
        for order in ORDERS {
            let explainer = explainer.clone().accumulation(order);
            let batch = explainer.explain_batch_inputs(&naive.inputs(&samples)).unwrap();
            let columns = DMatrix::from_column_slice(samples[0].len(), 3, &samples.concat());
            assert_eq!(batch, explainer.explain_batch(&columns).unwrap());
            for (sample, found) in samples.iter().zip(&batch) {
                assert_eq!(*found, explainer.explain_slice(sample).unwrap());
                let one = naive.inputs(std::slice::from_ref(sample));
                assert_eq!(*found, explainer.explain_inputs(&one).unwrap());
                let case = Case { naive, output, entries, all: naive.compute(sample) };
                case.compare(found, 1e-9);
                if naive.softmax && output == naive.outputs[0] {
                    let exp: Vec<f64> = case.all[output].iter().map(|y| y.exp()).collect();
                    for (k, e) in exp.iter().enumerate() {
                        let p = found.probabilities().unwrap()[k];
                        close(p, e / exp.iter().sum::<f64>(), 1e-12, || format!("probability {k}"));
                    }
                } else {
                    assert!(found.probabilities().is_none());
                }
            }
            first.get_or_insert(batch);
        }
        let trace = explainer.trace_slice(&samples[0]).unwrap();
        let case = Case { naive, output, entries, all: naive.compute(&samples[0]) };
        case.compare_trace(&trace, &carrying);
    }
    let sweep = graph.sweep([naive, naive]).unwrap().explain_slice(&samples[1]).unwrap();
    assert_eq!(sweep[0], graph.explainer(naive).unwrap().explain_slice(&samples[1]).unwrap());
    assert_eq!(sweep[0], sweep[1]);
}

fn check(naive: &Naive) {
    check_view(naive, &naive.graph(), naive.outputs[0], &naive.explained());
}

/// The nodes a, b and c read the same value and meet at different depths, so the network is not
/// series-parallel.
fn bridge(formulas: [Formula; 4]) -> Naive {
    let mut naive = Naive::default();
    let x = naive.input(4);
    let stem = naive.layer(x, 5, formulas[0]);
    let stem = naive.relu(stem);
    let a = naive.layer(stem, 3, formulas[1]);
    let b = naive.layer(stem, 3, formulas[2]);
    let c = naive.layer(stem, 3, formulas[3]);
    let ab = naive.sum(&[a, b]);
    let ab = naive.relu(ab);
    let deeper = naive.plain(ab, 3);
    let cross = naive.sum(&[b, c, deeper]);
    let joined = naive.concat(&[cross, ab, stem]);
    let y = naive.plain(joined, 4);
    naive.outputs = vec![y];
    naive
}

#[test]
fn three_readers_that_meet_at_different_depths() {
    check(&bridge([EPSILON; 4]));
    check(&bridge([
        Formula::ZPlus(1e-3),
        Formula::Gamma(0.25, 1e-3),
        Formula::AlphaBeta(2.0, 1e-3),
        EPSILON,
    ]));
    check(&Naive { softmax: true, ..bridge([Formula::Relative; 4]) });
}

#[test]
fn several_inputs() {
    for three in [false, true] {
        let mut naive = Naive::default();
        let (a, image) = (naive.input(3), naive.input([2, 2, 2]));
        let flat = naive.flatten(image);
        let inner = naive.plain(flat, 3);
        let early = naive.relu(inner);
        let mut joined = naive.sum(&[a, early]);
        if three {
            let c = naive.input([1, 4]);
            let c = naive.flatten(c);
            joined = naive.concat(&[joined, c, a]);
        }
        let y = naive.layer(joined, 3, Formula::Gamma(0.5, 1e-3));
        naive.outputs = vec![y];
        check(&naive);
        let names = naive.graph::<f64>();
        let names = names.input_names();
        assert_eq!(names[1], ("v1", [2, 2, 2].into()));
        assert_eq!(names.len(), if three { 3 } else { 2 });
    }
}

#[test]
fn an_input_that_is_part_of_the_output() {
    let mut naive = Naive::default();
    let x = naive.input(3);
    let hidden = naive.plain(x, 5);
    let hidden = naive.relu(hidden);
    let back = naive.layer(hidden, 3, Formula::ZPlus(1e-3));
    let y = naive.sum(&[back, x]);
    naive.outputs = vec![y];
    check(&naive);
    // The input alone, twice in the sum, and in a concatenation at the end.
    let twice = naive.sum(&[x, back, x]);
    let end = naive.concat(&[twice, x, hidden]);
    naive.outputs = vec![end];
    check(&naive);
}

#[test]
fn a_value_that_is_read_twice_by_one_node() {
    let mut naive = Naive::default();
    let x = naive.input(3);
    let a = naive.plain(x, 3);
    let twice = naive.sum(&[a, a]);
    let pair = naive.concat(&[twice, a, twice]);
    let y = naive.plain(pair, 2);
    naive.outputs = vec![y];
    check(&naive);
    naive.outputs = vec![twice];
    check(&naive);

    // The units of a layer that reads a value twice are those of the value.
    let graph = naive.graph::<f64>();
    let trace = graph.explainer(&naive).unwrap().trace(&dvector![0.3, -0.4, 0.5]).unwrap();
    for target in 0..3 {
        let whole = trace.relevance(0, target).unwrap();
        let all = trace.through("1", &[0, 1, 2], target).unwrap();
        assert!((whole - all).amax() < 1e-12);
        assert!(
            (trace.prefix("1").unwrap() * trace.shares("1").unwrap()
                - trace.explanation().shares())
            .amax()
                < 1e-12
        );
    }
}

#[test]
fn layers_that_share_their_weights() {
    let shared = linear::<f64>(3, 3, 5);
    let mut graph = Graph::builder();
    let x = graph.input("x", 3);
    let first = graph.named("first", shared.clone(), [x]);
    let relu = graph.layer(Relu, [first]);
    let second = graph.named("second", shared.clone(), [relu]);
    let y = graph.sum([second, first]);
    graph.output("y", y);
    let graph = graph.build().unwrap();

    let mut naive = Naive::default();
    let x = naive.input(3);
    let (weights, bias) = (rows(3, 3, 5), numbers(3, 6));
    let first = naive.dense(x, weights.clone(), Some(bias.clone()), EPSILON);
    let relu = naive.relu(first);
    let second = naive.dense(relu, weights, Some(bias), EPSILON);
    let y = naive.sum(&[second, first]);
    naive.outputs = vec![y];
    check(&naive);
    let sample = sample(&naive, 1);
    let case = Case { naive: &naive, output: y, entries: &[x], all: naive.compute(&sample) };
    let found = graph.explain(&DVector::from_vec(sample), Epsilon::new(1e-3).unwrap()).unwrap();
    let expected = case.expected(&found, 0, found.output()[0]);
    for i in 0..3 {
        close(found.relevance(0).unwrap()[i], expected.of[x][i], 1e-12, || format!("{i}"));
    }
}

/// A row of dense layers and activations as a graph and as a sequential model.
fn chain<T: Scalar>(layers: usize, width: usize) -> (Graph<T>, Sequential<T>) {
    let (mut graph, mut sequential) = (Graph::builder(), Sequential::builder());
    let mut value = graph.input("input", width);
    for number in 0..layers as u64 {
        // Mostly positive, so that some units are always active.
        let weights = numbers(width * width, number).into_iter().map(|w| T::from_f64(w + 0.6));
        let weights = DMatrix::from_iterator(width, width, weights) / T::from_f64(4.0);
        let layer = Linear::new(weights, DVector::from_element(width, T::from_f64(0.05))).unwrap();
        value = graph.layer(layer.clone(), [value]);
        value = graph.layer(Relu, [value]);
        sequential = sequential.layer(layer).layer(Relu);
    }
    graph.output("output", value);
    (graph.build().unwrap(), sequential.build().unwrap())
}

fn check_chain<T: Scalar>(rule: impl RelevanceRule<T>) -> Explanation<T> {
    let (graph, sequential) = chain::<T>(100, 6);
    assert_eq!(graph.layers().len(), 200);
    let x: Vec<T> = numbers(6, 9).into_iter().map(T::from_f64).collect();
    let mut last = None;
    for targets in all_targets(6) {
        for order in ORDERS {
            let explain = |graph: &Graph<T>| {
                let explainer = graph.explainer(&rule).unwrap().accumulation(order);
                explainer.targets(targets.clone()).unwrap().explain_slice(&x).unwrap()
            };
            let found = explain(&graph);
            assert_eq!(found, explain(&sequential));
            last = Some(found);
        }
    }
    last.unwrap()
}

#[test]
fn a_chain_of_200_layers_is_a_sequential_model() {
    check_chain::<f64>(Rule::Epsilon);
    check_chain::<f32>(Rule::Epsilon);
    // Far below the range of the number type.
    assert!(check_chain::<f32>(Rule::Relative).exponent() < -126);
    check_chain::<f64>(Rule::Relative);
}

/// Fifty dense layers, with a skip from the first value to the last and another one half way.
fn deep() -> Naive {
    let mut naive = Naive::default();
    let x = naive.input(5);
    let mut value = x;
    let mut half = x;
    for layer in 0..50 {
        let weights =
            rows(5, 5, layer).into_iter().map(|row| row.iter().map(|w| w / 2.0).collect());
        value = naive.dense(value, weights.collect(), Some(numbers(5, layer)), Formula::Relative);
        if layer == 25 {
            half = value;
        }
    }
    let y = naive.concat(&[value, half, x]);
    naive.outputs = vec![y];
    naive
}

#[test]
fn exponents_inside_a_segment() {
    let naive = deep();
    check(&naive);
    let sample = sample(&naive, 3);
    let single: Vec<f32> = sample.iter().map(|&v| f32::from_f64(v)).collect();
    let rounded: Vec<f64> = single.iter().map(|&v| f64::from(v)).collect();
    let (all, y) = (naive.compute(&rounded), naive.outputs[0]);
    let graph = naive.graph::<f32>();
    for order in ORDERS {
        let explainer = graph.explainer(Relative::default()).unwrap().accumulation(order);
        // Each part of the output by itself: relevances of 1e-40, 1e-20 and 1.
        for target in [0, 7, 12] {
            let found = explainer.clone().targets(target).unwrap().explain_slice(&single).unwrap();
            let mut start = vec![0.0; 15];
            start[target] = 1.0;
            let expected = naive.explain(&all, y, &[0], &start);
            let power = f64::from(found.exponent()).exp2();
            let scale = largest(&expected.of[0]);
            for i in 0..5 {
                let is = f64::from(found.shares()[(i, 0)]) * power;
                close(is, expected.of[0][i], 2e-4 * scale, || format!("{order:?} {target} {i}"));
            }
        }
        assert!(
            explainer.clone().targets(0).unwrap().explain_slice(&single).unwrap().exponent() < 0
        );
        let whole = explainer.explain_slice(&single).unwrap();
        Case { naive: &naive, output: y, entries: &[0], all: all.clone() }.compare(&whole, 1e-5);
    }
}

/// Relevances of very different sizes meet at a value, in either order, and at two inputs.
#[test]
fn tiny_relevances_beside_large_ones() {
    for layers in (10..70).step_by(3) {
        let mut naive = Naive::default();
        let (x, z) = (naive.input(5), naive.input(5));
        let early = naive.select(x, &[0, 1, 2, 3, 4]);
        let chain = |naive: &mut Naive, mut value: usize| {
            for _ in 0..layers {
                let seed = naive.values.len() as u64;
                let weights = numbers(25, seed).into_iter().map(|w| w / 2.0).collect::<Vec<_>>();
                let weights = weights.chunks(5).map(<[f64]>::to_vec).collect();
                value = naive.dense(value, weights, Some(numbers(5, seed)), Formula::Relative);
            }
            value
        };
        let (of_x, of_z) = (chain(&mut naive, x), chain(&mut naive, z));
        let late = naive.select(x, &[4, 3, 2, 1, 0]);
        for direct in [early, late] {
            let joined = naive.concat(&[of_x, of_z, direct]);
            let y = naive.layer(joined, 3, EPSILON);
            naive.outputs = vec![y];
            let graph = naive.graph::<f32>();
            let single: Vec<f32> = sample(&naive, 3).into_iter().map(f32::from_f64).collect();
            let rounded: Vec<f64> = single.iter().map(|&v| f64::from(v)).collect();
            let case =
                Case { naive: &naive, output: y, entries: &[x, z], all: naive.compute(&rounded) };
            for order in ORDERS {
                let explainer = graph.explainer(&naive).unwrap().accumulation(order);
                case.compare(&explainer.explain_slice(&single).unwrap(), 1e-4);
            }
        }
    }
}

#[test]
fn given_inputs_and_constants() {
    let mut naive = Naive::default();
    let (x, mask) = (naive.input(3), naive.given(3));
    let offset = naive.constant(&[0.3, -0.7, 2.0]);
    let hidden = naive.plain(x, 3);
    let masked = naive.sum(&[hidden, mask, offset]);
    let relu = naive.relu(masked);
    // This depends on given values alone.
    let of_mask = naive.plain(mask, 2);
    let of_mask = naive.relu(of_mask);
    let joined = naive.concat(&[relu, mask, of_mask]);
    let wide = naive.layer(joined, 4, Formula::Gamma(0.25, 1e-3));
    let ends = naive.concat(&[of_mask, wide, offset]);
    let mixed = naive.plain(ends, 3);
    let y = naive.sum(&[offset, mixed]);
    naive.outputs = vec![y, of_mask];
    check(&naive);
    // An output that is a constant in part.
    naive.outputs = vec![ends];
    check(&naive);
    naive.outputs = vec![of_mask];
    let error = naive.graph::<f64>().explainer(Rule::Epsilon).unwrap_err();
    assert!(matches!(error, Error::NotDependent { .. }));

    // A constant that is all of a sum, by hand: 3 of 4 parts go to the sink.
    let mut graph = Graph::builder();
    let x = graph.input("x", 1);
    let c = graph.constant("c", 1, vec![3.0]);
    let y = graph.sum([x, c]);
    graph.output("y", y);
    let graph = graph.build().unwrap();
    let found = graph.explain(&dvector![1.0], Rule::Lrp0).unwrap();
    close(found.relevance(0).unwrap()[0], 1.0, 1e-5, || "x".to_owned());
    close(found.ledger(0).unwrap().total(Cause::Constant), 3.0, 1e-5, || "c".to_owned());
}

/// Two tokens of an embedding, added to positions and read by a dense layer. The table has three
/// rows.
fn tokens() -> Graph<f64> {
    let mut graph = Graph::builder();
    let ids = graph.given_whole("ids", 2);
    let positions = graph.constant("positions", [2, 2], vec![0.5, 0.25, 1.0, -2.0]);
    let table = dmatrix![1.0, 2.0; -1.0, 3.0; 4.0, 0.5];
    let rows = graph.named("embeddings", Embedding::new(&table).unwrap(), [ids]);
    let placed = graph.sum([rows, positions]);
    let flat = graph.layer(Flatten, [placed]);
    let y = graph.named("head", linear(2, 4, 8), [flat]);
    graph.output("y", y);
    graph.build().unwrap()
}

#[test]
fn whole_numbers() {
    let table = [[1.0, 2.0], [-1.0, 3.0], [4.0, 0.5]];
    let mut naive = Naive::default();
    let rows_of = naive.input([2, 2]);
    let positions = naive.add(Op::Constant(vec![0.5, 0.25, 1.0, -2.0]), &[], [2, 2]);
    let placed = naive.sum(&[rows_of, positions]);
    let flat = naive.flatten(placed);
    let (weights, bias) = (rows(2, 4, 8), numbers(2, 9));
    let y = naive.dense(flat, weights, Some(bias), EPSILON);
    let graph = tokens().explain_from(["embeddings"]).unwrap();
    let explainer = graph.explainer(Epsilon::new(1e-3).unwrap()).unwrap();
    let batches: Vec<i64> = vec![2, 0, 1, 1, 0, 2];
    for order in ORDERS {
        let explainer = explainer.clone().accumulation(order);
        let batch = Inputs::new().given("ids", &batches);
        let batch = explainer.explain_batch_inputs(&batch).unwrap();
        assert_eq!(batch.len(), 3);
        for (ids, found) in batches.chunks(2).zip(&batch) {
            let one = explainer.explain_inputs(&Inputs::new().given("ids", ids)).unwrap();
            assert_eq!(one, *found);
            let values: Vec<f64> =
                ids.iter().flat_map(|&id| table[usize::try_from(id).unwrap()]).collect();
            let all = naive.compute(&values);
            assert!((found.output()[1] - all[y][1]).abs() < 1e-12);
            for target in 0..2 {
                let mut start = vec![0.0; 2];
                start[target] = all[y][target];
                let expected = naive.explain(&all, y, &[rows_of], &start);
                let relevance = found.relevance_of("embeddings", target).unwrap();
                for (i, r) in expected.of[rows_of].iter().enumerate() {
                    close(relevance[i], *r, 1e-9, || format!("{i}"));
                }
                let constant: f64 =
                    expected.sinks.iter().filter(|s| s.1 == Cause::Constant).map(|s| s.2).sum();
                close(found.ledger(target).unwrap().total(Cause::Constant), constant, 1e-9, || {
                    "constant".into()
                });
            }
        }
    }
}

#[test]
fn explaining_from_inner_values() {
    let naive = bridge([EPSILON, Formula::Gamma(0.25, 1e-3), EPSILON, Formula::ZPlus(1e-3)]);
    let graph = naive.graph::<f64>();
    // x 0, dense 1, relu 2 (stem), a 3, b 4, c 5, a + b 6, relu 7, deeper 8, cross 9, joined 10.
    for entries in [
        // All relevance flows through these values.
        vec![2],
        vec![1],
        vec![10],
        // Some relevance bypasses these values. The sink of constants receives it.
        vec![7],
        vec![4],
        vec![9],
        // Several values, some of them downstream of others.
        vec![3, 5],
        vec![2, 8],
        vec![9, 7, 0],
        vec![0, 1, 6],
    ] {
        let names: Vec<String> = entries.iter().map(|&value| naive.name(value)).collect();
        let view = graph.explain_from(names.iter().map(String::as_str)).unwrap();
        check_view(&naive, &view, naive.outputs[0], &entries);
    }
    let twice = graph.explain_from(["v2", "v2"]).unwrap();
    check_view(&naive, &twice, naive.outputs[0], &[2]);
}

#[test]
fn explaining_inner_values() {
    let mut naive = bridge([EPSILON; 4]);
    naive.outputs.push(9);
    let graph = Naive { softmax: true, ..naive.clone() }.graph::<f64>();
    for (name, output) in [("out1", 9), ("v7", 7), ("v2", 2), ("v8", 8), ("v1", 1)] {
        let view = graph.with_output(name).unwrap();
        assert_eq!(view.outputs(), naive.size(output));
        check_view(&naive, &view, output, &[0]);
    }
    for (name, output, entries) in [
        ("out1", 9, vec![2]),
        ("v8", 8, vec![7]),
        ("v8", 8, vec![4, 3]),
        // Only an activation lies between the two.
        ("v7", 7, vec![6]),
        ("v2", 2, vec![1]),
    ] {
        let names: Vec<String> = entries.iter().map(|&value| naive.name(value)).collect();
        let names = || names.iter().map(String::as_str);
        let view = graph.with_output(name).unwrap().explain_from(names()).unwrap();
        check_view(&naive, &view, output, &entries);
        let other = graph.explain_from(names()).unwrap().with_output(name).unwrap();
        let x = DVector::from_vec(sample(&naive, 4));
        assert_eq!(other.explain(&x, &naive).unwrap(), view.explain(&x, &naive).unwrap());
    }
}

#[test]
fn rules_by_place_and_findings() {
    let naive = bridge([EPSILON; 4]);
    let graph = naive.graph::<f64>();
    let rule = Composite::new(Epsilon::new(1e-3).unwrap())
        .layer("v3", Gamma::new(0.5).unwrap())
        .first(Rule::WSquare)
        .kind("Sum", Epsilon::new(0.1).unwrap());
    let explainer = graph.explainer(rule).unwrap();
    let rules: Vec<_> = explainer.rules().map(|(layer, rule)| (layer, rule.to_owned())).collect();
    assert_eq!(rules[0], ("v1", "WSquare".to_owned()));
    assert!(rules.iter().any(|(layer, rule)| *layer == "v3" && rule.starts_with("Gamma(0.5")));
    assert!(rules.iter().any(|(layer, rule)| *layer == "5" && rule == "Epsilon(0.1)"));
    // A layer that no relevance reaches has no rule, so a setting for it matches nothing.
    let view = graph.with_output("v2").unwrap();
    let rule = Composite::new(Rule::Epsilon).layer("v3", Rule::ZPlus);
    assert!(matches!(view.explainer(rule), Err(Error::UnmatchedSetting { .. })));
    // No conclusions that apply only to other networks.
    assert_eq!(graph.check(&naive).unwrap(), []);
}

/// A batch normalization after each of two dense layers. The values before the second one are read
/// twice if `shared`.
fn normalized(shared: bool) -> Graph<f64> {
    let norm = |seed| {
        let positive = |v: Vec<f64>| v.into_iter().map(|v| v.abs() + 0.5).collect::<Vec<_>>();
        let (weight, bias) = (numbers(3, seed), numbers(3, seed + 1));
        let (mean, variance) = (numbers(3, seed + 2), positive(numbers(3, seed + 3)));
        BatchNorm1d::new(weight, bias, mean, variance, 1e-5).unwrap()
    };
    let mut graph = Graph::builder();
    let x = graph.input("x", 3);
    let first = graph.named("first", linear(3, 3, 1), [x]);
    let first = graph.named("norm1", norm(7), [first]);
    let relu = graph.named("relu", Relu, [first]);
    let second = graph.named("second", linear(3, 3, 2), [relu]);
    let norm2 = graph.named("norm2", norm(9), [second]);
    let y = if shared { graph.sum([norm2, second]) } else { graph.sum([norm2, relu]) };
    // The names of the outputs are those of other layers.
    graph.output("first", y);
    graph.output("second", norm2);
    graph.build().unwrap()
}

#[test]
fn normalizations_are_merged_where_nothing_else_reads_between() {
    let x = dvector![0.4, -0.9, 0.7];
    for shared in [false, true] {
        let graph = normalized(shared);
        let (merged, list) = graph.canonize().unwrap();
        let list: Vec<String> = list.iter().map(ToString::to_string).collect();
        let (expected, names) = if shared {
            (vec!["norm1 into first"], vec!["first", "relu", "second", "norm2", "5"])
        } else {
            (vec!["norm1 into first", "norm2 into second"], vec!["first", "relu", "second", "5"])
        };
        assert_eq!(list, expected);
        assert_eq!(merged.names(), names);
        assert_eq!(merged.output_names(), ["first", "second"]);
        assert!((merged.forward(&x).unwrap() - graph.forward(&x).unwrap()).amax() < 1e-12);
        let findings = merged.check(Rule::Epsilon).unwrap();
        let left = findings.iter().filter(|finding| finding.code == Code::UnmergedNorm).count();
        assert_eq!(left, usize::from(shared), "{findings:?}");

        // Views keep what they explain, whatever it is named.
        let view = graph.with_output("second").unwrap();
        let (merged, _) = view.canonize().unwrap();
        assert!((merged.forward(&x).unwrap() - view.forward(&x).unwrap()).amax() < 1e-12);
        // The output is the only reader of the normalization's values here.
        let view = graph.with_output("norm1").unwrap();
        let (merged, _) = view.canonize().unwrap();
        assert!((merged.forward(&x).unwrap() - view.forward(&x).unwrap()).amax() < 1e-12);
        let view = graph.explain_from(["norm1"]).unwrap();
        let (merged, list) = view.canonize().unwrap();
        assert_eq!(list[0].to_string(), "norm1 into first");
        let found = merged.explain(&x, Epsilon::new(1e-12).unwrap()).unwrap();
        let before = view.explain(&x, Epsilon::new(1e-12).unwrap()).unwrap();
        assert_eq!(found.inputs().next().unwrap().0, "first");
        assert!((found.output() - before.output()).amax() < 1e-12);
        // Values that are explained stay as they are.
        let view = graph.explain_from(["second"]).unwrap();
        let (merged, list) = view.canonize().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(merged.names().len(), 5);
    }
}

#[test]
fn health_of_a_graph() {
    let mut naive = bridge([EPSILON; 4]);
    let mask = naive.given(4);
    let y = naive.sum(&[naive.outputs[0], mask]);
    naive.outputs = vec![y];
    let graph = naive.graph::<f32>();
    let sample: Vec<f32> = sample(&naive, 5).into_iter().map(f32::from_f64).collect();
    let rounded: Vec<f64> = sample.iter().map(|&v| f64::from(v)).collect();
    let rule = || Epsilon::new(1e-3).unwrap();
    for view in [
        graph.clone(),
        graph.explain_from(["v2", "v7"]).unwrap(),
        graph.with_output(&naive.name(9)).unwrap(),
    ] {
        let explainer = view.explainer(rule()).unwrap().with_health();
        let found = explainer.explain_slice(&sample).unwrap();
        let health = found.health().unwrap();
        assert_eq!(health.prevented(), None);
        for target in found.targets() {
            assert!(health.relative_error(target).unwrap() < 1e-4, "{health}");
            assert!(health.relative_error(target).unwrap() > 0.0);
        }
        let dense = |layer: &relprop::LayerHealth| layer.worst() > 0.99;
        assert!(!health.layers().is_empty() && health.layers().iter().all(dense), "{health}");
        let inputs = found.inputs().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
        let entries: Vec<usize> =
            inputs.iter().map(|name| (0..y).find(|&v| naive.name(v) == *name).unwrap()).collect();
        let output = if found.output().len() == 4 { y } else { 9 };
        let case = Case { naive: &naive, output, entries: &entries, all: naive.compute(&rounded) };
        case.compare(&found, 1e-4);
    }
    let ids = tokens().explain_from(["embeddings"]).unwrap();
    let explainer = ids.explainer(rule()).unwrap().with_health();
    let found = explainer.explain_inputs(&Inputs::new().given("ids", vec![0, 2])).unwrap();
    assert!(found.health().is_some());
}

/// A choice of the next value of a network.
#[derive(Debug, Clone)]
struct Choice {
    kind: u8,
    picks: Vec<prop::sample::Index>,
    size: usize,
    weights: Vec<f64>,
    bias: Option<Vec<f64>>,
    formula: Formula,
}

fn choice() -> impl Strategy<Value = Choice> {
    let formula = prop_oneof![
        3 => (1e-2..0.5).prop_map(Formula::Epsilon),
        1 => (1e-2..0.5).prop_map(Formula::ZPlus),
        1 => (0.1..1.0, 1e-2..0.5).prop_map(|(gamma, epsilon)| Formula::Gamma(gamma, epsilon)),
        1 => (1.0..2.0, 1e-2..0.5).prop_map(|(alpha, epsilon)| Formula::AlphaBeta(alpha, epsilon)),
        1 => Just(Formula::Relative),
    ];
    (
        0..10_u8,
        prop::collection::vec(any::<prop::sample::Index>(), 1..=4),
        1..=4_usize,
        common::vector(11),
        prop::option::of(common::vector(4)),
        formula,
    )
        .prop_map(|(kind, picks, size, weights, bias, formula)| Choice {
            kind,
            picks,
            size,
            weights,
            bias,
            formula,
        })
}

/// A network of 1 to 3 inputs and 2 to 12 nodes, and three samples.
fn network() -> impl Strategy<Value = (Naive, Vec<f64>)> {
    let inputs = prop::collection::vec((1..=4_usize, 0..5_u8), 1..=3);
    (inputs, prop::collection::vec(choice(), 2..=12), common::vector(36)).prop_map(
        |(inputs, choices, numbers)| {
            let mut naive = Naive::default();
            for (number, (size, kind)) in inputs.into_iter().enumerate() {
                match kind {
                    0 if number > 0 => naive.given(size),
                    1 if number > 0 => naive.constant(&numbers[..size]),
                    _ => naive.input(size),
                };
            }
            for Choice { kind, picks, size, weights, bias, formula } in choices {
                let count = naive.values.len();
                // Later values are more likely, so that networks are deep.
                let at = |pick: &prop::sample::Index| {
                    let at = pick.index(count * (count + 1) / 2);
                    (0..count).find(|k| (k + 1) * (k + 2) / 2 > at).unwrap_or(0)
                };
                let first = at(&picks[0]);
                let alike = |naive: &Naive| -> Vec<usize> {
                    let same: Vec<usize> =
                        (0..count).filter(|&v| naive.size(v) == naive.size(first)).collect();
                    picks.iter().map(|pick| same[pick.index(same.len())]).collect()
                };
                match kind {
                    0..=3 => {
                        let inputs = naive.size(first);
                        let row = |j: usize| {
                            (0..inputs).map(|i| weights[(5 * j + 3 * i + i * j) % 11]).collect()
                        };
                        let rows = (0..size).map(row).collect();
                        let bias = bias.map(|bias| bias[..size].to_vec());
                        naive.dense(first, rows, bias, formula);
                    }
                    4 => {
                        naive.relu(first);
                    }
                    5..=7 => {
                        let reads = alike(&naive);
                        naive.sum(&reads);
                    }
                    8 => {
                        let mut reads: Vec<usize> = picks.iter().map(at).collect();
                        while reads.iter().map(|&read| naive.size(read)).sum::<usize>() > 10 {
                            reads.pop();
                        }
                        if !reads.is_empty() {
                            naive.concat(&reads);
                        }
                    }
                    _ => {
                        let size = naive.size(first);
                        let from: Vec<usize> = picks.iter().map(|pick| pick.index(size)).collect();
                        naive.select(first, &from);
                    }
                }
            }
            let last = naive.values.len() - 1;
            naive.outputs = vec![last];
            (naive, numbers)
        },
    )
}

proptest! {
    #![proptest_config(common::config(1000))]

    #[test]
    fn random_graphs(
        (naive, numbers) in network(),
        kind in 0..4_usize,
        inner in prop::option::weighted(0.3, prop::collection::vec(any::<prop::sample::Index>(), 1..4)),
    ) {
        let output = naive.outputs[0];
        let graph = match naive.builder::<f64>().build() {
            Ok(graph) => graph,
            Err(error) => {
                let is_linear = |v: &naive::Value| matches!(v.op, Op::Dense { .. } | Op::Sum | Op::Select(_));
                prop_assert!(matches!(error, Error::NoLinearLayer { .. }), "{error}");
                prop_assert!(!naive.values.iter().any(is_linear));
                return Ok(());
            }
        };
        let (mut graph, mut entries) = (graph, naive.explained());
        if let Some(inner) = inner {
            entries.clear();
            for value in inner.iter().map(|pick| pick.index(output + 1)) {
                if !entries.contains(&value) && !matches!(naive.values[value].op, Op::Constant(_)) {
                    entries.push(value);
                }
            }
            let names: Vec<String> = entries.iter().map(|&value| naive.name(value)).collect();
            match graph.explain_from(names.iter().map(String::as_str)) {
                Ok(view) => graph = view,
                Err(_) => prop_assert!(entries.is_empty()),
            }
        }
        let explainer = match graph.explainer(&naive) {
            Ok(explainer) => explainer,
            Err(Error::InvalidParameter { .. }) => {
                prop_assert!(entries.contains(&output));
                return Ok(());
            }
            Err(error) => {
                prop_assert!(matches!(error, Error::NotDependent { .. }), "{error}");
                prop_assert!(!naive.dependent(&entries)[output]);
                return Ok(());
            }
        };
        let targets = all_targets(naive.size(output)).into_iter().nth(kind).unwrap();
        let explainer = explainer.targets(targets).unwrap();
        let size = graph.inputs();
        for order in ORDERS {
            let explainer = explainer.clone().accumulation(order);
            let samples = DMatrix::from_column_slice(size, 3, &numbers[..3 * size]);
            let batch = explainer.explain_batch(&samples).unwrap();
            for (sample, found) in numbers.chunks(size).zip(&batch) {
                let case = Case { naive: &naive, output, entries: &entries, all: naive.compute(sample) };
                case.compare(found, 1e-9);
                prop_assert_eq!(&explainer.explain_slice(sample).unwrap(), found);
            }
        }
        let sample = &numbers[..size];
        let case = Case { naive: &naive, output, entries: &entries, all: naive.compute(sample) };
        case.compare_trace(&explainer.trace_slice(sample).unwrap(), &carrying(&naive, output, &entries));
    }
}

/// A graph that can be built, for adding something that cannot.
fn started() -> (GraphBuilder<f64>, ValueId, ValueId) {
    let mut graph = Graph::builder();
    let x = graph.input("x", 2);
    let y = graph.named("y", linear(2, 2, 1), [x]);
    graph.output("out", y);
    (graph, x, y)
}

fn text(result: Result<impl Sized, Error>) -> String {
    result.err().map_or_else(|| "no error".to_owned(), |error| error.to_string())
}

/// The error of the graph above with something added.
fn with<R>(add: impl FnOnce(&mut GraphBuilder<f64>, ValueId, ValueId) -> R) -> Error {
    let (mut graph, x, y) = started();
    add(&mut graph, x, y);
    graph.build().unwrap_err()
}

#[test]
fn graphs_that_cannot_be_built() {
    let reason = |error: Error| match error {
        Error::InvalidGraph { ref reason } => {
            assert_eq!(error.to_string(), format!("the graph cannot be built: {reason}"));
            reason.clone()
        }
        other => panic!("{other:?}"),
    };
    let mut graph = Graph::<f64>::builder();
    let x = graph.input("x", 2);
    graph.layer(linear(2, 2, 1), [x]);
    let error = reason(graph.build().unwrap_err());
    assert_eq!(error, "it has no output: declare one with GraphBuilder::output");
    let mut graph = Graph::builder();
    let c = graph.constant("c", 2, vec![1.0, 2.0]);
    let y = graph.layer(linear(2, 2, 1), [c]);
    graph.output("y", y);
    let error = reason(graph.build().unwrap_err());
    assert_eq!(error, "it has no input: add one with GraphBuilder::input");

    for error in [
        with(|graph, _, y| graph.named("x", Relu, [y])),
        with(|graph, _, _| graph.input("x", 3)),
        with(|graph, _, _| graph.constant("x", 1, vec![0.0])),
    ] {
        let expected = "the name 'x' is used more than once: give each input and each layer its \
            own name";
        assert_eq!(reason(error), expected);
    }
    // A layer without a name is named by its position.
    assert!(
        reason(with(|graph, _, y| {
            graph.layer(Relu, [y]);
            graph.input("1", 3);
        }))
        .starts_with("the name '1' is used more than once")
    );
    assert_eq!(
        reason(with(|graph, x, _| graph.output("out", x))),
        "the name 'out' is used for more than one output: give each output its own name"
    );

    let mut other = Graph::<f64>::builder();
    let foreign = other.input("x", 2);
    assert_eq!(
        reason(with(|graph, x, _| graph.sum([x, foreign]))),
        "layer '1' reads a value that another builder has returned"
    );
    assert_eq!(
        reason(with(|graph, _, _| graph.output("z", foreign))),
        "output 'z' is a value that another builder has returned"
    );

    assert_eq!(
        reason(with(|graph, x, _| {
            let ids = graph.given_whole("ids", 2);
            graph.sum([x, ids]);
        })),
        "layer '1' (Sum) reads whole numbers, but only an embedding can look them up: declare the \
         input with GraphBuilder::given, or add an embedding before the layer"
    );
    assert_eq!(
        reason(with(|graph, x, _| {
            graph.layer(Embedding::new(&dmatrix![1.0]).unwrap(), [x]);
        })),
        "layer '1' (Embedding) looks up whole numbers: declare its input with \
         GraphBuilder::given_whole"
    );
    assert_eq!(
        reason(with(|graph, _, _| {
            let ids = graph.given_whole("ids", 2);
            graph.output("ids", ids);
        })),
        "output 'ids' is an input of whole numbers: declare the output of a layer instead"
    );
    assert_eq!(
        reason(with(|graph, _, _| graph.constant("c", [2, 2], vec![1.0]))),
        "constant 'c' has the shape 2 x 2: give it 4 values, not 1"
    );
    for bad in [f64::NAN, f64::INFINITY] {
        assert_eq!(
            reason(with(|graph, _, _| graph.constant("c", 1, vec![bad]))),
            format!("constant 'c' contains {bad}, but its values must be finite")
        );
    }
}

#[test]
fn layers_that_do_not_fit_what_they_read() {
    for shape in [relprop::Shape::from(0), [2, usize::MAX].into()] {
        let error = with(|graph, _, _| graph.given("e", shape));
        assert!(matches!(error, Error::InvalidParameter { .. }));
        assert!(
            error.to_string().starts_with("GraphBuilder: input must be a shape of at least one")
        );
    }
    let mut graph = Graph::<f64>::builder();
    let x = graph.input("x", 2);
    let relu = graph.layer(Relu, [x]);
    graph.output("y", relu);
    assert!(matches!(graph.build(), Err(Error::NoLinearLayer { layers: 1 })));

    for (layer, error) in [
        ("Sum", with(|graph, _, _| graph.sum([]))),
        ("Concat", with(|graph, _, _| graph.concat([]))),
        ("ReLU", with(|graph, _, _| graph.layer(Relu, []))),
        ("ReLU", with(|graph, x, y| graph.layer(Relu, [x, y]))),
        ("Linear", with(|graph, x, _| graph.layer(linear(2, 4, 1), [x, x]))),
        ("Flatten", with(|graph, x, _| graph.layer(Flatten, [x, x]))),
    ] {
        assert!(matches!(error, Error::InputCount { .. }), "{error:?}");
        let number = format!("layer 1 ({layer}) reads ");
        assert!(error.to_string().starts_with(&number), "{error}");
    }
    assert_eq!(
        with(|graph, x, y| graph.layer(Relu, [x, y])).to_string(),
        "layer 1 (ReLU) reads one value, but 2 values are given"
    );
    for error in [
        with(|graph, x, _| {
            let other = graph.input("other", 3);
            graph.sum([other, x]);
        }),
        with(|graph, x, _| {
            let other = graph.input("other", [3, 2]);
            graph.concat([other, x]);
        }),
        with(|graph, x, _| graph.layer(linear(2, 3, 1), [x])),
    ] {
        assert!(matches!(error, Error::LayerShape { layer: 1, .. }), "{error:?}");
    }
    let error = with(|graph, _, y| {
        let softmax = graph.layer(Softmax, [y]);
        let relu = graph.layer(Relu, [softmax]);
        graph.output("z", relu);
    });
    assert!(matches!(error, Error::SoftmaxInMiddle { layer: 1, .. }));
}

/// Two inputs, whole numbers and a constant: out = y + flat + c.
fn mixed() -> Graph<f64> {
    let mut graph = Graph::builder();
    let x = graph.input("x", 2);
    let other = graph.input("other", 2);
    let ids = graph.given_whole("ids", 1);
    let c = graph.constant("c", 2, vec![1.0, 1.0]);
    let hidden = graph.named("hidden", linear(2, 2, 1), [x]);
    let relu = graph.named("relu", Relu, [hidden]);
    let table = dmatrix![1.0, 2.0; 3.0, 4.0];
    let rows = graph.named("rows", Embedding::new(&table).unwrap(), [ids]);
    let flat = graph.named("flat", Flatten, [rows]);
    let y = graph.named("y", linear(2, 2, 8), [relu]);
    let out = graph.sum([y, flat, c]);
    graph.output("out", out);
    graph.output("other", other);
    graph.build().unwrap()
}

#[test]
fn views_of_values_that_do_not_exist() {
    let graph = mixed();
    let error = graph.with_output("hiden").unwrap_err();
    assert!(matches!(&error, Error::NoSuchValue { name, .. } if name == "hiden"));
    assert_eq!(
        error.to_string(),
        "the graph has no input and no layer named 'hiden', did you mean 'hidden'?"
    );
    assert_eq!(text(graph.explain_from(["x", "hiden"])), error.to_string());
    for name in ["x", "ids", "c"] {
        assert_eq!(
            text(graph.with_output(name)),
            format!(
                "Graph: output must be one of its outputs, or the output of a layer, but is \
                     \"{name}\""
            )
        );
    }
    for name in ["ids", "c"] {
        assert_eq!(
            text(graph.explain_from([name])),
            format!(
                "Graph: explained value must be an input of floating-point numbers, or the \
                     output of a layer, but is \"{name}\""
            )
        );
    }
    assert_eq!(
        text(graph.explain_from([])),
        "Graph: number of explained values must be at least 1, but is 0"
    );
    let advice = "choose another output with Graph::with_output, or other values to explain with \
        Graph::explain_from";
    let view = graph.explain_from(["other", "rows"]).unwrap().with_output("y").unwrap();
    let error = view.explainer(Rule::Epsilon).unwrap_err();
    assert!(matches!(error, Error::NotDependent { .. }));
    assert_eq!(
        error.to_string(),
        format!("the output 'y' does not depend on 'other', 'rows'; {advice}")
    );
    assert_eq!(
        text(tokens().explainer(Rule::Epsilon)),
        format!("the output 'head' does not depend on an input that is explained; {advice}")
    );
    for view in [
        graph.explain_from(["relu"]).unwrap().with_output("relu").unwrap(),
        graph.explain_from(["relu", "x"]).unwrap().with_output("relu").unwrap(),
    ] {
        assert_eq!(
            text(view.explainer(Rule::Epsilon)),
            "Graph: output must be computed from the explained values, not one of them, but is \
             \"relu\""
        );
    }
    // An input that is an output as well can be computed, but there is nothing to explain.
    let view = graph.with_output("other").unwrap();
    let inputs = inputs_of_mixed();
    assert_eq!(view.forward_inputs(&inputs).unwrap().as_slice(), [5.0, 6.0]);
    assert!(matches!(view.explainer(Rule::Epsilon), Err(Error::InvalidParameter { .. })));
    let found = graph.explainer(Rule::Epsilon).unwrap().explain_inputs(&inputs).unwrap();
    assert_eq!(found.relevance_of("other", 0).unwrap(), dvector![0.0, 0.0]);
    assert!(matches!(found.relevance_of("ids", 0), Err(Error::NoSuchValue { .. })));
}

fn inputs_of_mixed() -> Inputs<'static, f64> {
    let inputs = Inputs::new().value("x", vec![1.0, 2.0]).value("other", vec![5.0, 6.0]);
    inputs.given("ids", vec![1])
}

#[test]
fn inputs_that_do_not_fit() {
    let graph = mixed();
    let explainer = graph.explainer(Rule::Epsilon).unwrap();
    let before = explainer.explain_inputs(&inputs_of_mixed()).unwrap();
    let listed = "(the model's inputs are 'x' (2), 'other' (2), 'ids' (1))";
    let missing = Inputs::new().value("x", vec![1.0, 2.0]).given("ids", vec![1]);
    for (inputs, expected) in [
        (missing, format!("the values of input 'other' are missing {listed}")),
        (inputs_of_mixed().value("z", vec![1.0]), format!("the model has no input 'z' {listed}")),
        // The values of a constant belong to the model.
        (
            inputs_of_mixed().value("c", vec![1.0; 2]),
            format!("the model has no input 'c' {listed}"),
        ),
        (
            inputs_of_mixed().value("x", vec![1.0; 3]),
            format!("input 'x' has 3 values, which is not 2 for each sample {listed}"),
        ),
        (
            inputs_of_mixed().value("x", vec![1.0; 4]),
            format!(
                "input 'other' has 2 values, which is not 2 for each sample (there are 2 samples) \
                 {listed}"
            ),
        ),
        (
            inputs_of_mixed().value("x", vec![1, 2]),
            format!("input 'x' takes floating-point numbers {listed}"),
        ),
        (
            inputs_of_mixed().given("ids", vec![1.0]),
            format!("input 'ids' takes whole numbers (i64) {listed}"),
        ),
        (
            inputs_of_mixed().given("ids", vec![2]),
            "the number 2 has no row in the table of an embedding, whose rows are 0 to 1"
                .to_owned(),
        ),
        (
            inputs_of_mixed().given("ids", vec![-1]),
            "the number -1 has no row in the table of an embedding, whose rows are 0 to 1"
                .to_owned(),
        ),
    ] {
        let errors = [
            explainer.explain_inputs(&inputs).unwrap_err(),
            explainer.explain_batch_inputs(&inputs).unwrap_err(),
            graph.forward_inputs(&inputs).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Inputs { .. }));
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(explainer.explain_inputs(&inputs_of_mixed()).unwrap(), before);
    }
    let two = Inputs::new().value("x", vec![1.0; 4]).value("other", vec![1.0; 4]);
    let two = two.given("ids", vec![0, 1]);
    assert_eq!(
        text(explainer.explain_inputs(&two)),
        "the inputs have the values of 2 samples, but one is needed: explain several with \
         explain_batch_inputs"
    );
    assert_eq!(explainer.explain_batch_inputs(&two).unwrap().len(), 2);
    let bad = inputs_of_mixed().value("other", vec![1.0, f64::NAN]);
    let error = explainer.explain_inputs(&bad).unwrap_err();
    assert!(matches!(error, Error::NonFiniteInput { index: 1, sample: 0, .. }));

    let expected = "input 'ids' takes whole numbers: give the values of each input by name, with explain_inputs";
    let column = dvector![1.0, 2.0, 3.0, 4.0];
    let columns = DMatrix::from_element(4, 2, 1.0);
    let sweep = graph.sweep([Rule::Epsilon]).unwrap();
    for error in [
        text(explainer.explain(&column)),
        text(explainer.explain_batch(&columns)),
        text(explainer.trace(&column)),
        text(sweep.explain(&column)),
        text(graph.forward(&column)),
        text(graph.forward_batch(&columns)),
    ] {
        assert_eq!(error, expected);
    }
    assert!(matches!(
        explainer.explain(&dvector![1.0]),
        Err(Error::InputShape { expected: 4, .. })
    ));

    // A sample without floating-point numbers.
    let explainer =
        tokens().explain_from(["embeddings"]).unwrap().explainer(Rule::Epsilon).unwrap();
    let mut workspace = explainer.workspace();
    for error in [
        text(explainer.explain_slice(&[])),
        text(explainer.explain_batch_into(&[], &mut workspace)),
        text(explainer.explain_batch(&DMatrix::zeros(0, 3))),
        text(explainer.model().forward_batch(&DMatrix::zeros(0, 3))),
    ] {
        assert_eq!(error, expected);
    }
    let none = Inputs::new().given("ids", Vec::<i64>::new());
    assert!(explainer.explain_batch_inputs(&none).unwrap().is_empty());
}

/// A layer that is not on the way to an output changes nothing.
#[test]
fn unused_layers_do_not_matter() {
    let logits = |unused: bool| {
        let mut graph = Graph::builder();
        let x = graph.input("x", 2);
        let y = graph.named("y", linear(1, 2, 1), [x]);
        let p = graph.named("p", Sigmoid, [y]);
        graph.output("p", p);
        if unused {
            graph.layer(Relu, [p]);
            let softmax = graph.layer(Softmax, [y]);
            graph.layer(Relu, [softmax]);
        }
        graph.build().unwrap().explain(&dvector![1.0, 2.0], Rule::Epsilon).unwrap()
    };
    assert!(logits(false).probabilities().is_some());
    assert_eq!(logits(false).output(), logits(true).output());
    assert_eq!(logits(false).probabilities(), logits(true).probabilities());
}

/// Relevance that flows through several of the chosen units counts once.
#[test]
fn units_that_depend_on_each_other_count_once() {
    let mut graph = Graph::builder();
    let x = graph.input("x", 2);
    let a = graph.layer(linear(3, 2, 1), [x]);
    let a = graph.layer(Relu, [a]);
    let b = graph.layer(linear(3, 3, 2), [a]);
    let joined = graph.sum([a, b]);
    let y = graph.layer(linear(2, 3, 3), [joined]);
    graph.output("y", y);
    let explainer = graph.build().unwrap().explainer(Epsilon::new(1e-3).unwrap()).unwrap();
    let trace = explainer.trace(&dvector![1.0, -0.5]).unwrap();
    let whole = trace.relevance(0, 0).unwrap();
    let through = trace.through("3", &[0, 1, 2, 3, 4, 5], 0).unwrap();
    assert!((&through - &whole).amax() < 1e-9 * whole.amax(), "{through} {whole}");
    // Everything flows through a.
    let through = trace.through("3", &[0, 1, 2], 0).unwrap();
    assert!((through - &whole).amax() < 1e-9 * whole.amax());
}

/// In a model with several inputs, each has a first layer.
#[test]
fn every_input_has_a_first_layer() {
    let mut graph = Graph::builder();
    let (x, z) = (graph.input("x", 2), graph.input("z", 2));
    let a = graph.named("a", linear(3, 2, 1), [x]);
    let b = graph.named("b", linear(3, 2, 2), [z]);
    let sum = graph.sum([a, b]);
    let y = graph.named("y", linear(2, 3, 3), [sum]);
    graph.output("y", y);
    let graph = graph.build().unwrap();
    let rule = || Composite::new(Rule::Epsilon).first(Rule::Flat);
    let rules = |graph: &Graph<f64>| {
        let explainer = graph.explainer(rule()).unwrap();
        explainer.rules().map(|(name, rule)| format!("{name} {rule}")).collect::<Vec<_>>()
    };
    assert_eq!(rules(&graph), ["a Flat", "b Flat", "2 Norm", "y Epsilon(1e-6)"]);
    assert_eq!(rules(&graph.explain_from(["2"]).unwrap()), ["y Flat"]);
}

/// A layer whose branches contain the layer itself is an error, not an endless recursion.
#[test]
fn branches_without_end() {
    #[derive(Debug)]
    struct Endless;
    impl Layer<f64> for Endless {
        fn kind(&self) -> &str {
            "Endless"
        }
        fn operator(&self, _inputs: &[Shape]) -> Result<Operator<f64>, Error> {
            let branch = Sequential::builder().layer(Self);
            Ok(Operator::Branches(vec![branch.into()], relprop::layer::Joined::Summed))
        }
    }
    let error = Sequential::builder().input(2).layer(Endless).build().unwrap_err().to_string();
    assert!(error.contains("nested more than 64 deep"), "{error}");
    // Nor is a name with many dots.
    let name = ".".repeat(100_000);
    let deep = Sequential::<f64>::builder().named(&name, linear(2, 2, 1)).build().unwrap();
    assert!(deep.to_string().contains("Linear(in_features=2"));
}

/// The plan says which layers cannot be split.
#[test]
fn the_plan_names_the_layers_of_a_factor() {
    let graph = bridge([EPSILON; 4]).graph::<f64>();
    let plan = graph.explainer(Rule::Epsilon).unwrap().plan().clone();
    let factors: Vec<_> = plan.factors().map(<[String]>::len).collect();
    assert_eq!(factors, [1, 8, 1]);
    let last = plan.to_string().lines().last().unwrap().to_owned();
    assert_eq!(last, "   A2 has 8 layers, from v3 to 9");
}
