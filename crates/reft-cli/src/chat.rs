//! `reft chat`: a conversation in the terminal.

use std::io::{self, BufRead, IsTerminal};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use reft_models::{ChatTemplate, Message, Row, Tokenizer};

use crate::failure::INTERRUPTED;
use crate::generate::stream_until;
use crate::model::ModelArgs;
use crate::output::{self, note};
use crate::reply_text::ReplyText;
use crate::sampling_args::SamplingArgs;

/// Talk with a model in the terminal
///
/// A line is a message. The whole conversation is the prompt of every reply, framed by the model's chat template; an adapter edits it
/// at each turn. /reset begins anew, /quit or the end of input ends it, Ctrl-C cuts a reply short.
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
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    let model = args.model.open()?;
    let tokenizer = Tokenizer::open(&model.path)?;
    let template = ChatTemplate::open(&model.path)?;
    let config = args.sampling.config(Some(&tokenizer))?;
    let signals = Signals::listen()?;
    let is_terminal = io::stdin().is_terminal();
    if is_terminal {
        note("a line is a message; /reset begins anew, /quit ends");
    }
    let system = || args.system.iter().map(|text| Message::new("system", text)).collect();
    let mut messages: Vec<Message> = system();
    let mut lines = io::stdin().lock().lines();
    loop {
        if is_terminal {
            output::piece("> ")?;
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read from stdin")?;
        match line.trim() {
            "" => continue,
            "/quit" => break,
            "/reset" => {
                messages = system();
                note("the conversation begins anew");
                continue;
            }
            text => messages.push(Message::new("user", text)),
        }
        let prompt = template.render(&messages, true)?;
        let row = Row::prompt(tokenizer.encode(&prompt, false)?);
        let reply = ReplyText::new(&tokenizer, &config.stop_ids, args.sampling.stop());
        signals.begin_reply();
        let text = stream_until(&model, &row, &config, reply, &|| signals.is_cut_short());
        signals.end_reply();
        messages.push(Message::new("assistant", text?.trim()));
        output::piece("\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What Ctrl-C means: the end of the reply that is under way, or else of the program.
struct Signals {
    is_replying: Arc<AtomicBool>,
    is_cut: Arc<AtomicBool>,
}

impl Signals {
    fn listen() -> Result<Self> {
        let (is_replying, is_cut) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (replying, cut) = (Arc::clone(&is_replying), Arc::clone(&is_cut));
        ctrlc::set_handler(move || {
            if !replying.load(Ordering::SeqCst) || cut.swap(true, Ordering::SeqCst) {
                process::exit(INTERRUPTED.into());
            }
        })
        .context("cannot listen for signals")?;
        Ok(Self { is_replying, is_cut })
    }

    fn begin_reply(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
        self.is_replying.store(true, Ordering::SeqCst);
    }

    fn end_reply(&self) {
        self.is_replying.store(false, Ordering::SeqCst);
    }

    fn is_cut_short(&self) -> bool {
        self.is_cut.load(Ordering::SeqCst)
    }
}
