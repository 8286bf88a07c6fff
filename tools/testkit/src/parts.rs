//! Parts of the machine that tests need. `scripts/setup` provides them and names them in the environment.

use std::path::PathBuf;

/// Variables that name the parts.
const NEEDED: [&str; 3] = ["DOCKER_HOST", "TEST_AGENTS_DIR", "TEST_SHIM"];

/// The outside parts of an end-to-end test.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The engine's socket, `unix://…`.
    pub docker_host: String,
    /// Directory of installed agents.
    pub agents_dir: PathBuf,
    /// The built `caisson` binary.
    pub caisson: PathBuf,
    /// The static shim; a build of the workspace puts another one beside the binary.
    pub shim: PathBuf,
}

impl Parts {
    /// Finds the parts for a test of the given binary. A missing part makes the test say that it is skipped, or fail
    /// where `TEST_REQUIRE=1` asks for all of them.
    ///
    /// # Panics
    /// A part is missing and all are required.
    #[must_use]
    pub fn find(caisson: &str) -> Option<Self> {
        match Self::require(caisson) {
            Ok(parts) => Some(parts),
            Err(missing) => {
                assert!(variable("TEST_REQUIRE").is_none(), "{missing}");
                #[expect(clippy::print_stderr, reason = "a skipped test says so")]
                {
                    eprintln!("SKIPPED: {missing}");
                }
                None
            }
        }
    }

    /// Finds the parts for whoever cannot do without them.
    ///
    /// # Errors
    /// One that names the missing parts and the remedy.
    pub fn require(caisson: &str) -> anyhow::Result<Self> {
        let missing: Vec<_> = NEEDED.into_iter().filter(|name| variable(name).is_none()).collect();
        let [Some(docker_host), Some(agents_dir), Some(shim)] = NEEDED.map(variable) else {
            anyhow::bail!("{missing:?} not set; run scripts/setup, then source .caisson/env");
        };
        rustls::crypto::ring::default_provider().install_default().ok();
        Ok(Self { docker_host, agents_dir: agents_dir.into(), caisson: caisson.into(), shim: shim.into() })
    }

    /// The agent's binary.
    #[must_use]
    pub fn claude(&self, version: &str) -> PathBuf {
        self.agents_dir.join("claude-code").join(version).join("claude")
    }
}

fn variable(name: &str) -> Option<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told by the environment where the machine's parts are"
    )]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
