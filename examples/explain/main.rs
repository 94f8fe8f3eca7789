//! Explains a model of your own: `cargo run --release --example explain --all-features -- --help`.

mod picture;
mod report;
mod samples;

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use relprop::io::{OnnxFile, StateDict};
use relprop::nalgebra::DMatrix;
use relprop::{Composite, Error, Explanation, RelevanceRule, Rule, Sequential, Shape, Targets, ZBox};

use samples::Samples;

const HELP: &str = "Explains what a model makes of samples: how much each input contributed to an output.

usage: cargo run --release --example explain --all-features -- MODEL --input FILE [options]

  MODEL                an ONNX file, or weights: safetensors, PyTorch's .pt or .pth, NumPy's .npz
  --input FILE         samples: .npy (an array of samples), or .csv (a row a sample, the names first)
  --rule RULE          epsilon, lrp0, gamma, gamma-plain, zplus, alpha-beta, wsquare, flat, norm, relative, zbox, or
                       epsilon-plus, epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-alpha2-beta1-flat, epsilon-gamma-box
                       (default: epsilon-plus)
  --box LOW,HIGH       the least and the largest value that an input may have, which zbox and epsilon-gamma-box ask for
  --target TARGET      predicted, all, or the number of an output (default: predicted)
  --top N              how many inputs are listed (default: 10)
  --names FILE         the names of the inputs, one a line (default: those of a .csv)
  --png FILE           a picture: bars for a vector, a map for an image (of three axes, with the channels first or last);
                       red is for the output, blue against it
  --json FILE          everything for programs, - for the standard output in place of the text
  --output NAME        the output of an ONNX model that has several, or any other of its values, where it is to end
  --shape SIZES        the shape of a sample where the file does not say it, such as 3,224,224
  --architecture FILE  the architecture of weights, as PyTorch prints it; without it a stack of dense layers is guessed
  --help               this text

