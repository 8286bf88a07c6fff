//! Attachments of runs and inputs: kept byte for byte, bounded, and gone with their session.

use caisson_domain::attachment::{
    ATTACHMENT_BYTES, Attachment, AttachmentKind, PENDING_ATTACHMENTS_BYTES, PROJECT_ATTACHMENTS_BYTES,
    RUN_ATTACHMENTS_BYTES,
};
use caisson_domain::id::ApiKeyId;
use caisson_domain::input::{InputKind, InputState};
use caisson_domain::principal::Scope;
use caisson_domain::protocol::InputBody;
use caisson_domain::run::Run;
use caisson_store::{
    ATTACHMENT_PART_BYTES, ATTACHMENT_PIECE_BYTES, Actor, AttachmentsFull, CreateRun, DeleteSession,
    Idempotency, JournalEffect, NewAttachment, NewInput, NewRun, NextWork, REMOVAL_PARTS, SendInput,
    StoreError,
};

use crate::fixture::{Fixture, made, new_run, project, spec};

conformance! {
    what_comes_with_a_run_is_kept_byte_for_byte_and_told_without_its_bytes,
    what_comes_with_an_input_is_numbered_behind_the_runs_and_told_to_its_sandbox,
    an_input_that_is_repeated_with_other_attachments_is_another_one,
    what_is_on_its_way_to_a_run_is_bounded,
    what_a_run_and_a_project_keep_is_bounded,
    attachments_go_with_their_session_step_by_step,
    bytes_that_are_not_those_that_were_stored_are_never_given,
}

fn file(name: &str, content: &[u8]) -> NewAttachment {
    NewAttachment::new(name, None, content.to_vec())
}

/// One that says to be so large.
fn of_size(size_bytes: i64) -> NewAttachment {
    let mut new = file("large", b"x");
    new.what.size_bytes = size_bytes;
    new
}

async fn key(fixture: &Fixture) -> ApiKeyId {
    fixture.store.create_api_key(&project(), "people", &[Scope::RunsWrite]).await.unwrap().0
}

fn input(text: &str, by: &ApiKeyId, attachments: Vec<NewAttachment>) -> NewInput {
    let (kind, text, by) = (InputKind::Steer, Some(text.to_owned()), by.clone());
    NewInput { kind, text, by, idempotency_key: None, attachments }
}

async fn queued_with(fixture: &Fixture, attachments: Vec<NewAttachment>) -> Run {
    made(fixture.store.create_run_with(new_run(spec()), None, attachments).await)
}

async fn what_comes_with_a_run_is_kept_byte_for_byte_and_told_without_its_bytes(fixture: Fixture) {
    let store = &fixture.store;
    let odd: Vec<u8> = (0..=255).cycle().take(2 * ATTACHMENT_PART_BYTES + 1).collect();
    let sizes = [ATTACHMENT_PART_BYTES, ATTACHMENT_PART_BYTES + 1, ATTACHMENT_BYTES];
    assert_eq!(ATTACHMENT_PART_BYTES % ATTACHMENT_PIECE_BYTES, 0);
    let mut attachments =
        vec![NewAttachment::new("a.png", Some("image/png"), odd.clone()), file("none", b"")];
    attachments.extend(sizes.map(|bytes| file(&format!("f{bytes}"), &vec![0xff; bytes])));
    let run = queued_with(&fixture, attachments.clone()).await;
    let numbered: Vec<Attachment> =
        (0..).zip(&attachments).map(|(number, new)| Attachment { number, ..new.what.clone() }).collect();
    assert_eq!(run.spec.attachments, numbered);
    assert_eq!(
        (run.spec.attachments[0].kind, run.spec.attachments[1].kind),
        (AttachmentKind::Image, AttachmentKind::File)
    );
    assert_eq!(store.run(&project(), &run.id).await.unwrap().unwrap().spec.attachments, numbered);
    for (known, new) in numbered.iter().zip(&attachments) {
        assert_eq!(store.attachment(&run.id, known.number).await.unwrap().as_ref(), Some(known));
        let (found, content) = store.read_attachment(&run.id, known.number).await.unwrap().unwrap();
        assert_eq!((&found, content.len()), (known, new.content.len()));
        assert!(content == new.content, "{}", known.name);
        let pieces = pieces(&fixture, &run, known.number).await.unwrap();
        let last = pieces.iter().map(Vec::len).next_back().unwrap_or(0);
        assert!(pieces.iter().rev().skip(1).all(|piece| piece.len() == ATTACHMENT_PIECE_BYTES));
        assert!(last <= ATTACHMENT_PIECE_BYTES && (last > 0 || new.content.is_empty()));
        assert!(pieces.concat() == new.content, "{} by pieces", known.name);
    }
    let parts: i64 = fixture.value("select count(*) from attachment_part").await;
    assert_eq!(parts, 3 + 1 + 2 + 11);
    let other = fixture.queued().await;
    for (run, number) in [(&run.id, 5), (&run.id, -1), (&other.id, 0)] {
        assert_eq!(store.read_attachment(run, number).await.unwrap(), None);
        assert!(store.attachment_pieces(run, number).await.unwrap().is_none());
    }
    let idempotency = Some(Idempotency { key: "once".to_owned(), request_sha256: "ab".repeat(32) });
    let new = || NewRun { idempotency: idempotency.clone(), ..new_run(spec()) };
    let first = made(store.create_run_with(new(), None, vec![file("a", b"b")]).await);
    let again = store.create_run_with(new(), None, vec![file("a", b"b")]).await.unwrap();
    assert!(matches!(again, CreateRun::Replayed(run) if run.id == first.id));
    let kept: i64 = fixture.value("select count(*) from attachment").await;
    assert_eq!(kept, 6, "once");
    let follow_up = made(
        store.create_run_with(new_run(spec()), Some(first.session.clone()), vec![file("c", b"d")]).await,
    );
    assert_eq!(follow_up.session, first.session);
    assert_eq!(store.read_attachment(&follow_up.id, 0).await.unwrap().unwrap().1, b"d");
    assert_eq!(store.attachments_bytes(&first.session).await.unwrap(), 2, "those of both its runs");
    assert_eq!(store.attachments_bytes(&other.session).await.unwrap(), 0);
}

