//! Reads the IDX files of MNIST: a magic number, big-endian dimensions, then one byte per value.
//! The files can be compressed with gzip.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

/// The largest number of values in a file. This is twenty times the training set of MNIST.
const LARGEST: usize = 1 << 30;

const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;

/// Images of the same size, with one byte per pixel, row by row.
#[derive(Debug, PartialEq, Eq)]
pub struct Images {
    /// The height of an image.
    pub rows: usize,
    /// The width of an image.
    pub columns: usize,
    pixels: Vec<u8>,
}

impl Images {
    /// Iterates over the images.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.rows * self.columns)
    }
}

/// Images and their labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The images. There is at least one.
    pub images: Images,
    /// One label per image.
    pub labels: Vec<u8>,
}

impl Dataset {
    /// Reads images and labels from a pair of readers.
    pub fn read(images: impl BufRead, labels: impl BufRead) -> Result<Self, String> {
        let images = read_images(images).map_err(|reason| format!("the images: {reason}"))?;
        let labels = read_labels(labels).map_err(|reason| format!("the labels: {reason}"))?;
        let count = images.iter().len();
        if count != labels.len() {
            return Err(format!("there are {count} images, but {} labels", labels.len()));
        }
        Ok(Self { images, labels })
    }

    /// Reads a pair of files in a folder: the test set if it exists, otherwise the first pair by
    /// name.
    pub fn open(folder: &Path) -> Result<Self, String> {
        let (images, labels) = find_pair(folder)?;
        let open = |path: &Path| {
            File::open(path)
                .map(BufReader::new)
                .map_err(|error| format!("{}: {error}", path.display()))
        };
        Self::read(open(&images)?, open(&labels)?)
            .map_err(|reason| format!("{}: {reason}", folder.display()))
    }
}

/// Reads an image file.
pub fn read_images(file: impl BufRead) -> Result<Images, String> {
    let (dimensions, pixels) = read(file, IMAGES)?;
    match dimensions.as_slice() {
        &[_, rows, columns] => Ok(Images { rows, columns, pixels }),
        _ => Err("images need three dimensions".to_owned()),
    }
}

/// Reads a label file.
pub fn read_labels(file: impl BufRead) -> Result<Vec<u8>, String> {
    read(file, LABELS).map(|(_, labels)| labels)
}

/// Reads the dimensions and the values of a file with this magic number.
fn read(mut file: impl BufRead, magic: u32) -> Result<(Vec<usize>, Vec<u8>), String> {
    let packed = file.fill_buf().map_err(|error| error.to_string())?.starts_with(&[0x1f, 0x8b]);
    if packed { read_plain(GzDecoder::new(file), magic) } else { read_plain(file, magic) }
}

fn read_plain(mut file: impl Read, magic: u32) -> Result<(Vec<usize>, Vec<u8>), String> {
    let found = read_number(&mut file)?;
    if found != magic {
        return Err(format!(
            "not an IDX file of this kind: it starts with {found:#010x}, not with {magic:#010x}"
        ));
    }
    // The lowest byte of the magic number is the number of dimensions.
    let dimensions =
        (0..magic & 0xff).map(|_| read_number(&mut file)).collect::<Result<Vec<_>, _>>()?;
    let dimensions: Vec<usize> =
        dimensions.into_iter().filter_map(|side| usize::try_from(side).ok()).collect();
    let size = dimensions.iter().try_fold(1, |size: usize, &side| size.checked_mul(side));
    let size = size
        .filter(|&size| size <= LARGEST)
        .ok_or_else(|| format!("the header says {dimensions:?}, which is more than 1 GiB"))?;
    if size == 0 {
        return Err(format!("the file is empty: its header says {dimensions:?}"));
    }
    // Reading one byte more than expected shows whether the file is too long. The buffer grows with
    // the data, so a false header does not allocate memory.
    let mut values = Vec::new();
    file.take(size as u64 + 1).read_to_end(&mut values).map_err(|error| describe(&error))?;
    match values.len() {
        length if length < size => {
            Err(format!("truncated: the header says {size} values, but the file has {length}"))
        }
        length if length > size => {
            Err(format!("too long: the header says {size} values, but the file has more"))
        }
        _ => Ok((dimensions, values)),
    }
}

fn read_number(file: &mut impl Read) -> Result<u32, String> {
    let mut bytes = [0; 4];
    file.read_exact(&mut bytes).map_err(|error| describe(&error))?;
    Ok(u32::from_be_bytes(bytes))
}

fn describe(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        "truncated".to_owned()
    } else {
        error.to_string()
    }
}

/// Finds an image file and a label file that belong together.
fn find_pair(folder: &Path) -> Result<(PathBuf, PathBuf), String> {
    const IMAGES: &str = "images-idx3-ubyte";
    const LABELS: &str = "labels-idx1-ubyte";
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    let entries =
        fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let mut names: Vec<String> =
        entries.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // The test set comes first, and then all names in alphabetical order.
    names.sort_by_key(|name| (!name.starts_with("t10k"), name.clone()));
    // The text before the kind is the name of the set. The suffix is ignored, because one file of
    // a pair may be compressed and the other not.
    let set = |name: &str, kind: &str| name.split_once(kind).map(|(set, _)| set.to_owned());
    let pair = names.iter().find_map(|images| {
        let wanted = set(images, IMAGES)?;
        let labels = names.iter().find(|labels| set(labels, LABELS).as_ref() == Some(&wanted))?;
        Some((folder.join(images), folder.join(labels)))
    });
    pair.ok_or_else(|| {
        format!("{}: no pair of files *{IMAGES} and *{LABELS}, plain or .gz", folder.display())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn file(magic: u32, dimensions: &[u32], values: &[u8]) -> Vec<u8> {
        let header =
            [magic].into_iter().chain(dimensions.iter().copied()).flat_map(u32::to_be_bytes);
        header.chain(values.iter().copied()).collect()
    }

    fn pack(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes)?;
        encoder.finish()
    }

    #[test]
    fn plain_and_packed_files_are_the_same() -> Result<(), Box<dyn std::error::Error>> {
        let images = file(IMAGES, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        let labels = file(LABELS, &[2], &[7, 8]);
        let set = Dataset::read(images.as_slice(), labels.as_slice())?;
        assert_eq!(set, Dataset::read(pack(&images)?.as_slice(), pack(&labels)?.as_slice())?);
        assert_eq!(set.images.iter().collect::<Vec<_>>(), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(set.labels, [7, 8]);
        Ok(())
    }

    #[test]
    fn damaged_files_are_errors() -> Result<(), Box<dyn std::error::Error>> {
        let good = file(IMAGES, &[2, 1, 3], &[1, 2, 3, 4, 5, 6]);
        for length in 0..good.len() {
            assert!(read_images(&good[..length]).is_err(), "{length}");
        }
        let packed = pack(&good)?;
        for length in 0..packed.len() - 8 {
            assert!(read_images(&packed[..length]).is_err(), "{length}");
        }
        let bad = [
            file(LABELS, &[6], &[0; 6]),
            file(IMAGES, &[2, 1, 3], &[0; 7]),
            file(IMAGES, &[0, 28, 28], &[]),
            file(IMAGES, &[2, 0, 0], &[]),
            file(IMAGES, &[u32::MAX; 3], &[0; 9]),
            file(IMAGES, &[1 << 20, 32, 32], &[0; 9]),
        ];
        for bytes in bad {
            assert!(read_images(bytes.as_slice()).is_err());
        }
        let three = file(LABELS, &[3], &[0; 3]);
        assert!(Dataset::read(good.as_slice(), three.as_slice()).is_err());
        Ok(())
    }
}
