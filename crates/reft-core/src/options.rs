use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// Declares options, each in one place: help, type, default and an optional rule.
///
/// The list generates a struct with its defaults, its form in files, and the [`OptionDeclaration`]s that flags are built from. `[recipe]`
/// marks an option that a comparison's `[train]` table has as well. Fields under `beside` exist in the library only, not in files or flags.
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

/// Largest count of rows, steps or tokens. With this limit a typing error cannot fill the memory, and sums of counts cannot overflow.
pub const LARGEST_COUNT: usize = 1_000_000_000;

/// The declaration of an option, without the type and the default of its field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionDeclaration {
    /// Its name in files; the flag has the same name, with `-` for `_`.
    pub name: &'static str,
    /// The form of its values.
    pub kind: OptionKind,
    /// Placeholder of a value in the help.
    pub value_name: &'static str,
    /// Its heading in the help.
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
    /// A text or a list of texts. The flag takes one text and may be repeated.
    Texts,
    /// Values by name. The flag, named in the singular, takes one value and may be repeated.
    Table,
}

/// A list of texts; a file may give a single text without a list around it. The form of [`OptionKind::Texts`].
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

    /// Refuses a value that breaks the rule of its option.
    ///
    /// # Errors
    /// [`Error::OptionValue`] with the option's name.
    fn check_each(&self) -> Result<()>;
}

impl OptionDeclaration {
    /// Refuses a value for which `holds` is false; accepts `None`.
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
