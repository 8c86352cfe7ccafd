//! The tables in docs/methods.md come from the declarations, the tables in docs/interop.md from the readers of files, and the table in
//! docs/data.md from the forms of rows. With
//! `REFT_WRITE_DOCS=1` they are written anew.

use std::fmt::Write;

use reft_methods::{
    Joining, METHODS, Merging, MethodDeclaration, MethodOption, PEFT_FILES, PYREFT_FILE,
    SPECIAL_METHODS, all_options,
};
use reft_models::{Fate, Fields, model_files};
use reft_test_support::check_page;
use reft_train::{LABELLED_FORMS, Need, PREFERENCE_FORM, ROW_FORMS, RowColumn, RowForm};

/// A row of a table in Markdown.
fn row<const N: usize>(cells: [&str; N]) -> String {
    let cells =
        cells.map(|cell| if cell.is_empty() { "–".to_owned() } else { cell.replace('|', "\\|") });
    format!("| {} |\n", cells.join(" | "))
}

fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = String>) -> String {
    row(heads) + &row(["---"; N]) + &rows.collect::<String>()
}

/// Names as code, with commas between them.
fn code<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn of_method(method: &&MethodDeclaration) -> String {
    let merges = match method.merging {
        Merging::IntoWeights => "yes".to_owned(),
        Merging::Never(reason) => format!("no: {reason}"),
    };
    let joins = match method.joining {
        Joining::Exactly { how, .. } => how.to_owned(),
        Joining::Never(reason) => format!("no: {reason}"),
    };
    let yes_or_no = |is_so| if is_so { "yes" } else { "no" };
    let (acts, per_row) = (yes_or_no(method.acts_on_generated), yes_or_no(method.per_row));
    let name = format!("`{}`<br>{}", method.name, method.title);
    let files = code(method.files.names().iter().copied());
    let options = code(method.options.iter().map(|option| option.name));
    let rate = format!("{:e}", method.usual_lr);
    row([
        &name,
        method.equation,
        method.source,
        &files,
        &merges,
        &joins,
        acts,
        per_row,
        &rate,
        &options,
    ])
}

fn of_option(option: &&MethodOption) -> String {
    let methods = METHODS.iter().filter(|method| method.options.contains(option));
    let methods = code(methods.map(|method| method.name));
    row([&code([option.flag().as_str()]), option.default, option.help, &methods])
}

#[test]
fn tables_of_methods_and_options_are_those_of_the_declarations()
-> Result<(), Box<dyn std::error::Error>> {
    let heads = [
        "method",
        "computes",
        "paper",
        "files",
        "merges into the weights",
        "several become one (`reft merge-adapters`)",
        "acts on generated tokens",
        "an adapter per row",
        "usual rate",
        "options",
    ];
    let mut expected = table(heads, METHODS.iter().chain(SPECIAL_METHODS).map(of_method));
    let heads = ["option", "default", "what it is", "methods"];
    write!(expected, "\n{}", table(heads, all_options().iter().map(of_option)))?;

    check_page("methods.md", "methods", &expected)
}

#[test]
fn tables_of_fields_are_those_that_readers_check_with() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<&Fields> =
        model_files().into_iter().chain(PEFT_FILES).chain([&PYREFT_FILE]).collect();
    let section = |fields: &&Fields| format!("### {}\n\n{}", fields.file, fields.table());
    let sections: Vec<String> = files.iter().map(section).collect();
    check_page("interop.md", "fields", &sections.join("\n"))
}

fn of_form(form: &RowForm) -> String {
    let columns = |needs: &[Need]| {
        let columns = form.columns.iter().filter(|column| needs.contains(&column.need));
        let names = |column: &RowColumn| {
            let (first, others) = (code([column.names[0]]), &column.names[1..]);
            if others.is_empty() { first } else { format!("{first} ({})", code(others.to_vec())) }
        };
        columns.map(names).collect::<Vec<_>>().join(", ")
    };
    let passed = form.others.groups.iter().copied().flatten();
    let passed = passed.filter(|field| matches!(field.fate, Fate::Neutral));
    let passed = passed.flat_map(|field| field.names);
    let passed = code(passed.copied());
    let needed = columns(&[Need::Given, Need::Learned]);
    row([form.name, &needed, &columns(&[Need::Optional]), form.becomes, &passed])
}

#[test]
fn the_table_of_rows_is_that_of_their_forms() -> Result<(), Box<dyn std::error::Error>> {
    let heads = [
        "form",
        "columns, and their other names",
        "may have",
        "how it is taken",
        "passed over without a word",
    ];
    check_page(
        "data.md",
        "rows",
        &table(
            heads,
            ROW_FORMS.iter().chain([&PREFERENCE_FORM]).chain(&LABELLED_FORMS).map(of_form),
        ),
    )
}
