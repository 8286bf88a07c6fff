//! What git on the server may take and as whom it runs, with the real git.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use http::Method;
use sha2::Digest;

use super::git_host::{Client, bare_repository, git, git_with};
use super::support::{PATIENCE, Sandbox, Setup, World, eventually, fetch, is_root, run_spec};

const BRANCH: &str = "caisson/fixer/1";
const REFS: &str = "/git/origin/info/refs?service=git-upload-pack";
/// A user who owns nothing.
const NOBODY: u32 = 65534;
const MIB: usize = 1024 * 1024;

struct Scene {
    world: World,
    sandbox: Sandbox,
    bare: PathBuf,
    client: Client,
}

/// A clone with one commit on top, of a repository that `prepare` has changed before the gateway started.
async fn scene(shorten: fn(&mut Setup), prepare: fn(&Path)) -> Scene {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    let bare = root.join("bare.git");
    bare_repository(&bare).await;
    let sandbox = world.sandbox(run_spec(Some(bare.to_str().unwrap()))).await;
    let client = Client::new(&sandbox, root.join("client")).await;
    git(&client.directory, &["clone", "-q", bare.to_str().unwrap(), "work"]).await;
    git(&client.directory.join("work"), &["remote", "set-url", "origin", &client.url]).await;
    client.commit("two\n").await;
    prepare(&bare);
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
    shorten(&mut setup);
    world.start(setup).await;
    Scene { world, sandbox, bare, client }
}

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
}

impl Scene {
    /// Makes an object of these bytes in the client's clone.
    async fn object(&self, kind: &str, bytes: &[u8]) -> String {
        let arguments = ["hash-object", "-t", kind, "-w", "--stdin"];
        git_with(&self.client.directory.join("work"), &arguments, bytes).await
    }

    async fn commit_of(&self, tree: &str) -> String {
        git(&self.client.directory.join("work"), &["commit-tree", "-p", "HEAD", "-m", "big", tree]).await
    }
}

