//! Ports for servers that are started later, and again: such as nobody else is given meanwhile.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

/// Which ports the system gives to whoever asks for any.
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Below it are those of services.
const FIRST: u16 = 20_000;
/// What is left on either side of the system's must be that many.
const LEAST: usize = 1_000;
/// How many a process has before it comes to those of the next one.
const PER_PROCESS: u32 = 16;

/// How many this process has been given.
static GIVEN: AtomicU32 = AtomicU32::new(0);

/// A port of this machine that nobody listens at, and that the system gives to nobody who asks for any: who takes it a while later,
/// or again after it was let go, finds it free; where the system gives all, it may not. Processes whose ids are near one another are given different ones.
pub(crate) fn free() -> anyhow::Result<u16> {
    let system = std::fs::read_to_string(EPHEMERAL).with_context(|| format!("cannot read {EPHEMERAL}"))?;
    // Where the system gives all of them, the best is one of its own that was free.
    let Some(ports) = outside(&system) else {
        return Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port());
    };
    loop {
        let given = GIVEN.fetch_add(1, Ordering::Relaxed);
        anyhow::ensure!(usize::try_from(given)? < ports.len(), "no port of {ports:?} is free");
        let port = nth(&ports, std::process::id(), given)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
}

/// The ports that are not the system's, below them if there are enough.
fn outside(system: &str) -> Option<Range<u16>> {
    let mut words = system.split_whitespace().map(str::parse);
    let (Some(Ok(low)), Some(Ok(high))) = (words.next(), words.next()) else { return None };
    // The last port of all is left out.
    let sides = [FIRST..low, high.max(FIRST - 1).saturating_add(1)..u16::MAX];
    sides.into_iter().find(|ports| ports.len() >= LEAST)
}

/// Which of the ports a process is given after so many others.
fn nth(ports: &Range<u16>, process: u32, given: u32) -> anyhow::Result<u16> {
    let number =
        (u64::from(process) * u64::from(PER_PROCESS) + u64::from(given)) % u64::try_from(ports.len())?;
    Ok(ports.start + u16::try_from(number)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_none_of_those_that_the_system_gives() {
        assert_eq!(outside("32768\t60999\n"), Some(20_000..32_768));
        assert_eq!(outside("21000 60999"), Some(20_000..21_000));
        assert_eq!(outside("20999 60999"), Some(61_000..65_535));
        assert_eq!(outside("1024 19000"), Some(20_000..65_535));
        assert_eq!(outside("1024 65535"), None);
        assert_eq!(outside("1024"), None);
    }

    #[test]
    fn processes_side_by_side_have_ports_of_their_own() {
        let ports = 20_000..21_000;
        let of = |process| (0..PER_PROCESS).map(move |given| nth(&(20_000..21_000), process, given).unwrap());
        let all: BTreeSet<_> = (4_000_000_000..4_000_000_062).flat_map(of).collect();
        assert_eq!(all.len(), 62 * 16);
        assert!(all.iter().all(|port| ports.contains(port)));
    }

    #[test]
    fn a_port_is_given_once_and_one_that_is_taken_is_not() {
        let system = std::fs::read_to_string(EPHEMERAL).unwrap();
        let Some(ports) = outside(&system) else {
            assert!(TcpListener::bind(("127.0.0.1", free().unwrap())).is_ok());
            return;
        };
        let next = nth(&ports, std::process::id(), GIVEN.load(Ordering::Relaxed)).unwrap();
        // It may be somebody else's already.
        let _taken = TcpListener::bind(("127.0.0.1", next));
        let given: BTreeSet<_> = (0..20).map(|_| free().unwrap()).collect();
        assert_eq!(given.len(), 20);
        assert!(!given.contains(&next) && given.iter().all(|port| ports.contains(port)), "{given:?}, {next}");
    }
}
