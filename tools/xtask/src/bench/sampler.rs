//! Memory and CPU while a run goes on, of the server and of the shim.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use testkit::docker::inspect;
use tokio::sync::oneshot;

use super::proc::{self, Memory};
use super::reader::Arrival;
use super::service::Service;

/// Time between samples.
const INTERVAL: Duration = Duration::from_millis(10);

/// What one run used at most.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Peaks {
    /// The server.
    pub(crate) server: Memory,
    /// The shim.
    pub(crate) shim: Memory,
    /// CPU time of the shim when it was last seen, in milliseconds.
    pub(crate) shim_cpu_ms: f64,
    /// How often each was looked at.
    pub(crate) samples: usize,
}

impl Peaks {
    /// The greater of each.
    #[must_use]
    pub(crate) fn peak(self, other: Self) -> Self {
        Self {
            server: self.server.peak(other.server),
            shim: self.shim.peak(other.shim),
            shim_cpu_ms: self.shim_cpu_ms.max(other.shim_cpu_ms),
            samples: self.samples + other.samples,
        }
    }
}

/// Does a run and samples all the while. The run's times are not for use: the samples disturb it.
///
/// # Errors
/// The run does not end as it must, or a process cannot be looked at.
pub(crate) async fn measure(service: &Service, body: &Value) -> anyhow::Result<Peaks> {
    let (tell, mut told) = oneshot::channel();
    let mut tell = Some(tell);
    let look = |arrival: &Arrival| {
        if arrival.kind == "sandbox.started"
            && let Some(tell) = tell.take()
        {
            // Nobody listens any more when sampling has failed, which is told below.
            drop(tell.send(arrival.data.clone()));
        }
    };
    let mut job = std::pin::pin!(service.job(body, look));
    let mut clock = tokio::time::interval(INTERVAL);
    let (mut peaks, mut shim) = (Peaks::default(), None);
    loop {
        tokio::select! {
            done = &mut job => return done.map(|_job| peaks),
            sandbox = &mut told, if shim.is_none() => shim = Some(shim_pid(service, &sandbox?)?),
            _ = clock.tick() => peaks = peaks.peak(sample(service, shim)?),
        }
    }
}

fn sample(service: &Service, shim: Option<u32>) -> anyhow::Result<Peaks> {
    // The shim may be gone already; its last sample stands.
    let (memory, cpu_ms) = shim.map_or_else(Default::default, |pid| {
        (proc::memory(pid).unwrap_or_default(), proc::fine_cpu_ms(pid).unwrap_or_default())
    });
    Ok(Peaks { server: service.memory()?, shim: memory, shim_cpu_ms: cpu_ms, samples: 1 })
}

/// The host's number of a sandbox's first process.
fn shim_pid(service: &Service, event: &str) -> anyhow::Result<u32> {
    let found = inspect(&service.spec.parts, &container(event)?)?;
    let pid = found["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    pid.filter(|pid| *pid > 0).context("the sandbox does not run")
}

/// The container of the sandbox that an event tells of.
///
/// # Errors
/// The event names none.
pub(crate) fn container(event: &str) -> anyhow::Result<String> {
    let event: Value = serde_json::from_str(event)?;
    let sandbox = event["data"]["sandbox"].as_str().context("the event names no sandbox")?;
    Ok(format!("caisson-{sandbox}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_container_is_named_after_the_sandbox() {
        assert_eq!(container(r#"{"data": {"sandbox": "sbx_1"}}"#).unwrap(), "caisson-sbx_1");
        assert!(container("{}").is_err() && container("x").is_err());
    }

    #[test]
    fn peaks_are_kept_and_samples_counted() {
        let one = Peaks { shim_cpu_ms: 5.0, samples: 1, ..Peaks::default() };
        let two =
            Peaks { shim_cpu_ms: 3.0, samples: 1, server: Memory { pss_mib: 2.0, rss_mib: 3.0 }, ..one };
        let both = one.peak(two);
        assert_eq!(both.samples, 2);
        assert!((both.shim_cpu_ms - 5.0).abs() < 1e-9 && (both.server.rss_mib - 3.0).abs() < 1e-9);
    }
}
