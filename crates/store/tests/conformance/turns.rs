//! Which run starts next: turns between projects, priority and age, and starts that are put off.

use caisson_domain::event::EventKind;
use caisson_domain::id::{ProjectId, ServerId};
use caisson_domain::queue::{
    CLAIM_ATTEMPTS, ESTIMATE_RUNS, ESTIMATE_RUNS_MIN, PLACES_COUNTED, PRIORITY, PRIORITY_STEP_MS,
};
use caisson_domain::run::{FailureKind, Run, RunSpec, RunStatus};
use caisson_store::{Actor, ChangeShare, Claimed, CreateProject, Finish, NewRun, QueuePlace};

use crate::fixture::{Fixture, START_MS, assert_corrupt, made, new_run, project, server_id, spec};

conformance! {
    a_project_that_floods_the_queue_leaves_others_their_turns,
    slots_are_shared_by_weight_and_the_only_slot_as_well,
    a_project_that_was_idle_does_not_catch_up,
    a_higher_priority_starts_first_and_a_low_one_does_not_starve,
    priority_is_of_no_use_against_other_projects,
    a_start_that_is_put_off_comes_when_its_time_has_come_and_waits_from_then_on,
    a_place_in_the_queue_is_told_while_a_run_waits,
    an_estimate_is_made_of_enough_runs_that_ended_lately,
    a_place_is_told_quickly_however_many_wait,
    a_run_whose_agent_never_starts_fails_at_its_bound,
    a_drained_server_claims_nothing_and_keeps_what_it_has,
    all_servers_are_drained_and_resumed_together,
    a_share_is_bounded_and_audited,
}

pub(crate) async fn tenant(fixture: &Fixture, name: &str) -> ProjectId {
    let id: ProjectId = name.parse().unwrap();
    let created = fixture.store.create_project(&id, Actor::Operator).await.unwrap();
    assert!(matches!(created, CreateProject::Created(_)));
    id
}

pub(crate) async fn queued(fixture: &Fixture, project: &ProjectId, spec: RunSpec) -> Run {
    made(fixture.store.create_run(NewRun { project: project.clone(), ..new_run(spec) }).await)
}

/// Queues a thousand runs, each in a session of its own.
async fn flood(fixture: &Fixture) {
    const SESSIONS: &str = "with recursive number (n) as (select 2 union all select n + 1 from number where n < 1000) \
             insert into session (id, project_id, workflow, conversation, created_at_ms, updated_at_ms) \
             select 'ses_00000000000000000000000' || cast(100000000 + n as text), project_id, workflow, conversation, \
             created_at_ms, updated_at_ms from session, number";
    const RUNS: &str = "with recursive number (n) as (select 2 union all select n + 1 from number where n < 1000) \
             insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, queue_rank_ms, spec) \
             select 'run_00000000000000000000000' || cast(100000000 + n as text), project_id, \
             'ses_00000000000000000000000' || cast(100000000 + n as text), workflow, status, not_before_ms, created_at_ms, \
             queue_rank_ms, spec from run, number";
    fixture.queued().await;
    fixture.execute(SESSIONS).await;
    fixture.execute(RUNS).await;
}

async fn end(fixture: &Fixture, claimed: &Claimed) {
    let finish = Finish { status: RunStatus::Succeeded, failure: None, result: None };
    assert!(fixture.store.finish(&claimed.run.id, claimed.epoch, &finish).await.unwrap());
}

fn weight(weight: i64) -> ChangeShare {
    ChangeShare { weight: Some(weight), ..ChangeShare::default() }
}

