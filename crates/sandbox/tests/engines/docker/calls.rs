//! The filter of system calls, tried from inside a container. The control is the same container without a filter, in which the kernel
//! answers for itself, and so otherwise.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{RemoveContainerOptions, StartContainerOptions, WaitContainerOptions};
use caisson_sandbox::docker::DEFAULT_IMAGE;
use caisson_sandbox::{Engine, SandboxSpec};
use futures_util::StreamExt;

use super::bench::{Bench, on_bench};
use crate::places::written;

/// The same attempts as on the local engine.
const ATTEMPTS: &str = include_str!("../local/attempts.py");
const EPERM: &str = "refused 1 ";
const ENOSYS: &str = "refused 38 ";
/// Each attempt with the filter's answer.
const ALL: [(&str, &str); 12] = [
    ("foreign_socket", EPERM),
    ("foreign_pair", EPERM),
    ("keyring", EPERM),
    ("user_namespace", EPERM),
    ("cloned_namespace", EPERM),
    ("socket_filter", EPERM),
    ("call_filter", EPERM),
    ("kernel_events", EPERM),
    ("huge_pages", EPERM),
    ("asynchronous_disk", ENOSYS),
    ("asynchronous_calls", ENOSYS),
    ("renewed_clone", ENOSYS),
];

fn script() -> String {
    let each = ALL.map(|(name, _)| format!("python3 /workspace/attempts.py {name} > /workspace/{name} 2>&1"));
    format!("{}\nexit 0", each.join("\n"))
}

fn told(spec: &SandboxSpec) -> HashMap<&'static str, String> {
    ALL.map(|(name, _)| (name, written(spec, name))).into_iter().collect()
}

/// The same image, user and directory, and no filter.
async fn control(bench: &Bench, spec: &SandboxSpec) {
    let mount = Mount {
        typ: Some(MountType::BIND),
        source: Some(spec.mounts.workspace_dir.to_str().unwrap().to_owned()),
        target: Some("/workspace".to_owned()),
        ..Mount::default()
    };
    let body = ContainerCreateBody {
        image: Some(DEFAULT_IMAGE.to_owned()),
        user: Some(format!("{}:{}", spec.uid, spec.gid)),
        entrypoint: Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), script()]),
        cmd: Some(Vec::new()),
        host_config: Some(HostConfig {
            mounts: Some(vec![mount]),
            network_mode: Some("none".to_owned()),
            security_opt: Some(vec!["seccomp=unconfined".to_owned()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let docker = bench.docker();
    let made = docker.create_container(None, body).await.unwrap();
    docker.start_container(&made.id, None::<StartContainerOptions>).await.unwrap();
    let mut ends = docker.wait_container(&made.id, None::<WaitContainerOptions>);
    let end = ends.next().await.unwrap();
    let force = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
    docker.remove_container(&made.id, Some(force)).await.unwrap();
    assert_eq!(end.unwrap().status_code, 0);
}

#[tokio::test]
async fn calls_that_sandboxes_have_no_need_of_are_stopped_whatever_the_engine_s_default_is() {
    on_bench(async |bench| {
        let spec = bench.sandbox(&script());
        std::fs::write(spec.mounts.workspace_dir.join("attempts.py"), ATTEMPTS).unwrap();
        bench.engine.create(&spec).await.unwrap();
        bench.engine.start(&spec.id).await.unwrap();
        assert_eq!(bench.engine.wait(&spec.id).await.unwrap().code, Some(0));
        let inside = told(&spec);
        for (name, answer) in ALL {
            assert!(inside[name].starts_with(answer), "{name}: {}", inside[name]);
        }
        control(bench, &spec).await;
        let outside = told(&spec);
        for (name, _) in ALL {
            assert_ne!(inside[name], outside[name], "the control of {name} is stopped by a filter");
        }
    })
    .await;
}
