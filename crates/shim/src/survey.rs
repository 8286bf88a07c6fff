//! What the agent left in the repository: where `HEAD` is, what is not committed, which commits are new.

use caisson_domain::protocol::MessageAuthor;
use caisson_domain::run::Failure;

use crate::failure::git_command;
use crate::git::Git;

/// Most new commits whose messages are looked at and told of.
pub(crate) const COMMITS: usize = 1000;

/// A commit of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Its id.
    pub(crate) id: String,
    /// Its parents' ids.
    pub(crate) parents: Vec<String>,
    /// Its whole message.
    pub(crate) message: String,
    /// Who wrote the message.
    pub(crate) author: MessageAuthor,
}

/// What `git status` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Status {
    /// The commit at `HEAD`; none before the first.
    pub(crate) head: Option<String>,
    /// The branch that `HEAD` is on; none if it is on none.
    pub(crate) branch: Option<String>,
    /// Whether something is not committed.
    pub(crate) dirty: bool,
    /// Files with an unfinished merge.
    pub(crate) unmerged: Vec<String>,
}

/// What is new.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Where things are.
    pub(crate) status: Status,
    /// Commits since the base, oldest first, at most [`COMMITS`].
    pub(crate) commits: Vec<Commit>,
    /// Whether there are more.
    pub(crate) more: bool,
    /// Whether `HEAD` contains the base.
    pub(crate) on_base: bool,
}

/// Looks at the repository. Both commands run at once: this is on the way between the agent's last word and the push.
///
/// # Errors
/// [`Failure`] if git fails.
pub(crate) async fn survey(git: &Git, base: Option<&str>) -> Result<Survey, Failure> {
    let range = base.map_or_else(|| "HEAD".to_owned(), |base| format!("{base}...HEAD"));
    let most = format!("--max-count={}", COMMITS + 1);
    let log = [
        "log",
        "-z",
        "--left-right",
        "--topo-order",
        "--no-color",
        "--encoding=UTF-8",
        &most,
        "--format=%m%H %P%n%B",
        &range,
        "--",
    ];
    let status = [
        "status",
        "--porcelain=v2",
        "--branch",
        "-z",
        "--untracked-files=normal",
        "--ignore-submodules=dirty",
    ];
    let (status, log) = tokio::join!(git.attempt(&status), git.attempt(&log));
    let (status, log) = (status?, log?);
    if !status.exit.success() {
        return Err(git_command("status", &status.stderr));
    }
    let status = read_status(&status.stdout);
    if status.head.is_none() {
        return Ok(Survey { status, on_base: base.is_none(), ..Survey::default() });
    }
    if !log.exit.success() {
        return Err(git_command("log", &log.stderr));
    }
    let (commits, behind) = read_log(&log.stdout);
    let (commits, more) = bounded(commits, behind, log.cut);
    let on_base = match base {
        Some(base) if more => {
            git.attempt(&["merge-base", "--is-ancestor", base, "HEAD"]).await?.exit.success()
        }
        Some(_) | None => behind == 0,
    };
    Ok(Survey { status, commits, more, on_base })
}

/// The newest [`COMMITS`], oldest first, and whether there are more; pure.
fn bounded(mut commits: Vec<Commit>, behind: usize, cut: bool) -> (Vec<Commit>, bool) {
    if cut {
        // It may be half there.
        commits.pop();
    }
    let more = cut || commits.len() + behind > COMMITS;
    commits.truncate(COMMITS);
    commits.reverse();
    (commits, more)
}

/// Reads `git status --porcelain=v2 --branch -z`; pure.
fn read_status(output: &[u8]) -> Status {
    let mut status = Status::default();
    let text = String::from_utf8_lossy(output);
    let mut records = text.split('\0');
    while let Some(record) = records.next() {
        let Some((kind, rest)) = record.split_once(' ') else { continue };
        match kind {
            "#" => {
                if let Some(oid) = rest.strip_prefix("branch.oid ") {
                    status.head = (oid != "(initial)").then(|| oid.to_owned());
                } else if let Some(name) = rest.strip_prefix("branch.head ") {
                    status.branch = (name != "(detached)").then(|| name.to_owned());
                }
            }
            "u" => {
                status.dirty = true;
                status.unmerged.extend(rest.splitn(10, ' ').last().map(str::to_owned));
            }
            _ => status.dirty = true,
        }
        if kind == "2" {
            // A rename names its old path in a record of its own.
            records.next();
        }
    }
    status
}

