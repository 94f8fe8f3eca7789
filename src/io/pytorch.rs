//! PyTorch checkpoints, as `torch.save(net.state_dict(), path)` writes them.
//!
//! A checkpoint consists of a pickle, which is a program that builds objects, and of the tensors'
//! numbers. Since PyTorch 1.6, both are in a zip archive. This reader never executes the program.
//! It only interprets the instructions that make dictionaries, lists and tensors, and leaves out
//! all other objects ([`pickle`]). The crate has its own reader because the file's size must bound
//! the memory allocated. A pickle can easily defeat such a bound, because it can refer to the same
//! object many times.

mod pickle;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::architecture::{join, shortened};
use super::archive::Archive;
use super::tensor::{Data, Number, Tensor};
use super::{StateDict, recognize};
use crate::error::Error;
use pickle::{Content, Machine, Saved, Value};

/// The deepest nesting of dictionaries, and the length of the longest name in bytes.
const DEPTH: usize = 16;
const LONGEST: usize = 1024;

/// The maximum size of all tensors together, as a multiple of the size of the file's numbers.
/// Tensors can share numbers, but without a limit a small file could hold any amount of weights.
const SHARED: usize = 16;

/// The name given to a tensor that was saved alone, not in a dictionary.
const ALONE: &str = "tensor";

pub(super) fn is_legacy(beginning: &[u8]) -> bool {
    matches!(beginning, [0x80, _, number @ ..] if number.starts_with(recognize::LEGACY))
}

/// The folder of an archive that contains the pickle, with a trailing slash.
fn folder(names: &[String]) -> Option<&str> {
    names
        .iter()
        .find_map(|name| name.strip_suffix("data.pkl"))
        .filter(|folder| folder.is_empty() || folder.ends_with('/'))
}

pub(super) fn is_checkpoint(archive: &Archive) -> Result<bool, Error> {
    Ok(folder(&archive.names()?).is_some())
}

impl StateDict {
    /// Reads the content of a `.pt` or `.pth` file that `torch.save` wrote for a state dict.
    ///
    /// Both the current format and the one before PyTorch 1.6 are supported, and the tensors can
    /// come from any device. The tensors in a nested dictionary have names that begin with its key.
    /// Those of `{"model": net.state_dict(), "epoch": 3}`, for example, are
    /// [`under`](Self::under)`("model")`, where
    /// [`StateDictBuilder::build`](super::StateDictBuilder::build) finds them automatically. A
    /// tensor that was saved alone, as with `torch.save(x, path)`, has the name `tensor`.
    ///
    /// A pickle is a program, but none of it is executed, and this reader contains nothing that a
    /// file could call. A `Vec<u8>` is not copied.
    ///
    /// # Errors
    /// [`Error::Malformed`], also for a whole pickled module, because its tensors are in objects of
    /// Python classes, which the reader does not create. If only some tensors are unsupported
    /// (sparse, quantized, expanded, or of a custom class), they are left out, and building a model
    /// that needs one of them is an error that gives the reason.
    pub fn from_pytorch(bytes: impl Into<Bytes>) -> Result<Self, Error> {
        let whole = Data::Held(bytes.into());
        let beginning = whole.beginning(recognize::ENOUGH)?;
        if is_legacy(&beginning) {
            Self::of_legacy(&whole)
        } else if beginning.starts_with(Archive::MAGIC) {
            Self::of_checkpoint(Archive::open(&whole)?)
        } else {
            Err(malformed(&recognize::instead(
                recognize::recognize(&beginning),
                "PyTorch (.pt, .pth) files",
            )))
        }
    }

