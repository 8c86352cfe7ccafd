//! The methods, and how the files of an adapter directory tell its method.

use std::path::{Path, PathBuf};

use reft_core::Parameter;
use reft_models::{Adapter, AdapterStack, Model, ModelDescription, TaskHead, TrainedText, Weights};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::files::adapter_file;
use crate::files::head_file::{self, HEAD_FILE};
use crate::methods::steering::STEERING;
use crate::methods::weights::bitfit::BITFIT;
use crate::methods::weights::full::FULL;
use crate::options::{MethodOption, MethodOptions, union};
use crate::{
    ActsOn, AdapterFiles, Error, METHODS, Merging, Method, MethodDeclaration, Result,
    SPECIAL_METHODS,
};

/// The names of the methods that can train any model.
pub fn method_names() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}

/// Every method that an adapter may be of.
fn known() -> impl Iterator<Item = &'static MethodDeclaration> {
    METHODS.iter().chain(SPECIAL_METHODS).copied()
}

/// A method by name.
///
/// # Errors
/// [`Error::UnknownMethod`].
pub fn declaration(name: &str) -> Result<&'static MethodDeclaration> {
    known().find(|method| method.name == name).ok_or_else(|| Error::UnknownMethod {
        found: name.to_owned(),
        accepted: known().map(|method| method.name).collect::<Vec<_>>().join(", "),
    })
}

/// The methods of a name; several names are joined with `+`.
///
/// # Errors
/// [`Error::UnknownMethod`].
pub fn declarations(name: &str) -> Result<Vec<&'static MethodDeclaration>> {
    name.split('+').map(|one| declaration(one.trim())).collect()
}

/// The options of a method, or of several joined with `+`.
///
/// # Errors
/// [`Error::UnknownMethod`].
pub fn options_of(name: &str) -> Result<Vec<&'static MethodOption>> {
    Ok(union(declarations(name)?.iter().map(|method| method.options)))
}

/// Whether a method's adapters are the model's weights themselves: reading one changes the model.
pub fn is_in_weights(method: &MethodDeclaration) -> bool {
    [FULL.name, BITFIT.name].contains(&method.name)
}

/// The options of all methods.
pub fn all_options() -> Vec<&'static MethodOption> {
    union(METHODS.iter().map(|method| method.options))
}

impl MethodOptions {
    /// The options of a method, or of several joined with `+`.
    ///
    /// # Errors
    /// [`Error::UnknownMethod`].
    pub fn of_method(&self, method: &str) -> Result<Self> {
        Ok(self.only(&options_of(method)?))
    }
}

impl<'de> Deserialize<'de> for MethodOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;

        let (mut options, all) = (Self::default(), all_options());
        for (name, value) in <Map<String, Value> as Deserialize>::deserialize(deserializer)? {
            let Some(option) = all.iter().find(|option| option.name == name) else {
                let names: Vec<&str> = all.iter().map(|option| option.name).collect();
                let names = names.join(", ");
                let message = format!("unknown field `{name}`, expected one of {names}");
                return Err(D::Error::custom(message));
            };
            options.set(option, value).map_err(D::Error::custom)?;
        }
        Ok(options)
    }
}

/// One or several methods with all options set.
#[derive(Debug)]
pub struct Methods(Vec<Box<dyn Method>>);

/// Sets all open options and checks them against a model, so that nothing fails when training starts.
///
/// Names joined with `+` are used at once; each method takes its own options.
///
/// # Errors
/// [`Error::UnknownMethod`], [`Error::UnknownOption`], [`Error::OptionValue`], or an error of the method itself.
pub fn resolve(name: &str, options: &MethodOptions, model: &ModelDescription) -> Result<Methods> {
    let accepted = options_of(name)?;
    if let Some((option, _)) = options.given().find(|(option, _)| !accepted.contains(option)) {
        let names: Vec<&str> = accepted.iter().map(|option| option.name).collect();
        let accepted = if names.is_empty() { "none".into() } else { names.join(", ") };
        let (method, option) = (name.to_owned(), option.name.to_owned());
        return Err(Error::UnknownOption { method, option, accepted });
    }
    let one = |method: &MethodDeclaration| {
        (method.resolve)(method.name, &options.of_method(method.name)?, model)
    };
    Ok(Methods(declarations(name)?.into_iter().map(one).collect::<Result<_>>()?))
}

impl Methods {
    /// The methods in a directory.
    ///
    /// # Errors
    /// [`Error::NotAnAdapter`]; a configuration that is broken.
    pub fn read(dir: &Path) -> Result<Self> {
        each_in(dir, |method, _| Ok(method)).map(Self)
    }