/// Reads the log: commits that only `HEAD` has, newest first, and how many only the base has; pure.
fn read_log(output: &[u8]) -> (Vec<Commit>, usize) {
    let text = String::from_utf8_lossy(output);
    let (mut commits, mut behind) = (Vec::new(), 0);
    for record in text.split('\0') {
        let (ids, message) = record.split_once('\n').unwrap_or((record, ""));
        if ids.starts_with('<') {
            behind += 1;
            continue;
        }
        let mut ids = ids.trim_start_matches('>').split_ascii_whitespace().map(str::to_owned);
        let Some(id) = ids.next() else { continue };
        let message = message.trim_end().to_owned();
        commits.push(Commit { id, parents: ids.collect(), message, author: MessageAuthor::Agent });
    }
    (commits, behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_tree_on_a_branch_and_one_before_its_first_commit() {
        let status = read_status(b"# branch.oid abc\0# branch.head fix/x\0");
        assert_eq!((status.head.as_deref(), status.branch.as_deref()), (Some("abc"), Some("fix/x")));
        assert!(!status.dirty);
        let status = read_status(b"# branch.oid (initial)\0# branch.head (detached)\0");
        assert_eq!(status, Status::default());
    }

    #[test]
    fn every_kind_of_change_is_seen_and_unmerged_files_are_named() {
        let one = b"1 .M N... 100644 100644 100644 a b f.txt\0".as_slice();
        let renamed = b"2 R. N... 100644 100644 100644 a b R100 new name\0# branch.head lie\0".as_slice();
        let untracked = b"? x y\0".as_slice();
        for change in [one, renamed, untracked] {
            let status = read_status(&[b"# branch.head main\0", change].concat());
            assert!(status.dirty && status.unmerged.is_empty());
            assert_eq!(status.branch.as_deref(), Some("main"));
        }
        let unmerged = read_status(b"u UU N... 100644 100644 100644 100644 a b c e.txt\0");
        assert_eq!(unmerged.unmerged, ["e.txt"]);
        let spaced = read_status(b"u UU N... 100644 100644 100644 100644 a b c my file.txt\0");
        assert_eq!(spaced.unmerged, ["my file.txt"]);
    }

    #[test]
    fn commits_up_to_the_bound_are_all_there_is_to_know() {
        let commits = |count: usize| {
            let log: Vec<_> = (0..count).map(|number| format!(">{number} p\nfix: x\n\0")).collect();
            read_log(log.concat().as_bytes()).0
        };
        let (all, more) = bounded(commits(COMMITS), 0, false);
        assert_eq!((all.len(), all[0].id.as_str(), more), (COMMITS, "999", false));
        assert_eq!(bounded(commits(COMMITS + 1), 0, false).0.len(), COMMITS);
        assert!(bounded(commits(COMMITS + 1), 0, false).1);
        assert!(bounded(commits(COMMITS), 1, false).1);
        let (half, more) = bounded(commits(3), 0, true);
        assert_eq!((half.len(), more), (2, true));
    }

    #[test]
    fn the_log_tells_both_sides_apart() {
        let log = b">bbb aaa\nfix: two\n\nbody\n\0>aaa 000 111\nmerge\n\0<ccc 000\nother\n";
        let (commits, behind) = read_log(log);
        assert_eq!(behind, 1);
        assert_eq!(commits[0].message, "fix: two\n\nbody");
        assert_eq!(commits[1].parents, ["000", "111"]);
        assert_eq!(read_log(b""), (Vec::new(), 0));
    }
}
