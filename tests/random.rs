//! Random networks with a rule for each layer, against the formulas of the rules and zennit
//! (`random_networks.py`).

use std::collections::BTreeMap;
use std::path::Path;

use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;
use relprop::rule::Stabilizer;
use relprop::{
    Accumulation, AlphaBeta, BiasMode, Composite, Epsilon, Flat, Gamma, GammaPlain, Lrp0, Norm,
    Pass, Relative, RelevanceRule, WSquare, ZBox, ZPlus,
};

/// The largest allowed difference, relative to a network's largest entry.
const LIMIT: f64 = 1e-9;

type AnyRule = Box<dyn RelevanceRule<f64>>;

/// Parses a rule as the files contain it: its kind, its numbers, and its bias mode.
fn rule(words: &[&str]) -> AnyRule {
    let number = |at: usize| words[at].parse::<f64>().unwrap();
    let epsilon = |at: usize| Stabilizer::Absolute(number(at));
    let bias = match words[words.len() - 1] {
        "ignore" => BiasMode::Ignore,
        "distribute" => BiasMode::Distribute,
        _ => BiasMode::Absorb,
    };
    match words[0] {
        "lrp0" => Box::new(Lrp0::default().with_bias(bias)),
        "epsilon" => Box::new(Epsilon::new(number(1)).unwrap().with_bias(bias)),
        "rms" => Box::new(Epsilon::relative_to_rms(number(1)).unwrap().with_bias(bias)),
        "gamma" => Box::new(
            Gamma::new(number(1)).unwrap().with_stabilizer(epsilon(2)).unwrap().with_bias(bias),
        ),
        "gamma-plain" => Box::new(
            GammaPlain::new(number(1))
                .unwrap()
                .with_stabilizer(epsilon(2))
                .unwrap()
                .with_bias(bias),
        ),
        "zplus" => Box::new(ZPlus::default().with_stabilizer(epsilon(1)).unwrap().with_bias(bias)),
        "alpha-beta" => {
            let rule = AlphaBeta::new(number(1), number(1) - 1.0).unwrap();
            Box::new(rule.with_stabilizer(epsilon(2)).unwrap().with_bias(bias))
        }
        "wsquare" => {
            Box::new(WSquare::default().with_stabilizer(epsilon(1)).unwrap().with_bias(bias))
        }
        "zbox" => {
            Box::new(ZBox::new(number(1), number(2)).unwrap().with_stabilizer(epsilon(3)).unwrap())
        }
        "relative" => Box::new(Relative::new(bias).unwrap()),
        "flat" => Box::new(Flat),
        "pass" => Box::new(Pass),
        "norm" => Box::new(Norm),
        other => panic!("there is no rule {other}"),
    }
}

/// Parses a composite. Each line has a layer's name, or `first`, and its rule.
fn composite(lines: &str) -> Composite<f64> {
    lines.lines().fold(Composite::new(Norm), |composite, line| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "first" => composite.first(rule(&words[1..])),
            name => composite.layer(name, rule(&words[1..])),
        }
    })
}

fn off<'a>(ours: impl IntoIterator<Item = &'a f64>, goldens: &[f64]) -> f64 {
    let largest = goldens.iter().fold(0.0_f64, |max, golden| max.max(golden.abs()));
    let differences = ours.into_iter().zip(goldens).map(|(ours, golden)| (ours - golden).abs());
    // A NaN must not count as agreement.
    differences.fold(0.0, |max: f64, d| if d.is_nan() { f64::INFINITY } else { max.max(d) })
        / largest
}

/// The differences of outputs, relevances and ledgers, for each order of accumulation, by name.
fn differences(path: &Path) -> Result<Vec<(String, f64)>, relprop::Error> {
    let file = StateDict::open(path)?;
    let (model, _) = file.under("model").to_model::<f64>()?.canonize()?;
    let composite = composite(file.metadata("rules").unwrap());
    let (shape, inputs) = file.tensor::<f64>("golden.input")?;
    let (_, outputs) = file.tensor::<f64>("golden.output")?;
    let (shape_of_goldens, goldens) = file.tensor::<f64>("golden.relevance")?;
    let samples = DMatrix::from_vec(shape[1], shape[0], inputs);
    let mut found = vec![("outputs".to_owned(), off(&model.forward_batch(&samples)?, &outputs))];
    for order in [Accumulation::Optimal, Accumulation::Forward, Accumulation::Reverse] {
        let targets: Vec<usize> = (0..shape_of_goldens[1]).collect();
        let explainer =
            model.explainer(&composite)?.accumulation(order).targets(targets.clone())?;
        let (mut ours, mut imbalance) = (Vec::new(), 0.0_f64);
        for explanation in explainer.explain_batch(&samples)? {
            for &target in &targets {
                ours.extend(explanation.relevance(target)?.iter());
                imbalance = imbalance.max(explanation.ledger(target)?.imbalance());
            }
        }
        assert_eq!(ours.len(), goldens.len());
        found.push((format!("{order:?}"), off(&ours, &goldens)));
        found.push((format!("ledger, {order:?}"), imbalance));
    }
    Ok(found)
}

/// This test requires a folder with networks:
///
/// ```text
/// python tests/random_networks.py target/random --count 500
/// RELPROP_RANDOM=target/random cargo test --test relprop random -- --ignored --nocapture
/// ```
#[test]
#[ignore = "reads a folder that random_networks.py writes"]
fn random_networks_are_explained_by_the_formulas() {
    let folder = std::env::var("RELPROP_RANDOM")
        .expect("RELPROP_RANDOM is the folder that random_networks.py has written");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert!(!paths.is_empty(), "the folder has no networks");
    let (mut worst, mut wrong): (BTreeMap<String, (f64, &Path)>, usize) = (BTreeMap::new(), 0);
    for path in &paths {
        let found = std::panic::catch_unwind(|| differences(path))
            .unwrap_or_else(|_| Ok(vec![("panic".into(), f64::INFINITY)]));
        let found = found.unwrap_or_else(|error| vec![(error.to_string(), f64::INFINITY)]);
        for (what, difference) in &found {
            let known = worst.entry(what.clone()).or_insert((0.0, path));
            if *difference > known.0 {
                *known = (*difference, path);
            }
        }
        if let Some((what, difference)) = found.iter().find(|(_, difference)| *difference > LIMIT) {
            println!("{}: {what}: off by {difference:.1e}", path.display());
            wrong += 1;
        }
    }
    for (what, (difference, path)) in worst {
        println!("{what:<20} {difference:.1e} at most, {}", path.display());
    }
    assert_eq!(wrong, 0, "of {} networks", paths.len());
}
