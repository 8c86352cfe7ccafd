//! SentencePiece vocabularies of GGUF files against transformers and SentencePiece: `tests/oracle/gguf_tokenizers`, written by
//! `tools/oracle/make_gguf_tokenizers.py`.

use reft_models::{Gguf, Tokenizer};
use reft_test_support::{Outcome, oracle, oracle_text};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
    decoded: Option<String>,
}

fn open(name: &str) -> reft_models::Result<Tokenizer> {
    Tokenizer::open(&oracle("gguf_tokenizers").join(format!("{name}.gguf")))
}

#[test]
fn sentencepiece_vocabularies_are_read_as_transformers_reads_them() -> Outcome {
    let recorded = serde_json::from_str::<serde_json::Value>(&oracle_text(
        "gguf_tokenizers/gguf_tokenizers.json",
    )?)?;
    for name in ["merged", "gemma", "unknown", "unigram", "unigram_bytes"] {
        let tokenizer = open(name)?;
        let cases: Vec<Case> = serde_json::from_value(recorded[name].clone())?;
        assert!(cases.len() >= 10, "{name} has {} cases", cases.len());
        for Case { text, ids, decoded } in cases {
            assert_eq!(tokenizer.encode(&text, false)?, ids, "{name}: {text:?}");
            if let Some(decoded) = decoded {
                assert_eq!(tokenizer.decode(&ids, false)?, decoded, "{name}: {text:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn bos_and_eos_stand_where_the_file_wants_them() -> Outcome {
    let recorded = serde_json::from_str::<serde_json::Value>(&oracle_text(
        "gguf_tokenizers/gguf_tokenizers.json",
    )?)?;
    let text = "the model reads a text";
    let around = |name: &str| -> Result<_, Box<dyn std::error::Error>> {
        let tokenizer = open(name)?;
        let (with, without) = (tokenizer.encode(text, true)?, tokenizer.encode(text, false)?);
        let at = with.windows(without.len()).position(|ids| ids == without).ok_or("not in it")?;
        Ok((with[..at].to_vec(), with[at + without.len()..].to_vec()))
    };
    let added: Vec<i64> = serde_json::from_value(recorded["added"].clone())?;
    assert_eq!(open("merged")?.encode(text, true)?, added);
    assert_eq!(around("merged")?, (vec![1], vec![]));
    assert_eq!(around("gemma")?, (vec![2], vec![]));
    assert_eq!(around("unknown")?, (vec![], vec![2]));
    assert_eq!(around("unigram")?, (vec![], vec![1])); // llama.cpp's default for such a file
    assert_eq!(around("unigram_bytes")?, (vec![], vec![]));
    Ok(())
}

#[test]
fn a_converted_tokenizer_is_the_same() -> Outcome {
    let recorded = serde_json::from_str::<serde_json::Value>(&oracle_text(
        "gguf_tokenizers/gguf_tokenizers.json",
    )?)?;
    for name in ["merged", "unigram"] {
        let gguf = Gguf::open(&oracle("gguf_tokenizers").join(format!("{name}.gguf")))?;
        let directory = tempfile::tempdir()?;
        std::fs::write(
            directory.path().join("tokenizer.json"),
            gguf.tokenizer_json()?.to_string(),
        )?;
        let tokenizer = Tokenizer::open(directory.path())?;
        let cases: Vec<Case> = serde_json::from_value(recorded[name].clone())?;
        for Case { text, ids, .. } in cases {
            assert_eq!(tokenizer.encode(&text, false)?, ids, "{name}: {text:?}");
        }
    }
    Ok(())
}
