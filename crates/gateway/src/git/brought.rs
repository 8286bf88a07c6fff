//! What a push brings to its branch from elsewhere on the host: a commit that is there already, such as the head of a
//! stranger's change request, pushed as it is, with no pack, or merged in.
//!
//! Its commits are nobody's in the push, so that no comparison commit by commit finds what they changed. So the tree of what
//! is pushed is compared with trees that people stand for: the branch's, and those of the run's base branch and of the default
//! branch as the host has them. Of a branch that is not there yet, also with what it begins with, if that is a commit of these
//! branches, or one that a session has pushed, of which the same was asked. What equals one of them is nothing new.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use caisson_domain::git::BranchName;
use caisson_domain::globs::Globs;
use caisson_domain::run::Run;
use caisson_store::{Push, StoreError};

use super::apart::work;
use super::commit::CommitFacts;
use super::compare::{Base, Change, CompareError, Comparison};
use super::finding::{FINDINGS, Finding, Forbids, Place};
use super::heads;
use super::inspect::{Case, Inspector, place};
use super::objects::{Contents, Id};
use super::submodules::{GITMODULES_BYTES, is_allowed, is_gitmodules};
use crate::hold::hold;
use crate::shared::Shared;

/// Most commits that a new branch begins with beside the newest ones: of more, none is looked for in the history of the host's
/// branches.
const BEGINNINGS: usize = 4;

/// Where a push begins, by what nobody in the sandbox says.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What the branch is to be at.
    tip: Option<Id>,
    /// What it is at, which the host compares once more; none if it is not there.
    old: Option<Id>,
    /// Of a branch that is not there: what its session has pushed to it before, and the session that it was forked from; and
    /// what a fork begins with, if that had been pushed.
    own: HashSet<Id>,
    /// The run's base branch, as a full ref.
    base: Option<String>,
}

/// What a push is compared with since it may bring something from elsewhere.
#[derive(Debug)]
pub(super) struct Foreign {
    tip: Id,
    /// What may be brought; empty where the host's HEAD names no branch that there is.
    references: Vec<Id>,
}

impl Standing {
    /// # Errors
    /// The store does not answer.
    /// # Cancel safety
    /// Safe: it only reads.
    pub(super) async fn of(shared: &Shared, run: &Run, push: &Push) -> Result<Self, StoreError> {
        let old = Id::parse(&push.old);
        let own = match old {
            Some(_) => HashSet::new(),
            None => {
                hold(&shared.cancel, shared.bounds.store_hold, || pushed_before(shared, run, &push.ref_name))
                    .await?
            }
        };
        let base = run.spec.base.as_ref().map(BranchName::full_ref);
        Ok(Self { tip: Id::parse(&push.new), old, own, base })
    }

    /// Whether it is a commit that the branch has, or had, as far as this is known without asking the host.
    fn has(&self, id: Id) -> bool {
        self.old.map_or_else(|| self.own.contains(&id), |old| old == id)
    }
}

/// What a new branch may begin with: its session's pushes to it, those of the session that this one was forked from, and what it
/// began with itself if that had been pushed: also where that session is a fork itself, or deleted.
async fn pushed_before(shared: &Shared, run: &Run, ref_name: &str) -> Result<HashSet<Id>, StoreError> {
    let store = &shared.store;
    let mut pushes = store.session_pushes(&run.session, ref_name).await?;
    let session = store.session(&run.project, &run.session).await?;
    if let Some(origin) = session.and_then(|session| session.forked_from)
        && let Some(origin) = store.session(&run.project, &origin).await?
        && let Some(branch) = &origin.branch
    {
        pushes.extend(store.session_pushes(&origin.id, &branch.full_ref()).await?);
    }
    let begun = store.pushed_fork_commit(&run.session).await?;
    let commits = pushes.iter().map(|pushed| pushed.push.new.as_str());
    Ok(commits.chain(begun.as_deref()).filter_map(Id::parse).collect())
}

