//! The command line of `relprop explain`.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::file::check_written;
use crate::model::ModelOptions;
use crate::rules::RuleOptions;
use crate::{Failure, usage};

const AFTER: &str = "For each sample, the JSON file contains the outputs. For each target, it \
    contains the relevance of every input and the ledger of the causes that absorbed the rest. \
    docs/json.md in the repository describes each field. The file is written while the samples are \
    explained, and appears under its name once it is complete. If a model ends with a softmax, its \
    outputs are the logits, with the probabilities next to them.\n\n\
    The text begins with the findings of the check of the model and the rule.\n\n\
    Exit status: 0 on success, even if the output is closed early, as by head; 1 if a file cannot be \
    read, explained or written; 2 if the command line is wrong. Errors are printed to standard error.";

/// Explains a model's outputs: how much each input of a sample contributed to an output.
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Options {
    #[command(flatten)]
    pub model: ModelOptions,

    #[command(flatten)]
    pub samples: SampleOptions,

    #[command(flatten)]
    pub rule: RuleOptions,

    #[command(flatten)]
    pub results: ResultOptions,
}

/// The options that select the samples.
#[derive(Debug, Args)]
#[command(next_help_heading = "Samples")]
pub struct SampleOptions {
    /// The samples: a table (.csv, .tsv, .txt) with a line of names and then a row for each sample,
    /// or an array of samples (.npy, .npz, .pt, .pth, .safetensors).
    #[arg(long, value_name = "FILE")]
    pub input: PathBuf,

    /// The name of the array with the samples, if the file has several arrays.
    #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
    pub array: Option<String>,

    /// A file with the names of the inputs, one per line (default: the first line of a table).
    #[arg(long, value_name = "FILE")]
    pub names: Option<PathBuf>,
}

/// The options that select what is explained and where the results are written.
#[derive(Debug, Args)]
#[command(next_help_heading = "Results")]
pub struct ResultOptions {
    /// The output to explain: predicted, all, the number of an output (from 0), or a file with one
    /// such number for each sample, such as its true label (.npy, or .csv or .txt with one per line).
    #[arg(long, default_value = "predicted", value_parser = target, allow_hyphen_values = true)]
    pub target: Target,

    /// The number of inputs to list for each output.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 10,
        value_parser = whole_number,
        allow_hyphen_values = true
    )]
    pub top: usize,

    /// A picture: bars for a vector, a map for an image.
    ///
    /// Red speaks for the output, blue against it. A shape of three sizes is height, width, channels
    /// if the last size is at most 4 and the first is larger than 4. Otherwise it is channels,
    /// height, width.
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,

    /// A JSON file with all results; - writes to standard output instead of the text.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which output of each sample is explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Predicted,
    All,
    Output(usize),
    /// This file has an output for each sample.
    Labels(PathBuf),
}

impl Options {
    /// Rejects mistakes that can be found before any file is read.
    pub fn check(&self) -> Result<(), Failure> {
        let Self { model, samples, results, .. } = self;
        if results.png.as_deref() == Some(Path::new("-")) {
            return Err(usage(
                "--png: a picture is not written to the standard output: give the name of a file",
            ));
        }
        let labels = match &results.target {
            Target::Labels(path) => Some(path),
            _ => None,
        };
        let read = [&model.model, &samples.input].into_iter();
        check_written(
            read.chain(&samples.names).chain(&model.architecture).chain(labels),
            [("--json", results.json.as_ref()), ("--png", results.png.as_ref())],
        )
    }
}

fn target(text: &str) -> Result<Target, &'static str> {
    match text {
        "predicted" => Ok(Target::Predicted),
        "all" => Ok(Target::All),
        text => match text.parse() {
            Ok(output) => Ok(Target::Output(output)),
            Err(_) if is_file_of_labels(text) => Ok(Target::Labels(text.into())),
            Err(_) => Err(
                "predicted, all, the number of an output, or a file of labels (.npy, .csv, .txt) \
                 is expected",
            ),
        },
    }
}

fn is_file_of_labels(text: &str) -> bool {
    let extension = Path::new(text).extension().map(|e| e.to_string_lossy().to_lowercase());
    matches!(
        extension.as_deref(),
        Some("npy" | "npz" | "pt" | "pth" | "safetensors" | "csv" | "tsv" | "txt")
    )
}

