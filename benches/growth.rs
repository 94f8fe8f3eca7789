//! Measures the tables of `docs/performance.md`. Run it with `cargo bench --bench growth`.
//!
//! Weights (He) and inputs are random. Each time is the median of eleven bursts, for one sample.

mod common;

use std::hint::black_box;

use common::time;
use relprop::nalgebra::DMatrix;
use relprop::{Accumulation, Explainer, LeakyRelu, Linear, Relu, Rule, Sequential, Targets};

/// A linear congruential generator of pseudorandom numbers.
struct Random(u64);

impl Random {
    /// The next number between -1 and 1.
    fn next(&mut self) -> f32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A dense network. With ReLUs between the layers, about half of the hidden units are zero. With
/// leaky ReLUs, none is.
fn model(sizes: &[usize], leaky: bool) -> Sequential<f32> {
    let mut random = Random(1);
    let mut linear = |sizes: &[usize]| {
        let scale = (6.0 / sizes[0] as f32).sqrt();
        Linear::new(DMatrix::from_fn(sizes[1], sizes[0], |_, _| scale * random.next()), None)
            .expect("finite weights")
    };
    let mut builder = Sequential::builder().layer(linear(&sizes[..2]));
    for sizes in sizes[1..].windows(2) {
        builder = if leaky { builder.layer(LeakyRelu::default()) } else { builder.layer(Relu) };
        builder = builder.layer(linear(sizes));
    }
    builder.build().expect("the shapes fit")
}

fn explainer(sizes: &[usize], targets: Targets<f32>) -> Explainer<f32> {
    let explainer =
        model(sizes, false).explainer(Rule::Epsilon).expect("the rule fits every layer");
    explainer.targets(targets).expect("the outputs exist")
}

/// Random samples. `density` is the fraction of nonzero values.
fn samples(inputs: usize, count: usize, density: f32) -> Vec<f32> {
    let mut random = Random(2);
    (0..inputs * count)
        .map(|_| (random.next(), random.next()))
        .map(|(v, at)| if at < 2.0 * density - 1.0 { v } else { 0.0 })
        .collect()
}

/// Measures the microseconds per sample when `samples` is explained as a batch.
fn explain(explainer: &Explainer<f32>, samples: &[f32]) -> f64 {
    let count = samples.len() / explainer.model().inputs();
    let mut workspace = explainer.workspace();
    let taken = time(|| {
        black_box(explainer.explain_batch_into(black_box(samples), &mut workspace))
            .expect("finite samples");
    });
    taken / count as f64
}

fn name(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join("-")
}

fn orders() {
    println!(
        "\n| network | targets | | forward | reverse | optimal |\n|---|---|---|---:|---:|---:|"
    );
    let shapes: [(&[usize], Targets<f32>); 6] = [
        (&[784, 320, 120, 40, 10], Targets::All),
        (&[784, 320, 120, 40, 10], Targets::Predicted),
        (&[12, 256, 256, 50], Targets::All),
        (&[256, 256, 256, 256], Targets::All),
        (&[784, 128, 32, 128, 784], Targets::All),
        (&[100, 400, 20, 400, 20, 400, 100], Targets::All),
    ];
    for (sizes, targets) in shapes {
        let x = samples(sizes[0], 1, 1.0);
        let all = explainer(sizes, targets.clone());
        let orders = [Accumulation::Forward, Accumulation::Reverse, Accumulation::Optimal];
        let planned = orders.map(|order| format!("{:.2}", all.plan().multiply_adds(order) / 1e6));
        let taken =
            orders.map(|order| format!("{:.1}", explain(&all.clone().accumulation(order), &x)));
        println!("| {} | {targets:?} | M multiply-adds | {} |", name(sizes), planned.join(" | "));
        println!("| | | us | {} |", taken.join(" | "));
    }
}

fn growth() {
    println!("\n| network | targets | samples | us per sample |\n|---|---|---:|---:|");
    let row = |what: &str, sizes: &[usize], targets: Targets<f32>, count: usize| {
        let explainer = explainer(sizes, targets.clone());
        let taken = explain(&explainer, &samples(sizes[0], count, 1.0));
        println!("| {what} | {targets:?} | {count} | {taken:.1} |");
    };
    for width in [64, 128, 256, 512, 1024, 2048] {
        row(
            &format!("256-**{width}**-**{width}**-10"),
            &[256, width, width, 10],
            Targets::Predicted,
            1,
        );
    }
    for depth in [1, 2, 4, 8, 16, 32] {
        row(&format!("**{depth}** layers of 256"), &vec![256; depth + 1], Targets::Predicted, 1);
    }
    for inputs in [64, 256, 1024, 4096] {
        row(&format!("**{inputs}**-256-256-10"), &[inputs, 256, 256, 10], Targets::Predicted, 1);
    }
    for outputs in [1, 10, 100, 1000] {
        row(&format!("256-256-256-**{outputs}**"), &[256, 256, 256, outputs], Targets::All, 1);
    }
    for count in [1, 2, 4, 16, 64, 256, 1024] {
        row("784-256-256-10", &[784, 256, 256, 10], Targets::Predicted, count);
    }
}

fn zeros() {
    println!(
        "\n| nonzero inputs | one sample, us | forward pass alone, us | 64 samples, us each |\n\
         |---:|---:|---:|---:|"
    );
    let explainer = explainer(&[784, 320, 120, 40, 10], Targets::Predicted);
    for density in [1.0, 0.75, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0] {
        let (one, many) = (samples(784, 1, density), samples(784, 64, density));
        let x = DMatrix::from_column_slice(784, 1, &one);
        let forward = time(|| drop(black_box(explainer.model().forward_batch(black_box(&x)))));
        println!(
            "| {:.0} % | {:.1} | {forward:.1} | {:.2} |",
            density * 100.0,
            explain(&explainer, &one),
            explain(&explainer, &many)
        );
    }
}

/// Compares the multiply-adds per second of a batch with those of a large matrix product by
/// nalgebra on one thread, multiplied by the number of threads.
fn rate() {
    const SIZE: usize = 1024;
    const SAMPLES: usize = 512;
    let [a, b] = [1, 2].map(|seed| {
        let mut random = Random(seed);
        DMatrix::from_fn(SIZE, SIZE, |_, _| random.next())
    });
    let mut c = DMatrix::zeros(SIZE, SIZE);
    let mut product = || time(|| c.gemm(1.0, black_box(&a), black_box(&b), 0.0));
    #[cfg(feature = "rayon")]
    let threads = rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    let threads = 1_usize;
    println!(
        "\n| network, targets, {SAMPLES} samples | G multiply-adds/s \
         | matrix product, {threads} x one thread | relprop / matrix product |\n\
         |---|---:|---:|---:|"
    );
    for (sizes, targets) in [
        (&[784, 320, 120, 40, 10][..], Targets::Predicted),
        (&[784, 320, 120, 40, 10], Targets::All),
        (&[256, 256, 256, 256], Targets::Predicted),
        (&[1024, 1024, 1024, 1024], Targets::Predicted),
        (&[1024, 1024, 1024, 16], Targets::All),
    ] {
        // With leaky ReLUs nothing is zero, so no work is skipped.
        let model = model(sizes, true);
        let forward: usize = sizes.windows(2).map(|sizes| sizes[0] * sizes[1]).sum();
        let explainer = model
            .explainer(Rule::Epsilon)
            .and_then(|e| e.targets(targets.clone()))
            .expect("the outputs exist");
        let multiply_adds = forward as f64 + explainer.plan().multiply_adds(Accumulation::Optimal);
        let x = samples(sizes[0], SAMPLES, 1.0);
        // Measure the product before and after, because the machine may be shared.
        let before = product();
        let rate = multiply_adds / explain(&explainer, &x) / 1e3;
        let machine =
            threads as f64 * (SIZE * SIZE * SIZE) as f64 / before.midpoint(product()) / 1e3;
        println!(
            "| {}, {targets:?} | {rate:.0} | {machine:.0} | {:.0} % |",
            name(sizes),
            rate / machine * 100.0
        );
    }
}

fn main() {
    orders();
    growth();
    zeros();
    rate();
}