/// Paths that no push changes.
#[derive(Debug, Clone)]
struct Forbidden {
    server: Arc<Globs>,
    workflow: Arc<Globs>,
}

impl Forbidden {
    /// Who forbids the path: a workflow adds to what the server forbids, and takes nothing away.
    fn forbid(&self, path: &[u8]) -> Option<Forbids> {
        if self.server.cover(path) {
            return Some(Forbids::Server);
        }
        self.workflow.cover(path).then_some(Forbids::Workflow)
    }
}

impl Foreign {
    /// What is needed of the host's commits to compare them.
    pub(super) fn commits(&self) -> Vec<Id> {
        self.references.iter().copied().chain([self.tip]).collect()
    }
}

impl Inspector {
    /// What to compare the push with, if its commits build on others than the branch's and the newest of the host's branches.
    /// If they do not, everything at a path is what one of these has, or what a commit of the push made of it. `upstream` are
    /// commits in the push that the host's branches have; `round` tells this question from another one about the push.
    pub(super) async fn find_foreign(
        &self,
        (case, comparison): (&Case<'_>, &Comparison<'_>),
        contents: &Contents,
        upstream: &HashSet<Id>,
        round: &str,
    ) -> Result<Option<Foreign>, CompareError> {
        let standing = &case.standing;
        let Some(tip) = standing.tip.filter(|_| self.forbids_any(case) || self.asks_after_submodules())
        else {
            return Ok(None);
        };
        let is_own = |id: &Id| contents.commits.contains_key(id) && !upstream.contains(id);
        let parents =
            contents.commits.iter().filter(|(id, _)| is_own(id)).flat_map(|(_, facts)| &facts.parents);
        let ends: BTreeSet<Id> = parents.chain([&tip]).filter(|id| !is_own(id)).copied().collect();
        // What a commit without parents has not, no merge with it takes away; but its other side may have had it.
        let is_root = |(id, facts): (&Id, &CommitFacts)| is_own(id) && facts.parents.is_empty();
        let is_rooted = contents.commits.iter().any(is_root) && !(ends.is_empty() && standing.old.is_none());
        if !is_rooted && ends.iter().all(|end| standing.has(*end)) {
            return Ok(None);
        }
        // Where no path is forbidden, hardly any push has anything to ask the host for.
        if !self.forbids_any(case) && !brings_submodules(case, comparison, contents, (tip, round)).await {
            return Ok(None);
        }
        let branches = match branches(case).await? {
            Some(branches) => branches,
            // Nothing can be compared. Whoever forbids paths has the push refused for that.
            None if self.forbids_any(case) => Vec::new(),
            None => return Ok(None),
        };
        let (mut references, unknown): (Vec<Id>, Vec<Id>) =
            ends.iter().copied().partition(|end| standing.has(*end) || branches.contains(end));
        // A branch that is there has had its beginning.
        let is_looked_for = standing.old.is_none() && unknown.len() <= BEGINNINGS;
        let mut is_strange = is_rooted;
        for (number, end) in unknown.into_iter().enumerate() {
            let place = format!("{round}-{number}");
            let later: Vec<Id> = ends.iter().copied().filter(|other| *other != end).collect();
            // The branches may have gone on since the work began. What else the push builds on may have, too: then the work
            // begins there, and an older state of it is none that anybody stands for.
            let begins = is_looked_for
                && !is_surpassed(case, comparison, (later.as_slice(), end), &place).await
                && begins_in(case, comparison, (branches.as_slice(), end), &place).await;
            references.extend(begins.then_some(end));
            is_strange |= !begins;
        }
        if !is_strange {
            return Ok(None);
        }
        references.extend(branches.into_iter().chain(standing.old));
        references.sort_unstable();
        references.dedup();
        Ok(Some(Foreign { tip, references }))
    }