async fn a_project_that_floods_the_queue_leaves_others_their_turns(fixture: Fixture) {
    const SLOTS: usize = 4;
    flood(&fixture).await;
    let mut running = Vec::new();
    for _ in 0..SLOTS {
        running.push(fixture.claim().await);
    }
    let other = tenant(&fixture, "other").await;
    for _ in 0..5 {
        queued(&fixture, &other, spec()).await;
    }
    // The oldest run ends first. Of two slots that are free, one at least is theirs, until all have started.
    let mut started = 0;
    for free in 1..=10 {
        end(&fixture, &running.remove(0)).await;
        let claimed = fixture.claim().await;
        started += i32::from(claimed.run.project == other);
        running.push(claimed);
        assert!(started >= free / 2, "{started} of {free}");
    }
    assert_eq!(started, 5);
    assert_eq!(fixture.value::<i64>("select count(*) from run where status = 'queued'").await, 1_000 - 4 - 5);
}

async fn slots_are_shared_by_weight_and_the_only_slot_as_well(fixture: Fixture) {
    let light = tenant(&fixture, "light").await;
    fixture.store.change_share(&project(), &weight(3), Actor::Operator).await.unwrap().unwrap();
    for _ in 0..40 {
        fixture.queued().await;
        queued(&fixture, &light, spec()).await;
    }
    let mut heavy = 0;
    for _ in 0..20 {
        let claimed = fixture.claim().await;
        heavy += i32::from(claimed.run.project == project());
        end(&fixture, &claimed).await;
    }
    assert_eq!(heavy, 15, "three of four starts, one after the other");
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(fixture.claim().await);
    }
    let of = |running: &[Claimed]| running.iter().filter(|claimed| claimed.run.project == project()).count();
    assert_eq!(of(&running), 6, "three of four slots");
    for _ in 0..8 {
        end(&fixture, &running.remove(0)).await;
        running.push(fixture.claim().await);
        assert_eq!(of(&running), 6, "whoever ends");
    }
}

async fn a_project_that_was_idle_does_not_catch_up(fixture: Fixture) {
    let idle = tenant(&fixture, "idle").await;
    for _ in 0..30 {
        fixture.queued().await;
    }
    for _ in 0..20 {
        let claimed = fixture.claim().await;
        end(&fixture, &claimed).await;
    }
    let mut started = Vec::new();
    for _ in 0..8 {
        queued(&fixture, &idle, spec()).await;
    }
    for _ in 0..8 {
        let claimed = fixture.claim().await;
        started.push(claimed.run.project == idle);
        end(&fixture, &claimed).await;
    }
    assert_eq!(started.iter().filter(|of_idle| **of_idle).count(), 4, "{started:?}");
    assert!(!started.windows(3).any(|three| three.iter().all(|of_idle| *of_idle)), "{started:?}");
}

async fn a_higher_priority_starts_first_and_a_low_one_does_not_starve(fixture: Fixture) {
    let with = |priority| RunSpec { priority, ..spec() };
    let low = fixture.created(with(*PRIORITY.start())).await;
    let plain = fixture.created(with(0)).await;
    let high = fixture.created(with(*PRIORITY.end())).await;
    assert_eq!(fixture.claim().await.run.id, high.id);
    assert_eq!(fixture.claim().await.run.id, plain.id);
    // Somebody always has something more urgent, and there is one slot.
    let steps = PRIORITY.end() - PRIORITY.start();
    for _ in 0..steps {
        fixture.created(with(*PRIORITY.end())).await;
        let claimed = fixture.claim().await;
        assert_ne!(claimed.run.id, low.id);
        end(&fixture, &claimed).await;
        fixture.clock.advance(PRIORITY_STEP_MS);
    }
    fixture.clock.advance(1);
    fixture.created(with(*PRIORITY.end())).await;
    assert_eq!(fixture.claim().await.run.id, low.id, "it has waited long enough");
}

async fn priority_is_of_no_use_against_other_projects(fixture: Fixture) {
    let greedy = tenant(&fixture, "greedy").await;
    for _ in 0..4 {
        queued(&fixture, &greedy, RunSpec { priority: *PRIORITY.end(), ..spec() }).await;
        fixture.queued().await;
    }
    let mut own = 0;
    for _ in 0..4 {
        own += i32::from(fixture.claim().await.run.project == project());
    }
    assert_eq!(own, 2);
}

