//! What a configuration adds or takes away.

use std::os::unix::fs::PermissionsExt;

use caisson_sandbox::local::{ControlGroups, LimitsBy};
use caisson_sandbox::{Engine, EngineError, MEMORY_BYTES_MIN, PIDS_MIN};

use super::bench::on_bench;
use crate::places::{ready, skipped, written};

/// Most that is kept of a sandbox's diagnostics.
const LOG_BYTES: u64 = 1024 * 1024;

#[tokio::test]
async fn toolchains_come_first_and_what_is_shown_is_read_only() {
    on_bench(async |bench| {
        // Below a directory that only root may pass, as a home is.
        let host = tempfile::tempdir_in("/var/tmp").unwrap();
        let (tool, data) = (host.path().join("tool ü"), host.path().join("data"));
        std::fs::create_dir_all(tool.join("bin")).unwrap();
        std::fs::write(tool.join("bin/git"), "#!/bin/sh\necho the toolchain\n").unwrap();
        std::fs::write(&data, "shown").unwrap();
        for path in [&tool, &tool.join("bin"), &tool.join("bin/git"), &data] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
        }
        let engine = bench.engine_with(|config| {
            config.toolchains = vec![tool.clone()];
            config.read_only = vec![data.clone()];
        });
        let spec = bench.sandbox(&format!(
            "git > /workspace/git; cat '{data}' > /workspace/data
             (: >> '{data}') 2> /workspace/first; touch '{tool}/x' 2> /workspace/second; exit 0",
            data = data.display(),
            tool = tool.display(),
        ));
        engine.create(&spec).await.unwrap();
        engine.start(&spec.id).await.unwrap();
        assert_eq!(engine.wait(&spec.id).await.unwrap().code, Some(0));
        assert_eq!((written(&spec, "git").trim(), written(&spec, "data").trim()), ("the toolchain", "shown"));
        for refused in ["first", "second"] {
            assert!(written(&spec, refused).contains("Read-only"), "{}", written(&spec, refused));
        }
    })
    .await;
}

#[tokio::test]
async fn without_control_groups_single_processes_are_limited_and_it_is_said() {
    on_bench(async |bench| {
        let engine = bench.engine_with(|config| config.control_groups = ControlGroups::Off);
        let found = engine.check().await.unwrap();
        assert!(matches!(found.limits, LimitsBy::ProcessLimits { .. }), "{found:?}");
        assert!(engine.weaknesses().iter().any(|weakness| weakness.contains("CPU is not limited")));

        let mut spec = bench.sandbox(
            "exec 2> /workspace/err; n=0; while [ $n -lt 100 ]; do sleep 60 & n=$((n + 1)); echo $n > /workspace/n; done",
        );
        spec.limits.pids = PIDS_MIN;
        engine.create(&spec).await.unwrap();
        engine.start(&spec.id).await.unwrap();
        assert_ne!(engine.wait(&spec.id).await.unwrap().code, Some(0), "{}", written(&spec, "err"));
        assert!(written(&spec, "err").to_lowercase().contains("fork"), "{}", written(&spec, "err"));
        assert!(written(&spec, "n").trim().parse::<u32>().unwrap() < PIDS_MIN);

        let mut spec = bench.sandbox("tail /dev/zero 2> /workspace/err; echo $? > /workspace/child; exit 0");
        spec.limits.memory_bytes = MEMORY_BYTES_MIN;
        engine.create(&spec).await.unwrap();
        engine.start(&spec.id).await.unwrap();
        let exit = engine.wait(&spec.id).await.unwrap();
        assert_eq!((exit.code, exit.oom_killed), (Some(0), false));
        assert_ne!(written(&spec, "child").trim(), "0", "it did not get what it asked for");
    })
    .await;
}

#[tokio::test]
async fn usage_is_told_without_control_groups() {
    on_bench(async |bench| {
        let engine = bench.engine_with(|config| config.control_groups = ControlGroups::Off);
        let spec = bench.sandbox("sleep 600 & echo ready > /workspace/ready; wait");
        engine.create(&spec).await.unwrap();
        engine.start(&spec.id).await.unwrap();
        ready(&spec).await;
        let usage = engine.usage(&spec.id).await.unwrap();
        assert_eq!(usage.pids, 2, "the shell and its sleep");
        assert!(usage.memory_bytes > 0, "{usage:?}");
    })
    .await;
}

#[tokio::test]
async fn what_a_sandbox_says_is_kept_up_to_its_bound_and_blocks_nobody() {
    on_bench(async |bench| {
        let spec = bench.sandbox("head -c 3000000 /dev/zero >&2; echo ready > /workspace/ready; sleep 600");
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(ready(&spec).await, "ready");
        let log = bench.record(&spec).join("log");
        while log.metadata().map_or(0, |data| data.len()) < LOG_BYTES {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(log.metadata().unwrap().len(), LOG_BYTES);
    })
    .await;
}

#[tokio::test]
async fn a_control_group_that_was_there_before_is_neither_joined_nor_ended() {
    on_bench(async |bench| {
        let capabilities = bench.engine.check().await.unwrap();
        if matches!(capabilities.limits, LimitsBy::ProcessLimits { .. }) {
            return skipped(&capabilities.weaknesses().join("; ")).unwrap_or_default();
        }
        let one = bench.sandbox("echo ready > /workspace/ready; sleep 600");
        bench.engine.create(&one).await.unwrap();
        bench.engine.start(&one.id).await.unwrap();
        ready(&one).await;
        let first = std::fs::read_to_string(bench.record(&one).join("first.json")).unwrap();
        let groups: Vec<_> =
            first.split('"').filter(|part| part.starts_with('/') && part.contains(one.id.as_str())).collect();
        let spec = bench.sandbox("exit 0");
        let place = groups[0].replace(one.id.as_str(), spec.id.as_str());
        std::fs::create_dir(&place).unwrap();
        #[expect(clippy::disallowed_methods, reason = "a process that is in the group")]
        let mut other = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
        std::fs::write(format!("{place}/cgroup.procs"), other.id().to_string()).unwrap();

        let error = bench.engine.create(&spec).await.unwrap_err();
        assert!(matches!(error, EngineError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(&place), "{error}");
        assert!(other.try_wait().unwrap().is_none(), "what was in it lives");
        assert!(!bench.record(&spec).exists(), "nothing is written down of what was not made");
        other.kill().unwrap();
        other.wait().unwrap();
        std::fs::remove_dir(&place).unwrap();
        bench.engine.create(&spec).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn an_engine_does_not_open_with_the_servers_own_in_what_it_shows() {
    on_bench(async |bench| {
        let host = tempfile::tempdir_in("/var/tmp").unwrap();
        let (state, link) = (host.path().join("state"), host.path().join("link"));
        std::fs::create_dir(&state).unwrap();
        std::os::unix::fs::symlink(&state, &link).unwrap();
        let records = bench.record(&bench.sandbox("exit 0")).parent().unwrap().to_owned();
        for (shown, hidden) in
            [(link, vec![state.clone()]), (host.path().to_owned(), vec![state]), (records, Vec::new())]
        {
            for toolchain in [true, false] {
                let opened = bench.try_engine_with(|config| {
                    config.hidden.clone_from(&hidden);
                    let list = if toolchain { &mut config.toolchains } else { &mut config.read_only };
                    list.push(shown.clone());
                });
                let error = opened.unwrap_err();
                assert!(error.to_string().contains("which no sandbox may see"), "{error}");
            }
        }
    })
    .await;
}
