//! Zip archives, which both NumPy and PyTorch write.

use std::io::Read;

use zip::read::{ArchiveOffset, Config};
use zip::{CompressionMethod, ZipArchive};

use super::malformed;
use super::tensor::{Data, ReadSeek};
use crate::error::Error;

/// No byte of a compressed file stands for more.
const MOST: u64 = 1032;

/// The files of an archive: their names, and what is in them.
pub(super) struct Archive {
    whole: Data,
    archive: ZipArchive<Box<dyn ReadSeek>>,
}

impl Archive {
    /// With these bytes it begins.
    pub const MAGIC: &[u8] = b"PK\x03\x04";

    pub fn open(whole: &Data) -> Result<Self, Error> {
        // Left to itself, the library looks for a beginning of the archive within the file, and
        // takes a wrong one where the lengths of the files' names happen to fit.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut archive =
            ZipArchive::with_config(config, whole.reader()?).map_err(|e| unusable(&e))?;
        // A small file could give the same bytes thousands of times.
        if archive.has_overlapping_files().map_err(|e| unusable(&e))? {
            return Err(malformed("files of the archive lie over one another".to_owned()));
        }
        Ok(Self { whole: whole.clone(), archive })
    }

    /// How many bytes the archive has.
    #[cfg(feature = "pytorch")]
    pub fn length(&self) -> usize {
        self.whole.length()
    }

    /// The names of the files, in their order.
    pub fn names(&self) -> Result<Vec<String>, Error> {
        self.archive
            .file_names()
            .map(|name| name.map(Into::into).map_err(|e| unusable(&e)))
            .collect()
    }

    /// What is in a file. A compressed one is unpacked at once, others are read when they are asked
    /// for.
    pub fn file(&mut self, name: &str) -> Result<Data, Error> {
        let mut file = self.archive.by_name(name).map_err(|e| unusable(&e))?;
        let ends = || malformed(format!("the archive ends before '{name}' does"));
        match file.compression() {
            CompressionMethod::Stored => {
                let at = file.data_start().ok_or_else(ends)?;
                self.whole.part(at, file.size()).ok_or_else(ends)
            }
            CompressionMethod::Deflated => {
                // What it says to hold, if so much can be in it.
                let says = file
                    .size()
                    .min(file.compressed_size().saturating_mul(MOST))
                    .min(self.whole.length() as u64 * MOST);
                let mut content = Vec::with_capacity(usize::try_from(says).unwrap_or(0));
                file.read_to_end(&mut content)
                    .map_err(|e| malformed(format!("'{name}' cannot be unpacked: {e}")))?;
                Ok(Data::Held(content.into()))
            }
            other => Err(malformed(format!(
                "'{name}' is compressed by {other}, which is unsupported: write the archive \
                 without compression, or with deflate"
            ))),
        }
    }
}

fn unusable(error: &zip::result::ZipError) -> Error {
    let reason =
        format!("the archive is truncated or damaged ({error}): copy or download the file again");
    Error::Malformed { format: "zip".to_owned(), reason }
}
