//! Where something was measured, and when.

use testkit::parts::Parts;

use super::{clock, cores, docker, proc};

/// Where and when it was measured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Machine {
    /// Cores.
    pub(crate) cores: usize,
    /// Memory in GiB.
    pub(crate) memory_gib: f64,
    /// Version of the kernel.
    pub(crate) kernel: String,
    /// Version of the engine.
    pub(crate) engine: String,
    /// Version of the agent.
    pub(crate) agent: String,
    /// The day, in UTC.
    pub(crate) date: String,
}

impl Machine {
    /// This machine, now.
    ///
    /// # Errors
    /// The engine or the kernel does not tell.
    pub(crate) async fn look(parts: &Parts, agent_version: &str) -> anyhow::Result<Self> {
        Ok(Self {
            cores: cores(),
            memory_gib: proc::machine_memory_gib()?,
            kernel: proc::kernel()?,
            engine: docker::ask(parts, &["version", "--format", "{{.Server.Version}}"]).await?,
            agent: agent_version.to_owned(),
            date: clock::date(clock::wall_us()),
        })
    }

    /// In one line, behind the command that was given.
    #[must_use]
    pub(crate) fn line(&self, command: &str) -> String {
        format!(
            "`{command}` on {}: {} cores, {:.0} GiB of memory, Linux {}, Docker Engine {}, Claude Code {}",
            self.date, self.cores, self.memory_gib, self.kernel, self.engine, self.agent
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A machine for reports.
    pub(crate) fn machine() -> Machine {
        Machine {
            cores: 2,
            memory_gib: 23.5,
            kernel: "6.1.0".to_owned(),
            engine: "20.10".to_owned(),
            agent: "2.1.330".to_owned(),
            date: "2026-11-22".to_owned(),
        }
    }

    #[test]
    fn a_line_says_where_and_when() {
        assert_eq!(
            machine().line("make load"),
            "`make load` on 2026-11-22: 2 cores, 24 GiB of memory, Linux 6.1.0, Docker Engine 20.10, Claude Code 2.1.330"
        );
    }
}
