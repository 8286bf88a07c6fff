//! Parts of the machine that tests need. `scripts/setup` provides them and names them in the environment.

use std::path::PathBuf;

/// The outside parts of an end-to-end test.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The engine's socket, `unix://…`.
    pub docker_host: String,
    /// Directory of installed agents.
    pub agents_dir: PathBuf,
    /// The built `caisson` binary.
    pub caisson: PathBuf,
}

impl Parts {
    /// Finds the parts for a test of the given binary. A missing part makes the test say that it is skipped, or fail
    /// where `CAISSON_TEST_REQUIRE=1` asks for all of them.
    ///
    /// # Panics
    /// A part is missing and all are required.
    #[must_use]
    pub fn find(caisson: &str) -> Option<Self> {
        let needed = ["DOCKER_HOST", "CAISSON_TEST_AGENTS_DIR"];
        let missing: Vec<_> = needed.iter().filter(|name| variable(name).is_none()).collect();
        if !missing.is_empty() {
            assert!(
                variable("CAISSON_TEST_REQUIRE").is_none(),
                "parts are missing: {missing:?}; run scripts/setup and source .caisson/env"
            );
            #[expect(clippy::print_stderr, reason = "a skipped test says so")]
            {
                eprintln!("SKIPPED: {missing:?} not set; run scripts/setup, then source .caisson/env");
            }
            return None;
        }
        rustls::crypto::ring::default_provider().install_default().ok();
        Some(Self {
            docker_host: variable("DOCKER_HOST")?,
            agents_dir: variable("CAISSON_TEST_AGENTS_DIR")?.into(),
            caisson: caisson.into(),
        })
    }

    /// The agent's binary.
    #[must_use]
    pub fn claude(&self, version: &str) -> PathBuf {
        self.agents_dir.join("claude-code").join(version).join("claude")
    }
}

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests are told by the environment where the machine's parts are")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
