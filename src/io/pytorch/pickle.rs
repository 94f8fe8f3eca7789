//! A reader of pickles, the programs with which Python serializes objects. It supports only what
//! state dicts need.
//!
//! A pickle is a program for a stack machine. Each instruction is one byte, in some cases followed
//! by an argument (Python's `pickletools` module documents them). The functions that a pickle calls
//! are looked up by name in a short list of Python's dictionary types and PyTorch's functions that
//! build tensors. Any other call results in [`Content::Unknown`], so that an error can name what
//! was left out.
//!
//! Each instruction creates at most one value or object, so the memory allocated is at most a fixed
//! multiple of the program's length.

use std::collections::HashMap;
use std::rc::Rc;

use super::super::architecture::shortened;
use super::super::tensor::{AXES, Number};

/// A value on the stack. Objects can change after they are created, so a value only refers to
/// them by index.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Int(i64),
    Text(Rc<str>),
    /// The full name of a class or function.
    Global(Rc<str>),
    Object(usize),
    /// A value that is not needed here.
    Other,
}

/// The content of an object.
#[derive(Debug)]
pub(super) enum Content {
    /// What the dictionary was made from (a list of pairs or another dictionary), and the items
    /// that were inserted later.
    Dict(Option<Value>, Vec<(Value, Value)>),
    /// A list or a tuple.
    List(Vec<Value>),
    Storage(Rc<Storage>),
    Tensor(Rc<Saved>),
    /// An object of this class, or made by this function.
    Unknown(Rc<str>),
    /// A tensor of this class, which is not one of PyTorch's own.
    Subclass(Rc<str>),
}

/// A contiguous array of numbers, which tensors view.
#[derive(Debug)]
pub(super) struct Storage {
    pub key: Rc<str>,
    pub number: Number,
}

/// A view of a storage.
#[derive(Debug)]
pub(super) struct Saved {
    pub storage: Rc<Storage>,
    pub number: Number,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// What remains to be done after an instruction.
enum Step {
    Push(Value),
    Done,
    Stop(Value),
}

pub(super) struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    objects: Vec<Content>,
    /// The keys of the storages that the program refers to, each with the size of a number in
    /// bytes.
    pub storages: HashMap<Rc<str>, usize>,
}

impl<'a> Machine<'a> {
    pub fn new(program: &'a [u8]) -> Self {
        let (stack, marks, memo, objects, storages) = Default::default();
        Self { program, at: 0, stack, marks, memo, objects, storages }
    }

    /// Where the next pickle begins.
    pub fn at(&self) -> usize {
        self.at
    }

    pub fn length(&self) -> usize {
        self.program.len()
    }

    pub fn content(&self, value: &Value) -> Option<&Content> {
        if let Value::Object(at) = value { self.objects.get(*at) } else { None }
    }

    pub fn list(&self, value: &Value) -> Option<&[Value]> {
        if let Some(Content::List(items)) = self.content(value) { Some(items) } else { None }
    }

    /// Reads the next pickle and returns the object that it makes.
    pub fn load(&mut self) -> Result<Value, String> {
        self.stack.clear();
        self.marks.clear();
        // Each pickle has its own memo. The objects remain, because earlier results refer to them.
        self.memo.clear();
        loop {
            let begin = self.at;
            let unsound = || {
                format!(
                    "the instruction at byte {begin} of its pickle is invalid, so the file is \
                     truncated or damaged: copy or download it again"
                )
            };
            match self.step().ok_or_else(unsound)? {
                Step::Push(value) => self.stack.push(value),
                Step::Done => {}
                Step::Stop(value) => return Ok(value),
            }
        }
    }

