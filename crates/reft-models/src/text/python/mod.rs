//! The Python that chat templates expect: how values are printed, methods of texts, lists and maps, Jinja2's filters, tests and operators.

pub(crate) mod source;

pub(crate) mod json;
pub(crate) mod printed;

pub(crate) mod arguments;
pub(crate) mod filters;
pub(crate) mod methods;
pub(crate) mod operators;
pub(crate) mod tuple;
pub(crate) mod widths;
