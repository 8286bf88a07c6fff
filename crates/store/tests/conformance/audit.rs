//! The audit log: what is recorded, that it cannot be changed, and that a changed one is found out.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::id::ApiKeyId;
use caisson_domain::limits::PAGE_ITEMS;
use caisson_domain::principal::Scope;
use caisson_store::{
    Actor, AuditFault, AuditFilter, AuditHead, AuditRecord, Clock, CredentialUse, NewAudit, Push, PushRecord,
    Store,
};
use serde_json::json;

use crate::database::Checks;
use crate::fixture::{Fixture, new_run, project, spec, spec_on};

conformance! {
    records_are_chained_without_a_gap_and_the_chain_is_whole,
    who_asked_for_a_runs_end_is_recorded_with_the_keys_name,
    pushes_and_denials_are_recorded_with_host_and_ref,
    a_credential_is_recorded_once_for_each_run_and_purpose,
    what_is_given_up_leaves_no_record,
    the_database_refuses_to_change_records,
    a_tampered_log_is_found_out_at_its_first_broken_link,
    a_cut_tail_and_a_chain_made_anew_are_seen_by_a_head,
    the_list_is_newest_first_and_narrowed,
    chains_of_two_servers_are_apart,
    a_page_is_bounded_and_pages_meet,
}

async fn all(store: &Store) -> Vec<AuditRecord> {
    store.audit_after(0).await.unwrap()
}

async fn note(fixture: &Fixture, subjects: &[&str]) {
    for subject in subjects {
        let new = NewAudit::new(&project(), Actor::Operator, "test.note", subject);
        fixture.store.append_audit(&new).await.unwrap();
    }
}

async fn records_are_chained_without_a_gap_and_the_chain_is_whole(fixture: Fixture) {
    fixture.store.keep_audit(&fixture.server).await.unwrap();
    assert_eq!(fixture.store.audit_head(&fixture.server).await.unwrap(), None);
    note(&fixture, &["a", "b", "c"]).await;
    let records = all(&fixture.store).await;
    for (seq, pair) in (2..).zip(records.windows(2)) {
        assert_eq!((pair[1].seq, &pair[1].prev_hash), (seq, &pair[0].hash));
    }
    let head = fixture.store.audit_head(&fixture.server).await.unwrap().unwrap();
    assert_eq!((head.seq, &head.hash), (3, &records[2].hash));
    let report = fixture.store.verify_audit(&[head]).await.unwrap();
    assert_eq!((report.chains.len(), report.unchained), (1, 0));
    assert_eq!((report.chains[0].records, report.chains[0].vouched), (3, Some(3)));
    assert_eq!(report.chains[0].fault, None);
    assert_eq!(report.chains[0].chain, fixture.server.as_str());
}

async fn who_asked_for_a_runs_end_is_recorded_with_the_keys_name(fixture: Fixture) {
    let (key, _) =
        fixture.store.create_api_key(&project(), "night shift", &[Scope::RunsWrite]).await.unwrap();
    let run = fixture.queued().await;
    fixture.store.request_cancel(&project(), &run.id, Some(&key)).await.unwrap();
    let record = all(&fixture.store).await.pop().unwrap();
    assert_eq!((record.action.as_str(), record.subject.as_str()), ("run.cancel", run.id.as_str()));
    assert_eq!((record.actor.as_str(), record.actor_name.as_deref()), (key.as_str(), Some("night shift")));
    assert_eq!(record.session.as_deref(), Some(run.session.as_str()));
    let created = caisson_store::NewRun { created_by: Some(key.clone()), ..new_run(spec()) };
    fixture.store.create_run(created).await.unwrap();
    let record = all(&fixture.store).await.pop().unwrap();
    assert_eq!((record.action.as_str(), record.actor.as_str()), ("run.create", key.as_str()));
}

