//! `relprop check`: what could make explanations of a model by a rule misleading.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use relprop::Finding;

use crate::Failure;
use crate::file::{OutFile, check_written};
use crate::hints;
use crate::model::ModelOptions;
use crate::rules::RuleOptions;

const AFTER: &str = "The layers are counted after batch norms have been merged into their \
    neighbors. docs/json.md in the repository describes the fields of a finding.\n\n\
    Exit status: 0 if the check has run, even if it has findings; 1 if a file cannot be read or \
    written, or the model or the rule cannot be used; 2 if the command line is wrong. \
    Errors are printed to standard error.";

/// Checks whether a rule's explanations of a model can be misleading.
///
/// The check needs no sample. It prints each finding, with the layer and what to do, or "no
/// findings".
#[derive(Debug, Args)]
#[command(after_help = AFTER)]
pub struct Options {
    #[command(flatten)]
    model: ModelOptions,

    #[command(flatten)]
    rule: RuleOptions,

    /// A JSON file with the findings as an array; - writes to standard output instead of
    /// the text.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    json: Option<PathBuf>,
}

pub fn run(options: &Options, out: &mut impl Write) -> Result<(), Failure> {
    let ModelOptions { model, architecture, .. } = &options.model;
    let read = std::iter::once(model).chain(architecture);
    check_written(read, [("--json", options.json.as_ref())])?;
    let rule = options.rule.rule()?;
    let model = options.model.merged()?;
    let findings = hints::findings(&model, &*rule)?;
    match options.json.as_deref() {
        Some(path) if path == Path::new("-") => json(out, &findings)?,
        path => {
            if let Some(path) = path {
                let mut file = OutFile::create(path)?;
                json(&mut file, &findings)?;
                file.finish()?;
            }
            text(out, &findings)?;
        }
    }
    Ok(out.flush()?)
}

fn json(out: &mut impl Write, findings: &[Finding]) -> Result<(), Failure> {
    serde_json::to_writer(&mut *out, findings).map_err(std::io::Error::from)?;
    Ok(writeln!(out)?)
}

fn text(out: &mut impl Write, findings: &[Finding]) -> Result<(), Failure> {
    if findings.is_empty() {
        writeln!(out, "no findings")?;
    }
    for finding in findings {
        writeln!(out, "{finding}")?;
    }
    Ok(())
}
