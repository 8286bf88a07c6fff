//! What a sandbox is and holds, judged from the host's side while its agent works.

#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use testkit::docker::{docker, inspect};
use testkit::engine::Engine;
use testkit::parts::Parts;
use testkit::world::{GIT_TOKEN, MODEL_KEY, World, WorldSpec};

const WAIT: Duration = Duration::from_mins(1);

testkit::on_every_engine! {
    canaries_reach_the_upstreams_and_nothing_else
    a_sandbox_is_sealed_as_the_host_sees_it
}

/// The canaries in every form that a leak could have.
fn needles() -> Vec<(String, Vec<u8>)> {
    let mut needles = Vec::new();
    for (name, secret) in [("model key", MODEL_KEY), ("git token", GIT_TOKEN)] {
        let basic = format!("x-access-token:{secret}");
        needles.push((format!("{name}, raw"), secret.as_bytes().to_vec()));
        needles.push((format!("{name}, base64"), STANDARD.encode(secret).into_bytes()));
        needles.push((format!("{name}, url-safe base64"), URL_SAFE.encode(secret).into_bytes()));
        needles.push((format!("{name}, basic"), STANDARD.encode(basic).into_bytes()));
        needles.push((format!("{name}, hex"), hex::encode(secret).into_bytes()));
    }
    needles
}

/// Says where a canary stands in `bytes`.
fn hunt(place: &str, bytes: &[u8], found: &mut Vec<String>) {
    for (name, needle) in needles() {
        if memchr::memmem::find(bytes, &needle).is_some() {
            found.push(format!("{name} in {place}"));
        }
    }
}

fn hunt_tree(root: &Path, found: &mut Vec<String>) -> usize {
    let mut looked_at = 0;
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file()
                && let Ok(bytes) = std::fs::read(entry.path())
            {
                looked_at += 1;
                hunt(&entry.path().display().to_string(), &bytes, found);
            }
        }
    }
    looked_at
}

async fn working(parts: &Parts, engine: Engine) -> (World, String, String) {
    let spec = WorldSpec {
        scenario: "cart-slow".to_owned(),
        delay_scale: 1.0,
        // Afterwards the workspace is an image, which is read whole.
        variables: vec![("LIMITS__WORKSPACE_MIB".to_owned(), "256".to_owned())],
        ..WorldSpec::on(engine)
    };
    let world = World::start(parts, spec).await.unwrap();
    let id = world.api.submit(&world.run_body()).await.unwrap();
    let sandbox = world.inside_a_tool(&id, WAIT).await.unwrap();
    assert_eq!(world.sandboxes().unwrap(), [sandbox.as_str()]);
    (world, id, sandbox)
}

/// What the engine itself shows of a sandbox: its settings, its log, its files.
fn hunt_engine(world: &World, sandbox: &str, found: &mut Vec<String>) {
    let parts = &world.spec.parts;
    match world.engine {
        Engine::Docker => {
            hunt("docker inspect", inspect(parts, sandbox).unwrap().to_string().as_bytes(), found);
            hunt("docker logs", &docker(parts, &["logs", sandbox]).unwrap(), found);
            let file_system = docker(parts, &["export", sandbox]).unwrap();
            assert!(
                file_system.len() > 50_000_000,
                "the export holds the image: {} bytes",
                file_system.len()
            );
            hunt("docker export", &file_system, found);
        }
        Engine::Local => {
            // Records and log are in the state directory. Of the file system, `/usr` is the host's own.
            let first = world.processes(sandbox).unwrap()[0];
            let root = PathBuf::from(format!("/proc/{first}/root"));
            let own = [
                "etc",
                "tmp",
                "run",
                "var",
                "dev/shm",
                "caisson/door",
                "caisson/journal",
                "home",
                "workspace",
            ];
            let looked_at: usize = own.iter().map(|place| hunt_tree(&root.join(place), found)).sum();
            assert!(looked_at > 30, "{looked_at} files of the sandbox were looked at");
        }
    }
}

