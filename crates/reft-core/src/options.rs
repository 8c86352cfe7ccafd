use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// Declares options, each in one place: its help, type, default, and where it has one, its rule.
///
/// From the list come a struct with its defaults, its form in files, and the [`OptionDeclaration`]s that flags are made of. `[recipe]` marks
/// an option that a comparison's `[train]` table has as well. Fields `beside` the options are the library's alone: files and flags do not have
/// them.
#[macro_export]
macro_rules! declare_options {
    (
        $(#[$meta:meta])*
        pub struct $Options:ident {
            $(
                $(#[doc = $help:literal])+
                $(#[serde($($serde:tt)+)])?
                $name:ident: $type:ty = $default:expr, $kind:ident($value_name:literal) in $heading:literal
                    $([$recipe:ident])? $(if $rule:expr, $expected:expr)?;
            )+
        }
        $(beside { $($(#[doc = $text:literal])+ $field:ident: $field_type:ty = $field_default:expr;)+ })?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize, ::serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $Options {
            $(
                $(#[doc = $help])+
                $(#[serde($($serde)+)])?
                pub $name: $type,
            )+
            $($($(#[doc = $text])+ #[serde(skip)] pub $field: $field_type,)+)?
        }

        impl Default for $Options {
            fn default() -> Self {
                Self { $($name: $default,)+ $($($field: $field_default,)+)? }
            }
        }

        impl $crate::DeclaredOptions for $Options {
            const DECLARED: &'static [$crate::OptionDeclaration] = &[
                $($crate::OptionDeclaration {
                    name: stringify!($name),
                    kind: $crate::OptionKind::$kind,
                    value_name: $value_name,
                    heading: $heading,
                    help: concat!($($help),+).trim_ascii_start(),
                    is_in_recipes: !concat!($(stringify!($recipe))?).is_empty(),
                }),+
            ];

            fn check_each(&self) -> $crate::Result<()> {
                $($($crate::OptionDeclaration::require(stringify!($name), self.$name, $rule, $expected)?;)?)+
                Ok(())
            }
        }
    };
}

/// No count of rows, steps or tokens is larger: keeps a slip of the finger from filling the memory, and sums of counts from overflowing.
pub const LARGEST_COUNT: usize = 1_000_000_000;

/// An option's facts, apart from its type and its default, which its field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionDeclaration {
    /// Its name in files; the flag is called alike, with `-` for `_`.
    pub name: &'static str,
    /// The form of its values.
    pub kind: OptionKind,
    /// How help calls a value.
    pub value_name: &'static str,
    /// Under which heading help shows it.
    pub heading: &'static str,
    /// Its help text.
    pub help: &'static str,
    /// Whether the `[train]` table of a comparison has it.
    pub is_in_recipes: bool,
}

/// The form of an option's values in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// A whole number of at least 0.
    Count,
    /// A number.
    Number,
    /// Yes or no.
    Switch,
    /// A name, or any text.
    Text,
    /// A text, or a list of them. Its flag gives one, and is given several times for several.
    Texts,
    /// Values by name. Its flag, which is called in the singular, gives one, and is given several times for several.
    Table,
}

/// Texts of which a file may give a single one as it is, without a list around it: the form of [`OptionKind::Texts`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

impl Serialize for Texts {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        Ok(Self(match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(one) => vec![one],
            OneOrMore::More(more) => more,
        }))
    }
}

/// A struct whose fields [`declare_options`](crate::declare_options) has declared as options.
pub trait DeclaredOptions: Serialize + DeserializeOwned + Default {
    /// The options, in the order of the fields.
    const DECLARED: &'static [OptionDeclaration];

    /// Refuses a value that its option's rule does not hold for.
    ///
    /// # Errors
    /// [`Error::OptionValue`] with the option's name.
    fn check_each(&self) -> Result<()>;
}

impl OptionDeclaration {
    /// Refuses a value, if there is one, that `holds` is false for.
    ///
    /// # Errors
    /// [`Error::OptionValue`].
    pub fn require<T: Copy + Display>(
        option: &'static str,
        value: impl Into<Option<T>>,
        holds: impl Fn(T) -> bool,
        expected: &'static str,
    ) -> Result<()> {
        match value.into().filter(|value| !holds(*value)) {
            Some(found) => Err(Error::OptionValue { option, found: found.to_string(), expected }),
            None => Ok(()),
        }
    }
}
