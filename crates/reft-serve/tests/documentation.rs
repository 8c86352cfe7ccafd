//! The tables of fields in docs/serving.md come from the checks of requests. With `REFT_WRITE_DOCS=1` they are written anew.

use reft_serve::{CHAT_FIELDS, COMPLETION_FIELDS};
use reft_test_support::{Outcome, check_page};

#[test]
fn the_fields_of_requests_are_those_of_the_code() -> Outcome {
    let section =
        |fields: &reft_models::Fields| format!("`{}`:\n\n{}", fields.file, fields.table());
    let sections = [&CHAT_FIELDS, &COMPLETION_FIELDS].map(section);
    check_page("serving.md", "fields", &sections.join("\n"))
}
