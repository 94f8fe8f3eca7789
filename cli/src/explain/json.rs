//! Explanations for programs, written one by one: the schema is `docs/json.md`.

use std::io::{self, Write};

use relprop::{Explanation, Finding};
use serde::Serialize;

use super::samples::Samples;

/// The version of the schema. A change that breaks programs raises it.
const SCHEMA: u32 = 2;

/// One JSON object, written part by part.
pub struct Json<W: Write> {
    out: W,
    samples: usize,
}

impl<W: Write> Json<W> {
    pub fn begin(mut out: W, samples: &Samples, findings: &[Finding]) -> io::Result<Self> {
        write!(out, "{{\"schema\":{SCHEMA}")?;
        field(&mut out, "shape", &samples.shape)?;
        field(&mut out, "names", &samples.names)?;
        field(&mut out, "check", findings)?;
        out.write_all(b",\"samples\":[")?;
        Ok(Self { out, samples: 0 })
    }

    pub fn add(&mut self, explanation: &Explanation<f32>) -> io::Result<()> {
        self.out.write_all(if self.samples == 0 { b"\n" } else { b",\n" })?;
        self.samples += 1;
        Ok(serde_json::to_writer(&mut self.out, explanation)?)
    }

    /// Closes the object.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(b"\n]}\n")?;
        Ok(self.out)
    }
}

fn field(out: &mut impl Write, name: &str, value: &(impl Serialize + ?Sized)) -> io::Result<()> {
    write!(out, ",\"{name}\":")?;
    Ok(serde_json::to_writer(out, value)?)
}
