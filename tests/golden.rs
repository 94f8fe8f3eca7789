//! The crate against numbers from zennit and PyTorch autograd (`golden/generate.py`), in f64 and
//! f32.

use std::collections::BTreeMap;

use relprop::io::StateDict;
use relprop::nalgebra::DVector;
use relprop::rule::Outside;
use relprop::{
    Accumulation, AlphaBeta, BiasMode, Composite, Epsilon, Explanation, Gamma, Relative,
    RelevanceRule, Rule, Scalar, WSquare, ZBox,
};

const ORDERS: [Accumulation; 3] =
    [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse];

/// The largest allowed difference from the golden numbers, relative to a network's largest entry.
const F64_LIMIT: f64 = 1e-10;
const F32_LIMIT: f64 = 1e-4;

/// The networks for which f32 does not reach [`F32_LIMIT`], because a relevance is divided by a
/// total that has lost its digits. One has every activation, and some of these are not zero
/// although their total almost is; the other has twenty layers.
const F32_INEXACT: [(&str, f64); 2] = [("15-all-activations", 4e-4), ("18-deep-20", 4e-4)];

/// The name and file of every network.
fn networks() -> Vec<(String, StateDict)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    paths
        .iter()
        .map(|path| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), StateDict::open(path).unwrap())
        })
        .collect()
}

/// The largest difference for all samples and outputs, relative to the largest golden entry.
fn disagreement<T: Scalar>(
    file: &StateDict,
    golden: &str,
    accumulation: Accumulation,
    rule: impl RelevanceRule<T>,
    ours: impl Fn(&Explanation<T>, usize) -> DVector<T>,
) -> f64 {
    let explainer = file
        .under("model")
        .to_model::<T>()
        .unwrap()
        .explainer(rule)
        .unwrap()
        .accumulation(accumulation);
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

type Rules<T> = Vec<(&'static str, Box<dyn RelevanceRule<T>>)>;

/// All rules and presets with golden numbers.
fn rules<T: Scalar>() -> Rules<T> {
    const BOX: (f64, f64) = (-2.5, 3.0);
    let epsilon = |value: f64, mode| Box::new(Epsilon::new(value).unwrap().with_bias(mode));
    vec![
        ("epsilon.absorb", epsilon(1e-6, BiasMode::Absorb)),
        ("epsilon.ignore", epsilon(1e-6, BiasMode::Ignore)),
        ("epsilon.distribute", epsilon(1e-6, BiasMode::Distribute)),
        ("epsilon-large.absorb", epsilon(0.25, BiasMode::Absorb)),
        ("epsilon-large.ignore", epsilon(0.25, BiasMode::Ignore)),
        ("gradient_x_input", Box::new(Rule::Lrp0)),
        ("relative.ignore", Box::new(Relative::new(BiasMode::Ignore).unwrap())),
        ("relative.distribute", Box::new(Relative::new(BiasMode::Distribute).unwrap())),
        ("lrp0", Box::new(Rule::Lrp0)),
        ("gamma", Box::new(Rule::Gamma)),
        ("gamma-1", Box::new(Gamma::new(1.0).unwrap())),
        ("gamma-plain", Box::new(Rule::GammaPlain)),
        ("zplus", Box::new(Rule::ZPlus)),
        ("alpha2-beta1", Box::new(Rule::AlphaBeta)),
        ("alpha1-beta0", Box::new(AlphaBeta::new(1.0, 0.0).unwrap())),
        ("zbox", Box::new(ZBox::new(BOX.0, BOX.1).unwrap().with_outside(Outside::Report))),
        ("wsquare", Box::new(Rule::WSquare)),
        ("wsquare.absorb", Box::new(WSquare::default().with_bias(BiasMode::Absorb))),
        ("flat", Box::new(Rule::Flat)),
        ("norm", Box::new(Rule::Norm)),
        ("abs-lrp", Box::new(Rule::AbsLrp)),
        ("sign", Box::new(Rule::Sign)),
        ("epsilon-plus", Box::new(Composite::epsilon_plus())),
        ("epsilon-plus-flat", Box::new(Composite::epsilon_plus_flat())),
        ("epsilon-alpha2-beta1", Box::new(Composite::epsilon_alpha2_beta1())),
        ("epsilon-alpha2-beta1-flat", Box::new(Composite::epsilon_alpha2_beta1_flat())),
        ("epsilon-gamma-box", Box::new(Composite::epsilon_gamma_box(BOX.0, BOX.1).unwrap())),
    ]
}

/// The worst result of a rule: the number of networks, the difference, and where it occurs.
#[derive(Default)]
struct Worst {
    networks: usize,
    difference: f64,
    network: String,
}

fn compare<T: Scalar>(limit: impl Fn(&str) -> f64) {
    let networks = networks();
    assert!(networks.len() >= 20, "golden files are missing");
    let mut seen: BTreeMap<&str, Worst> = BTreeMap::new();
    for (name, file) in &networks {
        let mut check = |what: &'static str, difference: f64| {
            assert!(difference <= limit(name), "{name} {what}: {difference:e}");
            let worst = seen.entry(what).or_default();
            worst.networks += 1;
            if difference >= worst.difference {
                (worst.difference, worst.network) = (difference, name.clone());
            }
        };
        for (what, rule) in rules::<T>() {
            let golden = format!("golden.{what}");
            if file.names().any(|name| name == golden) {
                let relevance = |e: &Explanation<T>, target| e.relevance(target).unwrap();
                let in_order = |order| disagreement::<T>(file, &golden, order, &rule, relevance);
                check(what, ORDERS.map(in_order).into_iter().fold(0.0, f64::max));
            }
        }
        let output = |e: &Explanation<T>, _| e.output().clone();
        check(
            "output",
            disagreement::<T>(
                file,
                "golden.output",
                Accumulation::Optimal,
                Epsilon::default(),
                output,
            ),
        );
    }
    println!(
        "the worst disagreement of each rule in {}, relative to the largest entry:",
        std::any::type_name::<T>()
    );
    for (what, Worst { networks, difference, network }) in &seen {
        println!("  {what:<28} {networks:>3} networks  {difference:.1e}  {network}");
    }
    for (what, _) in rules::<T>() {
        assert!(
            seen.get(what).is_some_and(|worst| worst.networks >= 20 || what == "gradient_x_input"),
            "{what}"
        );
    }
}

#[test]
fn f64_agrees() {
    compare::<f64>(|_| F64_LIMIT);
}

#[test]
fn f32_agrees() {
    compare::<f32>(|name| {
        F32_INEXACT.iter().find(|(n, _)| *n == name).map_or(F32_LIMIT, |(_, limit)| *limit)
    });
}
