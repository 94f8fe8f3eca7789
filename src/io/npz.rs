//! NumPy arrays, in single files and in archives.

use bytes::Bytes;

use super::architecture::shortened;
use super::archive::Archive;
use super::tensor::{Data, Number, Tensor};
use super::{StateDict, recognize};
use crate::error::Error;

/// The first bytes of an array.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// The longest header that is supported.
const LONGEST: usize = 1 << 16;

/// Whether there is an array among the files of an archive.
pub(super) fn has_arrays(names: &[String]) -> bool {
    names.iter().any(|name| name.strip_suffix(".npy").is_some())
}

impl StateDict {
    /// Reads the content of an `.npz` or `.npy` file.
    ///
    /// The functions `numpy.savez` and `numpy.savez_compressed` write `.npz` files. The tensors
    /// have the names of the arrays. An `.npy` file holds one array without a name; its tensor is
    /// called `arr_0`, as NumPy would call it.
    ///
    /// In Python, the following line saves a network with two dense layers:
    ///
    /// ```text
    /// numpy.savez("weights.npz", **{"0.weight": w0, "0.bias": b0, "2.weight": w2, "2.bias": b2})
    /// ```
    ///
    /// Integers and booleans are supported too, because an array can hold samples. A `Vec<u8>` is
    /// not copied.
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
                "NumPy (.npz, .npy) files",
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
            format!("it is {what}: enable the crate feature `pytorch` to read it")
        }
        Some(what @ recognize::CHECKPOINT) => {
            format!("it is {what}: read it with StateDict::open or StateDict::from_pytorch")
        }
        Some(what) => format!("it is {what}"),
        None if names.is_empty() => {
            "the archive is empty: write it again with numpy.savez".to_owned()
        }
        None => {
            format!(
                "there is no array (.npy file) in the archive, whose first files are {listed}: \
                 write it with numpy.savez"
            )
        }
    })
}

/// The array of an `.npy` file, which consists of a magic number, the version of the format, the
/// length of the header, the header, and the values.
fn array(file: &Data) -> Result<Tensor, Error> {
    let ends = || malformed("the array is truncated: copy or download the file again");
    let beginning = file.beginning(LONGEST)?;
    let (length, behind) = match *beginning.strip_prefix(MAGIC).ok_or_else(|| {
        malformed("it does not begin like a NumPy array: write it with numpy.save")
    })? {
        // Version 1 has a length of two bytes, and later versions have one of four. The second
        // number is the offset of the header.
        [1, _, low, high, ..] => (u32::from(u16::from_le_bytes([low, high])), 10),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([a, b, c, d]), 12),
        _ => {
            return Err(malformed(
                "its format version is not 1, 2 or 3: write it again with numpy.save",
            ));
        }
    };
    let header = beginning.get(behind..behind + length as usize).ok_or_else(ends)?;
    let header = Header::parse(&String::from_utf8_lossy(header))
        .ok_or_else(|| malformed("its header is damaged: write it again with numpy.save"))?;
    let Header { number, fortran, shape } = header;
    let bytes = Tensor::count(&shape)
        .and_then(|count| count.checked_mul(number.size()))
        .ok_or_else(ends)?;
    let data = file.part(behind as u64 + u64::from(length), bytes as u64).ok_or_else(ends)?;
    // In Fortran order, the strides are those of the reversed shape, in reverse order.
    let strides = fortran.then(|| {
        let turned: Vec<usize> = shape.iter().rev().copied().collect();
        Tensor::steps(&turned).into_iter().rev().collect()
    });
    Ok(Tensor { shape, strides, number, data })
}

/// The header of an array, a dictionary as Python prints it:
/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`.
struct Header {
    number: Number,
    /// Whether the array is in Fortran order, in which the first index changes fastest.
    fortran: bool,
    shape: Vec<usize>,
}

impl Header {
    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
        let (mut number, mut fortran, mut shape) = (None, None, None);
        while !rest.is_empty() {
            // One `'key': value` per turn.
            let (key, behind) = rest.strip_prefix('\'')?.split_once('\'')?;
            rest = behind.trim_start().strip_prefix(':')?.trim_start();
            let end = match rest.chars().next()? {
                '(' => rest.find(')')? + 1,
                // Structured arrays have a list here, which contains commas.
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
        // `<` means little-endian, and `|` that there is no byte order.
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