    pub(super) fn of_checkpoint(mut archive: Archive) -> Result<Self, Error> {
        let names = archive.names()?;
        let folder = match (folder(&names), recognize::of_archive(&names)) {
            (Some(folder), Some(recognize::CHECKPOINT)) => folder,
            (_, what @ Some(_)) => {
                return Err(malformed(&recognize::instead(what, "PyTorch (.pt, .pth) files")));
            }
            _ => {
                return Err(malformed(
                    "the archive has no data.pkl, so torch.save did not write it: save the weights \
                     with torch.save(net.state_dict(), path)",
                ));
            }
        };
        if names.iter().any(|name| *name == format!("{folder}byteorder"))
            && archive.file(&format!("{folder}byteorder"))?.read()? != "little"
        {
            return Err(malformed(
                "its numbers are not little-endian, which is unsupported: save it on a \
                 little-endian machine",
            ));
        }
        let program = archive.file(&format!("{folder}data.pkl"))?.read()?;
        // The objects of a pickle take many times its size, so a compressed pickle must not be much
        // larger than the file.
        if program.len() > archive.length() {
            return Err(malformed(
                "its pickle is compressed and larger than the file: write the archive again \
                 without compression",
            ));
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
        // The file is a sequence of pickles: a magic number, the version of the format, facts about
        // the machine, the objects, and the keys of the storages. The storages follow.
        let bytes = whole.read()?;
        let mut machine = Machine::new(&bytes);
        let mut load = || {
            machine.load().map_err(|reason| malformed(&reason)).map(|value| (value, machine.at()))
        };
        // The magic number, which `is_legacy` has checked.
        load()?;
        if !matches!(load()?.0, Value::Int(1001)) {
            return Err(malformed(
                "it has an unsupported version of PyTorch's format: save it again with PyTorch 1.6 \
                 or later",
            ));
        }
        // Facts about the machine.
        load()?;
        let (root, _) = load()?;
        let (keys, mut at) = load()?;
        let mut storages: BTreeMap<Rc<str>, Data> = BTreeMap::new();
        let ends = || malformed("the file is truncated: copy or download it again");
        for key in machine.list(&keys).unwrap_or_default() {
            let Value::Text(key) = key else {
                return Err(malformed(
                    "the key of a storage is not a string, so the file is damaged: copy or \
                     download it again",
                ));
            };
            let size = machine.storages.get(key).ok_or_else(|| {
                malformed(
                    "it has a storage that no tensor uses: save it again with PyTorch 1.6 or later",
                )
            })?;
            // Each storage is its number of values, in eight bytes, and then the values.
            let count = bytes
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .map(|count| u64::from_le_bytes(*count));
            let length =
                count.and_then(|count| count.checked_mul(*size as u64)).ok_or_else(ends)?;
            if *size == 0 {
                return Err(malformed(
                    "it has numbers of an unknown type: save it again with PyTorch 1.6 or later",
                ));
            }
            let data = Data::Held(bytes.clone()).part(at as u64 + 8, length).ok_or_else(ends)?;
            at += 8 + data.length();
            storages.insert(key.clone(), data);
        }
        state_dict(&machine, &root, &storages)
    }
}

/// Collects the tensors from the objects of a pickle. `storages` holds their numbers, by key.
fn state_dict(
    machine: &Machine<'_>,
    root: &Value,
    storages: &BTreeMap<Rc<str>, Data>,
) -> Result<StateDict, Error> {
    // The same dictionary can occur in others many times. The length of the program bounds how many
    // values are visited.
    let mut collected =
        Collected { machine, budget: machine.length(), found: Vec::new(), left_out: Vec::new() };
    collected.value(root, "", 0).map_err(malformed)?;
    let Collected { found, left_out, .. } = collected;
    // Many objects can be of one class, so they share one text.
    let mut reasons: BTreeMap<Rc<str>, Arc<str>> = BTreeMap::new();
    let mut left_out: BTreeMap<String, Arc<str>> = left_out
        .into_iter()
        .map(|(name, what)| {
            (
                name,
                reasons.entry(what.name().clone()).or_insert_with(|| what.reason().into()).clone(),
            )
        })
        .collect();
    let there: usize = storages.values().map(Data::length).sum();
    let mut tensors = Vec::with_capacity(found.len());
    let mut together = 0_usize;
    let overlapping: Arc<str> = OVERLAPPING.into();
    for (name, saved) in found {
        if saved.overlaps() {
            left_out.insert(name, overlapping.clone());
            continue;
        }
        let name = if name.is_empty() { ALONE.to_owned() } else { name };
        let tensor = tensor(saved, storages).ok_or_else(|| {
            malformed(&format!(
                "tensor {} has more values than its storage, so the file is damaged: copy or \
                 download it again",
                shortened(&name)
            ))
        })?;
        together = together.saturating_add(tensor.data.length());
        tensors.push((name, tensor));
    }
    if tensors.is_empty() {
        return Err(malformed(&nothing(&left_out)));
    }
    if together > there.saturating_mul(SHARED) {
        return Err(malformed(&format!(
            "its tensors share the same numbers more than {SHARED} times on average, which is \
             unsupported: save fewer copies of shared tensors"
        )));
    }
    Ok(StateDict { left_out, ..StateDict::of(tensors) })
}

/// The reason for rejecting a file without a supported tensor.
fn nothing(left_out: &BTreeMap<String, Arc<str>>) -> String {
    let save = "save the weights in Python with torch.save(net.state_dict(), path)";
    match (left_out.get(""), left_out.len()) {
        (Some(what), _) => format!("it has no named tensors; all it contains is {what}"),
        (None, 0) => format!("it contains no tensors: {save}"),
        (None, count) => {
            let listed: Vec<String> = left_out
                .iter()
                .take(5)
                .map(|(name, what)| format!("\n  {} is {what}", shortened(name)))
                .collect();
            let more =
                if count > 5 { format!("\n  and {} more", count - 5) } else { String::new() };
            format!("it contains no supported tensors:{}{more}", listed.concat())
        }
    }
}

/// An object of a pickle that is not a supported tensor.
#[derive(Clone)]
enum LeftOut {
    /// An object of this class, or made by this function.
    Made(Rc<str>),
    /// A tensor of this class.
    Subclass(Rc<str>),
}

impl LeftOut {
    fn name(&self) -> &Rc<str> {
        let (Self::Made(name) | Self::Subclass(name)) = self;
        name
    }

