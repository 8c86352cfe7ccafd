//! The part of Python's pickle language in which `torch.save` writes dictionaries of tensors.
//!
//! Nothing is imported or called: the few names that such a file needs are recognised, any other name is an error. Values live
//! in one arena and refer to each other by index, so that hostile input (cycles, deep nesting, a shared value repeated
//! without end) costs no more than its own length.

use std::collections::HashMap;
use std::io::{BufRead, Read};

type Parsed<T> = std::result::Result<T, String>;

/// A value; what is not a plain number lies in the arena.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value {
    /// `None`, a float, or a list: written in such files, and never needed to read a tensor.
    Unused,
    Bool(bool),
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
    Storage(ElementType),
}

/// Element types of torch's storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    Double,
    Float,
    Half,
    BFloat16,
    Long,
    Int,
    Short,
    Char,
    Byte,
    Bool,
}

/// A run of elements in a file of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) element_type: ElementType,
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
    root: Value,
}

impl Pickle {
    /// Reads a pickle up to its end mark.
    pub(crate) fn read(reader: impl BufRead) -> Parsed<Self> {
        let mut machine = Machine {
            reader,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        let root = machine.run()?;
        Ok(Self { nodes: machine.nodes, root })
    }

    /// The outermost value.
    pub(crate) fn root(&self) -> Value {
        self.root
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
struct Machine<R> {
    reader: R,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl<R: BufRead> Machine<R> {
    fn run(&mut self) -> Parsed<Value> {
        loop {
            let [code] = self.bytes()?;
            match code {
                0x80 => drop(self.bytes::<1>()?), // PROTO
                b'.' => return self.pop(),
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(Global::from_name(&module, &name)?));
                }
                b'q' => {
                    let [slot] = self.bytes()?;
                    self.memoise(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.bytes()?);
                    self.memoise(slot)?;
                }
                b'h' => {
                    let [slot] = self.bytes()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.bytes()?);
                    self.recall(slot)?;
                }
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
                b']' | b'N' => self.stack.push(Value::Unused),
                b'a' => drop(self.pop()?), // APPEND to a list, which nothing reads
                b'e' => drop(self.pop_to_mark()?),
                b'G' => {
                    self.bytes::<8>()?;
                    self.stack.push(Value::Unused);
                }
                0x88 => self.stack.push(Value::Bool(true)),
                0x89 => self.stack.push(Value::Bool(false)),
                b'K' => {
                    let [n] = self.bytes()?;
                    self.stack.push(Value::Int(n.into()));
                }
                b'M' => {
                    let n = u16::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Int(n.into()));
                }
                b'J' => {
                    let n = i32::from_le_bytes(self.bytes()?);
                    self.stack.push(Value::Int(n.into()));
                }
                0x8a => self.long()?,
                b'X' => self.text()?,
                b'Q' => self.persistent_id()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
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
        let [kind, Value::Global(Global::Storage(element_type)), key, _location, Value::Int(len)] =
            id[..]
        else {
            return Err(
                "a storage's id is not (\"storage\", type, key, location, length)".to_owned()
            );
        };
        match (self.text_of(kind), self.text_of(key)) {
            (Some("storage"), Some(key)) => {
                let storage = Storage { element_type, key: key.to_owned(), len };
                self.push_node(Node::Storage(storage));
                Ok(())
            }
            _ => Err("a storage's id is not (\"storage\", type, key, location, length)".to_owned()),
        }
    }

    /// What Python would do by calling; here the three calls are recognised.
    fn reduce(&mut self) -> Parsed<()> {
        let arguments = self.pop_tuple("a call's arguments")?;
        match self.pop()? {
            Value::Global(Global::OrderedDict) if arguments.is_empty() => {
                self.push_node(Node::Dict(Vec::new()));
                Ok(())
            }
            Value::Global(Global::RebuildTensor) => {
                let view = self.view(&arguments)?;
                self.push_node(Node::Tensor(view));
                Ok(())
            }
            Value::Global(Global::RebuildParameter) => match arguments.first() {
                Some(&value @ Value::Node(index))
                    if matches!(self.nodes[index], Node::Tensor(_)) =>
                {
                    self.stack.push(value);
                    Ok(())
                }
                _ => Err("a parameter is not made of a tensor".to_owned()),
            },
            other => {
                Err(format!("{other:?} is called, which is not part of a dictionary of tensors"))
            }
        }
    }

    fn view(&self, arguments: &[Value]) -> Parsed<View> {
        let malformed = || "a tensor is not (storage, offset, size, stride, …)".to_owned();
        let [Value::Node(storage), Value::Int(offset), size, stride, ..] = *arguments else {
            return Err(malformed());
        };
        let Node::Storage(storage) = &self.nodes[storage] else {
            return Err(malformed());
        };
        let integers = |value: Value| match value {
            Value::Node(index) => match &self.nodes[index] {
                Node::Tuple(items) => items
                    .iter()
                    .map(|item| if let Value::Int(n) = item { Some(*n) } else { None })
                    .collect(),
                _ => None,
            },
            _ => None,
        };
        let size: Vec<i64> = integers(size).ok_or_else(malformed)?;
        let stride: Vec<i64> = integers(stride).ok_or_else(malformed)?;
        Ok(View { storage: storage.clone(), offset, size, stride })
    }

    /// The state that is set on a dictionary (torch's `_metadata`) is read over.
    fn build(&mut self) -> Parsed<()> {
        let _state = self.pop()?;
        self.dict().map(drop)
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
        match self.stack.last() {
            Some(&Value::Node(index)) => match &mut self.nodes[index] {
                Node::Dict(items) => Ok(items),
                other => Err(format!("{other:?} stands where a dictionary is expected")),
            },
            other => Err(format!("{other:?} stands where a dictionary is expected")),
        }
    }

    fn tuple(&mut self, n: usize) -> Parsed<()> {
        let mut items = (0..n).map(|_| self.pop()).collect::<Parsed<Vec<Value>>>()?;
        items.reverse();
        self.push_node(Node::Tuple(items));
        Ok(())
    }

    fn pop_tuple(&mut self, what: &str) -> Parsed<Vec<Value>> {
        match self.pop()? {
            Value::Node(index) => match &self.nodes[index] {
                Node::Tuple(items) => Ok(items.clone()),
                _ => Err(format!("{what} is not a tuple")),
            },
            _ => Err(format!("{what} is not a tuple")),
        }
    }

    fn text_of(&self, value: Value) -> Option<&str> {
        match value {
            Value::Node(index) => match &self.nodes[index] {
                Node::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        }
    }

    fn push_node(&mut self, node: Node) {
        self.stack.push(Value::Node(self.nodes.len()));
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Parsed<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("the pickle takes a value that it has not made".to_owned());
        }
        self.stack.pop().ok_or_else(|| "the pickle takes a value that it has not made".to_owned())
    }

    fn pop_to_mark(&mut self) -> Parsed<Vec<Value>> {
        let mark = self.marks.pop().ok_or("the pickle goes back to a mark that it has not set")?;
        Ok(self.stack.split_off(mark))
    }

    fn memoise(&mut self, slot: u32) -> Parsed<()> {
        let &value =
            self.stack.last().ok_or("the pickle remembers a value that it has not made")?;
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Parsed<()> {
        let &value =
            self.memo.get(&slot).ok_or("the pickle recalls a value that it has not stored")?;
        self.stack.push(value);
        Ok(())
    }

    /// A little-endian integer of up to eight bytes.
    fn long(&mut self) -> Parsed<()> {
        let [n] = self.bytes()?;
        if n > 8 {
            return Err(format!("an integer of {n} bytes; at most 8 can be read"));
        }
        let mut bytes = [0; 8];
        self.fill(&mut bytes[..n.into()])?;
        let negative = n > 0 && bytes[usize::from(n) - 1] >= 0x80;
        if negative {
            bytes[n.into()..].fill(0xff);
        }
        self.stack.push(Value::Int(i64::from_le_bytes(bytes)));
        Ok(())
    }

    fn text(&mut self) -> Parsed<()> {
        let len = u32::from_le_bytes(self.bytes()?);
        let mut text = String::new();
        // `take` and not a buffer of `len`: the length may be a lie.
        let n = self
            .reader
            .by_ref()
            .take(len.into())
            .read_to_string(&mut text)
            .map_err(|failed| failed.to_string())?;
        if n as u64 != u64::from(len) {
            return Err(cut_short());
        }
        self.push_node(Node::Text(text));
        Ok(())
    }

    fn line(&mut self) -> Parsed<String> {
        const LONGEST: u64 = 1024;
        let mut line = Vec::new();
        self.reader
            .by_ref()
            .take(LONGEST)
            .read_until(b'\n', &mut line)
            .map_err(|failed| failed.to_string())?;
        if line.pop() != Some(b'\n') {
            return Err(cut_short());
        }
        String::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn bytes<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Parsed<()> {
        self.reader.read_exact(bytes).map_err(|_| cut_short())
    }
}

impl Global {
    fn from_name(module: &str, name: &str) -> Parsed<Self> {
        use ElementType::{BFloat16, Bool, Byte, Char, Double, Float, Half, Int, Long, Short};
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "DoubleStorage") => Self::Storage(Double),
            ("torch", "FloatStorage") => Self::Storage(Float),
            ("torch", "HalfStorage") => Self::Storage(Half),
            ("torch", "BFloat16Storage") => Self::Storage(BFloat16),
            ("torch", "LongStorage") => Self::Storage(Long),
            ("torch", "IntStorage") => Self::Storage(Int),
            ("torch", "ShortStorage") => Self::Storage(Short),
            ("torch", "CharStorage") => Self::Storage(Char),
            ("torch", "ByteStorage") => Self::Storage(Byte),
            ("torch", "BoolStorage") => Self::Storage(Bool),
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
