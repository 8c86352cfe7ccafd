use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use reft_models::io_error;

use crate::{Error, Result};

/// The format of a data file. It is found from the first bytes, not from the file's name.
pub(crate) enum Contents {
    /// A text, without a byte order mark.
    Text(String),
    /// A Parquet file, to be read from its beginning.
    Parquet(File),
}

impl Contents {
    /// Opens a file, and unpacks gzip and zstd.
    ///
    /// # Errors
    /// If it cannot be read; [`Error::DataFile`] for a file that is broken, or holds neither text in UTF-8 nor Parquet.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = || io_error("read", path);
        let refuse = |reason: String| Error::DataFile { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(failed())?;
        let mut bytes = Vec::new();
        file.by_ref().take(FIRST_BYTES).read_to_end(&mut bytes).map_err(failed())?;
        if bytes.starts_with(PARQUET) {
            file.rewind().map_err(failed())?;
            return Ok(Self::Parquet(file));
        }
        file.read_to_end(&mut bytes).map_err(failed())?;
        let bytes = unpacked(bytes).map_err(refuse)?;
        if bytes.starts_with(PARQUET) {
            return Err(refuse("it is a packed Parquet file; unpack it first".to_owned()));
        }
        text(bytes).map(Self::Text).map_err(refuse)
    }
}

/// The first bytes of a Parquet file.
const PARQUET: &[u8] = b"PAR1";
/// Number of bytes read first: the length of the longest known beginning.
const FIRST_BYTES: u64 = 16;

/// Beginnings of files that hold no text, with the format's name and advice.
const FOREIGN: [(&[u8], &str); 13] = [
    (b"BZh", "packed with bzip2; unpack it with bunzip2"),
    (b"\xfd7zXZ", "packed with xz; unpack it with unxz"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it"),
    (
        b"PK\x03\x04",
        "a zip archive or an Excel sheet; unpack it, or save the sheet as CSV in UTF-8",
    ),
    (b"\xd0\xcf\x11\xe0", "an Excel sheet; save it as CSV in UTF-8"),
    (b"PARE", "an encrypted Parquet file; write it without encryption"),
    (b"ARROW1", "an Arrow file; write it as Parquet"),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream, as datasets keeps them; write it with to_parquet or to_json",
    ),
    (b"SQLite format 3", "an SQLite database; write the table as CSV"),
    (b"\x89HDF", "an HDF5 file; write it as Parquet or CSV"),
    (b"\x80\x02", "a Python pickle; write it as Parquet or JSON Lines"),
    (b"\x80\x04", "a Python pickle; write it as Parquet or JSON Lines"),
    (b"\x80\x05", "a Python pickle; write it as Parquet or JSON Lines"),
];

/// The bytes of a file, unpacked if they are gzip or zstd.
fn unpacked(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    let (name, unpacked) = if bytes.starts_with(b"\x1f\x8b") {
        let mut unpacked = Vec::new();
        ("gzip", MultiGzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).map(|_| unpacked))
    } else if bytes.starts_with(b"\x28\xb5\x2f\xfd") {
        ("zstd", zstd::decode_all(&bytes[..]))
    } else {
        return Ok(bytes);
    };
    unpacked.map_err(|error| format!("it is packed with {name} and broken ({error}); pack it anew"))
}

/// Bytes as a text in UTF-8.
fn text(mut bytes: Vec<u8>) -> Result<String, String> {
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    if let Some(encoding) = wide_encoding(&bytes) {
        return Err(format!(
            "the text is {encoding}, expected UTF-8; save it as UTF-8, or: iconv -f {encoding} -t UTF-8"
        ));
    }
    if let Some((_, what)) = FOREIGN.iter().find(|(begin, _)| bytes.starts_with(begin)) {
        return Err(format!("it is {what}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
        let byte = error.as_bytes()[at];
        format!(
            "line {line} is no UTF-8 (byte {byte:#04x}), expected UTF-8; if it was written in Western Europe: iconv -f WINDOWS-1252 -t UTF-8"
        )
    })
}

/// Detects UTF-16 and UTF-32, by the byte order mark or by zero bytes in the first characters.
fn wide_encoding(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] => Some("UTF-32LE"),
        [0, 0, 0xfe, 0xff, ..] => Some("UTF-32BE"),
        [0xff, 0xfe, ..] => Some("UTF-16LE"),
        [0xfe, 0xff, ..] => Some("UTF-16BE"),
        [first, 0, 0, 0, ..] if *first != 0 => Some("UTF-32LE"),
        [0, 0, 0, last, ..] if *last != 0 => Some("UTF-32BE"),
        [first, 0, third, 0, ..] if *first != 0 && *third != 0 => Some("UTF-16LE"),
        [0, second, 0, fourth, ..] if *second != 0 && *fourth != 0 => Some("UTF-16BE"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, String> {
        text(unpacked(bytes.to_vec())?)
    }

    #[test]
    fn marks_of_utf_8_are_no_part_of_the_text() {
        assert_eq!(read(b"\xef\xbb\xbfa\xc3\xa9").as_deref(), Ok("a\u{e9}"));
        assert_eq!(read(b"").as_deref(), Ok(""));
    }

    #[test]
    fn other_encodings_are_refused_by_name() {
        let wide = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(bytes).collect()
        };
        let (little, big) = (u16::to_le_bytes as fn(u16) -> _, u16::to_be_bytes as fn(u16) -> _);
        for (bytes, name) in [
            (wide("\u{feff}{}", little), "UTF-16LE"),
            (wide("\u{feff}{}", big), "UTF-16BE"),
            (wide("{\"prompt\"", little), "UTF-16LE"),
            (wide("{\"prompt\"", big), "UTF-16BE"),
            (b"\xff\xfe\0\0{\0\0\0".to_vec(), "UTF-32LE"),
            (b"\0\0\0{\0\0\0}".to_vec(), "UTF-32BE"),
            (b"ab\ncaf\xe9".to_vec(), "line 2 is no UTF-8 (byte 0xe9)"),
        ] {
            let refused = read(&bytes);
            let is_named = |reason: &String| reason.contains(name) && reason.contains("iconv -f");
            assert!(refused.as_ref().is_err_and(is_named), "{name}: {refused:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused_by_what_it_is() {
        for (bytes, name) in [
            (&b"PK\x03\x04rest"[..], "Excel"),
            (b"BZh91AY", "bzip2"),
            (b"ARROW1\0\0", "Arrow"),
            (b"\xff\xff\xff\xffabcd", "Arrow stream"),
            (b"SQLite format 3\0", "SQLite"),
            (b"\x1f\x8bbroken", "gzip and broken"),
            (b"\x28\xb5\x2f\xfdbroken", "zstd and broken"),
        ] {
            let refused = read(bytes);
            assert!(refused.as_ref().is_err_and(|r| r.contains(name)), "{name}: {refused:?}");
        }
    }
}