fn whole_number(text: &str) -> Result<usize, &'static str> {
    text.parse().map_err(|_| "a whole number is expected")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(arguments: &str) -> Result<Options, String> {
        Line::try_parse_from(format!("explain {arguments}").split_whitespace())
            .map(|line| line.options)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_that_is_read_is_written_over() {
        let refused = |text: &str| {
            parse(text)
                .and_then(|options| options.check().map_err(|error| error.to_string()))
                .err()
                .unwrap_or_default()
        };
        for (text, what) in [
            ("m.onnx --input x.npy --png m.onnx", "--png: m.onnx is read or written already"),
            ("m.onnx --input x.npy --json x.npy", "--json: x.npy is read or written already"),
            ("m.pt --architecture net.txt --input x.npy --json net.txt", "--json: net.txt is read"),
            ("m.onnx --input x.npy --names n --png n", "--png: n is read or written already"),
            ("m.onnx --input x.npy --target y.npy --png y.npy", "--png: y.npy is read or written"),
            ("m.onnx --input x.npy --json a --png a", "--png: a is read or written already"),
            ("m.onnx --input x.npy --png -", "not written to the standard output"),
            (
                "m.onnx --input x.npy --rule flat --rule norm",
                "the argument '--rule <RULE>' cannot be used multiple times",
            ),
        ] {
            assert!(refused(text).contains(what), "{text}: {}", refused(text));
        }
        assert_eq!(refused("m.onnx --input x.npy --json - --png a.png"), "");
    }

    #[test]
    fn every_option_is_in_the_help_and_takes_a_value() {
        let mut command = Line::command().term_width(100);
        let help = command.render_long_help().to_string();
        let options: Vec<(String, String)> = command
            .get_opts()
            .filter_map(|option| {
                let value = option.get_value_names()?.first()?;
                Some((option.get_long()?.to_owned(), value.to_string()))
            })
            .collect();
        assert_eq!(options.len(), 14);
        for (name, value) in options {
            let named = format!("--{name} <{value}>");
            assert!(help.contains(&format!("\n      {named}\n")), "{named}: {help}");
            let refused = parse(&format!("m --{name}")).unwrap_err();
            assert!(
                refused
                    .contains(&format!("a value is required for '{named}' but none was supplied")),
                "{refused}"
            );
            let twice = parse(&format!("m --{name}=1,2 --{name}=1,2")).unwrap_err();
            assert!(
                twice.contains("cannot be used multiple times") || twice.contains("invalid value")
            );
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        for words in ["Exit status: 0", "docs/json.md", "--help", "Model:", "Samples:", "Rule:"] {
            assert!(help.contains(words), "{words}");
        }
        assert!(parse("-h").unwrap_err().contains("Usage: "));
    }

    #[test]
    fn options_are_what_was_given() {
        let options = parse(
            "m.pt --input x.npz --array x --target=3 --top 2 --shape 1,12,12 --under model. --box \
             -1,2.5 --json -",
        )
        .unwrap();
        let Options { model, samples, rule, results } = options;
        assert_eq!((model.model, samples.input), ("m.pt".into(), "x.npz".into()));
        assert_eq!(
            (samples.array.as_deref(), results.target, results.top),
            (Some("x"), Target::Output(3), 2)
        );
        assert_eq!(
            (model.shape, model.under.as_deref()),
            (Some([1, 12, 12].into()), Some("model"))
        );
        assert_eq!((rule.bounds, results.json), (Some((-1.0, 2.5)), Some("-".into())));
        let target = |text: &str| parse(text).unwrap().results.target;
        assert_eq!(target("m --input x"), Target::Predicted);
        assert_eq!(target("m --input x --target y.npy"), Target::Labels("y.npy".into()));
        assert_eq!(target("m --input x --target ALL.TXT"), Target::Labels("ALL.TXT".into()));
        let options = parse("m --input=-x.csv --output -y --under -z --array -a").unwrap();
        assert_eq!(options.samples.input, Path::new("-x.csv"));
        assert_eq!(options.samples.array.as_deref(), Some("-a"));
        assert_eq!(options.model.output.as_deref(), Some("-y"));
        assert_eq!(options.model.under.as_deref(), Some("-z"));
    }

    #[test]
    fn what_is_wrong_says_what_is_wanted() {
        for (arguments, what) in [
            (
                "",
                "the following required arguments were not provided:\n  --input <FILE>\n  <MODEL>",
            ),
            ("m", "the following required arguments were not provided:\n  --input <FILE>"),
            ("m n --input x", "unexpected argument 'n' found"),
            ("m --input x --tops 3", "a similar argument exists: '--top'"),
            (
                "m --input x --top many",
                "invalid value 'many' for '--top <N>': a whole number is expected",
            ),
            (
                "m --input x --shape 3,a",
                "invalid value '3,a' for '--shape <SIZES>': one to three sizes are expected, such \
                 as 3,224,224",
            ),
            (
                "m --input x --shape 1,0",
                "invalid value '1,0' for '--shape <SIZES>': one to three sizes are expected",
            ),
            (
                "m --input x --box 3",
                "invalid value '3' for '--box <LOW,HIGH>': two numbers are expected, such as 0,1",
            ),
            (
                "m --input x --target cat",
                "invalid value 'cat' for '--target <TARGET>': predicted, all, the number of an \
                 output, or a file of labels (.npy, .csv, .txt) is expected",
            ),
            ("m --input x --target -1", "invalid value '-1' for '--target <TARGET>'"),
        ] {
            let refused = parse(arguments).unwrap_err();
            assert!(refused.contains(what), "{arguments}: {refused}");
        }
    }
}
