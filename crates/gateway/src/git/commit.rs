//! What is read of a commit: pure.

use std::collections::HashSet;

use super::objects::Id;

/// Most parents of a commit: more than people merge at once, and few enough to compare it with each.
pub(super) const PARENTS: usize = 100;

/// Its directory and what it comes after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommitFacts {
    /// Its whole directory.
    pub(super) tree: Option<Id>,
    pub(super) parents: Vec<Id>,
}

impl CommitFacts {
    /// The commit's tree, and its parents: those lines of its header that follow the tree's at once. Git reads no others
    /// (`parse_commit_buffer`), and its checks look at nothing behind the committer, where a line may name what is no parent.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let id = |id: &[u8]| std::str::from_utf8(id).ok().and_then(Id::parse);
        let tree = lines.next().and_then(|line| line.strip_prefix(b"tree ")).and_then(id);
        let parents = lines.map_while(|line| line.strip_prefix(b"parent ")).map_while(id).collect();
        Self { tree, parents }
    }

    /// Whether it has more parents than [`PARENTS`], or one twice, which git does not write.
    pub(super) fn has_odd_parents(&self) -> bool {
        let different: HashSet<&Id> = self.parents.iter().collect();
        self.parents.len() > PARENTS || different.len() < self.parents.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parents: impl Iterator<Item = usize>) -> CommitFacts {
        let parents: Vec<String> = parents.map(|number| format!("parent {:040x}\n", number + 1)).collect();
        let (tree, parents) = ("a".repeat(40), parents.concat());
        CommitFacts::read(format!("tree {tree}\n{parents}author A <a@x> 1 +0000\n").as_bytes())
    }

    #[test]
    fn a_commit_has_so_many_parents_and_none_of_them_twice() {
        assert_eq!(with(0..PARENTS).parents.len(), PARENTS);
        assert!(!with(0..PARENTS).has_odd_parents() && !with(0..0).has_odd_parents());
        assert!(with(0..=PARENTS).has_odd_parents());
        assert!(with([1, 2, 1].into_iter()).has_odd_parents());
    }
}
