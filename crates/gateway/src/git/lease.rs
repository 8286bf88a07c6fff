//! Whether a push may take commits away from its branch.
//!
//! Only what a run has pushed itself: its session made the branch, the branch is where the run's last push put it (the
//! push's own old id is the lease, which the host compares once more), and what was there before the run stays.

use caisson_domain::checks::{Check, stands};
use caisson_domain::id::RunId;
use caisson_domain::run::Run;
use caisson_store::{Push, SessionPush};

use super::inspect::{Case, Inspector};
use super::objects::{Contents, Id};
use super::receive::Denial;
use crate::hold::hold;
use crate::problem::Refusal;
use crate::shared::Shared;

/// Why a push is not forwarded.
pub(super) enum Unfit {
    Denied(Denial),
    Refused(Refusal),
}

/// What the session's earlier pushes say about one that takes commits away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// It may.
    Granted,
    /// It may if it comes after this commit, at which the branch was before the run.
    After(Id),
    Refused,
}

/// `true` if the push takes commits away and may. A push that only adds is `false`.
pub(super) async fn judge(
    shared: &Shared,
    run: &Run,
    push: &Push,
    (inspector, case, contents): (&Inspector, &Case<'_>, &Contents),
) -> Result<bool, Unfit> {
    let (Some(old), Some(new)) = (Id::parse(&push.old), Id::parse(&push.new)) else {
        // The branch is new.
        return Ok(false);
    };
    if contents.reaches(new, old) {
        return Ok(false);
    }
    let asked = hold(&shared.cancel, shared.bounds.store_hold, || {
        shared.store.session_pushes(&run.session, &push.ref_name)
    });
    let earlier = asked.await.map_err(|error| Unfit::Refused(Refusal::store(&error)))?;
    match leave(&run.id, push, &earlier) {
        Leave::Granted => return Ok(true),
        Leave::After(start) if contents.reaches(new, start) => return Ok(true),
        Leave::After(_) | Leave::Refused => {}
    }
    if !stands(Check::Rewrites) {
        return Ok(true);
    }
    // The way from one to the other may lead through commits that the host has and the push has not.
    match inspector.comes_after(case, contents, (new, old)).await {
        Ok(true) => return Ok(false),
        Ok(false) => {}
        Err(error) => {
            let error = case.secrets.none_in(error.to_string());
            tracing::warn!(run.id = %run.id, %error, "the history of a push's branch is unknown");
        }
    }
    let branch = push.ref_name.trim_start_matches("refs/heads/");
    let reason = format!(
        "the push takes commits away from {branch} that this run did not push; fetch the branch, put the work on top of \
         it and push without --force"
    );
    Err(Unfit::Denied(Denial::new(&push.ref_name, "no_rewrite", reason)))
}

/// `earlier`: what was taken, oldest first.
fn leave(run: &RunId, push: &Push, earlier: &[SessionPush]) -> Leave {
    let made_here = earlier.first().is_some_and(|first| is_none(&first.push.old));
    let own = earlier.iter().find(|earlier| earlier.run == *run);
    let last = earlier.last().filter(|last| last.run == *run && last.push.new == push.old);
    match (made_here, own, last) {
        (true, Some(own), Some(_)) => Id::parse(&own.push.old).map_or(Leave::Granted, Leave::After),
        (_, _, _) => Leave::Refused,
    }
}

fn is_none(object: &str) -> bool {
    object.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(digit: char) -> String {
        digit.to_string().repeat(40)
    }

    fn earlier(run: &RunId, old: char, new: char) -> SessionPush {
        SessionPush { run: run.clone(), push: asked(old, new) }
    }

    fn asked(old: char, new: char) -> Push {
        Push { ref_name: "refs/heads/x".to_owned(), old: commit(old), new: commit(new) }
    }

    #[test]
    fn a_run_takes_away_what_it_has_pushed_itself_and_nothing_else() {
        let (run, other) = (RunId::new(1, [1; 10]), RunId::new(1, [2; 10]));
        let of = |earlier: &[SessionPush]| leave(&run, &asked('3', '4'), earlier);
        let own = [earlier(&run, '0', '2'), earlier(&run, '2', '3')];
        assert_eq!(of(&own), Leave::Granted);
        assert_eq!(of(&own[..1]), Leave::Refused, "the branch is elsewhere");
        assert_eq!(of(&[]), Leave::Refused, "nobody knows who made the branch");
        let found = [earlier(&run, '1', '2'), earlier(&run, '2', '3')];
        assert_eq!(of(&found), Leave::Refused, "the branch was there before the session");
        let before = [earlier(&other, '0', '2'), earlier(&run, '2', '3')];
        assert_eq!(of(&before), Leave::After(Id::parse(&commit('2')).unwrap()));
        let not_yet = [earlier(&other, '0', '2'), earlier(&other, '2', '3')];
        assert_eq!(of(&not_yet), Leave::Refused, "an earlier run's commits are history");
    }
}
