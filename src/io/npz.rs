//! NumPy's arrays, one by one and in archives.

use bytes::Bytes;

use super::architecture::shortened;
use super::archive::Archive;
use super::tensor::{Data, Number, Tensor};
use super::{StateDict, recognize};
use crate::error::Error;

/// With these bytes an array begins.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// No header is longer.
const LONGEST: usize = 1 << 16;

/// Whether there is an array among the files of an archive.
pub(super) fn has_arrays(names: &[String]) -> bool {
    names.iter().any(|name| name.strip_suffix(".npy").is_some())
}

impl StateDict {
    /// Reads the content of an `.npz` file, as `numpy.savez` and `numpy.savez_compressed` write it;
    /// the tensors have the arrays' names. An `.npy` file, which holds one array without a name, is
    /// read too: it is called `arr_0`, as NumPy would.
    ///
    /// In NumPy, for a network of two dense layers, `numpy.savez("weights.npz", **{"0.weight": w0,
    /// "0.bias": b0, "2.weight": w2, "2.bias": b2})`.
    ///
    /// Whole numbers and truth values are read, too: an array may be one of samples. A `Vec<u8>` is
    /// taken as it is.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_npz(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let whole = Data::Held(bytes.into());
        let beginning = whole.beginning(recognize::ENOUGH)?;
        if beginning.starts_with(MAGIC) {
            Self::of_npy(&whole)
        } else if beginning.starts_with(Archive::MAGIC) {
            Self::of_npz(Archive::open(&whole)?)
        } else {
            Err(malformed(&recognize::instead(
                recognize::recognize(&beginning),
                "NumPy's .npz and .npy",
            )))
        }
    }

    pub(super) fn of_npy(whole: &Data) -> Result<Self, Error> {
        Ok(Self::of([("arr_0".to_owned(), array(whole)?)]))
    }

    pub(super) fn of_npz(mut archive: Archive) -> Result<Self, Error> {
        let mut tensors = Vec::new();
        for file in archive.names()? {
            if let Some(name) = file.strip_suffix(".npy") {
                let array = array(&archive.file(&file)?).map_err(|error| match error {
                    Error::Malformed { format, reason } => {
                        Error::Malformed { format, reason: format!("'{name}': {reason}") }
                    }
                    other => other,
                })?;
                tensors.push((name.to_owned(), array));
            }
        }
        if tensors.is_empty() {
            return Err(no_array(&archive.names()?));
        }
        Ok(Self::of(tensors))
    }
}

/// The error for an archive without an array.
fn no_array(names: &[String]) -> Error {
    let listed = names.iter().take(5).map(|name| shortened(name)).collect::<Vec<_>>().join(", ");
    malformed(&match recognize::of_archive(names) {
        Some(what @ recognize::CHECKPOINT) if cfg!(not(feature = "pytorch")) => {
            format!("it is {what}: switch on the feature `pytorch` of the crate to read it")
        }
        Some(what @ recognize::CHECKPOINT) => {
            format!("it is {what}: read it with StateDict::open or StateDict::from_pytorch")
        }
        Some(what) => format!("it is {what}"),
        None if names.is_empty() => "there is no file in the archive, and so no array".to_owned(),
        None => {
            format!("there is no array (a file .npy) in the archive; its files begin with {listed}")
        }
    })
}

/// The array of an `.npy` file: a magic number, the format's version, the header's length, the
/// header, the values.
fn array(file: &Data) -> Result<Tensor, Error> {
    let ends = || {
        malformed("the file ends before its array does: it is truncated, copy or download it again")
    };
    let beginning = file.beginning(LONGEST)?;
    let (length, behind) = match *beginning
        .strip_prefix(MAGIC)
        .ok_or_else(|| malformed("it does not begin as an array of NumPy"))?
    {
        [1, _, low, high, ..] => (u32::from(u16::from_le_bytes([low, high])), 10),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]), 12),
        _ => return Err(malformed("its version is not 1, 2 or 3")),
    };
    let header = beginning.get(behind..behind + length as usize).ok_or_else(ends)?;
    let header = Header::parse(&String::from_utf8_lossy(header))
        .ok_or_else(|| malformed("its header cannot be read"))?;
    let Header { number, fortran, shape } = header;
    let bytes = Tensor::count(&shape)
        .and_then(|count| count.checked_mul(number.size()))
        .ok_or_else(ends)?;
    let data = file.part(behind as u64 + u64::from(length), bytes as u64).ok_or_else(ends)?;
    let strides = fortran.then(|| {
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        Tensor::steps(&turned).into_iter().rev().collect()
    });
    Ok(Tensor { shape, strides, number, data })
}

/// What the header of an array says, a dictionary as Python prints it:
/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
struct Header {
    number: Number,
    /// The first axis runs fastest.
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut number, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            let (key, behind) = rest.strip_prefix('\'')?.split_once('\'')?;
            rest = behind.trim_start().strip_prefix(':')?.trim_start();
            let end = match rest.chars().next()? {
                '(' => rest.find(')')? + 1,
                // Arrays of records have a list here, with commas of its own.
                '[' => rest.rfind(']')? + 1,
                _ => rest.find(',').unwrap_or(rest.len()),
            };
            let value = rest[..end].trim();
            rest = rest[end..].trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
            match key {
                "descr" => number = Some(number_of(value)),
                "fortran_order" => fortran = Some(matches!(value, "True")),
                "shape" => shape = Some(shape_of(value)?),
                _ => return None,
            }
        }
        Some(Self { number: number?, fortran: fortran?, shape: shape? })
    }
}

fn number_of(descr: &str) -> Number {
    match descr.trim_matches('\'') {
        "<f2" => Number::F16,
        "<f4" => Number::F32,
        "<f8" => Number::F64,
        "|i1" => Number::Int(1),
        "<i2" => Number::Int(2),
        "<i4" => Number::Int(4),
        "<i8" => Number::Int(8),
        "|u1" | "|b1" => Number::Uint(1),
        "<u2" => Number::Uint(2),
        "<u4" => Number::Uint(4),
        "<u8" => Number::Uint(8),
        _ => Number::Other(descr.chars().take(20).collect()),
    }
}

fn shape_of(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('(')?.strip_suffix(')')?;
    let dims =
        inner.split(',').map(str::trim).filter(|dim| !dim.is_empty()).map(|dim| dim.parse().ok());
    dims.collect()
}

fn malformed(reason: &str) -> Error {
    Error::Malformed { format: "NumPy".to_owned(), reason: reason.to_owned() }
}
