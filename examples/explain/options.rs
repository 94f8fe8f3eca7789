//! The command line: each option has one place, [`FLAGS`], which the help is made of too.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use relprop::{BiasMode, Shape};

use crate::{Failure, rules, usage};

const BEFORE: &str =
    "Explains what a model makes of samples: how much each input contributed to an output.

usage: cargo run --release --example explain --all-features -- MODEL --input FILE [options]

  MODEL                an ONNX file, or weights: safetensors, PyTorch's .pt or .pth, NumPy's .npz
";

const AFTER: &str = "
The JSON file has, for each sample, its outputs and, for each target, the relevance of every input and the ledger of where the rest
went; docs/json.md describes each field. It is written while the samples are explained, and takes its name when it is complete. The
outputs of a model that ends with a softmax are its logits; the probabilities are given beside them.

Exit status: 0 when all is done, also where the reader of the output stops reading, as head does; 1 when a file cannot be read,
explained or written; 2 when the command line is wrong. Errors are on the standard error; what the check of the model and rule
found begins the text.
";

/// One option.
struct Flag {
    name: &'static str,
    /// What its value is called.
    value: &'static str,
    help: &'static str,
    set: fn(&mut Options, &Value) -> Result<(), Failure>,
}

/// What was given to an option.
struct Value {
    flag: &'static str,
    given: OsString,
}

