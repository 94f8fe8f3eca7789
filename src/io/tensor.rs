//! The tensors of a file, which are read on demand.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::{malformed, recognize};
use crate::error::Error;
use crate::scalar::Scalar;

/// The most axes that a tensor can have.
pub(super) const AXES: usize = 32;

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    /// The distance in numbers between neighboring indices of each axis; C order if `None`.
    pub strides: Option<Vec<usize>>,
    pub number: Number,
    pub data: Data,
}

/// The type of a tensor's numbers, all little-endian.
#[derive(Debug, Clone)]
pub(super) enum Number {
    F16,
    BF16,
    F32,
    F64,
    /// A signed integer with this number of bytes.
    Int(usize),
    /// An unsigned integer, or a boolean, with this number of bytes.
    Uint(usize),
    /// An unsupported type, by name.
    Other(String),
}

impl Number {
    /// The size of a number in bytes, or 0 for an unsupported type.
    pub fn size(&self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Int(bytes) | Self::Uint(bytes) => *bytes,
            Self::Other(_) => 0,
        }
    }
}

/// A range of bytes, in memory or in a file.
#[derive(Debug, Clone)]
pub(super) enum Data {
    Held(Bytes),
    /// Bytes in a file, from the offset `at` on. They are read on demand, so that a model is never
    /// in memory twice.
    InFile {
        path: Arc<PathBuf>,
        at: u64,
        length: usize,
    },
}

impl Tensor {
    /// The values in C order.
    pub fn convert<T: Scalar>(&self, name: &str) -> Result<Vec<T>, Error> {
        let values = match &self.number {
            Number::F16 => self.data.numbers(|b| half::f16::from_le_bytes(b).to_f64()),
            Number::BF16 => self.data.numbers(|b| half::bf16::from_le_bytes(b).to_f64()),
            Number::F32 => self.data.numbers(|b| f64::from(f32::from_le_bytes(b))),
            Number::F64 => self.data.numbers(f64::from_le_bytes),
            Number::Int(1) => self.data.numbers(|b| i8::from_le_bytes(b).into()),
            Number::Int(2) => self.data.numbers(|b| i16::from_le_bytes(b).into()),
            Number::Int(4) => self.data.numbers(|b| i32::from_le_bytes(b).into()),
            Number::Int(_) => self.data.numbers(|b| i64::from_le_bytes(b) as f64),
            Number::Uint(1) => self.data.numbers(|b| u8::from_le_bytes(b).into()),
            Number::Uint(2) => self.data.numbers(|b| u16::from_le_bytes(b).into()),
            Number::Uint(4) => self.data.numbers(|b| u32::from_le_bytes(b).into()),
            Number::Uint(_) => self.data.numbers(|b| u64::from_le_bytes(b) as f64),
            Number::Other(kind) => Err(malformed(format!(
                "tensor {name} is of type {kind}, which is unsupported: convert it in Python to \
                 f16, bf16, f32 or f64"
            ))),
        }?;
        Ok(match &self.strides {
            Some(strides) => in_order(&self.shape, strides, &values),
            None => values,
        })
    }

    /// The number of values in a tensor of this shape, or `None` if it overflows or the shape has
    /// too many axes.
    pub fn count(shape: &[usize]) -> Option<usize> {
        if shape.len() > AXES {
            return None;
        }
        shape.iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim))
    }

    /// The strides of a shape in C order.
    pub fn steps(shape: &[usize]) -> Vec<usize> {
        let behind = |axis: usize| {
            shape[axis + 1..].iter().fold(1, |steps: usize, &dim| steps.saturating_mul(dim))
        };
        (0..shape.len()).map(behind).collect()
    }

    /// The distance from the first to the last number of a tensor with strides, counting both, or
    /// `None` if it overflows.
    pub fn span(shape: &[usize], strides: &[usize]) -> Option<usize> {
        if shape.contains(&0) {
            return Some(0);
        }
        let reach = |(&dim, &stride): (&usize, &usize)| (dim - 1).checked_mul(stride);
        shape.iter().zip(strides).map(reach).try_fold(1_usize, |sum, reach| sum.checked_add(reach?))
    }
}