    /// Reads one instruction, or returns `None` if it is invalid.
    #[allow(clippy::too_many_lines)] // a table of the instructions
    fn step(&mut self) -> Option<Step> {
        let value = match self.take(1)?[0] {
            b'.' => return self.stack.pop().map(Step::Stop),
            // The version of the protocol, and the length of the next frame.
            0x80 => return self.take(1).map(|_| Step::Done),
            0x95 => return self.take(8).map(|_| Step::Done),
            b'(' => {
                self.marks.push(self.stack.len());
                return Some(Step::Done);
            }
            b'0' => return self.pop().map(|_| Step::Done),
            b'1' => return self.marked().map(|_| Step::Done),
            b'2' => self.stack.last()?.clone(),

            // None, True, False, and numbers. Floating-point numbers are not needed.
            b'N' => Value::Other,
            0x88 => Value::Int(1),
            0x89 => Value::Int(0),
            // In protocol 0, INT also writes booleans, as 00 and 01, and a LONG ends with an L.
            b'I' | b'L' => match self.line()? {
                "00" => Value::Int(0),
                "01" => Value::Int(1),
                text => text.trim_end_matches('L').parse().map_or(Value::Other, Value::Int),
            },
            b'J' => Value::Int(i32::from_le_bytes(*self.take(4)?.first_chunk()?).into()),
            b'K' => Value::Int(self.take(1)?[0].into()),
            b'M' => Value::Int(u16::from_le_bytes(*self.take(2)?.first_chunk()?).into()),
            0x8a => {
                let length = self.take(1)?[0].into();
                long(self.take(length)?)
            }
            0x8b => {
                let length = self.length4()?;
                long(self.take(length)?)
            }
            b'F' => {
                self.line()?;
                Value::Other
            }
            b'G' => {
                self.take(8)?;
                Value::Other
            }

            // Strings: as a line of text, or after a length of 1, 4 or 8 bytes.
            b'S' => Value::Text(self.line()?.trim_matches(['\'', '"']).into()),
            b'V' => Value::Text(self.line()?.into()),
            b'U' | 0x8c => {
                let length = self.take(1)?[0].into();
                self.text(length)?
            }
            b'X' | b'T' => {
                let length = self.length4()?;
                self.text(length)?
            }
            0x8d => {
                let length = self.length8()?;
                self.text(length)?
            }
            // Bytes, which are not needed.
            b'C' => {
                let length = self.take(1)?[0].into();
                self.skip(length)?
            }
            b'B' => {
                let length = self.length4()?;
                self.skip(length)?
            }
            0x8e | 0x96 => {
                let length = self.length8()?;
                self.skip(length)?
            }

            // An empty tuple, list or set, and then those with all values after the mark.
            b')' | b']' | 0x8f => self.object(Content::List(Vec::new())),
            b't' | b'l' | 0x91 => {
                let items = self.marked()?;
                self.object(Content::List(items))
            }
            // Tuples of one to three values, which have no mark.
            count @ 0x85..=0x87 => {
                let first = self
                    .stack
                    .len()
                    .checked_sub((count - 0x84).into())
                    .filter(|&first| first >= self.floor())?;
                let items = self.stack.split_off(first);
                self.object(Content::List(items))
            }
            // Dictionaries, and adding to lists, sets and dictionaries.
            b'}' => self.object(Content::Dict(None, Vec::new())),
            b'd' => {
                let items = pairs(self.marked()?)?;
                self.object(Content::Dict(None, items))
            }
            b'a' => {
                let item = self.pop()?;
                return Some(self.extend(vec![item]));
            }
            b'e' | 0x90 => {
                let items = self.marked()?;
                return Some(self.extend(items));
            }
            b's' => {
                // The value is on top of the key.
                let (value, key) = (self.pop()?, self.pop()?);
                return Some(self.insert(vec![(key, value)]));
            }
            b'u' => {
                let items = pairs(self.marked()?)?;
                return Some(self.insert(items));
            }

            // GET and PUT for the memo, with the key as a line of text or in 1 or 4 bytes. For
            // MEMOIZE (0x94), the key is the next free number.
            b'g' => {
                let key = self.line()?.parse().ok()?;
                self.memo.get(&key)?.clone()
            }
            b'h' => {
                let key = self.take(1)?[0].into();
                self.memo.get(&key)?.clone()
            }
            b'j' => {
                let key = self.length4()? as u64;
                self.memo.get(&key)?.clone()
            }
            b'p' => {
                let key = self.line()?.parse().ok()?;
                return self.remember(key);
            }
            b'q' => {
                let key = self.take(1)?[0].into();
                return self.remember(key);
            }
            b'r' => {
                let key = self.length4()? as u64;
                return self.remember(key);
            }
            0x94 => return self.remember(self.memo.len() as u64),

            // The name of a class or function. This alone calls nothing.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                Value::Global(format!("{module}.{name}").into())
            }
            0x93 => match (self.pop()?, self.pop()?) {
                // Without a limit, a program could build many long names from one in the memo.
                (Value::Text(name), Value::Text(module))
                    if name.len() + module.len() <= super::LONGEST =>
                {
                    Value::Global(format!("{module}.{name}").into())
                }
                _ => return None,
            },
            // REDUCE and NEWOBJ call the function or class, and NEWOBJ_EX (0x92) also has keyword
            // arguments, which are not needed.
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)
            }
            0x92 => {
                self.pop()?;
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(&function, &arguments)
            }
            // OBJ and INST, which make an object of a class.
            b'o' => match self.marked()?.into_iter().next() {
                Some(Value::Global(class)) => self.object(Content::Unknown(class)),
                _ => Value::Other,
            },
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.marked()?;
                self.object(Content::Unknown(format!("{module}.{name}").into()))
            }
            b'b' => {
                let state = self.pop()?;
                self.build(&state);
                return Some(Step::Done);
            }
            // PyTorch refers to a storage by a persistent id.
            b'Q' => {
                let id = self.pop()?;
                self.storage(&id)?
            }
            _ => return None,
        };
        Some(Step::Push(value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.program.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// The rest of the line, without its end.
    fn line(&mut self) -> Option<&'a str> {
        let length = self.program.get(self.at..)?.iter().position(|&c| c == b'\n')?;
        let line = self.take(length + 1)?;
        std::str::from_utf8(&line[..length]).ok()
    }

    fn length4(&mut self) -> Option<usize> {
        usize::try_from(u32::from_le_bytes(*self.take(4)?.first_chunk()?)).ok()
    }

    fn length8(&mut self) -> Option<usize> {
        usize::try_from(u64::from_le_bytes(*self.take(8)?.first_chunk()?)).ok()
    }

    fn text(&mut self, length: usize) -> Option<Value> {
        // Python 2 wrote bytes, which need not be UTF-8.
        self.take(length).map(|bytes| Value::Text(String::from_utf8_lossy(bytes).into()))
    }

    fn skip(&mut self, length: usize) -> Option<Value> {
        self.take(length).map(|_| Value::Other)
    }

    /// The position on the stack of the first value after the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Option<Value> {
        // As in Python, the values before the last mark are out of reach.
        if self.stack.len() > self.floor() { self.stack.pop() } else { None }
    }

    /// Pops the last mark and all values after it.
    fn marked(&mut self) -> Option<Vec<Value>> {
        let mark = self.marks.pop()?;
        Some(self.stack.split_off(mark))
    }

    fn object(&mut self, content: Content) -> Value {
        self.objects.push(content);
        Value::Object(self.objects.len() - 1)
    }

    fn remember(&mut self, key: u64) -> Option<Step> {
        let value = self.stack.last()?.clone();
        self.memo.insert(key, value);
        Some(Step::Done)
    }

    /// The object on top of the stack, if there is one.
    fn top(&mut self) -> Option<&mut Content> {
        if let Some(Value::Object(at)) = self.stack.last() {
            self.objects.get_mut(*at)
        } else {
            None
        }
    }

    fn extend(&mut self, items: Vec<Value>) -> Step {
        match self.top() {
            Some(Content::List(list)) => list.extend(items),
            // An object to which items are appended is a kind of list.
            Some(content @ Content::Unknown(_)) => *content = Content::List(items),
            _ => {}
        }
        Step::Done
    }

    fn insert(&mut self, items: Vec<(Value, Value)>) -> Step {
        match self.top() {
            Some(Content::Dict(_, dict)) => dict.extend(items),
            // An object into which items are inserted is a kind of dictionary.
            Some(content @ Content::Unknown(_)) => *content = Content::Dict(None, items),
            _ => {}
        }
        Step::Done
    }

    /// The storage for a persistent id, which is `("storage", type, key, device, count)`.
    fn storage(&mut self, id: &Value) -> Option<Value> {
        let [Value::Text(what), Value::Global(kind), Value::Text(key), ..] = self.list(id)? else {
            return None;
        };
        if &**what != "storage" || key.len() > super::LONGEST {
            return None;
        }
        // In old versions, a sixth entry makes this a view of another storage, which is
        // unsupported.
        if matches!(self.list(id)?.get(5), Some(Value::Object(_))) {
            return None;
        }
        let (number, size) = number(kind.rsplit('.').next()?);
        let storage = Storage { key: key.clone(), number };
        self.storages.insert(storage.key.clone(), size);
        Some(self.object(Content::Storage(Rc::new(storage))))
    }

    /// The result of calling a function or class. Only dictionaries and tensors are supported.
    fn call(&mut self, function: &Value, arguments: &Value) -> Value {
        let Value::Global(name) = function else { return Value::Other };
        let nth = |machine: &Self, index: usize| {
            machine.list(arguments).and_then(|arguments| arguments.get(index).cloned())
        };
        let made = match &**name {
            "collections.OrderedDict"
            | "collections.Counter"
            | "builtins.dict"
            | "__builtin__.dict" => {
                let of = nth(self, 0);
                Some(self.object(Content::Dict(of, Vec::new())))
            }
            // The first argument is the function that makes default values.
            "collections.defaultdict" => {
                let of = nth(self, 1);
                Some(self.object(Content::Dict(of, Vec::new())))
            }
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor" => {
                self.tensor(arguments, None)
            }
            "torch._utils._rebuild_tensor_v3" => {
                let number = match nth(self, 6) {
                    Some(Value::Global(dtype)) => number_of(&dtype),
                    _ => Number::Other("unknown".to_owned()),
                };
                self.tensor(arguments, Some(number))
            }
            // The first argument is the tensor (or the tuple of sizes), and the rest is not needed.
            "torch._utils._rebuild_parameter"
            | "torch._utils._rebuild_parameter_with_state"
            | "torch._utils._rebuild_device_tensor_from_cpu_tensor"
            | "torch.Size" => nth(self, 0),
            PARAMETER => {
                nth(self, 0).filter(|value| matches!(self.content(value), Some(Content::Tensor(_))))
            }
            "torch._tensor._rebuild_from_type_v2" | "torch._tensor._rebuild_from_type" => {
                self.of_type(arguments)
            }
            "copy_reg._reconstructor" | "copyreg._reconstructor" | "copyreg.__newobj__" => {
                match nth(self, 0) {
                    Some(Value::Global(class)) => Some(self.object(Content::Unknown(class))),
                    _ => None,
                }
            }
            _ => None,
        };
        made.unwrap_or_else(|| self.object(Content::Unknown(name.clone())))
    }

    /// A tensor with attributes or of a custom class, from `(function, class, arguments of the
    /// function, attributes)`.
    fn of_type(&mut self, arguments: &Value) -> Option<Value> {
        let [Value::Global(function), Value::Global(class), inner, ..] = self.list(arguments)?
        else {
            return None;
        };
        let (function, class, inner) = (function.clone(), class.clone(), inner.clone());
        if !matches!(&*class, "torch.Tensor" | PARAMETER | "torch.nn.parameter.Buffer") {
            return Some(self.object(Content::Subclass(class)));
        }
        // PyTorch does not nest such calls, and rejecting nested ones bounds the recursion.
        if function.starts_with("torch._tensor.") {
            return None;
        }
        Some(self.call(&Value::Global(function), &inner))
    }

    /// Sets the state of the object on top of the stack. The first versions of PyTorch filled
    /// tensors and parameters this way.
    fn build(&mut self, state: &Value) {
        let Some(Content::Unknown(class)) = self.top() else { return };
        let class = class.clone();
        let made = if &*class == PARAMETER {
            self.list(state).and_then(|state| state.first().cloned())
        } else if class.starts_with("torch.") && class.ends_with("Tensor") {
            self.tensor(state, None)
        } else {
            None
        };
        let tensor = match made.as_ref().and_then(|value| self.content(value)) {
            Some(Content::Tensor(saved)) => saved.clone(),
            _ => return,
        };
        if let Some(content) = self.top() {
            *content = Content::Tensor(tensor);
        }
    }

    /// Makes a tensor from `(storage, offset, shape, strides, …)`. If no type of numbers is given,
    /// the tensor has the type of its storage.
    fn tensor(&mut self, arguments: &Value, number: Option<Number>) -> Option<Value> {
        let [storage, Value::Int(offset), shape, strides, ..] = self.list(arguments)? else {
            return None;
        };
        let Some(Content::Storage(storage)) = self.content(storage) else { return None };
        let sizes = |value: &Value| -> Option<Vec<usize>> {
            let size = |value: &Value| {
                if let Value::Int(size) = value { usize::try_from(*size).ok() } else { None }
            };
            // A program can use a long list in the memo as a shape many times. No tensor has that
            // many axes.
            self.list(value).filter(|list| list.len() <= AXES)?.iter().map(size).collect()
        };
        let (shape, strides) = (sizes(shape)?, sizes(strides)?);
        let number = number.unwrap_or_else(|| storage.number.clone());
        let saved = Saved {
            storage: storage.clone(),
            number,
            offset: usize::try_from(*offset).ok()?,
            shape,
            strides,
        };
        Some(self.object(Content::Tensor(Rc::new(saved))))
    }
}

