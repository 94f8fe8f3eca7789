//! The model's input: its shape and type.

use std::collections::HashMap;

use super::ir::Operand;
use super::proto::{GraphProto, ValueInfoProto};
use super::{malformed, shortened};
use crate::error::Error;
use crate::shape::Shape;

/// The input of a model.
pub(super) struct ModelInput<'a> {
    pub name: &'a str,
    /// The batch size for which the file is made, or 1 if it is not fixed.
    pub batch: usize,
    /// The shape of a sample.
    pub dims: Vec<usize>,
    /// Whether it consists of integers.
    pub whole: bool,
}

impl<'a> ModelInput<'a> {
    /// The one input of a graph. Its shape comes from the file or the caller.
    pub fn of(
        graph: &'a GraphProto,
        constants: &HashMap<String, Operand>,
        shape: Option<Shape>,
    ) -> Result<Self, Error> {
        // Older files list the initializers among the inputs.
        let inputs: Vec<_> =
            graph.input.iter().filter(|input| !constants.contains_key(&input.name)).collect();
        let [input] = inputs.as_slice() else {
            let names: Vec<_> = inputs
                .iter()
                .take(20)
                .map(|input| format!("'{}'", shortened(&input.name)))
                .collect();
            return Err(malformed(format!(
                "it has {} inputs ({}), but only one is supported: export the model with one input",
                inputs.len(),
                names.join(", ")
            )));
        };
        let whole = is_whole(input)?;
        let (batch, dims) = sample(input, shape)?;
        Ok(Self { name: &input.name, batch, dims, whole })
    }
}

/// Whether the input consists of integers or booleans, by ONNX's code of its element type.
fn is_whole(input: &ValueInfoProto) -> Result<bool, Error> {
    let tensor = input.r#type.as_ref().and_then(|of| of.tensor.as_ref());
    match tensor.map_or(0, |tensor| tensor.elem_type) {
        0 | 1 | 10 | 11 | 16 => Ok(false),
        2..=7 | 9 | 12 | 13 => Ok(true),
        _ => Err(malformed(format!(
            "its input '{}' does not consist of numbers: export the model with an input of \
             floating-point numbers",
            shortened(&input.name)
        ))),
    }
}

/// The shape of one sample of a value, if all its sizes are known and the first axis is the batch
/// axis.
pub(super) fn sizes_of(info: &ValueInfoProto, batch: usize) -> Option<Vec<usize>> {
    let shape = info.r#type.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
    let size = |value: i64| usize::try_from(value).ok().filter(|&value| value > 0);
    let [samples, rest @ ..] = shape.dim.as_slice() else { return None };
    let fits = samples.value.is_none_or(|value| size(value).is_none_or(|value| value == batch));
    let dims: Vec<usize> = rest.iter().map(|dim| size(dim.value?)).collect::<Option<_>>()?;
    (fits && (1..=3).contains(&dims.len())).then_some(dims)
}

/// The text for a shape in a file, with `?` for a size that is not fixed.
fn open_dims(dims: &[Option<usize>]) -> String {
    let sizes: Vec<_> = dims
        .iter()
        .take(8)
        .map(|dim| dim.map_or_else(|| "?".to_owned(), |dim| dim.to_string()))
        .collect();
    sizes.join(" x ")
}

/// The batch size of a file's input and the shape of one sample.
fn sample(input: &ValueInfoProto, given: Option<Shape>) -> Result<(usize, Vec<usize>), Error> {
    let name = shortened(&input.name);
    let shape = input
        .r#type
        .as_ref()
        .and_then(|of| of.tensor.as_ref())
        .and_then(|tensor| tensor.shape.as_ref());
    let known = |value: Option<i64>| {
        value.and_then(|value| usize::try_from(value).ok()).filter(|&value| value > 0)
    };
    let dims: Vec<Option<usize>> =
        shape.iter().flat_map(|shape| &shape.dim).map(|dim| known(dim.value)).collect();
    let batch = dims.first().copied().flatten().unwrap_or(1);
    if let Some(given) = given {
        if given.size() == 0 {
            return Err(malformed(format!(
                "the given shape {given} has a size of 0: all sizes must be at least 1"
            )));
        }
        let fits = |(dim, given): (&Option<usize>, &usize)| dim.is_none_or(|dim| dim == *given);
        if !dims.is_empty()
            && (dims.len() != given.dims().len() + 1
                || !dims[1..].iter().zip(given.dims()).all(fits))
        {
            return Err(malformed(format!(
                "the given shape {given} does not fit its input '{name}', which is {} (with the \
                 batch axis)",
                open_dims(&dims)
            )));
        }
        return Ok((batch, given.dims().to_vec()));
    }
    let [_, rest @ ..] = dims.as_slice() else {
        return Err(malformed(format!(
            "the file has no shape for its input '{name}': give the shape of one sample, with \
             OnnxFile::input"
        )));
    };
    if rest.is_empty() {
        let reason =
            "has only one axis: export the model with an input of shape samples x features";
        return Err(malformed(format!("its input '{name}' {reason}")));
    }
    if rest.len() > 3 {
        return Err(malformed(format!(
            "its input '{name}' has {} axes, but only 2 (vectors), 3 (sequences) or 4 (images) are \
             supported, with the batch axis",
            rest.len() + 1
        )));
    }
    let open = || {
        malformed(format!(
            "the file does not fix the shape of its input '{name}': give the shape of one sample, \
             with OnnxFile::input"
        ))
    };
    Ok((batch, rest.iter().copied().collect::<Option<_>>().ok_or_else(open)?))
}
