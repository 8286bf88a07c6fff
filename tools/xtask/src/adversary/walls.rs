//! The walls that stop attempts, and by which errors each is known; pure.

use testkit::engine::Engine;

/// A wall in the way of one attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wall {
    /// What it is, and how surroundings come to have it or not.
    pub(crate) kind: Kind,
    /// The errors by which it refuses, as `errno` names them; `NOTHING` is that there was nothing to be seen, `UNHEARD` that a
    /// witness outside heard nothing.
    pub(crate) refuses: &'static [&'static str],
    /// In whose sandboxes the attempt comes to it.
    pub(crate) stands: Stands,
}

/// What a wall is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The system call filter.
    Filter,
    /// No capabilities.
    Rights,
    /// Another user than root.
    NotRoot,
    /// A user namespace in which there is nobody else.
    Users,
    /// A process namespace of its own.
    Processes,
    /// A network namespace with nothing but `lo`.
    Network,
    /// A namespace of its own for messages and shared memory between processes.
    Messages,
    /// The shim hides from its children.
    Shim,
    /// How a place is shown, or that it is not.
    Place(Place),
}

/// A wall of mounts or of the environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// What it is, for people.
    pub(crate) text: &'static str,
    /// Bubblewrap's arguments that make it.
    pub(crate) with: &'static [&'static str],
    /// Bubblewrap's arguments in its stead.
    pub(crate) without: &'static [&'static str],
}

/// In whose sandboxes an attempt comes to a wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stands {
    /// Everywhere.
    Everywhere,
    /// In Docker's alone.
    Docker,
    /// In the local engine's alone.
    Local,
    /// Nowhere: it stands behind another one, which answers first.
    Behind,
}

impl Wall {
    /// Whether the attempt comes to it in the sandboxes of an engine.
    pub(crate) fn is_met(&self, engine: Engine) -> bool {
        match self.stands {
            Stands::Everywhere => true,
            Stands::Docker => engine == Engine::Docker,
            Stands::Local => engine == Engine::Local,
            Stands::Behind => false,
        }
    }
}

impl Kind {
    /// What it is, for people.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Filter => "the system call filter",
            Self::Rights => "no capabilities",
            Self::NotRoot => "not root",
            Self::Users => "a user namespace with nobody else in it",
            Self::Processes => "a process namespace of its own",
            Self::Network => "a network namespace with nothing but lo",
            Self::Messages => "a namespace of its own for shared memory",
            Self::Shim => "the shim cannot be looked into",
            Self::Place(place) => place.text,
        }
    }
}

pub(crate) const fn wall(kind: Kind, refuses: &'static [&'static str]) -> Wall {
    Wall { kind, refuses, stands: Stands::Everywhere }
}

/// The same wall, met in some sandboxes only.
pub(crate) const fn met(stands: Stands, wall: Wall) -> Wall {
    Wall { stands, ..wall }
}

/// Not shown in the sandbox; `without` shows it.
pub(crate) const fn not_shown(without: &'static [&'static str]) -> Wall {
    let place = Place { text: "not shown in the sandbox", with: &[], without };
    wall(Kind::Place(place), &["ENOENT", "NOTHING"])
}

/// Mounted read-only.
pub(crate) const fn read_only(with: &'static [&'static str], without: &'static [&'static str]) -> Wall {
    wall(Kind::Place(Place { text: "mounted read-only", with, without }), &["EROFS"])
}

/// Credentials stay outside of the sandbox; `without` brings one in.
pub(crate) const fn outside(without: &'static [&'static str]) -> Wall {
    let place = Place { text: "credentials stay outside of the sandbox", with: &[], without };
    wall(Kind::Place(place), &["NOTHING"])
}

/// The system call filter.
pub(crate) const FILTER: Wall = wall(Kind::Filter, &["EPERM"]);
/// No capabilities.
pub(crate) const RIGHTS: Wall = wall(Kind::Rights, &["EPERM"]);
/// A process namespace of its own, where a process is asked for by its number.
pub(crate) const PROCESSES: Wall = wall(Kind::Processes, &["ESRCH"]);
/// The same, where a process's files are asked for.
pub(crate) const PROCESSES_SHOWN: Wall = wall(Kind::Processes, &["ENOENT", "NOTHING"]);
/// A network namespace of its own, where somebody is to be reached.
pub(crate) const NETWORK: Wall =
    wall(Kind::Network, &["ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL", "UNHEARD"]);
/// The same, where somebody is to be seen.
pub(crate) const NETWORK_SHOWN: Wall = wall(Kind::Network, &["NOTHING"]);
/// The shim hides.
pub(crate) const SHIM: Wall = wall(Kind::Shim, &["EACCES", "EPERM"]);