    /// Whether commits of the push may name submodules in directories that it does not hold.
    pub(super) async fn hides_submodules(
        &self,
        case: &Case<'_>,
        comparison: &Comparison<'_>,
        contents: &Contents,
    ) -> bool {
        let roots = contents.outer_roots();
        if roots.is_empty() || !self.asks_after_submodules() {
            return false;
        }
        match comparison.trees_name_submodules(&roots, "roots").await {
            Ok(names) => names,
            Err(error) => {
                log(case, &error, "directories that a push does not hold cannot be looked at by themselves");
                // Of a host that does not know protocol version 2 nothing is fetched; of others all that is needed.
                !matches!(branches(case).await, Ok(None))
            }
        }
    }

    /// Which commits of the push the host's branches have. Where nobody can say, they all are the push's own.
    pub(super) async fn upstream_commits(
        &self,
        case: &Case<'_>,
        comparison: &Comparison<'_>,
        contents: &Contents,
    ) -> HashSet<Id> {
        let asked = async {
            let branches = branches(case).await?.unwrap_or_default();
            comparison.upstream_commits(contents, &branches).await
        };
        asked.await.unwrap_or_else(|error| {
            log(case, &error, "whether the host's branches have commits of a push is unknown");
            HashSet::new()
        })
    }

    /// What there is to say against what commits of the push change: forbidden paths, and submodules from elsewhere.
    pub(super) async fn paths(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &Arc<Vec<Change>>),
    ) -> Result<Vec<Finding>, CompareError> {
        self.judged(case, (comparison, base), (contents, changes), Finding::path).await
    }

    /// The same of what the push brings from elsewhere.
    pub(super) async fn brought(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, foreign): (&Contents, &Foreign),
    ) -> Result<Vec<Finding>, CompareError> {
        let brought = Arc::new(self.differing(case, comparison, foreign).await?);
        let findings = self.judged(case, (comparison, base), (contents, &brought), Finding::brought).await?;
        if foreign.references.is_empty() {
            return Ok(findings.into_iter().map(Finding::beside_no_branch).collect());
        }
        Ok(findings)
    }

    async fn judged(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &Arc<Vec<Change>>),
        told: fn(Forbids, Place) -> Finding,
    ) -> Result<Vec<Finding>, CompareError> {
        let (paths, asks, changes) =
            (self.forbidden(case), self.asks_after_submodules(), Arc::clone(changes));
        let (secrets, digits) = (Arc::clone(&case.secrets), case.digits);
        // There may be hundreds of thousands. Of those that are forbidden no more is told.
        let judging = move || {
            let forbidden = changes.iter().filter_map(|change| Some((paths.forbid(&change.path)?, change)));
            let findings = forbidden.map(|(whose, change)| told(whose, place(change, &secrets, digits)));
            let findings: Vec<Finding> = findings.take(FINDINGS).collect();
            let is_written =
                |change: &&Change| asks && change.new.is_some() && names_submodules(&change.path);
            (findings, changes.iter().filter(is_written).cloned().collect::<Vec<_>>())
        };
        let (mut findings, written) = work(judging).await?;
        findings.extend(self.submodules(case, (comparison, base), (contents, &written)).await?);
        Ok(findings)
    }

    /// What nobody may change in this push.
    fn forbidden(&self, case: &Case<'_>) -> Forbidden {
        Forbidden { server: Arc::clone(&self.globs), workflow: Arc::clone(&case.forbidden) }
    }

    /// Submodules that these versions of `.gitmodules` bring from where nothing may come from.
    async fn submodules(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, written): (&Contents, &[Change]),
    ) -> Result<Vec<Finding>, CompareError> {
        let files: BTreeSet<Id> =
            written.iter().flat_map(|change| change.new.iter().chain(&change.old)).copied().collect();
        let urls = comparison.urls(base, contents, &files).await?;
        let urls = |file: &Id| urls.get(file).and_then(Option::as_ref);
        let (mut findings, mut compared) = (Vec::new(), 0);
        for change in written {
            let Some(new) = change.new.as_ref().and_then(urls) else {
                findings.push(Finding::gitmodules(GITMODULES_BYTES, case.place(change)));
                continue;
            };
            let known: Vec<&BTreeSet<String>> = change.old.iter().filter_map(urls).collect();
            compared += new.len() * known.len().max(1);
            if compared > case.bounds.push.gitmodules_urls {
                return Err(comparison.too_many_urls());
            }
            let mut added = new.iter().filter(|url| !known.iter().any(|known| known.contains(*url)));
            if !added.all(|url| is_allowed(url, case.repository, case.allow)) {
                findings.push(Finding::submodule(case.place(change)));
            }
            // Others' pushes, and the time that this one has.
            tokio::task::yield_now().await;
        }
        Ok(findings)
    }

    /// Where what is pushed differs from every reference, as far as it matters here.
    async fn differing(
        &self,
        case: &Case<'_>,
        comparison: &Comparison<'_>,
        foreign: &Foreign,
    ) -> Result<Vec<Change>, CompareError> {
        let (paths, asks) = (self.forbidden(case), self.asks_after_submodules());
        let matters = move |path: &[u8]| paths.forbid(path).is_some() || (asks && names_submodules(path));
        comparison.otherwise(foreign.tip, &foreign.references, matters).await
    }
}

