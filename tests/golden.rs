//! Numbers from zennit and PyTorch autograd (`golden/generate.py`) against ours, in f64 and f32.

#![cfg(feature = "safetensors")]

use relprop::io::StateDict;
use relprop::nalgebra::DVector;
use relprop::{Accumulation, BiasMode, Epsilon, Explanation, Relative, RelevanceRule, Scalar};

/// What ours may differ by from the golden numbers, relative to the largest of a network's entries.
const F64_LIMIT: f64 = 1e-10;
const F32_LIMIT: f64 = 1e-4;

/// Where f32 is not good to [`F32_LIMIT`], because a relevance is divided by a total that has lost its digits: a network
/// through every activation, some of which are not zero where their total nearly is, and one of twenty layers.
const F32_INEXACT: [(&str, f64); 2] = [("15-all-activations", 4e-4), ("18-deep-20", 4e-4)];

/// Every network's name and file.
fn networks() -> Vec<(String, StateDict)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    paths.iter().map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), StateDict::open(path).unwrap())).collect()
}

/// The largest difference over all samples and outputs, relative to the largest golden entry.
fn disagreement<T: Scalar>(
    file: &StateDict,
    golden: &str,
    accumulation: Accumulation,
    rule: impl RelevanceRule<T>,
    ours: impl Fn(&Explanation<T>, usize) -> DVector<T>,
) -> f64 {
    let explainer = file.under("model").to_model::<T>().unwrap().explainer(rule).unwrap().accumulation(accumulation);
    let (shape, inputs) = file.tensor::<T>("golden.input").unwrap();
    let (shape_of_goldens, goldens) = file.tensor::<f64>(golden).unwrap();
    let width = *shape_of_goldens.last().unwrap();
    let mut rows = goldens.chunks_exact(width);
    let (mut worst, mut largest) = (0.0_f64, 0.0_f64);
    for sample in inputs.chunks_exact(shape[1]) {
        let explanation = explainer.explain_slice(sample).unwrap();
        assert_eq!(explanation.exponent(), 0);
        let targets = goldens.len() / shape[0] / width;
        for target in 0..targets {
            let golden = rows.next().unwrap();
            for (ours, &golden) in ours(&explanation, target).iter().zip(golden) {
                worst = worst.max((ours.to_f64().unwrap() - golden).abs());
                largest = largest.max(golden.abs());
            }
        }
    }
    assert!(rows.next().is_none());
    if largest == 0.0 { worst } else { worst / largest }
}

fn rules() -> Vec<(&'static str, Epsilon)> {
    let epsilon = |value: f64, mode| Epsilon::new(value).unwrap().with_bias(mode);
    vec![
        ("golden.epsilon.absorb", epsilon(1e-6, BiasMode::Absorb)),
        ("golden.epsilon.ignore", epsilon(1e-6, BiasMode::Ignore)),
        ("golden.epsilon.distribute", epsilon(1e-6, BiasMode::Distribute)),
        ("golden.epsilon-large.absorb", epsilon(0.25, BiasMode::Absorb)),
        ("golden.epsilon-large.ignore", epsilon(0.25, BiasMode::Ignore)),
        ("golden.gradient_x_input", epsilon(1e-30, BiasMode::Absorb)),
    ]
}

fn compare<T: Scalar>(limit: impl Fn(&str) -> f64) {
    let networks = networks();
    assert!(networks.len() >= 12, "the golden files are missing");
    let relevance = |e: &Explanation<T>, target| e.relevance(target).unwrap();
    let mut worst = (0.0_f64, String::new());
    let mut compared = 0;
    for (name, file) in &networks {
        let mut check = |what: &str, difference: f64| {
            compared += 1;
            println!("{name:<28} {what:<32} {difference:.1e}");
            assert!(difference <= limit(name), "{name} {what}: {difference:e}");
            if difference > worst.0 {
                worst = (difference, format!("{name} {what}"));
            }
        };
        for accumulation in [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse] {
            for (golden, rule) in rules().into_iter().filter(|(golden, _)| file.names().any(|name| name == *golden)) {
                check(golden, disagreement::<T>(file, golden, accumulation, rule, relevance));
            }
            for (golden, mode) in
                [("golden.relative.ignore", BiasMode::Ignore), ("golden.relative.distribute", BiasMode::Distribute)]
            {
                check(golden, disagreement::<T>(file, golden, accumulation, Relative::new(mode).unwrap(), relevance));
            }
            let output = |e: &Explanation<T>, _| e.output().clone();
            check("golden.output", disagreement::<T>(file, "golden.output", accumulation, Epsilon::default(), output));
        }
    }
    println!("worst of {compared} in {}: {:.1e} ({})", std::any::type_name::<T>(), worst.0, worst.1);
}

#[test]
fn f64_agrees() {
    compare::<f64>(|_| F64_LIMIT);
}

#[test]
fn f32_agrees() {
    compare::<f32>(|name| F32_INEXACT.iter().find(|(n, _)| *n == name).map_or(F32_LIMIT, |(_, limit)| *limit));
}
