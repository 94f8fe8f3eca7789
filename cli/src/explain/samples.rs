//! Samples from files: arrays, and tables of comma-separated values.

use std::path::Path;

use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;
use relprop::{Error, Scalar, Shape};

use super::options::SampleOptions;
use super::table;
use crate::names::listed;
use crate::{Failure, usage};

/// Samples as columns, and the names of their values where there are some.
#[derive(Debug)]
pub struct Samples {
    pub values: DMatrix<f32>,
    pub shape: Shape,
    pub names: Vec<String>,
}

impl Samples {
    /// Reads a table, which has a row for each sample after a row of names, or an array of samples
    /// or of one sample. A file of names, one a line, replaces those of the table.
    pub fn read(options: &SampleOptions, shape: Shape) -> Result<Self, Failure> {
        let path = options.input.as_path();
        let array = options.array.as_deref();
        let read = match kind(path) {
            Kind::Table if array.is_some() => {
                return Err(usage(
                    "--array is for files of arrays; a table has no arrays with names",
                ));
            }
            Kind::Table => table::read(path, shape.size()),
            Kind::Arrays => samples(path, array, shape).map(|values| (values, Vec::new())),
            Kind::Other => Err(not_samples(path).into()),
        };
        let (values, mut names) = read.map_err(|error| in_file(path, error))?;
        if values.is_empty() {
            return Err(in_file(path, "it has no samples".into()));
        }
        if let Some(path) = &options.names {
            names = names_of(path, shape.size()).map_err(|error| in_file(path, error))?;
        }
        let count = values.len() / shape.size();
        let samples = Self { values: DMatrix::from_vec(shape.size(), count, values), shape, names };
        match samples.values.iter().position(|value| !value.is_finite()) {
            None => Ok(samples),
            Some(at) => {
                let (sample, input) = (at / shape.size(), at % shape.size());
                let (name, value) = (samples.name(input), samples.values[at]);
                Err(in_file(
                    path,
                    format!("sample {sample}, {name}: the value is {value}, and must be finite")
                        .into(),
                ))
            }
        }
    }

    pub fn count(&self) -> usize {
        self.values.ncols()
    }

    /// The name of an input, or its place.
    pub fn name(&self, input: usize) -> String {
        if let Some(name) = self.names.get(input) {
            return name.clone();
        }
        match *self.shape.dims() {
            [_, width, channels] if is_channels_last(self.shape) => {
                format!(
                    "row {}, column {}, channel {}",
                    input / channels / width,
                    input / channels % width,
                    input % channels
                )
            }
            [_, height, width] => {
                format!(
                    "channel {}, row {}, column {}",
                    input / width / height,
                    input / width % height,
                    input % width
                )
            }
            [_, length] => format!("channel {}, place {}", input / length, input % length),
            _ => format!("input {input}"),
        }
    }
}

/// Images have few channels. Keras puts them last, PyTorch first.
pub fn is_channels_last(shape: Shape) -> bool {
    matches!(*shape.dims(), [height, _, channels] if channels <= 4 && height > 4)
}

/// The content of a file, by the end of its name.
pub enum Kind {
    Table,
    Arrays,
    Other,
}

/// Why a file cannot contain samples, judged by its extension.
fn not_samples(path: &Path) -> String {
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_lowercase())
        .unwrap_or_default();
    let what = match extension.as_str() {
        "xlsx" | "xls" | "ods" => "a spreadsheet: save it as a table (.csv)",
        "png" | "jpg" | "jpeg" | "bmp" | "gif" | "tif" | "tiff" | "webp" => {
            "a picture: in Python, np.save('x.npy', values) of the model's inputs, normalized \
             as in its training"
        }
        "pkl" | "pickle" | "joblib" => "a pickle: in Python, np.save('x.npy', values)",
        "parquet" | "feather" | "json" => {
            "of an unsupported format: in Python, table.to_csv('x.csv', index=False)"
        }
        _ => {
            return "samples are a table (.csv, .tsv, .txt) or an array (.npy, .npz, .pt, .pth, \
            .safetensors)"
                .to_owned();
        }
    };
    format!("it is {what}")
}

pub fn kind(path: &Path) -> Kind {
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("csv" | "tsv" | "txt") => Kind::Table,
        Some("npy" | "npz" | "pt" | "pth" | "safetensors") => Kind::Arrays,
        _ => Kind::Other,
    }
}

/// Adds the name of the file to an error that does not contain it.
pub fn in_file(path: &Path, error: Failure) -> Failure {
    match error.downcast_ref() {
        Some(Error::Io { .. }) => error,
        // The library's error for any file whose first bytes it does not know.
        Some(Error::Malformed { format, reason }) if format == "model" => {
            format!("{}: not a usable file of arrays: {reason}", path.display()).into()
        }
        _ => format!("{}: {error}", path.display()).into(),
    }
}

