use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tch::{Kind, Tensor};

/// A file that tensors are appended to, and read back from by extent.
///
/// It has no name in its directory, so the system removes it however the program ends. It is read by position: a truncated file or a failing
/// disk is an error here, but would crash a program that maps the file.
#[derive(Debug)]
pub(crate) struct SpillFile {
    file: File,
    end: u64,
}

/// The place of a tensor, its kind and its shape.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    offset: u64,
    shape: Vec<i64>,
    kind: Kind,
}

impl SpillFile {
    pub(crate) fn create(directory: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        Ok(Self { file: tempfile::tempfile_in(directory)?, end: 0 })
    }

    /// Appends a tensor.
    pub(crate) fn write(&mut self, tensor: &Tensor) -> io::Result<Extent> {
        let bytes = bytes_of(tensor);
        self.file.write_all_at(&bytes, self.end)?;
        let extent = Extent { offset: self.end, shape: tensor.size(), kind: tensor.kind() };
        self.end += bytes.len() as u64;
        Ok(extent)
    }

    /// Reads a tensor back.
    pub(crate) fn read(&self, extent: &Extent) -> io::Result<Tensor> {
        let numel = extent.shape.iter().product::<i64>() as usize;
        let mut bytes = vec![0u8; numel * extent.kind.elt_size_in_bytes()];
        self.file.read_exact_at(&mut bytes, extent.offset)?;
        Tensor::f_from_data_size(&bytes, &extent.shape, extent.kind).map_err(io::Error::other)
    }
}

fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let (numel, size) = (tensor.numel(), tensor.kind().elt_size_in_bytes());
    let mut bytes = vec![0u8; numel * size];
    tensor.copy_data_u8(&mut bytes, numel);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn tensors_come_back_bit_for_bit() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let mut file = SpillFile::create(&directory.path().join("made"))?;
        let first = Tensor::arange(30, (Kind::Float, Device::Cpu)).sin().view([3, 5, 2]);
        let second = first.view([15, 2]).narrow(0, 0, 7).to_kind(Kind::BFloat16);
        let third = first.transpose(0, 2); // not contiguous
        let tensors = [&first, &second, &third];
        let extents = tensors.map(|tensor| file.write(tensor));
        for (tensor, extent) in tensors.into_iter().zip(extents) {
            assert_eq!(&file.read(&extent?)?, tensor);
        }
        Ok(())
    }

    #[test]
    fn what_is_gone_is_an_error() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let mut file = SpillFile::create(directory.path())?;
        let extent = file.write(&Tensor::ones([64], (Kind::Float, Device::Cpu)))?;
        file.file.set_len(100)?;
        assert_eq!(file.read(&extent).map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
        Ok(())
    }
}
