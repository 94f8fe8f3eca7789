//! Explains how a network recognizes handwritten or printed digits, as numbers and as a picture.
//!
//! `cargo run --release --example mnist` needs no download. `-- --help` lists the options.

mod idx;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use relprop::heatmap::{Canvas, Rgb, diverging, sequential, text_width};
use relprop::io::StateDict;
use relprop::nalgebra::{DMatrix, DVector};
use relprop::{Explanation, Relu, Rule, Sequential, Softmax};

use idx::Dataset;

const HELP: &str = "\
Explains a network that recognizes digits: which pixels speak for and against each digit.

usage: cargo run --release --example mnist -- [options]

  --data DIR      a folder with a pair of IDX files, *images-idx3-ubyte and *labels-idx1-ubyte,
                  plain or .gz (default: the 720 bundled digits of printed typefaces)
  --model MODEL   mlp or cnn, the bundled dense and convolutional networks, or a safetensors file:
                  a whole model written by relprop, or the state dict of a 784-320-120-40-10
                  network with the layers net.1, net.3, net.5 and net.7 (default: mlp)
  --rule RULE     the rule for the maps of all outputs: lrp0, epsilon, gamma, gammaplain, zplus,
                  alphabeta, wsquare, flat, norm, abslrp, sign, relative (default: epsilon)
  --count N       how many digits to explain, 1 to 150 (default: 10)
  --out FILE      where to write the picture (default: mnist-relevance.png)
  --help          print this text
";

/// The largest number of rows in a picture.
const MOST: usize = 150;

const MLP: &[u8] = include_bytes!("mlp.safetensors");
const CNN: &[u8] = include_bytes!("cnn.safetensors");
const IMAGES: &[u8] = include_bytes!("digits-images-idx3-ubyte.gz");
const LABELS: &[u8] = include_bytes!("digits-labels-idx1-ubyte.gz");

/// The number of pixels to print for each digit.
const STRONGEST: usize = 5;

/// The largest number of outputs to draw for each digit.
const MAPS: usize = 10;

/// Any error, as it is shown to the user.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Some errors list tensors on separate lines; join them into one.
            let text = failure.to_string();
            let line: Vec<&str> = text.split_whitespace().collect();
            eprintln!("mnist: {}", line.join(" "));
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
    let model = options.model()?;
    let data = options.data()?;
    let pixels = data.images.rows * data.images.columns;
    if pixels != model.inputs() {
        let (rows, columns) = (data.images.rows, data.images.columns);
        return Err(format!(
            "the model takes {} inputs, but the images have {rows} x {columns} pixels",
            model.inputs()
        )
        .into());
    }
    let (right, all) = (count_right(&model, &data)?, data.labels.len());
    writeln!(out, "accuracy {:.1} % ({right} of {all})", 100.0 * right as f64 / all as f64)?;

    let digits = explain(&model, &data, &options)?;
    for digit in &digits {
        digit.print(&mut out, data.images.columns)?;
    }
    writeln!(out, "\nexplained {} digits, {} outputs each", digits.len(), model.outputs())?;
    draw(&digits, data.images.rows, data.images.columns, &options.rule_name())?
        .write_png(&options.out)?;
    writeln!(out, "wrote {}", options.out.display())?;
    Ok(())
}

/// The command line.
struct Options {
    data: Option<PathBuf>,
    model: PathBuf,
    rule: Rule,
    count: usize,
    out: PathBuf,
}

impl Options {
    /// Parses the arguments. `None` means that the user asked for help.
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let (model, out) = (PathBuf::from("mlp"), PathBuf::from("mnist-relevance.png"));
        let mut options = Self { data: None, model, rule: Rule::Epsilon, count: 10, out };
        while let Some(flag) = arguments.next() {
            let flag = flag.to_string_lossy().into_owned();
            if flag == "--help" || flag == "-h" {
                return Ok(None);
            }
            if !["--data", "--model", "--rule", "--count", "--out"].contains(&flag.as_str()) {
                return Err(format!("unknown option {flag} (--help lists the options)"));
            }
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            match flag.as_str() {
                "--data" => options.data = Some(value.into()),
                "--model" => options.model = value.into(),
                "--out" => options.out = value.into(),
                "--rule" => options.rule = parse_rule(&value.to_string_lossy())?,
                _ => options.count = parse_count(&value.to_string_lossy())?,
            }
        }
        Ok(Some(options))
    }

    fn model(&self) -> Result<Sequential<f32>, Failure> {
        let path = &self.model;
        match path.to_str() {
            Some("mlp") => return build(&StateDict::from_safetensors(MLP)?),
            Some("cnn") => return Ok(StateDict::from_safetensors(CNN)?.to_model()?),
            _ => {}
        }
        // Not every error mentions the file, so add its path where it is missing.
        let named = |failure: Failure| -> Failure {
            let (text, path) = (failure.to_string(), path.display().to_string());
            if text.contains(&path) { failure } else { format!("{path}: {text}").into() }
        };
        let state = StateDict::open(path).map_err(|error| named(error.into()))?;
        if state.has_architecture() {
            return state.to_model::<f32>().map_err(|error| named(error.into()));
        }
        build(&state).map_err(named)
    }

    fn data(&self) -> Result<Dataset, String> {
        match &self.data {
            Some(folder) => Dataset::open(folder),
            None => Dataset::read(IMAGES, LABELS),
        }
    }

    fn rule_name(&self) -> String {
        name(self.rule)
    }
}

