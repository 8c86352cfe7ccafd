//! Whole training runs on the tiny model of `tests/oracle`.

mod composition;
mod kinds;
mod oracle;
mod orthonormality;
mod resume;
mod reuse;
mod run;
mod templates;
mod tiny_llama;
