//! Pushes whose server died before it recorded them: a real repository that has the commit, and a store that knows
//! of the push only that it was begun.

use std::path::PathBuf;
use std::time::Duration;

use caisson_domain::event::EventKind;
use caisson_domain::git::AllowList;
use caisson_domain::protocol::{Ending, JournalBody, Outcome};
use caisson_domain::run::RunStatus;
use caisson_store::{BeginPush, Finish, Push};
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::git_host::{GitHost, Mood, bare_repository, git};
use super::support::{GIT_TOKEN, OK, PATIENCE, Reply, Sandbox, Setup, World, eventually, run_spec};
use crate::GitCredential;

const REF: &str = "refs/heads/caisson/fixer/1";
const RECEIVE: &str = "/git/origin/git-receive-pack";
/// A pack without objects: what it would hold is on the host already. (gitformat-pack(5))
pub(crate) const EMPTY_PACK: &[u8] = b"PACK\0\0\0\x02\0\0\0\0\
    \x02\x9d\x08\x82\x3b\xd8\xa8\xea\xb5\x10\xad\x6a\xc7\x5c\x82\x3c\xfd\x3e\xd3\x1e";

struct Scene {
    world: World,
    sandbox: Sandbox,
    setup: Option<Setup>,
    bare: PathBuf,
    work: PathBuf,
    push: Push,
}

/// A repository and somebody's clone of it with one more commit; the gateway has not started.
async fn scene(host: Option<Mood>) -> (Scene, Option<GitHost>) {
    let world = World::new().await;
    let root = world.root.path().canonicalize().unwrap();
    let bare = root.join("host/one.git");
    std::fs::create_dir_all(bare.parent().unwrap()).unwrap();
    bare_repository(&bare).await;
    git(&bare, &["config", "http.receivepack", "true"]).await;
    let work = root.join("clone");
    git(&root, &["clone", "-q", bare.to_str().unwrap(), "clone"]).await;
    std::fs::write(work.join("file"), "two\n").unwrap();
    git(&work, &["commit", "-qam", "change"]).await;
    let new = git(&work, &["rev-parse", "HEAD"]).await;
    let host = match host {
        Some(mood) => Some(GitHost::start(&root.join("host"), mood).await),
        None => None,
    };
    let repository = host
        .as_ref()
        .map_or_else(|| bare.to_str().unwrap().to_owned(), |host| format!("{}/one.git", host.url));
    let sandbox = world.sandbox(run_spec(Some(&repository))).await;
    let mut setup = Setup::new();
    let urls: Vec<String> = host.iter().map(|host| format!("{}/*", host.url)).collect();
    setup.git.allow = AllowList::new(&urls, vec![root]).unwrap();
    let credential = |host: &GitHost| GitCredential {
        url_prefix: host.url.parse().unwrap(),
        username: "robot".to_owned(),
        token: GIT_TOKEN.to_owned().into(),
    };
    setup.git.credentials = host.iter().map(credential).collect();
    let push = Push { ref_name: REF.to_owned(), old: "0".repeat(40), new };
    (Scene { world, sandbox, setup: Some(setup), bare, work, push }, host)
}

impl Scene {
    /// Has the host have the commit elsewhere, so that a push without it can be looked at.
    async fn is_on_the_host(&self) {
        git(&self.work, &["push", "-q", "origin", "HEAD:refs/pull/1/head"]).await;
    }

    async fn begin(&self) {
        let begun = self.world.store.begin_push(&self.sandbox.run.id, &self.push).await.unwrap();
        assert_eq!(begun, BeginPush::Begun);
    }

    /// What the killed server did last.
    async fn host_takes_it(&self) {
        git(&self.work, &["push", "-q", "origin", &format!("HEAD:{REF}")]).await;
    }

    async fn start(&mut self, shorten: fn(&mut Setup)) {
        let mut setup = self.setup.take().unwrap();
        shorten(&mut setup);
        self.world.start(setup).await;
    }

    /// The push as git sends it.
    fn body(&self) -> Vec<u8> {
        let Push { ref_name, old, new } = &self.push;
        let command = format!("{old} {new} {ref_name}\0 report-status");
        let section = format!("{:04x}{command}0000", command.len() + 4);
        [section.as_bytes(), EMPTY_PACK].concat()
    }

    async fn send_it(&self) -> Reply {
        self.sandbox.agent(Method::POST, RECEIVE, self.body()).await
    }

