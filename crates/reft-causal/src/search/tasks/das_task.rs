use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use reft_train::TextTemplate;
use serde::Deserialize;
use std::collections::BTreeMap;

use crate::{CausalModel, SearchDefaults, Variable};

/// A task for alignment search: texts, and a causal model of how they are answered. A TOML file says all of it.
///
/// ```toml
/// name = "Number of the subject"
/// templates = ["The {subject} near the {other}"]
/// variable = "number"          # the variable to look for
/// positions = ["subject", "last"]
///
/// [lists.nouns]                # words by class; a plain list has no classes
/// singular = ["dog", "child"]
/// plural = ["dogs", "children"]
///
/// [slots]                      # the words for the templates' braces; two slots of one list never have the same word
/// subject = "nouns"
/// other = "nouns"
///
/// [variables]
/// number = { class = "subject" }
///
/// [answers]                    # the text, one token, of each value of `answer` (by default `variable`)
/// singular = " is"
/// plural = " are"
/// ```
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DasTask {
    /// Its name.
    pub name: String,
    /// Its question, in a sentence.
    #[serde(default)]
    pub description: String,
    /// Texts with slots in braces; each base has a random one, and its source the same.
    pub templates: Vec<String>,
    /// Words that several slots share.
    #[serde(default)]
    pub lists: BTreeMap<String, Words>,
    /// The words for the templates' braces.
    pub slots: BTreeMap<String, Slot>,
    /// The causal model: how values follow from slots and from each other.
    pub variables: BTreeMap<String, Mechanism>,
    /// The variable that is looked for.
    pub variable: String,
    /// The variable that determines the answer; `None`: `variable`.
    pub answer: Option<String>,
    /// Texts of the answer's values; the default text of a value is a space and the value.
    #[serde(default)]
    pub answers: BTreeMap<String, String>,
    /// The default positions of the search.
    #[serde(default)]
    pub positions: Vec<String>,
    /// The defaults of its search.
    #[serde(default)]
    pub search: SearchDefaults,
}

/// The contents of a slot.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected the name of a list, a list of words, lists of words by class, or from, to and step of numbers"
)]
pub enum Slot {
    /// A word of the list of that name.
    List(String),
    /// A word of its own list.
    Own(Words),
}

/// Words to draw from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of words, lists of words by class, or from, to and step of numbers"
)]
pub enum Words {
    /// Words without classes.
    Plain(Vec<String>),
    /// Numbers `from`, `from + step`, … up to `to`.
    Numbers(Numbers),
    /// Words by class. A class is drawn first, then a word of it.
    Classes(BTreeMap<String, Vec<String>>),
}

/// Numbers with the same number of decimals as the step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// The first.
    pub from: f64,
    /// The last, if steps lead to it.
    pub to: f64,
    /// The difference between neighbours.
    pub step: f64,
    /// Digits behind the point.
    #[serde(default)]
    pub decimals: usize,
}

/// How a variable follows from slots or from variables.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mechanism {
    /// The word of a slot.
    Word(String),
    /// The class of a slot's word.
    Class(String),
    /// Whether the number of one slot is at least another's.
    AtLeast([String; 2]),
    /// Whether the number of one slot is at most another's.
    AtMost([String; 2]),
    /// Whether two slots or variables have the same value.
    Equal([String; 2]),
    /// Whether all of some variables are `yes`.
    All(Vec<String>),
    /// Whether any of some variables is `yes`.
    Any(Vec<String>),
}

/// The causal model of a task, and where its inputs come from.
pub(crate) struct TaskModel {
    pub(crate) model: CausalModel<String>,
    pub(crate) searched: Variable,
    pub(crate) answer: Variable,
}

const YES: &str = "yes";
const NO: &str = "no";

