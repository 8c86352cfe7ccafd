//! Converts a GGUF file to a Hugging Face directory: `cargo run --example convert_gguf FILE DIRECTORY`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(file), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: convert_gguf FILE DIRECTORY".into());
    };
    reft_models::convert_gguf(&file, &directory)?;
    Ok(())
}
