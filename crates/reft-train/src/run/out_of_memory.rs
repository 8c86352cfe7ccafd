use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Whether libtorch's message says that memory ran out, of the GPU or of the host.
pub fn is_out_of_memory(message: &str) -> bool {
    let words = ["out of memory", "can't allocate memory", "ALLOC_FAILED", "not enough memory"];
    words.iter().any(|words| message.contains(words))
}

/// Runs `act`, and returns libtorch's message if memory runs out.
///
/// Within a formula, tch panics if libtorch refuses an operation. Only out-of-memory panics are caught. `act` may stop half-way: its
/// side effects must be valid then, or be discarded.
///
/// # Errors
/// libtorch's messages.
pub(crate) fn with_memory<T>(act: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(act)).or_else(|payload| {
        let text = match (payload.downcast_ref::<String>(), payload.downcast_ref::<&str>()) {
            (Some(text), _) => text.as_str(),
            (None, Some(text)) => text,
            (None, None) => "",
        };
        if is_out_of_memory(text) { Err(first_line(text)) } else { resume_unwind(payload) }
    })
}

/// libtorch's message, if the cause of an error is that memory ran out.
pub(crate) fn reason(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if is_out_of_memory(&text) {
            return Some(first_line(&text));
        }
        cause = error.source();
    }
    None
}

/// The first line of libtorch's message, without the wrapping of a panic and without C++ frames.
fn first_line(text: &str) -> String {
    let text = text.split_once("Torch(\"").map_or(text, |(_, said)| said);
    let line = text.lines().next().unwrap_or_default(); // `Debug` writes the end of a line as \n
    line.split("\\n").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// 2⁵⁰ numbers: more than any machine has.
    const TOO_MANY: [i64; 1] = [1 << 50];

    #[test]
    fn what_libtorch_says_when_memory_runs_out_is_recognised() {
        let told = with_memory(|| Tensor::zeros(TOO_MANY, (Kind::Float, Device::Cpu)));
        let reason = told.err().unwrap_or_default();
        assert!(reason.contains("memory") && !reason.contains("unwrap"), "{reason}");
        assert!(!reason.contains('\n') && !reason.contains("\\n"), "{reason}");
        let failed = Tensor::f_zeros(TOO_MANY, (Kind::Float, Device::Cpu));
        assert!(failed.is_err_and(|error| super::reason(&error).is_some()));
        assert!(is_out_of_memory("CUDA out of memory. Tried to allocate 2.00 GiB"));
    }

    #[test]
    fn other_panics_go_on() {
        let other = catch_unwind(|| with_memory(|| panic!("invariant: x")));
        assert!(other.is_err());
        assert_eq!(with_memory(|| 3), Ok(3));
    }
}
