//! Files as `torch.save` writes them: a zip of one pickle and the tensors' bytes.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use reft_models::{Result, io_error};
use tch::{Device, Kind, Tensor};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The directory inside the zip; torch reads any name.
const ROOT: &str = "archive";

/// Alignment of a tensor's elements in the file, in bytes, so that torch can map it.
const ALIGNMENT: u16 = 64;

/// Writes a dictionary of tensors of 32-bit floats or 64-bit integers, as torch 1.6 and later read it, also with `weights_only`.
///
/// # Errors
/// [`reft_models::Error::Io`] if the file cannot be written.
///
/// # Panics
/// If a tensor is of another kind.
pub(crate) fn save_torch_pickle(path: &Path, tensors: &[(&str, Tensor)]) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut zip = ZipWriter::new(File::create(path)?);
        let stored = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(ALIGNMENT);
        let mut add = |name: &str, bytes: &[u8]| -> io::Result<()> {
            zip.start_file(format!("{ROOT}/{name}"), stored)?;
            zip.write_all(bytes)
        };
        add("data.pkl", &pickle(tensors))?;
        add("byteorder", b"little")?;
        for (key, (_, tensor)) in tensors.iter().enumerate() {
            add(&format!("data/{key}"), &bytes_of(tensor))?;
        }
        add("version", b"3\n")?;
        zip.finish()?.sync_all()
    };
    write().map_err(io_error("write", path))
}

/// A tensor's elements one after the other, in little-endian order.
fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.detach().to_device(Device::Cpu).flatten(0, -1);
    let matches = "invariant: a flat tensor of this kind is a list of it";
    if tensor.kind() == Kind::Int64 {
        let numbers = Vec::<i64>::try_from(flat).expect(matches);
        return numbers.into_iter().flat_map(i64::to_le_bytes).collect();
    }
    let numbers = Vec::<f32>::try_from(flat).expect(matches);
    numbers.into_iter().flat_map(f32::to_le_bytes).collect()
}

/// The program that makes the dictionary, in Python's pickle language (protocol 2).
fn pickle(tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let mut program = Program(b"\x80\x02".to_vec()); // PROTO 2
    program.global("collections", "OrderedDict");
    program.code(b")R("); // EMPTY_TUPLE, REDUCE: the empty dictionary; MARK: its items follow
    for (key, (name, tensor)) in tensors.iter().enumerate() {
        program.text(name);
        program.tensor(key, tensor);
    }
    program.code(b"u."); // SETITEMS, STOP
    program.0
}

/// A pickle in the making.
struct Program(Vec<u8>);

impl Program {
    fn code(&mut self, codes: &[u8]) {
        self.0.extend(codes);
    }

    fn global(&mut self, module: &str, name: &str) {
        self.code(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) {
        let len = u32::try_from(text.len()).expect("invariant: names are short");
        self.code(b"X");
        self.code(&len.to_le_bytes());
        self.code(text.as_bytes());
    }

    /// LONG1: up to 8 bytes in two's complement.
    fn integer(&mut self, n: i64) {
        self.code(&[0x8a, 8]);
        self.code(&n.to_le_bytes());
    }

    fn integers(&mut self, numbers: &[i64]) {
        self.code(b"("); // MARK
        numbers.iter().for_each(|n| self.integer(*n));
        self.code(b"t"); // TUPLE
    }

    /// torch's call that makes a tensor: the function, and its storage, offset, sizes, strides, gradient and hooks.
    fn tensor(&mut self, key: usize, tensor: &Tensor) {
        let storage = if tensor.kind() == Kind::Int64 { "LongStorage" } else { "FloatStorage" };
        let size = tensor.size();
        let stride = (0..size.len()).map(|i| size[i + 1..].iter().product());
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.code(b"(("); // MARK of the arguments, MARK of the storage's id
        self.text("storage");
        self.global("torch", storage);
        self.text(&key.to_string());
        self.text("cpu");
        self.integer(tensor.numel() as i64);
        self.code(b"tQ"); // TUPLE, BINPERSID
        self.integer(0);
        self.integers(&size);
        self.integers(&stride.collect::<Vec<i64>>());
        self.code(b"\x89"); // NEWFALSE
        self.global("collections", "OrderedDict");
        self.code(b")RtR"); // no hooks; TUPLE of the arguments, REDUCE
    }
}
