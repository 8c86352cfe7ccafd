use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};

/// A sequence that is printed in parentheses; `%` takes its items as several values.
#[derive(Debug)]
pub(crate) struct Tuple(pub(crate) Vec<Value>);

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.get(key.as_usize()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}

impl Tuple {
    /// A tuple as a template sees it.
    pub(crate) fn of(items: impl IntoIterator<Item = Value>) -> Value {
        Value::from_object(Self(items.into_iter().collect()))
    }
}
