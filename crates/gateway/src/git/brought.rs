//! What a push brings to its branch from elsewhere on the host: a commit that is there already, such as the head of a
//! stranger's change request, pushed as it is, with no pack, or merged in.
//!
//! Its commits are nobody's in the push, so that no comparison commit by commit finds what they changed. So the tree of what
//! is pushed is compared with trees that people stand for: the branch's, and those of the run's base branch and of the default
//! branch as the host has them. Of a branch that is not there yet, also with what it begins with, if that is a commit of these
//! branches, or one that a session has pushed, of which the same was asked. What equals one of them is nothing new.

use std::collections::{BTreeSet, HashSet};

use caisson_domain::git::BranchName;
use caisson_domain::run::Run;
use caisson_store::{Push, StoreError};

use super::compare::{Base, Change, CompareError, Comparison};
use super::finding::{Finding, Forbids, Place};
use super::heads;
use super::inspect::{Case, Inspector};
use super::objects::{Contents, Id, is_gitmodules};
use super::submodules::{GITMODULES_BYTES, is_allowed, urls};
use crate::hold::hold;
use crate::shared::Shared;

/// Most commits that a push begins with, and that are looked for in the history of the host's branches.
const BEGINNINGS: usize = 4;

/// Where a push begins, by what nobody in the sandbox says.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// What the branch is to be at.
    tip: Option<Id>,
    /// What it is at, which the host compares once more; none if it is not there.
    old: Option<Id>,
    /// Of a branch that is not there: what its session has pushed to it before, and the session that it was forked from.
    own: HashSet<Id>,
    /// The run's base branch, as a full ref.
    base: Option<String>,
}

/// What a push is compared with since it brings something from elsewhere.
#[derive(Debug)]
pub(super) struct Elsewhere {
    tip: Id,
    /// What may be brought.
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

/// What a new branch may begin with: its session's pushes to it, and those of the session that this one was forked from.
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
    Ok(pushes.iter().filter_map(|pushed| Id::parse(&pushed.push.new)).collect())
}

impl Elsewhere {
    /// What is needed of the host's commits to compare them.
    pub(super) fn commits(&self) -> Vec<Id> {
        self.references.iter().copied().chain([self.tip]).collect()
    }
}

impl Inspector {
    /// What to compare the push with, if its commits build on others than the branch's and the newest of the host's branches.
    /// If they do not, everything at a path is what one of these has, or what a commit of the push made of it. `theirs` are
    /// commits in the push that the host's branches have; `round` tells this question from another one about the push.
    pub(super) async fn elsewhere(
        &self,
        (case, comparison): (&Case<'_>, &Comparison<'_>),
        contents: &Contents,
        theirs: &HashSet<Id>,
        round: &str,
    ) -> Result<Option<Elsewhere>, CompareError> {
        let standing = &case.standing;
        let Some(tip) = standing.tip.filter(|_| self.forbids_any(case) || self.asks_after_submodules())
        else {
            return Ok(None);
        };
        let is_own = |id: &Id| contents.commits.contains_key(id) && !theirs.contains(id);
        let parents =
            contents.commits.iter().filter(|(id, _)| is_own(id)).flat_map(|(_, facts)| &facts.parents);
        let ends: BTreeSet<Id> = parents.chain([&tip]).filter(|id| !is_own(id)).copied().collect();
        if ends.iter().all(|end| standing.has(*end)) {
            return Ok(None);
        }
        let branches = match branches(case).await? {
            Some(branches) => branches,
            // Nothing can be compared. Whoever forbids paths has the push refused for that.
            None if self.forbids_any(case) => Vec::new(),
            None => return Ok(None),
        };
        let (mut references, unknown): (Vec<Id>, Vec<Id>) =
            ends.into_iter().partition(|end| standing.has(*end) || branches.contains(end));
        let mut strange = unknown.len() > BEGINNINGS;
        for (number, end) in unknown.into_iter().take(BEGINNINGS).enumerate() {
            // The branches may have gone on since the work began. A branch that is there has had its beginning.
            let begins = standing.old.is_none()
                && comparison.is_before(&branches, end, &format!("{round}-{number}")).await?;
            references.extend(begins.then_some(end));
            strange |= !begins;
        }
        if !strange {
            return Ok(None);
        }
        references.extend(branches.into_iter().chain(standing.old));
        references.sort_unstable();
        references.dedup();
        Ok(Some(Elsewhere { tip, references }))
    }

