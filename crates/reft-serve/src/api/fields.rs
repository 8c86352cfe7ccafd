//! Every field that a request may have, and how it is handled.

use reft_models::{Field, Fields, says_nothing};
use serde_json::{Map, Value};

use crate::api::error::ApiError;

/// The fields of `/v1/chat/completions`.
pub const CHAT_FIELDS: Fields =
    Fields { file: "/v1/chat/completions", groups: &[CHAT, GENERATION, PASSED_OVER, REFUSED] };

/// The fields of `/v1/completions`.
pub const COMPLETION_FIELDS: Fields =
    Fields { file: "/v1/completions", groups: &[COMPLETION, GENERATION, PASSED_OVER, REFUSED] };

const CHAT: &[Field] = &[
    Field::applied(&["messages"]).with_note("content as a text or as parts of type `text`"),
    Field::applied(&["max_completion_tokens", "max_tokens"])
        .with_note("without them a reply ends at the server's `--reply-tokens`"),
    Field::applied(&["logprobs", "top_logprobs"]).with_note(
        "of the model's own scores, before temperature and penalties; up to 20 alternatives",
    ),
    Field::applied(&["tools"]).with_note(
        "printed by the chat template, and refused if it does not mention tools; calls come back as text",
    ),
    Field::only(&["tool_choice"], |value| value == "auto" || value == "none", "\"auto\" or \"none\""),
    Field::only(&["parallel_tool_calls"], |value| value == true, "true, or left out"),
    Field::applied(&["chat_template_kwargs"]).with_note("variables of the chat template"),
    Field::applied(&["add_generation_prompt"])
        .with_note("not OpenAI's: false does not open the assistant's turn"),
    Field::only(&["modalities"], is_text_only, "[\"text\"]"),
    Field::only(&["reasoning_effort"], says_nothing, "left out: give chat_template_kwargs what the model's template knows"),
    Field::refused(&["functions", "function_call"], "use tools"),
    Field::refused(&["audio", "prediction", "web_search_options", "verbosity"], "leave it out"),
];

const COMPLETION: &[Field] = &[
    Field::applied(&["prompt"])
        .with_note("a text, a list of texts, token ids, or a list of lists of token ids"),
    Field::applied(&["max_tokens"]).with_note("16 unless it is given"),
    Field::applied(&["logprobs"]).with_note("a number up to 20: alternatives of each token"),
    Field::only(&["best_of"], |value| value == 1, "1"),
    Field::applied(&["add_special_tokens"])
        .with_note("not OpenAI's: false puts no token before the prompt"),
    Field::refused(&["echo"], "put the prompt before the reply yourself"),
    Field::refused(&["suffix"], "leave it out"),
];

const GENERATION: &[Field] = &[
    Field::applied(&["model"]).with_note("the base model's name or an adapter's"),
    Field::applied(&["reft"]).with_note(
        "`{\"adapters\": [{\"name\", \"strength\", \"subspace\"}], \"steer\": [{\"direction\", \"strength\"}]}`: several adapters, in order, `model` being the base model's name then; directions that `reft steer --output` wrote, beside any model",
    ),
    Field::applied(&["stream"]),
    Field::applied(&["stream_options"]).with_note("`include_usage`"),
    Field::applied(&["n"]).with_note("each choice draws its own random numbers"),
    Field::applied(&["stop"]).with_note("a text or up to 16 texts, which are not part of the reply"),
    Field::applied(&["seed"]).with_note("the same request with the same seed draws the same tokens"),
    Field::applied(&["temperature", "top_p"]).with_note("1 unless they are given; temperature 0 takes the best token"),
    Field::applied(&["frequency_penalty", "presence_penalty"]).with_note("from −2 to 2, of the reply's tokens"),
    Field::applied(&["top_k", "repetition_penalty", "no_repeat_ngram_size"])
        .with_note("not OpenAI's: as `reft generate` has them"),
    Field::applied(&["ignore_eos"]).with_note("not OpenAI's: the reply goes on after the model's end tokens"),
];

const PASSED_OVER: &[Field] = &[Field::neutral(
    &[
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    ],
    "passed over",
)];

const REFUSED: &[Field] = &[
    Field::only(&["response_format"], |format| format["type"] == "text", "{\"type\": \"text\"}"),
    Field::refused(&["logit_bias"], "leave it out"),
    Field::only(&["skip_special_tokens"], |value| value == true, "true"),
    Field::only(&["min_p"], |value| value == 0 || value == 0.0, "0: there is top_p"),
];

fn is_text_only(value: &Value) -> bool {
    *value == serde_json::json!(["text"])
}

/// Refuses a request with an unsupported field that would change the reply.
///
/// # Errors
/// The first such field, by its name.
pub(crate) fn check(fields: &Fields, body: &Map<String, Value>) -> Result<(), ApiError> {
    for (name, value) in body {
        let refused = |reason| ApiError::invalid(reason).of_field(name.as_str());
        if *value == false && FALSE_IS_NOT_NOTHING.contains(&name.as_str()) {
            return Err(refused(format!("{name} is false, expected true")));
        }
        fields.check([(name, value)]).map_err(refused)?;
    }
    Ok(())
}

/// Fields that default to true and cannot be false here.
const FALSE_IS_NOT_NOTHING: [&str; 1] = ["skip_special_tokens"];
