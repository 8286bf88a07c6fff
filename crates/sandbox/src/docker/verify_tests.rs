//! The recorded inspection of a real container, as asked for; then each field of it wrong.

use caisson_domain::id::{SandboxId, ServerId, SessionId};
use serde_json::{Value, json};

use super::*;
use crate::mounts::Bind;
use crate::{Mounts, ResourceLimits, SandboxSpec};

/// Recorded from Docker 20.10.24 (API 1.41): the container that [`spec`] asks for; its paths, its core limit and what is
/// masked in it were changed.
const RECORDED: &str = include_str!("testdata/inspected_by_20_10.json");

fn spec() -> SandboxSpec {
    let path = |name: &str| format!("/var/lib/caisson/{name}").into();
    SandboxSpec {
        id: SandboxId::new(1, [8; 10]),
        session: SessionId::new(1, [7; 10]),
        server: ServerId::new(1, [9; 10]),
        image: Some("caisson-sandbox:1".into()),
        uid: 1000,
        gid: 1000,
        mounts: Mounts {
            shim: path("shim"),
            agent_dir: path("agent"),
            door_dir: path("door:x"),
            journal_dir: path("journal"),
            workspace_dir: path("workspace"),
            home_dir: path("home"),
        },
        environment: vec![("A".into(), "b c=d".into())],
        limits: ResourceLimits::default(),
    }
}

fn profile(spec: &SandboxSpec) -> Profile<'_> {
    let bind = |entry: crate::spec::MountEntry<'_>| Bind {
        source: entry.source.to_str().unwrap().to_owned(),
        target: entry.target,
        access: entry.access,
    };
    Profile {
        spec,
        binds: spec.mounts.entries().map(bind).to_vec(),
        cores: 2,
        own_seccomp: false,
        hosts_file: Some("/var/lib/caisson/sandbox-hosts".into()),
    }
}

fn recorded() -> Value {
    serde_json::from_str(RECORDED).unwrap()
}

fn verdict(inspected: &Value) -> Verdict {
    let spec = spec();
    verify(&profile(&spec), &serde_json::from_value(inspected.clone()).unwrap())
}

/// The field that the verdict names, once `pointer` has been set to `value`.
fn blamed(pointer: &str, value: Value) -> &'static str {
    let mut inspected = recorded();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    inspected.pointer_mut(parent).unwrap()[key] = value;
    match verdict(&inspected) {
        Err(EngineError::NotAsAsked { field, asked, found }) => {
            assert_ne!(asked, found, "{field} is wrong, but the error shows no difference");
            field
        }
        other => panic!("{pointer}: {other:?}"),
    }
}

#[test]
fn a_real_container_is_as_asked() {
    verdict(&recorded()).unwrap();
}

#[test]
fn the_request_itself_would_pass() {
    // What the request and the inspection have in common, field by field: the profile asks for all that is verified.
    let spec = spec();
    let mut inspected = recorded();
    let body = serde_json::to_value(profile(&spec).body()).unwrap();
    for (field, value) in body["HostConfig"].as_object().unwrap() {
        inspected["HostConfig"][field] = value.clone();
    }
    for (field, value) in body.as_object().unwrap().iter().filter(|(field, _)| *field != "HostConfig") {
        inspected["Config"][field] = value.clone();
    }
    verdict(&inspected).unwrap();
}

#[test]
fn our_own_filter_must_stand_beside_no_new_privileges() {
    let spec = spec();
    let own = Profile { own_seccomp: true, ..profile(&spec) };
    let mut inspected = recorded();
    let mut verdict = |options: Value| {
        inspected["HostConfig"]["SecurityOpt"] = options;
        verify(&own, &serde_json::from_value(inspected.clone()).unwrap())
    };
    verdict(json!(own.security_options())).unwrap();
    for wrong in [json!(["no-new-privileges:true"]), json!(["no-new-privileges:true", "seccomp=unconfined"])]
    {
        let error = verdict(wrong).unwrap_err();
        assert!(matches!(error, EngineError::NotAsAsked { field: "HostConfig.SecurityOpt", .. }), "{error}");
    }
}

