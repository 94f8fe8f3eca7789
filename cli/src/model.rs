//! The model of the command line.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use clap::Args;
use relprop::io::{OnnxFile, StateDict};
use relprop::{Error, Graph, Sequential, Shape};

use crate::hints::in_options;
use crate::names::{listed, printable};
use crate::{Failure, Usage, guess, usage};

/// The options that select the model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelOptions {
    /// An ONNX file, or weights: safetensors, PyTorch's .pt or .pth, NumPy's .npz.
    #[arg(help_heading = None)]
    pub model: PathBuf,

    /// The shape of a sample, such as 3,224,224, if the file does not contain it.
    #[arg(long, value_name = "SIZES", value_parser = shape, allow_hyphen_values = true)]
    pub shape: Option<Shape>,

    /// A file with the architecture of the weights, as PyTorch prints an nn.Sequential, or guess.
    ///
    /// With guess, the weights are treated as dense layers in the order of their names, with ReLUs
    /// between them. The guessed architecture is printed.
    #[arg(long, value_name = "FILE")]
    pub architecture: Option<PathBuf>,

    /// Use only the weights whose names begin with this prefix, as in a checkpoint of {"model": ...,
    /// "optimizer": ...}.
    #[arg(long, value_name = "PREFIX", value_parser = prefix, allow_hyphen_values = true)]
    pub under: Option<String>,

    /// The output to explain if an ONNX model has several, or an inner value at which the model
    /// should end.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub output: Option<String>,
}

fn shape(text: &str) -> Result<Shape, &'static str> {
    let dims: Option<Vec<usize>> =
        text.split(',').map(|dim| dim.trim().parse().ok().filter(|&dim| dim > 0)).collect();
    match dims.as_deref() {
        Some(&[size]) => Ok(size.into()),
        Some(&[channels, length]) => Ok([channels, length].into()),
        Some(&[channels, height, width]) => Ok([channels, height, width].into()),
        _ => Err("one to three sizes are expected, such as 3,224,224"),
    }
}

#[allow(clippy::unnecessary_wraps)] // clap's parsers return a result
fn prefix(text: &str) -> Result<String, &'static str> {
    Ok(text.trim_end_matches('.').to_owned())
}

/// What a model is made of.
pub enum Source {
    Onnx(OnnxFile),
    /// Weights and their architecture, where it is known.
    Weights(StateDict, Option<String>),
}

/// A model, which is printed as it was made.
pub enum Model {
    Graph(Graph<f32>),
    Sequential(Sequential<f32>),
}

impl Deref for Model {
    type Target = Graph<f32>;

    fn deref(&self) -> &Graph<f32> {
        match self {
            Self::Graph(graph) => graph,
            Self::Sequential(model) => model,
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Graph(graph) => graph.fmt(f),
            Self::Sequential(model) => model.fmt(f),
        }
    }
}

impl ModelOptions {
    /// The model in evaluation form: batch norms are merged into their neighbors where possible,
    /// which is reported on the standard error.
    pub fn merged(&self) -> Result<Graph<f32>, Failure> {
        let (model, merged) = self.load()?.canonize()?;
        if !merged.is_empty() {
            eprintln!("{} batch norms merged into their neighbors", merged.len());
        }
        Ok(model)
    }

    /// The model.
    pub fn load(&self) -> Result<Model, Failure> {
        self.build(&self.open()?).map_err(|failure| self.in_file(failure))
    }

    /// The file, of which no model has been made yet.
    pub fn open(&self) -> Result<Source, Failure> {
        let opened = is_onnx(&self.model)
            .and_then(|is_onnx| if is_onnx { self.onnx() } else { self.weights() });
        opened.map_err(|failure| self.in_file(failure))
    }

    /// The model of a file that has been opened; an error does not name the file.
    pub fn build(&self, source: &Source) -> Result<Model, Failure> {
        match source {
            Source::Onnx(file) => Ok(Model::Graph(file.to_graph()?)),
            Source::Weights(weights, None) => Err(without_architecture(weights).into()),
            // The shape of a sample can be in the file too.
            Source::Weights(weights, Some(_))
                if self.architecture.is_none() && self.shape.is_none() =>
            {
                Ok(Model::Sequential(weights.to_model()?))
            }
            Source::Weights(weights, Some(architecture)) => {
                Ok(Model::Sequential(weights.model_of(architecture, self.shape)?))
            }
        }
    }

    /// An error with the file's name, which names options where the library names its own calls.
    pub fn in_file(&self, failure: Failure) -> Failure {
        // These name their file, or are about the command line.
        if failure.is::<Usage>() || matches!(failure.downcast_ref(), Some(Error::Io { .. })) {
            return failure;
        }
        let text = in_options(&failure.to_string());
        let from = match (self.shape, failure.downcast_ref()) {
            (Some(shape), Some(Error::LayerShape { .. } | Error::Shape { .. })) => {
                format!("; --shape sets the samples' shape to {shape}")
            }
            _ => String::new(),
        };
        let path = self.model.display().to_string();
        if text.contains(&path) {
            format!("{text}{from}").into()
        } else {
            format!("{path}: {text}{from}").into()
        }
    }

    fn onnx(&self) -> Result<Source, Failure> {
        if self.architecture.is_some() || self.under.is_some() {
            return Err(usage(
                "--architecture and --under are for weights; an ONNX file contains its architecture",
            ));
        }
        let mut file = OnnxFile::open(&self.model)?;
        if let Some(shape) = self.shape {
            file = file.input(shape);
        }
        if let Some(output) = &self.output {
            file = file.output(output);
        }
        Ok(Source::Onnx(file))
    }