fn names_of(path: &Path, inputs: usize) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path)?;
    let names: Vec<String> =
        text.trim_start_matches('\u{feff}').lines().map(str::to_owned).collect();
    if names.len() != inputs {
        return Err(format!(
            "it has {} names, one a line; the model has {inputs} inputs",
            names.len()
        )
        .into());
    }
    Ok(names)
}

/// The shape and the values of the named array, or of the only array.
pub fn array<T: Scalar>(
    path: &Path,
    wanted: Option<&str>,
) -> Result<(Vec<usize>, Vec<T>), Failure> {
    let file = StateDict::open(path)?;
    let there = || {
        let described = file.names().map(|name| match file.shape(name) {
            Some([]) | None => format!("{name} (a number)"),
            Some(dims) => format!("{name} ({})", sizes(dims)),
        });
        listed(described.collect::<Vec<_>>().iter().map(String::as_str))
    };
    let names: Vec<&str> = file.names().collect();
    let name = match (wanted, names.as_slice()) {
        (Some(name), _) if file.shape(name).is_some() => name,
        (Some(name), _) => {
            return Err(format!("it has no array '{name}'; it has {}", there()).into());
        }
        (None, [name]) => name,
        (None, _) => {
            return Err(format!(
                "it has {} arrays: {}; choose one with --array NAME",
                names.len(),
                there()
            )
            .into());
        }
    };
    Ok(file.tensor(name)?)
}

fn samples(path: &Path, wanted: Option<&str>, shape: Shape) -> Result<Vec<f32>, Failure> {
    let (dims, values) = array::<f32>(path, wanted)?;
    let flat = [shape.size()];
    let fits = |dims: &[usize]| dims == shape.dims() || dims == flat;
    // One sample, or several along an additional first axis. Each may be flat.
    if fits(&dims) || dims.get(1..).is_some_and(fits) {
        return Ok(values);
    }
    let count: usize = dims.iter().product();
    let found = match dims.len() {
        0 => "it is a single number".to_owned(),
        _ => format!("its shape is {}, which is {count} values", sizes(&dims)),
    };
    let ordered = |dims: &[usize]| {
        let mut dims = dims.to_vec();
        dims.sort_unstable();
        dims
    };
    let of_one = dims.get(1..).unwrap_or_default();
    let hint = match *dims {
        [inputs, samples] if inputs == shape.size() => {
            format!("; its axes may be swapped: {samples} x {inputs} would fit")
        }
        _ if ordered(of_one) == ordered(shape.dims()) => {
            "; the sizes are right, but in another order".to_owned()
        }
        _ => String::new(),
    };
    Err(format!(
        "{found}; the model takes {} values for each sample, so the shape must be N x {shape} for N \
         samples{hint}",
        shape.size()
    )
    .into())
}

