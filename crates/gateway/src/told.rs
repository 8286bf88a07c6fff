//! What is told of a run's refusals and faults: one by one at first, then the first of each kind, and the others by their count,
//! so that an agent that tries for ever fills no database and hides nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use caisson_domain::event::EventKind;
use caisson_domain::id::RunId;
use serde_json::{Map, Value};

use crate::bounds::{TOLD_EVENTS, TOLD_KINDS};

/// What two that are told together have in common.
const SAME: [&str; 9] = ["what", "rule", "tool", "scope", "upstream", "server", "kind", "ref", "host"];
/// Of these the sandbox chooses the last ones, so where there is no room for more kinds those without them are told apart; the
/// others are of closed lists.
const CLOSED: usize = 7;
/// What is told of several beside that.
const SAID: [&str; 4] = ["remedy", "message", "setting", "status"];

/// The refusals and faults of the run that is in the sandbox now; another run begins anew.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<(RunId, Ledger)>>);

#[derive(Debug, Default)]
struct Ledger {
    /// Events of each kind that were told one by one.
    events: BTreeMap<&'static str, u32>,
    kinds: BTreeMap<Key, Kind>,
}

/// A kind of event, and what those that are told together have in common.
type Key = (&'static str, Vec<Option<String>>);

#[derive(Debug)]
struct Kind {
    event: EventKind,
    /// What is said of them, the latest one's.
    data: Value,
    /// How many were counted in all.
    counted: u64,
    /// How many of them were not told yet.
    untold: u64,
}

impl Told {
    /// What of it is to be told now, if anything: itself, or how many there were like it.
    pub(crate) fn note(&self, run: &RunId, event: EventKind, data: Value) -> Option<Value> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_run = kept.take().filter(|(of, _)| of == run);
        let (_, ledger) = kept.insert(of_run.unwrap_or_else(|| (run.clone(), Ledger::default())));
        ledger.note(event, data)
    }

    /// The run, and what was counted of it and not told yet.
    pub(crate) fn rest(&self) -> Option<(RunId, Vec<(EventKind, Value)>)> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (run, ledger) = kept.as_mut()?;
        let rest = ledger.kinds.values_mut().filter(|kind| kind.untold > 0);
        Some((run.clone(), rest.map(|kind| (kind.event, kind.tell())).collect()))
    }
}

impl Ledger {
    fn note(&mut self, event: EventKind, data: Value) -> Option<Value> {
        let told = self.events.entry(event.as_str()).or_default();
        if *told < TOLD_EVENTS {
            *told += 1;
            return Some(data);
        }
        let mut key: Key = (event.as_str(), of(&data, &SAME));
        if !self.kinds.contains_key(&key) && self.kinds.len() >= TOLD_KINDS {
            key.1.truncate(CLOSED);
        }
        let said = if key.1.len() > CLOSED { &SAME[..] } else { &SAME[..CLOSED] };
        let common = kept(&data, said);
        match self.kinds.get_mut(&key) {
            None => {
                self.kinds.insert(key, Kind { event, data: common, counted: 0, untold: 0 });
                Some(data)
            }
            Some(kind) => {
                kind.data = common;
                kind.counted += 1;
                kind.untold += 1;
                is_told(kind.counted).then(|| kind.tell())
            }
        }
    }
}

impl Kind {
    /// How many there were since the last time.
    fn tell(&mut self) -> Value {
        let mut data = self.data.clone();
        data["count"] = std::mem::take(&mut self.untold).into();
        data
    }
}

/// Whether so many are told before the run's end: ten, a hundred, a thousand, and so on.
fn is_told(counted: u64) -> bool {
    counted >= 10 && 10_u64.checked_pow(counted.ilog10()) == Some(counted)
}

fn of(data: &Value, names: &[&str]) -> Vec<Option<String>> {
    names.iter().map(|name| data[name].as_str().map(str::to_owned)).collect()
}

fn kept(data: &Value, same: &[&str]) -> Value {
    let names = same.iter().chain(&SAID);
    let kept = names.filter_map(|name| data.get(name).map(|value| ((*name).to_owned(), value.clone())));
    Value::Object(kept.collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DENIED: EventKind = EventKind::GatewayDenied;

    fn run(number: u8) -> RunId {
        RunId::new(1, [number; 10])
    }

    fn push(name: &str, line: usize) -> Value {
        json!({"what": "push", "rule": "secret", "ref": name, "line": line, "remedy": "take it out"})
    }

    fn more(name: &str, count: u64) -> Value {
        json!({"what": "push", "rule": "secret", "ref": name, "remedy": "take it out", "count": count})
    }

    /// One whose events of denials are told one by one no more.
    fn spent() -> Told {
        let told = Told::default();
        for line in 0..TOLD_EVENTS as usize {
            assert_eq!(told.note(&run(1), DENIED, push("a", line)), Some(push("a", line)));
        }
        told
    }

    #[test]
    fn beyond_the_bound_the_first_of_a_kind_is_told_and_the_others_by_their_count() {
        let told = spent();
        let note = |name, line| told.note(&run(1), DENIED, push(name, line));
        assert_eq!(
            [note("a", 1), note("a", 2), note("b", 3)],
            [Some(push("a", 1)), None, Some(push("b", 3))]
        );
        let counts: Vec<_> = (2..=100).filter_map(|line| note("a", line)).collect();
        assert_eq!(counts, [more("a", 10), more("a", 90)]);
        assert_eq!([note("a", 0), note("a", 0), note("b", 0)], [None, None, None]);
        assert_eq!(told.rest(), Some((run(1), vec![(DENIED, more("a", 2)), (DENIED, more("b", 1))])));
        assert_eq!(told.rest(), Some((run(1), Vec::new())), "once");
    }

    #[test]
    fn names_that_the_sandbox_chooses_hide_no_rule() {
        let told = spent();
        let note = |data: &Value| told.note(&run(1), DENIED, data.clone());
        for number in 0..TOLD_KINDS {
            assert!(note(&push(&number.to_string(), 0)).is_some());
        }
        let (one, other) = (push("one", 0), push("other", 0));
        assert_eq!([note(&one), note(&other)], [Some(one), None], "there is no room for their names");
        let rule = json!({"what": "push", "rule": "file_size", "ref": "one"});
        assert_eq!(note(&rule), Some(rule));
        let rest = told.rest().unwrap().1;
        assert_eq!(
            rest,
            [(DENIED, json!({"what": "push", "rule": "secret", "remedy": "take it out", "count": 1}))]
        );
    }

    #[test]
    fn faults_leave_denials_their_events_and_another_run_begins_anew() {
        let told = spent();
        let fault = json!({"upstream": "git", "kind": "refused", "status": 500});
        assert_eq!(told.note(&run(1), EventKind::GatewayUpstreamFailed, fault.clone()), Some(fault));
        assert!(told.note(&run(1), DENIED, push("a", 0)).is_some());
        assert!(told.note(&run(1), DENIED, push("a", 0)).is_none());
        assert!(told.note(&run(2), DENIED, push("a", 0)).is_some());
        assert_eq!(told.rest(), Some((run(2), Vec::new())));
    }
}
