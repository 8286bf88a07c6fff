//! The engines that end-to-end tests run on, and what the host shows of a server's sandboxes whichever engine made them.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::docker;
use crate::parts::Parts;

/// Which engine a test's server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// A Docker Engine.
    Docker,
    /// Bubblewrap.
    Local,
}

impl Engine {
    /// Its name in the server's settings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Local => "local",
        }
    }

    /// Names of a server's sandboxes, living or not.
    ///
    /// # Errors
    /// The engine cannot be asked.
    pub fn sandboxes(self, parts: &Parts, state_dir: &Path) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Docker => {
                let server = std::fs::read_to_string(state_dir.join("server_id"))?;
                docker::containers_of(parts, server.trim())
            }
            Self::Local => {
                let records = std::fs::read_dir(state_dir.join("local"))?;
                records.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
            }
        }
    }

    /// Host process ids of everything in a sandbox, its first process first.
    ///
    /// # Errors
    /// It does not run.
    pub fn processes(self, parts: &Parts, state_dir: &Path, sandbox: &str) -> anyhow::Result<Vec<u32>> {
        let first = match self {
            Self::Docker => docker::inspect(parts, sandbox)?["State"]["Pid"].as_u64(),
            Self::Local => {
                let file = state_dir.join("local").join(sandbox).join("first.json");
                serde_json::from_slice::<Value>(&std::fs::read(file)?)?["process"]["pid"].as_u64()
            }
        };
        let first = u32::try_from(first.context("no first process")?)?;
        let mut found = vec![first];
        let mut next = 0;
        while next < found.len() {
            found.extend(children(found[next]));
            next += 1;
        }
        Ok(found)
    }
}

fn children(pid: u32) -> Vec<u32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .flat_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
        })
        .collect()
}

/// Makes a test of every named function, for every engine: `async fn name(engine: Engine)`.
#[macro_export]
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        mod on_docker {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    super::$name($crate::engine::Engine::Docker).await;
                }
            )*
        }

        mod on_local {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 6)]
                async fn $name() {
                    super::$name($crate::engine::Engine::Local).await;
                }
            )*
        }
    };
}
