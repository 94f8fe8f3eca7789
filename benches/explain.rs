//! Measures the cost of an explanation relative to the plain forward pass. Run it with
//! `cargo bench --bench explain`.
//!
//! The weights are fixed and have no pattern that a product could exploit. Five sixths of the
//! inputs are zero, as in a digit. Batch times are for the whole batch. `-- TEXT` measures only the
//! rows whose names contain the text, such as "784-320-120-40-10: Optimal, All".

mod common;

use std::hint::black_box;

use common::time;
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

/// Prints the time of a call and how it compares with the forward pass, unless the command line
/// asks for other rows.
struct Table {
    wanted: Option<String>,
}

impl Table {
    fn row(&self, network: &str, call: &str, forward: f64, measure: impl FnOnce() -> f64) {
        let name = format!("{network}: {call}");
        if self.wanted.as_ref().is_none_or(|wanted| name.contains(wanted)) {
            let taken = measure();
            println!("| {network} | {call} | {taken:.1} | {:.1} |", taken / forward);
        }
    }
}

/// Explains one sample of each network: in each order for all outputs, and in the optimal order for
/// some outputs.
fn single(table: &Table) {
    let sample = samples(1);
    for sizes in [MLP, BOTTLENECK] {
        let network = sizes.map(|n| n.to_string()).join("-");
        let model = model(&sizes);
        let x = DVector::from_column_slice(sample.as_slice());
        let forward = time(|| {
            black_box(model.forward(black_box(&x))).expect("finite samples");
        });
        table.row(&network, "forward pass", forward, || forward);
        let all = [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse]
            .map(|order| (order, Targets::All));
        let few = [Targets::Predicted, Targets::from([3, 5])]
            .map(|targets| (Accumulation::Optimal, targets));
        for (order, targets) in all.into_iter().chain(few) {
            let call = format!("{order:?}, {targets:?}");
            let explainer = explainer(&sizes, order, targets);
            let mut workspace = explainer.workspace();
            table.row(&network, &call, forward, || {
                time(|| {
                    let sample = black_box(sample.as_slice());
                    black_box(explainer.explain_into(sample, &mut workspace))
                        .expect("finite samples");
                })
            });
        }
    }
}

/// Explains batches of several sizes.
fn batch(table: &Table) {
    let model = model(&MLP);
    for count in [1, 6, 64, 512] {
        let network = format!("784-320-120-40-10, a batch of {count}");
        let x = samples(count);
        let forward = time(|| {
            black_box(model.forward_batch(black_box(&x))).expect("finite samples");
        });
        table.row(&network, "forward pass", forward, || forward);
        for targets in [Targets::Predicted, Targets::All] {
            let call = format!("{targets:?}");
            let explainer = explainer(&MLP, Accumulation::Optimal, targets);
            let mut workspace = explainer.workspace();
            table.row(&network, &call, forward, || {
                time(|| {
                    let samples = black_box(x.as_slice());
                    black_box(explainer.explain_batch_into(samples, &mut workspace))
                        .expect("finite samples");
                })
            });
        }
    }
}

/// Explains batches of 64 from several threads at once: on the pool that all of them share, and
/// sample by sample with a workspace for each thread.
fn callers() {
    const SAMPLES: usize = 64;
    const CALLS: usize = 400;
    println!(
        "\n| callers at once | batches of {SAMPLES} a second | one by one, samples a second |"
    );
    println!("|---:|---:|---:|");
    let (x, explainer) =
        (samples(SAMPLES), explainer(&MLP, Accumulation::Optimal, Targets::Predicted));
    for callers in [1, 2, 4] {
        let rate = |batches: bool| {
            let start = std::time::Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..callers {
                    scope.spawn(|| {
                        let mut workspace = explainer.workspace();
                        for _ in 0..CALLS / callers {
                            if batches {
                                black_box(
                                    explainer.explain_batch_into(x.as_slice(), &mut workspace),
                                )
                                .expect("finite samples");
                                continue;
                            }
                            for sample in x.as_slice().chunks_exact(784) {
                                black_box(explainer.explain_into(sample, &mut workspace))
                                    .expect("finite samples");
                            }
                        }
                    });
                }
            });
            CALLS as f64 / start.elapsed().as_secs_f64()
        };
        let median = |batches| {
            let mut rates: Vec<f64> = (0..7).map(|_| rate(batches)).collect();
            rates.sort_by(f64::total_cmp);
            rates[3]
        };
        println!("| {callers} | {:.0} | {:.0} |", median(true), median(false) * SAMPLES as f64);
    }
}

fn main() {
    // Cargo passes options of its own, such as --bench.
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    println!("| network | call | us | forward passes |\n|---|---|---:|---:|");
    let table = Table { wanted };
    single(&table);
    batch(&table);
    if table.wanted.is_none() {
        callers();
    }
}
