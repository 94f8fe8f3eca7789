//! relprop's side of the comparison with other tools. `compare.py` starts this program and sends it
//! commands.
//!
//! The arguments are a model in a safetensors or ONNX file, its samples in a safetensors file, the
//! targets (`all` or `predicted`), the order of accumulation (`optimal`, `forward` or `reverse`),
//! how to explain the samples (`single` or `batch`) and the rule (`epsilon`, `epsilon-plus-flat` or
//! `epsilon-gamma-box`, with a box from -3 to 3). The program then reads one command per line:
//!
//! - `run N` explains N samples in turn, or the batch N times, including the relevance of every
//!   target, and prints the seconds.
//! - `write PATH` writes the outputs and the relevance of every target for each sample, as f32.
//! - `memory` prints the peak memory of the process in bytes, or 0 if the system does not report
//!   it.

use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use relprop::io::StateDict;
use relprop::{
    Accumulation, Composite, Explainer, Explanation, Graph, Rule, Sequential, Targets, Workspace,
};

struct Call {
    explainer: Explainer<f32>,
    workspace: Workspace<f32>,
    samples: Vec<f32>,
    batch: bool,
    relevance: Vec<f32>,
}

impl Call {
    fn new(arguments: &[String]) -> Result<Self, Box<dyn Error>> {
        let [model, samples, targets, order, how, rule] = arguments else {
            return Err("usage: MODEL SAMPLES TARGETS ORDER single|batch RULE".into());
        };
        let targets = match targets.as_str() {
            "all" => Targets::All,
            "predicted" => Targets::Predicted,
            other => return Err(format!("unknown targets: {other}").into()),
        };
        let order = match order.as_str() {
            "optimal" => Accumulation::Optimal,
            "forward" => Accumulation::Forward,
            "reverse" => Accumulation::Reverse,
            other => return Err(format!("unknown order: {other}").into()),
        };
        let is_onnx = Path::new(model).extension().is_some_and(|e| e == "onnx");
        let model = if is_onnx {
            Graph::<f32>::read_onnx(model)?
        } else {
            Sequential::read_safetensors(model)?.into()
        };
        let (model, _) = model.canonize()?;
        let explainer = match rule.as_str() {
            "epsilon" => model.explainer(Rule::Epsilon)?,
            "epsilon-plus-flat" => model.explainer(Composite::epsilon_plus_flat())?,
            "epsilon-gamma-box" => model.explainer(Composite::epsilon_gamma_box(-3.0, 3.0)?)?,
            other => return Err(format!("unknown rule: {other}").into()),
        };
        let explainer = explainer.accumulation(order).targets(targets)?;
        let (_, samples) = StateDict::open(samples)?.tensor("samples")?;
        let relevance = vec![0.0; explainer.model().inputs()];
        Ok(Self {
            workspace: explainer.workspace(),
            explainer,
            samples,
            batch: how == "batch",
            relevance,
        })
    }

    /// Explains samples in turn, or the batch, `times` times. Returns the seconds that this takes.
    fn run(&mut self, times: usize) -> Result<f64, relprop::Error> {
        let inputs = self.explainer.model().inputs();
        let start = Instant::now();
        if self.batch {
            for _ in 0..times {
                for explanation in
                    self.explainer.explain_batch_into(&self.samples, &mut self.workspace)?
                {
                    read(explanation, &mut self.relevance)?;
                }
            }
        } else {
            for sample in self.samples.chunks_exact(inputs).cycle().take(times) {
                read(
                    self.explainer.explain_into(sample, &mut self.workspace)?,
                    &mut self.relevance,
                )?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn write(&mut self, path: &str) -> Result<(), Box<dyn Error>> {
        let mut bytes = Vec::new();
        for explanation in self.explainer.explain_batch_into(&self.samples, &mut self.workspace)? {
            bytes.extend(explanation.output().iter().flat_map(|v| v.to_le_bytes()));
            for target in explanation.targets() {
                bytes.extend(explanation.relevance(target)?.iter().flat_map(|v| v.to_le_bytes()));
            }
        }
        Ok(std::fs::write(path, bytes)?)
    }
}

/// Computes the relevance of every target, as the other tools do.
fn read(explanation: &Explanation<f32>, relevance: &mut [f32]) -> Result<(), relprop::Error> {
    for target in explanation.targets() {
        explanation.relevance_into(target, relevance)?;
        black_box(&relevance);
    }
    Ok(())
}

/// The peak resident set size in bytes (`VmHWM` on Linux), or 0 on other systems.
fn most_memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next())
        .and_then(|kilobytes| kilobytes.parse::<usize>().ok())
        .unwrap_or(0)
        * 1024
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` runs this target with `--bench`. There is nothing to measure without a model.
    if arguments.is_empty() || arguments.iter().any(|argument| argument == "--bench") {
        println!("benches/peers/compare.py runs this comparison.");
        return Ok(());
    }
    let mut call = Call::new(&arguments)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ') {
            Some(("run", times)) => println!("{:e}", call.run(times.parse()?)?),
            Some(("write", path)) => {
                call.write(path)?;
                println!("written");
            }
            None if line == "memory" => println!("{}", most_memory()),
            _ => return Err("unknown command; use run N, write PATH or memory".into()),
        }
        std::io::stdout().flush()?;
    }
    Ok(())
}
