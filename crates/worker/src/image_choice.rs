//! What becomes of a run whose repository asks for another image than its sandbox has.
//!
//! It is the sandbox's word, so it opens nothing but what the operator lets every repository choose, once, for a run that
//! names no image itself.

use caisson_domain::image::ImageWish;
use caisson_domain::run::{Failure, FailureKind, RunStatus};
use caisson_store::{Finish, Progress};

use crate::attempt::Attempt;
use crate::context::Halt;
use crate::judge::{Verdict, late_wish};

/// Notes the image for the run's next sandbox and has the run go back to the queue, or ends it. None if the run is lost.
pub(crate) async fn judge(
    attempt: &Attempt,
    progress: &Progress,
    wish: &ImageWish,
) -> Result<Option<Verdict>, Halt> {
    if progress.cancel_requested {
        let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
        return Ok(Some(Verdict::Finish(finish)));
    }
    if progress.agent_started {
        return Ok(Some(failed(late_wish())));
    }
    if let Some(failure) = settled(attempt, wish) {
        return Ok(Some(failed(failure)));
    }
    let config = &attempt.ctx.config;
    // The default one may be named by all.
    let is_default = config.default_image.as_ref() == Some(&wish.image);
    if !is_default && let Err(failure) = wish.check(&config.repository_images) {
        return Ok(Some(failed(failure)));
    }
    let (store, run, epoch) = (&attempt.ctx.store, &attempt.run.id, attempt.epoch);
    let choose = || store.choose_image(run, epoch, &wish.image);
    if !attempt.ctx.insist("note the image that a repository chose", choose).await? {
        return Ok(None);
    }
    let reason = format!("its repository chose the image {}", wish.image);
    Ok(Some(Verdict::Requeue { reason, delay_ms: 0 }))
}

/// Why there is nothing left to choose, which the shim is told with its work: then no shim has a wish. The image that was
/// noted already may be wished for again: whoever noted it may have died before the run went back to the queue.
fn settled(attempt: &Attempt, wish: &ImageWish) -> Option<Failure> {
    let run = &attempt.run;
    let named = run.spec.image.as_ref().map(|image| ("the run itself names", image));
    let chosen = run.repository_image.as_ref().filter(|image| **image != wish.image);
    let (who, image) = named.or_else(|| Some(("its repository has chosen", chosen?)))?;
    let message = format!(
        "the sandbox asked for the image \"{}\", but {who} \"{image}\", which stays; something in the sandbox speaks for its shim",
        wish.image.escape_debug()
    );
    Some(Failure::new(FailureKind::PolicyDenied, message))
}

fn failed(failure: Failure) -> Verdict {
    Verdict::Finish(Finish { status: RunStatus::Failed, failure: Some(failure), result: None })
}
