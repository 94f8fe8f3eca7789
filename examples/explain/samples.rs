//! Samples from files: arrays of NumPy, and tables of comma-separated values.

use std::path::Path;

use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;
use relprop::{Error, Shape};

use crate::Failure;

/// Samples as columns, and the names of their values where there are some.
pub struct Samples {
    pub values: DMatrix<f32>,
    pub shape: Shape,
    pub names: Vec<String>,
}

impl Samples {
    /// `.csv` has a row for a sample, and names in the first; `.npy` an array of samples, or one sample alone. A file of names, one a
    /// line, comes before those.
    pub fn read(path: &Path, names_from: Option<&Path>, shape: Shape) -> Result<Self, Failure> {
        let named = |error: Failure| match error.downcast_ref() {
            Some(Error::Io { .. }) => error,
            _ => format!("{}: {error}", path.display()).into(),
        };
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        let read = match extension.as_deref() {
            Some("csv") => table(path),
            Some("npy" | "npz") => array(path, shape),
            _ => Err("samples are read from .npy and .csv".into()),
        };
        let (values, mut names) = read.map_err(named)?;
        let inputs = shape.size();
        if values.is_empty() {
            return Err(named("there are no samples in it".into()));
        }
        if !names.is_empty() && names.len() != inputs {
            let listed = names.iter().take(20).map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(named(format!("the model takes {inputs} values a sample, a row has {}: {listed}", names.len()).into()));
        }
        if let Some(path) = names_from {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            names = text.lines().map(str::to_owned).collect();
            if names.len() != inputs {
                return Err(format!("{}: {} names for {inputs} inputs", path.display(), names.len()).into());
            }
        }
        let count = values.len() / inputs;
        Ok(Self { values: DMatrix::from_vec(inputs, count, values), shape, names })
    }

    /// What an input is called: its name, or its place.
    pub fn name(&self, input: usize) -> String {
        if let Some(name) = self.names.get(input) {
            return name.clone();
        }
        match *self.shape.dims() {
            [_, width, channels] if is_channels_last(self.shape) => {
                format!("row {}, column {}, channel {}", input / channels / width, input / channels % width, input % channels)
            }
            [_, height, width] => {
                format!("channel {}, row {}, column {}", input / width / height, input / width % height, input % width)
            }
            [_, length] => format!("channel {}, place {}", input / length, input % length),
            _ => format!("input {input}"),
        }
    }
}

/// Images have few channels: Keras has them last, PyTorch first.
pub fn is_channels_last(shape: Shape) -> bool {
    matches!(*shape.dims(), [height, _, channels] if channels <= 4 && height > 4)
}

fn table(path: &Path) -> Result<(Vec<f32>, Vec<String>), Failure> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path)?;
    let names: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
    let mut values = Vec::new();
    if !names.is_empty() && names.iter().all(|name| name.parse::<f64>().is_ok()) {
        return Err("the first row has numbers, where the names of the columns are wanted".into());
    }
    for record in reader.records() {
        let record = record?;
        let line = record.position().map_or(0, csv::Position::line);
        for (name, text) in names.iter().zip(record.iter()) {
            let value: f32 = text.parse().map_err(|_| format!("line {line}, {name}: '{text}' is no number"))?;
            if !value.is_finite() {
                return Err(format!("line {line}, {name}: '{text}' is not finite").into());
            }
            values.push(value);
        }
    }
    Ok((values, names))
}

fn array(path: &Path, shape: Shape) -> Result<(Vec<f32>, Vec<String>), Failure> {
    let file = StateDict::open(path)?;
    let names: Vec<&str> = file.names().collect();
    let [name] = names.as_slice() else {
        return Err(format!("it has {} arrays: one is wanted, as numpy.save writes it", names.len()).into());
    };
    let wanted = "samples are wanted as numpy.save('x.npy', x.astype('float32')) writes them";
    let (dims, values) = file.tensor(name).map_err(|error| format!("{error}; {wanted}"))?;
    if dims != shape.dims() && dims.get(1..) != Some(shape.dims()) && dims.get(1..) != Some(&[shape.size()]) {
        return Err(format!("its shape is {dims:?}, the model takes samples of {shape}").into());
    }
    Ok((values, Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_row_for_a_sample() {
        let path = std::env::temp_dir().join(format!("relprop-explain-{}.csv", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Samples::read(&path, None, Shape::from(2)).map_err(|error| error.to_string())
        };
        let samples = read("age, income\n1, 2.5\n-3, 4e1\n").unwrap();
        assert_eq!(
            (samples.names.as_slice(), samples.values.as_slice()),
            (&["age".into(), "income".into()][..], &[1.0, 2.5, -3.0, 40.0][..])
        );
        assert_eq!(samples.name(1), "income");
        assert!(read("a,b\n1,x\n").err().unwrap().contains("line 2, b: 'x' is no number"));
        assert!(read("a,b,c\n1,2,3\n").err().unwrap().contains("takes 2 values a sample, a row has 3: a, b, c"));
        assert!(read("a,b\n1\n").is_err());
        assert!(read("a,b\n").err().unwrap().contains("there are no samples in it"));
        assert!(read("1,2\n3,4\n").err().unwrap().contains("the first row has numbers"));
        assert!(read("a,b\n1,2\n1,nan\n").err().unwrap().contains("line 3, b: 'nan' is not finite"));
        std::fs::remove_file(&path).unwrap();
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
}
