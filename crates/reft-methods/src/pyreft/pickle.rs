//! The part of Python's pickle language in which `torch.save` writes dictionaries of tensors.
//!
//! Nothing is imported or called: the few names that such a file needs are recognised, any other name is an error. Values live
//! in one arena and refer to each other by index, so that hostile input (cycles, deep nesting, a shared value repeated
//! without end) costs no more than its own length.

use std::collections::HashMap;

use tch::Kind;

type Parsed<T> = std::result::Result<T, String>;

/// A value; what is not a plain number lies in the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    /// `None`, a truth value, a float, or a list: written in such files, and never needed to read a tensor.
    Unused,
    Int(i64),
    Global(Global),
    Node(usize),
}

/// A value that holds others.
#[derive(Debug)]
pub(crate) enum Node {
    Text(String),
    Tuple(Vec<Value>),
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) kind: Kind,
    pub(crate) key: String,
    pub(crate) len: i64,
}

/// A strided view of a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) storage: Storage,
    pub(crate) offset: i64,
    pub(crate) size: Vec<i64>,
    pub(crate) stride: Vec<i64>,
}

/// What a pickle holds.
#[derive(Debug)]
pub(crate) struct Pickle {
    nodes: Vec<Node>,
    /// The outermost value.
    pub(crate) root: Value,
}

impl Pickle {
    /// Reads a pickle up to its end mark.
    pub(crate) fn read(bytes: &[u8]) -> Parsed<Self> {
        let pickle = Self { nodes: Vec::new(), root: Value::Unused };
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        Machine { bytes, pickle, stack, marks, memo }.run()
    }

    /// What a value refers to, if it is not a plain one.
    pub(crate) fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => self.nodes.get(index),
            _ => None,
        }
    }
}

/// The stack machine that a pickle is a program for.
struct Machine<'a> {
    /// What is not read yet.
    bytes: &'a [u8],
    pickle: Pickle,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
}

impl<'a> Machine<'a> {
    fn run(mut self) -> Parsed<Pickle> {
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
                b')' => self.push_node(Node::Tuple(Vec::new())),
                0x85..=0x87 => self.tuple(usize::from(code - 0x84))?, // TUPLE1 to TUPLE3
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_node(Node::Tuple(items));
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
                    self.pop()?; // the state of a dictionary (torch's `_metadata`) is read over
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
        let id = self.pop_tuple("a storage's id")?;
        if let [name, Value::Global(Global::Storage(kind)), key, _location, Value::Int(len)] =
            id[..]
            && let (Some("storage"), Some(key)) = (self.text_of(name), self.text_of(key))
        {
            let storage = Storage { kind, key: key.to_owned(), len };
            self.push_node(Node::Storage(storage));
            return Ok(());
        }
        Err("a storage's id is not (\"storage\", type, key, location, length)".to_owned())
    }

    /// What Python would do by calling; here the three calls are recognised.
    fn reduce(&mut self) -> Parsed<()> {
        let arguments = self.pop_tuple("a call's arguments")?;
        match (self.pop()?, &arguments[..]) {
            (Value::Global(Global::OrderedDict), []) => self.push_node(Node::Dict(Vec::new())),
            (Value::Global(Global::RebuildTensor), arguments) => {
                let malformed = "a tensor is not (storage, offset, size, stride, …)";
                let view = self.view(arguments).ok_or(malformed)?;
                self.push_node(Node::Tensor(view));
            }
            (Value::Global(Global::RebuildParameter), &[tensor, ..])
                if matches!(self.pickle.node(tensor), Some(Node::Tensor(_))) =>
            {
                self.stack.push(tensor);
            }
            _ => {
                let reason = "it calls something that a dictionary of tensors does not need";
                return Err(format!("{reason}; save the tensors alone"));
            }
        }
        Ok(())
    }

    fn view(&self, arguments: &[Value]) -> Option<View> {
        let [storage, Value::Int(offset), size, stride, ..] = *arguments else { return None };
        let Some(Node::Storage(storage)) = self.pickle.node(storage) else { return None };
        let integer = |value: &Value| if let Value::Int(n) = value { Some(*n) } else { None };
        let integers = |tuple: Value| match self.pickle.node(tuple)? {
            Node::Tuple(items) => items.iter().map(integer).collect(),
            _ => None,
        };
        let (size, stride) = (integers(size)?, integers(stride)?);
        Some(View { storage: storage.clone(), offset, size, stride })
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
        self.push_node(Node::Tuple(items));
        Ok(())
    }

    fn pop_tuple(&mut self, what: &str) -> Parsed<Vec<Value>> {
        let value = self.pop()?;
        match self.pickle.node(value) {
            Some(Node::Tuple(items)) => Ok(items.clone()),
            _ => Err(format!("{what} is not a tuple")),
        }
    }

    fn text_of(&self, value: Value) -> Option<&str> {
        match self.pickle.node(value)? {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    fn push_node(&mut self, node: Node) {
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

    /// The same in two's complement, of a length that the pickle says.
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
        self.push_node(Node::Text(text.to_owned()));
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