async fn pushes_and_denials_are_recorded_with_host_and_ref(fixture: Fixture) {
    let run = fixture.created(spec_on("https://git.example.com/x", "fix")).await;
    let claimed = fixture.claim().await;
    fixture.place(claimed, 1).await;
    let push = Push { ref_name: "refs/heads/fix".to_owned(), old: "0".repeat(40), new: "1".repeat(40) };
    for ok in [false, true] {
        fixture.store.begin_push(&run.id, &push).await.unwrap();
        let record = PushRecord { push: push.clone(), ok, message: None };
        fixture.store.record_push(&run.id, &record).await.unwrap();
        let told = all(&fixture.store).await.pop().unwrap();
        let decision = if ok { "allowed" } else { "failed" };
        assert_eq!((told.action.as_str(), told.actor.as_str()), ("git.push", "server"));
        assert_eq!(told.decision.as_deref(), Some(decision));
        assert_eq!(told.host.as_deref(), Some("git.example.com"));
        assert_eq!((told.ref_name.as_deref(), &told.subject), (Some("refs/heads/fix"), &push.new));
    }
    let denied = json!({"what": "push", "ref": "refs/heads/main", "rule": "not_own_branch", "remedy": "x"});
    let event = NewEvent::new(EventKind::GatewayDenied, &denied);
    fixture.store.append_gateway_event(&run.id, event).await.unwrap();
    let told = all(&fixture.store).await.pop().unwrap();
    assert_eq!((told.action.as_str(), told.subject.as_str()), ("gateway.denied", "push: not_own_branch"));
    assert_eq!(
        (told.decision.as_deref(), told.ref_name.as_deref()),
        (Some("denied"), Some("refs/heads/main"))
    );
    assert_eq!(told.run.as_deref(), Some(run.id.as_str()));
    let again = json!({"what": "push", "ref": "refs/heads/main", "rule": "not_own_branch", "count": 7});
    let event = NewEvent::new(EventKind::GatewayDenied, &again);
    fixture.store.append_gateway_event(&run.id, event).await.unwrap();
    assert_eq!(all(&fixture.store).await.pop().unwrap().subject, "push: not_own_branch (7 more)");
}

async fn a_credential_is_recorded_once_for_each_run_and_purpose(fixture: Fixture) {
    let placed = fixture.placed().await;
    let before = all(&fixture.store).await.len();
    let used = |purpose| CredentialUse {
        credential: "model".to_owned(),
        host: "api.example.com".to_owned(),
        purpose,
    };
    for _ in 0..3 {
        fixture.store.note_credential_use(&placed.run.id, &used("model")).await.unwrap();
        fixture.store.note_credential_use(&placed.run.id, &used("git fetch")).await.unwrap();
    }
    let records = all(&fixture.store).await.split_off(before);
    let told: Vec<_> = records
        .iter()
        .map(|record| (record.subject.as_str(), record.credential.as_deref(), record.host.as_deref()))
        .collect();
    let (name, host) = (Some("model"), Some("api.example.com"));
    assert_eq!(told, [("model", name, host), ("git fetch", name, host)]);
}

async fn what_is_given_up_leaves_no_record(fixture: Fixture) {
    let other = "other".parse().unwrap();
    assert!(fixture.store.create_api_key(&other, "ci", &[]).await.is_err());
    let run = fixture.queued().await;
    let before = all(&fixture.store).await.len();
    fixture.store.request_cancel(&other, &run.id, None).await.unwrap();
    assert!(!fixture.store.revoke_api_key(&ApiKeyId::new(1, [9; 10])).await.unwrap());
    assert_eq!(all(&fixture.store).await.len(), before);
}

async fn the_database_refuses_to_change_records(fixture: Fixture) {
    note(&fixture, &["a", "b"]).await;
    let before = all(&fixture.store).await;
    for statement in [
        "update audit set actor = 'nobody'",
        "delete from audit where seq = 2",
        "delete from audit",
        // A gap, and a place below the first.
        "insert into audit (chain, seq, project_id, at_ms, actor, action, subject, prev_hash, hash) \
         select chain, 9, project_id, 1, 'nobody', action, subject, prev_hash, hash from audit where seq = 1",
        "insert into audit_before (project_id, at_ms, actor, action, subject) values ('default', 1, 'x', 'y', 'z')",
    ] {
        assert!(fixture.database.try_execute(statement.into(), Checks::On).await.is_err(), "{statement}");
    }
    // What removes rows, or puts others in their place, without a trigger for deleting being asked.
    for statement in [
        (
            "insert or replace into audit \
             (number, chain, seq, project_id, at_ms, actor, action, subject, prev_hash, hash) \
             select number, chain, seq, project_id, at_ms, 'nobody', action, subject, prev_hash, hash from audit \
             where seq = 2",
            "truncate audit",
        ),
        (
            "insert or replace into audit (chain, seq, project_id, at_ms, actor, action, subject, prev_hash, hash) \
             select chain, seq, project_id, 1, 'nobody', action, subject, prev_hash, hash from audit where seq = 1",
            "insert into audit (number, chain, seq, project_id, at_ms, actor, action, subject, prev_hash, hash) \
             select 1, chain, 3, project_id, 1, 'nobody', action, subject, prev_hash, hash from audit where seq = 1 \
             on conflict (number) do update set actor = 'nobody'",
        ),
    ] {
        assert!(fixture.database.try_execute(statement.into(), Checks::On).await.is_err(), "{statement:?}");
    }
    assert_eq!(all(&fixture.store).await, before);
}

