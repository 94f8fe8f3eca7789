//! The model that the command line names.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use relprop::io::{OnnxFile, StateDict};
use relprop::{Error, Sequential};

use crate::hints::in_options;
use crate::options::Options;
use crate::{Failure, Usage, usage};

/// The model; an error says what can be done on this command line where the library names its own
/// calls.
pub fn load(options: &Options) -> Result<Sequential<f32>, Failure> {
    let loaded = if is_onnx(&options.model)? { onnx(options) } else { weights(options) };
    loaded.map_err(|failure| {
        // These say themselves which file it is.
        if failure.is::<Usage>() || matches!(failure.downcast_ref(), Some(Error::Io { .. })) {
            return failure;
        }
        let text = in_options(&failure.to_string());
        let from = match (options.shape, failure.downcast_ref()) {
            (Some(shape), Some(Error::LayerShape { .. } | Error::Shape { .. })) => {
                format!("; the samples' shape is {shape} by --shape")
            }
            _ => String::new(),
        };
        let path = options.model.display().to_string();
        // What is wrong with the file itself names it already.
        if text.contains(&path) {
            format!("{text}{from}").into()
        } else {
            format!("{path}: {text}{from}").into()
        }
    })
}

/// By its name, or as an ONNX file begins and none of weights does.
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
    Ok(path.extension().is_some_and(|e| e.eq_ignore_ascii_case("onnx")) || first == [0x08])
}

fn onnx(options: &Options) -> Result<Sequential<f32>, Failure> {
    if options.architecture.is_some() || options.under.is_some() {
        return Err(usage(
            "--architecture and --under are for weights; an ONNX file has its architecture",
        ));
    }
    let mut file = OnnxFile::open(&options.model)?;
    if let Some(shape) = options.shape {
        file = file.input(shape);
    }
    if let Some(output) = &options.output {
        file = file.output(output);
    }
    Ok(file.to_model()?)
}

fn weights(options: &Options) -> Result<Sequential<f32>, Failure> {
    if options.output.is_some() {
        return Err(usage("--output is for ONNX files; weights have no named outputs"));
    }
    let whole = StateDict::open(&options.model)?;
    let mut weights = whole.clone();
    if let Some(prefix) = &options.under {
        weights = weights.under(prefix);
        if weights.names().next().is_none() {
            let first: BTreeSet<&str> =
                whole.names().filter_map(|name| Some(name.split_once('.')?.0)).collect();
            let there = match first.len() {
                0 => "no name has a prefix".to_owned(),
                _ => format!("they begin with {}", listed(first.into_iter())),
            };
            return Err(
                format!("--under: no tensor's name begins with '{prefix}.'; {there}").into()
            );
        }
    }
    let architecture = match &options.architecture {
        None if weights.has_architecture() && options.shape.is_none() => {
            return Ok(weights.to_model()?);
        }
        None => weights
            .metadata("architecture")
            .map(str::to_owned)
            .ok_or_else(|| said_by_nobody(&weights))?,
        Some(guess) if guess == Path::new("guess") => {
            let guess = weights.guessed_architecture()?;
            eprintln!(
                "this architecture is guessed from names and shapes; look at it before you trust \
                 what follows:\n{guess}"
            );
            guess
        }
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| usage(format!("{}: {error}", path.display())))?,
    };
    Ok(weights.model_of(&architecture, options.shape)?)
}

/// The weights' names, so that it can be seen what is in the file.
fn said_by_nobody(weights: &StateDict) -> String {
    format!(
        "the file does not say its architecture: give --architecture FILE, or --architecture \
         guess to take its weights for dense layers \
         with ReLUs between them; its tensors are {}",
        listed(weights.names())
    )
}

/// The first of some names.
pub fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const LISTED: usize = 8;
    let mut names: Vec<&str> = names.take(LISTED + 1).collect();
    if names.len() > LISTED {
        names[LISTED] = "…";
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(file: &str, rest: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats");
        let arguments = format!("{folder}/{file} --input x.csv {rest}");
        let options =
            Options::parse(arguments.split_whitespace().map(Into::into)).unwrap().unwrap();
        load(&options).err().map_or_else(String::new, |error| error.to_string().replace(folder, ""))
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
        assert!(wrong.ends_with("; the samples' shape is 2 x 5 x 5 by --shape"), "{wrong}");
        assert!(refused("zip.pt", "--output y").contains("--output is for ONNX files"));
        assert!(
            refused("../exported/sklearn-classifier.onnx", "--under x").contains("are for weights")
        );
        assert!(refused("nothing.onnx", "").starts_with("/nothing.onnx: No such file"));
    }
}
