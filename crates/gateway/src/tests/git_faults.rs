//! Faults in the middle of looking at a push: whatever breaks then, no secret of the push is shown, neither in the sandbox nor in
//! the log.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::git_host::git;
use super::git_scene::{Kind, Scene, scene};
use super::log::Log;
use super::support::{MODEL_KEY, OK, is_root};

/// A git that breaks as the file beside it says, at the step it names, and works otherwise.
const BROKEN_GIT: &str = r#"#!/bin/sh
here=$(dirname "$0")
. "$here/mode"
case " $* " in
  *" $step "*)
    test -z "$half" || /usr/bin/git "$@" | head -c "$half"
    test -z "$said" || echo "fatal: cannot unpack conf/$said" >&2
    test -z "$killed" || kill -9 $$
    exit 128
    ;;
esac
exec /usr/bin/git "$@"
"#;

/// Looks like somebody's token; put together here, so that no scanner takes this file for a leak.
fn token() -> String {
    format!("ghp_{}", "9".repeat(36))
}

/// Where the git that breaks is.
const BREAKS: &str = "breaks";
/// Where the git that counts is.
const COUNTS: &str = "counts";

/// A directory of each test's own, since tests may share a process; whoever is nobody must be able to start the git in it.
fn place(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("caisson-git-{name}-{}", std::process::id()))
}

/// Puts a git there.
fn script(name: &str, text: &str) -> PathBuf {
    let place = place(name);
    fs::create_dir_all(&place).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o777)).unwrap();
    let script = place.join("git");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    place
}

/// Pushes what holds secrets in texts and names, which must not pass; answers what git printed.
async fn pushed(scene: &Scene, log: &Log) -> String {
    let before = scene.refs().await;
    let answer = scene.push(&[]).await;
    assert!(!answer.ok, "{}", answer.said);
    assert_eq!(scene.refs().await, before);
    let log = log.text();
    let events = serde_json::to_string(&scene.told().await).unwrap();
    for secret in [&token(), MODEL_KEY] {
        for (what, text) in [("the sandbox", &answer.said), ("the log", &log), ("an event", &events)] {
            // The names that git was asked to push are the sandbox's own.
            assert!(!text.contains(secret), "{what} is shown a secret: {text}");
        }
    }
    answer.said
}

async fn with_secrets(scene: &Scene) {
    scene.write("conf/app.env", &format!("TOKEN={}\nKEY={MODEL_KEY}\n", token()));
    scene.write(&format!("conf/{}", token()), "x");
    scene.commit("add settings").await;
}

#[tokio::test]
async fn git_that_breaks_while_it_looks_at_a_push_shows_no_secret_of_it() {
    script(BREAKS, BROKEN_GIT);
    let breaks = |text: &str| fs::write(place(BREAKS).join("mode"), text).unwrap();
    breaks("step=none");
    let (log, _guard) = Log::begin();
    let scene = scene(Kind::Host, |setup| setup.git.git_program = place(BREAKS).join("git"), |_| {}).await;
    with_secrets(&scene).await;
    let lengthy = format!("{}{}", token(), " and more".repeat(32));
    for step in ["index-pack", "--batch-all-objects", "diff-tree"] {
        for (half, said, killed) in [
            ("", "", "yes"),
            ("", token().as_str(), ""),
            ("", MODEL_KEY, "yes"),
            ("120", token().as_str(), ""),
            ("120", "", "yes"),
            // Its end is shown, and begins within the secret.
            ("", lengthy.as_str(), ""),
        ] {
            breaks(&format!("step={step}\nhalf={half}\nsaid='{said}'\nkilled={killed}"));
            let told = pushed(&scene, &log).await;
            assert!(!told.contains(&token()[20..]), "the end of one: {told}");
        }
    }
    assert!(log.text().contains("a push could not be looked at"), "{}", log.text());
    breaks("step=none");
    git(&scene.work, &["reset", "-q", "--hard", "HEAD~1"]).await;
    scene.commit("harmless").await;
    scene.accepted(&[]).await;
    scene.world.stop().await;
    fs::remove_dir_all(place(BREAKS)).unwrap();
}