    /// Which commits of the push the host's branches have. Where nobody can say, they all are the push's own.
    pub(super) async fn theirs(
        &self,
        case: &Case<'_>,
        comparison: &Comparison<'_>,
        contents: &Contents,
    ) -> HashSet<Id> {
        let asked = async {
            let branches = branches(case).await?.unwrap_or_default();
            comparison.theirs(contents, &branches).await
        };
        match asked.await {
            Ok(theirs) => theirs,
            Err(error) => {
                let error = case.secrets.none_in(error.to_string());
                tracing::warn!(%error, "whether the host's branches have commits of a push is unknown");
                HashSet::new()
            }
        }
    }

    /// What there is to say against what commits of the push change: forbidden paths, and submodules from elsewhere.
    pub(super) async fn paths(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &[Change]),
    ) -> Result<Vec<Finding>, CompareError> {
        self.judged(case, (comparison, base), (contents, changes), Finding::path).await
    }

    /// The same of what the push brings from elsewhere.
    pub(super) async fn brought(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, elsewhere): (&Contents, &Elsewhere),
    ) -> Result<Vec<Finding>, CompareError> {
        let brought = self.differing(case, comparison, elsewhere).await?;
        self.judged(case, (comparison, base), (contents, &brought), Finding::brought).await
    }

    async fn judged(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &[Change]),
        told: fn(Forbids, Place) -> Finding,
    ) -> Result<Vec<Finding>, CompareError> {
        let forbidden = changes.iter().filter_map(|change| Some((self.forbids(case, change)?, change)));
        let mut findings: Vec<Finding> =
            forbidden.map(|(whose, change)| told(whose, Self::place(change, case))).collect();
        if self.asks_after_submodules() {
            findings.extend(self.submodules(case, (comparison, base), (contents, changes)).await?);
        }
        Ok(findings)
    }

    /// Who forbids the change: a workflow adds to what the server forbids, and takes nothing away.
    fn forbids(&self, case: &Case<'_>, change: &Change) -> Option<Forbids> {
        if self.globs.cover(&change.path) {
            return Some(Forbids::Server);
        }
        case.forbidden.cover(&change.path).then_some(Forbids::Workflow)
    }

    /// Submodules that these changes bring from where nothing may come from.
    async fn submodules(
        &self,
        case: &Case<'_>,
        (comparison, base): (&Comparison<'_>, &mut Base),
        (contents, changes): (&Contents, &[Change]),
    ) -> Result<Vec<Finding>, CompareError> {
        let written: Vec<&Change> = changes.iter().filter(|change| names_submodules(change)).collect();
        let files = written.iter().flat_map(|change| change.new.iter().chain(&change.old));
        let files: Vec<Id> = files.copied().collect::<HashSet<_>>().into_iter().collect();
        let texts = comparison.texts(base, contents, &files).await?;
        let text = |id: &Id| texts.get(id).map(Vec::as_slice).unwrap_or_default();
        let mut findings = Vec::new();
        for change in written {
            let new = change.new.as_ref().map(text).unwrap_or_default();
            let known: BTreeSet<String> = change.old.iter().flat_map(|old| urls(text(old))).collect();
            let mut added = urls(new).into_iter().filter(|url| !known.contains(url));
            if new.len() > GITMODULES_BYTES || !added.all(|url| is_allowed(&url, case.repository, case.allow))
            {
                findings.push(Finding::submodule(Self::place(change, case)));
            }
        }
        Ok(findings)
    }

    /// Where what is pushed differs from every reference, as far as it matters here.
    async fn differing(
        &self,
        case: &Case<'_>,
        comparison: &Comparison<'_>,
        elsewhere: &Elsewhere,
    ) -> Result<Vec<Change>, CompareError> {
        let matters = |change: &Change| {
            self.forbids(case, change).is_some() || (self.asks_after_submodules() && names_submodules(change))
        };
        let mut brought = comparison.otherwise(elsewhere.tip, &elsewhere.references).await?;
        brought.retain(matters);
        Ok(brought)
    }
}

/// Where the run's base branch and the host's default branch are; none of a host from which nothing can be fetched.
async fn branches(case: &Case<'_>) -> Result<Option<Vec<Id>>, CompareError> {
    let tips = heads::tips(case.upstream, case.standing.base.as_deref()).await;
    tips.map_err(|fault| CompareError::Branches(fault.refusal().message))
}

/// Whether the change writes a file that names submodules.
fn names_submodules(change: &Change) -> bool {
    let name = change.path.rsplit(|byte| *byte == b'/').next();
    change.new.is_some() && name.is_some_and(is_gitmodules)
}
