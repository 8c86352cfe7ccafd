use std::ops::ControlFlow;
use std::slice;

use reft_models::{AdapterStack, GenerationConfig, ReplyText, Row, generate};

use crate::model::Model;
use crate::terminal::output;

/// Generates a reply to one prompt, prints it as it grows and returns its text. Stops early when `is_cancelled` returns true.
///
/// # Errors
/// If generation fails, or stdout is closed.
pub fn stream(
    model: &Model,
    stack: &AdapterStack,
    row: &Row,
    config: &GenerationConfig,
    mut reply: ReplyText,
    is_cancelled: &dyn Fn() -> bool,
) -> anyhow::Result<String> {
    let mut whole = String::new();
    let mut failed = None;
    let on_token = &mut |_row: usize, id: i64| {
        let printed = reply.push(id).map_err(anyhow::Error::from).and_then(|piece| {
            whole += &piece;
            output::piece(&piece)
        });
        failed = printed.err();
        if failed.is_some() || reply.is_over() || is_cancelled() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    };
    generate(&model.decoder, stack, slice::from_ref(row), config, on_token)?;
    if let Some(failed) = failed {
        return Err(failed);
    }
    let rest = reply.finish()?;
    output::piece(&rest)?;
    Ok(whole + &rest)
}
