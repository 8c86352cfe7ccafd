//! Configurations whose fields are set by name.

use std::fmt;

use reft_models::plain_reason;
use serde::de::{DeserializeOwned, DeserializeSeed, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A configuration with one field set to another value, or the reason why the value is refused.
pub(crate) fn with_field<T: Serialize + DeserializeOwned>(
    config: &T,
    field: &str,
    value: &Value,
) -> Result<T, String> {
    let mut json = serde_json::to_value(config).map_err(|error| error.to_string())?;
    if let Some(fields) = json.as_object_mut() {
        fields.insert(field.to_owned(), value.clone());
    }
    serde_json::from_value(json).map_err(|error| plain_reason(&error))
}

/// Reads a table by setting one field after the other, so that an error names the place of the invalid field in the file.
pub(crate) fn read_fields<'de, T: Default, D: Deserializer<'de>>(
    deserializer: D,
    set: fn(&mut T, &str, &Value) -> Result<(), String>,
) -> Result<T, D::Error> {
    let mut config = T::default();
    let set = |name: &str, value: &Value| set(&mut config, name, value);
    deserializer.deserialize_map(Fields(set))?;
    Ok(config)
}

/// Visits a table and calls the function with each field.
struct Fields<F>(F);

impl<'de, F: FnMut(&str, &Value) -> Result<(), String>> Visitor<'de> for Fields<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a table")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            map.next_value_seed(Field(|value: &Value| (self.0)(&name, value)))?;
        }
        Ok(())
    }
}

/// Reads a value and calls the function with it.
struct Field<F>(F);

impl<'de, F: FnOnce(&Value) -> Result<(), String>> DeserializeSeed<'de> for Field<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        (self.0)(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