    fn weights(&self) -> Result<Source, Failure> {
        if self.output.is_some() {
            return Err(usage("--output is for ONNX files; weights have no named outputs"));
        }
        let mut weights = StateDict::open(&self.model)?;
        if let Some(prefix) = &self.under {
            weights = under(&weights, prefix)?;
        }
        let architecture = match &self.architecture {
            None => weights.metadata("architecture").map(str::to_owned),
            Some(guess) if guess == Path::new("guess") => {
                let guess = guess::architecture(&weights)?;
                eprintln!(
                    "this architecture is guessed from names and shapes; look at it before you \
                     trust what follows:\n{}",
                    printable(&guess)
                );
                Some(guess)
            }
            Some(path) => {
                let text = std::fs::read_to_string(path);
                Some(text.map_err(|error| usage(format!("{}: {error}", path.display())))?)
            }
        };
        Ok(Source::Weights(weights, architecture))
    }
}

/// Whether a file is an ONNX file, by its name or by its first byte, with which no file of weights
/// begins.
fn is_onnx(path: &Path) -> Result<bool, Failure> {
    if path.is_dir() {
        let savedmodel = "a SavedModel of TensorFlow is converted with python -m tf2onnx.convert \
            --saved-model FOLDER --output model.onnx";
        return Err(format!(
            "{}: this is a folder, and a model is one file; {savedmodel}",
            path.display()
        )
        .into());
    }
    let mut first = [0];
    let read = File::open(path).and_then(|mut file| file.read(&mut first));
    read.map_err(|error| format!("{}: {error}", path.display()))?;
    // 0x08 is the tag of an ONNX model's first field, the version of the format.
    Ok(path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) || first == [0x08])
}

/// The weights under a prefix, or an error if there are none.
fn under(whole: &StateDict, prefix: &str) -> Result<StateDict, Failure> {
    let weights = whole.under(prefix);
    if weights.names().next().is_some() {
        return Ok(weights);
    }
    let first: BTreeSet<&str> =
        whole.names().filter_map(|name| Some(name.split_once('.')?.0)).collect();
    let there = if first.is_empty() {
        "no name has a prefix".to_owned()
    } else {
        format!("they begin with {}", listed(first.into_iter()))
    };
    Err(format!("--under: no tensor's name begins with '{prefix}.'; {there}").into())
}

/// What to do about weights without an architecture, with their names, which show what is in the
/// file.
fn without_architecture(weights: &StateDict) -> String {
    format!(
        "the file does not say its architecture: give --architecture FILE, or --architecture \
         guess to take its weights for dense layers with ReLUs between them; its tensors are {}",
        listed(weights.names())
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// A command line that consists of these options.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: ModelOptions,
    }

    fn refused(file: &str, rest: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/formats");
        let line = format!("model {folder}/{file} {rest}");
        let Line { options } = Line::try_parse_from(line.split_whitespace()).unwrap();
        let refused = options.load().err().map(|error| error.to_string().replace(folder, ""));
        refused.unwrap_or_default()
    }

    #[test]
    fn weights_are_found_under_their_prefix() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("net.txt");
        std::fs::write(
            &text,
            "Sequential(\n  (0): Linear(3, 4)\n  (1): ReLU()\n  (2): Linear(4, 2)\n)",
        )
        .unwrap();
        let architecture = format!("--architecture {}", text.display());
        assert_eq!(refused("zip.pt", &architecture), "");
        assert_eq!(refused("checkpoint.pt", &architecture), "");
        assert_eq!(refused("checkpoint.pt", &format!("{architecture} --under model")), "");
        let found = refused("checkpoint.pt", &format!("{architecture} --under net"));
        assert_eq!(
            found,
            "/checkpoint.pt: --under: no tensor's name begins with 'net.'; they begin with model"
        );
        std::fs::write(&text, "Sequential(\n  (0): Linear(3, 4)\n  (4): Linear(4, 2)\n)").unwrap();
        let found = refused("zip.pt", &architecture);
        assert!(found.contains("missing: 4.weight, 4.bias"), "{found}");
    }

    #[test]
    fn options_are_named_where_they_help() {
        let found = refused("zip.pt", "");
        assert!(
            found.contains("give --architecture FILE")
                && found.ends_with("its tensors are 0.bias, 0.weight, 2.bias, 2.weight"),
            "{found}"
        );
        let guess = refused("norm.pt", "--architecture guess");
        assert!(
            guess.ends_with("; give the network as PyTorch prints it, with --architecture FILE"),
            "{guess}"
        );
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("net.txt");
        std::fs::write(&text, "Conv2d(1, 2, kernel_size=(3, 3))\nBatchNorm2d(2)").unwrap();
        let open = refused("norm.pt", &format!("--architecture {}", text.display()));
        assert!(
            open.ends_with("set the shape with --shape SIZES, as in --shape 3,224,224"),
            "{open}"
        );
        let wrong = refused("norm.pt", &format!("--architecture {} --shape 2,5,5", text.display()));
        assert!(wrong.ends_with("; --shape sets the samples' shape to 2 x 5 x 5"), "{wrong}");
        assert!(refused("zip.pt", "--output y").contains("--output is for ONNX files"));
        assert!(
            refused("../exported/sklearn-classifier.onnx", "--under x").contains("are for weights")
        );
        assert!(refused("nothing.onnx", "").starts_with("/nothing.onnx: No such file"));
    }

    #[test]
    fn a_shape_has_one_to_three_sizes() {
        assert_eq!(shape("784"), Ok(784.into()));
        assert_eq!(shape("1, 12"), Ok([1, 12].into()));
        assert_eq!(shape("1,12,12"), Ok([1, 12, 12].into()));
        for text in ["3,a", "1,0", "", "-1", "1,2,3,4"] {
            assert_eq!(shape(text), Err("one to three sizes are expected, such as 3,224,224"));
        }
    }
}
