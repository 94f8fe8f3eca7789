//! The outputs of `relprop explain`.

use std::io::{ErrorKind, Write};
use std::path::Path;

use relprop::{Explanation, Finding};

use super::json::Json;
use super::options::ResultOptions;
use super::picture::Picture;
use super::report;
use super::samples::Samples;
use crate::file::OutFile;
use crate::{Failure, is_closed};

/// The outputs of the command, to which each explanation is written as soon as it is there.
pub struct Results<'a, W: Write> {
    samples: &'a Samples,
    top: usize,
    text: Text<'a, W>,
    json: Option<Json<OutFile>>,
    picture: Option<(Picture<'a>, OutFile)>,
    /// Why the picture failed, reported after everything else has been written.
    undrawn: Option<Failure>,
}

/// What is written to the standard output.
enum Text<'a, W: Write> {
    Tables(&'a mut W),
    Json(Json<&'a mut W>),
    /// The reader has read enough. Files are still written.
    Closed,
}

impl<'a, W: Write> Results<'a, W> {
    pub fn begin(
        options: &ResultOptions,
        samples: &'a Samples,
        findings: &[Finding],
        out: &'a mut W,
    ) -> Result<Self, Failure> {
        let picture = options.png.as_deref().map(OutFile::create).transpose()?;
        let picture = picture.map(|file| (Picture::new(samples, options.top), file));
        let (text, json) = match options.json.as_deref() {
            // The reader may have stopped before the first byte. A picture is still written.
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

    pub fn add(&mut self, number: usize, explanation: &Explanation<f32>) -> Result<(), Failure> {
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
        // A closed output ends the text, but not the files.
        match write(&mut self.text) {
            Err(failure) if is_closed(&failure) => {
                self.text = Text::Closed;
                Ok(())
            }
            done => done,
        }
    }

    /// Shows the text written so far.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.write(|text| match text {
            Text::Tables(out) => Ok(out.flush()?),
            Text::Json(_) | Text::Closed => Ok(()),
        })
    }

    /// Whether no output needs further explanations.
    pub fn are_complete(&self) -> bool {
        matches!(self.text, Text::Closed) && self.json.is_none() && self.picture.is_none()
    }

    pub fn finish(mut self) -> Result<(), Failure> {
        // Closing the JSON object consumes its writer, so take it out.
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
                    "{}: {left} more explanations did not fit in the picture",
                    path.display()
                );
            }
        }
        Ok(())
    }
}
