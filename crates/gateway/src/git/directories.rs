//! Directories that a push has and does not hold: git sends none that it takes the host to have, and whoever makes a commit may
//! name any that the host has, also that of a stranger's commit.

use std::collections::{BTreeSet, HashSet};

use super::base::{self, Wanted};
use super::compare::{Base, CompareError, Comparison};
use super::gitmodules;
use super::objects::{Contents, Id, tree_names_submodules};

/// Most directories that a push has and does not hold.
const OUTER_DIRECTORIES: usize = 200_000;

impl Comparison<'_> {
    /// Makes sure that the directories of the push's commits can be compared, whatever the push holds of them.
    pub(super) async fn have_directories(
        &self,
        base: &mut Base,
        contents: &Contents,
    ) -> Result<(), CompareError> {
        let outer = contents.outer_directories(OUTER_DIRECTORIES)?;
        let objects = self.missing(&outer).await?;
        if objects.is_empty() {
            return Ok(());
        }
        let filter = self.abilities(base).await?.filter.then_some("blob:none");
        self.fetch(base, &Wanted { objects, filter, ..Wanted::default() }).await
    }

    /// Those of these objects that neither the push has nor what was fetched.
    async fn missing(&self, objects: &BTreeSet<Id>) -> Result<Vec<String>, CompareError> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        let out = self.ask_of(&self.quarantine.directory, gitmodules::CHECK, objects).await?;
        let listed = gitmodules::listed(&out).ok_or(CompareError::Changes)?;
        let there: HashSet<Id> = listed.into_iter().map(|(id, _)| id).collect();
        Ok(objects.iter().filter(|id| !there.contains(id)).map(|id| self.hex(*id)).collect())
    }

    /// Whether one of these directories, which the push does not hold, has submodules written down. Nothing in them is fetched
    /// if the host can leave it out. `place` is looked at once.
    pub(super) async fn trees_name_submodules(
        &self,
        trees: &BTreeSet<Id>,
        place: &str,
    ) -> Result<bool, CompareError> {
        let objects = trees.iter().map(|id| self.hex(*id)).collect();
        let wanted = Wanted { objects, filter: Some("tree:0"), ..Wanted::default() };
        self.name_submodules(wanted, &self.lines(trees), place).await
    }

    /// The same of the whole directory of a commit.
    pub(super) async fn commit_names_submodules(
        &self,
        commit: Id,
        place: &str,
    ) -> Result<bool, CompareError> {
        let commit = self.hex(commit);
        let name = format!("{commit}^{{tree}}\n");
        let wanted =
            Wanted { objects: vec![commit], alone: true, filter: Some("tree:1"), ..Wanted::default() };
        self.name_submodules(wanted, &name, place).await
    }

    async fn name_submodules(
        &self,
        wanted: Wanted<'_>,
        names: &str,
        place: &str,
    ) -> Result<bool, CompareError> {
        let directory = self.quarantines.make_within(self.quarantine, place, self.digits).await?;
        let abilities = base::abilities(self.upstream).await?;
        let mut base = Base::at(directory, Some(abilities));
        let filter = wanted.filter.filter(|_| abilities.filter);
        self.fetch(&mut base, &Wanted { filter, ..wanted }).await?;
        let arguments = ["cat-file", gitmodules::BATCH];
        let out = self.helper.run(&base.directory, &arguments, names.as_bytes(), self.bounds).await?;
        let trees = gitmodules::bodies(&out).ok_or(CompareError::Changes)?;
        Ok(trees.iter().any(|(_, tree)| tree_names_submodules(tree, self.digits / 2)))
    }
}