impl DasTask {
    /// Checks the task. The error is its fault in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.templates.is_empty() {
            return Err("there is no template; give at least one under templates".to_owned());
        }
        for template in self.parsed_templates()? {
            if let Some(name) = template.columns().find(|name| !self.slots.contains_key(*name)) {
                return Err(format!(
                    "a template has the slot {{{name}}}, which is not under [slots]"
                ));
            }
        }
        for (name, slot) in &self.slots {
            // slot names are part of directory names
            let is_plain = |c: char| c.is_alphanumeric() || "_- ".contains(c);
            if name.is_empty() || !name.chars().all(is_plain) {
                return Err(format!(
                    "slot {name:?} is no plain name; use letters, digits, _ and - only"
                ));
            }
            let slots = self.slots.values().filter(|other| is_of_list(slot, other)).count();
            self.words(slot)?.check(slots).map_err(|reason| format!("slot {name}: {reason}"))?;
        }
        self.model().map(|_| ())
    }

    /// The templates.
    ///
    /// # Errors
    /// The first template that cannot be read, in words.
    pub(crate) fn parsed_templates(&self) -> Result<Vec<TextTemplate>, String> {
        let parse = |source: &String| {
            TextTemplate::parse(source).map_err(|reason| format!("template {source:?}: {reason}"))
        };
        self.templates.iter().map(parse).collect()
    }

    fn words<'a>(&'a self, slot: &'a Slot) -> Result<&'a Words, String> {
        match slot {
            Slot::Own(words) => Ok(words),
            Slot::List(name) => self.lists.get(name).ok_or_else(|| {
                format!("a slot is of the list {name:?}, which is not under [lists]")
            }),
        }
    }

    /// The causal model. Its inputs: word and class of every slot, in the order of their names.
    ///
    /// # Errors
    /// The fault in words, for instance a variable that depends on an unknown slot or variable, or on itself.
    pub(crate) fn model(&self) -> Result<TaskModel, String> {
        let mut model = CausalModel::new();
        let mut known: BTreeMap<&str, Variable> = BTreeMap::new();
        let mut classes: BTreeMap<&str, Variable> = BTreeMap::new();
        for slot in self.slots.keys() {
            known.insert(slot, model.input(slot));
            classes.insert(slot, model.input(&format!("class of {slot}")));
        }
        let mut left: Vec<(&String, &Mechanism)> = self.variables.iter().collect();
        while !left.is_empty() {
            let before = left.len();
            let mut waiting = Vec::new();
            for (name, mechanism) in left {
                if self.slots.contains_key(name) {
                    return Err(format!("variable {name} has the name of a slot; rename it"));
                }
                let found = mechanism.parents().into_iter().map(|parent| match mechanism {
                    Mechanism::Class(_) => classes.get(parent),
                    _ => known.get(parent),
                });
                match found.map(Option::<&Variable>::copied).collect::<Option<Vec<_>>>() {
                    Some(parents) => {
                        let mechanism = mechanism.clone();
                        let function = move |values: &[String]| mechanism.value(values);
                        let variable = model.function(name, &parents, function);
                        known.insert(name, variable.map_err(|error| error.to_string())?);
                    }
                    None => waiting.push((name, mechanism)),
                }
            }
            if waiting.len() == before {
                let (name, mechanism) = waiting[0];
                return Err(format!(
                    "variable {name} follows from {}: expected slots (for class, a slot) or variables that do not follow from it",
                    mechanism.parents().join(", ")
                ));
            }
            left = waiting;
        }
        let find = |name: &str| {
            let variable = known.get(name).filter(|_| self.variables.contains_key(name));
            variable
                .copied()
                .ok_or_else(|| format!("{name:?} is no variable; name one of [variables]"))
        };
        let searched = find(&self.variable)?;
        let answer = find(self.answer.as_deref().unwrap_or(&self.variable))?;
        Ok(TaskModel { model, searched, answer })
    }

    /// Draws words and classes of all slots, in the order of the causal model's inputs.
    pub(crate) fn draw(&self, rng: &mut StdRng) -> Vec<String> {
        let mut drawn: Vec<(Option<&str>, String)> = Vec::new(); // the list, and the word
        let mut inputs = Vec::with_capacity(2 * self.slots.len());
        for slot in self.slots.values() {
            let list = match slot {
                Slot::List(name) => Some(name.as_str()),
                Slot::Own(_) => None,
            };
            let words = self.words(slot).expect("invariant: the task is checked");
            let is_free = |word: &str| {
                list.is_none()
                    || !drawn.iter().any(|(other, taken)| *other == list && taken == word)
            };
            let (word, class) = words.draw(rng, &is_free);
            drawn.push((list, word.clone()));
            inputs.extend([word, class]);
        }
        inputs
    }

    /// The words of the slots from the inputs of the causal model.
    pub(crate) fn fields(&self, inputs: &[String]) -> BTreeMap<String, String> {
        self.slots.keys().cloned().zip(inputs.iter().step_by(2).cloned()).collect()
    }

    /// The text of a value of the answer.
    pub(crate) fn answer_text(&self, value: &str) -> String {
        self.answers.get(value).cloned().unwrap_or_else(|| format!(" {value}"))
    }
}

