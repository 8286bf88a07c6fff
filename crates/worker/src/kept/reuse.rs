//! Gives a run the sandbox of its session's last one.

use caisson_domain::event::EventKind;
use caisson_domain::id::SandboxId;
use caisson_domain::run::RunSpec;
use caisson_store::SandboxState;
use serde_json::json;
use tracing::{info, warn};

use super::Waiting;
use crate::attempt::Attempt;
use crate::context::{Context, Halt};
use crate::place::Placing;
use crate::steps::Step;
use crate::teardown;

/// Places the run in the sandbox that waits for it; none if there is none that the run could have. One that it could not have is
/// ended, since its workspace is the run's.
pub(crate) async fn reuse(attempt: &Attempt) -> Result<Option<Placing>, Halt> {
    let (ctx, run) = (&attempt.ctx, &attempt.run);
    let Some(mut waiting) = ctx.kept.take_of(&run.session) else { return Ok(None) };
    let sandbox = waiting.hold.sandbox().clone();
    let may_have = fits(&waiting.spec, &run.spec) && {
        let (quiet, at_home) = tokio::join!(is_quiet(ctx, &mut waiting), is_at_home(attempt, &sandbox));
        quiet && at_home?
    };
    let Waiting { hold, since, .. } = waiting;
    if !may_have {
        info!(run.id = %run.id, sandbox.id = %sandbox, "run {} cannot have sandbox {sandbox}, which waited for it", run.id);
        // One that cannot be removed stands in the way of the next one, and is seen to there.
        teardown::destroy(ctx, hold).await;
        return Ok(None);
    }
    let (store, epoch, placed_in) = (&ctx.store, attempt.epoch, &sandbox);
    if !ctx.insist("place a run", move || store.place(&run.id, epoch, placed_in)).await? {
        return Ok(Some(Placing::Lost));
    }
    ctx.step(Step::Placed).await;
    let waited_ms = i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX);
    info!(run.id = %run.id, sandbox.id = %sandbox, waited_ms, "run {} goes on in sandbox {sandbox}", run.id);
    // The shim has begun already.
    let told = attempt.tell(&sandbox, EventKind::SandboxReused, json!({ "waited_ms": waited_ms })).await?;
    Ok(Some(if told { Placing::Placed(hold) } else { Placing::Lost }))
}

/// Whether nothing lives or works in it that may not, seen once more and from outside.
async fn is_quiet(ctx: &Context, waiting: &mut Waiting) -> bool {
    let sandbox = waiting.hold.sandbox().clone();
    let why = match ctx.usage(&sandbox).await {
        Some(usage) => waiting.look(&usage),
        None => Some("the engine does not tell what goes on in it"),
    };
    if let Some(why) = why {
        warn!(sandbox.id = %sandbox, "sandbox {sandbox} waits no longer: {why}");
    }
    why.is_none()
}

/// Whether nobody has told it to end, and no agent of the session has worked elsewhere since.
async fn is_at_home(attempt: &Attempt, sandbox: &SandboxId) -> Result<bool, Halt> {
    let (ctx, run) = (&attempt.ctx, &attempt.run);
    let store = &ctx.store;
    let row = ctx.insist("read a sandbox", move || store.sandbox(sandbox)).await?;
    if row.is_none_or(|row| row.state != SandboxState::Running) {
        return Ok(false);
    }
    let home = ctx.insist("look for a session's home", move || store.session_home(&run.session, &run.id));
    Ok(home.await?.as_ref() == Some(&ctx.config.server))
}

/// Whether a run could have been done in the same sandbox by the same agent: everything is the same but for what
/// concerns one run alone.
fn fits(last: &RunSpec, next: &RunSpec) -> bool {
    let of_one_run = RunSpec {
        prompt: next.prompt.clone(),
        timeout_s: next.timeout_s,
        budget_micro_usd: next.budget_micro_usd,
        budget_soft_percent: next.budget_soft_percent,
        priority: next.priority,
        start_at_ms: next.start_at_ms,
        attachments: next.attachments.clone(),
        ..last.clone()
    };
    of_one_run == *next
}

#[cfg(test)]
mod tests {
    use super::super::shelf::tests::spec;
    use super::*;
    use caisson_domain::attachment::{Attachment, AttachmentKind};

    fn attachment() -> Attachment {
        let (name, sha256) = ("a".to_owned(), "0".repeat(64));
        Attachment { number: 0, name, kind: AttachmentKind::File, media_type: None, size_bytes: 1, sha256 }
    }

    #[test]
    fn only_what_concerns_one_run_may_differ() {
        let last = spec();
        let with = |change: fn(&mut RunSpec)| {
            let mut next = spec();
            change(&mut next);
            assert_ne!(last, next);
            fits(&last, &next)
        };
        assert!(fits(&last, &last));
        for change in [
            (|next| next.prompt.push_str("and more")) as fn(&mut RunSpec),
            |next| next.timeout_s += 1,
            |next| next.budget_micro_usd = Some(1),
            |next| next.budget_soft_percent = Some(1),
            |next| next.priority += 1,
            |next| next.start_at_ms = Some(1),
            |next| next.attachments.push(attachment()),
        ] {
            assert!(with(change));
        }
        for change in [
            (|next| next.model = Some("another".to_owned())) as fn(&mut RunSpec),
            |next| next.max_turns = Some(99),
            |next| next.image = Some("another".to_owned()),
            |next| next.resources.memory_mib += 1,
            |next| drop(next.environment.insert("A".to_owned(), "b".to_owned())),
            |next| next.output_schema = Some(json!({ "type": "object" })),
            |next| next.workflow_version = Some(99),
            |next| next.workflow.prompt.push_str("Be quick."),
            |next| next.workflow.tools = Some(vec!["Bash".to_owned()]),
            |next| drop(next.parameters.insert("what".to_owned(), json!(1))),
            |next| next.anchor = Some("another".parse().unwrap()),
        ] {
            assert!(!with(change));
        }
    }
}
