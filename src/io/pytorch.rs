//! PyTorch's checkpoints: what `torch.save(net.state_dict(), path)` writes.
//!
//! A checkpoint is a pickle, which is a program that builds objects, and behind it the numbers; since PyTorch 1.6 both are in a
//! zip archive. The program is read, never run: dictionaries, lists and tensors are made of it, and whatever else it would make
//! is left out ([`pickle`]). This is a reader of our own so that what it allocates is bounded by the file's size, which a pickle is
//! made to evade: it can name the same object over and over.

mod pickle;

use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;

use super::architecture::{join, shortened};
use super::archive::Archive;
use super::tensor::{Data, Number, Tensor};
use super::{StateDict, recognize};
use crate::error::Error;
use pickle::{Content, Machine, Saved, Value};

/// No dictionaries are nested deeper, and no name is longer.
const DEPTH: usize = 16;
const LONGEST: usize = 1024;

/// Weights may be shared, but the tensors have together at most so many times the bytes that there are: a small file could
/// otherwise say that it has the same numbers without end.
const SHARED: usize = 16;

pub(super) fn is_legacy(beginning: &[u8]) -> bool {
    matches!(beginning, [0x80, _, number @ ..] if number.starts_with(recognize::LEGACY))
}

/// The folder in which an archive has its pickle, with the slash behind it.
fn folder(names: &[String]) -> Option<&str> {
    names.iter().find_map(|name| name.strip_suffix("data.pkl")).filter(|folder| folder.is_empty() || folder.ends_with('/'))
}

pub(super) fn is_checkpoint(archive: &Archive) -> Result<bool, Error> {
    Ok(folder(&archive.names()?).is_some())
}

impl StateDict {
    /// Reads the content of a `.pt` or `.pth` file that `torch.save` has written of a state dict, in today's format or in that
    /// of before PyTorch 1.6, from whatever device. The tensors of a dictionary in it have names that begin with its key: those
    /// of `{"model": net.state_dict(), "epoch": 3}` are [`under`](Self::under)`("model")`.
    ///
    /// A pickle is a program. None of it is run: there is nothing in this reader that a file could call. A `Vec<u8>` is taken as it is.
    ///
    /// # Errors
    /// [`Error::Malformed`], also for a whole pickled module, whose tensors are in objects of Python classes, which are not made.
    pub fn from_pytorch(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let whole = Data::Held(bytes.into());
        let beginning = whole.beginning(recognize::ENOUGH)?;
        if is_legacy(&beginning) {
            Self::of_legacy(&whole)
        } else if beginning.starts_with(Archive::MAGIC) {
            Self::of_checkpoint(Archive::open(&whole)?)
        } else {
            Err(malformed(&recognize::instead(recognize::recognize(&beginning), "PyTorch's .pt and .pth")))
        }
    }

    pub(super) fn of_checkpoint(mut archive: Archive) -> Result<Self, Error> {
        let names = archive.names()?;
        let folder = match (folder(&names), recognize::of_archive(&names)) {
            (Some(folder), Some(recognize::CHECKPOINT)) => folder,
            (_, what @ Some(_)) => return Err(malformed(&recognize::instead(what, "PyTorch's .pt and .pth"))),
            _ => return Err(malformed("there is no data.pkl in the archive, as torch.save writes it")),
        };
        if names.iter().any(|name| *name == format!("{folder}byteorder"))
            && archive.file(&format!("{folder}byteorder"))?.read()? != "little"
        {
            return Err(malformed("its numbers are not little-endian"));
        }
        let program = archive.file(&format!("{folder}data.pkl"))?.read()?;
        // What is made of a pickle is many times its size, and a packed one may be many times the file's.
        if program.len() > archive.length() {
            return Err(malformed("its pickle is packed, and larger than the file"));
        }
        let mut machine = Machine::new(&program);
        let root = machine.load().map_err(|reason| malformed(&reason))?;
        let mut storages: BTreeMap<Rc<str>, Data> = BTreeMap::new();
        for key in machine.storages.keys() {
            storages.insert(key.clone(), archive.file(&format!("{folder}data/{key}"))?);
        }
        state_dict(&machine, &root, &storages)
    }

