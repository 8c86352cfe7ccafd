/// Implements parsing, printing and serde for an enum of names, so that a name is spelled in one place.
#[macro_export]
macro_rules! names {
    ($type:ident, $what:literal, $error:ty, { $($variant:ident => $name:literal),+ $(,)? }) => {
        impl $type {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name used in files and on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $error;

            fn from_str(s: &str) -> std::result::Result<Self, $error> {
                Self::ALL.iter().copied().find(|value| value.name() == s).ok_or_else(|| {
                    let accepted: Vec<_> = Self::ALL.iter().map(|value| value.name()).collect();
                    $crate::Error::UnknownName {
                        what: $what,
                        found: s.to_owned(),
                        accepted: accepted.join(", "),
                    }
                    .into()
                })
            }
        }

        $crate::as_text!($type);
    };
}

/// Implements serde for a type that is written and parsed as a text.
#[macro_export]
macro_rules! as_text {
    ($type:ident) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(
                &self,
                s: S,
            ) -> core::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(
                d: D,
            ) -> core::result::Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
