//! The command line, and the model and the rule that it names.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use relprop::io::{OnnxFile, StateDict};
use relprop::{Composite, Error, RelevanceRule, Rule, Sequential, Shape, Targets, ZBox};

use crate::Failure;

pub const HELP: &str = "Explains what a model makes of samples: how much each input contributed to an output.

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
  --png FILE           a picture: bars for a vector, a map for an image; red is for the output, blue against it. The channels come
                       last where the last of three sizes is at most 4 and the first larger, else first
  --json FILE          everything for programs, - for the standard output in place of the text
  --output NAME        the output of an ONNX model that has several, or any other of its values, where it is to end
  --shape SIZES        the shape of a sample where the file does not say it, such as 3,224,224
  --architecture FILE  the architecture of weights, as PyTorch prints an nn.Sequential; guess: dense layers in the order of their
                       names with ReLUs between them, which is shown
  --under PREFIX       the weights whose names begin so, as in a checkpoint of {\"model\": ..., \"optimizer\": ...}
  --help               this text

A JSON file has, for each sample and target, {\"sample\", \"outputs\", \"target\", \"relevance\" (flat, in the input's order), \"ledger\"} under
\"samples\", and what the check of the model and the rule found under \"check\". The outputs of a model that ends with a softmax are
its logits; its samples have \"probabilities\" too.
";

/// The command line.
pub struct Options {
    pub model: PathBuf,
    pub input: PathBuf,
    rule: String,
    bounds: Option<(f64, f64)>,
    pub targets: Targets<f32>,
    pub top: usize,
    pub names: Option<PathBuf>,
    pub png: Option<PathBuf>,
    pub json: Option<PathBuf>,
    output: Option<String>,
    shape: Option<Shape>,
    architecture: Option<PathBuf>,
    under: Option<String>,
}

impl Options {
    /// `None` where the help is asked for.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, Failure> {
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
            under: None,
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
                "--under" => options.under = Some(text),
                _ => return Err(format!("unknown option {name} (--help lists them)").into()),
            }
        }
        options.model = model.ok_or("a model is wanted (--help)")?.into();
        options.input = input.ok_or("--input is wanted (--help)")?.into();
        Ok(Some(options))
    }

    /// The model, with what can be said on this command line where the library names its own calls.
    pub fn load(&self) -> Result<Sequential<f32>, Failure> {
        let loaded = if self.is_onnx()? { self.onnx() } else { self.weights() };
        loaded.map_err(|failure| {
            if matches!(failure.downcast_ref(), Some(Error::Io { .. })) {
                return failure;
            }
            let hints = [("OnnxFile::output", "--output"), ("OnnxFile::input", "--shape"), ("SequentialBuilder::input", "--shape")];
            let text = hints.iter().fold(failure.to_string(), |text, (call, option)| text.replace(call, option));
            format!("{}: {text}", self.model.display()).into()
        })
    }

    /// By its name, or as an ONNX file begins and none of weights does.
    fn is_onnx(&self) -> Result<bool, Failure> {
        let mut first = [0];
        let read = File::open(&self.model).and_then(|mut file| file.read(&mut first));
        read.map_err(|error| format!("{}: {error}", self.model.display()))?;
        Ok(self.model.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) || first == [0x08])
    }

    fn onnx(&self) -> Result<Sequential<f32>, Failure> {
        if self.architecture.is_some() || self.under.is_some() {
            return Err("--architecture and --under are for weights, an ONNX file has its architecture".into());
        }
        let mut file = OnnxFile::open(&self.model)?;
        if let Some(shape) = self.shape {
            file = file.input(shape);
        }
        if let Some(output) = &self.output {
            file = file.output(output);
        }
        Ok(file.to_model()?)
    }

    fn weights(&self) -> Result<Sequential<f32>, Failure> {
        if self.output.is_some() {
            return Err("--output is for ONNX files".into());
        }
        let mut weights = StateDict::open(&self.model)?;
        if let Some(prefix) = &self.under {
            weights = weights.under(prefix);
            if weights.names().next().is_none() {
                return Err(format!("no tensor's name begins with '{prefix}.'").into());
            }
        }
        let architecture = match &self.architecture {
            None if weights.has_architecture() && self.shape.is_none() => return Ok(weights.to_model()?),
            None => weights.metadata("architecture").map(str::to_owned).ok_or_else(|| said_by_nobody(&weights))?,
            Some(guess) if guess == Path::new("guess") => {
                let guess = weights.guessed_architecture()?;
                eprintln!("this architecture is guessed from names and shapes; look at it before you trust what follows:\n{guess}");
                guess
            }
            Some(path) => std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
        };
        Ok(weights.model_of(&architecture, self.shape)?)
    }

    pub fn rule(&self) -> Result<Box<dyn RelevanceRule<f32>>, Failure> {
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

/// The weights' names, so that it can be seen what is in the file.
fn said_by_nobody(weights: &StateDict) -> String {
    let names: Vec<&str> = weights.names().take(8).collect();
    format!(
        "the file does not say its architecture: give --architecture FILE, or --architecture guess to take its weights for dense layers \
         with ReLUs between them; its tensors begin with {}",
        names.join(", ")
    )
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
