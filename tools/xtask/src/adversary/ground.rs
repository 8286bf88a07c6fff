//! Surroundings of a control: sealed as a sandbox is, but for the walls in question. A bubblewrap that root starts, so that
//! each wall can be taken away by itself; without a user namespace, in which no right would be one outside.

use std::collections::HashMap;

use anyhow::Context;

use super::surroundings::UID;
use super::table::Attempt;
use super::walls::{Kind, Place};
use super::witness::fill;

/// A root that is mounted read-only; in every ground it is anybody's to write otherwise.
pub(crate) const ROOT: Place = Place { text: "mounted read-only", with: &[], without: &[] };
/// Where the attempts' files are seen.
pub(super) const ATTEMPTS: &str = "/tmp/attempts";
/// What every sandbox has of the machine, and where it may write.
const SEALED: [&str; 29] = [
    "--perms",
    "0777",
    "--tmpfs",
    "/",
    "--ro-bind",
    "/usr",
    "/usr",
    "--symlink",
    "usr/bin",
    "/bin",
    "--symlink",
    "usr/lib",
    "/lib",
    "--symlink",
    "usr/lib64",
    "/lib64",
    "--proc",
    "/proc",
    "--dev",
    "/dev",
    "--perms",
    "1777",
    "--tmpfs",
    "/tmp",
    "--dir",
    "/caisson",
    "--unshare-uts",
    "--cap-add",
    "ALL",
];

/// Surroundings of one control.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ground<'a> {
    pub(crate) attempt: &'a Attempt,
    /// The one of the attempt's walls that is left standing, by its place in the list.
    pub(crate) standing: Option<usize>,
}

impl Ground<'_> {
    /// Whether it has a wall of a kind: those that the attempt does not name all stand.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        let named = self.attempt.walls.iter().position(|wall| wall.kind == kind);
        named.map_or(kind != Kind::Users, |place| self.standing == Some(place))
    }

    /// What it is called, for people and for witnesses.
    pub(crate) fn name(&self) -> String {
        let left = self.standing.map(|place| self.attempt.walls[place].kind.text());
        left.map_or("without any of its walls".to_owned(), |wall| format!("with {wall} alone"))
    }

    /// Bubblewrap's arguments, and then the program that makes the attempt.
    ///
    /// # Errors
    /// The rights of this process cannot be told.
    pub(crate) fn arguments(
        &self,
        attempts: &str,
        filters: &[i32],
        values: &HashMap<&'static str, String>,
    ) -> anyhow::Result<Vec<String>> {
        let mut list: Vec<String> = SEALED.iter().map(|word| (*word).to_owned()).collect();
        let mut add = |words: &[&str]| list.extend(words.iter().map(|word| fill(word, values)));
        let namespaces = [
            (Kind::Network, "--unshare-net"),
            (Kind::Processes, "--unshare-pid"),
            (Kind::Messages, "--unshare-ipc"),
        ];
        for (kind, option) in namespaces {
            if self.has(kind) {
                add(&[option]);
            }
        }
        if self.has(Kind::Users) {
            add(&["--unshare-user", "--uid", &UID.to_string(), "--gid", &UID.to_string()]);
        }
        // Bubblewrap makes directories above a file for root alone, where it is not told of them.
        for place in ["/etc", "/run", "{root}/sibling", "{root}/doors/other", "{docker_place}"] {
            add(&["--dir", place]);
        }
        add(self.attempt.more);
        for wall in self.attempt.walls {
            if let Kind::Place(place) = wall.kind
                && !self.has(wall.kind)
            {
                add(place.without);
            }
        }
        // What is left standing comes over what another wall's absence shows.
        for wall in self.attempt.walls {
            if let Kind::Place(place) = wall.kind
                && self.has(wall.kind)
            {
                add(place.with);
            }
        }
        add(&["--ro-bind", attempts, ATTEMPTS]);
        add(if self.has(Kind::Place(ROOT)) { &["--remount-ro", "/"] } else { &[] });
        if self.has(Kind::Filter) {
            for filter in filters {
                add(&["--add-seccomp-fd", &filter.to_string()]);
            }
        }
        add(&["--"]);
        let user = self.user()?;
        add(&user.iter().map(String::as_str).collect::<Vec<_>>());
        add(&["/usr/bin/python3"]);
        if self.attempt.has(Kind::Shim) {
            add(&[&format!("{ATTEMPTS}/first.py"), if self.has(Kind::Shim) { "hidden" } else { "open" }]);
        }
        add(&[&format!("{ATTEMPTS}/attempt.py"), self.attempt.name]);
        add(self.attempt.instead.unwrap_or(self.attempt.arguments));
        Ok(list)
    }

    /// Becomes the agent's user, or loses root's rights, or both.
    fn user(&self) -> anyhow::Result<Vec<String>> {
        if self.has(Kind::Users) {
            // It is there already, with or without rights over nobody but itself.
            return Ok(Vec::new());
        }
        let mut words = vec!["/usr/bin/setpriv".to_owned(), "--clear-groups".to_owned()];
        if self.has(Kind::NotRoot) {
            words.extend([format!("--reuid={UID}"), format!("--regid={UID}")]);
        }
        if self.has(Kind::Rights) {
            words.extend(["--inh-caps=-all".to_owned(), "--bounding-set=-all".to_owned()]);
        } else {
            let rights = rights()?;
            words.extend([format!("--inh-caps={rights}"), format!("--ambient-caps={rights}")]);
        }
        Ok(words)
    }
}

/// Every right that this process may hand on, as setpriv(1) wants them.
fn rights() -> anyhow::Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).context("no CapBnd")?;
    let bits = u64::from_str_radix(line.trim(), 16)?;
    let held = (0..u64::BITS).filter(|bit| bits >> bit & 1 == 1).map(|bit| format!("+cap_{bit}"));
    Ok(held.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::super::table;
    use super::*;

    fn words(name: &str, standing: Option<usize>) -> String {
        let attempt = table::all().find(|attempt| attempt.name == name).unwrap();
        let ground = Ground { attempt, standing };
        ground.arguments("/a", &[7, 8], &HashMap::new()).unwrap().join(" ")
    }

    #[test]
    fn only_the_named_walls_are_missing() {
        let one = words("network.tcp", None);
        assert!(!one.contains("--unshare-net") && one.contains("--unshare-pid"));
        assert!(one.contains("--add-seccomp-fd 7 --add-seccomp-fd 8 -- /usr/bin/setpriv"));
        assert!(one.contains("--bounding-set=-all") && one.contains(&format!("--reuid={UID}")));
        assert!(words("network.tcp", Some(0)).contains("--unshare-net"));
    }

    #[test]
    fn of_two_walls_each_can_stand_alone() {
        let neither = words("host.mount", None);
        assert!(neither.contains("--ambient-caps=+cap_0") && !neither.contains("--add-seccomp-fd"));
        let rights = words("host.mount", Some(0));
        assert!(rights.contains("--bounding-set=-all") && !rights.contains("--add-seccomp-fd"));
        let filter = words("host.mount", Some(1));
        assert!(filter.contains("--ambient-caps=+cap_0") && filter.contains("--add-seccomp-fd"));
    }

    #[test]
    fn the_root_is_closed_last_unless_it_is_the_wall_in_question() {
        assert!(words("host.root_directory", Some(0)).contains("--remount-ro / "));
        assert!(!words("host.root_directory", None).contains("--remount-ro / "));
        assert!(words("host.keyring", None).contains("--remount-ro / "));
    }
}
