//! The cost of an explanation, with the plain forward pass as the yardstick: `cargo bench`.
//!
//! The network is 784-320-120-40-10 with fixed weights; three quarters of the inputs are zero, as in a digit.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use relprop::nalgebra::{DMatrix, DVector};
use relprop::{Accumulation, Linear, Relu, Rule, Sequential};

/// Weights without a pattern that a product could profit from.
fn linear(inputs: usize, outputs: usize) -> Result<Linear<f32>, relprop::Error> {
    let scale = (2.0 / inputs as f32).sqrt();
    let weights =
        DMatrix::from_fn(outputs, inputs, |j, i| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0).map(|w| w * scale);
    Linear::new(weights, DVector::from_element(outputs, 0.01))
}

fn model() -> Result<Sequential<f32>, relprop::Error> {
    let builder = Sequential::builder().layer(linear(784, 320)?).layer(Relu).layer(linear(320, 120)?).layer(Relu);
    builder.layer(linear(120, 40)?).layer(Relu).layer(linear(40, 10)?).build()
}

fn explain(criterion: &mut Criterion) {
    let model = model().expect("the shapes fit");
    let x = DVector::from_fn(784, |i, _| if i % 4 == 0 { (i % 13) as f32 / 13.0 } else { 0.0 });
    let mut group = criterion.benchmark_group("784-320-120-40-10");
    group.bench_function("forward pass", |b| b.iter(|| model.forward(black_box(&x))));
    for rule in [Rule::Epsilon, Rule::Relative] {
        for accumulation in [Accumulation::Forward, Accumulation::Reverse] {
            let explainer = model.explainer(rule).expect("both rules go everywhere").accumulation(accumulation);
            group.bench_function(format!("{rule:?} {accumulation:?}"), |b| b.iter(|| explainer.explain(black_box(&x))));
        }
    }
    group.finish();
}

criterion_group!(benches, explain);
criterion_main!(benches);
