//! Explains what one of torchvision's image networks sees in a photograph.
//!
//! `cargo run --release --example imagenet --features examples -- --help` shows how to export the weights and lists the
//! options.

mod torchvision;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader};
use relprop::heatmap::{Canvas, Rgb, text_width};
use relprop::io::StateDict;
use relprop::nalgebra::DVector;
use relprop::{Cause, Composite, Explanation, Sequential, Shape, ZBox};

use torchvision::architecture;

const HELP: &str = "\
Explains what an image network sees in a photograph: its five likeliest classes, and which pixels
speak for and against each of them.

usage: cargo run --release --example imagenet --features examples -- MODEL PHOTO [options]

  MODEL           a safetensors file: a VGG, ResNet, ResNeXt or Wide ResNet from torchvision, or
                  any model with its architecture in the file, for images with three channels,
                  normalized as in torchvision
  PHOTO           a PNG or JPEG file; the square in its middle is used
  --rule RULE     epsilon-plus-flat, epsilon-plus, epsilon-gamma-box, epsilon-alpha2-beta1 or
                  epsilon-alpha2-beta1-flat (default: epsilon-plus-flat)
  --count N       how many classes to explain, 1 to 20 (default: 5)
  --labels FILE   the names of the classes, one per line (default: those in the model's file)
  --out FILE      where to write the picture (default: imagenet-relevance.png)
  --help          print this text

Three statements of Python write a model file that contains the names of the classes:

  import torchvision, safetensors.torch
  weights = torchvision.models.ResNet50_Weights.DEFAULT
  safetensors.torch.save_file(
      torchvision.models.resnet50(weights=weights).state_dict(), 'resnet50.safetensors',
      {'labels': '\\n'.join(weights.meta['categories'])})
";

/// The mean and standard deviation of each channel that torchvision's networks are trained with.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const DEVIATION: [f32; 3] = [0.229, 0.224, 0.225];

/// Any error, as it is shown to the user.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("imagenet: {failure}");
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
    let weights = StateDict::open(&options.model)?;
    let written =
        build(&weights).map_err(|error| format!("{}: {error}", options.model.display()))?;
    // The published rules are defined for networks without batch norms.
    let (model, merged) = written.canonize()?;
    writeln!(out, "{} parameters, {} batch norms merged", written.parameters(), merged.len())?;
    // Only the merged model is needed from here on; free the weights of the other one.
    drop(written);
    let photo = Photo::open(&options.photo, model.input_shape())?;
    let labels = options.labels(&weights)?;

    // The targets are the likeliest classes, so they must be known before the explainer is made.
    let outputs = model.forward(&DVector::from_column_slice(&photo.values))?;
    let likely = largest(outputs.as_slice(), options.count);
    let explainer = model.explainer(options.composite(photo.shape)?)?.targets(likely.clone())?;
    let start = Instant::now();
    let explanation = explainer.explain_slice(&photo.values)?;
    writeln!(
        out,
        "{} outputs by {} in {:.0} ms\n",
        likely.len(),
        options.rule,
        start.elapsed().as_secs_f64() * 1e3
    )?;

    writeln!(out, "  {:>7}  {:>8}  {:>8}  {:>8}", "", "output", "pixels'", "biases'")?;
    let mut classes = Vec::new();
    for target in likely {
        let label = labels.get(target).cloned().unwrap_or_else(|| format!("class {target}"));
        let class = Class { target, label, percent: percent(&explanation, target) };
        let ledger = explanation.ledger(target)?;
        let (output, pixels, biases) =
            (ledger.output(), ledger.inputs(), ledger.total(Cause::Bias));
        writeln!(
            out,
            "  {:>7}  {output:8.3}  {pixels:8.3}  {biases:8.3}  {}",
            class.percent, class.label
        )?;
        classes.push(class);
    }
    draw(&photo, &explanation, &classes)?.write_png(&options.out)?;
    writeln!(out, "\nwrote {}", options.out.display())?;
    Ok(())
}

