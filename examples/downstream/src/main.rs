//! Trains LoReFT on rows that are in memory, and lets the model answer with it.
//!
//! `cargo run -- MODEL`, where MODEL is a directory of a chat model.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use reft_methods::{LAYERS, MethodOptions, POSITIONS, RANK, resolve};
use reft_models::{
    AdapterStack, ChatTemplate, Decoder, GenerationConfig, Model, Row, Tokenizer, generate,
};
use reft_train::{
    Content, Dataset, Encoding, Learner, NextToken, Objective, Record, Silent, Template,
    TextEncoder, TrainConfig, Trainer, Turns,
};

const ROWS: [(&str, &str); 6] = [
    ("What is the capital of France?", "PARIS!"),
    ("What colour is the sky?", "BLUE!"),
    ("How many legs has a dog?", "FOUR!"),
    ("What do bees make?", "HONEY!"),
    ("What is the opposite of up?", "DOWN!"),
    ("Which animal says moo?", "COW!"),
];
const QUESTION: &str = "What is the opposite of day?";

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or("name the directory of a chat model")?;
    let model = Decoder::open(&directory, tch::Kind::Float, tch::Device::cuda_if_available())?;
    let (tokenizer, chat_template) =
        (Tokenizer::open(&directory)?, ChatTemplate::open(&directory)?);
    let text = TextEncoder {
        tokenizer: &tokenizer,
        chat_template: Some(&chat_template),
        template: Template::Chat,
        turns: Turns::Last,
    };

    let options = MethodOptions::default().with(&LAYERS, [10, 15, 20]).with(&RANK, 4);
    let options = options.with(&POSITIONS, "l1");
    let adapters = resolve("loreft", &options, model.description())?.build(&model, "example")?;
    let stack = AdapterStack::of_boxed(&adapters)?;

    let records = ROWS.iter().enumerate().map(|(index, (question, answer))| {
        let content = Content::Instruction {
            instruction: (*question).into(),
            input: String::new(),
            output: (*answer).into(),
            answer: None,
        };
        Record::new(format!("row {index}"), content)
    });
    let records: Vec<Record> = records.collect();
    let vocab_size = model.description().vocab_size;
    let encoding = Encoding { text: Some(text), vocab_size, max_length: 256 };
    let dataset = Dataset::split(NextToken.examples(&records, &encoding)?, 0.0, 0)?;
    let config =
        TrainConfig { max_steps: Some(60), batch_size: 6, lr: 4e-3, ..TrainConfig::default() };
    let learner = Learner::new(&model, &stack, &NextToken);
    Trainer::new(&learner, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;

    let prompt = Row::prompt(text.encode_prompt(QUESTION)?);
    let config = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::of(&tokenizer) };
    let mut go_on = |_, _| ControlFlow::Continue(());
    for (name, stack) in [("base model", &AdapterStack::default()), ("with LoReFT", &stack)] {
        let replies = generate(&model, stack, std::slice::from_ref(&prompt), &config, &mut go_on)?;
        println!("{name}: {}", tokenizer.decode(replies[0].text_ids(), true)?);
    }
    Ok(())
}