/// A git that tells, in the directory beside it, when two of it look at packs at once: each waits for the other for so many
/// hundredths of a second.
const COUNTING_GIT: &str = r#"#!/bin/sh
here=$(dirname "$0")
case " $* " in
  *" index-pack "*)
    mkdir "$here/running" 2>/dev/null || touch "$here/overlapped"
    left=$(cat "$here/patience")
    while test "$left" -gt 0 && ! test -e "$here/overlapped"; do
      sleep 0.01
      left=$((left - 1))
    done
    rmdir "$here/running" 2>/dev/null
    ;;
esac
exec /usr/bin/git "$@"
"#;

/// Whether two pushes that come at once are looked at at once, if one waits for the other so many hundredths of a second.
async fn overlap(patience: u32, shorten: fn(&mut super::support::Setup)) -> bool {
    let place = script(COUNTS, COUNTING_GIT);
    fs::write(place.join("patience"), patience.to_string()).unwrap();
    let scene = scene(Kind::Host, shorten, |_| {}).await;
    let new = scene.commit("twice").await;
    let pack = scene.pack(&[], &format!("{new}\n")).await;
    let (one, other) = tokio::join!(scene.forge(&new, "", &pack), scene.forge(&new, "", &pack));
    assert_eq!((one.status, other.status), (OK, OK), "{} {}", one.text(), other.text());
    scene.world.stop().await;
    let overlapped = place.join("overlapped").exists();
    fs::remove_dir_all(place).unwrap();
    overlapped
}

#[tokio::test]
async fn no_more_pushes_than_their_bound_are_looked_at_at_once() {
    let of_one = Box::pin(overlap(50, |setup| {
        setup.git.git_program = place(COUNTS).join("git");
        setup.bounds.inspections = 1;
    }));
    assert!(!of_one.await, "one waits for its turn");
    let of_two = Box::pin(overlap(2_000, |setup| {
        setup.git.git_program = place(COUNTS).join("git");
        setup.bounds.inspections = 2;
    }));
    assert!(of_two.await, "there is room for both");
}

#[tokio::test]
async fn a_disk_that_is_full_while_a_push_is_looked_at_shows_no_secret_of_it() {
    if !is_root("mount a small file system") {
        return;
    }
    let (log, _guard) = Log::begin();
    let scene = scene(
        Kind::Host,
        |setup| setup.bounds.push.free_bytes = 0,
        |seeding| {
            let held = seeding.parent().unwrap().join("held");
            fs::create_dir_all(&held).unwrap();
            mount(&["-t", "tmpfs", "-o", "size=128k,mode=755", "none", held.to_str().unwrap()]);
        },
    )
    .await;
    let mut told = Vec::new();
    for kib in (100..=280).step_by(6) {
        // Digits of a number that nobody can compress much.
        let noise: Vec<String> = (0..kib * 64_u32)
            .map(|number| {
                format!("{:08x}{:08x}", number.wrapping_mul(2_654_435_761), number.wrapping_mul(40_503 * kib))
            })
            .collect();
        scene.write("noise", &noise.concat());
        with_secrets(&scene).await;
        told.push(pushed(&scene, &log).await);
        git(&scene.work, &["reset", "-q", "--hard", "HEAD~1"]).await;
    }
    let full = |said: &&String| {
        said.contains("No space left") || said.contains("could not") || said.contains("disk")
    };
    assert!(told.iter().any(|said| full(&said)), "the disk was never full: {}", told[0]);
    assert!(told.iter().any(|said| said.contains("a secret, by rule")), "it was always full: {}", told[0]);
    let held = scene.world.root.path().join("held");
    scene.world.stop().await;
    unmount(&held);
}

#[expect(clippy::disallowed_methods, reason = "mount(8) is started here, with an argument vector")]
fn mount(arguments: &[&str]) {
    assert!(std::process::Command::new("mount").args(arguments).status().unwrap().success());
}

#[expect(clippy::disallowed_methods, reason = "umount(8) is started here, with an argument vector")]
fn unmount(place: &std::path::Path) {
    assert!(std::process::Command::new("umount").arg("-l").arg(place).status().unwrap().success());
}