const FLAGS: &[Flag] = &[
    Flag {
        name: "--input",
        value: "FILE",
        help: "samples: .csv (a row a sample, the names first), .npy (an array of samples), or .npz, .pt or
.safetensors with such an array",
        set: |options, value| {
            options.input = value.path();
            Ok(())
        },
    },
    Flag {
        name: "--array",
        value: "NAME",
        help: "the array of the samples, where their file has several",
        set: |options, value| {
            options.array = Some(value.text()?.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "--rule",
        value: "RULE",
        help: "for every layer: epsilon, lrp0, gamma, gamma-plain, zplus, alpha-beta, wsquare, flat, norm, relative,
abs-lrp; for the first layer, with epsilon for the others: zbox, sign; a composite: epsilon-plus,
epsilon-plus-flat, epsilon-alpha2-beta1, epsilon-alpha2-beta1-flat, epsilon-gamma-box (default: epsilon-plus)",
        set: |options, value| {
            value.text()?.clone_into(&mut options.rule);
            Ok(())
        },
    },
    Flag {
        name: "--box",
        value: "LOW,HIGH",
        help: "the least and the largest value that an input may have, which zbox and epsilon-gamma-box ask for",
        set: |options, value| {
            let numbers = |text: &str| {
                let (low, high) = text.split_once(',')?;
                Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
            };
            options.bounds = Some(value.parse(numbers, "two numbers, such as 0,1")?);
            Ok(())
        },
    },
    Flag {
        name: "--bias",
        value: "USE",
        help: "what becomes of biases: absorbed (they take their share of the relevance, which the ledger shows),
ignored (the inputs get it all) or distributed (the same, a bias being spread over its inputs).
For epsilon, lrp0, gamma, gamma-plain, zplus and alpha-beta (default: absorbed); wsquare takes ignored,
its default, or absorbed, relative takes ignored, its default, or distributed",
        set: |options, value| {
            options.bias = Some(value.parse(rules::bias, "ignored, absorbed or distributed")?);
            Ok(())
        },
    },
    Flag {
        name: "--target",
        value: "TARGET",
        help: "the output that is explained: predicted, all, the number of an output, or a file with a number for
each sample, such as its true label: .npy, or .csv or .txt with one a line (default: predicted)",
        set: |options, value| {
            options.target = match value.text()? {
                "predicted" => Target::Predicted,
                "all" => Target::All,
                text => match text.parse() {
                    Ok(output) => Target::Output(output),
                    Err(_) if is_file_of_labels(text) => Target::Labels(value.path()),
                    Err(_) => {
                        let wanted = "predicted, all, the number of an output, or a file of labels (.npy, .csv, .txt)";
                        return Err(value.is_not(wanted));
                    }
                },
            };
            Ok(())
        },
    },
    Flag {
        name: "--top",
        value: "N",
        help: "how many inputs are listed (default: 10)",
        set: |options, value| {
            options.top = value.parse(|text| text.parse().ok(), "a whole number")?;
            Ok(())
        },
    },
    Flag {
        name: "--names",
        value: "FILE",
        help: "the names of the inputs, one a line (default: those of a .csv)",
        set: |options, value| {
            options.names = Some(value.path());
            Ok(())
        },
    },
    Flag {
        name: "--png",
        value: "FILE",
        help: "a picture: bars for a vector, a map for an image; red is for the output, blue against it. The channels
come last where the last of three sizes is at most 4 and the first larger, else first",
        set: |options, value| {
            options.png = Some(value.path());
            Ok(())
        },
    },
    Flag {
        name: "--json",
        value: "FILE",
        help: "everything for programs; - for the standard output in place of the text",
        set: |options, value| {
            options.json = Some(value.path());
            Ok(())
        },
    },
    Flag {
        name: "--output",
        value: "NAME",
        help: "the output of an ONNX model that has several, or any other of its values, where it is to end",
        set: |options, value| {
            options.output = Some(value.text()?.to_owned());
            Ok(())
        },
    },
    Flag {
        name: "--shape",
        value: "SIZES",
        help: "the shape of a sample where the file does not say it, such as 3,224,224",
        set: |options, value| {
            options.shape = Some(value.parse(shape, "one to three sizes, such as 3,224,224")?);
            Ok(())
        },
    },
    Flag {
        name: "--architecture",
        value: "FILE",
        help: "the architecture of weights, as PyTorch prints an nn.Sequential; guess: dense layers in the order of
their names with ReLUs between them, which is shown",
        set: |options, value| {
            options.architecture = Some(value.path());
            Ok(())
        },
    },
    Flag {
        name: "--under",
        value: "PREFIX",
        help: "the weights whose names begin so, as in a checkpoint of {\"model\": ..., \"optimizer\": ...}",
        set: |options, value| {
            options.under = Some(value.text()?.trim_end_matches('.').to_owned());
            Ok(())
        },
    },
];

/// Which output of each sample is explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Predicted,
    All,
    Output(usize),
    /// The output that this file says, for each sample its own.
    Labels(PathBuf),
}

/// The command line.
#[derive(Debug)]
pub struct Options {
    pub model: PathBuf,
    pub input: PathBuf,
    pub array: Option<String>,
    pub rule: String,
    pub bounds: Option<(f64, f64)>,
    pub bias: Option<BiasMode>,
    pub target: Target,
    pub top: usize,
    pub names: Option<PathBuf>,
    pub png: Option<PathBuf>,
    pub json: Option<PathBuf>,
    pub output: Option<String>,
    pub shape: Option<Shape>,
    pub architecture: Option<PathBuf>,
    pub under: Option<String>,
}

impl Options {
    fn of(model: PathBuf) -> Self {
        Self {
            model,
            input: PathBuf::new(),
            array: None,
            rule: "epsilon-plus".to_owned(),
            bounds: None,
            bias: None,
            target: Target::Predicted,
            top: 10,
            names: None,
            png: None,
            json: None,
            output: None,
            shape: None,
            architecture: None,
            under: None,
        }
    }

    /// `None` where the help is asked for.
    pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, Failure> {
        let (mut models, mut values) = (Vec::new(), Vec::new());
        while let Some(argument) = arguments.next() {
            let Some(text) = argument.to_str().filter(|text| text.starts_with('-') && *text != "-")
            else {
                models.push(argument);
                continue;
            };
            if matches!(text, "--help" | "-h") {
                return Ok(None);
            }
            let (name, with) =
                text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let flag = FLAGS.iter().find(|flag| flag.name == name);
            let flag =
                flag.ok_or_else(|| usage(format!("there is no option {name} (--help lists all)")))?;
            let given = with.map(OsString::from).or_else(|| arguments.next());
            let given = given
                .ok_or_else(|| usage(format!("{name} needs a value: {name} {}", flag.value)))?;
            values.push((flag, Value { flag: flag.name, given }));
        }
        let model = match <[OsString; 1]>::try_from(models) {
            Ok([model]) => model,
            Err(none) if none.is_empty() => {
                return Err(usage("no model is given (--help shows how)"));
            }
            Err(several) => {
                let all = several
                    .iter()
                    .map(|model| model.display().to_string())
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(usage(format!(
                    "one model is wanted, these are {}: {all} (--help shows how)",
                    several.len()
                )));
            }
        };
        let mut options = Self::of(model.into());
        let mut given: Vec<&str> = Vec::new();
        for (flag, value) in values {
            if given.contains(&flag.name) {
                return Err(usage(format!("{} is given twice", flag.name)));
            }
            given.push(flag.name);
            (flag.set)(&mut options, &value)?;
        }
        if options.input.as_os_str().is_empty() {
            return Err(usage("no samples are given: --input FILE (--help shows how)"));
        }
        options.check_written()?;
        Ok(Some(options))
    }
}

impl Options {
    /// What is written replaces nothing that is read, nor each other.
    fn check_written(&self) -> Result<(), Failure> {
        let mut taken = vec![self.model.as_path(), self.input.as_path()];
        taken.extend([&self.names, &self.architecture].into_iter().flatten().map(PathBuf::as_path));
        let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        for (flag, path) in [("--json", &self.json), ("--png", &self.png)] {
            let Some(path) = path.as_deref() else { continue };
            if path == Path::new("-") {
                if flag == "--png" {
                    return Err(usage(
                        "--png: a picture is not written to the standard output: give the name of a file",
                    ));
                }
                continue;
            }
            if taken.iter().any(|other| place(other) == place(path)) {
                return Err(usage(format!(
                    "{flag}: {} is read or written already: give another name",
                    path.display()
                )));
            }
            taken.push(path);
        }
        Ok(())
    }
}

impl Value {
    fn path(&self) -> PathBuf {
        self.given.clone().into()
    }

    fn text(&self) -> Result<&str, Failure> {
        self.given.to_str().ok_or_else(|| self.is_not("a text in UTF-8"))
    }

    fn parse<T>(&self, parse: impl FnOnce(&str) -> Option<T>, wanted: &str) -> Result<T, Failure> {
        parse(self.text()?).ok_or_else(|| self.is_not(wanted))
    }

    fn is_not(&self, wanted: &str) -> Failure {
        usage(format!("{}: '{}' is not {wanted}", self.flag, self.given.display()))
    }
}

pub fn help() -> String {
    const INDENT: usize = 23;
    let mut text = BEFORE.to_owned();
    for Flag { name, value, help, .. } in FLAGS {
        let left = format!("  {name} {value}");
        let help = help.replace('\n', &format!("\n{:INDENT$}", ""));
        let _ = writeln!(text, "{left:<width$}  {help}", width = INDENT - 2);
    }
    let _ = writeln!(text, "{:<width$}  this text", "  --help", width = INDENT - 2);
    text + AFTER
}

fn is_file_of_labels(text: &str) -> bool {
    let extension =
        std::path::Path::new(text).extension().map(|e| e.to_string_lossy().to_lowercase());
    matches!(
        extension.as_deref(),
        Some("npy" | "npz" | "pt" | "pth" | "safetensors" | "csv" | "tsv" | "txt")
    )
}

fn shape(text: &str) -> Option<Shape> {
    let dims: Vec<usize> =
        text.split(',').map(|dim| dim.trim().parse().ok()).collect::<Option<_>>()?;
    match *dims {
        _ if dims.contains(&0) => None,
        [size] => Some(size.into()),
        [channels, length] => Some([channels, length].into()),
        [channels, height, width] => Some([channels, height, width].into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Options, String> {
        Options::parse(arguments.split_whitespace().map(Into::into))
            .map(Option::unwrap)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_that_is_read_is_written_over() {
        let refused = |text: &str| {
            Options::parse(text.split(' ').map(Into::into))
                .err()
                .map_or_else(String::new, |error| error.to_string())
        };
        for (text, what) in [
            ("m.onnx --input x.npy --png m.onnx", "--png: m.onnx is read or written already"),
            ("m.onnx --input x.npy --json x.npy", "--json: x.npy is read or written already"),
            ("m.pt --architecture net.txt --input x.npy --json net.txt", "--json: net.txt is read"),
            ("m.onnx --input x.npy --json a --png a", "--png: a is read or written already"),
            ("m.onnx --input x.npy --png -", "not written to the standard output"),
            ("m.onnx --input x.npy --rule flat --rule norm", "--rule is given twice"),
        ] {
            assert!(refused(text).contains(what), "{text}: {}", refused(text));
        }
        assert_eq!(refused("m.onnx --input x.npy --json - --png a.png"), "");
    }

    #[test]
    fn every_option_is_in_the_help_and_takes_a_value() {
        let help = help();
        for Flag { name, value, .. } in FLAGS {
            assert!(help.contains(&format!("\n  {name} {value} ")), "{name}");
            assert_eq!(
                parse(&format!("m {name}")).unwrap_err(),
                format!("{name} needs a value: {name} {value}")
            );
        }
        assert!(help.lines().all(|line| line.len() <= 132), "{help}");
        for words in ["Exit status: 0", "docs/json.md", "--help"] {
            assert!(help.contains(words), "{words}");
        }
        assert!(Options::parse(["-h".into()].into_iter()).unwrap().is_none());
    }

    #[test]
    fn options_are_what_was_given() {
        let options =
            parse("m.pt --input x.npz --array x --target=3 --top 2 --shape 1,12,12 --under model. --box -1,2.5 --json -").unwrap();
        assert_eq!((options.model, options.input), ("m.pt".into(), "x.npz".into()));
        assert_eq!(
            (options.array.as_deref(), options.target, options.top),
            (Some("x"), Target::Output(3), 2)
        );
        assert_eq!(
            (options.shape, options.under.as_deref()),
            (Some([1, 12, 12].into()), Some("model"))
        );
        assert_eq!((options.bounds, options.json), (Some((-1.0, 2.5)), Some("-".into())));
        assert_eq!(
            parse("m --input x --target y.npy").unwrap().target,
            Target::Labels("y.npy".into())
        );
        assert_eq!(
            parse("m --input x --target ALL.TXT").unwrap().target,
            Target::Labels("ALL.TXT".into())
        );
    }

    #[test]
    fn what_is_wrong_says_what_is_wanted() {
        let refused = |arguments: &str| parse(arguments).unwrap_err();
        assert_eq!(refused(""), "no model is given (--help shows how)");
        assert_eq!(refused("m"), "no samples are given: --input FILE (--help shows how)");
        assert_eq!(
            refused("m n --input x"),
            "one model is wanted, these are 2: m, n (--help shows how)"
        );
        assert_eq!(refused("m --tops 3"), "there is no option --tops (--help lists all)");
        assert_eq!(refused("m --input x --top many"), "--top: 'many' is not a whole number");
        assert_eq!(
            refused("m --input x --shape 3,a"),
            "--shape: '3,a' is not one to three sizes, such as 3,224,224"
        );
        assert_eq!(
            refused("m --input x --shape 1,0"),
            "--shape: '1,0' is not one to three sizes, such as 3,224,224"
        );
        assert_eq!(refused("m --input x --box 3"), "--box: '3' is not two numbers, such as 0,1");
        let target = refused("m --input x --target cat");
        assert_eq!(
            target,
            "--target: 'cat' is not predicted, all, the number of an output, or a file of labels (.npy, .csv, .txt)"
        );
    }
}