    /// Sends the push and does something between its head and its body.
    async fn send_it_around<F: Future<Output = ()>>(&self, meanwhile: F) -> String {
        let body = self.body();
        let head = format!(
            "POST {RECEIVE} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {}\r\nexpect: 100-continue\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n",
            self.sandbox.agent,
            body.len()
        );
        let mut stream = UnixStream::connect(&self.sandbox.socket).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        // The server asks for the body once it knows whose push it is.
        let mut asked = [0; 25];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut asked)).await.unwrap().unwrap();
        assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
        meanwhile.await;
        stream.write_all(&body).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn finish(&self) -> Reply {
        let head = Some(self.push.new.clone());
        let outcome = Outcome { ending: Ending::Completed, result: None, head, pushed: true, kept: false };
        let line = self.sandbox.line(JournalBody::Finished(outcome));
        self.sandbox.control(Method::POST, "/journal?offset=0", line).await
    }

    async fn pending(&self) -> Option<Push> {
        self.world.store.pending_push(&self.sandbox.run.id).await.unwrap()
    }

    async fn pushed(&self) -> Option<String> {
        self.world.run(&self.sandbox.run.id).await.pushed_commit
    }

    async fn records(&self) -> Vec<serde_json::Value> {
        self.world.events(&self.sandbox.run.id, EventKind::GitPush).await
    }

    /// Asserts that the push was recorded as taken, once, and that nothing is left to do.
    async fn assert_recorded(&self, said: &str) {
        let records = self.records().await;
        assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "{records:?}");
        assert_eq!((&records[0]["ref"], &records[0]["new"]), (&REF.into(), &self.push.new.clone().into()));
        assert!(records[0]["message"].as_str().unwrap().contains(said), "{records:?}");
        assert_eq!(self.pushed().await.as_ref(), Some(&self.push.new));
        assert_eq!(self.pending().await, None);
    }
}

#[tokio::test]
async fn a_push_whose_server_was_killed_is_recorded_at_the_next_start() {
    for host in [None, Some(Mood::Serves)] {
        let (mut scene, _host) = scene(host).await;
        scene.begin().await;
        scene.host_takes_it().await;
        scene.start(|_| {}).await;
        eventually(|| async { scene.pushed().await }).await;
        scene.assert_recorded("the git host's answer did not come").await;
        scene.world.stop().await;
    }
}

