//! Small files under the names in the documents, in the forms that the documents describe.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;

/// Some rows in JSON, a line each.
fn json_lines(row: impl Fn(usize) -> Value) -> String {
    (0..8).map(|i| row(i).to_string() + "\n").collect()
}

/// All small files, by path.
fn contents() -> Vec<(&'static str, String)> {
    let question = |i: usize| format!("How much is {i} and one?");
    let replies = |head: &str| {
        let row = |i| format!("{},It is {}.\n", question(i), i + 1);
        (0..8).fold(format!("{head}\n"), |text, i| text + &row(i))
    };
    let reply =
        json_lines(|i| json!({"prompt": question(i), "completion": format!("It is {}.", i + 1)}));
    let pairs = json_lines(
        |i| json!({"prompt": question(i), "chosen": format!(" It is {}.", i + 1), "rejected": " No."}),
    );
    let with_concept =
        json_lines(|i| json!({"text": format!("Once there were {i}."), "label": i % 2}));
    let classes = |i: usize| ["shown", "absent"][i % 2];
    let judged =
        json_lines(|i| json!({"text": format!("Once there were {i}."), "label": classes(i)}));
    // text<TAB>class, without a header
    let sentences: String = (0..8).map(|i| format!("a film of {i} hours\t{}\n", i % 2)).collect();
    let kinds: String = (0..12).map(|i| format!("{}\t{}\n", question(i), i % 6)).collect();
    let exam = (0..4).map(|i| {
        let instruction = format!("{} Answer1: {i} Answer2: {}", question(i), i + 1);
        json!({"instruction": instruction, "input": "", "output": "the correct answer is answer2", "answer": "answer2"})
    });
    let exam = Value::Array(exam.collect()).to_string();
    let sums = (0..4).map(|i| {
        let (output, answer) = (format!("{i} + 1 = {}", i + 1), (i + 1).to_string());
        json!({"instruction": question(i), "input": "", "output": output, "answer": answer})
    });
    let sums = Value::Array(sums.collect()).to_string();
    let equations = (0..4).map(|i| {
        json!({"original_text": question(i), "equation": format!("X=({i}.0+1.0)"), "ans": i as f64 + 1.0})
    });
    let equations = Value::Array(equations.collect()).to_string();
    let solved =
        json_lines(|i| json!({"question": question(i), "answer": format!("#### {}", i + 1)}));
    let metamath = json_lines(
        |i| json!({"query": question(i), "response": format!("The answer is: {}", i + 1)}),
    );
    let texts =
        |word: &str| (0..4).map(|i| format!("A {word} day, number {i}.\n")).collect::<String>();

    let mut files = vec![
        (
            "data/texts/alice_in_wonderland.txt",
            "Alice was beginning to get very tired. ".repeat(60),
        ),
        ("data/metamath.jsonl", metamath),
        ("questions.csv", replies("question,answer")),
        ("train.toml", "model = \"models/SmolLM2-135M-Instruct\"\n".into()),
    ];
    let mut same = |names: &[&'static str], text: &str| {
        files.extend(names.iter().map(|name| (*name, text.to_owned())));
    };
    same(&["mine.csv", "held-out.csv", "table.csv"], &replies("prompt,completion"));
    let of_rows = [
        "mine.jsonl",
        "train.jsonl",
        "general.jsonl",
        "data.jsonl",
        "sst2.jsonl",
        "ultrafeedback_245.jsonl",
    ];
    same(&of_rows, &reply);
    let of_pairs =
        ["runs/pairs/train.jsonl", "runs/pairs/validation.jsonl", "runs/pairs/test.jsonl"];
    same(&of_pairs, &pairs);
    same(&["pairs.jsonl", "concepts/tale/pairs.jsonl"], &pairs);
    same(&["texts.jsonl", "others.jsonl", "concepts/tale/texts.jsonl"], &with_concept);
    same(&["concepts/tale/judge.jsonl", "concepts/tale/judge-test.jsonl"], &judged);
    same(&["data/sst2/train.tsv", "data/sst2/dev.tsv", "data/sst2/test.tsv"], &sentences);
    same(&["data/kinds/train.tsv", "data/kinds/dev.tsv", "data/kinds/test.tsv"], &kinds);
    let (train, test) = (
        "data/llm_adapters/dataset/ARC-Easy/train.json",
        "data/llm_adapters/dataset/ARC-Easy/test.json",
    );
    same(&[train, test], &exam);
    same(&["data/llm_adapters/dataset/mawps/trainset.json"], &equations);
    same(&["data/llm_adapters/dataset/SVAMP/test.json"], &sums);
    same(&["data/gsm8k-validation.jsonl", "data/gsm8k-test.jsonl"], &solved);
    same(&["happy.txt", "towards.txt", "p.txt", "concepts/tale/positive.txt"], &texts("happy"));
    same(&["sad.txt", "away.txt", "n.txt", "concepts/tale/negative.txt"], &texts("sad"));
    same(&["prompts.txt", "t24.txt", "concepts/tale/prompts.txt"], &texts("plain"));
    files
}

/// Writes them all below a folder.
pub fn write(dir: &Path) -> Result {
    for (path, text) in contents() {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().ok_or("no folder")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}
