//! Recognizing files by their first bytes, so that the error for an unsupported file says what the
//! file is.

// No single format uses all of it.
#![cfg_attr(
    not(all(feature = "npz", feature = "onnx", feature = "pytorch", feature = "safetensors")),
    allow(dead_code)
)]

use std::path::Path;

/// The number of leading bytes that [`recognize`] looks at.
pub(crate) const ENOUGH: usize = 512;

/// The kinds of files that the crate can read, each with a reader of its own.
pub(crate) const SAFETENSORS: &str = "a safetensors file";
pub(crate) const CHECKPOINT: &str = "a PyTorch checkpoint";
pub(crate) const ARRAY: &str = "a NumPy array (.npy)";
pub(crate) const ARRAYS: &str = "an archive of NumPy arrays (.npz)";
pub(crate) const ARCHIVE: &str = "a zip archive";
pub(crate) const ONNX: &str = "an ONNX model";

/// The kind of a file, recognized by its first [`ENOUGH`] bytes, or `None` if it is unknown.
///
/// The text continues a sentence that begins with "it is", such as "an HTML page". It includes
/// advice if the same advice holds for every reader.
pub(crate) fn recognize(beginning: &[u8]) -> Option<&'static str> {
    // This comes first because a safetensors file begins with the length of its header, which can
    // look like the magic number of any other format.
    if let [_, _, _, _, _, _, 0, 0, b'{', ..] = beginning {
        return Some(SAFETENSORS);
    }
    let magic =
        MAGICS.iter().find(|(magic, _)| beginning.starts_with(magic)).map(|(_, what)| *what);
    magic.or_else(|| match beginning {
        [] => Some("an empty file: write or download it again"),
        // The list of all names is at the end of the file, so only the first name is available
        // here.
        [b'P', b'K', 3, 4, ..] => {
            Some(first_name(beginning).and_then(|name| of_archive(&[name])).unwrap_or(ARCHIVE))
        }
        // A pickle begins with an instruction that gives the version of its protocol.
        [0x80, 2..=5, number @ ..] if number.starts_with(LEGACY) => Some(CHECKPOINT),
        [0x80, 2..=5, ..] => Some("a Python pickle"),
        _ if beginning.get(257..262) == Some(b"ustar") => Some("a tar archive: unpack it first"),
        // FlatBuffers files have their identifier after an offset of four bytes.
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => {
            Some("a TensorFlow Lite model: export the model to ONNX with tf2onnx")
        }
        // ONNX models and saved models are protobuf messages that begin with a version number,
        // which has the tag 8.
        [8, 1, 0x12, graph @ ..] if is_saved_model(graph) => Some(SAVED_MODEL),
        [8, 1..=20, ..] => Some(ONNX),
        _ => of_text(beginning),
    })
}

/// The reason for rejecting a file when the reader only supports these formats.
pub(crate) fn instead(what: Option<&str>, formats: &str) -> String {
    match what {
        Some(what) if what.contains(':') => format!("it is {what}"),
        Some(what) => format!("it is {what}, but only {formats} are supported here"),
        None => format!("its format is unknown: only {formats} are supported here"),
    }
}