async fn a_start_that_is_put_off_comes_when_its_time_has_come_and_waits_from_then_on(fixture: Fixture) {
    let later = RunSpec { start_at_ms: Some(START_MS + 1_000), ..spec() };
    let run = fixture.created(later).await;
    let past = fixture.created(RunSpec { start_at_ms: Some(START_MS - 1_000), ..spec() }).await;
    assert_eq!(fixture.claim().await.run.id, past.id, "a time that has passed is now");
    assert_eq!(fixture.store.queue_place(&project(), &run.id).await.unwrap(), None);
    let state = fixture.store.queue_state().await.unwrap();
    assert_eq!((state.queued, state.delayed, state.running), (1, 1, 1));
    fixture.clock.advance(999);
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    let meanwhile = fixture.queued().await;
    fixture.clock.advance(1);
    assert_eq!(fixture.claim().await.run.id, meanwhile.id, "it has waited for longer");
    assert_eq!(fixture.claim().await.run.id, run.id);
}

async fn a_place_in_the_queue_is_told_while_a_run_waits(fixture: Fixture) {
    let other = tenant(&fixture, "other").await;
    let mut own = Vec::new();
    for _ in 0..6 {
        fixture.clock.advance(1);
        own.push(fixture.queued().await);
    }
    for _ in 0..2 {
        queued(&fixture, &other, spec()).await;
    }
    let position = async |run: &Run| {
        let place = fixture.store.queue_place(&run.project, &run.id).await.unwrap();
        place.map(|QueuePlace { position, estimate }| {
            assert_eq!(estimate, None, "nothing has ended yet");
            position
        })
    };
    assert_eq!((position(&own[0]).await, position(&own[1]).await), (Some(2), Some(4)));
    assert_eq!(position(&own[5]).await, Some(8), "the other project has but two");
    let urgent = fixture.created(RunSpec { priority: 1, ..spec() }).await;
    assert_eq!((position(&urgent).await, position(&own[5]).await), (Some(2), Some(9)));
    fixture.store.change_share(&project(), &weight(2), Actor::Operator).await.unwrap();
    assert_eq!(position(&own[0]).await, Some(3), "two of ours for one of theirs");
    let claimed = fixture.claim().await;
    assert_eq!(position(&claimed.run).await, None, "it waits no longer");
    let unknown = fixture.store.queue_place(&other, &own[0].id).await.unwrap();
    assert_eq!(unknown, None, "not of this project");
}

async fn an_estimate_is_made_of_enough_runs_that_ended_lately(fixture: Fixture) {
    let run_for = async |ms: i64| {
        fixture.queued().await;
        let claimed = fixture.claim().await;
        fixture.clock.advance(ms);
        end(&fixture, &claimed).await;
    };
    let estimate = async |run: &Run| {
        let place = fixture.store.queue_place(&project(), &run.id).await.unwrap();
        place.unwrap().estimate
    };
    for _ in 1..ESTIMATE_RUNS_MIN {
        run_for(1_000_000).await;
    }
    for _ in 0..3 {
        fixture.queued().await;
    }
    let (_, _) = (fixture.claim().await, fixture.claim().await);
    let next = fixture.queued().await;
    assert_eq!(estimate(&next).await, None, "too few have ended");
    for _ in 0..ESTIMATE_RUNS {
        let claimed = fixture.claim().await;
        fixture.clock.advance(10_000);
        end(&fixture, &claimed).await;
        fixture.queued().await;
    }
    let last = fixture.queued().await;
    let told = estimate(&last).await.unwrap();
    assert_eq!((told.runs_measured, told.running, told.mean_run_ms), (ESTIMATE_RUNS, 2, 10_000));
    let place = fixture.store.queue_place(&project(), &last.id).await.unwrap().unwrap();
    assert_eq!(told.seconds, 10 * place.position / 2);
}

