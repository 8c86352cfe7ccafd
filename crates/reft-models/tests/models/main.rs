//! Models, their files and their text against recorded results of transformers, llama.cpp and Python's tokenizers; adapters in use; generation.

mod adapter_stack;
mod attention_weights;
mod checkpoint_files;
mod collecting;
mod configurations;
mod decoder_oracle;
mod devices;
mod encoders;
mod engine;
mod families;
mod generation;
mod gguf_families;
mod gguf_files;
mod gguf_tokenizers;
mod gguf_writing;
mod hub_names;
mod oracle;
mod text;
mod text_oracle;