    /// The methods, in the order that they see hidden states.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Method> {
        self.0.iter().map(|method| &**method)
    }

    /// Whether a method is one of them.
    pub fn has(&self, name: &str) -> bool {
        self.iter().any(|method| method.name() == name)
    }

    /// The methods by name, and all of their options: [`resolve`] makes the same of them.
    ///
    /// An option whose defaults differ between several methods is left open.
    pub fn describe(&self) -> (String, MethodOptions) {
        let names: Vec<&str> = self.iter().map(Method::name).collect();
        let part = |method: &dyn Method| {
            let own = declaration(method.name()).map_or(&[][..], |d| d.options);
            (own, method.options())
        };
        (names.join("+"), MethodOptions::agreed(&self.iter().map(part).collect::<Vec<_>>()))
    }

    /// Makes new adapters; see [`Method::build`].
    ///
    /// # Errors
    /// Errors of a method; [`reft_models::Error::NotCombinable`].
    pub fn build(&self, model: &dyn Model, base_model: &str) -> Result<Vec<Box<dyn Adapter>>> {
        combinable(
            self.iter().map(|method| method.build(model, base_model)).collect::<Result<_>>()?,
        )
    }

    /// Tokens of the model's context that they take beside the row's own; see [`Method::context_taken`].
    pub fn context_taken(&self) -> usize {
        self.iter().map(Method::context_taken).sum()
    }

    /// Bytes per token that the methods' own backward keeps in each block; see [`Method::kept_per_token`].
    ///
    /// # Errors
    /// Errors of a method about the model.
    pub fn kept_per_token(&self, model: &ModelDescription, kind_bytes: f64) -> Result<Vec<f64>> {
        let mut sum = vec![0.0; model.num_hidden_layers];
        for method in self.iter() {
            for (sum, own) in sum.iter_mut().zip(method.kept_per_token(model, kind_bytes)?) {
                *sum += own;
            }
        }
        Ok(sum)
    }
}

/// The adapters of a directory: the directory's own with its method, or the adapters that its `combined.json` names.
///
/// # Errors
/// [`Error::NotAnAdapter`] if a directory holds none; [`Error::UnknownAdapterType`] for an unknown method.
pub fn adapters_in(dir: &Path) -> Result<Vec<(PathBuf, &'static MethodDeclaration)>> {
    let says_what_it_is = CONFIGURED.iter().any(|f| dir.join(f.configuration()).is_file());
    if !says_what_it_is && dir.join(AdapterStack::FILE_NAME).is_file() {
        let parts = AdapterStack::directories(dir)?.into_iter();
        return parts.map(|part| Ok((part.clone(), method_in(&part)?))).collect();
    }
    Ok(vec![(dir.to_owned(), method_in(dir)?)])
}

/// The kinds of adapters that a configuration tells.
const CONFIGURED: [AdapterFiles; 3] =
    [AdapterFiles::Reft, AdapterFiles::Peft(""), AdapterFiles::Own];

/// The method of the adapter in a directory, found from its files.
fn method_in(dir: &Path) -> Result<&'static MethodDeclaration> {
    let unknown = |expected: String| Error::NotAnAdapter { path: dir.to_owned(), expected };
    let mut kinds = CONFIGURED.into_iter().chain([AdapterFiles::Weights]);
    let Some(kind) = kinds.find(|files| dir.join(files.configuration()).is_file()) else {
        let [reft, peft, own] = CONFIGURED.map(AdapterFiles::configuration);
        let names = [reft, peft, own, AdapterStack::FILE_NAME, AdapterFiles::Weights.tensors()];
        let below = match directory_of_adapter_in(dir) {
            Some(below) => format!(" in it; there is one in {}", below.display()),
            None => " in it".to_owned(),
        };
        return Err(unknown(names.join(", ") + &below));
    };
    if let (AdapterFiles::Peft(_), false) = (kind, dir.join(kind.tensors()).exists())
        && dir.join(PICKLED).exists()
    {
        let advice = "which is a pickle: load the adapter in PEFT and save it with save_pretrained, which writes safetensors";
        return Err(unknown(format!("{} beside {PICKLED}, {advice}", kind.tensors())));
    }
    let file = kind.configuration();
    let of_kind = || known().filter(|m| m.files.configuration() == file);
    let first = of_kind().next().expect("invariant: there is a method of each kind");
    let Some((field, _)) = first.mark() else { return Ok(first) };
    let found = adapter_file::text_in(kind, dir, field)?.unwrap_or_else(|| "nothing".to_owned());
    let own = match kind {
        AdapterFiles::Peft(_) => ActsOn::of_peft_type(&found).0,
        _ => &found,
    };
    of_kind().find(|method| method.mark() == Some((field, own))).ok_or_else(|| {
        let mut accepted: Vec<&str> =
            of_kind().filter_map(|method| Some(method.mark()?.1)).collect();
        accepted.dedup();
        let (path, accepted) = (dir.to_owned(), accepted.join(", "));
        Error::UnknownAdapterType { path, field, found: found.clone(), accepted }
    })
}

