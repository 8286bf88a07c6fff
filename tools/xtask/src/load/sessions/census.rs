//! What a batch takes of the machine: the server, the engine, the shims, and everything else, each apart.

use std::collections::HashMap;

use crate::measuring::clock::{ms_between, wall_us};
use crate::measuring::proc::{self, Cpu, Process};

/// Processes of the engines, by name; the kernel keeps fifteen bytes of it.
const ENGINE: [&str; 4] = ["dockerd", "containerd", "containerd-shim", "bwrap"];
/// What the shim's process is called in a sandbox.
const SHIM: &str = "shim";

/// What was taken.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// The server's share of memory before the first request and at its peak, in MiB.
    pub(crate) server_idle_mib: f64,
    pub(crate) server_peak_mib: f64,
    /// CPU time, in milliseconds: of the server itself, and of the programs that it starts: git, and those that make and
    /// mount volumes.
    pub(crate) server: Cpu,
    /// Of the engine's own processes. Those that it starts and waits for are in the rest.
    pub(crate) engine_ms: f64,
    /// Of the shims.
    pub(crate) shims_ms: f64,
    /// Of the whole machine, but for this process: the model and the clients.
    pub(crate) machine_ms: f64,
    /// From the first request until the last stream has ended, in milliseconds.
    pub(crate) busy_ms: f64,
    /// Memory that the machine has less at the peak than before, in MiB.
    pub(crate) machine_mib: f64,
}

/// Looks at processes again and again, since many end before the batch does.
#[derive(Debug)]
pub(super) struct Census {
    server: u32,
    began_us: i64,
    before: Moment,
    peak_mib: f64,
    least_available_mib: f64,
    /// Of each process of engine or shims: what it had used when it was first seen, and when it was last seen.
    seen: HashMap<(u32, u64), Seen>,
}

#[derive(Debug)]
struct Seen {
    shim: bool,
    first_ms: f64,
    last_ms: f64,
}

/// What is known at a moment.
#[derive(Debug, Clone, Copy)]
struct Moment {
    machine_ms: f64,
    this: Cpu,
    server: Cpu,
    server_mib: f64,
    available_mib: f64,
}

impl Moment {
    fn now(server: u32) -> anyhow::Result<Self> {
        Ok(Self {
            machine_ms: proc::machine_cpu_ms()?,
            this: proc::cpu(std::process::id())?,
            server: proc::cpu(server)?,
            server_mib: proc::memory(server)?.pss_mib,
            available_mib: proc::available_mib()?,
        })
    }
}

impl Census {
    pub(super) fn begin(server: u32) -> anyhow::Result<Self> {
        let before = Moment::now(server)?;
        let mut census = Self {
            server,
            began_us: wall_us(),
            before,
            peak_mib: before.server_mib,
            least_available_mib: before.available_mib,
            seen: HashMap::new(),
        };
        for process in proc::all()? {
            // What was there before counts from here on.
            let used_ms = process.cpu.own_ms;
            census.note(&process, used_ms);
        }
        Ok(census)
    }

    /// Notes what is there now.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        for process in proc::all()? {
            self.note(&process, 0.0);
        }
        self.peak_mib = self.peak_mib.max(proc::memory(self.server)?.pss_mib);
        self.least_available_mib = self.least_available_mib.min(proc::available_mib()?);
        Ok(())
    }

    fn note(&mut self, process: &Process, first_ms: f64) {
        let shim = process.name == SHIM;
        if !shim && !ENGINE.contains(&process.name.as_str()) {
            return;
        }
        let last_ms = process.cpu.own_ms;
        let seen = self.seen.entry((process.pid, process.started));
        seen.or_insert(Seen { shim, first_ms, last_ms }).last_ms = last_ms;
    }

    /// What it came to, for a batch whose last stream ended then.
    pub(super) fn end(mut self, ended_us: i64) -> anyhow::Result<Usage> {
        self.look()?;
        let after = Moment::now(self.server)?;
        let this = after.this.since(self.before.this);
        let of = |shim: bool| {
            self.seen.values().filter(|seen| seen.shim == shim).map(|seen| seen.last_ms - seen.first_ms).sum()
        };
        Ok(Usage {
            server_idle_mib: self.before.server_mib,
            server_peak_mib: self.peak_mib,
            server: after.server.since(self.before.server),
            engine_ms: of(false),
            shims_ms: of(true),
            machine_ms: after.machine_ms - self.before.machine_ms - this.own_ms - this.children_ms,
            busy_ms: ms_between(self.began_us, ended_us),
            machine_mib: self.before.available_mib - self.least_available_mib,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_count_from_when_they_are_known_and_others_not_at_all() {
        let mut census = Census::begin(std::process::id()).unwrap();
        census.seen.clear();
        let process = |pid: u32, name: &str, own_ms: f64| Process {
            pid,
            started: 1,
            name: name.to_owned(),
            cpu: Cpu { own_ms, children_ms: 1e6 },
        };
        census.note(&process(1, "dockerd", 500.0), 500.0);
        census.note(&process(1, "dockerd", 700.0), 0.0);
        census.note(&process(2, "shim", 30.0), 0.0);
        census.note(&process(2, "shim", 40.0), 0.0);
        census.note(&process(3, "claude", 900.0), 0.0);
        let of = |shim: bool| -> f64 {
            let seen = census.seen.values().filter(|seen| seen.shim == shim);
            seen.map(|seen| seen.last_ms - seen.first_ms).sum()
        };
        assert!((of(false) - 200.0).abs() < 1e-9 && (of(true) - 40.0).abs() < 1e-9);
    }
}
