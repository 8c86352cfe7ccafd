//! Runs in real processes: the test program starts itself once for each rank.

mod groups;
mod process;
mod training;

use reft_distributed::{ProcessGroup, ProcessPlace};
use reft_test_support::Outcome;

use crate::process::{ACT, say};

/// The task of a process that a test has started; it does nothing in a run of all tests.
#[test]
fn a_process_of_a_run() -> Outcome {
    let Ok(act) = std::env::var(ACT) else { return Ok(()) };
    let place = ProcessPlace::from_environment()?.ok_or("no place")?;
    let data = if act == "other data" && place.share.rank() == 1 { "b" } else { "a" };
    let group = match ProcessGroup::join(&place, &[("the data", data.to_owned())]) {
        Ok(group) => group,
        Err(error) => {
            say(error);
            return Ok(());
        }
    };
    say("here");
    match act.strip_prefix("train ") {
        Some(method) => training::act(method, &group),
        None => groups::act(&act, &group),
    }
}