/// The command line.
struct Options {
    model: PathBuf,
    photo: PathBuf,
    rule: String,
    count: usize,
    labels: Option<PathBuf>,
    out: PathBuf,
}

impl Options {
    /// Parses the arguments. `None` means that the user asked for help or gave no files.
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, String> {
        let (mut files, mut rule, mut count, mut labels) =
            (Vec::new(), "epsilon-plus-flat".to_owned(), 5, None);
        let mut out = PathBuf::from("imagenet-relevance.png");
        while let Some(argument) = arguments.next() {
            let flag = argument.to_string_lossy().into_owned();
            if flag == "--help" || flag == "-h" {
                return Ok(None);
            }
            if !flag.starts_with("--") {
                files.push(PathBuf::from(argument));
                continue;
            }
            if !["--rule", "--count", "--labels", "--out"].contains(&flag.as_str()) {
                return Err(format!("unknown option {flag} (--help lists the options)"));
            }
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let text = value.to_string_lossy().into_owned();
            match flag.as_str() {
                "--rule" => rule = text,
                "--labels" => labels = Some(value.into()),
                "--out" => out = value.into(),
                _ => {
                    let parsed = text.parse().ok().filter(|count| (1..=20).contains(count));
                    count = parsed.ok_or_else(|| {
                        format!("--count needs a whole number from 1 to 20, not {text}")
                    })?;
                }
            }
        }
        match <[PathBuf; 2]>::try_from(files) {
            Ok([model, photo]) => Ok(Some(Self { model, photo, rule, count, labels, out })),
            Err(files) if files.is_empty() => Ok(None),
            Err(_) => Err("give one model and one photograph (--help shows the usage)".to_owned()),
        }
    }

    fn composite(&self, input: Shape) -> Result<Composite<f32>, Failure> {
        let composite = match self.rule.as_str() {
            "epsilon-plus" => Composite::epsilon_plus(),
            "epsilon-plus-flat" => Composite::epsilon_plus_flat(),
            "epsilon-alpha2-beta1" => Composite::epsilon_alpha2_beta1(),
            "epsilon-alpha2-beta1-flat" => Composite::epsilon_alpha2_beta1_flat(),
            "epsilon-gamma-box" => {
                // Each channel has its own normalization, and therefore its own box.
                let [low, high] =
                    [0.0, 1.0].map(|v| spread(input, |channel| f64::from(normalized(v, channel))));
                Composite::epsilon_gamma_box(0.0, 0.0)?.first(ZBox::per_input(low, high)?)
            }
            other => return Err(format!("unknown rule {other} (--help lists the rules)").into()),
        };
        Ok(composite)
    }

    fn labels(&self, weights: &StateDict) -> Result<Vec<String>, Failure> {
        let text = match &self.labels {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("{}: {error}", path.display()))?,
            None => weights.metadata("labels").unwrap_or_default().to_owned(),
        };
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn build(weights: &StateDict) -> Result<Sequential<f32>, Failure> {
    if weights.has_architecture() {
        return Ok(weights.to_model()?);
    }
    let text = architecture(weights)
        .ok_or("neither a VGG or ResNet from torchvision nor a model with its architecture")?;
    Ok(weights.model_of(&text, Some([3, 224, 224].into()))?)
}

fn normalized(value: f32, channel: usize) -> f32 {
    (value - MEAN[channel]) / DEVIATION[channel]
}

/// Repeats a value per channel for all of its pixels.
fn spread<V: Clone>(shape: Shape, value: impl Fn(usize) -> V) -> Vec<V> {
    let pixels = shape.size() / shape.channels();
    (0..shape.channels()).flat_map(|channel| vec![value(channel); pixels]).collect()
}

/// A photograph, prepared for the network.
struct Photo {
    shape: Shape,
    height: usize,
    width: usize,
    /// The network's input: normalized, channels x height x width.
    values: Vec<f32>,
    /// The same pixels before normalization, in the range 0 to 1.
    pixels: Vec<f32>,
}

impl Photo {
    /// Opens and crops a photograph as torchvision does for 224 x 224 inputs: resizes the shorter
    /// side to 256 pixels and takes the center.
    fn open(path: &Path, shape: Shape) -> Result<Self, Failure> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let &[3, height, width] = shape.dims() else {
            return Err(format!(
                "the model takes {shape} inputs, not the three channels of a photograph"
            )
            .into());
        };
        let photo = upright(path).map_err(|error| named(&error))?;
        let side = |pixels: usize| u32::try_from(pixels).map_err(|error| named(&error));
        let (rows, columns) = (side(height)?, side(width)?);
        let shorter = rows.max(columns).saturating_mul(8) / 7;
        let scale = f64::from(shorter) / f64::from(photo.width().min(photo.height()).max(1));
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // The sides of a photograph are far below 2^32.
        let [wide, tall] = [photo.width(), photo.height()]
            // Rounding must not make a side shorter than the crop.
            .map(|side| ((f64::from(side) * scale).round() as u32).max(shorter));
        let whole = photo.resize_exact(wide, tall, FilterType::Triangle);
        let photo =
            whole.crop_imm((wide - columns) / 2, (tall - rows) / 2, columns, rows).to_rgb8();
        let of =
            |channel: usize| photo.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 255.0);
        let values = (0..3).flat_map(|channel| of(channel).map(move |v| normalized(v, channel)));
        Ok(Self {
            shape,
            height,
            width,
            values: values.collect(),
            pixels: (0..3).flat_map(of).collect(),
        })
    }
}

