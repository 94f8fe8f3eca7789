//! What a file is, by its first bytes: a reader that cannot use a file says what it was given.

// No format has need of all of it.
#![cfg_attr(
    not(all(feature = "npz", feature = "onnx", feature = "pytorch", feature = "safetensors")),
    allow(dead_code)
)]

use std::path::Path;

/// So many first bytes tell all that is told.
pub(crate) const ENOUGH: usize = 512;

/// What other readers than the one that was given the file can use.
pub(crate) const SAFETENSORS: &str = "a safetensors file";
pub(crate) const CHECKPOINT: &str = "a PyTorch checkpoint";
pub(crate) const ARRAY: &str = "a NumPy array (.npy)";
pub(crate) const ARRAYS: &str = "an archive of NumPy arrays (.npz)";
pub(crate) const ARCHIVE: &str = "a zip archive";
pub(crate) const ONNX: &str = "an ONNX model";

/// What a file's first bytes (of [`ENOUGH`]) say that it is, with what to do where that is the same
/// for every reader: "an HTML page". `None` where they say nothing. A sentence is made of it by "it
/// is".
pub(crate) fn recognize(beginning: &[u8]) -> Option<&'static str> {
    // First: the length of the header, with which it begins, can be the magic number of anything.
    if let [_, _, _, _, _, _, 0, 0, b'{', ..] = beginning {
        return Some(SAFETENSORS);
    }
    let magic =
        MAGICS.iter().find(|(magic, _)| beginning.starts_with(magic)).map(|(_, what)| *what);
    magic.or_else(|| match beginning {
        [] => Some("an empty file: it was not written or downloaded as a whole"),
        [b'P', b'K', 3, 4, ..] => {
            Some(first_name(beginning).and_then(|name| of_archive(&[name])).unwrap_or(ARCHIVE))
        }
        [0x80, 2..=5, number @ ..] if number.starts_with(LEGACY) => Some(CHECKPOINT),
        [0x80, 2..=5, ..] => Some("a Python pickle"),
        _ if beginning.get(257..262) == Some(b"ustar") => Some("a tar archive: unpack it first"),
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => {
            Some("a TensorFlow Lite model: export the model to ONNX with tf2onnx")
        }
        [8, 1, 0x12, graph @ ..] if is_saved_model(graph) => Some(SAVED_MODEL),
        [8, 1..=20, ..] => Some(ONNX),
        _ => of_text(beginning),
    })
}

/// What is said of a file that a reader of other formats was given.
pub(crate) fn instead(what: Option<&str>, formats: &str) -> String {
    match what {
        Some(what) if what.contains(':') => format!("it is {what}"),
        Some(what) => format!("it is {what}, which is unsupported here: only {formats} are"),
        None => format!("its format is unknown: only {formats} are supported here"),
    }
}

/// The number that a checkpoint of before PyTorch 1.6 begins with, as a pickle.
pub(crate) const LEGACY: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

const MAGICS: [(&[u8], &str); 18] = [
    (b"\x93NUMPY", ARRAY),
    (b"\x89HDF\r\n\x1a\n", HDF5),
    (
        b"version https://git-lfs",
        "a Git LFS pointer: the file itself was not downloaded; run `git lfs pull`",
    ),
    (b"GGUF", "a GGUF file, as llama.cpp uses: language models are unsupported"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "packed with gzip: unpack it first (`gunzip`, or `tar -xzf`)"),
    (b"BZh", "packed with bzip2: unpack it first (`bunzip2`, or `tar -xjf`)"),
    (b"\xfd7zXZ\0", "packed with xz: unpack it first (`unxz`, or `tar -xJf`)"),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard: unpack it first (`unzstd`)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"Rar!", "a RAR archive: unpack it first"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%PDF", "a PDF document"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file (.mat)"),
    (b"PAR1", "a Parquet table"),
    (b"ccopy_reg\n", "a Python pickle"),
    (b"\x7fELF", "a program or a library"),
];

const HDF5: &str = "an HDF5 file, as Keras writes .h5: load the model in Keras and export it to \
    ONNX (`model.export(\"model.onnx\", \
                    format=\"onnx\")`)";

const SAVED_MODEL: &str = "a TensorFlow saved model: export the model to ONNX (`python -m \
    tf2onnx.convert --saved-model FOLDER \
                           --output model.onnx`)";

/// What a folder is, in the place of a file.
pub(crate) fn of_folder(path: &Path) -> String {
    if path.join("saved_model.pb").exists() {
        format!("it is the folder of {SAVED_MODEL}")
    } else if path.join("data.pkl").exists() {
        "it is a folder, an unpacked PyTorch checkpoint: give the file that it was unpacked from"
            .to_owned()
    } else {
        "it is a folder: give the path of a file".to_owned()
    }
}

/// What a zip archive is that holds files of these names.
pub(crate) fn of_archive(names: &[impl AsRef<str>]) -> Option<&'static str> {
    let holds = |ends: &[&str]| {
        names.iter().any(|name| ends.iter().any(|end| name.as_ref().ends_with(end)))
    };
    let in_folder = |folder: &str| names.iter().any(|name| name.as_ref().contains(folder));
    if names.iter().any(|name| matches!(name.as_ref(), "metadata.json" | "model.weights.h5")) {
        Some(
            "a Keras model (.keras): export it to ONNX in Keras (`model.export(\"model.onnx\", \
             format=\"onnx\")`)",
        )
    } else if holds(&["archive_format", "serialized_exported_program.json"])
        || in_folder("models/model.json")
    {
        Some(
            "a program of torch.export (.pt2): save the weights with torch.save(net.state_dict(), \
             path), or export the model with \
             torch.onnx.export",
        )
    } else if holds(&["constants.pkl"]) || in_folder("/code/__torch__") {
        Some(
            "a TorchScript archive (torch.jit.save): save the weights of the module with \
             torch.save(net.state_dict(), path), or \
             export the model with torch.onnx.export",
        )
    } else if holds(&["data.pkl"]) {
        Some(CHECKPOINT)
    } else if holds(&[".npy"]) {
        Some(ARRAYS)
    } else if holds(&["Manifest.json", ".mlmodel"]) {
        Some("a Core ML model: export the model to ONNX where it comes from")
    } else {
        None
    }
}

/// The name of the first file of a zip archive.
fn first_name(beginning: &[u8]) -> Option<&str> {
    let length = u16::from_le_bytes(*beginning.get(26..)?.first_chunk()?);
    std::str::from_utf8(beginning.get(30..30 + usize::from(length))?).ok()
}

/// A length, and a graph with facts about itself; in ONNX the producer's name is at this place.
fn is_saved_model(graph: &[u8]) -> bool {
    let length = graph.iter().take(10).take_while(|&&byte| byte >= 0x80).count() + 1;
    graph.get(length) == Some(&0x0a)
}

/// What a text is.
fn of_text(beginning: &[u8]) -> Option<&'static str> {
    let bytes = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning);
    // A character may be cut in two at the end.
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
        "an HTML page: a web server answered with a page in place of the file; download the file \
         itself"
    } else if begins("<?xml") || begins("<Error") {
        "an XML document: a web server may have answered with an error in place of the file"
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
