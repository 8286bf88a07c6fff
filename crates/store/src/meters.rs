//! What this process counts of what it commits, for whoever watches it. Counters begin at zero with the process; what the
//! database holds is told by the reads of it.
//!
//! A transaction's numbers are added when it is committed, so that what was given up is not counted.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most series of one process; labels are of closed lists, so this many do not come. What comes beyond is not counted.
pub const METER_SERIES: usize = 1_000;
/// Upper bounds of the classes that times are counted in, in milliseconds; one more class has what took longer.
pub const METER_CLASSES_MS: [u64; 12] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 30_000, 60_000];

/// A family of counters or of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Family {
    /// Its name, with the unit last.
    pub name: &'static str,
    /// What it counts, in one sentence.
    pub help: &'static str,
    /// What a counted whole number is divided by for its unit.
    pub parts: u32,
    /// Whether it counts times in classes.
    pub timed: bool,
    /// Whether it has a series for each value of some labels; else it has one, which begins at zero.
    pub labelled: bool,
}

impl Family {
    const fn count(name: &'static str, help: &'static str) -> Self {
        Self { name, help, parts: 1, timed: false, labelled: false }
    }

    const fn labelled(self) -> Self {
        Self { labelled: true, ..self }
    }

    const fn times(name: &'static str, help: &'static str) -> Self {
        Self { name, help, parts: 1_000, timed: true, labelled: false }
    }
}

/// Requests of the API that nobody was let in with.
pub static API_REFUSED: Family = Family::count(
    "caisson_api_refused_total",
    "Requests of the API whose key was refused or lacks a scope, or whose address has failed too often, by reason.",
)
.labelled();
/// Runs that ended.
pub static RUNS_ENDED: Family =
    Family::count("caisson_runs_ended_total", "Runs that ended, by status and kind of failure.").labelled();
/// Model calls that were settled.
pub static MODEL_CALLS: Family = Family::count(
    "caisson_model_calls_total",
    "Model calls that are over: answered, refused (by the model API), or estimated (their reply was cut).",
)
.labelled();
/// Tokens of settled model calls.
pub static MODEL_TOKENS: Family =
    Family::count("caisson_model_tokens_total", "Tokens of model calls that are over, by kind.").labelled();
/// Cost of settled model calls.
pub static MODEL_COST: Family = Family {
    parts: 1_000_000,
    ..Family::count("caisson_model_cost_usd_total", "Cost of model calls that are over, in US dollars.")
};
/// Time to the first byte of a model's reply.
pub static MODEL_FIRST_BYTE: Family = Family::times(
    "caisson_model_first_byte_seconds",
    "Time from the begin of a model call to the first byte of its reply.",
);
/// Pushes.
pub static PUSHES: Family =
    Family::count("caisson_pushes_total", "Pushes that were forwarded, by whether the git host took them.")
        .labelled();
/// Events that were appended.
pub static EVENTS: Family = Family::count("caisson_events_total", "Events that were appended.");
/// What the gateway denied.
pub static DENIALS: Family = Family::count(
    "caisson_denials_total",
    "What the gateway denied to sandboxes; the audit log has the first of each kind, and how often it came again.",
);
/// Requests of sandboxes at their doors.
pub static DOOR_REQUESTS: Family =
    Family::count("caisson_door_requests_total", "Requests of sandboxes, by way and status of the answer.")
        .labelled();
/// Time to the answer of a door.
pub static DOOR_ANSWERS: Family = Family::times(
    "caisson_door_answer_seconds",
    "Time from a sandbox's request to the head of its answer, by way; control requests may be long polls.",
)
.labelled();

/// All families, by name.
pub static FAMILIES: [&Family; 11] = [
    &API_REFUSED,
    &DENIALS,
    &DOOR_ANSWERS,
    &DOOR_REQUESTS,
    &EVENTS,
    &MODEL_CALLS,
    &MODEL_COST,
    &MODEL_FIRST_BYTE,
    &MODEL_TOKENS,
    &PUSHES,
    &RUNS_ENDED,
];

