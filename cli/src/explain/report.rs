//! Explanations as text for people.

use std::io::Write;

use relprop::{Cause, Contribution, Explanation, Finding};

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
            shown(relevance(explanation, &contribution)),
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

/// The relevance of an input. Shares below the range of f32 are stored without a power of two.
pub fn relevance(explanation: &Explanation<f32>, contribution: &Contribution<f32>) -> f64 {
    f64::from(contribution.relevance) * f64::from(explanation.exponent()).exp2()
}

/// The number of the sample, the output, and its value.
pub fn title(number: usize, explanation: &Explanation<f32>, target: usize) -> String {
    let output = shown(explanation.output()[target].into());
    let probability = explanation
        .probabilities()
        .map_or(String::new(), |all| format!(", probability {:.1} %", 100.0 * all[target]));
    format!("sample {number}, output {target}: {output}{probability}")
}

/// A number with six decimals, or with an exponent if all six would be 0.
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

#[cfg(test)]
mod tests {
    use relprop::nalgebra::{self, DVector, dmatrix};
    use relprop::{Epsilon, Linear, Sequential, Shape};

    use super::*;

    /// Each of these layers divides the relevance by ten billion.
    #[test]
    fn relevances_below_f32_are_shown_as_they_are() {
        let mut builder = Sequential::<f32>::builder();
        for _ in 0..4 {
            builder = builder.layer(Linear::new(dmatrix![1.0], None).unwrap());
        }
        let model = builder.build().unwrap();
        let rule = Epsilon::new(1e10).unwrap();
        let explanation = model.explain(&DVector::from_element(1, 1.0), rule).unwrap();
        assert!(explanation.exponent() < 0);

        let samples = Samples { values: dmatrix![1.0], shape: Shape::from(1), names: Vec::new() };
        let mut text = Vec::new();
        table(&mut text, 0, &explanation, 0, &samples, 1).unwrap();
        let text = String::from_utf8(text).unwrap();
        let first = text.lines().nth(2).unwrap().split_whitespace().next();
        assert_eq!(first, Some("1.0e-40"), "{text}");
    }
}
