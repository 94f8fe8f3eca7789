//! Explanations as text for people and as JSON for programs.

use std::io::Write;

use relprop::{Cause, Explanation, Finding, Ledger};
use serde_json::{Value, json};

use crate::Failure;
use crate::samples::Samples;

/// The inputs that speak loudest for and against an output, and where the rest of the relevance went.
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
        writeln!(out, "  {:>12}  {}", shown(contribution.relevance.into()), samples.name(contribution.input))?;
    }
    let ledger = explanation.ledger(target)?;
    writeln!(out, "  {:>12}  to all inputs", shown(ledger.inputs()))?;
    for (what, cause) in CAUSES {
        if ledger.total(cause) != 0.0 {
            writeln!(out, "  {:>12}  to {what}", shown(ledger.total(cause)))?;
        }
    }
    Ok(())
}

/// Which sample and output it is, and what the model says.
pub fn title(number: usize, explanation: &Explanation<f32>, target: usize) -> String {
    let output = shown(explanation.output()[target].into());
    let probability =
        explanation.probabilities().map_or(String::new(), |all| format!(", probability {:.1} %", 100.0 * all[target]));
    format!("sample {number}, output {target}: {output}{probability}")
}

/// With six digits behind the point, or as many as show that it is not 0.
pub fn shown(value: f64) -> String {
    if value == 0.0 || value.abs() >= 5e-7 { format!("{value:.6}") } else { format!("{value:.1e}") }
}

const CAUSES: [(&str, Cause); 5] = [
    ("biases", Cause::Bias),
    ("the stabiliser", Cause::Stabilizer),
    ("groups of a rule without members", Cause::Empty),
    ("totals of zero", Cause::Dead),
    ("what a rule's shares leave over", Cause::Rest),
];

pub fn json(explanations: &[Explanation<f32>], given: &Samples, findings: &[Finding]) -> Result<Value, Failure> {
    let mut samples = Vec::new();
    for (number, explanation) in explanations.iter().enumerate() {
        for target in explanation.targets() {
            let mut sample = json!({
                "sample": number,
                "outputs": explanation.output().as_slice(),
                "target": target,
                "relevance": explanation.relevance(target)?.as_slice(),
                "ledger": accounts(&explanation.ledger(target)?),
            });
            if let Some(probabilities) = explanation.probabilities() {
                sample["probabilities"] = json!(probabilities.as_slice());
            }
            samples.push(sample);
        }
    }
    let check: Vec<Value> = findings
        .iter()
        .map(|f| json!({"code": f.code.to_string(), "layer": f.layer, "kind": f.kind, "sentence": f.sentence, "advice": f.advice}))
        .collect();
    let mut all = json!({ "samples": samples, "check": check });
    if !given.names.is_empty() {
        all["names"] = json!(given.names);
    }
    Ok(all)
}

fn accounts(ledger: &Ledger) -> Value {
    // Adding 0 makes 0 of -0.
    let [bias, stabilizer, empty, dead, rest] = CAUSES.map(|(_, cause)| ledger.total(cause) + 0.0);
    json!({
        "output": ledger.output(), "inputs": ledger.inputs(), "bias": bias, "stabilizer": stabilizer, "empty": empty, "dead": dead,
        "rest": rest, "rounding": ledger.rounding(),
    })
}
