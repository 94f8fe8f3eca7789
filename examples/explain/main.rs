//! Explains a model of your own: `cargo run --release --example explain --all-features -- --help`.

mod samples;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use relprop::heatmap::{Canvas, diverging};
use relprop::io::{OnnxFile, StateDict};
use relprop::nalgebra::DMatrix;
use relprop::{Cause, Composite, Explanation, Finding, Ledger, RelevanceRule, Rule, Sequential, Shape, Targets};
use samples::Samples;
use serde_json::{Value, json};

const HELP: &str = "Explains what a model makes of samples: how much each input contributed to an output.

usage: cargo run --release --example explain --all-features -- MODEL --input FILE [options]

  MODEL                an ONNX file, or weights: safetensors, PyTorch's .pt or .pth, NumPy's .npz
  --input FILE         samples: .npy (an array of samples), or .csv (a row a sample, the names first)
  --rule RULE          epsilon, lrp0, gamma, gamma-plain, zplus, alpha-beta, wsquare, flat, norm, relative, or
                       epsilon-plus, epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-alpha2-beta1-flat (default: epsilon-plus)
  --target TARGET      predicted, all, or the number of an output (default: predicted)
  --top N              how many inputs are listed (default: 10)
  --names FILE         the names of the inputs, one a line (default: those of a .csv)
  --png FILE           a picture of the relevances: red for the output, blue against it
  --json FILE          everything for programs, - for the standard output in place of the text
  --output NAME        the output of an ONNX model that has several
  --shape SIZES        the shape of a sample where the file does not say it, such as 3,224,224
  --architecture FILE  the architecture of weights, as PyTorch prints it; without it a stack of dense layers is guessed
  --help               this text

A JSON file has, for each sample and target, {\"outputs\", \"target\", \"relevance\" (flat, in the input's order), \"ledger\"} under
\"samples\", and what the check of the model and the rule found under \"check\".
";

/// Whatever is said to the user in the end.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
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
    let mut samples = Samples::read(&options.input, model.input_shape())?;
    if let Some(path) = &options.names {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        samples.names = text.lines().map(str::to_owned).collect();
        if samples.names.len() != model.inputs() {
            return Err(format!("{}: {} names for {} inputs", path.display(), samples.names.len(), model.inputs()).into());
        }
    }
    let rule = options.rule()?;
    let findings = model.check(&*rule)?;
    let explanations = explain(&model, &*rule, &options.targets, &samples.values)?;

    if let Some(path) = &options.json {
        let written = serde_json::to_string(&report(&explanations, &findings)?)?;
        if path == Path::new("-") {
            writeln!(out, "{written}")?;
        } else {
            std::fs::write(path, written).map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    if let Some(path) = &options.png {
        picture(&explanations, model.input_shape())?.write_png(path)?;
    }
    if options.json.as_deref() == Some(Path::new("-")) {
        return Ok(());
    }
    for finding in &findings {
        writeln!(out, "check: {finding}")?;
    }
    for (number, explanation) in explanations.iter().enumerate() {
        for target in explanation.targets() {
            table(&mut out, number, explanation, target, &samples.names, options.top)?;
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
        explanations.extend(explainer.explain_batch(&part)?);
        bar.inc(part.ncols() as u64);
    }
    bar.finish_and_clear();
    Ok(explanations)
}

/// The inputs that speak loudest for and against an output, and where the rest of the relevance went.
fn table(
    out: &mut impl Write,
    number: usize,
    explanation: &Explanation<f32>,
    target: usize,
    names: &[String],
    top: usize,
) -> Result<(), Failure> {
    let output = explanation.output()[target];
    let probability =
        explanation.probabilities().map_or(String::new(), |all| format!(", probability {:.1} %", 100.0 * all[target]));
    writeln!(out, "\nsample {number}, output {target}: {output:.6}{probability}")?;
    for contribution in explanation.top(target, top)? {
        let name = names.get(contribution.input).cloned().unwrap_or_else(|| format!("input {}", contribution.input));
        writeln!(out, "  {:>12.6}  {name}", contribution.relevance)?;
    }
    let ledger = explanation.ledger(target)?;
    writeln!(out, "  {:>12.6}  to all inputs", ledger.inputs())?;
    for (what, cause) in CAUSES {
        if ledger.total(cause) != 0.0 {
            writeln!(out, "  {:>12.6}  to {what}", ledger.total(cause))?;
        }
    }
    Ok(())
}

const CAUSES: [(&str, Cause); 5] = [
    ("biases", Cause::Bias),
    ("the stabiliser", Cause::Stabilizer),
    ("groups of a rule without members", Cause::Empty),
    ("totals of zero", Cause::Dead),
    ("what a rule's shares leave over", Cause::Rest),
];

fn report(explanations: &[Explanation<f32>], findings: &[Finding]) -> Result<Value, Failure> {
    let mut samples = Vec::new();
    for explanation in explanations {
        for target in explanation.targets() {
            samples.push(json!({
                "outputs": explanation.output().as_slice(),
                "target": target,
                "relevance": explanation.relevance(target)?.as_slice(),
                "ledger": accounts(&explanation.ledger(target)?),
            }));
        }
    }
    let check: Vec<Value> = findings
        .iter()
        .map(|f| json!({"code": f.code.to_string(), "layer": f.layer, "kind": f.kind, "sentence": f.sentence, "advice": f.advice}))
        .collect();
    Ok(json!({ "samples": samples, "check": check }))
}

fn accounts(ledger: &Ledger) -> Value {
    // Adding 0 makes 0 of -0.
    let [bias, stabilizer, empty, dead, rest] = CAUSES.map(|(_, cause)| ledger.total(cause) + 0.0);
    json!({
        "output": ledger.output(), "inputs": ledger.inputs(), "bias": bias, "stabilizer": stabilizer, "empty": empty, "dead": dead,
        "rest": rest, "rounding": ledger.rounding(),
    })
}

/// A map for each sample and target, up to 64 of them; a vector is a row of its values.
fn picture(explanations: &[Explanation<f32>], shape: Shape) -> Result<Canvas, Failure> {
    const MOST: usize = 64;
    let mut maps = Vec::new();
    for explanation in explanations {
        for target in explanation.targets().take(MOST - maps.len().min(MOST)) {
            let relevance = explanation.relevance(target)?;
            let (values, [height, width]) = match *shape.dims() {
                [_, height, width] => (relprop::heatmap::over_channels(relevance.as_slice(), shape)?, [height, width]),
                [channels, length] => (relevance.as_slice().to_vec(), [channels, length]),
                _ => (relevance.as_slice().to_vec(), [1, relevance.len()]),
            };
            let cell = (224 / height.max(width)).max(1);
            let mut canvas = Canvas::new(width * cell, height * cell, [255; 3])?;
            canvas.draw_map(0, 0, &values, width, cell, diverging);
            maps.push(canvas);
        }
    }
    let columns = if shape.dims().len() == 1 { 1 } else { 4 };
    Ok(Canvas::grid(&maps, columns, 8, [160; 3])?)
}

struct Options {
    model: PathBuf,
    input: PathBuf,
    rule: String,
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
