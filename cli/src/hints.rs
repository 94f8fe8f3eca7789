//! The library's texts in the words of this command line.

use relprop::{Code, Finding, Graph, RelevanceRule};

use crate::Failure;

/// The library's calls, and the options that do the same.
const HINTS: [(&str, &str); 15] = [
    ("OnnxFile::output", "--output"),
    ("OnnxFile::input", "--shape"),
    ("SequentialBuilder::input", "--shape SIZES, as in --shape 3,224,224"),
    ("StateDict::model_of", "--architecture FILE"),
    ("read it with Graph::read_onnx (feature `onnx`)", "give its name the ending .onnx"),
    ("read it with StateDict::open or StateDict::from_pytorch", "give it as MODEL"),
    ("StateDictBuilder::input", "--shape"),
    ("StateDict::under", "--under"),
    ("with Composite::first", "with --rule epsilon-plus-flat"),
    ("BiasMode::Ignore", "--bias ignored"),
    ("BiasMode::Distribute", "--bias distributed"),
    (
        "(Targets::Predicted, or a list of them)",
        "(--target predicted, or --target with one number)",
    ),
    (", or raise the limit with Explainer::memory_limit", ""),
    ("use a larger epsilon or f64", "another --rule may help, such as epsilon-plus"),
    (
        "widen the range, or let the rule report such samples (Outside::Report)",
        "set --box to the smallest and the largest value that an input can have",
    ),
];

/// Replaces the library's calls with options.
pub fn in_options(text: &str) -> String {
    const OF_OUTPUT: &str = "OnnxFile::output(\"";
    let mut text = text.to_owned();
    // First replace the calls with an argument, whose name is not in the table.
    while let Some((before, (name, after))) = text
        .split_once(OF_OUTPUT)
        .and_then(|(before, rest)| Some((before, rest.split_once("\")")?)))
    {
        text = format!("{before}--output {name}{after}");
    }
    HINTS.iter().fold(text, |text, (call, option)| text.replace(call, option))
}

/// The findings of the check of a model and a rule. Batch norms must already be merged.
pub fn findings(
    model: &Graph<f32>,
    rule: &dyn RelevanceRule<f32>,
) -> Result<Vec<Finding>, Failure> {
    Ok(model.check(rule)?.into_iter().map(in_finding).collect())
}

/// A finding whose advice can be followed on this command line.
fn in_finding(mut finding: Finding) -> Finding {
    finding.advice = match finding.code {
        // The norms that can be merged have been merged.
        Code::UnmergedNorm => "Nothing: no linear layer next to it can absorb it.".to_owned(),
        Code::LargeBiases => {
            "Look at the part absorbed by biases, and compare with --rule epsilon \
            --bias ignored."
                .to_owned()
        }
        _ => in_options(&finding.advice),
    };
    finding
}

#[cfg(test)]
mod tests {
    use super::*;
    use relprop::io::StateDict;
    use relprop::nalgebra::{DMatrix, DVector};
    use relprop::{BatchNorm1d, Error, Linear, Relu, Rule, Sequential};

    /// No finding names a call of the library.
    #[test]
    fn advice_names_options() {
        let norm =
            BatchNorm1d::new(vec![2.0_f32; 2], vec![1.0; 2], vec![0.5; 2], vec![4.0; 2], 0.0)
                .unwrap();
        let linear = || {
            Linear::new(DMatrix::from_element(2, 2, 1.0_f32), DVector::from_element(2, 100.0))
                .unwrap()
        };
        let model = Sequential::builder()
            .layer(linear())
            .layer(Relu)
            .layer(norm)
            .layer(Relu)
            .layer(linear())
            .build()
            .unwrap();
        for (rule, codes) in [
            (Rule::Flat, vec![Code::DeadUnits]),
            (Rule::Epsilon, vec![Code::LargeBiases, Code::UnmergedNorm]),
        ] {
            let findings = model.check(rule).unwrap();
            for code in codes {
                let finding = findings
                    .iter()
                    .find(|finding| finding.code == code)
                    .expect("this model has it");
                let text = in_finding(finding.clone()).to_string();
                assert!(!text.contains("::"), "{text}");
            }
        }
        assert_eq!(in_options("say which, with OnnxFile::output"), "say which, with --output");
        assert_eq!(
            in_options("end it before, with OnnxFile::output(\"a/b\"), or not"),
            "end it before, with --output a/b, or not"
        );
    }

    /// The texts of the library and [`HINTS`] agree: these errors name options, and no calls.
    #[test]
    fn errors_name_options() {
        let (layer, kind) = (0, "Linear".to_owned());
        let outside = Error::OutsideRange {
            rule: "ZBox(0.0, 1.0)".to_owned(),
            layer,
            name: "0".to_owned(),
            kind: kind.clone(),
            sample: 0,
            input: 0,
            value: 2.0,
            low: 0.0,
            high: 1.0,
            count: 1,
        };
        let weights = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/formats/zip.pt");
        let onnx =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/exported/sklearn-classifier.onnx");
        for (error, option) in [
            (outside, "--box"),
            (Error::Overflow { layer, name: "0".to_owned(), kind: kind.clone() }, "--rule"),
            (Error::UnknownInput { kind }, "--shape"),
            (StateDict::open(weights).unwrap().to_model::<f32>().unwrap_err(), "--architecture"),
            (StateDict::open(onnx).unwrap_err(), ".onnx"),
        ] {
            let text = in_options(&error.to_string());
            assert!(text.contains(option), "{text}");
            let calls = text.replace("relprop::io", "");
            assert!(!calls.contains("::"), "{text}");
        }
    }
}
