//! Pushes that break the rule: refused before anything is forwarded, and readable in git's own words.

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use http::Method;
use std::path::{Path, PathBuf};

use super::git_host::{Client, bare_repository, git};
use super::support::{OK, Sandbox, Setup, World, fetch, run_spec};
use crate::bounds::{COMMANDS, REF_BYTES};

const BRANCH: &str = "caisson/fixer/1";

async fn world(shorten: fn(&mut Setup)) -> (World, Sandbox, PathBuf, Client) {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    let bare = root.join("bare.git");
    bare_repository(&bare).await;
    let sandbox = world.sandbox(run_spec(Some(bare.to_str().unwrap()))).await;
    let mut setup = Setup::new();
    setup.git.allow = AllowList::new(&[], vec![root.clone()]).unwrap();
    shorten(&mut setup);
    world.start(setup).await;
    let client = Client::new(&sandbox, root.join("client")).await;
    client.clone_and_commit().await;
    (world, sandbox, bare, client)
}

async fn refs(bare: &Path) -> String {
    git(bare, &["for-each-ref"]).await
}

#[tokio::test]
async fn other_refs_are_refused_with_a_reason_and_the_remedy() {
    let (world, sandbox, bare, client) = world(|_| {}).await;
    let own = format!("HEAD:{BRANCH}");
    assert!(client.push(&[&own]).await.ok);
    client.commit("three\n").await;
    assert!(client.git("work", &["tag", "v1"]).await.ok);
    let before = refs(&bare).await;
    let delete = format!(":{BRANCH}");
    for (arguments, rule) in [
        (vec!["HEAD:main"], "own_branch"),
        (vec!["--force", "HEAD:main"], "own_branch"),
        (vec!["v1"], "own_branch"),
        (vec!["HEAD:refs/notes/x"], "own_branch"),
        (vec![delete.as_str()], "no_delete"),
        (vec![own.as_str(), "HEAD:main"], "own_branch"),
        (vec!["--atomic", own.as_str(), "HEAD:main"], "own_branch"),
    ] {
        let count = world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len();
        let pushed = client.push(&arguments).await;
        assert!(!pushed.ok, "{arguments:?}");
        assert!(pushed.said.contains("[remote rejected]"), "{}", pushed.said);
        assert!(pushed.said.contains("remote: caisson: refs/"), "{}", pushed.said);
        assert_eq!(refs(&bare).await, before, "{arguments:?}");
        let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
        assert_eq!((&denied[count]["what"], &denied[count]["rule"]), (&"push".into(), &rule.into()));
        assert!(!denied[count]["remedy"].as_str().unwrap().is_empty());
    }
    let pushed = client.push(&["HEAD:main"]).await;
    assert!(pushed.said.contains(&format!("this run may push {BRANCH} only")), "{}", pushed.said);
    assert_eq!(world.events(&sandbox.run.id, EventKind::GitPush).await.len(), 1);
    world.stop().await;
}

#[tokio::test]
async fn push_options_do_not_pass() {
    let (world, sandbox, bare, client) = world(|_| {}).await;
    git(&bare, &["config", "receive.advertisePushOptions", "true"]).await;
    let pushed = client.push(&["--push-option=ci.skip", &format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("push without --push-option"), "{}", pushed.said);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!(denied[0]["rule"], "no_options");
    world.stop().await;
}

#[tokio::test]
async fn a_push_larger_than_its_bound_is_refused_and_git_says_why() {
    let (world, sandbox, bare, client) = world(|setup| setup.bounds.push_bytes = 3_000_000).await;
    let before = refs(&bare).await;
    // More than git's post buffer, so that it comes in chunks; noise, so that it stays as large.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56).to_le_bytes()[0]
    })
    .take(4_000_000)
    .collect();
    std::fs::write(client.directory.join("work/noise"), &noise).unwrap();
    let work = client.directory.join("work");
    git(&work, &["add", "noise"]).await;
    git(&work, &["commit", "-qm", "noise"]).await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("larger than 3000000 bytes"), "{}", pushed.said);
    assert_eq!(refs(&bare).await, before);
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!(denied[0]["rule"], "push_size");
    assert_eq!(world.store.pending_push(&sandbox.run.id).await.unwrap(), None);
    std::fs::write(client.directory.join("work/noise"), &noise[..2_000_000]).unwrap();
    git(&work, &["commit", "-qa", "--amend", "-m", "less noise"]).await;
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(pushed.ok, "{}", pushed.said);
    world.stop().await;
}