    pub(super) fn of_legacy(whole: &Data) -> Result<Self, Error> {
        // The number that tells the format, its version, facts about the machine, the objects, the storages' keys.
        let bytes = whole.read()?;
        let mut machine = Machine::new(&bytes);
        let mut load = || machine.load().map_err(|reason| malformed(&reason)).map(|value| (value, machine.at()));
        load()?;
        if !matches!(load()?.0, Value::Int(1001)) {
            return Err(malformed("it is of a version that is not read"));
        }
        load()?;
        let (root, _) = load()?;
        let (keys, mut at) = load()?;
        let mut storages: BTreeMap<Rc<str>, Data> = BTreeMap::new();
        let ends = || malformed("the file is truncated: copy or download it again");
        for key in machine.list(&keys).unwrap_or_default() {
            let Value::Text(key) = key else { return Err(malformed("the key of a storage is no text")) };
            let size = machine.storages.get(key).ok_or_else(|| malformed("it has numbers of which no tensor is made"))?;
            let count = bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|count| u64::from_le_bytes(*count));
            let length = count.and_then(|count| count.checked_mul(*size as u64)).ok_or_else(ends)?;
            let data = Data::Held(bytes.clone()).part(at as u64 + 8, length).ok_or_else(ends)?;
            at += 8 + data.length();
            storages.insert(key.clone(), data);
        }
        state_dict(&machine, &root, &storages)
    }
}

/// The tensors in what a pickle has made, of storages by their keys.
fn state_dict(machine: &Machine<'_>, root: &Value, storages: &BTreeMap<Rc<str>, Data>) -> Result<StateDict, Error> {
    let mut found = Vec::new();
    // The same dictionary may stand in others many times over: no more of them are looked into than the program has bytes.
    let mut left = machine.length();
    collect(machine, root, "", 0, &mut left, &mut found).map_err(malformed)?;
    if found.is_empty() {
        let reason = "there is no tensor in it: a whole module was saved, or nothing that was learned; \
                      save the weights in Python with torch.save(net.state_dict(), path)";
        return Err(malformed(reason));
    }
    let there: usize = storages.values().map(Data::length).sum();
    let mut tensors = Vec::with_capacity(found.len());
    let mut together = 0_usize;
    for (name, saved) in found {
        let tensor = tensor(saved, storages).ok_or_else(|| malformed(&format!("tensor {} is not sound", shortened(&name))))?;
        together = together.saturating_add(tensor.data.length());
        tensors.push((name, tensor));
    }
    if together > there.saturating_mul(SHARED) {
        return Err(malformed(&format!("its tensors share their numbers more than {SHARED} times over")));
    }
    Ok(StateDict::of(tensors))
}

fn collect<'a>(
    machine: &'a Machine<'_>,
    value: &Value,
    name: &str,
    depth: usize,
    left: &mut usize,
    found: &mut Vec<(String, &'a Saved)>,
) -> Result<(), &'static str> {
    *left = left.checked_sub(1).ok_or("its dictionaries stand in one another without end")?;
    if depth > DEPTH || name.len() > LONGEST {
        return Err("its dictionaries are nested too deep, or their keys too long");
    }
    match machine.content(value) {
        Some(Content::Tensor(saved)) => found.push((name.to_owned(), saved)),
        Some(Content::Dict(items)) => {
            for (key, item) in items {
                match key {
                    Value::Text(key) => collect(machine, item, &join(name, key), depth + 1, left, found)?,
                    Value::Int(key) => collect(machine, item, &join(name, &key.to_string()), depth + 1, left, found)?,
                    _ => {}
                }
            }
        }
        Some(Content::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                collect(machine, item, &join(name, &index.to_string()), depth + 1, left, found)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// A tensor in its storage, `None` where it reaches out of it.
fn tensor(saved: &Saved, storages: &BTreeMap<Rc<str>, Data>) -> Option<Tensor> {
    let Saved { storage, offset, shape, strides } = saved;
    let number = storage.number.clone();
    if let Number::Other(_) = number {
        return Some(Tensor { shape: shape.clone(), strides: None, number, data: Data::Held(Bytes::new()) });
    }
    let count = Tensor::count(shape)?;
    let span = Tensor::span(shape, strides).filter(|&span| shape.len() == strides.len() && count <= span)?;
    let bytes = |numbers: usize| numbers.checked_mul(number.size()).map(|bytes| bytes as u64);
    let data = storages.get(&storage.key)?.part(bytes(*offset)?, bytes(span)?)?;
    let plain = Tensor::steps(shape);
    // The stride of an axis of one index is of no effect.
    let as_is = shape.iter().zip(strides).zip(&plain).all(|((&dim, stride), plain)| dim == 1 || stride == plain);
    let strides = (!as_is && count > 0).then(|| strides.clone());
    Some(Tensor { shape: shape.clone(), strides, number, data })
}

fn malformed(reason: &str) -> Error {
    Error::Malformed { format: "PyTorch".to_owned(), reason: reason.to_owned() }
}
