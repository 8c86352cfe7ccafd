use std::io::{self, BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_models::{
    Adapter, AdapterStack, ChatOptions, ChatTemplate, Message, ReplyText, Row, StackEntry,
    Tokenizer,
};
use reft_train::Template;

use crate::generation::prompts::prompt_record;
use crate::generation::sampling_args::SamplingArgs;
use crate::generation::stream::stream;
use crate::model::{Framing, Model, ModelArgs};
use crate::options::Flags;
use crate::terminal::{end_at_once, note, on_signal, output};

/// Talk with a model in the terminal
///
/// Each line is a message. The prompt of each reply is the whole conversation, framed by the model's chat template. Adapters edit this
/// prompt at each turn.
///
/// Commands: /base answers without adapters, /adapter NAME with one adapter, /strength X at another strength. /reset begins a new
/// conversation, /help lists the commands, /quit or the end of input ends the program. Ctrl-C cuts a reply short.
#[derive(Debug, Args)]
#[command(
    next_help_heading = "Conversation",
    after_long_help = "Example:
  reft chat --model models/SmolLM2-135M-Instruct --adapter runs/emoji"
)]
pub struct ChatArgs {
    /// Begin with this system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    chat: Flags<ChatOptions>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<()> {
    let model = args.model.open_for("reft chat")?;
    let tokenizer = Tokenizer::open(&model.path)?;
    let any = [prompt_record("message", "")]; // a conversation is text, not token ids
    let chat = Framing::of(model.trained.as_ref(), Some(Template::Chat), &args.chat.0, &any)?.chat;
    let template = ChatTemplate::open(&model.path)?.with_variables(&chat.chat_vars)?;
    let config = args.sampling.config(Some(&tokenizer))?;
    on_signal(|| {
        if !IS_REPLYING.load(Ordering::SeqCst) || IS_CUT_SHORT.swap(true, Ordering::SeqCst) {
            end_at_once();
        }
    })?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        note("a line is a message; /help lists commands, /quit ends");
    }
    let system = || args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut messages: Vec<Message> = system();
    let mut voice = Voice::new(&model);
    let mut lines = io::stdin().lock().lines();
    loop {
        if is_terminal {
            output::piece("> ")?;
        }
        let Some(line) = lines.next() else { break };
        match line.context("cannot read from stdin")?.trim() {
            "" => continue,
            "/quit" => break,
            "/reset" => {
                messages = system();
                note("the conversation begins anew");
                continue;
            }
            line if line.starts_with('/') => {
                note(voice.told(line).unwrap_or_else(|refused| format!("{refused:#}")));
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let prompt = template.render(&messages, true)?;
        let row = Row::prompt(tokenizer.encode(&prompt, false)?);
        let reply = ReplyText::new(&tokenizer, &config.stop_ids, &args.sampling.stop);
        IS_CUT_SHORT.store(false, Ordering::SeqCst);
        IS_REPLYING.store(true, Ordering::SeqCst);
        let is_cut = || IS_CUT_SHORT.load(Ordering::SeqCst);
        let text = stream(&model, &voice.stack()?, &row, &config, reply, &is_cut);
        IS_REPLYING.store(false, Ordering::SeqCst);
        messages.push(Message::new("assistant", text?.trim()));
        output::piece("\n")?;
    }
    Ok(())
}

const HELP: &str = "/base             answer without adapters
/adapter NAME     answer with this adapter, or with all again without a name
/strength X       base + X · (edited − base); 1 is the adapter as it was trained
/reset            begin the conversation anew
/help             list the commands
/quit             end";

/// The adapters in use, and their strength.
struct Voice<'a> {
    model: &'a Model,
    /// The adapters' names.
    names: Vec<&'a str>,
    strength: f64,
}

impl<'a> Voice<'a> {
    /// All adapters at strength 1.
    fn new(model: &'a Model) -> Self {
        Self { model, names: model.names.iter().map(String::as_str).collect(), strength: 1.0 }
    }

    fn stack(&self) -> Result<AdapterStack<'a>> {
        let adapters = self.model.adapters.iter().map(|adapter| &**adapter);
        let own = self.model.names.iter().zip(adapters);
        let own = own.filter(|(name, _)| self.names.contains(&name.as_str()));
        let entry = |(_, adapter): (&String, &'a dyn Adapter)| StackEntry {
            strength: self.strength,
            ..StackEntry::from(adapter)
        };
        Ok(AdapterStack::new(own.map(entry).collect())?)
    }

    /// Carries out a command and returns its answer: the new settings, or the help. A refused command changes nothing.
    fn told(&mut self, line: &str) -> Result<String> {
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        let argument = argument.trim();
        let model = self.model;
        let all = || model.names.iter().map(String::as_str);
        let is_in_weights = model.adapters.iter().any(|adapter| adapter.is_in_weights());
        let mut told = Self { names: self.names.clone(), ..*self };
        match command {
            "/help" => return Ok(HELP.to_owned()),
            "/base" if is_in_weights => {
                bail!("an adapter is the model's weights: beside it there is no base model");
            }
            "/base" => told.names.clear(),
            "/adapter" if argument.is_empty() => told.names = all().collect(),
            "/adapter" => match all().find(|name| *name == argument) {
                Some(name) => told.names = vec![name],
                None if model.names.is_empty() => bail!("there is no adapter; give --adapter"),
                None => {
                    let names: Vec<&str> = all().collect();
                    bail!("no adapter is called {argument}; use one of {}", names.join(", "));
                }
            },
            "/strength" => match argument.parse() {
                Ok(strength) => told.strength = strength,
                Err(_) => bail!("the strength is {argument:?}, expected a number such as 0.5"),
            },
            _ => bail!("there is no command {command}; /help lists the commands"),
        }
        told.stack()?; // checks the new settings
        *self = told;
        Ok(match &self.names[..] {
            [] => "without adapters".to_owned(),
            names => format!("with {} at strength {}", names.join(", "), self.strength),
        })
    }
}

/// Whether a reply is being generated: then the first signal ends the reply, not the program.
static IS_REPLYING: AtomicBool = AtomicBool::new(false);
/// Whether a signal has ended the current reply.
static IS_CUT_SHORT: AtomicBool = AtomicBool::new(false);