const PARAMETER: &str = "torch.nn.parameter.Parameter";

/// A little-endian integer in two's complement. One with more than eight bytes is not needed.
fn long(bytes: &[u8]) -> Value {
    if bytes.len() > 8 {
        return Value::Other;
    }
    // The sign bit fills the missing high bytes.
    let fill = if bytes.last().is_some_and(|&last| last >= 0x80) { 0xff } else { 0 };
    let mut whole = [fill; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
}

/// Groups alternating keys and values into pairs.
fn pairs(items: Vec<Value>) -> Option<Vec<(Value, Value)>> {
    let mut items = items.into_iter();
    let mut pairs = Vec::with_capacity(items.len() / 2);
    while let Some(key) = items.next() {
        pairs.push((key, items.next()?));
    }
    Some(pairs)
}

/// The type of a storage's numbers, by the name of the storage's class, and the size of a number in
/// bytes, or 0 if it is unknown.
fn number(class: &str) -> (Number, usize) {
    let other = |size| (Number::Other(shortened(class)), size);
    match class {
        "FloatStorage" => (Number::F32, 4),
        "DoubleStorage" => (Number::F64, 8),
        "HalfStorage" => (Number::F16, 2),
        "BFloat16Storage" => (Number::BF16, 2),
        "LongStorage" => (Number::Int(8), 8),
        "IntStorage" => (Number::Int(4), 4),
        "ShortStorage" => (Number::Int(2), 2),
        "CharStorage" => (Number::Int(1), 1),
        "ByteStorage" | "BoolStorage" => (Number::Uint(1), 1),
        "ComplexFloatStorage" => other(8),
        "QInt32Storage" => other(4),
        "UntypedStorage" | "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage"
        | "QUInt2x4Storage" => other(1),
        "ComplexDoubleStorage" => other(16),
        _ => other(0),
    }
}

/// The type of numbers with this name.
fn number_of(dtype: &str) -> Number {
    match dtype {
        "torch.float16" => Number::F16,
        "torch.bfloat16" => Number::BF16,
        "torch.float32" => Number::F32,
        "torch.float64" => Number::F64,
        "torch.int64" => Number::Int(8),
        "torch.int32" => Number::Int(4),
        "torch.int16" => Number::Int(2),
        "torch.int8" => Number::Int(1),
        "torch.uint8" | "torch.bool" => Number::Uint(1),
        other => Number::Other(shortened(other)),
    }
}