#[test]
fn each_wrong_field_of_the_process_is_named() {
    for (field, wrong) in [
        ("Name", json!("/caisson-other")),
        ("Path", json!("/bin/sh")),
        ("Args", json!(["-c", "true"])),
        ("Config.Image", json!("other:1")),
        ("Config.User", json!("0:0")),
        ("Config.User", json!("")),
        ("Config.WorkingDir", json!("/")),
        ("Config.StopSignal", json!("SIGKILL")),
        ("Config.Tty", json!(true)),
        ("Config.OpenStdin", json!(true)),
        ("Config.Healthcheck", json!({ "Test": ["CMD-SHELL", "true"] })),
        ("Config.Healthcheck", Value::Null),
        ("Config.Labels", json!({ "caisson.server": "other" })),
        ("Config.Labels", Value::Null),
        ("Config.Env", json!(["A=other"])),
        ("Config.Env", json!([])),
        ("Config.Env", json!(["A=b c=d", "A=other"])),
    ] {
        let pointer = format!("/{}", field.replace('.', "/"));
        assert_eq!(blamed(&pointer, wrong.clone()), field, "{wrong}");
    }
}

#[test]
fn each_wrong_field_of_the_walls_is_named() {
    for (field, wrong) in [
        ("Privileged", json!(true)),
        ("ReadonlyRootfs", json!(false)),
        ("ReadonlyRootfs", Value::Null),
        ("CapDrop", Value::Null),
        ("CapDrop", json!(["CAP_NET_RAW"])),
        ("CapAdd", json!(["SYS_ADMIN"])),
        ("SecurityOpt", Value::Null),
        ("SecurityOpt", json!(["no-new-privileges:true", "seccomp=unconfined"])),
        ("SecurityOpt", json!(["no-new-privileges:false"])),
        ("GroupAdd", json!(["docker"])),
        ("NetworkMode", json!("default")),
        ("NetworkMode", json!("host")),
        ("IpcMode", json!("host")),
        ("PidMode", json!("host")),
        ("UTSMode", json!("host")),
        ("UsernsMode", json!("host")),
        ("CgroupnsMode", json!("host")),
        ("CgroupnsMode", Value::Null),
        ("CgroupParent", json!("/other")),
        ("PublishAllPorts", json!(true)),
        ("PortBindings", json!({ "80/tcp": [] })),
        ("Links", json!(["other"])),
        ("Devices", json!([{ "PathOnHost": "/dev/kmsg" }])),
        ("DeviceRequests", json!([{ "Driver": "nvidia" }])),
        ("DeviceCgroupRules", json!(["a *:* rwm"])),
        ("Binds", json!(["/:/host"])),
        ("VolumesFrom", json!(["other"])),
        ("Sysctls", json!({ "net.ipv4.ip_forward": "1" })),
        ("MaskedPaths", json!([])),
        ("MaskedPaths", json!(["/proc/kcore"])),
        ("MaskedPaths", Value::Null),
        ("ReadonlyPaths", json!([])),
    ] {
        let blamed = blamed(&format!("/HostConfig/{field}"), wrong.clone());
        assert_eq!(blamed, format!("HostConfig.{field}"), "{wrong}");
    }
    assert_eq!(blamed("/NetworkSettings/Networks", json!({ "bridge": {} })), "NetworkSettings.Networks");
}