#[tokio::test]
async fn objects_that_grow_beyond_the_bound_on_memory_are_refused_and_large_files_are_not() {
    let scene = scene(|setup| setup.bounds.git_alloc_bytes = 8 * MIB as u64, |_| {}).await;
    let work = scene.client.directory.join("work");
    let tree = git(&work, &["rev-parse", "HEAD^{tree}"]).await;
    let head =
        format!("tree {tree}\nauthor t <t@example.com> 1 +0000\ncommitter t <t@example.com> 1 +0000\n\n");
    let commit = scene.object("commit", &[head.as_bytes(), &vec![b'a'; 9 * MIB]].concat()).await;
    let blob = scene.object("blob", b"x").await;
    let id = hex::decode(&blob).unwrap();
    let entries = (0..270_000).flat_map(|number| {
        let mut entry = format!("100644 {number:08}\0").into_bytes();
        entry.extend_from_slice(&id);
        entry
    });
    let wide = scene.object("tree", &entries.collect::<Vec<_>>()).await;
    let wide = scene.commit_of(&wide).await;
    for bomb in [commit, wide] {
        let pushed = scene.client.push(&[&format!("{bomb}:refs/heads/{BRANCH}")]).await;
        assert!(!pushed.ok && pushed.said.contains("attempting to allocate"), "{}", pushed.said);
        assert!(scene.world.run(&scene.sandbox.run.id).await.pushed_commit.is_none());
    }
    // A file is larger than the bound on memory here, and passes through it.
    let zeros = scene.object("blob", &vec![0; 20 * MIB]).await;
    let large = git_with(&work, &["mktree"], format!("100644 blob {zeros}\tzeros\n").as_bytes()).await;
    let large = scene.commit_of(&large).await;
    let pushed = scene.client.push(&[&format!("{large}:refs/heads/{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    assert_eq!(git(&scene.bare, &["rev-parse", BRANCH]).await, large);
    scene.world.stop().await;
}

#[tokio::test]
async fn what_is_pushed_stays_a_pack_and_is_checked_whatever_the_repository_says() {
    let scene = scene(
        |_| {},
        |bare| {
            let settings =
                "[receive]\n\tfsckObjects = false\n\tunpackLimit = 1000\n[transfer]\n\tfsckObjects = false\n";
            let config = bare.join("config");
            std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + settings).unwrap();
        },
    )
    .await;
    let count = || async { git(&scene.bare, &["count-objects", "-v"]).await };
    let loose = |text: String| text.lines().next().map(str::to_owned);
    let before = loose(count().await);
    assert!(scene.client.push(&[&format!("HEAD:{BRANCH}")]).await.ok);
    let after = count().await;
    assert!(after.contains("packs: 1") || after.contains("packs: 2"), "{after}");
    assert_eq!(loose(after), before);
    let dotgit =
        git_with(&scene.client.directory.join("work"), &["hash-object", "-w", "--stdin"], b"x").await;
    let tree = format!("100644 blob {dotgit}\t.GIT\n");
    let tree = git_with(&scene.client.directory.join("work"), &["mktree"], tree.as_bytes()).await;
    let bad = scene.commit_of(&tree).await;
    let pushed = scene.client.push(&[&format!("{bad}:refs/heads/{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("hasDotgit"), "{}", pushed.said);
    scene.world.stop().await;
}

/// A repository whose own settings allow every filter.
fn allows_filters(bare: &Path) {
    let names = ["sparse:oid", "combine", "object:type"];
    let settings = names.map(|name| format!("[uploadpackfilter \"{name}\"]\n\tallow = true\n")).concat();
    let config = bare.join("config");
    std::fs::write(&config, std::fs::read_to_string(&config).unwrap() + &settings).unwrap();
}

#[tokio::test]
async fn a_fetch_leaves_out_what_costs_nothing_to_leave_out_and_nothing_else() {
    let scene = scene(|_| {}, allows_filters).await;
    let blob = git(&scene.bare, &["rev-parse", "main:file"]).await;
    let fetch = async |version: &str, filter: &str| {
        let (protocol, filter) = (format!("protocol.version={version}"), format!("--filter={filter}"));
        let arguments = ["-c", &protocol, "clone", "-q", "--no-checkout", &filter, &scene.client.url, "lazy"];
        let fetched = scene.client.git(".", &arguments).await;
        std::fs::remove_dir_all(scene.client.directory.join("lazy")).ok();
        fetched
    };
    let list = format!("sparse:oid={blob}");
    for version in ["0", "2"] {
        for good in ["blob:none", "blob:limit=1k", "tree:0", "tree:1"] {
            let fetched = fetch(version, good).await;
            assert!(fetched.ok && fetched.said.is_empty(), "{version} {good}: {}", fetched.said);
        }
        let many = vec![list.as_str(); 100].join("+");
        for (bad, name) in [
            (list.as_str(), "sparse:oid"),
            (&format!("combine:{many}"), "combine"),
            ("combine:blob:none+tree:1", "combine"),
            ("object:type=tree", "object:type"),
        ] {
            let fetched = fetch(version, bad).await;
            let words = format!("filter '{name}' not supported");
            assert!(!fetched.ok && fetched.said.contains(&words), "{version} {bad}: {}", fetched.said);
        }
    }
    scene.world.stop().await;
}

#[tokio::test]
async fn git_serves_a_fetch_within_bounds_that_the_kernel_keeps() {
    for (bounds, fits) in [(1024 * MIB as u64, true), (MIB as u64 / 4, false)] {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        bare_repository(&root.join("bare.git")).await;
        // Git and what it starts have its bounds; a push has no other than the server's.
        let (git, seen) = (root.join("git"), root.join("seen"));
        script(&git, &format!("cat /proc/self/limits > {}.$1\nexec git \"$@\"", seen.display()));
        let sandbox = world.sandbox(run_spec(Some(root.join("bare.git").to_str().unwrap()))).await;
        let mut setup = Setup::new();
        setup.git.allow = AllowList::new(&[], vec![root.clone()]).unwrap();
        setup.git.git_program.clone_from(&git);
        (setup.bounds.fetch_memory_bytes, setup.bounds.fetch_cpu_s) = (bounds, 99);
        world.start(setup).await;
        let reply = fetch(sandbox.request(Method::GET, REFS, &sandbox.agent)).await;
        if fits {
            assert_eq!(reply.status, 200, "{}", reply.text());
            let limits = std::fs::read_to_string(seen.with_extension("upload-pack")).unwrap();
            let limit = |name: &str| {
                let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
                line[name.len()..].split_whitespace().next().unwrap().to_owned()
            };
            assert_eq!(
                (limit("Max cpu time"), limit("Max data size")),
                ("99".to_owned(), bounds.to_string())
            );
            let pushing = REFS.replace("upload", "receive");
            let reply = fetch(sandbox.request(Method::GET, &pushing, &sandbox.agent)).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            let limits = std::fs::read_to_string(seen.with_extension("receive-pack")).unwrap();
            assert!(!limits.contains(&format!(" {bounds} ")), "{limits}");
        } else {
            assert_eq!((reply.status, reply.code().as_str()), (502, "repo_unreachable"), "{}", reply.text());
        }
        world.stop().await;
    }
}

#[tokio::test]
async fn what_git_started_ends_with_it() {
    let scene = scene(
        |setup| setup.bounds.drain = Duration::from_millis(50),
        |bare| script(&bare.join("hooks/pre-receive"), "echo $$ > pid.new; mv pid.new pid; exec sleep 600"),
    )
    .await;
    let Scene { world, bare, client, .. } = scene;
    let file = bare.join("pid");
    let push = format!("HEAD:{BRANCH}");
    let arguments = [push.as_str()];
    let pid = tokio::select! {
        pushed = client.push(&arguments) => panic!("it hangs: {}", pushed.said),
        pid = eventually(|| async { std::fs::read_to_string(&file).ok() }) => pid,
    };
    // Its connection goes with it.
    drop(client);
    // A process whose end nobody has asked for yet has no command line any more.
    let cmdline = PathBuf::from(format!("/proc/{}/cmdline", pid.trim()));
    eventually(|| async { std::fs::read(&cmdline).map_or(true, |line| line.is_empty()).then_some(()) }).await;
    world.stop().await;
}

/// Gives the repository away and lets its user pass the directories above it.
fn give_away(bare: &Path) {
    let mut pending = vec![bare.to_owned()];
    while let Some(path) = pending.pop() {
        // Root's group, as a directory has that root made and gave away.
        chown(&path, Some(NOBODY), Some(0)).unwrap();
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    std::fs::set_permissions(bare.parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
}

/// Everything below `path` with its owner's uid and gid.
fn owners(path: &Path, found: &mut Vec<(PathBuf, u32, u32)>) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    found.push((path.to_owned(), metadata.uid(), metadata.gid()));
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            owners(&entry.unwrap().path(), found);
        }
    }
}

#[tokio::test]
async fn a_root_server_works_on_somebodys_repository_as_its_owner() {
    if !is_root("become somebody else") {
        return;
    }
    let scene = scene(
        |_| {},
        |bare| {
            script(&bare.join("hooks/post-receive"), "id -u > hook-uid; id -G > hook-groups");
            give_away(bare);
        },
    )
    .await;
    let mut before = Vec::new();
    owners(&scene.bare, &mut before);
    let pushed = scene.client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    assert!(scene.bare.join("refs/heads").join(BRANCH).is_file());
    let mut after = Vec::new();
    owners(&scene.bare, &mut after);
    let new: Vec<_> = after.iter().filter(|(path, ..)| !before.iter().any(|(old, ..)| old == path)).collect();
    assert!(new.len() >= 3, "{new:?}");
    for (path, uid, gid) in new {
        assert_eq!((*uid, *gid), (NOBODY, NOBODY), "{}", path.display());
    }
    let said = |name: &str| std::fs::read_to_string(scene.bare.join(name)).unwrap();
    assert_eq!((said("hook-uid").trim(), said("hook-groups").trim()), ("65534", "65534"));
    scene.world.stop().await;
}

#[tokio::test]
async fn an_owner_who_cannot_reach_their_own_repository_is_said_to_be() {
    if !is_root("become somebody else") {
        return;
    }
    let scene = scene(
        |_| {},
        |bare| {
            give_away(bare);
            std::fs::set_permissions(bare.parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
        },
    )
    .await;
    let reply =
        tokio::time::timeout(PATIENCE, fetch(scene.sandbox.request(Method::GET, REFS, &scene.sandbox.agent)));
    let reply = reply.await.unwrap();
    assert_eq!((reply.status, reply.code().as_str()), (502, "repo_unreachable"));
    let part = "uid 65534: that user must be able to pass every directory above it";
    assert!(reply.text().contains(part), "{}", reply.text());
    scene.world.stop().await;
}

#[tokio::test]
async fn what_a_run_fetches_in_all_is_bounded_and_it_is_told() {
    const BOUND: usize = 64 * 1024;
    let scene = scene(|setup| setup.bounds.fetched_bytes = BOUND as u64, |_| {}).await;
    let (world, sandbox) = (&scene.world, &scene.sandbox);
    // A file that does not fit, as no pack makes it smaller.
    let noise: Vec<u8> = (0..BOUND as u64).map(|at| sha2::Sha256::digest(at.to_le_bytes())[0]).collect();
    let other = world.root.path().join("other");
    git(world.root.path(), &["clone", "-q", scene.bare.to_str().unwrap(), other.to_str().unwrap()]).await;
    let blob = git_with(&other, &["hash-object", "-w", "--stdin"], &noise).await;
    git(&other, &["update-index", "--add", "--cacheinfo", &format!("100644,{blob},noise")]).await;
    git(&other, &["commit", "-q", "-m", "noise"]).await;
    git(&other, &["push", "-q", "origin", "HEAD:noise"]).await;
    let broken = scene.client.git("work", &["fetch", "-q", "origin", "noise"]).await;
    assert!(!broken.ok, "{}", broken.said);
    let again = scene.client.git("work", &["fetch", "-q", "origin"]).await;
    assert!(!again.ok && again.said.contains("given more than 65536 bytes"), "{}", again.said);
    let told = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert!(told.iter().all(|event| event["rule"] == "too_much_fetched") && told.len() == 2, "{told:?}");
    // What the run has made is published all the same.
    let pushed = scene.client.git("work", &["push", "-q", "origin", &format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    world.stop().await;
}

#[tokio::test]
async fn fetches_up_to_their_bound_are_answered() {
    let scene = scene(|_| {}, |_| {}).await;
    let size = fetch(scene.sandbox.request(Method::GET, REFS, &scene.sandbox.agent)).await.body.len();
    scene.world.stop().await;
    for (bound, whole) in [(2 * size, 2), (2 * size - 1, 1)] {
        let world = World::new().await;
        let root = world.root.path().canonicalize().unwrap();
        let bare = root.join("bare.git");
        bare_repository(&bare).await;
        let mut setup = Setup::new();
        setup.git.allow = AllowList::new(&[], vec![root]).unwrap();
        setup.bounds.fetched_bytes = bound as u64;
        world.start(setup).await;
        let sandbox = world.sandbox(run_spec(Some(bare.to_str().unwrap()))).await;
        let mut answers = Vec::new();
        for _ in 0..3 {
            let reply = sandbox.request(Method::GET, REFS, &sandbox.agent).send().await.unwrap();
            let status = reply.status().as_u16();
            answers.push((status, reply.bytes().await.is_ok_and(|body| body.len() == size)));
        }
        assert_eq!(answers.iter().filter(|answer| **answer == (200, true)).count(), whole, "{answers:?}");
        assert_eq!(answers[2].0, 403, "{answers:?}");
        world.stop().await;
    }
}
