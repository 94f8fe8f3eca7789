//! Explanations as text for people.

use std::io::Write;

use relprop::{Cause, Explanation, Finding};

use super::samples::Samples;
use crate::Failure;

/// What the check of the model and the rule found.
pub fn findings(out: &mut impl Write, findings: &[Finding]) -> Result<(), Failure> {
    for finding in findings {
        writeln!(out, "check: {finding}")?;
    }
    Ok(())
}

/// The inputs with the largest relevance for and against an output, and the causes that absorbed the
/// rest.
pub fn table(
    out: &mut impl Write,
    number: usize,
    explanation: &Explanation<f32>,
    target: usize,
    samples: &Samples,
    top: usize,
) -> Result<(), Failure> {
    writeln!(out, "\n{}", title(number, explanation, target))?;
    for contribution in explanation.top(target, top)? {
        writeln!(
            out,
            "  {:>12}  {}",
            shown(contribution.relevance.into()),
            samples.name(contribution.input)
        )?;
    }
    let ledger = explanation.ledger(target)?;
    writeln!(out, "  {:>12}  to all inputs", shown(ledger.inputs()))?;
    for cause in ledger.causes() {
        if ledger.total(cause) != 0.0 {
            writeln!(out, "  {:>12}  to {}", shown(ledger.total(cause)), destination(cause))?;
        }
    }
    Ok(())
}

/// The number of the sample, the output, and its value.
pub fn title(number: usize, explanation: &Explanation<f32>, target: usize) -> String {
    let output = shown(explanation.output()[target].into());
    let probability = explanation
        .probabilities()
        .map_or(String::new(), |all| format!(", probability {:.1} %", 100.0 * all[target]));
    format!("sample {number}, output {target}: {output}{probability}")
}

/// A number with six decimals, or with an exponent where those would all be 0.
pub fn shown(value: f64) -> String {
    if value == 0.0 || value.abs() >= 5e-7 { format!("{value:.6}") } else { format!("{value:.1e}") }
}

/// The name of a cause, after "to".
fn destination(cause: Cause) -> String {
    match cause {
        Cause::Bias => "biases".to_owned(),
        Cause::Stabilizer => "the stabilizer".to_owned(),
        Cause::Empty => "nothing: no input had a part of that sign".to_owned(),
        Cause::Dead => "nothing: the total was zero".to_owned(),
        Cause::Rest => "nothing: the rule's shares do not sum to 1".to_owned(),
        other => other.to_string(),
    }
}
