//! Zip archives, the container format of both NumPy and PyTorch.

use std::io::Read;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::malformed;
use super::tensor::{Data, ReadSeek};
use crate::error::Error;

/// The highest compression ratio of deflate: one byte expands to at most this many.
const MOST: u64 = 1032;

/// A zip archive, with access to its files by name.
pub(super) struct Archive {
    whole: Data,
    archive: ZipArchive<Box<dyn ReadSeek>>,
}

impl Archive {
    /// The first bytes of an archive.
    pub const MAGIC: &[u8] = b"PK\x03\x04";

    pub fn open(whole: &Data) -> Result<Self, Error> {
        // By default, the library searches the file for the beginning of the archive, and finds a
        // wrong one if the lengths of the files' names happen to fit.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut archive =
            ZipArchive::with_config(config, whole.reader()?).map_err(|e| unusable(&e))?;
        // With overlapping files, a small archive could expand to thousands of times its size.
        if archive.has_overlapping_files().map_err(|e| unusable(&e))? {
            return Err(malformed(
                "files in the zip archive overlap, so it is damaged: copy or download it again"
                    .to_owned(),
            ));
        }
        Ok(Self { whole: whole.clone(), archive })
    }

    /// The size of the archive in bytes.
    #[cfg(feature = "pytorch")]
    pub fn length(&self) -> usize {
        self.whole.length()
    }

    /// The names of the files, in the order of the archive.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        self.archive
            .file_names()
            .map(|name| name.map(Into::into).map_err(|e| unusable(&e)))
            .collect()
    }

    /// The content of a file. A compressed file is decompressed immediately, and any other is read
    /// on demand.
    pub fn file(&mut self, name: &str) -> Result<Data, Error> {
        let mut file = self.archive.by_name(name).map_err(|e| unusable(&e))?;
        let ends = || {
            malformed(format!(
                "the archive ends in the middle of '{name}': copy or download it again"
            ))
        };
        match file.compression() {
            CompressionMethod::Stored => {
                let at = file.data_start().ok_or_else(ends)?;
                self.whole.part(at, file.size()).ok_or_else(ends)
            }
            CompressionMethod::Deflated => {
                // The size that the archive claims, but no more than its compressed data can hold.
                let says = file
                    .size()
                    .min(file.compressed_size().saturating_mul(MOST))
                    .min(self.whole.length() as u64 * MOST);
                let mut content = Vec::with_capacity(usize::try_from(says).unwrap_or(0));
                file.read_to_end(&mut content).map_err(|e| {
                    malformed(format!(
                        "'{name}' cannot be decompressed ({e}): copy or download the file again"
                    ))
                })?;
                Ok(Data::Held(content.into()))
            }
            other => Err(malformed(format!(
                "'{name}' is compressed with {other}, which is unsupported: write the archive \
                 without compression or with deflate"
            ))),
        }
    }
}

fn unusable(error: &zip::result::ZipError) -> Error {
    let reason =
        format!("the archive is truncated or damaged ({error}): copy or download the file again");
    Error::Malformed { format: "zip".to_owned(), reason }
}
