//! The binary `relprop` itself: what it prints, and its exit status.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The repository's test data.
fn data(file: &str) -> String {
    format!("{}/../tests/{file}", env!("CARGO_MANIFEST_DIR"))
}

struct Done {
    status: i32,
    out: String,
    err: String,
}

fn relprop(arguments: &[&str]) -> Done {
    let done = Command::new(env!("CARGO_BIN_EXE_relprop")).args(arguments).output().unwrap();
    Done {
        status: done.status.code().unwrap(),
        out: String::from_utf8(done.stdout).unwrap(),
        err: String::from_utf8(done.stderr).unwrap(),
    }
}

/// What a command prints that succeeds.
fn printed(arguments: &[&str]) -> String {
    let Done { status, out, err } = relprop(arguments);
    assert_eq!(status, 0, "{arguments:?}: {err}");
    out
}

/// The error of a command that fails with this status.
fn refused(status: i32, arguments: &[&str]) -> String {
    let done = relprop(arguments);
    assert_eq!(done.status, status, "{arguments:?}: {}{}", done.out, done.err);
    assert!(done.err.starts_with("error: "), "{}", done.err);
    done.err
}

/// A safetensors file with the architecture of two dense layers with a sigmoid between them and
/// biases that are large.
fn with_findings(folder: &Path) -> PathBuf {
    use relprop::nalgebra::{DMatrix, DVector};
    use relprop::{Linear, Sequential, Sigmoid};
    let linear = || {
        let bias = DVector::from_element(2, 100.0_f32);
        Linear::new(DMatrix::from_element(2, 2, 1.0), bias).unwrap()
    };
    let model = Sequential::builder().layer(linear()).layer(Sigmoid).layer(linear());
    let path = folder.join("m.safetensors");
    model.build().unwrap().write_safetensors(&path).unwrap();
    path
}

#[test]
fn the_help_of_each_command_is_complete_and_narrow() {
    for (arguments, words) in [
        (&["--help"][..], &["explain", "check", "inspect", "Exit status: 0"][..]),
        (&["explain", "--help"], &["Model:", "Samples:", "Rule:", "Results:", "docs/json.md"]),
        (&["check", "--help"], &["Model:", "Rule:", "--json <FILE>", "even if it has findings"]),
        (&["inspect", "--help"], &["Model:", "--architecture <FILE>", "unsupported nodes"]),
    ] {
        let help = printed(arguments);
        assert!(words.iter().all(|word| help.contains(word)), "{help}");
        assert!(help.contains("Exit status: 0") && help.contains("Usage: relprop"), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let short = printed(&[&arguments[..arguments.len() - 1], &["-h"]].concat());
        assert!(short.len() <= help.len() && short.contains("Usage: relprop"), "{short}");
    }
    assert_eq!(printed(&["--version"]), format!("relprop {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_has_status_2() {
    let model = data("exported/sklearn-classifier.onnx");
    assert!(refused(2, &[]).contains("requires a subcommand"));
    assert!(refused(2, &[]).contains("[subcommands: explain, check, inspect, help]"));
    assert!(refused(2, &["inspects", &model]).contains("a similar subcommand exists: 'inspect'"));
    assert!(refused(2, &["explain", &model]).contains("--input <FILE>"));
    assert!(refused(2, &["check"]).contains("<MODEL>"));
    assert!(refused(2, &["check", &model, "--rule", "epsilon-pluss"]).contains("'epsilon-plus'"));
    assert!(refused(2, &["check", &model, "--rule", "zbox"]).contains("needs --box LOW,HIGH"));
    assert!(refused(2, &["check", &model, "--under", "x"]).contains("are for weights"));
    assert!(refused(2, &["check", &model, "--json", &model]).contains("--json: "));
    assert!(refused(2, &["inspect", &model, "--rule", "flat"]).contains("unexpected argument"));
    assert!(refused(2, &["inspect", &model, "--shape", "0"]).contains("one to three sizes"));
}

#[test]
fn a_file_that_cannot_be_used_has_status_1() {
    for command in ["check", "inspect"] {
        let missing = refused(1, &[command, "nothing.onnx"]);
        assert!(missing.starts_with("error: nothing.onnx: "), "{missing}");
        let script = refused(1, &[command, &data("formats/script.pt")]);
        assert!(script.contains("it is a TorchScript archive"), "{script}");
    }
    let bare = refused(1, &["check", &data("formats/zip.pt")]);
    assert!(bare.contains("the file does not say its architecture"), "{bare}");
    let samples =
        refused(1, &["explain", &data("exported/sklearn-classifier.onnx"), "--input", "x.csv"]);
    assert!(samples.contains("x.csv"), "{samples}");
}

#[test]
fn samples_are_explained() {
    let zip = data("formats/zip.pt");
    let arguments = ["explain", &zip, "--architecture", "guess", "--input", &data("formats/x.npy")];
    let Done { status, out, err } = relprop(&arguments);
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("sample 0, output ") && out.contains("to all inputs"), "{out}");
    assert!(
        err.contains("this architecture is guessed") && err.contains("(0-relu): ReLU()"),
        "{err}"
    );
    let json =
        printed(&[&arguments[..], &["--json", "-", "--rule", "zbox", "--box", "-2,1"]].concat());
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["samples"].as_array().unwrap().len(), 1);
}

#[test]
fn a_check_prints_its_findings_and_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_findings(folder.path());
    let model = model.to_str().unwrap();
    let text = printed(&["check", model, "--rule", "epsilon"]);
    let codes: Vec<&str> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert!(codes.contains(&"nonzero-at-zero") && codes.contains(&"large-biases"), "{text}");
    assert!(text.contains("compare with --rule epsilon --bias ignored"), "{text}");

    let json = printed(&["check", model, "--rule", "epsilon", "--json", "-"]);
    let found: Vec<Value> = serde_json::from_str(&json).unwrap();
    let found: Vec<&str> = found.iter().map(|finding| finding["code"].as_str().unwrap()).collect();
    assert_eq!(found, codes);
    let file = folder.path().join("found.json");
    let again = printed(&["check", model, "--rule", "epsilon", "--json", file.to_str().unwrap()]);
    assert_eq!((again, std::fs::read_to_string(file).unwrap()), (text, json));

    let zip = data("formats/zip.pt");
    let guessed = ["check", &zip, "--architecture", "guess"];
    assert_eq!(printed(&guessed), "no findings\n");
    assert_eq!(printed(&[&guessed[..], &["--json", "-"]].concat()), "[]\n");
}

