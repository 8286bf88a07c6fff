//! How long sandboxes wait for another run, and how many.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::Settings;

/// Seconds that a sandbox may wait.
const TIME_S: RangeInclusive<u32> = 0..=86_400;
/// Sandboxes that may wait.
const SANDBOXES: RangeInclusive<usize> = 1..=256;
/// Memory that they may have together, in MiB.
const MEMORY_MIB: RangeInclusive<u32> = 64..=16_777_216;

impl Settings {
    pub(super) fn check_keep_alive(&self, faults: &mut Vec<String>) {
        check("keep_alive_s", self.keep_alive_s, &TIME_S, faults);
        check("keep_alive_sandboxes", self.keep_alive_sandboxes, &SANDBOXES, faults);
        check("keep_alive_memory_mib", self.keep_alive_memory_mib, &MEMORY_MIB, faults);
    }
}

fn check<T>(key: &str, value: T, bounds: &RangeInclusive<T>, faults: &mut Vec<String>)
where
    T: PartialOrd + Display + Copy,
{
    if !bounds.contains(&value) {
        faults.push(format!("{key} is {value}; give {} to {}", bounds.start(), bounds.end()));
    }
}
