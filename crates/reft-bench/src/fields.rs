//! Configurations whose fields are set by name.

use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A configuration with one field set to another value, or why it cannot have it.
pub(crate) fn with_field<T: Serialize + DeserializeOwned>(
    config: &T,
    field: &str,
    value: &Value,
) -> Result<T, String> {
    let mut json = serde_json::to_value(config).map_err(|error| error.to_string())?;
    if let Some(fields) = json.as_object_mut() {
        fields.insert(field.to_owned(), value.clone());
    }
    serde_json::from_value(json).map_err(|error| error.to_string())
}

/// Reads a table by setting one field after the other: what cannot be is refused where it stands in a file.
pub(crate) fn read_fields<'de, T: Default, D: Deserializer<'de>>(
    deserializer: D,
    set: fn(&mut T, &str, &Value) -> Result<(), String>,
) -> Result<T, D::Error> {
    let mut config = T::default();
    deserializer.deserialize_map(Fields { config: &mut config, set })?;
    Ok(config)
}

struct Fields<'c, T> {
    config: &'c mut T,
    set: fn(&mut T, &str, &Value) -> Result<(), String>,
}

impl<'de, T> Visitor<'de> for Fields<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            let fields = Fields { config: &mut *self.config, set: self.set };
            map.next_value_seed(Field { fields, name })?;
        }
        Ok(())
    }
}

struct Field<'c, T> {
    fields: Fields<'c, T>,
    name: String,
}

impl<'de, T> DeserializeSeed<'de> for Field<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { fields: Fields { config, set }, name } = self;
        set(config, &name, &Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
