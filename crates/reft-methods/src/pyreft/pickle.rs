//! The part of Python's pickle language in which `torch.save` writes dictionaries of tensors.
//!
//! Nothing is imported or called: the few names that such a file needs are recognised, any other name is an error. Values live
//! in one arena and refer to each other by index, texts to the file's bytes, and nothing is copied. So hostile input (cycles, deep nesting,
//! a long value shared without end) costs no more memory than a constant times its own length.

use std::collections::HashMap;

use tch::Kind;

type Parsed<T> = std::result::Result<T, String>;

/// A value; all but plain numbers lie in the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    /// `None`, a truth value, a float, or a list: such files contain them, but tensors do not need them.
    Unused,
    Int(i64),
    Global(Global),
    Node(usize),
}

/// A value that holds others.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Text(&'a str),
    Tuple(Box<[Value]>),
    Dict(Vec<(Value, Value)>),
    Storage(Storage),
    Tensor(View),
}

/// The names that a dictionary of tensors refers to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Kind),
}

/// A run of elements in a file of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Storage {
    pub(crate) kind: Kind,
    /// The text with its file's name.
    pub(crate) key: Value,
    pub(crate) len: i64,
}

/// A strided view of a storage: the places of its parts in the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct View {
    storage: Value,
    offset: i64,
    size: Value,
    stride: Value,
}

/// A view with its parts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Strided<'a> {
    pub(crate) kind: Kind,
    /// The name of the file that its elements are in.
    pub(crate) key: &'a str,
    /// Number of elements there.
    pub(crate) len: i64,
    pub(crate) offset: i64,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
}

/// Largest number of dimensions of a tensor: libtorch's own limit in most operations.
const MAX_DIMENSIONS: usize = 64;

/// The values of a pickle.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    /// The outermost value.
    pub(crate) root: Value,
}

impl<'a> Pickle<'a> {
    /// Reads a pickle up to its end mark.
    pub(crate) fn read(bytes: &'a [u8]) -> Parsed<Self> {
        let pickle = Self { nodes: Vec::new(), root: Value::Unused };
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Machine { bytes, pickle, stack, marks, memo }.run()
    }

    /// The node of a value in the arena.
    pub(crate) fn node(&self, value: Value) -> Option<&Node<'a>> {
        match value {
            Value::Node(index) => self.nodes.get(index),
            _ => None,
        }
    }

    /// The text of a value, if it is one.
    pub(crate) fn text(&self, value: Value) -> Option<&'a str> {
        match self.node(value)? {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The parts of a view; `None` if one has the wrong type, or there are too many dimensions.
    pub(crate) fn strided(&self, view: View) -> Option<Strided<'a>> {
        let Node::Storage(Storage { kind, key, len }) = *self.node(view.storage)? else {
            return None;
        };
        let (size, stride) = (self.integers(view.size)?, self.integers(view.stride)?);
        Some(Strided { kind, key: self.text(key)?, len, offset: view.offset, size, stride })
    }

    /// The integers of a tuple that is no longer than the largest number of dimensions.
    fn integers(&self, tuple: Value) -> Option<Vec<i64>> {
        let integer = |value: &Value| if let Value::Int(n) = value { Some(*n) } else { None };
        match self.node(tuple)? {
            Node::Tuple(items) if items.len() <= MAX_DIMENSIONS => {
                items.iter().map(integer).collect()
            }
            _ => None,
        }
    }
}

