//! Lists of runs and sessions.

use caisson_domain::id::RunId;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::run::RunStatus;
use caisson_store::RunFilter;

use crate::fixture::{Fixture, project, spec, spec_on, workflow};

conformance! {
    runs_are_listed_newest_first_and_pages_join_without_gap_or_overlap,
    runs_made_in_one_millisecond_are_paged_once_each,
    sessions_made_in_one_millisecond_are_paged_once_each,
    each_filter_narrows_the_list,
    sessions_are_listed_newest_first_with_their_last_run,
    a_page_is_bounded_whatever_is_asked_for,
}

async fn ids(fixture: &Fixture, filter: &RunFilter, after: Option<&RunId>, limit: u32) -> Vec<RunId> {
    let runs = fixture.store.list_runs(&project(), filter, after, limit).await.unwrap();
    runs.into_iter().map(|run| run.id).collect()
}

async fn runs_are_listed_newest_first_and_pages_join_without_gap_or_overlap(fixture: Fixture) {
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.insert(0, fixture.queued().await.id);
        fixture.clock.advance(1);
    }
    let filter = RunFilter::default();
    assert_eq!(ids(&fixture, &filter, None, 2).await, expected[..2]);
    assert_eq!(ids(&fixture, &filter, Some(&expected[1]), 2).await, expected[2..4]);
    assert_eq!(ids(&fixture, &filter, Some(&expected[3]), 2).await, expected[4..]);
    assert_eq!(ids(&fixture, &filter, Some(&expected[4]), 2).await, []);
}

async fn runs_made_in_one_millisecond_are_paged_once_each(fixture: Fixture) {
    let mut expected = Vec::new();
    for _ in 0..7 {
        expected.push(fixture.queued().await.id);
    }
    expected.sort_by(|left, right| right.cmp(left));
    let (mut seen, mut after) = (Vec::new(), None);
    for _ in 0..7 {
        let page = ids(&fixture, &RunFilter::default(), after.as_ref(), 1).await;
        after = page.last().cloned();
        seen.extend(page);
    }
    assert_eq!(seen, expected);
}

async fn sessions_made_in_one_millisecond_are_paged_once_each(fixture: Fixture) {
    let mut expected = Vec::new();
    for _ in 0..7 {
        expected.push(fixture.queued().await.session);
    }
    expected.sort_by(|left, right| right.cmp(left));
    for limit in 1..=3 {
        let (mut seen, mut after) = (Vec::new(), None);
        while seen.len() < expected.len() {
            let page = fixture.store.list_sessions(&project(), after.as_ref(), limit).await.unwrap();
            assert!(!page.is_empty(), "{seen:?}");
            // One that comes meanwhile is in none of the pages behind, and changes none of them.
            fixture.queued().await;
            after = page.last().map(|session| session.id.clone());
            seen.extend(page.into_iter().map(|session| session.id).filter(|id| expected.contains(id)));
        }
        assert_eq!(seen, expected, "pages of {limit}");
    }
}

async fn each_filter_narrows_the_list(fixture: Fixture) {
    let plain = fixture.queued().await;
    fixture.clock.advance(1);
    let mut reviewed = spec();
    reviewed.workflow = workflow("reviewer");
    let reviewed = fixture.created(reviewed).await;
    fixture.clock.advance(1);
    let on_repository = fixture.created(spec_on("/srv/git/x", "main")).await;
    assert_eq!(fixture.claim().await.run.id, plain.id);
    let running = RunFilter { status: Some(RunStatus::Running), ..RunFilter::default() };
    assert_eq!(ids(&fixture, &running, None, 9).await, std::slice::from_ref(&plain.id));
    let workflow = RunFilter { workflow: Some("reviewer".to_owned()), ..RunFilter::default() };
    assert_eq!(ids(&fixture, &workflow, None, 9).await, std::slice::from_ref(&reviewed.id));
    let session = RunFilter { session: Some(plain.session.clone()), ..RunFilter::default() };
    assert_eq!(ids(&fixture, &session, None, 9).await, std::slice::from_ref(&plain.id));
    let repository = RunFilter { repository: Some("/srv/git/x".to_owned()), ..RunFilter::default() };
    assert_eq!(ids(&fixture, &repository, None, 9).await, std::slice::from_ref(&on_repository.id));
    let queued = RunFilter { status: Some(RunStatus::Queued), ..RunFilter::default() };
    assert_eq!(ids(&fixture, &queued, None, 9).await, [on_repository.id.clone(), reviewed.id.clone()]);
    assert_eq!(ids(&fixture, &queued, Some(&on_repository.id), 9).await, [reviewed.id]);
    let nothing = RunFilter { status: Some(RunStatus::Failed), ..repository };
    assert_eq!(ids(&fixture, &nothing, None, 9).await, []);
}

async fn sessions_are_listed_newest_first_with_their_last_run(fixture: Fixture) {
    let first = fixture.queued().await;
    fixture.clock.advance(1);
    let second = fixture.queued().await;
    fixture.claim().await;
    let sessions = fixture.store.list_sessions(&project(), None, 10).await.unwrap();
    assert_eq!(
        sessions.iter().map(|session| &session.id).collect::<Vec<_>>(),
        [&second.session, &first.session]
    );
    assert_eq!(sessions[0].last_status, Some(RunStatus::Queued));
    assert_eq!(sessions[1].last_status, Some(RunStatus::Running));
    assert_eq!(sessions[1].last_run, Some(first.id));
    let behind = fixture.store.list_sessions(&project(), Some(&second.session), 10).await.unwrap();
    assert_eq!(behind, sessions[1..]);
}

async fn a_page_is_bounded_whatever_is_asked_for(fixture: Fixture) {
    fixture.queued().await;
    fixture
        .execute(
            "with recursive number (n) as (select 1 union all select n + 1 from number where n < 300) \
             insert into run (id, project_id, session_id, workflow, status, not_before_ms, created_at_ms, spec) \
             select 'run_00000000000000000000000' || cast(100000000 + n as text), project_id, session_id, workflow, status, not_before_ms, created_at_ms, \
             spec from run, number",
        )
        .await;
    fixture
        .execute(
            "with recursive number (n) as (select 1 union all select n + 1 from number where n < 300) \
             insert into session (id, project_id, workflow, conversation, created_at_ms, updated_at_ms) \
             select 'ses_00000000000000000000000' || cast(100000000 + n as text), project_id, workflow, conversation, created_at_ms, updated_at_ms \
             from session, number",
        )
        .await;
    let runs = ids(&fixture, &RunFilter::default(), None, u32::MAX).await;
    assert_eq!(runs.len(), PAGE_ITEMS as usize + 1, "one more than a page, to see whether there is another");
    let sessions = fixture.store.list_sessions(&project(), None, u32::MAX).await.unwrap();
    assert_eq!(sessions.len(), PAGE_ITEMS as usize + 1);
}
