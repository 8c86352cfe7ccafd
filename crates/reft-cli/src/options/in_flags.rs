use anyhow::anyhow;

/// The error with options named as on the command line.
pub fn in_flags(error: impl Into<reft_bench::Error>) -> anyhow::Error {
    use reft_methods::Error::{OptionValue, UnknownOption};

    match error.into() {
        reft_bench::Error::Method(UnknownOption { method, option, accepted }) => {
            let accepted: Vec<String> = match accepted.as_str() {
                "none" => vec![accepted],
                names => names.split(", ").map(flag).collect(),
            };
            let (flag, accepted) = (flag(&option), accepted.join(", "));
            anyhow!("{flag} is no option of method {method}, which takes {accepted}; leave it out")
        }
        reft_bench::Error::Method(OptionValue { option, found, expected }) => {
            anyhow!("{} is {found}, expected {expected}", flag(option))
        }
        reft_bench::Error::Train(reft_train::Error::Config { field, found, expected }) => {
            anyhow!("{} is {found}, expected {expected}", flag(field))
        }
        other => other.into(),
    }
}

/// The flag of an option.
pub fn flag(option: &str) -> String {
    format!("--{}", option.replace('_', "-"))
}
