//! `relprop explain`: how much each input of a sample contributed to the outputs.

mod json;
mod labels;
mod options;
mod picture;
mod report;
mod results;
mod samples;
mod table;
mod work;

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};

use crate::{Failure, hints};
pub use options::Options;
use results::Results;
use samples::Samples;
use work::Work;

pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    options.check()?;
    let rule = options.rule.rule()?;
    let model = options.model.merged()?;
    let samples = Samples::read(&options.samples, model.input_shape())?;
    let findings = hints::findings(&model, &*rule)?;
    let work = Work::new(&model, &*rule, &options.results.target, &samples)?;

    // Output files are created only after all inputs have been read and checked.
    let mut results = Results::begin(&options.results, &samples, &findings, out)?;
    let bar = bar(options, samples.count(), work.part())?;
    for part in work.parts() {
        let first = part.start;
        for (number, explanation) in work.explain(part)?.iter().enumerate() {
            results.add(first + number, explanation)?;
            bar.inc(1);
        }
        results.flush()?;
        // The reader of the output has stopped reading, and no file needs the other samples.
        if results.are_complete() {
            break;
        }
    }
    bar.finish_and_clear();
    results.finish()
}

/// A progress bar if there are many samples, unless the text is printed to the same screen.
fn bar(options: &Options, samples: usize, part: usize) -> Result<ProgressBar, Failure> {
    let text =
        options.results.json.as_deref() != Some(Path::new("-")) && io::stdout().is_terminal();
    let bar = if samples > part && !text {
        ProgressBar::new(samples as u64)
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos} of {len} samples, {eta} left")?);
    Ok(bar)
}