/// Whether two slots use the same list.
fn is_of_list(slot: &Slot, other: &Slot) -> bool {
    matches!((slot, other), (Slot::List(one), Slot::List(other)) if one == other)
}

impl Words {
    /// Checks the words of a list that `slots` slots use without ever having the same word. The error is the fault in words.
    fn check(&self, slots: usize) -> Result<(), String> {
        match self {
            Self::Plain(words) if words.len() < 2 => Err("give at least two words".to_owned()),
            Self::Classes(classes) if classes.values().map(Vec::len).sum::<usize>() < 2 => {
                Err("give classes with at least two words in all".to_owned())
            }
            Self::Classes(classes) => {
                let least = if slots > 1 { 2 } else { 1 };
                match classes.iter().find(|(_, words)| words.len() < least) {
                    Some((class, words)) if least > 1 => Err(format!(
                        "class {class} has {} word, and {slots} slots of its list never have the same word; give it at least two",
                        words.len()
                    )),
                    Some((class, _)) => Err(format!("class {class} has no word; give it one")),
                    None => Ok(()),
                }
            }
            Self::Numbers(Numbers { from, to, step, .. })
                if !(from.is_finite() && to.is_finite() && *step > 0.0 && to >= from) =>
            {
                Err(format!(
                    "numbers from {from} to {to} by {step} are none; give from ≤ to and a step above 0"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Draws a free word, or any word if none is free, with its class.
    fn draw(&self, rng: &mut StdRng, is_free: &dyn Fn(&str) -> bool) -> (String, String) {
        let of = |words: &[String], rng: &mut StdRng| {
            let free = words.iter().filter(|word| is_free(word)).choose(rng);
            free.or_else(|| words.choose(rng)).cloned().unwrap_or_default()
        };
        match self {
            Self::Plain(words) => (of(words, rng), String::new()),
            Self::Numbers(Numbers { from, to, step, decimals }) => {
                let steps = ((to - from) / step + 1e-9).floor() as u64;
                let number = from + step * rng.random_range(0..=steps) as f64;
                (format!("{number:.decimals$}"), String::new())
            }
            Self::Classes(classes) => {
                let (class, words) =
                    classes.iter().choose(rng).expect("invariant: the task is checked");
                (of(words, rng), class.clone())
            }
        }
    }
}

impl Mechanism {
    fn parents(&self) -> Vec<&str> {
        let named: &[String] = match self {
            Self::Word(name) | Self::Class(name) => std::slice::from_ref(name),
            Self::AtLeast(pair) | Self::AtMost(pair) | Self::Equal(pair) => pair,
            Self::All(names) | Self::Any(names) => names,
        };
        named.iter().map(String::as_str).collect()
    }

    fn value(&self, parents: &[String]) -> String {
        // a word that is not a number is NaN, which compares false
        let number = |i: usize| parents[i].parse().unwrap_or(f64::NAN);
        let holds = match self {
            Self::Word(_) | Self::Class(_) => return parents[0].clone(),
            Self::AtLeast(_) => number(0) >= number(1),
            Self::AtMost(_) => number(0) <= number(1),
            Self::Equal(_) => parents[0] == parents[1],
            Self::All(_) => parents.iter().all(|value| value == YES),
            Self::Any(_) => parents.iter().any(|value| value == YES),
        };
        if holds { YES } else { NO }.to_owned()
    }
}