/// The stack machine that runs a pickle's program.
struct Machine<'a> {
    /// The bytes left to read.
    bytes: &'a [u8],
    pickle: Pickle<'a>,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Parsed<Pickle<'a>> {
        loop {
            let code = self.take(1)?[0];
            match code {
                0x80 => drop(self.take(1)?), // PROTO
                b'.' => {
                    self.pickle.root = self.pop()?;
                    return Ok(self.pickle);
                }
                b'c' => {
                    let global = Global::from_name(self.line()?, self.line()?)?;
                    self.stack.push(Value::Global(global));
                }
                b'q' => self.memoise(1)?,
                b'r' => self.memoise(4)?,
                b'h' => self.recall(1)?,
                b'j' => self.recall(4)?,
                b'(' => self.marks.push(self.stack.len()),
                b')' => self.push_node(Node::Tuple(Box::default())),
                0x85..=0x87 => self.tuple(usize::from(code - 0x84))?, // TUPLE1 to TUPLE3
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_node(Node::Tuple(items.into()));
                }
                b'}' => self.push_node(Node::Dict(Vec::new())),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.dict()?.push((key, value));
                }
                b'u' => self.set_items()?,
                b']' | b'N' | 0x88 | 0x89 => self.stack.push(Value::Unused),
                b'a' => drop(self.pop()?), // APPEND to a list, which nothing reads
                b'e' => drop(self.pop_to_mark()?),
                b'G' => {
                    self.take(8)?;
                    self.stack.push(Value::Unused);
                }
                b'K' | b'M' => {
                    let n = self.unsigned(if code == b'K' { 1 } else { 2 })?;
                    self.stack.push(Value::Int(n as i64));
                }
                b'J' | 0x8a => {
                    let n_bytes = if code == b'J' { 4 } else { self.take(1)?[0] };
                    let n = self.signed(n_bytes.into())?;
                    self.stack.push(Value::Int(n));
                }
                b'X' => self.text()?,
                b'Q' => self.persistent_id()?,
                b'R' => self.reduce()?,
                b'b' => {
                    self.pop()?; // the state of a dictionary (torch's `_metadata`) is ignored
                    self.dict()?;
                }
                other => {
                    return Err(format!(
                        "pickle code {other:#04x} does not belong to a dictionary of tensors"
                    ));
                }
            }
        }
    }

    fn persistent_id(&mut self) -> Parsed<()> {
        let id = self.pop()?;
        if let [name, Value::Global(Global::Storage(kind)), key, _location, Value::Int(len)] =
            *self.items(id, "a storage's id")?
            && (self.pickle.text(name), self.pickle.text(key).is_some()) == (Some("storage"), true)
        {
            self.push_node(Node::Storage(Storage { kind, key, len }));
            return Ok(());
        }
        Err("a storage's id is not (\"storage\", type, key, location, length)".to_owned())
    }

    /// The result of a call in Python: three calls are recognised.
    fn reduce(&mut self) -> Parsed<()> {
        let (arguments, called) = (self.pop()?, self.pop()?);
        let made = match (called, self.items(arguments, "a call's arguments")?) {
            (Value::Global(Global::OrderedDict), []) => Node::Dict(Vec::new()),
            (Value::Global(Global::RebuildTensor), arguments) => {
                let malformed = || {
                    format!(
                        "a tensor is not (storage, offset, size, stride, …) of at most {MAX_DIMENSIONS} dimensions"
                    )
                };
                Node::Tensor(self.view(arguments).ok_or_else(malformed)?)
            }
            (Value::Global(Global::RebuildParameter), &[tensor, ..])
                if matches!(self.pickle.node(tensor), Some(Node::Tensor(_))) =>
            {
                self.stack.push(tensor);
                return Ok(());
            }
            _ => {
                let reason = "it calls something that a dictionary of tensors does not need";
                return Err(format!("{reason}; save the tensors alone"));
            }
        };
        self.push_node(made);
        Ok(())
    }

    fn view(&self, arguments: &[Value]) -> Option<View> {
        let [storage, Value::Int(offset), size, stride, ..] = *arguments else { return None };
        let view = View { storage, offset, size, stride };
        self.pickle.strided(view).map(|_| view)
    }

    fn set_items(&mut self) -> Parsed<()> {
        let items = self.pop_to_mark()?;
        if items.len() % 2 != 0 {
            return Err("a dictionary gets a key without a value".to_owned());
        }
        let dict = self.dict()?;
        dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    /// The dictionary on top of the stack.
    fn dict(&mut self) -> Parsed<&mut Vec<(Value, Value)>> {
        let top = self.stack.last();
        if let Some(&Value::Node(index)) = top
            && let Node::Dict(items) = &mut self.pickle.nodes[index]
        {
            return Ok(items);
        }
        Err("something else stands where a dictionary is expected".to_owned())
    }

    fn tuple(&mut self, n: usize) -> Parsed<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Parsed<Vec<Value>>>()?;
        items.reverse();
        self.push_node(Node::Tuple(items.into()));
        Ok(())
    }

    /// The values of a tuple.
    fn items(&self, tuple: Value, what: &str) -> Parsed<&[Value]> {
        match self.pickle.node(tuple) {
            Some(Node::Tuple(items)) => Ok(items),
            _ => Err(format!("{what} is not a tuple")),
        }
    }

    fn push_node(&mut self, node: Node<'a>) {
        self.stack.push(Value::Node(self.pickle.nodes.len()));
        self.pickle.nodes.push(node);
    }

    fn pop(&mut self) -> Parsed<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let top = if self.stack.len() > floor { self.stack.pop() } else { None };
        top.ok_or_else(|| "the pickle takes a value that it has not made".to_owned())
    }

    fn pop_to_mark(&mut self) -> Parsed<Vec<Value>> {
        let mark = self.marks.pop().ok_or("the pickle goes back to a mark that it has not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn memoise(&mut self, slot_bytes: usize) -> Parsed<()> {
        let slot = self.unsigned(slot_bytes)?;
        let &value =
            self.stack.last().ok_or("the pickle remembers a value that it has not made")?;
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot_bytes: usize) -> Parsed<()> {
        let slot = self.unsigned(slot_bytes)?;
        let &value =
            self.memo.get(&slot).ok_or("the pickle recalls a value that it has not stored")?;
        self.stack.push(value);
        Ok(())
    }

    /// A little-endian number of at most 8 bytes.
    fn unsigned(&mut self, n_bytes: usize) -> Parsed<u64> {
        let mut bytes = [0; 8];
        bytes[..n_bytes].copy_from_slice(self.take(n_bytes)?);
        Ok(u64::from_le_bytes(bytes))
    }

    /// The same in two's complement, of `n_bytes` bytes.
    fn signed(&mut self, n_bytes: usize) -> Parsed<i64> {
        if n_bytes > 8 {
            return Err(format!("an integer of {n_bytes} bytes; at most 8 can be read"));
        }
        let taken = self.take(n_bytes)?;
        let is_negative = taken.last().is_some_and(|byte| *byte >= 0x80);
        let mut bytes = [if is_negative { 0xff } else { 0 }; 8];
        bytes[..n_bytes].copy_from_slice(taken);
        Ok(i64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Parsed<()> {
        let n_bytes = self.unsigned(4)? as usize;
        let text = std::str::from_utf8(self.take(n_bytes)?).map_err(|failed| failed.to_string())?;
        self.push_node(Node::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Parsed<&'a str> {
        const LONGEST: usize = 1024;
        let end = self.bytes.iter().take(LONGEST).position(|byte| *byte == b'\n');
        let line = self.take(end.ok_or_else(cut_short)?)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn take(&mut self, n_bytes: usize) -> Parsed<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(n_bytes).ok_or_else(cut_short)?;
        self.bytes = rest;
        Ok(taken)
    }
}

impl Global {
    fn from_name(module: &str, name: &str) -> Parsed<Self> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "DoubleStorage") => Self::Storage(Kind::Double),
            ("torch", "FloatStorage") => Self::Storage(Kind::Float),
            ("torch", "HalfStorage") => Self::Storage(Kind::Half),
            ("torch", "BFloat16Storage") => Self::Storage(Kind::BFloat16),
            ("torch", "LongStorage") => Self::Storage(Kind::Int64),
            ("torch", "IntStorage") => Self::Storage(Kind::Int),
            ("torch", "ShortStorage") => Self::Storage(Kind::Int16),
            ("torch", "CharStorage") => Self::Storage(Kind::Int8),
            ("torch", "ByteStorage") => Self::Storage(Kind::Uint8),
            ("torch", "BoolStorage") => Self::Storage(Kind::Bool),
            _ => {
                return Err(format!(
                    "it names {module}.{name}, which is not part of a dictionary of tensors; nothing was run"
                ));
            }
        })
    }
}

fn cut_short() -> String {
    "the pickle is cut short".to_owned()
}
