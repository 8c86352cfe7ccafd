//! OpenAI's API: reading requests and writing replies.

pub(crate) mod catalogue;
pub(crate) mod error;
pub(crate) mod fields;
pub(crate) mod prompt;
pub(crate) mod reply;
pub(crate) mod request;
pub(crate) mod shapes;
