//! Tables of values that are separated by commas, semicolons or tabs.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::Failure;
use crate::names::listed;

/// The byte order marks that Unicode texts can begin with. UTF-8's is skipped, UTF-16 is unsupported.
const MARK: &[u8] = b"\xef\xbb\xbf";
const MARKS_OF_16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];
/// The first bytes of archives, such as Excel's workbooks.
const ARCHIVE: &[u8] = b"PK\x03\x04";

/// The separators of values; the first is the default.
const SEPARATORS: [char; 3] = [',', ';', '\t'];

/// The texts that many programs write where a value is missing.
const MISSING: [&str; 9] = ["", "na", "n/a", "nan", "null", "none", "nil", "?", "-"];

/// The values of all rows, one after the other, and the columns' names from the first line.
pub fn read(path: &Path, inputs: usize) -> Result<(Vec<f32>, Vec<String>), Failure> {
    let mut rows = Rows::open(path)?;
    let names = rows.next_row()?.ok_or("the file is empty")?.1;
    check_names(&names, inputs, rows.separator)?;
    let mut values = Vec::new();
    while let Some((line, row)) = rows.next_row()? {
        if row.len() != names.len() {
            return Err(of_another_length(line, row.len(), &names, rows.separator).into());
        }
        for (column, (name, text)) in names.iter().zip(&row).enumerate() {
            let place = if name.is_empty() {
                format!("column {}", column + 1)
            } else {
                format!("column '{name}'")
            };
            values.push(number(text).map_err(|reason| format!("line {line}, {place}: {reason}"))?);
        }
    }
    Ok((values, names))
}

/// The rows of a file, with the lines on which they begin.
pub struct Rows {
    reader: csv::Reader<BufReader<File>>,
    pub separator: char,
    /// The size of the text, in bytes.
    bytes: u64,
}

impl Rows {
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut file = BufReader::new(file);
        let beginning = file.fill_buf()?;
        if MARKS_OF_16.iter().any(|mark| beginning.starts_with(mark)) {
            return Err("the text is UTF-16: save it as CSV in UTF-8".into());
        }
        if beginning.starts_with(ARCHIVE) {
            return Err(
                "it is an archive, such as an Excel workbook, not a text: save it as CSV in UTF-8"
                    .into(),
            );
        }
        let mark = if beginning.starts_with(MARK) { MARK.len() } else { 0 };
        let first = beginning[mark..].split(|&byte| byte == b'\n').next().unwrap_or_default();
        let separator = separator(&String::from_utf8_lossy(first));
        file.consume(mark);
        let mut builder = csv::ReaderBuilder::new();
        // Rows of any length are accepted here, so that their error can give a hint. The first line
        // is a row too.
        #[allow(clippy::cast_possible_truncation)] // one of three
        builder.delimiter(separator as u8).trim(csv::Trim::All).flexible(true).has_headers(false);
        Ok(Self {
            reader: builder.from_reader(file),
            separator,
            bytes: length.saturating_sub(mark as u64),
        })
    }

    pub fn next_row(&mut self) -> Result<Option<(u64, Vec<String>)>, Failure> {
        let mut record = csv::ByteRecord::new();
        if !self.reader.read_byte_record(&mut record)? {
            return Ok(None);
        }
        // A record's position can be that of empty lines before it, so the line is counted back from
        // the end of the record, where the reader is.
        let ends: u64 = record.iter().flatten().filter(|&&byte| byte == b'\n').count() as u64;
        let line = (self.reader.position().line() - 1)
            .saturating_sub(ends)
            .max(record.position().map_or(1, csv::Position::line));
        // A number never contains a line break. A name can, but none reaches the end of the file.
        if ends > 0 && (line > 1 || self.reader.position().byte() >= self.bytes) {
            return Err(format!(
                "line {line}: a quoted text continues on the next line: a quote \
                (\") may be missing"
            )
            .into());
        }
        let text = |field: &[u8]| {
            String::from_utf8(field.to_vec())
                .map_err(|_| format!("line {line} is not in UTF-8: save the file as CSV in UTF-8"))
        };
        Ok(Some((line, record.iter().map(text).collect::<Result<_, _>>()?)))
    }
}

/// The separator that is most frequent between the names of the first line.
fn separator(line: &str) -> char {
    // The line has numbers with decimal commas instead of names.
    if line.contains(';') && line.split(';').all(|text| is_number(text.trim())) {
        return ';';
    }
    let (mut counts, mut quoted) = ([0; 3], false);
    for character in line.chars() {
        quoted ^= character == '"';
        if let Some(at) = SEPARATORS.iter().position(|&separator| separator == character && !quoted)
        {
            counts[at] += 1;
        }
    }
    // If counts are equal, the earlier separator wins.
    let best = (1..3).fold(0, |best, at| if counts[at] > counts[best] { at } else { best });
    SEPARATORS[best]
}

