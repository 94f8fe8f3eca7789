//! The whole command `relprop explain`.

use std::path::PathBuf;

use relprop::nalgebra::{self, dmatrix, dvector};
use relprop::{Linear, Relu, Sequential};
use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A folder with files, and the command run on them: `@name` is a file in it.
struct Case {
    folder: TempDir,
}

impl Case {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    /// Two inputs, called height and width, and one output; its shares are exact for the sample (1,
    /// 1).
    fn with_small_model(self) -> Self {
        let model = Sequential::builder()
            .layer(Linear::new(dmatrix![1.0_f32, 3.0; 2.0, -1.0], dvector![0.0, 1.0]).unwrap())
            .layer(Relu)
            .layer(Linear::new(dmatrix![1.0, 1.0], dvector![2.0]).unwrap())
            .build()
            .unwrap();
        model.write_safetensors(self.path("m.safetensors")).unwrap();
        self.write("x.csv", "height,width\n1,1\n");
        self
    }

    /// Twenty inputs and three outputs.
    fn with_model(self) -> Self {
        let weights = |count: usize| (0..count).map(|k| (k as f32 * 0.7).sin()).collect::<Vec<_>>();
        let model = Sequential::builder()
            .layer(Linear::from_rows(8, 20, &weights(160), None).unwrap())
            .layer(Relu)
            .layer(Linear::from_rows(3, 8, &weights(24), None).unwrap())
            .build()
            .unwrap();
        model.write_safetensors(self.path("m.safetensors")).unwrap();
        self
    }

    /// A table of `count` samples of twenty values.
    fn with_samples(self, count: usize) -> Self {
        let names: Vec<String> = (0..20).map(|k| format!("x{k}")).collect();
        let row = |sample: usize| {
            (0..20).map(|k| ((sample * 20 + k) % 13).to_string()).collect::<Vec<_>>().join(",")
        };
        let rows: Vec<String> = (0..count).map(row).collect();
        self.write("x.csv", format!("{}\n{}\n", names.join(","), rows.join("\n")));
        self
    }

    fn run_into(&self, arguments: &str, out: &mut impl Write) -> Result<(), Failure> {
        let folder = format!("{}/", self.folder.path().display());
        let exported = format!("{}/../tests/exported/", env!("CARGO_MANIFEST_DIR"));
        let arguments = arguments.replace("@@", &exported).replace('@', &folder);
        let line = format!("relprop explain {arguments}");
        run(line.split_whitespace().map(OsString::from), out)
    }

