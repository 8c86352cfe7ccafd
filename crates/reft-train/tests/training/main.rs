//! Whole training runs on the tiny model of `tests/oracle`.

mod best;
mod bitfit;
mod classification;
mod closeness;
mod composition;
mod data_files;
mod encoders;
mod families;
mod full;
mod kinds;
mod loss_scaler;
mod not_causal;
mod objectives;
mod oracle;
mod orthonormality;
mod out_of_memory;
mod preferences;
mod quantised;
mod resume;
mod reuse;
mod run;
mod share;
mod steering;
mod templates;
mod tiny_llama;
mod turns;
