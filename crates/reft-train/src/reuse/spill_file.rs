use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tch::{Kind, Tensor};

/// A file that tensors are put away in, one behind the other, and read back from by their place.
///
/// It has no name in its directory (the system removes it when the program ends, however it ends), and is read by position: a file that
/// was cut or a disk that fails is an error here, where a memory map of it would end the program.
#[derive(Debug)]
pub(crate) struct SpillFile {
    file: File,
    end: u64,
}

/// Where a tensor is, and what.
#[derive(Debug, Clone)]
pub(crate) struct Place {
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
    pub(crate) fn write(&mut self, tensor: &Tensor) -> io::Result<Place> {
        let bytes = bytes_of(tensor);
        self.file.write_all_at(&bytes, self.end)?;
        let place = Place { offset: self.end, shape: tensor.size(), kind: tensor.kind() };
        self.end += bytes.len() as u64;
        Ok(place)
    }

    /// Reads a tensor back.
    pub(crate) fn read(&self, place: &Place) -> io::Result<Tensor> {
        let numel = place.shape.iter().product::<i64>() as usize;
        let mut bytes = vec![0u8; numel * place.kind.elt_size_in_bytes()];
        self.file.read_exact_at(&mut bytes, place.offset)?;
        Tensor::f_from_data_size(&bytes, &place.shape, place.kind).map_err(io::Error::other)
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
        let first = Tensor::randn([3, 5, 2], (Kind::Float, Device::Cpu));
        let second = Tensor::randn([7, 2], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let third = first.transpose(0, 2); // not contiguous
        let tensors = [&first, &second, &third];
        let places = tensors.map(|tensor| file.write(tensor));
        for (tensor, place) in tensors.into_iter().zip(places) {
            assert_eq!(&file.read(&place?)?, tensor);
        }
        Ok(())
    }

    #[test]
    fn what_is_gone_is_an_error() -> Result<(), Box<dyn std::error::Error>> {
        let directory = tempfile::tempdir()?;
        let mut file = SpillFile::create(directory.path())?;
        let place = file.write(&Tensor::ones([64], (Kind::Float, Device::Cpu)))?;
        file.file.set_len(100)?;
        assert_eq!(file.read(&place).map_err(|e| e.kind()), Err(io::ErrorKind::UnexpectedEof));
        Ok(())
    }
}
