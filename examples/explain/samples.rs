//! Samples from files: arrays of NumPy, and tables of comma-separated values.

use std::path::Path;

use relprop::Shape;
use relprop::io::StateDict;
use relprop::nalgebra::DMatrix;

use crate::Failure;

/// Samples as columns, and the names of their values where there are some.
pub struct Samples {
    pub values: DMatrix<f32>,
    pub shape: Shape,
    names: Vec<String>,
}

impl Samples {
    /// `.csv` has a row for a sample, and names in the first; `.npy` an array of samples, or one sample alone. A file of names, one a
    /// line, comes before those.
    pub fn read(path: &Path, names_from: Option<&Path>, shape: Shape) -> Result<Self, Failure> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let read = if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv")) { table(path) } else { array(path, shape) };
        let (values, mut names) = read.map_err(|error| named(&error))?;
        let inputs = shape.size();
        if values.is_empty() || !values.len().is_multiple_of(inputs) || (!names.is_empty() && names.len() != inputs) {
            let found = if names.is_empty() { values.len() } else { names.len() };
            return Err(named(&format!("the model takes {shape} values a sample, the file has {found}")).into());
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
    for (row, record) in reader.records().enumerate() {
        for (name, text) in names.iter().zip(record?.iter()) {
            let value = text.parse().map_err(|_| format!("row {}, {name}: '{text}' is no number", row + 1))?;
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
    let (dims, values) =
        file.tensor(name).map_err(|error| format!("{error}; numpy.save('x.npy', x.astype('float32')) gives such an array"))?;
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
        assert!(read("a,b\n1,x\n").err().unwrap().contains("row 1, b: 'x' is no number"));
        assert!(read("a,b,c\n1,2,3\n").err().unwrap().contains("takes 2 values a sample, the file has 3"));
        assert!(read("a,b\n1\n").is_err());
        assert!(read("a,b\n").is_err());
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