/// As many names as the model has inputs, and names, not numbers.
fn check_names(names: &[String], inputs: usize, separator: char) -> Result<(), Failure> {
    if names.iter().all(|name| is_number(name)) {
        let first = listed(names.iter().map(String::as_str));
        return Err(format!(
            "line 1 has numbers ({first}) where the names of the columns are expected: put \
                a line of names first"
        )
        .into());
    }
    if names.len() == inputs {
        return Ok(());
    }
    let columns =
        if names.len() == 1 { "one column".to_owned() } else { format!("{} columns", names.len()) };
    let all = listed(names.iter().map(|name| if name.is_empty() { "''" } else { name }));
    let hint = match names {
        [only] if separator == ',' && only.split_whitespace().count() > 1 => {
            "; separate the columns by commas, semicolons or tabs, not by spaces".to_owned()
        }
        [first, ..]
            if names.len() == inputs + 1 && (first.is_empty() || first.starts_with("Unnamed")) =>
        {
            "; the first has no name: if it has the rows' numbers, leave it out (in pandas, \
             to_csv(path, index=False))"
                .to_owned()
        }
        [.., last] if names.len() == inputs + 1 && last.is_empty() => {
            format!("; the last has no name: take the '{separator}' from the end of the lines")
        }
        [.., last] if names.len() == inputs + 1 => format!(
            "; if '{last}' is the label, leave it \
            out"
        ),
        _ => String::new(),
    };
    Err(format!(
        "the table has {columns} ({all}), the model takes {inputs} values for each sample{hint}"
    )
    .into())
}

fn of_another_length(line: u64, found: usize, names: &[String], separator: char) -> String {
    let values = if found == 1 { "one value".to_owned() } else { format!("{found} values") };
    let hint = if separator == ',' && found == 2 * names.len() {
        "; if the numbers have decimal commas, write points"
    } else if found == names.len() + 1 {
        "; there may be one separator too many"
    } else {
        ""
    };
    let columns =
        if names.len() == 1 { "one column".to_owned() } else { format!("{} columns", names.len()) };
    format!(
        "line {line} has {values}, line 1 names {columns} ({}){hint}",
        listed(names.iter().map(String::as_str))
    )
}

fn is_number(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(f64::is_finite)
        || (text.contains(',') && text.replace(',', ".").parse::<f64>().is_ok())
}