    /// Says what the object is and what to do.
    fn reason(&self) -> String {
        let name = shortened(self.name());
        let own = name.rsplit('.').next().unwrap_or_default();
        match (self, own) {
            (Self::Subclass(_), _) => {
                format!(
                    "a tensor of the class {name}, which is unsupported: save \
                    tensor.as_subclass(torch.Tensor)"
                )
            }
            (_, "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
                "a sparse tensor, which is unsupported: save tensor.to_dense()".to_owned()
            }
            (_, "_rebuild_qtensor") => {
                "a quantized tensor, which is unsupported: save the weights before they are \
                 quantized, or tensor.dequantize()"
                    .to_owned()
            }
            (_, "_rebuild_meta_tensor_no_storage") => {
                "a tensor on the meta device, which has no values: load the weights in Python and \
                 save them again"
                    .to_owned()
            }
            (_, "_rebuild_nested_tensor") => {
                "a nested tensor, which is unsupported: save tensor.unbind()".to_owned()
            }
            _ if own.starts_with("_rebuild") => {
                format!(
                    "a tensor made by {name}, which is unsupported: save \
                    tensor.detach().cpu().clone()"
                )
            }
            _ => format!(
                "an object of the class {name}, not a tensor: save only the weights in Python, \
                 with torch.save(net.state_dict(), path)"
            ),
        }
    }
}

/// Collects the tensors within dictionaries and lists, with their names.
struct Collected<'a> {
    machine: &'a Machine<'a>,
    /// How many more values can be visited. Long names count as several values.
    budget: usize,
    found: Vec<(String, &'a Saved)>,
    left_out: Vec<(String, LeftOut)>,
}

impl Collected<'_> {
    fn spend(&mut self, cost: usize) -> Result<(), &'static str> {
        self.budget = self.budget.checked_sub(cost).ok_or(
            "its dictionaries contain the same objects too often, or themselves: save a plain \
                 state dict",
        )?;
        Ok(())
    }

    fn value(&mut self, value: &Value, name: &str, depth: usize) -> Result<(), &'static str> {
        self.spend(1)?;
        if depth > DEPTH || name.len() > LONGEST {
            return Err(
                "its dictionaries are nested too deeply, or their keys are too long: save a \
                 plain state dict",
            );
        }
        match self.machine.content(value) {
            Some(Content::Tensor(saved)) => {
                self.spend(name.len() / 64)?;
                self.found.push((name.to_owned(), saved));
            }
            Some(Content::Unknown(class)) => self.leave_out(name, LeftOut::Made(class.clone()))?,
            Some(Content::Subclass(class)) => {
                self.leave_out(name, LeftOut::Subclass(class.clone()))?;
            }
            Some(Content::Dict(of, items)) => {
                if let Some(of) = of {
                    self.pairs(of, name, depth)?;
                }
                for (key, item) in items {
                    self.item(key, item, name, depth)?;
                }
            }
            Some(Content::List(items)) => {
                for (index, item) in items.iter().enumerate() {
                    self.value(item, &join(name, &index.to_string()), depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Visits what a dictionary was made from, which is another dictionary or a list of pairs.
    fn pairs(&mut self, of: &Value, name: &str, depth: usize) -> Result<(), &'static str> {
        let Some(Content::List(items)) = self.machine.content(of) else {
            return self.value(of, name, depth + 1);
        };
        for item in items {
            self.spend(1)?;
            if let Some([key, item]) = self.machine.list(item) {
                self.item(key, item, name, depth)?;
            }
        }
        Ok(())
    }

    fn item(
        &mut self,
        key: &Value,
        item: &Value,
        name: &str,
        depth: usize,
    ) -> Result<(), &'static str> {
        match key {
            Value::Text(key) => self.value(item, &join(name, key), depth + 1),
            Value::Int(key) => self.value(item, &join(name, &key.to_string()), depth + 1),
            // A key of another type cannot be part of a name.
            _ => Ok(()),
        }
    }

    fn leave_out(&mut self, name: &str, what: LeftOut) -> Result<(), &'static str> {
        self.spend(name.len() / 64)?;
        self.left_out.push((name.to_owned(), what));
        Ok(())
    }
}