/// Reads a picture and rotates it according to its EXIF orientation.
fn upright(path: &Path) -> Result<DynamicImage, image::ImageError> {
    let mut decoder = ImageReader::open(path)?.with_guessed_format()?.into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut photo = DynamicImage::from_decoder(decoder)?;
    photo.apply_orientation(orientation);
    Ok(photo)
}

/// The indices of the `count` largest outputs, in descending order.
fn largest(outputs: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..outputs.len()).collect();
    order.sort_by(|&a, &b| outputs[b].total_cmp(&outputs[a]));
    order.truncate(count);
    order
}

/// A class to explain.
struct Class {
    target: usize,
    label: String,
    percent: String,
}

/// The probability of a class as text, or an empty text if the model gives no probabilities.
fn percent(explanation: &Explanation<f32>, target: usize) -> String {
    let probability = explanation.probabilities().and_then(|all| all.get(target));
    probability.map_or(String::new(), |probability| format!("{:.1} %", 100.0 * probability))
}

const WHITE: Rgb = [255; 3];
const BLACK: Rgb = [0; 3];
/// The size of a letter's dot in the picture.
const TEXT: usize = 2;
const LINE: usize = 10 * TEXT;
/// The space between the parts of the picture.
const GAP: usize = 12;
/// The minimum width of a part, so that the class names fit.
const WIDE: usize = 448;

/// Draws the photograph and the relevance of its pixels to each class.
fn draw(
    photo: &Photo,
    explanation: &Explanation<f32>,
    classes: &[Class],
) -> Result<Canvas, relprop::Error> {
    let (height, width) = (photo.height, photo.width);
    let cell = WIDE.div_ceil(width);
    let part = |caption: &str| {
        let mut canvas = Canvas::new(width * cell, height * cell + LINE, WHITE)?;
        let fits = width * cell / text_width("mm", TEXT) * 2;
        canvas.draw_text(
            0,
            height * cell + LINE / 4,
            &caption.chars().take(fits).collect::<String>(),
            TEXT,
            BLACK,
        );
        Ok::<_, relprop::Error>(canvas)
    };
    let mut first = part("red: for the class, blue: against it")?;
    first.draw_image(0, 0, &photo.pixels, photo.shape, cell)?;
    let mut parts = vec![first];
    for class in classes {
        let mut canvas = part(format!("{} {}", class.percent, class.label).trim())?;
        let relevance = explanation.relevance(class.target)?;
        canvas.draw_overlay(0, 0, &photo.pixels, relevance.as_slice(), photo.shape, cell)?;
        parts.push(canvas);
    }
    Canvas::grid(&parts, 3, GAP, WHITE)
}