/// How long asking for a place may take, the quickest time: whatever else the machine does can only add to it.
const PLACE_WITHIN: std::time::Duration = std::time::Duration::from_millis(100);

async fn a_place_is_told_quickly_however_many_wait(fixture: Fixture) {
    const MANY: &str = "with recursive number (n) as (select 1 union all select n + 1 from number where n < 9000) \
         insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, queue_rank_ms, spec) \
         select 'run_00000000000000000000000' || cast(200000000 + n as text), \
         case when n % 3 = 0 then 'other' else project_id end, session_id, workflow, status, not_before_ms, created_at_ms, \
         queue_rank_ms, spec from run, number where run.id = (select min(id) from run)";
    tenant(&fixture, "other").await;
    fixture.queued().await;
    fixture.clock.advance(1);
    let last = fixture.queued().await;
    fixture.execute(MANY).await;
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = std::time::Instant::now();
        let place = fixture.store.queue_place(&project(), &last.id).await.unwrap().unwrap();
        times.push(begun.elapsed());
        assert_eq!(place.position, 1 + 2 * PLACES_COUNTED, "of each project so many are counted");
    }
    times.sort();
    assert!(times[0] < PLACE_WITHIN, "{times:?}");
}

async fn a_run_whose_agent_never_starts_fails_at_its_bound(fixture: Fixture) {
    let run = fixture.queued().await;
    for attempt in 1..=CLAIM_ATTEMPTS {
        let claimed = fixture.claim().await;
        assert_eq!(claimed.run.attempt, attempt);
        assert!(fixture.store.requeue(&run.id, claimed.epoch, "it fell over", 0).await.unwrap());
    }
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    let ended = fixture.run(&run.id).await;
    let failure = ended.failure.unwrap();
    assert_eq!((ended.status, failure.kind), (RunStatus::Failed, FailureKind::Internal));
    assert_eq!(failure.evidence.as_deref(), Some("it fell over"));
    let kinds = fixture.kinds(&run.id).await;
    assert_eq!(kinds.last(), Some(&EventKind::RunFinished));
    let requeued = kinds.iter().filter(|kind| **kind == EventKind::RunRequeued).count();
    assert_eq!(i64::try_from(requeued).unwrap(), CLAIM_ATTEMPTS - 1);
}

async fn a_drained_server_claims_nothing_and_keeps_what_it_has(fixture: Fixture) {
    let other = server_id(2);
    fixture.store.register_server(&other).await.unwrap();
    for _ in 0..3 {
        fixture.queued().await;
    }
    let kept = fixture.claim().await;
    assert!(!fixture.store.drain(Some(&server_id(9)), &Actor::Operator).await.unwrap(), "no such server");
    for _ in 0..2 {
        assert!(fixture.store.drain(Some(&fixture.server), &Actor::Operator).await.unwrap());
        fixture.clock.advance(1);
    }
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None);
    assert!(fixture.store.heartbeat(&kept.run.id, kept.epoch).await.unwrap().is_some());
    assert!(fixture.store.claim(&other).await.unwrap().is_some(), "the other one goes on");
    fixture.store.register_server(&fixture.server).await.unwrap();
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None, "also after a restart");
    let drained = fixture.store.drained().await.unwrap();
    assert_eq!((drained.all(), drained.has(&fixture.server), drained.has(&other)), (false, true, false));
    assert_eq!(drains(&fixture).await, [(fixture.server.clone(), true), (other.clone(), false)]);
    let state = fixture.store.queue_state().await.unwrap();
    let servers: Vec<_> = state
        .servers
        .iter()
        .map(|server| (server.id.clone(), server.drained_at_ms, server.running))
        .collect();
    assert_eq!(servers, [(fixture.server.clone(), Some(START_MS), 1), (other, None, 1)]);
    assert!(state.is_drained(&fixture.server));
    assert!(fixture.store.resume(Some(&fixture.server), &Actor::Operator).await.unwrap());
    assert!(fixture.store.claim(&fixture.server).await.unwrap().is_some());
    let told = "select action || ' ' || subject from audit where action like 'server.%' order by number";
    let told: Vec<String> = fixture.rows(told).await.iter().map(|row| row.get(0)).collect();
    let server = &fixture.server;
    assert_eq!(told, [format!("server.drain {server}"), format!("server.resume {server}")], "once each");
}

