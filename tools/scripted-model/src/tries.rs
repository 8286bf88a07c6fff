//! Counts the tries of steps that fail only so many times.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use crate::record::ScriptPlace;

/// Steps whose tries are counted; the oldest is forgotten first and would then fail anew.
pub const MAX_COUNTED_STEPS: usize = 10_000;

/// Which conversation stands where: two conversations meet the fault of one step each for themselves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct TryKey {
    run: Option<String>,
    session: Option<String>,
    scenario: String,
    prompt: usize,
    step: usize,
}

impl TryKey {
    pub(crate) fn new(run: Option<&str>, session: Option<&str>, place: &ScriptPlace) -> Self {
        Self {
            run: run.map(ToOwned::to_owned),
            session: session.map(ToOwned::to_owned),
            scenario: place.scenario.clone(),
            prompt: place.prompt,
            step: place.step,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tries(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    counts: HashMap<TryKey, u32>,
    order: VecDeque<TryKey>,
}

impl Tries {
    /// Counts one more try and returns its number, from 1.
    pub(crate) fn count(&self, key: TryKey) -> u32 {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counted.counts.get_mut(&key) {
            *count = count.saturating_add(1);
            return *count;
        }
        if counted.order.len() == MAX_COUNTED_STEPS {
            let oldest = counted.order.pop_front();
            oldest.and_then(|oldest| counted.counts.remove(&oldest));
        }
        counted.order.push_back(key.clone());
        counted.counts.insert(key, 1);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(run: usize) -> TryKey {
        let place = ScriptPlace { scenario: "s".to_owned(), prompt: 1, step: 0 };
        TryKey::new(Some(&run.to_string()), None, &place)
    }

    #[test]
    fn each_conversation_is_counted_for_itself() {
        let tries = Tries::default();
        assert_eq!((tries.count(key(1)), tries.count(key(1)), tries.count(key(2))), (1, 2, 1));
    }

    #[test]
    fn the_oldest_step_is_forgotten_at_the_bound() {
        let tries = Tries::default();
        for run in 0..MAX_COUNTED_STEPS {
            tries.count(key(run));
        }
        assert_eq!(tries.count(key(0)), 2, "the bound itself is kept");
        tries.count(key(MAX_COUNTED_STEPS));
        assert_eq!(tries.count(key(1)), 2);
        assert_eq!(tries.count(key(0)), 1, "one more forgets the oldest");
    }
}