/// Whether what is pushed names submodules at its top, where alone git reads of them. Where nobody can say, it may.
async fn brings_submodules(
    case: &Case<'_>,
    comparison: &Comparison<'_>,
    contents: &Contents,
    (tip, round): (Id, &str),
) -> bool {
    let place = format!("{round}-tip");
    let root = contents.commits.get(&tip).map(|facts| facts.tree);
    let asked = match root {
        Some(Some(root)) => match contents.names_submodules(root) {
            Some(names) => return names,
            None => comparison.trees_name_submodules(&BTreeSet::from([root]), &place).await,
        },
        Some(None) | None => comparison.commit_names_submodules(tip, &place).await,
    };
    asked.unwrap_or_else(|error| {
        log(case, &error, "whether what is pushed names submodules is unknown");
        true
    })
}

/// Whether a commit is in the history of one of these branches. Of one whose history cannot be had, as when there is more of it
/// than is read, this is not known, which is as if it were not.
async fn begins_in(
    case: &Case<'_>,
    comparison: &Comparison<'_>,
    (branches, commit): (&[Id], Id),
    place: &str,
) -> bool {
    for (number, tip) in branches.iter().enumerate() {
        match comparison.is_before(&[*tip], commit, &format!("{place}-{number}")).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => log(case, &error, "whether a new branch begins in a branch's history is unknown"),
        }
    }
    false
}

/// Whether a commit is in the history of one of these others that the push builds on. Where nobody can say, it may be.
async fn is_surpassed(
    case: &Case<'_>,
    comparison: &Comparison<'_>,
    (others, commit): (&[Id], Id),
    place: &str,
) -> bool {
    let asked = comparison.is_before(others, commit, &format!("{place}-later")).await;
    asked.unwrap_or_else(|error| {
        log(case, &error, "which of the commits that a new branch builds on is the newest is unknown");
        true
    })
}

fn log(case: &Case<'_>, error: &CompareError, what: &str) {
    let error = case.secrets.none_in(error.to_string());
    tracing::warn!(%error, "{what}");
}

/// Where the run's base branch and the host's default branch are; none of a host from which nothing can be fetched.
async fn branches(case: &Case<'_>) -> Result<Option<Vec<Id>>, CompareError> {
    let tips = heads::tips(case.upstream, case.standing.base.as_deref()).await;
    tips.map_err(|fault| CompareError::Branches(fault.refusal().message))
}

/// Whether a file at the path names submodules.
fn names_submodules(path: &[u8]) -> bool {
    path.rsplit(|byte| *byte == b'/').next().is_some_and(is_gitmodules)
}