/// The name of a rule on the command line.
fn name(rule: Rule) -> String {
    format!("{rule:?}").to_lowercase()
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    // Pass requires layers with as many inputs as outputs, and these networks have none.
    let usable = Rule::ALL.into_iter().filter(|&rule| rule != Rule::Pass);
    usable.clone().find(|&rule| name(rule) == text).ok_or_else(|| {
        let names: Vec<String> = usable.map(name).collect();
        format!("unknown rule {text}; use one of {}", names.join(", "))
    })
}

fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("--count needs a whole number from 1 to {MOST}, not {text}"))
}

/// Builds the example's dense network with the weights of a state dict.
fn build(state: &StateDict) -> Result<Sequential<f32>, Failure> {
    let model = state
        .builder::<f32>()
        .linear("net.1", 784, 320)
        .layer(Relu)
        .linear("net.3", 320, 120)
        .layer(Relu)
        .linear("net.5", 120, 40)
        .layer(Relu)
        .linear("net.7", 40, 10)
        .layer(Softmax)
        .build()?;
    Ok(model)
}

/// The network's input: pixels scaled to the range 0 to 1.
fn scaled(image: &[u8]) -> impl Iterator<Item = f32> {
    image.iter().map(|&pixel| f32::from(pixel) / 255.0)
}

/// Counts the images that the network recognizes correctly.
fn count_right(model: &Sequential<f32>, data: &Dataset) -> Result<usize, relprop::Error> {
    // Work in parts of this size, so that memory stays small for any data set.
    const PART: usize = 1000;
    let images: Vec<&[u8]> = data.images.iter().collect();
    let mut right = 0;
    for (images, labels) in images.chunks(PART).zip(data.labels.chunks(PART)) {
        let samples = DMatrix::from_iterator(
            model.inputs(),
            images.len(),
            images.iter().flat_map(|image| scaled(image)),
        );
        let outputs = model.forward_batch(&samples)?;
        let read = outputs.column_iter().map(|output| output.argmax().0);
        right += read.zip(labels).filter(|&(read, &label)| read == usize::from(label)).count();
    }
    Ok(right)
}

/// Chooses the first image of each label, in label order, and then other images in file order.
fn choose(labels: &[u8], count: usize) -> Vec<usize> {
    let mut first: Vec<usize> =
        (0..=u8::MAX).filter_map(|label| labels.iter().position(|&other| other == label)).collect();
    let mut others: Vec<usize> = (0..labels.len()).collect();
    others.retain(|index| !first.contains(index));
    first.append(&mut others);
    first.truncate(count);
    first
}

/// A digit with its explanations.
struct Digit {
    label: u8,
    input: Vec<f32>,
    epsilon: Explanation<f32>,
    relative: Explanation<f32>,
    /// The explanation under the rule from the command line.
    chosen: Explanation<f32>,
}

fn explain(
    model: &Sequential<f32>,
    data: &Dataset,
    options: &Options,
) -> Result<Vec<Digit>, relprop::Error> {
    let (epsilon, relative, rule) = (
        model.explainer(Rule::Epsilon)?,
        model.explainer(Rule::Relative)?,
        model.explainer(options.rule)?,
    );
    let chosen = choose(&data.labels, options.count);
    let digits = chosen
        .iter()
        .filter_map(|&index| Some((data.images.iter().nth(index)?, *data.labels.get(index)?)));
    let explained = digits.map(|(image, label)| {
        let input: Vec<f32> = scaled(image).collect();
        let sample = DVector::from_column_slice(&input);
        let (epsilon, relative, chosen) =
            (epsilon.explain(&sample)?, relative.explain(&sample)?, rule.explain(&sample)?);
        Ok(Digit { label, input, epsilon, relative, chosen })
    });
    explained.collect()
}

impl Digit {
    /// The probability of the prediction in percent, if the model gives one.
    fn percent(&self) -> Option<f32> {
        self.chosen
            .probabilities()
            .and_then(|all| all.get(self.chosen.predicted()))
            .map(|probability| 100.0 * probability)
    }

    fn print(&self, out: &mut impl Write, columns: usize) -> Result<(), Failure> {
        let explanation = &self.chosen;
        let predicted = explanation.predicted();
        write!(out, "\ndigit {}, read as {predicted}", self.label)?;
        if let Some(percent) = self.percent() {
            write!(out, " ({percent:.1} %)")?;
        }
        write!(out, "\n  strongest pixels (row, column) by {}:\n   ", explanation.rule())?;
        // The shares are kept with a separate power of two, which the printed relevance includes.
        let scale = f64::from(explanation.exponent()).exp2();
        for pixel in explanation.top(predicted, STRONGEST)? {
            let (row, column) = (pixel.input / columns, pixel.input % columns);
            let relevance = f64::from(pixel.relevance) * scale;
            // `Relative` gives relevances far below 1, which fixed decimals would show as zero.
            if relevance.abs() < 1e-3 {
                write!(out, " ({row}, {column}) {relevance:+.3e}")?;
            } else {
                write!(out, " ({row}, {column}) {relevance:+.4}")?;
            }
        }
        writeln!(out, "\n{}", explanation.ledger(predicted)?)?;
        Ok(())
    }
}