async fn fault(store: &Store, heads: &[AuditHead]) -> Option<AuditFault> {
    let report = store.verify_audit(heads).await.unwrap();
    assert_eq!(report.chains.len(), 1);
    report.chains[0].fault.clone()
}

async fn a_tampered_log_is_found_out_at_its_first_broken_link(fixture: Fixture) {
    note(&fixture, &["a", "b", "c", "d", "e"]).await;
    let cases = [
        ("update audit set subject = 'x' where seq = 3", AuditFault::Changed { seq: 3 }),
        ("update audit set at_ms = at_ms + 1 where seq in (2, 4)", AuditFault::Changed { seq: 2 }),
        ("update audit set actor_name = 'x' where seq = 5", AuditFault::Changed { seq: 5 }),
        ("update audit set decision = '' where seq = 1", AuditFault::Changed { seq: 1 }),
        ("delete from audit where seq = 3", AuditFault::Missing { seq: 3 }),
        ("delete from audit where seq = 1", AuditFault::Missing { seq: 1 }),
        // Removed, and the places behind it moved up.
        (
            "delete from audit where seq = 2; update audit set seq = seq - 1 where seq > 2",
            AuditFault::Changed { seq: 2 },
        ),
        // Exchanged with its neighbour, hashes and all.
        (
            "update audit set seq = 99 where seq = 2; update audit set seq = 2 where seq = 3; \
             update audit set seq = 3 where seq = 99",
            AuditFault::Changed { seq: 2 },
        ),
        ("update audit set number = 99 where seq = 2", AuditFault::OutOfOrder { seq: 3 }),
        ("update audit set prev_hash = hash where seq = 4", AuditFault::Changed { seq: 4 }),
    ];
    for (at, (sql, expected)) in cases.into_iter().enumerate() {
        let store = fixture.database.tampered(&format!("tampered_{at}"), sql).await;
        assert_eq!(fault(&store, &[]).await, Some(expected), "{sql}");
        store.close().await.unwrap();
    }
    assert_eq!(fault(&fixture.store, &[]).await, None, "the log itself is whole");
}

async fn a_cut_tail_and_a_chain_made_anew_are_seen_by_a_head(fixture: Fixture) {
    fixture.store.keep_audit(&fixture.server).await.unwrap();
    note(&fixture, &["a", "b", "c"]).await;
    let head = fixture.store.audit_head(&fixture.server).await.unwrap().unwrap();
    let cut = fixture.database.tampered("cut", "delete from audit where seq >= 2").await;
    assert_eq!(fault(&cut, &[]).await, None, "nothing in the chain itself tells of it");
    assert_eq!(fault(&cut, std::slice::from_ref(&head)).await, Some(AuditFault::Cut { last: 1, head: 3 }));
    let empty = fixture.database.tampered("empty", "delete from audit").await;
    assert_eq!(fault(&empty, std::slice::from_ref(&head)).await, Some(AuditFault::Cut { last: 0, head: 3 }));

    // Whoever knows how, makes a chain whose hashes all fit.
    let mut records = all(&fixture.store).await;
    "forged".clone_into(&mut records[1].subject);
    let mut statements = Vec::new();
    for at in 1..records.len() {
        let before = records[at - 1].hash.clone();
        records[at].prev_hash = before;
        records[at].hash = records[at].computed_hash();
        let AuditRecord { subject, prev_hash, hash, seq, .. } = &records[at];
        statements.push(format!(
            "update audit set subject = '{subject}', prev_hash = '{prev_hash}', hash = '{hash}' where seq = {seq};"
        ));
    }
    let forged = fixture.database.tampered("forged", &statements.concat()).await;
    assert_eq!(fault(&forged, &[]).await, None);
    assert_eq!(fault(&forged, std::slice::from_ref(&head)).await, Some(AuditFault::Rewritten { seq: 3 }));
    // Only the first of the two was made to fit.
    let half = fixture.database.tampered("half", &statements[0]).await;
    assert_eq!(fault(&half, &[]).await, Some(AuditFault::Unlinked { seq: 3 }));
    // More records than the head knows of are no fault.
    note(&fixture, &["d"]).await;
    assert_eq!(fault(&fixture.store, &[head]).await, None);
}