/// The servers that live, and which are drained.
async fn drains(fixture: &Fixture) -> Vec<(ServerId, bool)> {
    let servers = fixture.store.live_servers_and_drains().await.unwrap();
    servers.into_iter().map(|(server, drained)| (server.id, drained)).collect()
}

async fn all_servers_are_drained_and_resumed_together(fixture: Fixture) {
    fixture.queued().await;
    let mut queue = fixture.store.watch(caisson_store::Topic::Queue);
    assert!(fixture.store.drain(None, &Actor::Operator).await.unwrap());
    assert!(fixture.store.drain(Some(&fixture.server), &Actor::Operator).await.unwrap());
    let newcomer = server_id(2);
    fixture.store.register_server(&newcomer).await.unwrap();
    for server in [&fixture.server, &newcomer] {
        assert_eq!(fixture.store.claim(server).await.unwrap(), None);
    }
    assert!(fixture.store.resume(Some(&fixture.server), &Actor::Operator).await.unwrap());
    assert_eq!(fixture.store.claim(&fixture.server).await.unwrap(), None, "all still are");
    assert_eq!(drains(&fixture).await, [(fixture.server.clone(), true), (newcomer.clone(), true)]);
    assert!(fixture.store.drain(Some(&fixture.server), &Actor::Operator).await.unwrap());
    crate::fixture::woken(&mut queue);
    assert!(fixture.store.resume(None, &Actor::Operator).await.unwrap());
    assert!(crate::fixture::woken(&mut queue), "workers are told");
    assert!(fixture.store.claim(&fixture.server).await.unwrap().is_some(), "also who was drained by itself");
    assert_eq!(
        fixture
            .value::<String>(
                "select subject from audit where action = 'server.drain' order by number limit 1"
            )
            .await,
        "all"
    );
}

async fn a_share_is_bounded_and_audited(fixture: Fixture) {
    let change = ChangeShare { max_running: Some(Some(2)), ..weight(7) };
    let changed = fixture.store.change_share(&project(), &change, Actor::Operator).await.unwrap().unwrap();
    assert_eq!(
        (changed.share.weight, changed.share.max_running, changed.share.max_queued),
        (7, Some(2), None)
    );
    assert_eq!(fixture.store.project(&project()).await.unwrap(), Some(changed.clone()));
    let kept = ChangeShare { max_running: Some(None), ..ChangeShare::default() };
    let changed = fixture.store.change_share(&project(), &kept, Actor::Operator).await.unwrap().unwrap();
    assert_eq!((changed.share.weight, changed.share.max_running), (7, None));
    for bad in [weight(0), weight(1_001), ChangeShare { max_queued: Some(Some(10_001)), ..weight(1) }] {
        assert_corrupt(
            fixture.store.change_share(&project(), &bad, Actor::Operator).await,
            "the share of default",
        );
    }
    let nobody: ProjectId = "nobody".parse().unwrap();
    assert_eq!(fixture.store.change_share(&nobody, &weight(2), Actor::Operator).await.unwrap(), None);
    let told = "select subject from audit where action = 'project.share' order by number";
    let told: Vec<String> = fixture.rows(told).await.iter().map(|row| row.get(0)).collect();
    let expected = [
        "default: weight 7, max_running 2, max_queued settings",
        "default: weight 7, max_running settings, max_queued settings",
    ];
    assert_eq!(told, expected);
}
