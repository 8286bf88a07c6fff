//! What concerns several servers on one database.

use std::ops::RangeInclusive;

use caisson_domain::limits::{SERVER_LOST_MS_MAX, SERVER_LOST_MS_MIN};

use super::Settings;

/// Silence of a server, in seconds, after which it may be told to be lost.
const SERVER_LOST_AFTER_S: RangeInclusive<u32> = 40..=7 * 24 * 60 * 60;
const _: () = assert!(
    *SERVER_LOST_AFTER_S.start() as i64 * 1000 == SERVER_LOST_MS_MIN
        && *SERVER_LOST_AFTER_S.end() as i64 * 1000 == SERVER_LOST_MS_MAX
);

impl Settings {
    pub(super) fn check_servers(&self, faults: &mut Vec<String>) {
        if let Some(directory) = self.artifacts_dir.as_ref().filter(|own| own.starts_with(&self.state_dir)) {
            faults.push(format!(
                "artifacts_dir \"{}\" is in the state directory, which is one server's alone; name a directory outside",
                directory.display()
            ));
        }
        if !SERVER_LOST_AFTER_S.contains(&self.server_lost_after_s) {
            faults.push(format!(
                "server_lost_after_s is {}; give {} to {}",
                self.server_lost_after_s,
                SERVER_LOST_AFTER_S.start(),
                SERVER_LOST_AFTER_S.end()
            ));
        }
    }
}
