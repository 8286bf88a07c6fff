//! Commits that the run's parameters name: each has a ref of its own before the agent starts. A clone has one branch, and an agent that
//! only reads could fetch no other.

use caisson_domain::git::BranchName;
use caisson_domain::revision::is_revision;
use caisson_domain::run::{Failure, FailureKind};

use crate::git::{Git, is_object_name};

/// What the refs begin with; the parameter's name is behind it.
const KEPT: &str = "refs/caisson/revision";
/// Where one is put that has just come.
const FETCHED: &str = "refs/caisson/fetched";

/// Fetches what is named and not there, and keeps all of it; an empty name is the anchor's commit.
///
/// # Errors
/// [`Failure`] for people; `setup_failed` if the repository has no such commit.
///
/// # Cancel safety
/// May be given up at any point and done again.
pub(crate) async fn keep(git: &Git, anchor: Option<&str>) -> Result<(), Failure> {
    for (parameter, wanted) in &git.work.revisions {
        let kept = format!("{KEPT}/{parameter}");
        let found = match (wanted.as_str(), anchor) {
            ("", anchor) => anchor.map(str::to_owned),
            (wanted, _) => Some(find(git, parameter, wanted).await?),
        };
        match &found {
            Some(commit) => drop(git.run(&["update-ref", &kept, commit]).await?),
            // One that a run before has kept is not this one's.
            None => drop(git.attempt(&["update-ref", "-d", &kept]).await?),
        }
    }
    Ok(())
}

async fn find(git: &Git, parameter: &str, wanted: &str) -> Result<String, Failure> {
    let message = absent(parameter, wanted);
    let failed = || Failure::new(FailureKind::SetupFailed, message.as_str());
    if !is_revision(wanted) {
        return Err(failed());
    }
    let whole = is_object_name(wanted);
    if whole && let Some(known) = git.resolve(wanted).await? {
        return Ok(known);
    }
    let mut found = Vec::new();
    for from in sources(wanted) {
        let output =
            git.talk(&["fetch", "--quiet", "--no-tags", &git.url(), &format!("+{from}:{FETCHED}")]).await?;
        if output.exit.success() {
            // A tag may be of something else than a commit.
            found.push(git.resolve(FETCHED).await?.ok_or_else(failed)?);
        } else if whole || !output.stderr.contains("couldn't find remote ref") {
            return Err(git.refusal(FailureKind::SetupFailed, &message, &output));
        }
    }
    // By no other name: a branch that the clone has may have moved on, or be gone.
    if !whole && is_of_the_clone(wanted) {
        found.extend(git.resolve(wanted).await?);
    }
    found.sort();
    found.dedup();
    // Whoever may push a branch must not decide what a tag's name, or a commit's, means.
    if found.len() > 1 {
        return Err(Failure::new(FailureKind::SetupFailed, ambiguous(parameter, wanted, &found)));
    }
    found.pop().ok_or_else(failed)
}

/// What is asked of the git host for a name.
fn sources(wanted: &str) -> Vec<String> {
    if is_object_name(wanted) {
        return vec![wanted.to_owned()];
    }
    let named = wanted.parse::<BranchName>();
    named.map_or_else(|_| Vec::new(), |name| vec![name.full_ref(), format!("refs/tags/{name}")])
}

/// Whether a name says the same in every clone that has the commit: the beginning of the commit's own, or its distance from `HEAD`.
fn is_of_the_clone(wanted: &str) -> bool {
    let is_beginning = wanted.len() >= 4 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_beginning || wanted.starts_with("HEAD")
}

fn absent(parameter: &str, wanted: &str) -> String {
    format!(
        "the parameter \"{parameter}\" names \"{wanted}\", which is no branch, tag or commit of the repository; name one that it has, \
         and a commit of another branch by its whole name"
    )
}

fn ambiguous(parameter: &str, wanted: &str, found: &[String]) -> String {
    format!(
        "the parameter \"{parameter}\" names \"{wanted}\", which is the name of more than one commit of the repository ({}): a branch, a tag or \
         the beginning of a commit's own name; name the commit by its whole name",
        found.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_where_it_can_only_mean_one_commit() {
        assert_eq!(sources("release/1"), ["refs/heads/release/1", "refs/tags/release/1"]);
        let whole = "c0ffee".repeat(7)[..40].to_owned();
        assert_eq!(sources(&whole), [whole.as_str()]);
        for of_the_clone in ["HEAD~2", "HEAD^"] {
            assert!(sources(of_the_clone).is_empty() && is_of_the_clone(of_the_clone));
        }
        assert!(is_of_the_clone("c0ffee1"));
        for other in ["main", "main~1", "abc", "v1"] {
            assert!(!is_of_the_clone(other), "{other}");
        }
    }
}