/// The tensors of adapters that older versions of PEFT wrote.
const PICKLED: &str = "adapter_model.bin";

/// The first subfolder with an adapter, for directories that hold none themselves.
fn directory_of_adapter_in(dir: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut folders: Vec<PathBuf> = folders.collect();
    folders.sort();
    let holds_one =
        |folder: &PathBuf| CONFIGURED.iter().any(|f| folder.join(f.configuration()).is_file());
    folders.into_iter().find(holds_one)
}

/// Reads the configuration of each adapter of a directory, and calls `go_on` with it.
fn each_in<T>(dir: &Path, go_on: impl Fn(Box<dyn Method>, &Path) -> Result<T>) -> Result<Vec<T>> {
    let of_one = |(dir, method): (PathBuf, &MethodDeclaration)| go_on((method.read)(&dir)?, &dir);
    adapters_in(dir)?.into_iter().map(of_one).collect()
}

/// Reads the adapters of a directory and checks that they belong to the model. There is one, unless several were trained at once.
///
/// A fully fine-tuned model is read *into* the model.
///
/// # Errors
/// [`Error::NotAnAdapter`], or an error of the method: fields and tensors by name, another base model.
pub fn load_adapters(dir: &Path, model: &dyn Model) -> Result<Vec<Box<dyn Adapter>>> {
    combinable(each_in(dir, |method, dir| method.load(dir, model))?)
}

/// [`load_adapters`] for further training.
///
/// # Errors
/// As [`load_adapters`]; a loaded rotation that is not orthonormal.
pub fn load_trainable_adapters(dir: &Path, model: &dyn Model) -> Result<Vec<Box<dyn Adapter>>> {
    combinable(each_in(dir, |method, dir| method.load_trainable(dir, model))?)
}

fn combinable(adapters: Vec<Box<dyn Adapter>>) -> Result<Vec<Box<dyn Adapter>>> {
    AdapterStack::of_boxed(&adapters)?;
    Ok(adapters)
}

/// Checks that the adapter in a directory belongs to a model, tensor by tensor, without loading the model's weights.
///
/// # Errors
/// Errors of loading it: fields and tensors by name, another base model.
pub fn check_adapter(dir: &Path, model: &ModelDescription) -> Result<()> {
    each_in(dir, |method, dir| method.check_files(dir, model)).map(drop)
}