/// Labels, names and values.
pub type Labels = Vec<(&'static str, String)>;

/// One number of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// Which family.
    pub family: &'static Family,
    /// Its labels.
    pub labels: Labels,
    /// What was counted.
    pub value: Value,
}

/// What a series has counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A sum, in [`Family::parts`] of its unit.
    Sum(u64),
    /// Times.
    Times {
        /// How many fell into each class of [`METER_CLASSES_MS`], and how many took longer.
        classes: [u64; METER_CLASSES_MS.len() + 1],
        /// All of them together, in milliseconds.
        sum_ms: u64,
    },
}

/// A number to be added.
#[derive(Debug, Clone)]
pub(crate) struct Counted {
    pub(crate) family: &'static Family,
    pub(crate) labels: Labels,
    pub(crate) amount: u64,
}

impl Counted {
    pub(crate) fn new(family: &'static Family, labels: Labels, amount: i64) -> Self {
        Self { family, labels, amount: u64::try_from(amount).unwrap_or(0) }
    }
}

type All = BTreeMap<(&'static Family, Labels), Value>;

/// The numbers of one process.
#[derive(Debug, Default)]
pub struct Meters {
    all: Mutex<All>,
}

impl Meters {
    /// Adds to a sum, or counts a time in milliseconds, as the family is. Never blocks for long, and never fails.
    pub fn add(&self, family: &'static Family, labels: Labels, amount: u64) {
        let mut all = self.lock();
        let key = (family, labels);
        if all.len() >= METER_SERIES && !all.contains_key(&key) {
            return;
        }
        let start = || {
            if family.timed {
                Value::Times { classes: [0; METER_CLASSES_MS.len() + 1], sum_ms: 0 }
            } else {
                Value::Sum(0)
            }
        };
        match all.entry(key).or_insert_with(start) {
            Value::Sum(sum) => *sum = sum.saturating_add(amount),
            Value::Times { classes, sum_ms } => {
                let class = METER_CLASSES_MS.iter().take_while(|bound| amount > **bound).count();
                classes[class] += 1;
                *sum_ms = sum_ms.saturating_add(amount);
            }
        }
    }

    pub(crate) fn add_all(&self, counted: Vec<Counted>) {
        for Counted { family, labels, amount } in counted {
            self.add(family, labels, amount);
        }
    }

    /// Everything that was counted, by family and labels.
    #[must_use]
    pub fn read(&self) -> Vec<Series> {
        let all = self.lock();
        let series = all.iter().map(|((family, labels), value)| Series {
            family,
            labels: labels.clone(),
            value: value.clone(),
        });
        series.collect()
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        // A panic elsewhere leaves numbers behind, and each is a whole one.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_class_that_ends_at_or_above_them() {
        let meters = Meters::default();
        for ms in [0, 5, 6, 60_000, 60_001] {
            meters.add(&MODEL_FIRST_BYTE, Vec::new(), ms);
        }
        let [Series { value: Value::Times { classes, sum_ms }, .. }] = &meters.read()[..] else { panic!() };
        assert_eq!((classes[0], classes[1], classes[11], classes[12]), (2, 1, 1, 1));
        assert_eq!(*sum_ms, 120_012);
    }

    #[test]
    fn series_are_bounded_and_those_that_are_there_go_on() {
        let meters = Meters::default();
        for number in 0..METER_SERIES + 5 {
            meters.add(&PUSHES, vec![("outcome", number.to_string())], 1);
        }
        assert_eq!(meters.read().len(), METER_SERIES);
        meters.add(&PUSHES, vec![("outcome", "0".to_owned())], 1);
        let read = meters.read();
        let first = read.iter().find(|series| series.labels[0].1 == "0").unwrap();
        assert_eq!(first.value, Value::Sum(2));
    }

    #[test]
    fn families_are_listed_by_name_and_named_by_their_unit() {
        assert!(FAMILIES.windows(2).all(|pair| pair[0].name < pair[1].name));
        for family in FAMILIES {
            let end = if family.timed { "_seconds" } else { "_total" };
            assert!(family.name.starts_with("caisson_") && family.name.ends_with(end), "{}", family.name);
        }
    }
}
