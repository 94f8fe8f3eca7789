//! Explains a model of your own: `cargo run --release --example explain --all-features -- --help`.

mod options;
mod picture;
mod report;
mod samples;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use relprop::nalgebra::DMatrix;
use relprop::{Error, Explanation, RelevanceRule, Sequential, Targets};

use options::{HELP, Options};
use samples::Samples;

/// Whatever is said to the user in the end.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the text has read enough of it.
        Err(failure) if failure.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("explain: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>, out: &mut impl Write) -> Result<(), Failure> {
    let Some(options) = Options::parse(arguments)? else {
        out.write_all(HELP.as_bytes())?;
        return Ok(());
    };
    let (model, merged) = options.load()?.canonize()?;
    if !merged.is_empty() {
        eprintln!("{} batch norms merged into their neighbours", merged.len());
    }
    let samples = Samples::read(&options.input, options.names.as_deref(), model.input_shape())?;
    let rule = options.rule()?;
    let findings = model.check(&*rule)?;
    let explanations = explain(&model, &*rule, &options.targets, &samples.values)?;

    if let Some(path) = &options.json {
        let written = serde_json::to_string(&report::json(&explanations, &samples, &findings)?)?;
        if path == Path::new("-") {
            writeln!(out, "{written}")?;
        } else {
            std::fs::write(path, written).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    // A picture that fails is no reason to print nothing, nor is a reader of the text who has read enough a reason to draw nothing.
    let drawn = options.png.as_deref().map_or(Ok(()), |path| draw(path, &explanations, &samples, options.top));
    if options.json.as_deref() != Some(Path::new("-")) {
        for finding in &findings {
            writeln!(out, "check: {finding}")?;
        }
        for (number, explanation) in explanations.iter().enumerate() {
            for target in explanation.targets() {
                report::table(out, number, explanation, target, &samples, options.top)?;
            }
        }
    }
    drawn
}

fn draw(path: &Path, explanations: &[Explanation<f32>], samples: &Samples, top: usize) -> Result<(), Failure> {
    let (canvas, left) = picture::draw(explanations, samples, top)?;
    canvas.write_png(path)?;
    if left > 0 {
        eprintln!("{}: {left} more explanations had no room in the picture", path.display());
    }
    Ok(())
}

/// In parts, so that there is something to see of many samples.
fn explain(
    model: &Sequential<f32>,
    rule: &dyn RelevanceRule<f32>,
    targets: &Targets<f32>,
    samples: &DMatrix<f32>,
) -> Result<Vec<Explanation<f32>>, Failure> {
    const PART: usize = 64;
    let explainer = model.explainer(rule)?.targets(targets.clone())?;
    let count = samples.ncols();
    let bar = if count > PART { ProgressBar::new(count as u64) } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos} of {len} samples, {eta} left")?);
    let mut explanations = Vec::with_capacity(count);
    for first in (0..count).step_by(PART) {
        let part = samples.columns(first, PART.min(count - first)).into_owned();
        let placed = |error| match error {
            Error::NonFiniteInput { index, sample, value } => Error::NonFiniteInput { index, sample: sample + first, value },
            other => other,
        };
        explanations.extend(explainer.explain_batch(&part).map_err(placed)?);
        bar.inc(part.ncols() as u64);
    }
    bar.finish_and_clear();
    Ok(explanations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_classifier_and_a_table_become_json_and_a_picture() {
        let file = |name: &str| std::env::temp_dir().join(format!("relprop-explain-{}-{name}", std::process::id()));
        let [table, json, png] = ["x.csv", "out.json", "out.png"].map(file);
        let rows = "1,1,-2,0.5,0,3\n".repeat(70);
        std::fs::write(&table, format!("a,b,c,d,e,f\n{rows}")).unwrap();
        let model = format!("{}/tests/exported/sklearn-classifier.onnx", env!("CARGO_MANIFEST_DIR"));
        let with = |more: &[&str]| {
            let paths = ["--input", table.to_str().unwrap(), "--json", json.to_str().unwrap(), "--png", png.to_str().unwrap()];
            let arguments = [&[model.as_str()], &paths[..], more].concat();
            let mut text = Vec::new();
            let done = run(arguments.into_iter().map(OsString::from), &mut text).map_err(|failure| failure.to_string());
            done.map(|()| String::from_utf8(text).unwrap())
        };
        let text = with(&["--target", "all", "--rule", "epsilon", "--top", "2"]).unwrap();
        assert!(text.starts_with("check: softmax-last at layer 5"), "{text}");
        assert_eq!(text.matches("\nsample ").count(), 70 * 3);
        assert_eq!(text.matches("to all inputs").count(), 70 * 3);

        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let samples = found["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 70 * 3);
        for (number, sample) in samples.iter().enumerate() {
            assert_eq!((&sample["sample"], &sample["target"]), (&(number / 3).into(), &(number % 3).into()));
            let relevance: f64 = sample["relevance"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).sum();
            let ledger = |key: &str| sample["ledger"][key].as_f64().unwrap();
            let output = sample["outputs"][number % 3].as_f64().unwrap();
            let parts = relevance + ledger("bias") + ledger("stabilizer") + ledger("rounding");
            assert!((parts - output).abs() <= 1e-4 * output.abs().max(1.0), "{parts} is not {output}");
        }
        assert_eq!(found["check"][0]["code"], "softmax-last");
        assert_eq!(found["names"][5], "f");
        assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));

        assert!(with(&["--rule", "zbox"]).unwrap_err().contains("needs --box"));
        assert!(with(&["--rule", "zbox", "--box", "-3,100"]).is_ok());
        assert!(with(&["--target", "3"]).unwrap_err().contains("the model has outputs 0 to 2"));
        assert!(with(&["--under", "x"]).unwrap_err().contains("are for weights"));
        for path in [table, json, png] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