#[test]
fn an_onnx_model_is_shown_with_its_layers() {
    let path = data("exported/sklearn-classifier.onnx");
    let text = printed(&["inspect", &path]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("{path}: an ONNX model"));
    assert!(lines.contains(&"input: 6"), "{text}");
    assert!(lines.contains(&"output output_label: cannot be explained"), "{text}");
    assert!(lines.contains(&"output output_probability: 3"), "{text}");
    assert!(text.contains(": Linear(in_features=6, out_features="), "{text}");
    assert!(lines.last().unwrap().starts_with("6 -> 3, "), "{text}");
    assert!(lines.last().unwrap().ends_with(" parameters"), "{text}");
    assert!(text.contains("\n\nGraph(\n  ("), "{text}");
    // A sum reads two values, which are named.
    let blocks = printed(&["inspect", &data("exported/resnet-basic-torchscript.onnx")]);
    let sum = blocks.lines().find(|line| line.contains(": Sum() <- ")).expect(&blocks);
    assert!(sum.contains(", ") && sum.contains("  # "), "{sum}");
}

#[test]
fn unsupported_nodes_are_listed_in_the_place_of_the_layers() {
    let path = data("exported/refused-attention.onnx");
    let Done { status, out, err } = relprop(&["inspect", &path]);
    assert_eq!(status, 1, "{out}");
    let nodes = out.lines().filter(|line| line.contains("(graph.node[")).count();
    assert!(nodes > 1 && out.contains("cannot be explained:"), "{out}");
    assert_eq!(err, format!("error: {path}: the model has {nodes} nodes that are unsupported\n"));
}

#[test]
fn weights_without_an_architecture_are_shown_by_module() {
    let path = data("formats/zip.pt");
    let text = printed(&["inspect", &path]);
    assert!(
        text.starts_with(&format!(
            "{path}: weights without an architecture, 4 tensors, 26 numbers\n\n0\n  bias    4\n  \
             weight  4 x 3\n\n2\n  bias    2\n  weight  2 x 4\n\n"
        )),
        "{text}"
    );
    assert!(text.contains(&format!("  relprop inspect {path} --architecture guess\n")), "{text}");
    assert!(text.contains(&format!("  relprop inspect {path} --architecture net.txt\n")), "{text}");

    let several = printed(&["inspect", &data("formats/averages.pt")]);
    assert!(
        several.contains("those under `ema` and `model`: choose one with --under"),
        "{several}"
    );
    let one = printed(&["inspect", &data("formats/averages.pt"), "--under", "ema"]);
    assert!(one.contains("averages.pt --under ema --architecture guess"), "{one}");
    let other = printed(&["inspect", &data("formats/norm.pt")]);
    assert!(other.contains("num_batches_tracked  a number"), "{other}");
    assert!(other.contains("no architecture can be guessed: "), "{other}");
}

#[test]
fn weights_with_an_architecture_are_shown_with_their_layers() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_findings(folder.path());
    let text = printed(&["inspect", model.to_str().unwrap()]);
    assert!(text.contains(": weights with an architecture\n\nSequential(\n"), "{text}");
    assert!(
        text.contains("(1): Sigmoid()  # 2\n") && text.ends_with("\n2 -> 2, 12 parameters\n"),
        "{text}"
    );

    let zip = data("formats/zip.pt");
    let guessed = printed(&["inspect", &zip, "--architecture", "guess"]);
    assert!(guessed.ends_with("\n3 -> 2, 26 parameters\n"), "{guessed}");
    let text = folder.path().join("net.txt");
    let given = ["inspect", &zip, "--architecture", text.to_str().unwrap()];
    std::fs::write(&text, "Linear(3, 4)\nReLU()\nLinear(4, 2)").unwrap();
    assert!(printed(&given).ends_with("\n3 -> 2, 26 parameters\n"));
    std::fs::write(&text, "Linear(3, 4)\nReLU()\nLSTM(4, 2)").unwrap();
    let unsupported = refused(1, &given);
    assert!(unsupported.contains("LSTM is unsupported"), "{unsupported}");
    std::fs::write(&text, "Linear(3, 4)\nReLU()\nLinear(5, 2)").unwrap();
    let misshapen = refused(1, &given);
    assert!(misshapen.contains("2.weight: the shape is [2, 4], not [2, 5]"), "{misshapen}");
}

/// A reader that closes the pipe early, as `head` does, is no failure.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_success() {
    let zip = data("formats/zip.pt");
    for arguments in [
        &["--help"][..],
        &["check", &zip, "--architecture", "guess"],
        &["inspect", &zip],
        &["explain", &zip, "--architecture", "guess", "--input", &data("formats/x.npy")],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_relprop"));
        let done = command.args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(done.status.code(), Some(0), "{arguments:?}");
    }
}
