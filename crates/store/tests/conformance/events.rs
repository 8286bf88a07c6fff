//! Numbering and reading events.

use caisson_domain::event::{EventKind, NewEvent};
use caisson_domain::limits::EVENT_PAGE_ITEMS;
use caisson_store::{EventsOf, JournalEffect, JournalEntry};

use serde_json::json;

use crate::fixture::{Fixture, START_MS, assert_gapless, note};

conformance! {
    sixteen_writers_number_events_without_gap_or_repetition,
    pages_of_events_join_without_gap_or_overlap,
    a_page_of_events_is_bounded_whatever_is_asked_for,
    sessions_are_numbered_apart,
    the_agents_lines_come_back_byte_for_byte,
    a_line_nested_deeper_than_any_parser_goes_is_kept,
    a_session_remembers_the_time_of_its_last_event,
    batches_of_every_size_are_numbered_in_order,
    an_event_about_a_sandbox_is_found_without_reading_the_others,
    a_read_of_long_events_ends_at_its_bytes_and_goes_on_behind_them,
}

async fn sixteen_writers_number_events_without_gap_or_repetition(fixture: Fixture) {
    let placed = fixture.placed().await;
    let before = fixture.events(&placed.run.id).await.len();
    let writers = (0..16).map(|writer| {
        let (store, run) = (fixture.store.clone(), placed.run.id.clone());
        async move {
            for number in 0..10 {
                store.append_gateway_event(&run, note(&format!("{writer} {number}"))).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let events = fixture.events(&placed.run.id).await;
    assert_eq!(events.len(), before + 160);
    assert_gapless(&events);
    for writer in 0..16 {
        let own: Vec<&str> = events
            .iter()
            .map(|event| event.data.get())
            .filter(|data| data.contains(&format!("\"{writer} ")))
            .collect();
        assert_eq!(own.len(), 10);
        assert!(own.is_sorted(), "each writer's events keep their order");
    }
}

async fn pages_of_events_join_without_gap_or_overlap(fixture: Fixture) {
    let placed = fixture.placed().await;
    for _ in 0..5 {
        fixture.journal(&placed, JournalEffect::None).await;
    }
    let mut seen = Vec::new();
    loop {
        let after = seen.last().copied().unwrap_or(0);
        let page = fixture.store.events(&placed.run.id, after, 3).await.unwrap();
        if page.is_empty() {
            break;
        }
        assert!(page.len() <= 3);
        seen.extend(page.iter().map(|event| event.seq));
    }
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
    let by_session = fixture.store.session_events(&placed.run.session, 4, 2).await.unwrap();
    assert_eq!(by_session.iter().map(|event| event.seq).collect::<Vec<_>>(), [5, 6]);
}

async fn a_page_of_events_is_bounded_whatever_is_asked_for(fixture: Fixture) {
    let placed = fixture.placed().await;
    let entries = (0..EVENT_PAGE_ITEMS + 10).map(|_| crate::fixture::entry(&placed.run, JournalEffect::None));
    fixture.store.append_journal(&placed.sandbox, 0, 1, entries.collect()).await.unwrap();
    let page = fixture.store.events(&placed.run.id, 0, u32::MAX).await.unwrap();
    assert_eq!(
        page.len(),
        EVENT_PAGE_ITEMS as usize + 1,
        "one more than a page, to see whether there is another"
    );
}

async fn sessions_are_numbered_apart(fixture: Fixture) {
    let first = fixture.queued().await;
    let second = fixture.queued().await;
    for run in [&first, &second] {
        let events = fixture.store.session_events(&run.session, 0, 10).await.unwrap();
        assert_eq!(events.iter().map(|event| (event.seq, &event.run)).collect::<Vec<_>>(), [(1, &run.id)]);
    }
}

async fn line(fixture: &Fixture, json: &str) -> String {
    let placed = fixture.placed().await;
    let event = NewEvent::from_raw(EventKind::AgentLine, json.to_owned()).unwrap();
    let entry = JournalEntry {
        run: placed.run.id.clone(),
        attempt: 1,
        event: Some(event),
        effect: JournalEffect::None,
    };
    fixture.store.append_journal(&placed.sandbox, 0, 1, vec![entry]).await.unwrap();
    let events = fixture.events(&placed.run.id).await;
    events.last().unwrap().data.get().to_owned()
}

async fn the_agents_lines_come_back_byte_for_byte(fixture: Fixture) {
    let odd = "{\"b\" : 1.00,  \"a\":\"\\u0000\\ud800 ä\", \"b\":2}";
    assert_eq!(line(&fixture, odd).await, odd);
}

async fn a_line_nested_deeper_than_any_parser_goes_is_kept(fixture: Fixture) {
    // The sandbox could send it, and a batch that is refused would be sent again for ever.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(line(&fixture, &deep).await, deep);
}

async fn a_session_remembers_the_time_of_its_last_event(fixture: Fixture) {
    let placed = fixture.placed().await;
    fixture.clock.advance(77);
    fixture.journal(&placed, JournalEffect::None).await;
    let session = fixture.store.session(&placed.run.project, &placed.run.session).await.unwrap().unwrap();
    assert_eq!((session.created_at_ms, session.updated_at_ms), (START_MS, START_MS + 77));
    assert_eq!(fixture.events(&placed.run.id).await.last().unwrap().at_ms, START_MS + 77);
}

async fn batches_of_every_size_are_numbered_in_order(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (mut offset, mut sent) = (0, 0);
    for size in [1, 2, 3, 63, 64, 65, 130, 200] {
        let entries = (sent..sent + size)
            .map(|number| JournalEntry {
                run: placed.run.id.clone(),
                attempt: 1,
                event: Some(note(&number.to_string())),
                effect: JournalEffect::None,
            })
            .collect();
        fixture.store.append_journal(&placed.sandbox, offset, offset + 1, entries).await.unwrap();
        offset += 1;
        sent += size;
    }
    let events = fixture.store.events(&placed.run.id, 2, EVENT_PAGE_ITEMS).await.unwrap();
    assert_eq!(events.len(), sent);
    assert_gapless(&fixture.store.events(&placed.run.id, 0, EVENT_PAGE_ITEMS).await.unwrap());
    for (number, event) in events.iter().enumerate() {
        assert!(event.data.get().contains(&format!("\"{number}\"")), "{}", event.data);
    }
}

async fn an_event_about_a_sandbox_is_found_without_reading_the_others(fixture: Fixture) {
    let placed = fixture.placed().await;
    let (store, run, sandbox) = (&fixture.store, &placed.run.id, &placed.sandbox);
    let tells = async |kind| store.tells_of_sandbox(run, kind, sandbox).await.unwrap();
    assert!(!tells(EventKind::SandboxStarted).await);
    let other = json!({ "sandbox": "sbx_other", "image": "x" });
    let own = json!({ "sandbox": sandbox, "image": "x" });
    for (data, told) in [(other, false), (own, true)] {
        let event = NewEvent::new(EventKind::SandboxStarted, &data);
        assert!(store.append_run_event(run, placed.epoch, event).await.unwrap());
        assert_eq!(tells(EventKind::SandboxStarted).await, told);
    }
    assert!(!tells(EventKind::SandboxExited).await);
    // What is no JSON to SQLite is not looked at.
    fixture.execute("update event set data = '{' where kind <> 'sandbox.started'").await;
    assert!(tells(EventKind::SandboxStarted).await);
    let plan = fixture
        .rows((
            "explain query plan select exists (select 1 from event where run_id = $1 and kind = $2 \
             and kind in ('sandbox.started', 'sandbox.exited') \
             and case when kind = $2 then json_extract(data, '$.sandbox') = $3 end)",
            "explain select exists (select 1 from event where run_id = 'r' and kind = 'sandbox.started' \
             and kind in ('sandbox.started', 'sandbox.exited') \
             and case when kind = 'sandbox.started' then cast(data as json) ->> 'sandbox' = 's' end)",
        ))
        .await;
    let wanted = fixture.database.of("event_of_sandbox (run_id=? AND kind=?)", "using event_of_sandbox");
    let uses =
        plan.iter().any(|row| row.get::<&str>(fixture.database.of("detail", "QUERY PLAN")).contains(wanted));
    assert!(uses, "it has an index of its own");
}

async fn a_read_of_long_events_ends_at_its_bytes_and_goes_on_behind_them(fixture: Fixture) {
    let placed = fixture.placed().await;
    let first = fixture.events(&placed.run.id).await.last().unwrap().seq;
    let details = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let lines = [600, 400, 1_000, 1_001, 10, 10].map(|bytes| JournalEntry {
        run: placed.run.id.clone(),
        attempt: 1,
        event: Some(NewEvent::from_raw(EventKind::AgentLine, details(bytes)).unwrap()),
        effect: JournalEffect::None,
    });
    fixture.store.append_journal(&placed.sandbox, 0, 1, lines.into()).await.unwrap();
    let (run, session) = (&placed.run.id, &placed.run.session);
    for of in [EventsOf::Run(run), EventsOf::Session(session)] {
        for is_listed in [false, true] {
            let (mut after, mut reads) = (first, Vec::new());
            loop {
                let store = &fixture.store;
                let read = if is_listed {
                    store.listed_events(of, after, (16, 1_000)).await.unwrap()
                } else {
                    store.events_within(of, after, (16, 1_000)).await.unwrap()
                };
                let Some(last) = read.last() else { break };
                after = last.seq;
                reads.push(read.iter().map(|event| event.data.get().len()).collect::<Vec<_>>());
            }
            assert_eq!(reads, [vec![600, 400], vec![1_000], vec![1_001], vec![10, 10]], "{of:?}");
            // A connection whose answer was not read to its end gives the next one whole.
            let all = fixture.store.events_within(of, first, (5, usize::MAX)).await.unwrap();
            assert_eq!(all.len(), 5, "{of:?}");
        }
    }
}
