//! What keeps a run one owner's.

use caisson_domain::id::{ID_DIGITS, ServerId};

/// Length of a server's id, in bytes.
const HOME_BYTES: usize = "srv_".len() + ID_DIGITS;

/// An owner's fencing number, together with the server that it is an owner on: what is shown for every later call about a run.
///
/// The number alone would do if a database forgot nothing. After a failover to one that lacks the last commits, a run may be
/// claimed a second time under a number that was given before; then it is the server that has it now that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HomeEpoch {
    /// The epoch of the lease.
    pub number: i64,
    /// The server's id, whose length is always the same.
    home: [u8; HOME_BYTES],
}

impl HomeEpoch {
    /// The epoch `number` of a run whose home is `server`.
    #[must_use]
    pub fn new(number: i64, server: &ServerId) -> Self {
        let mut home = [0; HOME_BYTES];
        for (place, byte) in home.iter_mut().zip(server.as_str().bytes()) {
            *place = byte;
        }
        Self { number, home }
    }

    /// Another epoch of a run with the same home.
    #[must_use]
    pub const fn with_number(self, number: i64) -> Self {
        Self { number, home: self.home }
    }

    /// The home's id as it is stored.
    pub(crate) fn home(&self) -> &str {
        // Made of a text's bytes, so it is one; anything else would be nobody's home.
        std::str::from_utf8(&self.home).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_epoch_keeps_the_whole_id_of_its_server() {
        let server = ServerId::new(1_700_000_000_000, [0xa5; 10]);
        let epoch = HomeEpoch::new(7, &server);
        assert_eq!((epoch.home(), epoch.number), (server.as_str(), 7));
        assert_eq!((epoch.with_number(8).home(), epoch.with_number(8).number), (server.as_str(), 8));
        assert_ne!(epoch, HomeEpoch::new(7, &ServerId::new(1_700_000_000_000, [0xa6; 10])));
    }
}