/// The number, or what the text is instead.
pub fn number(text: &str) -> Result<f32, String> {
    if MISSING.contains(&text.to_lowercase().as_str()) {
        let found = if text.is_empty() { "is empty".to_owned() } else { format!("is '{text}'") };
        return Err(format!("the value is missing (it {found}): fill it in, or leave the row out"));
    }
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err(format!("'{text}' is not finite, or too large for 32 bits")),
        // A single comma without a point is a decimal comma. All others separate thousands.
        Err(_) if text.matches(',').count() == 1 && !text.contains('.') && is_number(text) => {
            Err(format!("'{text}' has a decimal comma: write {}", text.replace(',', ".")))
        }
        Err(_) if text.replace([',', '\'', ' ', '_'], "").parse::<f32>().is_ok() => Err(format!(
            "'{text}' has separators of thousands: write {}",
            text.replace([',', '\'', ' ', '_'], "")
        )),
        Err(_) => Err(format!("'{text}' is not a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of two columns that a file with this content is.
    fn table(content: impl AsRef<[u8]>) -> Result<(Vec<f32>, Vec<String>), String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        std::fs::write(&path, content).unwrap();
        read(&path, 2).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_has_a_row_for_a_sample() {
        let right = (vec![1.0, 2.5, -3.0, 40.0], vec!["age".to_owned(), "income".to_owned()]);
        for content in [
            "age,income\n1,2.5\n-3,4e1\n",
            "age, income\r\n1, 2.5\r\n\r\n-3 ,4e1",
            "\u{feff}age,income\n1,2.5\n-3,40",
            "\"age\",\"income\"\n\"1\",\"2.5\"\n\"-3\",\"40\"\n",
            "age;income\n1;2.5\n-3;40\n",
            "age\tincome\n1\t2.5\n-3\t40\n",
            "\"age\";income\n+1;2.50\n-3;040\n",
        ] {
            assert_eq!(table(content).unwrap(), right, "{content:?}");
        }
        let names = table("\"age, in years\";\"income; net\"\n1;2\n").unwrap().1;
        assert_eq!(names, ["age, in years", "income; net"]);
        assert!(table("a,b\n").unwrap().0.is_empty());
    }

    #[test]
    fn a_value_that_is_none_says_what_it_is_and_where() {
        let refused = |content: &str| table(content).unwrap_err();
        assert_eq!(refused("a,b\n1,x\n"), "line 2, column 'b': 'x' is not a number");
        assert_eq!(refused("a,b\n1,2\n\n3,x\n"), "line 4, column 'b': 'x' is not a number");
        assert_eq!(refused("a,b\n\"1\n\",2\n3,x\n"), "line 4, column 'b': 'x' is not a number");
        let unclosed = "a quoted text continues on the next line: a quote (\") may be missing";
        assert_eq!(refused("a,b\n1,\"2\n3,4\n"), format!("line 2: {unclosed}"));
        assert_eq!(refused("a,\"b\n1,2\n3,4\n"), format!("line 1: {unclosed}"));
        assert_eq!(table("\"a\n(years)\",b\n1,2\n").unwrap().1, ["a\n(years)", "b"]);
        assert_eq!(refused("a,\n1,x\n"), "line 2, column 2: 'x' is not a number");
        let missing = "fill it in, or leave the row out";
        assert_eq!(
            refused("a,b\n1,2\n,4\n"),
            format!("line 3, column 'a': the value is missing (it is empty): {missing}")
        );
        assert_eq!(
            refused("a,b\n1,nan\n"),
            format!("line 2, column 'b': the value is missing (it is 'nan'): {missing}")
        );
        assert_eq!(
            refused("a,b\n1,N/A\n"),
            format!("line 2, column 'b': the value is missing (it is 'N/A'): {missing}")
        );
        assert_eq!(
            refused("a,b\n1,inf\n"),
            "line 2, column 'b': 'inf' is not finite, or too large for 32 bits"
        );
        assert_eq!(
            refused("a,b\n1,1e39\n"),
            "line 2, column 'b': '1e39' is not finite, or too large for 32 bits"
        );
        assert_eq!(
            refused("a;b\n1,5;2\n"),
            "line 2, column 'a': '1,5' has a decimal comma: write 1.5"
        );
        assert_eq!(
            refused("a,b\n\"1,5\",2\n"),
            "line 2, column 'a': '1,5' has a decimal comma: write 1.5"
        );
        assert_eq!(
            refused("a;b\n1,234.5;2\n"),
            "line 2, column 'a': '1,234.5' has separators of thousands: write 1234.5"
        );
    }

    #[test]
    fn rows_of_another_length_say_so() {
        let refused = |content: &str| table(content).unwrap_err();
        assert_eq!(refused("a,b\n1\n"), "line 2 has one value, line 1 names 2 columns (a, b)");
        let said = refused("a,b\n1,5,2,5\n");
        assert_eq!(
            said,
            "line 2 has 4 values, line 1 names 2 columns (a, b); if the numbers have decimal \
             commas, write points"
        );
        let said = refused("a,b\n1,5,\n");
        assert_eq!(
            said,
            "line 2 has 3 values, line 1 names 2 columns (a, b); there may be one separator too many"
        );
    }

    #[test]
    fn columns_that_are_not_the_models_inputs_are_named() {
        let refused = |content: &str| table(content).unwrap_err();
        let said = refused("a,b,species\n1,2,setosa\n");
        assert_eq!(
            said,
            "the table has 3 columns (a, b, species), the model takes 2 values for each sample; if \
             'species' is the label, leave it out"
        );
        let said = refused(",a,b\n0,1,2\n");
        assert!(
            said.contains("3 columns ('', a, b)")
                && said.ends_with("leave it out (in pandas, to_csv(path, index=False))"),
            "{said}"
        );
        assert!(
            refused("a,b,\n1,2,\n")
                .ends_with("the last has no name: take the ',' from the end of the lines")
        );
        assert!(
            refused("a\n1\n").ends_with(
                "the table has one column (a), the model takes 2 values for each sample"
            )
        );
        assert!(
            refused("a b\n1 2\n")
                .ends_with("separate the columns by commas, semicolons or tabs, not by spaces")
        );
        let said = refused("1,2\n3,4\n");
        assert_eq!(
            said,
            "line 1 has numbers (1, 2) where the names of the columns are expected: put a line of \
             names first"
        );
        assert!(refused("1,5;2,5\n").starts_with("line 1 has numbers (1,5, 2,5)"));
    }

    #[test]
    fn what_is_no_table_says_what_it_is() {
        let refused = |content: &[u8]| table(content).unwrap_err();
        assert_eq!(refused(b""), "the file is empty");
        assert_eq!(refused(b"\xef\xbb\xbf"), "the file is empty");
        assert_eq!(refused(b"\n\n"), "the file is empty");
        assert_eq!(refused(b"\xff\xfea\0,\0b\0"), "the text is UTF-16: save it as CSV in UTF-8");
        assert!(
            refused(b"PK\x03\x04....").starts_with("it is an archive, such as an Excel workbook")
        );
        assert_eq!(
            refused(b"a,b\n1,2\n\xe9,3\n"),
            "line 3 is not in UTF-8: save the file as CSV in UTF-8"
        );
    }
}
