//! Commits that the run's parameters name: each has a ref of its own before the agent starts. A clone has one branch, and an agent that
//! only reads could fetch no other.

use caisson_domain::git::BranchName;
use caisson_domain::revision::is_revision;
use caisson_domain::run::{Failure, FailureKind};

use crate::git::{Git, is_object_name};

/// What the refs begin with; the parameter's name is behind it.
const KEPT: &str = "refs/caisson/revision";
/// What a distance from the run's own commit begins with.
const FROM_HEAD: &str = "HEAD";
/// From how many digits on a name is more likely the beginning of a commit's own than a branch's. Source: git abbreviates to no fewer.
const ABBREVIATED: usize = 7;
/// Most objects with one beginning that are looked at.
const OBJECTS: usize = 64;
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
    if is_beginning(wanted) {
        let begun = beginning_with(git, wanted).await?;
        // Another clone may have a commit that begins so.
        if begun.is_empty() && !found.is_empty() && wanted.len() >= ABBREVIATED {
            return Err(Failure::new(FailureKind::SetupFailed, unclear(parameter, wanted)));
        }
        found.extend(begun);
    } else if wanted.starts_with(FROM_HEAD) {
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

/// The commits of the clone whose own names begin so; what branches are called does not count.
async fn beginning_with(git: &Git, beginning: &str) -> Result<Vec<String>, Failure> {
    let listed = git.run(&["rev-parse", &format!("--disambiguate={beginning}")]).await?;
    let mut commits = Vec::new();
    for object in listed.lines().take(OBJECTS) {
        // A tag is no commit, and what it names has its own name.
        if git.run(&["cat-file", "-t", object]).await? == "commit" {
            commits.push(object.to_owned());
        }
    }
    Ok(commits)
}

/// What is asked of the git host for a name.
fn sources(wanted: &str) -> Vec<String> {
    if is_object_name(wanted) {
        return vec![wanted.to_owned()];
    }
    let named = wanted.parse::<BranchName>();
    named.map_or_else(|_| Vec::new(), |name| vec![name.full_ref(), format!("refs/tags/{name}")])
}

/// Whether a name may be the beginning of a commit's own, which is the same in every clone that has the commit.
fn is_beginning(wanted: &str) -> bool {
    wanted.len() >= 4 && !is_object_name(wanted) && wanted.bytes().all(|byte| byte.is_ascii_hexdigit())
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

fn unclear(parameter: &str, wanted: &str) -> String {
    format!(
        "the parameter \"{parameter}\" names \"{wanted}\", which is a branch or tag of the repository, and may as well be the beginning of a \
         commit's own name that the run's branch does not have; name the commit by its whole name"
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
        assert!(sources("HEAD~2").is_empty() && sources("HEAD^").is_empty());
        assert!(is_beginning("c0ffee1") && is_beginning("c0ff"));
        for other in ["main", "main~1", "abc", "v1", whole.as_str()] {
            assert!(!is_beginning(other), "{other}");
        }
    }
}
