//! Joins adapters of one kind to one adapter that computes the same as a stack of them.

use std::collections::BTreeSet;
use std::path::Path;

use reft_models::{BaseModel, Model, TrainedText};

use crate::files::adapter_file;
use crate::registry::{adapters_in, check_adapter, declaration};
use crate::{
    ActsOn, AdapterFiles, Error, JoinOptions, JoinPart, Joined, Joining, Joint, METHODS,
    MethodDeclaration, ReftConfig, Result, TOKENS,
};

/// Makes one adapter of several, in an existing empty directory: it computes the same as a stack of them at their strengths.
///
/// # Errors
/// [`Error::NotJoinable`] if the methods cannot be joined; errors of reading; adapters of different base models.
pub fn join_adapters(parts: &[JoinPart], options: JoinOptions, output: &Path) -> Result<Joined> {
    let mut all: Vec<(JoinPart, &MethodDeclaration)> = Vec::new();
    let mut tokens: Vec<ActsOn> = Vec::new();
    for JoinPart { directory, strength } in parts {
        for (directory, of_files) in adapters_in(directory)? {
            let method = (of_files.read)(&directory)?;
            let declared = declaration(method.name())?;
            tokens.push(method.options().get(&TOKENS).unwrap_or_default());
            all.push((JoinPart { directory, strength: *strength }, declared));
        }
    }
    let mut notes = Vec::new();
    let mut first = None;
    let mut lacks_weights = None;
    for ((part, declared), acts_on) in all.iter().zip(&tokens) {
        let what = declared.name.to_owned();
        let refuse = |reason: String| {
            let (path, what) = (part.directory.clone(), what.clone());
            Err(Error::NotJoinable { path, what, reason })
        };
        if !part.strength.is_finite() {
            return refuse(format!("its strength is {}, expected a number", part.strength));
        }
        let Joining::Exactly { with, needs_weights, join, .. } = declared.joining else {
            let Joining::Never(reason) = declared.joining else { continue };
            return refuse(format!("{reason}; {} can", joinable()));
        };
        let (join_first, with_first): (_, &[&str]) = *first.get_or_insert((join, with));
        if !with_first.contains(&declared.name) {
            let reason =
                format!("the first of the adapters is joined with {} only", with_first.join(", "));
            return refuse(reason);
        }
        if *acts_on != tokens[0] {
            return refuse(format!(
                "it acts on the tokens {acts_on}, the first of the adapters on {}; use them as a stack",
                tokens[0]
            ));
        }
        first = Some((join_first, with_first));
        if needs_weights && options.model.is_none() {
            lacks_weights = Some(declared.name);
        }
    }
    let Some((join, _)) = first else {
        return Err(reft_models::Error::Adapter {
            reason: "no adapter is named to be joined; name one or more".into(),
        }
        .into());
    };
    if let Some(method) = lacks_weights {
        let reason = format!(
            "{method} rescales rows of the base model's weights, and they are needed to join it; name the model"
        );
        return Err(reft_models::Error::Adapter { reason }.into());
    }
    let base_model = common_base_model(&all, options.model, &mut notes)?;
    let text = common_text(&all, &mut notes)?;
    let parts = all.into_iter().map(|(part, _)| part).collect();
    let mut joined = join(&Joint { parts, options, base_model, text }, output)?;
    if let Some(model) = options.model {
        check_adapter(output, model.description())?;
    }
    joined.notes.splice(0..0, notes);
    Ok(joined)
}

/// The methods that can be joined.
fn joinable() -> String {
    let can = |method: &&&MethodDeclaration| matches!(method.joining, Joining::Exactly { .. });
    let names: Vec<&str> = METHODS.iter().filter(can).map(|method| method.name).collect();
    names.join(", ")
}

/// The identity of the base model of all adapters.
fn common_base_model(
    all: &[(JoinPart, &MethodDeclaration)],
    model: Option<&dyn Model>,
    notes: &mut Vec<String>,
) -> Result<Option<BaseModel>> {
    let mut found: Vec<BaseModel> = Vec::new();
    for (part, declared) in all {
        let own = match declared.files {
            AdapterFiles::Reft => Some(ReftConfig::read(&part.directory)?.base_model),
            files => adapter_file::base_model(files, &part.directory)?,
        };
        if let (Some(own), Some(model)) = (&own, model) {
            own.check(model.description())?;
        }
        if let Some((own, first)) = own.as_ref().zip(found.first()) {
            own.check_same(first)?;
        }
        found.extend(own);
    }
    let names: BTreeSet<&str> = found.iter().filter_map(|own| own.name.as_deref()).collect();
    if names.len() > 1 {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "the adapters name their base model differently: {names}; they belong together only if that is one model"
        ));
    }
    let first = found.into_iter().next();
    Ok(first.or_else(|| model.map(|model| BaseModel::of(model.description(), ""))))
}

/// The framing of the training texts, if all adapters have the same.
fn common_text(
    all: &[(JoinPart, &MethodDeclaration)],
    notes: &mut Vec<String>,
) -> Result<Option<TrainedText>> {
    let read = |(part, declared): &(JoinPart, &MethodDeclaration)| {
        TrainedText::read(&part.directory.join(declared.files.tensors()))
    };
    let texts = all.iter().map(read).collect::<reft_models::Result<Vec<_>>>()?;
    let first = texts.first().cloned().flatten();
    if texts.iter().all(|text| *text == first) {
        return Ok(first);
    }
    notes.push(
        "the adapters were trained on texts that were framed differently, so the one adapter names no template: say which with --template"
            .to_owned(),
    );
    Ok(None)
}
