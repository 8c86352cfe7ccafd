//! Every baseline against another implementation, its files, and what can be done with them.

mod composition;
mod equations;
mod files;
mod merging;
mod methods;
mod oracle;
mod padding;
mod peft;
