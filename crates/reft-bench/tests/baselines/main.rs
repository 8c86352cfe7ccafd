//! Every baseline against another implementation, its files, and what can be done with them.

mod composition;
mod equations;
mod files;
mod frozen_work;
mod merging;
mod methods;
mod oracle;
mod padding;
mod peft;