fn sizes(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    /// A command line that consists of these options.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: SampleOptions,
    }

    fn formats(name: &str) -> String {
        format!("{}/../tests/formats/{name}", env!("CARGO_MANIFEST_DIR"))
    }

    fn read(file: &str, rest: &str, shape: Shape) -> Result<Samples, String> {
        let line = format!("samples --input {file} {rest}");
        let Line { options } = Line::try_parse_from(line.split_whitespace()).unwrap();
        Samples::read(&options, shape).map_err(|error| error.to_string().replace(file, "FILE"))
    }

    /// An array of NumPy with these sizes.
    fn npy(path: &Path, dims: &str, values: &[f32]) {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({dims}), }}\n");
        let length = u16::try_from(header.len()).unwrap().to_le_bytes();
        let values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(
            path,
            [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &values].concat(),
        )
        .unwrap();
    }

    #[test]
    fn inputs_without_names_have_places() {
        let name = |shape: Shape, input: usize| {
            let values = DMatrix::zeros(shape.size(), 1);
            Samples { values, shape, names: Vec::new() }.name(input)
        };
        assert_eq!(name(Shape::from(9), 4), "input 4");
        assert_eq!(name([2, 5].into(), 7), "channel 1, place 2");
        assert_eq!(name([3, 8, 10].into(), 80 + 23), "channel 1, row 2, column 3");
        assert_eq!(name([8, 10, 3].into(), 3 * 23 + 1), "row 2, column 3, channel 1");
    }

    #[test]
    fn tensors_of_pytorch_are_samples() {
        for name in ["tensor.pt", "tensor-legacy.pt", "tensor-parameter.pt", "x.npy"] {
            let samples = read(&formats(name), "", Shape::from(3)).unwrap();
            assert_eq!(
                (samples.count(), samples.values.as_slice()),
                (1, &[1.0, -2.0, 0.5][..]),
                "{name}"
            );
        }
        let samples = read(&formats("samples.pt"), "--array x", Shape::from(3)).unwrap();
        assert_eq!(samples.values.as_slice(), [1.0, -2.0, 0.5]);
        let pixels = read(&formats("samples.pt"), "--array pixels", Shape::from(2)).unwrap();
        assert_eq!(pixels.values.as_slice(), [0.0, 255.0], "whole numbers are numbers");
    }

    #[test]
    fn one_of_several_arrays_is_named() {
        let said = read(&formats("samples.pt"), "", Shape::from(3)).unwrap_err();
        assert_eq!(
            said,
            "FILE: it has 3 arrays: labels (2), pixels (2), x (1 x 3); choose one with --array NAME"
        );
        let said = read(&formats("samples.pt"), "--array y", Shape::from(3)).unwrap_err();
        assert_eq!(said, "FILE: it has no array 'y'; it has labels (2), pixels (2), x (1 x 3)");
        let said = read(&formats("weights.npz"), "", Shape::from(3)).unwrap_err();
        assert!(said.contains("it has 4 arrays: 0.bias (4), 0.weight (4 x 3)"), "{said}");
        assert!(
            read("x.csv", "--array y", Shape::from(3))
                .unwrap_err()
                .contains("a table has no arrays")
        );
    }

    #[test]
    fn another_shape_is_named_with_the_one_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        let text = path.display().to_string();
        let found = |dims: &str, count: usize, shape: Shape| {
            npy(&path, dims, &vec![1.0; count]);
            read(&text, "", shape).map(|samples| samples.count())
        };
        assert_eq!(found("3, 20", 60, 20.into()), Ok(3));
        assert_eq!(found("20,", 20, 20.into()), Ok(1));
        assert_eq!(found("2, 1, 4, 5", 40, [1, 4, 5].into()), Ok(2));
        assert_eq!(found("2, 20", 40, [1, 4, 5].into()), Ok(2));
        assert_eq!(found("1, 4, 5", 20, [1, 4, 5].into()), Ok(1));
        assert_eq!(found("20,", 20, [1, 4, 5].into()), Ok(1));
        let said = found("30,", 30, 20.into()).unwrap_err();
        assert_eq!(
            said,
            "FILE: its shape is 30, which is 30 values; the model takes 20 values for each \
             sample, so the shape must be N x 20 for N samples"
        );
        let said = found("20, 3", 60, 20.into()).unwrap_err();
        assert!(
            said.ends_with(
                "the shape must be N x 20 for N samples; its axes may be swapped: 3 x 20 would fit"
            ),
            "{said}"
        );
        let said = found("2, 4, 5, 1", 40, [1, 4, 5].into()).unwrap_err();
        assert!(
            said.ends_with("the shape must be N x 1 x 4 x 5 for N samples; the sizes are right, but in another order"),
            "{said}"
        );
        let said = found("", 1, 20.into()).unwrap_err();
        assert!(
            said.contains("it is a single number; the model takes 20 values for each sample"),
            "{said}"
        );
        assert_eq!(found("0, 20", 0, 20.into()).unwrap_err(), "FILE: it has no samples");
        npy(&path, "2, 2", &[0.0, 1.0, 2.0, f32::NAN]);
        assert_eq!(
            read(&text, "", 2.into()).unwrap_err(),
            "FILE: sample 1, input 1: the value is NaN, and must be finite"
        );
    }

    #[test]
    fn files_that_are_no_samples_are_called_what_they_are() {
        for (file, what) in [
            ("x.xlsx", "it is a spreadsheet: save it as a table (.csv)"),
            ("x.PNG", "it is a picture: in Python, np.save('x.npy', values)"),
            ("x.pkl", "it is a pickle"),
            ("x.foo", "samples are a table (.csv, .tsv, .txt) or an array"),
        ] {
            assert!(not_samples(Path::new(file)).starts_with(what), "{file}");
        }
    }

    #[test]
    fn names_come_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let names = folder.path().join("names");
        std::fs::write(&names, "\u{feff}age\r\nincome\r\nheight\r\n").unwrap();
        let samples =
            read(&formats("x.npy"), &format!("--names {}", names.display()), 3.into()).unwrap();
        assert_eq!(samples.names, ["age", "income", "height"]);
        std::fs::write(&names, "age\n").unwrap();
        let said =
            read(&formats("x.npy"), &format!("--names {}", names.display()), 3.into()).unwrap_err();
        assert!(said.ends_with("it has 1 names, one a line; the model has 3 inputs"), "{said}");
        assert!(
            read("x.xlsx", "", 3.into())
                .unwrap_err()
                .contains("it is a spreadsheet: save it as a table (.csv)")
        );
    }
}