/// A field of `/proc/<pid>/status`.
fn status_field(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn canaries_reach_the_upstreams_and_nothing_else(engine: Engine) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = working(&parts, engine).await;
    let mut found = Vec::new();

    // While the agent works: the sandbox as the kernel and the engine show it.
    let pids = world.processes(&sandbox).unwrap();
    assert!(pids.len() >= 3, "shim, agent and tool were expected: {pids:?}");
    for pid in pids {
        for file in ["environ", "cmdline"] {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            assert!(!bytes.is_empty(), "{file} of {pid} cannot be read from the host");
            hunt(&format!("{file} of {pid}"), &bytes, &mut found);
        }
    }
    hunt_engine(&world, &sandbox, &mut found);
    let while_working = hunt_tree(world.state_dir(), &mut found);

    let run = world.api.wait_end(&id, WAIT).await.unwrap();
    assert_eq!(run["status"], "succeeded", "{run:#}");
    // When it is done: database, logs, artifacts, workspace with its git configuration, events, the pushed repository.
    let afterwards = hunt_tree(world.state_dir(), &mut found);
    // By then the session's files are inside one image, if it has a volume.
    assert!(while_working > 20 && afterwards > 5, "{while_working} and {afterwards} files looked at");
    let events = serde_json::to_vec(&world.api.events(&id).await.unwrap()).unwrap();
    assert!(events.len() > 1_000);
    hunt("events", &events, &mut found);
    hunt_tree(&world.bare, &mut found);
    assert!(found.is_empty(), "{found:#?}");

    // The hunt can find: the upstreams did receive both.
    assert!(world.host.shown_tokens().iter().any(|token| token == GIT_TOKEN));
    assert!(!world.model_calls().is_empty());
    assert!(
        world
            .model_calls()
            .iter()
            .all(|call| call.x_api_key.as_ref().is_some_and(|key| key.matched == Some(true)))
    );
    let planted: PathBuf = world.state_dir().join("planted");
    std::fs::write(&planted, format!("x{}y", STANDARD.encode(GIT_TOKEN))).unwrap();
    hunt_tree(world.state_dir(), &mut found);
    assert!(found.iter().any(|place| place.contains("planted")), "{found:?}");
}

async fn a_sandbox_is_sealed_as_the_host_sees_it(engine: Engine) {
    let Some(parts) = Parts::find(env!("CARGO_BIN_EXE_caisson")) else { return };
    let (world, id, sandbox) = working(&parts, engine).await;
    let pids = world.processes(&sandbox).unwrap();
    for pid in pids.iter().copied() {
        let uids = status_field(pid, "Uid");
        let uid: u32 = uids.split(' ').next().unwrap().parse().unwrap();
        assert!(uid >= 1000 && uids.split(' ').all(|text| text == uid.to_string()), "{pid} has {uids}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status_field(pid, set), "0000000000000000", "{set} of {pid}");
        }
        assert_eq!(status_field(pid, "NoNewPrivs"), "1");
        assert_eq!(status_field(pid, "Seccomp"), "2", "a filter");
    }
    let pid = pids[0];
    let devices = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    let devices: Vec<_> =
        devices.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(devices, ["lo"]);
    mounts(pid);
    let start_ms = world
        .api
        .events(&id)
        .await
        .unwrap()
        .iter()
        .find(|event| event["kind"] == "sandbox.started")
        .and_then(|event| event["data"]["start_ms"].as_i64())
        .expect("the start is measured");
    assert!((1..5_000).contains(&start_ms), "the start took {start_ms} ms");
}

/// The mounts of a process in the sandbox: what may be written, and what is not there at all.
fn mounts(pid: u32) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounted: Vec<(&str, &str)> = text
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (fields[4], fields[5])
        })
        .collect();
    let options =
        |place: &str| mounted.iter().find(|(target, _)| *target == place).map(|(_, options)| *options);
    for read_only in ["/", "/caisson/shim", "/caisson/agent", "/caisson/door"] {
        let options = options(read_only).unwrap_or_else(|| panic!("{read_only} is no mount"));
        assert!(options.split(',').any(|option| option == "ro"), "{read_only} is {options}");
    }
    for writable in ["/workspace", "/home/agent", "/caisson/journal", "/tmp"] {
        let options = options(writable).unwrap_or_else(|| panic!("{writable} is no mount"));
        assert!(options.split(',').any(|option| option == "rw"), "{writable} is {options}");
    }
    assert!(!text.contains("docker.sock"), "{text}");
}
