//! Measures the cost of an explanation relative to the plain forward pass. Run it with
//! `cargo bench --bench explain`.
//!
//! The weights are fixed and have no pattern that a product could exploit. Five sixths of the
//! inputs are zero, as in a digit. Batch times are for the whole batch; the throughput is in
//! samples.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use relprop::nalgebra::{DMatrix, DVector};
use relprop::{Accumulation, Explainer, Linear, Relu, Rule, Sequential, Targets};

const MLP: [usize; 5] = [784, 320, 120, 40, 10];
const BOTTLENECK: [usize; 5] = [784, 128, 32, 128, 784];

fn linear(inputs: usize, outputs: usize) -> Linear<f32> {
    let scale = (2.0 / inputs as f32).sqrt();
    let weight =
        |j: usize, i: usize| (((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0) * scale;
    Linear::new(DMatrix::from_fn(outputs, inputs, weight), DVector::from_element(outputs, 0.01))
        .expect("finite weights")
}

fn model(sizes: &[usize]) -> Sequential<f32> {
    let mut builder = Sequential::builder().layer(linear(sizes[0], sizes[1]));
    for sizes in sizes[1..].windows(2) {
        builder = builder.layer(Relu).layer(linear(sizes[0], sizes[1]));
    }
    builder.build().expect("the shapes fit")
}

fn samples(count: usize) -> DMatrix<f32> {
    DMatrix::from_fn(784, count, |i, sample| {
        let at = i + 5 * sample;
        if at % 6 == 0 { (at % 13) as f32 / 13.0 } else { 0.0 }
    })
}

fn explainer(sizes: &[usize], accumulation: Accumulation, targets: Targets<f32>) -> Explainer<f32> {
    let explainer = model(sizes)
        .explainer(Rule::Epsilon)
        .expect("the rule fits every layer")
        .accumulation(accumulation);
    explainer.targets(targets).expect("the outputs exist")
}

/// Explains one sample of each network: in each order for all outputs, and in the optimal order for
/// some outputs.
fn single(criterion: &mut Criterion) {
    let sample = samples(1);
    for sizes in [MLP, BOTTLENECK] {
        let mut group = criterion.benchmark_group(sizes.map(|n| n.to_string()).join("-"));
        let model = model(&sizes);
        let x = DVector::from_column_slice(sample.as_slice());
        group
            .bench_function("forward pass", |b| b.iter(|| black_box(model.forward(black_box(&x)))));
        let all = [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse]
            .map(|order| (order, Targets::All));
        let few = [Targets::Predicted, Targets::from([3, 5])]
            .map(|targets| (Accumulation::Optimal, targets));
        for (order, targets) in all.into_iter().chain(few) {
            let name = format!("{order:?}, {targets:?}");
            let explainer = explainer(&sizes, order, targets);
            let mut workspace = explainer.workspace();
            group.bench_function(name, |b| {
                b.iter(|| {
                    explainer
                        .explain_into(black_box(sample.as_slice()), &mut workspace)
                        .map(relprop::Explanation::predicted)
                });
            });
        }
        group.finish();
    }
}

/// Explains batches of several sizes.
fn batch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("batch of 784-320-120-40-10");
    for count in [1, 6, 64, 512] {
        let x = samples(count);
        group.throughput(Throughput::Elements(count as u64));
        let model = model(&MLP);
        group.bench_function(BenchmarkId::new("forward pass", count), |b| {
            b.iter(|| black_box(model.forward_batch(&x)));
        });
        for targets in [Targets::Predicted, Targets::All] {
            let name = format!("{targets:?}");
            let explainer = explainer(&MLP, Accumulation::Optimal, targets);
            let mut workspace = explainer.workspace();
            group.bench_function(BenchmarkId::new(name, count), |b| {
                b.iter(|| {
                    explainer
                        .explain_batch_into(black_box(x.as_slice()), &mut workspace)
                        .map(<[_]>::len)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, single, batch);
criterion_main!(benches);