/// The frame of the texts that the adapter in a directory was trained on, if its files say it; of several adapters the first one's.
///
/// # Errors
/// If the directory holds no adapter, or a file of it is missing or broken.
pub fn trained_text(dir: &Path) -> Result<Option<TrainedText>> {
    for (dir, method) in adapters_in(dir)? {
        if let Some(text) = TrainedText::read(&dir.join(method.files.tensors()))? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// Whether a directory holds steering alone: directions that are added to hidden states or removed from them.
///
/// # Errors
/// As [`adapters_in`].
pub fn only_steers(dir: &Path) -> Result<bool> {
    Ok(adapters_in(dir)?.iter().all(|(_, method)| method.name == STEERING.name))
}

/// Reads the head beside the adapter in a directory: trained here, or in a `SEQ_CLS` adapter of PEFT. `weights` are the base model's; some
/// heads need layers of it. `None` if there is no head.
///
/// # Errors
/// If the directory holds no adapter, a file is broken, or the head is not one of the model's family.
pub fn read_head(dir: &Path, model: &dyn Model, weights: &Weights) -> Result<Option<TaskHead>> {
    for (dir, method) in adapters_in(dir)? {
        if let Some(head) = head_file::read(method.files, &dir, model, weights)? {
            return Ok(Some(head));
        }
    }
    Ok(None)
}

/// Whether a head of a task stands beside the adapter in a directory.
///
/// # Errors
/// If the directory holds no adapter, or a file of it is broken.
pub fn has_head(dir: &Path) -> Result<bool> {
    for (dir, method) in adapters_in(dir)? {
        if !head_file::tensors(method.files, &dir)?.1.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Merges an adapter directory into the model's weights: the model then computes what model and adapter did, at its own cost. Sums are made
/// in f32 and rounded to the model's kind once.
///
/// # Errors
/// Errors of reading it; [`Error::NotMergeable`] for methods that are no change of weights; [`Error::NotFinite`]: the model is merged in
/// part then, and should be opened anew.
pub fn merge_adapter(dir: &Path, model: &dyn Model) -> Result<()> {
    check_mergeable(dir)?;
    (method_in(dir)?.read)(dir)?.merge(dir, model)
}

/// Checks that the adapter in a directory is a change of weights, before a model is loaded for it.
///
/// # Errors
/// [`Error::NotMergeable`]; errors of reading its configuration.
pub fn check_mergeable(dir: &Path) -> Result<()> {
    let adapters = adapters_in(dir)?;
    let reason = match &adapters[..] {
        [(_, method)] => match (method.read)(dir)?.merging() {
            Merging::IntoWeights => return Ok(()),
            Merging::Never(reason) => reason,
        },
        _ => "it is several adapters; merge those of its directories that can",
    };
    let can = METHODS.iter().filter(|method| method.merging == Merging::IntoWeights);
    let names: Vec<&str> = can.map(|method| method.name).collect();
    let accepted = match names.split_last() {
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    };
    let (what, path) = (Methods::read(dir)?.describe().0, dir.to_owned());
    Err(Error::NotMergeable { path, what, reason, accepted })
}

/// The files of the adapter in a directory, or of its several adapters. The tensors' file comes first.
///
/// # Errors
/// If the directory holds no adapter.
pub fn adapter_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let adapters = adapters_in(dir)?;
    let combined =
        (!adapters.iter().any(|(own, _)| own == dir)).then(|| dir.join(AdapterStack::FILE_NAME));
    let of_one = |(dir, method): (PathBuf, &MethodDeclaration)| {
        let head = Some(HEAD_FILE).filter(|name| dir.join(name).is_file());
        let names = method.files.names().iter().copied().chain(head);
        names.map(|name| dir.join(name)).collect::<Vec<_>>()
    };
    Ok(combined.into_iter().chain(adapters.into_iter().flat_map(of_one)).collect())
}

/// Size of the adapter in a directory, in bytes.
///
/// # Errors
/// If the directory holds no adapter, or a file of it is missing.
pub fn adapter_bytes(dir: &Path) -> Result<u64> {
    let size = |file: &PathBuf| {
        Ok(std::fs::metadata(file).map_err(reft_models::io_error("read", file))?.len())
    };
    adapter_files(dir)?.iter().map(size).sum()
}

/// Whether a path in a directory is named like a file of its adapter, or of one of several. All weights of a model, as full fine-tuning keeps
/// them, count as a model's.
pub fn is_adapter_file(path: &str) -> bool {
    let own = METHODS.iter().filter(|method| method.files != AdapterFiles::Weights);
    let is_named = |name: &str| {
        name == HEAD_FILE || own.clone().any(|method| method.files.names().contains(&name))
    };
    match path.split_once('/') {
        None => path == AdapterStack::FILE_NAME || is_named(path),
        Some((part, name)) => is_part(Path::new(part)) && is_named(name),
    }
}

/// Removes the files of adapters from a directory, whole or not, and nothing else.
///
/// # Errors
/// If a file cannot be removed.
pub fn remove_adapter(dir: &Path) -> Result<()> {
    use std::io::ErrorKind::NotFound;

    let formats = METHODS.iter().flat_map(|method| method.files.names());
    for name in formats.chain([&AdapterStack::FILE_NAME, &HEAD_FILE]) {
        let file = dir.join(name);
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != NotFound => {
                return Err(reft_models::io_error("remove", &file)(error).into());
            }
            _ => {}
        }
    }
    let read = |error| reft_models::io_error("read", dir)(error);
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == NotFound => return Ok(()),
        entries => entries.map_err(read)?,
    };
    for entry in entries {
        let part = entry.map_err(read)?.path();
        if part.is_dir() && is_part(&part) {
            remove_adapter(&part)?;
            let _ = std::fs::remove_dir(&part); // fails if it holds anything else
        }
    }
    Ok(())
}

/// Whether a directory is named like one of several adapters: `1-lora`.
fn is_part(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
    name.is_some_and(|(number, method)| {
        number.bytes().all(|digit| digit.is_ascii_digit()) && declaration(method).is_ok()
    })
}

/// The number of trained parameters.
pub fn numel(parameters: &[Parameter]) -> i64 {
    parameters.iter().map(|parameter| parameter.tensor.numel() as i64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Comparisons are identified by these bytes.
    #[test]
    fn options_are_written_in_one_order_whatever_order_they_came_in() {
        let text = r#"{"alpha": 16, "rank": 4, "layers": "3;1", "target_modules": ["q_proj"], "positions": "l1"}"#;
        let options: MethodOptions = serde_json::from_str(text).expect("options");
        let written = serde_json::to_string(&options).expect("JSON");
        let expected = r#"{"layers":[1,3],"rank":4,"positions":"l1","alpha":16.0,"target_modules":["q_proj"]}"#;
        assert_eq!(written, expected);
        let unknown = serde_json::from_str::<MethodOptions>(r#"{"rnak": 4}"#);
        assert!(unknown.is_err_and(|error| error.to_string().contains("unknown field `rnak`")));
        let wrong = serde_json::from_str::<MethodOptions>(r#"{"rank": "four"}"#);
        assert!(wrong.is_err_and(|error| error.to_string().contains("rank is \"four\"")));
    }
}