/// Makes a tensor from its storage, or returns `None` if it reaches beyond the storage.
fn tensor(saved: &Saved, storages: &BTreeMap<Rc<str>, Data>) -> Option<Tensor> {
    let Saved { storage, number, offset, shape, strides } = saved;
    let number = number.clone();
    // The type is reported only if the tensor is read.
    if let Number::Other(_) = number {
        return Some(Tensor {
            shape: shape.clone(),
            strides: None,
            number,
            data: Data::Held(Bytes::new()),
        });
    }
    let count = Tensor::count(shape)?;
    let span = Tensor::span(shape, strides)
        .filter(|&span| shape.len() == strides.len() && count <= span)?;
    let bytes = |numbers: usize| numbers.checked_mul(number.size()).map(|bytes| bytes as u64);
    let data = storages.get(&storage.key)?.part(bytes(*offset)?, bytes(span)?)?;
    let plain = Tensor::steps(shape);
    // The stride of an axis of size 1 has no effect.
    let as_is = shape
        .iter()
        .zip(strides)
        .zip(&plain)
        .all(|((&dim, stride), plain)| dim == 1 || stride == plain);
    let strides = (!as_is && count > 0).then(|| strides.clone());
    Some(Tensor { shape: shape.clone(), strides, number, data })
}

/// The reason for leaving out a tensor that has more values than its storage has numbers. The
/// file's size does not bound the size of such a tensor.
const OVERLAPPING: &str = "a tensor whose values overlap, as after tensor.expand(...), which is \
    unsupported: save tensor.clone()";

impl Saved {
    /// Whether the tensor has more values than there are numbers in the part of the storage that it
    /// views, so that some values share a number.
    fn overlaps(&self) -> bool {
        let Self { shape, strides, .. } = self;
        let span = if shape.len() == strides.len() { Tensor::span(shape, strides) } else { None };
        Tensor::count(shape).zip(span).is_some_and(|(count, span)| count > span)
    }
}

fn malformed(reason: &str) -> Error {
    Error::Malformed { format: "PyTorch".to_owned(), reason: reason.to_owned() }
}