/// The numbers of a tensor with strides, in C order. The caller has checked that all of them are
/// within `values`.
fn in_order<T: Scalar>(shape: &[usize], strides: &[usize], values: &[T]) -> Vec<T> {
    let count = Tensor::count(shape).unwrap_or(0);
    let mut ordered = Vec::with_capacity(count);
    let mut index = vec![0; shape.len()];
    // The position of `index` in `values`, kept up to date as the index counts up in C order.
    let mut at = 0;
    for _ in 0..count {
        ordered.push(values[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            // The axis starts again at 0, and the next axis to the left counts up.
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    ordered
}

impl Data {
    fn numbers<T: Scalar, const N: usize>(
        &self,
        number: impl Fn([u8; N]) -> f64,
    ) -> Result<Vec<T>, Error> {
        let convert = |bytes: &[u8], numbers: &mut Vec<T>| {
            numbers
                .extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| T::from_f64(number(bytes))));
        };
        match self {
            Self::Held(bytes) => {
                let mut numbers = Vec::with_capacity(bytes.len() / N);
                convert(bytes, &mut numbers);
                Ok(numbers)
            }
            Self::InFile { path, at, length } => {
                // Reading in parts avoids a second copy of the whole tensor.
                // Its size is a multiple of that of any number, so no number is cut in two.
                const PART: usize = 1 << 20;
                let failed = |source| Error::io(path, source);
                let mut file = self.reader()?;
                file.seek(SeekFrom::Start(*at)).map_err(failed)?;
                let mut numbers = Vec::with_capacity(length / N);
                let mut part = vec![0; PART.min(*length)];
                for from in (0..*length).step_by(PART) {
                    let part = &mut part[..PART.min(length - from)];
                    file.read_exact(part).map_err(failed)?;
                    convert(part, &mut numbers);
                }
                Ok(numbers)
            }
        }
    }
}

/// A source to read from, a file or memory.
pub(super) trait ReadSeek: Read + Seek {}
impl<R: Read + Seek> ReadSeek for R {}

impl Data {
    /// All bytes of a file, which must not change while this is in use.
    pub fn of_file(path: &Path) -> Result<Self, Error> {
        let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        if metadata.is_dir() {
            return Err(Error::io(
                path,
                std::io::Error::new(ErrorKind::IsADirectory, recognize::of_folder(path)),
            ));
        }
        let length = usize::try_from(metadata.len())
            .map_err(|_| malformed("the file is too large for this platform".to_owned()))?;
        Ok(Self::InFile { path: Arc::new(path.to_owned()), at: 0, length })
    }

    pub fn length(&self) -> usize {
        match self {
            Self::Held(bytes) => bytes.len(),
            Self::InFile { length, .. } => *length,
        }
    }

    /// The part that begins at `from` and has `length` bytes, or `None` if it does not fit.
    pub fn part(&self, from: u64, length: u64) -> Option<Self> {
        let end = from.checked_add(length).filter(|&end| end <= self.length() as u64)?;
        let (first, end) = (usize::try_from(from).ok()?, usize::try_from(end).ok()?);
        Some(match self {
            Self::Held(bytes) => Self::Held(bytes.slice(first..end)),
            Self::InFile { path, at, .. } => {
                Self::InFile { path: path.clone(), at: at + from, length: end - first }
            }
        })
    }

    /// Reads the first `length` bytes, or all if there are fewer.
    pub fn beginning(&self, length: usize) -> Result<Bytes, Error> {
        self.part(0, self.length().min(length) as u64)
            .map_or_else(|| Ok(Bytes::new()), |part| part.read())
    }

    pub fn read(&self) -> Result<Bytes, Error> {
        match self {
            Self::Held(bytes) => Ok(bytes.clone()),
            Self::InFile { path, at, length } => {
                let mut bytes = vec![0; *length];
                let mut reader = self.reader()?;
                let all =
                    reader.seek(SeekFrom::Start(*at)).and_then(|_| reader.read_exact(&mut bytes));
                all.map_err(|source| Error::io(path, source))?;
                Ok(bytes.into())
            }
        }
    }

    /// Returns a reader for the whole file that contains these bytes.
    pub fn reader(&self) -> Result<Box<dyn ReadSeek>, Error> {
        Ok(match self {
            Self::Held(bytes) => Box::new(Cursor::new(bytes.clone())),
            Self::InFile { path, .. } => {
                Box::new(File::open(&**path).map_err(|source| Error::io(path, source))?)
            }
        })
    }
}