/// The pickled number with which checkpoints from before PyTorch 1.6 begin.
pub(crate) const LEGACY: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const MAGICS: [(&[u8], &str); 18] = [
    (b"\x93NUMPY", ARRAY),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (
        b"version https://git-lfs",
        "a Git LFS pointer: the file itself was not downloaded; run `git lfs pull`",
    ),
    (b"GGUF", "a GGUF file, the format of llama.cpp: language models are unsupported"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first (`gunzip`, or `tar -xzf`)"),
    (b"BZh", "compressed with bzip2: unpack it first (`bunzip2`, or `tar -xjf`)"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it first (`unxz`, or `tar -xJf`)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard: unpack it first (`unzstd`)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file (.mat)"),
    (b"PAR1", "a Parquet table"),
    (b"ccopy_reg\n", "a Python pickle"),
    (b"\x7fELF", "a program or a library"),
];

const HDF5: &str = "an HDF5 file, such as the .h5 files of Keras: load the model in Keras and \
    export it to ONNX (`model.export(\"model.onnx\", format=\"onnx\")`)";

const SAVED_MODEL: &str = "a TensorFlow saved model: export the model to ONNX (`python -m \
    tf2onnx.convert --saved-model FOLDER --output model.onnx`)";

/// The reason for rejecting a folder that was given instead of a file.
pub(crate) fn of_folder(path: &Path) -> String {
    if path.join("saved_model.pb").exists() {
        format!("it is the folder of {SAVED_MODEL}")
    } else if path.join("data.pkl").exists() {
        "it is a folder, an unpacked PyTorch checkpoint: give the path of the original file"
            .to_owned()
    } else {
        "it is a folder: give the path of a file".to_owned()
    }
}

/// The kind of a zip archive that holds files with these names.
pub(crate) fn of_archive(names: &[impl AsRef<str>]) -> Option<&'static str> {
    let holds = |ends: &[&str]| {
        names.iter().any(|name| ends.iter().any(|end| name.as_ref().ends_with(end)))
    };
    let in_folder = |folder: &str| names.iter().any(|name| name.as_ref().contains(folder));
    if names.iter().any(|name| matches!(name.as_ref(), "metadata.json" | "model.weights.h5")) {
        Some(
            "a Keras model (.keras): load it in Keras and export it to ONNX \
             (`model.export(\"model.onnx\", format=\"onnx\")`)",
        )
    } else if holds(&["archive_format", "serialized_exported_program.json"])
        || in_folder("models/model.json")
    {
        Some(
            "a program saved by torch.export (.pt2): save the weights with \
             torch.save(net.state_dict(), path), or export the model with torch.onnx.export",
        )
    } else if holds(&["constants.pkl"]) || in_folder("/code/__torch__") {
        Some(
            "a TorchScript archive (torch.jit.save): save the weights of the module with \
             torch.save(net.state_dict(), path), or export the model with torch.onnx.export",
        )
    } else if holds(&["data.pkl"]) {
        Some(CHECKPOINT)
    } else if holds(&[".npy"]) {
        Some(ARRAYS)
    } else if holds(&["Manifest.json", ".mlmodel"]) {
        Some("a Core ML model: export the original model to ONNX")
    } else {
        None
    }
}

/// The name of the first file of a zip archive.
fn first_name(beginning: &[u8]) -> Option<&str> {
    // An entry's header has the length of its name at byte 26, and the name at byte 30.
    let length = u16::from_le_bytes(*beginning.get(26..)?.first_chunk()?);
    std::str::from_utf8(beginning.get(30..30 + usize::from(length))?).ok()
}

/// Whether these bytes, after the field's tag, hold the graph of a saved model, which begins with
/// its metadata. In an ONNX model, the same field holds the name of the producer.
fn is_saved_model(graph: &[u8]) -> bool {
    // The field begins with its length, a varint, whose bytes other than the last have the high bit
    // set. The metadata is the graph's first field, with the tag 0x0a.
    let length = graph.iter().take(10).take_while(|&&byte| byte >= 0x80).count() + 1;
    graph.get(length) == Some(&0x0a)
}

/// The kind of a text file.
fn of_text(beginning: &[u8]) -> Option<&'static str> {
    // Skip a byte order mark.
    let bytes = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning);
    // The last character may be cut in two.
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.contains(|c: char| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let text = text.trim_start();
    let begins = |with: &str| {
        text.get(..with.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(with))
    };
    Some(if begins("<!doctype html") || begins("<html") || begins("<head") {
        "an HTML page: a web server sent a page instead of the file; download the file itself"
    } else if begins("<?xml") || begins("<Error") {
        "an XML document: a web server may have sent an error instead of the file; download the \
         file again"
    } else if text.starts_with(['{', '[']) {
        "a JSON document"
    } else if begins("(dp") || begins("(lp") {
        "a Python pickle"
    } else if text.is_empty() {
        return None;
    } else {
        "a text file"
    })
}