#[tokio::test]
async fn what_is_no_push_is_refused_before_anything_is_forwarded() {
    let (world, sandbox, bare, _client) = world(|_| {}).await;
    let before = refs(&bare).await;
    let post = |body: Vec<u8>| {
        fetch(sandbox.request(Method::POST, "/git/origin/git-receive-pack", &sandbox.agent).body(body))
    };
    let line = |text: &str| format!("{:04x}{text}", text.len() + 4);
    let id = "1".repeat(40);
    let command = line(&format!("{} {id} refs/heads/{BRANCH}\0 report-status", "0".repeat(40)));
    let lacking = line(&format!("shallow {id}\n"));
    let many = line(&format!("{id} {id} refs/heads/x")).repeat(COMMANDS);
    let long = line(&format!("{id} {id} refs/{}", "x".repeat(REF_BYTES)));
    let signed = line("push-cert\0report-status");
    let cases = [
        ("unreadable", String::new(), "ended before its commands"),
        ("unreadable", "00".to_owned(), "ended before its commands"),
        ("unreadable", "zzzz".to_owned(), "pkt-line"),
        // Nothing but what the client lacks, and nonsense about that.
        ("unreadable", format!("{lacking}0000"), "no ref command"),
        ("unreadable", format!("{}{command}0000", line("shallow HEAD")), "no ref command"),
        ("unreadable", format!("{command}{lacking}0000"), "no ref command"),
        // What git writes, and more of it than there is room for.
        ("push_commands", format!("{}{command}0000", lacking.repeat(1300)), "longer than 65536 bytes"),
        ("push_commands", format!("{command}{many}0000"), "more than 16 commands"),
        ("push_commands", format!("{long}0000"), "longer than 1024 bytes"),
        ("push_commands", format!("{signed}0000"), "--signed"),
    ];
    let count = cases.len();
    for (rule, bad, remedy) in cases {
        let reply = post(bad.clone().into_bytes()).await;
        assert_eq!((reply.status, reply.code().as_str()), (400, "push_refused"), "{bad}");
        let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await.pop().unwrap();
        assert_eq!((&denied["what"], &denied["rule"]), (&"push".into(), &rule.into()), "{bad}");
        assert_eq!(denied["remedy"], reply.json()["message"]);
        assert!(denied["remedy"].as_str().unwrap().contains(remedy), "{denied}");
    }
    assert_eq!(world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len(), count);
    // How git asks whether a large push is welcome.
    let probe = post(b"0000".to_vec()).await;
    assert_eq!((probe.status, probe.body.len()), (OK, 0));
    assert_eq!(probe.headers["content-type"], "application/x-git-receive-pack-result");
    assert_eq!(world.events(&sandbox.run.id, EventKind::GatewayDenied).await.len(), count);
    assert_eq!(refs(&bare).await, before);
    world.stop().await;
}

#[tokio::test]
async fn a_push_of_more_refs_than_are_taken_is_refused_in_gits_own_words() {
    let (world, sandbox, bare, client) = world(|_| {}).await;
    let before = refs(&bare).await;
    let many: Vec<String> = (0..=COMMANDS).map(|number| format!("HEAD:refs/heads/n{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let pushed = client.push(&many).await;
    assert!(
        !pushed.ok && pushed.said.contains("more than 16 commands; push one ref alone"),
        "{}",
        pushed.said
    );
    let denied = world.events(&sandbox.run.id, EventKind::GatewayDenied).await;
    assert_eq!((denied.len(), &denied[0]["rule"]), (1, &"push_commands".into()));
    // As many as are taken are judged one by one.
    let pushed = client.push(&many[..COMMANDS]).await;
    assert!(!pushed.ok && pushed.said.contains("this run may push caisson/fixer/1 only"), "{}", pushed.said);
    assert_eq!(refs(&bare).await, before);
    world.stop().await;
}

#[tokio::test]
async fn a_push_that_the_repository_refuses_itself_is_recorded_as_refused() {
    let (world, sandbox, bare, client) = world(|_| {}).await;
    let hook = bare.join("hooks/pre-receive");
    std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho 'the house rules say no' >&2\nexit 1\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, mode).unwrap();
    let pushed = client.push(&[&format!("HEAD:{BRANCH}")]).await;
    assert!(!pushed.ok && pushed.said.contains("the house rules say no"), "{}", pushed.said);
    let records = world.events(&sandbox.run.id, EventKind::GitPush).await;
    assert_eq!(
        (&records[0]["ok"], &records[0]["message"]),
        (&false.into(), &"pre-receive hook declined".into())
    );
    assert_eq!(world.run(&sandbox.run.id).await.pushed_commit, None);
    world.stop().await;
}