    fn run(&self, arguments: &str) -> Result<String, String> {
        let mut text = Vec::new();
        self.run_into(arguments, &mut text).map_err(|failure| failure.to_string())?;
        Ok(String::from_utf8(text).unwrap())
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_classifier_and_a_table_become_json_and_a_picture() {
    let case = Case::new();
    case.write("x.csv", format!("a,b,c,d,e,f\n{}", "1,1,-2,0.5,0,3\n".repeat(70)));
    let with = |more: &str| {
        case.run(&format!(
            "@@sklearn-classifier.onnx --input @x.csv --json @out.json --png @out.png {more}"
        ))
    };
    let text = with("--target all --rule epsilon --top 2").unwrap();
    assert!(text.starts_with("check: softmax-last at layer Relu2"), "{text}");
    assert_eq!(text.matches("\nsample ").count(), 70 * 3);
    assert_eq!(text.matches("to all inputs").count(), 70 * 3);
    assert_eq!(text.matches(", probability ").count(), 70 * 3);

    let found: Value = serde_json::from_str(&case.read("out.json")).unwrap();
    let samples = found["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 70);
    for sample in samples {
        let targets = sample["targets"].as_array().unwrap();
        assert_eq!(targets.len(), 3);
        for (number, target) in targets.iter().enumerate() {
            assert_eq!(target["target"], number);
            let relevance: f64 =
                target["relevance"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).sum();
            let ledger = &target["ledger"];
            let lost: f64 = ledger["causes"]
                .as_object()
                .unwrap()
                .values()
                .map(|lost| lost.as_f64().unwrap())
                .sum();
            let output = sample["output"][number].as_f64().unwrap();
            let parts = relevance + lost + ledger["rounding"].as_f64().unwrap();
            assert!(
                (parts - output).abs() <= 1e-4 * output.abs().max(1.0),
                "{parts} is not {output}"
            );
        }
        let sum: f64 =
            sample["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
    assert_eq!(found["check"][0]["code"], "softmax-last");
    assert_eq!(found["names"][5], "f");
    assert!(std::fs::read(case.path("out.png")).unwrap().starts_with(b"\x89PNG"));
    assert_eq!(case.names(), ["out.json", "out.png", "x.csv"], "no temporary file is left");

    assert!(with("--rule zbox").unwrap_err().contains("needs --box"));
    assert!(with("--rule zbox --box -3,100").is_ok());
    assert!(with("--target 3").unwrap_err().contains("the model has outputs 0 to 2"));
    assert!(with("--under x").unwrap_err().contains("are for weights"));
}

#[test]
fn the_page_shows_the_file_that_is_written() {
    let page = include_str!("../../docs/json.md");
    let section = page.split_once("\n## The file of the command line\n").unwrap().1;
    let shown: String = section
        .split_once("```json\n")
        .unwrap()
        .1
        .split_once("```")
        .unwrap()
        .0
        .split_whitespace()
        .collect();
    let case = Case::new().with_small_model();
    case.run("@m.safetensors --input @x.csv --rule lrp0 --json @out.json").unwrap();
    let written: String = case.read("out.json").split_whitespace().collect();
    assert_eq!(written, shown);
    let to_standard = case.run("@m.safetensors --input @x.csv --rule lrp0 --json -").unwrap();
    assert_eq!(to_standard, case.read("out.json"));
}

#[test]
fn each_sample_may_have_a_target_of_its_own() {
    let case = Case::new().with_model().with_samples(40);
    let labels: Vec<usize> = (0..40).map(|sample| sample * 7 % 3).collect();
    case.write("y.csv", labels.iter().map(usize::to_string).collect::<Vec<_>>().join("\n"));
    let json = |target: &str| -> Value {
        serde_json::from_str(
            &case
                .run(&format!("@m.safetensors --input @x.csv --json - --target {target}"))
                .unwrap(),
        )
        .unwrap()
    };
    let (found, all) = (json("@y.csv"), json("all"));
    for (sample, &label) in labels.iter().enumerate() {
        let [target] = found["samples"][sample]["targets"].as_array().unwrap().as_slice() else {
            panic!("one target")
        };
        assert_eq!(target["target"], label);
        assert_eq!(found["samples"][sample]["output"], all["samples"][sample]["output"]);
        let wanted = &all["samples"][sample]["targets"][label];
        let near = |a: &Value, b: &Value| (a.as_f64().unwrap() - b.as_f64().unwrap()).abs() < 1e-4;
        let (a, b) =
            (target["relevance"].as_array().unwrap(), wanted["relevance"].as_array().unwrap());
        assert!(a.iter().zip(b).all(|(a, b)| near(a, b)), "{sample}");
    }
    case.write("y.csv", "0\n1\n");
    let said = case.run("@m.safetensors --input @x.csv --target @y.csv").unwrap_err();
    assert!(said.ends_with("y.csv: it has 2 labels, but there are 40 samples"), "{said}");
}

#[test]
fn an_error_in_the_middle_leaves_nothing_half_written() {
    // Far more than a part, and the last overflows.
    let case = Case::new().with_model().with_samples(3000);
    let table = case.read("x.csv") + &["3e38"; 20].join(",") + "\n";
    case.write("x.csv", table);
    let run = || {
        case.run("@m.safetensors --input @x.csv --rule epsilon --json @out.json --png @out.png")
            .unwrap_err()
    };
    let said = run();
    assert!(said.starts_with("sample 3000: output ") && said.contains("overflows"), "{said}");
    assert_eq!(case.names(), ["m.safetensors", "x.csv"]);
    case.write("out.json", "{\"before\": true}");
    run();
    assert_eq!(case.read("out.json"), "{\"before\": true}");
    assert_eq!(case.names(), ["m.safetensors", "out.json", "x.csv"]);
    let mut out = Vec::new();
    case.run_into("@m.safetensors --input @x.csv --rule epsilon --json -", &mut out).unwrap_err();
    assert!(
        !out.is_empty() && serde_json::from_slice::<Value>(&out).is_err(),
        "what was cut off is no JSON"
    );
}

/// A reader that has read enough.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(ErrorKind::BrokenPipe.into())
    }
}

#[test]
fn files_are_complete_whoever_reads_the_text() {
    let case = Case::new().with_model().with_samples(300);
    case.run_into("@m.safetensors --input @x.csv --json @out.json --png @out.png", &mut Closed)
        .unwrap();
    let found: Value = serde_json::from_str(&case.read("out.json")).unwrap();
    assert_eq!(found["samples"].as_array().unwrap().len(), 300);
    assert!(std::fs::read(case.path("out.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(case.run_into("@m.safetensors --input @x.csv", &mut Closed).is_ok());
    assert!(case.run_into("@m.safetensors --input @x.csv --json -", &mut Closed).is_ok());
    assert!(is_closed(&case.run_into("--help", &mut Closed).unwrap_err()));
}

#[test]
fn memory_does_not_grow_with_the_number_of_samples() {
    let peak = |count: usize| {
        let case = Case::new().with_model().with_samples(count);
        let arguments = "@m.safetensors --input @x.csv --rule epsilon --target all --json \
            @out.json --png @out.png";
        let peak =
            allocation_counter::measure(|| case.run_into(arguments, &mut io::sink()).unwrap())
                .bytes_max;
        (peak, std::fs::metadata(case.path("out.json")).unwrap().len())
    };
    let ((few, small), (many, large)) = (peak(1500), peak(6000));
    assert!(large > 3 * small && large > 10_000_000, "{small} {large}");
    // The samples themselves are read as a whole: 4 bytes a value, and as much again while a vector
    // grows.
    let samples = 4 * 20 * 4500;
    assert!(many < few + 4 * samples, "{few} bytes for 1500 samples, {many} for 6000");
}

#[test]
fn a_wrong_command_line_is_told_from_a_failure() {
    let case = Case::new().with_small_model();
    let failure = |arguments: &str| case.run_into(arguments, &mut io::sink()).unwrap_err();
    for arguments in [
        "",
        "@m.safetensors",
        "@m.safetensors --input @x.csv --tops 3",
        "@m.safetensors --input @x.csv --rule best",
        "@m.safetensors --input @x.csv --rule flat --bias ignored",
        "@m.safetensors --input @x.csv --target 7",
        "@m.safetensors --input @x.csv --array x",
        "@m.safetensors --input @x.csv --output y",
    ] {
        assert!(failure(arguments).is::<Usage>(), "{arguments}");
    }
    for arguments in [
        "@n.safetensors --input @x.csv",
        "@m.safetensors --input @y.csv",
        "@m.safetensors --input @x.csv --json @no/out",
    ] {
        let failure = failure(arguments);
        assert!(!failure.is::<Usage>() && !is_closed(&failure), "{arguments}: {failure}");
    }
    assert!(case.run("--help").unwrap().contains("Exit status"));
}