async fn what_comes_with_an_input_is_numbered_behind_the_runs_and_told_to_its_sandbox(fixture: Fixture) {
    queued_with(&fixture, vec![file("task.txt", b"t")]).await;
    let placed = fixture.place(fixture.claim().await, 1).await;
    let (store, by) = (&fixture.store, key(&fixture).await);
    let NextWork::Run { run, .. } = store.next_work(&placed.sandbox).await.unwrap() else { panic!("no run") };
    assert_eq!(run.spec.attachments[0].name, "task.txt");
    let new = input(
        "Look.",
        &by,
        vec![file("a.txt", b"a"), NewAttachment::new("b.gif", Some("image/gif"), b"GIF".to_vec())],
    );
    let SendInput::Sent(sent) = store.send_input(&project(), &placed.run.id, &new).await.unwrap() else {
        panic!("not sent")
    };
    let told: Vec<_> = sent.attachments.iter().map(|it| (it.number, it.name.as_str())).collect();
    assert_eq!(told, [(1, "a.txt"), (2, "b.gif")]);
    assert_eq!((sent.kind, sent.text.as_deref()), (InputKind::Steer, Some("Look.")));
    let plain = input("And go on.", &by, Vec::new());
    assert!(matches!(
        store.send_input(&project(), &placed.run.id, &plain).await.unwrap(),
        SendInput::Sent(_)
    ));
    let inputs = store.inputs_after(&placed.sandbox, 0).await.unwrap();
    let attached = InputBody::Attached {
        kind: InputKind::Steer,
        text: "Look.".to_owned(),
        attachments: sent.attachments.clone(),
    };
    let plain = InputBody::Steer { text: "And go on.".to_owned() };
    assert_eq!(inputs.into_iter().map(|input| input.body).collect::<Vec<_>>(), [attached, plain]);
    assert_eq!(store.read_attachment(&placed.run.id, 2).await.unwrap().unwrap().1, b"GIF");
    let events = store.events(&placed.run.id, 0, crate::fixture::ALL).await.unwrap();
    let told = events.iter().find(|event| event.data.get().contains("a.txt")).unwrap();
    assert!(
        !told.data.get().contains(&"GIF".repeat(2)) && told.data.get().contains("\"size_bytes\":3"),
        "{told:?}"
    );
}

async fn an_input_that_is_repeated_with_other_attachments_is_another_one(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (store, by, run) = (&fixture.store, key(&fixture).await, &placed.run.id);
    let with =
        |attachments| NewInput { idempotency_key: Some("k".to_owned()), ..input("Look.", &by, attachments) };
    let first = store.send_input(&project(), run, &with(vec![file("a", b"1")])).await.unwrap();
    let SendInput::Sent(first) = first else { panic!("{first:?}") };
    let again = store.send_input(&project(), run, &with(vec![file("a", b"1")])).await.unwrap();
    assert_eq!(again, SendInput::Replayed(first));
    for other in [
        vec![],
        vec![file("a", b"2")],
        vec![file("b", b"1")],
        vec![NewAttachment::new("a", Some("image/png"), b"1".to_vec())],
        vec![file("a", b"1"), file("c", b"1")],
    ] {
        assert_eq!(store.send_input(&project(), run, &with(other)).await.unwrap(), SendInput::KeyReused);
    }
}

async fn what_is_on_its_way_to_a_run_is_bounded(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (store, by, run) = (&fixture.store, key(&fixture).await, &placed.run.id);
    let send = async |bytes| {
        store.send_input(&project(), run, &input("x", &by, vec![of_size(bytes)])).await.unwrap()
    };
    let SendInput::Sent(first) = send(PENDING_ATTACHMENTS_BYTES - 10).await else { panic!("not sent") };
    assert_eq!(send(11).await, SendInput::Full);
    assert!(matches!(send(10).await, SendInput::Sent(_)), "at the bound");
    assert_eq!(send(1).await, SendInput::Full);
    let plain = store.send_input(&project(), run, &input("x", &by, Vec::new())).await.unwrap();
    assert!(matches!(plain, SendInput::Sent(_)), "a text alone is not held back");
    let delivered = JournalEffect::Input { seq: first.seq, state: InputState::Delivered };
    fixture.journal(&placed, delivered).await;
    assert!(matches!(send(1).await, SendInput::Sent(_)), "what was delivered is not on its way");
}

