//! Asking for work, again and again, and doing each attempt of a run once.

use std::time::Duration;

use caisson_domain::limits::LONG_POLL_MS;
use caisson_domain::protocol::{RunWork, Work, paths};
use http::{Method, StatusCode};
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::diagnostics::say;
use crate::door::Caller;
use crate::inputs::{POLL_LEAST_MS, POLL_SLACK_MS};
use crate::journal::{Progress, Stage};
use crate::run;
use crate::shim::Shim;

/// What becomes of a run that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// It is done.
    Do,
    /// It is over already, or an older attempt than the last.
    Skip,
    /// An earlier shim died over it after the prompt had gone out: only its work is saved.
    Save,
}

/// Does what the gateway gives until it says to end.
pub(crate) async fn work_for_ever(shim: &Shim) {
    let mut caller = Caller::new(&shim.door);
    let mut backoff = Backoff::new();
    let mut last = shim.journal.progress();
    loop {
        let asked = Instant::now();
        match next(&mut caller).await {
            Some(Work::Exit) => return,
            Some(Work::Run(work)) => {
                let plan = plan(last.as_ref(), &work);
                if plan != Plan::Skip {
                    backoff.reset();
                    run::run(shim, &work, plan == Plan::Save).await;
                    last = Some(Progress { run: work.run, attempt: work.attempt, stage: Stage::Finished });
                    continue;
                }
            }
            None => {}
        }
        if asked.elapsed() < Duration::from_millis(POLL_LEAST_MS) {
            tokio::time::sleep(backoff.next()).await;
        }
    }
}

/// Asks once; none if there is nothing to do yet, or nothing that this shim understands.
async fn next(caller: &mut Caller) -> Option<Work> {
    let limit = Duration::from_millis(LONG_POLL_MS + POLL_SLACK_MS);
    // The gateway may be away; the sandbox waits for it.
    let reply = caller.call(Method::GET, paths::NEXT, "", limit).await.ok()?;
    match reply.status {
        StatusCode::NO_CONTENT => None,
        status if status.is_success() => {
            let work = serde_json::from_slice(&reply.body);
            work.inspect_err(|error| say(format_args!("work that this shim does not understand: {error}")))
                .ok()
        }
        _ => {
            say(format_args!("the gateway gives no work: {}", reply.problem().message));
            None
        }
    }
}

/// Decides by the last run of this sandbox; pure.
fn plan(last: Option<&Progress>, work: &RunWork) -> Plan {
    let Some(last) = last.filter(|last| last.run == work.run) else { return Plan::Do };
    match (work.attempt.cmp(&last.attempt), last.stage) {
        (std::cmp::Ordering::Greater, _) => Plan::Do,
        (std::cmp::Ordering::Equal, Stage::Started) => Plan::Save,
        (std::cmp::Ordering::Equal, Stage::Finished) | (std::cmp::Ordering::Less, _) => Plan::Skip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use caisson_domain::id::{Epoch, RunId};
    use caisson_domain::protocol::AgentWork;
    use caisson_domain::workflow::{PermissionMode, Publish};

    fn work(run: &RunId, attempt: i64) -> RunWork {
        RunWork {
            run: run.clone(),
            epoch: Epoch(1),
            attempt,
            prompt: "x".to_owned(),
            agent: AgentWork {
                conversation: String::new(),
                resume: false,
                model: None,
                permission_mode: PermissionMode::Default,
                tools: None,
                disallowed_tools: Vec::new(),
                max_turns: None,
                system_prompt: None,
                mcp_servers: serde_json::Map::new(),
                environment: std::collections::BTreeMap::new(),
            },
            git: None,
            publish: Publish::None,
            timeout_ms: 1,
        }
    }

    #[test]
    fn each_attempt_of_a_run_is_done_once() {
        let (one, two) = (RunId::new(1, [0; 10]), RunId::new(2, [0; 10]));
        let last = |stage| Progress { run: one.clone(), attempt: 2, stage };
        assert_eq!(plan(None, &work(&one, 1)), Plan::Do);
        for (stage, attempt, expected) in [
            (Stage::Finished, 1, Plan::Skip),
            (Stage::Finished, 2, Plan::Skip),
            (Stage::Finished, 3, Plan::Do),
            (Stage::Started, 1, Plan::Skip),
            (Stage::Started, 2, Plan::Save),
            (Stage::Started, 3, Plan::Do),
        ] {
            assert_eq!(plan(Some(&last(stage)), &work(&one, attempt)), expected, "{stage:?} {attempt}");
        }
        assert_eq!(plan(Some(&last(Stage::Started)), &work(&two, 1)), Plan::Do);
    }
}
