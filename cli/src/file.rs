//! Output files that appear only once they are complete.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::{Failure, usage};

/// An output file that appears under its name only when it is complete.
///
/// Until then, a temporary file next to it is written. It is removed after an error. Devices and
/// pipes are written directly.
pub struct OutFile {
    path: PathBuf,
    out: Out,
}

enum Out {
    Temporary(BufWriter<NamedTempFile>, Option<Permissions>),
    Direct(BufWriter<File>),
}

impl OutFile {
    pub fn create(path: &Path) -> Result<Self, Failure> {
        Self::open(path).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    fn open(path: &Path) -> io::Result<Self> {
        let there = path.metadata().ok();
        let out = match &there {
            Some(there) if there.is_dir() => {
                return Err(io::Error::other("this is a folder: give the name of a file"));
            }
            // A device or a pipe cannot be replaced by a file.
            Some(there) if !there.is_file() => {
                Out::Direct(BufWriter::new(File::options().write(true).open(path)?))
            }
            Some(there) if there.permissions().readonly() => {
                return Err(io::Error::other("the file exists and may not be overwritten"));
            }
            _ => {
                // The target of a link is replaced, not the link.
                let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
                let folder = whole
                    .parent()
                    .filter(|folder| *folder != Path::new(""))
                    .unwrap_or(Path::new("."));
                Out::Temporary(
                    // The same folder is on the same file system, so the file can be renamed at the
                    // end.
                    BufWriter::new(temporary(folder)?),
                    there.map(|there| there.permissions()),
                )
            }
        };
        Ok(Self { path: path.to_owned(), out })
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<PathBuf, Failure> {
        let path = self.path.clone();
        self.close()
            .map_err(|error| -> Failure { format!("{}: {error}", path.display()).into() })?;
        Ok(path)
    }

    fn close(self) -> io::Result<()> {
        match self.out {
            Out::Direct(mut file) => file.flush(),
            Out::Temporary(file, permissions) => {
                let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                // A file that is replaced keeps its permissions.
                if let Some(permissions) = permissions {
                    file.as_file().set_permissions(permissions)?;
                }
                file.persist(self.path.canonicalize().unwrap_or(self.path))?;
                Ok(())
            }
        }
    }
}

/// Rejects outputs that would replace an input or each other. Each output is given as an option
/// and its value.
pub fn check_written<'a>(
    read: impl Iterator<Item = &'a PathBuf>,
    written: impl IntoIterator<Item = (&'a str, Option<&'a PathBuf>)>,
) -> Result<(), Failure> {
    let place = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut taken: Vec<PathBuf> = read.map(|path| place(path)).collect();
    for (option, path) in written {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else { continue };
        if taken.contains(&place(path)) {
            return Err(usage(format!(
                "{option}: {} is read or written already: give another name",
                path.display()
            )));
        }
        taken.push(place(path));
    }
    Ok(())
}

fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".relprop-").suffix(".part");
    // The permissions of any new file; the user's mask is applied to them.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // Without the path of the temporary file, which the user does not know.
    builder
        .tempfile_in(folder)
        .map_err(|error| io::Error::new(error.kind(), reason(error.kind(), &error)))
}

fn reason(kind: io::ErrorKind, error: &io::Error) -> String {
    match kind {
        io::ErrorKind::NotFound => "there is no such folder".to_owned(),
        io::ErrorKind::PermissionDenied => "files may not be created in this folder".to_owned(),
        _ => error.to_string(),
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.out {
            Out::Temporary(file, _) => file.write(bytes),
            Out::Direct(file) => file.write(bytes),
        };
        written.map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", self.path.display()))
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Out::Temporary(file, _) => file.flush(),
            Out::Direct(file) => file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_complete_or_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.json");
        let names = || {
            let mut names: Vec<_> = std::fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        let mut file = OutFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names().is_empty(), "nothing is left of what was not finished");

        let mut file = OutFile::create(&path).unwrap();
        file.write_all(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap().as_slice(), names()),
            (&b"whole"[..], vec!["out.json".into()])
        );

        let mut file = OutFile::create(&path).unwrap();
        file.write_all(b"other").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        drop(file);
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn what_cannot_be_written_is_said_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| OutFile::create(path).err().unwrap().to_string();
        assert!(refused(folder.path()).contains("this is a folder: give the name of a file"));
        assert!(
            refused(&folder.path().join("nothing").join("x")).ends_with("there is no such folder")
        );
        let path = folder.path().join("protected");
        std::fs::write(&path, "x").unwrap();
        let mut permissions = path.metadata().unwrap().permissions();
        permissions.set_readonly(true);
        std::fs::set_permissions(&path, permissions).unwrap();
        assert!(refused(&path).contains("may not be overwritten"));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_their_file_and_devices_are_written_at_once() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let [path, link] = ["real", "link"].map(|name| folder.path().join(name));
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut file = OutFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.finish().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);

        let mut file = OutFile::create(Path::new("/dev/null")).unwrap();
        file.write_all(b"gone").unwrap();
        file.finish().unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
