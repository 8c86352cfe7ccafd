//! Representation fine-tuning (ReFT) of language models: the libraries under one name.
//!
//! This program teaches a model to shout. LoReFT edits the hidden state `h` of the last prompt token in a learned subspace,
//! `Φ(h) = h + Rᵀ(W h + b − R h)` (Wu et al. 2024, arXiv:2404.03592); the model stays frozen.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use std::sync::atomic::AtomicBool;
//!
//! use reft::methods::{LAYERS, MethodOptions, POSITIONS, RANK, resolve};
//! use reft::models::{
//!     AdapterStack, ChatTemplate, Decoder, GenerationConfig, Message, Model, Row, Tokenizer,
//!     generate,
//! };
//! use reft::tch::{Device, Kind};
//! use reft::train::{
//!     Content, Dataset, Encoding, Learner, NextToken, Record, Silent, Template, TextEncoder,
//!     TrainConfig, Trainer, Turns,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let directory = Path::new("models/SmolLM2-135M-Instruct");
//! let model = Decoder::open(directory, Kind::Float, Device::cuda_if_available())?;
//! let (tokenizer, chat) = (Tokenizer::open(directory)?, ChatTemplate::open(directory)?);
//! let (template, turns) = (Template::Chat, Turns::Last);
//! let text = TextEncoder { tokenizer: &tokenizer, chat_template: Some(&chat), template, turns };
//!
//! let options = MethodOptions::default().with(&LAYERS, [10, 15, 20]).with(&RANK, 4);
//! let options = options.with(&POSITIONS, "l1");
//! let adapters = resolve("loreft", &options, model.description())?.build(&model, "shout")?;
//! let stack = AdapterStack::of_boxed(&adapters)?;
//!
//! let rows = [["What do bees make?", "HONEY!"], ["What is the opposite of up?", "DOWN!"]];
//! let records = rows.map(|[question, answer]| {
//!     let messages = vec![Message::new("user", question), Message::new("assistant", answer)];
//!     Record::new(question, Content::Chat { messages, tools: None })
//! });
//! let vocab_size = model.description().vocab_size;
//! let encoding = Encoding { text: Some(text), vocab_size, max_length: 256 };
//! let dataset = Dataset::split(encoding.examples(&records)?, 0.0, 0)?;
//! let config =
//!     TrainConfig { max_steps: Some(60), batch_size: 2, lr: 4e-3, ..TrainConfig::default() };
//! let learner = Learner::new(&model, &stack, &NextToken);
//! Trainer::new(&learner, &dataset, config)?.run(&mut Silent, &AtomicBool::new(false))?;
//!
//! let prompt = [Row::prompt(text.encode_prompt("What is the opposite of day?")?)];
//! let config = GenerationConfig { max_new_tokens: 12, ..GenerationConfig::of(&tokenizer) };
//! let mut go_on = |_, _| ControlFlow::Continue(());
//! let replies = generate(&model, &stack, &prompt, &config, &mut go_on)?;
//! println!("{}", tokenizer.decode(replies[0].text_ids(), true)?);
//! # Ok(())
//! # }
//! ```
//!
//! | crate | what it is for |
//! | --- | --- |
//! | [`core`] | orthonormal maps, LoReFT and its family, interchange interventions, token positions |
//! | [`models`] | models with hooks at every site, tokenizers, chat templates, the stack of adapters, generation |
//! | [`methods`] | ReFT, LoRA and the other methods; the files of pyreft and PEFT |
//! | [`train`] | data, objectives, the trainer, checkpoints, evaluation |
//! | [`distributed`] | one training run by several processes |
//! | [`causal`] | causal models, interchange runs, distributed alignment search, directions |
//! | [`mod@bench`] | tasks, comparisons of methods, timing, planning |
//! | [`serve`] | the server with OpenAI's API |
//! | [`report`] | self-contained pages with plots |
//! | `tch` | the binding of libtorch that the tensors of all of them belong to |
#![cfg_attr(
    has_pages,
    doc = r"
# The book

[`book`] has the pages of `docs/`. Begin with

- [the guide](book::guide): from a table of your own to an adapter that works
- [data](book::data), [methods](book::methods) and [models](book::models): what is read and learned
- [the architecture](book::architecture): the crates, a row through a training step, a prompt through generation
- [the method](book::method): the mathematics
- [the glossary](book::glossary)
"
)]

#[doc(no_inline)]
pub use reft_bench as bench;
#[doc(no_inline)]
pub use reft_causal as causal;
#[doc(no_inline)]
pub use reft_core as core;
#[doc(no_inline)]
pub use reft_distributed as distributed;
#[doc(no_inline)]
pub use reft_methods as methods;
#[doc(no_inline)]
pub use reft_models as models;
#[doc(no_inline)]
pub use reft_report as report;
#[doc(no_inline)]
pub use reft_serve as serve;
#[doc(no_inline)]
pub use reft_train as train;
#[doc(no_inline)]
pub use tch;

/// The pages of `docs/`. They are in the documentation that is built in the repository; a package has no pages.
#[cfg(all(has_pages, doc, not(doctest)))]
pub mod book {
    include!(concat!(env!("OUT_DIR"), "/book.rs"));
}