async fn the_list_is_newest_first_and_narrowed(fixture: Fixture) {
    let run = fixture.queued().await;
    note(&fixture, &["a", "b"]).await;
    fixture.store.request_cancel(&project(), &run.id, None).await.unwrap();
    let list = |filter: AuditFilter, after: Option<i64>, limit: u32| {
        let store = fixture.store.clone();
        async move {
            let records = store.list_audit(&project(), &filter, after, limit).await.unwrap();
            records.into_iter().map(|record| (record.number, record.action)).collect::<Vec<_>>()
        }
    };
    let actions: Vec<_> =
        list(AuditFilter::default(), None, 9).await.into_iter().map(|(_, action)| action).collect();
    assert_eq!(actions, ["run.cancel", "test.note", "test.note", "run.create"]);
    let first = list(AuditFilter::default(), None, 2).await;
    let rest = list(AuditFilter::default(), Some(first[1].0), 9).await;
    assert_eq!((first.len(), rest.len()), (2, 2));
    let of_run = AuditFilter { run: Some(run.id.clone()), ..AuditFilter::default() };
    assert_eq!(list(of_run, None, 9).await.len(), 2);
    let of_action = AuditFilter { action: Some("test.note".to_owned()), ..AuditFilter::default() };
    assert_eq!(list(of_action, None, 9).await.len(), 2);
    let of_actor = AuditFilter { actor: Some("server".to_owned()), ..AuditFilter::default() };
    assert_eq!(list(of_actor, None, 9).await, []);
    let other = "other".parse().unwrap();
    assert_eq!(fixture.store.list_audit(&other, &AuditFilter::default(), None, 9).await.unwrap(), []);
}

async fn chains_of_two_servers_are_apart(fixture: Fixture) {
    fixture.store.keep_audit(&fixture.server).await.unwrap();
    note(&fixture, &["a"]).await;
    let (clock, _) = Clock::fixed_at(crate::fixture::START_MS);
    let second = fixture.beside(clock).await.unwrap();
    let server = crate::fixture::server_id(2);
    second.keep_audit(&server).await.unwrap();
    second.append_audit(&NewAudit::new(&project(), Actor::Server, "test.note", "b")).await.unwrap();
    note(&fixture, &["c"]).await;
    let heads = [
        fixture.store.audit_head(&fixture.server).await.unwrap().unwrap(),
        second.audit_head(&server).await.unwrap().unwrap(),
    ];
    assert_eq!((heads[0].seq, heads[1].seq), (2, 1));
    let report = second.verify_audit(&heads).await.unwrap();
    assert!(
        report.chains.len() == 2 && report.chains.iter().all(|chain| chain.fault.is_none()),
        "{report:?}"
    );
    second.close().await.unwrap();
}

async fn a_page_is_bounded_and_pages_meet(fixture: Fixture) {
    let count = PAGE_ITEMS as usize + 5;
    for at in 0..count {
        note(&fixture, &[&at.to_string()]).await;
    }
    let first = all(&fixture.store).await;
    assert_eq!(first.len(), PAGE_ITEMS as usize);
    let rest = fixture.store.audit_after(first.last().unwrap().number).await.unwrap();
    assert_eq!(first.len() + rest.len(), count);
    let listed =
        fixture.store.list_audit(&project(), &AuditFilter::default(), None, PAGE_ITEMS + 9).await.unwrap();
    assert_eq!(listed.len(), PAGE_ITEMS as usize + 1);
    let report = fixture.store.verify_audit(&[]).await.unwrap();
    assert_eq!(report.chains[0].records, i64::try_from(count).unwrap(), "verifying goes over pages");
}
