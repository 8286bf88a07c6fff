//! Reads the engine's answers: how a container fares, whose it is, what it uses.

use bollard::models::BollardDate;
use bollard::models::{
    ContainerInspectResponse, ContainerMemoryStats, ContainerState, ContainerStateStatusEnum,
    ContainerStatsResponse, ContainerSummary, ContainerSummaryStateEnum,
};
use caisson_domain::id::{SandboxId, SessionId};

use super::profile::{LABEL_SANDBOX, LABEL_SESSION};
use crate::{EngineError, Exit, Liveness, SandboxUsage};

/// How far the life of an inspected container has got.
pub(crate) fn liveness(found: &ContainerInspectResponse) -> Result<Liveness, EngineError> {
    let unread = || EngineError::BadReply {
        operation: "reading a sandbox's state",
        source: "the engine gave no state".into(),
    };
    let state = found.state.as_ref().ok_or_else(unread)?;
    match state.status.ok_or_else(unread)? {
        ContainerStateStatusEnum::CREATED => Ok(Liveness::Created),
        ContainerStateStatusEnum::RUNNING
        | ContainerStateStatusEnum::PAUSED
        | ContainerStateStatusEnum::RESTARTING
        | ContainerStateStatusEnum::STOPPING => Ok(Liveness::Running),
        ContainerStateStatusEnum::EXITED
        | ContainerStateStatusEnum::DEAD
        | ContainerStateStatusEnum::REMOVING => Ok(Liveness::Exited(exit(state))),
        ContainerStateStatusEnum::EMPTY => Err(unread()),
    }
}

fn exit(state: &ContainerState) -> Exit {
    Exit {
        code: state.exit_code,
        oom_killed: state.oom_killed.unwrap_or(false),
        finished_at_ms: state.finished_at.as_deref().and_then(time_ms),
    }
}

/// Unix milliseconds of an RFC 3339 time; none for the year 1, by which the engine says "never".
fn time_ms(text: &str) -> Option<i64> {
    let time: BollardDate = text.parse().ok()?;
    let ms = time.timestamp_millis();
    (ms > 0).then_some(ms)
}

/// How far a listed container has got, if a list says enough of it.
pub(crate) fn listed_liveness(listed: &ContainerSummary) -> Option<Liveness> {
    match listed.state? {
        ContainerSummaryStateEnum::CREATED => Some(Liveness::Created),
        ContainerSummaryStateEnum::RUNNING
        | ContainerSummaryStateEnum::PAUSED
        | ContainerSummaryStateEnum::RESTARTING
        | ContainerSummaryStateEnum::STOPPING => Some(Liveness::Running),
        ContainerSummaryStateEnum::EXITED
        | ContainerSummaryStateEnum::DEAD
        | ContainerSummaryStateEnum::REMOVING
        | ContainerSummaryStateEnum::EMPTY => None,
    }
}

/// The ids in a container's labels; none without a readable sandbox.
pub(crate) fn ids(listed: &ContainerSummary) -> Option<(SandboxId, Option<SessionId>)> {
    let labels = listed.labels.as_ref()?;
    let sandbox = labels.get(LABEL_SANDBOX)?.parse().ok()?;
    let session = labels.get(LABEL_SESSION).and_then(|session| session.parse().ok());
    Some((sandbox, session))
}

/// What a container uses; none if it does not run, which the engine shows by leaving the numbers out.
pub(crate) fn usage(stats: &ContainerStatsResponse) -> Option<SandboxUsage> {
    let memory = stats.memory_stats.as_ref()?;
    let cpu = stats.cpu_stats.as_ref()?.cpu_usage.as_ref()?;
    Some(SandboxUsage {
        memory_bytes: memory.usage?.saturating_sub(reclaimable(memory)),
        memory_peak_bytes: memory.max_usage,
        cpu_micros: cpu.total_usage? / 1000,
        pids: stats.pids_stats.as_ref()?.current?,
        pids_refused: None,
    })
}

/// The first process of a container that runs, by its number on the engine's machine, and the container's name for itself.
pub(crate) fn first_process(container: &ContainerInspectResponse) -> Option<(i64, String)> {
    let state = container.state.as_ref().filter(|state| state.running == Some(true))?;
    Some((state.pid.filter(|pid| *pid > 0)?, container.id.clone()?))
}