#[test]
fn each_wrong_limit_is_named() {
    for (field, wrong) in [
        ("Memory", json!(0)),
        ("Memory", Value::Null),
        ("MemorySwap", json!(-1)),
        ("OomKillDisable", json!(true)),
        ("OomScoreAdj", json!(-1000)),
        ("PidsLimit", Value::Null),
        ("PidsLimit", json!(-1)),
        ("NanoCpus", json!(0)),
        ("ShmSize", json!(1)),
        ("Ulimits", Value::Null),
        ("Ulimits", json!([{ "Name": "core", "Soft": 0, "Hard": -1 }])),
        ("Tmpfs", Value::Null),
        ("Tmpfs", json!({ "/tmp": "" })),
        ("Init", json!(true)),
        ("AutoRemove", json!(true)),
        ("RestartPolicy", json!({ "Name": "always" })),
        ("LogConfig", json!({ "Type": "journald", "Config": {} })),
        ("LogConfig", json!({ "Type": "json-file", "Config": {} })),
        ("Mounts", json!([{ "Type": "tmpfs", "Target": "/elsewhere" }])),
    ] {
        let blamed = blamed(&format!("/HostConfig/{field}"), wrong.clone());
        assert_eq!(blamed, format!("HostConfig.{field}"), "{wrong}");
    }
}

#[test]
fn each_wrong_property_of_a_mount_is_named() {
    // The engine gives them in no order.
    let mounts = recorded()["Mounts"].as_array().unwrap().clone();
    let index = |target: &str| mounts.iter().position(|mount| mount["Destination"] == target).unwrap();
    let (door, journal) = (index("/caisson/door"), index("/caisson/journal"));
    for (index, property, wrong) in [
        (door, "RW", json!(true)),
        (door, "RW", Value::Null),
        (journal, "RW", json!(false)),
        (door, "Source", json!("/")),
        (door, "Destination", json!("/elsewhere")),
        (door, "Propagation", json!("rshared")),
        (door, "Type", json!("volume")),
    ] {
        assert_eq!(blamed(&format!("/Mounts/{index}/{property}"), wrong), "Mounts", "{property}");
    }
    let mut more = mounts.clone();
    let fewer = more[1..].to_vec();
    more.push(
        json!({ "Type": "volume", "Source": "/v", "Destination": "/data", "RW": true, "Propagation": "" }),
    );
    assert_eq!(blamed("/Mounts", Value::Array(more)), "Mounts");
    assert_eq!(blamed("/Mounts", Value::Array(fewer)), "Mounts");
}

#[test]
fn an_inspection_without_its_main_parts_is_not_as_asked() {
    assert_eq!(blamed("/Config", Value::Null), "Config");
    assert_eq!(blamed("/HostConfig", Value::Null), "HostConfig");
}

#[test]
fn a_wrong_environment_is_told_without_its_values() {
    let mut inspected = recorded();
    inspected["Config"]["Env"] = json!(["A=changed"]);
    let text = verdict(&inspected).unwrap_err().to_string();
    assert!(!text.contains("b c=d") && !text.contains("changed"), "{text}");
}

#[test]
fn more_cores_than_the_machine_has_means_all_of_them() {
    let mut spec = spec();
    spec.limits.cpu_millis = 64_000;
    let body = profile(&spec).body();
    assert_eq!(body.host_config.unwrap().nano_cpus, Some(2_000_000_000));
    spec.limits.cpu_millis = 1500;
    let body = profile(&spec).body();
    assert_eq!(body.host_config.unwrap().nano_cpus, Some(1_500_000_000));
}

#[test]
fn without_a_hosts_file_the_engine_sets_up_names() {
    let spec = spec();
    let mut profile = profile(&spec);
    profile.hosts_file = None;
    let body = profile.body();
    assert_eq!(body.network_disabled, Some(false));
    let host = body.host_config.unwrap();
    assert_eq!(host.network_mode.as_deref(), Some("none"));
    assert_eq!(host.extra_hosts.unwrap(), ["sandbox:127.0.0.1"]);
    assert_eq!(host.dns.unwrap(), ["127.0.0.1"], "the host's resolvers are not shown");
    assert_eq!(host.mounts.unwrap().len(), 6);
}
