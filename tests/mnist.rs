//! The bundled networks on the bundled digits. Their accuracy is that of the model card, and the
//! ledger closes for every output.

use std::io::Read;

use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;
use relprop::{Relu, Rule, Scalar, Sequential, Softmax, Workspace};

const NETWORKS: [&str; 2] = ["mlp", "cnn"];

fn model<T: Scalar>(network: &str) -> Sequential<T> {
    let path = format!("{}/examples/mnist/{network}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let weights = StateDict::open(path).unwrap();
    if weights.has_architecture() {
        return weights.to_model().unwrap();
    }
    let builder = weights
        .builder()
        .linear("net.1", 784, 320)
        .layer(Relu)
        .linear("net.3", 320, 120)
        .layer(Relu);
    builder
        .linear("net.5", 120, 40)
        .layer(Relu)
        .linear("net.7", 40, 10)
        .layer(Softmax)
        .build()
        .unwrap()
}

/// The content of a bundled IDX file after its header.
fn data(name: &str, header: usize) -> Vec<u8> {
    let file = std::fs::File::open(format!("{}/examples/mnist/{name}", env!("CARGO_MANIFEST_DIR")))
        .unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    bytes.split_off(header)
}

/// The bundled digits as columns, with values from 0 to 1.
fn digits<T: Scalar>() -> DMatrix<T> {
    let pixels = data("digits-images-idx3-ubyte.gz", 16);
    DMatrix::from_iterator(
        784,
        pixels.len() / 784,
        pixels.iter().map(|&p| T::from_f64(f64::from(p)) / T::from_f64(255.0)),
    )
}

#[test]
fn recognizes_the_bundled_digits() {
    let labels = data("digits-labels-idx1-ubyte.gz", 8);
    assert!(labels.len() >= 500);
    for network in NETWORKS {
        let outputs = model::<f32>(network).forward_batch(&digits()).unwrap();
        let right = outputs
            .column_iter()
            .zip(&labels)
            .filter(|(output, label)| output.imax() == usize::from(**label))
            .count();
        println!("{network}: {right} of {}", labels.len());
        assert!(right * 100 >= labels.len() * 97);
    }
}

/// The worst imbalance of all digits and outputs, for each rule. The explanations of all digits
/// together are much larger than the cache, so this computes a part at a time and reuses the
/// memory.
fn worst_imbalances<T: Scalar>(network: &str, rules: &[Rule]) -> Vec<f64> {
    let (model, digits) = (model::<T>(network), digits::<T>());
    let mut workspace = Workspace::default();
    let of_rule = |rule: &Rule| {
        let explainer = model.explainer(*rule).unwrap();
        let mut worst = 0.0_f64;
        for part in digits.as_slice().chunks(784 * 100) {
            for explanation in explainer.explain_batch_into(part, &mut workspace).unwrap() {
                for target in 0..10 {
                    worst = worst.max(explanation.ledger(target).unwrap().imbalance());
                }
            }
        }
        worst
    };
    rules.iter().map(of_rule).collect()
}

#[test]
fn the_ledger_closes() {
    // Pass requires layers with as many inputs as outputs.
    let rules: Vec<Rule> = Rule::ALL.into_iter().filter(|&rule| rule != Rule::Pass).collect();
    println!("worst |1 - sum| over the sum of magnitudes, in f32 and f64:");
    for network in NETWORKS {
        let single = worst_imbalances::<f32>(network, &rules);
        let double = worst_imbalances::<f64>(network, &rules);
        for ((rule, single), double) in rules.iter().zip(single).zip(double) {
            println!("  {network} {:<12} {single:.1e} {double:.1e}", format!("{rule:?}"));
            assert!(single <= 1e-5 && double <= 1e-12, "{network}, {rule:?}");
        }
    }
}
