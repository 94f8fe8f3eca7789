//! The command `relprop`: its subcommands explain a model's outputs,
//! check a model with a rule, and show what a model file contains.

mod check;
mod explain;
mod file;
mod guess;
mod hints;
mod inspect;
mod model;
mod names;
mod rules;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An error in the form in which the user sees it.
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

/// Explains the outputs of neural networks by Layer-wise Relevance Propagation (LRP).
#[derive(Debug, Parser)]
#[command(
    name = "relprop",
    version,
    max_term_width = 100,
    after_help = EXIT_STATUS,
    // A missing subcommand is an error that names the subcommands.
    subcommand_required = true,
    arg_required_else_help = false
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Explain(explain::Options),
    Check(check::Options),
    Inspect(inspect::Options),
}

const EXIT_STATUS: &str = "Exit status: 0 on success, even if the output is closed early, as by \
    head; 1 if a file cannot be read, used or written; 2 if the command line is wrong. Errors are \
    printed to standard error.";

fn main() -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let done = run(std::env::args_os(), &mut out);
    // Flushes the output first, so that an error comes after it.
    drop(out);
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // The output was closed early, as by `head`.
        Err(failure) if is_closed(&failure) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {}", failure.to_string().trim_end());
            if failure.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn is_closed(failure: &Failure) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn run(arguments: impl Iterator<Item = OsString>, out: &mut impl Write) -> Result<(), Failure> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            return Err(usage(text.strip_prefix("error: ").unwrap_or(&text)));
        }
        // The help and the version.
        Err(error) => {
            write!(out, "{}", error.render())?;
            return Ok(out.flush()?);
        }
    };
    match cli.command {
        Command::Explain(options) => explain::run(&options, out),
        Command::Check(options) => check::run(&options, out),
        Command::Inspect(options) => inspect::run(&options, out),
    }
}

#[cfg(test)]
mod tests;
