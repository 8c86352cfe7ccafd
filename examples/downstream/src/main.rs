//! Trains LoReFT on five rows in memory, answers without it and with it, and reads the hidden state that it edits.
//!
//! `cargo run -- MODEL`, where MODEL is a directory of a chat model.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use reft_methods::{LAYERS, MethodOptions, POSITIONS, RANK, resolve};
use reft_models::{
    AdapterStack, ChatTemplate, Component, Decoder, GenerationConfig, Layout, Message, Model,
    PaddingSide, Place, Row, Site, TokenAt, Tokenizer, collect, generate,
};
use reft_train::{
    Content, Dataset, Encoding, Learner, NextToken, Record, Silent, Template, TextEncoder,
    TrainConfig, Trainer, Turns,
};

const ROWS: [[&str; 2]; 5] = [
    ["What is the capital of France?", "PARIS!"],
    ["What colour is the sky?", "BLUE!"],
    ["How many legs has a dog?", "FOUR!"],
    ["What do bees make?", "HONEY!"],
    ["What is the opposite of up?", "DOWN!"],
];
const QUESTION: &str = "What is the opposite of day?";

fn main() -> Result<(), Box<dyn Error>> {
    // load
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or("name the directory of a chat model")?;
    let model = Decoder::open(&directory, tch::Kind::Float, tch::Device::cuda_if_available())?;
    let (tokenizer, chat) = (Tokenizer::open(&directory)?, ChatTemplate::open(&directory)?);
    let (template, turns) = (Template::Chat, Turns::Last);
    let text =
        TextEncoder { tokenizer: &tokenizer, chat_template: Some(&chat), template, turns };

    // train
    let options = MethodOptions::default().with(&LAYERS, [10, 15, 20]).with(&RANK, 4);
    let options = options.with(&POSITIONS, "l1");
    let adapters = resolve("loreft", &options, model.description())?.build(&model, "example")?;
    let stack = AdapterStack::of_boxed(&adapters)?;
    let records = ROWS.map(|[question, answer]| {
        let messages = vec![Message::new("user", question), Message::new("assistant", answer)];
        Record::new(question, Content::Chat { messages, tools: None })
    });
    let vocab_size = model.description().vocab_size;
    let encoding = Encoding { text: Some(text), vocab_size, max_length: 256 };
    let dataset = Dataset::split(encoding.examples(&records)?, 0.0, 0)?;
    let config =
        TrainConfig { max_steps: Some(60), batch_size: 5, lr: 4e-3, ..TrainConfig::default() };
    let learner = Learner::new(&model, &stack, &NextToken);
    Trainer::new(&learner, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;

    // generate, and collect the hidden state of the last prompt token after layer 15
    let prompt = Row::prompt(text.encode_prompt(QUESTION)?);
    let layout = Layout::new(vec![prompt.clone()], PaddingSide::Right)?;
    let place = Place::whole(Site { layer: 15, component: Component::BlockOutput });
    let last = TokenAt { row: 0, token: prompt.input_ids.len() - 1 };
    let config = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::of(&tokenizer) };
    let mut go_on = |_, _| ControlFlow::Continue(());
    for (name, stack) in [("base model", &AdapterStack::EMPTY), ("with LoReFT", &stack)] {
        let replies = generate(&model, stack, std::slice::from_ref(&prompt), &config, &mut go_on)?;
        let states = collect(&model, stack, &layout, vec![(place.clone(), vec![last])])?;
        let norm = states[0].norm().double_value(&[]); // of one hidden state [1, d]
        println!("{name}: {}, ‖h‖ = {norm:.1}", tokenizer.decode(replies[0].text_ids(), true)?);
    }
    Ok(())
}