async fn what_a_run_and_a_project_keep_is_bounded(fixture: Fixture) {
    let store = &fixture.store;
    let by = key(&fixture).await;
    queued_with(&fixture, vec![of_size(RUN_ATTACHMENTS_BYTES - 10)]).await;
    let placed = fixture.place(fixture.claim().await, 1).await;
    let send = async |bytes| {
        store.send_input(&project(), &placed.run.id, &input("x", &by, vec![of_size(bytes)])).await.unwrap()
    };
    assert_eq!(send(11).await, SendInput::AttachmentsFull(AttachmentsFull::Run));
    assert!(matches!(send(10).await, SendInput::Sent(_)), "at the bound");
    let left = PROJECT_ATTACHMENTS_BYTES - RUN_ATTACHMENTS_BYTES;
    let create =
        async |bytes| store.create_run_with(new_run(spec()), None, vec![of_size(bytes)]).await.unwrap();
    assert_eq!(create(left + 1).await, CreateRun::AttachmentsFull);
    assert!(matches!(create(left).await, CreateRun::Created(_)), "at the bound");
    assert_eq!(create(1).await, CreateRun::AttachmentsFull);
    assert!(
        matches!(store.create_run(new_run(spec())).await.unwrap(), CreateRun::Created(_)),
        "a task alone"
    );
    let runs: i64 = fixture.value("select count(*) from run").await;
    assert_eq!(runs, 3, "what was refused left nothing");
}

async fn attachments_go_with_their_session_step_by_step(fixture: Fixture) {
    let store = &fixture.store;
    let other = queued_with(&fixture, vec![file("other", b"kept")]).await;
    let run = queued_with(&fixture, vec![file("a", b"b")]).await;
    for run in [&run, &other] {
        store.request_cancel(&project(), &run.id, None).await.unwrap();
    }
    assert_eq!(REMOVAL_PARTS, 64);
    fixture
        .execute(
            "insert into attachment_part (run_id, attachment, number, project_id, content) \
             with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 768) \
             select run_id, attachment, n, project_id, content from attachment_part, numbers where content = 'Yg=='",
        )
        .await;
    let deleted = store.delete_session_of(&project(), &run.session, Actor::Operator).await.unwrap();
    assert_eq!(deleted, DeleteSession::Deleted);
    let mut left: i64 = fixture.value("select count(*) from attachment_part").await;
    assert!(left > 1, "{left}");
    while store.remove_some().await.unwrap() {
        let now: i64 = fixture.value("select count(*) from attachment_part").await;
        assert!(left - now <= 2 * REMOVAL_PARTS, "{left} {now}");
        left = now;
    }
    let kept: i64 = fixture.value("select count(*) from attachment").await;
    assert_eq!((left, kept), (1, 1), "the other session's");
    assert_eq!(store.read_attachment(&other.id, 0).await.unwrap().unwrap().1, b"kept");
}

async fn bytes_that_are_not_those_that_were_stored_are_never_given(fixture: Fixture) {
    let run = queued_with(&fixture, vec![file("a", b"abc"), file("b", b"abc")]).await;
    fixture.execute("update attachment_part set content = 'YWJk' where attachment = 0").await;
    fixture.execute("update attachment_part set content = 'a' where attachment = 1").await;
    for number in [0, 1] {
        let read = fixture.store.read_attachment(&run.id, number).await;
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
        let read = pieces(&fixture, &run, number).await;
        assert!(matches!(read, Err(StoreError::Corrupt { .. })), "{read:?}");
    }
    // Of several pieces the last is kept back; what is gone ends it as well.
    let large = vec![b'x'; 2 * ATTACHMENT_PIECE_BYTES];
    let run = queued_with(&fixture, vec![file("a", &large)]).await;
    fixture
        .execute(
            "update attachment_part set content = replace(content, 'eHh4', 'eXl5') where length(content) > 9",
        )
        .await;
    let mut read = fixture.store.attachment_pieces(&run.id, 0).await.unwrap().unwrap();
    assert_eq!(read.next().await.unwrap().unwrap().len(), ATTACHMENT_PIECE_BYTES);
    for _ in 0..2 {
        assert!(matches!(read.next().await, Err(StoreError::Corrupt { .. })));
    }
    fixture.execute("delete from attachment_part").await;
    assert!(matches!(pieces(&fixture, &run, 0).await, Err(StoreError::Corrupt { .. })));
}

/// All pieces of an attachment, in their order.
async fn pieces(fixture: &Fixture, run: &Run, number: i64) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut reading = fixture.store.attachment_pieces(&run.id, number).await?.unwrap();
    let mut pieces = Vec::new();
    while let Some(piece) = reading.next().await? {
        pieces.push(piece);
    }
    assert_eq!(reading.next().await?, None);
    Ok(pieces)
}
