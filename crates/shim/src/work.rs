//! Asking for work, again and again, and doing each attempt of a run once.

use std::time::Duration;

use caisson_domain::id::RunId;
use caisson_domain::limits::LONG_POLL_MS;
use caisson_domain::protocol::{RunWork, Work, paths};
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::diagnostics::Complaint;
use crate::door::Caller;
use crate::inputs::{POLL_LEAST_MS, POLL_SLACK_MS};
use crate::run;
use crate::shim::Shim;

/// What becomes of a run that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// It is done.
    Do,
    /// It is over already, or an older attempt than the last.
    Skip,
}

/// Does what the gateway gives until it says to end.
pub(crate) async fn work_for_ever(shim: &Shim) {
    let mut caller = Caller::new(&shim.door);
    let mut backoff = Backoff::new();
    let mut complaint = Complaint::default();
    let mut last = None;
    loop {
        let asked = Instant::now();
        match next(&mut caller, &mut complaint).await {
            Some(Work::Exit) => return,
            Some(Work::Run(work)) => {
                let plan = plan(last.as_ref(), &work);
                if plan != Plan::Skip {
                    Box::pin(run::run(shim, &work)).await;
                    last = Some((work.run, work.attempt));
                    continue;
                }
            }
            None => {}
        }
        if asked.elapsed() >= Duration::from_millis(POLL_LEAST_MS) {
            backoff.reset();
        } else {
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

/// Asks once; none if there is nothing to do yet, or nothing that this shim understands.
async fn next(caller: &mut Caller, complaint: &mut Complaint) -> Option<Work> {
    let limit = Duration::from_millis(LONG_POLL_MS + POLL_SLACK_MS);
    // The gateway may be away; the sandbox waits for it.
    let reply = caller.call(Method::GET, paths::NEXT, "", limit).await.ok()?;
    match reply.status {
        StatusCode::NO_CONTENT => None,
        status if status.is_success() => {
            let work = serde_json::from_slice(&reply.body);
            work.inspect_err(|error| {
                complaint.say(format_args!("work that this shim does not understand: {error}"));
            })
            .ok()
        }
        _ => {
            complaint.say(format_args!("the gateway gives no work: {}", reply.problem().message));
            None
        }
    }
}

/// Decides by the last run of this sandbox and its attempt; pure.
fn plan(last: Option<&(RunId, i64)>, work: &RunWork) -> Plan {
    match last {
        Some((run, attempt)) if *run == work.run && work.attempt <= *attempt => Plan::Skip,
        Some(_) | None => Plan::Do,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use caisson_domain::id::Epoch;
    use caisson_domain::protocol::AgentWork;
    use caisson_domain::workflow::{PermissionMode, Publish};

    pub(crate) fn work(run: &RunId, attempt: i64) -> RunWork {
        RunWork {
            run: run.clone(),
            epoch: Epoch(1),
            attempt,
            workflow: "w".to_owned(),
            prompt: "x".to_owned(),
            attachments: Vec::new(),
            agent: AgentWork {
                conversation: String::new(),
                resume: false,
                archive: None,
                model: None,
                permission_mode: PermissionMode::Default,
                tools: None,
                disallowed_tools: Vec::new(),
                allowed_tools: Vec::new(),
                max_turns: None,
                system_prompt: None,
                mcp_servers: serde_json::Map::new(),
                mcp_http: Vec::new(),
                mcp_required: Vec::new(),
                environment: std::collections::BTreeMap::new(),
                approvals: None,
            },
            git: None,
            publish: Publish::None,
            trust: caisson_domain::trust::Trust::default(),
            forbidden_paths: Vec::new(),
            workspace: caisson_domain::workflow::WorkspaceAccess::ReadWrite,
            image: None,
            may_choose_image: false,
            output_schema: None,
            checks: Vec::new(),
            check_turns: 1,
            timeout_ms: 1,
            keep: false,
        }
    }

    #[test]
    fn each_attempt_of_a_run_is_done_once() {
        let (one, two) = (RunId::new(1, [0; 10]), RunId::new(2, [0; 10]));
        assert_eq!(plan(None, &work(&one, 1)), Plan::Do);
        let last = (one.clone(), 2);
        for (attempt, expected) in [(1, Plan::Skip), (2, Plan::Skip), (3, Plan::Do)] {
            assert_eq!(plan(Some(&last), &work(&one, attempt)), expected, "{attempt}");
        }
        assert_eq!(plan(Some(&last), &work(&two, 1)), Plan::Do);
    }
}
