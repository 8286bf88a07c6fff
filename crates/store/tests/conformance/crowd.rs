//! As many runs wait as may, and none of them may start: a claim holds everybody's write lock, so it must be
//! little work all the same. How long the machine takes for that work while it does other things is not asserted here.

use std::time::{Duration, Instant};

use caisson_domain::id::RunId;
use caisson_domain::limits::QUEUE_RUNS;
use caisson_domain::run::RunStatus;
use caisson_store::{Finish, HomeEpoch};

use crate::fixture::{Fixture, project, spec_on};
use crate::going_on::REPOSITORY;

conformance! {
    a_claim_is_little_work_however_many_wait_for_a_branch,
    a_claim_is_little_work_however_many_wait_for_a_session,
}

/// How much longer the work of a claim may take where as many wait as may than where nobody waits.
const SHORT: Duration = Duration::from_millis(20);
/// Claims of each kind, made in turns, of which the quickest shows the work: whatever else the machine does can only add to it.
const TRIES: usize = 30;

/// Their names have as many digits as an id.
const SESSIONS: &str = "with recursive numbers (n) as (select 10000 union all select n + 1 from numbers where n < 19998) \
     insert into session (id, project_id, workflow, repository, branch, conversation, created_at_ms, updated_at_ms) \
     select 'ses_000000000000000000000000000' || n, project_id, workflow, repository, branch, conversation, 1, 1 \
     from session, numbers where session.id = (select min(session_id) from run)";
const RUNS: &str = "with recursive numbers (n) as (select 10000 union all select n + 1 from numbers where n < 19998) \
     insert into run (id, project_id, session_id, workflow, repository, repository_key, branch, status, not_before_ms, \
       created_at_ms, spec, queue_rank_ms) \
     select 'run_000000000000000000000000000' || n, project_id, 'ses_000000000000000000000000000' || n, workflow, \
       repository, repository_key, branch, 'queued', 0, created_at_ms, spec, n from run, numbers \
     where run.id = (select min(id) from run where status = 'running')";
/// What a database of some age has done by itself.
const SETTLED: (&str, &str) = ("analyze", "vacuum analyze run");

/// A run that runs, and one less than the most that may wait behind it for its branch.
async fn crowd(fixture: &Fixture) -> (RunId, HomeEpoch) {
    let mut long = spec_on(REPOSITORY, "work");
    long.prompt = "x".repeat(2_000);
    fixture.created(long).await;
    let claimed = fixture.claim().await;
    fixture.execute(SESSIONS).await;
    fixture.execute(RUNS).await;
    fixture.execute(SETTLED).await;
    (claimed.run.id, claimed.epoch)
}

/// A claim that finds nothing among all those that wait is hardly more work than one in a queue that is empty.
async fn assert_little_work(fixture: &Fixture) {
    let empty =
        if fixture.store.is_shared() { Fixture::postgres().await.unwrap() } else { Fixture::sqlite().await };
    let mut quickest = [Duration::MAX; 2];
    for turn in 0..2 * TRIES {
        let begun = Instant::now();
        let fixture = [fixture, &empty][turn % 2];
        assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
        quickest[turn % 2] = quickest[turn % 2].min(begun.elapsed());
    }
    let [crowded, alone] = quickest;
    assert!(crowded < alone + SHORT, "{crowded:?}, and {alone:?} in an empty queue");
}

/// One that may start is found behind all the others, as quickly.
async fn assert_found_behind(fixture: &Fixture) {
    let waiting: i64 = fixture.value("select count(*) from run where status = 'queued'").await;
    assert_eq!(waiting, QUEUE_RUNS - 1);
    let mut quickest = Duration::MAX;
    for number in 0..5 {
        let free = fixture.created(spec_on(REPOSITORY, &format!("other-{number}"))).await;
        let begun = Instant::now();
        assert_eq!(fixture.claim().await.run.id, free.id);
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < 10 * SHORT, "{quickest:?}");
}

async fn a_claim_is_little_work_however_many_wait_for_a_branch(fixture: Fixture) {
    let (first, epoch) = crowd(&fixture).await;
    assert_little_work(&fixture).await;
    assert_found_behind(&fixture).await;
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&first, epoch, &finish).await.unwrap());
    let next = fixture.claim().await.run;
    assert!(next.id.as_str().ends_with("10000"), "the first of those that wait: {}", next.id);
    assert_eq!(next.project, project());
}

async fn a_claim_is_little_work_however_many_wait_for_a_session(fixture: Fixture) {
    crowd(&fixture).await;
    let one = "update run set branch = id, session_id = (select live.session_id from run as live where live.status = 'running') \
         where status = 'queued'";
    fixture.execute(one).await;
    fixture.execute(SETTLED).await;
    assert_little_work(&fixture).await;
    assert_found_behind(&fixture).await;
}
