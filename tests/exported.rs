//! Networks exported to ONNX by PyTorch, scikit-learn and Keras, against the outputs of onnxruntime
//! and zennit's relevances for the same networks (`exported/generate.py`).

use std::path::{Path, PathBuf};

use relprop::io::{OnnxFile, StateDict};
use relprop::nalgebra::DMatrix;
use relprop::{Composite, Graph, RelevanceRule, Rule, Scalar, Sequential};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/exported");

/// How much outputs and relevances can differ from those of onnxruntime and zennit, relative to the
/// largest. The exporters merge batch norms in f32.
const OUTPUTS: f64 = 1e-5;
const RELEVANCES: f64 = 1e-6;

fn rules<T: Scalar>() -> [(&'static str, Box<dyn RelevanceRule<T>>); 3] {
    [
        ("epsilon", Box::new(Rule::Epsilon)),
        ("zplus", Box::new(Rule::ZPlus)),
        ("epsilon-plus-flat", Box::new(Composite::epsilon_plus_flat())),
    ]
}

fn files() -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(FOLDER).unwrap().map(|entry| entry.unwrap().path()).collect();
    let is_model = |path: &Path| path.extension().is_some_and(|e| e == "onnx");
    paths.retain(|path| {
        is_model(path) && !path.file_stem().unwrap().to_str().unwrap().starts_with("refused-")
    });
    paths.sort();
    assert_eq!(paths.len(), 74, "exported models are missing, or new");
    paths
}

/// The largest difference from the golden values, relative to the largest golden value.
fn off<T: Scalar>(ours: &[T], goldens: &[f64]) -> f64 {
    assert_eq!(ours.len(), goldens.len());
    let largest = goldens.iter().fold(0.0_f64, |max, golden| max.max(golden.abs()));
    let differences = ours.iter().zip(goldens).map(|(ours, golden)| (ours.as_f64() - golden).abs());
    differences.fold(0.0, f64::max) / largest.max(f64::MIN_POSITIVE)
}

fn agree<T: Scalar>(relevances: f64) {
    let mut wrong = Vec::new();
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let mut file = OnnxFile::open(&path).unwrap();
        if name == "sklearn-regressor2" {
            // skl2onnx ends a regressor with two outputs with a reshape that turns each sample into
            // two.
            assert!(
                file.to_graph::<T>()
                    .unwrap_err()
                    .to_string()
                    .contains("mixes the values of several samples")
            );
            file = file.output("add_result2");
        }
        let model: Graph<T> = match file.to_graph() {
            Ok(model) => model.canonize().unwrap().0,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let golden = StateDict::open(path.with_extension("safetensors")).unwrap();
        let (shape, input) = golden.tensor::<T>("input").unwrap();
        let samples = DMatrix::from_vec(shape[1], shape[0], input);
        let (_, outputs) = golden.tensor::<f64>("outputs").unwrap();
        let mut line = format!(
            "outputs {:.1e}",
            off(model.forward_batch(&samples).unwrap().as_slice(), &outputs)
        );
        if off(model.forward_batch(&samples).unwrap().as_slice(), &outputs) > OUTPUTS {
            wrong.push(format!("{name}: {line}"));
        }
        for (rule_name, rule) in rules::<T>() {
            // zennit has no module for the first or last layer of these networks.
            if name.starts_with("sklearn-binary")
                || ["sklearn-labels", "sklearn-pipeline"].contains(&name)
            {
                assert!(golden.shape(rule_name).is_none());
                continue;
            }
            let (shape, goldens) = golden.tensor::<f64>(rule_name).unwrap();
            let targets: Vec<usize> = (0..shape[1]).collect();
            let explainer = model.explainer(rule).unwrap().targets(targets.clone()).unwrap();
            let mut ours: Vec<T> = Vec::new();
            for explanation in explainer.explain_batch(&samples).unwrap() {
                for &target in &targets {
                    ours.extend(explanation.relevance(target).unwrap().iter());
                }
            }
            let difference = off(&ours, &goldens);
            line = format!("{line}, {rule_name} {difference:.1e}");
            if difference > relevances {
                wrong.push(format!("{name}: {rule_name} {difference:.1e}"));
            }
        }
        println!("{name:<32} {line}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// For every version of the operator set, scikit-learn's p and 1 - p become a dense layer with the
/// logits -z and z, and a sigmoid.
#[test]
fn a_binary_classifier_ends_with_two_logits() {
    for name in [
        "sklearn-binary",
        "sklearn-binary-opset9",
        "sklearn-binary-opset13",
        "sklearn-binary-opset17",
        "sklearn-labels",
    ] {
        let file = OnnxFile::open(format!("{FOLDER}/{name}.onnx")).unwrap();
        let output = file
            .outputs()
            .into_iter()
            .find(|output| output.contains("probabilit"))
            .unwrap()
            .to_owned();
        let model: Sequential<f64> = file.clone().output(output).to_model().unwrap();
        let kinds: Vec<&str> = model.layers().iter().map(|layer| layer.kind()).collect();
        assert_eq!(kinds, ["Linear", "ReLU", "Linear", "ReLU", "Linear", "Sigmoid"], "{name}");
        // The logits alone.
        let logits: Sequential<f64> = file.output("add_result2").to_model().unwrap();
        let (pair, alone) = (model.layers()[4].tensors(), logits.layers()[4].tensors());
        for ((_, _, pair), (_, _, alone)) in pair.iter().zip(&alone) {
            let expected: Vec<f64> =
                alone.iter().map(|value| -value).chain(alone.iter().copied()).collect();
            assert_eq!(pair, &expected, "{name}");
        }
    }
}

#[test]
fn outputs_are_onnxruntimes_and_relevances_zennits_in_f64() {
    agree::<f64>(RELEVANCES);
}

#[test]
fn outputs_are_onnxruntimes_and_relevances_zennits_in_f32() {
    agree::<f32>(2e-5);
}
