//! The addresses at which clouds have their metadata services, held by this machine while somebody goes for them: what gets through
//! is heard here, and no real service is asked. The machine itself does not reach its own one for that time, which is the few
//! seconds of a run.

use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};

/// With their prefixes.
const ADDRESSES: [&str; 2] = ["169.254.169.254/32", "fd00:ec2::254/128"];
/// Who is at home at addresses of one's own.
const DEVICE: &str = "lo";

/// The addresses that were not held before; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Held(Vec<&'static str>);

impl Held {
    /// Holds them.
    ///
    /// # Errors
    /// The system does not give one.
    pub(super) fn take() -> anyhow::Result<Self> {
        let mut held = Self(Vec::new());
        for address in ADDRESSES {
            let known = ip(&["-o", "address", "show", "to", address])?;
            if !known.stdout.is_empty() {
                continue;
            }
            let given = ip(&["address", "add", address, "dev", DEVICE])?;
            let said = String::from_utf8_lossy(&given.stderr).into_owned();
            ensure!(given.status.success(), "{address} cannot be held: {said}");
            held.0.push(address);
        }
        Ok(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for address in &self.0 {
            let given_up = ip(&["address", "del", address, "dev", DEVICE]);
            if !given_up.is_ok_and(|output| output.status.success()) {
                super::super::say(&format!(
                    "{address} is still held: `ip address del {address} dev {DEVICE}`"
                ));
            }
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<Output> {
    #[expect(clippy::disallowed_methods, reason = "ip(8) is started here, with an argument vector")]
    let mut command = Command::new("ip");
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command.stdin(Stdio::null()).output().context("ip(8) cannot be started; install iproute2")
}