/// Page cache that nobody has used lately, under its names in cgroup v1 and v2.
fn reclaimable(memory: &ContainerMemoryStats) -> u64 {
    let Some(stats) = &memory.stats else { return 0 };
    stats.get("total_inactive_file").or_else(|| stats.get("inactive_file")).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn inspected(state: &serde_json::Value) -> ContainerInspectResponse {
        serde_json::from_value(json!({ "State": state })).unwrap()
    }

    #[test]
    fn every_state_of_a_container_is_one_of_three() {
        for (status, running) in
            [("running", true), ("paused", true), ("restarting", true), ("created", false)]
        {
            let expected = if running { Liveness::Running } else { Liveness::Created };
            assert_eq!(liveness(&inspected(&json!({ "Status": status }))).unwrap(), expected, "{status}");
            let listed: ContainerSummary = serde_json::from_value(json!({ "State": status })).unwrap();
            assert_eq!(listed_liveness(&listed), Some(expected), "{status}");
        }
        for status in ["exited", "dead", "removing"] {
            let found = liveness(&inspected(&json!({ "Status": status }))).unwrap();
            assert!(matches!(found, Liveness::Exited(_)), "{status}");
            let listed: ContainerSummary = serde_json::from_value(json!({ "State": status })).unwrap();
            assert_eq!(listed_liveness(&listed), None, "{status}");
        }
        for broken in [json!({}), json!({ "Status": "" })] {
            assert!(matches!(liveness(&inspected(&broken)), Err(EngineError::BadReply { .. })));
        }
        assert!(matches!(liveness(&ContainerInspectResponse::default()), Err(EngineError::BadReply { .. })));
    }

    #[test]
    fn an_exit_tells_code_oom_and_time() {
        let found = inspected(&json!({
            "Status": "exited", "ExitCode": 137, "OOMKilled": true, "FinishedAt": "2026-11-22T10:00:52.553324644Z"
        }));
        let Liveness::Exited(exit) = liveness(&found).unwrap() else { panic!("it has exited") };
        let expected = Exit { code: Some(137), oom_killed: true, finished_at_ms: Some(1_795_341_652_553) };
        assert_eq!(exit, expected);
    }

    #[test]
    fn a_time_that_never_was_is_none() {
        assert_eq!(time_ms("0001-01-01T00:00:00Z"), None);
        assert_eq!(time_ms(""), None);
        assert_eq!(time_ms("2026-11-22T11:00:52.5+01:00"), Some(1_795_341_652_500));
    }

    #[test]
    fn ids_come_from_labels() {
        let sandbox = SandboxId::new(1, [1; 10]);
        let session = SessionId::new(1, [2; 10]);
        let listed = |labels: serde_json::Value| -> ContainerSummary {
            serde_json::from_value(json!({ "Labels": labels })).unwrap()
        };
        let both = listed(json!({ LABEL_SANDBOX: sandbox.as_str(), LABEL_SESSION: session.as_str() }));
        assert_eq!(ids(&both), Some((sandbox.clone(), Some(session))));
        let torn = listed(json!({ LABEL_SANDBOX: sandbox.as_str(), LABEL_SESSION: "?" }));
        assert_eq!(ids(&torn), Some((sandbox, None)));
        assert_eq!(ids(&listed(json!({ LABEL_SANDBOX: "?" }))), None);
        assert_eq!(ids(&listed(json!({}))), None);
    }

    #[test]
    fn usage_leaves_out_the_page_cache_on_both_cgroup_versions() {
        let read = |stats: serde_json::Value, peak: Option<u64>| {
            let memory = json!({ "usage": 1000, "max_usage": peak, "stats": stats });
            let cpu = json!({ "cpu_usage": { "total_usage": 5_000_000 } });
            let all = json!({ "memory_stats": memory, "cpu_stats": cpu, "pids_stats": { "current": 3 } });
            usage(&serde_json::from_value(all).unwrap()).unwrap()
        };
        let first = read(json!({ "total_inactive_file": 400, "inactive_file": 1 }), Some(2000));
        assert_eq!((first.memory_bytes, first.memory_peak_bytes), (600, Some(2000)));
        assert_eq!((first.cpu_micros, first.pids), (5000, 3));
        let second = read(json!({ "inactive_file": 300 }), None);
        assert_eq!((second.memory_bytes, second.memory_peak_bytes), (700, None));
        assert_eq!(read(json!({ "inactive_file": 3000 }), None).memory_bytes, 0);
    }

    #[test]
    fn a_container_that_does_not_run_uses_nothing() {
        // What the engine 20.10 answers for an ended container.
        let ended = json!({
            "read": "0001-01-01T00:00:00Z", "preread": "0001-01-01T00:00:00Z", "pids_stats": {}, "memory_stats": {},
            "cpu_stats": { "cpu_usage": { "total_usage": 0, "usage_in_kernelmode": 0, "usage_in_usermode": 0 } }
        });
        assert_eq!(usage(&serde_json::from_value(ended).unwrap()), None);
    }
}
