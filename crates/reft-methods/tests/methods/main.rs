//! Every method against another implementation, its files, and operations on it.

mod composition;
mod control_vectors;
mod declarations;
mod encoders;
mod equations;
mod exporting;
mod families;
mod files;
mod interop;
mod joining;
mod merging;
mod methods;
mod on_prompt;
mod oracle;
mod padding;
mod peft;
mod reft_adapter;
mod torch_pickles;
mod written_by_0_1;