#[tokio::test]
async fn a_host_that_is_away_at_the_start_is_asked_again() {
    let (mut scene, _) = scene(None).await;
    scene.begin().await;
    scene.host_takes_it().await;
    let away = scene.bare.with_extension("away");
    std::fs::rename(&scene.bare, &away).unwrap();
    scene.start(|_| {}).await;
    assert_eq!(scene.sandbox.control(Method::GET, "/next", "").await.status, OK, "the door does not wait");
    assert_eq!(scene.records().await.len(), 0);
    std::fs::rename(&away, &scene.bare).unwrap();
    eventually(|| async { scene.pushed().await }).await;
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_host_that_stays_away_is_asked_for_a_bounded_time_and_before_the_outcome() {
    let (mut scene, _) = scene(None).await;
    scene.begin().await;
    scene.host_takes_it().await;
    let away = scene.bare.with_extension("away");
    std::fs::rename(&scene.bare, &away).unwrap();
    scene.start(|setup| setup.bounds.push_look = Duration::from_millis(100)).await;
    // What stays are the tasks that follow the store, of sandboxes and of credentials, and the door's own.
    eventually(|| async { (scene.world.tracker.len() == 3).then_some(()) }).await;
    assert_eq!((scene.pending().await, scene.pushed().await), (Some(scene.push.clone()), None));
    std::fs::rename(&away, &scene.bare).unwrap();
    assert_eq!(scene.finish().await.status, OK);
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}

#[tokio::test]
async fn an_outcome_is_not_stored_before_its_pending_push_is_settled() {
    let (mut scene, _) = scene(None).await;
    scene.begin().await;
    // The host was still at work on it when the server looked at its start.
    scene.start(|setup| setup.bounds.push_look = Duration::ZERO).await;
    eventually(|| async { (scene.world.tracker.len() == 3).then_some(()) }).await;
    assert_eq!(scene.pending().await.as_ref(), Some(&scene.push));
    scene.host_takes_it().await;
    let run = &scene.sandbox.run.id;
    let mut watch = scene.world.store.watch(caisson_store::Topic::Run(run.clone()));
    let seen = async {
        // Whoever sees the outcome sees the commit.
        loop {
            let progress = scene.world.store.progress(run, scene.sandbox.epoch).await.unwrap().unwrap();
            if progress.outcome.is_some() {
                return progress.pushed_commit;
            }
            watch.changed(PATIENCE).await;
        }
    };
    let (reply, seen) = tokio::join!(scene.finish(), seen);
    assert_eq!((reply.status, seen.as_ref()), (OK, Some(&scene.push.new)));
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}

#[tokio::test]
async fn an_outcome_waits_for_a_silent_host_for_a_bounded_time() {
    let (mut scene, _host) = scene(Some(Mood::Hangs)).await;
    scene.begin().await;
    scene.start(|setup| setup.bounds.outcome_hold = Duration::from_millis(200)).await;
    let began = tokio::time::Instant::now();
    assert_eq!(scene.finish().await.status, OK);
    assert!(began.elapsed() >= Duration::from_millis(200), "it was held");
    assert_eq!(scene.sandbox.control(Method::GET, "/next", "").await.status, 204, "and then stored");
    assert_eq!((scene.pending().await, scene.pushed().await), (Some(scene.push.clone()), None));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_sent_again_after_it_was_taken_is_answered_so_and_recorded_once() {
    let (mut scene, host) = scene(Some(Mood::Serves)).await;
    scene.begin().await;
    scene.host_takes_it().await;
    scene.start(|_| {}).await;
    for _ in 0..2 {
        let reply = scene.send_it().await;
        assert_eq!(
            (reply.status, reply.text()),
            (OK, format!("000eunpack ok\n{:04x}ok {REF}\n0000", REF.len() + 8))
        );
        let records = scene.records().await;
        assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "{records:?}");
        assert_eq!((scene.pushed().await.as_ref(), scene.pending().await), (Some(&scene.push.new), None));
    }
    let forwarded = host.unwrap().seen().iter().any(|(path, _)| path.ends_with("/git-receive-pack"));
    assert!(!forwarded, "the host would have refused it");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_sent_again_that_was_not_taken_is_forwarded() {
    let (mut scene, _) = scene(None).await;
    // The objects are there, the ref is not.
    git(&scene.work, &["push", "-q", "origin", "HEAD:refs/heads/other"]).await;
    scene.begin().await;
    scene.start(|_| {}).await;
    let reply = scene.send_it().await;
    assert!(reply.text().contains(&format!("ok {REF}")), "{}", reply.text());
    assert_eq!(git(&scene.bare, &["rev-parse", REF]).await, scene.push.new);
    let records = scene.records().await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()));
    assert_eq!(scene.pending().await, None);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_that_the_host_refuses_since_it_has_it_counts_as_taken() {
    let (mut scene, _) = scene(None).await;
    scene.host_takes_it().await;
    scene.start(|_| {}).await;
    let reply = scene.send_it().await;
    assert!(reply.text().contains(&format!("ng {REF}")), "the host's own word passes: {}", reply.text());
    scene.assert_recorded("it was there already; the git host said: ").await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_that_cannot_be_written_down_is_not_forwarded() {
    let (mut scene, host) = scene(Some(Mood::Serves)).await;
    scene.start(|setup| setup.bounds.store_hold = Duration::from_millis(200)).await;
    let began = tokio::time::Instant::now();
    let answer = scene.send_it_around(async { scene.world.store.close().await.unwrap() }).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("store_unavailable"), "{answer}");
    assert!(began.elapsed() > Duration::from_millis(100), "it was held");
    // It was asked for its default branch, and nothing was sent to it.
    assert_eq!(host.unwrap().count("git-receive-pack"), 0);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_of_a_run_that_ended_meanwhile_is_not_forwarded() {
    let (mut scene, host) = scene(Some(Mood::Serves)).await;
    scene.is_on_the_host().await;
    scene.start(|_| {}).await;
    let end = async {
        let finish = Finish { status: RunStatus::Cancelled, failure: None, result: None };
        let (run, epoch) = (&scene.sandbox.run.id, scene.sandbox.epoch);
        assert!(scene.world.store.finish(run, epoch, &finish).await.unwrap());
    };
    let answer = Box::pin(scene.send_it_around(end)).await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("no_run"), "{answer}");
    // It was asked for its default branch, and nothing was sent to it.
    assert_eq!(host.unwrap().count("git-receive-pack"), 0);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_stays_pending_if_nobody_can_say_what_became_of_it() {
    let (mut scene, _host) = scene(Some(Mood::FailsPushes)).await;
    scene.is_on_the_host().await;
    scene.start(|_| {}).await;
    assert_eq!(scene.send_it().await.status, 502);
    assert_eq!((scene.records().await.len(), scene.pending().await), (0, Some(scene.push.clone())));
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_that_never_reached_the_host_is_not_pending() {
    let (mut scene, _host) = scene(Some(Mood::Redirects)).await;
    scene.start(|_| {}).await;
    assert_eq!(scene.send_it().await.status, 502);
    assert_eq!((scene.records().await.len(), scene.pending().await), (0, None));
    scene.world.stop().await;
}

const LISTS_REFS: &str = "/info/refs?service=git-receive-pack";

#[tokio::test]
async fn a_host_that_did_not_have_the_push_at_the_start_is_asked_again() {
    let (mut scene, host) = scene(Some(Mood::Serves)).await;
    let host = host.unwrap();
    scene.begin().await;
    scene.start(|_| {}).await;
    // The host is still at work on it, and its sandbox never says another word.
    eventually(|| async { (host.count(LISTS_REFS) > 0).then_some(()) }).await;
    scene.host_takes_it().await;
    eventually(|| async { scene.pushed().await }).await;
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_of_which_nobody_could_say_what_became_is_asked_after_by_the_server_itself() {
    let (mut scene, host) = scene(Some(Mood::FailsPushes)).await;
    let host = host.unwrap();
    scene.is_on_the_host().await;
    scene.start(|_| {}).await;
    assert_eq!(scene.send_it().await.status, 502);
    assert_eq!(scene.pending().await.as_ref(), Some(&scene.push));
    scene.host_takes_it().await;
    host.set_mood(Mood::Serves);
    eventually(|| async { scene.pushed().await }).await;
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}

impl Scene {
    /// Sends the push to a host that is at work on it, and does not wait for the answer.
    async fn leave_a_push_under_way(&self, host: &GitHost) {
        git(&self.work, &["push", "-q", "origin", "HEAD:refs/heads/other"]).await;
        let leave = eventually(|| async { (host.count("/git-receive-pack") > 0).then_some(()) });
        tokio::select! {
            reply = self.send_it() => panic!("the host answered: {}", reply.text()),
            () = leave => {}
        }
    }

    async fn outcome_is_stored(&self) -> bool {
        let run = &self.sandbox.run.id;
        let progress = self.world.store.progress(run, self.sandbox.epoch).await.unwrap();
        progress.unwrap().outcome.is_some()
    }
}

#[tokio::test]
async fn an_outcome_waits_for_a_push_that_the_host_is_at_work_on() {
    let (mut scene, host) = scene(Some(Mood::HoldsPushes)).await;
    let host = host.unwrap();
    scene.start(|_| {}).await;
    scene.leave_a_push_under_way(&host).await;
    let release = async {
        let asked = eventually(|| async { scene.outcome_is_stored().await.then_some(()) });
        assert!(tokio::time::timeout(Duration::from_millis(300), asked).await.is_err(), "it is held");
        host.set_mood(Mood::Serves);
    };
    let (reply, ()) = tokio::join!(scene.finish(), release);
    assert_eq!(reply.status, OK);
    let records = scene.records().await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "{records:?}");
    assert_eq!((scene.pushed().await.as_ref(), scene.pending().await), (Some(&scene.push.new), None));
    assert_eq!(host.count(LISTS_REFS), 0, "what is under way is not asked after");
    scene.world.stop().await;
}

#[tokio::test]
async fn a_push_that_is_under_way_for_longer_than_an_outcome_waits_is_recorded_after_it() {
    let (mut scene, host) = scene(Some(Mood::HoldsPushes)).await;
    let host = host.unwrap();
    scene.start(|setup| setup.bounds.outcome_hold = Duration::from_millis(50)).await;
    scene.leave_a_push_under_way(&host).await;
    assert_eq!(scene.finish().await.status, OK);
    assert!(scene.outcome_is_stored().await);
    assert_eq!(scene.pending().await.as_ref(), Some(&scene.push), "the run's end waits for it");
    host.set_mood(Mood::Serves);
    eventually(|| async { scene.pushed().await }).await;
    let records = scene.records().await;
    assert_eq!((records.len(), &records[0]["ok"]), (1, &true.into()), "{records:?}");
    assert_eq!(scene.pending().await, None);
    scene.world.stop().await;
}

#[tokio::test]
async fn a_host_that_broke_off_may_still_be_at_work() {
    let (mut scene, host) = scene(Some(Mood::HoldsPushes)).await;
    let host = host.unwrap();
    scene.start(|setup| setup.bounds.drain = Duration::from_millis(50)).await;
    // Nobody waits for the host's answer, so that the push is given up.
    scene.leave_a_push_under_way(&host).await;
    eventually(|| async { (host.count(LISTS_REFS) > 0).then_some(()) }).await;
    assert_eq!((scene.records().await.len(), scene.pending().await), (0, Some(scene.push.clone())));
    scene.host_takes_it().await;
    eventually(|| async { scene.pushed().await }).await;
    scene.assert_recorded("the git host's answer did not come").await;
    scene.world.stop().await;
}
