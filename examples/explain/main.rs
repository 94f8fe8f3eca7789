//! Explains a model of your own: `cargo run --release --example explain --all-features -- --help`.

mod file;
mod hints;
mod json;
mod labels;
mod model;
mod options;
mod picture;
mod report;
mod rules;
mod samples;
mod table;
mod work;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use relprop::{Explanation, Finding};

use file::OutFile;
use json::Json;
use options::Options;
use picture::Picture;
use samples::Samples;
use work::Work;

/// Whatever is said to the user in the end.
type Failure = Box<dyn std::error::Error>;

/// The command line itself is wrong.
#[derive(Debug)]
struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

fn usage(text: impl Into<String>) -> Failure {
    Usage(text.into()).into()
}

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(std::env::args_os().skip(1), &mut out);
    // What was written comes before what is said of it.
    drop(out);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has read enough of it.
        Err(failure) if is_closed(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("explain: {failure}");
            if failure.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn is_closed(failure: &Failure) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn run(arguments: impl Iterator<Item = OsString>, out: &mut impl Write) -> Result<(), Failure> {
    let Some(options) = Options::parse(arguments)? else {
        out.write_all(options::help().as_bytes())?;
        return Ok(out.flush()?);
    };
    let rule = rules::rule(&options)?;
    let (model, merged) = model::load(&options)?.canonize()?;
    if !merged.is_empty() {
        eprintln!("{} batch norms merged into their neighbors", merged.len());
    }
    let samples = Samples::read(&options, model.input_shape())?;
    let findings: Vec<Finding> = model.check(&*rule)?.into_iter().map(hints::in_finding).collect();
    let work = Work::new(&model, &*rule, &options.target, &samples)?;

    let mut results = Results::begin(&options, &samples, &findings, out)?;
    let bar = bar(&options, samples.count(), work.part())?;
    for part in work.parts() {
        let first = part.start;
        for (number, explanation) in work.explain(part)?.iter().enumerate() {
            results.add(first + number, explanation)?;
            bar.inc(1);
        }
        results.flush()?;
        if results.are_complete() {
            break;
        }
    }
    bar.finish_and_clear();
    results.finish()
}

/// For many samples, where their text does not run over the same screen.
fn bar(options: &Options, samples: usize, part: usize) -> Result<ProgressBar, Failure> {
    let text = options.json.as_deref() != Some(Path::new("-")) && io::stdout().is_terminal();
    let bar = if samples > part && !text {
        ProgressBar::new(samples as u64)
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos} of {len} samples, {eta} left")?);
    Ok(bar)
}

/// Where the explanations go, each as soon as it is there.
struct Results<'a, W: Write> {
    samples: &'a Samples,
    top: usize,
    text: Text<'a, W>,
    json: Option<Json<OutFile>>,
    picture: Option<(Picture<'a>, OutFile)>,
    /// A picture that fails is no reason to print nothing.
    undrawn: Option<Failure>,
}

/// What is written to the standard output.
enum Text<'a, W: Write> {
    Tables(&'a mut W),
    Json(Json<&'a mut W>),
    /// Its reader has read enough, which is no reason to write and draw nothing.
    Closed,
}

impl<'a, W: Write> Results<'a, W> {
    fn begin(
        options: &Options,
        samples: &'a Samples,
        findings: &[Finding],
        out: &'a mut W,
    ) -> Result<Self, Failure> {
        let picture = options.png.as_deref().map(OutFile::create).transpose()?;
        let picture = picture.map(|file| (Picture::new(samples, options.top), file));
        let (text, json) = match options.json.as_deref() {
            Some(path) if path == Path::new("-") => match Json::begin(out, samples, findings) {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => (Text::Closed, None),
                json => (Text::Json(json?), None),
            },
            path => {
                let file = path.map(OutFile::create).transpose()?;
                (
                    Text::Tables(out),
                    file.map(|file| Json::begin(file, samples, findings)).transpose()?,
                )
            }
        };
        let mut results = Self { samples, top: options.top, text, json, picture, undrawn: None };
        results.write(|text| match text {
            Text::Tables(out) => report::findings(*out, findings),
            Text::Json(_) | Text::Closed => Ok(()),
        })?;
        Ok(results)
    }

    fn add(&mut self, number: usize, explanation: &Explanation<f32>) -> Result<(), Failure> {
        if let Some(json) = &mut self.json {
            json.add(explanation)?;
        }
        if let (Some((picture, _)), None) = (&mut self.picture, &self.undrawn) {
            self.undrawn = picture.add(number, explanation).err();
        }
        let (samples, top) = (self.samples, self.top);
        self.write(|text| match text {
            Text::Tables(out) => explanation.targets().try_for_each(|target| {
                report::table(*out, number, explanation, target, samples, top)
            }),
            Text::Json(json) => Ok(json.add(explanation)?),
            Text::Closed => Ok(()),
        })
    }

    fn write(
        &mut self,
        write: impl FnOnce(&mut Text<'a, W>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match write(&mut self.text) {
            Err(failure) if is_closed(&failure) => {
                self.text = Text::Closed;
                Ok(())
            }
            done => done,
        }
    }

    /// Shows what there is so far.
    fn flush(&mut self) -> Result<(), Failure> {
        self.write(|text| match text {
            Text::Tables(out) => Ok(out.flush()?),
            Text::Json(_) | Text::Closed => Ok(()),
        })
    }

    /// Whether nobody wants any more.
    fn are_complete(&self) -> bool {
        matches!(self.text, Text::Closed) && self.json.is_none() && self.picture.is_none()
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.write(|text| match std::mem::replace(text, Text::Closed) {
            Text::Tables(out) => Ok(out.flush()?),
            Text::Json(json) => Ok(json.finish()?.flush()?),
            Text::Closed => Ok(()),
        })?;
        if let Some(json) = self.json {
            json.finish()?.finish()?;
        }
        if let Some(failure) = self.undrawn {
            return Err(failure);
        }
        if let Some((picture, mut file)) = self.picture {
            let (canvas, left) = picture.finish()?;
            file.write_all(&canvas.to_png()?)?;
            let path = file.finish()?;
            if left > 0 {
                eprintln!(
                    "{}: {left} more explanations had no room in the picture",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
