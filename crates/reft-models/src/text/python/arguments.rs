use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

/// A template error with a reason.
pub(crate) fn refused(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// The arguments of a call in the order of its parameters, whether passed by position or by name. An argument that is missing or Python's
/// `None` is `None`.
pub(crate) struct Arguments<const N: usize> {
    names: [&'static str; N],
    values: [Option<Value>; N],
}

impl<const N: usize> Arguments<N> {
    /// Sorts the arguments of a call.
    ///
    /// # Errors
    /// If there are too many, or one has no such name.
    pub(crate) fn of(args: &[Value], names: [&'static str; N]) -> Result<Self, Error> {
        let mut values: [Option<Value>; N] = std::array::from_fn(|_| None);
        let by_name = args.last().filter(|last| last.is_kwargs());
        let by_place = &args[..args.len() - usize::from(by_name.is_some())];
        if by_place.len() > N {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        for (slot, value) in values.iter_mut().zip(by_place) {
            *slot = Some(value.clone());
        }
        if let Some(by_name) = by_name {
            let by_name = Kwargs::try_from(by_name.clone())?;
            for (slot, name) in values.iter_mut().zip(names) {
                if by_name.has(name) {
                    *slot = Some(by_name.get(name)?);
                }
            }
            by_name.assert_all_used()?;
        }
        let values = values.map(|value| value.filter(|value| !value.is_none()));
        Ok(Self { names, values })
    }

    /// An argument.
    pub(crate) fn value(&self, place: usize) -> Option<&Value> {
        self.values[place].as_ref()
    }

    /// An argument that is a text.
    pub(crate) fn text(&self, place: usize) -> Result<Option<&str>, Error> {
        let text = |value: &'_ Value| value.as_str().is_some();
        match &self.values[place] {
            Some(value) if !text(value) => Err(self.expected(place, "a text")),
            value => Ok(value.as_ref().and_then(Value::as_str)),
        }
    }

    /// An argument that is a text and must be given.
    pub(crate) fn needed_text(&self, place: usize) -> Result<&str, Error> {
        self.text(place)?.ok_or_else(|| self.expected(place, "a text"))
    }

    /// An argument that is a whole number.
    pub(crate) fn integer(&self, place: usize) -> Result<Option<i64>, Error> {
        let integer = |value: &Value| {
            i64::try_from(value.clone()).map_err(|_| self.expected(place, "a whole number"))
        };
        self.values[place].as_ref().map(integer).transpose()
    }

    /// Whether an argument is given and true by Python's rules.
    pub(crate) fn is_true(&self, place: usize) -> bool {
        self.values[place].as_ref().is_some_and(Value::is_true)
    }

    fn expected(&self, place: usize, expected: &str) -> Error {
        let found = match &self.values[place] {
            Some(value) => format!("is {value}"),
            None => "is missing".to_owned(),
        };
        refused(format!("{} {found}, expected {expected}", self.names[place]))
    }
}
