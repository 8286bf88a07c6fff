//! Engines, as flags name them.

use clap::ValueEnum;
use testkit::engine::Engine;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineName {
    /// Containers.
    Docker,
    /// Bubblewrap.
    Local,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Self {
        match name {
            EngineName::Docker => Self::Docker,
            EngineName::Local => Self::Local,
        }
    }
}
