//! `relprop inspect`: what is in the file of a model.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use relprop::Error;
use relprop::io::{OnnxFile, StateDict};

use crate::hints::in_options;
use crate::model::{Model, ModelOptions, Source};
use crate::names::{parts, printable, split};
use crate::{Failure, guess};

const AFTER: &str = "Exit status: 0 if the file was shown; 1 if it cannot be read or its model \
    cannot be explained, for example because of unsupported nodes; 2 if the command line is wrong. \
    Errors are printed to standard error.";

/// At most this many outputs of an ONNX file are shown.
const OUTPUTS: usize = 20;

/// Shows what a model file contains.
///
/// For an ONNX file, or for weights with an architecture, it lists each layer with its name, kind,
/// output shape and number of parameters. If an ONNX file has unsupported nodes, it lists all of
/// them with the reasons. For weights without an architecture, it lists the tensors with their
/// shapes and suggests what to do next.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,
}

pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let source = options.model.open()?;
    write!(out, "{}: ", options.model.model.display())?;
    match &source {
        Source::Onnx(file) => onnx(&options.model, file, &source, out)?,
        Source::Weights(weights, None) => bare(&options.model, weights, out)?,
        Source::Weights(_, Some(_)) => {
            writeln!(out, "weights with an architecture")?;
            layers(&options.model, options.model.build(&source), out)?;
        }
    }
    Ok(out.flush()?)
}

/// An ONNX file: its input and outputs with their shapes, and its layers.
fn onnx(
    options: &ModelOptions,
    file: &OnnxFile,
    source: &Source,
    out: &mut impl Write,
) -> Result<(), Failure> {
    writeln!(out, "an ONNX model")?;
    let model = options.build(source);
    if let Ok(model) = &model {
        writeln!(out, "input: {}", model.input_shape())?;
    }
    let names = file.outputs();
    for &name in names.iter().take(OUTPUTS) {
        // The model ends at its only output unless an option says otherwise.
        let shape = match &model {
            Ok(model) if names.len() == 1 && options.output.is_none() => Some(model.output_shape()),
            Err(_) if names.len() == 1 && options.output.is_none() => None,
            _ => file.clone().output(name).to_graph::<f32>().ok().map(|model| model.output_shape()),
        };
        let shape =
            shape.map_or_else(|| "cannot be explained".to_owned(), |shape| shape.to_string());
        writeln!(out, "output {}: {shape}", printable(name))?;
    }
    if names.len() > OUTPUTS {
        writeln!(out, "and {} more outputs", names.len() - OUTPUTS)?;
    }
    layers(options, model, out)
}

/// The layers of a model and the totals, or the unsupported nodes.
fn layers(
    options: &ModelOptions,
    model: Result<Model, Failure>,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let failure = match model {
        Ok(model) => return Ok(writeln!(out, "\n{}", printable(&format!("{model:#}")))?),
        Err(failure) => failure,
    };
    let failure = match failure.downcast_ref() {
        Some(error @ Error::UnsupportedNodes { nodes }) => {
            writeln!(out, "\n{}", printable(&in_options(&error.to_string())))?;
            let nodes = match nodes.len() {
                1 => "a node that is unsupported".to_owned(),
                count => format!("{count} nodes that are unsupported"),
            };
            format!("{}: the model has {nodes}", options.model.display()).into()
        }
        _ => options.in_file(failure),
    };
    out.flush()?;
    Err(failure)
}

/// Weights without an architecture: their tensors, and what to do next.
fn bare(options: &ModelOptions, weights: &StateDict, out: &mut impl Write) -> Result<(), Failure> {
    let mut modules: BTreeMap<_, Vec<(&str, &[usize])>> = BTreeMap::new();
    let (mut tensors, mut numbers) = (0, 0_usize);
    for name in weights.names() {
        let (module, own) = split(name);
        let shape = weights.shape(name).unwrap_or_default();
        // The key sorts `layer.10` after `layer.9`.
        modules.entry((parts(module), module)).or_default().push((own, shape));
        tensors += 1;
        numbers = numbers.saturating_add(shape.iter().fold(1, |all, &dim| all.saturating_mul(dim)));
    }
    let tensors = if tensors == 1 { "one tensor".to_owned() } else { format!("{tensors} tensors") };
    writeln!(out, "weights without an architecture, {tensors}, {numbers} numbers")?;
    for ((_, module), tensors) in modules {
        writeln!(
            out,
            "\n{}",
            if module.is_empty() { "(no module)".into() } else { printable(module) }
        )?;
        let widest = tensors.iter().map(|(own, _)| own.chars().count()).max().unwrap_or(0);
        for (own, shape) in tensors {
            writeln!(out, "  {:widest$}  {}", printable(own), sizes(shape))?;
        }
    }
    next_steps(options, weights, out)
}

/// Prints how to provide an architecture for these weights.
fn next_steps(
    options: &ModelOptions,
    weights: &StateDict,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let under = options.under.as_ref().map(|prefix| format!(" --under {prefix}"));
    let command = |architecture: &str| {
        let (model, under) = (options.model.display(), under.as_deref().unwrap_or_default());
        format!("relprop inspect {model}{under} --architecture {architecture}")
    };
    match guess::architecture(weights) {
        Ok(_) => writeln!(
            out,
            "\nThese can be the weights of dense layers with ReLUs between them. To see that \
             guess:\n  {}",
            command("guess")
        )?,
        Err(reason) => writeln!(out, "\n{}", printable(&reason))?,
    }
    writeln!(
        out,
        "\nTo give the architecture, write what print(net) shows in Python to a file, such as \
         net.txt:\n  {}\n\nOr export the network to ONNX. An ONNX file contains the architecture.",
        command("net.txt")
    )?;
    Ok(())
}

fn sizes(shape: &[usize]) -> String {
    match shape {
        [] => "a number".to_owned(),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x "),
    }
}