const WHITE: Rgb = [255; 3];
const BLACK: Rgb = [0; 3];
const GRAY: Rgb = [170; 3];

/// The size of a digit's pixel in the picture.
const CELL: usize = 3;
/// The size of a letter's dot in the picture.
const TEXT: usize = 2;
const LINE: usize = 10 * TEXT;
const GAP: usize = 12;
const MARGIN: usize = 16;
/// The width of the text to the left of each row.
const NAMES: usize = 124;
/// The space between groups of columns.
const GROUP: usize = 14;

/// Draws one row per digit: the input, the maps of the prediction under two rules, and one map per
/// output.
fn draw(
    digits: &[Digit],
    rows: usize,
    columns: usize,
    rule: &str,
) -> Result<Canvas, relprop::Error> {
    let title = "Which pixels speak for and against each digit: \
                 relevance of every pixel to the network's outputs";
    let legend = "white: none. Each map is scaled by its own strongest pixel.";
    let outputs = digits.first().map_or(0, |digit| digit.epsilon.output().len().min(MAPS));
    let (tile, step) = (columns * CELL, columns * CELL + GAP);
    let height = (rows * CELL).max(3 * LINE) + GAP;
    let left = |column: usize| {
        // The gaps between groups come before columns 1 and 3.
        MARGIN + NAMES + column * step + GROUP * (usize::from(column > 0) + usize::from(column > 2))
    };
    let below = MARGIN + 4 * LINE + height * digits.len();
    let width = left(3 + outputs).max(2 * MARGIN + text_width(title, TEXT)).max(1300);
    let mut canvas = Canvas::new(width, below + 2 * LINE + MARGIN, WHITE)?;

    canvas.draw_text(MARGIN, MARGIN, title, TEXT, BLACK);
    let groups = [
        (1, "prediction by".to_owned()),
        (3, format!("each output 0 to {} by {rule}", outputs.saturating_sub(1))),
    ];
    for (column, text) in &groups {
        canvas.draw_text(left(*column), MARGIN + 3 * LINE / 2, text, TEXT, BLACK);
    }
    let names = ["input", "epsilon", "relative"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..outputs).map(|k| k.to_string()));
    for (column, name) in names.enumerate() {
        let indent = tile.saturating_sub(text_width(&name, TEXT)) / 2;
        canvas.draw_text(left(column) + indent, MARGIN + 5 * LINE / 2, &name, TEXT, BLACK);
    }

    for (row, digit) in digits.iter().enumerate() {
        let top = MARGIN + 4 * LINE + row * height;
        let predicted = digit.chosen.predicted();
        let wrong = predicted != usize::from(digit.label);
        canvas.draw_text(MARGIN, top + 4, &format!("digit {}", digit.label), TEXT, BLACK);
        let color = if wrong { diverging(1.0) } else { BLACK };
        canvas.draw_text(MARGIN, top + 4 + LINE, &format!("read as {predicted}"), TEXT, color);
        if let Some(percent) = digit.percent() {
            canvas.draw_text(MARGIN, top + 4 + 2 * LINE, &format!("{percent:.1} %"), TEXT, BLACK);
        }
        canvas.draw_map(left(0), top, &digit.input, columns, CELL, sequential);
        let maps = [(&digit.epsilon, predicted), (&digit.relative, predicted)];
        for (column, (explanation, target)) in
            maps.into_iter().chain((0..outputs).map(|k| (&digit.chosen, k))).enumerate()
        {
            let x = left(column + 1);
            // A black frame highlights the map of the prediction.
            let (frame, color) =
                if column > 1 && target == predicted { (2, BLACK) } else { (1, GRAY) };
            canvas.fill_rect(
                x - frame,
                top - frame,
                tile + 2 * frame,
                rows * CELL + 2 * frame,
                color,
            );
            canvas.draw_map(
                x,
                top,
                explanation.relevance(target)?.as_slice(),
                columns,
                CELL,
                diverging,
            );
        }
    }

    let bar: usize = 200;
    let words = ["blue: against", "red: for"];
    let mut x = MARGIN;
    let y = below + LINE / 2;
    canvas.draw_text(x, y, words[0], TEXT, BLACK);
    x += text_width(words[0], TEXT) + GAP;
    for step in 0..bar {
        canvas.fill_rect(
            x + step,
            y,
            1,
            7 * TEXT,
            diverging(2.0 * step as f64 / (bar - 1) as f64 - 1.0),
        );
    }
    x += bar + GAP;
    canvas.draw_text(x, y, words[1], TEXT, BLACK);
    x += text_width(words[1], TEXT) + 2 * GAP;
    canvas.draw_text(x, y, legend, TEXT, BLACK);
    Ok(canvas)
}
