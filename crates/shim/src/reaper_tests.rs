//! Children and strays.

use super::*;
use crate::process::command;
use tokio::io::AsyncReadExt;

fn reaper() -> (Arc<Reaper>, tokio::task::JoinHandle<()>) {
    let reaper = Reaper::new(Orphans::Ignored);
    let ends = unix::signal(unix::SignalKind::child()).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test has no tracker")]
    let watching = tokio::spawn(Arc::clone(&reaper).watch(ends));
    (reaper, watching)
}

fn shell(script: &str) -> Command {
    let mut command = command("/bin/sh".as_ref(), "/".as_ref());
    command.args(["-c", script]);
    command
}

#[tokio::test]
async fn the_end_of_each_child_reaches_whoever_waits_for_it() {
    let (reaper, watching) = reaper();
    let mut three = reaper.spawn(&mut shell("exit 3")).unwrap();
    let mut killed = reaper.spawn(&mut shell("kill -TERM $$")).unwrap();
    assert_eq!(killed.wait().await, Exit { code: None, signal: Some(15) });
    assert_eq!(three.wait().await, Exit { code: Some(3), signal: None });
    assert_eq!(three.wait().await.code, Some(3));
    watching.abort();
}

#[tokio::test]
async fn a_signal_without_a_name_is_an_end_too() {
    let (reaper, watching) = reaper();
    let mut child = reaper.spawn(&mut shell("kill -40 $$; exec cat")).unwrap();
    assert_eq!(child.wait().await, Exit { code: None, signal: None });
    watching.abort();
}

#[tokio::test]
async fn a_dropped_child_is_killed_with_its_group() {
    let (reaper, watching) = reaper();
    let mut child = reaper.spawn(&mut shell("cat /dev/zero >/dev/null & echo $!; wait")).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 1];
    stdout.read_exact(&mut first).await.unwrap();
    drop(child);
    // Both held the pipe: its end says that both are gone.
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).await.unwrap();
    watching.abort();
}

#[tokio::test]
async fn ending_all_leaves_no_child() {
    let (reaper, watching) = reaper();
    let mut child = reaper.spawn(&mut shell("trap '' TERM; cat")).unwrap();
    reaper.end_all().await;
    assert_eq!(child.wait().await.signal, Some(9));
    assert!(!reaper.reap());
    watching.abort();
}

#[tokio::test]
async fn strays_end_and_children_go_on() {
    let (reaper, watching) = reaper();
    let mut child = reaper.spawn(&mut shell("cat /dev/zero >/dev/null & echo; exec cat")).unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert!(!reaper.strays(Strays::All).is_empty());
    reaper.end_strays().await;
    assert_eq!(reaper.strays(Strays::All), Vec::<i32>::new());
    drop(child.stdin.take());
    assert!(child.wait().await.success(), "it was not ended itself");
    watching.abort();
}

#[tokio::test]
async fn orphans_end_and_what_a_child_has_started_goes_on() {
    let (reaper, watching) = reaper();
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut leaving = reaper.spawn(&mut shell("cat /dev/zero >/dev/null 2>&1 & exit 0")).unwrap();
    assert!(leaving.wait().await.success());
    let mut child = reaper.spawn(&mut shell("cat /dev/zero >/dev/null & echo; exec cat")).unwrap();
    let mut first = [0; 1];
    child.stdout.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    assert_eq!((reaper.strays(Strays::All).len(), reaper.strays(Strays::Orphans).len()), (2, 1));
    reaper.end_orphans().await;
    // This test has no reaper of orphans, which stay as zombies.
    assert_eq!((reaper.strays(Strays::All).len(), reaper.strays(Strays::Orphans).len()), (1, 0));
    drop(child.stdin.take());
    assert!(child.wait().await.success());
    reaper.end_strays().await;
    nix::sys::prctl::set_child_subreaper(false).unwrap();
    watching.abort();
}

#[tokio::test]
async fn a_child_that_is_held_stays_until_it_may_go_on() {
    let (reaper, watching) = reaper();
    let mut child = reaper.spawn(&mut shell("exec cat")).unwrap();
    assert!(!child.is_held());
    child.signal(Signal::SIGSTOP);
    while !child.is_held() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    child.signal(Signal::SIGCONT);
    drop(child.stdin.take());
    assert!(child.wait().await.success() && !child.is_held());
    watching.abort();
}

#[test]
fn the_parent_is_found_behind_any_name_and_zombies_have_none() {
    assert_eq!(parent_of("12 (a b) S) S 7 12 12"), Some(7));
    assert_eq!(parent_of("12 (x) Z 7 12 12"), None);
    assert_eq!(parent_of("12 (x"), None);
}