A JSON file has, for each sample and target, {\"outputs\", \"target\", \"relevance\" (flat, in the input's order), \"ledger\"} under
\"samples\", and what the check of the model and the rule found under \"check\". The outputs of a model that ends with a softmax are
its logits; its samples have \"probabilities\" too.
";

/// Whatever is said to the user in the end.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the text has read enough of it.
        Err(failure) if failure.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("explain: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let Some(options) = Options::parse(arguments)? else {
        out.write_all(HELP.as_bytes())?;
        return Ok(());
    };
    let named = |error: Failure| format!("{}: {error}", options.model.display());
    let (model, merged) = options.load().map_err(named)?.canonize()?;
    if !merged.is_empty() {
        eprintln!("{} batch norms merged into their neighbours", merged.len());
    }
    let samples = Samples::read(&options.input, options.names.as_deref(), model.input_shape())?;
    let rule = options.rule()?;
    let findings = model.check(&*rule)?;
    let explanations = explain(&model, &*rule, &options.targets, &samples.values)?;

    if let Some(path) = &options.json {
        let written = serde_json::to_string(&report::json(&explanations, &findings)?)?;
        if path == Path::new("-") {
            writeln!(out, "{written}")?;
        } else {
            std::fs::write(path, written).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    if let Some(path) = &options.png {
        picture::draw(&explanations, &samples, options.top)?.write_png(path)?;
    }
    if options.json.as_deref() == Some(Path::new("-")) {
        return Ok(());
    }
    for finding in &findings {
        writeln!(out, "check: {finding}")?;
    }
    for (number, explanation) in explanations.iter().enumerate() {
        for target in explanation.targets() {
            report::table(&mut out, number, explanation, target, &samples, options.top)?;
        }
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

struct Options {
    model: PathBuf,
    input: PathBuf,
    rule: String,
    bounds: Option<(f64, f64)>,
    targets: Targets<f32>,
    top: usize,
    names: Option<PathBuf>,
    png: Option<PathBuf>,
    json: Option<PathBuf>,
    output: Option<String>,
    shape: Option<Shape>,
    architecture: Option<PathBuf>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, Failure> {
        let (mut model, mut input) = (None, None);
        let mut options = Self {
            model: PathBuf::new(),
            input: PathBuf::new(),
            rule: "epsilon-plus".to_owned(),
            bounds: None,
            targets: Targets::Predicted,
            top: 10,
            names: None,
            png: None,
            json: None,
            output: None,
            shape: None,
            architecture: None,
        };
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.to_str().filter(|text| text.starts_with('-')).map(str::to_owned) else {
                if model.replace(argument.clone()).is_some() {
                    return Err(format!("one model is wanted, {} is a second (--help)", argument.display()).into());
                }
                continue;
            };
            if matches!(name.as_str(), "--help" | "-h") {
                return Ok(None);
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value (--help)"))?;
            let text = value.to_string_lossy().into_owned();
            let number = || text.parse::<usize>().map_err(|_| format!("{name}: '{text}' is no number"));
            match name.as_str() {
                "--input" => input = Some(value),
                "--rule" => options.rule = text,
                "--box" => {
                    let bounds =
                        text.split_once(',').and_then(|(low, high)| Some((low.trim().parse().ok()?, high.trim().parse().ok()?)));
                    options.bounds = Some(bounds.ok_or_else(|| format!("--box: '{text}' is not two numbers"))?);
                }
                "--target" => {
                    options.targets = match text.as_str() {
                        "predicted" => Targets::Predicted,
                        "all" => Targets::All,
                        _ => number()?.into(),
                    }
                }
                "--top" => options.top = number()?,
                "--names" => options.names = Some(value.into()),
                "--png" => options.png = Some(value.into()),
                "--json" => options.json = Some(value.into()),
                "--output" => options.output = Some(text),
                "--shape" => {
                    options.shape = Some(shape(&text).ok_or_else(|| format!("--shape: '{text}' is not one to three sizes"))?);
                }
                "--architecture" => options.architecture = Some(value.into()),
                _ => return Err(format!("unknown option {name} (--help lists them)").into()),
            }
        }
        options.model = model.ok_or("a model is wanted (--help)")?.into();
        options.input = input.ok_or("--input is wanted (--help)")?.into();
        Ok(Some(options))
    }

    fn load(&self) -> Result<Sequential<f32>, Failure> {
        if self.model.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) {
            let mut file = OnnxFile::open(&self.model)?;
            if let Some(shape) = self.shape {
                file = file.input(shape);
            }
            if let Some(output) = &self.output {
                file = file.output(output);
            }
            return Ok(file.to_model()?);
        }
        let weights = StateDict::open(&self.model)?;
        if let Some(path) = &self.architecture {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            return Ok(weights.model_of(&text, self.shape)?);
        }
        if weights.has_architecture() {
            return Ok(weights.to_model()?);
        }
        let guess = weights.guessed_architecture()?;
        eprintln!("the file does not say its architecture; this one is guessed from names and shapes:\n{guess}");
        Ok(weights.model_of(&guess, self.shape)?)
    }

    fn rule(&self) -> Result<Box<dyn RelevanceRule<f32>>, Failure> {
        let bounds = || self.bounds.ok_or_else(|| format!("the rule {} needs --box (--help)", self.rule));
        Ok(match self.rule.as_str() {
            "epsilon" => Box::new(Rule::Epsilon),
            "lrp0" => Box::new(Rule::Lrp0),
            "gamma" => Box::new(Rule::Gamma),
            "gamma-plain" => Box::new(Rule::GammaPlain),
            "zplus" => Box::new(Rule::ZPlus),
            "alpha-beta" => Box::new(Rule::AlphaBeta),
            "wsquare" => Box::new(Rule::WSquare),
            "flat" => Box::new(Rule::Flat),
            "norm" => Box::new(Rule::Norm),
            "relative" => Box::new(Rule::Relative),
            "zbox" => {
                let (low, high) = bounds()?;
                Box::new(ZBox::new(low, high)?)
            }
            "epsilon-gamma-box" => {
                let (low, high) = bounds()?;
                Box::new(Composite::epsilon_gamma_box(low, high)?)
            }
            "epsilon-plus" => Box::new(Composite::epsilon_plus()),
            "epsilon-plus-flat" => Box::new(Composite::epsilon_plus_flat()),
            "epsilon-alpha2-beta1" => Box::new(Composite::epsilon_alpha2_beta1()),
            "epsilon-alpha2-beta1-flat" => Box::new(Composite::epsilon_alpha2_beta1_flat()),
            other => return Err(format!("unknown rule {other} (--help lists the rules)").into()),
        })
    }
}

fn shape(text: &str) -> Option<Shape> {
    let dims: Vec<usize> = text.split(',').map(|dim| dim.trim().parse().ok()).collect::<Option<_>>()?;
    match *dims {
        [size] => Some(size.into()),
        [channels, length] => Some([channels, length].into()),
        [channels, height, width] => Some([channels, height, width].into()),
        _ => None,
    }
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
            run(arguments.into_iter().map(OsString::from)).map_err(|failure| failure.to_string())
        };
        with(&["--target", "all", "--rule", "epsilon"]).unwrap();

        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let samples = found["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 70 * 3);
        for (number, sample) in samples.iter().enumerate() {
            assert_eq!(sample["target"], number % 3);
            let relevance: f64 = sample["relevance"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).sum();
            let ledger = |key: &str| sample["ledger"][key].as_f64().unwrap();
            let output = sample["outputs"][number % 3].as_f64().unwrap();
            let parts = relevance + ledger("bias") + ledger("stabilizer") + ledger("rounding");
            assert!((parts - output).abs() <= 1e-4 * output.abs().max(1.0), "{parts} is not {output}");
        }
        assert_eq!(found["check"][0]["code"], "softmax-last");
        assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));

        assert!(with(&["--rule", "zbox"]).unwrap_err().contains("needs --box"));
        assert!(with(&["--rule", "zbox", "--box", "-3,100"]).is_ok());
        assert!(with(&["--target", "3"]).unwrap_err().contains("the model has outputs 0 to 2"));
        std::fs::write(&table, format!("a,b,c,d,e,f\n{rows}NaN,0,0,0,0,0\n")).unwrap();
        assert!(with(&[]).unwrap_err().contains("input 0 of sample 70 is NaN"));
        for path in [table, json, png] {
            std::fs::remove_file(path).unwrap();
        }
    }
}
