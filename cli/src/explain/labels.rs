//! An output for each sample, from a file.

use std::path::Path;

use super::samples::{Kind, array, in_file, kind};
use super::table::{Rows, number};
use crate::Failure;

/// The label of each sample. Every label is the number of an output.
pub fn read(path: &Path, samples: usize, outputs: usize) -> Result<Vec<usize>, Failure> {
    labels(path, samples, outputs).map_err(|error| in_file(path, error))
}

fn labels(path: &Path, samples: usize, outputs: usize) -> Result<Vec<usize>, Failure> {
    let numbers = match kind(path) {
        Kind::Table => lines(path)?,
        Kind::Arrays => of_array(path)?,
        Kind::Other => return Err("labels come as .npy, or as .csv or .txt with one a line".into()),
    };
    if numbers.len() != samples {
        return Err(
            format!("it has {} labels, but there are {samples} samples", numbers.len()).into()
        );
    }
    let output = |(sample, &number): (usize, &f64)| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
        let output = number as usize;
        #[allow(clippy::float_cmp)] // a whole number is exact
        if output < outputs && output as f64 == number {
            return Ok(output);
        }
        let last = outputs - 1;
        Err(format!(
            "the label of sample {sample} is {number}, and must be the number of an \
            output, 0 to {last}"
        )
        .into())
    };
    numbers.iter().enumerate().map(output).collect()
}

/// One label per line, with or without a name in the first line.
fn lines(path: &Path) -> Result<Vec<f64>, Failure> {
    let mut rows = Rows::open(path)?;
    let (mut numbers, mut first) = (Vec::new(), true);
    while let Some((line, row)) = rows.next_row()? {
        let [text] = row.as_slice() else {
            return Err(format!(
                "line {line} has {} values, where one label is expected",
                row.len()
            )
            .into());
        };
        match number(text) {
            Ok(number) => numbers.push(number.into()),
            // The first line can be the name of the column.
            Err(_) if first => {}
            Err(reason) => {
                return Err(format!(
                    "line {line}: {reason}; a label is the number of an output, from 0"
                )
                .into());
            }
        }
        first = false;
    }
    Ok(numbers)
}

fn of_array(path: &Path) -> Result<Vec<f64>, Failure> {
    let (dims, numbers) = array::<f64>(path, None).map_err(|failure| {
        let text = failure.to_string();
        text.split_once("; choose one").map_or(failure, |(text, _)| {
            format!("{text}; save the labels in a file of their own").into()
        })
    })?;
    match *dims {
        [_] | [_, 1] => Ok(numbers),
        [samples, outputs] => Err(format!(
            "its shape is {samples} x {outputs}, where one label for each sample is expected; for one-hot \
             labels y, give y.argmax(1)"
        )
        .into()),
        _ => Err(format!("it has {} axes, where one label for each sample is expected", dims.len()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(content: &str) -> Result<Vec<usize>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("y.txt");
        std::fs::write(&path, content).unwrap();
        labels(&path, 3, 4).map_err(|error| error.to_string())
    }

    #[test]
    fn a_label_is_the_number_of_an_output() {
        for content in
            ["0\n3\n1\n", "label\n0\n3\n1", "\u{feff}0.0\r\n3.0\r\n1\r\n", "\"0\"\n\"3\"\n1e0\n"]
        {
            assert_eq!(read_text(content).unwrap(), [0, 3, 1], "{content:?}");
        }
        assert_eq!(read_text("0\n3\n").unwrap_err(), "it has 2 labels, but there are 3 samples");
        assert_eq!(read_text("").unwrap_err(), "it has 0 labels, but there are 3 samples");
        let range = "and must be the number of an output, 0 to 3";
        assert_eq!(
            read_text("0\n4\n1\n").unwrap_err(),
            format!("the label of sample 1 is 4, {range}")
        );
        assert_eq!(
            read_text("0\n1\n-1\n").unwrap_err(),
            format!("the label of sample 2 is -1, {range}")
        );
        assert_eq!(
            read_text("0\n1.5\n1\n").unwrap_err(),
            format!("the label of sample 1 is 1.5, {range}")
        );
        let said = read_text("species\nsetosa\nvirginica\nsetosa\n").unwrap_err();
        assert_eq!(
            said,
            "line 2: 'setosa' is not a number; a label is the number of an output, from 0"
        );
        assert_eq!(
            read_text("a,b\n1,2\n").unwrap_err(),
            "line 1 has 2 values, where one label is expected"
        );
    }

    #[test]
    fn arrays_of_labels_have_one_axis() {
        let formats = |name: &str| {
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/formats")).join(name)
        };
        let refused = |name: &str| labels(&formats(name), 2, 4).unwrap_err().to_string();
        let said = refused("x.npy");
        assert_eq!(
            said,
            "its shape is 1 x 3, where one label for each sample is expected; for one-hot labels y, give \
             y.argmax(1)"
        );
        assert!(
            refused("samples.pt").ends_with("x (1 x 3); save the labels in a file of their own")
        );
        assert!(refused("generate.py").starts_with("labels come as .npy"));
    }
}
