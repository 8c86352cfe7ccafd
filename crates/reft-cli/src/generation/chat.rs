use std::io::{self, BufRead, IsTerminal};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use reft_models::{ChatOptions, ChatTemplate, Message, Row, Tokenizer};

use crate::generation::reply_text::{ReplyText, stream};
use crate::generation::sampling_args::SamplingArgs;
use crate::model::ModelArgs;
use crate::options::Flags;
use crate::terminal::{end_at_once, note, on_signal, output};

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
    chat: Flags<ChatOptions>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<()> {
    let model = args.model.open()?;
    let tokenizer = Tokenizer::open(&model.path)?;
    let template = ChatTemplate::open(&model.path)?.with_variables(&args.chat.0.chat_vars)?;
    let config = args.sampling.config(Some(&tokenizer))?;
    on_signal(|| {
        if !IS_REPLYING.load(Ordering::SeqCst) || IS_CUT_SHORT.swap(true, Ordering::SeqCst) {
            end_at_once();
        }
    })?;
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
        match line.context("cannot read from stdin")?.trim() {
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
        let reply = ReplyText::new(&tokenizer, &config.stop_ids, &args.sampling.stop);
        IS_CUT_SHORT.store(false, Ordering::SeqCst);
        IS_REPLYING.store(true, Ordering::SeqCst);
        let is_cut = || IS_CUT_SHORT.load(Ordering::SeqCst);
        let text = stream(&model, &row, &config, reply, &is_cut);
        IS_REPLYING.store(false, Ordering::SeqCst);
        messages.push(Message::new("assistant", text?.trim()));
        output::piece("\n")?;
    }
    Ok(())
}

/// Whether a signal means the end of a reply that is under way, rather than that of the program.
static IS_REPLYING: AtomicBool = AtomicBool::new(false);
/// Whether there was one.
static IS_CUT_SHORT: AtomicBool = AtomicBool::new(false);
